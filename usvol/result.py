"""What a task finds, measures and warns of. Writers, report and napari dispatch on these types.

World coordinates are (z, y, x) in the world units of the grid the finding refers to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from usvol.scan import Grid, Matrix3, Source, Vec3

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """A label map ``t z y x`` (uint8) on ``grid``; 0 is background.

    Attributes:
        names: label value to structure name, such as ``{1: "placenta"}``.
        frame_indices: positions in the scan of the frames labelled; None for all of them.
        evidence: chance of each label value ``t value z y x`` (float) whose largest is ``data``, or None. A
            task may leave it for ``resampling.restore``, which places boundaries by it between the samples;
            no result carries it.
        size_range: by label value, the factors between which its size lay in the network's repeated answers
            (test-time augmentation), or None.
    """

    name: str
    data: Tensor
    grid: Grid
    names: Mapping[int, str]
    frame_indices: tuple[int, ...] | None = None
    evidence: Tensor | None = None
    size_range: Mapping[int, tuple[float, float]] | None = None


@dataclass(frozen=True, slots=True)
class Plane:
    """An oriented plane: a point on it, its unit normal and its unit in-plane up direction."""

    name: str
    point: Vec3
    normal: Vec3
    up: Vec3
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A needle or other line from ``entry`` to ``tip``; ``frame_index`` for one frame of a clip."""

    name: str
    entry: Vec3
    tip: Vec3
    confidence: float | None = None
    frame_index: int | None = None


@dataclass(frozen=True, slots=True)
class Box:
    """An oriented box: centre, full size along its own axes, axes as columns of ``rotation``."""

    name: str
    centre: Vec3
    size: Vec3
    rotation: Matrix3
    confidence: float | None = None
    frame_index: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """A triangle mesh: ``vertices`` (n, 3) float world coordinates, ``faces`` (m, 3) int.

    ``frame_index`` is for one frame of a clip. ``repeats`` (k, n, 3) are the vertices in the network's
    repeated answers, which measurements may take their ranges from, or None; they are not written.
    """

    name: str
    vertices: Tensor
    faces: Tensor
    vertex_labels: Tensor | None = None
    repeats: Tensor | None = None
    frame_index: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A named moment of a curve, such as ED; ``index`` counts the curve's points."""

    name: str
    index: int
    time_s: float | None


@dataclass(frozen=True, slots=True)
class Curve:
    """A quantity over time.

    Attributes:
        times_s: one time per value, or None when the frame rate is unknown.
        frame_indices: one file frame per value.
        low, high: uncertainty band, or None.
    """

    name: str
    values: tuple[float, ...]
    unit: str
    times_s: tuple[float, ...] | None
    frame_indices: tuple[int, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Scores:
    """Class probabilities in the order of ``classes``, and the class decided on."""

    name: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    decision: str


@dataclass(frozen=True, slots=True, eq=False)
class Heatmap:
    """A scalar map ``t z y x`` (float32, 0-1) on ``grid``: attention, uncertainty, evidence."""

    name: str
    data: Tensor
    grid: Grid
    frame_indices: tuple[int, ...] | None = None


Finding = Labels | Plane | Line | Box | Surface | Curve | Scores | Heatmap


@dataclass(frozen=True, slots=True)
class Measurement:
    """A number with its unit and, where known, its uncertainty.

    ``value`` is None when it could not be measured; ``note`` then says why.
    """

    name: str
    value: float | int | str | None
    unit: str
    low: float | None = None
    high: float | None = None
    note: str | None = None


class Severity(StrEnum):
    """How much a flag should worry the reader."""

    INFO = "info"
    WARNING = "warning"
    SEVERE = "severe"


@dataclass(frozen=True, slots=True)
class Flag:
    """A quality remark; ``code`` is stable (``out_of_distribution``, ``uncalibrated``, …)."""

    code: str
    message: str
    severity: Severity = Severity.WARNING


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """All that one task says about one scan.

    ``grid`` is the grid of the file as read; every finding lies on it or in its world coordinates.
    ``provenance`` holds versions, weights sha256, config, input sha256, stages and durations.
    """

    task: str
    grid: Grid
    source: Source
    findings: tuple[Finding, ...]
    measurements: tuple[Measurement, ...]
    flags: tuple[Flag, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
