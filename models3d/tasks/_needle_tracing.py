"""From chances to a needle: candidates by RANSAC, the axis by robust fit, the ends by where evidence ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from skimage.measure import LineModelND, ransac
from torch import Tensor
from torch.nn import functional as F

from models3d.recipes.needle_path import Path, fit_path

TUBE = 160  # samples along the tube
_CANDIDATE = 0.3  # chance from which a coarse sample counts
_CANDIDATES = 300
_TRIALS = 60
_REACH = 1.5  # coarse samples about a line that support it
_SUPPORT = 0.35  # chance from which a sample of the tube helps to place the axis
_NEAR = 2.5  # fine samples about the axis in which evidence is looked for
_GAP = -2.0  # least log odds of a slice: gaps in the echo are bridged when enough follows
_SURE = 4.0
_EDGE = 2.0  # fine samples; evidence that ends so near the edge of the view has not ended
_DOWNWARD = 12.0  # fine samples at the edge that pointing straight down outweighs; chosen on validation
_LENGTH = 8.0  # fine samples of evidence that half convince


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A needle in fine coordinates.

    Attributes:
        path: its axis, from the edge of the view (``start``) to the tip (``end``).
        radius: in fine samples, of what the network took for the shaft.
        confidence: 0-1.
        tip_seen: False where it runs out of the view at both ends.
    """

    path: Path
    radius: float
    confidence: float
    tip_seen: bool


def candidate(chance: Tensor, *, scale: np.ndarray, grid_shape: tuple[int, ...]) -> Path | None:
    """Find the straight or slightly bent line that most coarse samples support (RANSAC; Fischler 1981).

    Args:
        chance: ``z y x`` of the coarse view.
        scale: fine samples per index of the canonical volume.
        grid_shape: shape of that volume.
    """
    best = torch.topk(chance.flatten(), min(_CANDIDATES, chance.numel()))
    flat = best.indices[best.values > _CANDIDATE].numpy()
    if len(flat) < 3:
        return None
    index = np.stack(np.unravel_index(flat, tuple(chance.shape)), 1)
    ratio = np.asarray(grid_shape) / np.asarray(chance.shape)
    points = ((index + 0.5) * ratio - 0.5) * scale
    weights = best.values[: len(flat)].double().numpy()
    reach = _REACH * float((ratio * scale).max())
    inside = np.ones(len(points), bool)
    if len(points) > 4:
        _, found = ransac(
            points, LineModelND, min_samples=2, residual_threshold=reach, max_trials=_TRIALS, rng=0
        )
        inside = inside if found is None or np.sum(found) < 3 else np.asarray(found)
    path = fit_path(points[inside], weights[inside])
    for _ in range(2):
        s, away = path.locate(points)
        near = (away < reach) & (s > path.start - 8 * reach) & (s < path.end + 8 * reach)
        if near.sum() < 3:
            break
        path = fit_path(points[near], weights[near])
    return path


def tube_lengths(path: Path) -> np.ndarray:
    """Return the lengths along the chord at which the tube is sampled: ``TUBE`` of them."""
    step = max(1.0, (path.end - path.start + 24) / TUBE)
    return (path.start + path.end) / 2 + (np.arange(TUBE) - (TUBE - 1) / 2) * step


def refined(chance: Tensor, points: np.ndarray, *, path: Path) -> Path:
    """Fit the path again to what the fine network found in its tube ``s v u`` at ``points``."""
    taken = (chance > _SUPPORT).numpy()
    spots, weights = points[taken], chance.numpy()[taken].astype(float)
    for reach in (6.0, 3.5):
        _, away = path.locate(spots)
        near = away < reach
        if near.sum() < 6:
            return path
        fitted = fit_path(spots[near], weights[near])
        path = fitted if fitted.ahead @ path.ahead > 0 else fitted.reversed()
    return path


def trace(
    chance: Tensor, points: np.ndarray, *, path: Path, along: np.ndarray, inside: np.ndarray
) -> Trace | None:
    """Decide where along its axis the needle is: None without evidence.

    Args:
        chance: ``s v u`` of a tube.
        points: where its samples are, (s, v, u, 3).
        path: the needle's axis.
        along: length along it of every s, growing.
        inside: whether the view holds the axis, per s.
    """
    away = path.locate(points.reshape(-1, 3))[1].reshape(chance.shape)
    near = torch.from_numpy(away < _NEAR)
    evidence = torch.where(near, chance, 0.0).flatten(1).amax(1).double().numpy()
    odds = np.log(np.clip(evidence, 1e-3, 1 - 1e-3) / (1 - np.clip(evidence, 1e-3, 1 - 1e-3)))
    first, last = _best_run(np.clip(odds, _GAP, _SURE) * inside + _GAP * ~inside)
    if last < first:
        return None
    held = np.flatnonzero(inside)
    edges = float(along[held[0]]), float(along[held[-1]])
    ends = _crossing(along, evidence, first, -1), _crossing(along, evidence, last, +1)
    area = torch.where(torch.from_numpy(away < 5), chance, 0.0).flatten(1).sum(1)[first : last + 1]
    strong = evidence[first : last + 1]
    confidence = float(strong.mean() * (1 - 0.5 ** ((strong > 0.5).sum() / _LENGTH)))
    radius = float(np.sqrt(max(float(area.median()), 0.5) / np.pi))
    gap = ends[0] - edges[0], edges[1] - ends[1]
    # It came in where it is nearer to the edge, and needles point away from the probe rather than to it.
    if gap[0] - gap[1] <= 2 * _DOWNWARD * float(path.ahead[1]):
        kept = Path(path.middle, path.ahead, path.bend, edges[0], min(ends[1], edges[1]))
    else:
        kept = Path(path.middle, path.ahead, path.bend, max(ends[0], edges[0]), edges[1]).reversed()
    tip_seen = max(gap) > _EDGE
    if not tip_seen and kept.points(np.array([kept.end]))[0][1] < kept.points(np.array([kept.start]))[0][1]:
        kept = kept.reversed()  # it comes from the probe's side
    return Trace(kept, radius, confidence, tip_seen)


def _best_run(gain: np.ndarray) -> tuple[int, int]:
    """Return first and last index of the run of largest sum (Kadane); last < first if none is above 0."""
    best, start, total, answer = 0.0, 0, 0.0, (0, -1)
    for index, value in enumerate(gain.tolist()):
        if total <= 0:
            total, start = 0.0, index
        total += value
        if total > best:
            best, answer = total, (start, index)
    return answer


def _crossing(along: np.ndarray, evidence: np.ndarray, at: int, step: int) -> float:
    """Return where evidence falls through a half beyond ``at``, between the samples."""
    beyond = at + step
    if not 0 <= beyond < len(along):
        return float(along[at])
    here, there = evidence[at], evidence[beyond]
    if here <= 0.5 or there >= 0.5:
        return float(along[at] + along[beyond]) / 2
    share = (here - 0.5) / (here - there)
    return float(along[at] + share * (along[beyond] - along[at]))


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
