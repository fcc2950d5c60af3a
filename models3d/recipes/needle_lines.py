"""Lines along which a needle may run, told from the chances of the first look.

The second look reads them when a volume is run, and learns from them what is no needle.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models3d.recipes.needle_path import COARSE, Path, coarse_shape, coarse_view, fit_path

_POINTS = 300  # coarse samples that lines are drawn through: the likeliest
_POSSIBLE = 0.05  # chance from which one counts
_PAIRS = 250
_APART = 4.0  # coarse samples between two that make a line, at least
_EVIDENCE = (-1.5, 3.0)  # least and most that a coarse sample says, as log odds
_DOUBT = -2.0, 1.0  # log odds that say nothing: those of the least likely of these points, within limits
_SAME = 2.5  # coarse samples about a line whose points make no other
_OUTSIDE = -1e3  # evidence of what the view does not hold
_REACH = 1.5  # coarse samples about a line that support it


def proposed_lines(
    look: Callable[[Tensor], Tensor], level: Tensor, *, step: np.ndarray, scale: np.ndarray, count: int
) -> list[Path]:
    """Return the lines that the first look proposes in a whole volume: ``count`` at most, best first.

    Args:
        look: coarse views ``b 2 z y x`` of ``COARSE`` samples a side to logits ``b z y x``.
        level: grey levels 0-1, ``z y x``.
        step: spacing (z, y, x).
        scale: fine samples per index, (z, y, x).
        count: of lines, at most.
    """
    shape = coarse_shape(level.shape, step)
    z, y, x = shape
    pad = [n for size in reversed(shape) for n in (0, COARSE - size)]
    logits = look(F.pad(coarse_view(level, shape), pad)[None]).cpu()[0, :z, :y, :x]
    return candidates(logits.float(), scale=scale, grid_shape=level.shape, count=count)


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
    near = F.pad((logits - doubt).clamp(*_EVIDENCE), (1,) * 6, value=_EVIDENCE[0])
    for axis in range(3):  # one after the other, and not by max_pool3d: a tenth of the time
        near = near.unfold(axis, 3, 1).amax(-1)
    evidence = F.pad(near, (1,) * 6, value=_OUTSIDE).numpy()
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
