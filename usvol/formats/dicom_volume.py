"""DICOM volumes: Enhanced US Volume objects, and slice series in a folder.

Sources: Enhanced US Volume, DICOM PS3.3 A.59, C.8.24; Plane Position and Orientation, C.7.6.16.2.
DICOM coordinates are (x, y, z); a ``Grid`` holds (z, y, x).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from usvol.errors import CorruptFileError, ReadError
from usvol.formats import dicom_series
from usvol.formats.dicom_header import (
    ContradictionError,
    Layout,
    annotation_warnings,
    describe,
    open_header,
    text,
    typed_errors,
)
from usvol.formats.dicom_pixels import decode, decoded_dtype
from usvol.formats.dicom_stack import Stack, stack_planes
from usvol.formats.frame_selection import select_frames
from usvol.formats.samples import check_size, to_tensor
from usvol.scan import Calibration, Frame, Grid, Header, Scan, Selection, Source, Trust

if TYPE_CHECKING:
    import pydicom


@dataclass(frozen=True, slots=True)
class _Plane:
    """One 2D plane of a volume: where it lies (x, y, z in mm), when, and of what."""

    position: np.ndarray
    orientation: np.ndarray
    spacing_mm: tuple[float, float]
    time: float | None
    is_patient: bool
    content: str = ""


@dataclass(frozen=True, slots=True)
class _Volume:
    """A volume as its headers describe it; ``order[t][z]`` counts planes in file order."""

    grid: Grid
    order: np.ndarray
    times_s: tuple[float, ...] | None
    source: Source


def probe_enhanced(path: Path, dataset: pydicom.Dataset, *, layout: Layout) -> Header:
    """Describe an Enhanced US Volume without its samples."""
    with typed_errors(path, "reading the functional groups"):
        volume = _enhanced(path, dataset, layout)
        dtype = decoded_dtype(dataset, layout)
    return Header(volume.grid, len(volume.order), layout.channels, dtype, volume.times_s, volume.source)


def read_enhanced(
    path: Path, dataset: pydicom.Dataset, *, layout: Layout, selection: Selection | None = None
) -> Scan:
    """Read an Enhanced US Volume to ``t c z y x``, slices along the normal, times increasing."""
    with typed_errors(path, "reading the functional groups"):
        volume = _enhanced(path, dataset, layout)
    steps = select_frames(len(volume.order), volume.times_s, selection=selection)
    order = volume.order if steps is None else volume.order[list(steps)]
    shape = (order.size, layout.channels, layout.rows, layout.columns)
    check_size(path, shape, dtype=decoded_dtype(dataset, layout))
    kept = np.sort(order, axis=None)
    indices = None if len(kept) == layout.frames else kept.tolist()
    planes = decode(path, dataset, layout=layout, indices=indices)
    times = volume.times_s
    if times is not None and steps is not None:
        times = tuple(times[i] for i in steps)
    samples = planes[np.searchsorted(kept, order)].swapaxes(1, 2)
    source = dataclasses.replace(volume.source, frame_indices=steps)
    return Scan(to_tensor(samples, path), volume.grid, times, source)


def probe_series(folder: Path, files: Sequence[Path]) -> Header:
    """Describe a folder of slices of one series without their samples."""
    series = _series(folder, files)
    volume, channels = series.volume, series.layout.channels
    return Header(volume.grid, len(volume.order), channels, series.dtype, volume.times_s, volume.source)


def are_slices(files: Sequence[Path]) -> bool:
    """Tell whether most files are images with places of their own in space, of fewer series than images."""
    places: list[str] = []
    series: set[str | None] = set()
    for file in files:
        try:
            dataset, layout = open_header(file)
            with typed_errors(file, "reading the DICOM header"):
                place, own = dataset.get("ImagePositionPatient"), text(dataset, "SeriesInstanceUID")
        except ReadError:
            continue
        if layout.frames > 1:
            return False
        if place:
            places.append(str(place))
            series.add(own)
    return 2 * len(places) > len(files) and 2 * len(series) <= len(places) and len(set(places)) > 1


def read_series(folder: Path, files: Sequence[Path]) -> Scan:
    """Read a folder of slices of one series to ``t c z y x``."""
    series = _series(folder, files)
    order, layout = series.volume.order, series.layout
    shape = (*order.shape, layout.channels, layout.rows, layout.columns)
    check_size(folder, shape, dtype=series.dtype)
    samples = np.empty(shape, series.dtype)
    for (t, z), index in np.ndenumerate(order):
        dataset, own = open_header(series.files[index])
        samples[t, z] = decode(series.files[index], dataset, layout=own)[0]
    volume = series.volume
    return Scan(to_tensor(samples.swapaxes(1, 2), folder), volume.grid, volume.times_s, volume.source)


def _enhanced(path: Path, dataset: pydicom.Dataset, layout: Layout) -> _Volume:
    shared = _first(dataset.get("SharedFunctionalGroupsSequence"))
    per_frame = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    if len(per_frame) != layout.frames:
        raise CorruptFileError(
            path, f"it has {layout.frames} frames and {len(per_frame)} frame descriptions", "export it again"
        )
    planes = [_frame_plane(path, group, shared, number) for number, group in enumerate(per_frame)]
    chosen, notes = _one_content(planes)
    stack = stack_planes(
        path,
        np.array([planes[i].position for i in chosen]),
        orientations=np.array([planes[i].orientation for i in chosen]),
        spacings_mm=np.array([planes[i].spacing_mm for i in chosen]),
        times=[planes[i].time for i in chosen],
    )
    mapping, frame, mapping_note = _to_world(dataset, planes[chosen[0]].is_patient)
    grid = _grid(stack, layout, mapping, frame)
    warnings = (*annotation_warnings(dataset), *layout.warnings, *notes, *mapping_note, *stack.warnings)
    note = Calibration(Trust.MEASURED, "plane positions and PixelMeasuresSequence (0028,9110)")
    facts = {"times_from": stack.times_from}
    source = describe(path, dataset, calibration=note, warnings=warnings, facts=facts)
    return _Volume(grid, np.asarray(chosen)[stack.order], stack.times_s, source)


def _frame_plane(path: Path, group: Any, shared: Any, number: int) -> _Plane:
    def value(sequence: str, keyword: str) -> Any:
        for groups in (group, shared):
            item = _first(groups.get(sequence)) if groups is not None else None
            if item is not None and item.get(keyword) is not None:
                return item.get(keyword)
        return None

    place = value("PlanePositionSequence", "ImagePositionPatient")
    axes = value("PlaneOrientationSequence", "ImageOrientationPatient")
    is_patient = place is not None and axes is not None
    if not is_patient:
        place = value("PlanePositionVolumeSequence", "ImagePositionVolume")
        axes = value("PlaneOrientationVolumeSequence", "ImageOrientationVolume")
    spacing = value("PixelMeasuresSequence", "PixelSpacing")
    if place is None or axes is None or spacing is None:
        raise CorruptFileError(
            path, f"frame {number + 1} lacks plane position, orientation or pixel measures", "export it again"
        )
    time = value("TemporalPositionSequence", "TemporalPositionTimeOffset")
    return _Plane(
        position=_vector(place, 3),
        orientation=_vector(axes, 6),
        spacing_mm=(float(spacing[0]), float(spacing[1])),
        time=None if time is None else float(time),
        is_patient=is_patient,
        content=str(value("ImageDataTypeSequence", "DataType") or ""),
    )


def _one_content(planes: Sequence[_Plane]) -> tuple[list[int], tuple[str, ...]]:
    contents = sorted({plane.content for plane in planes})
    if len(contents) < 2:
        return list(range(len(planes))), ()
    kept = "TISSUE_INTENSITY" if "TISSUE_INTENSITY" in contents else contents[0]
    note = f"of {', '.join(contents)} only the frames of {kept} are read"
    return [i for i, plane in enumerate(planes) if plane.content == kept], (note,)


def _to_world(dataset: pydicom.Dataset, is_patient: bool) -> tuple[np.ndarray, Frame, tuple[str, ...]]:
    """Return the map from the planes' coordinates to the world's: patient, else transducer, else volume."""
    if is_patient:
        return np.eye(4), Frame.PATIENT_LPS, ()
    value = dataset.get("VolumeToTransducerMappingMatrix")
    if value is None or len(value) != 16:
        return np.eye(4), Frame.PROBE, ()
    matrix = _vector(value, 16).reshape(4, 4)
    rotation = matrix[:3, :3]
    if not np.allclose(rotation.T @ rotation, np.eye(3), atol=1e-3):
        return np.eye(4), Frame.PROBE, ("VolumeToTransducerMappingMatrix is not rigid and is ignored",)
    return matrix, Frame.PROBE, ()


def _grid(stack: Stack, layout: Layout, mapping: np.ndarray, frame: Frame) -> Grid:
    direction = (mapping[:3, :3] @ stack.direction)[::-1, ::-1]
    origin = (mapping[:3, :3] @ stack.origin_mm + mapping[:3, 3])[::-1]
    return Grid(
        (stack.order.shape[1], layout.rows, layout.columns),
        spacing_mm=stack.spacing_mm,
        origin_mm=tuple(float(v) for v in origin),  # type: ignore[arg-type]
        direction=tuple(tuple(float(v) for v in row) for row in direction),  # type: ignore[arg-type]
        frame=frame,
    )


@dataclass(frozen=True, slots=True)
class _Series:
    """Slices as their headers describe them; ``dtype`` holds the samples of each, scaled by its own slope."""

    volume: _Volume
    files: tuple[Path, ...]
    layout: Layout
    dtype: str


def _series(folder: Path, files: Sequence[Path]) -> _Series:
    headers = [open_header(file) for file in files]
    with typed_errors(folder, "reading the DICOM headers"):
        datasets = [dataset for dataset, _ in headers]
        layouts = [layout for _, layout in headers]
        _check_one_series(folder, datasets, layouts)
        stack = stack_planes(
            folder,
            np.array([_vector(dataset.ImagePositionPatient, 3) for dataset in datasets]),
            orientations=np.array([_vector(dataset.ImageOrientationPatient, 6) for dataset in datasets]),
            spacings_mm=np.array([_vector(dataset.PixelSpacing, 2) for dataset in datasets]),
            times=_series_times(datasets),
        )
        grid = _grid(stack, layouts[0], np.eye(4), Frame.PATIENT_LPS)
        warnings = (*annotation_warnings(datasets[0]), *stack.warnings)
        note = Calibration(Trust.MEASURED, "ImagePositionPatient (0020,0032) and PixelSpacing (0028,0030)")
        facts = {"times_from": stack.times_from, "files": len(files)}
        source = describe(folder, datasets[0], calibration=note, warnings=warnings, facts=facts)
        dtype = np.result_type(*{decoded_dtype(dataset, layout) for dataset, layout in headers}).name
    volume = _Volume(grid, stack.order, stack.times_s, source)
    return _Series(volume, tuple(files), layouts[0], dtype)


def _check_one_series(folder: Path, datasets: Sequence[Any], layouts: Sequence[Layout]) -> None:
    series = {text(dataset, "SeriesInstanceUID") for dataset in datasets}
    if len(series) > 1:
        remedy = dicom_series.choice(folder) or "put each series in a folder of its own"
        raise ReadError(folder, f"it holds {len(series)} series", remedy)
    if any(layout.frames > 1 for layout in layouts):
        remedy = dicom_series.choice(folder) or "open them one by one"
        raise ReadError(folder, "it holds multi-frame files, not only slices", remedy)
    placed = ("ImagePositionPatient", "ImageOrientationPatient")
    if any(not dataset.get(keyword) for dataset in datasets for keyword in placed):
        raise ReadError(
            folder, "its images have no position in space, so they are no volume", "open them one by one"
        )
    if any(not dataset.get("PixelSpacing") for dataset in datasets):
        cause = "its slices have places in space and no PixelSpacing (0028,0030), so they are no volume"
        raise ReadError(folder, cause, "export it again with its pixel spacing, or open them one by one")
    sizes = {(layout.rows, layout.columns, layout.channels, layout.bits_allocated) for layout in layouts}
    if len(sizes) > 1:
        raise CorruptFileError(folder, f"its slices differ in size: {sorted(sizes)}", "export it again")


def _series_times(datasets: Sequence[Any]) -> list[float | None]:
    """Return the trigger time of each slice in s, or None where not all have one."""
    triggers = [text(dataset, "TriggerTime") for dataset in datasets]
    if all(triggers):
        return [float(value) / 1000 for value in triggers if value]
    return [None] * len(datasets)


def _first(sequence: Any) -> Any:
    return sequence[0] if sequence else None


def _vector(values: Any, length: int) -> np.ndarray:
    vector = np.array([float(value) for value in values])
    if vector.shape != (length,) or not np.isfinite(vector).all():
        raise ContradictionError(f"{length} finite numbers are needed for a position, direction or spacing")
    return vector
