"""The cardiac cycle in time: beats, left ventricular volume, valve opening; all in seconds and mL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

Array = NDArray[np.float64]
Rhythm = Literal["sinus", "fibrillation", "ectopic"]

_EF_LIMITS = (0.05, 0.85)


@dataclass(frozen=True, slots=True)
class Beat:
    """One beat, from mitral closure (ED) to the next; times in s, volumes in mL.

    Attributes:
        ed_s, ejection_s, es_s, filling_s, next_s: mitral closure, aortic opening, aortic closure, mitral
            opening, next mitral closure. Between the first two and the middle two the volume stands still.
        early, late: part of the filling by the E wave and its end; the A wave begins at ``atrial_s``.
    """

    ed_s: float
    ejection_s: float
    es_s: float
    filling_s: float
    early_end_s: float
    atrial_s: float
    next_s: float
    edv_ml: float
    esv_ml: float
    next_edv_ml: float
    early_share: float


@dataclass(frozen=True, slots=True)
class Pump:
    """How the ventricle works: what is drawn once per heart.

    Attributes:
        ejection_shape, early_shape: of the cumulative beta distribution that volume follows.
    """

    rr_s: float
    rhythm: Rhythm
    edv_ml: float
    ef: float
    early_share: float
    isovolumic_s: tuple[float, float]
    ejection_shape: tuple[float, float]
    early_shape: tuple[float, float]


def draw_pump(rng: np.random.Generator, *, bpm: float, ef: float, edv_ml: float, rhythm: Rhythm) -> Pump:
    """Draw what the rate, the ejection fraction (0-1) and the rhythm leave open."""
    return Pump(
        rr_s=60 / bpm,
        rhythm=rhythm,
        edv_ml=edv_ml,
        ef=ef,
        early_share=1.0 if rhythm == "fibrillation" else float(rng.uniform(0.4, 0.85)),
        isovolumic_s=(float(rng.uniform(0.035, 0.07)), float(rng.uniform(0.05, 0.1))),
        ejection_shape=(float(rng.uniform(1.2, 1.8)), float(rng.uniform(1.6, 2.4))),
        early_shape=(float(rng.uniform(1.5, 2.2)), float(rng.uniform(1.8, 2.8))),
    )


def draw_beats(rng: np.random.Generator, pump: Pump, *, duration_s: float) -> tuple[Beat, ...]:
    """Draw the beats that cover 0 to ``duration_s``; the first begins before 0, at random."""
    start, beats = -float(rng.uniform(0, 1)) * pump.rr_s, []
    edv = pump.edv_ml
    short_next = False
    while start < duration_s:
        length, short_next = _rr_s(rng, pump, short_before=short_next)
        beat = _beat(rng, pump, start_s=start, length_s=length, edv_ml=edv)
        beats.append(beat)
        start, edv = beat.next_s, beat.next_edv_ml
    return tuple(beats)


def _rr_s(rng: np.random.Generator, pump: Pump, *, short_before: bool) -> tuple[float, bool]:
    """Draw an RR interval, and whether it is a premature one, after which comes a pause."""
    if pump.rhythm == "fibrillation":
        return float(max(0.3, pump.rr_s * np.exp(rng.normal(0, 0.22)))), False
    length = pump.rr_s * float(1 + np.clip(rng.normal(0, 0.025), -0.08, 0.08))
    if short_before:
        return 1.35 * length, False
    early = pump.rhythm == "ectopic" and rng.random() < 0.3
    return (max(0.3, 0.65 * length), True) if early else (length, False)


def _beat(rng: np.random.Generator, pump: Pump, *, start_s: float, length_s: float, edv_ml: float) -> Beat:
    """Divide a beat; ejection time 413 - 1.7 bpm ms (Weissler et al., Circulation 37:149, 1968), bounded."""
    ejection = float(np.clip(0.413 - 0.0017 * 60 / pump.rr_s, 0.28 * length_s, 0.45 * length_s))
    contraction = min(pump.isovolumic_s[0], 0.1 * length_s)
    relaxation = min(pump.isovolumic_s[1], 0.14 * length_s)
    opened = start_s + contraction
    closed = opened + ejection
    filling = closed + relaxation
    room = start_s + length_s - filling
    early_end = filling + min(0.28, 0.62 * room)
    atrial = start_s + length_s - min(0.14, 0.3 * room)
    ef = float(np.clip(pump.ef + rng.normal(0, 0.008), *_EF_LIMITS))
    if pump.rhythm != "sinus":
        # A poorly filled ventricle ejects less: it empties to nearly the same volume (Starling).
        ef = float(np.clip(1 - (1 - ef) * (pump.edv_ml / edv_ml) ** 0.7, *_EF_LIMITS))
    esv = edv_ml * (1 - ef)
    full = pump.edv_ml * float(1 + np.clip(rng.normal(0, 0.012), -0.03, 0.03))
    if pump.rhythm != "sinus":
        usual = 0.5 * pump.rr_s
        full = esv + (full - esv) * float(np.clip(1.1 * (1 - np.exp(-1.9 * room / usual)), 0.4, 1.08))
    share = 1.0 if early_end >= atrial else pump.early_share
    return Beat(
        start_s,
        opened,
        closed,
        filling,
        early_end,
        atrial,
        start_s + length_s,
        edv_ml,
        esv,
        max(full, esv * 1.02),
        share,
    )


def volume_ml(beats: tuple[Beat, ...], pump: Pump, *, times_s: Array) -> Array:
    """Return the volume at each time: flat, ejection, flat, E wave, rest, A wave."""
    volume = np.full(times_s.shape, np.nan)
    for beat in beats:
        inside = (times_s >= beat.ed_s) & (times_s < beat.next_s)
        t = times_s[inside]
        out = betainc(*pump.ejection_shape, _part(t, beat.ejection_s, beat.es_s))
        early = betainc(*pump.early_shape, _part(t, beat.filling_s, beat.early_end_s))
        late = betainc(1.8, 1.8, _part(t, beat.atrial_s, beat.next_s))
        filled = beat.early_share * early + (1 - beat.early_share) * late
        stroke, back = beat.edv_ml - beat.esv_ml, beat.next_edv_ml - beat.esv_ml
        volume[inside] = beat.edv_ml - stroke * out + back * filled
    return volume


def valve_opening(beats: tuple[Beat, ...], *, times_s: Array) -> Array:
    """Return how far the mitral valve is open at each time, 0 closed to 1 in the E wave."""
    knots: list[tuple[float, float]] = []
    for beat in beats:
        rest = 0.3 if beat.early_end_s < beat.atrial_s else 0.7
        swing = min(0.04, 0.3 * (beat.early_end_s - beat.filling_s))
        atrial = [(beat.atrial_s, rest), (0.5 * (beat.atrial_s + beat.next_s), 0.75)]
        knots += [(beat.ed_s, 0.0), (beat.filling_s, 0.0), (beat.filling_s + swing, 1.0)]
        knots += [(beat.filling_s + 2 * swing, 0.95), (beat.early_end_s, rest)]
        knots += atrial if beat.early_share < 1 else [(0.5 * (beat.early_end_s + beat.next_s), rest)]
    knots.append((beats[-1].next_s, 0.0))
    at, value = np.array(knots).T
    return np.interp(times_s, at, value)


def shape_change(beats: tuple[Beat, ...], *, times_s: Array) -> Array:
    """Return the change of shape without one of volume: up in isovolumic contraction, down in relaxation."""
    change = np.zeros(times_s.shape)
    for beat in beats:
        for sign, low, high in ((1.0, beat.ed_s, beat.ejection_s), (-0.7, beat.es_s, beat.filling_s)):
            part = _part(times_s, low, high)
            change += sign * np.sin(np.pi * part) ** 2
    return change


def position_in_beat(beats: tuple[Beat, ...], *, times_s: Array) -> Array:
    """Return 0 at ED, 0.5 at ES, 1 at the next ED, linear in time between."""
    at = [t for beat in beats for t in (beat.ed_s, beat.es_s)] + [beats[-1].next_s]
    return np.interp(times_s, at, 0.5 * np.arange(len(at))) % 1.0


def _part(times_s: Array, low: float, high: float) -> Array:
    return np.clip((times_s - low) / max(high - low, 1e-6), 0, 1)
