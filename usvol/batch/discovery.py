"""Find the scans among files, folders and globs, and give each a stable id."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from usvol.batch.run_file import read_run
from usvol.encoding import slug
from usvol.errors import ConfigError
from usvol.loading import (
    LABEL_ENDING,
    SIDECAR_SUFFIXES,
    SUFFIXES,
    FileClass,
    classify,
    is_there,
    name_of,
    parts,
    probe,
    scans_in,
)
from usvol.scan import Header


class Ignored(StrEnum):
    """Why a file is no item of its own."""

    SIDECAR = "belongs to another file"
    UNKNOWN = "of no format that is read"
    HIDDEN = "hidden file"
    LABELS = "label map of the scan of its name beside it"
    RESULTS = "results of an earlier run"


@dataclass(frozen=True, slots=True)
class Item:
    """One scan to process.

    Attributes:
        id: readable part of the path and a short hash of it; from the path only, never the header.
        order: position in the input.
        path: file or folder to load, or one slice series of a folder (``folder/series-1a2b3c4d``).
    """

    id: str
    order: int
    path: Path


@dataclass(frozen=True, slots=True)
class Found:
    """All files of the input: what will be processed, and what is left aside with the reason."""

    items: tuple[Item, ...]
    ignored: tuple[tuple[Path, Ignored], ...]


def discover(inputs: Sequence[str | Path], *, exclude: Path | None = None) -> Found:
    """Find scans in ``inputs`` (files, folders searched recursively, globs), in a stable order.

    A folder that is one scan (a slice series, numbered stills) is one item; in a folder that holds more, each
    slice series is one (``scans_in``). What else lies there is looked at as in any other folder. A label map
    beside its volume (``NAME_labels.nii.gz`` beside ``NAME.nii.gz``) is none. A file given twice counts once;
    a file named outright is always an item, so that a wrong one is reported. So is a broken link, and what
    cannot be opened.
    ``exclude`` is not searched, nor are the results of an earlier run.

    Raises:
        ConfigError: an input does not exist, a glob matches nothing, or an input is a folder of results.
    """
    items: dict[Path, Item] = {}
    ignored: dict[Path, Ignored] = {}
    taken: set[str] = set()
    gone_over = {resolved(exclude)} if exclude else set()
    for root in _roots(inputs):
        _refuse_results(root, exclude)
        for path, reason in _walk(root, gone_over):
            key = resolved(path)
            if reason is not None:
                ignored.setdefault(key, reason)
            elif key not in items:
                identity = _identity(path, root, taken)
                taken.add(identity)
                items[key] = Item(identity, len(items), path)
    left = tuple((path, why) for path, why in ignored.items() if path not in items)
    return Found(tuple(items.values()), left)


def _roots(inputs: Iterable[str | Path]) -> Iterator[Path]:
    for given in inputs:
        path = expanded(Path(given))
        try:
            found = is_there(path)
        except OSError:
            found = True  # it cannot be looked at, which reading it will tell
        if found:
            yield path
            continue
        # Path.glob takes no absolute pattern.
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        if not matches:
            what = "matches no file" if glob.has_magic(str(path)) else "does not exist"
            raise ConfigError(f"Input {str(given)!r} {what}. Give files, folders or globs that exist.")
        yield from map(Path, matches)


def expanded(path: Path) -> Path:
    """Return a path with a home for its leading ``~``, unless it exists as it is or there is no such home."""
    try:
        return path.expanduser() if str(path).startswith("~") and not is_there(path) else path
    except (OSError, RuntimeError):
        return path


def looked_at(path: Path) -> Header | Exception:
    """Return the header of an item, or what kept it from being read."""
    try:
        return probe(path)
    except Exception as error:  # noqa: BLE001 (the per-item boundary)
        return error


def resolved(path: Path) -> Path:
    """Return where a path leads, links followed; a broken link is a place of its own."""
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a link to itself, before Python 3.13
        return path.absolute()


def _refuse_results(root: Path, out: Path | None) -> None:
    """Refuse an input that holds results, or would; the output folder of a run that goes on is passed by."""
    if not _is_folder(root):
        return
    is_out = out is not None and resolved(root) == resolved(out)
    has_results = read_run(root) is not None
    if is_out and not has_results and any(root.iterdir()):
        raise ConfigError(f"Input {str(root)!r} is the output folder too. Give another -o.")
    if has_results and not is_out:
        raise ConfigError(f"Input {str(root)!r} holds the results of a run. Give the scans it was made from.")


def _walk(root: Path, gone_over: set[Path]) -> Iterator[tuple[Path, Ignored | None]]:
    if not _is_folder(root):
        yield root, None
        return
    if read_run(root) is not None:
        yield root, Ignored.RESULTS
        return
    if resolved(root) in gone_over:
        return
    gone_over.add(resolved(root))
    try:
        inside = sorted(root.iterdir(), key=_natural)
    except OSError:
        yield root, None
        return
    scans = _scans(root)
    yield from ((scan, None) for scan in scans)
    own = {part for scan in scans for part in parts(scan)}
    folders = {path for path in inside if _is_folder(path)}
    names = {name_of(path) for path in inside if path not in folders}
    for path in (path for path in inside if path not in own):
        if path.name.startswith("."):
            yield from ((hidden, Ignored.HIDDEN) for hidden in _files(path))
        elif path in folders:
            yield from _walk(path, gone_over)
        else:
            yield path, Ignored.LABELS if _labels_one_of(names, path) else _reason(path)


def _scans(folder: Path) -> tuple[Path, ...]:
    try:
        scans = scans_in(folder)
        # The only file of its format in a folder goes by its own name.
        return () if scans == (folder,) and len(parts(folder)) == 1 else scans
    except Exception:  # noqa: BLE001 (each of its files says what is wrong)
        return ()


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _files(path: Path) -> Iterator[Path]:
    inside = sorted(path.rglob("*")) if _is_folder(path) else [path]
    yield from (file for file in inside if not _is_folder(file))


def _reason(path: Path) -> Ignored | None:
    reasons = {FileClass.SCAN: None, FileClass.SIDECAR: Ignored.SIDECAR, FileClass.UNKNOWN: Ignored.UNKNOWN}
    try:
        if path.is_file():
            return reasons[classify(path)]
        if path.exists():
            return Ignored.UNKNOWN  # a pipe or a socket, which must not be opened
    except Exception:  # noqa: BLE001, S110 (reading it says what is wrong, and fails it alone)
        pass
    return Ignored.SIDECAR if path.suffix.lower() in SIDECAR_SUFFIXES else None


def _labels_one_of(names: Set[str], path: Path) -> bool:
    if not path.name.lower().endswith(tuple(SUFFIXES["nifti"] | SUFFIXES["metaimage"])):
        return False
    own = name_of(path)
    base = LABEL_ENDING.sub("", own)
    return base != own and base in names


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Sort ``clip_2`` before ``clip_10``."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]


def _identity(path: Path, root: Path, taken: set[str]) -> str:
    # Counted from the root's own name, so that `run a/` and `run a/x.mp4` call x the same, wherever a lies.
    root = root.absolute()
    inside = (
        Path(root.name, path.absolute().relative_to(root)) if _is_folder(root) else Path(*root.parts[-2:])
    )
    readable = "_".join(slug(part) for part in inside.with_suffix("").parts[1:]) or slug(inside.stem)
    name = f"{readable[-60:].strip('-_')}-{_short(inside.as_posix())}"
    return name if name not in taken else f"{name}-{_short(str(path.absolute()))}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
