"""Run a function in a thread, followed and stoppable, and hear of its end in the window's thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from napari.qt.threading import create_worker
from qtpy.QtCore import QObject

from usvol.errors import CancelledError, UsvolError
from usvol.supervision import Progress, supervised
from usvol_napari.widgets.signals import Signal


@dataclass(frozen=True, slots=True)
class _Failure:
    error: UsvolError


class Job(QObject):
    """One function at a time in a thread of its own.

    ``progressed`` brings a ``supervision.Progress``, ``done`` the function's answer, ``failed`` a typed error
    of usvol; ``ended`` follows each end. A bug in the function reaches napari's own error report.
    """

    progressed = Signal(object)
    done = Signal(object)
    failed = Signal(object)
    cancelled = Signal()
    ended = Signal()

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._stop: threading.Event | None = None

    @property
    def running(self) -> bool:
        """Whether a function runs whose answer is waited for."""
        return self._stop is not None

    def start(self, function: Callable[[], Any]) -> None:
        """Run ``function`` within ``supervision.supervised``."""
        if self.running:
            raise RuntimeError("the job before has not ended")
        stop = self._stop = threading.Event()

        def tell(progress: Progress) -> None:
            if not stop.is_set():
                self.progressed.emit(progress)

        def work() -> Any:
            try:
                with supervised(progress=tell, cancelled=stop.is_set):
                    return function()
            except UsvolError as error:
                return _Failure(error)

        # The event tells this function's answer from that of one started after a cancel.
        worker = create_worker(work, _start_thread=False)
        worker.returned.connect(lambda answer: self._end(stop, answer))
        worker.errored.connect(lambda _error: self._end(stop, _Failure(CancelledError())))
        worker.start()

    def stop(self) -> None:
        """Ask the function to stop, and wait for what it still has to say."""
        if self._stop is not None:
            self._stop.set()

    def cancel(self) -> None:
        """Stop waiting at once; the thread itself stops at its next step."""
        if self._stop is None:
            return
        self._stop.set()
        self._stop = None
        self.cancelled.emit()
        self.ended.emit()

    def _end(self, stop: threading.Event, answer: Any) -> None:
        if stop is not self._stop:
            return
        self._stop = None
        if not isinstance(answer, _Failure):
            self.done.emit(answer)
        elif isinstance(answer.error, CancelledError):
            self.cancelled.emit()
        else:
            self.failed.emit(answer.error)
        self.ended.emit()
