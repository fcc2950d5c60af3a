"""Look around: three linked slices, an oblique plane, the sector, and the scale of a scan without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from napari.layers import Layer
from napari.utils.colormaps import DirectLabelColormap
from qtpy.QtWidgets import QCheckBox, QGroupBox, QLabel, QPushButton, QVBoxLayout, QWidget

from usvol.canonical import find_sector
from usvol.errors import UsvolError
from usvol.planes import middle_plane
from usvol.resampling import reslice
from usvol.result import Plane
from usvol.scan import Scan, Selection
from usvol_napari.layers import Key, at_frame, finding_layers, window
from usvol_napari.placement import space_scale, space_translate, to_shown
from usvol_napari.widgets.background import Job
from usvol_napari.widgets.calibration import CalibrationDialog
from usvol_napari.widgets.listening import listen
from usvol_napari.widgets.messages import show_error
from usvol_napari.widgets.orthogonal_views import OrthogonalViews
from usvol_napari.widgets.plane_sliders import PlaneSliders
from usvol_napari.widgets.session import session_of
from usvol_napari.widgets.shown import (
    ShownScan,
    chosen_layer,
    frame_at,
    of_scan,
    same_scan,
    shown_scan,
)
from usvol_napari.widgets.slice_view import SliceView
from usvol_napari.widgets.timers import single_shot

_PLANE, _SECTOR = "oblique plane", "outside the sector"
_REDRAW_MS = 40
_SECTOR_FRAMES = 32  # enough to tell tissue from what is painted around it


class Explore(QWidget):
    """The explore tab."""

    def __init__(self, viewer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.viewer, self.session = viewer, session_of(viewer)
        self.dialog: CalibrationDialog | None = None
        self._cut: tuple[ShownScan, Layer, Scan] | None = None  # what the oblique plane cuts
        self._frame = 0
        self._plane_layers: list[Layer] = []
        self._sector_layer: Layer | None = None
        self.job = Job(self)
        self._take: Callable[[Any], None] | None = None
        self.job.done.connect(self._receive)
        self.job.failed.connect(self._complain)
        self._timer = single_shot(self._draw_plane, self, after_ms=_REDRAW_MS)
        self._build()
        listen(self, self._look, to=(viewer.layers.selection.events.active, viewer.layers.events.inserted))
        listen(self, self._forget, to=(viewer.layers.events.removed,))
        listen(self, self._follow_time, to=(viewer.dims.events.point,))
        self.destroyed.connect(self.job.cancel)
        self._look()

    def _build(self) -> None:
        self.views = OrthogonalViews(self.viewer)
        self.views.setMinimumHeight(300)
        self.flat_button = QPushButton("3D / slices")
        self.flat_button.setToolTip("Turn the large canvas between 3D and one slice")
        self.flat_button.clicked.connect(self._turn)
        self.sector_box = QCheckBox("Mark what lies outside the sector")
        self.sector_box.toggled.connect(self._toggle_sector)
        self.scale_button = QPushButton("State scale, frame rate…")
        self.scale_button.clicked.connect(self.open_calibration)
        self.slices_box, self.plane_box = QGroupBox("Slices"), QGroupBox("Oblique plane")
        column = QVBoxLayout(self.slices_box)
        column.addWidget(self.views)
        column.addWidget(self.flat_button)
        self.plane_box.setCheckable(True)
        self.plane_box.setChecked(False)
        self.sliders, self.picture = PlaneSliders(angle_deg=90.0), SliceView("oblique plane")
        self.picture.setMinimumHeight(180)
        column = QVBoxLayout(self.plane_box)
        column.addWidget(self.sliders)
        column.addWidget(self.picture)
        self.plane_box.toggled.connect(self._toggle_plane)
        self.sliders.moved.connect(lambda _plane: self._timer.start())
        self.nothing = QLabel("Slices and planes need a volume.")
        layout = QVBoxLayout(self)
        for part in (self.sector_box, self.scale_button, self.nothing, self.slices_box, self.plane_box):
            layout.addWidget(part)
        layout.addStretch()

    def open_calibration(self) -> CalibrationDialog:
        """Open the dialog that states scale and frame rate."""
        self.dialog = CalibrationDialog(self.viewer, self)
        self.dialog.stated.connect(self._rescaled)
        self.dialog.show()
        return self.dialog

    def _look(self, _event: Any = None) -> None:
        shown = self._shown()
        active = self.viewer.layers.selection.active
        own = shown_scan(active) if active is not None else None
        if self._cut is not None and own is not None and not same_scan(own, self._cut[0]):
            self.plane_box.setChecked(False)  # it cuts another
        solid = shown is not None and not shown.placement.grid.is_planar
        self.slices_box.setVisible(solid)
        self.plane_box.setVisible(solid)
        self.nothing.setVisible(not solid)
        for part in (self.sector_box, self.scale_button):
            part.setEnabled(shown is not None)

    def _shown(self) -> ShownScan | None:
        found = self._found()
        return found[0] if found else None

    def _found(self) -> tuple[ShownScan, Layer] | None:
        layer = chosen_layer(self.viewer)
        shown = shown_scan(layer) if layer is not None else None
        return None if shown is None or layer is None else (shown, layer)

    def _turn(self) -> None:
        self.viewer.dims.ndisplay = 2 if self.viewer.dims.ndisplay == 3 else 3

    def _rescaled(self, before: ShownScan) -> None:
        """A result in pixels says nothing of a scan in mm: it has to be had again."""
        for layer in [one for one in self.viewer.layers if {Key.FINDING, Key.RESULT} <= {*one.metadata}]:
            if of_scan(layer, before):
                self.viewer.layers.remove(layer)
        if self.session.analysis is not None and same_scan(self.session.analysis.shown, before):
            self.session.show(None)
        self.plane_box.setChecked(False)
        self.sector_box.setChecked(False)

    def _toggle_plane(self, on: bool) -> None:
        found, self._cut = self._found(), None
        self._remove_plane()
        if on and found is not None and not found[0].placement.grid.is_planar:
            shown = found[0]
            self._in_background(lambda: (*found, shown.memory or shown.read()), self._begin_plane)

    def _begin_plane(self, cut: tuple[ShownScan, Layer, Scan]) -> None:
        self._cut = cut
        scan = cut[2]
        reach = float(np.linalg.norm(np.multiply(scan.grid.shape, scan.grid.step))) / 2
        self.sliders.set_start(
            middle_plane(scan.grid, name=_PLANE), reach=reach, unit="mm" if scan.grid.is_calibrated else "px"
        )
        self._draw_plane()

    def _draw_plane(self) -> None:
        """Draw the plane into the volume, and its picture beside."""
        plane = self.sliders.plane
        if plane is None or self._cut is None or not self.plane_box.isChecked():
            return
        shown, layer, scan = self._cut
        self._frame = frame_at(self.viewer, layer, placement=shown.placement)
        drawn = finding_layers(plane, shown.placement, scan=scan, frame=self._frame)
        active = self.viewer.layers.selection.active
        self._remove_plane()
        if not drawn:
            self.picture.clear()
            return
        self._plane_layers = [self.viewer.add_layer(Layer.create(*layer)) for layer in drawn]
        self.viewer.layers.selection.active = active
        self._show_picture(plane, scan)

    def _follow_time(self, _event: Any = None) -> None:
        if self._cut is not None:
            shown, layer, _ = self._cut
            if frame_at(self.viewer, layer, placement=shown.placement) != self._frame:
                self._timer.start()

    def _show_picture(self, plane: Plane, scan: Scan) -> None:
        cut = reslice(at_frame(scan, self._frame), plane)
        low, high = window(np.asarray(scan.data))
        samples = np.clip((np.asarray(cut.data[0, :, 0], np.float32) - low) / (high - low), 0, 1)
        colours = samples if len(samples) == 3 else np.repeat(samples[:1], 3, 0)
        self.picture.show_slice(np.moveaxis(colours * 255, 0, -1), step=cut.grid.step[1:])

    def _remove_plane(self) -> None:
        layers, self._plane_layers = self._plane_layers, []
        for layer in layers:
            if layer in self.viewer.layers:
                self.viewer.layers.remove(layer)

    def _toggle_sector(self, on: bool) -> None:
        shown = self._shown()
        if self._sector_layer is not None and self._sector_layer in self.viewer.layers:
            self.viewer.layers.remove(self._sector_layer)
        self._sector_layer = None
        if on and shown is not None:
            self._in_background(lambda: _outside(shown), self._show_sector)

    def _show_sector(self, found: tuple[np.ndarray, dict[str, Any]]) -> None:
        outside, placed = found
        colours = DirectLabelColormap(
            color_dict={None: (0, 0, 0, 0), 0: (0, 0, 0, 0), 1: (0.34, 0.71, 0.91, 1)}
        )
        active = self.viewer.layers.selection.active
        self._sector_layer = self.viewer.add_labels(
            outside, name=_SECTOR, opacity=0.35, colormap=colours, **placed
        )
        self.viewer.layers.selection.active = active

    def _forget(self, event: Any) -> None:
        if event.value is self._sector_layer:
            self.sector_box.setChecked(False)
        elif event.value in self._plane_layers:
            self.plane_box.setChecked(False)

    def _in_background(self, function: Callable[[], Any], take: Callable[[Any], None]) -> None:
        self.job.cancel()
        self._take = take
        self.job.start(function)

    def _receive(self, answer: Any) -> None:
        if self._take is not None:
            self._take(answer)

    def _complain(self, error: UsvolError) -> None:
        show_error(error, self)


def _outside(shown: ShownScan) -> tuple[np.ndarray, dict[str, Any]]:
    """Return what lies outside the sector, as shown, and where it stands in the viewer."""
    scan = shown.memory or shown.read(Selection(max_frames=_SECTOR_FRAMES))
    mask = find_sector(scan).mask.reshape(1, *scan.grid.shape)
    outside = to_shown((~mask).byte(), scan.grid)[0]
    placement = shown.placement
    placed = {
        "scale": space_scale(placement),
        "translate": space_translate(placement),
        "units": placement.space_units,
        "axis_labels": placement.space_axes,
    }
    return outside.reshape(outside.shape[3 - len(placement.space_axes) :]), placed
