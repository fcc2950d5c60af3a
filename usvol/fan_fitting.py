"""Fit a fan to a mask of tissue: two straight sides that meet in the apex, and two arcs around it.

Sides and arcs are envelopes: many boundary points lie on them, next to none beyond. What shadows or the image
border hide is taken from the rest: a missing side from the arcs, a missing angle from symmetry.
Lengths are pixels along y; x is measured in the same unit (``aspect`` = x step / y step).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from usvol.scan import Fan

_BAND_PX = (-3.0, 2.0)  # boundary points this far inside and outside support a side or an arc
_MIN_HALF_ANGLE_DEG = 5.0
_SURE = 0.1  # support from which a fan needs no second thought
_TILT = 0.5  # score lost by a fan that lies wholly to one side: shadows look like sides
_MIN_EXPLAINED = 0.97
_MIN_FILLED = 0.3
_MAX_RESIDUAL_PX = 2.5


@dataclass(frozen=True, slots=True)
class FanFit:
    """A fan in pixels, and how well it explains the mask.

    Attributes:
        residual_px: root mean square distance of the supporting boundary points from the sides and arcs.
        explained: fraction of the mask inside the fan.
        filled: fraction of the fan (as far as the image shows it) that is mask.
        sides: how many sides were seen (a side that was not is mirrored).
    """

    fan: Fan
    residual_px: float
    explained: float
    filled: float
    sides: int


@dataclass(frozen=True, slots=True, eq=False)
class _Boundary:
    """Outermost mask points (n, 3) as (y, x, free); free is 0 on the image border, where the mask is cut."""

    left: np.ndarray
    right: np.ndarray
    top: np.ndarray
    bottom: np.ndarray


@dataclass(frozen=True, slots=True)
class _Guess:
    """A starting point: apex and angles in degrees (None where the side was not seen)."""

    apex: tuple[float, float]
    angles: tuple[float | None, float | None]


def fit_fan(mask: np.ndarray, *, aspect: float = 1.0) -> FanFit | None:
    """Fit a fan, possibly asymmetric and cut by the image border, to a bool mask ``y x``.

    Returns None where the sides are parallel or missing, or where the fan leaves out more than a little of
    the mask or lies far from its boundary.
    """
    boundary = _boundary(mask, aspect)
    best, best_score = None, -np.inf
    for guess in _guesses(boundary, mask, aspect):
        fit, score = _fit_from(guess, boundary, mask, aspect)
        if fit is not None and score > best_score:
            best, best_score = fit, score
        if best_score > _SURE:
            break
    return best


def _fit_from(
    guess: _Guess, boundary: _Boundary, mask: np.ndarray, aspect: float
) -> tuple[FanFit | None, float]:
    """Refine one guess and score it by the boundary that supports it, as a fraction of all of it."""
    fitted = _refine(boundary, guess, mask, aspect)
    if fitted is None:
        return None, 0.0
    fan, residual_px = fitted
    inside = fan_mask(fan, mask.shape, aspect=aspect)
    explained, filled = float(mask[inside].sum() / mask.sum()), float(mask[inside].mean())
    if explained < _MIN_EXPLAINED or filled < _MIN_FILLED or residual_px > _MAX_RESIDUAL_PX:
        return None, 0.0
    seen = sum(angle is not None for angle in guess.angles)
    tilt = abs(fan.angle_min_deg + fan.angle_max_deg) / (fan.angle_max_deg - fan.angle_min_deg)
    return FanFit(fan, residual_px, explained, filled, seen), _support_score(boundary, fan) - _TILT * tilt


def _support_score(boundary: _Boundary, fan: Fan) -> float:
    """Tell what fraction of the boundary lies on the sides and arcs, less what lies beyond."""
    score, total = 0.0, 0.0
    for points, angle, sign in (
        (boundary.left, fan.angle_min_deg, -1),
        (boundary.right, fan.angle_max_deg, 1),
    ):
        score += float(_envelope_score(sign * _beside(points, fan.apex, np.radians(angle)), points[:, 2]))
        total += points[:, 2].sum()
    for points, radius, sign in ((boundary.top, fan.radius_min, -1), (boundary.bottom, fan.radius_max, 1)):
        score += float(_envelope_score(sign * (_distance(points, fan.apex) - radius), points[:, 2]))
        total += points[:, 2].sum()
    return score / max(1.0, float(total))


def fan_mask(fan: Fan, size: tuple[int, int], *, aspect: float = 1.0) -> np.ndarray:
    """Draw a fan given in pixels as a bool mask ``y x``; samples within half a pixel count as inside."""
    dy = np.arange(size[0], dtype=np.float32)[:, None] - np.float32(fan.apex[0])
    dx = np.arange(size[1], dtype=np.float32)[None] * np.float32(aspect) - np.float32(fan.apex[1])
    radius = np.hypot(dy, dx)
    low, high = np.radians(fan.angle_min_deg), np.radians(fan.angle_max_deg)
    inside = (radius >= fan.radius_min - 0.5) & (radius <= fan.radius_max + 0.5)
    inside &= dx * np.cos(low) - dy * np.sin(low) >= -0.5
    inside &= dx * np.cos(high) - dy * np.sin(high) <= 0.5
    return inside & (dy > 0)


def _boundary(mask: np.ndarray, aspect: float) -> _Boundary:
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, right = mask[rows].argmax(1), width - 1 - mask[rows, ::-1].argmax(1)
    top, bottom = mask[:, columns].argmax(0), height - 1 - mask[::-1, columns].argmax(0)

    def points(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        free = (y > 1) & (y < height - 2) & (x > 1) & (x < width - 2)
        return np.stack([y, x * aspect, free], -1).astype(float)

    return _Boundary(points(rows, left), points(rows, right), points(top, columns), points(bottom, columns))


def _guesses(boundary: _Boundary, mask: np.ndarray, aspect: float) -> Iterator[_Guess]:
    """Start from both sides, then from each side with the arcs, then from the arcs alone."""
    least = 0.06 * mask.any(1).sum()
    left, right = _side(boundary.left * (1, -1, 1), least), _side(boundary.right, least)
    low = -float(np.degrees(np.arctan(left[1]))) if left is not None else None
    high = float(np.degrees(np.arctan(right[1]))) if right is not None else None
    if left is not None and right is not None and low is not None and high is not None:
        spread = left[1] + right[1]
        if spread > 2 * np.tan(np.radians(_MIN_HALF_ANGLE_DEG)):
            y = -(left[0] + right[0]) / spread
            yield _Guess((y, right[0] + right[1] * y), (low, high))
        elif max(abs(low), abs(high)) < _MIN_HALF_ANGLE_DEG:
            return  # two parallel sides: linear
    height, width = mask.shape[0], mask.shape[1] * aspect
    y = np.linspace(-1.6 * height, 0.2 * height, 73)
    if right is not None and high is not None and high > _MIN_HALF_ANGLE_DEG:
        yield _best_apex(boundary, y, right[0] + right[1] * y, (None, high))
    if left is not None and low is not None and -low > _MIN_HALF_ANGLE_DEG:
        yield _best_apex(boundary, y, -left[0] - left[1] * y, (low, None))
    y, x = np.meshgrid(y[::3], np.linspace(0.2 * width, 0.8 * width, 25), indexing="ij")
    yield _best_apex(boundary, y.ravel(), x.ravel(), (None, None))


def _best_apex(
    boundary: _Boundary, y: np.ndarray, x: np.ndarray, angles: tuple[float | None, float | None]
) -> _Guess:
    """Pick the candidate apex around which the top and bottom points lie on two circles."""
    apexes = np.stack([y, x], -1)
    support = np.zeros(len(apexes))
    for points, sign in ((boundary.top, -1), (boundary.bottom, 1)):
        if points[:, 2].sum() < 12:
            continue
        points = points[:: -(-len(points) // 72)]
        reach = sign * np.hypot(points[:, 0] - apexes[:, None, 0], points[:, 1] - apexes[:, None, 1])
        candidates = np.quantile(reach, (0.7, 0.8, 0.9, 0.95, 0.98, 1.0), axis=1).T
        support += _envelope_score(reach[:, None] - candidates[:, :, None], points[:, 2]).max(1)
    best = int(support.argmax())
    return _Guess((float(y[best]), float(x[best])), angles)


def _side(points: np.ndarray, least: float) -> tuple[float, float] | None:
    """Find the line x = offset + slope*y with many points on it and next to none beyond, or None."""
    points = points[points[:, 2] > 0]
    if len(points) < 12:
        return None
    chosen = points[np.unique(np.linspace(0, len(points) - 1, 72).round().astype(int))]
    i, j = np.triu_indices(len(chosen), 1)
    apart = chosen[j, 0] - chosen[i, 0] >= max(8.0, 0.05 * (points[-1, 0] - points[0, 0]))
    first, second = chosen[i[apart]], chosen[j[apart]]
    slope = (second[:, 1] - first[:, 1]) / (second[:, 0] - first[:, 0])
    plausible = (slope > -0.1) & (slope < 4.0)
    slope, offset = slope[plausible], (first[:, 1] - slope * first[:, 0])[plausible]
    if not len(slope):
        return None
    beyond = points[:, 1] - offset[:, None] - slope[:, None] * points[:, 0]
    score = _envelope_score(beyond / np.hypot(1.0, slope)[:, None], points[:, 2])
    best = int(score.argmax())
    return (float(offset[best]), float(slope[best])) if score[best] >= max(8.0, least) else None


def _envelope_score(beyond: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Score envelopes (rows) by signed distances of points beyond them: support less violations."""
    near = np.exp(-((beyond / np.where(beyond < 0, 2.0, 1.0)) ** 2))
    return (near * free).sum(-1) - 2.0 * (beyond > _BAND_PX[1]).sum(-1)


