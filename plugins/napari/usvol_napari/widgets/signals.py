"""Qt's ``Signal``, as every widget imports it."""

from __future__ import annotations

from qtpy import QtCore

# Public in qtpy under any binding; imported there under another name, its type marker calls it private.
Signal = QtCore.Signal  # pyright: ignore[reportPrivateImportUsage]
