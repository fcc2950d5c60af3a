"""MetaImage and NRRD volumes, and the tracked sweeps of PLUS, read and written with SimpleITK."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import SimpleITK

from usvol.errors import CorruptFileError, EmptyFileError, ReadError, UnsupportedFormatError
from usvol.formats import beamspace
from usvol.formats.frame_selection import select_frames
from usvol.formats.grid_geometry import affine_of, grid_from_affine
from usvol.formats.metaimage_header import SECONDS, TextHeader, read_header
from usvol.formats.nrrd_planes import readable
from usvol.formats.packed_samples import check_samples
from usvol.formats.plus_sequence import (
    Sequence,
    has_frame_fields,
    order_warnings,
    parse_sequence,
    probe_axes,
    relative_times,
    scale_hint,
)
from usvol.formats.samples import to_tensor
from usvol.scan import Calibration, Frame, Grid, Header, Scan, Selection, Shape3, Source, Trust

NAME = "metaimage"
SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")

# SimpleITK raises nothing but RuntimeError for a file it cannot read.
PARSE_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
    OSError,
)

_FRAME_KEY, _UNIT_KEY = "usvol_frame", "usvol_unit"
_MM, _SAMPLES = "mm", "samples"
_TIME = "time"  # kind of an NRRD axis
_QUOTED = re.compile(r'"([^"]*)"')


@dataclass(frozen=True, slots=True)
class _Image:
    """A file whose samples are not read yet."""

    text: TextHeader
    shape: Shape3
    frames: int
    grid: Grid
    times_s: tuple[float, ...] | None
    source: Source


def sniff(path: Path, head: bytes) -> bool:  # noqa: ARG001  every format has this signature
    """Tell NRRD by its magic, MetaImage by its first key."""
    if head.startswith(b"NRRD"):
        return True
    start = head[:256].lstrip()
    return start.startswith((b"ObjectType", b"NDims", b"DimSize")) and b"=" in start


def probe(path: Path) -> Header:
    """Read the header only."""
    text = _header(path)
    if beamspace.is_beam_space(text.fields):
        return beamspace.probe(path)
    opened = _open(path, text)
    return Header(opened.grid, opened.frames, text.components, text.dtype, opened.times_s, opened.source)


def read(path: Path, selection: Selection | None = None) -> Scan:
    """Read to ``t c z y x``; a list of frames becomes a cine, four axes a 3D+t clip."""
    text = _header(path)
    with typed_errors(path, "unpacking the samples"):
        check_samples(path, text)
    if beamspace.is_beam_space(text.fields):
        return beamspace.read(path, selection)
    opened = _open(path, text)
    with typed_errors(path, "reading the samples"), readable(path, text.fields) as plain:
        array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(plain)))
        samples = _arranged(array, opened)
    steps = select_frames(opened.frames, opened.times_s, selection=selection)
    times = opened.times_s
    if steps is not None:
        samples = samples[list(steps)]
        times = tuple(times[i] for i in steps) if times is not None else None
    source = dataclasses.replace(opened.source, frame_indices=steps)
    return Scan(to_tensor(samples, path), opened.grid, times, source)


def write_image(path: Path, data: np.ndarray, *, grid: Grid) -> None:
    """Write ``z y x`` samples as .mha, .mhd, .nrrd or .nhdr so that ``read`` finds the same grid.

    The frame and the unit go into keys of their own, so that an uncalibrated grid comes back as one.
    """
    if data.shape != grid.shape:
        raise ValueError(f"data must be {grid.shape}, got {data.shape}")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path.name} must end in one of {', '.join(SUFFIXES)}")
    image = SimpleITK.GetImageFromArray(data.astype(np.uint8) if data.dtype == bool else data)
    image.SetSpacing(grid.step[::-1])
    image.SetOrigin(grid.origin[::-1])
    image.SetDirection((affine_of(grid)[:3, :3] / grid.step[::-1]).ravel().tolist())
    image.SetMetaData(_FRAME_KEY, str(grid.frame))
    image.SetMetaData(_UNIT_KEY, _MM if grid.is_calibrated else _SAMPLES)
    SimpleITK.WriteImage(image, str(path), useCompression=True)


@contextmanager
def typed_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn what SimpleITK raises on a damaged file into ``CorruptFileError`` naming the file."""
    try:
        yield
    except ReadError:
        raise
    except PARSE_ERRORS as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        detail = (lines[-1] if lines else type(error).__name__)[:200]
        raise CorruptFileError(path, f"{doing} failed ({detail})", "copy or export it again") from error


