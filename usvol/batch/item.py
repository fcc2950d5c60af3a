"""Process one item, whatever happens: the boundary that keeps one bad file from stopping the rest."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usvol import loading, pipeline, writing
from usvol.batch.discovery import Item
from usvol.batch.outcome import Outcome, Status, row_of
from usvol.encoding import jsonable
from usvol.errors import CancelledError, DiskFullError, KindError, UsvolError
from usvol.loading import printable
from usvol.scan import Header, Kind, Scan, Selection, Vec3
from usvol.task import Task

log = logging.getLogger("usvol")

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Stated:
    """What the user states about every input: spacing (z, y, x) in mm of the file's samples, frame rate."""

    spacing_mm: Vec3 | None = None
    fps: float | None = None

    def load(self, path: Path, selection: Selection | None = None) -> Scan:
        """Load a scan with what was stated: a frame rate rules which frames of the file are chosen as well.

        Raises:
            ReadError: it cannot be read.
        """
        if self == Stated():
            return loading.load(path, selection=selection)
        known = dataclasses.replace(selection or Selection(), stated_fps=self.fps)
        return self.apply(loading.load(path, selection=known), loading.probe(path))

    def apply(self, scan: Scan, header: Header) -> Scan:
        """Return the scan with what was stated; spacing is scaled where frames were shrunk in decoding."""
        if self.spacing_mm is not None:
            spacing = self.spacing_mm
            # A grid without a scale knows itself how many samples of the file it steps over.
            if scan.grid.is_calibrated:
                ratio = [file / read for file, read in zip(header.grid.shape, scan.grid.shape, strict=True)]
                z, y, x = (step * factor for step, factor in zip(spacing, ratio, strict=True))
                spacing = (y if scan.grid.is_planar else z, y, x)
            else:  # what it steps over in its own file is no part of what is stated of that file's samples
                spacing = header.grid.per_file_sample(spacing)
            scan = scan.with_spacing(spacing)
        if self.fps is not None and scan.kind in {Kind.CINE, Kind.VOLUME_SEQUENCE}:
            scan = scan.with_fps(self.fps)
        return scan


def process(task: Task, item: Item, *, out: Path, stated: Stated, turn: threading.Lock) -> Outcome:
    """Load, run and write one item below ``out``; never raises for what the item causes.

    Raises:
        DiskFullError: no item could be written any more.
        CancelledError: whoever supervises the run has cancelled it.

    A scan of a kind the task does not take is skipped; any other error fails the item and leaves
    a record in ``quarantine/``. The network runs while ``turn`` is held; other stages overlap.
    """
    begun = time.perf_counter()
    try:
        row = _process(task, item, out=out, stated=stated, turn=turn)
        outcome = Outcome(item.id, item.order, printable(item.path), Status.DONE, row=row)
    except KindError as error:
        message = printable(str(error))
        outcome = Outcome(item.id, item.order, printable(item.path), Status.SKIPPED, "KindError", message)
    except CancelledError:
        raise  # nobody's fault: the item stays pending
    except Exception as error:  # (the per-item boundary)
        if isinstance(error, OSError) and error.errno in FULL:
            raise DiskFullError(out) from error
        outcome = failed(item, error, out=out)
    if outcome.status is not Status.DONE:
        # What an earlier version of the file gave must not pass for its result.
        writing.discard(out / "items" / item.id)
    if outcome.status is not Status.FAILED:
        record_of(item, out=out).unlink(missing_ok=True)
    return dataclasses.replace(outcome, seconds=round(time.perf_counter() - begun, 3))


def resume(item: Item, *, out: Path) -> Outcome | None:
    """Return the outcome of an item whose complete result is there and whose input is unchanged."""
    content = writing.read_complete(out / "items" / item.id)
    try:
        if content is None or not _is_of(content, item.path):
            return None
    except (OSError, UsvolError):
        return None  # it is gone or shut, which the new attempt tells
    return Outcome(item.id, item.order, printable(item.path), Status.DONE, row=row_of(content), resumed=True)


def record_of(item: Item, *, out: Path) -> Path:
    """Return where the failure of an item is recorded."""
    return out / "quarantine" / f"{item.id}.json"


def failed(item: Item, error: BaseException, *, out: Path) -> Outcome:
    """Record a failure in ``quarantine/<id>.json`` and return its outcome."""
    expected = isinstance(error, UsvolError)
    message = printable(str(error) if expected else f"{type(error).__name__}: {error}")
    record = {
        "schema": "usvol.quarantine/1",
        "id": item.id,
        "path": printable(item.path),
        "error": type(error).__name__,
        "message": message,
        "traceback": None if expected else printable("".join(traceback.format_exception(error))),
        "versions": dict(pipeline.versions()),
    }
    place = record_of(item, out=out)
    place.parent.mkdir(parents=True, exist_ok=True)
    writing.write_json(place, record)
    return Outcome(item.id, item.order, printable(item.path), Status.FAILED, type(error).__name__, message)


def _is_of(content: Mapping[str, Any], path: Path) -> bool:
    """Tell whether a result is of an input as it is now: by its stamp, and elsewhere by all its bytes."""
    now, then = stamp(path), dict(content.get("stamp", {}))
    if now == then:
        return True
    moved = now.pop("where") != then.pop("where", None)
    return moved and now == then and content["provenance"].get("input_sha256") == pipeline.input_sha256(path)


def stamp(path: Path) -> dict[str, int | str]:
    """Return size, modification time and place of an input and its parts, to notice that it changed since.

    ``where`` is a digest: files of an archive that was moved are still known by their bytes.
    """
    parts = loading.parts(path)
    states = [part.stat() for part in parts]
    found: dict[str, int | str] = {
        "bytes": sum(state.st_size for state in states),
        "mtime_ns": max((state.st_mtime_ns for state in states), default=0),
        "where": hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16],
    }
    if len(parts) > 1:
        facts = [[part.name, s.st_size, s.st_mtime_ns] for part, s in zip(parts, states, strict=True)]
        found["parts"] = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return found


def _process(task: Task, item: Item, *, out: Path, stated: Stated, turn: threading.Lock) -> dict[str, Any]:
    header = loading.probe(item.path)
    title = task.provenance.get("task") or type(task).__name__
    pipeline.require_kind(task, header.kind, title=title, path=item.path)
    stamped = stamp(item.path)
    scan = stated.load(item.path, task.selection)
    with writing.staged(out / "items" / item.id) as partial, _log_to(partial / "log.txt"):
        log.info("input %s: %s, %s", item.path, scan.kind, tuple(scan.data.shape))
        result = pipeline.run(task, scan, turn=turn)
        for name, seconds in result.provenance["stage_seconds"].items():
            log.info("stage %s: %.3f s", name, seconds)
        for flag in result.flags:
            log.info("flag %s (%s): %s", flag.code, flag.severity, flag.message)
        # The file was opened by its name as it is; what is written about it must be text.
        path = result.source.path
        source = dataclasses.replace(result.source, path=path and Path(printable(path)))
        result = dataclasses.replace(result, source=source)
        extra = {"id": item.id, "stamp": stamped}
        content = writing.write_into(result, partial, scan=scan, extra=extra)
    return row_of(jsonable(content))


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send what this thread logs to ``path``."""
    thread = threading.get_ident()
    handler = logging.FileHandler(path, encoding="utf-8", errors="replace")
    handler.addFilter(lambda record: record.thread == thread)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
