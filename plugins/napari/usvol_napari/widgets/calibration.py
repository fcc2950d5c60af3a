"""State scale and frame rate of a scan whose file carries none: typed, or from a ruler in the picture."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from napari.layers import Layer, Points
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QDialog,
    QDoubleSpinBox,
    QFormLayout,
    QGroupBox,
    QLabel,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from usvol.batch.item import Stated
from usvol.measurement import ruler_spacing_mm
from usvol.scan import Header, Scan, Vec3
from usvol_napari.layers import Key
from usvol_napari.placement import (
    at_spacing,
    axes_shown,
    even_step_s,
    oriented_grid,
    space_scale,
    space_translate,
)
from usvol_napari.widgets.listening import listen
from usvol_napari.widgets.messages import show_error
from usvol_napari.widgets.shown import STATED, ShownScan, chosen_layer, header_of, same_scan, shown_scan
from usvol_napari.widgets.signals import Signal

_RULER = "ruler: click its two ends"


class CalibrationDialog(QDialog):
    """Stays beside the window while the user clicks; ``stated`` brings the scan as it was before.

    What is stated is of the scan that it names: the one selected last, whatever is selected since.
    """

    stated = Signal(object)

    def __init__(self, viewer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.viewer = viewer
        self.ruler: Points | None = None
        self._layer: Layer | None = None
        self.setWindowTitle("State scale and frame rate")
        self.setModal(False)
        self.about = QLabel()
        self.about.setWordWrap(True)
        self.about.setTextFormat(Qt.TextFormat.PlainText)
        self.length = _number("mm", 10.0, most=1000)
        self.spacing = {axis: _number("mm", 0.0, most=100) for axis in "zyx"}
        self.fps = _number("frames/s", 0.0, most=5000)
        self.click_button, self.ruler_button = (
            QPushButton("Click the ends of a ruler"),
            QPushButton("Use ruler"),
        )
        self.spacing_button, self.fps_button = QPushButton("State spacing"), QPushButton("State frame rate")
        self.click_button.clicked.connect(self.begin_ruler)
        self.ruler_button.clicked.connect(self.use_ruler)
        self.spacing_button.clicked.connect(self.use_spacing)
        self.fps_button.clicked.connect(self.use_fps)
        ruler, spacing, self.fps_box = QGroupBox("From a ruler"), QGroupBox("Typed"), QGroupBox("Frame rate")
        rows = QFormLayout(ruler)
        rows.addRow(self.click_button)
        rows.addRow("Its length", self.length)
        rows.addRow(self.ruler_button)
        note = QLabel("Takes pixels to be square; if they are not, type the spacing.")
        note.setWordWrap(True)
        rows.addRow(note)
        self._spacing_rows = QFormLayout(spacing)
        for axis, box in self.spacing.items():
            self._spacing_rows.addRow(f"{axis} spacing", box)
        self._spacing_rows.addRow(self.spacing_button)
        rows = QFormLayout(self.fps_box)
        rows.addRow("Rate", self.fps)
        rows.addRow(self.fps_button)
        layout = QVBoxLayout(self)
        for part in (self.about, ruler, spacing, self.fps_box):
            layout.addWidget(part)
        self.finished.connect(lambda _code: self._drop_ruler())
        listen(self, self.look, to=(viewer.layers.selection.events.active, viewer.layers.events.removed))
        self.look()

    def look(self, _event: Any = None) -> None:
        """Say what is known of the scan that is meant."""
        meant = self._meant()
        if meant is not self._layer:
            self._layer = meant
            self._drop_ruler()  # it lies on the scan meant before
        found = self._found()
        self.setEnabled(found is not None)
        if found is None:
            self.about.setText("Open a scan first.")
            return
        shown = found[1]
        trust = shown.source.calibration
        self.about.setText(f"{shown.layer_name}: scale {trust.trust}.\n{trust.reason}")
        self._spacing_rows.setRowVisible(0, not shown.placement.grid.is_planar)
        self.fps_box.setVisible(shown.placement.has_time)

    def begin_ruler(self) -> None:
        """Let the user click the two ends of a ruler on the picture."""
        found = self._found()
        if found is None:
            return
        self._drop_ruler()
        placement = found[1].placement
        self.ruler = ruler = self.viewer.add_points(
            ndim=len(placement.space_axes), name=_RULER, face_color="#f0e442", border_color="white",
            size=8 * min(space_scale(placement)), symbol="cross",
        )  # fmt: skip
        ruler.units = placement.space_units
        ruler.mode = "add"

    def use_ruler(self) -> None:
        """State the spacing that two clicks and the ruler's length give."""
        found = self._found()
        points = [] if self.ruler is None else self.ruler.data
        if found is None or len(points) != 2:
            show_error(ValueError(f"Click the two ends of the ruler: there are {len(points)} points."), self)
            return
        layer, _ = found
        start, end = (_samples(layer, point) for point in points)
        try:
            spacing = ruler_spacing_mm(start, end, length_mm=self.length.value())
        except ValueError as error:
            show_error(error, self)
            return
        self._drop_ruler()
        self._state(Stated(spacing_mm=(spacing, spacing, spacing)))

    def use_spacing(self) -> None:
        """State the spacing that was typed."""
        found = self._found()
        if found is None:
            return
        placement = found[1].placement
        z, y, x = (self.spacing[axis].value() for axis in "zyx")
        typed = (y if placement.grid.is_planar else z, y, x)
        first, second, third = axes_shown(placement.file_grid)
        spacing = (typed[first], typed[second], typed[third])  # of the file, whose axes may be others
        if min(spacing) <= 0:
            show_error(ValueError("Every spacing must be above 0 mm."), self)
            return
        self._state(Stated(spacing_mm=spacing))

    def use_fps(self) -> None:
        """State the frame rate that was typed."""
        if self.fps.value() <= 0:
            show_error(ValueError("The frame rate must be above 0."), self)
            return
        self._state(Stated(fps=self.fps.value()))

    def _state(self, facts: Stated) -> None:
        found = self._found()
        if found is not None:
            for layer in [one for one in self.viewer.layers if _shows(one, found[1])]:
                state(layer, facts)
            self.viewer.reset_view()
            self.look()
            self.stated.emit(found[1])

    def _meant(self) -> Layer | None:
        chosen, active = chosen_layer(self.viewer), self.viewer.layers.selection.active
        return self._layer if self._layer in self.viewer.layers and chosen is not active else chosen

    def _found(self) -> tuple[Layer, ShownScan] | None:
        layer = self._layer
        shown = shown_scan(layer) if layer is not None else None
        return None if layer is None or shown is None else (layer, shown)

    def _drop_ruler(self) -> None:
        if self.ruler is not None and self.ruler in self.viewer.layers:
            self.viewer.layers.remove(self.ruler)
        self.ruler = None


