"""Decode any frames of a long clip, exactly: by time stamp, from the key frame before them.

A frame is known by its time stamp alone, never by counting, so that a seek that lands elsewhere is noticed.
Clips in which stamps or seeking cannot be trusted are not opened: those are read whole.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from usvol.errors import CorruptFileError
from usvol.formats.video_clip import Clip, inspect_clip, open_container
from usvol.formats.video_pyav import frame_samples

if TYPE_CHECKING:
    from av import VideoFrame

_STAMPED = frozenset({"mov", "matroska"})
# AVI stores no presentation times: there, only codecs whose every frame stands alone can be found by number.
_INTRA_ONLY = frozenset({"mjpeg", "ffv1", "rawvideo", "png", "huffyuv"})
_CODECS = frozenset({"h264", "hevc", "mpeg4", "vp8", "vp9", "av1"}) | _INTRA_ONLY


# From some key frames of open groups a decoder cannot go on; from those before them it can.
_ATTEMPTS = 3


class SeekableClip:
    """An open clip that gives any of its frames; safe to share between threads.

    Attributes:
        clip: what its container says.
    """

    def __init__(self, clip: Clip, ticks: list[int], keys: list[int]) -> None:
        self.clip = clip
        self._ticks, self._keys = ticks, keys
        self._lock = threading.Lock()
        self._open = open_container(clip.path)
        self._container = self._open.__enter__()
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.options = {"err_detect": "crccheck+explode"}
        self._frames: Iterator[VideoFrame] = iter(())
        self._next = -1  # number of the frame that self._frames gives next, -1 for unknown

    def read(self, start: int, stop: int) -> np.ndarray:
        """Decode the frames ``start`` to ``stop - 1`` as ``t c y x``.

        Raises:
            CorruptFileError: naming the first frame that cannot be decoded.
        """
        clip = self.clip
        out = np.empty((stop - start, clip.channels, clip.height, clip.width), clip.dtype)
        with self._lock:
            for earlier in range(_ATTEMPTS):
                try:
                    self._fill(out, start, earlier)
                except CorruptFileError:
                    self._next = -1
                    if earlier == _ATTEMPTS - 1:
                        raise
                else:
                    break
        return out

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._frames, self._next = iter(()), -1
            self._open.__exit__(None, None, None)

    def _fill(self, out: np.ndarray, start: int, earlier: int) -> None:
        """Decode the frames from ``start`` on into ``out``, from so many key frames earlier than need be."""
        clip = self.clip
        for number, frame in enumerate(self._from(start, earlier)):
            out[number] = frame_samples(frame, clip, size=(clip.height, clip.width))
            self._next = start + number + 1
            if number + 1 == len(out):
                return
        raise _damaged(clip.path, self._next, "the clip ends before it")

    def _from(self, start: int, earlier: int) -> Iterator[VideoFrame]:
        """Yield the frames from number ``start`` on; each is checked against its time stamp."""
        import av.error

        number = start
        try:
            if self._next != start:
                self._seek(start, earlier)
            self._next = start
            for frame in self._frames:
                tick = frame.dts if frame.pts is None else frame.pts
                if frame.is_corrupt or tick != self._ticks[number]:
                    raise _damaged(self.clip.path, number, "its samples are missing or contradictory")
                yield frame
                number += 1
        except av.error.FFmpegError as error:
            raise _damaged(self.clip.path, number, str(error.strerror or error)) from error

    def _seek(self, start: int, earlier: int) -> None:
        """Make ``self._frames`` begin with frame ``start``, from the nearest key frame that leads there."""
        wanted = self._ticks[start]
        keys = self._keys[: bisect.bisect_right(self._keys, wanted)]
        for key in reversed(keys[: max(1, len(keys) - earlier)]):
            self._container.seek(key, stream=self._stream, backward=True, any_frame=False)
            frames = self._container.decode(self._stream)
            for frame in frames:
                tick = frame.dts if frame.pts is None else frame.pts
                if tick == wanted:
                    self._frames = _chained(frame, frames)
                    return
                if tick is None or tick > wanted:
                    break  # it landed too late: try the key frame before
        raise _damaged(self.clip.path, start, "it cannot be found by its time stamp")


def open_seekable(path: Path) -> SeekableClip | None:
    """Open a clip for exact seeking; None where stamps or seeking cannot be trusted.

    Raises:
        ReadError: as ``video.probe``.
    """
    clip = inspect_clip(path)
    trusted = clip.container in _STAMPED or (clip.container == "avi" and clip.codec in _INTRA_ONLY)
    whole = not (clip.edited or clip.is_cut or clip.damaged_packets or clip.integrity.broken_at is not None)
    if not (trusted and whole and clip.codec in _CODECS and clip.stated_frames in (None, clip.frames)):
        return None
    ticks, keys = _index(path)
    if len(set(ticks)) != clip.frames or not keys or min(ticks) != min(keys):
        return None
    return SeekableClip(clip, sorted(ticks), sorted(keys))


def _index(path: Path) -> tuple[list[int], list[int]]:
    """Return the time stamps of all frames, and those of the key frames at which decoding can begin."""
    ticks, keys = [], []
    with open_container(path) as container:
        for packet in container.demux(container.streams.video[0]):
            tick = packet.dts if packet.pts is None else packet.pts
            if not packet.size or packet.is_discard:
                continue
            if tick is None:
                return [], []
            if packet.is_keyframe:
                keys.append(tick)
            elif keys and tick < keys[-1] and len(keys) > 1:
                keys.pop()  # an open group: frames shown before this key frame need what is before it
            ticks.append(tick)
    return ticks, keys


def _chained(first: VideoFrame, rest: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    yield first
    yield from rest


def _damaged(path: Path, number: int, cause: str) -> CorruptFileError:
    way = "copy it again, or read what can be decoded with usvol.load(path, allow_truncated=True)"
    return CorruptFileError(path, f"frame {number} cannot be decoded ({cause})", way)
