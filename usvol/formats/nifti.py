"""NIfTI-1 and -2 volumes and 3D+t clips, read and written with nibabel.

Source: NIfTI-1 standard, https://nifti.nimh.nih.gov/nifti-1 (xform codes, units, pixdim). NIfTI worlds are
RAS; a ``Grid`` is LPS.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.nifti1 import Nifti1Extension
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.wrapstruct import WrapStructError

from usvol.errors import (
    CorruptFileError,
    EmptyFileError,
    ReadError,
    TruncatedFileError,
    UnsupportedFormatError,
)
from usvol.formats.frame_selection import select_frames
from usvol.formats.grid_geometry import affine_of, grid_from_affine
from usvol.formats.samples import check_size, to_tensor
from usvol.scan import Calibration, Frame, Grid, Header, Scan, Selection, Shape3, Source, Trust

NAME = "nifti"

PARSE_ERRORS = (
    ImageFileError, HeaderDataError, HeaderTypeError, WrapStructError, OSError, EOFError, ValueError,
    TypeError, KeyError, IndexError, OverflowError, MemoryError, ZeroDivisionError, struct.error, zlib.error,
)  # fmt: skip

_NIBABEL_LOG = logging.getLogger("nibabel.global")
_GZIP = b"\x1f\x8b"
_MAGIC = (b"n+1\0", b"ni1\0")
_MAGIC_2 = (b"n+2\0", b"ni2\0")
_HEADER_BYTES = 540
_PAIR_SUFFIXES = (".hdr", ".img", ".hdr.gz", ".img.gz")
_COUNTED_BLOCK_BYTES = 1 << 20
_MM = {"mm": 1.0, "meter": 1e3, "micron": 1e-3, "unknown": 1.0}
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_DEFLATE_LIMIT = 1100
_OWN_NOTE, _NO_SCALE = "usvol", " uncalibrated"
_COMMENT = 6
_DRAINED_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class _Image:
    """A NIfTI file whose samples are not read yet; ``shape`` is (x, y, z, t, channels)."""

    image: Any
    shape: tuple[int, int, int, int, int]
    grid: Grid
    times_s: tuple[float, ...] | None
    source: Source


def sniff(path: Path, head: bytes) -> bool:
    """Tell NIfTI by the magic of its header, plain or gzipped; a pair, of ANALYZE too, by its header file."""
    if head[:2] == _GZIP:
        try:
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, 1024)
        except zlib.error:
            return False
    if head[344:348] in _MAGIC or head[4:8] in _MAGIC_2:
        return True
    is_half = path.name.lower().endswith(_PAIR_SUFFIXES)
    return is_half and (_is_analyze(head) or _has_pair_header(path))


def probe(path: Path) -> Header:
    """Read the header: geometry in LPS, units, frame times."""
    with _typed_errors(path, "reading the NIfTI header"), _opened(path) as opened:
        stored = opened.image.header.get_data_dtype()
    dtype = "uint8" if stored.names else stored.name
    return Header(opened.grid, opened.shape[3], opened.shape[4], dtype, opened.times_s, opened.source)


def read(path: Path, selection: Selection | None = None) -> Scan:
    """Read to ``t c z y x``; the stored dtype is kept unless the header scales it (then float32)."""
    with _typed_errors(path, "reading the NIfTI file"), _opened(path) as opened:
        steps = select_frames(opened.shape[3], opened.times_s, selection=selection)
        samples = _samples(opened.image).reshape(opened.shape, order="F").transpose(3, 4, 2, 1, 0)
        samples = np.array(samples if steps is None else samples[list(steps)], order="C")
        if (stream := opened.image.file_map["image"].fileobj) is not None:
            _drain(stream)
    times = opened.times_s
    if times is not None and steps is not None:
        times = tuple(times[i] for i in steps)
    source = dataclasses.replace(opened.source, frame_indices=steps)
    return Scan(to_tensor(samples, path), opened.grid, times, source)


def _drain(stream: Any) -> None:
    """Read a file to its end, where the checksum of a gzip file is compared; what is long is left."""
    for _ in range(_DRAINED_BLOCKS):
        if not stream.read(_COUNTED_BLOCK_BYTES):
            return


def write_nifti(path: Path, data: np.ndarray, *, grid: Grid, times_s: Sequence[float] | None = None) -> None:
    """Write ``z y x`` or ``t z y x`` samples so that ``read`` finds the same grid and times.

    A grid in the probe's frame or without a scale is marked as such, so that it does not come back as
    patient space or millimetres. Frame times go into an extension where they are uneven.
    """
    if data.ndim not in (3, 4) or data.shape[-3:] != grid.shape:
        raise ValueError(f"data must be (*{grid.shape}) or (t, *{grid.shape}), got {data.shape}")
    if data.ndim == 4 and len(data) == 1 and times_s is None:
        data = data[0]  # a volume, so that a mask has the shape of the volume it is of
    samples = np.moveaxis(data, 0, -1).transpose(2, 1, 0, 3) if data.ndim == 4 else data.transpose(2, 1, 0)
    affine = _TO_LPS @ affine_of(grid)
    image = nib.Nifti1Image(_writable(samples), affine)
    code = 1 if grid.frame is Frame.PATIENT_LPS else 2
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    header: Any = image.header
    length, duration = "mm" if grid.is_calibrated else "unknown", "sec" if times_s is not None else "unknown"
    header.set_xyzt_units(length, duration)
    scale = "" if grid.is_calibrated else _NO_SCALE
    header["descrip"] = f"{_OWN_NOTE} {grid.frame}{scale}".encode()
    if times_s is not None and data.ndim == 4:
        _write_times(header, times_s)
    nib.save(image, path)


def _write_times(header: Any, times_s: Sequence[float]) -> None:
    steps = np.diff(times_s)
    zooms = header.get_zooms()
    header.set_zooms((*zooms[:3], float(steps.mean()) if len(steps) else 1.0))
    header["toffset"] = times_s[0]
    comment = json.dumps({"usvol_times_s": list(times_s)}).encode()
    header.extensions.append(Nifti1Extension(_COMMENT, comment))


def _writable(samples: np.ndarray) -> np.ndarray:
    if samples.dtype == bool:
        return samples.astype(np.uint8)
    if samples.dtype == np.int64 and abs(samples).max(initial=0) <= np.iinfo(np.int32).max:
        return samples.astype(np.int32)
    return samples.astype(np.float32) if samples.dtype == np.float16 else samples


@contextmanager
def _typed_errors(path: Path, doing: str) -> Iterator[None]:
    # nibabel logs what it then raises, or mends.
    _NIBABEL_LOG.addFilter(_silent)
    try:
        yield
    except ReadError:
        raise
    except FileNotFoundError as error:
        missing = Path(error.filename).name if error.filename else path.name
        raise CorruptFileError(path, f"'{missing}' is missing", "put it beside the header") from error
    except PARSE_ERRORS as error:
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        kind = TruncatedFileError if _is_truncation(error) else CorruptFileError
        raise kind(path, f"{doing} failed ({detail})", "copy or export it again") from error
    finally:
        _NIBABEL_LOG.removeFilter(_silent)


def _silent(_record: logging.LogRecord) -> bool:
    return False


def _is_truncation(error: BaseException) -> bool:
    return isinstance(error, EOFError) or ("got " in str(error) and "bytes" in str(error))


@contextmanager
def _opened(path: Path) -> Iterator[_Image]:
    """Open by content: nibabel would judge, and unpack or not, by the file's name."""
    if path.stat().st_size == 0:
        raise EmptyFileError(path, "the file is empty", "copy or export it again")
    with _stream(path) as stream:
        head = stream.read(_HEADER_BYTES)
        is_second = head[4:8] in _MAGIC_2
        magic = head[4:8] if is_second else head[344:348]
        if magic.startswith(b"n+") or not path.name.lower().endswith(_PAIR_SUFFIXES):
            if magic.startswith(b"ni"):
                cause = "it is the header of a NIfTI pair, under a name that hides where its samples are"
                raise CorruptFileError(path, cause, "name it .hdr and put its .img beside it")
            holder = FileHolder(fileobj=cast("Any", stream))
            single = nib.Nifti2Image if is_second else nib.Nifti1Image
            image: Any = single.from_file_map({"header": holder, "image": holder})
            _restore_pixdim(image, head)
            yield _described(path, image, path)
            return
    with _stream(_pair_header(path)) as stream:
        head = stream.read(_HEADER_BYTES)
    _refuse_analyze(path, head)
    image = (nib.Nifti2Pair if head[4:8] in _MAGIC_2 else nib.Nifti1Pair).load(path)
    _restore_pixdim(image, head)
    yield _described(path, image, Path(image.file_map["image"].filename))


