from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("napari")

from matplotlib.backend_bases import MouseEvent
from matplotlib.text import Text

from usvol.measurement import ejection_fraction_percent
from usvol_napari.widgets.curve_plot import CurvePlot
from usvol_napari.widgets.workbench import Workbench


def at(plot, index):
    """Return where a point of the curve stands on the canvas, in pixels."""
    return plot.axes.transData.transform((plot.curve.times_s[index], plot.axes.get_ylim()[0]))


def mouse(plot, name, index):
    x, y = at(plot, index)
    plot.canvas.callbacks.process(name, MouseEvent(name, plot.canvas, x, y + 20, button=1))


@pytest.fixture
def plot(viewer, analysed, heart, clip, qtbot):
    analysed(heart, clip)
    plot = CurvePlot(viewer)
    qtbot.addWidget(plot)
    plot.resize(500, 220)
    plot.canvas.draw()
    return plot


def test_what_the_curve_is_can_be_read_in_a_low_dock(plot):
    plot.figure.set_size_inches(5.0, 1.4)
    plot._style(dataclasses.replace(plot.curve, name="volume_of_the_left_ventricle", unit="mL"))
    plot.canvas.draw()
    (text,) = plot.figure.findobj(lambda one: isinstance(one, Text) and "left ventricle" in one.get_text())
    drawn, room = text.get_window_extent(), plot.figure.bbox
    assert drawn.x0 >= room.x0
    assert drawn.x1 <= room.x1
    assert drawn.y0 >= room.y0
    assert drawn.y1 <= room.y1


def test_the_slider_moves_the_cursor_and_a_click_moves_the_slider(viewer, plot):
    viewer.dims.set_point(0, 7 / 20)
    assert plot._artists["cursor"].get_xdata()[0] == pytest.approx(7 / 20)
    assert "frame 7" in plot.reading.text()
    mouse(plot, "button_press_event", 4)
    mouse(plot, "button_release_event", 4)
    assert viewer.dims.point[0] == pytest.approx(4 / 20)
    assert viewer.dims.current_step[0] == 4
    assert "frame 4" in plot.reading.text()


def test_dragging_an_event_measures_anew_and_undo_brings_it_back(viewer, plot, qtbot, number):
    session = plot.session
    values = plot.curve.values
    before = number(session.result, "ef")
    assert before == pytest.approx(ejection_fraction_percent(values[2], values[6]))
    mouse(plot, "button_press_event", 6)
    mouse(plot, "motion_notify_event", 5)
    assert viewer.dims.current_step[0] == 5
    with qtbot.waitSignal(session.measured, timeout=10_000):
        mouse(plot, "button_release_event", 5)
    assert number(session.result, "ef") == pytest.approx(ejection_fraction_percent(values[2], values[5]))
    moved = {event.name: event for event in session.result.findings[1].events}["ES"]
    assert (moved.index, moved.time_s) == (5, pytest.approx(0.25))
    with qtbot.waitSignal(session.measured, timeout=10_000):
        plot.undo_button.click()
    assert number(session.result, "ef") == before
    assert session.result is session.analysis.result


def test_a_curve_made_anew_from_another_correction_is_drawn(plot):
    session, curve = plot.session, plot.curve
    halved = dataclasses.replace(curve, values=tuple(value / 2 for value in curve.values))
    findings = tuple(halved if finding is curve else finding for finding in session.result.findings)
    session.result = dataclasses.replace(session.result, findings=findings)
    session.measured.emit(session.result)
    assert plot.curve is halved
    assert plot.axes.lines[0].get_ydata().tolist() == pytest.approx(halved.values)


def test_a_thinned_clip_is_followed_by_its_file_frames(viewer, analysed, heart, clip, qtbot):
    session = analysed(heart, clip)
    source = dataclasses.replace(clip.source, frame_indices=(0, 3, 6, 9))
    thin = dataclasses.replace(clip, data=clip.data[::3], times_s=clip.times_s[::3], source=source)
    from usvol import pipeline

    result = pipeline.run(heart, thin, name="toy")
    session.show(dataclasses.replace(session.analysis, scan=thin, result=result))
    plot = CurvePlot(viewer)
    qtbot.addWidget(plot)
    plot.go_to(2)
    assert viewer.dims.current_step[0] == 6
    viewer.dims.set_point(0, 8 / 20)
    assert "frame 9" in plot.reading.text()


def test_the_workbench_opens_the_plot_with_the_first_curve(viewer, analysed, heart, clip, qtbot):
    workbench = Workbench(viewer)
    qtbot.addWidget(workbench)
    assert workbench.curve is None
    analysed(heart, clip)
    assert workbench.curve is not None
    assert workbench.curve.curve.name == "area"
    assert len(workbench.results.table.measurements) == 1
