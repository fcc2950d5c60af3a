"""Every kind of input becomes layers; what the user must know is said; what is no scan is left to others."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import torch
from napari.layers import Image
from napari.utils.notifications import notification_manager
from pydicom.dataset import FileDataset, FileMetaDataset

from usvol import writing
from usvol.errors import ReadError, UnknownFormatError
from usvol.formats.metaimage import write_image
from usvol.formats.nifti import write_nifti
from usvol.formats.video_writing import write_video
from usvol.frame_access import open_frames
from usvol.loading import load
from usvol.result import Heatmap, Labels, Line, Measurement, Plane, Result
from usvol.scan import Grid, Scan
from usvol_napari import reader
from usvol_napari.frame_layers import lazy_layers
from usvol_napari.layers import Key
from usvol_napari.widgets.shown import shown_scan

GRID = Grid((6, 20, 16), (1.0, 0.5, 0.5), (3.0, 4.0, 5.0))


@pytest.fixture
def said(monkeypatch):
    """Collect what the reader tells the user."""
    texts: list[str] = []
    monkeypatch.setattr(reader, "show_warning", texts.append)
    return texts


@pytest.fixture
def volume(tmp_path):
    path = tmp_path / "volume.nii.gz"
    write_nifti(path, np.random.default_rng(0).integers(0, 255, GRID.shape, dtype=np.uint8), grid=GRID)
    return path


@pytest.fixture
def clip(tmp_path):
    frames = np.zeros((40, 48, 64, 3), np.uint8)
    for number in range(40):
        frames[number, :, number] = (255, 40, 40)
    return write_video(tmp_path / "clip.avi", frames, fps=20)


def test_sniffing_takes_what_usvol_reads_and_leaves_the_rest(volume, clip, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    for path in (volume, clip):
        assert reader.get_reader(str(path)) is reader.read_layers
    assert reader.get_reader([str(volume), str(clip)]) is reader.read_layers
    for path in (tmp_path / "notes.txt", tmp_path / "table.csv", tmp_path / "missing.nii", tmp_path):
        assert reader.get_reader(str(path)) is None
    assert reader.get_reader([str(volume), str(tmp_path / "notes.txt")]) is None


def test_a_calibrated_volume_lies_in_mm(volume, said):
    ((data, options, kind),) = reader.read_layers(str(volume))
    assert (kind, data.shape) == ("image", GRID.shape)
    assert options["scale"] == GRID.spacing_mm
    assert options["translate"] == pytest.approx((3.0, 4.0, 5.0))
    assert options["units"] == ("mm",) * 3
    assert options["axis_labels"] == ("z", "y", "x")
    assert options["metadata"][Key.SOURCE].path == volume
    assert said == []


def test_an_uncalibrated_file_is_shown_in_pixels_and_says_why(clip, tmp_path, said):
    ((data, options, _),) = reader.read_layers(str(clip))
    assert data.shape == (40, 48, 64, 3)
    assert options["units"] == ("s", "pixel", "pixel")
    assert options["scale"] == pytest.approx((0.05, 1.0, 1.0))
    assert any("a video file carries no scale" in text for text in said)


def test_folders_are_read_as_one_scan(tmp_path, dicom_series):
    assert reader.get_reader(str(dicom_series)) is not None
    ((data, options, _),) = reader.read_layers(str(dicom_series))
    assert data.shape == (4, 10, 12)
    assert options["units"] == ("mm",) * 3


def test_each_series_of_a_folder_is_a_scan(dicom_series):
    for path in sorted(dicom_series.iterdir())[:3]:
        image = pydicom.dcmread(path)
        image.SeriesInstanceUID += ".9"
        image.save_as(path.with_name(f"other_{path.name}"))
    layers = reader.read_layers(str(dicom_series))
    assert sorted(len(data) for data, _, _ in layers) == [3, 4]
    assert len({options["name"] for _, options, _ in layers}) == 2
    again = layers[0][1]["metadata"][Key.SOURCE].path
    assert reader.get_reader(str(again)) is reader.read_layers


@pytest.fixture
def dicom_series(tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    for z in range(4):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{z}"
        image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, f"1.2.3.{z}"
        image.SeriesInstanceUID, image.StudyInstanceUID, image.Modality = "1.2.3", "1.2", "MR"
        image.Rows, image.Columns, image.SamplesPerPixel = 10, 12, 1
        image.PhotometricInterpretation, image.PixelRepresentation = "MONOCHROME2", 0
        image.BitsAllocated = image.BitsStored = 8
        image.HighBit = 7
        image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 2 * z], [1, 0, 0, 0, 1, 0]
        image.PixelSpacing = [0.5, 0.6]
        image.PixelData = bytes([z * 10] * 120)
        image.save_as(folder / f"{z}.dcm", enforce_file_format=True)
    return folder


def test_bad_files_raise_usvols_own_errors(tmp_path):
    path = tmp_path / "cut.nii"
    write_nifti(path, np.zeros(GRID.shape, np.uint8), grid=GRID)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ReadError, match="To fix"):
        reader.read_layers(str(path))
    (tmp_path / "paper.nii.gz").write_bytes(b"%PDF-1.7 nothing")
    with pytest.raises(UnknownFormatError):
        reader.read_layers(str(tmp_path / "paper.nii.gz"))


def test_long_cines_are_decoded_when_looked_at_and_exactly(clip, monkeypatch):
    expected = load(clip).data.numpy()[:, :, 0]
    frames = open_frames(clip, larger_than_bytes=0)
    assert frames is not None
    asked = []
    watched = type(frames)(frames.header, lambda a, b: (asked.append((a, b)), frames.read(a, b))[1])
    monkeypatch.setattr("usvol_napari.frame_layers._CHUNK_BYTES", 8 * 48 * 64 * 3)
    ((data, options, _),) = lazy_layers(watched)
    assert not asked
    assert data.shape == (40, 48, 64, 3)
    assert options["rgb"]
    for place in (0, 39, 17, 18, 3):
        np.testing.assert_array_equal(np.asarray(data[place]), np.moveaxis(expected[place], 0, -1))
    assert max(stop - start for start, stop in asked) == 8
    assert len(asked) == len(set(asked)), "no chunk is decoded twice"
    assert options["scale"] == pytest.approx((0.05, 1.0, 1.0))


def results(folder, volume):
    scan = load(volume)
    mask = torch.zeros(1, *scan.grid.shape, dtype=torch.uint8)
    mask[0, 2:4, 5:9, 5:9] = 1
    findings = (
        Labels("organ", mask, scan.grid, {1: "liver"}),
        Heatmap("evidence", mask.float() * 0.5, scan.grid),
        Plane("axial", (5.0, 8.0, 8.0), (0.8, 0.6, 0.0), (0.6, -0.8, 0.0)),
        Line("needle", (4.0, 5.0, 6.0), (7.0, 9.0, 10.0)),
    )
    result = Result("toy", scan.grid, scan.source, findings, (Measurement("volume", 1.5, "mL"),))
    return writing.write(result, folder, scan=scan)


def test_a_result_folder_brings_scan_findings_and_measurements(volume, tmp_path, said):
    item = results(tmp_path / "items" / "volume-1", volume)
    assert reader.get_reader(str(item)) is not None
    layers = reader.read_layers(str(item))
    names = [options["name"] for _, options, _ in layers]
    assert names[:3] == ["volume.nii.gz", "organ", "evidence"]
    assert {"axial", "axial outline", "needle", "needle ends"} <= set(names)
    shown = [options["metadata"][Key.RESULT] for _, options, _ in layers]
    assert all(result is shown[0] for result in shown)
    assert shown[0].measurements == (Measurement("volume", 1.5, "mL"),)
    assert np.asarray(layers[1][0]).sum() == 2 * 4 * 4
    assert said == []


def test_a_batch_folder_opens_its_first_result_and_says_where_the_others_are(volume, tmp_path, said):
    out = tmp_path / "out"
    for name in ("a-1", "b-2"):
        results(out / "items" / name, volume)
    (out / "run.json").write_text("{}")
    assert reader.get_reader(str(out)) is not None
    layers = reader.read_layers(str(out))
    assert layers[0][1]["name"] == "volume.nii.gz"
    assert "2 results" in said[0]


def test_without_its_scan_a_result_shows_the_findings_alone(volume, tmp_path, said):
    item = results(tmp_path / "items" / "volume-1", volume)
    volume.unlink()
    layers = reader.read_layers(str(item))
    assert layers[0][1]["name"] == "organ"
    assert layers[0][1]["translate"] == pytest.approx((3.0, 4.0, 5.0))
    assert "Only the findings are shown" in said[0]


def test_a_scan_that_changed_since_is_told(volume, tmp_path, said):
    from usvol.pipeline import input_sha256

    scan = load(volume)
    before = {"input_sha256": input_sha256(volume)}
    item = writing.write(Result("toy", scan.grid, scan.source, (), (), (), before), tmp_path / "item")
    reader.read_layers(str(item))
    assert said == []
    write_nifti(volume, np.ones(GRID.shape, np.uint8), grid=GRID)
    reader.read_layers(str(item))
    assert "has changed" in said[0]


def test_a_stated_spacing_comes_back_with_the_result(tmp_path, said):
    path = tmp_path / "plain.nrrd"
    write_image(path, np.zeros(GRID.shape, np.uint8), grid=Grid(GRID.shape))
    scan: Scan = load(path).with_spacing((1.0, 0.5, 0.5))
    item = writing.write(Result("toy", scan.grid, scan.source, (), ()), tmp_path / "item")
    ((_, options, _),) = reader.read_layers(str(item))
    assert options["scale"] == (1.0, 0.5, 0.5)
    assert options["units"] == ("mm",) * 3
    again = shown_scan(Image(np.zeros(GRID.shape), metadata=options["metadata"]))
    assert again is not None
    assert again.read().grid == scan.grid, "as a task that is run again reads it"


def test_a_stated_frame_rate_comes_back_with_the_result(clip, tmp_path, said):
    scan = load(clip).with_fps(50)
    item = writing.write(Result("toy", scan.grid, scan.source, (), ()), tmp_path / "item")
    ((_, options, _),) = reader.read_layers(str(item))
    assert options["scale"][0] == pytest.approx(1 / 50)
    again = shown_scan(Image(np.zeros((2, 8, 8)), metadata=options["metadata"]))
    assert again is not None
    assert again.read().times_s == scan.times_s


def test_notifications_are_naparis_own(clip):
    before = len(notification_manager.records)
    reader.read_layers(str(clip))
    assert any("no scale" in record.message for record in notification_manager.records[before:])
