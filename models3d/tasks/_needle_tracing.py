"""From chances to a needle: candidate lines by their evidence, the axis by fit, the ends by what is read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models3d.recipes.needle_path import TUBE, Path, fit_path

_POINTS = 300  # coarse samples that lines are drawn through: the likeliest
_POSSIBLE = 0.05  # chance from which one counts
_PAIRS = 250
_APART = 4.0  # coarse samples between two that make a line, at least
_EVIDENCE = (-1.5, 3.0)  # least and most that a coarse sample says, as log odds
_DOUBT = -2.0, 1.0  # log odds that say nothing: those of the least likely of these points, within limits
_SAME = 2.5  # coarse samples about a line whose points make no other
_OUTSIDE = -1e3  # evidence of what the view does not hold
_REACH = 1.5  # coarse samples about a line that support it
_SHARE = 0.3  # chance of a shaft from which a slice helps to place the axis
_SELECTED = 3.2  # log odds by which the surest line of several seems surer than it is; chosen on validation
_GAP = -2.0  # least log odds of a slice: gaps in the echo are bridged when enough follows
_SURE = 4.0
_DOWNWARD = 4.0  # log odds by which pointing straight down outweighs pointing up; chosen on validation
_NEAR_TIP = 4  # slices about the likeliest one over which the tip's place is averaged


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What the second look answers along a tube, and the lengths along its axis it is about.

    Attributes:
        slices: ``SLICE_ANSWERS s``; ``whole``: ``TUBE_ANSWERS``.
        lengths: of the slices along the tube's path, growing.
        frame: directions across the tube (2, 3).
        inside: whether the view holds the tube's axis, per slice.
    """

    slices: np.ndarray
    whole: np.ndarray
    lengths: np.ndarray
    frame: np.ndarray
    inside: np.ndarray

    @property
    def confidence(self) -> float:
        """Chance that there is a needle along the tube."""
        return float(1 / (1 + np.exp(_SELECTED - float(self.whole[0]))))

    @property
    def radius(self) -> float:
        """Radius of the shaft in fine samples."""
        return float(np.exp(self.whole[2]))

    @property
    def shaft(self) -> np.ndarray:
        """Chance of a shaft in each slice, 0 outside the view."""
        return self.inside / (1 + np.exp(-self.slices[0]))


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A needle in fine coordinates.

    Attributes:
        path: its axis, from the edge of the view (``start``) to the tip (``end``).
        radius: in fine samples.
        confidence: 0-1.
        tip_seen: False where it runs out of the view at both ends.
    """

    path: Path
    radius: float
    confidence: float
    tip_seen: bool


def candidates(logits: Tensor, *, scale: np.ndarray, grid_shape: tuple[int, ...], count: int) -> list[Path]:
    """Find the lines along which a run of coarse samples has most evidence, and fit a path to each.

    As in RANSAC (Fischler & Bolles 1981) lines go through two points at random, here of the likeliest
    samples; samples that speak against a line count too, and it may end anywhere.

    Args:
        logits: ``z y x`` of the coarse view.
        scale: fine samples per index of the canonical volume.
        grid_shape: shape of that volume.
        count: of lines, at most; distinct ones, best first.
    """
    best = torch.topk(logits.flatten(), min(_POINTS, logits.numel()))
    chances = torch.sigmoid(best.values)
    flat = best.indices[chances > _POSSIBLE]
    if len(flat) < 3:
        return []
    index = torch.stack(torch.unravel_index(flat, logits.shape), 1).numpy()
    ratio = np.asarray(grid_shape) / np.asarray(logits.shape)
    points = ((index + 0.5) * ratio - 0.5) * scale
    weights = chances[: len(flat)].double().numpy()
    reach = _REACH * float((ratio * scale).max())
    # A line may miss the middle of its needle by a sample.
    doubt = float(best.values[-1].clamp(*_DOUBT))
    near = (logits - doubt).clamp(*_EVIDENCE)[None]
    for kernel in ((3, 1, 1), (1, 3, 1), (1, 1, 3)):  # one axis after the other: a third of the time
        near = F.max_pool3d(near, kernel, 1, [n // 2 for n in kernel])
    evidence = F.pad(near[0], (1,) * 6, value=_OUTSIDE).numpy()
    rng, left, found = np.random.default_rng(0), np.ones(len(index), bool), []
    while len(found) < count and left.sum() >= 3:
        line = _best_line(evidence, index[left].astype(float), rng=rng)
        if line is None:
            break
        # What lies on this line makes no other one, so that short needles have their turn.
        left &= _distance(index, line) > _SAME
        ends = ((np.stack(line) + 0.5) * ratio - 0.5) * scale
        found.append(_fitted(points, weights, ends=ends, reach=reach))
    return found


def _best_line(
    evidence: np.ndarray, index: np.ndarray, *, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return start and end, in coarse samples, of the run of most evidence on lines through two points.

    ``evidence`` has a margin of one sample, that of what the view does not hold.
    """
    one, other = index[rng.integers(len(index), size=(2, _PAIRS))]
    apart = np.linalg.norm(other - one, axis=1)
    one, other, apart = (values[apart >= _APART] for values in (one, other, apart))
    if not len(one):
        return None
    ahead = (other - one) / apart[:, None]
    reach = int(np.ceil(np.linalg.norm(evidence.shape)))
    steps = np.arange(-reach, reach + 1, dtype=np.float32)
    flat = np.zeros((len(one), len(steps)), np.int32)
    for axis, size in enumerate(evidence.shape):
        place = ahead[:, axis, None].astype(np.float32) * steps + one[:, axis, None].astype(np.float32)
        flat = flat * size + np.clip(np.rint(place) + 1, 0, size - 1).astype(np.int32)
    gain = evidence.ravel()[flat]
    first, last, total = _best_runs(gain)
    best = int(np.argmax(total))
    if total[best] <= 0:
        return None
    return tuple(one[best] + steps[at[best]] * ahead[best] for at in (first, last))


