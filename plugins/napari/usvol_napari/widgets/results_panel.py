"""What the session's result says: quality flags first, then the numbers."""

from __future__ import annotations

import html
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QLabel, QScrollArea, QVBoxLayout, QWidget

from usvol.result import Labels, Result, Scores
from usvol_napari.layers import colour_of
from usvol_napari.widgets.measurement_table import MeasurementTable
from usvol_napari.widgets.quality_flags import QualityFlags
from usvol_napari.widgets.session import Analysis, session_of

_FLAGS_PX = 110  # at most: the numbers must stay in sight


class ResultsPanel(QWidget):
    """Title, flags and table; follows the session."""

    def __init__(self, viewer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.session = session_of(viewer)
        self.title = QLabel()
        self.title.setTextFormat(Qt.TextFormat.PlainText)
        self.title.setWordWrap(True)
        self.title.setStyleSheet("font-weight: bold")
        self.legend = QLabel()
        self.legend.setTextFormat(Qt.TextFormat.RichText)
        self.legend.setWordWrap(True)
        self.flags, self.table = QualityFlags(), MeasurementTable()
        self.flag_area = QScrollArea()
        self.flag_area.setWidgetResizable(True)
        self.flag_area.setFrameShape(QScrollArea.Shape.NoFrame)
        self.flag_area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.flag_area.setWidget(self.flags)
        layout = QVBoxLayout(self)
        layout.addWidget(self.title)
        layout.addWidget(self.legend)
        layout.addWidget(self.flag_area)
        layout.addWidget(self.table, 1)
        self.session.measured.connect(self.show_result)
        self.session.analysed.connect(self._take)
        self.show_result(self.session.result)

    def _take(self, analysis: Analysis | None) -> None:
        if analysis is None:
            self.show_result(None)

    def show_result(self, result: Result | None) -> None:
        """Show a result, or that there is none."""
        self.flags.show_flags(result.flags if result else ())
        self.table.show_measurements(result.measurements if result else ())
        self.flag_area.setVisible(bool(result and result.flags))
        self.flag_area.setMaximumHeight(min(_FLAGS_PX, self.flags.sizeHint().height() + 4))
        self.title.setText(_title(result))
        self.legend.setText(_legend(result))
        self.legend.setVisible(bool(self.legend.text()))


def _title(result: Result | None) -> str:
    if result is None:
        return "No result yet"
    said = [result.task.replace("_", " ")]
    said += [f"{f.name.replace('_', ' ')}: {f.decision}" for f in result.findings if isinstance(f, Scores)]
    corrected = result.provenance.get("corrected")
    if corrected:
        said.append(f"corrected by hand: {', '.join(corrected)}")
    return "  ·  ".join(said)


def _legend(result: Result | None) -> str:
    """Return the names of the structures in the label maps, each beside its colour, as rich text."""
    maps = [f for f in result.findings if isinstance(f, Labels)] if result else []
    named = {name: value for labels in maps for value, name in sorted(labels.names.items())}
    squares = (
        f'<span style="color:{QColor.fromRgbF(*colour_of(value)).name()}">■</span>&nbsp;'
        + html.escape(name.replace("_", " ")).replace(" ", "&nbsp;")
        for name, value in named.items()
    )
    return " &nbsp; ".join(squares)
