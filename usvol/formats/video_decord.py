"""Decode a clip with decord, reading on from frame 0 only: its random access may be silently wrong."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import numpy as np

from usvol.formats.video_clip import Clip

if TYPE_CHECKING:
    from decord import VideoReader

CHUNK_BYTES = 64 << 20
ONE_THREAD_BELOW_PIXELS = 512 * 512
# MPEG program streams: decord may begin some frames late and repeat the last ones, without a word.
CONTAINERS = frozenset({"mov", "avi", "matroska"})
# WMV and its kin: decord drops and repeats frames; GIF: it cannot open them.
CODECS = frozenset({"h264", "hevc", "mpeg4", "mjpeg", "ffv1", "vp8", "vp9"})
EIGHT_BIT_COLOUR = frozenset(
    {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "rgb24", "bgr24", "bgr0"}
)


class DecordMismatchError(Exception):
    """Decord is missing, errs, or sees other frames than the container lists; PyAV must decide."""


def can_decode(clip: Clip) -> bool:
    """Tell whether decord reads this clip exactly: a plain stream, whole, unrotated, with no edit list."""
    return (
        clip.container in CONTAINERS
        and clip.codec in CODECS
        and clip.pixel_format in EIGHT_BIT_COLOUR
        and not (clip.edited or clip.rotation_deg or clip.is_cut or clip.damaged_packets)
        and clip.stated_frames in (None, clip.frames)
        and importlib.util.find_spec("decord") is not None
    )


def decode(clip: Clip, wanted: tuple[int, ...], *, size: tuple[int, int]) -> np.ndarray:
    """Return the frames ``wanted`` (increasing numbers) as uint8 ``t c y x`` of ``size`` (height, width).

    Raises:
        DecordMismatchError: decord cannot be loaded, errs or disagrees on the number of frames.
    """
    try:
        import decord
    except (ImportError, OSError, RuntimeError) as error:
        raise DecordMismatchError(str(error)) from error
    decord.logging.set_level(decord.logging.QUIET)
    height, width = size
    scaled = {} if size == (clip.height, clip.width) else {"width": width, "height": height}
    threads = 1 if clip.height * clip.width < ONE_THREAD_BELOW_PIXELS else 0
    try:
        reader = decord.VideoReader(str(clip.path.absolute()), num_threads=threads, **scaled)
        if len(reader) != clip.frames:
            raise DecordMismatchError(f"decord counts {len(reader)} frames, the container {clip.frames}")
        return _read_on(reader, wanted, np.empty((len(wanted), 3, height, width), np.uint8))
    except (decord.DECORDError, RuntimeError, IndexError, StopIteration) as error:
        raise DecordMismatchError(str(error)) from error


def _read_on(reader: VideoReader, wanted: tuple[int, ...], out: np.ndarray) -> np.ndarray:
    # Every frame up to the last one wanted is fetched: skip_frames() may land elsewhere.
    longest = max(1, CHUNK_BYTES // max(1, out[:1].nbytes))
    last = wanted[-1] + 1
    for start in range(0, last, longest):
        stop = min(start + longest, last)
        block = reader.get_batch(list(range(start, stop))).asnumpy().transpose(0, 3, 1, 2)
        first, end = np.searchsorted(wanted, (start, stop))
        out[first:end] = block[np.asarray(wanted[first:end], int) - start]
    return out
