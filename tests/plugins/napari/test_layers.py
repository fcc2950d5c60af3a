"""Scans and findings become layers that lie where they should and say what they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from napari.layers import Layer, Points, Shapes
from scipy.spatial.transform import Rotation

from usvol.resampling import reslice
from usvol.result import (
    Box,
    Curve,
    Heatmap,
    Labels,
    Line,
    Plane,
    Result,
    Scores,
    Surface,
)
from usvol.scan import IDENTITY, Calibration, Frame, Grid, Kind, Scan, Source, Trust
from usvol_napari.edits import labels_of, line_of
from usvol_napari.layers import Key, colour_of, finding_layers, notices, result_layers, scan_layers, window
from usvol_napari.placement import placement_of, to_viewer

MEASURED = Source(calibration=Calibration(Trust.MEASURED, "made for this test"))
ROWS = (Rotation.from_euler("zyx", (15, -10, 5), degrees=True).as_matrix() @ np.eye(3)[:, [2, 0, 1]]).tolist()
TURNED = (tuple(ROWS[0]), tuple(ROWS[1]), tuple(ROWS[2]))


def volume(direction=IDENTITY, frames=1) -> Scan:
    grid = Grid((12, 20, 16), (1.0, 0.5, 0.7), (-12.0, 7.0, 3.0), direction, Frame.PATIENT_LPS)
    samples = torch.randint(0, 200, (frames, 1, *grid.shape), dtype=torch.uint8)
    times = None if frames == 1 else tuple(0.05 * i for i in range(frames))
    return Scan(samples, grid, times, MEASURED)


def cine(frames=6) -> Scan:
    grid = Grid((1, 20, 16), (0.5, 0.5, 0.5))
    samples = torch.randint(0, 200, (frames, 3, *grid.shape), dtype=torch.uint8)
    return Scan(samples, grid, tuple(0.04 * i for i in range(frames)), MEASURED)


def made(layer) -> Layer:
    return Layer.create(*layer)


def result_of(scan, *findings, frames=None) -> Result:
    return Result("toy", scan.grid, Source(frame_indices=frames), findings, ())


@pytest.mark.parametrize("direction", [IDENTITY, TURNED])
def test_labels_and_heatmaps_lie_on_the_samples_they_mean(direction):
    scan = volume(direction)
    mask = torch.zeros(1, *scan.grid.shape, dtype=torch.uint8)
    mask[0, 3, 4, 5], mask[0, 9, 15, 2] = 1, 2
    labels = Labels("organs", mask, scan.grid, {1: "liver", 2: "vessel"})
    heat = Heatmap("evidence", (mask == 2).float(), scan.grid)
    image, masks, heats = (
        made(one) for one in (*scan_layers(scan), *result_layers(result_of(scan, labels, heat), scan))
    )
    placement = placement_of(scan)
    for value, index in ((1, (3, 4, 5)), (2, (9, 15, 2))):
        expected = to_viewer([scan.grid.to_world(np.array(index))], placement)[0]
        place = np.argwhere(masks.data == value)[0]
        np.testing.assert_allclose(masks.data_to_world(place), expected, atol=1e-6)
        np.testing.assert_allclose(image.data_to_world(place), expected, atol=1e-6)
        assert image.data[tuple(place)] == scan.data[(0, 0, *index)]
    assert np.argwhere(heats.data == 1).tolist() == np.argwhere(masks.data == 2).tolist()
    assert heats.blending == "additive"
    assert masks.features["name"].tolist() == ["background", "liver", "vessel"]
    np.testing.assert_allclose(masks.get_color(2), colour_of(2), atol=0.01)
    assert image.axis_labels == ("z", "y", "x")
    assert {str(unit) for unit in image.units} == {"millimeter"}
    assert image.metadata[Key.SCAN] is scan


@pytest.mark.parametrize("direction", [IDENTITY, TURNED])
def test_lines_boxes_planes_and_surfaces_lie_in_the_world(direction):
    scan = volume(direction)
    at = [
        tuple(float(v) for v in scan.grid.to_world(np.array(i, float)))
        for i in [(1, 2, 3), (9, 15, 12), (6, 10, 8)]
    ]
    rotation = Rotation.from_euler("zyx", (20, 30, 40), degrees=True).as_matrix()
    axes = tuple(tuple(float(v) for v in row) for row in rotation)
    findings = (
        Line("needle", at[0], at[1], 0.9),
        Box("roi", at[2], (4.0, 3.0, 2.0), axes),
        Plane("cut", at[2], tuple(rotation[:, 0]), tuple(rotation[:, 1])),
        Surface("skin", torch.tensor(at), torch.tensor([[0, 1, 2]]), torch.tensor([1, 2, 0])),
    )
    placement = placement_of(scan)
    by_name = {layer.name: layer for layer in map(made, result_layers(result_of(scan, *findings), scan))}
    ends = by_name["needle ends"]
    np.testing.assert_allclose(ends.data, to_viewer(at[:2], placement), atol=1e-5)
    assert line_of(ends).tip == pytest.approx(at[1], abs=1e-4)
    beads = by_name["needle course"].data
    assert np.linalg.norm(np.diff(beads, axis=0), axis=1).max() < min(scan.grid.step)
    corners = np.unique(np.vstack(by_name["roi"].data).round(4), axis=0)
    distances = np.linalg.norm(corners - to_viewer([at[2]], placement), axis=1)
    np.testing.assert_allclose(distances, math.hypot(2.0, 1.5, 1.0), rtol=1e-3)
    np.testing.assert_allclose(by_name["skin"].vertices, to_viewer(at, placement), atol=1e-4)
    normal = to_viewer([rotation[:, 0]], placement)[0]
    for layer in (by_name["cut"].vertices, by_name["cut outline"].data[0]):
        assert np.abs((layer - to_viewer([at[2]], placement)) @ normal).max() < 1e-4


def test_a_plane_carries_the_tissue_it_cuts():
    scan = volume()
    plane = Plane("cut", tuple(scan.grid.to_world(np.array((6.0, 10, 8)))), (0.8, 0.6, 0.0), (0.6, -0.8, 0.0))
    (surface, options, kind), _ = finding_layers(plane, placement_of(scan), scan=scan)
    assert kind == "surface"
    cut = reslice(scan, plane)
    assert options["texture"].shape == (*cut.grid.shape[1:], 3)
    columns, up = options["texcoords"].T
    rows = (1 - up) * cut.grid.shape[1] - 0.5  # napari counts them from the lower edge
    columns = columns * cut.grid.shape[2] - 0.5
    index = np.column_stack([np.zeros(len(rows)), rows, columns])
    np.testing.assert_allclose(cut.grid.to_world(index), surface[0], atol=1e-6)
    assert len(finding_layers(plane, placement_of(scan))) == 1, "without the scan: the outline alone"


def test_the_tissue_on_a_plane_is_drawn_where_it_lies(screen, request, qtbot):
    grid = Grid((8, 40, 60), (1.0, 1.0, 1.0))
    data = torch.zeros(1, 1, *grid.shape, dtype=torch.uint8)
    data[..., 4:10, 40:50] = 255  # near the upper right corner
    plane = Plane("cut", (4.0, 20.0, 30.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0))
    scan = Scan(data, grid)
    surface, _ = finding_layers(plane, placement_of(scan), scan=scan)
    viewer = request.getfixturevalue("make_napari_viewer")(show=True)
    viewer.dims.ndisplay = 3
    viewer.add_layer(made(surface))
    mark = viewer.add_points(
        [[4.0, 6.5, 44.5]], size=4, face_color="red", border_width=0, visible=False, units="mm",
        blending="translucent_no_depth",
    )  # fmt: skip
    viewer.reset_view()
    qtbot.wait(300)  # until the window is laid out
    tissue = viewer.screenshot(flash=False)[..., :3].min(-1) > 128
    mark.visible = True
    red, others = np.split(viewer.screenshot(flash=False)[..., :3].astype(int), [1], axis=-1)
    marked = (red[..., 0] - others.max(-1)) > 128
    assert marked.any()
    middles = [np.argwhere(drawn).mean(0) for drawn in (tissue, marked)]
    width = np.ptp(np.argwhere(tissue)[:, 1])  # of 10 samples
    np.testing.assert_allclose(*middles, atol=width / 10)


def test_masks_of_some_frames_lie_on_those_frames_of_the_file():
    scan = cine()
    mask = torch.ones(2, *scan.grid.shape, dtype=torch.uint8)
    labels = Labels("ventricle", mask, scan.grid, {1: "LV"}, (0, 2))
    seen = result_of(scan, labels, frames=(1, 3, 5))  # the task saw every other frame
    (layer,) = (made(one) for one in result_layers(seen, scan))
    assert layer.data.shape == (6, 20, 16)
    assert np.flatnonzero(layer.data.any((1, 2))).tolist() == [1, 5]
    assert {str(unit) for unit in layer.units} == {"second", "millimeter"}
    assert torch.equal(labels_of(layer).data, mask)
    layer.data[3, 5, 5] = 4  # painted where the task saw something
    layer.data[2, 5, 5] = 4  # and where it did not
    edited = labels_of(layer)
    assert edited.frame_indices == (0, 1, 2)
    assert edited.names == {1: "LV", 4: "label 4"}
    assert int((edited.data == 4).sum()) == 1


def test_painting_changes_exactly_the_painted_samples_of_a_turned_file():
    scan = volume(TURNED)
    before = torch.zeros(1, *scan.grid.shape, dtype=torch.uint8)
    labels = Labels("organ", before, scan.grid, {1: "liver"}, size_range={1: (0.9, 1.1)})
    (layer,) = (made(one) for one in result_layers(result_of(scan, labels), scan))
    wanted = scan.grid.to_world(np.array((3, 4, 5)))
    place = np.round(layer.world_to_data(to_viewer([wanted], placement_of(scan))[0])).astype(int)
    layer.data[tuple(place)] = 1
    edited = labels_of(layer)
    assert np.argwhere(edited.data[0].numpy()).tolist() == [[3, 4, 5]]
    assert edited.size_range is None


def test_needles_of_one_frame_are_shown_on_that_frame():
    scan = cine()
    line = Line("needle", (0.0, 1.0, 2.0), (0.0, 6.0, 5.0), None, 1)
    drawn, ends = (made(one) for one in result_layers(result_of(scan, line, frames=(0, 4)), scan))
    np.testing.assert_allclose(ends.data_to_world(ends.data[1]), (4 * 0.04, 6.0, 5.0))
    np.testing.assert_allclose(drawn.data[0][:, 1:], [(1.0, 2.0), (6.0, 5.0)])
    assert {str(unit) for unit in ends.units} == {"second", "millimeter"}
    assert line_of(ends) == line


@pytest.mark.parametrize("solid", [True, False])
def test_lines_and_boxes_of_one_frame_are_drawn_on_no_other(viewer, solid):
    scan = volume(frames=5) if solid else cine(5)
    entry, tip = (tuple(float(v) for v in scan.grid.to_world(np.array(i))) for i in ((0, 2, 3), (0, 15, 12)))
    line = Line("needle", entry, tip, None, 3)
    box = Box("roi", tip, (2.0, 3.0, 2.0), IDENTITY, None, 3)
    layers = [viewer.add_layer(made(one)) for one in result_layers(result_of(scan, line, box), scan)]
    viewer.add_layer(made(scan_layers(scan)[0]))
    step, drawn = scan.times_s[1], []
    viewer.dims.set_point(range(1, viewer.dims.ndim), tip[-viewer.dims.ndim + 1 :])
    for frame in range(5):
        viewer.dims.set_point(0, frame * step)
        drawn += [frame for one in layers if isinstance(one, Points) and len(one._view_indices)]
        shapes = [one for one in layers if isinstance(one, Shapes)]
        drawn += [frame for one in shapes if len(one._data_view._mesh.displayed_triangles)]
    assert set(drawn) == {3}


def test_a_mesh_of_one_frame_is_drawn_on_no_other(viewer):
    scan = volume(frames=5)
    corners = torch.tensor(
        [scan.grid.to_world(np.array(i, float)) for i in [(1, 2, 3), (9, 5, 2), (6, 1, 8)]]
    )
    mesh = Surface("valve", corners, torch.tensor([[0, 1, 2]]), frame_index=1)
    layers = [
        made(one) for one in (*result_layers(result_of(scan, mesh, frames=(0, 3)), scan), *scan_layers(scan))
    ]
    shown, _ = (viewer.add_layer(one) for one in layers)
    viewer.dims.ndisplay = 3
    drawn = []
    for frame in range(5):
        viewer.dims.set_point(0, frame * scan.times_s[1])
        drawn += [frame] * len(shown._view_faces)
    assert drawn == [3], "the second frame that the task saw is the fourth of the file"


def test_curves_and_scores_are_no_part_of_the_picture():
    scan = cine()
    curve = Curve("area", (1.0, 2.0), "mm2", None, (0, 1))
    assert result_layers(result_of(scan, curve, Scores("s", ("a", "b"), (0.5, 0.5), "a")), scan) == []


def test_colour_stays_and_grey_in_three_channels_becomes_one():
    scan = cine()
    (layer,) = (made(one) for one in scan_layers(scan))
    assert layer.rgb
    assert layer.data.shape == (6, 20, 16, 3)
    grey = Scan(scan.data[:, :1].expand(-1, 3, -1, -1, -1), scan.grid, scan.times_s)
    (layer,) = (made(one) for one in scan_layers(grey))
    assert not layer.rgb
    assert layer.contrast_limits == [0.0, 255.0]
    np.testing.assert_array_equal(layer.data, scan.data[:, 0, 0])


def test_deep_samples_get_a_window_of_their_own():
    low, high = window(np.linspace(-100, 900, 4096, dtype=np.float32).reshape(1, 1, 16, 16, 16))
    assert (low, high) == (pytest.approx(-95, abs=1), pytest.approx(895, abs=1))
    assert window(np.full((1, 1, 2, 2, 2), np.nan)) == (0.0, 1.0)


def test_a_missing_scale_is_told_with_its_reason():
    source = Source(calibration=Calibration(Trust.ABSENT, "a video file carries no scale"))
    told = notices(source, grid=Grid((1, 8, 8)), kind=Kind.CINE, timed=False)
    assert "a video file carries no scale" in told[0]
    assert "frames" in told[1]
    assert notices(MEASURED, grid=volume().grid, kind=Kind.VOLUME, timed=False) == ()
