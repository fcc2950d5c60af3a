"""Measure a task against references: by patient fold or on patients the weights never saw, with intervals."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from usvol import pipeline, registry
from usvol.errors import ConfigError, DatasetError, UncalibratedError, UsvolError
from usvol.metrics import Estimate, UndefinedMetricError
from usvol.supervision import shown
from usvol.task import Task
from usvol.training.cases import Case, Split, load_case, of_split, patient_folds, require_disjoint
from usvol.training.loop import recipe_of
from usvol.training.recipe import Recipe, Row
from usvol.training.samples import simulate_case

logger = logging.getLogger(__name__)

_SIMULATED = "simulated:"
_FIRST_SEED = {"test": 1_000_000, "validation": 2_000_000}


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What came out, pooled and by fold.

    Attributes:
        metrics: name to value with 95 % interval (whole patients resampled); empty where they are undefined.
        folds: the same metrics per fold, without intervals; empty without folds.
        confusion: counts, references in rows; None where the task has no classes.
        unread: cases left out, with the reason.
        undefined: why there are no metrics, or None.
    """

    task: str
    dataset: str
    n: int
    patients: int
    metrics: Mapping[str, Estimate]
    folds: tuple[Mapping[str, float], ...]
    confusion: np.ndarray | None
    unread: Mapping[str, str]
    rows: tuple[Row, ...]
    weights_sha256: str | None
    undefined: str | None = None

    @property
    def is_simulated(self) -> bool:
        """Whether the cases are phantoms."""
        return self.dataset.startswith(_SIMULATED)

    def to_json(self) -> dict[str, Any]:
        """Return one JSON-able object."""
        return {
            "task": self.task,
            "dataset": self.dataset,
            "simulated": self.is_simulated,
            "n": self.n,
            "patients": self.patients,
            "metrics": {
                name: {"value": e.value, "low": e.low, "high": e.high} for name, e in self.metrics.items()
            },
            "undefined": self.undefined,
            "folds": [dict(fold) for fold in self.folds],
            "confusion": None if self.confusion is None else self.confusion.tolist(),
            "unread": dict(self.unread),
            "weights_sha256": self.weights_sha256,
            "rows": list(self.rows),
        }

    def to_markdown(self) -> str:
        """Return the tables for people."""
        kind = "simulated cases" if self.is_simulated else f"cases of {self.patients} patients"
        lines = [
            f"# {self.task} on {self.dataset}",
            "",
            f"{self.n} {kind}; 95 % intervals over patients.",
            "",
        ]
        lines += ["| metric | value | 95 % CI |" + "".join(f" fold {k} |" for k in range(len(self.folds)))]
        lines += ["|---|---|---|" + "---|" * len(self.folds)]
        for name, e in self.metrics.items():
            by_fold = "".join(f" {fold.get(name, float('nan')):.3f} |" for fold in self.folds)
            lines.append(f"| {name} | {e.value:.3f} | {e.low:.3f} to {e.high:.3f} |{by_fold}")
        if self.undefined is not None:
            lines += ["", f"No metrics: {self.undefined}."]
        if self.confusion is not None:
            classes = range(len(self.confusion))
            lines += ["", "| reference \\ task |" + "".join(f" {k} |" for k in classes)]
            lines += ["|---|" + "---|" * len(self.confusion)]
            lines += [
                f"| {k} |" + "".join(f" {c} |" for c in counts) for k, counts in enumerate(self.confusion)
            ]
        lines += [""] + [f"Not read: {name}: {cause}" for name, cause in self.unread.items()]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Options:
    """How the task is built: device, overrides of its configuration, number of phantoms."""

    device: str = "auto"
    settings: Mapping[str, Any] = field(default_factory=dict)
    count: int = 50


