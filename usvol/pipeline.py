"""Chain the stages of one task over one scan: the only place that does."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from usvol import canonical, loading, quality, resampling
from usvol.contract import sound_findings, sound_flags, sound_measurements
from usvol.errors import KindError, UncalibratedError, UnknownTimeError
from usvol.result import Finding, Flag, Labels, Measurement, Result, Severity
from usvol.scan import Kind, Scan
from usvol.supervision import stage
from usvol.task import Task
from usvol.weights import sha256_of

_PLURAL = {
    Kind.IMAGE: "still images",
    Kind.CINE: "cines",
    Kind.VOLUME: "volumes",
    Kind.VOLUME_SEQUENCE: "volume sequences (3D+t)",
}
STAGES = ("canonicalise", "preprocess", "infer", "postprocess", "restore", "measure")
_CERTAINTY = frozenset({"evidence", "size_range"})
_SAME = 1e-6  # relative: values that differ by less are one, written and read again
_MOVING = frozenset({Kind.CINE, Kind.VOLUME_SEQUENCE})


def run(
    task: Task,
    scan: Scan,
    *,
    name: str | None = None,
    turn: AbstractContextManager[Any] | None = None,
) -> Result:
    """Run ``task`` on ``scan`` and return its findings on the grid the scan was loaded with.

    ``scan`` is left untouched. ``name`` is the task's name in the result; by default the name it
    was built under. A measurement that lacks calibration or frame times becomes the flag
    ``not_measured``; the findings stay. The network runs inside ``turn``, such as a lock that
    threads share. Within ``supervision.supervised`` the run tells how far it is, by ``STAGES``, and can be
    stopped.

    Raises:
        KindError: the task does not take this kind of scan.
        TaskError: what it returned is not what ``usvol.result`` says.
        CancelledError: whoever supervises the run has cancelled it.

    Example:
        >>> result = run(task, usvol.load("clip.mp4", selection=task.selection))  # doctest: +SKIP
    """
    title = name or task.provenance.get("task") or type(task).__module__.rpartition(".")[2]
    require_kind(task, scan.kind, title=title, path=scan.source.path)
    clock = _Clock()
    with torch.no_grad():
        with clock.stage("canonicalise"):
            canonicalised = canonical.canonicalise(scan)
        with clock.stage("preprocess"):
            prepared = task.preprocess(canonicalised)
        with turn or nullcontext(), clock.stage("infer"):
            raw = task.infer(prepared)
        with clock.stage("postprocess"):
            found = sound_findings(task.postprocess(raw, prepared), task=title, frames=len(scan.data))
        with clock.stage("restore"):
            findings = tuple(resampling.restore(finding, scan.grid) for finding in found)
        with clock.stage("measure"):
            measurements, unmeasured = _measure(task, findings, scan, title=title)
        own = sound_flags(task.flags(raw, prepared), task=title)
        flags = (*_scan_flags(scan), *unmeasured, *own, *_image_flags(canonicalised, own))
    return Result(
        task=title,
        grid=scan.grid,
        source=scan.source,
        findings=findings,
        measurements=measurements,
        flags=flags,
        provenance=_provenance(task, scan, prepared, clock),
    )


def remeasure(task: Task, result: Result, *, findings: Sequence[Finding], scan: Scan) -> Result:
    """Measure findings that were corrected by hand, as ``run`` measures those of the network.

    Nothing else runs: no network, no clean-up. What follows from a finding that changed, such as the surface
    of a mask, is made anew by the task's ``follow`` where it has one. The range of a corrected mask over the
    network's repeated answers is dropped, for it was not theirs; a number that is measured to be what it was
    keeps its own. ``provenance["corrected"]`` names what was changed. Findings as they were give ``result``
    itself.

    Args:
        task: the task that gave ``result``.
        result: what ``run`` returned, or an earlier correction of it.
        findings: as many as in ``result``, of the same types, in the same order.
        scan: as it was given to ``run``.

    Raises:
        ValueError: the findings are not those of ``result``, corrected.
    """
    findings = tuple(findings)
    if [(type(f), f.name) for f in findings] != [(type(f), f.name) for f in result.findings]:
        raise ValueError(f"{len(findings)} findings are no correction of the {len(result.findings)} there")
    changed = {
        i for i, (new, old) in enumerate(zip(findings, result.findings, strict=True)) if differ(new, old)
    }
    if not changed:
        return result
    names = sorted({*result.provenance.get("corrected", ()), *(findings[i].name for i in changed)})
    findings = tuple(
        _as_corrected(new) if i in changed else old
        for i, (new, old) in enumerate(zip(findings, result.findings, strict=True))
    )
    with torch.no_grad():
        follow = getattr(task, "follow", None)
        if follow is not None:
            findings = tuple(follow(findings, changed))
        measurements, unmeasured = _measure(task, findings, scan, title=result.task)
    before = {m.name: m for m in result.measurements}
    measurements = tuple(_as_before(m, before.get(m.name)) for m in measurements)
    kept = tuple(flag for flag in result.flags if flag.code != "not_measured")
    return dataclasses.replace(
        result,
        findings=findings,
        measurements=measurements,
        flags=(*kept, *unmeasured),
        provenance=MappingProxyType({**result.provenance, "corrected": names}),
    )


def _as_before(new: Measurement, old: Measurement | None) -> Measurement:
    """Return a measurement whose value is what it was with the range and the note it had."""
    if old is None or old.unit != new.unit or new.low is not None:
        return new
    if not isinstance(new.value, float | int) or not isinstance(old.value, float | int):
        return new
    return old if math.isclose(new.value, old.value, rel_tol=_SAME) else new


def differ(finding: Finding, other: Finding) -> bool:
    """Tell whether two findings of one type say different things; samples are compared.

    What the network said of its own certainty does not count: a hand corrects none of it.
    """
    for name in (part.name for part in dataclasses.fields(finding) if part.name not in _CERTAINTY):
        new, old = getattr(finding, name), getattr(other, name, None)
        if new is old:
            continue
        if isinstance(new, torch.Tensor) and isinstance(old, torch.Tensor):
            if not torch.equal(new, old):
                return True
        elif new != old:
            return True
    return False


def _as_corrected(finding: Finding) -> Finding:
    return dataclasses.replace(finding, size_range=None) if isinstance(finding, Labels) else finding


def require_kind(task: Task, kind: Kind, *, title: str, path: Path | None = None) -> None:
    """Raise ``KindError`` unless ``task`` accepts ``kind``."""
    if kind in task.accepts:
        return
    takes = " and ".join(_PLURAL[k] for k in Kind if k in task.accepts)
    if kind is Kind.IMAGE and Kind.CINE in task.accepts:
        remedy = "Give it the clip that the still was taken from"
    else:
        remedy = "Pick another task ('usvol tasks' lists what each takes)"
    raise KindError(
        f"{path.name if path else 'This scan'}: task {title!r} takes {takes}, not {_PLURAL[kind]}. {remedy}."
    )


@dataclass(slots=True)
class _Clock:
    """Wall-clock seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    now: Callable[[], float] = time.perf_counter

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = self.now()
        with stage(name):
            yield
        self.seconds[name] = round(self.now() - start, 4)