def _distance(points: np.ndarray, line: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return how far points (n, 3) are from the line between two ends."""
    length = max(float(np.linalg.norm(line[1] - line[0])), 1e-9)
    ahead = (line[1] - line[0]) / length
    away = points - line[0]
    s = np.clip(away @ ahead, 0, length)
    return np.linalg.norm(away - s[:, None] * ahead, axis=1)


def _best_runs(gain: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return first and last index of each row's run of largest sum, and that sum."""
    total = np.concatenate([np.zeros((len(gain), 1)), np.cumsum(gain, 1)], 1)
    least = np.minimum.accumulate(total, 1)[:, :-1]
    above = total[:, 1:] - least
    last = above.argmax(1)
    rows = np.arange(len(gain))
    before = np.arange(gain.shape[1])[None] <= last[:, None]
    first = np.where(before, total[:, :-1], np.inf).argmin(1)
    return first, last, above[rows, last]


def _fitted(points: np.ndarray, weights: np.ndarray, *, ends: np.ndarray, reach: float) -> Path:
    """Fit a path to the points near a line between two ends."""
    path = Path.between(ends[0], ends[1])
    for _ in range(2):
        s, away = path.locate(points)
        near = (away < reach) & (s > path.start - 2 * reach) & (s < path.end + 2 * reach)
        if near.sum() < 3:
            break
        path = fit_path(points[near], weights[near])
    return path.downward()


def tube_lengths(path: Path) -> np.ndarray:
    """Return the lengths along the chord at which the tube is sampled: ``TUBE`` of them."""
    step = max(1.0, (path.end - path.start + 24) / TUBE)
    return (path.start + path.end) / 2 + (np.arange(TUBE) - (TUBE - 1) / 2) * step


def refined(reading: Reading, path: Path) -> Path:
    """Fit the path again to where the second look saw the shaft in the slices of its tube."""
    chance = reading.shaft
    taken = chance > _SHARE
    if taken.sum() < 6:
        return path
    points = path.points(reading.lengths) + reading.slices[1:3].T @ reading.frame
    fitted = fit_path(points[taken], chance[taken])
    return fitted if fitted.ahead @ path.ahead > 0 else fitted.reversed()


def trace(reading: Reading, path: Path) -> Trace | None:
    """Decide where along its axis the needle is: None without evidence.

    Args:
        reading: of a tube about ``path``.
        path: what the tube ran along; the needle's own axis is ``refined`` from it.
    """
    held = np.flatnonzero(reading.inside)
    if not len(held):
        return None
    chance = np.clip(reading.shaft, 1e-3, 1 - 1e-3)
    odds = np.clip(np.log(chance / (1 - chance)), _GAP, _SURE)
    gain = np.where(reading.inside, odds, _GAP)
    first, last, total = (values[0] for values in _best_runs(gain[None]))
    if total <= 0:
        return None
    # Needles point away from the probe rather than to it.
    upward = np.arange(len(chance)) < (first + last) / 2
    tip = _tip_slice(reading, doubt=_DOWNWARD * float(path.ahead[1]) * upward)
    axis = refined(reading, path)
    place = axis.locate(path.points(reading.lengths))[0]
    edges = float(place[held[0]]), float(place[held[-1]])
    if tip is None:  # in at one side, out at the other
        kept = dataclasses.replace(axis, start=edges[0], end=edges[1])
        if kept.points(np.array([kept.end]))[0][1] < kept.points(np.array([kept.start]))[0][1]:
            kept = kept.reversed()  # it comes from the probe's side
        return Trace(kept, reading.radius, reading.confidence, tip_seen=False)
    end = float(np.interp(tip, np.arange(len(place)), place))
    run, at = gain[first : last + 1], np.arange(first, last + 1)
    if run[at <= tip].sum() >= run[at > tip].sum():
        kept = dataclasses.replace(axis, start=min(edges[0], end - 1.0), end=end)
    else:
        kept = dataclasses.replace(axis, start=end, end=max(edges[1], end + 1.0)).reversed()
    return Trace(kept, reading.radius, reading.confidence, tip_seen=True)


def _tip_slice(reading: Reading, *, doubt: np.ndarray) -> float | None:
    """Return the place of the tip among the slices, between them; None if none is likelier than any."""
    logits = np.where(reading.inside, reading.slices[3] - doubt, -np.inf)
    best = int(np.argmax(logits))
    near = slice(max(0, best - _NEAR_TIP), best + _NEAR_TIP + 1)
    weights = np.exp(logits[near] - logits[best])
    if logits[best] + np.log(np.exp(logits - logits[best]).sum()) < reading.whole[1]:
        return None
    return float(np.sum(weights * np.arange(len(logits))[near]) / weights.sum())


def tube_mask(path: Path, *, radius: float, shape: tuple[int, ...], scale: np.ndarray) -> Tensor:
    """Voxels of the canonical volume within ``radius`` of the axis, from start to end: uint8 ``z y x``."""
    mask = torch.zeros(shape, dtype=torch.uint8)
    trail = path.points(np.arange(path.start, path.end + 1, 1.0))
    low = np.clip(np.floor((trail.min(0) - radius) / scale), 0, np.asarray(shape) - 1).astype(int)
    high = np.clip(np.ceil((trail.max(0) + radius) / scale) + 1, 1, shape).astype(int)
    rough = torch.zeros(tuple(int(n) for n in high - low))
    spots = np.clip(np.round(trail / scale).astype(int), low, high - 1) - low
    rough[tuple(torch.from_numpy(spots).T)] = 1
    reach = 2 * int(np.ceil((radius + 1) / scale.min())) + 1
    grown = F.max_pool3d(rough[None], reach, 1, reach // 2)[0]
    index = grown.nonzero().numpy() + low
    s, away = path.locate(index * scale)
    kept = index[(away <= radius) & (s >= path.start) & (s <= path.end)]
    mask[tuple(torch.from_numpy(kept).T)] = 1
    return mask
