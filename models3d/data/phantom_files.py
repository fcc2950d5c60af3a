"""A folder that ``usvol simulate`` wrote: volumes, each with its truth in ``<name>.json``.

``reference`` of a case is the phantom's truth as it stands there.
"""

from __future__ import annotations

import json
from pathlib import Path

from usvol.errors import DatasetError
from usvol.training.cases import Case


def cases(folder: Path) -> list[Case]:
    """List every volume with its truth.

    Raises:
        DatasetError: no such folder, or nothing in it that ``usvol simulate`` wrote.
    """
    found = []
    for path in sorted(Path(folder).glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("schema") != "usvol.synthetic/1":
            continue
        candidates = (path.with_suffix(suffix) for suffix in (".nii.gz", ".avi"))
        volume = next((p for p in candidates if p.is_file()), None)
        if volume is not None:
            found.append(Case(path.stem, path.stem, volume, content["truth"], dataset="phantom_files"))
    if not found:
        raise DatasetError(
            f"{folder} holds no scan with a truth file; write some with `usvol simulate PHANTOM -o {folder}`."
        )
    return found
