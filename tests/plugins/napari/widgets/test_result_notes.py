"""What is saved holds the numbers shown: after a correction, before it is measured, without layers."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.layers import Image, Labels, Layer

from usvol import pipeline
from usvol.errors import ConfigError
from usvol.result import Measurement, Scores
from usvol_napari import writer
from usvol_napari.layers import Key, scan_layers
from usvol_napari.widgets.correction import Correction
from usvol_napari.widgets.curve_plot import CurvePlot
from usvol_napari.widgets.run_task import show_analysis
from usvol_napari.widgets.session import Analysis, session_of
from usvol_napari.widgets.shown import shown_scan
from usvol_napari.widgets.workbench import Workbench

WAIT_MS = 10_000


def measured(result):
    return {m.name: m.value for m in result.measurements}


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Return a function that saves layers as a table, and returns the measurements written."""

    def save(layers, task):
        monkeypatch.setattr(writer, "built_task", lambda *_a, **_k: task)
        tuples = [layer.as_layer_data_tuple() for layer in layers]
        (path,) = writer.write_table(str(tmp_path / "table.csv"), tuples)
        with Path(path).open(encoding="utf-8", newline="") as stream:
            return {row["name"]: float(row["value"]) for row in csv.DictReader(stream)}

    return save


@pytest.fixture
def guess(heart):
    """A task that finds nothing to be drawn."""

    class Guess(type(heart)):
        def postprocess(self, raw, scan):
            return (Scores("view", ("a", "b"), (0.75, 0.25), "a"),)

        def measure(self, findings, scan):
            return (Measurement("certainty", findings[0].probabilities[0], "1"),)

    return Guess()


def test_a_nudged_plane_is_saved_with_its_numbers_by_whichever_layers(
    viewer, analysed, guided, solid, qtbot, saved
):
    widget = Correction(viewer)
    qtbot.addWidget(widget)
    session = analysed(guided, solid)
    before = measured(session.result)
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        widget.sliders.sliders["offset"].setValue(40)
    now = measured(session.result)
    assert now["tip_to_plane"] != before["tip_to_plane"]
    for layers in (viewer.layers, viewer.layers[:1], viewer.layers[2:4]):
        assert saved(layers, guided) == now
    for layer in viewer.layers[1:]:
        assert any(layer.metadata[Key.FINDING] is one for one in session.result.findings)


def test_what_waits_to_be_measured_is_measured_when_saved(viewer, analysed, guided, solid, qtbot, saved):
    widget = Correction(viewer)
    qtbot.addWidget(widget)
    session = analysed(guided, solid)
    plane = dataclasses.replace(session.findings[2], point=(10.0, 10.0, 6.0))
    session.correct(2, plane)
    (labels,) = [one for one in viewer.layers if isinstance(one, Labels)]
    labels.data[:1, :2] = 2
    at_once = saved(viewer.layers, guided)
    assert at_once["tip_to_plane"] == pytest.approx(10.0)
    assert at_once["cyst_volume"] == pytest.approx(2 * 24 / 1000)
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        pass
    labels.data[:1, :4] = 2  # painted on after it was measured, and not yet heard of
    again = saved(viewer.layers, guided)
    assert again == at_once | {"cyst_volume": pytest.approx(4 * 24 / 1000)}


def test_scores_are_saved_with_the_scan(viewer, analysed, guess, clip, saved):
    session = analysed(guess, clip)
    assert len(viewer.layers) == 1
    assert saved(viewer.layers, guess) == measured(session.result)


def test_a_moved_event_is_saved_with_the_scan(viewer, analysed, heart, clip, qtbot, saved):
    curve = CurvePlot(viewer)
    qtbot.addWidget(curve)
    session = analysed(heart, clip)
    (scan,) = [one for one in viewer.layers if isinstance(one, Image)]
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        curve.move_event(0, 3)
    assert session.result is not session.analysis.result
    assert saved([scan], heart) == measured(session.result)


def test_of_two_results_one_has_to_be_chosen(viewer, analysed, guess, heart, clip, saved):
    analysed(heart, clip)
    scan, labels = viewer.layers
    first = saved([labels], heart)
    result = pipeline.run(guess, clip, name="guess")
    show_analysis(viewer, Analysis(result, shown_scan(scan), task=guess, scan=clip))
    with pytest.raises(ConfigError, match=r"guess, toy.*Select the layers of one task"):
        saved(viewer.layers, heart)
    assert saved([labels], heart) == first
    assert saved([scan], guess) == measured(result)


def test_scans_without_a_file_keep_their_own_findings(viewer, analysed, guided, solid, monkeypatch):
    other = dataclasses.replace(solid, data=solid.data.flip(-1))
    analysed(guided, solid)
    ours = list(viewer.layers)
    session = analysed(guided, other)
    assert len(viewer.layers) == 2 * len(ours)
    monkeypatch.setattr(writer, "built_task", lambda *_a, **_k: guided)
    labels = next(one for one in ours if isinstance(one, Labels))
    labels.data[:1, :2] = 2
    tuples = [layer.as_layer_data_tuple() for layer in reversed(viewer.layers) if layer in ours]
    assert writer._scan_of(ours[1].metadata[Key.RESULT], tuples) is solid
    assert writer.corrected(tuples).provenance["corrected"] == ["organ"]
    assert ours[0].metadata[Key.RESULT] is not session.result


def test_an_added_layer_does_not_bring_back_a_result_from_before(
    viewer, analysed, guided, guess, solid, qtbot
):
    bench = Workbench(viewer)
    qtbot.addWidget(bench)
    analysed(guided, solid)
    qtbot.wait(50)
    other = dataclasses.replace(solid, data=solid.data.flip(-1))
    layer = viewer.add_layer(Layer.create(*scan_layers(other)[0]))
    viewer.layers.move(viewer.layers.index(layer), 0)
    last = pipeline.run(guess, other, name="guess")
    show_analysis(viewer, Analysis(last, shown_scan(layer), task=guess, scan=other))
    viewer.add_points(np.zeros((1, 3)))
    qtbot.wait(50)
    assert session_of(viewer).result is last


@pytest.fixture
def twice(viewer, analysed, guided, beating, solid):
    """Return a session with what two tasks found in one volume, and the two results."""
    session = analysed(guided, solid)
    first, second = session.result, pipeline.run(beating, solid, name="other")
    scan = next(one for one in viewer.layers if isinstance(one, Image))
    show_analysis(viewer, Analysis(second, shown_scan(scan), task=beating, scan=solid))
    return session, first, second


def test_selecting_a_layer_of_an_earlier_result_brings_its_numbers_back(
    viewer, twice, guided, qtbot, monkeypatch, number
):
    session, first, second = twice
    bench = Workbench(viewer)
    qtbot.addWidget(bench)
    qtbot.wait(50)
    assert session.result is second
    viewer.layers.selection.active = viewer.layers[0]
    qtbot.wait(50)
    assert session.result is second, "the scan has both"
    organ = next(one for one in viewer.layers if isinstance(one, Labels))
    viewer.layers.selection.active = organ
    qtbot.waitUntil(lambda: session.result is first, timeout=WAIT_MS)
    monkeypatch.setattr("usvol_napari.widgets.session.built_task", lambda *_a, **_k: guided)
    with qtbot.waitSignal(session.measured, timeout=WAIT_MS):
        organ.data_setitem((np.array([0]),) * 3, 2)
    assert number(session.result, "cyst_volume") == pytest.approx(2.0 * 1.0 * 0.5 / 1000)
    assert session.result.task == "toy"
