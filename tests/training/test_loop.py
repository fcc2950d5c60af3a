"""Train a toy recipe end to end: it learns, resumes, is blind to its fold, and evaluates."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from usvol import cli_study, evaluation, metrics, registry, weights
from usvol.errors import ConfigError, DatasetError, LeakageError, UsvolError
from usvol.result import Scores
from usvol.scan import Kind, Scan, Selection
from usvol.training import loop
from usvol.training.cases import Case
from usvol.training.members import member_state
from usvol.training.recipe import FitSettings, Recipe

pytest.importorskip("lightning")


def _toy_cases(root: Path) -> list[Case]:
    """Stills whose brightness is their label, four per patient."""
    return [
        Case(path.stem, path.stem.split("_")[0], path, {"label": int(path.stem.split("_")[2])}, dataset="toy")
        for path in sorted(root.glob("*.png"))
    ]


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, values: Tensor) -> Tensor:
        return self.layer(values)


def _prepare(scan: Scan) -> dict[str, Tensor]:
    return {"x": scan.data.float().mean().reshape(1) / 255}


def _examples(samples: Any, settings: Any) -> Any:
    del settings
    return [{"x": s["x"], "y": torch.tensor([float(s["label"])])} for s in samples]


def _loss(network: nn.Module, batch: dict[str, Tensor], *, settings: Any) -> Tensor:
    del settings
    return nn.functional.mse_loss(network(batch["x"]), batch["y"])


def _row(result: Any, case: Case) -> dict[str, float]:
    (found,) = (f for f in result.findings if isinstance(f, Scores))
    return {"label": found.probabilities[1], "true": float(case.reference["label"])}


def _metrics(rows: Any, groups: Any) -> dict[str, metrics.Estimate]:
    columns = ([r["label"] for r in rows], [r["true"] for r in rows])
    return {"mae": metrics.bootstrap_ci(metrics.mae, columns, groups=groups, n=200)}


RECIPE = Recipe(
    Settings=FitSettings,
    prepare=_prepare,
    selection=Selection(),
    examples=_examples,
    network=lambda settings: _Net(),
    loss=_loss,
    stratum=lambda case: float(case.reference["label"]),
    row=_row,
    metrics=_metrics,
    datasets=("toy",),
)


class _ToyTask:
    accepts = frozenset({Kind.IMAGE})
    selection = Selection()

    def __init__(self, path: Path, member: int) -> None:
        stored = weights.load_file(path)
        self.network = _Net()
        self.network.load_state_dict(member_state(stored.state, member))
        self.members = int(stored.metadata["members"])
        self.train_patients = frozenset(json.loads(stored.metadata["train_patients"])[member])
        self.provenance: dict[str, Any] = {"weights_sha256": stored.sha256}

    def preprocess(self, scan: Any) -> Any:
        return scan

    def infer(self, scan: Any) -> Tensor:
        return self.network(scan.data.float().mean().reshape(1) / 255)

    def postprocess(self, raw: Tensor, scan: Any) -> tuple[Scores, ...]:
        value = float(raw)
        return (Scores("label", ("0", "1"), (1 - value, value), str(round(value))),)

    def measure(self, findings: Any, scan: Any) -> tuple[()]:
        return ()

    def flags(self, raw: Any, scan: Any) -> tuple[()]:
        return ()


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the toy data, and register the toy task and data set."""
    from PIL import Image

    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    root.mkdir()
    for patient in range(12):
        for shot in range(4):
            label = int(rng.integers(2))
            grey = np.clip(rng.normal(60 + 120 * label, 5, (40, 40)), 0, 255).astype(np.uint8)
            Image.fromarray(grey).save(root / f"{patient}_{shot}_{label}.png")
    task, dataset = ModuleType("toy_task"), ModuleType("toy_data")
    task.TRAINING = RECIPE  # type: ignore[attr-defined]
    dataset.cases = _toy_cases  # type: ignore[attr-defined]
    modules = {registry.Group.TASKS: task, registry.Group.DATASETS: dataset}
    monkeypatch.setattr(registry, "module", lambda group, name: modules[group])
    monkeypatch.setitem(sys.modules, "toy_task", task)
    return root


