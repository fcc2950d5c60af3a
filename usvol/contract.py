"""Check what a task returned, before it is placed, measured and written.

The types of ``usvol.result`` say what findings are; a task is anybody's code. What does not fit would be
written in the wrong place, overwrite another's file or end a whole run: it ends its own item, by name.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import singledispatch
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from usvol.errors import TaskError
from usvol.result import Box, Curve, Finding, Flag, Heatmap, Labels, Line, Measurement, Plane, Scores, Surface

_UNIT = 1e-3  # how far a direction may be from length 1, or from a right angle to another


def sound_findings(found: Any, *, task: str, frames: int) -> tuple[Finding, ...]:
    """Return the findings of ``postprocess``.

    Args:
        found: what it returned.
        task: its name, for the error.
        frames: of the scan.

    Raises:
        TaskError: naming the task, the finding and what is wrong with it.
    """
    for finding in _several(found, Finding, step="postprocess", task=task):
        for wrong in faults(finding, frames):
            raise TaskError(f"Task {task!r}: {type(finding).__name__} {finding.name!r} {wrong}.")
    return tuple(found)


def require_sound(finding: Finding) -> None:
    """Raise ``TaskError`` where a finding is not what its type says, whatever scan it is of."""
    for wrong in faults(dataclasses.replace(finding, frame_index=None)):
        raise TaskError(f"{type(finding).__name__} {finding.name!r} {wrong}.")


def sound_measurements(measured: Any, *, task: str) -> tuple[Measurement, ...]:
    """Return the measurements of ``measure``.

    Raises:
        TaskError: one is no number or text, or two would stand in one column of the tables.
    """
    measurements = _several(measured, Measurement, step="measure", task=task)
    for one in measurements:
        values = (one.value, one.low, one.high)
        if not isinstance(one.value, str) and not all(v is None or isinstance(v, Real) for v in values):
            raise TaskError(f"Task {task!r}: measurement {one.name!r} is {one.value!r}, no number or text.")
    counts = Counter(one.name for one in measurements)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise TaskError(f"Task {task!r}: more than one measurement is named {', '.join(map(repr, twice))}.")
    return measurements


def sound_flags(flags: Any, *, task: str) -> tuple[Flag, ...]:
    """Return the flags of ``flags``. Raises: TaskError: something else is among them."""
    return _several(flags, Flag, step="flags", task=task)


def _several(values: Any, kind: Any, *, step: str, task: str) -> tuple[Any, ...]:
    if not isinstance(values, tuple | list):
        raise TaskError(f"Task {task!r}: {step} returned {type(values).__name__}, and a tuple is needed.")
    if strange := [value for value in values if not isinstance(value, kind)]:
        name = type(strange[0]).__name__
        raise TaskError(f"Task {task!r}: {step} returned {name}, which is not of usvol.result.")
    return tuple(values)


@singledispatch
def faults(finding: Finding, frames: int = 1) -> Iterator[str]:  # noqa: ARG001
    """Tell what is wrong with a finding on a scan of ``frames`` frames, as ends of a sentence."""
    raise TypeError(f"cannot check a {type(finding).__name__}")


@faults.register
def _(finding: Labels, frames: int = 1) -> Iterator[str]:
    yield from _map_faults(finding, frames)
    if finding.data.dtype != torch.uint8:
        yield f"holds {finding.data.dtype}, and a label map is uint8"
        return
    if any(not 0 < value < 256 for value in finding.names):
        yield f"names the values {sorted(finding.names)}, and they are 1 to 255"
    held = torch.bincount(finding.data.flatten(), minlength=256).nonzero().flatten().tolist()
    if strange := [value for value in held if value and value not in finding.names]:
        yield f"holds the values {strange[:5]}, and names has {sorted(finding.names)}"
    if finding.evidence is not None and finding.evidence.shape[2:] != finding.data.shape[1:]:
        yield f"has evidence of shape {_shape(finding.evidence)} (t value z y x) for {_shape(finding.data)}"


@faults.register
def _(finding: Heatmap, frames: int = 1) -> Iterator[str]:
    yield from _map_faults(finding, frames)
    if not finding.data.is_floating_point():
        yield f"holds {finding.data.dtype}, and a heat map is float32"


@faults.register
def _(finding: Surface, frames: int = 1) -> Iterator[str]:
    vertices, faces = torch.as_tensor(finding.vertices), torch.as_tensor(finding.faces)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        yield f"has vertices {_shape(vertices)} and faces {_shape(faces)}: (n, 3) and (m, 3) are needed"
        return
    if not _finite(vertices):
        yield "has vertices that are no numbers"
    if faces.is_floating_point() or (
        len(faces) and not 0 <= int(faces.min()) <= int(faces.max()) < len(vertices)
    ):
        yield f"has faces that are no indices of its {len(vertices)} vertices"
    if finding.vertex_labels is not None and len(finding.vertex_labels) != len(vertices):
        yield f"has {len(finding.vertex_labels)} labels for {len(vertices)} vertices"
    yield from _frame_faults(finding.frame_index, frames)


@faults.register
def _(finding: Plane, frames: int = 1) -> Iterator[str]:  # noqa: ARG001
    yield from _places(finding.point, finding.normal, finding.up)
    across = sum(a * b for a, b in zip(finding.normal, finding.up, strict=True))
    lengths = [math.hypot(*finding.normal), math.hypot(*finding.up)]
    if not (abs(across) < _UNIT and all(abs(length - 1) < _UNIT for length in lengths)):
        yield "needs normal and up of length 1, at a right angle"


@faults.register
def _(finding: Line, frames: int = 1) -> Iterator[str]:
    yield from _places(finding.entry, finding.tip)
    yield from _frame_faults(finding.frame_index, frames)


@faults.register
def _(finding: Box, frames: int = 1) -> Iterator[str]:
    yield from _places(finding.centre, finding.size, *finding.rotation)
    axes = torch.tensor(finding.rotation, dtype=torch.float64)
    if not bool(((axes.T @ axes - torch.eye(3)).abs() < _UNIT).all()):
        yield "needs axes of length 1, at right angles, in the columns of its rotation"
    yield from _frame_faults(finding.frame_index, frames)


@faults.register
def _(finding: Curve, frames: int = 1) -> Iterator[str]:
    parts = {"times_s": finding.times_s, "frame_indices": finding.frame_indices}
    parts |= {"low": finding.low, "high": finding.high}
    for name, values in parts.items():
        if values is not None and len(values) != len(finding.values):
            yield f"has {len(finding.values)} values and {len(values)} {name}"
    if any(not 0 <= event.index < len(finding.values) for event in finding.events):
        yield f"has an event beyond its {len(finding.values)} values"
    del frames  # a curve counts the frames of the file, not those of the scan


@faults.register
def _(finding: Scores, frames: int = 1) -> Iterator[str]:  # noqa: ARG001
    if len(finding.classes) != len(finding.probabilities):
        yield f"has {len(finding.classes)} classes and {len(finding.probabilities)} probabilities"
    if finding.decision not in finding.classes:
        yield f"decides on {finding.decision!r}, which is none of its classes"


def _map_faults(finding: Labels | Heatmap, frames: int) -> Iterator[str]:
    data, indices = finding.data, finding.frame_indices
    if data.ndim != 4 or tuple(data.shape[1:]) != finding.grid.shape:
        yield f"has the shape {_shape(data)}: (t, z, y, x) is needed, and its grid is {finding.grid.shape}"
    elif indices is not None and (len(indices) != len(data) or any(not 0 <= i < frames for i in indices)):
        yield f"has {len(data)} frames and frame_indices {tuple(indices)[:5]}, of a scan of {frames} frames"
    elif indices is None and len(data) != frames:
        yield f"has {len(data)} frames, the scan {frames}: frame_indices says which are meant"


def _frame_faults(index: int | None, frames: int) -> Iterator[str]:
    if index is not None and not 0 <= index < frames:
        yield f"is of frame {index}, and the scan has {frames}"


def _places(*triples: Sequence[float]) -> Iterator[str]:
    if any(len(triple) != 3 or not all(map(math.isfinite, triple)) for triple in triples):
        yield f"needs three numbers (z, y, x) for each place and direction, not {triples}"


def _finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())


def _shape(values: Tensor) -> tuple[int, ...]:
    return tuple(values.shape)