def _header(path: Path) -> TextHeader:
    with typed_errors(path, "reading the header"):
        if path.stat().st_size == 0:
            raise EmptyFileError(path, "the file is empty", "copy or export it again")
        return read_header(path)


def _open(path: Path, text: TextHeader) -> _Image:
    with typed_errors(path, "reading the header"):
        reader = SimpleITK.ImageFileReader()
        with readable(path, text.fields) as plain:
            reader.SetFileName(str(plain))
            reader.ReadImageInformation()
        frames, shape = _frames_and_shape(path, text)
        sequence = parse_sequence(text.fields, frames)
        calibration, notes = _calibration(path, text, reader, sequence)
        grid, mended = _grid(path, text, reader, shape=shape, calibration=calibration)
        times, time_notes = relative_times(sequence) if sequence is not None else _axis_times(text, frames)
    facts: dict[str, Any] = {"kinds": text.kinds}
    if sequence is not None:
        facts |= _sequence_facts(sequence)
        notes = (*notes, *order_warnings(sequence))
        axes = probe_axes(sequence.orientation)
        if axes is not None:
            grid = dataclasses.replace(grid, direction=axes)
    source = Source(
        path, NAME, calibration, warnings=(*notes, *mended, *time_notes), metadata=MappingProxyType(facts)
    )
    return _Image(text, shape, frames, grid, times, source)


def _frames_and_shape(path: Path, text: TextHeader) -> tuple[int, Shape3]:
    """Tell frames from slices: an axis of kind ``list`` or ``time``, or a fourth axis, is time.

    PLUS calls the slices of its reconstructed volumes a list too, so a MetaImage must also have frame fields.
    """
    sizes = list(text.sizes)
    has_list = len(text.kinds) == len(sizes) > 2 and "list" in text.kinds
    if has_list and (text.is_nrrd or has_frame_fields(text.fields)):
        frames = sizes.pop(text.kinds.index("list"))
    else:
        if _TIME in text.kinds[:-1]:
            remedy = "save it with time as the slowest axis"
            raise UnsupportedFormatError(path, "its axis of time is not its last", remedy)
        frames = sizes.pop() if len(sizes) == 4 or text.kinds[-1:] == (_TIME,) else 1
    if not 2 <= len(sizes) <= 3:
        raise CorruptFileError(path, f"it has {len(text.sizes)} axes", "export one volume or clip")
    x, y, z = (*sizes, 1)[:3]
    return frames, (z, y, x)


def _axis_times(text: TextHeader, frames: int) -> tuple[tuple[float, ...] | None, tuple[str, ...]]:
    """Return the times (s) of an NRRD's last axis, where it is one of time with a spacing and a unit."""
    if frames < 2 or text.kinds[-1:] != (_TIME,):
        return None, ()
    spacing, units = text.fields.get("spacings", "").split(), _QUOTED.findall(text.fields.get("units", ""))
    unit = SECONDS.get(units[-1].lower()) if units else None
    step = float(spacing[-1]) if spacing else math.nan
    if unit is None or not 0 < step < math.inf:
        return None, ("frame times unknown: its axis of time states no step, or no unit of time",)
    return tuple(i * step * unit for i in range(frames)), ()


def _arranged(array: np.ndarray, opened: _Image) -> np.ndarray:
    """Return ``t c z y x`` of what SimpleITK gives: ``[t] [z] y x [c]``, or frames as components."""
    frames, channels, (z, y, x) = opened.frames, opened.text.components, opened.shape
    if frames > 1 and array.shape == (z, y, x, frames):
        return np.moveaxis(array, -1, 0)[:, None]
    if frames > 1 and z == 1 and array.shape == (y, x, frames):
        return np.moveaxis(array, -1, 0)[:, None, None]
    return np.moveaxis(array.reshape(frames, z, y, x, channels), -1, 1)


