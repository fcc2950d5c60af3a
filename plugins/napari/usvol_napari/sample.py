"""Sample data: one simulated case for each task, made when it is first asked for and kept.

``open_<task>`` exists for every registered task, so that the manifest can name one command for each.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import platformdirs

from usvol import registry, synthesis
from usvol.errors import TaskError

SEED = 7
_PREFIX = "open_"
_POLL_S = 0.03


def __getattr__(name: str) -> Callable[[], list[tuple]]:
    if not name.startswith(_PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    task = name.removeprefix(_PREFIX)
    return lambda: open_sample(task)


def open_sample(task: str) -> list[tuple]:
    """Return the layers of the simulated case of a task; the window stays alive while it is made.

    Raises:
        TaskError: no such task, or it names no phantom.
    """
    from napari.utils import progress

    from usvol_napari.reader import open_layers

    if kept := _kept(task):
        return open_layers(kept)
    with ThreadPoolExecutor(1) as pool, progress(desc=f"simulating a case for {task}"):
        made = pool.submit(make_sample, task)
        while not made.done():
            _let_window_live()
        return open_layers(made.result())


def make_sample(task: str, *, folder: Path | None = None) -> Path:
    """Return the file of the simulated case of a task, made below ``folder`` (default: the user's cache).

    Raises:
        TaskError: no such task, or it names no phantom.
    """
    if kept := _kept(task, folder):
        return kept
    phantom, settings = phantom_of(task)
    place = _place(task, folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as work:
        synthesis.synthesise(phantom, out=Path(work) / "case", seed=SEED, settings=settings)
        if not place.exists():
            (Path(work) / "case").rename(place)
    kept = _kept(task, folder)
    assert kept is not None
    return kept


def phantom_of(task: str) -> tuple[str, dict[str, Any]]:
    """Return the phantom that simulates what a task is for, and its settings.

    Raises:
        TaskError: no such task, or it names no phantom.
    """
    training = getattr(registry.module(registry.Group.TASKS, task), "TRAINING", None)
    phantom = getattr(training, "phantom", None)
    if training is None or phantom is None:
        raise TaskError(
            f"Task {task!r} names no phantom, so there is no sample for it. Open a file of your own."
        )
    return phantom, dict(training.phantom_settings)


def _kept(task: str, folder: Path | None = None) -> Path | None:
    scans = [path for path in _place(task, folder).glob("simulated_*") if _is_scan(path)]
    return scans[0] if scans else None


def _is_scan(path: Path) -> bool:
    return path.suffix != ".json" and not path.name.endswith("_labels.nii.gz")


def _place(task: str, folder: Path | None) -> Path:
    # Another version may simulate another case.
    version = importlib.metadata.version("usvol")
    root = folder or Path(platformdirs.user_cache_dir("usvol")) / "samples"
    return root / version / task


def _let_window_live() -> None:
    from qtpy.QtCore import QCoreApplication

    if QCoreApplication.instance() is not None:
        QCoreApplication.processEvents()
    time.sleep(_POLL_S)
