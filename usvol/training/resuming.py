"""Go on with a training only where it is the one that is asked for: same settings, same cases."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from usvol import weights
from usvol.encoding import jsonable
from usvol.errors import ConfigError
from usvol.training.recipe import FitSettings, Sample

logger = logging.getLogger(__name__)

_KEPT = "made_with.json"
# Where and how fast it is learned; the folds and the phantoms of a network are known by its cases.
_IRRELEVANT = {"cache", "devices", "workers", "phantom_workers", "folds", "phantoms", "phantoms_held"}


def fingerprint(settings: FitSettings, seen: Sequence[Sample]) -> dict[str, Any]:
    """Return what decides what a network learns: settings by name, and one digest of its cases.

    Cases count with their ids, patients, prepared content and whatever plain numbers their references are.
    """
    facts = jsonable(settings.model_dump(mode="json", exclude=_IRRELEVANT))
    if settings.init and (start := Path(settings.init)).is_file():
        facts["init"] = weights.sha256_of(start)
    return {"settings": facts, "cases": hashlib.sha256(json.dumps(_told(seen)).encode()).hexdigest()}


def keep(folder: Path, facts: dict[str, Any]) -> None:
    """Write beside a network and its checkpoint what they are made with."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _KEPT).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def require_same(folder: Path, facts: dict[str, Any]) -> None:
    """Raise ``ConfigError`` where what lies in ``folder`` was made with something else than ``facts``.

    Of what was made before this was kept, nothing can be said: it is taken, with a warning.
    """
    try:
        made = json.loads((folder / _KEPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        logger.warning(
            "%s does not say what it was made with, so --resume takes it unchecked. If settings, cases or "
            "folds have changed since, its weights name wrong patients: give a new -o or drop --resume.",
            folder,
        )
        return
    if made != facts:
        raise ConfigError(f"{folder} was made with {_other(made, facts)}; give a new -o or drop --resume.")


def _told(seen: Sequence[Sample]) -> list[list[Any]]:
    """List the cases in no order; simulated ones are known by their ids."""
    known = ("dataset", "id", "patient_key", "prepared_sha256")
    return sorted([*map(sample.get, known), _numbers(sample)] for sample in seen)


def _numbers(sample: Sample) -> str:
    if sample["dataset"] == "simulated":
        return ""
    return repr(sorted((k, v) for k, v in sample.items() if isinstance(v, bool | int | float)))


def _other(made: dict[str, Any], facts: dict[str, Any]) -> str:
    then, now = made["settings"], facts["settings"]
    changed = [
        f"{name}={then.get(name)!r} (now {now.get(name)!r})"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
    return ", ".join(changed) or "other training cases, patients or folds"
