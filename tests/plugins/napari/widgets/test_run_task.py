from __future__ import annotations

import json
import time

import pytest

pytest.importorskip("napari")

import numpy as np
from napari.layers import Labels

from usvol import loading
from usvol.batch.study import Plan, run_study
from usvol_napari.layers import Key
from usvol_napari.widgets import run_task
from usvol_napari.widgets.results_panel import ResultsPanel
from usvol_napari.widgets.run_task import RunTask, tasks_for

PATIENCE_MS = 120_000


def written(path, out, *, task, settings):
    """Return the measurements that ``usvol run`` writes for a file."""
    plan = Plan(task=task, inputs=(str(path),), out=out, device="cpu", settings=settings, workers=1)
    run_study(plan, on_start=lambda _: None, on_outcome=lambda _: None)
    (found,) = out.glob("items/*/result.json")
    return {m["name"]: m["value"] for m in json.loads(found.read_text())["measurements"]}


def finish(widget, qtbot):
    qtbot.waitUntil(lambda: not widget.job.running, timeout=PATIENCE_MS)
    if widget.message_box is not None:
        raise AssertionError(widget.message_box.text())


@pytest.fixture
def panel(viewer, toybox):
    """The run tab and the results below it, of one viewer."""
    return RunTask(viewer), ResultsPanel(viewer)


def test_only_tasks_that_take_the_scan_are_offered(panel, show, clip, solid):
    widget, _ = panel
    assert widget.task_menu.count() == 0
    assert not widget.run_button.isEnabled()
    show(clip)
    offered = {widget.task_menu.itemData(i) for i in range(widget.task_menu.count())}
    assert offered == set(tasks_for(clip.kind))
    assert "covid_severity" in offered
    assert "prenatal" not in offered
    show(solid)
    assert widget.task_menu.findData("prenatal") >= 0
    assert widget.task_menu.findData("covid_severity") < 0
    assert "volume, 16 × 20 × 24" in widget.scan_label.text()


def test_a_run_shows_layers_flags_and_the_numbers_of_the_command_line(
    panel, show, volume_file, tmp_path, qtbot
):
    widget, results = panel
    show(loading.load(volume_file))
    widget.task_menu.setCurrentIndex(widget.task_menu.findData("bright"))
    widget.form.set_value("threshold", 300)
    assert not widget.run_button.isEnabled()
    widget.form.set_value("threshold", 150)
    heard = []
    widget.job.progressed.connect(lambda progress: heard.append(progress.stage))
    widget.run()
    assert widget.cancel_button.isEnabled()
    finish(widget, qtbot)
    assert heard[:3] == ["load model", "read", "canonicalise"]
    asked = written(volume_file, tmp_path / "out", task="bright", settings={"threshold": 150.0})
    assert {m.name: m.value for m in results.table.measurements} == asked
    (layer,) = [one for one in widget.viewer.layers if isinstance(one, Labels)]
    assert layer.metadata[Key.RESULT].measurements == results.table.measurements
    image = widget.viewer.layers[0]
    assert tuple(layer.scale) == tuple(image.scale)
    assert (layer.data == (image.data > 150)).all()
    widget.run()
    finish(widget, qtbot)
    assert sum(isinstance(one, Labels) for one in widget.viewer.layers) == 1


def test_cancelling_takes_less_than_a_second_and_a_new_run_works(
    panel, show, solid, endless, qtbot, monkeypatch
):
    widget, _ = panel
    show(solid)
    monkeypatch.setattr(run_task, "built_task", lambda *_a, **_k: endless)
    ended = []
    real = run_task.analyse

    def watched(*args, **options):
        try:
            return real(*args, **options)
        finally:
            ended.append(time.perf_counter())

    monkeypatch.setattr(run_task, "analyse", watched)
    widget.run()
    qtbot.waitUntil(lambda: "network" in widget.status.text(), timeout=PATIENCE_MS)
    begun = time.perf_counter()
    widget.cancel_button.click()
    assert not widget.job.running
    assert widget.status.text() == "Cancelled."
    assert widget.run_button.isEnabled()
    qtbot.waitUntil(lambda: bool(ended), timeout=5000)
    assert ended[0] - begun < 1
    widget.run()
    assert widget.job.running
    widget.job.cancel()
    qtbot.waitUntil(lambda: len(ended) == 2, timeout=5000)


def test_a_file_that_went_bad_gives_its_error_in_a_box_and_no_traceback(panel, show, volume_file, qtbot):
    widget, _ = panel
    show(loading.load(volume_file))
    volume_file.write_bytes(volume_file.read_bytes()[:60])
    widget.task_menu.setCurrentIndex(widget.task_menu.findData("bright"))
    widget.run()
    qtbot.waitUntil(lambda: widget.message_box is not None, timeout=PATIENCE_MS)
    text = widget.message_box.text()
    assert text.startswith("block.nii.gz: ")
    assert "To fix:" in text
    assert "Traceback" not in text
    assert widget.run_button.isEnabled()
    widget.message_box.close()


@pytest.mark.parametrize("moved", [{}, {"scale": (4, 1, 0.5)}, {"affine": np.diag([1, -1, 1, 1])}])
def test_a_layer_that_was_moved_in_napari_is_told_of(panel, show, solid, qtbot, moved):
    widget, _ = panel
    layer = show(solid)
    for name, value in moved.items():
        setattr(layer, name, value)
    widget.task_menu.setCurrentIndex(widget.task_menu.findData("bright"))
    widget.run()
    finish(widget, qtbot)
    assert ("moved, turned or scaled in napari" in widget.status.text()) == bool(moved)


def test_without_a_scale_there_is_a_mask_and_no_number_in_ml(panel, show, qtbot):
    import dataclasses

    import torch

    from usvol.scan import Grid, Scan

    data = torch.full((1, 1, 8, 9, 10), 90, dtype=torch.uint8)
    data[..., 2:5, 2:6, 3:7] = 220
    scan = Scan(data, Grid((8, 9, 10)))
    widget, results = panel
    show(dataclasses.replace(scan))
    widget.task_menu.setCurrentIndex(widget.task_menu.findData("bright"))
    widget.run()
    finish(widget, qtbot)
    assert results.table.measurements == ()
    said = " ".join(line.text() for line in results.flags.lines)
    assert "No scale" in said
    assert "needs a calibrated scan" in said
    assert any(isinstance(one, Labels) for one in widget.viewer.layers)
