"""Every task in a real window: its sample is opened, run, shown in place, and measured as by ``usvol run``.

Pictures of the windows lie in the folder $USVOL_SCREENSHOTS, else in the test's own folder.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("napari")

from usvol import registry
from usvol.cli import app
from usvol.result import Box, Curve, Heatmap, Labels, Line, Plane, Result, Scores, Surface
from usvol.result_reading import read_result
from usvol_napari import sample
from usvol_napari.layers import Key
from usvol_napari.placement import to_viewer
from usvol_napari.result_folder import items_of
from usvol_napari.widgets import built_tasks

TASKS = [name for name, entry in registry.tasks().items() if entry.package in {"models3d", "video"}]
KINDS = {
    Labels: {"Labels"}, Heatmap: {"Image"}, Surface: {"Surface"}, Box: {"Shapes"},
    Plane: {"Surface", "Shapes"}, Line: {"Shapes", "Points"}, Curve: set(), Scores: set(),
}  # fmt: skip
PATIENCE_MS = 240_000


@pytest.fixture
def window(screen, request, monkeypatch, tmp_path):
    """Return a viewer and the workbench, as the menus open them; samples are made in the test's folder."""
    monkeypatch.setattr(sample.platformdirs, "user_cache_dir", lambda _name: str(tmp_path / "cache"))
    monkeypatch.setattr(built_tasks, "_BUILT", {})
    viewer = request.getfixturevalue("make_napari_viewer")(show=True)
    viewer.window.resize(1400, 900)
    return viewer, viewer.window.add_plugin_dock_widget("usvol-napari", "usvol")[1]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_runs_on_its_sample_and_everything_is_where_it_should_be(task, window, tmp_path, qtbot):
    viewer, workbench = window
    (scan,) = viewer.open_sample("usvol-napari", task)
    run = workbench.run_task
    run.task_menu.setCurrentIndex(run.task_menu.findData(task))
    run.device_menu.setCurrentText("cpu")
    run.run_button.click()
    qtbot.waitUntil(lambda: not run.job.running, timeout=PATIENCE_MS)
    assert run.message_box is None, run.message_box.text()
    result = workbench.session.result

    for finding in result.findings:
        layers = [one for one in viewer.layers if one.metadata.get(Key.FINDING) is finding]
        assert {type(one).__name__ for one in layers} == KINDS[type(finding)], finding.name
        for layer in layers:
            assert_in_place(layer, finding, scan)
    assert_said(result, workbench)
    assert_seen(viewer, task, tmp_path, qtbot)
    written = written_by_the_command_line(task, scan.metadata[Key.SOURCE].path, tmp_path / "out")
    assert result.measurements == written.measurements
    assert result.flags == written.flags
    assert workbench.results.table.measurements == result.measurements


def assert_in_place(layer, finding, scan):
    """A layer shows its finding where the world has it, on or within the scan."""
    placement = layer.metadata[Key.PLACEMENT]
    space = len(placement.space_axes)
    low, high = (np.asarray(bound)[-space:] for bound in scan.extent.world)
    if isinstance(finding, Labels | Heatmap):
        assert np.allclose(layer.extent.world, scan.extent.world)
        seen = layer.metadata[Key.SOURCE].frame_indices or range(placement.frames)
        frames = [seen[position] for position in finding.frame_indices or range(len(finding.data))]
        marked = np.argwhere(np.asarray(finding.data) > 0)
        for frame, *index in marked[:: max(1, len(marked) // 50)]:
            point = to_viewer(finding.grid.to_world(np.array(index, float)), placement)[0]
            time = [frames[frame] * placement.time_step] if placement.has_time else []
            place = np.round(layer.world_to_data([*time, *point])).astype(int)
            assert layer.data[tuple(place)] == finding.data[(frame, *index)]
        return
    middle = np.asarray(layer.extent.world).mean(0)[-space:]
    assert (low <= middle).all()
    assert (middle <= high).all()
    if isinstance(finding, Surface) and np.allclose(placement.tilt, np.eye(3)):
        assert np.allclose(layer.data[0], finding.vertices)
        inside = (low <= layer.data[0]) & (layer.data[0] <= high)
        assert inside.all(1).mean() > 0.8


def assert_said(result: Result, workbench):
    """Curves are plotted, decisions and flags written down."""
    curves = [finding for finding in result.findings if isinstance(finding, Curve)]
    assert (workbench.curve is not None) == bool(curves)
    if curves:
        assert workbench.curve.menu.count() == len(curves)
        assert len(workbench.curve.axes.lines[0].get_xdata()) == len(curves[0].values)
    for finding in result.findings:
        if isinstance(finding, Scores):
            assert str(finding.decision) in workbench.results.title.text()
    assert len(workbench.results.flags.lines) == len(result.flags)


def assert_seen(viewer, task, tmp_path, qtbot):
    """Take pictures of the window, volumes in slices and in 3D; the canvas is not empty."""
    folder = Path(os.environ.get("USVOL_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    volume = not viewer.layers[0].metadata[Key.PLACEMENT].grid.is_planar
    found = viewer.dims.ndisplay  # as the run left it, first
    for ndisplay in (found, 5 - found) if volume else (found,):
        if ndisplay != viewer.dims.ndisplay:
            viewer.dims.ndisplay = ndisplay
            viewer.reset_view()
        qtbot.wait(300)  # until the window is laid out
        path = folder / f"napari_{task}_{ndisplay}d.png"
        window = viewer.window.screenshot(str(path), canvas_only=False, flash=False)
        height, width = window.shape[:2]
        assert window[height // 8 : height // 2, width // 4 : width * 3 // 5, :3].std() > 5
        assert path.stat().st_size > 20_000


def written_by_the_command_line(task, path, out):
    """Return the result that ``usvol run`` writes for a file."""
    outcome = CliRunner().invoke(
        app, ["run", task, str(path), "-o", str(out), "-d", "cpu", "--workers", "1", "-q"]
    )
    assert outcome.exit_code == 0, outcome.output
    (item,) = items_of(out)
    return read_result(item)
