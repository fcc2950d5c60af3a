"""Turn a ``Selection`` into frame numbers and a frame size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from usvol.scan import Selection

NATIVE_RATE_TOLERANCE = 1.02


def select_frames(
    frames: int, times_s: Sequence[float] | None, *, selection: Selection | None
) -> tuple[int, ...] | None:
    """Return the increasing file frame numbers that ``selection`` asks for, or None for all of them.

    ``selection.fps`` keeps the frame nearest to each tick of that rate, by the real ``times_s`` (seconds), or
    by ``selection.stated_fps``; it changes nothing where these are unknown or the cine is already that slow.

    Example:
        >>> select_frames(100, None, selection=Selection(max_frames=3))
        (0, 50, 99)
    """
    if selection is None:
        return None
    kept = np.arange(frames)
    if selection.stated_fps is not None:
        times_s = (kept / selection.stated_fps).tolist()
    if selection.fps is not None and times_s is not None and frames > 1:
        kept = _thin(np.asarray(times_s, float), selection.fps)
    if selection.max_frames is not None and len(kept) > selection.max_frames:
        kept = kept[np.linspace(0, len(kept) - 1, selection.max_frames).round().astype(int)]
    return None if len(kept) == frames else tuple(int(i) for i in kept)


def scaled_size(height: int, width: int, *, max_side_px: int | None) -> tuple[int, int]:
    """Return (height, width) scaled down, never up, so that the longer side is ``max_side_px``."""
    longest = max(height, width)
    if max_side_px is None or longest <= max_side_px:
        return height, width
    scale = max_side_px / longest
    return max(1, round(height * scale)), max(1, round(width * scale))


def _thin(times: np.ndarray, fps: float) -> np.ndarray:
    span = times[-1] - times[0]
    if span <= 0 or (len(times) - 1) / span <= fps * NATIVE_RATE_TOLERANCE:
        return np.arange(len(times))
    ticks = times[0] + np.arange(int(span * fps + 1e-6) + 1) / fps
    after = np.clip(np.searchsorted(times, ticks), 1, len(times) - 1)
    nearest = np.where(ticks - times[after - 1] <= times[after] - ticks, after - 1, after)
    return np.unique(nearest)
