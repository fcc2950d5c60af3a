"""One engine for 3D volumes and cine clips in ultrasound. Not a medical device.

Example:
    >>> import usvol  # doctest: +SKIP
    >>> task = usvol.build_task("covid_severity")
    >>> scan = usvol.load("clip.mp4", selection=task.selection)
    >>> result = usvol.run(task, scan)
    >>> usvol.write(result, "out", scan=scan)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from usvol.errors import ReadError, UncalibratedError, UsvolError
    from usvol.loading import load, probe
    from usvol.pipeline import run
    from usvol.registry import build_task, datasets, phantoms, tasks
    from usvol.result import (
        Box,
        Curve,
        Finding,
        Heatmap,
        Labels,
        Line,
        Measurement,
        Plane,
        Result,
        Scores,
        Surface,
    )
    from usvol.scan import Grid, Header, Kind, Scan, Selection
    from usvol.task import Task
    from usvol.writing import write

# Resolved on first use (PEP 562), so that `import usvol` and the command line start without torch.
_HOMES = {
    "errors": ("ReadError", "UncalibratedError", "UsvolError"),
    "loading": ("load", "probe"),
    "pipeline": ("run",),
    "registry": ("build_task", "datasets", "phantoms", "tasks"),
    "result": (
        "Box", "Curve", "Finding", "Heatmap", "Labels", "Line", "Measurement", "Plane", "Result", "Scores",
        "Surface",
    ),
    "scan": ("Grid", "Header", "Kind", "Scan", "Selection"),
    "task": ("Task",),
    "writing": ("write",),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Box", "Curve", "Finding", "Grid", "Header", "Heatmap", "Kind", "Labels", "Line", "Measurement", "Plane",
    "ReadError", "Result", "Scan", "Scores", "Selection", "Surface", "Task", "UncalibratedError",
    "UsvolError", "build_task", "datasets", "load", "phantoms", "probe", "run", "tasks", "write",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'usvol' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"usvol.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
