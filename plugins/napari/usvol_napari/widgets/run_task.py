"""Run a task on the scan that is shown: choose, set, run, cancel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from napari.layers import Layer
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QComboBox,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QMessageBox,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from usvol import pipeline, registry
from usvol.errors import UsvolError
from usvol.scan import Kind
from usvol.supervision import Progress, stage
from usvol_napari.layers import Key, result_layers
from usvol_napari.widgets.background import Job
from usvol_napari.widgets.built_tasks import built_task
from usvol_napari.widgets.config_form import ConfigForm
from usvol_napari.widgets.listening import listen
from usvol_napari.widgets.messages import show_error
from usvol_napari.widgets.session import Analysis, session_of
from usvol_napari.widgets.shown import ShownScan, chosen_layer, of_scan, shown_scan

_SAID = {
    "load model": "Loading the model",
    "read": "Reading the scan",
    "canonicalise": "Finding the sector",
    "preprocess": "Preparing",
    "infer": "Running the network",
    "postprocess": "Cleaning up",
    "restore": "Placing on the scan",
    "measure": "Measuring",
}
# Where each stage begins on the bar, in %: the network takes most of the time.
_BEGINS = dict(zip(_SAID, (0, 5, 10, 15, 20, 85, 90, 95), strict=True))
_NAME_LENGTH = 36
_MOVED = (
    "This layer was moved, turned or scaled in napari. Results are measured and shown where the file says; "
    "state another scale under Explore."
)
_NO_SCAN = "Open a scan: drop a file on the window, or File › Open Sample › usvol."


class RunTask(QWidget):
    """The run tab; ``session`` brings the analysis to the other widgets."""

    def __init__(self, viewer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.viewer, self.session = viewer, session_of(viewer)
        self.message_box: QMessageBox | None = None
        self.job = Job(self)
        self.form: ConfigForm | None = None
        self._build()
        self.job.progressed.connect(self._tell)
        self.job.done.connect(self._take)
        self.job.failed.connect(self._complain)
        self.job.cancelled.connect(self._say_cancelled)
        self.job.ended.connect(self._refresh_buttons)
        self.session.failed.connect(self._complain)
        self.task_menu.currentTextChanged.connect(self._change_task)
        layers = viewer.layers
        listen(
            self,
            self._look,
            to=(layers.events.inserted, layers.events.removed, layers.selection.events.active),
        )
        self.destroyed.connect(self.job.cancel)
        self._look()

    @property
    def task_name(self) -> str:
        """Name of the task chosen, or an empty text."""
        return self.task_menu.currentData() or ""

    def run(self) -> None:
        """Run the task in the background."""
        layer = chosen_layer(self.viewer)
        shown = shown_scan(layer) if layer is not None else None
        if shown is None or self.form is None:
            return
        name, device, settings = self.task_name, self.device_menu.currentText(), self.form.settings()
        self.bar.setValue(0)
        self.job.start(lambda: analyse(name, shown, device=device, settings=settings))
        self._refresh_buttons()

    def _build(self) -> None:
        self.scan_label = QLabel(_NO_SCAN)
        self.scan_label.setWordWrap(True)
        self.scan_label.setTextFormat(Qt.TextFormat.PlainText)
        self.task_menu, self.device_menu = QComboBox(), QComboBox()
        self.device_menu.setEditable(True)
        self.device_menu.addItems(["auto", "cpu", "cuda"])
        self.task_menu.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.device_menu.setToolTip("auto, cpu, cuda or cuda:N")
        self.summary = QLabel()
        self.summary.setWordWrap(True)
        choice = QFormLayout()
        choice.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        choice.addRow("Scan", self.scan_label)
        choice.addRow("Task", self.task_menu)
        choice.addRow("", self.summary)
        choice.addRow("Device", self.device_menu)
        self.settings_button, self.settings_box = QToolButton(), QWidget()
        self.settings_button.setText("Settings")
        self.settings_button.setCheckable(True)
        self.settings_button.setAutoRaise(True)
        self.settings_button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.settings_button.toggled.connect(self._unfold)
        QVBoxLayout(self.settings_box).setContentsMargins(6, 0, 6, 6)
        self._unfold(False)
        self.run_button, self.cancel_button = QPushButton("Run"), QPushButton("Cancel")
        self.run_button.clicked.connect(self.run)
        self.cancel_button.clicked.connect(self.job.cancel)
        buttons = QHBoxLayout()
        buttons.addWidget(self.run_button, 2)
        buttons.addWidget(self.cancel_button, 1)
        self.bar, self.status = QProgressBar(), QLabel()
        self.bar.setRange(0, 100)
        self.bar.setTextVisible(False)
        self.bar.setFixedHeight(8)
        self.status.setWordWrap(True)
        inner = QWidget()
        column = QVBoxLayout(inner)
        column.addLayout(choice)
        column.addWidget(self.settings_button)
        column.addWidget(self.settings_box)
        column.addLayout(buttons)
        column.addWidget(self.bar)
        column.addWidget(self.status)
        column.addStretch()
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setFrameShape(QScrollArea.Shape.NoFrame)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setWidget(inner)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(area)

    def _look(self, _event: Any = None) -> None:
        """Offer the tasks that take what the layer is."""
        layer = chosen_layer(self.viewer)
        shown = shown_scan(layer) if layer is not None else None
        offered = tasks_for(shown.kind) if shown else []
        self.scan_label.setText(_described(shown) if shown else _NO_SCAN)
        # Wrapped labels get too little height in a form.
        self.scan_label.setWordWrap(shown is None)
        self.scan_label.setToolTip(shown.layer_name if shown else "")
        if [self.task_menu.itemData(i) for i in range(self.task_menu.count())] != offered:
            before = self.task_name
            self.task_menu.blockSignals(True)
            self.task_menu.clear()
            for name in offered:
                self.task_menu.addItem(name.replace("_", " "), name)
            self.task_menu.setCurrentIndex(max(0, self.task_menu.findData(before)))
            self.task_menu.blockSignals(False)
            self._change_task()
        if shown and not offered:
            self.status.setText(f"No installed task takes a {shown.kind}.")
        self._refresh_buttons()

    def _change_task(self) -> None:
        layout = self.settings_box.layout()
        assert layout is not None
        if self.form is not None:
            layout.removeWidget(self.form)
            self.form.deleteLater()
            self.form = None
        self.summary.setText("")
        if self.task_name:
            try:
                module = registry.module(registry.Group.TASKS, self.task_name)
            except UsvolError as error:
                self._complain(error)
                return
            self.summary.setText(registry.tasks()[self.task_name].summary)
            self.form = ConfigForm(module.Config)
            self.form.changed.connect(self._refresh_buttons)
            layout.addWidget(self.form)
        self.settings_button.setVisible(self.form is not None and bool(self.form.controls))
        self._refresh_buttons()

    def _unfold(self, on: bool) -> None:
        self.settings_box.setVisible(on)
        self.settings_button.setArrowType(Qt.ArrowType.DownArrow if on else Qt.ArrowType.RightArrow)

    def _refresh_buttons(self) -> None:
        ready = self.form is not None and self.form.valid and chosen_layer(self.viewer) is not None
        self.run_button.setEnabled(ready and not self.job.running)
        self.cancel_button.setEnabled(self.job.running)
        self.bar.setVisible(self.job.running)

    def _tell(self, progress: Progress) -> None:
        begin = _BEGINS.get(progress.stage, 0)
        end = next((value for value in _BEGINS.values() if value > begin), 100)
        self.bar.setValue(round(begin + (end - begin) * progress.share))
        self.status.setText(f"{_SAID.get(progress.stage, progress.stage)} …")

    def _take(self, analysis: Analysis) -> None:
        seconds = sum(analysis.result.provenance["stage_seconds"].values())
        device = analysis.result.provenance.get("device", "")
        moved = f"\n{_MOVED}" if analysis.shown.moved else ""
        self.status.setText(f"Done in {seconds:.1f} s on {device}. Not a medical device.{moved}")
        show_analysis(self.viewer, analysis)

    def _say_cancelled(self) -> None:
        self.status.setText("Cancelled.")

    def _complain(self, error: UsvolError) -> None:
        self.status.setText("")
        self.message_box = show_error(error, self)


def tasks_for(kind: Kind) -> list[str]:
    """Return the names of installed tasks that take this kind of scan."""
    return [name for name, entry in registry.tasks().items() if not entry.accepts or kind in entry.accepts]


def analyse(name: str, shown: ShownScan, *, device: str, settings: Mapping[str, Any]) -> Analysis:
    """Build the task (once for the same settings), read the scan as ``usvol run`` does, and run."""
    with stage("load model"):
        task = built_task(name, device=device, settings=settings)
    with stage("read"):
        scan = shown.read_for(task, title=name)
    return Analysis(pipeline.run(task, scan, name=name), shown, task=task, scan=scan)


def show_analysis(viewer: Any, analysis: Analysis) -> list[Layer]:
    """Show the findings of an analysis instead of those the same scan had before."""
    for layer in list(viewer.layers):
        old = layer.metadata.get(Key.RESULT) if Key.FINDING in layer.metadata else None
        if old is not None and old.task == analysis.result.task and of_scan(layer, analysis.shown):
            viewer.layers.remove(layer)
    scan, placement = analysis.scan, analysis.shown.placement
    whole = scan is not None and placement.frames == scan.data.shape[0]
    drawn = result_layers(analysis.result, scan if whole and scan else placement)
    for _, options, _ in drawn:
        options["metadata"][Key.SCAN] = analysis.shown.memory  # tells scans without a file apart
    added = [viewer.add_layer(Layer.create(*layer)) for layer in drawn]
    session_of(viewer).show(analysis)
    return added


def _described(shown: ShownScan) -> str:
    shape = " × ".join(str(n) for n in shown.placement.file_grid.shape if n > 1)
    frames = f", {shown.placement.frames} frames" if shown.placement.frames > 1 else ""
    name = shown.layer_name
    short = name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH // 2]}…{name[-_NAME_LENGTH // 2 :]}"
    return f"{short}\n{shown.kind}, {shape}{frames}\nscale {shown.source.calibration.trust}"
