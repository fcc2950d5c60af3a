"""Put off what many events in a row ask for."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import QObject, QTimer


def single_shot(function: Callable[[], None], parent: QObject, *, after_ms: int) -> QTimer:
    """Return a timer that calls ``function`` once, ``after_ms`` ms after it was last started."""
    timer = QTimer(parent)
    timer.setSingleShot(True)
    timer.setInterval(after_ms)
    timer.timeout.connect(function)
    return timer
