"""Prepare every case once and keep the tensors on disk, so that each epoch only reads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from usvol import registry
from usvol.canonical import canonicalise
from usvol.errors import UsvolError
from usvol.result import Labels
from usvol.scan import Scan
from usvol.supervision import shown
from usvol.training.cases import Case, load_case
from usvol.training.recipe import Recipe, Sample
from usvol.training.stamps import stamp_of

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

Prepared = tuple[dict[str, "Tensor"], dict[str, Any]]  # tensors, and facts that are plain values


def prepare_cases(recipe: Recipe, cases: Sequence[Case], *, cache: Path) -> list[Sample]:
    """Return the prepared tensors of every case, with its references, id, data set, patient key and digest.

    ``prepared_sha256`` stands for the tensors, wherever their files lie.
    Tensors are cached below ``cache`` by the preparing function and the path, size and time of the scan's
    files and of its label map, if the recipe reads one; references are never cached. A file that cannot be
    read is left out with a warning that names it.
    """
    samples: list[Sample] = []
    for case in shown(cases, "preparing"):
        stamp = stamp_of(case, labelled=recipe.read_labels is not None)

        def read(case: Case = case) -> Prepared:
            scan = load_case(case, selection=recipe.selection)
            labels = recipe.read_labels(case) if recipe.read_labels else None
            tensors = _prepared(recipe, scan, labels)
            return tensors, {"prepared_sha256": hashlib.sha256(save(tensors)).hexdigest()}

        try:
            tensors, facts = _cached(cache, f"{_name(recipe)}|{stamp}", read)
        except UsvolError as error:
            logger.warning("left out: %s", error)
            continue
        samples.append({**_sample(tensors, case), **facts})
    return samples


def prepare_phantoms(recipe: Recipe, *, count: int, cache: Path, workers: int = 0) -> list[Sample]:
    """Return ``count`` simulated samples (seeds 0, 1, …); their truth stands in for the references.

    ``workers`` processes simulate what the cache lacks; 0 leaves it to this one. Interrupted, it goes on
    where it stopped, and several callers may share a cache.
    """
    if not count or recipe.phantom is None:
        return []
    if workers and "fork" in multiprocessing.get_all_start_methods():
        _simulate_ahead(recipe, count=count, cache=cache, workers=workers)
    samples: list[Sample] = []
    for seed in shown(range(count), "simulating"):
        tensors, truth = _simulated(recipe, seed, cache=cache)
        name = f"simulated_{seed}"
        samples.append(_sample(tensors, Case(name, name, Path(), truth, dataset="simulated")))
    return samples


def simulate_case(
    recipe: Recipe, seed: int, *, settings: Mapping[str, Any] | None = None
) -> tuple[Scan, Labels | None, dict[str, Any]]:
    """Simulate one case of a recipe's phantom: scan, truth labels where the recipe learns them, other truth.

    ``settings`` of the phantom are the recipe's own if none are given. Labels are cut to the sector: what was
    not insonified is no reference.
    """
    phantom = _phantom(registry.module, recipe.phantom or "")
    config = phantom.Config.model_validate(dict(recipe.phantom_settings if settings is None else settings))
    if recipe.prepare_labelled is None:
        scan, truth = phantom.simulate(seed, config)
        return scan, None, truth
    scan, labels, truth = phantom.simulate_labelled(seed, config)
    if scan.sector is not None:
        inside = scan.sector.mask.reshape(scan.grid.shape)
        labels = dataclasses.replace(labels, data=labels.data * inside)
    return scan, labels, truth


@lru_cache
def _phantom(find: Callable[[registry.Group, str], ModuleType], name: str) -> ModuleType:
    """Find a phantom once: the registry reads every installed package, which is slow to do for each seed."""
    return find(registry.Group.PHANTOMS, name)


def _simulated(recipe: Recipe, seed: int, *, cache: Path) -> Prepared:
    def make() -> Prepared:
        scan, labels, truth = simulate_case(recipe, seed)
        return _prepared(recipe, scan, labels), truth

    phantom = _phantom(registry.module, recipe.phantom or "")
    config = phantom.Config.model_validate(dict(recipe.phantom_settings))
    return _cached(cache, f"{_name(recipe)}|{phantom.__name__}|{config.model_dump_json()}|{seed}", make)


def _simulate_ahead(recipe: Recipe, *, count: int, cache: Path, workers: int) -> None:
    """Fill the cache with several processes, each taking every ``workers``-th seed."""

    def fill(first: int) -> None:
        import torch

        # One thread each: they share the cores, and threads do not survive a fork.
        torch.set_num_threads(1)
        for seed in range(first, count, workers):
            _simulated(recipe, seed, cache=cache)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fill, args=(first,)) for first in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        logger.warning("a simulating process failed: its cases are made one after the other")


def _prepared(recipe: Recipe, scan: Scan, labels: Labels | None) -> dict[str, Tensor]:
    canonical = canonicalise(scan)
    if recipe.prepare_labelled is None or labels is None:
        return recipe.prepare(canonical)
    return recipe.prepare_labelled(canonical, labels)


def _sample(tensors: dict[str, Tensor], case: Case) -> Sample:
    facts = {
        "id": case.id,
        "dataset": case.dataset,
        "patient_key": case.patient_key,
        "keys": sorted(case.keys),
    }
    return {**case.reference, **tensors, **facts}


def _name(recipe: Recipe) -> str:
    prepare = recipe.prepare_labelled or recipe.prepare
    return f"{prepare.__module__}.{prepare.__qualname__}|{recipe.selection}"


def _cached(cache: Path, key: str, make: Callable[[], Prepared]) -> Prepared:
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()  # names need not be UTF-8
    stored = cache / f"{digest[:32]}.safetensors"
    if not _is_whole(stored):
        cache.mkdir(parents=True, exist_ok=True)
        partial = stored.with_suffix(f".{os.getpid()}.part")
        tensors, facts = make()
        save_file(tensors, partial, metadata={"facts": json.dumps(facts)})
        partial.replace(stored)
    return _read(stored)


def _is_whole(stored: Path) -> bool:
    try:
        with safe_open(stored, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False  # none, or one that was cut off


def _read(stored: Path) -> Prepared:
    with safe_open(stored, framework="pt") as handle:
        metadata = handle.metadata() or {}
        return {name: handle.get_tensor(name) for name in handle.keys()}, json.loads(metadata["facts"])  # noqa: SIM118
