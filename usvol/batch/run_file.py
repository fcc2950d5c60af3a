"""The file that tells the results of a run: which task, on what, how it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RUN_FILE = "run.json"
SCHEMA = "usvol.run/1"


def read_run(out: Path) -> dict[str, Any] | None:
    """Return the content of ``run.json``, or None if there is none of ours."""
    try:
        facts = json.loads((out / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and facts.get("schema") == SCHEMA else None
