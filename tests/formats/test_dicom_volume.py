"""Slice series whose slices differ in more than their place."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from usvol.errors import ReadError
from usvol.formats import dicom


@pytest.fixture
def by_place(tmp_path, dicom_files):
    """Write a series of four slices, each of its number's grey; return its folder and its files in order."""
    volume = np.broadcast_to(np.arange(1, 5, dtype=np.uint8)[:, None, None] * 60, (4, 4, 6)).copy()
    folder = dicom_files.series(tmp_path / "s", volume, np.eye(4))
    return folder, sorted(folder.iterdir(), key=lambda p: pydicom.dcmread(p).ImagePositionPatient[2])


def edit(path, **attributes):
    dataset = pydicom.dcmread(path)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


def test_each_slice_is_scaled_by_its_own_slope(by_place):
    folder, files = by_place
    slopes = [1 if file == min(files) else number + 2 for number, file in enumerate(files)]
    for slope, file in zip(slopes, files, strict=True):
        edit(file, RescaleSlope=str(slope), RescaleIntercept="0")
    scan = dicom.read(folder)
    assert scan.data[0, 0, :, 0, 0].tolist() == [60 * (z + 1) * slope for z, slope in enumerate(slopes)]
    assert dicom.probe(folder).dtype == "float32" == str(scan.data.dtype).removeprefix("torch.")


def test_slices_of_both_signs_keep_their_values(by_place):
    folder, files = by_place
    edit(files[2], PixelRepresentation=1)
    assert dicom.read(folder).data[0, 0, :, 0, 0].tolist() == [60, 120, 180 - 256, 240]


def test_slices_without_pixel_spacing_say_so(by_place):
    folder, files = by_place
    for file in files:
        edit(file, PixelSpacing=None)
    with pytest.raises(ReadError, match=r"no PixelSpacing \(0028,0030\)"):
        dicom.probe(folder)
