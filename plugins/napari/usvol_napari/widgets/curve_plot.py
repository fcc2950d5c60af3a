"""Curves over time, linked to the time slider both ways; events such as ED and ES can be dragged."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
from matplotlib.figure import Figure
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from usvol.result import Curve
from usvol_napari.widgets.listening import listen
from usvol_napari.widgets.session import Analysis, session_of

_PAPER, _INK, _FAINT, _LINE = "#262930", "#e2e6ec", "#6e7682", "#5cc8ff"
_EVENT_COLOURS = ("#e69f00", "#cc79a7", "#009e73", "#f0e442")
_REACH_PX = 9  # of an event's line, within which it is taken hold of


class CurvePlot(QWidget):
    """One curve of the session's result: click to go to a moment, drag an event to correct it."""

    def __init__(self, viewer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.viewer, self.session = viewer, session_of(viewer)
        self._held: int | None = None
        self._artists: dict[str, Any] = {}
        self.figure = Figure(facecolor=_PAPER)
        self.canvas = FigureCanvasQTAgg(self.figure)
        self.canvas.setMinimumSize(260, 140)
        self.axes = self.figure.add_subplot()
        self.menu, self.reading = QComboBox(), QLabel()
        self.undo_button = QPushButton("Undo")
        self.undo_button.setToolTip("Take back the last move of an event")
        self.undo_button.clicked.connect(self.session.undo)
        top = QHBoxLayout()
        top.addWidget(self.menu)
        top.addWidget(self.reading, 1)
        top.addWidget(self.undo_button)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(4, 4, 4, 4)
        layout.addLayout(top)
        layout.addWidget(self.canvas, 1)
        self.menu.currentIndexChanged.connect(self.draw)
        self.canvas.mpl_connect("button_press_event", self._press)
        self.canvas.mpl_connect("motion_notify_event", self._move)
        self.canvas.mpl_connect("button_release_event", self._release)
        self.session.analysed.connect(self._take)
        self.session.corrected.connect(self.draw)
        self.session.measured.connect(lambda _result: self.draw())
        listen(self, self._follow, to=(viewer.dims.events.point,))
        self._take(self.session.analysis)

    @property
    def curve(self) -> Curve | None:
        """The curve shown, corrections included."""
        position = self.menu.currentData()
        finding = self.session.current(position) if position is not None else None
        return finding if isinstance(finding, Curve) else None

    def go_to(self, index: int) -> None:
        """Move the time slider to a point of the curve."""
        analysis, curve = self.session.analysis, self.curve
        if analysis is None or curve is None:
            return
        placement = analysis.shown.placement
        frames = analysis.shown.shown_frames
        frame = curve.frame_indices[index]
        if placement.has_time and frame in frames:
            self.viewer.dims.set_point(self._time_axis(), frames.index(frame) * placement.time_step)

    def move_event(self, position: int, index: int) -> None:
        """Set an event of the curve to another of its points, and measure anew."""
        curve = self.curve
        if curve is None or not 0 <= index < len(curve.values):
            return
        moved = dataclasses.replace(
            curve.events[position], index=index, time_s=curve.times_s[index] if curve.times_s else None
        )
        events = (*curve.events[:position], moved, *curve.events[position + 1 :])
        self.session.correct(self.menu.currentData(), dataclasses.replace(curve, events=events))
        self.draw()

    def draw(self, _changed: int = 0) -> None:
        """Draw the curve, its band, its events and the moment shown."""
        self.axes.clear()
        self._artists = {}
        self.undo_button.setEnabled(self.session.can_undo)
        curve = self.curve
        if curve is None:
            self.axes.set_axis_off()
            text = "No curve: run a task that measures over time."
            self.axes.text(0.5, 0.5, text, ha="center", color=_FAINT, transform=self.axes.transAxes)
            self.reading.setText("")
            self.canvas.draw_idle()
            return
        places = self._places(curve)
        self.axes.set_axis_on()
        if curve.low is not None and curve.high is not None:
            self.axes.fill_between(places, curve.low, curve.high, color=_LINE, alpha=0.18, linewidth=0)
        self.axes.plot(places, curve.values, color=_LINE, linewidth=1.8, marker=".", markersize=4)
        self._draw_events(curve, places)
        self._artists["cursor"] = self.axes.axvline(places[0], color=_INK, linewidth=1.2, alpha=0.9)
        self._artists["point"] = self.axes.plot([], [], "o", color=_INK, markersize=6)[0]
        self._style(curve)
        self._follow()

    def _draw_events(self, curve: Curve, places: np.ndarray) -> None:
        names = sorted({event.name for event in curve.events})
        for event in curve.events:
            colour = _EVENT_COLOURS[names.index(event.name) % len(_EVENT_COLOURS)]
            self.axes.axvline(places[event.index], color=colour, linewidth=2, linestyle="--")
            self.axes.annotate(
                event.name, (places[event.index], 1.0), xycoords=("data", "axes fraction"), xytext=(3, -2),
                textcoords="offset points", color=colour, fontsize=9, fontweight="bold", va="top",
            )  # fmt: skip

    def _style(self, curve: Curve) -> None:
        unit = "" if curve.unit in {"", "1"} else f" [{curve.unit}]"
        self.axes.set_facecolor(_PAPER)
        # Along the axis there is no room for it in a low dock.
        self.axes.set_title(f"{curve.name.replace('_', ' ')}{unit}", color=_INK, fontsize=9, loc="left")
        self.axes.set_xlabel("time [s]" if curve.times_s else "frame", color=_INK, fontsize=9)
        self.axes.tick_params(colors=_FAINT, labelcolor=_INK, labelsize=8)
        self.axes.grid(color=_FAINT, alpha=0.25, linewidth=0.6)
        for side, spine in self.axes.spines.items():
            spine.set_visible(side in {"left", "bottom"})
            spine.set_color(_FAINT)
        self.figure.set_layout_engine("constrained")

    def _take(self, analysis: Analysis | None) -> None:
        found = enumerate(analysis.result.findings) if analysis else ()
        self.menu.blockSignals(True)
        self.menu.clear()
        for position, finding in found:
            if isinstance(finding, Curve) and finding.values:
                self.menu.addItem(finding.name.replace("_", " "), position)
        self.menu.blockSignals(False)
        self.menu.setVisible(self.menu.count() > 1)
        self.draw()

    def _follow(self, _event: Any = None) -> None:
        """Show the moment that the time slider stands at."""
        analysis, curve = self.session.analysis, self.curve
        if analysis is None or curve is None or "cursor" not in self._artists:
            return
        placement, frames = analysis.shown.placement, analysis.shown.shown_frames
        if not placement.has_time:
            return
        step = round(self.viewer.dims.point[self._time_axis()] / placement.time_step)
        frame = frames[min(max(step, 0), len(frames) - 1)]
        index = int(np.abs(np.asarray(curve.frame_indices) - frame).argmin())
        places = self._places(curve)
        self._artists["cursor"].set_xdata([places[index]] * 2)
        self._artists["point"].set_data([places[index]], [curve.values[index]])
        unit = "" if curve.unit == "1" else f" {curve.unit}"
        moment = f"{curve.times_s[index]:.2f} s, " if curve.times_s else ""
        self.reading.setText(f"{moment}frame {curve.frame_indices[index]}: {curve.values[index]:.3g}{unit}")
        self.canvas.draw_idle()

    def _time_axis(self) -> int:
        assert self.session.analysis is not None
        return self.viewer.dims.ndim - len(self.session.analysis.shown.placement.axes)

    def _places(self, curve: Curve) -> np.ndarray:
        return np.asarray(curve.times_s or curve.frame_indices, float)

    def _nearest(self, event: Any) -> int:
        assert self.curve is not None
        return int(np.abs(self._places(self.curve) - event.xdata).argmin())

    def _press(self, event: Any) -> None:
        if self.curve is None or event.inaxes is not self.axes or event.button != 1:
            return
        places = self._places(self.curve)
        distances = [
            abs(self.axes.transData.transform((places[e.index], 0))[0] - event.x) for e in self.curve.events
        ]
        if distances and min(distances) <= _REACH_PX:
            self._held = int(np.argmin(distances))
            self.canvas.setCursor(Qt.CursorShape.SizeHorCursor)
        self.go_to(self._nearest(event))

    def _move(self, event: Any) -> None:
        if self._held is not None and event.inaxes is self.axes:
            self.go_to(self._nearest(event))

    def _release(self, event: Any) -> None:
        held, self._held = self._held, None
        self.canvas.unsetCursor()
        if held is None or event.inaxes is not self.axes or self.curve is None:
            return
        index = self._nearest(event)
        if index != self.curve.events[held].index:
            self.move_event(held, index)
