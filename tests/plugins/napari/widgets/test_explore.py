from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("napari")

from napari.layers import Labels, Surface

from usvol.scan import Grid, Scan, Trust
from usvol_napari.widgets.explore import Explore
from usvol_napari.widgets.session import session_of
from usvol_napari.widgets.shown import shown_scan

WAIT_MS = 20_000


@pytest.fixture
def widget(viewer, qtbot):
    widget = Explore(viewer)
    qtbot.addWidget(widget)
    return widget


def unscaled(scan: Scan) -> Scan:
    return dataclasses.replace(scan, grid=Grid(scan.grid.shape), times_s=None)


def test_nothing_is_clipped_at_the_usual_width_of_the_dock(widget, show, clip):
    show(clip)
    widget.resize(380, 600)
    widget.show()
    for part in (widget.sector_box, widget.scale_button):
        assert part.width() >= part.sizeHint().width()
    assert widget.minimumSizeHint().width() <= 380


def test_three_slices_are_linked_to_the_viewer(widget, viewer, analysed, guided, solid, qtbot):
    analysed(guided, solid)
    viewer.layers.selection.active = viewer.layers[0]
    widget.resize(400, 700)
    widget.show()
    viewer.dims.set_point([0, 1, 2], [12.0, 9.0, 4.0])
    widget.views.draw()
    across_z, across_x, across_y = widget.views.views.values()
    assert (across_z._image.width(), across_z._image.height()) == (24, 20)
    assert (across_x._image.width(), across_x._image.height()) == (16, 20)
    assert (across_y._image.width(), across_y._image.height()) == (24, 16)
    outside = across_z._image.pixelColor(0, 0).red()
    assert outside == solid.data[0, 0, 6, 0, 0]
    # The organ is drawn over the tissue in its colour.
    inside = across_z._image.pixelColor(8, 9)
    assert inside.red() > inside.blue()
    across_z.picked.emit(3.0, 20.0)
    assert viewer.dims.point == pytest.approx((12.0, 3.0, 10.0))


def test_an_oblique_plane_is_cut_and_leaves_with_its_box(widget, viewer, show, solid, qtbot):
    show(solid)
    widget.plane_box.setChecked(True)
    qtbot.waitUntil(lambda: any(isinstance(one, Surface) for one in viewer.layers), timeout=WAIT_MS)
    flat = widget.picture._image
    assert (flat.width(), flat.height()) == (24, 40)
    widget.sliders.sliders["turn"].setValue(300)
    qtbot.waitUntil(lambda: widget.picture._image.width() != flat.width(), timeout=WAIT_MS)
    assert viewer.layers.selection.active is viewer.layers[0]
    widget.plane_box.setChecked(False)
    assert len(viewer.layers) == 1


def test_the_sector_is_marked_on_request(widget, viewer, show, qtbot):
    y, x = np.mgrid[:96, :96]
    radius, angle = np.hypot(y + 10, x - 48), np.degrees(np.arctan2(x - 48, y + 10))
    inside = (radius > 25) & (radius < 100) & (np.abs(angle) < 35)
    frames = np.random.default_rng(0).integers(30, 200, (6, 96, 96)) * inside
    show(Scan(torch.from_numpy(frames.astype(np.uint8))[:, None, None], Grid((1, 96, 96))))
    widget.sector_box.setChecked(True)
    qtbot.waitUntil(lambda: any(isinstance(one, Labels) for one in viewer.layers), timeout=WAIT_MS)
    marked = viewer.layers[-1]
    assert marked.data.shape == (96, 96)
    assert (np.asarray(marked.data == 0) == inside).mean() > 0.95
    widget.sector_box.setChecked(False)
    assert len(viewer.layers) == 1


