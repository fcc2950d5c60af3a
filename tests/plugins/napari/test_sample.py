"""A sample is simulated once, kept, and opened by name; a task without a phantom says so."""

from __future__ import annotations

import json
import types

import pytest

from usvol import registry
from usvol.errors import TaskError
from usvol_napari import sample


@pytest.fixture
def lung(monkeypatch):
    """Let every task name the lung phantom, in its smallest form, and count simulations."""
    training = types.SimpleNamespace(phantom="lung", phantom_settings={"frames": 4, "size": 32})
    task = types.SimpleNamespace(TRAINING=training)
    whole, synthesise, made = registry.module, sample.synthesis.synthesise, []

    def module(group, name):
        return task if group is registry.Group.TASKS else whole(group, name)

    def counted(*arguments, **options):
        made.append(arguments)
        return synthesise(*arguments, **options)

    monkeypatch.setattr(sample.registry, "module", module)
    monkeypatch.setattr(sample.synthesis, "synthesise", counted)
    return made


def test_a_sample_is_made_once_and_says_that_it_is_simulated(lung, tmp_path):
    path = sample.make_sample("covid_severity", folder=tmp_path)
    assert path.name.startswith("simulated_lung")
    assert "Simulated" in json.loads(path.with_suffix(".json").read_text())["notice"]
    assert sample.make_sample("covid_severity", folder=tmp_path) == path
    assert len(lung) == 1


def test_each_task_has_a_command_of_its_own(monkeypatch):
    asked = []
    monkeypatch.setattr(sample, "open_sample", asked.append)
    sample.open_needle()
    assert asked == ["needle"]
    with pytest.raises(AttributeError):
        sample.nothing  # noqa: B018


def test_a_task_without_a_phantom_says_so(monkeypatch):
    monkeypatch.setattr(sample.registry, "module", lambda *_: types.SimpleNamespace(TRAINING=None))
    with pytest.raises(TaskError, match="no phantom"):
        sample.phantom_of("toy")
