"""The toy task and a builder of slice series, as fixtures because test modules cannot import each other."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, UltrasoundImageStorage


def write_slices(
    folder: Path, *, count: int = 6, series: str = "1.2.3", prefix: str = "", level: int = 0
) -> list[Path]:
    """Write slices 1 mm apart, each a file."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for z in range(count):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UltrasoundImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = UID(f"{series}.{z + 1}")
        dataset.SeriesInstanceUID, dataset.Modality = series, "US"
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 8, 10, 1
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.ImagePositionPatient, dataset.PixelSpacing = [0, 0, z], [0.5, 0.5]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelData = bytes([level + z] * 80)
        paths.append(folder / f"{prefix}{z}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


@pytest.fixture
def slices() -> Callable[..., list[Path]]:
    """Give the function that writes slices of one series into a folder."""
    return write_slices


@pytest.fixture(autouse=True)
def toybox(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the package of the task ``bright`` where it is found, for one test."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "toybox"))
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "toybox"]:
        del sys.modules[name]
