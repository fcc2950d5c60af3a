"""A case of a data set, and splits that never part a patient."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from usvol.errors import DatasetError, LeakageError
from usvol.loading import load
from usvol.scan import Scan, Selection

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class Case:
    """One labelled scan.

    Attributes:
        id: unique within the data set.
        patient: identity within the data set; never leaves the process unhashed.
        path: scan file or folder.
        reference: what the experts said, by name; the task knows the names.
        dataset: name of the data set, part of the patient key.
        split: part of the data set's official split: only ``train`` is trained on, only ``test`` evaluated
            unless asked. None where it has none.
        fold: official fold for cross-validation, or None.
        content: stands for the content of the scan where data sets of the user may name its patient in one
            copy and not in another; None where patients are always named alike.
        read: reads the scan where ``usvol.load`` would misread the file; None where it does not.
    """

    id: str
    patient: str
    path: Path
    reference: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = ""
    split: Split | None = None
    fold: int | None = None
    content: str | None = None
    read: Callable[[Case], Scan] | None = None

    @property
    def patient_key(self) -> str:
        """16 hex digits that stand for the patient in weights and reports."""
        return self._hashed(self.patient)

    @property
    def keys(self) -> frozenset[str]:
        """The patient key, and the key of the scan's content: what weights name."""
        return frozenset({self.patient_key} | ({self._hashed(self.content)} if self.content else set()))

    def _hashed(self, identity: str) -> str:
        return hashlib.sha256(f"usvol:{self.dataset}:{identity}".encode()).hexdigest()[:16]


def load_case(case: Case, *, selection: Selection) -> Scan:
    """Read the scan of a case, by its data set's own reader where it has one.

    Raises:
        ReadError: its subclass says what is wrong with the file.
    """
    return case.read(case) if case.read else load(case.path, selection=selection)


def of_split(cases: Sequence[Case], split: Split) -> list[Case]:
    """Keep the cases of one part of an official split, and those of data sets that have none."""
    return [case for case in cases if case.split in (None, split)]


def patient_folds(
    cases: Sequence[Case], *, folds: int, strata: Sequence[float], seed: int = 0, fill: bool = True
) -> list[int]:
    """Assign every case a fold 0 … folds-1 so that no patient is in two.

    Patients are sorted by the mean of ``strata`` (say, severity) and dealt out in blocks, so that the
    folds resemble each other. The same cases and seed always give the same folds. With ``fill`` no fold may
    stay empty.

    Raises:
        DatasetError: fewer patients than folds.

    Example:
        >>> cases = [Case(str(i), f"p{i // 2}", Path("x")) for i in range(8)]
        >>> patient_folds(cases, folds=2, strata=[0, 0, 1, 1, 2, 2, 3, 3])
        [0, 0, 1, 1, 0, 0, 1, 1]
    """
    by_patient: dict[str, list[float]] = {}
    for case, value in zip(cases, strata, strict=True):
        by_patient.setdefault(case.patient_key, []).append(float(value))
    if fill and len(by_patient) < folds:
        raise DatasetError(f"{len(by_patient)} patients cannot fill {folds} folds; use fewer folds.")
    rng = np.random.default_rng(seed)
    order = sorted(by_patient, key=lambda key: (float(np.mean(by_patient[key])), key))
    fold_of: dict[str, int] = {}
    for start in range(0, len(order), folds):
        block = order[start : start + folds]
        for key, fold in zip(block, rng.permutation(folds), strict=False):
            fold_of[key] = int(fold)
    return [fold_of[case.patient_key] for case in cases]


def require_disjoint(train: Sequence[Case] | Sequence[str], test: Sequence[Case]) -> None:
    """Raise ``LeakageError`` when a patient, or a scan under whatever name, stands on both sides.

    ``train`` may be cases or keys, such as those a weights file names.
    """
    known = set().union(*({item} if isinstance(item, str) else item.keys for item in train))
    shared = {case.patient_key for case in test if case.keys & known}
    if shared:
        raise LeakageError(
            f"{len(shared)} of the test patients were used for training these weights, so the result would "
            "be worthless. Evaluate with --folds (each patient is then scored by a network that never saw "
            "them), or on other patients."
        )
