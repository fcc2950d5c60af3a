"""Run a task over a folder in the background; every file gets a row, a double click opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari.layers import Layer
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QMessageBox,
    QProgressBar,
    QPushButton,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from usvol import registry
from usvol.batch.outcome import Outcome, Status
from usvol.batch.study import Existing, Plan, Summary, run_study
from usvol.errors import UsvolError
from usvol_napari.reader import open_layers
from usvol_napari.widgets.background import Job
from usvol_napari.widgets.messages import show_error
from usvol_napari.widgets.signals import Signal
from usvol_napari.widgets.tables import read_only_table, value_text

_TITLES = ("File", "Status", "Result")
_WORKERS = 2


class BatchTab(QWidget):
    """The batch tab. ``plan_folder`` is where results lie."""

    begun = Signal(int)
    arrived = Signal(object)

    def __init__(self, viewer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.viewer = viewer
        self.message_box: QMessageBox | None = None
        self.outcomes: list[Outcome] = []
        self.plan_folder: Path | None = None
        self.job = Job(self)
        self._build()
        self.begun.connect(self.bar.setMaximum)
        self.arrived.connect(self._add)
        self.job.done.connect(self._finish)
        self.job.failed.connect(self._complain)
        self.job.ended.connect(self._refresh)
        self.destroyed.connect(self.job.cancel)
        self._refresh()

    def start(self) -> None:
        """Run the task over the folder."""
        out = Path(self.output.text())
        plan = Plan(
            task=self.task_menu.currentData(),
            inputs=(self.input.text(),),
            out=out,
            workers=_WORKERS,
            existing=Existing.RESUME if self.resume.isChecked() else Existing.REFUSE,
        )
        self.outcomes, self.plan_folder = [], out
        self.table.setRowCount(0)
        self.bar.setRange(0, 0)
        self.status.setText("Loading the model …")
        self.job.start(lambda: run_study(plan, on_start=self.begun.emit, on_outcome=self.arrived.emit))
        self._refresh()

    def stop(self) -> None:
        """Stop; complete results are kept, and table and report written."""
        self.status.setText("Stopping …")
        self.job.stop()

    def open_row(self, row: int) -> list[Layer]:
        """Open scan and findings of a finished item in the viewer."""
        outcome = self.outcomes[row]
        assert self.plan_folder is not None
        if outcome.status is not Status.DONE:
            self.status.setText(f"{Path(outcome.path).name}: {outcome.message}")
            return []
        try:
            layers = open_layers(self.plan_folder / "items" / outcome.id)
        except UsvolError as error:
            self._complain(error)
            return []
        self.viewer.layers.clear()
        return [self.viewer.add_layer(Layer.create(*layer)) for layer in layers]

    def _build(self) -> None:
        self.task_menu, self.input, self.output = QComboBox(), QLineEdit(), QLineEdit()
        for name in registry.tasks():
            self.task_menu.addItem(name.replace("_", " "), name)
        self.input.textChanged.connect(self._refresh)
        self.output.textChanged.connect(self._refresh)
        form = QFormLayout()
        form.addRow("Task", self.task_menu)
        form.addRow("Folder", _with_browser(self.input, "Folder of scans"))
        form.addRow("Results", _with_browser(self.output, "Folder for results"))
        self.resume = QCheckBox("Resume: keep complete results, do the rest")
        form.addRow("", self.resume)
        self.run_button, self.cancel_button = QPushButton("Run"), QPushButton("Cancel")
        self.run_button.clicked.connect(self.start)
        self.cancel_button.clicked.connect(self.stop)
        buttons = QHBoxLayout()
        buttons.addWidget(self.run_button, 2)
        buttons.addWidget(self.cancel_button, 1)
        self.bar, self.status = QProgressBar(), QLabel()
        self.status.setWordWrap(True)
        self.status.setTextFormat(Qt.TextFormat.PlainText)
        self.table = read_only_table(_TITLES)
        self.table.setToolTip("Double click opens scan and findings")
        self.table.cellDoubleClicked.connect(lambda row, _column: self.open_row(row))
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addLayout(buttons)
        for part in (self.bar, self.status):
            layout.addWidget(part)
        layout.addWidget(self.table, 1)

    def _add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        row = self.table.rowCount()
        self.table.insertRow(row)
        for column, text in enumerate((Path(outcome.path).name, str(outcome.status), _said(outcome))):
            item = QTableWidgetItem(text)
            item.setToolTip(outcome.message or text)
            self.table.setItem(row, column, item)
        self.bar.setValue(row + 1)
        self.status.setText(f"{row + 1} of {max(self.bar.maximum(), row + 1)}")

    def _finish(self, summary: Summary) -> None:
        more = " Run again with Resume to go on." if summary.state == "interrupted" else ""
        counts = ", ".join(f"{count} {status}" for status, count in summary.counts.items() if count)
        self.status.setText(f"{summary.state}: {counts}. Report: {summary.report}{more}")

    def _complain(self, error: UsvolError) -> None:
        self.status.setText("")
        self.message_box = show_error(error, self)

    def _refresh(self) -> None:
        ready = bool(self.input.text().strip() and self.output.text().strip())
        self.run_button.setEnabled(ready and not self.job.running)
        self.cancel_button.setEnabled(self.job.running)
        self.bar.setVisible(self.job.running)


def _said(outcome: Outcome) -> str:
    if outcome.message:
        return outcome.message
    measured = outcome.row.get("measurements", {})
    bounds = (" low", " high")
    shown = [(name, value) for name, value in measured.items() if not name.endswith(bounds)]
    return ", ".join(f"{name.replace('_', ' ')} {value_text(value)}" for name, value in shown)


def _with_browser(line: QLineEdit, title: str) -> QWidget:
    button, holder = QPushButton("…"), QWidget()
    button.setFixedWidth(28)

    def ask() -> None:
        folder = QFileDialog.getExistingDirectory(line, title, line.text())
        if folder:
            line.setText(folder)

    button.clicked.connect(ask)
    row = QHBoxLayout(holder)
    row.setContentsMargins(0, 0, 0, 0)
    row.addWidget(line)
    row.addWidget(button)
    return holder
