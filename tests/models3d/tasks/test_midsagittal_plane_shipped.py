"""What the shipped weights answer: a stored reference, and volumes turned round, whose planes must follow.

After training new weights: ``python tests/models3d/tasks/test_midsagittal_plane_shipped.py`` stores their
answer.
"""

from __future__ import annotations

import dataclasses
import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import usvol
from models3d.phantoms.fetal_head import Config, simulate
from models3d.recipes._midsagittal_scores import PLANE, errors
from usvol import weights
from usvol.result import Plane, Result
from usvol.scan import Scan

GOLDEN = Path(__file__).with_name("golden_midsagittal_plane.json")
SEED, CONFIG = 2_000_003, Config(weeks=24.0, size=64, beams=0.6, present=True, cut=False, shadowed=False)


@cache
def phantom() -> tuple[Scan, dict]:
    return simulate(SEED, CONFIG)


@pytest.fixture(scope="module")
def task():
    listed = next((w for w in weights.inventory(["models3d"]) if w.name == "midsagittal_plane"), None)
    if listed is None:
        pytest.skip("no shipped weights: models3d/weights/midsagittal_plane.safetensors is absent")
    weights.require(listed)
    return usvol.build_task("midsagittal_plane", device="cpu")


def plane_of(result: Result) -> Plane:
    return next(f for f in result.findings if isinstance(f, Plane) and f.name == PLANE)


def test_the_answer_is_the_one_stored(task):
    if not GOLDEN.is_file():
        pytest.skip(f"{GOLDEN.name} is absent; run this file with python to store it")
    stored = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert stored["weights_sha256"] == task.provenance["weights_sha256"], "other weights: store anew"
    plane = plane_of(usvol.run(task, phantom()[0]))
    np.testing.assert_allclose(plane.point, stored["point"], atol=0.3)
    assert np.dot(plane.normal, stored["normal"]) > math.cos(math.radians(1))
    assert np.dot(plane.up, stored["up"]) > math.cos(math.radians(1))


def test_the_plane_of_the_phantom_is_found(task):
    wrong = errors(plane_of(usvol.run(task, phantom()[0])), phantom()[1])
    assert wrong["angle_deg"] < 10
    assert wrong["distance_mm"] < 4


@pytest.mark.parametrize("axes", [(2, 3), (3, 4), (2, 4)])
def test_the_plane_follows_a_volume_turned_by_a_quarter(task, axes):
    """The samples are turned on the same grid, so the plane must turn about the grid's middle."""
    scan, truth = phantom()
    assert scan.sector is not None
    data = scan.data.rot90(1, axes)
    mask = scan.sector.mask.reshape(scan.grid.shape).rot90(1, [a - 2 for a in axes])
    step = (max(scan.grid.step),) * 3
    grid = dataclasses.replace(scan.grid, shape=tuple(data.shape[2:]), spacing_mm=step)
    turned = dataclasses.replace(
        scan, data=data, grid=grid, sector=dataclasses.replace(scan.sector, mask=mask)
    )
    before = usvol.run(task, dataclasses.replace(scan, grid=dataclasses.replace(scan.grid, spacing_mm=step)))
    after = plane_of(usvol.run(task, turned))
    a, b = (n - 2 for n in axes)
    expected = np.array(plane_of(before).normal)
    # rot90 moves axis b onto axis a backwards.
    expected[[a, b]] = -expected[b], expected[a]
    assert abs(np.dot(after.normal, expected)) > math.cos(math.radians(8))
    assert truth["present"]


def store() -> None:
    """Write the answer of the weights that ship now to ``GOLDEN``."""
    task = usvol.build_task("midsagittal_plane", device="cpu")
    plane = plane_of(usvol.run(task, phantom()[0]))
    answer = dataclasses.asdict(plane) | {"weights_sha256": task.provenance["weights_sha256"]}
    GOLDEN.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    store()
