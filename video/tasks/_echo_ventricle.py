"""The left ventricle's masks over time: tidied, cut into discs, and the volumes and axes that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from usvol.measurement import (
    Discs,
    area_length_volume,
    chamber_discs,
    ejection_fraction_percent,
    simpson_volume,
)
from usvol.postprocessing import large_components
from usvol.result import Curve, Event, Labels
from usvol.scan import Grid
from video.recipes.echo_clips import SIDE, VENTRICLE
from video.recipes.ejection_fraction import MASKS
from video.tasks._echo_beats import Systole

VOLUME = "left_ventricle_volume"
NAMES = {VENTRICLE: "left_ventricle"}

_FINE = 2 * SIDE  # pixels of a side of the masks: between them a contour is placed by the network's certainty
_SMOOTHED_S = 0.012  # by which masks are smoothed in time: less than half of any phase of the cycle
_LEAST_SHARE = 0.002  # of the picture: smaller masks are no ventricle
_CHUNK = 32


@dataclass(frozen=True, slots=True)
class BeatDiscs:
    """The ventricle at ED and at ES of one beat, cut into discs."""

    ed: Discs
    es: Discs

    @property
    def shortening_percent(self) -> float:
        """By how much of its diastolic length the long axis shortens."""
        return 100 * (1 - self.es.length / self.ed.length)


def tidied(logits: Tensor, times_s: Sequence[float] | None) -> Tensor:
    """Return masks ``t y x`` (uint8, 224 pixels square) from a network's logits ``t y x``.

    Smoothed a little in time where times are known, one connected part per frame, without holes.
    """
    chance = _smoothed(torch.sigmoid(logits.float()), times_s)
    coarse = (chance > 0.5).numpy()
    for frame, mask in zip(chance, coarse, strict=True):
        part = large_components(mask[None], share=1.0)[0] if mask.any() else mask
        # What was below one half beside the largest part keeps its certainty, which places the contour.
        near = np.asarray(ndimage.binary_dilation(part, iterations=1), bool)
        holes = np.asarray(ndimage.binary_fill_holes(part), bool) & ~part
        frame[torch.from_numpy(~near)] = 0.0
        frame[torch.from_numpy(holes)] = 1.0
    fine = [
        F.interpolate(c[:, None], size=(_FINE, _FINE), mode="bilinear", align_corners=False)[:, 0] > 0.5
        for c in chance.split(_CHUNK)
    ]
    masks = torch.cat(fine).to(torch.uint8) * VENTRICLE
    masks[areas(masks) < _LEAST_SHARE * _FINE**2] = 0
    return masks


def areas(masks: Tensor) -> Tensor:
    """Return the pixels of the ventricle in every frame of masks ``t y x``: (t,)."""
    return (masks == VENTRICLE).flatten(1).sum(1, dtype=torch.int32)


def _smoothed(chance: Tensor, times_s: Sequence[float] | None) -> Tensor:
    if times_s is None or len(times_s) < 2:
        return chance.clone()
    step_s = (times_s[-1] - times_s[0]) / (len(times_s) - 1)
    if not step_s > 0:
        return chance.clone()
    return torch.from_numpy(
        ndimage.gaussian_filter1d(chance.numpy(), _SMOOTHED_S / step_s, axis=0, mode="nearest", truncate=3)
    )


def as_labels(masks: Tensor, grid: Grid) -> Labels:
    """Return masks ``t y x`` that cover ``grid`` as a finding."""
    return Labels(MASKS, masks[:, None], grid.resized((1, masks.shape[1], masks.shape[2])), NAMES)


def volumes(labels: Labels) -> NDArray[np.float64]:
    """Return the volume by discs of every frame, in cubed world units; 0 where there is no ventricle."""
    return np.array([_volume(labels, frame) for frame in range(len(labels.data))])


def _volume(labels: Labels, frame: int) -> float:
    discs = discs_of(labels, frame)
    return 0.0 if discs is None else simpson_volume(discs)


def discs_of(labels: Labels, frame: int) -> Discs | None:
    """Return the ventricle of one frame in discs, or None where there is too little of it."""
    try:
        return chamber_discs(labels, VENTRICLE, frame=frame)
    except ValueError:
        return None


def volume_curve(
    sizes: NDArray[np.float64],
    grid: Grid,
    *,
    times_s: tuple[float, ...] | None,
    frames: tuple[int, ...],
    events: tuple[Event, ...],
) -> Curve:
    """Return volumes (cubed world units) as a curve: in mL, or in % of the largest without a scale."""
    largest = float(sizes.max(initial=0.0))
    divisor = 1000.0 if grid.is_calibrated else max(largest / 100, 1e-12)
    values = tuple((sizes / divisor).tolist())
    return Curve(VOLUME, values, "mL" if grid.is_calibrated else "%", times_s, frames, events=events)


def beat_discs(labels: Labels, beats: Sequence[Systole]) -> list[BeatDiscs | None]:
    """Return both ends of every beat in discs; None for a beat with no ventricle at one of them."""
    pairs = [(discs_of(labels, beat.ed), discs_of(labels, beat.es)) for beat in beats]
    return [None if ed is None or es is None else BeatDiscs(ed, es) for ed, es in pairs]


def ef_by_discs(beat: BeatDiscs | None) -> float | None:
    """Return EF in % by single-plane discs; None where the masks allow none."""
    return None if beat is None else _ef(simpson_volume(beat.ed), simpson_volume(beat.es))


def ef_by_area_length(beat: BeatDiscs | None) -> float | None:
    """Return EF in % by area and length; None where the masks allow none."""
    if beat is None:
        return None
    return _ef(*(area_length_volume(end.area, end.length) for end in (beat.ed, beat.es)))


def _ef(edv: float, esv: float) -> float | None:
    return ejection_fraction_percent(edv, esv) if esv <= edv else None
