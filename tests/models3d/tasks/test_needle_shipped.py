"""What the shipped weights answer: a stored reference, a needle where it is, none where there is none.

After training new weights: ``python tests/models3d/tasks/test_needle_shipped.py`` stores their answer.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import usvol
from models3d.phantoms.needle import Config, simulate
from usvol import weights
from usvol.result import Line, Result
from usvol.scan import Scan

GOLDEN = Path(__file__).with_name("golden_needle.json")
SEED, CONFIG = 2_000_107, Config(gauge=17, angle_deg=35, clear=True, size=88, present=True)


@cache
def phantom() -> tuple[Scan, dict]:
    return simulate(SEED, CONFIG)


@pytest.fixture(scope="module")
def task():
    listed = next((w for w in weights.inventory(["models3d"]) if w.name == "needle"), None)
    if listed is None:
        pytest.skip("no shipped weights: models3d/weights/needle.safetensors is absent")
    weights.require(listed)
    return usvol.build_task("needle", device="cpu")


@pytest.fixture(scope="module")
def result(task) -> Result:
    return usvol.run(task, phantom()[0])


def line_of(result: Result) -> Line:
    return next(f for f in result.findings if isinstance(f, Line))


def test_the_answer_is_the_one_stored(task, result):
    if not GOLDEN.is_file():
        pytest.skip(f"{GOLDEN.name} is absent; run this file with python to store it")
    stored = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert stored["weights_sha256"] == task.provenance["weights_sha256"], "other weights: store anew"
    line = line_of(result)
    np.testing.assert_allclose(line.entry, stored["entry"], atol=0.3)
    np.testing.assert_allclose(line.tip, stored["tip"], atol=0.3)
    assert line.confidence == pytest.approx(stored["confidence"], abs=0.03)


def test_the_needle_of_the_phantom_is_found(result):
    line, truth = line_of(result), phantom()[1]
    ahead = np.array(line.tip) - line.entry
    ahead /= np.linalg.norm(ahead)
    assert ahead @ truth["direction"] > np.cos(np.radians(3))
    assert np.linalg.norm(np.array(line.tip) - truth["tip_mm"]) < 1.5


def test_a_mirrored_volume_has_the_mirrored_needle(task, result):
    """Mirrored left to right: the network has no side that it prefers."""
    scan = phantom()[0]
    assert scan.sector is not None
    mask = scan.sector.mask.reshape(scan.grid.shape).flip(-1)
    sector = dataclasses.replace(scan.sector, mask=mask.reshape(scan.sector.mask.shape))
    after = line_of(usvol.run(task, dataclasses.replace(scan, data=scan.data.flip(-1), sector=sector)))
    expected = scan.grid.to_index(np.array(line_of(result).tip))
    expected[2] = scan.grid.shape[2] - 1 - expected[2]
    np.testing.assert_allclose(after.tip, scan.grid.to_world(expected), atol=1.5)


def test_without_a_needle_none_is_found(task):
    empty = simulate(SEED, CONFIG.model_copy(update={"present": False}))[0]
    found = usvol.run(task, empty)
    assert not [f for f in found.findings if isinstance(f, Line)]
    assert "not_detected" in {flag.code for flag in found.flags}


def store() -> None:
    """Write the answer of the weights that ship now to ``GOLDEN``."""
    task = usvol.build_task("needle", device="cpu")
    line = line_of(usvol.run(task, phantom()[0]))
    answer = dataclasses.asdict(line) | {"weights_sha256": task.provenance["weights_sha256"]}
    GOLDEN.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    store()
