"""Say in what state the files of a case are, so that what was prepared of an earlier state is not used."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from usvol.encoding import jsonable
from usvol.loading import parts
from usvol.training.cases import Case


def stamp_of(case: Case, *, labelled: bool) -> str:
    """Name the files of a scan with their size and time; if ``labelled``, all that its labels depend on too.

    Labels depend on the references; of a file that these name, size and time count.
    """
    # A data set's own reader takes what it needs of the folder.
    own = case.path.parent.iterdir() if case.read else ()
    stamp = _state(sorted(file for file in own if file.is_file()) or parts(case.path))
    if not labelled:
        return stamp
    named = {name: _file(value) for name, value in case.reference.items()}
    values = {
        name: jsonable(case.reference[name]) if path is None else _state(parts(path))
        for name, path in named.items()
    }
    return f"{stamp}|{json.dumps(values, sort_keys=True)}"


def _file(value: Any) -> Path | None:
    if not isinstance(value, str | Path) or not str(value):
        return None
    return path if (path := Path(value)).exists() else None


def _state(files: Iterable[Path]) -> str:
    return "|".join(
        f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        for file in files
        for status in (file.stat(),)
    )
