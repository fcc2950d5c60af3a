"""Let ``pip install ./plugins/napari`` take usvol from the source tree that holds the plugin.

Wheels made from the source distribution, which lies in no such tree, ask for usvol by its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class UsvolFromHere(BuildHookInterface):
    """Say where usvol lies in the dependencies of a wheel that is built in the source tree."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 (hatchling's name)
        """Name the folder, except for editable installs: there usvol is installed already, editable too."""
        tree = Path(self.root).resolve().parents[1]
        if version != "editable" and (tree / "usvol" / "scan.py").is_file():
            # In the place of the bare name: pip gives up at that one before it reads of a folder after it.
            asked = self.metadata.core.dependencies
            asked[asked.index("usvol")] = f"usvol @ {tree.as_uri()}"
