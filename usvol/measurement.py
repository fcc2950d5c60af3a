"""Numbers with units from findings. Nothing here guesses a scale or a frame rate.

A length, area, angle or volume on a grid without spacing raises ``UncalibratedError``: the pixels of an
uncalibrated image need not even be square. A duration without frame times raises ``UnknownTimeError``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from usvol.errors import KindError, UncalibratedError, UnknownTimeError
from usvol.result import Curve, Labels, Surface
from usvol.scan import Grid, Vec3

NO_SCALE = "its file carries no scale"


def volume_ml(labels: Labels, label: int, *, frame: int = 0, reason: str = NO_SCALE) -> float:
    """Return the volume in mL of ``label`` in one frame: voxels times the volume of a voxel.

    Args:
        labels: label map ``t z y x`` on a volume grid.
        label: value to count; one that is absent has 0 mL.
        frame: position along t.
        reason: why the scan is uncalibrated (``scan.calibration.reason``), for the message.

    Raises:
        UncalibratedError: the grid carries no scale.
        KindError: the grid is one slice thick, so it bounds no volume.
    """
    spacing_mm = labels.grid.require_spacing_mm("a volume", reason)
    if labels.grid.is_planar:
        raise KindError("A volume in mL needs a 3D scan, and this one is a single slice. Measure its area.")
    return _count(labels, label, frame) * math.prod(spacing_mm) / 1000.0


def area_mm2(labels: Labels, label: int, *, frame: int = 0, reason: str = NO_SCALE) -> float:
    """Return the area in mm² of ``label`` in one frame of a planar scan; arguments as ``volume_ml``.

    Raises:
        UncalibratedError: the grid carries no scale.
        KindError: the grid is a volume, whose labels have no single area.
    """
    _, y_mm, x_mm = labels.grid.require_spacing_mm("an area", reason)
    if not labels.grid.is_planar:
        raise KindError("An area in mm² needs a planar scan, and this one is a volume. Measure its volume.")
    return _count(labels, label, frame) * y_mm * x_mm


def surface_area_cm2(surface: Surface, grid: Grid, *, reason: str = NO_SCALE) -> float:
    """Return the area in cm² of a mesh in world coordinates of ``grid``: the sum of its triangles.

    Raises:
        UncalibratedError: the grid carries no scale, so its world unit is no millimetre.
    """
    grid.require_spacing_mm("a surface area", reason)
    corners = np.asarray(surface.vertices, float)[np.asarray(surface.faces)]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return float(np.linalg.norm(normals, axis=1).sum()) / 2 / 100


def length_mm(points: Sequence[Vec3], grid: Grid, *, reason: str = NO_SCALE) -> float:
    """Return the length in mm of the line through ``points``, world coordinates (z, y, x) of ``grid``.

    Raises:
        UncalibratedError: the grid carries no scale, so its world unit is no millimetre.
        ValueError: fewer than two points.
    """
    grid.require_spacing_mm("a length", reason)
    if len(points) < 2:
        raise ValueError(f"a length needs two points or more, got {len(points)}")
    return sum(math.dist(start, end) for start, end in pairwise(points))


def ruler_spacing_mm(start: Vec3, end: Vec3, *, length_mm: float) -> float:
    """Return the spacing in mm of square (cubic) samples from two points a known length apart.

    For a scan without scale that shows a ruler. Points are indices (z, y, x) of the file's samples; whether
    these are square the picture alone does not tell.

    Raises:
        ValueError: the points coincide, or the length is not positive and finite.

    Example:
        >>> ruler_spacing_mm((0, 10, 5), (0, 110, 5), length_mm=50.0)
        0.5
    """
    distance = math.dist(start, end)
    if not (math.isfinite(length_mm) and length_mm > 0):
        raise ValueError(f"the known length must be above 0 mm, got {length_mm}")
    if distance == 0:
        raise ValueError("the two points of the ruler coincide: click its two ends")
    return length_mm / distance


def angle_deg(first: Vec3, second: Vec3, *, grid: Grid, reason: str = NO_SCALE) -> float:
    """Return the angle in degrees, 0-180, between two world directions (z, y, x) of ``grid``.

    Raises:
        UncalibratedError: the grid carries no scale, so its pixels need not be square.
        ValueError: a direction has no length.
    """
    grid.require_spacing_mm("an angle", reason)
    a, b = np.asarray(first, float), np.asarray(second, float)
    if not np.linalg.norm(a) or not np.linalg.norm(b):
        raise ValueError("a direction of length 0 makes no angle")
    # atan2 keeps its precision near 0° and 180°, where acos of the dot product loses half its digits.
    return math.degrees(math.atan2(float(np.linalg.norm(np.cross(a, b))), float(a @ b)))


def ejection_fraction_percent(edv_ml: float, esv_ml: float) -> float:
    """Return the ejection fraction in % from end-diastolic and end-systolic volume in mL.

    100 (EDV - ESV) / EDV (Lang et al., ASE/EACVI 2015, §1.2). Any unit will do that both share.

    Raises:
        ValueError: a negative or missing volume, or an end-systole larger than the end-diastole.
    """
    if not (math.isfinite(edv_ml) and math.isfinite(esv_ml)) or edv_ml <= 0 or esv_ml < 0:
        raise ValueError(f"volumes must be finite, EDV above 0: got EDV {edv_ml}, ESV {esv_ml}")
    if esv_ml > edv_ml:
        raise ValueError(f"ESV {esv_ml} exceeds EDV {edv_ml}: the frames are swapped or the masks wrong")
    return 100.0 * (edv_ml - esv_ml) / edv_ml


def heart_rate_bpm(curve: Curve, *, event: str = "ED") -> float:
    """Return beats per minute: 60 over the median time between successive ``event`` of ``curve``.

    Events of one moment, as after one was dragged onto another, count once.

    Raises:
        UnknownTimeError: the cine has no frame times.
        ValueError: fewer than two such events.
    """
    chosen = [e for e in curve.events if e.name == event]
    times_s = [e.time_s for e in chosen if e.time_s is not None]
    if len(times_s) < len(chosen) or curve.times_s is None:
        raise UnknownTimeError("a heart rate")
    moments = sorted(set(times_s))
    if len(moments) < 2:
        raise ValueError(f"a heart rate needs two {event} events or more, got {len(moments)}")
    return 60.0 / float(np.median(np.diff(moments)))


@dataclass(frozen=True, slots=True)
class Discs:
    """A chamber cut into discs of equal height across its long axis, in world units of its grid.

    Attributes:
        apex, base: ends of the long axis, world (y, x); the base is the middle of the valve's plane.
        length: of the long axis; ``diameters`` from base to apex; ``area``: of the mask.
        unit_mm: whether the world unit is the millimetre; without it only ratios mean anything.
    """

    apex: tuple[float, float]
    base: tuple[float, float]
    length: float
    diameters: tuple[float, ...]
    area: float
    unit_mm: bool


def chamber_discs(labels: Labels, label: int, *, frame: int = 0, count: int = 20) -> Discs:
    """Cut ``label`` in one frame of an apical view into discs (Lang et al., ASE/EACVI 2015, §1.1.3).

    The long axis is the main axis of the mask; its base is the end away from the probe, where apical views
    have the valve. The axis then runs from the apex to the middle of the base. On a grid without scale
    pixels are taken as square, which ratios (an ejection fraction) need.

    Raises:
        KindError: the grid is a volume.
        ValueError: the label has fewer pixels than discs.
    """
    if not labels.grid.is_planar:
        raise KindError("Discs need a planar view, and this scan is a volume. Measure its volume.")
    index = np.argwhere(np.asarray(labels.data[frame, 0]) == label)
    if len(index) < count:
        raise ValueError(f"label {label} has {len(index)} pixels in frame {frame}, too few for {count} discs")
    step = np.asarray(labels.grid.step)[1:]
    places = index * step + np.asarray(labels.grid.origin)[1:]
    centre = places.mean(0)
    axis = np.linalg.svd(places - centre, full_matrices=False)[2][0]
    axis = -axis if axis[0] < 0 else axis
    along = (places - centre) @ axis
    low, high = along.min(), along.max()
    apex = places[along <= low + 0.03 * (high - low)].mean(0)
    base = places[along >= high - 0.06 * (high - low)].mean(0)
    # Half a pixel at either end: masks are measured from edge to edge.
    unit = (base - apex) / np.linalg.norm(base - apex)
    along = (places - apex) @ unit
    low, high = float(along.min()) - step.mean() / 2, float(along.max()) + step.mean() / 2
    height = (high - low) / count
    inside = np.clip(((along - low) / height).astype(int), 0, count - 1)
    areas = np.bincount(inside, minlength=count) * float(np.prod(step))
    ends = (apex + unit * low, apex + unit * high)
    return Discs(
        apex=(float(ends[0][0]), float(ends[0][1])),
        base=(float(ends[1][0]), float(ends[1][1])),
        length=high - low,
        diameters=tuple((areas / height)[::-1].tolist()),
        area=float(len(index) * np.prod(step)),
        unit_mm=labels.grid.is_calibrated,
    )


def simpson_volume(one: Discs, other: Discs | None = None) -> float:
    """Return the volume by the method of discs, in cubed world units (mm³ where ``unit_mm``).

    One view: π/4 Σ d² L/n. Two views at right angles: π/4 Σ d₁ d₂ L/n with the longer of both axes (Schiller
    et al., J Am Soc Echocardiogr 2:358, 1989; Lang et al., ASE/EACVI 2015, §1.1.3).

    Raises:
        ValueError: two views with unlike numbers of discs, or only one with a scale.
    """
    second = other or one
    if len(one.diameters) != len(second.diameters) or one.unit_mm != second.unit_mm:
        raise ValueError("two views need the same number of discs and the same unit")
    length = max(one.length, second.length)
    discs = zip(one.diameters, second.diameters, strict=True)
    return math.pi / 4 * sum(a * b for a, b in discs) * length / len(one.diameters)


def area_length_volume(area: float, length: float) -> float:
    """Return the volume by area and length, 8 A² / (3 π L), in cubed units (Lang et al. 2015, §1.1.3).

    Raises:
        ValueError: an area or a length that is not above 0.
    """
    if not (area > 0 and length > 0):
        raise ValueError(f"area and length must be above 0, got {area} and {length}")
    return 8 * area**2 / (3 * math.pi * length)


def disc_volume_ml(one: Discs, other: Discs | None = None, *, reason: str = NO_SCALE) -> float:
    """Return ``simpson_volume`` in mL.

    Raises:
        UncalibratedError: a view without a scale.
    """
    if not one.unit_mm or (other is not None and not other.unit_mm):
        raise UncalibratedError("a volume", reason)
    return simpson_volume(one, other) / 1000


def _count(labels: Labels, label: int, frame: int) -> int:
    frames = labels.data.shape[0]
    if not 0 <= frame < frames:
        raise ValueError(f"frame {frame} of {frames}")
    return int((labels.data[frame] == label).sum())
