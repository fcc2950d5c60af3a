"""Stack parallel planes into a regular volume, or say why they are none.

Source: Image Plane Module, DICOM PS3.3 C.7.6.2. Coordinates are (x, y, z) in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from usvol.errors import CorruptFileError, UnsupportedFormatError
from usvol.scan import Vec3

_PARALLEL = 1e-3
_UNEVEN_WARNED, _UNEVEN_REFUSED = 0.01, 0.1


@dataclass(frozen=True, slots=True)
class Stack:
    """A regular stack of planes.

    Attributes:
        order: int ``t z``: which plane, in the order given, lies there.
        direction: 3×3, columns are the unit vectors of columns, rows and slices (index x, y, z).
        origin_mm: position (x, y, z) of the first sample of the first slice.
        spacing_mm: (z, y, x); z repeats y for a single slice.
    """

    order: np.ndarray
    direction: np.ndarray
    origin_mm: np.ndarray
    spacing_mm: Vec3
    times_s: tuple[float, ...] | None
    times_from: str
    warnings: tuple[str, ...]


def stack_planes(
    path: Path,
    positions: np.ndarray,
    *,
    orientations: np.ndarray,
    spacings_mm: np.ndarray,
    times: Sequence[float | None],
) -> Stack:
    """Sort planes along their normal and over time.

    Of the n planes, ``positions`` (n, 3) are each one's first sample in mm, ``orientations`` (n, 6) the
    direction cosines of a row and of a column of samples, ``spacings_mm`` (n, 2) the distances between
    rows and between columns, ``times`` in s, equal within a volume, None where there is no time.

    Raises:
        UnsupportedFormatError: the planes are not parallel (a rotational or freehand sweep).
        CorruptFileError: slices are missing, doubled, unevenly spaced or shifted sideways.
    """
    axes = _axes(path, orientations)
    row_mm, column_mm = _spacing(path, spacings_mm)
    along = positions @ axes[:, 2]
    groups, moments = _by_time(path, along, times)
    order = np.array([group[np.argsort(along[group], kind="stable")] for group in groups])
    places = along[order[0]]
    if not np.allclose(along[order], places, atol=max(0.05 * row_mm, 1e-3)):
        raise CorruptFileError(path, "its volumes over time lie in different places", "export it again")
    step_mm, warnings = _step(path, places, row_mm)
    _check_aligned(path, positions[order[0]], axes, 0.5 * min(row_mm, column_mm))
    times_s, origin, time_notes = _clock(moments)
    return Stack(
        order, axes, positions[order[0, 0]], (step_mm, row_mm, column_mm), times_s, origin,
        (*warnings, *time_notes),
    )  # fmt: skip


def _axes(path: Path, orientations: np.ndarray) -> np.ndarray:
    if np.abs(orientations - orientations[0]).max() > _PARALLEL:
        raise UnsupportedFormatError(
            path, "its planes are not parallel, so they are no regular volume", "export a Cartesian volume"
        )
    x_axis, y_axis = orientations[0, :3], orientations[0, 3:]
    lengths = np.linalg.norm(x_axis), np.linalg.norm(y_axis)
    if not np.allclose(lengths, 1, atol=0.01) or abs(x_axis @ y_axis) > 0.01:
        raise CorruptFileError(path, "its plane orientation is not a pair of unit normals", "export it again")
    x_axis = x_axis / lengths[0]
    y_axis = y_axis - (y_axis @ x_axis) * x_axis
    y_axis = y_axis / np.linalg.norm(y_axis)
    return np.stack([x_axis, y_axis, np.cross(x_axis, y_axis)], axis=1)


def _spacing(path: Path, spacings_mm: np.ndarray) -> tuple[float, float]:
    row_mm, column_mm = (float(v) for v in spacings_mm[0])
    if not np.allclose(spacings_mm, spacings_mm[0], rtol=1e-3) or min(row_mm, column_mm) <= 0:
        raise CorruptFileError(path, "its slices differ in pixel spacing, or have none", "export it again")
    return row_mm, column_mm


def _by_time(
    path: Path, along: np.ndarray, times: Sequence[float | None]
) -> tuple[list[np.ndarray], list[float | None]]:
    """Group plane numbers by volume: by time if slices repeat, else all in one."""
    distinct = len(np.unique(np.round(along, 4)))
    if distinct == len(along):
        return [np.arange(len(along))], [None]
    known = [time for time in times if time is not None]
    moments = sorted(set(known))
    groups = [np.flatnonzero([time == moment for time in times]) for moment in moments]
    if len(known) < len(times) or len(moments) < 2:
        raise CorruptFileError(
            path, f"{len(along) - distinct} slice(s) lie where another does, and no time tells them apart",
            "remove the doubled slices",
        )  # fmt: skip
    if {len(group) for group in groups} != {distinct}:
        counts = [len(group) for group in groups]
        raise CorruptFileError(path, f"its volumes over time have {counts} slices", "export it again")
    return groups, list(moments)


def _step(path: Path, places: np.ndarray, row_mm: float) -> tuple[float, tuple[str, ...]]:
    if len(places) == 1:
        return row_mm, ()
    gaps = np.diff(places)
    typical = float(np.median(gaps))
    if gaps.min() < 0.01 * typical or typical <= 0:
        raise CorruptFileError(path, "slices lie in the same place", "remove the doubled slices")
    uneven = float(np.abs(gaps / typical - 1).max())
    if uneven > _UNEVEN_REFUSED:
        where = int(np.abs(gaps / typical - 1).argmax())
        raise CorruptFileError(
            path,
            f"slices {where + 1} and {where + 2} are {gaps[where]:.3g} mm apart, the others {typical:.3g} mm",
            "add the missing slices, or resample the series to an even spacing",
        )
    notes = (f"slice distances vary by {100 * uneven:.1f} %",) if uneven > _UNEVEN_WARNED else ()
    return float((places[-1] - places[0]) / (len(places) - 1)), notes


def _check_aligned(path: Path, positions: np.ndarray, axes: np.ndarray, tolerance_mm: float) -> None:
    sideways = (positions - positions[0]) @ axes[:, :2]
    if np.abs(sideways).max() > tolerance_mm:
        raise CorruptFileError(
            path, f"its slices are shifted sideways by up to {np.abs(sideways).max():.3g} mm",
            "resample the series to a straight stack",
        )  # fmt: skip


def _clock(moments: Sequence[float | None]) -> tuple[tuple[float, ...] | None, str, tuple[str, ...]]:
    if len(moments) < 2:
        return None, "single frame", ()
    known = [moment for moment in moments if moment is not None]
    return tuple(moment - known[0] for moment in known), "temporal position", ()
