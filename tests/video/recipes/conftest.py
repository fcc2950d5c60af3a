"""Train a recipe whose task has no weights yet, on three tiny simulated hearts."""

from __future__ import annotations

import dataclasses

import pytest

from usvol.training import loop

TINY = {"size": 64, "fps": 20.0, "beats": 1.2, "max_frames": 10}


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Return a function that trains one epoch and gives the path of the weights."""
    pytest.importorskip("lightning")
    found = loop.recipe_of

    def run(name, **settings):
        tiny = dataclasses.replace(found(name), phantom_settings=TINY)
        monkeypatch.setattr(loop, "recipe_of", lambda task: tiny)
        basic = {"phantoms": 3, "folds": 1, "epochs": 1, "batch_size": 2, "width": 4, "hidden": 8}
        fitting = loop.Fitting(tmp_path / "run", device="cpu")
        return loop.train(name, fitting, settings={**basic, "length": 8, **settings})

    return run
