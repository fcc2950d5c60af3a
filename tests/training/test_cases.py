"""Splits never part a patient, and leakage is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from usvol.errors import DatasetError, LeakageError, ReadError
from usvol.scan import Grid, Scan, Selection
from usvol.training.cases import Case, load_case, of_split, patient_folds, require_disjoint


def _cases(patients: list[int], dataset: str = "set") -> list[Case]:
    return [Case(f"c{i}", f"p{p}", Path("x"), dataset=dataset) for i, p in enumerate(patients)]


@given(st.lists(st.integers(0, 11), min_size=30, max_size=90), st.integers(0, 5))
def test_a_patient_is_in_one_fold_only(patients: list[int], seed: int) -> None:
    cases = _cases([*patients, *range(12)])
    strata = np.random.default_rng(seed).integers(0, 4, len(cases)).tolist()
    folds = patient_folds(cases, folds=4, strata=strata, seed=seed)
    assert set(folds) == {0, 1, 2, 3}
    for patient in {case.patient for case in cases}:
        assert len({f for case, f in zip(cases, folds, strict=True) if case.patient == patient}) == 1


def test_folds_do_not_depend_on_the_order_of_cases() -> None:
    cases = _cases([p for p in range(20) for _ in range(3)])
    strata = [int(case.patient[1:]) % 4 for case in cases]
    there = dict(zip((c.id for c in cases), patient_folds(cases, folds=5, strata=strata), strict=True))
    back = patient_folds(cases[::-1], folds=5, strata=strata[::-1])
    assert [there[case.id] for case in cases[::-1]] == back


def test_folds_balance_the_strata() -> None:
    cases = _cases([p for p in range(50) for _ in range(4)])
    strata = [int(case.patient[1:]) // 13 for case in cases]
    folds = np.array(patient_folds(cases, folds=5, strata=strata))
    means = [np.mean(np.array(strata)[folds == k]) for k in range(5)]
    assert max(means) - min(means) < 0.35


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(DatasetError, match="2 patients cannot fill 5 folds"):
        patient_folds(_cases([0, 1]), folds=5, strata=[0, 1])


def test_the_same_patient_on_both_sides_is_refused() -> None:
    train, test = _cases([0, 1, 2]), _cases([2, 3])
    with pytest.raises(LeakageError, match="1 of the test patients"):
        require_disjoint(train, test)
    with pytest.raises(LeakageError):
        require_disjoint([case.patient_key for case in train], test)
    require_disjoint(train, _cases([3, 4]))


def test_patient_keys_hide_the_identity_and_tell_data_sets_apart() -> None:
    here, there = _cases([7])[0], _cases([7], dataset="other")[0]
    assert here.patient_key != there.patient_key
    assert here.patient_key != "7" and len(here.patient_key) == 16


def test_official_splits_are_kept_and_cases_without_one_always_count() -> None:
    parts = ("train", "validation", "test", None)
    cases = [Case(str(part), "p", Path("x"), split=part) for part in parts]
    assert [case.id for case in of_split(cases, "train")] == ["train", "None"]
    assert [case.id for case in of_split(cases, "test")] == ["test", "None"]


def test_a_data_sets_own_reader_is_asked_before_the_loader() -> None:
    scan = Scan(torch.zeros(2, 1, 1, 4, 4), Grid((1, 4, 4)))
    case = Case("c", "p", Path("no_such_file.mp4"), read=lambda case: scan)
    assert load_case(case, selection=Selection()) is scan
    with pytest.raises(ReadError):
        load_case(Case("c", "p", Path("no_such_file.mp4")), selection=Selection())
