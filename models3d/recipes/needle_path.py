"""Where a needle runs, in the coordinates its networks read: a shallow parabola, and the tube around it.

Volumes are looked at twice. Coarse: the whole view, isotropic, at most ``COARSE`` samples along a side, as
mean and as maximum of what each sample covers (a thin shaft survives a maximum). Fine: straightened tubes
around candidates, at about the spacing of the file.

Coordinates count fine samples: index (z, y, x) of the canonical volume times spacing over ``unit``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from usvol.resampling import sample_at
from usvol.scan import Grid

COARSE = 64  # samples along a side of the coarse view
WIDE = 20  # samples across the tube
TUBE = 128  # samples along it
_FINEST_MM = 0.2
_MOST = 176  # fine samples along the longest side
_PERCENTILES = (0.02, 0.9995)
_SOME = 60_000  # voxels that percentiles are read off
BEND_DEVIATION = 6e-4  # of the parabola's coefficient, per fine sample: a bend of about 250 mm
_BEND_MOST = 2.5e-3
_SHARE = 0.3  # chance of a shaft from which a slice helps to place the axis
_FEWEST = 6  # of such slices


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """``middle + s * ahead + s² * bend`` for s from ``start`` to ``end``; ``bend`` is across ``ahead``."""

    middle: np.ndarray
    ahead: np.ndarray
    bend: np.ndarray
    start: float
    end: float

    @classmethod
    def between(cls, one: np.ndarray, other: np.ndarray, *, least: float = 1.0) -> Path:
        """The straight path from ``one`` to ``other``, to ``least`` on both sides of its middle at least."""
        ahead = other - one
        length = max(float(np.linalg.norm(ahead)), 1e-9)
        half = max(length / 2, least)
        return cls((one + other) / 2, ahead / length, np.zeros(3), -half, half)

    def points(self, s: np.ndarray) -> np.ndarray:
        """Return the points (n, 3) at lengths ``s`` along the chord."""
        s = np.asarray(s, float)[:, None]
        return self.middle + s * self.ahead + s**2 * self.bend

    def locate(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the length along the chord and the distance from the path of points (n, 3)."""
        away = points - self.middle
        s = away @ self.ahead
        return s, np.linalg.norm(away - s[:, None] * self.ahead - s[:, None] ** 2 * self.bend, axis=1)

    def reversed(self) -> Path:
        """The same path from its other end."""
        return dataclasses.replace(self, ahead=-self.ahead, start=-self.end, end=-self.start)

    def scaled(self, factor: float) -> Path:
        """The same path where a length is ``factor`` times as many samples."""
        return Path(
            self.middle * factor, self.ahead, self.bend / factor, self.start * factor, self.end * factor
        )

    def downward(self) -> Path:
        """The same path from the end of less depth (y)."""
        return self if self.ahead[1] >= 0 else self.reversed()


def fit_path(points: np.ndarray, weights: np.ndarray | None = None, *, bends: bool = True) -> Path:
    """Fit a path to points (n, 3) by weighted least squares, its bend held near that of real needles."""
    weights = np.ones(len(points)) if weights is None else weights
    total = float(weights.sum())
    middle = (weights[:, None] * points).sum(0) / total
    away = points - middle
    _, axes = np.linalg.eigh((weights[:, None] * away).T @ away)
    ahead, first, second = axes[:, 2], axes[:, 1], axes[:, 0]
    s = away @ ahead
    bend = np.zeros(3)
    if bends and np.ptp(s) > 12:
        columns = np.stack([np.ones_like(s), s, s**2], 1)
        across = away @ np.stack([first, second], 1)
        normal = (weights[:, None] * columns).T @ columns
        # A sample of noise per effective point against the prior of the bend.
        normal[2, 2] += total / max(len(points), 1) / BEND_DEVIATION**2
        offset, slope, curve = np.linalg.solve(normal, (weights[:, None] * columns).T @ across)
        sides = np.stack([first, second])
        middle = middle + offset @ sides
        ahead = ahead + slope @ sides
        bend = curve @ sides
        bend *= min(1.0, _BEND_MOST / max(float(np.linalg.norm(bend)), 1e-12))
    ahead = ahead / np.linalg.norm(ahead)
    bend = bend - (bend @ ahead) * ahead
    s = (points - middle) @ ahead
    return Path(middle, ahead, bend, float(s.min()) - 0.5, float(s.max()) + 0.5)


