"""Tables of results: read, not edited, with columns as wide as their text."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget


def value_text(value: float | int | str | None) -> str:
    """Return a measured value as it is shown: four digits of a float, a dash for none."""
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def read_only_table(titles: Sequence[str]) -> QTableWidget:
    """Return a table without rows; one is selected as a whole, and the last column takes the room left."""
    table = QTableWidget(0, len(titles))
    table.setHorizontalHeaderLabels(titles)
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    numbers, header = table.verticalHeader(), table.horizontalHeader()
    assert numbers is not None
    assert header is not None
    numbers.hide()
    header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
    header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
    header.setSectionResizeMode(len(titles) - 1, QHeaderView.ResizeMode.Stretch)
    return table