def state(layer: Layer, facts: Stated) -> None:
    """Give the scan of an image layer the scale or frame rate that the user states, and show it so."""
    shown = shown_scan(layer)
    assert shown is not None
    notes, placement = dict(layer.metadata), shown.placement
    source = shown.source
    if facts.spacing_mm is not None:
        spacing_mm: Vec3 = facts.spacing_mm
        source = source.with_stated_spacing(spacing_mm)
        grid = placement.file_grid.with_spacing(placement.file_grid.per_file_sample(spacing_mm))
        placement = dataclasses.replace(placement, grid=oriented_grid(grid), file_grid=grid)
    known = notes.get(Key.SCAN) or header_of(layer)
    if known is not None:
        known = _stated(known, facts)
        notes[Key.SCAN if isinstance(known, Scan) else Key.HEADER] = known
    if facts.fps is not None:
        source = dataclasses.replace(source, stated_fps=facts.fps)
        step_s = even_step_s(known.times_s) if known is not None else 1 / facts.fps
        placement = dataclasses.replace(placement, step_s=step_s)
    before = notes.get(STATED, Stated())
    notes[STATED] = Stated(facts.spacing_mm or before.spacing_mm, facts.fps or before.fps)
    notes |= {Key.SOURCE: source, Key.PLACEMENT: placement}
    time = placement.has_time
    for outdated in (Key.RESULT, Key.CORRECTED):
        notes.pop(outdated, None)
    layer.metadata = notes
    layer.scale = np.array((*((placement.time_step,) if time else ()), *space_scale(placement)))
    layer.translate = (*((0.0,) if time else ()), *space_translate(placement))
    layer.units = placement.units


def _shows(layer: Layer, shown: ShownScan) -> bool:
    """Tell whether a layer shows a scan, or one channel of it."""
    own = shown_scan(layer)
    return own is not None and same_scan(own, shown)


def _stated(known: Any, facts: Stated) -> Scan | Header:
    if facts.spacing_mm is not None:
        known = at_spacing(known, facts.spacing_mm)
    return known.with_fps(facts.fps) if facts.fps is not None else known


def _samples(layer: Layer, point: Any) -> Vec3:
    """Return the sample (z, y, x) of a layer under a point of the ruler."""
    count = len(point)
    index = (point - layer.translate[-count:]) / layer.scale[-count:]
    z, y, x = ([0.0] * (3 - count) + [float(v) for v in index])[-3:]
    return (z, y, x)


def _number(unit: str, value: float, *, most: float) -> QDoubleSpinBox:
    box = QDoubleSpinBox()
    box.setDecimals(4)
    box.setRange(0.0, most)
    box.setValue(value)
    box.setSuffix(f" {unit}")
    return box
