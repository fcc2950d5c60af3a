"""Quality flags, legible: what to worry about first."""

from __future__ import annotations

from collections.abc import Iterable

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

from usvol.result import Flag, Severity

_LOOKS = {
    Severity.SEVERE: ("⬤", "#ff5c5c"),
    Severity.WARNING: ("▲", "#ffb347"),
    Severity.INFO: ("●", "#7fb2e5"),
}


class QualityFlags(QWidget):
    """One line for each flag, the worst first."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._layout = QVBoxLayout(self)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.setSpacing(3)
        self.lines: list[QLabel] = []

    def show_flags(self, flags: Iterable[Flag]) -> None:
        """Show these flags instead of those before."""
        for line in self.lines:
            self._layout.removeWidget(line)
            line.deleteLater()
        self.lines = []
        for flag in sorted(flags, key=lambda f: list(_LOOKS).index(f.severity)):
            mark, colour = _LOOKS[flag.severity]
            line = QLabel(f"{mark} {flag.message}")
            line.setTextFormat(Qt.TextFormat.PlainText)
            line.setWordWrap(True)
            line.setStyleSheet(f"color: {colour}")
            line.setToolTip(f"{flag.severity}: {flag.code}")
            line.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
            self._layout.addWidget(line)
            self.lines.append(line)
        self.setVisible(bool(self.lines))
