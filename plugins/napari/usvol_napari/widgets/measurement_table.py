"""The table of measurements: legible, copied and exported with every digit."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from qtpy.QtCore import Qt
from qtpy.QtGui import QGuiApplication, QKeySequence
from qtpy.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QPushButton,
    QShortcut,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from usvol.result import Measurement
from usvol_napari.widgets.tables import read_only_table, value_text

_COLUMNS = ("name", "value", "unit", "low", "high", "note")
_TITLES = ("Measurement", "Value", "Unit", "Range", "Note")


class MeasurementTable(QWidget):
    """Measurements as a table; ``measurements`` holds the numbers themselves."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.measurements: tuple[Measurement, ...] = ()
        self.table = read_only_table(_TITLES)
        # One line each, the rest in the tooltip. Napari's themes have no alternate row colour.
        self.table.setWordWrap(False)
        self.copy_button, self.export_button = QPushButton("Copy"), QPushButton("Export CSV…")
        self.copy_button.setToolTip("Copy all rows, tab-separated, for a spreadsheet (Ctrl+C)")
        self.copy_button.clicked.connect(self.copy)
        self.export_button.clicked.connect(self._ask_and_export)
        QShortcut(QKeySequence.StandardKey.Copy, self.table, activated=self.copy)
        buttons = QHBoxLayout()
        buttons.addWidget(self.copy_button)
        buttons.addWidget(self.export_button)
        buttons.addStretch()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.table)
        layout.addLayout(buttons)
        self.show_measurements(())

    def show_measurements(self, measurements: Iterable[Measurement]) -> None:
        """Fill the table."""
        self.measurements = tuple(measurements)
        self.table.setRowCount(len(self.measurements))
        for row, one in enumerate(self.measurements):
            texts = (
                one.name.replace("_", " "),
                value_text(one.value),
                _unit(one),
                _range(one),
                one.note or "",
            )
            for column, text in enumerate(texts):
                item = QTableWidgetItem(text)
                if column in (1, 3):
                    item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                item.setToolTip(text)
                self.table.setItem(row, column, item)
        self.table.resizeRowsToContents()
        for button in (self.copy_button, self.export_button):
            button.setEnabled(bool(self.measurements))

    def copy(self) -> None:
        """Copy the table to the clipboard, tab-separated, with a header and every digit."""
        clipboard = QGuiApplication.clipboard()
        assert clipboard is not None
        clipboard.setText(delimited(self.measurements, delimiter="\t"))

    def export(self, path: Path) -> None:
        """Write the table as CSV."""
        path.write_text(delimited(self.measurements, delimiter=","), encoding="utf-8", newline="")

    def _ask_and_export(self) -> None:
        name, _ = QFileDialog.getSaveFileName(self, "Export measurements", "measurements.csv", "CSV (*.csv)")
        if name:
            self.export(Path(name))


def delimited(measurements: Iterable[Measurement], *, delimiter: str) -> str:
    """Return measurements as delimited text with a header; numbers with every digit, missing ones empty."""
    stream = io.StringIO()
    table = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
    table.writerow(_COLUMNS)
    for one in measurements:
        values = (getattr(one, column) for column in _COLUMNS)
        table.writerow(["" if value is None else value for value in values])
    return stream.getvalue()


def _unit(one: Measurement) -> str:
    return "" if one.unit == "1" else one.unit


def _range(one: Measurement) -> str:
    return "" if one.low is None or one.high is None else f"{one.low:.3g} – {one.high:.3g}"
