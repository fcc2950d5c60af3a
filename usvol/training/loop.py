"""Train the members of a task's ensemble, each blind to one fold of patients; resumable.

Files below OUT: ``cache/`` (prepared cases), ``base/`` or ``member_K/`` (checkpoints, CSV and TensorBoard
logs, finished weights), ``NAME.safetensors`` and ``NAME.md`` (the ensemble and its card).
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from usvol import registry, weights
from usvol.errors import ConfigError, DatasetError, MissingExtraError
from usvol.runtime import resolve_device
from usvol.training.cases import Case, of_split, patient_folds
from usvol.training.members import join_members, start_from
from usvol.training.recipe import FitSettings, Recipe, Sample
from usvol.training.resuming import fingerprint, keep, require_same
from usvol.training.samples import prepare_cases, prepare_phantoms
from usvol.writing import make_folder

if TYPE_CHECKING:
    import lightning
    from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fitting:
    """Where and how a training runs: output folder, whether to go on from what lies there, device."""

    out: Path
    resume: bool = False
    device: str = "auto"


def train(
    task: str,
    fitting: Fitting,
    *,
    config: Path | None = None,
    data: Path | None = None,
    settings: dict[str, Any] | None = None,
    prepare_only: bool = False,
) -> Path:
    """Train ``task`` by a YAML recipe and return the path of the weights file.

    The YAML holds the task's training settings and ``data``: data set name to folder. The argument ``data``
    sets that of the task's first data set, the setting ``data.NAME`` that of any. ``prepare_only`` stops once
    every case is simulated or prepared, and returns the folder they are kept in.

    Raises:
        ConfigError: a setting, the device or a folder to write to does not fit.
        DatasetError: a data set has no folder, or is not what its adapter expects.

    Example:
        >>> train("covid_severity", Fitting(Path("runs/covid")), data=Path("blues"),
        ...       config=Path("configs/train/covid_severity.yaml"))  # doctest: +SKIP
    """
    recipe = recipe_of(task)
    own_data = {} if data is None else {f"data.{recipe.datasets[0]}": data}
    chosen, folders = _read(recipe, config=config, overrides={**(settings or {}), **own_data})
    if not prepare_only:
        _hardware(fitting.device, chosen.devices)
        if chosen.init and not fitting.resume:  # preparing may take hours
            start_from(Path(chosen.init), recipe.network(chosen))
    cases = gather(recipe, folders, alone=recipe.phantoms_suffice and chosen.phantoms > 0)
    cache = Path(chosen.cache) if chosen.cache else fitting.out / "cache"
    make_folder(fitting.out)
    make_folder(cache)
    own = [case for case in cases if case.dataset == recipe.datasets[0]]
    fold_of = _folds(recipe, own, count=chosen.folds)
    samples = prepare_cases(recipe, cases, cache=cache)
    labelled = [s for s in samples if s["dataset"] == recipe.datasets[0]]
    others = [s for s in samples if s["dataset"] != recipe.datasets[0]]
    simulated = prepare_phantoms(recipe, count=chosen.phantoms, cache=cache, workers=chosen.phantom_workers)
    if prepare_only:
        return cache
    others += simulated[: len(simulated) - chosen.phantoms_held]
    unseen = simulated[len(simulated) - chosen.phantoms_held :]
    names = sorted(set(fold_of.values())) or [0]
    folds = [[s for s in labelled if fold_of[s["id"]] == k] if fold_of else [] for k in names]
    rest = [[s for s in labelled if fold_of.get(s["id"]) != k] for k in names]
    if recipe.adapt is None:
        states = [
            fit_network(recipe, chosen, seen=[*rest[k], *others], name=f"member_{k}", fitting=fitting)
            for k in range(len(folds))
        ]
    else:
        network = recipe.network(chosen)
        network.load_state_dict(fit_network(recipe, chosen, seen=others, name="base", fitting=fitting))
        states = recipe.adapt(network.eval(), rest, settings=chosen)
    path = fitting.out / f"{task}.safetensors"
    seen = [[*r, *others] for r in rest]
    return assemble(recipe, chosen, path=path, states=states, seen=seen, held=[[*f, *unseen] for f in folds])


def _folds(recipe: Recipe, own: Sequence[Case], *, count: int) -> dict[str, int]:
    """Return the fold of each own case, by id; without own cases, or with a count of 1, there are none.

    A data set's official folds are taken where there are as many as ``count``.
    """
    if count == 1 or not own:
        return {}
    official = [case.fold for case in own if case.fold is not None]
    if len(official) == len(own) and len(set(official)) == count:
        dealt = official
    else:
        dealt = patient_folds(own, folds=count, strata=[recipe.stratum(case) for case in own])
    return dict(zip((case.id for case in own), dealt, strict=True))


def recipe_of(task: str) -> Recipe:
    """Return what the task module exports as ``TRAINING``.

    A task needs weights to be registered; the first ones are trained by ``PACKAGE/recipes/TASK.py`` alone.

    Raises:
        ConfigError: the task cannot be trained.
    """
    if task not in registry.tasks() and (alone := _recipe_alone(task)) is not None:
        return alone
    module = registry.module(registry.Group.TASKS, task)
    recipe = getattr(module, "TRAINING", None)
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"Task {task!r} exports no TRAINING recipe, so it cannot be trained or evaluated.")
    return recipe


def _recipe_alone(task: str) -> Recipe | None:
    for package in registry.packages() if task.isidentifier() else ():
        place = f"{package}.recipes.{task}"
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if not place.startswith(str(error.name)):
                raise
            continue
        if isinstance(recipe := getattr(module, "TRAINING", None), Recipe):
            return recipe
    return None


def gather(recipe: Recipe, folders: dict[str, Path], *, alone: bool = False) -> list[Case]:
    """List the training cases of every data set that has a folder; ``alone``: none of them is needed."""
    unknown = set(folders) - set(recipe.datasets)
    if unknown:
        raise ConfigError(f"Data sets {sorted(unknown)} are none of this task's: {list(recipe.datasets)}.")
    if recipe.datasets[0] not in folders and not alone:
        raise DatasetError(
            f"Say where data set {recipe.datasets[0]!r} lies: --data DIR, or `data:` in the YAML."
        )
    for name in set(recipe.datasets) - set(folders):
        logger.warning("training without data set %r: --set data.%s=DIR would add it", name, name)
    cases: list[Case] = []
    for name, folder in folders.items():
        found = registry.module(registry.Group.DATASETS, name).cases(Path(folder))
        kept = of_split(found, "train")
        if len(kept) < len(found):
            logger.info(
                "%s: %d of %d cases, those of its official training part", name, len(kept), len(found)
            )
        cases += kept
    return cases


def fit_network(
    recipe: Recipe,
    settings: FitSettings,
    *,
    seen: Sequence[Sample],
    name: str,
    fitting: Fitting,
) -> dict[str, Tensor]:
    """Train one network on ``seen`` and return its averaged weights; when resuming keep a finished one.

    Raises:
        ConfigError: what is to be resumed was made with other settings or cases, or is cut off.
        DatasetError: there is no case.
    """
    if not seen:
        raise DatasetError(f"{name}: no case is left to learn from; what was left out is said above.")
    folder = fitting.out / name
    finished, last = folder / "network.safetensors", folder / "checkpoints" / "last.ckpt"
    facts = fingerprint(settings, seen)
    resumed = fitting.resume and (finished.is_file() or last.is_file())
    if resumed and last.is_file() and not zipfile.is_zipfile(last):
        raise ConfigError(f"{last}: cut off. Delete it; this network is then trained from its beginning.")
    if resumed:
        require_same(folder, facts)
    if resumed and finished.is_file():
        logger.info("%s is finished", name)
        return _stored(finished)
    try:
        import lightning
    except ImportError as error:
        raise MissingExtraError("lightning", "train", "Training") from error
    from torch.utils.data import DataLoader

    from usvol.training.module import Fit

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    lightning.seed_everything(settings.seed, workers=True, verbose=False)
    loader = DataLoader(
        recipe.examples(seen, settings),
        batch_size=settings.batch_size,
        shuffle=True,
        drop_last=len(seen) > settings.batch_size,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,  # what they keep of an epoch serves the next
    )
    fit = Fit(recipe, settings, steps=len(loader) * settings.epochs)
    if settings.init:
        start_from(Path(settings.init), fit.network, fit.averaged.module)
    if not resumed:
        # What an earlier training left would pass for made with what is asked now.
        finished.unlink(missing_ok=True)
        last.unlink(missing_ok=True)
        keep(folder, facts)
    trainer = _trainer(settings, folder, device=fitting.device)
    trainer.fit(fit, loader, ckpt_path=str(last) if last.is_file() else None)
    kept = fit.kept()
    partial = finished.with_suffix(".part")
    save_file(kept, partial)
    partial.replace(finished)
    return kept


def _stored(finished: Path) -> dict[str, Tensor]:
    try:
        return load_file(finished)
    except SafetensorError as error:
        raise ConfigError(f"{finished}: cut off ({error}). Delete it and go on with --resume.") from error


def _trainer(settings: FitSettings, folder: Path, *, device: str) -> lightning.Trainer:
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    accelerator, devices = _hardware(device, settings.devices)
    return lightning.Trainer(
        max_epochs=settings.epochs,
        accelerator=accelerator,
        devices=devices,
        precision=settings.precision,
        gradient_clip_val=1.0,
        default_root_dir=folder,
        logger=[CSVLogger(folder, name="logs"), TensorBoardLogger(str(folder), name="tensorboard")],
        callbacks=[ModelCheckpoint(folder / "checkpoints", filename="last", enable_version_counter=False)],
        log_every_n_steps=1,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
        num_sanity_val_steps=0,
    )


def _hardware(device: str, devices: str) -> tuple[str, str | list[int]]:
    """Return what Lightning calls the device and the number of devices; ``cuda:N`` is that one GPU alone.

    Raises:
        ConfigError: there is no such device, or there are not so many.
    """
    import torch

    place = resolve_device(device)
    if ":" in device:
        return "gpu", [place.index]
    there = torch.cuda.device_count()
    if place.type == "cuda" and devices != "auto" and int(devices) > there:
        raise ConfigError(f"devices={devices}: torch sees {there} CUDA devices. Use fewer, or auto for all.")
    return {"cpu": "cpu", "auto": "auto"}.get(device, "gpu"), devices


def assemble(
    recipe: Recipe,
    settings: FitSettings,
    *,
    path: Path,
    states: Sequence[dict[str, Tensor]],
    seen: Sequence[Sequence[Sample]],
    held: Sequence[Sequence[Sample]],
) -> Path:
    """Join the members in one float16 file that says what each was trained on, with a card beside it.

    Tensors that all members share are stored once; patients are named by their hashed keys, and no folder of
    this machine is.
    """
    networks = [recipe.network(settings) for _ in states]
    for network, state in zip(networks, states, strict=True):
        network.load_state_dict(state)
        network.eval()
    calibration = (
        recipe.calibrate(networks, held, settings=settings) if recipe.calibrate else [{} for _ in states]
    )
    facts = {
        "task": path.stem,
        "members": str(len(states)),
        "train_patients": json.dumps([_patients(samples) for samples in seen]),
        "calibration": json.dumps(calibration),
        "settings": _without_folders(settings).model_dump_json(),
    }
    if recipe.describe is not None:
        described = [
            recipe.describe(network, known, held=new, settings=settings)
            for network, known, new in zip(networks, seen, held, strict=True)
        ]
        states = [{**state, **extra} for state, extra in zip(states, described, strict=True)]
    sha256 = weights.save(path, join_members(states), metadata=facts, half=True)
    facts_of_card = {"task": path.stem, "sha256": sha256}
    weights.write_card(
        path.with_suffix(".md"), facts_of_card, body=f"# {path.stem}\n\nTrained here, not yet evaluated."
    )
    return path


def _patients(samples: Sequence[Sample]) -> list[str]:
    return sorted({key for s in samples if s["dataset"] != "simulated" for key in s["keys"]})


def _read(
    recipe: Recipe, *, config: Path | None, overrides: dict[str, Any]
) -> tuple[FitSettings, dict[str, Path]]:
    from pydantic import ValidationError

    content: dict[str, Any] = {}
    if config is not None:
        if not config.is_file():
            raise ConfigError(f"No recipe {config}. The shipped ones are in configs/train/.")
        content = registry.read_settings(config)
    stated = {key.removeprefix("data."): overrides[key] for key in overrides if key.startswith("data.")}
    overrides = {key: value for key, value in overrides.items() if not key.startswith("data.")}
    folders = _folders(content.pop("data", None), stated, source=str(config or "the settings"))
    try:
        return recipe.Settings.model_validate({**content, **overrides}), folders
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(
            f"{config or 'the settings'}: {wrong}. Known: {sorted(recipe.Settings.model_fields)}."
        ) from error


def _folders(data: Any, stated: dict[str, Any], *, source: str) -> dict[str, Path]:
    """Return the folders of data sets that a recipe lists as ``data`` or that are stated beside it."""
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: data = {data!r}: write `data:` and below it one `NAME: DIR` a line.")
    listed = {**data, **stated}
    for name, folder in listed.items():
        if not isinstance(name, str) or not isinstance(folder, str | Path) or not str(folder):
            raise ConfigError(
                f"{source}: data.{name} = {folder!r} is no folder. Write `NAME: DIR` below `data:`, or "
                "--set data.NAME=DIR; what looks like a number goes in quotes."
            )
    return {name: Path(folder) for name, folder in listed.items()}


def _without_folders(settings: FitSettings) -> FitSettings:
    init = Path(settings.init).name if settings.init else None
    return settings.model_copy(update={"cache": None, "init": init})
