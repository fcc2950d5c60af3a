"""Let ``pip install ./plugins/napari`` take usvol from the source tree that holds the plugin.

Wheels made from the source distribution, which lies in no such tree, ask for usvol by its name alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class UsvolFromHere(BuildHookInterface):
    """Add usvol's folder to the dependencies of a wheel that is built in the source tree."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Note the folder, except for editable installs: there usvol is installed already, editable too."""
        tree = Path(self.root).resolve().parents[1]
        if version != "editable" and (tree / "usvol" / "scan.py").is_file():
            build_data["dependencies"].append(f"usvol @ {tree.as_uri()}")
