"""Silence the warnings of other packages while a file is read, in several threads at a time."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Silence:
    """How many blocks are silent now; the first one in keeps the filters that the last one out restores."""

    count: int = 0
    kept: warnings.catch_warnings[None] = field(default_factory=warnings.catch_warnings)
    lock: threading.Lock = field(default_factory=threading.Lock)


_SILENCE = _Silence()


@contextmanager
def unwarned() -> Iterator[None]:
    """Show no warning in the block.

    Python's filters belong to the whole process, so ``warnings.catch_warnings`` in one thread undoes that of
    another: warnings that quote a patient's name would be shown after all, or all of them hidden for good.
    """
    with _SILENCE.lock:
        if not _SILENCE.count:
            _SILENCE.kept = warnings.catch_warnings()
            _SILENCE.kept.__enter__()
            warnings.simplefilter("ignore")
        _SILENCE.count += 1
    try:
        yield
    finally:
        with _SILENCE.lock:
            _SILENCE.count -= 1
            if not _SILENCE.count:
                _SILENCE.kept.__exit__(None, None, None)
