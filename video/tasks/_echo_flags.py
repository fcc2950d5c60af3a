"""What may be wrong with the ventricle that was outlined: missing, cut, foreshortened, contradictory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from usvol.measurement import disc_volume_ml
from usvol.result import Flag, Labels, Severity
from video.recipes.echo_clips import VENTRICLE
from video.tasks._echo_beats import Systole
from video.tasks._echo_ventricle import BeatDiscs, areas, beat_discs, ef_by_discs

FORESHORTENED = 0.4
"""Long-axis shortening over EF beyond which an apical view counts as foreshortened.

The apex of a ventricle hardly moves, so its axis shortens by a share of what it ejects. An oblique cut ends
in the wall beside the apex, which moves inwards, and its axis shortens by more. In simulated hearts the ratio
is 0.26 (5th to 95th percentile 0.16-0.35) where less than 8 % of the axis is missed, and 0.39 (0.26-0.57)
where more than 18 % is. Smistad et al. (TUFFC 67:2595, 2020) showed how much EF depends on it.
"""

_LEAST_EF = 20.0  # below it the ratio is noise
_SEEN_SHARE = 0.5  # of the frames that must show a ventricle
_CUT_SHARE = 0.08  # of the ventricle's outline at the edge of the sector that counts as cut
_DISAGREE = 15.0  # points of EF between masks and LSTM
_PLAUSIBLE_ML = (1.0, 600.0)  # in diastole: neonates to the largest dilated ventricles


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What a clip shows: masks over time, beats, mask of the sector ``y x`` on the square, EF by the LSTM."""

    labels: Labels
    beats: tuple[Systole, ...]
    sector: Tensor | None
    regressed: tuple[float, ...]


def ventricle_missing(masks: Tensor) -> bool:
    """Tell whether too few frames of masks ``t y x`` show a ventricle."""
    return float((areas(masks) > 0).float().mean()) < _SEEN_SHARE


def ventricle_flags(seen: Seen) -> Iterator[Flag]:
    """Yield what is wrong, the worst first."""
    if ventricle_missing(seen.labels.data[:, 0]):
        message = "No left ventricle is seen in most frames: not an apical view? Nothing was measured."
        yield Flag("no_left_ventricle", message, Severity.SEVERE)
        return
    found = [beat for beat in beat_discs(seen.labels, seen.beats) if beat is not None]
    if not found:
        message = "Less than one beat: no ED and ES next to each other are shown. Nothing was measured."
        yield Flag("less_than_one_beat", message, Severity.SEVERE)
        return
    if not seen.beats[0].is_whole:
        message = "No whole systole is shown: EF is that of an ES and the ED after it, by the masks alone."
        yield Flag("no_whole_systole", message, Severity.WARNING)
    yield from _foreshortened(found)
    yield from _contradictory(found, seen.regressed)
    yield from _cut(seen)
    yield from _implausible(found)


def _foreshortened(beats: list[BeatDiscs]) -> Iterator[Flag]:
    ratios = [
        beat.shortening_percent / ef
        for beat in beats
        if (ef := ef_by_discs(beat)) is not None and ef >= _LEAST_EF
    ]
    if ratios and (ratio := float(np.median(ratios))) > FORESHORTENED:
        message = (
            f"The long axis shortens by {ratio:.0%} of the ejection fraction, more than {FORESHORTENED:.0%}: "
            "the view may be foreshortened, its volumes too small and its ejection fraction wrong."
        )
        yield Flag("foreshortened", message, Severity.WARNING)


def _contradictory(beats: list[BeatDiscs], regressed: tuple[float, ...]) -> Iterator[Flag]:
    by_masks = [ef for beat in beats if (ef := ef_by_discs(beat)) is not None]
    if not by_masks or not regressed:
        return
    first, second = float(np.mean(by_masks)), float(np.mean(regressed))
    if abs(first - second) > _DISAGREE:
        message = (
            f"The masks give an ejection fraction of {first:.0f} %, the CNN-LSTM one of {second:.0f} %: "
            "look at the masks before relying on either."
        )
        yield Flag("methods_disagree", message, Severity.WARNING)


def _cut(seen: Seen) -> Iterator[Flag]:
    if seen.sector is None:
        return
    size = tuple(seen.labels.data.shape[-2:])
    inside = (F.interpolate(seen.sector[None, None].float(), size=size)[0, 0] > 0.5).numpy()
    shares = [_share_cut((seen.labels.data[beat.ed, 0] == VENTRICLE).numpy(), inside) for beat in seen.beats]
    if float(np.median(shares)) > _CUT_SHARE:
        message = "The ventricle reaches the edge of the sector: what lies beyond is not measured."
        yield Flag("cut_by_sector_edge", message, Severity.WARNING)


def _share_cut(mask: NDArray[np.bool_], inside: NDArray[np.bool_]) -> float:
    """Return the share of a mask's outline that lies on the outline of ``inside``."""
    outline, rim = (m & ~np.asarray(ndimage.binary_erosion(m), bool) for m in (mask, inside))
    return float((outline & rim).sum() / max(1, outline.sum()))


def _implausible(beats: list[BeatDiscs]) -> Iterator[Flag]:
    if not beats[0].ed.unit_mm:
        return
    volume = float(np.mean([disc_volume_ml(beat.ed) for beat in beats]))
    low, high = _PLAUSIBLE_ML
    if not low <= volume <= high:
        message = f"{volume:.3g} mL is no left ventricle ({low:g} to {high:g} mL). Is the file's scale right?"
        yield Flag("implausible_size", message, Severity.WARNING)