SETTINGS = {"folds": 3, "epochs": 30, "learning_rate": 0.2, "average": 0.5, "batch_size": 8}


def _train(toy: Path, out: Path, **changes: Any) -> Path:
    resume = changes.pop("resume", False)
    fitting = loop.Fitting(out, resume=resume, device="cpu")
    return loop.train("toy", fitting, data=toy, settings={**SETTINGS, **changes})


def _assert_equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=0, atol=0)


def test_members_learn_and_never_see_their_fold(toy: Path, tmp_path: Path, monkeypatch: Any) -> None:
    path = _train(toy, tmp_path / "run")
    stored = weights.load_file(path)
    patients = [set(keys) for keys in json.loads(stored.metadata["train_patients"])]
    everyone = {case.patient_key for case in _toy_cases(toy)}
    assert set.union(*patients) == everyone
    assert all(len(seen) == 8 for seen in patients)
    assert not set.intersection(*patients)

    monkeypatch.setattr(
        registry, "build_task", lambda name, device, overrides: _ToyTask(path, overrides.get("member", 0))
    )
    report = evaluation.evaluate("toy", "toy", data=toy, folds=3)
    assert report.n == 48 and report.patients == 12
    assert report.metrics["mae"].value < 0.15
    assert report.metrics["mae"].low <= report.metrics["mae"].value <= report.metrics["mae"].high
    assert len(report.folds) == 3
    assert json.loads(json.dumps(report.to_json()))["metrics"]["mae"]["value"] == report.metrics["mae"].value
    assert "| mae |" in report.to_markdown()


