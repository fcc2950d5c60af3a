"""What the shipped weights answer: a stored reference, and changes that must not change the answer.

After training new weights: ``python tests/video/tasks/test_covid_severity_shipped.py`` stores their answers.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import usvol
from usvol import weights
from usvol.result import Curve, Result
from usvol.scan import Scan
from video.phantoms.lung import Config, simulate

GOLDEN = Path(__file__).with_name("golden_covid_severity.json")
PHANTOMS = {"mild": (11, 0), "moderate": (12, 2), "severe": (13, 3)}  # seed and severity
TOLERANCE = 0.02


@cache
def phantom(name: str) -> Scan:
    seed, severity = PHANTOMS[name]
    return simulate(seed, Config(severity=severity, frames=16, fps=5, size=192))[0]


@pytest.fixture(scope="module")
def task():
    listed = next((w for w in weights.inventory(["video"]) if w.name == "covid_severity"), None)
    if listed is None:
        pytest.skip("no shipped weights: video/weights/covid_severity.safetensors is absent")
    weights.require(listed)
    return usvol.build_task("covid_severity", device="cpu")


def expected(result: Result) -> float:
    (value,) = (m.value for m in result.measurements if m.name == "severity_expected")
    assert isinstance(value, float)
    return value


def curve(result: Result) -> list[float]:
    return list(next(f for f in result.findings if isinstance(f, Curve)).values)


def changed(scan: Scan, data: torch.Tensor) -> Scan:
    return dataclasses.replace(scan, data=data.to(torch.uint8).contiguous())


@pytest.mark.parametrize("name", PHANTOMS)
def test_answers_are_those_stored(task, name):
    if not GOLDEN.is_file():
        pytest.skip(f"{GOLDEN.name} is absent; run this file with python to store it")
    stored = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert stored["weights_sha256"] == task.provenance["weights_sha256"], "other weights: store anew"
    result = usvol.run(task, phantom(name))
    assert expected(result) == pytest.approx(stored["phantoms"][name]["severity_expected"], abs=TOLERANCE)
    np.testing.assert_allclose(curve(result), stored["phantoms"][name]["curve"], atol=TOLERANCE)


def test_a_severe_phantom_scores_above_a_mild_one(task):
    scores = {name: expected(usvol.run(task, phantom(name))) for name in PHANTOMS}
    assert scores["severe"] > scores["mild"] + 0.3


@pytest.mark.parametrize("name", PHANTOMS)
def test_a_mirrored_clip_scores_the_same(task, name):
    scan = phantom(name)
    one, other = usvol.run(task, scan), usvol.run(task, changed(scan, scan.data.flip(-1)))
    assert expected(other) == pytest.approx(expected(one), abs=0.1)
    np.testing.assert_allclose(curve(other), curve(one), atol=0.3)


@pytest.mark.parametrize("name", PHANTOMS)
def test_every_second_frame_tells_nearly_the_same(task, name):
    scan = phantom(name)
    thinned = dataclasses.replace(scan, data=scan.data[::2], times_s=(scan.times_s or ())[::2])
    assert abs(expected(usvol.run(task, thinned)) - expected(usvol.run(task, scan))) < 0.3


@pytest.mark.parametrize("name", PHANTOMS)
def test_a_tenth_more_gain_changes_little(task, name):
    scan = phantom(name)
    louder = changed(scan, (scan.data.float() * 1.1).round().clamp(0, 255))
    assert abs(expected(usvol.run(task, louder)) - expected(usvol.run(task, scan))) < 0.3


def test_a_repeated_clip_scores_as_once(task):
    scan = phantom("moderate")
    count = 3 * scan.data.shape[0]
    long = dataclasses.replace(
        scan, data=scan.data.repeat(3, 1, 1, 1, 1), times_s=tuple(i / 5 for i in range(count))
    )
    assert abs(expected(usvol.run(task, long)) - expected(usvol.run(task, scan))) < 0.1


def store() -> None:
    """Write the answers of the weights that ship now to ``GOLDEN``."""
    task = usvol.build_task("covid_severity", device="cpu")
    results = {name: usvol.run(task, phantom(name)) for name in PHANTOMS}
    content = {
        "weights_sha256": task.provenance["weights_sha256"],
        "phantoms": {
            name: {"severity_expected": round(expected(r), 4), "curve": [round(v, 4) for v in curve(r)]}
            for name, r in results.items()
        },
    }
    GOLDEN.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    store()