def _grid(
    path: Path, text: TextHeader, reader: Any, *, shape: Shape3, calibration: Calibration
) -> tuple[Grid, tuple[str, ...]]:
    count = reader.GetDimension()
    direction = np.array(reader.GetDirection()).reshape(count, count)
    kept = min(count, 3)
    affine = np.eye(4)
    affine[:kept, :kept] = (direction * np.array(reader.GetSpacing()))[:kept, :kept]
    affine[:kept, 3] = reader.GetOrigin()[:kept]
    if shape[0] == 1:
        affine[:3, 2] = 0  # a list of frames, or a plane: its third axis is no direction in space
    frame = Frame.PATIENT_LPS if text.is_patient else Frame.PROBE
    if text.fields.get(_FRAME_KEY) in set(Frame):
        frame = Frame(text.fields[_FRAME_KEY])
    calibrated = calibration.trust is not Trust.ABSENT
    if calibrated:
        affine[:3] *= text.unit_mm or 1.0
    elif text.fields.get(_UNIT_KEY) != _SAMPLES:
        # What it says of distances is not believed, so its world unit is its own sample.
        affine[:3, :3] /= np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1e-12)
        affine[:3, 3] = 0
    return grid_from_affine(path, affine, shape=shape, frame=frame, calibrated=calibrated)


def _calibration(
    path: Path, text: TextHeader, reader: Any, sequence: Sequence | None
) -> tuple[Calibration, tuple[str, ...]]:
    spacing, key = reader.GetSpacing(), text.fields.get(_UNIT_KEY)
    kind = "NRRD" if text.is_nrrd else "MetaImage"
    if text.unspaced:
        axes = " and ".join(text.unspaced)
        return Calibration(Trust.ABSENT, f"its {kind} header states no sample spacing along {axes}"), ()
    if key == _SAMPLES:
        return Calibration(Trust.ABSENT, "written from a scan without a scale"), ()
    if text.unit_mm is None:
        return Calibration(Trust.ABSENT, f"the unit of its {kind} header is no length"), ()
    if sequence is not None and all(value == 1 for value in spacing):
        reason = f"its 1 mm is the placeholder that PLUS writes; {scale_hint(path)}"
        return Calibration(Trust.ABSENT, reason), ()
    if key != _MM and _is_default(reader):
        reason = (
            f"its {kind} geometry (1 mm, no offset, no rotation) is the default of ITK, not a measurement"
        )
        return Calibration(Trust.ABSENT, reason), ()
    notes = () if key == _MM else _placeholder_notes(text, reader)
    return Calibration(Trust.MEASURED, f"{kind} sample spacing"), notes


def _placeholder_notes(text: TextHeader, reader: Any) -> tuple[str, ...]:
    """Warn where the slice spacing looks like ITK's default, as of a sweep stored as a stack of frames."""
    spacing = reader.GetSpacing()
    is_stack = len(text.sizes) == len(spacing) == 3 and text.sizes[2] > 1
    if not is_stack or spacing[2] != 1 or text.unit_mm != 1 or any(reader.GetOrigin()):
        return ()
    if spacing[0] == 1 and spacing[1] == 1:
        return ()
    note = (
        f"its slice spacing is exactly 1 mm (in the plane {spacing[1]:.4g} × {spacing[0]:.4g} mm) and it has"
        " no offset: the 1 mm is likely a placeholder and the slices may be frames of a sweep, so trust no"
        " volume, and no length across slices, unless you know their distance"
    )
    return (note,)


def _is_default(reader: Any) -> bool:
    identity = np.eye(reader.GetDimension()).ravel()
    return (
        all(value == 1 for value in reader.GetSpacing())
        and not any(reader.GetOrigin())
        and bool(np.array_equal(reader.GetDirection(), identity))
    )


def _sequence_facts(sequence: Sequence) -> dict[str, Any]:
    return {
        "poses": MappingProxyType(dict(sequence.poses)),
        "pose_status": MappingProxyType(dict(sequence.pose_status)),
        "timestamps_s": sequence.timestamps_s,
        "image_status": sequence.image_status,
        "orientation": sequence.orientation,
        "image_type": sequence.image_type,
    }
