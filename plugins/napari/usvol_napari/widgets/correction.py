"""Correct what a task found, on its layers, and see the numbers change: paint, drag, nudge, undo."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from napari.layers import Labels as LabelsLayer
from napari.layers import Layer, Points
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import (
    QComboBox,
    QGridLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from usvol.result import Finding, Labels, Line, Plane, Result, Surface
from usvol_napari.edits import labels_of, line_of
from usvol_napari.layers import Key, colour_of, finding_layers, place_of
from usvol_napari.widgets.arrangement import shown_in
from usvol_napari.widgets.listening import listen
from usvol_napari.widgets.plane_sliders import PlaneSliders
from usvol_napari.widgets.run_task import show_analysis
from usvol_napari.widgets.session import Analysis, session_of
from usvol_napari.widgets.shown import frame_at, same_scan, shown_scan
from usvol_napari.widgets.timers import single_shot

_FOLLOWED = "The numbers below follow what you correct, within a second."
_NOT_FOLLOWED = "None of the numbers below depends on what you corrected: they are measured elsewhere."
_REDRAW_MS = 40  # between two reslices while a slider moves
_COMPARE_MS = 100  # of pause in painting before samples are compared


class Correction(QWidget):
    """The correct tab. The button takes back what was corrected last; a label map has napari's Ctrl+Z too."""

    def __init__(self, viewer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.viewer, self.session = viewer, session_of(viewer)
        self._positions: dict[Layer, int] = {}
        self._prints: dict[Layer, int] = {}
        self._meshes: dict[Layer, Surface] = {}
        self._followed: dict[int, Finding] = {}  # planes and maps as drawn since they followed another
        self._frame = 0
        self._links: list[tuple[Any, Callable]] = []
        self._done: list[tuple[LabelsLayer, int] | None] = []  # a layer and its samples before; None: session
        self._drawing = False
        self._redraw = single_shot(self._draw_plane, self, after_ms=_REDRAW_MS)
        self._suspects: set[LabelsLayer] = set()
        self._compare = single_shot(self._correct_maps, self, after_ms=_COMPARE_MS)
        self._build()
        self.session.analysed.connect(self._take)
        self.session.measured.connect(self._show_followers)
        self.session.corrected.connect(self._show_undone)
        self.session.changed.connect(self._keep_order)
        listen(self, self._follow_time, to=(viewer.dims.events.point,))
        links = self._links
        self.destroyed.connect(lambda: _unlink(links))
        self._take(self.session.analysis)

    def _build(self) -> None:
        self.hint = QLabel()
        self.hint.setWordWrap(True)
        self.paint_box, self.needle_box = QGroupBox("Paint"), QGroupBox("Needle and lines")
        self.plane_box = QGroupBox("Plane")
        QGridLayout(self.paint_box)
        column = QVBoxLayout(self.needle_box)
        self.drag_button = QPushButton("Drag end points")
        self.drag_button.clicked.connect(self._select_ends)
        column.addWidget(self.drag_button)
        self.plane_menu, self.sliders = QComboBox(), PlaneSliders()
        column = QVBoxLayout(self.plane_box)
        column.addWidget(self.plane_menu)
        column.addWidget(self.sliders)
        self.plane_menu.currentIndexChanged.connect(self._choose_plane)
        self.sliders.moved.connect(lambda _plane: self._redraw.start())
        self.undo_button, self.reset_button = QPushButton("Undo"), QPushButton("Discard corrections")
        self.undo_button.clicked.connect(self._undo)
        self.reset_button.clicked.connect(self._discard)
        buttons = QHBoxLayout()
        buttons.addWidget(self.undo_button)
        buttons.addWidget(self.reset_button)
        layout = QVBoxLayout(self)
        for part in (self.hint, self.paint_box, self.needle_box, self.plane_box):
            layout.addWidget(part)
        layout.addLayout(buttons)
        layout.addStretch()

    def _take(self, analysis: Analysis | None) -> None:
        """Listen to the layers of a new analysis."""
        self._unlink()
        findings = analysis.result.findings if analysis else ()
        for layer in self.viewer.layers:
            result = layer.metadata.get(Key.RESULT)
            if analysis and (result is analysis.result or result is self.session.result):
                self._listen(layer, analysis.result)
        self._offer_labels([f for f in findings if isinstance(f, Labels)])
        self.needle_box.setVisible(any(isinstance(f, Line) for f in findings))
        planes = [i for i, f in enumerate(findings) if isinstance(f, Plane)]
        self.plane_box.setVisible(bool(planes))
        self.plane_menu.blockSignals(True)
        self.plane_menu.clear()
        for position in planes:
            self.plane_menu.addItem(findings[position].name.replace("_", " "), position)
        self.plane_menu.blockSignals(False)
        self.plane_menu.setVisible(len(planes) > 1)
        self._choose_plane()
        self.hint.setText(_FOLLOWED if analysis else "Run a task first; what it finds can be corrected here.")
        self._frame = 0  # new planes show the first
        self._follow_time()
        self._refresh()

    def _listen(self, layer: Layer, result: Result) -> None:
        finding = layer.metadata.get(Key.FINDING)
        position = place_of(finding, layer.metadata[Key.RESULT], result) if finding is not None else None
        if position is None:
            return
        self._positions[layer] = position
        if isinstance(finding, Surface):
            self._meshes[layer] = finding
        if isinstance(layer, LabelsLayer):
            self._prints[layer] = _print(layer)
            for event in (
                layer.events.labels_update, layer.events.paint, layer.events.data, layer.events.set_data,
            ):  # fmt: skip
                self._link(event, lambda _event=None, one=layer: self._suspect(one))
        elif isinstance(layer, Points) and layer.metadata.get(Key.ROLE) == "ends":
            self._link(layer.events.data, lambda _event=None, one=layer: self._dragged(one))

    def _link(self, event: Any, function: Callable) -> None:
        event.connect(function)
        self._links.append((event, function))

    def _unlink(self) -> None:
        _unlink(self._links)
        self._positions, self._prints, self._meshes, self._followed = {}, {}, {}, {}
        self._done = [None] * self.session.undo_steps

    def _suspect(self, layer: LabelsLayer) -> None:
        self._suspects.add(layer)
        self._compare.start()

    def _correct_maps(self) -> None:
        # napari tells of undone strokes as it does of every new slice: only new samples count.
        for layer in [one for one in self._suspects if one in self._positions]:
            before, now = self._prints[layer], _print(layer)
            if now != before:
                if (layer, now) in self._done:  # taken back by napari's own undo
                    self._done = self._done[: self._done.index((layer, now))]
                else:
                    self._done.append((layer, before))
                self._correct_map(layer, now)
        self._suspects.clear()
        self._refresh()

    def _correct_map(self, layer: LabelsLayer, now: int) -> None:
        self._prints[layer] = now
        self._followed.pop(self._positions[layer], None)
        self.session.correct(self._positions[layer], labels_of(layer), undoable=False)

    def _keep_order(self) -> None:
        """Remember when planes, needles and events were corrected among the strokes of a brush."""
        while self._done.count(None) < self.session.undo_steps:
            self._done.append(None)
        while self._done.count(None) > self.session.undo_steps:
            del self._done[len(self._done) - 1 - self._done[::-1].index(None)]

    def _dragged(self, layer: Points) -> None:
        if self._drawing or len(layer.data) != 2:
            return
        position = self._positions[layer]
        line = line_of(layer)
        before = self.session.findings[position]
        if line != before:
            self.session.correct(position, line, undoable=not self.session.moving(position))
            self._redraw_finding(position, keep=layer)
            self._refresh()

    def _choose_plane(self) -> None:
        position, analysis = self.plane_menu.currentData(), self.session.analysis
        if position is None or analysis is None:
            return
        plane, grid = self._drawn(position), analysis.result.grid
        assert isinstance(plane, Plane)
        reach = float(np.linalg.norm(np.multiply(grid.shape, grid.step))) / 4
        self.sliders.set_start(plane, reach=reach, unit="mm" if grid.is_calibrated else "px")

    def _draw_plane(self) -> None:
        position, plane = self.plane_menu.currentData(), self.sliders.plane
        if position is None or plane is None or plane == self.session.findings[position]:
            return
        self._followed.pop(position, None)
        self.session.correct(position, plane, undoable=not self.session.moving(position))
        self._redraw_finding(position)
        self._refresh()

    def _redraw_finding(self, position: int, *, keep: Layer | None = None) -> None:
        """Draw a finding of the session on the layers it has."""
        analysis = self.session.analysis
        assert analysis is not None
        drawn = finding_layers(
            self._drawn(position),
            analysis.shown.placement,
            frames=analysis.result.source.frame_indices,
            scan=analysis.scan or analysis.shown.memory,
            frame=self._frame_seen(analysis),
        )
        parts = {(kind, options["metadata"].get(Key.ROLE)): (data, options) for data, options, kind in drawn}
        self._drawing = True
        for layer in [one for one, at in self._positions.items() if at == position and one is not keep]:
            known = parts.get((type(layer).__name__.lower(), layer.metadata.get(Key.ROLE)))
            layer.visible = layer.visible and known is not None
            if known is not None:
                _redraw(layer, *known)
        self._drawing = False

    def _frame_seen(self, analysis: Analysis) -> int:
        """Return the frame of the scan at hand that is nearest to the one looked at."""
        layer = next((one for one in self.viewer.layers if _is_scan(one, analysis)), None)
        at = frame_at(self.viewer, layer, placement=analysis.shown.placement) if layer is not None else 0
        seen = analysis.result.source.frame_indices if analysis.scan is not None else None
        return at if seen is None else int(np.abs(np.asarray(seen) - at).argmin())

    def _follow_time(self, _event: Any = None) -> None:
        """Show on planes the tissue of the frame that is looked at."""
        analysis = self.session.analysis
        if analysis is None or not analysis.shown.placement.has_time:
            return
        frame, before = self._frame_seen(analysis), self._frame
        self._frame = frame
        for position in {*self._positions.values()} if frame != before else ():
            if isinstance(self.session.findings[position], Plane):
                self._redraw_finding(position)

    def _drawn(self, position: int) -> Finding:
        return self._followed.get(position, self.session.findings[position])

    def _show_undone(self, position: int) -> None:
        self._followed.pop(position, None)
        self._redraw_finding(position)
        if position == self.plane_menu.currentData():
            self._choose_plane()
        self._refresh()

    def _show_followers(self, result: Result) -> None:
        """Draw anew what followed from a correction."""
        analysis = self.session.analysis
        if analysis is None:
            return
        same = result is not analysis.result and result.measurements == analysis.result.measurements
        self.hint.setText(_NOT_FOLLOWED if same else _FOLLOWED)
        for position, own in enumerate(self.session.findings):
            # What the user changed is on its layer already.
            if isinstance(own, Plane | Labels) and own is analysis.result.findings[position]:
                place = place_of(own, result)
                self._follow(position, own if place is None else result.findings[place])
        surfaces = {f.name: f for f in result.findings if isinstance(f, Surface)}
        for layer, old in list(self._meshes.items()):
            new = surfaces.get(old.name)
            if new is old:
                continue
            layer.visible = new is not None and shown_in(layer, self.viewer.dims.ndisplay)
            if new is not None:
                data, options, _ = finding_layers(
                    new,
                    analysis.shown.placement,
                    frames=result.source.frame_indices,
                    beside=result.findings,
                )[0]
                _redraw(layer, data, options)
                self._meshes[layer] = new
        self._refresh()

    def _follow(self, position: int, finding: Finding) -> None:
        if finding is self._drawn(position):
            return
        self._followed[position] = finding
        self._redraw_finding(position)
        if position == self.plane_menu.currentData():
            self._choose_plane()
        for layer, at in self._positions.items():
            if at == position and isinstance(layer, LabelsLayer):
                self._prints[layer] = _print(layer)  # nobody painted

    def _undo(self) -> None:
        self._correct_maps()  # strokes of a moment ago
        while self._done:
            last = self._done[-1]
            if last is None:
                self.session.undo()
                break
            layer, before = last
            layer.undo()
            now = _print(layer)
            if now == before or now == self._prints.get(layer):
                self._done.pop()
            if layer in self._positions and now != self._prints[layer]:
                self._correct_map(layer, now)
                break
        self._refresh()

    def _discard(self) -> None:
        if self.session.analysis is not None:
            show_analysis(self.viewer, self.session.analysis)

    def _select_ends(self) -> None:
        layer = next((one for one in self._positions if one.metadata.get(Key.ROLE) == "ends"), None)
        if isinstance(layer, Points):
            self.viewer.layers.selection.active = layer
            layer.mode = "select"

    def _offer_labels(self, maps: list[Labels]) -> None:
        """Offer a button for each structure that can be painted, and the eraser."""
        grid = self.paint_box.layout()
        assert isinstance(grid, QGridLayout)
        while grid.count():
            item = grid.takeAt(0)
            old = item.widget() if item else None
            if old is not None:
                old.deleteLater()
        choices = [(f, value, name) for f in maps for value, name in sorted(f.names.items())]
        choices += [(f, 0, "erase") for f in maps[:1]]
        for number, (finding, value, name) in enumerate(choices):
            button = QPushButton(name.replace("_", " "))
            if value:
                picture = QPixmap(12, 12)
                picture.fill(QColor.fromRgbF(*colour_of(value)))
                button.setIcon(QIcon(picture))
            button.clicked.connect(lambda _on=False, f=finding, v=value: self.paint(f.name, v))
            grid.addWidget(button, number // 2, number % 2)
        self.paint_box.setVisible(bool(choices))

    def paint(self, name: str, value: int) -> None:
        """Take up the brush for one label of a map; 0 erases."""
        for layer in self._positions:
            if isinstance(layer, LabelsLayer) and layer.metadata[Key.FINDING].name == name:
                self.viewer.layers.selection.active = layer
                layer.selected_label = value or layer.selected_label
                layer.mode = "paint" if value else "erase"

    def _refresh(self) -> None:
        self.undo_button.setEnabled(bool(self._done))
        self.reset_button.setEnabled(self.session.analysis is not None)


def _unlink(links: list[tuple[Any, Callable]]) -> None:
    while links:
        event, function = links.pop()
        event.disconnect(function)


def _is_scan(layer: Layer, analysis: Analysis) -> bool:
    shown = shown_scan(layer)
    return shown is not None and same_scan(shown, analysis.shown)


def _print(layer: LabelsLayer) -> int:
    return zlib.crc32(np.ascontiguousarray(layer.data).data)


def _redraw(layer: Layer, data: Any, options: dict[str, Any]) -> None:
    """Show other data on a layer, in the look it has."""
    painted = [name for name in ("texture", "texcoords", "vertex_colors") if name in options]
    # Another number of corners does not go with the paint of those before.
    for name in painted:
        setattr(layer, name, None)
    layer.data = data
    for name in reversed(painted):
        setattr(layer, name, options[name])
