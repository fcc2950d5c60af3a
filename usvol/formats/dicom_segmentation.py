"""Write a label map as DICOM Segmentation (DICOM PS3.3 A.51) that refers to the images it was made on.

Written where the source lets frames be referred to: series of slices in patient space, and single images. The
frames of a cine have no place of their own, which the standard's encoder (highdicom) asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from usvol.errors import UnsupportedFormatError
from usvol.formats import dicom
from usvol.formats.dicom_header import is_dicom
from usvol.formats.dicom_series import is_series_path
from usvol.scan import Grid

if TYPE_CHECKING:
    import pydicom

    from usvol.result import Labels

_REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
# Type 2 (PS3.3 C.7.1.1, C.7.2.1): copied into the segmentation, empty where not known.
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime",
)  # fmt: skip
_ENHANCED_US_VOLUME = "1.2.840.10008.5.1.4.1.1.6.2"
_WAY = "write the labels as NIfTI (.nii.gz) or NRRD (.nrrd) instead"
_HEAD_BYTES = 256
_SAMPLE = 0.05  # of a slice's place, in samples


def write_segmentation(path: Path, labels: Labels, *, source: Path, algorithm: str = "usvol") -> Path:
    """Write ``labels`` of the scan at ``source`` (a DICOM file, folder or series of one) as DICOM SEG.

    They lie on the grid of the whole scan, as ``load`` gives it; ``algorithm`` is the task that found them.

    Raises:
        UnsupportedFormatError: the source is no DICOM, lacks identifiers, or has no frames that a
            segmentation could refer to; or there is nothing to write.
    """
    images = _images(source)
    _require_identifiers(source, images)
    _fill_absent(images)
    values = [value for value in sorted(labels.names) if bool((labels.data == value).any())]
    if not values:
        raise UnsupportedFormatError(path, "there is no labelled sample to write", "label something first")
    frames = _frames(source, images, labels)
    numbers = np.zeros(256, np.uint8)
    numbers[values] = np.arange(1, len(values) + 1)
    try:
        dataset = _segmentation(images, numbers[frames], [labels.names[v] for v in values], algorithm)
    except (ValueError, AttributeError, TypeError) as error:  # highdicom, of headers it cannot refer to
        raise UnsupportedFormatError(source, f"a segmentation cannot refer to it ({error})", _WAY) from error
    dataset.save_as(path, enforce_file_format=True)
    return path


def _images(source: Path) -> list[pydicom.Dataset]:
    import pydicom

    has_parts = source.is_dir() or is_series_path(source)
    files = dicom.parts(source) if has_parts else [source]
    found: list[pydicom.Dataset] = [pydicom.dcmread(file) for file in files if _is_dicom(file)]
    if not found:
        raise UnsupportedFormatError(source, "a DICOM segmentation needs a DICOM scan to refer to", _WAY)
    return found


def _is_dicom(file: Path) -> bool:
    with file.open("rb") as stream:
        return is_dicom(file, stream.read(_HEAD_BYTES))


def _require_identifiers(source: Path, images: Sequence[pydicom.Dataset]) -> None:
    missing = sorted({name for image in images for name in _REQUIRED if not image.get(name)})
    if missing:
        raise UnsupportedFormatError(source, f"its header lacks {', '.join(missing)}", _WAY)
    if images[0].SOPClassUID == _ENHANCED_US_VOLUME:
        cause = "its planes are placed in the transducer's frame, which a segmentation cannot refer to"
        raise UnsupportedFormatError(source, cause, _WAY)


def _fill_absent(images: Sequence[pydicom.Dataset]) -> None:
    """Leave empty what anonymised files leave out, as the standard does with what is not known."""
    for image in images:
        for name in _MAY_BE_EMPTY:
            if name not in image:
                setattr(image, name, None)


def _frames(source: Path, images: list[pydicom.Dataset], labels: Labels) -> np.ndarray:
    """Return label values ``frame y x`` in the order of the source's frames; sorts ``images`` to match."""
    data = np.asarray(labels.data)
    if labels.grid.is_planar:
        count = int(images[0].get("NumberOfFrames") or 1)
        frames = np.zeros((count, *labels.grid.shape[1:]), np.uint8)
        positions = labels.frame_indices or range(len(data))
        if max(positions) < count:
            frames[list(positions)] = data[:, 0]
        if len(images) == 1 and max(positions) < count and _fits(images[0], frames):
            return frames
    elif len(data) == 1 and len(images) == labels.grid.shape[0]:
        places = [_place(image, labels.grid) for image in images]
        if sorted(p for p in places if p is not None) == list(range(len(images))) and _fits(
            images[0], data[0]
        ):
            images[:] = [images[places.index(z)] for z in range(len(images))]
            return data[0]
    raise UnsupportedFormatError(source, "its frames do not match the labels one to one", _WAY)


def _fits(image: pydicom.Dataset, frames: np.ndarray) -> bool:
    return (int(image.Rows), int(image.Columns)) == frames.shape[1:]


def _place(image: pydicom.Dataset, grid: Grid) -> int | None:
    """Return the index along z of a slice, or None where it is no slice of the grid."""
    position = image.get("ImagePositionPatient")
    if position is None:
        return None
    z, y, x = grid.to_index(np.asarray([float(v) for v in position])[::-1])
    return round(float(z)) if max(abs(z - round(float(z))), abs(y), abs(x)) < _SAMPLE else None


def _segmentation(images: Sequence[Any], frames: np.ndarray, names: Sequence[str], algorithm: str) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    version = metadata.version("usvol")
    made_by = hd.AlgorithmIdentificationSequence(
        name=algorithm, version=version, family=codes.DCM.ArtificialIntelligence
    )
    structure = hd.sr.CodedConcept("91723000", "SCT", "Anatomical structure")
    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=structure,
            segmented_property_type=structure,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
            algorithm_identification=made_by,
        )
        for number, name in enumerate(names, 1)
    ]
    return hd.seg.Segmentation(
        source_images=list(images),
        pixel_array=frames,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=hd.UID(),
        series_number=900,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="usvol",
        manufacturer_model_name="usvol",
        software_versions=version,
        device_serial_number="none",
        omit_empty_frames=True,
    )
