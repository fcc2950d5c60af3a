"""Listen to napari only as long as the widget lives that does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtWidgets import QWidget


def listen(widget: QWidget, function: Callable[..., Any], *, to: tuple[Any, ...]) -> None:
    """Call ``function`` of ``widget`` on napari's events ``to``, until the widget is destroyed.

    Napari would call on: it does not see that Qt has deleted what Python still holds.
    """
    for event in to:
        event.connect(function)

    def leave() -> None:
        for event in to:
            event.disconnect(function)

    # A method of the widget itself would not be called any more.
    widget.destroyed.connect(leave)
