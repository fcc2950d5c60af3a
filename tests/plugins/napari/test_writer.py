"""What is saved is what is shown: labels, table, session and pictures; and it opens again."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from napari.layers import Labels as LabelsLayer
from napari.layers import Layer
from PIL import Image
from scipy.spatial.transform import Rotation

from usvol import load, pipeline, writing
from usvol.errors import ConfigError, UnsupportedFormatError
from usvol.formats.nifti import write_nifti
from usvol.formats.video_writing import write_video
from usvol.measurement import volume_ml
from usvol.result import Labels, Line, Measurement, Result
from usvol.result_reading import read_result
from usvol.scan import Frame, Grid, Scan, Selection
from usvol_napari import writer
from usvol_napari.layers import result_layers, scan_layers
from usvol_napari.reader import read_layers

TURNED = ((0.0, 0.0, -1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
GRID = Grid((6, 20, 16), (1.0, 0.5, 0.7), (3.0, 4.0, 5.0), TURNED, Frame.PATIENT_LPS)


@dataclasses.dataclass
class Toy:
    """A task that measures the volume of its mask."""

    selection: Selection = dataclasses.field(default_factory=Selection)

    def measure(self, findings, scan):
        return (Measurement("volume", volume_ml(findings[0], 1), "mL"),)


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """Return the layers of a volume whose axes are turned, and of what a task found in it."""
    monkeypatch.setattr(writer, "built_task", lambda *_args, **_options: Toy())
    path = tmp_path / "volume.nii.gz"
    write_nifti(path, np.random.default_rng(0).integers(0, 255, GRID.shape, dtype=np.uint8), grid=GRID)
    scan = load(path)
    mask = torch.zeros(1, *scan.grid.shape, dtype=torch.uint8)
    mask[0, 2:4, 5:9, 5:9] = 1
    labels = Labels("organ", mask, scan.grid, {1: "liver"})
    line = Line(
        "needle", *(tuple(map(float, scan.grid.to_world(np.array(i)))) for i in ((1, 2, 3), (4, 9, 9)))
    )
    result = Result("toy", scan.grid, scan.source, (labels, line), Toy().measure((labels,), scan))
    return [*scan_layers(scan), *result_layers(result, scan)], result, scan


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_labels_are_saved_on_the_grid_of_the_file(shown, suffix, tmp_path):
    layers, result, scan = shown
    data, options, _ = layers[1]
    (path,) = writer.write_labels(str(tmp_path / f"mask{suffix}"), data, options)
    back = load(path)
    assert torch.equal(back.data[:, 0].to(torch.uint8), result.findings[0].data)
    np.testing.assert_allclose(back.grid.affine, scan.grid.affine, atol=1e-5)


def test_labels_painted_by_hand_alone_are_saved_as_they_lie(tmp_path):
    data = np.zeros((4, 5, 6), int)
    data[1, 2, 3] = 5
    meta = {"name": "mine", "scale": (2.0, 0.5, 0.5), "units": ("mm", "mm", "mm"), "metadata": {}}
    (path,) = writer.write_labels(str(tmp_path / "mine.nii.gz"), data, meta)
    back = load(path)
    assert back.grid.spacing_mm == pytest.approx((2.0, 0.5, 0.5))
    assert np.argwhere(back.data[0, 0].numpy()).tolist() == [[1, 2, 3]]
    (path,) = writer.write_labels(str(tmp_path / "bare.nii.gz"), data, {"name": "mine"})
    assert not load(path).grid.is_calibrated


@pytest.fixture
def painted(tmp_path):
    """Return a function that saves labels on a layer of napari's own, and reads them again."""

    def save(data, **options):
        layer = LabelsLayer(data, name="mine", **options)
        return load(writer.write_labels(str(tmp_path / "mine.nii.gz"), *layer.as_layer_data_tuple()[:2])[0])

    return save