def refitted(path: Path, points: np.ndarray, *, chance: np.ndarray) -> Path:
    """Fit a path again to where its slices show a shaft (n, 3), by their chances (n,); too few leave it."""
    taken = chance > _SHARE
    if taken.sum() < _FEWEST:
        return path
    fitted = fit_path(points[taken], chance[taken])
    return fitted if fitted.ahead @ path.ahead > 0 else fitted.reversed()


def unit_of(grid: Grid) -> float:
    """World units (mm, or file samples) of one fine sample."""
    step = np.asarray(grid.step)
    finest = max(float(step.min()), float((step * grid.shape).max()) / _MOST)
    return max(finest, _FINEST_MM) if grid.is_calibrated else finest


def levelled(grey: Tensor, mask: Tensor) -> Tensor:
    """Scale grey levels ``z y x`` to 0-1 between percentiles inside the mask (float32); 0 outside."""
    stride = max(1, round((grey.numel() / _SOME) ** (1 / 3)))
    few = (slice(None, None, stride),) * 3
    some = grey[few][mask[few]].float()
    if not len(some):
        return torch.zeros(grey.shape)
    low, high = np.quantile(some.numpy(), _PERCENTILES).tolist()  # torch's takes four times as long
    high = max(high, low + 1e-3 * max(abs(low), 1.0))
    return (grey.float() - low).div_(high - low).clamp_(0, 1).mul_(mask)


def coarse_shape(shape: Sequence[int], step: np.ndarray, *, longest: float = COARSE) -> tuple[int, int, int]:
    """Return the samples (z, y, x) of the coarse view: isotropic, ``longest`` along the longest side."""
    extent = np.asarray(shape) * step
    z, y, x = (int(n) for n in np.clip(np.round(extent / extent.max() * longest), 4, None))
    return z, y, x


def coarse_view(level: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return mean and maximum of what each coarse sample covers: ``2 z y x``."""
    return torch.stack([F.adaptive_avg_pool3d(level[None], shape)[0], _largest(level, shape)])


def _largest(level: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return what ``adaptive_max_pool3d`` does, axis by axis, which takes a third of the time."""
    for axis, count in enumerate(shape):
        size, index = level.shape[axis], torch.arange(count)
        first, last = index * size // count, ((index + 1) * size + count - 1) // count - 1
        widest = int((last - first).max()) + 1
        parts = [level.index_select(axis, torch.minimum(first + k, last)) for k in range(widest)]
        level = functools.reduce(torch.maximum, parts)
    return level


def tube_frame(path: Path, *, roll: float = 0.0) -> np.ndarray:
    """Return the tube's two directions across (2, 3): along +y (depth) as nearly as can be, and sideways."""
    hint = np.array([0.0, 1.0, 0.0]) if abs(path.ahead[1]) < 0.97 else np.array([0.0, 0.0, 1.0])
    down = hint - (hint @ path.ahead) * path.ahead
    down /= np.linalg.norm(down)
    aside = np.cross(path.ahead, down)
    return np.stack([np.cos(roll) * down + np.sin(roll) * aside, np.cos(roll) * aside - np.sin(roll) * down])


def tube_points(path: Path, s: np.ndarray, *, frame: np.ndarray, wide: int = WIDE) -> np.ndarray:
    """Return the points of the tube's samples (len(s), wide, wide, 3), in fine coordinates."""
    across = np.arange(wide) - (wide - 1) / 2
    offset = across[:, None, None] * frame[0] + across[None, :, None] * frame[1]
    return path.points(s)[:, None, None] + offset


def tube_lengths(path: Path) -> np.ndarray:
    """Return the lengths along the chord at which the tube is sampled: ``TUBE`` of them."""
    step = max(1.0, (path.end - path.start + 24) / TUBE)
    return (path.start + path.end) / 2 + (np.arange(TUBE) - (TUBE - 1) / 2) * step


def sampled(values: Tensor, points: np.ndarray, *, scale: np.ndarray) -> Tensor:
    """Sample ``c z y x`` values at fine points (…, 3); ``scale``: fine samples per index (z, y, x)."""
    return sample_at(values, torch.from_numpy((points / scale).astype(np.float32)))