def test_two_clicks_on_a_ruler_turn_pixels_into_millimetres(widget, viewer, show, clip, qtbot):
    layer = show(unscaled(clip))
    assert str(layer.units[-1]) == "pixel"
    dialog = widget.open_calibration()
    assert "absent" in dialog.about.text()
    dialog.begin_ruler()
    dialog.ruler.data = np.array([[10.0, 5.0], [40.0, 45.0]])
    dialog.length.setValue(10.0)
    with qtbot.waitSignal(dialog.stated):
        dialog.ruler_button.click()
    scan = shown_scan(layer).memory
    assert scan.grid.spacing_mm == pytest.approx((0.2, 0.2, 0.2))
    assert scan.calibration.trust is Trust.STATED
    assert layer.scale[-2:] == pytest.approx((0.2, 0.2))
    assert str(layer.units[-1]) == "millimeter"
    assert dialog.ruler is None
    assert "stated by user" in dialog.about.text()
    dialog.fps.setValue(40.0)
    dialog.fps_button.click()
    assert layer.scale[0] == pytest.approx(1 / 40)
    assert shown_scan(layer).memory.times_s[4] == pytest.approx(0.1)
    assert shown_scan(layer).source.stated_fps == shown_scan(layer).memory.source.stated_fps == 40


def test_what_a_dialog_states_is_of_the_scan_it_names(widget, viewer, show, clip):
    lower, upper = show(unscaled(clip)), show(unscaled(clip))
    viewer.layers.selection.active = lower
    dialog = widget.open_calibration()
    dialog.begin_ruler()  # its own layer becomes the active one
    dialog.ruler.data = np.array([[10.0, 5.0], [40.0, 45.0]])
    dialog.length.setValue(10.0)
    dialog.ruler_button.click()
    assert shown_scan(lower).memory.grid.spacing_mm == pytest.approx((0.2, 0.2, 0.2))
    assert not shown_scan(upper).memory.grid.is_calibrated
    assert "stated by user" in dialog.about.text()
    dialog.begin_ruler()
    viewer.layers.selection.active = upper
    assert dialog.ruler is None, "it lies on the other scan"
    assert "absent" in dialog.about.text()
    viewer.layers.remove(lower)
    viewer.layers.remove(upper)
    assert not dialog.isEnabled()