def test_painted_labels_lie_where_their_layer_does(painted):
    data = np.zeros((4, 5, 6), int)
    data[1, 2, 3] = 5
    turned = Rotation.from_euler("zyx", (20, -10, 5), degrees=True).as_matrix()
    options = {"scale": (2.0, 0.5, -0.7), "translate": (10.0, 20.0, 30.0), "rotate": turned,
               "affine": np.diag([1.0, -1.0, 1.0, 1.0]), "units": "mm"}  # fmt: skip
    back = painted(data, **options)
    assert back.grid.spacing_mm == pytest.approx((2.0, 0.5, 0.7), abs=1e-5)
    for index in ((1, 2, 3), (0, 4, 5)):
        world = back.grid.to_world(np.array(index, float))
        np.testing.assert_allclose(world, LabelsLayer(data, **options).data_to_world(index), atol=1e-4)


def test_the_first_axis_of_painted_labels_may_be_time(painted):
    data = np.zeros((3, 5, 6), int)
    data[2, 2, 3] = 1
    back = painted(data, scale=(0.04, 0.5, 0.25), units=("s", "mm", "mm"))
    assert (back.data.shape[0], back.grid.shape) == (3, (1, 5, 6))
    assert back.grid.spacing_mm[1:] == pytest.approx((0.5, 0.25))
    assert back.times_s == pytest.approx((0.0, 0.04, 0.08))
    back = painted(data, axis_labels=("t", "y", "x"))
    assert (back.data.shape[0], back.grid.is_calibrated, back.times_s) == (3, False, None)


def test_labels_painted_over_a_tilted_scan_lie_on_its_tissue(painted, viewer):
    def tilted(degrees: float) -> Scan:
        direction = Rotation.from_euler("zyx", (degrees, -20, 10), degrees=True).as_matrix()
        rows = tuple(tuple(float(v) for v in row) for row in direction)
        grid = Grid((8, 9, 10), (1.0, 0.5, 0.7), (30.0, 4.0, 5.0), rows, Frame.PATIENT_LPS)
        return Scan(torch.randint(0, 255, (1, 1, 8, 9, 10), dtype=torch.uint8), grid)

    scan = tilted(25)
    shown = viewer.add_layer(Layer.create(*scan_layers(scan)[0]))
    data = np.zeros(shown.data.shape, int)
    data[1, 2, 3] = 1
    own = {"scale": shown.scale, "translate": shown.translate, "units": shown.units}
    back = painted(data, **own)
    assert back.grid.frame == Frame.PATIENT_LPS
    np.testing.assert_allclose(back.grid.affine, scan.grid.affine, atol=1e-4)
    assert back.data[0, 0, 1, 2, 3]
    viewer.add_layer(Layer.create(*scan_layers(tilted(40))[0]))
    with pytest.raises(ConfigError, match="different angles"):
        painted(data, **own)


def test_painted_labels_that_no_file_holds_are_refused(painted):
    data = np.zeros((4, 5, 6), int)
    with pytest.raises(ConfigError, match="sheared"):
        painted(data, shear=(0.2, 0.0, 0.0), units="mm")
    data[1, 2, 3] = 256
    with pytest.raises(ConfigError, match="label 256"):
        painted(data)


def test_dicom_seg_without_a_dicom_source_says_what_to_do(shown, tmp_path):
    data, options, _ = shown[0][1]
    with pytest.raises(UnsupportedFormatError, match="NIfTI"):
        writer.write_labels(str(tmp_path / "mask.dcm"), data, options)


def test_the_table_holds_every_digit(shown, tmp_path):
    layers, result, _ = shown
    (path,) = writer.write_table(str(tmp_path / "table.csv"), layers)
    with Path(path).open(encoding="utf-8", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["name"] == "volume"
    assert float(row["value"]) == result.measurements[0].value
    with pytest.raises(ConfigError, match="Run a task first"):
        writer.write_table(path, layers[:1])


def test_a_session_opens_again_as_it_was_saved(shown, tmp_path):
    layers, result, _ = shown
    (path,) = writer.write_session(str(tmp_path / "session"), layers)
    back = read_result(path)
    assert back.measurements == result.measurements
    assert not any(pipeline.differ(a, b) for a, b in zip(back.findings, result.findings, strict=True))
    again = read_layers(path)
    assert [(kind, options["name"]) for _, options, kind in again] == [
        (kind, options["name"]) for _, options, kind in layers
    ]
    for (one, _, kind), (other, _, _) in zip(layers, again, strict=True):
        if kind in {"image", "labels", "points"}:
            np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=1e-5)


