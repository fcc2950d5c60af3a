"""Decode a clip with PyAV: any codec, edit lists, rotation; damage is told by frame, not concealed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from usvol.formats.video_clip import Clip, open_container, times_from_ticks

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

WITH_ALPHA = frozenset({"bgra", "rgba", "argb", "abgr", "pal8"})


@dataclass(frozen=True, slots=True)
class Damage:
    """The first damaged frame of a clip, and what the decoder says about it."""

    frame: int
    cause: str


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """Frames of a clip.

    Attributes:
        frames: ``t c y x``, the frames asked for that could be decoded.
        decodable: how many displayed frames were decoded, up to ``damage`` if there is any.
        times_s: of all these frames, or None.
    """

    frames: np.ndarray
    decodable: int
    times_s: tuple[float, ...] | None
    damage: Damage | None = None


@dataclass(slots=True)
class _Progress:
    ticks: list[int | None] = field(default_factory=list)
    damage: Damage | None = None


def decode(clip: Clip, wanted: tuple[int, ...], *, size: tuple[int, int], conceal: bool = False) -> Decoded:
    """Decode the frames numbered ``wanted`` (increasing), scaled to ``size`` (height, width).

    Every frame is decoded and checked, also with nothing ``wanted``. ``conceal`` lets the decoder patch
    damaged frames, as players do, and stops only where it cannot go on.
    """
    out = np.empty((len(wanted), clip.channels, *size), clip.dtype)
    filled, progress = 0, _Progress()
    with open_container(clip.path) as container:
        time_base = container.streams.video[0].time_base
        for frame in _frames(container, progress, conceal=conceal):
            if (frame.height, frame.width) != _stored_size(clip):
                cause = f"its size changes to {frame.width}x{frame.height}"
                progress.damage = Damage(len(progress.ticks), cause)
                break
            if filled < len(wanted) and len(progress.ticks) == wanted[filled]:
                out[filled] = frame_samples(frame, clip, size=size)
                filled += 1
            progress.ticks.append(frame.dts if frame.pts is None else frame.pts)
    times = times_from_ticks(progress.ticks, time_base) if clip.times_s is not None else None
    return Decoded(out[:filled], len(progress.ticks), times, progress.damage)


def _frames(container: InputContainer, progress: _Progress, *, conceal: bool) -> Iterator[VideoFrame]:
    """Yield displayed frames in order until the end or the first damage, which is noted."""
    import av.error

    stream = container.streams.video[0]
    # Only a single thread passes on that a frame was patched up (libavcodec, error_resilience.c).
    stream.codec_context.thread_count = 1
    if not conceal:
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
    seen: list[int | None] = []
    pending: int | None = None
    try:
        for packet in container.demux(stream):
            if not packet.is_discard and packet.size:
                pending = packet.dts if packet.pts is None else packet.pts
                seen.append(pending)
            for frame in packet.decode():
                if frame.is_corrupt and not conceal:
                    progress.damage = Damage(len(progress.ticks), "samples are missing or contradictory")
                    return
                yield frame
    except av.error.FFmpegError as error:
        damaged = sum(t < pending for t in seen if t is not None) if pending is not None else 0
        progress.damage = Damage(max(damaged, len(progress.ticks)), error.strerror or type(error).__name__)


def _stored_size(clip: Clip) -> tuple[int, int]:
    return (clip.width, clip.height) if clip.rotation_deg % 180 else (clip.height, clip.width)


def frame_samples(frame: VideoFrame, clip: Clip, *, size: tuple[int, int]) -> np.ndarray:
    """Return one frame as ``c y x``."""
    height, width = size[::-1] if clip.rotation_deg % 180 else size
    name = "rgba" if frame.format.name in WITH_ALPHA else "rgb24"
    name = clip.pixel_format if clip.is_grey else name
    pixels = frame.to_ndarray(format=name, width=width, height=height, interpolation="BILINEAR")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[-1] == 4:
        # Transparent pixels of a GIF carry an arbitrary colour: show them on black, like a scanner.
        pixels = pixels[..., :3] * (pixels[..., 3:] > 127)
    return np.rot90(pixels, clip.rotation_deg // 90).transpose(2, 0, 1)
