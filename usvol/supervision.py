"""Watch a run from outside: hear how far it is, and stop it.

Whatever runs within ``supervised`` can be followed and cancelled: the stages of ``pipeline.run``, and in them
windows, flips, slabs and network calls, which call ``check`` or go through ``track``. A context variable
carries it, so that no stage passes it on and runs in other threads go untouched. Elsewhere both do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from usvol.errors import CancelledError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: ``stage`` by name, and the share 0-1 of that stage that is done."""

    stage: str
    share: float


@dataclass(slots=True)
class _Watch:
    progress: Callable[[Progress], None] | None
    cancelled: Callable[[], bool] | None
    stage: str = ""
    tracking: bool = False

    def report(self, share: float) -> None:
        if self.progress is not None and self.stage:
            self.progress(Progress(self.stage, share))


_WATCH: ContextVar[_Watch | None] = ContextVar("usvol_watch", default=None)


@contextmanager
def supervised(
    *, progress: Callable[[Progress], None] | None = None, cancelled: Callable[[], bool] | None = None
) -> Iterator[None]:
    """Follow and stop what runs inside.

    Args:
        progress: called in the thread that runs, at the beginning of every stage and between its steps.
        cancelled: asked often, so it must be quick (``threading.Event().is_set``). Once it is true,
            ``CancelledError`` leaves the block.

    Example:
        >>> heard = []
        >>> with supervised(progress=heard.append), stage("count"):
        ...     letters = [letter for letter in track("ab")]
        >>> [one.share for one in heard]
        [0.0, 0.0, 0.5, 1.0]
    """
    token = _WATCH.set(_Watch(progress, cancelled))
    try:
        yield
    finally:
        _WATCH.reset(token)


def check() -> None:
    """Raise ``CancelledError`` if whoever supervises this run has cancelled it."""
    watch = _WATCH.get()
    if watch is not None and watch.cancelled is not None and watch.cancelled():
        raise CancelledError


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Say that a stage begins; raise ``CancelledError`` before and after it if cancelled."""
    check()
    watch = _WATCH.get()
    if watch is not None:
        watch.stage = name
        watch.report(0.0)
    yield
    check()


def track(steps: Sequence[T]) -> Iterator[T]:
    """Yield the steps of a stage, checking for cancellation and telling the share done between them.

    Of nested calls the outermost reports.
    """
    watch = _WATCH.get()
    outermost = watch is not None and not watch.tracking
    if watch is None or not outermost:
        for step in steps:
            check()
            yield step
        return
    watch.tracking = True
    try:
        for done, step in enumerate(steps):
            check()
            watch.report(done / len(steps))
            yield step
        watch.report(1.0)
    finally:
        watch.tracking = False


def shown(steps: Sequence[T], what: str) -> Iterable[T]:
    """Return the steps of a training or evaluation; a bar on the terminal (stderr) shows how far they are."""
    from rich.console import Console
    from rich.progress import track as bar

    return bar(steps, description=what, transient=True, console=Console(stderr=True))