def test_corrections_are_measured_anew_from_exactly_the_edited_mask(shown, tmp_path):
    layers, result, _ = shown
    layers[1][0][0, 0, 0] = 1
    (path,) = writer.write_session(str(tmp_path / "session"), layers)
    back = read_result(path)
    voxel_ml = float(np.prod(GRID.spacing_mm)) / 1000
    before, after = result.measurements[0].value, back.measurements[0].value
    assert after - before == pytest.approx(voxel_ml)
    assert back.provenance["corrected"] == ["organ"]


def test_a_dragged_needle_is_saved_where_it_was_dragged_to(shown, tmp_path):
    layers, result, _ = shown
    ends = next(one for one in layers if one[1]["name"] == "needle ends")
    ends[0][1] += (1.0, 2.0, 3.0)
    (path,) = writer.write_session(str(tmp_path / "session"), layers)
    before, after = (np.array(one.findings[1].tip) for one in (result, read_result(path)))
    np.testing.assert_allclose(after - before, (1.0, 2.0, 3.0), atol=1e-5)


def test_sessions_and_batches_are_the_same_files(shown, tmp_path):
    layers, result, scan = shown
    mine = writer.write_session(str(tmp_path / "session"), layers)[0]
    theirs = writing.write(result, tmp_path / "item", scan=scan)
    names = [sorted(p.name for p in folder.iterdir()) for folder in (tmp_path / "session", theirs)]
    assert names[0] == names[1], mine


def test_pictures_show_scan_and_findings(shown, tmp_path):
    layers, _, _ = shown
    (path,) = writer.write_picture(str(tmp_path / "view.png"), layers)
    with Image.open(path) as picture:
        assert picture.width > 200
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    assert (np.ptp(colours, axis=1) > 60).any(), "the findings are drawn in colour"
    (path,) = writer.write_picture(str(tmp_path / "plain.png"), layers[:1])
    with pytest.raises(ConfigError, match="PNG"):
        writer.write_picture(str(tmp_path / "view.gif"), layers)


def test_a_stated_spacing_is_not_scaled_twice_where_frames_were_shrunk(tmp_path, monkeypatch):
    task = Toy(Selection(max_side_px=40))
    monkeypatch.setattr(writer, "built_task", lambda *_args, **_options: task)
    path = write_video(tmp_path / "clip.avi", np.full((4, 60, 80), 90, np.uint8), fps=10)
    scan = load(path, selection=task.selection).with_spacing((0.2, 0.2, 0.2))
    assert scan.grid.spacing_mm == pytest.approx((0.4, 0.4, 0.4))
    again = writer._scan_of(Result("toy", scan.grid, scan.source, (), ()), [])
    assert again is not None
    assert again.grid == scan.grid and again.calibration == scan.calibration


def test_what_was_stated_is_known_without_the_layer_of_the_scan(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "built_task", lambda *_args, **_options: Toy())
    path = write_video(tmp_path / "clip.avi", np.full((4, 60, 80), 90, np.uint8), fps=10)
    scan = load(path).with_spacing((0.2, 0.2, 0.2)).with_fps(50)
    again = writer._scan_of(Result("toy", scan.grid, scan.source, (), ()), [])
    assert again is not None
    assert (again.grid, again.times_s, again.calibration) == (scan.grid, scan.times_s, scan.calibration)


def test_labels_of_a_clip_keep_its_uneven_times(tmp_path):
    times = (0.0, 0.1, 0.35, 0.4)
    path = tmp_path / "clip.nii.gz"
    write_nifti(path, np.zeros((4, *GRID.shape), np.uint8), grid=GRID, times_s=times)
    scan = load(path)
    labels = Labels("organ", torch.ones(4, *scan.grid.shape, dtype=torch.uint8), scan.grid, {1: "organ"})
    ((data, options, _),) = result_layers(Result("toy", scan.grid, scan.source, (labels,), ()), scan)
    (saved,) = writer.write_labels(str(tmp_path / "organ.nii.gz"), data, options)
    assert load(saved).times_s == pytest.approx(times)