def evaluate(
    task: str,
    dataset: str,
    *,
    data: Path | None = None,
    folds: int | None = None,
    options: Options | None = None,
) -> Evaluation:
    """Run ``task`` over a data set and compare with its references.

    With ``folds``, each case is answered by a member of the ensemble that never saw its patient (``usvol
    train`` leaves one fold of patients out of each); patients new to all are dealt out to the members.
    Without, the whole ensemble answers, and a patient that any member was trained on is refused.

    Args:
        task: registered name of the task.
        dataset: registered name, ``simulated:test`` for phantoms, or a folder that holds a data set of the
            task, such as one of images and label maps. Of a data set with an official split its
            test part is taken, or that of ``NAME:train``, ``NAME:validation`` (all of it with ``folds``).
        data: folder of the data set.
        folds: number of members of the ensemble; None for the whole ensemble.
        options: device, settings, number of phantoms.

    Raises:
        LeakageError: every member that could answer was trained on the patient.
        DatasetError: the data set is not there. ConfigError: the task has no recipe.

    Example:
        >>> evaluate("covid_severity", "blues", data=Path("blues"), folds=5).metrics  # doctest: +SKIP
    """
    recipe, options = recipe_of(task), options or Options()
    if dataset.startswith(_SIMULATED):
        if folds is not None:
            raise ConfigError("Simulated cases have no patients to fold by; leave --folds out.")
        return _finish(
            task,
            dataset,
            recipe=recipe,
            answers=_on_phantoms(_built(task, options), recipe, dataset=dataset, count=options.count),
        )
    if data is None:
        dataset, found = _in_folder(recipe, dataset)
        cases = found if folds is not None else of_split(found, "test")
    else:
        cases = _cases(dataset, data, whole=folds is not None)
    answers = _Answers()
    if folds is None:
        built = _built(task, options)
        require_disjoint(_seen_patients(built), cases)
        _answer(answers, built, recipe=recipe, cases=cases, fold=0)
    else:
        members = [_built(task, options, member=k) for k in range(folds)]
        for fold, (built, held) in enumerate(zip(members, _deal(recipe, members, cases), strict=True)):
            _answer(answers, built, recipe=recipe, cases=held, fold=fold)
    return _finish(task, dataset, recipe=recipe, answers=answers)


def _in_folder(recipe: Recipe, folder: str) -> tuple[str, list[Case]]:
    """Return name and cases of the task's data set that lies in a folder."""
    if not Path(folder).is_dir():
        if folder.partition(":")[0] in recipe.datasets:
            raise DatasetError(f"Say where data set {folder!r} lies: --data DIR.")
        known = ", ".join((*recipe.datasets, *(["simulated:test"] if recipe.phantom else [])))
        raise DatasetError(
            f"{folder!r} is neither a folder nor a data set of this task ({known}). Give a folder that is "
            "there, or the name of a data set and where it lies: --data DIR."
        )
    reasons = []
    for name in recipe.datasets:
        try:
            return name, registry.module(registry.Group.DATASETS, name).cases(Path(folder))
        except DatasetError as error:
            reasons.append(f"{name}: {str(error).removeprefix(f'{folder}: ')}")
    raise DatasetError(f"{folder} holds no data set of this task. {' '.join(reasons)}")


def _cases(dataset: str, data: Path, *, whole: bool) -> list[Case]:
    name, _, stated = dataset.partition(":")
    if stated not in ("", *get_args(Split)):
        raise ConfigError(f"No part {stated!r} of {name!r}; a split has {', '.join(get_args(Split))}.")
    cases = registry.module(registry.Group.DATASETS, name).cases(data)
    if stated and not any(case.split == stated for case in cases):
        raise DatasetError(f"{name} has no official split with a part {stated!r}.")
    return cases if whole and not stated else of_split(cases, cast(Split, stated or "test"))


def _built(task: str, options: Options, *, member: int | None = None) -> Task:
    own = {} if member is None else {"member": member}
    return registry.build_task(task, device=options.device, overrides={**options.settings, **own})


def _deal(recipe: Recipe, members: Sequence[Task], cases: Sequence[Case]) -> list[list[Case]]:
    """Give every case to a member that never saw its patient."""
    total = getattr(members[0], "members", len(members))
    if total != len(members):
        raise ConfigError(
            f"These weights have {total} members, so --folds {total} it is; for another number train anew "
            "with `usvol train --set folds=N` and evaluate with --set weights=FILE."
        )
    seen = [set(_seen_patients(member)) for member in members]
    keys = {c.patient_key: set[str]() for c in cases}
    for case in cases:
        keys[case.patient_key] |= case.keys
    free = {patient: [k for k in range(total) if not seen[k] & known] for patient, known in keys.items()}
    require_disjoint([patient for patient, members_free in free.items() if not members_free], cases)
    new = [case for case in cases if len(free[case.patient_key]) == total]
    dealt = patient_folds(new, folds=total, strata=[recipe.stratum(c) for c in new], fill=False)
    fold_of = {case.patient_key: fold for case, fold in zip(new, dealt, strict=True)}
    fold_of |= {key: members_free[0] for key, members_free in free.items() if key not in fold_of}
    return [[case for case in cases if fold_of[case.patient_key] == k] for k in range(total)]


