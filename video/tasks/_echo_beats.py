"""Beats from the ED and ES of a curve, and what of the cardiac cycle they measure.

Times are those of the file. Where it has none, beats are still counted and everything in seconds is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from usvol.result import Curve, Event, Measurement
from usvol.scan import Scan

EVENTS = ("ED", "ES")
RR = "rr_interval"
LESS_THAN_ONE_BEAT = "less than one beat is shown"
NO_EVENTS = "no ED and no ES found"
NO_TIMES = "the file does not say when its frames were taken"

_SMOOTHED_S = 0.025  # by which sizes are smoothed before their turns are looked for
_APART_S = 0.2  # at least, between two turns of one kind: 180 beats per minute and more
_SWING = 0.4  # of the range between the 5th and 95th percentile that a turn must stand out by
_LEAST_SWING = 0.06  # of the largest size: less is no beating
_PACE_S = 0.17  # what a systole lasts once every heart is brought to one pace: that of a fast heart
_STEADY = 0.15  # of the fall, in its first or last fifth, beyond which a clip begins or ends amid it


@dataclass(frozen=True, slots=True)
class Systole:
    """One ED and the ES after it, as positions on their curve; see ``systoles`` for the exception."""

    ed: int
    es: int

    @property
    def is_whole(self) -> bool:
        """Whether the ED comes first, so that the ejection between them is seen."""
        return self.ed < self.es


def ordered(events: Sequence[Event]) -> list[Event]:
    """Return events in time, as a hand may have moved one past another."""
    return sorted(events, key=lambda event: event.index)


def systoles(events: Sequence[Event]) -> tuple[Systole, ...]:
    """Pair every ED with the ES that follows it next; in a clip of no such pair, every ES with its next ED.

    A clip of one beat may begin in systole: it then shows how the ventricle fills from ES to ED.

    Example:
        >>> systoles([Event("ES", 2, None), Event("ED", 9, None), Event("ES", 14, None)])
        (Systole(ed=9, es=14),)
        >>> systoles([Event("ES", 2, None), Event("ED", 9, None)])
        (Systole(ed=9, es=2),)
    """
    pairs = [(a, b) for a, b in pairwise(ordered(events)) if a.name != b.name and a.index < b.index]
    ejecting = tuple(Systole(a.index, b.index) for a, b in pairs if a.name == "ED")
    return ejecting or tuple(Systole(b.index, a.index) for a, b in pairs)


def whole_beats(events: Sequence[Event]) -> int:
    """Count the beats seen from an event to its next like: none in a clip of less than one beat."""
    moments = {
        (event.name, event.index) for event in events
    }  # one dragged onto another of its name counts once
    return max(0, *(sum(name == kind for name, _ in moments) - 1 for kind in EVENTS))


def size_events(sizes: Sequence[float], times_s: Sequence[float] | None) -> list[tuple[str, int]]:
    """Find ED and ES where the size of a ventricle turns: (name, frame), alternating in time.

    The ends of a clip count as a turn only for a systole: one that begins with the clip, or ends with it, and
    only if the size stands still there. Otherwise the clip begins or ends amid a fall.

    Example:
        >>> sizes = 80 + 20 * np.cos(np.arange(40) / 20 * 2 * np.pi)
        >>> size_events(sizes.tolist(), tuple(np.arange(40) / 20))
        [('ED', 0), ('ES', 10), ('ED', 20), ('ES', 30)]
    """
    curve = np.asarray(sizes, float)
    if len(curve) < 4 or not curve.max() > 0:
        return []
    step_s = None if times_s is None else (times_s[-1] - times_s[0]) / (len(times_s) - 1)
    smooth = gaussian_filter1d(curve, max(0.7, _SMOOTHED_S / step_s) if step_s else 1.0, mode="nearest")
    swing = float(np.ptp(np.percentile(smooth, [5, 95])))
    if swing < _LEAST_SWING * float(smooth.max()):
        return []
    apart = max(1, round(_APART_S / step_s)) if step_s else 1
    found = [
        (name, int(at))
        for name, sign in (("ED", 1.0), ("ES", -1.0))
        for at in _turns(sign * smooth, prominence=_SWING * swing, apart=apart)
    ]
    return _at_clip_ends(_alternating(sorted(found, key=lambda turn: turn[1]), smooth), smooth)


def at_one_pace(
    turns: Sequence[tuple[str, int]], times_s: Sequence[float] | None, *, count: int
) -> tuple[float, ...] | None:
    """Return frame times in which the heart's systole lasts 0.17 s; those given where no whole one is seen.

    EF needs no clock: smoothed by a share of the heart's own systole it is the same however fast the heart
    beats, and whatever the file says of its frame times, even nothing. At the pace of a fast heart the
    smoothing keeps single frames from deciding (chosen of 0.32 to 0.14 s on simulated validation clips).

    Example:
        >>> at_one_pace([("ED", 0), ("ES", 2)], (0.0, 0.2, 0.4), count=3)
        (0.0, 0.085, 0.17)
    """
    clock = tuple(map(float, range(count))) if times_s is None else tuple(times_s)
    ejections = [clock[beat.es] - clock[beat.ed] for beat in systoles(at_curve(turns, None)) if beat.is_whole]
    if not ejections or not (lasting := float(np.median(ejections))) > 0:
        return None if times_s is None else clock
    return tuple(t * _PACE_S / lasting for t in clock)


def own_times(sizes: Sequence[float], times_s: Sequence[float] | None) -> tuple[float, ...] | None:
    """Return frame times at the heart's own pace (``at_one_pace``), whatever the file says of them.

    Times far too short leave no room for beats. The frames alone decide where they show two systoles, as no
    part of a single beat does, and more than twice as many as there are with the file's times.
    """
    paced = [
        at_one_pace(size_events(sizes, clock), clock, count=len(sizes))
        for clock in (times_s, *((None,) if times_s is not None else ()))
    ]
    shown = [_whole_systoles(size_events(sizes, clock)) for clock in paced]
    return paced[-1] if shown[-1] > max(1, 2 * shown[0]) else paced[0]


def _whole_systoles(turns: Sequence[tuple[str, int]]) -> int:
    return sum(beat.is_whole for beat in systoles(at_curve(turns, None)))


def _turns(values: NDArray[np.float64], *, prominence: float, apart: int) -> NDArray[np.intp]:
    """Return the maxima, those at the ends included."""
    padded = np.pad(values, 1, constant_values=values.min() - 1)
    return find_peaks(padded, prominence=prominence, distance=apart)[0] - 1


def _alternating(turns: list[tuple[str, int]], smooth: NDArray[np.float64]) -> list[tuple[str, int]]:
    """Of neighbours of one name keep the more extreme."""
    kept: list[tuple[str, int]] = []
    for name, at in turns:
        if kept and kept[-1][0] == name:
            further = smooth[at] > smooth[kept[-1][1]]
            kept[-1] = (name, at) if further == (name == "ED") else kept[-1]
        else:
            kept.append((name, at))
    return kept


def _at_clip_ends(turns: list[tuple[str, int]], smooth: NDArray[np.float64]) -> list[tuple[str, int]]:
    """Drop turns on the first and last frame, unless a systole begins or ends there."""
    last = len(smooth) - 1
    if turns and turns[0][1] == 0:
        begins = len(turns) > 1 and turns[0][0] == "ED" and _steady(smooth, 0, turns[1][1])
        turns = turns if begins else turns[1:]
    if turns and turns[-1][1] == last:
        ends = len(turns) > 1 and turns[-1][0] == "ES" and _steady(smooth, last, turns[-2][1])
        turns = turns if ends else turns[:-1]
    return turns


def _steady(smooth: NDArray[np.float64], end: int, turn: int) -> bool:
    """Tell whether little of the change from an end of the clip to a turn happens in the first fifth."""
    near = np.interp(end + 0.2 * (turn - end), np.arange(len(smooth)), smooth)
    return bool(abs(near - smooth[end]) <= _STEADY * abs(smooth[turn] - smooth[end]))


def at_curve(turns: Sequence[tuple[str, int]], times_s: Sequence[float] | None) -> tuple[Event, ...]:
    """Return (name, frame) as events of a curve with one point per frame."""
    return tuple(Event(name, at, None if times_s is None else times_s[at]) for name, at in turns)


def file_frames(scan: Scan) -> tuple[int, ...]:
    """Return the number in the file of every frame of a scan."""
    return scan.source.frame_indices or tuple(range(len(scan.data)))


def rr_curve(curve: Curve) -> Curve | None:
    """Return every RR interval in ms where it begins; None without frame times or two like events."""
    beginnings = _like(curve.events)
    if curve.times_s is None or len(beginnings) < 2:
        return None
    times_s = [curve.times_s[event.index] for event in beginnings]
    starts = [event.index for event in beginnings[:-1]]
    return Curve(
        RR,
        tuple(round(1000 * (b - a), 3) for a, b in pairwise(times_s)),
        "ms",
        tuple(times_s[:-1]),
        tuple(curve.frame_indices[at] for at in starts),
    )


def _like(events: Sequence[Event]) -> list[Event]:
    """Return the EDs in time, or the ESs where there are more of these; two on one frame count once."""
    by_name = [
        list({event.index: event for event in ordered(events) if event.name == name}.values())
        for name in EVENTS
    ]
    return max(by_name, key=len)


def cycle_measurements(curve: Curve) -> tuple[Measurement, ...]:
    """Return beats, heart rate, RR and the durations of systole and diastole, each with its range."""
    count = Measurement("beats", whole_beats(curve.events), "1", note="whole ones, from ED to ED or ES to ES")
    rr = rr_curve(curve)
    missing = _missing(curve)
    spread = None if rr is None or len(rr.values) < 2 else float(np.std(rr.values, ddof=1))
    return (
        count,
        _heart_rate(rr, missing=missing),
        _over_beats(RR, () if rr is None else rr.values, missing=missing),
        Measurement("rr_deviation", spread, "ms", note=None if spread is not None else _too_few(missing)),
        _over_beats("systolic_duration", _durations_ms(curve, "ED", "ES"), missing=_unseen(curve, "systole")),
        _over_beats(
            "diastolic_duration", _durations_ms(curve, "ES", "ED"), missing=_unseen(curve, "diastole")
        ),
    )


def _missing(curve: Curve) -> str:
    if not curve.events:
        return NO_EVENTS
    return NO_TIMES if curve.times_s is None else LESS_THAN_ONE_BEAT


def _heart_rate(rr: Curve | None, *, missing: str) -> Measurement:
    if rr is None:
        return Measurement("heart_rate", None, "1/min", note=missing)
    low, beats, high = (60_000 / interval for interval in (max(rr.values), median(rr.values), min(rr.values)))
    return Measurement(
        "heart_rate", beats, "1/min", low=low, high=high, note="of the median RR; range over beats"
    )


def _too_few(missing: str) -> str:
    return missing if missing != LESS_THAN_ONE_BEAT else "fewer than two whole beats are shown"


def _unseen(curve: Curve, part: str) -> str:
    missing = _missing(curve)
    return missing if missing != LESS_THAN_ONE_BEAT else f"no whole {part} is shown"


def _durations_ms(curve: Curve, first: str, last: str) -> tuple[float, ...]:
    times_s = curve.times_s
    if times_s is None:
        return ()
    return tuple(
        1000 * (times_s[after.index] - times_s[before.index])
        for before, after in pairwise(ordered(curve.events))
        if (before.name, after.name) == (first, last) and before.index < after.index
    )


def _over_beats(name: str, values_ms: Sequence[float], *, missing: str) -> Measurement:
    if not values_ms:
        return Measurement(name, None, "ms", note=missing)
    note = "mean over beats; range" if len(values_ms) > 1 else "one beat"
    return Measurement(
        name, float(np.mean(values_ms)), "ms", low=min(values_ms), high=max(values_ms), note=note
    )
