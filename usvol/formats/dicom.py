"""DICOM: ultrasound images, cines, Enhanced US Volumes and slice series in a folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from usvol.errors import EmptyFileError, ReadError
from usvol.formats import dicom_series, dicom_volume
from usvol.formats.dicom_header import (
    Layout,
    annotation_warnings,
    describe,
    is_dicom,
    open_header,
    typed_errors,
)
from usvol.formats.dicom_pixels import decode, decoded_dtype
from usvol.formats.dicom_regions import (
    MAX_ANISOTROPY,
    MAX_EXTENT_MM,
    MIN_EXTENT_MM,
    Region,
    calibrate,
    parse_regions,
)
from usvol.formats.dicom_times import frame_times
from usvol.formats.frame_selection import scaled_size, select_frames
from usvol.formats.samples import to_tensor
from usvol.scan import Calibration, Grid, Header, Scan, Selection, Source, Trust

if TYPE_CHECKING:
    import pydicom

NAME = "dicom"
ENHANCED_US_VOLUME = "1.2.840.10008.5.1.4.1.1.6.2"
_HEAD_BYTES = 256


@dataclass(frozen=True, slots=True)
class _Planar:
    """What the header of a single or multi-frame image says."""

    dataset: pydicom.Dataset
    layout: Layout
    grid: Grid
    times_s: tuple[float, ...] | None
    source: Source


def sniff(path: Path, head: bytes) -> bool:
    """Tell a DICOM file, or a folder that holds some."""
    if path.is_dir():
        return bool(_dicom_files(path, limit=1, pass_shut=True))
    return is_dicom(path, head)


def parts(folder: Path) -> list[Path]:
    """Return the files of a folder, or of one series in it, that are DICOM and can be opened."""
    if dicom_series.is_series_path(folder):
        return list(dicom_series.slices_of(folder))
    return _dicom_files(folder, pass_shut=True)


def series(folder: Path) -> list[Path]:
    """Return a path for each slice series of a folder that holds more than one series; ``read`` takes it."""
    return [folder / name for name in dicom_series.find_stacks(folder)]


def is_series(folder: Path) -> bool:
    """Tell whether the files of a folder are slices of volumes, whatever is wrong with some of them."""
    return dicom_volume.are_slices(parts(folder))


def probe(path: Path) -> Header:
    """Read the header of a file, or all headers of a series, and none of the samples."""
    path = _single(path)
    if slices := _slices(path):
        return dicom_volume.probe_series(path, slices)
    dataset, layout = open_header(path)
    if dataset.get("SOPClassUID") == ENHANCED_US_VOLUME:
        return dicom_volume.probe_enhanced(path, dataset, layout=layout)
    planar = _planar(path, dataset, layout)
    with typed_errors(path, "reading the DICOM header"):
        dtype = decoded_dtype(dataset, layout)
    return Header(planar.grid, layout.frames, layout.channels, dtype, planar.times_s, planar.source)


def read(path: Path, selection: Selection | None = None) -> Scan:
    """Read an image, cine, volume or 3D+t clip; ``selection`` thins and scales cines as they decode."""
    path = _single(path)
    if slices := _slices(path):
        return dicom_volume.read_series(path, slices)
    dataset, layout = open_header(path)
    if dataset.get("SOPClassUID") == ENHANCED_US_VOLUME:
        return dicom_volume.read_enhanced(path, dataset, layout=layout, selection=selection)
    return _read_planar(path, _planar(path, dataset, layout), selection)


def _read_planar(path: Path, planar: _Planar, selection: Selection | None) -> Scan:
    layout = planar.layout
    indices = select_frames(layout.frames, planar.times_s, selection=selection)
    limit = selection.max_side_px if selection is not None else None
    size = scaled_size(layout.rows, layout.columns, max_side_px=limit)
    samples = decode(path, planar.dataset, layout=layout, indices=indices, size=size)
    times = planar.times_s
    if times is not None and indices is not None:
        times = tuple(times[i] for i in indices)
    grid = planar.grid if size == (layout.rows, layout.columns) else planar.grid.resized((1, *size))
    source = dataclasses.replace(planar.source, frame_indices=indices)
    return Scan(to_tensor(samples, path)[:, :, None], grid, times, source)


def _planar(path: Path, dataset: pydicom.Dataset, layout: Layout) -> _Planar:
    with typed_errors(path, "reading the DICOM header"):
        regions = parse_regions(dataset)
        size_mm, calibration, notes = _pixel_size(dataset, layout, regions)
        timing = frame_times(dataset, layout.frames)
        warnings = (*annotation_warnings(dataset), *layout.warnings, *notes, *timing.warnings)
        grid = Grid((1, layout.rows, layout.columns))
        if size_mm is not None:
            grid = grid.with_spacing((size_mm[0], *size_mm))
        facts = {"regions": regions, "times_from": timing.origin}
        source = describe(path, dataset, calibration=calibration, warnings=warnings, facts=facts)
    return _Planar(dataset, layout, grid, timing.times_s, source)


def _pixel_size(
    dataset: pydicom.Dataset, layout: Layout, regions: tuple[Region, ...]
) -> tuple[tuple[float, float] | None, Calibration, list[str]]:
    """Return (y, x) mm from the regions, or from PixelSpacing where there are no regions at all."""
    notes = []
    if "ImagerPixelSpacing" in dataset or "NominalScannedPixelSpacing" in dataset:
        notes.append("a detector or scanner pixel spacing is no ultrasound calibration and is ignored")
    stated = _pixel_spacing(dataset)
    if not regions:
        if stated is None:
            return None, Calibration(Trust.ABSENT, "no ultrasound regions and no pixel spacing"), notes
        if reason := _implausible(stated, layout):
            return None, Calibration(Trust.ABSENT, f"PixelSpacing (0028,0030) is {reason}"), notes
        reason = "PixelSpacing (0028,0030); there are no ultrasound regions"
        return stated, Calibration(Trust.MEASURED, reason), notes
    size_mm, calibration = calibrate(regions, rows=layout.rows, columns=layout.columns)
    if size_mm is not None:
        if stated is not None and not all(
            math.isclose(a, b, rel_tol=0.02) for a, b in zip(stated, size_mm, strict=True)
        ):
            notes.append(f"PixelSpacing {stated} mm disagrees with the regions' {size_mm} mm, which are used")
        if not all(region.is_image or region.spatial_format in ("none", "graphics") for region in regions):
            notes.append("the spacing holds in the 2D regions only, not in M-mode, Doppler or trace regions")
    return size_mm, calibration, notes


def _pixel_spacing(dataset: pydicom.Dataset) -> tuple[float, float] | None:
    value = dataset.get("PixelSpacing")
    if not value or isinstance(value, str) or len(value) != 2:
        return None
    return (float(value[0]), float(value[1]))


def _implausible(spacing_mm: tuple[float, float], layout: Layout) -> str | None:
    if not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        return f"{spacing_mm}"
    if spacing_mm == (1.0, 1.0):
        return "exactly 1 mm, the placeholder that converters write"
    if not 1 / MAX_ANISOTROPY <= spacing_mm[0] / spacing_mm[1] <= MAX_ANISOTROPY:
        return f"contradictory: {spacing_mm[0]} by {spacing_mm[1]} mm"
    if not MIN_EXTENT_MM <= spacing_mm[0] * layout.rows <= MAX_EXTENT_MM:
        return f"impossible: the image would be {spacing_mm[0] * layout.rows:.4g} mm deep"
    return None


def _single(path: Path) -> Path:
    """Return the only file of a folder that has one, else the path itself."""
    if not path.is_dir():
        return path
    files = _dicom_files(path, limit=2, pass_shut=True)
    if not files:
        raise EmptyFileError(path, "the folder holds no DICOM file", "choose the folder of one series")
    return files[0] if len(files) == 1 else path


def _slices(path: Path) -> Sequence[Path]:
    """Return the files of a folder, or of one series in it; none for a file."""
    if dicom_series.is_series_path(path):
        slices = dicom_series.slices_of(path)
        _require_open(path.parent, path.parent.stat().st_mtime_ns)
        return slices
    return _dicom_files(path) if path.is_dir() else ()


@lru_cache(maxsize=64)
def _require_open(folder: Path, mtime_ns: int) -> None:  # noqa: ARG001  the cache's key
    """Raise where a file of a folder is shut: it may be a slice of the series that is read."""
    _dicom_files(folder)


def _dicom_files(folder: Path, *, limit: int | None = None, pass_shut: bool = False) -> list[Path]:
    """Find the DICOM files of a folder, at most ``limit``; what is shut is passed by or an error."""
    found: list[Path] = []
    for file in sorted(folder.iterdir()):
        if not file.is_file() or file.name.upper() == "DICOMDIR":
            continue
        try:
            with file.open("rb") as opened:
                head = opened.read(_HEAD_BYTES)
        except OSError as error:
            if pass_shut:
                continue
            cause = f"it cannot be opened ({error.strerror})"
            raise ReadError(file, cause, "check its permissions") from error
        if is_dicom(file, head):
            found.append(file)
            if limit is not None and len(found) >= limit:
                break
    return found