def _described(path: Path, image: Any, data: Path) -> _Image:
    header = image.header
    shape = _shape(path, tuple(int(n) for n in image.shape), header.get_data_dtype())
    _check_length(path, image, data)
    grid, calibration, notes = _geometry(path, image, (shape[2], shape[1], shape[0]))
    times, time_notes = _times(header, shape[3])
    facts = {"sform_code": int(header["sform_code"]), "qform_code": int(header["qform_code"])}
    source = Source(
        path, NAME, calibration, warnings=(*notes, *time_notes), metadata=MappingProxyType(facts)
    )  # fmt: skip
    return _Image(image, shape, grid, times, source)


def _stream(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path)) if _is_packed(path) else path.open("rb")


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def _has_pair_header(path: Path) -> bool:
    """Tell whether the header beside the samples of a pair is one of NIfTI or ANALYZE."""
    header = _pair_header(path)
    if header == path or not header.is_file():
        return False
    try:
        with _stream(header) as file:
            head = file.read(348)
    except (OSError, EOFError, zlib.error):
        return False
    return head[344:348] in _MAGIC or _is_analyze(head)


def _pair_header(path: Path) -> Path:
    name = re.sub(r"\.img(?=$|\.gz$)", ".hdr", path.name)
    return path.with_name(re.sub(r"\.IMG(?=$|\.GZ$)", ".HDR", name))