@dataclass(slots=True)
class _Answers:
    """Rows as they come, with patient and fold of each."""

    rows: list[Row] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    folds: list[int] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)
    weights_sha256: str | None = None


def _answer(answers: _Answers, task: Task, *, recipe: Recipe, cases: Sequence[Case], fold: int) -> None:
    answers.weights_sha256 = task.provenance.get("weights_sha256")
    for case in shown(cases, f"fold {fold}"):
        try:
            row = recipe.row(pipeline.run(task, load_case(case, selection=task.selection)), case)
        except UsvolError as error:
            answers.unread[case.id] = _cause(error)
            logger.warning("left out: %s: %s", case.id, answers.unread[case.id])
            continue
        answers.rows.append({"id": case.id, "fold": fold, **row})
        answers.groups.append(case.patient_key)
        answers.folds.append(fold)


def _cause(error: UsvolError) -> str:
    """Say why a case is left out, with a way out that an evaluation has: nobody states a spacing to it."""
    if isinstance(error, UncalibratedError):
        return f"{error.quantity} needs a scale: {error.reason}. Write the spacing into the file's header."
    return str(error)


def _on_phantoms(task: Task, recipe: Recipe, *, dataset: str, count: int) -> _Answers:
    split = dataset.removeprefix(_SIMULATED)
    if recipe.phantom is None or split not in _FIRST_SEED:
        known = ", ".join(f"{_SIMULATED}{name}" for name in _FIRST_SEED)
        raise ConfigError(f"No simulated data set {dataset!r} for this task. Known: {known}.")
    answers = _Answers(weights_sha256=task.provenance.get("weights_sha256"))
    for seed in shown(range(_FIRST_SEED[split], _FIRST_SEED[split] + count), dataset):
        scan, labels, truth = simulate_case(recipe, seed, settings={})
        reference = truth if labels is None else {**truth, "labels": labels}
        case = Case(str(seed), str(seed), Path(str(seed)), reference, dataset="simulated")
        answers.rows.append({"id": case.id, "fold": 0, **recipe.row(pipeline.run(task, scan), case)})
        answers.groups.append(case.patient_key)
        answers.folds.append(0)
    return answers


def _finish(task: str, dataset: str, *, recipe: Recipe, answers: _Answers) -> Evaluation:
    if len(set(answers.groups)) < 2:
        read, left = len(answers.rows), [f"{name}: {cause}" for name, cause in answers.unread.items()]
        raise DatasetError(
            f"{dataset}: an interval needs at least two patients. {read} of {read + len(left)} cases could "
            f"be read, of {len(set(answers.groups))} patients. {' '.join(left[:1])}".rstrip()
        )
    rows = answers.rows
    by_fold = []
    for fold in sorted(set(answers.folds)) if len(set(answers.folds)) > 1 else ():
        inside = [i for i, of in enumerate(answers.folds) if of == fold]
        estimates, _ = _estimated(
            recipe, [rows[i] for i in inside], groups=[answers.groups[i] for i in inside], of=f"fold {fold}"
        )
        by_fold.append({name: estimate.value for name, estimate in estimates.items()})
    metrics, undefined = _estimated(recipe, rows, groups=answers.groups, of=dataset)
    return Evaluation(
        task=task,
        dataset=dataset,
        n=len(rows),
        patients=len(set(answers.groups)),
        metrics=metrics,
        folds=tuple(by_fold),
        confusion=recipe.confusion(rows) if recipe.confusion else None,
        unread=answers.unread,
        rows=tuple(rows),
        weights_sha256=answers.weights_sha256,
        undefined=undefined,
    )


def _estimated(
    recipe: Recipe, rows: Sequence[Row], *, groups: Sequence[str], of: str
) -> tuple[Mapping[str, Estimate], str | None]:
    """Return the metrics and None, or none and why they are undefined."""
    try:
        return recipe.metrics(rows, groups), None
    except UndefinedMetricError as error:
        logger.warning("%s has no metrics: %s", of, error)
        return {}, str(error)


def _seen_patients(task: Task) -> tuple[str, ...]:
    return tuple(getattr(task, "train_patients", ()))
