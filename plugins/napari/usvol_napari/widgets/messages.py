"""Tell the user of an error they can act on: its own text in a message box, and no traceback."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QMessageBox, QWidget

from usvol.errors import UsvolError


def show_error(error: UsvolError | ValueError, parent: QWidget) -> QMessageBox:
    """Show the text of an error; the window goes on working."""
    box = QMessageBox(QMessageBox.Icon.Warning, "usvol", str(error), QMessageBox.StandardButton.Ok, parent)
    box.setTextFormat(Qt.TextFormat.PlainText)
    box.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    box.open()
    return box