def _distance(points: np.ndarray, apex: np.ndarray | tuple[float, float]) -> np.ndarray:
    return np.hypot(points[:, 0] - apex[0], points[:, 1] - apex[1])


def _beside(points: np.ndarray, apex: np.ndarray | tuple[float, float], angle: float) -> np.ndarray:
    """Signed distance of points from the line through the apex at ``angle`` (rad), positive to +x."""
    return (points[:, 1] - apex[1]) * np.cos(angle) - (points[:, 0] - apex[0]) * np.sin(angle)


def _arc(points: np.ndarray, apex: np.ndarray | tuple[float, float], sign: int) -> tuple[float, float]:
    """Find the enveloping circle around an apex, outwards (1) or inwards (-1): (radius, support)."""
    if points[:, 2].sum() < 12:
        return 0.0, 0.0
    reach = sign * _distance(points, apex)
    candidates = np.quantile(reach, np.linspace(0.5, 1.0, 26))
    score = _envelope_score(reach - candidates[:, None], points[:, 2])
    best = int(score.argmax())
    return sign * float(candidates[best]), float(score[best])


def _refine(boundary: _Boundary, guess: _Guess, mask: np.ndarray, aspect: float) -> tuple[Fan, float] | None:
    """Fit apex, angles and radii together to the boundary points near the guess: (fan, residual in px)."""
    angles = np.array([np.nan if a is None else a for a in guess.angles])
    state = np.array([*guess.apex, *np.radians(angles), np.nan, np.nan])
    used, free = _support(boundary, state), np.ones(6, dtype=bool)
    for _ in range(3):
        used = _support(boundary, state)
        free = np.array([True, True, *(len(points) > 0 for points in used)])
        if free[2:].sum() < 2:
            return None
        arcs = ((boundary.top, -1), (boundary.bottom, 1))
        state[4:] = [_arc(_off_sides(points, state), state[:2], sign)[0] for points, sign in arcs]
        state[2:][~free[2:]] = np.nan
        solved = least_squares(_residuals, state[free], loss="soft_l1", args=(free, used), max_nfev=30)
        state[free] = solved.x
        if not np.isfinite(solved.x).all():
            return None
    final = _residuals(state[free], free, used)[:-1]
    fan = _completed(state, mask, aspect)
    return (fan, float(np.sqrt(np.mean(final**2)))) if fan is not None else None


