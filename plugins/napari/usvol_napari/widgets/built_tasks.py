"""Tasks that were built before, with their networks in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from usvol import registry
from usvol.task import Task

_BUILT: dict[str, Task] = {}


def built_task(name: str, *, device: str = "auto", settings: Mapping[str, Any]) -> Task:
    """Return the task built for these settings, from memory where it was built before.

    Raises:
        TaskError, ConfigError, WeightsError: as ``registry.build_task``.
    """
    key = json.dumps([name, device, dict(settings)], sort_keys=True, default=str)
    if key not in _BUILT:
        _BUILT[key] = registry.build_task(name, device=device, overrides=settings)
    return _BUILT[key]
