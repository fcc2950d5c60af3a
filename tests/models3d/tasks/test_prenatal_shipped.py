"""What the shipped weights answer: a stored reference, and changes that must not change the answer.

After training new weights: ``python tests/models3d/tasks/test_prenatal_shipped.py`` stores their answer.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import usvol
from models3d.phantoms.prenatal import Config, simulate_labelled
from models3d.recipes.prenatal import Settings, new_network
from usvol import weights
from usvol.metrics import dice
from usvol.result import Labels, Result
from usvol.scan import Grid, Scan
from usvol.training.members import member_state

CONFIGS = Path(__file__).parents[3] / "configs" / "train"
GOLDEN = Path(__file__).with_name("golden_prenatal.npz")
SEED, CONFIG = 3_000_000, Config(weeks=12.0, size=64, cut=False, placenta_site="posterior", fetuses=1)
QUICK = {"flips": False, "closer": False}


@cache
def phantom() -> tuple[Scan, Labels]:
    return simulate_labelled(SEED, CONFIG)[:2]


@pytest.fixture(scope="module")
def task():
    listed = next((w for w in weights.inventory(["models3d"]) if w.name == "prenatal"), None)
    if listed is None:
        pytest.skip("no shipped weights: models3d/weights/prenatal.safetensors is absent")
    weights.require(listed)
    return usvol.build_task("prenatal", device="cpu", overrides=QUICK)


def structures(result: Result) -> np.ndarray:
    return next(f for f in result.findings if isinstance(f, Labels)).data[0].numpy()


def overlaps(one: np.ndarray, other: np.ndarray) -> list[float]:
    return [dice(one == value, other == value) for value in (1, 2, 3)]


def test_the_answer_is_the_one_stored(task):
    if not GOLDEN.is_file():
        pytest.skip(f"{GOLDEN.name} is absent; run this file with python to store it")
    with np.load(GOLDEN, allow_pickle=False) as stored:
        assert str(stored["weights_sha256"]) == task.provenance["weights_sha256"], "other weights: store anew"
        assert min(overlaps(structures(usvol.run(task, phantom()[0])), stored["labels"])) > 0.99


@pytest.mark.parametrize("name", ["prenatal", "prenatal_finetune", "prenatal_rnn"])
def test_what_starts_from_the_shipped_network_takes_all_of_it(name, task):
    recipe = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    own = new_network(Settings.model_validate(recipe)).state_dict()
    stored = member_state(weights.find("models3d", "prenatal").state, 0)
    shapes = {key: value.shape for key, value in stored.items() if not key.startswith("quality.")}
    assert shapes == {key: own[key].shape for key in shapes if key in own}


def test_the_sac_of_the_phantom_is_found(task):
    scan, labels = phantom()
    assert overlaps(structures(usvol.run(task, scan)), labels.data[0].numpy())[1] > 0.75


TURNS = {
    "mirrored": lambda values: values.flip(-3),
    "quarter turn": lambda values: values.transpose(-3, -2).flip(-3),
    "axes renamed": lambda values: values.permute(*range(values.ndim - 3), -1, -3, -2),
}


@pytest.mark.parametrize("turn", TURNS)
def test_a_turned_volume_has_a_turned_mask(task, turn):
    """As shipped, with mirrored copies averaged: every structure follows, not only their union."""
    task = usvol.build_task("prenatal", device="cpu")
    scan = phantom()[0]
    assert scan.sector is not None and len(set(scan.grid.step)) == 1
    mask = TURNS[turn](scan.sector.mask.reshape(scan.grid.shape))
    data = TURNS[turn](scan.data).contiguous()
    grid = Grid((data.shape[2], data.shape[3], data.shape[4]), scan.grid.spacing_mm)
    turned = dataclasses.replace(
        scan, data=data, grid=grid, sector=dataclasses.replace(scan.sector, mask=mask, fan=None)
    )
    one = TURNS[turn](torch.from_numpy(structures(usvol.run(task, scan)))).numpy()
    other = structures(usvol.run(task, turned))
    assert min(overlaps(other, one)) > 0.95


def store() -> None:
    """Write the answer of the weights that ship now to ``GOLDEN``."""
    task = usvol.build_task("prenatal", device="cpu", overrides=QUICK)
    labels = structures(usvol.run(task, phantom()[0]))
    np.savez_compressed(GOLDEN, labels=labels, weights_sha256=task.provenance["weights_sha256"])


if __name__ == "__main__":
    store()
