from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

pytest.importorskip("napari")

import torch
from napari.layers import Labels, Points, Surface

from usvol_napari.layers import Key
from usvol_napari.widgets.correction import Correction
from usvol_napari.widgets.run_task import show_analysis

WAIT_MS = 10_000
VOXEL_ML = 2.0 * 1.0 * 0.5 / 1000


@pytest.fixture
def widget(viewer, analysed, guided, solid, qtbot):
    widget = Correction(viewer)
    qtbot.addWidget(widget)
    analysed(guided, solid)
    return widget


def layer(widget, kind, role=None):
    return next(
        one for one in widget.viewer.layers
        if isinstance(one, kind) and Key.FINDING in one.metadata and one.metadata.get(Key.ROLE) == role
    )  # fmt: skip


def test_painting_changes_the_volume_by_exactly_the_painted_voxels(widget, qtbot, number):
    session, labels = widget.session, layer(widget, Labels)
    before = number(session.result, "organ_volume")
    widget.paint("organ", 2)
    assert labels.mode == "paint"
    assert labels.selected_label == 2
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        labels.data_setitem(np.nonzero(np.pad(np.ones((2, 2, 3)), ((4, 10), (5, 13), (6, 15)))), 2)
    assert number(session.result, "cyst_volume") == pytest.approx(12 * VOXEL_ML)
    assert number(session.result, "organ_volume") == pytest.approx(before - 12 * VOXEL_ML)
    assert labels.metadata[Key.RESULT] is session.result
    assert session.result.provenance["corrected"] == ["organ"]
    # What follows from the mask is drawn anew.
    corner = float(layer(widget, Surface).data[0].max())
    assert corner == int((np.asarray(labels.data) > 0).sum()) + int((np.asarray(labels.data) == 2).sum())
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        labels.undo()
    assert session.result is session.analysis.result


def test_the_brush_itself_is_followed_and_scrolling_is_no_correction(widget, viewer, qtbot, number):
    session, labels = widget.session, layer(widget, Labels)
    before = number(session.result, "cyst_volume")
    viewer.dims.set_point(0, 2.0)
    qtbot.wait(400)
    assert not session.busy
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        labels.brush_size = 1
        labels.paint((1, 2, 3), 2)
    assert number(session.result, "cyst_volume") == pytest.approx(before + VOXEL_ML)


def test_dragging_the_tip_measures_the_needle_and_undo_brings_it_back(widget, qtbot, number):
    session, ends = widget.session, layer(widget, Points, "ends")
    before, length = session.findings[1], number(session.result, "needle_length")
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        ends.data = np.array([ends.data[0], [24.0, 12.0, 9.0]])
    moved = session.findings[1]
    assert moved.entry == pytest.approx(before.entry)
    assert moved.tip == pytest.approx((24.0, 12.0, 9.0))
    assert number(session.result, "needle_length") == pytest.approx(math.dist(moved.entry, moved.tip))
    assert number(session.result, "tip_to_plane") == pytest.approx(24.0 - 15.0)
    assert widget.undo_button.isEnabled()
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        widget.undo_button.click()
    assert number(session.result, "needle_length") == length
    assert np.allclose(ends.data, [before.entry, before.tip])


def test_undo_takes_back_what_was_corrected_last(widget, qtbot):
    session, ends, labels = widget.session, layer(widget, Points, "ends"), layer(widget, Labels)
    start, samples = session.findings[1].tip, np.array(labels.data)

    def painted():
        return int((np.asarray(labels.data) != samples).sum())

    def paint(z):
        with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
            labels.data_setitem((np.array([z]), np.array([0]), np.array([0])), 2)

    paint(0)
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        ends.data = np.array([ends.data[0], [24.0, 12.0, 9.0]])
    paint(1)
    paint(2)
    labels.undo()  # as Ctrl+Z
    qtbot.wait(200)
    assert painted() == 2
    states = []
    for _ in range(3):
        widget.undo_button.click()
        states.append((painted(), session.findings[1].tip == start))
    assert states == [(1, False), (1, True), (0, True)]
    assert torch.equal(session.findings[0].data, session.analysis.result.findings[0].data)
    assert not widget.undo_button.isEnabled()


def test_the_sliders_nudge_the_plane_its_picture_and_the_distance(widget, qtbot, number):
    session, picture = widget.session, layer(widget, Surface, "reslice")
    before, texture = session.findings[2], np.array(picture.texture)
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        widget.sliders.sliders["offset"].setValue(40)
    assert number(session.result, "tip_to_plane") == pytest.approx(abs(20.0 - 15.0 - 4.0))
    assert np.allclose(np.asarray(picture.data[0])[:, 0], 19.0)
    assert not np.array_equal(np.array(picture.texture), texture)
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        widget.sliders.sliders["tilt"].setValue(200)
    assert len(picture.data[0]) == len(picture.texcoords)
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        widget.sliders.reset()
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        session.correct(2, dataclasses.replace(before, point=(10.0, 10.0, 6.0)))
    assert number(session.result, "tip_to_plane") == pytest.approx(10.0)