def _measure(
    task: Task, findings: tuple[Finding, ...], scan: Scan, *, title: str
) -> tuple[tuple[Measurement, ...], tuple[Flag, ...]]:
    try:
        return sound_measurements(task.measure(findings, scan), task=title), ()
    except (UncalibratedError, UnknownTimeError) as error:
        return (), (Flag("not_measured", str(error), Severity.SEVERE),)


def _scan_flags(scan: Scan) -> Iterator[Flag]:
    if not scan.grid.is_calibrated:
        yield Flag("uncalibrated", f"No scale: {scan.calibration.reason}.", Severity.INFO)
    if scan.kind in _MOVING and scan.times_s is None:
        yield Flag("unknown_frame_times", "The file does not say when its frames were taken.", Severity.INFO)
    for warning in scan.source.warnings:
        yield Flag("source", warning, Severity.WARNING)
    if count := canonical.not_finite(scan):
        message = f"{count:,} of {scan.data.numel():,} samples are no numbers (NaN, infinite): read as black."
        yield Flag("not_finite", message, Severity.WARNING)


def _image_flags(scan: Scan, own: tuple[Flag, ...]) -> Iterator[Flag]:
    """Check the image for a task that does not; what a task says itself stands."""
    said = {flag.code for flag in own}
    yield from (flag for flag in quality.image_checks(scan) if flag.code not in said)


def _provenance(task: Task, scan: Scan, prepared: Scan, clock: _Clock) -> MappingProxyType[str, Any]:
    facts: dict[str, Any] = {
        **task.provenance,
        "versions": dict(versions()),
        "input_sha256": input_sha256(scan.source.path),
        "history": list(prepared.history),
        "stage_seconds": clock.seconds,
    }
    return MappingProxyType(facts)


@lru_cache(maxsize=1)
def versions() -> MappingProxyType[str, str]:
    """Return the versions that results depend on."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("usvol", "monai", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return MappingProxyType(found)


def input_sha256(path: Path | None) -> str | None:
    """Return the sha256 of a file, or of names and contents of the parts of a scan; None without a path."""
    if path is None or not loading.is_there(path):
        return None
    parts = loading.parts(path)
    if parts == (path,):
        return sha256_of(path)
    digest = hashlib.sha256()
    for part in sorted(parts):
        digest.update(f"{part.name}\0{sha256_of(part)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