def _support(boundary: _Boundary, state: np.ndarray) -> list[np.ndarray]:
    """Pick the free boundary points near each side and arc of a fan; none where too few support it."""
    groups = []
    for points, angle, sign in ((boundary.left, state[2], -1), (boundary.right, state[3], 1)):
        points = points[points[:, 2] > 0]
        groups.append(points[_near(sign * _beside(points, state[:2], angle))])
    for points, sign in ((boundary.top, -1), (boundary.bottom, 1)):
        points = _off_sides(points, state)
        radius, score = _arc(points, state[:2], sign)
        near = points[_near(sign * (_distance(points, state[:2]) - radius)) & (points[:, 2] > 0)]
        groups.append(near if score > 0.08 * len(points) else near[:0])
    return [group if len(group) >= 8 else group[:0] for group in groups]


def _off_sides(points: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Drop points on the sides, which the top of a column of the mask often is."""
    off = np.ones(len(points), dtype=bool)
    for angle in state[2:4]:
        if not np.isnan(angle):
            off &= np.abs(_beside(points, state[:2], angle)) > -_BAND_PX[0]
    return points[off]


def _near(beyond: np.ndarray) -> np.ndarray:
    return (beyond >= _BAND_PX[0]) & (beyond <= _BAND_PX[1])


def _residuals(values: np.ndarray, free: np.ndarray, used: list[np.ndarray]) -> np.ndarray:
    """Distances (px) of the supporting points, and a weak pull towards a fan that is symmetric about +y."""
    state = np.full(6, np.nan)
    state[free] = values
    parts = []
    for points, angle in zip(used[:2], state[2:4], strict=True):
        if len(points):
            parts.append(_beside(points, state[:2], angle))
    for points, radius in zip(used[2:], state[4:], strict=True):
        if len(points):
            parts.append(_distance(points, state[:2]) - radius)
    tilt = state[2] + state[3]
    parts.append(np.array([0.0 if np.isnan(tilt) else np.degrees(tilt)]))
    return np.concatenate(parts)


def _completed(state: np.ndarray, mask: np.ndarray, aspect: float) -> Fan | None:
    """Fill in what was not seen: a side by mirroring the other, an arc by the farthest or nearest tissue."""
    y, x = np.nonzero(mask)
    dy, dx = y - state[0], x * aspect - state[1]
    radius = np.hypot(dy, dx)
    angle = np.degrees(np.arctan2(dx, dy))
    low, high = np.degrees(state[2:4])
    seen_low, seen_high = np.quantile(angle, (0.002, 0.998))
    if np.isnan(low):
        low = seen_low if np.isnan(high) else min(-high, seen_low)
    if np.isnan(high):
        high = max(-low, seen_high)
    inner, outer = np.quantile(radius, (0.0005, 0.9995))
    inner, outer = (inner if np.isnan(state[4]) else state[4]), (outer if np.isnan(state[5]) else state[5])
    if not 0 <= inner < outer or high - low < 2 * _MIN_HALF_ANGLE_DEG or max(-low, high) > 85:
        return None
    return Fan((float(state[0]), float(state[1])), float(inner), float(outer), float(low), float(high))
