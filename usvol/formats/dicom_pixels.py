"""Decode DICOM frames to grey or RGB samples, frame by frame.

Source: Image Pixel Module, DICOM PS3.3 C.7.6.3; colour conversion and codecs by pydicom.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import iter_pixels

from usvol.errors import UnsupportedFormatError
from usvol.formats.dicom_header import ContradictionError, Layout, text, typed_errors
from usvol.formats.samples import check_size, scale_frame

_GREY_OR_COLOUR = frozenset(
    {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"}
)


def decoded_dtype(dataset: pydicom.Dataset, layout: Layout) -> str:
    """Return the numpy name of the samples that ``decode`` gives."""
    if "FloatPixelData" in dataset or _rescale(dataset) != (1.0, 0.0):
        return "float32"
    if layout.is_palette:
        return "uint8"
    signed = int(dataset.get("PixelRepresentation") or 0) == 1
    return f"{'int' if signed else 'uint'}{max(layout.bits_allocated, 8)}"


def decode(
    path: Path,
    dataset: pydicom.Dataset,
    *,
    layout: Layout,
    indices: Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Decode frames to ``t c y x``: RGB for colour, one channel for grey, larger always brighter.

    Palettes are applied (16 bit ones to 8 bits), YBR becomes RGB, MONOCHROME1 is inverted and a
    rescale slope applied (then float32). ``indices`` are the file frames to decode, increasing, None
    for all; ``size`` is the (rows, columns) to scale each frame down to as it is decoded.
    """
    if layout.photometric not in _GREY_OR_COLOUR:
        cause = "its photometric interpretation is neither grey nor a colour space that is read"
        raise UnsupportedFormatError(path, cause, "export it as grey or RGB")
    chosen = range(layout.frames) if indices is None else indices
    rows, columns = size or (layout.rows, layout.columns)
    shape = (len(chosen), layout.channels, rows, columns)
    with typed_errors(path, "reading the DICOM header"):
        dtype = np.dtype(decoded_dtype(dataset, layout))
    check_size(path, shape, dtype=dtype)
    samples = np.empty(shape, dtype)
    done = 0
    with typed_errors(path, "decoding the frames"):
        for frame in _frames(path, dataset, layout, indices):
            if done == len(chosen):
                break
            coloured = _coloured(frame, dataset, layout)
            scaled = scale_frame(coloured, (rows, columns))
            samples[done] = scaled[None] if scaled.ndim == 2 else np.moveaxis(scaled, -1, 0)
            done += 1
        if done < len(chosen):
            raise ContradictionError(f"{done} of {len(chosen)} frames decoded")
    return samples


def _frames(
    path: Path, dataset: pydicom.Dataset, layout: Layout, indices: Sequence[int] | None
) -> Iterator[np.ndarray]:
    kept = list(indices) if indices is not None else None
    source = _frame_source(path, dataset)
    if layout.photometric != "YBR_FULL_422" or dataset.file_meta.TransferSyntaxUID.is_compressed:
        yield from iter_pixels(source, indices=kept)
        return
    # One iterator counts a frame of halved colours rightly once: after it, three samples a pixel.
    for number in range(layout.frames) if kept is None else kept:
        yield from iter_pixels(source, indices=[number])


def _frame_source(path: Path, dataset: pydicom.Dataset) -> Path | pydicom.Dataset:
    # pydicom reads frame by frame from a file, unless it is deflated or does not state its encoding.
    try:
        syntax = read_file_meta_info(path).get("TransferSyntaxUID")
    except (InvalidDicomError, AttributeError):
        syntax = None
    if syntax is not None and not syntax.is_deflated:
        return path
    whole = pydicom.dcmread(path, force=True)
    if syntax is None:
        whole.file_meta = dataset.file_meta
    return whole


def _coloured(frame: np.ndarray, dataset: pydicom.Dataset, layout: Layout) -> np.ndarray:
    if layout.is_palette:
        return _to_eight_bits(apply_color_lut(frame, dataset))
    if layout.photometric == "MONOCHROME1":
        bits = int(dataset.get("BitsStored") or layout.bits_allocated)
        signed = np.issubdtype(frame.dtype, np.signedinteger)
        frame = (-1 if signed else (1 << bits) - 1) - frame
    slope, intercept = _rescale(dataset)
    if (slope, intercept) != (1.0, 0.0):
        frame = frame.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    return frame


def _to_eight_bits(coloured: np.ndarray) -> np.ndarray:
    # Some writers put 8-bit colours into a table that declares 16 bits.
    if coloured.dtype == np.uint16:
        return (coloured >> 8 if coloured.max(initial=0) > 255 else coloured).astype(np.uint8)
    return coloured


def _rescale(dataset: pydicom.Dataset) -> tuple[float, float]:
    slope, intercept = text(dataset, "RescaleSlope"), text(dataset, "RescaleIntercept")
    values = (float(slope) if slope else 1.0, float(intercept) if intercept else 0.0)
    if not all(np.isfinite(values)) or values[0] == 0:
        raise ContradictionError(f"rescale slope {values[0]} and intercept {values[1]}")
    return values