def _is_analyze(head: bytes) -> bool:
    """Tell a header of ANALYZE 7.5 (Mayo Clinic, 1989), which has the size of NIfTI's and no magic."""
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    return 348 in sizes and head[344:348] not in _MAGIC


def _refuse_analyze(path: Path, head: bytes) -> None:
    if not _is_analyze(head):
        return
    cause = "it is an ANALYZE 7.5 file, which does not say which side of the patient is left"
    remedy = (
        "convert it to NIfTI (.nii.gz) with the program that wrote it, or with a converter that is told its"
        " orientation"
    )
    raise UnsupportedFormatError(path, cause, remedy)


def _restore_pixdim(image: Any, head: bytes) -> None:
    """Take spacings as stored: nibabel makes 1 of 0. A plane without one gets its y's, as ``Grid`` has."""
    header = image.header
    stored = np.abs(type(header)(head[: header.sizeof_hdr], check=False)["pixdim"][1:4].astype(float))
    stored[~np.isfinite(stored)] = 0
    if all(n == 1 for n in image.shape[2:3]) and not (len(image.shape) > 2 and stored[2] > 0):
        stored[2] = stored[1]
    header["pixdim"][1:4] = stored


def _shape(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int, int, int, int]:
    if not shape or min(shape) < 1:
        raise EmptyFileError(path, f"it holds no samples: its size is {shape}", "export it again")
    if any(n != 1 for n in shape[5:]):
        raise CorruptFileError(path, f"it has {len(shape)} axes", "export one volume or clip")
    x, y, z, t, c = (*shape[:5], 1, 1, 1, 1)[:5]
    return x, y, z, t, c * len(dtype.names or (0,))


def _check_length(path: Path, image: Any, data: Path) -> None:
    needed = check_size(path, image.shape, dtype=image.header.get_data_dtype())
    if not data.is_file():
        raise CorruptFileError(path, f"its samples '{data.name}' are missing", "put it beside the header")
    skipped = int(image.dataobj.offset)
    there = (_unpacked_bytes(data, needed + skipped) if _is_packed(data) else data.stat().st_size) - skipped
    if needed > there:
        raise TruncatedFileError(
            path, f"it needs {needed} bytes of samples and has {max(there, 0)}", "copy it again"
        )


def _unpacked_bytes(path: Path, expected: int) -> int:
    """Return how many bytes a gzip file unpacks to, counting them only where its trailer is in doubt.

    Source: RFC 1952, ISIZE: the last four bytes are the size modulo 2**32 (of the last member).
    """
    stored = path.stat().st_size
    if expected > stored * _DEFLATE_LIMIT:
        return stored * _DEFLATE_LIMIT
    with path.open("rb") as file:
        file.seek(max(0, stored - 4))
        if int.from_bytes(file.read(4), "little") == expected % 2**32:
            return expected
    total = 0
    with gzip.open(path) as stream:
        try:
            while total < expected and (block := stream.read(_COUNTED_BLOCK_BYTES)):
                total += len(block)
        except EOFError as error:
            raise TruncatedFileError(path, "its compressed samples end early", "copy it again") from error
    return total


