"""Frame times of a multi-frame DICOM cine. Source: Cine Module, DICOM PS3.3 C.7.6.5."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_FPS, MIN_FPS = 20_000.0, 0.05
"""Rates outside are a unit mistaken, not a machine."""

_FRAME_TIME, _FRAME_TIME_VECTOR = 0x00181063, 0x00181065
_PLAYED = "RecommendedDisplayFrameRate"
_DISAGREE = 0.05


@dataclass(frozen=True, slots=True)
class Timing:
    """Frame times in seconds from the first frame, or None; the attribute used; what was odd."""

    times_s: tuple[float, ...] | None
    origin: str
    warnings: tuple[str, ...] = ()


def frame_times(dataset: Dataset, frames: int) -> Timing:
    """Return the frame times by FrameTimeVector, FrameTime, CineRate, RecommendedDisplayFrameRate.

    FrameIncrementPointer (0028,0009) is followed where it names one of the first two. An attribute
    that is zero, negative, of the wrong length or beyond any machine is passed over with a warning:
    a rate is never invented.
    """
    if frames < 2:
        return Timing(None, "single frame")
    pointer = [int(tag) for tag in _listed(dataset.get("FrameIncrementPointer")) if tag is not None]
    if pointer and not {_FRAME_TIME, _FRAME_TIME_VECTOR} & set(pointer):
        note = f"FrameIncrementPointer names {_tag(pointer[0])}, so its frames are not steps in time"
        return Timing(None, "none", (note,))
    warnings: list[str] = []
    found: tuple[str, tuple[float, ...]] | None = None
    for name in _order(pointer):
        times = _times(dataset, name, frames, warnings)
        if times is None:
            continue
        if found is None:
            found = (name, times)
        elif abs(times[-1] / found[1][-1] - 1) > _DISAGREE:
            warnings.append(
                f"{found[0]} gives {(frames - 1) / found[1][-1]:.4g} frames/s and {name} "
                f"{(frames - 1) / times[-1]:.4g}; {found[0]} is used"
            )
    if found is None:
        return Timing(None, "none", (*warnings, "frame rate unknown: no usable frame time attribute"))
    if found[0] == _PLAYED:
        warnings.append(f"frame times come from {_PLAYED}: how to play it, perhaps not how it was taken")
    return Timing(found[1], found[0], tuple(warnings))


def _order(pointer: list[int]) -> tuple[str, ...]:
    first = ("FrameTime", "FrameTimeVector") if _FRAME_TIME in pointer else ("FrameTimeVector", "FrameTime")
    return (*first, "CineRate", _PLAYED)


def _times(dataset: Dataset, name: str, frames: int, warnings: list[str]) -> tuple[float, ...] | None:
    values = [real(v) for v in _listed(dataset.get(name))]
    if not values:
        return None
    if name == "FrameTimeVector":
        steps_s = _vector_steps(values, frames)
    else:
        value = values[0]
        step_s = value / 1000 if name == "FrameTime" else (1 / value if value else math.nan)
        steps_s = [step_s] * (frames - 1)
    if steps_s is None or not all(1 / MAX_FPS <= step <= 1 / MIN_FPS for step in steps_s):
        shown = ", ".join(f"{v:g}" for v in values[:4])
        warnings.append(f"{name} is not usable for {frames} frames ({len(values)} value(s): {shown})")
        return None
    return tuple(accumulate(steps_s, initial=0.0))


def _vector_steps(values: list[float], frames: int) -> list[float] | None:
    # The first value is the time before frame 1, always 0; some writers leave it out.
    if len(values) == frames:
        return [value / 1000 for value in values[1:]]
    if len(values) == frames - 1 and values[0] != 0:
        return [value / 1000 for value in values]
    return None


def _listed(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return [value]
    return list(value)


def real(value: Any) -> float:
    """Return an attribute as a float; NaN where it is no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _tag(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
