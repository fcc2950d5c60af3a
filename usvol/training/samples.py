"""Prepare every case once and keep the tensors on disk, so that each epoch only reads."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file

from usvol import registry
from usvol.canonical import canonicalise
from usvol.errors import UsvolError
from usvol.loading import load
from usvol.training.cases import Case
from usvol.training.recipe import Recipe, Sample

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


def prepare_cases(recipe: Recipe, cases: Sequence[Case], *, cache: Path) -> list[Sample]:
    """Return the prepared tensors of every case with its references, id, data set and patient key.

    Tensors are cached below ``cache`` by the preparing function and the file's path, size and time;
    references are never cached. A file that cannot be read is left out with a warning that names it.
    """
    samples: list[Sample] = []
    for case in track(cases, description="preparing", transient=True, console=Console(stderr=True)):
        status = case.path.stat()
        stamp = f"{case.path.resolve()}|{status.st_size}|{status.st_mtime_ns}"

        def read(case: Case = case) -> tuple[dict[str, Tensor], dict[str, Any]]:
            return recipe.prepare(canonicalise(load(case.path, selection=recipe.selection))), {}

        try:
            tensors, _ = _cached(cache, f"{_name(recipe)}|{stamp}", read)
        except UsvolError as error:
            logger.warning("left out: %s", error)
            continue
        samples.append(_sample(tensors, case))
    return samples


def prepare_phantoms(recipe: Recipe, *, count: int, cache: Path) -> list[Sample]:
    """Return ``count`` simulated samples (seeds 0, 1, …); their truth stands in for the references."""
    if not count or recipe.phantom is None:
        return []
    phantom = registry.module(registry.Group.PHANTOMS, recipe.phantom)
    config = phantom.Config.model_validate(dict(recipe.phantom_settings))
    samples: list[Sample] = []
    for seed in track(range(count), description="simulating", transient=True, console=Console(stderr=True)):

        def make(seed: int = seed) -> tuple[dict[str, Tensor], dict[str, Any]]:
            scan, truth = phantom.simulate(seed, config)
            return recipe.prepare(canonicalise(scan)), truth

        stamp = f"{phantom.__name__}|{config.model_dump_json()}|{seed}"
        tensors, truth = _cached(cache, f"{_name(recipe)}|{stamp}", make)
        name = f"simulated_{seed}"
        samples.append(_sample(tensors, Case(name, name, Path(), truth, dataset="simulated")))
    return samples


def _sample(tensors: dict[str, Tensor], case: Case) -> Sample:
    facts = {"id": case.id, "dataset": case.dataset, "patient_key": case.patient_key}
    return {**case.reference, **tensors, **facts}


def _name(recipe: Recipe) -> str:
    return f"{recipe.prepare.__module__}.{recipe.prepare.__qualname__}|{recipe.selection}"


def _cached(
    cache: Path, key: str, make: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    stored = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    if not stored.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        partial = stored.with_suffix(".part")
        tensors, facts = make()
        save_file(tensors, partial, metadata={"facts": json.dumps(facts)})
        partial.replace(stored)
    with safe_open(stored, framework="pt") as handle:
        metadata = handle.metadata() or {}
        return {name: handle.get_tensor(name) for name in handle.keys()}, json.loads(metadata["facts"])  # noqa: SIM118
