"""Tasks that were built lately, with their networks in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from usvol import registry
from usvol.task import Task

_KEPT = 3
_BUILT: dict[str, Task] = {}  # the one used last comes last


def built_task(name: str, *, device: str = "auto", settings: Mapping[str, Any]) -> Task:
    """Return the task built for these settings, from memory where it is one of the last few.

    Raises:
        TaskError, ConfigError, WeightsError: as ``registry.build_task``.
    """
    key = json.dumps([name, device, dict(settings)], sort_keys=True, default=str)
    task = _BUILT.pop(key, None) or registry.build_task(name, device=device, overrides=settings)
    _BUILT[key] = task
    for old in list(_BUILT)[:-_KEPT]:
        _BUILT.pop(old, None)
    return task