def _geometry(path: Path, image: Any, shape: Shape3) -> tuple[Grid, Calibration, tuple[str, ...]]:
    header = image.header
    described = bytes(header["descrip"].item()).decode("latin-1").rstrip("\0")
    units = header.get_xyzt_units()[0]
    notes: tuple[str, ...] = ()
    scale = np.diag([_MM.get(units, 1.0)] * 3 + [1.0])
    if int(header["sform_code"]) or int(header["qform_code"]):
        affine, notes = _coded_affine(header)
        is_probe = described.startswith(f"{_OWN_NOTE} {Frame.PROBE}")
        frame = Frame.PROBE if is_probe else Frame.PATIENT_LPS
        reason = f"NIfTI {'sform' if int(header['sform_code']) else 'qform'}"
        affine = _TO_LPS @ affine
    else:
        affine, frame = np.diag([*(float(v) for v in header["pixdim"][1:4]), 1.0]), Frame.PROBE
        reason = "NIfTI pixdim; it has no sform and no qform, so its place in the patient is unknown"
        if not all(np.isfinite(np.diag(affine)) & (np.diag(affine) > 0)):
            note = Calibration(Trust.ABSENT, f"NIfTI pixdim is {np.diag(affine)[:3].tolist()}")
            return Grid(shape), note, ()
        if units == "unknown" and np.array_equal(affine, np.eye(4)):
            cause = "NIfTI pixdim is 1, 1, 1 without a unit, sform or qform: as in a header nobody filled in"
            return Grid(shape), Calibration(Trust.ABSENT, cause), ()
    calibrated = not (described.startswith(_OWN_NOTE) and described.endswith(_NO_SCALE))
    grid, mended = grid_from_affine(path, scale @ affine, shape=shape, frame=frame, calibrated=calibrated)
    if not calibrated:
        return grid, Calibration(Trust.ABSENT, "written from a scan without a scale"), (*notes, *mended)
    if units == "unknown":
        notes = (*notes, "its unit of length is not stated (xyzt_units); millimetres are assumed")
    return grid, Calibration(Trust.MEASURED, f"{reason}, unit {units}"), (*notes, *mended)


def _coded_affine(header: Any) -> tuple[Any, tuple[str, ...]]:
    """Return the sform if it is coded, else the qform (RAS), and a note if both are and differ."""
    sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    if sform is None or qform is None:
        return (sform if sform is not None else qform), ()
    corner = np.array([*(int(n) - 1 for n in header["dim"][1:4]), 1.0])
    apart = float(np.abs((sform - qform) @ np.stack([corner, [0, 0, 0, 1]], 1)).max())
    if apart > 0.1 * float(np.abs(sform[:3, :3]).max()):
        return sform, (f"its sform and qform are up to {apart:.3g} units apart; the sform is used",)
    return sform, ()


def _times(header: Any, frames: int) -> tuple[tuple[float, ...] | None, tuple[str, ...]]:
    if frames < 2:
        return None, ()
    for extension in header.extensions:
        if extension.get_code() == _COMMENT and (stored := _stored_times(extension.get_content(), frames)):
            return stored, ()
    unit, step = header.get_xyzt_units()[1], float(header["pixdim"][4])
    if unit not in _SECONDS or not np.isfinite(step) or step <= 0:
        return None, (f"frame times unknown: the time step is {step:g} with unit '{unit}'",)
    return tuple(i * step * _SECONDS[unit] for i in range(frames)), ()


def _stored_times(content: Any, frames: int) -> tuple[float, ...] | None:
    try:
        text = content.decode() if isinstance(content, bytes) else str(content)
        times = [float(value) for value in json.loads(text.rstrip("\0"))["usvol_times_s"]]
    except (ValueError, KeyError, TypeError):
        return None
    rising = all(b > a for a, b in pairwise(times))
    return tuple(times) if len(times) == frames and rising else None


def _samples(image: Any) -> np.ndarray:
    proxy = image.dataobj
    # Scaling is of real numbers: NIfTI-1 has none for colours, and complex samples are refused as they are.
    if (proxy.slope == 1 and proxy.inter == 0) or proxy.dtype.names or proxy.dtype.kind == "c":
        samples: Any = np.asarray(proxy.get_unscaled())
    else:
        samples = np.asarray(proxy, dtype=np.float32)
    if samples.dtype.names:
        return np.moveaxis(np.stack([samples[name] for name in samples.dtype.names], -1), -1, samples.ndim)
    return samples
