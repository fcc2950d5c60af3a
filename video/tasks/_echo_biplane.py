"""Volumes and EF from two apical views at right angles, by the biplane method of discs.

Lang et al., ASE/EACVI 2015, §1.1.3. The two clips show other beats, so each view gives the mean of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from usvol.measurement import Discs, disc_volume_ml, ejection_fraction_percent, simpson_volume
from usvol.result import Curve, Labels, Measurement, Result
from video.recipes.ejection_fraction import MASKS
from video.tasks._echo_beats import systoles
from video.tasks._echo_ventricle import VOLUME, BeatDiscs, beat_discs

NAMES = ("ejection_fraction_biplane", "end_diastolic_volume_biplane", "end_systolic_volume_biplane")

_UNLIKE = 0.15  # of the longer axis, by which the axes of both views may differ


@dataclass(frozen=True, slots=True)
class View:
    """One apical view: its beats in discs, and whose heart it shows (hashed), if known."""

    beats: tuple[BeatDiscs, ...]
    patient_key: str | None = None


def view_of(labels: Labels, curve: Curve, *, patient_key: str | None = None) -> View:
    """Return the beats of a clip that has masks and events."""
    found = beat_discs(labels, systoles(curve.events))
    return View(tuple(beat for beat in found if beat is not None), patient_key)


def biplane(first: Result, second: Result) -> tuple[Measurement, ...]:
    """Measure EF (%), and where both clips have a scale volumes (mL), from results of the same heart.

    Args:
        first: of task ``ejection_fraction`` on a four-chamber or a two-chamber view.
        second: the same of the other view.

    Example:
        >>> four, two = (usvol.run(task, usvol.load(p)) for p in paths)  # doctest: +SKIP
        >>> biplane(four, two)[0].name  # doctest: +SKIP
        'ejection_fraction_biplane'
    """
    return biplane_measurements(*(_view(result) for result in (first, second)))


def _view(result: Result) -> View:
    labels = next(f for f in result.findings if isinstance(f, Labels) and f.name == MASKS)
    curve = next(f for f in result.findings if isinstance(f, Curve) and f.name == VOLUME)
    return view_of(labels, curve, patient_key=result.source.patient_key)


def biplane_measurements(first: View, second: View) -> tuple[Measurement, ...]:
    """Measure two views; every number is None, with the reason, where they do not belong together."""
    views = (first, second)
    keys = {view.patient_key for view in views if view.patient_key is not None}
    if len(keys) > 1:
        return biplane_declined("the two clips are of different patients")
    if not all(view.beats for view in views):
        return biplane_declined("a view has no whole systole with a ventricle")
    ed = [_mean([beat.ed for beat in view.beats]) for view in views]
    es = [_mean([beat.es for beat in view.beats]) for view in views]
    note = "discs of both views; mean over the beats of each"
    calibrated = all(end.unit_mm for end in (*ed, *es))
    if not calibrated:
        # Without both scales the views are made as long as each other in diastole; EF needs no more.
        ed, es = ([_scaled(end, 1 / d.length) for end, d in zip(ends, ed, strict=True)] for ends in (ed, es))
    elif abs(ed[0].length - ed[1].length) > _UNLIKE * max(end.length for end in ed):
        note += "; their long axes differ by more than 15 %: one view is foreshortened"
    edv, esv = (simpson_volume(*ends) for ends in (ed, es))
    if esv > edv:
        return biplane_declined("end-systole is larger than end-diastole")
    ef = Measurement(NAMES[0], ejection_fraction_percent(edv, esv), "%", note=note)
    if not calibrated:
        return (ef, *(Measurement(name, None, "mL", note="a clip carries no scale") for name in NAMES[1:]))
    millilitres = (disc_volume_ml(*ends) for ends in (ed, es))
    return (ef, *(Measurement(n, v, "mL", note=note) for n, v in zip(NAMES[1:], millilitres, strict=True)))


def biplane_declined(reason: str) -> tuple[Measurement, ...]:
    """Return the biplane measurements without numbers, with the reason."""
    units = ("%", "mL", "mL")
    return tuple(Measurement(name, None, unit, note=reason) for name, unit in zip(NAMES, units, strict=True))


def _mean(ends: Sequence[Discs]) -> Discs:
    """Average lengths, areas and diameters over beats."""
    diameters = np.mean([end.diameters for end in ends], 0)
    length, area = (float(np.mean([getattr(end, part) for end in ends])) for part in ("length", "area"))
    return dataclasses.replace(
        ends[0], length=length, area=area, diameters=tuple(float(d) for d in diameters)
    )


def _scaled(end: Discs, factor: float) -> Discs:
    return dataclasses.replace(
        end,
        length=end.length * factor,
        area=end.area * factor**2,
        diameters=tuple(d * factor for d in end.diameters),
        unit_mm=False,
    )
