"""Say in what state the files of a case are, so that what was prepared of an earlier state is not used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from usvol.encoding import jsonable
from usvol.training.cases import Case

_TEXT_HEADERS = (".mhd", ".nhdr")
_TEXT_HEADER_BYTES = 1 << 16
_OTHER_HALF = {".hdr": ".img", ".img": ".hdr"}


def stamp_of(case: Case, *, labelled: bool) -> str:
    """Name the files of a scan with their size and time; if ``labelled``, all that its labels depend on too.

    Labels depend on the references; of a file that these name, size and time count.
    """
    # A data set's own reader takes what it needs of the folder.
    stamp = _state(case.path.parent if case.read else case.path)
    if not labelled:
        return stamp
    named = {name: _file(value) for name, value in case.reference.items()}
    values = {
        name: jsonable(case.reference[name]) if path is None else _state(path) for name, path in named.items()
    }
    return f"{stamp}|{json.dumps(values, sort_keys=True)}"


def _file(value: Any) -> Path | None:
    if not isinstance(value, str | Path) or not str(value):
        return None
    return path if (path := Path(value)).exists() else None


def _state(path: Path) -> str:
    return "|".join(
        f"{part.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        for part in _parts(path)
        for status in (part.stat(),)
    )


def _parts(path: Path) -> Iterator[Path]:
    """Yield every file of a scan: all in its folder, or header and samples."""
    if path.is_dir():
        yield from sorted(part for part in path.rglob("*") if part.is_file())
        return
    yield path
    suffix = path.suffix.lower()
    if suffix in _TEXT_HEADERS:
        yield from _named_in(path)
    elif suffix in _OTHER_HALF:
        others = (path.with_suffix(change(_OTHER_HALF[suffix])) for change in (str.lower, str.upper))
        yield from (other for other in others if other.is_file())


def _named_in(header: Path) -> Iterator[Path]:
    """Yield the files that a text header names: its samples in one file, or in a list of them."""
    with header.open("rb") as stream:
        text = stream.read(_TEXT_HEADER_BYTES).decode("utf-8", "replace")
    for word in re.split(r"[=:\r\n]", text):
        if (name := word.strip()) and len(name) < 200 and (part := header.parent / name).is_file():
            yield part
