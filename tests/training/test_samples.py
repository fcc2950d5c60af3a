from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import nn

from usvol import registry
from usvol.result import Labels
from usvol.scan import Grid, Scan, Sector, Selection
from usvol.training import samples
from usvol.training.cases import Case
from usvol.training.recipe import FitSettings, Recipe
from usvol.training.samples import prepare_cases, prepare_phantoms, simulate_case


@pytest.fixture
def calls():
    return []


@pytest.fixture
def recipe(calls):
    def prepare(scan):
        calls.append(scan.source.path)
        return {"mean": scan.data.float().mean()[None]}

    return Recipe(
        Settings=FitSettings,
        prepare=prepare,
        selection=Selection(),
        examples=lambda samples, settings: [],  # type: ignore[arg-type, return-value]
        network=lambda settings: nn.Identity(),
        loss=lambda *_, **__: torch.zeros(()),
        stratum=lambda case: 0.0,
        row=lambda result, case: {},
        metrics=lambda rows, groups: {},
        phantom="toy",
    )


@pytest.fixture
def cases(tmp_path):
    found = []
    for i in range(3):
        path = tmp_path / f"still_{i}.png"
        picture = np.random.default_rng(i).integers(20, 200, (64, 64), dtype=np.uint8)
        Image.fromarray(picture).save(path)
        found.append(Case(path.stem, f"p{i}", path, {"severity": i}, dataset="toy"))
    return found


def test_a_sample_holds_tensors_references_and_a_hashed_patient(recipe, cases, tmp_path):
    first, *_ = prepare_cases(recipe, cases, cache=tmp_path / "cache")
    assert set(first) == {"mean", "severity", "id", "dataset", "patient_key", "keys", "prepared_sha256"}
    assert first["severity"] == 0
    assert first["patient_key"] == cases[0].patient_key != "p0"
    assert 20 < float(first["mean"]) < 200


def test_the_second_time_comes_from_disk_with_the_references_of_now(recipe, cases, calls, tmp_path):
    first = prepare_cases(recipe, cases, cache=tmp_path / "cache")
    assert len(calls) == 3
    relabelled = [dataclasses.replace(case, reference={"severity": 9}) for case in cases]
    again = prepare_cases(recipe, relabelled, cache=tmp_path / "cache")
    assert len(calls) == 3
    assert [float(s["mean"]) for s in again] == [float(s["mean"]) for s in first]
    assert {s["severity"] for s in again} == {9}


def test_a_changed_file_another_selection_and_another_cache_are_prepared_anew(recipe, cases, calls, tmp_path):
    prepare_cases(recipe, cases[:1], cache=tmp_path / "cache")
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(cases[0].path)
    os.utime(cases[0].path, ns=(1, 1))
    (changed,) = prepare_cases(recipe, cases[:1], cache=tmp_path / "cache")
    assert len(calls) == 2
    assert float(changed["mean"]) == 77
    other = dataclasses.replace(recipe, selection=Selection(max_side_px=32))
    prepare_cases(other, cases[:1], cache=tmp_path / "cache")
    assert len(calls) == 3
    prepare_cases(recipe, cases[:1], cache=tmp_path / "elsewhere")
    assert len(calls) == 4


def test_a_name_that_is_not_utf8_is_prepared(recipe, cases, tmp_path):
    path = cases[0].path.rename(tmp_path / os.fsdecode(b"\xe9cho.png"))
    (sample,) = prepare_cases(recipe, [dataclasses.replace(cases[0], path=path)], cache=tmp_path / "cache")
    assert sample["severity"] == 0


def test_an_unreadable_file_is_left_out_with_a_warning_that_names_it(recipe, cases, tmp_path, caplog):
    whole = cases[1].path.read_bytes()
    cases[1].path.write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING, logger=samples.__name__):
        kept = prepare_cases(recipe, cases, cache=tmp_path / "cache")
    assert [s["id"] for s in kept] == ["still_0", "still_2"]
    (record,) = caplog.records
    assert "still_1.png" in record.getMessage()
    cases[1].path.write_bytes(whole)
    assert len(prepare_cases(recipe, cases, cache=tmp_path / "cache")) == 3


