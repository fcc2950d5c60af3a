"""Ejection fraction of every beat: by masks, by the LSTM's reading, and what is measured of both."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from usvol.measurement import disc_volume_ml
from usvol.result import Curve, Labels, Measurement, Scores
from video.recipes.ejection_fraction import EF_NAMES
from video.tasks._echo_beats import Systole, systoles
from video.tasks._echo_ventricle import BeatDiscs, beat_discs, ef_by_area_length, ef_by_discs

CLASSES = ("preserved (50 % or more)", "mildly reduced (40-49 %)", "reduced (below 40 %)")
EF_CLASS = "ejection_fraction_class"
NO_SYSTOLE = "no ED beside an ES with a ventricle was found"

_LIMITS = (50.0, 40.0)
_ERROR = 6.0  # standard deviation of the fused EF's error, in points, that class probabilities allow for
_MARGINS = (0.0, 1 / 6, 1 / 3)  # of a systole, seen on either side of it: training has up to the last


def beat_windows(beat: Systole, *, length: int, count: int) -> Tensor:
    """Return the frames of a beat that the LSTM reads, in three widths as training draws: ``3 length``."""
    systole = beat.es - beat.ed
    margins = [round(share * systole) for share in _MARGINS]
    return torch.stack([
        torch.linspace(max(0, beat.ed - m), min(count - 1, beat.es + m), length).round().long()
        for m in margins
    ])  # fmt: skip


def fused(beat: BeatDiscs | None, regressed: float | None, *, share: float) -> float | None:
    """Return EF of a beat from its masks and as regressed, whose ``share`` is 0-1; None without a mask."""
    by_masks = ef_by_discs(beat)
    if by_masks is None or regressed is None:
        return by_masks
    return (1 - share) * by_masks + share * regressed


def ef_curve(name: str, values: Sequence[float | None], *, at: Sequence[int], like: Curve) -> Curve | None:
    """Return EFs as a curve with a point for each beat, at positions ``at`` of ``like``; None without any."""
    there = {place: value for place, value in zip(at, values, strict=True) if value is not None}
    if not there:
        return None
    times_s = None if like.times_s is None else tuple(like.times_s[place] for place in there)
    frames = tuple(like.frame_indices[place] for place in there)
    return Curve(name, tuple(there.values()), "%", times_s, frames)


def ef_scores(ef: float) -> Scores:
    """Return how likely each class of EF (%) is, with the error that such an EF has.

    Example:
        >>> ef_scores(61.0).decision
        'preserved (50 % or more)'
    """
    above = [0.5 * math.erfc((limit - ef) / (_ERROR * math.sqrt(2))) for limit in _LIMITS]
    chances = (above[0], above[1] - above[0], 1 - above[1])
    decided = sum(ef < limit for limit in _LIMITS)
    return Scores(EF_CLASS, CLASSES, chances, CLASSES[decided])


def ef_measurements(
    labels: Labels, curve: Curve, *, others: Sequence[Curve], reason: str
) -> tuple[Measurement, ...]:
    """Measure every EF (%), both volumes (mL) and the long axis, as mean and range over beats.

    Args:
        labels: the ventricle over time.
        curve: its volume, with ED and ES.
        others: EF curves of one value per beat.
        reason: why the scan has no scale, if it has none.
    """
    beats = systoles(curve.events)
    whole = [beat for beat in beat_discs(labels, beats) if beat is not None]
    # One whose mask grows in systole has no EF, and no part in the other numbers either.
    found = [beat for beat in whole if ef_by_discs(beat) is not None]
    by_name = {other.name: other.values for other in others}
    by_masks = [ef for beat in found if (ef := ef_by_discs(beat)) is not None]
    by_area = [ef for beat in found if (ef := ef_by_area_length(beat)) is not None]
    return (
        over_beats(EF_NAMES["fused"], by_name.get(EF_NAMES["fused"], ())),
        over_beats(EF_NAMES["segmentation"], by_masks),
        over_beats("ejection_fraction_area_length", by_area),
        over_beats(EF_NAMES["clip"], by_name.get(EF_NAMES["clip"], ())),
        over_beats(EF_NAMES["frames"], by_name.get(EF_NAMES["frames"], ())),
        *_volumes(found, calibrated=labels.grid.is_calibrated, reason=reason),
        over_beats("long_axis_shortening", [beat.shortening_percent for beat in found]),
        Measurement("beats", len(beats), "1", note=_beats_note(len(whole) - len(found))),
    )


def _beats_note(grown: int) -> str:
    out = f"; {grown} left out of volumes and EF by masks, for the mask grows in systole"
    return f"with an ED and an ES{out if grown else ''}"


def _volumes(beats: Sequence[BeatDiscs], *, calibrated: bool, reason: str) -> tuple[Measurement, ...]:
    names = ("end_diastolic_volume", "end_systolic_volume", "stroke_volume")
    if not calibrated:
        return tuple(Measurement(name, None, "mL", note=f"no scale: {reason}") for name in names)
    edv, esv = ([disc_volume_ml(end) for end in ends] for ends in _ends(beats))
    stroke = [d - s for d, s in zip(edv, esv, strict=True)]
    return tuple(over_beats(n, v, unit="mL") for n, v in zip(names, (edv, esv, stroke), strict=True))


def _ends(beats: Sequence[BeatDiscs]) -> tuple[list, list]:
    return [beat.ed for beat in beats], [beat.es for beat in beats]


def over_beats(name: str, values: Sequence[float], *, unit: str = "%") -> Measurement:
    """Return the mean over beats with the range from the lowest to the highest."""
    if not len(values):
        return Measurement(name, None, unit, note=NO_SYSTOLE)
    note = f"mean and range of {len(values)} beats" if len(values) > 1 else "one beat"
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    return Measurement(name, float(np.mean(values)), unit, low=low, high=high, note=note)
