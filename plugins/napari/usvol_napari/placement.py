"""Where a scan stands in the viewer, and the way between its world and the viewer's coordinates.

Napari slices a layer exactly only along axes of its own data. So a volume is shown with its axes permuted
and flipped to lie nearest to world z, y, x, and the viewer is turned by what tilt then remains: viewer
coordinates are the world's, rotated rigidly. Lengths are true, and what was found in one scan stays in
register with it. Without tilt viewer and world coordinates are the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from usvol.canonical import oriented
from usvol.scan import Grid, Header, Scan, Vec3

_EVEN = 0.05  # frame steps within 5 % of their median are one step


_Cine = TypeVar("_Cine", Scan, Header)


def at_spacing(cine: _Cine, spacing_mm: Vec3) -> _Cine:
    """Return a scan or header whose own samples lie at a stated spacing."""
    return cine.with_spacing(cine.grid.per_file_sample(spacing_mm))


@dataclass(frozen=True, slots=True)
class Placement:
    """How one scan is shown.

    Attributes:
        grid: of the samples as shown (axes permuted and flipped). file_grid: as loaded.
        frames: shown along time; 1 for an image or a volume, which then has no time axis.
        step_s: seconds from frame to frame, or None where the times are unknown or uneven; the time axis then
            counts frames.
    """

    grid: Grid
    file_grid: Grid
    frames: int = 1
    step_s: float | None = None

    @property
    def has_time(self) -> bool:
        """Whether the first axis of its layers is time."""
        return self.frames > 1

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes shown, among t, z, y, x."""
        return (*(("t",) if self.has_time else ()), *self.space_axes)

    @property
    def space_axes(self) -> tuple[str, ...]:
        """Names of the axes of space shown: y, x of a planar scan, else z, y, x."""
        return ("y", "x") if self.grid.is_planar else ("z", "y", "x")

    @property
    def units(self) -> tuple[str, ...]:
        """Units of the axes shown: s or frames (``pixel``), and mm or samples (``pixel``)."""
        return (*(("s" if self.step_s else "pixel",) if self.has_time else ()), *self.space_units)

    @property
    def space_units(self) -> tuple[str, ...]:
        """Units of the axes of space: mm, or samples (``pixel``) without calibration."""
        return ("mm" if self.grid.is_calibrated else "pixel",) * len(self.space_axes)

    @property
    def time_step(self) -> float:
        """Distance of frames along the time axis: seconds, or 1 where it counts frames."""
        return self.step_s or 1.0

    @property
    def tilt(self) -> np.ndarray:
        """3×3 rotation whose columns are the world directions of the viewer's axes z, y, x."""
        return np.asarray(self.grid.direction, float)


def placement_of(scan: Scan | Header) -> Placement:
    """Return how a scan, or the scan that a header announces, is shown."""
    frames = scan.data.shape[0] if isinstance(scan, Scan) else scan.frames
    return Placement(oriented_grid(scan.grid), scan.grid, frames, even_step_s(scan.times_s))


def oriented_grid(grid: Grid) -> Grid:
    """Return the grid with its axes permuted and flipped to lie nearest to world z, y, x."""
    # An expanded tensor: shape without memory.
    empty = torch.zeros((), dtype=torch.bool).expand(1, 1, *grid.shape)
    return grid if _lies_along_world(grid) else oriented(Scan(empty, grid)).grid


def axes_shown(grid: Grid) -> tuple[int, ...]:
    """Return, for each axis z, y, x of a file, the axis as which it is shown."""
    columns = np.asarray(oriented_grid(grid).direction).T @ np.asarray(grid.direction)
    return tuple(np.abs(columns).argmax(axis=0).tolist())


def even_step_s(times_s: Sequence[float] | None) -> float | None:
    """Return the step (s) of evenly timed frames; None where times are unknown or uneven."""
    if times_s is None or len(times_s) < 2:
        return None
    steps = np.diff(np.asarray(times_s, float))
    usual = float(np.median(steps))
    if usual <= 0 or np.abs(steps - usual).max() > _EVEN * usual:
        return None
    return float((times_s[-1] - times_s[0]) / (len(times_s) - 1))


def space_scale(placement: Placement, grid: Grid | None = None) -> tuple[float, ...]:
    """Return the scale of a layer along its axes of space, on ``grid`` (as shown) or on the scan's own."""
    step = (grid or placement.grid).step
    return tuple(step[3 - len(placement.space_axes) :])


def space_translate(placement: Placement, grid: Grid | None = None) -> tuple[float, ...]:
    """Return where the first sample of a layer lies in the viewer along its axes of space."""
    first = np.asarray((grid or placement.grid).origin) @ placement.tilt
    return tuple(float(v) for v in first[3 - len(placement.space_axes) :])


def to_viewer(world: np.ndarray | Sequence, placement: Placement) -> np.ndarray:
    """Map world points (n, 3) to viewer points (n, axes of space)."""
    points = np.atleast_2d(np.asarray(world, float)) @ placement.tilt
    return points[:, 3 - len(placement.space_axes) :]


def to_world(viewer: np.ndarray | Sequence, placement: Placement) -> np.ndarray:
    """Map viewer points (n, axes) to world points (n, 3): planar ones in the scan's plane."""
    points = np.atleast_2d(np.asarray(viewer, float))[:, -len(placement.space_axes) :]
    if placement.grid.is_planar:
        depth = float(np.asarray(placement.grid.origin) @ placement.tilt[:, 0])
        points = np.column_stack([np.full(len(points), depth), points])
    return points @ placement.tilt.T


def to_shown(data: torch.Tensor, grid: Grid) -> np.ndarray:
    """Permute and flip samples ``t z y x`` on ``grid`` as they are shown: a numpy array of its own."""
    if grid.is_planar or _lies_along_world(grid):
        return data.numpy().copy()
    return oriented(Scan(data[:, None], grid)).data[:, 0].numpy().copy()


def to_file(data: np.ndarray, grid: Grid) -> torch.Tensor:
    """Undo ``to_shown``: samples ``t z y x`` as shown, back in the order of ``grid``."""
    if grid.is_planar or _lies_along_world(grid):
        return torch.from_numpy(np.ascontiguousarray(data))
    shown = oriented_grid(grid)
    corner = np.round(grid.to_index(shown.to_world(np.zeros(3)))).astype(int)
    back = np.transpose(data, (0, *(1 + axis for axis in axes_shown(grid))))
    flipped = [1 + axis for axis in range(3) if corner[axis] > 0]
    return torch.from_numpy(np.ascontiguousarray(np.flip(back, tuple(flipped))))


def _lies_along_world(grid: Grid) -> bool:
    direction = np.asarray(grid.direction)
    return bool((np.abs(direction).argmax(axis=0) == np.arange(3)).all() and (np.diag(direction) > 0).all())