def test_an_undefined_metric_costs_no_rows(toy: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    def undefined(rows: Any, groups: Any) -> Any:
        raise metrics.UndefinedMetricError("kappa needs two classes")

    def row(result: Any, case: Case) -> dict[str, float]:
        if case.id.startswith("3_2_"):
            raise UsvolError("its label map holds strange values")
        return _row(result, case)

    task = registry.module(registry.Group.TASKS, "toy")
    path = _train(toy, tmp_path / "run", epochs=1)
    monkeypatch.setattr(task, "TRAINING", dataclasses.replace(RECIPE, metrics=undefined, row=row))
    monkeypatch.setattr(
        registry, "build_task", lambda name, device, overrides: _ToyTask(path, overrides.get("member", 0))
    )
    out = tmp_path / "made" / "evaluation"
    cli_study.evaluate(task="toy", dataset="toy", data=toy, folds=3, out=out, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((out / "evaluation.json").read_text())
    assert told["metrics"] == {} and told["undefined"] == "kappa needs two classes"
    assert len(told["rows"]) == told["n"] == 47
    assert list(told["unread"].values()) == ["its label map holds strange values"]
    assert "No metrics: kappa needs two classes." in (out / "evaluation.md").read_text()


def test_where_no_report_can_be_written_is_told_before_the_work(
    toy: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(evaluation, "evaluate", lambda *asked, **options: pytest.fail("the work was done"))
    with pytest.raises(ConfigError, match=r"notes\.txt: no folder can be made there"):
        cli_study.evaluate(task="toy", dataset="toy", data=toy, out=tmp_path / "notes.txt")


def test_testing_on_training_patients_is_refused(toy: Path, tmp_path: Path, monkeypatch: Any) -> None:
    path = _train(toy, tmp_path / "run", epochs=1)
    monkeypatch.setattr(registry, "build_task", lambda name, device, overrides: _ToyTask(path, 0))
    with pytest.raises(LeakageError, match="used for training"):
        evaluation.evaluate("toy", "toy", data=toy)
    with pytest.raises(LeakageError):
        evaluation.evaluate("toy", "toy", data=toy, folds=3)
    with pytest.raises(ConfigError, match="3 members"):
        evaluation.evaluate("toy", "toy", data=toy, folds=4)


def test_a_stopped_training_resumes_and_a_finished_one_is_kept(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = _train(toy, out, epochs=4)
    before = weights.load_file(first).state
    (out / "member_2" / "network.safetensors").unlink()
    kept = (out / "member_0" / "network.safetensors").stat().st_mtime_ns
    again = _train(toy, out, epochs=4, resume=True)
    assert (out / "member_0" / "network.safetensors").stat().st_mtime_ns == kept
    _assert_equal(weights.load_file(again).state, before)
    assert list((out / "member_0").glob("logs/**/metrics.csv"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 3}, r"epochs=2 \(now 3\)"),
        ({"folds": 4}, "other training cases, patients or folds"),
    ],
)
def test_what_another_training_made_is_not_resumed(
    toy: Path, tmp_path: Path, changes: Any, said: str
) -> None:
    out = tmp_path / "run"
    _train(toy, out, epochs=2)
    with pytest.raises(ConfigError, match=rf"member_0 was made with {said}; give a new -o or drop --resume"):
        _train(toy, out, resume=True, **{"epochs": 2, **changes})
    (out / "member_0" / "network.safetensors").unlink()  # stopped before it was finished
    with pytest.raises(ConfigError, match=said):
        _train(toy, out, resume=True, **{"epochs": 2, **changes})
    path = _train(toy, out, **{"epochs": 2, **changes})
    assert int(weights.load_file(path).metadata["members"]) == changes.get("folds", 3)


def test_other_patients_and_references_are_not_resumed(toy: Path, tmp_path: Path, monkeypatch: Any) -> None:
    _train(toy, tmp_path / "run", epochs=1)
    dataset = registry.module(registry.Group.DATASETS, "toy")
    for change in ({"patient": "another"}, {"reference": {"label": 0.5}}):

        def changed(root: Path, change: Any = change) -> list[Case]:
            first, *others = _toy_cases(root)
            return [dataclasses.replace(first, **change), *others]

        with monkeypatch.context() as patched:
            patched.setattr(dataset, "cases", changed)
            with pytest.raises(ConfigError, match="other training cases, patients or folds"):
                _train(toy, tmp_path / "run", epochs=1, resume=True)


def test_a_corrected_file_is_not_resumed_with_and_a_copied_one_is(toy: Path, tmp_path: Path) -> None:
    from PIL import Image

    _train(toy, tmp_path / "run", epochs=1)
    copied = shutil.copytree(toy, tmp_path / "copied", copy_function=shutil.copyfile)
    _train(copied, tmp_path / "run", epochs=1, resume=True)
    Image.new("L", (40, 40), 99).save(next(copied.glob("0_0_*.png")))
    with pytest.raises(ConfigError, match="other training cases, patients or folds"):
        _train(copied, tmp_path / "run", epochs=1, resume=True)


def test_what_does_not_change_what_is_learned_does_not_stop_a_resume(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    _train(toy, out, epochs=1)
    kept = (out / "member_0" / "network.safetensors").stat().st_mtime_ns
    _train(toy, out, epochs=1, resume=True, workers=1, cache=str(tmp_path / "moved"))
    assert (out / "member_0" / "network.safetensors").stat().st_mtime_ns == kept


def test_a_start_of_the_same_name_counts_by_its_content(toy: Path, tmp_path: Path) -> None:
    start = _train(toy, tmp_path / "start", epochs=1)
    _train(toy, tmp_path / "run", epochs=1, init=str(start))
    _train(toy, tmp_path / "start", epochs=2)
    with pytest.raises(ConfigError, match="init="):
        _train(toy, tmp_path / "run", epochs=1, init=str(start), resume=True)


def test_an_old_run_that_does_not_say_how_it_was_made_is_resumed_with_a_warning(
    toy: Path, tmp_path: Path, caplog: Any
) -> None:
    _train(toy, tmp_path / "run", epochs=1)
    for told in (tmp_path / "run").glob("member_*/made_with.json"):
        told.unlink()
    with caplog.at_level(logging.WARNING):
        _train(toy, tmp_path / "run", epochs=2, resume=True)
    assert "member_0 does not say what it was made with" in caplog.text
    assert not list((tmp_path / "run").glob("member_*/made_with.json"))


def test_a_training_begun_anew_forgets_what_an_earlier_one_left(
    toy: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    _train(toy, tmp_path / "run", epochs=1)

    def stop(self: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("usvol.training.module.Fit.on_train_epoch_start", stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            _train(toy, tmp_path / "run", epochs=2)
    assert not list((tmp_path / "run" / "member_0").rglob("*.safetensors"))
    assert not list((tmp_path / "run" / "member_0").rglob("*.ckpt"))


def test_an_interrupted_fit_goes_on_from_its_checkpoint(toy: Path, tmp_path: Path, monkeypatch: Any) -> None:
    whole = weights.load_file(_train(toy, tmp_path / "whole", epochs=6)).state

    def stop(self: Any) -> None:
        if self.current_epoch == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("usvol.training.module.Fit.on_train_epoch_start", stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            _train(toy, tmp_path / "cut", epochs=6)
    assert (tmp_path / "cut" / "member_0" / "checkpoints" / "last.ckpt").is_file()
    assert not (tmp_path / "cut" / "member_0" / "network.safetensors").exists()
    resumed = weights.load_file(_train(toy, tmp_path / "cut", epochs=6, resume=True)).state
    assert whole.keys() == resumed.keys()


def test_no_folder_of_the_machine_is_stored(toy: Path, tmp_path: Path) -> None:
    first = _train(toy, tmp_path / "one", epochs=1)
    cache = tmp_path / "kept"
    second = _train(toy, tmp_path / "two", epochs=1, init=str(first), cache=str(cache))
    stored = weights.load_file(second).metadata
    assert str(tmp_path) not in json.dumps(dict(stored))
    assert json.loads(stored["settings"])["init"] == first.name


def test_the_same_seed_gives_the_same_weights(toy: Path, tmp_path: Path) -> None:
    one, two = (_train(toy, tmp_path / name, epochs=2) for name in ("one", "two"))
    _assert_equal(weights.load_file(one).state, weights.load_file(two).state)


def test_wrong_settings_and_missing_data_are_told(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="epoch"):
        _train(toy, tmp_path / "run", epoch=3)
    with pytest.raises(DatasetError, match="--data DIR"):
        loop.train("toy", loop.Fitting(tmp_path / "run"))
    with pytest.raises(ConfigError, match="No recipe"):
        loop.train("toy", loop.Fitting(tmp_path / "run"), config=tmp_path / "no.yaml", data=toy)


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("toy", "Say where data set 'toy' lies: --data DIR"),
        ("toy:test", "Say where data set 'toy:test' lies: --data DIR"),
        ("nowhere", r"'nowhere' is neither a folder nor a data set of this task \(toy\)"),
    ],
)
@pytest.mark.usefixtures("toy")
def test_a_data_set_that_is_not_there_is_told_from_one_without_a_folder(dataset: str, said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        evaluation.evaluate("toy", dataset)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a: [1", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"- a\n", "holds a list"),
        (b"1: 2", "1 is no name of a setting"),
        (b"data: x", "data = 'x': write `data:`"),
        (b"data:\n  toy:\n", "data.toy = None is no folder"),
        (b"data:\n  1: x\n", "data.1 = 'x' is no folder"),
        (b"precision: foo", "precision: Input should be"),
        (b"seed: -1", "seed: Input should be greater"),
        (b"devices: 0", "devices: String should match"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_told(toy: Path, tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=rf"recipe\.yaml: .*{re.escape(said)}"):
        loop.train("toy", loop.Fitting(tmp_path / "run"), config=path)


def test_folders_are_stated_beside_a_recipe(toy: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("data:\n  toy:\ndevices: 2\n")
    chosen, folders = loop._read(RECIPE, config=path, overrides={"data.toy": str(toy)})
    assert (chosen.devices, folders) == ("2", {"toy": toy})
    with pytest.raises(ConfigError, match=r"data\.toy = 5 is no folder"):
        loop._read(RECIPE, config=path, overrides={"data.toy": 5})


def test_where_nothing_can_be_trained_or_written_is_told_before_cases_are_prepared(
    toy: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(loop, "prepare_cases", lambda *given, **named: pytest.fail("cases were prepared"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("foo", "cuda", "cuda:1"):
        with pytest.raises(ConfigError, match=device):
            loop.train("toy", loop.Fitting(tmp_path / "run", device=device), data=toy)
    (tmp_path / "notes.txt").write_text("mine")
    for out, settings in (("notes.txt", {}), ("run", {"cache": str(tmp_path / "notes.txt")})):
        with pytest.raises(ConfigError, match=r"notes\.txt: no folder can be made there"):
            loop.train("toy", loop.Fitting(tmp_path / out), data=toy, settings=settings)


def test_a_gpu_that_is_named_is_the_one_that_is_used(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert loop._hardware("cuda:1", "1") == ("gpu", [1])
    assert loop._hardware("cuda", "2") == ("gpu", "2")
    assert loop._hardware("auto", "auto") == ("auto", "auto")
    assert loop._hardware("cpu", "3") == ("cpu", "3")
    with pytest.raises(ConfigError, match="devices=3: torch sees 2"):
        loop._hardware("cuda", "3")


def test_a_start_that_is_not_there_is_told_before_anything_is_prepared(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        _train(toy, tmp_path / "run", init=str(tmp_path / "none.safetensors"))
    assert not (tmp_path / "run").exists()


def test_a_finished_ensemble_is_a_start(toy: Path, tmp_path: Path) -> None:
    first = _train(toy, tmp_path / "first")
    start = member_state(weights.load_file(first).state, 0)
    again = weights.load_file(
        _train(toy, tmp_path / "again", init=str(first), epochs=1, learning_rate=1e-9)
    ).state
    for key, value in member_state(again, 0).items():
        torch.testing.assert_close(value, start[key], rtol=1e-2, atol=1e-3)
    other = tmp_path / "other.safetensors"
    weights.save(other, {"unlike": torch.zeros(1)}, metadata={})
    with pytest.raises(ConfigError, match="no tensor"):
        _train(toy, tmp_path / "none", init=str(other))


def test_an_official_split_is_trained_on_and_evaluated_by_its_parts(
    toy: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Patients 0-3 are for training, 4-7 for validation, 8-11 for testing."""

    def with_split(root: Path) -> list[Case]:
        parts = ("train", "validation", "test")
        return [dataclasses.replace(c, split=parts[int(c.patient) // 4]) for c in _toy_cases(root)]

    dataset = registry.module(registry.Group.DATASETS, "toy")
    monkeypatch.setattr(dataset, "cases", with_split)
    path = _train(toy, tmp_path / "run", epochs=1, folds=1)
    (seen,) = json.loads(weights.load_file(path).metadata["train_patients"])
    assert set(seen) == {c.patient_key for c in with_split(toy) if c.split == "train"}
    monkeypatch.setattr(registry, "build_task", lambda name, device, overrides: _ToyTask(path, 0))
    assert evaluation.evaluate("toy", "toy", data=toy).patients == 4
    assert evaluation.evaluate("toy", "toy:validation", data=toy).patients == 4
    with pytest.raises(LeakageError):
        evaluation.evaluate("toy", "toy:train", data=toy)
    with pytest.raises(ConfigError, match="validation"):
        evaluation.evaluate("toy", "toy:dev", data=toy)


def test_official_folds_are_taken_where_their_number_fits(toy: Path) -> None:
    cases = [dataclasses.replace(c, fold=int(c.patient) % 3) for c in _toy_cases(toy)]
    assert loop._folds(RECIPE, cases, count=3) == {c.id: c.fold for c in cases}
    assert set(loop._folds(RECIPE, cases, count=4).values()) == {0, 1, 2, 3}


def test_a_training_that_cannot_go_on_says_why(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="diverged in epoch 0"):
        _train(toy, tmp_path / "run", learning_rate=1e38, epochs=2)
    _train(toy, tmp_path / "run", epochs=1)
    for name, said in (("network.safetensors", "cut off"), ("checkpoints/last.ckpt", "from its beginning")):
        path = tmp_path / "run" / "member_1" / name
        path.write_bytes(path.read_bytes()[:20])
        with pytest.raises(ConfigError, match=said):
            _train(toy, tmp_path / "run", epochs=1, resume=True)
    for path in toy.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(DatasetError, match="no case is left to learn from"):
        _train(toy, tmp_path / "none")
