"""What the widgets of one window share: the scan analysed, its result, and corrections made by hand."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qtpy.QtCore import QObject

from usvol import pipeline
from usvol.result import Finding, Result
from usvol.scan import Scan
from usvol.task import Task
from usvol_napari.widgets.background import Job
from usvol_napari.widgets.built_tasks import built_task
from usvol_napari.widgets.result_notes import keep_notes
from usvol_napari.widgets.shown import ShownScan
from usvol_napari.widgets.signals import Signal
from usvol_napari.widgets.timers import single_shot

_QUIET_MS = 200  # of no further correction before measuring


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """One run of a task: what it said before any correction, and on what.

    ``task`` and ``scan`` (as given to the task) are None for a result that was opened: they are built and
    read when something is corrected.
    """

    result: Result
    shown: ShownScan
    task: Task | None = None
    scan: Scan | None = None

    def ready(self) -> tuple[Task, Scan]:
        """Return task and scan, built and read if need be."""
        name, settings = self.result.task, self.result.provenance.get("config") or {}
        task = self.task or built_task(name, settings=settings)
        return task, self.scan or self.shown.read_for(task, title=name)


class Session(QObject):
    """The analysis at hand and its corrections; measures anew, in a thread, once the user pauses.

    ``analysed`` brings an ``Analysis`` (or None when it is gone), ``measured`` the result whenever its
    numbers are new, ``corrected`` the position of a finding that changed other than by its own layer (undo).
    ``changed`` tells of every correction at once, before it is measured. ``result_before`` is the result that
    ``result`` came after, or None.
    """

    analysed = Signal(object)
    measured = Signal(object)
    corrected = Signal(int)
    changed = Signal()
    failed = Signal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.analysis: Analysis | None = None
        self.result: Result | None = None
        self.result_before: Result | None = None
        self.findings: list[Finding] = []
        self._history: list[tuple[int, Finding]] = []
        self._outdated = False
        self._timer = single_shot(self._measure, self, after_ms=_QUIET_MS)
        self._job = Job(self)
        self._job.done.connect(self._take)
        self._job.failed.connect(self.failed)
        self._job.ended.connect(self._go_on)

    def show(self, analysis: Analysis | None) -> None:
        """Take a new analysis; corrections of the one before are over."""
        self._timer.stop()
        self._job.cancel()
        self.analysis = analysis
        self.result, self.result_before = analysis.result if analysis else None, None
        self.findings = list(analysis.result.findings) if analysis else []
        self._history, self._outdated = [], False
        self.analysed.emit(analysis)
        if analysis:
            self.measured.emit(analysis.result)

    def correct(self, position: int, finding: Finding, *, undoable: bool = True) -> None:
        """Replace a finding by its correction, and measure soon.

        ``undoable`` is False for a layer that undoes by itself (a label map), and for the steps of one move.
        """
        if undoable:
            self._history.append((position, self.findings[position]))
        self.findings[position] = finding
        self._outdated = True
        self._timer.start()
        self.changed.emit()

    @property
    def correction(self) -> tuple[Result, tuple[Finding, ...]] | None:
        """The result before any correction, and its findings as they stand."""
        return (self.analysis.result, tuple(self.findings)) if self.analysis else None

    def current(self, position: int) -> Finding:
        """Return a finding as it stands: corrected, or made anew as it follows from another's correction."""
        own = self.findings[position]
        if self.result is None or self._outdated:
            return own
        alike = (f for f in self.result.findings if type(f) is type(own) and f.name == own.name)
        return next(alike, own)

    def moving(self, position: int) -> bool:
        """Whether this finding was corrected a moment ago: the same move still, for undo."""
        return self._timer.isActive() and bool(self._history) and self._history[-1][0] == position

    @property
    def undo_steps(self) -> int:
        """How many corrections there are to take back."""
        return len(self._history)

    @property
    def can_undo(self) -> bool:
        """Whether there is a correction to take back."""
        return bool(self._history)

    def undo(self) -> None:
        """Take back the last correction that is not a label map's own."""
        if self._history:
            position, finding = self._history.pop()
            self.correct(position, finding, undoable=False)
            self.corrected.emit(position)

    @property
    def busy(self) -> bool:
        """Whether corrections wait to be measured."""
        return self._outdated or self._timer.isActive() or self._job.running

    def _measure(self) -> None:
        if self.analysis is None or self._job.running:
            return
        self._outdated = False
        analysis, findings = self.analysis, tuple(self.findings)
        self._job.start(lambda: _remeasured(analysis, findings))

    def _take(self, answer: tuple[Analysis, Result]) -> None:
        self.result_before = self.result
        self.analysis, self.result = answer
        self.measured.emit(self.result)
        if self._outdated:
            self.changed.emit()  # corrected on while it was measured

    def _go_on(self) -> None:
        if self._outdated and not self._timer.isActive():
            self._timer.start()


def _remeasured(analysis: Analysis, findings: Sequence[Finding]) -> tuple[Analysis, Result]:
    task, scan = analysis.ready()
    ready = dataclasses.replace(analysis, task=task, scan=scan)
    return ready, pipeline.remeasure(task, analysis.result, findings=findings, scan=scan)


_SESSIONS: dict[int, tuple[weakref.ref, Session]] = {}


def session_of(viewer: Any) -> Session:
    """Return the session of a viewer, the same for all its widgets."""
    viewer = getattr(viewer, "__wrapped__", viewer)  # plugins are handed a proxy
    reference, session = _SESSIONS.get(id(viewer), (None, None))
    if session is None or reference is None or reference() is not viewer:
        session = Session()
        keep_notes(viewer, session)
        _SESSIONS[id(viewer)] = (weakref.ref(viewer), session)
    return session