def test_a_scale_is_that_of_every_channel(widget, viewer, show, solid):
    scan = Scan(torch.cat([solid.data, solid.data // 2], 1), Grid(solid.grid.shape))
    show(scan)
    dialog = widget.open_calibration()
    for box in dialog.spacing.values():
        box.setValue(0.5)
    dialog.spacing_button.click()
    assert [tuple(layer.scale) for layer in viewer.layers] == [pytest.approx((0.5,) * 3)] * 2
    assert all(shown_scan(layer).memory.grid.is_calibrated for layer in viewer.layers)


def test_an_oblique_plane_shows_the_frame_that_is_looked_at(widget, viewer, show, qtbot):
    data = torch.arange(10, 250, 60, dtype=torch.uint8)[:, None, None, None, None].expand(4, 1, 16, 20, 24)
    show(Scan(data.clone(), Grid((16, 20, 24), (1.0, 1.0, 1.0)), times_s=(0.0, 0.1, 0.2, 0.3)))

    def levels() -> tuple[int, ...]:
        drawn = [one for one in viewer.layers if isinstance(one, Surface)]
        picture = widget.picture._image.pixelColor(5, 5).red() if drawn else -1
        return (picture, *(round(float(np.asarray(one.texture).max()) * 255) for one in drawn))

    viewer.dims.set_point(0, 0.3)
    widget.plane_box.setChecked(True)
    qtbot.waitUntil(lambda: levels() == (190, 190), timeout=WAIT_MS)
    viewer.dims.set_point(0, 0.1)
    qtbot.waitUntil(lambda: levels() == (70, 70), timeout=WAIT_MS)


def test_an_oblique_plane_of_one_volume_is_not_drawn_into_another(widget, viewer, show, solid, qtbot):
    first = show(solid)
    other = show(Scan(torch.full((1, 1, 40, 30, 20), 99, dtype=torch.uint8), Grid((40, 30, 20))))
    viewer.layers.selection.active = first
    widget.plane_box.setChecked(True)
    qtbot.waitUntil(lambda: any(isinstance(one, Surface) for one in viewer.layers), timeout=WAIT_MS)
    viewer.layers.selection.active = other
    assert not widget.plane_box.isChecked()
    assert list(viewer.layers) == [first, other]


def test_slices_show_the_labels_that_lie_there_and_no_others(widget, viewer, show, solid):
    layer = show(solid)
    places = {"scale": layer.scale, "units": layer.units, "axis_labels": layer.axis_labels}
    far = viewer.add_labels(np.ones((16, 20, 24), np.uint8), translate=layer.translate + 500, **places)
    clip = viewer.add_labels(
        np.ones((2, 16, 20, 24), np.uint8), scale=(1, *layer.scale), translate=(0, *layer.translate)
    )
    viewer.layers.selection.active = layer
    widget.resize(400, 700)
    widget.show()
    viewer.dims.set_point([1, 2, 3], [12.0, 9.0, 4.0])

    def colour() -> tuple[int, ...]:
        widget.views.draw()
        return next(iter(widget.views.views.values()))._image.pixelColor(0, 0).getRgb()[:3]

    tissue = (int(solid.data[0, 0, 6, 0, 0]),) * 3
    assert colour() != tissue, "of a clip, at its frame"
    clip.visible = False
    assert far.visible and colour() == tissue, "of another place"


def test_slices_of_a_volume_in_colour_have_labels_too(widget, viewer, show, solid):
    layer = show(Scan(torch.cat([solid.data, solid.data // 2, solid.data // 3], 1), solid.grid))
    assert layer.rgb
    widget.resize(400, 700)
    widget.show()
    widget.views.draw()
    view = next(iter(widget.views.views.values()))
    before = view._image.pixelColor(0, 0).getRgb()
    viewer.add_labels(np.ones((16, 20, 24), np.uint8), scale=layer.scale, translate=layer.translate)
    viewer.layers.selection.active = layer
    widget.views.draw()
    assert view._image.pixelColor(0, 0).getRgb() != before


def test_a_typed_spacing_lets_the_same_file_be_measured(widget, viewer, analysed, guided, solid, qtbot):
    session = analysed(guided, unscaled(solid))
    assert [flag.code for flag in session.result.flags].count("not_measured") == 1
    dialog = widget.open_calibration()
    for axis, value in zip("zyx", solid.grid.spacing_mm, strict=True):
        dialog.spacing[axis].setValue(value)
    dialog.spacing_button.click()
    # The result in pixels says nothing of mm: it goes, and the run that follows measures.
    assert session_of(viewer).result is None
    assert len(viewer.layers) == 1
    from usvol import pipeline

    again = pipeline.run(guided, shown_scan(viewer.layers[0]).read(), name="toy")
    assert {m.name: m.value for m in again.measurements} == {
        m.name: m.value for m in pipeline.run(guided, solid, name="toy").measurements
    }


def test_a_typed_spacing_is_that_of_the_axes_shown(widget, viewer, show, solid):
    turned = ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (-1.0, 0.0, 0.0))
    layer = show(Scan(solid.data, Grid(solid.grid.shape, direction=turned)))
    assert layer.data.shape == (20, 24, 16)
    dialog = widget.open_calibration()
    for axis, value in zip("zyx", (5.0, 2.0, 1.0), strict=True):
        dialog.spacing[axis].setValue(value)
    dialog.spacing_button.click()
    assert tuple(layer.scale) == pytest.approx((5.0, 2.0, 1.0))
    assert shown_scan(layer).memory.grid.spacing_mm == pytest.approx((1.0, 5.0, 2.0))


def test_what_is_stated_reaches_a_scan_that_is_read_from_its_file(widget, viewer, show, tmp_path, clip):
    from usvol import loading
    from usvol.formats.video_writing import write_gif

    write_gif(tmp_path / "clip.gif", clip.data[:, 0, 0].numpy(), fps=20)
    layer = show(loading.load(tmp_path / "clip.gif"))
    dialog = widget.open_calibration()
    dialog.spacing["y"].setValue(0.25)
    dialog.spacing["x"].setValue(0.5)
    dialog.spacing_button.click()
    assert shown_scan(layer).read().grid.spacing_mm == (0.25, 0.25, 0.5)
