"""What a video container says about its clip, learned without decoding it (PyAV, demuxing only)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from usvol.errors import (
    CorruptFileError,
    EmptyFileError,
    ReadError,
    TooLargeError,
    TruncatedFileError,
    UnsupportedFormatError,
)
from usvol.formats.video_integrity import Integrity, check_integrity

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

DEMUX_ALWAYS_BELOW_BYTES = 200_000_000
MAX_FRAME_PIXELS = 100_000_000
RAW_STREAMS = frozenset({"h264", "hevc", "m4v", "mpegvideo", "mjpeg", "obu"})
CONTAINERS = frozenset({"mov", "avi", "mpeg", "mpegts", "matroska", "gif", "asf"}) | RAW_STREAMS
# Only media containers: a playlist under a false name must not make ffmpeg open other files or addresses.
OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(
        ("mov,mp4,m4a,3gp,3g2,mj2,avi,mpeg,mpegts,matroska,webm,gif,asf", *sorted(RAW_STREAMS))
    ),
}
# GIF delays of 0 mean "unknown"; ffmpeg would otherwise put 0.1 s in their place.
GIF_OPTIONS = {"min_delay": "0", "default_delay": "0"}


@dataclass(frozen=True, slots=True)
class Clip:
    """The first video stream of a file.

    Attributes:
        container: short name, one of ``CONTAINERS``.
        height, width: of a displayed frame, rotation applied.
        rotation_deg: counter-clockwise rotation that displays the stored frame upright.
        pixel_aspect: width of a pixel over its height, or None when the file does not say.
        frames: displayed frames that the file holds.
        stated_frames, stated_s: number of frames and duration (s) that the header promises, or None.
        times_s: one increasing time per frame from 0, or None when the container has no reliable ones.
        edited: an edit list hides frames, so that a decoder that ignores it would show too many.
        damaged_packets: packets that the demuxer marks as incomplete.
    """

    path: Path
    container: str
    codec: str
    pixel_format: str
    height: int
    width: int
    rotation_deg: int
    pixel_aspect: Fraction | None
    frames: int
    stated_frames: int | None
    stated_s: float | None
    times_s: tuple[float, ...] | None
    edited: bool
    damaged_packets: int
    integrity: Integrity

    @property
    def is_grey(self) -> bool:
        """Whether the samples are stored as one grey channel."""
        return self.pixel_format.startswith("gray")

    @property
    def dtype(self) -> str:
        """Return the numpy type that frames are read as."""
        return "uint16" if self.is_grey and self.pixel_format not in {"gray", "gray8"} else "uint8"

    @property
    def channels(self) -> int:
        """Return the samples per pixel that frames are read as."""
        return 1 if self.is_grey else 3

    @property
    def is_cut(self) -> bool:
        """Whether the container declares more bytes than the file has."""
        return bool(self.integrity.missing_bytes)


@contextlib.contextmanager
def open_container(path: Path) -> Iterator[InputContainer]:
    """Open a video quietly, turning PyAV's errors into ``ReadError`` ones that name the file."""
    import av
    import av.error

    options = dict(OPEN_OPTIONS)
    if path.suffix.lower() == ".gif" or _starts_with(path, b"GIF8"):
        options |= GIF_OPTIONS
    try:
        container = av.open(str(path.absolute()), container_options=options, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        raise _why_unopenable(path, error) from error
    with container:
        yield container


def inspect_clip(path: Path, *, fully: bool = True) -> Clip:
    """Return what the container of ``path`` says, reading packets but decoding at most one frame.

    Not ``fully``, the packets of a file beyond 200 MB whose header states the number of frames are left
    unread, and the frame times then unknown.

    Raises:
        EmptyFileError: no bytes, no video stream or no frame.
        TruncatedFileError: the file was cut before the table that decoding needs.
        CorruptFileError: not a video, or a header that contradicts itself.
        TooLargeError: a frame of more than 100 megapixels.
    """
    if path.stat().st_size == 0:
        raise EmptyFileError(path, "it has no bytes", "copy or export it again")
    with open_container(path) as container:
        name = _container_name(container.format.name)
        if not container.streams.video:
            raise EmptyFileError(path, "it has no video stream", "export the clip with its images")
        stream = container.streams.video[0]
        height, width = _frame_size(path, stream)
        integrity = check_integrity(path, name)
        trust_times = integrity.rate_stated and name not in RAW_STREAMS
        if stream.frames and not fully and path.stat().st_size > DEMUX_ALWAYS_BELOW_BYTES:
            timing = _Timing(stream.frames, 0.0, None, 0, 0)
        else:
            timing = _scan_packets(path, container, trust_times=trust_times)
        context = stream.codec_context
        codec, pixel_format = context.name, context.pix_fmt or "unknown"
        pixel_aspect = stream.sample_aspect_ratio or None
        # Elsewhere ffmpeg counts the frames or estimates the duration from what is there.
        stated_frames = stream.frames or None if name in {"mov", "avi"} else None
        alone = name in {"matroska", "asf"} and len(container.streams) == 1
        stated_s = container.duration / 1e6 - timing.start_s if alone and container.duration else None
    rotation = _rotation_deg(path) if name in {"mov", "matroska"} else 0
    if rotation % 180:
        height, width = width, height
    return Clip(
        path=path,
        container=name,
        codec=codec,
        pixel_format=pixel_format,
        height=height,
        width=width,
        rotation_deg=rotation,
        pixel_aspect=pixel_aspect,
        frames=timing.frames,
        stated_frames=stated_frames,
        stated_s=stated_s,
        times_s=timing.times_s,
        edited=timing.hidden > 0,
        damaged_packets=timing.damaged,
        integrity=integrity,
    )


@dataclass(frozen=True, slots=True)
class _Timing:
    frames: int
    start_s: float
    times_s: tuple[float, ...] | None
    hidden: int
    damaged: int


def _scan_packets(path: Path, container: InputContainer, *, trust_times: bool) -> _Timing:
    import av.error

    stream = container.streams.video[0]
    ticks: list[int | None] = []
    hidden = damaged = 0
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if packet.is_discard:
                hidden += 1
                continue
            damaged += packet.is_corrupt
            ticks.append(packet.dts if packet.pts is None else packet.pts)
    except av.error.FFmpegError:
        # The demuxer stops at damage; how much is lost shows when the frames are decoded.
        damaged += 1
    if not ticks:
        raise _no_frames(path, hidden, damaged)
    times = times_from_ticks(ticks, stream.time_base) if trust_times else None
    start_s = float(min((t for t in ticks if t is not None), default=0) * (stream.time_base or 0))
    return _Timing(len(ticks), start_s, times, hidden, damaged)


def times_from_ticks(ticks: list[int | None], time_base: Fraction | None) -> tuple[float, ...] | None:
    """Turn time stamps (in units of ``time_base`` seconds) into sorted times from 0; None if unusable."""
    known = sorted(t for t in ticks if t is not None)
    if len(known) != len(ticks) or not known or not time_base:
        return None
    if len(set(known)) != len(known):
        return None
    return tuple(float((t - known[0]) * time_base) for t in known)


def _frame_size(path: Path, stream: VideoStream) -> tuple[int, int]:
    if stream.codec_context is None:
        cause = "its video codec is not known here, or its header is damaged"
        raise UnsupportedFormatError(path, cause, "export it as H.264 mp4 or MJPEG avi")
    height, width = stream.codec_context.height, stream.codec_context.width
    if height < 1 or width < 1:
        raise EmptyFileError(path, "its header states no image size", "export the clip again")
    if height * width > MAX_FRAME_PIXELS:
        raise TooLargeError(
            path,
            f"its header states frames of {width}x{height} pixels, more than {MAX_FRAME_PIXELS:,}",
            "check the file, it is probably damaged, or export smaller frames",
        )
    return height, width


def _rotation_deg(path: Path) -> int:
    import av.error

    with open_container(path) as container:
        try:
            frame = next(container.decode(video=0), None)
        except av.error.FFmpegError:
            return 0
        return round((frame.rotation if frame else 0) / 90) * 90 % 360


def _container_name(format_names: str) -> str:
    return format_names.partition(",")[0]


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic


def _no_frames(path: Path, hidden: int, damaged: int) -> ReadError:
    if damaged:
        return CorruptFileError(path, "none of its frames can be read", "copy or export it again")
    if hidden:
        return EmptyFileError(path, f"its edit list hides all {hidden} frames", "export the clip again")
    return EmptyFileError(path, "it holds no frames", "export the clip again")


def _why_unopenable(path: Path, error: Exception) -> ReadError:
    if _starts_with(path, b"RIFF"):
        integrity = check_integrity(path, "avi")
    elif _looks_like_mov(path):
        integrity = check_integrity(path, "mov")
        if integrity.index_lost:
            cause = "its index (the moov box) is missing, so nothing can be decoded: it was cut"
            return TruncatedFileError(path, cause, "copy it again from the scanner")
    else:
        integrity = Integrity()
    if integrity.missing_bytes:
        cause = f"{integrity.ending} and nothing of it can be decoded"
        return TruncatedFileError(path, cause, "copy it again from the scanner")
    cause = f"it cannot be opened as a video ({_brief(error)})"
    return CorruptFileError(path, cause, "check that it plays, then copy or export it again")


def _looks_like_mov(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(8)[4:] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}


def _brief(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
