"""From what is read in a tube to a needle: its axis by fit, its ends by what speaks for them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models3d.recipes.needle_path import Path, refitted

_SELECTED = 2.3  # log odds by which the surest line of several seems surer than it is; chosen on validation
_GAP, _SURE = -2.0, 4.0  # least and most log odds of a shaft that a slice says
_DOWNWARD = 4.0  # log odds by which pointing straight down outweighs pointing up; chosen on validation
_WAY = 0.02  # of a slice's log odds of a shaft count for the way to the tip; chosen on validation
_EDGE = 3.0  # fine samples: where a shaft ends so near to the edge of the view it leaves it rather, by
_AT_EDGE = 3.0  # these log odds; both chosen on validation
_ALIKE = 1e-6  # log odds: of two directions as likely, down is taken
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


def refined(reading: Reading, path: Path) -> Path:
    """Fit the path again to where the second look saw the shaft in the slices of its tube."""
    points = path.points(reading.lengths) + reading.slices[1:3].T @ reading.frame
    return refitted(path, points, chance=reading.shaft)


def trace(reading: Reading, path: Path, *, axis: Path, radius: float) -> Trace | None:
    """Decide where along its axis the needle is: None without evidence.

    A needle runs from an edge of the view to its tip. Which edge, and where the tip is, are told together:
    by what says a tip is there, and by the evidence of a shaft on all the way to it.

    Args:
        reading: of a tube about ``path``.
        path: what the tube ran along.
        axis: the needle's own, about as long.
        radius: of the needle, in fine samples.
    """
    held = np.flatnonzero(reading.inside)
    if not (reading.slices[0, held] > 0).any():
        return None
    odds = np.clip(reading.slices[0], _GAP, _SURE)
    place = axis.locate(path.points(reading.lengths))[0]
    first, last = float(place[held[0]]), float(place[held[-1]])
    tip, backward = _tip_slice(reading, _WAY * odds * reading.inside, upward=_DOWNWARD * float(path.ahead[1]))
    if tip is None:  # in at one side, out at the other
        kept = dataclasses.replace(axis, start=first, end=last)
        return Trace(kept.reversed() if backward else kept, radius, reading.confidence, tip_seen=False)
    end = float(np.interp(tip, np.arange(len(place)), place))
    if backward:
        kept = dataclasses.replace(axis, start=end, end=max(last, end + 1.0)).reversed()
    else:
        kept = dataclasses.replace(axis, start=min(first, end - 1.0), end=end)
    return Trace(kept, radius, reading.confidence, tip_seen=True)


def _tip_slice(reading: Reading, way: np.ndarray, *, upward: float) -> tuple[float | None, bool]:
    """Return the place of the tip among the slices, between them, and whether the needle runs backward.

    No place if none is likelier than any; the way is that of the likelier end even then. ``way`` is what each
    slice says for a shaft, and ``upward`` what speaks against running backward, which is up: needles point
    away from the probe rather than to it.
    """
    held = np.flatnonzero(reading.inside)
    reach = _EDGE / (reading.lengths[1] - reading.lengths[0])
    place = np.arange(len(reading.inside))
    tips = reading.slices[3] - _AT_EDGE * ((place < held[0] + reach) | (place > held[-1] - reach))
    tips = np.where(reading.inside, tips, -np.inf)
    ahead, back = tips + np.cumsum(way), tips + np.cumsum(way[::-1])[::-1] - upward
    backward = bool(_log_sum(back) - _log_sum(ahead) > _ALIKE)
    logits = back if backward else ahead
    if _log_sum(logits) < reading.whole[1] + way.sum():
        return None, backward
    best = int(np.argmax(logits))
    near = slice(max(0, best - _NEAR_TIP), best + _NEAR_TIP + 1)
    weights = np.exp(logits[near] - logits[best])
    return float(np.sum(weights * np.arange(len(logits))[near]) / weights.sum()), backward


def _log_sum(logits: np.ndarray) -> float:
    return float(np.logaddexp.reduce(logits))


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
