"""Frames of long cines on demand, exactly as ``load`` would give them, without decoding the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from usvol.loading import probe
from usvol.scan import Header, Kind

LARGE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """A cine on disk whose frames are decoded when asked for.

    Attributes:
        header: what ``probe`` says of it.
        read: first frame and the one after the last to samples ``t c 1 y x`` (numpy); may be called from any
            thread. Raises ``ReadError`` for frames that cannot be decoded.
    """

    header: Header
    read: Callable[[int, int], np.ndarray]


def open_frames(path: str | Path, *, larger_than_bytes: int = LARGE_BYTES) -> Frames | None:
    """Open a cine that takes more than ``larger_than_bytes`` decoded; None for all else: ``load`` that.

    None as well where a format or a file does not allow its frames to be found exactly.

    Raises:
        ReadError: as ``probe``.

    Example:
        >>> frames = open_frames("long.mp4")  # doctest: +SKIP
        >>> frames.read(1200, 1232).shape  # doctest: +SKIP
        (32, 3, 1, 768, 1024)
    """
    path = Path(path)
    header = probe(path)
    if header.kind is not Kind.CINE or decoded_bytes(header) <= larger_than_bytes or path.is_dir():
        return None
    opener = {"video": _video, "dicom": _dicom}.get(header.source.format)
    read = opener(path) if opener is not None else None
    return Frames(header, read) if read is not None else None


def decoded_bytes(header: Header) -> int:
    """Return how much memory the samples of a scan take."""
    return header.frames * header.channels * math.prod(header.grid.shape) * np.dtype(header.dtype).itemsize


def _video(path: Path) -> Callable[[int, int], np.ndarray] | None:
    from usvol.formats.video_seeking import open_seekable

    clip = open_seekable(path)
    return None if clip is None else lambda start, stop: clip.read(start, stop)[:, :, None]


def _dicom(path: Path) -> Callable[[int, int], np.ndarray] | None:
    from usvol.formats.dicom_header import open_header
    from usvol.formats.dicom_pixels import decode

    dataset, layout = open_header(path)

    def read(start: int, stop: int) -> np.ndarray:
        return decode(path, dataset, layout=layout, indices=range(start, stop))[:, :, None]

    return read
