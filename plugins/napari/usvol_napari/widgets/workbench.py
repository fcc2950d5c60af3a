"""The dock of the plugin: tabs to run, correct, explore and run on folders, with flags and numbers below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari.layers import Layer
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QMainWindow, QScrollArea, QSplitter, QTabWidget, QVBoxLayout, QWidget

from usvol.result import Curve, Result
from usvol_napari.layers import Key
from usvol_napari.widgets.arrangement import Arrangement
from usvol_napari.widgets.batch_tab import BatchTab
from usvol_napari.widgets.correction import Correction
from usvol_napari.widgets.curve_plot import CurvePlot
from usvol_napari.widgets.explore import Explore
from usvol_napari.widgets.listening import listen
from usvol_napari.widgets.results_panel import ResultsPanel
from usvol_napari.widgets.run_task import RunTask
from usvol_napari.widgets.session import Analysis, Session, session_of
from usvol_napari.widgets.shown import of_scan, shown_scan
from usvol_napari.widgets.timers import single_shot

if TYPE_CHECKING:
    import napari.viewer

_WIDTH_PX, _TABS_PX, _RESULTS_PX = 420, 330, 330
_CURVE_PX, _SETTLED_MS = 230, 100
_CURVE_DOCK = "usvol curve"


class Workbench(QWidget):
    """All tools; a curve gets a dock of its own below the picture."""

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        # From the menu, plugins are handed a proxy, whose docks are none to Qt.
        napari_viewer = getattr(napari_viewer, "__wrapped__", napari_viewer)
        self.viewer = napari_viewer
        self.run_task, self.correction = RunTask(napari_viewer), Correction(napari_viewer)
        self.explore, self.batch = Explore(napari_viewer), BatchTab(napari_viewer)
        self.results = ResultsPanel(napari_viewer)
        self.curve: CurvePlot | None = None
        self.tabs = QTabWidget()
        for title, tab in (
            ("Run", self.run_task), ("Correct", self.correction),
            ("Explore", self.explore), ("Batch", self.batch),
        ):  # fmt: skip
            self.tabs.addTab(tab if tab is self.run_task else _scrolling(tab), title)
        self.splitter = QSplitter(Qt.Orientation.Vertical)
        self.splitter.addWidget(self.tabs)
        self.splitter.addWidget(self.results)
        self.splitter.setSizes([_TABS_PX, _RESULTS_PX])
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.splitter)
        self.setMinimumWidth(_WIDTH_PX)
        self.arrangement = Arrangement(napari_viewer, self)
        self.session = session_of(napari_viewer)
        self.session.analysed.connect(self._show_curve)
        self._show_curve(self.session.analysis)
        # Layers of a result come one by one.
        self._new: list[Layer] = list(napari_viewer.layers)
        self._timer = single_shot(self._adopt, self, after_ms=0)
        listen(self, self._look, to=(napari_viewer.layers.events.inserted,))
        listen(self, self._settle, to=(napari_viewer.layers.selection.events.active,))
        self._timer.start()

    def _look(self, event: Any) -> None:
        self._new.append(event.value)
        self._timer.start()

    def _settle(self, _event: Any = None) -> None:
        self._timer.start()

    def _adopt(self) -> None:
        """Take up a result that was opened, as if it had been computed here, or whose layer was selected."""
        new, self._new = self._new, []
        active = self.viewer.layers.selection.active
        if self.session.analysis is None:
            new = list(self.viewer.layers)
        elif not new and active is not None and Key.FINDING in active.metadata:
            new = [active]
        found = analysis_shown(self.viewer, new)
        if found is not None and found.result not in (self.session.result, _original(self.session)):
            self.session.show(found)

    def _show_curve(self, analysis: Analysis | None) -> None:
        if analysis is None or not any(isinstance(f, Curve) for f in analysis.result.findings):
            return
        if self.curve is None or _CURVE_DOCK not in self.viewer.window.dock_widgets:
            self.curve = open_curve(self.viewer)


def analysis_shown(viewer: Any, layers: list[Layer]) -> Analysis | None:
    """Return the topmost result of some layers with the scan it belongs to, if the viewer has both."""
    scans = [shown for layer in viewer.layers if (shown := shown_scan(layer)) is not None]
    for layer in reversed(viewer.layers):
        result = layer.metadata.get(Key.RESULT)
        if result is None or layer not in layers:
            continue
        shown = next((scan for scan in scans if of_scan(layer, scan)), None)
        if shown is not None:
            return Analysis(result, shown)
    return None


def open_curve(viewer: Any) -> CurvePlot:
    """Open the dock of curves below the picture, which keeps the room beside it and most of its height."""
    curve = CurvePlot(viewer)
    dock = viewer.window.add_dock_widget(curve, name=_CURVE_DOCK, area="bottom", tabify=False)
    window = dock.parent()
    if isinstance(window, QMainWindow):
        window.setCorner(Qt.Corner.BottomLeftCorner, Qt.DockWidgetArea.LeftDockWidgetArea)
        window.setCorner(Qt.Corner.BottomRightCorner, Qt.DockWidgetArea.RightDockWidgetArea)
        window.resizeDocks([dock], [_CURVE_PX], Qt.Orientation.Vertical)
    single_shot(viewer.reset_view, curve, after_ms=_SETTLED_MS).start()
    return curve


def _original(session: Session) -> Result | None:
    return session.analysis.result if session.analysis else None


def _scrolling(widget: QWidget) -> QScrollArea:
    area = QScrollArea()
    area.setWidgetResizable(True)
    area.setFrameShape(QScrollArea.Shape.NoFrame)
    area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    area.setWidget(widget)
    return area
