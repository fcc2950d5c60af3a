"""Label maps for other programs: NIfTI, NRRD, MetaImage come back, DICOM SEG refers to the right slices."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import FileDataset, FileMetaDataset
from scipy.spatial.transform import Rotation

from usvol import load
from usvol.errors import UnsupportedFormatError
from usvol.label_export import export_labels
from usvol.loading import scans_in
from usvol.result import Labels
from usvol.scan import Frame, Grid

GRID = Grid((4, 10, 12), (1.5, 0.5, 0.7), (3.0, 4.0, 5.0), frame=Frame.PATIENT_LPS)


def some_labels(grid: Grid, frames: int = 1) -> Labels:
    data = torch.zeros(frames, *grid.shape, dtype=torch.uint8)
    data[..., 2:5, 3:9] = 3
    data[0, 0, 7, 1:4] = 7
    return Labels("organs", data, grid, {3: "liver", 7: "cyst", 9: "not there"})


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_labels_come_back_on_their_grid(suffix, tmp_path):
    labels = some_labels(GRID)
    back = load(export_labels(labels, tmp_path / f"organs{suffix}"))
    assert torch.equal(back.data[0, 0].to(torch.uint8), labels.data[0])
    np.testing.assert_allclose(back.grid.affine, GRID.affine, atol=1e-5)


def test_nifti_keeps_frames_and_their_times(tmp_path):
    labels = some_labels(GRID, frames=3)
    back = load(export_labels(labels, tmp_path / "organs.nii.gz", times_s=(0.0, 0.1, 0.25)))
    assert back.times_s == pytest.approx((0.0, 0.1, 0.25))
    assert torch.equal(back.data[:, 0].to(torch.uint8), labels.data)
    with pytest.raises(UnsupportedFormatError, match=r"nii\.gz"):
        export_labels(labels, tmp_path / "organs.nrrd")


def dicom(frames: np.ndarray, number: int, **attributes) -> FileDataset:
    """Return an image (or cine, ``t y x``) with the identifiers that a real one has."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    cine = frames.ndim == 3
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1" if cine else "1.2.840.10008.5.1.4.1.1.4"
    meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{number}"
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    image.Modality = "US" if cine else "MR"
    for empty in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
                  "StudyDate", "StudyTime", "ReferringPhysicianName"):  # fmt: skip
        setattr(image, empty, "")
    if cine:
        image.NumberOfFrames, image.FrameTime = len(frames), 40
    image.Rows, image.Columns = frames.shape[-2:]
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit = 7
    image.PixelData = frames.tobytes()
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    return image


@pytest.fixture
def series(tmp_path):
    """Write four slices, tilted in the patient, under shuffled names."""
    axes = Rotation.from_euler("xyz", (10, 20, -15), degrees=True).as_matrix()
    folder = tmp_path / "series"
    folder.mkdir()
    samples = np.random.default_rng(0).integers(0, 255, (4, 10, 12), dtype=np.uint8)
    for name, z in enumerate((2, 0, 3, 1)):
        dicom(
            samples[z], z, FrameOfReferenceUID="1.2.9", PixelSpacing=[0.5, 0.7], SliceThickness=1.5,
            ImagePositionPatient=[f"{v:.8g}" for v in np.array((5.0, -3, 10)) + 1.5 * z * axes[:, 2]],
            ImageOrientationPatient=[f"{v:.8g}" for v in (*axes[:, 0], *axes[:, 1])],
        ).save_as(folder / f"{name}.dcm", enforce_file_format=True)  # fmt: skip
    return folder


def test_dicom_seg_lies_where_the_labels_lie(series, tmp_path):
    import highdicom

    scan = load(series)
    labels = some_labels(scan.grid)
    path = export_labels(labels, tmp_path / "organs.dcm", source=series, algorithm="toy")
    written = highdicom.seg.segread(path)
    assert [s.SegmentLabel for s in written.SegmentSequence] == ["liver", "cyst"]
    volume = written.get_volume(combine_segments=True)
    for number, value in ((1, 3), (2, 7)):
        places = np.argwhere(volume.array == number)
        assert len(places) == int((labels.data == value).sum())
        seen = {tuple(np.round(volume.map_indices_to_reference(places)[i], 2)) for i in range(len(places))}
        mine = scan.grid.to_world(np.argwhere(labels.data[0].numpy() == value))[:, ::-1]
        assert seen == {tuple(point) for point in np.round(mine, 2)}


def test_dicom_seg_of_one_of_several_series_refers_to_its_own_slices(series, tmp_path):
    for number in range(2):
        stray = dicom(np.zeros((10, 12), np.uint8), 10 + number, SeriesInstanceUID="1.2.3.5")
        stray.save_as(series / f"stray{number}.dcm", enforce_file_format=True)
    (one,) = scans_in(series)
    assert one.parent == series
    scan = load(one)
    path = export_labels(some_labels(scan.grid), tmp_path / "organs.dcm", source=scan.source.path)
    (referred,) = pydicom.dcmread(path).ReferencedSeriesSequence
    assert referred.SeriesInstanceUID == "1.2.3.4"


def test_dicom_seg_of_an_anonymised_series_leaves_empty_what_its_files_leave_out(series, tmp_path):
    gone = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID")
    for file in series.iterdir():
        image = pydicom.dcmread(file)
        for keyword in (*gone, "StudyDate", "StudyTime", "ReferringPhysicianName"):
            delattr(image, keyword)
        image.save_as(file)
    path = export_labels(some_labels(load(series).grid), tmp_path / "organs.dcm", source=series)
    written = pydicom.dcmread(path)
    assert all(keyword in written and not written.get(keyword) for keyword in gone)


def test_dicom_seg_of_a_cine_says_what_to_write_instead(tmp_path):
    path = tmp_path / "cine.dcm"
    dicom(np.zeros((5, 10, 12), np.uint8), 1).save_as(path, enforce_file_format=True)
    scan = load(path)
    mask = torch.ones(5, 1, 10, 12, dtype=torch.uint8)
    labels = Labels("lv", mask, scan.grid, {1: "left ventricle"})
    with pytest.raises(UnsupportedFormatError, match="Frame of Reference"):
        export_labels(labels, tmp_path / "seg.dcm", source=path)


def test_what_a_segmentation_cannot_refer_to_is_a_typed_error(series, tmp_path):
    target = tmp_path / "seg.dcm"
    labels = some_labels(GRID)
    with pytest.raises(UnsupportedFormatError, match="in memory"):
        export_labels(labels, target)
    export_labels(labels, tmp_path / "labels.nii.gz")
    with pytest.raises(UnsupportedFormatError, match="needs a DICOM scan"):
        export_labels(labels, target, source=tmp_path / "labels.nii.gz")
    with pytest.raises(UnsupportedFormatError, match="one to one"):
        export_labels(labels, target, source=series)  # another grid
    bare = tmp_path / "bare.dcm"
    image = dicom(np.zeros((10, 12), np.uint8), 1)
    del image.StudyInstanceUID
    image.save_as(bare, enforce_file_format=True)
    with pytest.raises(UnsupportedFormatError, match="StudyInstanceUID"):
        export_labels(labels, target, source=bare)
    with pytest.raises(UnsupportedFormatError, match="suffix"):
        export_labels(labels, tmp_path / "labels.xyz")
    assert not target.exists()
