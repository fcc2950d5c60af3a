"""What an evaluation says of cases that it leaves out."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from usvol import evaluation, pipeline
from usvol.errors import DatasetError
from usvol.scan import Calibration, Grid, Scan, Source, Trust
from usvol.training.cases import Case

GRID = Grid((4, 5, 6))
SOURCE = Source(None, "test", Calibration(Trust.ABSENT, "its header is empty"))


def _read(_case: Case) -> Scan:
    return Scan(torch.zeros(1, 1, *GRID.shape), GRID, None, SOURCE)


def _in_mm(result: Scan, _case: Case) -> dict[str, Any]:
    return {"mm": result.grid.require_spacing_mm("a comparison of volumes", result.calibration.reason)}


def test_cases_left_out_are_named_with_a_way_out_that_evaluate_has(
    monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cases = [Case(name, name, Path(name), dataset="mine", read=_read) for name in ("P1", "P2")]
    recipe: Any = SimpleNamespace(row=_in_mm)
    task: Any = SimpleNamespace(provenance={}, selection=None)
    monkeypatch.setattr(pipeline, "run", lambda _, scan: scan)
    monkeypatch.setattr(evaluation, "recipe_of", lambda name: recipe)
    monkeypatch.setattr(evaluation, "_built", lambda name, options: task)
    monkeypatch.setattr(evaluation, "_cases", lambda *asked, **options: cases)

    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(DatasetError, match=r"0 of 2 cases could be read.* P1: a comparison") as told,
    ):
        evaluation.evaluate("toy", "mine", data=Path())
    assert "left out: P2: a comparison of volumes needs a scale: its header is empty" in caplog.text
    assert "file's header" in str(told.value)
    assert "--spacing" not in caplog.text + str(told.value)
