"""Stills: png, jpg, tif (its pages are frames) and bmp; a folder of numbered stills is a cine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from usvol.errors import CorruptFileError, EmptyFileError
from usvol.formats.frame_selection import scaled_size, select_frames
from usvol.formats.samples import check_size, scale_frame, to_tensor
from usvol.formats.still_decoding import Page, describe, has_pages, open_still, page_samples
from usvol.formats.still_series import SUFFIXES, Series, find_series
from usvol.scan import Calibration, Grid, Header, Scan, Selection, Source, Trust

__all__ = ["NAME", "SUFFIXES", "probe", "read", "sniff"]

NAME = "images"
SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*")


def sniff(path: Path, head: bytes) -> bool:
    """Tell stills by their first bytes, and a folder by what is in it (one numbered series)."""
    if path.is_dir():
        return _stills_of(path) is not None
    return head.startswith(SIGNATURES) or (head[:2] == b"BM" and head[6:10] == bytes(4))


def probe(path: Path) -> Header:
    """Read the header of a still, of a multi-page tif, or of the first still of a folder.

    Raises:
        ReadError: its subclass says whether the file is empty, truncated, corrupt or too large.
    """
    return _header(path, _series(path))


def read(path: Path, selection: Selection | None = None) -> Scan:
    """Decode a still, or the frames of a multi-page tif or folder, to ``t c 1 y x``.

    The bit depth is kept, palettes become colour (grey where all their entries are), alpha is laid on
    black, EXIF orientation is applied. Frame times are unknown.

    Raises:
        ReadError: its subclass says whether a file is empty, truncated, corrupt or too large;
            ``CorruptFileError`` also where the stills of a folder differ in size or depth.

    Example:
        >>> read(Path("beat/"), Selection(max_frames=32)).kind  # doctest: +SKIP
    """
    series = _series(path)
    header = _header(path, series)
    chosen = select_frames(header.frames, None, selection=selection)
    wanted = chosen if chosen is not None else tuple(range(header.frames))
    if not wanted:
        raise EmptyFileError(path, "no frame was selected", "ask for at least one frame")
    size = scaled_size(*header.grid.shape[1:], max_side_px=selection.max_side_px if selection else None)
    shape = (len(wanted), header.channels, *size)
    check_size(path, shape, dtype=header.dtype)
    data = np.empty(shape, header.dtype)
    for slot, (name, pixels) in enumerate(_frames(path, series, wanted)):
        _require_alike(path, name, pixels, header)
        data[slot] = scale_frame(pixels, size).transpose(2, 0, 1)
    step = f"read {len(wanted)} of {header.frames} frames at {size[1]}x{size[0]} with pillow"
    return Scan(
        data=to_tensor(data, path).unsqueeze(2),
        grid=header.grid.resized((1, *size)),
        source=dataclasses.replace(header.source, frame_indices=chosen),
        history=(step,),
    )


def _series(path: Path) -> Series | None:
    if not path.is_dir():
        return None
    series = _stills_of(path)
    if series is None:
        raise EmptyFileError(
            path,
            "this folder holds no single series of numbered stills",
            "keep one series per folder, named like frame_001.png, or name one file",
        )
    return series


def _stills_of(folder: Path) -> Series | None:
    """Return the stills of a folder that together are one cine; files of several pages are cines each."""
    series = find_series(folder)
    return None if series and any(map(has_pages, series.paths)) else series


def _header(path: Path, series: Series | None) -> Header:
    page = describe(series.paths[0] if series else path)
    frames = len(series.paths) if series else page.pages
    grid = Grid((1, page.height, page.width))
    return Header(grid, frames, page.channels, page.dtype, None, _source(path, page, series))


def _frames(path: Path, series: Series | None, wanted: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the samples ``y x c`` of each frame wanted."""
    if series:
        for index in wanted:
            with open_still(series.paths[index]) as image:
                yield series.paths[index].name, page_samples(image, 0, path=series.paths[index])
        return
    with open_still(path) as image:
        for index in wanted:
            yield f"page {index}", page_samples(image, index, path=path)


def _require_alike(path: Path, name: str, pixels: np.ndarray, header: Header) -> None:
    expected = (*header.grid.shape[1:], header.channels)
    if pixels.shape == expected and pixels.dtype == header.dtype:
        return

    def told(shape: tuple[int, ...], dtype: object) -> str:
        return f"{shape[1]}x{shape[0]} with {shape[2]} channels of {dtype}"

    raise CorruptFileError(
        path,
        f"{name} is {told(pixels.shape, pixels.dtype)}, the first frame {told(expected, header.dtype)}",
        "keep one cine per folder, all frames of one size, or load the stills one by one",
    )


def _source(path: Path, page: Page, series: Series | None) -> Source:
    reason = "a still carries no scale"
    if page.print_dpi is not None:
        reason += f"; its {page.print_dpi:.0f} dpi are a print size, not a scale of the anatomy"
    warnings = list(page.warnings)
    if series and series.gaps:
        warnings.append(f"{series.gaps} numbers are missing between the first still and the last")
    if series or page.pages > 1:
        warnings.append("stills carry no frame times")
    return Source(
        path=path,
        format=NAME,
        calibration=Calibration(Trust.ABSENT, reason),
        warnings=tuple(warnings),
    )