def test_plane_and_map_follow_a_needle_that_is_dragged(viewer, analysed, guided, solid, qtbot):
    class Needled(type(guided)):
        """Its plane lies at the tip, its map marks the tip."""

        def follow(self, findings, changed):
            labels, line, plane, surface = findings
            if 1 not in changed:
                return findings
            data = torch.zeros_like(labels.data)
            data[(0, *solid.grid.to_index(np.array(line.tip)).round().astype(int))] = 2
            labels = labels if 0 in changed else dataclasses.replace(labels, data=data)
            return labels, line, dataclasses.replace(plane, point=line.tip), surface

    widget = Correction(viewer)
    qtbot.addWidget(widget)
    session = analysed(Needled(), solid)
    picture, labels, ends = (
        layer(widget, Surface, "reslice"),
        layer(widget, Labels),
        layer(widget, Points, "ends"),
    )
    before = np.array(labels.data)
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        ends.data = np.array([[2.0, 2.0, 2.0], [8.0, 9.0, 5.0]])
    assert np.allclose(np.asarray(picture.data[0])[:, 0], 8.0)
    assert np.argwhere(labels.data == 2).tolist() == [[4, 9, 10]]
    assert session.result.provenance["corrected"] == ["needle"], "what followed was not corrected by hand"
    qtbot.wait(400)  # the map is looked at for strokes of a brush: there were none
    assert session.result.provenance["corrected"] == ["needle"]
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        widget.sliders.sliders["offset"].setValue(40)  # from where it has followed to
    assert np.allclose(np.asarray(picture.data[0])[:, 0], 12.0, atol=0.1)
    for _ in range(2):
        with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
            widget.undo_button.click()
    assert np.allclose(np.asarray(picture.data[0])[:, 0], 15.0)
    assert np.array_equal(labels.data, before)


def test_the_plane_of_a_clip_shows_the_tissue_of_the_frame_looked_at(viewer, analysed, guided, solid, qtbot):
    moving = torch.stack([torch.full_like(solid.data[0], 60 * t + 10) for t in range(4)])
    clip = dataclasses.replace(solid, data=moving, times_s=(0.0, 0.1, 0.2, 0.3))
    guided.measure = lambda findings, scan: ()
    widget = Correction(viewer)
    qtbot.addWidget(widget)
    analysed(guided, clip)
    picture = layer(widget, Surface, "reslice")
    levels = []
    for time in (0.3, 0.0, 0.1):
        viewer.dims.set_point(0, time)
        levels.append(round(float(np.asarray(picture.texture).max()) * 255))
    assert levels == [190, 10, 70]
    analysis = widget.session.analysis
    show_analysis(viewer, analysis)  # found while another frame than the first is looked at
    assert round(float(np.asarray(layer(widget, Surface, "reslice").texture).max()) * 255) == 70


def test_a_correction_that_no_number_depends_on_is_said_to_be_one(widget, qtbot):
    session, labels = widget.session, layer(widget, Labels)
    assert "follow what you correct" in widget.hint.text()
    numbers = session.analysis.result.measurements
    session.analysis.task.measure = lambda findings, scan: numbers
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        labels.data_setitem((np.array([0]),) * 3, 1)
    assert "None of the numbers below depends on" in widget.hint.text()
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        widget.undo_button.click()
    assert "follow what you correct" in widget.hint.text()


def test_discarding_brings_back_what_the_network_said(widget, qtbot):
    session, labels = widget.session, layer(widget, Labels)
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        labels.data_setitem((np.array([0]),) * 3, 1)
    widget.reset_button.click()
    assert session.result is session.analysis.result
    assert layer(widget, Labels).data[0, 0, 0] == 0


def test_labels_over_time_of_a_3d_clip_are_corrected_frame_by_frame(
    viewer, analysed, beating, solid, qtbot, number
):
    still = solid.data[0]
    moving = torch.stack([still, still.flip(-1), still])
    clip = dataclasses.replace(solid, data=moving, times_s=(0.0, 0.1, 0.2))
    widget = Correction(viewer)
    qtbot.addWidget(widget)
    session = analysed(beating, clip)
    labels = layer(widget, Labels)
    assert labels.data.shape == (3, 16, 20, 24)
    before = [number(session.result, f"volume_{t}") for t in range(3)]
    assert before == pytest.approx([8 * 10 * 12 * VOXEL_ML] * 3)
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        labels.data_setitem((np.array([1, 1]), np.array([0, 1]), np.array([2, 2]), np.array([3, 3])), 1)
    after = [number(session.result, f"volume_{t}") for t in range(3)]
    assert after == pytest.approx([before[0], before[1] + 2 * VOXEL_ML, before[2]])
    viewer.dims.set_point(0, 0.2)
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        widget.paint("chamber", 0)
        labels.brush_size = 1
        labels.paint((2, 5, 6, 8), 0)
    after = [number(session.result, f"volume_{t}") for t in range(3)]
    assert after == pytest.approx([before[0], before[1] + 2 * VOXEL_ML, before[2] - VOXEL_ML])
