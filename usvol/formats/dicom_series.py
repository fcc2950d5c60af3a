"""Tell the slice series of one folder apart, and give each a path of its own.

A series in a folder that holds more than that goes by ``folder/series-1a2b3c4d``: a path that leads to no
file, and that names neither patient nor UID. This module imports no pydicom until it looks into files.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from usvol.errors import ReadError

_NAME = re.compile(r"series-[0-9a-f]{8}")
_FACTS = ("SeriesInstanceUID", "NumberOfFrames", "ImagePositionPatient")
_HEAD_BYTES = 256
_REMEMBERED = 1 << 16
_FOLDERS = 64  # remembered with what is in them
_SETTLED_NS = 2 * 10**9
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class _Member:
    """Of which series a file is, where its image lies, and whether it is one image."""

    series: str
    place: str | None
    is_single: bool


def is_series_path(path: Path) -> bool:
    """Tell the path of one series of a folder."""
    return bool(_NAME.fullmatch(path.name)) and path.parent.is_dir() and not path.exists()


def find_stacks(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Return the slices of each series by its name, where a folder holds more than one series; else nothing.

    A series of slices: most of its files are images with places of their own in space. Multi-frame files
    and images of other series are in none.
    """
    changed = folder.stat().st_mtime_ns
    # A folder just written to may be written to again within the same tick of its clock, which may be ahead
    # of ours: a server's, or that of a stick written in another time zone.
    settled = (
        time.time_ns() - changed > _SETTLED_NS
        or time.monotonic_ns() - _first_seen_ns(folder, changed) > _SETTLED_NS
    )
    return _stacks_of(folder, changed) if settled else _stacks_of.__wrapped__(folder, changed)


@lru_cache(maxsize=_FOLDERS)
def _first_seen_ns(folder: Path, mtime_ns: int) -> int:  # noqa: ARG001  the cache's key
    return time.monotonic_ns()


@lru_cache(maxsize=_FOLDERS)
def _stacks_of(folder: Path, mtime_ns: int) -> dict[str, tuple[Path, ...]]:  # noqa: ARG001  the cache's key
    known = {file: facts for file in sorted(folder.iterdir()) if (facts := _facts(file)) is not None}
    groups: dict[str, list[Path]] = {}
    for file, facts in known.items():
        if facts.is_single:
            groups.setdefault(facts.series, []).append(file)
    stacks = {
        name: tuple(files) for name, files in groups.items() if _lie_apart([known[file] for file in files])
    }
    is_alone = len(stacks) == 1 and sum(map(len, stacks.values())) == len(known)
    return {} if is_alone else stacks


def slices_of(path: Path) -> tuple[Path, ...]:
    """Return the files of the series of a folder that goes by ``path``.

    Raises:
        ReadError: the folder holds no such series.
    """
    try:
        stacks = find_stacks(path.parent)
    except OSError as error:
        cause = f"its folder cannot be opened ({error.strerror})"
        raise ReadError(path, cause, "check its permissions") from error
    if path.name not in stacks:
        remedy = choice(path.parent) or "name the folder itself, or one file in it"
        raise ReadError(path, "its folder holds no such series", remedy)
    return stacks[path.name]


def choice(folder: Path) -> str | None:
    """Say how to name one of the series of a folder; None where it holds no more than one."""
    stacks = find_stacks(folder)
    told = [f"{folder.name}/{name} ({len(files)} files)" for name, files in list(stacks.items())[:_SHOWN]]
    more = f" and {len(stacks) - _SHOWN} more" if len(stacks) > _SHOWN else ""
    return f"read one series, by a path as if it were a file: {', '.join(told)}{more}" if told else None


def _lie_apart(members: Sequence[_Member]) -> bool:
    places = [member.place for member in members if member.place]
    return 2 * len(places) > len(members) and len(set(places)) > 1


def _facts(file: Path) -> _Member | None:
    try:
        state = file.stat()
        is_file = file.is_file() and file.name.upper() != "DICOMDIR"
        return _read_facts(file, state.st_size, state.st_mtime_ns) if is_file else None
    except (OSError, ReadError):
        return None  # gone, shut or damaged: an item of its own, which reading it tells


@lru_cache(maxsize=_REMEMBERED)
def _read_facts(file: Path, size: int, mtime_ns: int) -> _Member | None:  # noqa: ARG001  the cache's key
    from usvol.formats.dicom_header import glance, is_dicom, text, typed_errors

    with file.open("rb") as opened:
        if not is_dicom(file, opened.read(_HEAD_BYTES)):
            return None
    dataset = glance(file, _FACTS)
    with typed_errors(file, "reading the DICOM header"):
        series, place = text(dataset, "SeriesInstanceUID"), dataset.get("ImagePositionPatient")
        if series is None:
            return None
        key = hashlib.sha256(b"usvol series key 1:" + series.encode("utf-8", "replace")).hexdigest()
        is_single = int(dataset.get("NumberOfFrames") or 1) == 1
        return _Member(f"series-{key[:8]}", str(place) if place else None, is_single)
