"""Video clips (mp4, avi, mov, mpeg, mkv, webm, wmv, gif), by decord where it is exact, else by PyAV."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from types import MappingProxyType

import numpy as np

from usvol.errors import CorruptFileError, EmptyFileError, TooLargeError, TruncatedFileError
from usvol.formats import video_decord
from usvol.formats.frame_selection import scaled_size, select_frames
from usvol.formats.gif_check import first_damaged_frame
from usvol.formats.samples import MAX_DECODED_BYTES, to_tensor
from usvol.formats.video_clip import RAW_STREAMS, Clip, inspect_clip
from usvol.formats.video_pyav import Decoded
from usvol.formats.video_writing import write_gif, write_video
from usvol.scan import Calibration, Grid, Header, Scan, Selection, Source, Trust

__all__ = ["NAME", "SUFFIXES", "probe", "read", "sniff", "write_gif", "write_video"]

NAME = "video"
SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mpeg", ".mpg", ".mkv", ".webm", ".gif", ".wmv", ".asf", ".ts", ".3gp"}
)
PAUSE_STEPS = 1.8
CONSTANT_RATE_SHARE = 0.9
SAME_FRAME_MEAN_DIFFERENCE = 0.5
WAY_OUT = "copy it again, or read what can be decoded with usvol.load(path, allow_truncated=True)"
NO_SCALE = Calibration(Trust.ABSENT, "a video file carries no scale")
MOV_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})


def sniff(path: Path, head: bytes) -> bool:  # noqa: ARG001 (part of every format's contract)
    """Tell by its first bytes whether a file is a video."""
    return (
        head[4:8] in MOV_BOXES
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
        or head[:4] in {b"\x1a\x45\xdf\xa3", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"GIF8"}
        or head[:16] == bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
        or (head[:1] == b"\x47" and head[188:189] == b"\x47" and head[376:377] == b"\x47")
    )


def probe(path: Path) -> Header:
    """Read the header: size, frames and frame times (s), without decoding the clip.

    Raises:
        ReadError: its subclass says whether the file is empty, truncated, corrupt or too large.
    """
    clip = inspect_clip(path, fully=False)
    _refuse_cut(clip)
    return Header(
        grid=Grid((1, clip.height, clip.width)),
        frames=clip.frames,
        channels=clip.channels,
        dtype=clip.dtype,
        times_s=_cine_times(clip.times_s),
        source=_source(clip, None, _pauses(clip.times_s)),
    )


def read(path: Path, selection: Selection | None = None, *, allow_truncated: bool = False) -> Scan:
    """Decode a clip to ``t c 1 y x``: uint8 RGB, or one channel where the file stores grey.

    ``selection`` thins and shrinks while decoding. ``allow_truncated`` returns what can be
    decoded of a cut or damaged clip, with a warning, instead of raising.

    Raises:
        TruncatedFileError, CorruptFileError: saying how many frames of how many can be decoded.
        TooLargeError: the frames asked for exceed 8 GiB.

    Example:
        >>> scan = read(Path("clip.mp4"), Selection(max_frames=32, max_side_px=224))  # doctest: +SKIP
    """
    clip = inspect_clip(path)
    wanted = select_frames(clip.frames, clip.times_s, selection=selection) or tuple(range(clip.frames))
    size = scaled_size(clip.height, clip.width, max_side_px=selection.max_side_px if selection else None)
    _check_memory(clip, len(wanted), size)
    decoded, decoder = _decode(clip, wanted, size, conceal=allow_truncated)
    warnings = _judge(clip, decoded, allow_truncated=allow_truncated)
    wanted = wanted[: len(decoded.frames)]
    times = decoded.times_s
    return Scan(
        data=to_tensor(decoded.frames, path).unsqueeze(2),
        grid=Grid((1, clip.height, clip.width)).resized((1, *size)),
        times_s=_cine_times(tuple(times[i] for i in wanted)) if times is not None else None,
        source=_source(clip, wanted if len(wanted) != decoded.decodable else None, warnings),
        history=(f"read {len(wanted)} of {clip.frames} frames at {size[1]}x{size[0]} with {decoder}",),
    )


def _refuse_cut(clip: Clip) -> None:
    stated = None if clip.edited else clip.stated_frames
    if clip.is_cut and (stated is None or clip.frames < stated):
        cause = clip.integrity.ending
        cause += f": at most {clip.frames} of {stated} frames are there" if stated else ""
        raise TruncatedFileError(clip.path, cause, WAY_OUT)
    if clip.integrity.broken_at is not None and clip.frames < 2:
        cause = f"it is damaged at byte {clip.integrity.broken_at:,}, in its first frame"
        raise CorruptFileError(clip.path, cause, WAY_OUT)


def _decode(
    clip: Clip, wanted: tuple[int, ...], size: tuple[int, int], *, conceal: bool
) -> tuple[Decoded, str]:
    from usvol.formats import video_pyav

    if video_decord.can_decode(clip):
        # Decord conceals damage and may shift frames; a pass that decodes all and keeps three finds out,
        # at a fraction of the cost of reading.
        places = sorted({0, len(wanted) // 2, len(wanted) - 1})
        checked = video_pyav.decode(clip, tuple(wanted[p] for p in places), size=size)
        if checked.damage is None and checked.decodable == clip.frames:
            with contextlib.suppress(video_decord.DecordMismatchError):
                frames = video_decord.decode(clip, wanted, size=size)
                if _agree(frames[places], checked.frames):
                    return dataclasses.replace(checked, frames=frames), "decord"
    decoded = video_pyav.decode(clip, wanted, size=size)
    if clip.container == "gif" and decoded.damage is None:
        number = first_damaged_frame(clip.path)
        damage = None if number is None else video_pyav.Damage(number, "invalid compressed samples")
        return dataclasses.replace(decoded, damage=damage), "pyav"
    if decoded.damage is not None and conceal:
        patched = video_pyav.decode(clip, wanted, size=size, conceal=True)
        return dataclasses.replace(patched, damage=decoded.damage), "pyav"
    return decoded, "pyav"


def _agree(frames: np.ndarray, expected: np.ndarray) -> bool:
    """Tell whether two decoders show the same frames, up to the rounding of their versions."""
    return all(
        np.abs(one.astype(np.int16) - other).mean() < SAME_FRAME_MEAN_DIFFERENCE
        for one, other in zip(frames, expected, strict=True)
    )


def _judge(clip: Clip, decoded: Decoded, *, allow_truncated: bool) -> tuple[str, ...]:
    """Raise for a cut or damaged clip, or return warnings where it is complete or tolerated."""
    stated = None if clip.edited else clip.stated_frames
    total = max(clip.frames, stated or 0)
    missing, damage, error = clip.integrity.missing_bytes, decoded.damage, CorruptFileError
    if missing and (stated is None or decoded.decodable < stated):
        cause = f"{clip.integrity.ending}: {decoded.decodable}"
        cause += f" of {stated} frames can be decoded" if stated else " frames can be decoded"
        error = TruncatedFileError
    elif damage is not None and missing is None and damage.frame >= clip.frames - 1:
        cause = f"it ends early: frame {damage.frame}, its last, is not whole"
        error = TruncatedFileError
    elif damage is not None:
        cause = f"frame {damage.frame} of {total} is damaged ({damage.cause})"
    elif clip.integrity.broken_at is not None:
        cause = f"it is damaged at byte {clip.integrity.broken_at:,}, after frame {decoded.decodable - 1}"
    elif (lost_s := _lost_s(clip, decoded)) is not None:
        cause = f"{lost_s:.2f} s of images are missing after frame {decoded.decodable - 1}"
    else:
        return _remarks(clip, decoded, stated)
    if not decoded.decodable:
        raise error(clip.path, cause, "copy it again from the scanner")
    if not allow_truncated:
        raise error(clip.path, cause, WAY_OUT)
    return (f"incomplete: {cause}",)


def _lost_s(clip: Clip, decoded: Decoded) -> float | None:
    """Return how much longer the header says the clip lasts than its frames do; None if it agrees."""
    times = decoded.times_s
    if clip.stated_s is None or times is None or len(times) < 2:
        return None
    lost = clip.stated_s - times[-1]
    return lost if lost > max(0.1 * clip.stated_s, 5 * float(np.diff(times).max())) else None


def _remarks(clip: Clip, decoded: Decoded, stated: int | None) -> tuple[str, ...]:
    remarks = []
    if clip.is_cut:
        remarks.append("the file ends early, but all frames are there")
    if stated is not None and stated > decoded.decodable:
        remarks.append(f"the header states {stated} frames, the file holds {decoded.decodable}")
    return (*remarks, *_pauses(decoded.times_s))


def _pauses(times_s: tuple[float, ...] | None) -> tuple[str, ...]:
    """Warn of a gap between frames of an otherwise constant rate."""
    if times_s is None or len(times_s) < 3:
        return ()
    steps = np.diff(times_s)
    usual = float(np.median(steps))
    constant = np.mean(np.abs(steps - usual) < 0.1 * usual) >= CONSTANT_RATE_SHARE
    if not constant or steps.max() <= PAUSE_STEPS * usual:
        return ()
    return (f"a pause of {steps.max():.2f} s after frame {int(steps.argmax())}: frames may be missing",)


def _check_memory(clip: Clip, frames: int, size: tuple[int, int]) -> None:
    needed = frames * clip.channels * size[0] * size[1] * np.dtype(clip.dtype).itemsize
    if frames < 1:
        raise EmptyFileError(clip.path, "no frame was selected", "ask for at least one frame")
    if needed > MAX_DECODED_BYTES:
        raise TooLargeError(
            clip.path,
            f"{frames} frames of {size[1]}x{size[0]} take {needed / 2**30:.1f} GiB, the limit is "
            f"{MAX_DECODED_BYTES / 2**30:.0f} GiB",
            "load part of it with usvol.load(path, selection=Selection(max_frames=..., max_side_px=...))",
        )


def _cine_times(times_s: tuple[float, ...] | None) -> tuple[float, ...] | None:
    return times_s if times_s is not None and len(times_s) > 1 else None


def _source(clip: Clip, frame_indices: tuple[int, ...] | None, warnings: tuple[str, ...]) -> Source:
    notes = list(warnings)
    if clip.frames > 1 and clip.times_s is None:
        kind = "a raw video stream" if clip.container in RAW_STREAMS else f"this {clip.container} file"
        notes.append(f"{kind} has no reliable frame times")
    if clip.pixel_aspect not in (None, 1):
        notes.append(f"pixels are not square: {clip.pixel_aspect} times as wide as high")
    if clip.damaged_packets and not clip.is_cut:
        notes.append(f"{clip.damaged_packets} packets are marked as damaged")
    metadata = {
        "container": clip.container,
        "codec": clip.codec,
        "pixel_format": clip.pixel_format,
        "rotation_deg": clip.rotation_deg,
        "pixel_aspect": str(clip.pixel_aspect) if clip.pixel_aspect else None,
        "edit_list": clip.edited,
    }
    return Source(
        path=clip.path,
        format=NAME,
        calibration=NO_SCALE,
        frame_indices=frame_indices,
        warnings=tuple(notes),
        metadata=MappingProxyType(metadata),
    )