def test_an_interrupted_preparation_leaves_nothing_that_is_trusted_later(recipe, cases, tmp_path):
    def interrupted(scan):
        raise KeyboardInterrupt

    stopped = dataclasses.replace(recipe, prepare=interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_cases(stopped, cases[:1], cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.safetensors"))


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    level: int = 50


def _simulate(seed, config):
    data = torch.full((2, 1, 1, 64, 64), config.level + seed, dtype=torch.uint8)
    return Scan(data, Grid((1, 64, 64))), {"severity": seed % 4, "signs": [seed, {"deep": True}]}


def test_phantoms_are_simulated_once_per_seed_and_settings(recipe, calls, tmp_path, monkeypatch):
    toy = SimpleNamespace(__name__="toy", Config=_Config, simulate=_simulate)
    monkeypatch.setattr(registry, "module", lambda group, name: toy)
    first = prepare_phantoms(recipe, count=3, cache=tmp_path)
    again = prepare_phantoms(recipe, count=4, cache=tmp_path)
    assert len(calls) == 4
    assert [s["id"] for s in again] == [f"simulated_{seed}" for seed in range(4)]
    assert again[:3] == first
    assert again[2]["signs"] == [2, {"deep": True}]
    assert {s["dataset"] for s in again} == {"simulated"}
    brighter = dataclasses.replace(recipe, phantom_settings={"level": 90})
    assert float(prepare_phantoms(brighter, count=1, cache=tmp_path)[0]["mean"]) == 90
    assert len(calls) == 5


def _simulate_labelled(seed, config):
    scan, truth = _simulate(seed, config)
    frame = dataclasses.replace(scan, data=scan.data[:1])
    labels = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    labels[..., 10 + seed : 20 + seed, 8:24] = 1
    mask = torch.ones(64, 64, dtype=torch.bool)
    mask[:, :16] = False
    sector = Sector(mask, None, "unknown")
    return dataclasses.replace(frame, sector=sector), Labels("truth", labels, scan.grid, {1: "blob"}), truth


@pytest.fixture
def labelled(recipe, monkeypatch):
    def prepare_labelled(scan, labels):
        return {"labels": labels.data, "grey": scan.data}

    toy = SimpleNamespace(__name__="toy", Config=_Config, simulate_labelled=_simulate_labelled)
    monkeypatch.setattr(registry, "module", lambda group, name: toy)
    return dataclasses.replace(recipe, prepare_labelled=prepare_labelled)


def test_phantoms_bring_their_labels_cut_to_the_sector(labelled, tmp_path):
    (sample,) = prepare_phantoms(labelled, count=1, cache=tmp_path)
    assert sample["labels"].dtype == torch.uint8
    assert int(sample["labels"].sum()) == 10 * 8
    _, labels, truth = simulate_case(labelled, 2)
    assert labels is not None
    assert labels.data[0, 0, 12:22, 16:24].all()
    assert truth["severity"] == 2


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_several_processes_make_what_one_would(labelled, tmp_path):
    together = prepare_phantoms(labelled, count=5, cache=tmp_path / "a", workers=2)
    alone = prepare_phantoms(labelled, count=5, cache=tmp_path / "b")
    assert all(torch.equal(x["labels"], y["labels"]) for x, y in zip(together, alone, strict=True))
    assert len(list((tmp_path / "a").glob("*"))) == 5


def test_own_cases_bring_their_labels_too(labelled, cases, tmp_path):
    def read_labels(case):
        data = torch.full((1, 1, 64, 64), case.reference["severity"], dtype=torch.uint8)
        return Labels("truth", data, Grid((1, 64, 64)), {1: "blob"})

    own = dataclasses.replace(labelled, read_labels=read_labels)
    samples = prepare_cases(own, cases, cache=tmp_path)
    assert [int(s["labels"].max()) for s in samples] == [0, 1, 2]


def test_a_corrected_label_map_is_read_anew(labelled, cases, tmp_path):
    def read_labels(case):
        data = torch.full((1, 1, 64, 64), int(Path(case.reference["label"]).read_text()), dtype=torch.uint8)
        return Labels("truth", data, Grid((1, 64, 64)), {1: "blob"})

    own = dataclasses.replace(labelled, read_labels=read_labels)
    label = tmp_path / "label.txt"
    seen = set()
    drawn = [dataclasses.replace(cases[0], reference={"label": str(label)})]
    for value in (1, 12):
        label.write_text(str(value))
        (sample,) = prepare_cases(own, drawn, cache=tmp_path / "cache")
        assert int(sample["labels"].max()) == value
        seen.add(sample["prepared_sha256"])
    label.write_text("1")
    (again,) = prepare_cases(own, drawn, cache=tmp_path / "elsewhere")
    assert len(seen) == 2 and again["prepared_sha256"] in seen


def test_simulated_samples_keep_the_names_they_are_cached_by(labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(_kept, "__module__", "toy")
    prepare_phantoms(dataclasses.replace(labelled, prepare_labelled=_kept), count=1, cache=tmp_path)
    (stored,) = tmp_path.iterdir()
    assert stored.name == "27d8776c51129cfec85b24def49bf6be.safetensors"


def _kept(scan, labels):
    return {"labels": labels.data}


def test_no_phantoms_are_made_where_none_are_wanted(recipe, calls, tmp_path):
    assert prepare_phantoms(recipe, count=0, cache=tmp_path) == []
    assert prepare_phantoms(dataclasses.replace(recipe, phantom=None), count=3, cache=tmp_path) == []
    assert not calls


def test_a_cache_that_was_cut_off_is_made_anew(recipe, cases, calls, tmp_path):
    # Numbers, not tensors: these look into the file, which is about to be cut.
    first = [float(s["mean"]) for s in prepare_cases(recipe, cases, cache=tmp_path / "cache")]
    before = len(calls)
    stored = sorted((tmp_path / "cache").iterdir())
    stored[0].write_bytes(stored[0].read_bytes()[:20])
    again = prepare_cases(recipe, cases, cache=tmp_path / "cache")
    assert len(calls) == before + 1
    assert [float(sample["mean"]) for sample in again] == first
