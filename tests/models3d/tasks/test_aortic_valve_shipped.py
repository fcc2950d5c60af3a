"""What the shipped weights answer: a stored reference, and changes that must not change the answer.

After training new weights: ``python tests/models3d/tasks/test_aortic_valve_shipped.py`` stores their answer.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import usvol
from models3d.phantoms.aortic_root import Config, simulate_labelled
from usvol import weights
from usvol.metrics import dice
from usvol.result import Box, Labels, Result, Surface
from usvol.scan import Grid, Scan

GOLDEN = Path(__file__).with_name("golden_aortic_valve.npz")
SEED, CONFIG = 3_000_003, Config(cut=False, calcified=False, cusps=3, quick=True, size=80)


@cache
def phantom() -> tuple[Scan, Labels, dict]:
    return simulate_labelled(SEED, CONFIG)


@pytest.fixture(scope="module")
def task():
    listed = next((w for w in weights.inventory(["models3d"]) if w.name == "aortic_valve"), None)
    if listed is None:
        pytest.skip("no shipped weights: models3d/weights/aortic_valve.safetensors is absent")
    weights.require(listed)
    return usvol.build_task("aortic_valve", device="cpu")


def parts(result: Result) -> tuple[Box, np.ndarray, np.ndarray]:
    box = next(f for f in result.findings if isinstance(f, Box))
    mesh = next(f for f in result.findings if isinstance(f, Surface))
    labels = next(f for f in result.findings if isinstance(f, Labels))
    return box, mesh.vertices.double().numpy(), labels.data[0].numpy()


def test_the_answer_is_the_one_stored(task):
    if not GOLDEN.is_file():
        pytest.skip(f"{GOLDEN.name} is absent; run this file with python to store it")
    with np.load(GOLDEN, allow_pickle=False) as stored:
        assert str(stored["weights_sha256"]) == task.provenance["weights_sha256"], "other weights: store anew"
        _, vertices, labels = parts(usvol.run(task, phantom()[0]))
        assert np.linalg.norm(vertices - stored["vertices"], axis=1).max() < 0.3
        assert dice(labels > 0, stored["labels"] > 0) > 0.99


def test_the_valve_of_the_phantom_is_found(task):
    scan, labels, truth = phantom()
    box, _, found = parts(usvol.run(task, scan))
    assert np.linalg.norm(np.subtract(box.centre, truth["box"]["centre_mm"])) < 5
    assert dice(found > 0, labels.data[0].numpy() > 0) > 0.8


@pytest.mark.parametrize(
    ("swapped", "reverse"), [((2, 1, 0), 0), ((2, 1, 0), 1), ((1, 0, 2), 0), ((0, 2, 1), 2)]
)
def test_a_turned_volume_has_a_turned_box(task, swapped, reverse):
    """The same samples with two axes swapped and one reversed: a rotation by a right angle."""
    scan = phantom()[0]
    grid = scan.grid
    shape, step = (tuple(values[k] for k in swapped) for values in (grid.shape, grid.step))
    data = scan.data.permute(0, 1, *(2 + k for k in swapped)).flip(2 + reverse)
    turned = dataclasses.replace(
        scan, data=data.contiguous(), sector=None, grid=Grid(shape, step, (0.0, 0.0, 0.0), frame=grid.frame)
    )
    one, _, _ = parts(usvol.run(task, scan))
    other, _, _ = parts(usvol.run(task, turned))
    index = grid.to_index(np.asarray(one.centre))[list(swapped)]
    index[reverse] = shape[reverse] - 1 - index[reverse]
    assert np.linalg.norm(turned.grid.to_world(index) - other.centre) < 3
    axis = np.asarray(one.rotation)[list(swapped), 0]
    axis[reverse] *= -1
    assert np.dot(axis, np.asarray(other.rotation)[:, 0]) > 0.9


def store() -> None:
    """Write the answer of the weights that ship now to ``GOLDEN``."""
    task = usvol.build_task("aortic_valve", device="cpu")
    _, vertices, labels = parts(usvol.run(task, phantom()[0]))
    np.savez_compressed(
        GOLDEN, vertices=vertices, labels=labels, weights_sha256=task.provenance["weights_sha256"]
    )


if __name__ == "__main__":
    store()
