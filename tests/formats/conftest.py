"""Builders of small DICOM files, as fixtures because test modules cannot import each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

US_IMAGE = "1.2.840.10008.5.1.4.1.1.6.1"
US_MULTIFRAME = "1.2.840.10008.5.1.4.1.1.3.1"
ENHANCED_US_VOLUME = "1.2.840.10008.5.1.4.1.1.6.2"
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"


def build(pixels: np.ndarray, **attributes) -> FileDataset:
    """Return a DICOM image of ``[t] y x [3]`` samples with further attributes."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    # Fixed, so that fuzzing starts from the same bytes every time.
    meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    colour = pixels.ndim > 2 and pixels.shape[-1] == 3
    frames = pixels.ndim - colour == 3
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID = US_MULTIFRAME if frames else US_IMAGE
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality = "US"
    dataset.PatientID, dataset.PatientName = "SECRET-17", "Doe^Jane"
    dataset.Rows, dataset.Columns = pixels.shape[frames : frames + 2]
    if frames:
        dataset.NumberOfFrames = pixels.shape[0]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.add_new(0x7FE00010, "OB" if bits == 8 else "OW", pixels.tobytes() + b"\0" * (pixels.nbytes % 2))
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    return dataset


def region(**changes) -> Dataset:
    """Return a 2D tissue region over a 40 × 60 image at 0.5 mm per pixel."""
    item = Dataset()
    values = {
        "RegionSpatialFormat": 1, "RegionDataType": 1, "RegionFlags": 0, "RegionLocationMinX0": 0,
        "RegionLocationMinY0": 0, "RegionLocationMaxX1": 59, "RegionLocationMaxY1": 39,
        "PhysicalUnitsXDirection": 3, "PhysicalUnitsYDirection": 3, "PhysicalDeltaX": 0.05,
        "PhysicalDeltaY": 0.05,
    }  # fmt: skip
    for keyword, value in (values | changes).items():
        setattr(item, keyword, value)
    return item


def enhanced(
    volume: np.ndarray, affine: np.ndarray, *, step_s: float = 0.05, shuffle: bool = True
) -> FileDataset:
    """Return an Enhanced US Volume of ``t z y x`` samples; ``affine`` maps (x, y, z, 1) to mm."""
    frames = [(t, z) for t in range(volume.shape[0]) for z in range(volume.shape[1])]
    if shuffle:
        np.random.default_rng(5).shuffle(frames)
    dataset = build(np.stack([volume[t, z] for t, z in frames]), SOPClassUID=ENHANCED_US_VOLUME)
    step = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / step
    measures = Dataset()
    measures.PixelSpacing = [step[1], step[0]]
    orientation = Dataset()
    orientation.ImageOrientationVolume = [*axes[:, 0], *axes[:, 1]]
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationVolumeSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for t, z in frames:
        position, temporal, group = Dataset(), Dataset(), Dataset()
        position.ImagePositionVolume = list((affine @ [0, 0, z, 1])[:3])
        temporal.TemporalPositionTimeOffset = t * step_s
        group.PlanePositionVolumeSequence, group.TemporalPositionSequence = [position], [temporal]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    return dataset


def series(folder: Path, volume: np.ndarray, affine: np.ndarray) -> Path:
    """Write ``z y x`` samples as one file per slice, names shuffled."""
    folder.mkdir(parents=True, exist_ok=True)
    step = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / step
    uid = "1.2.826.0.1.3680043.8.498.2"
    for name, z in enumerate(np.random.default_rng(3).permutation(len(volume))):
        build(
            volume[z], SOPClassUID=MR_IMAGE, Modality="MR", SeriesInstanceUID=uid,
            ImagePositionPatient=[f"{v:.10g}" for v in (affine @ [0, 0, z, 1])[:3]],
            ImageOrientationPatient=[f"{v:.10g}" for v in (*axes[:, 0], *axes[:, 1])],
            PixelSpacing=[step[1], step[0]],
        ).save_as(folder / f"{name}.dcm", enforce_file_format=True)  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def dicom_files():
    """Give the builders of this module: ``build``, ``region``, ``enhanced``, ``series``, ``save``."""

    class Builders:
        @staticmethod
        def save(path: Path, dataset: pydicom.Dataset) -> Path:
            dataset.save_as(path, enforce_file_format=True)
            return path

    for function in (build, region, enhanced, series):
        setattr(Builders, function.__name__, staticmethod(function))
    return Builders
