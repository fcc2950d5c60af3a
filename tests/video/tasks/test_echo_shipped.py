"""What the shipped weights of ``cardiac_phase`` and ``ejection_fraction`` answer: stored, and physically so.

After training new weights: ``python tests/video/tasks/test_echo_shipped.py`` stores their answers.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import usvol
from usvol import weights
from usvol.metrics import dice
from usvol.result import Curve, Labels, Result
from usvol.scan import Scan
from video.phantoms.heart import Config, simulate_labelled

GOLDEN = Path(__file__).with_name("golden_echo.json")
SEED, CONFIG = 3_000_007, Config(view="A4C", fps=50, beats=2.5, ef_percent=55, size=128)
TASKS = ("cardiac_phase", "ejection_fraction")


@cache
def phantom() -> tuple[Scan, Labels, dict]:
    return simulate_labelled(SEED, CONFIG)


@pytest.fixture(scope="module")
def answers() -> dict[str, Result]:
    shipped = {listed.name: listed for listed in weights.inventory(["video"])}
    for name in TASKS:
        weights.require(shipped[name])
    return {name: usvol.run(usvol.build_task(name, device="cpu"), phantom()[0]) for name in TASKS}


def events(result: Result) -> list[tuple[str, int]]:
    curve = next(f for f in result.findings if isinstance(f, Curve) and f.events)
    return [(event.name, curve.frame_indices[event.index]) for event in curve.events]


def value(result: Result, name: str) -> float:
    found = next(m.value for m in result.measurements if m.name == name)
    assert isinstance(found, float)
    return found


@pytest.mark.parametrize("name", TASKS)
def test_the_answer_is_the_one_stored(answers, name):
    stored, result = json.loads(GOLDEN.read_text(encoding="utf-8"))[name], answers[name]
    assert stored["weights_sha256"] == result.provenance["weights_sha256"], "other weights: store anew"
    assert [list(event) for event in events(result)] == stored["events"]
    for key, number in stored["measurements"].items():
        assert value(result, key) == pytest.approx(number, abs=0.5), key


@pytest.mark.parametrize("name", TASKS)
def test_the_beats_of_the_phantom_are_found(answers, name):
    """ED and ES, more than 0.1 s from the ends, within 3 frames (60 ms), and no others."""
    truth, count = phantom()[2], len(phantom()[0].data)
    for event in ("ED", "ES"):
        true = [n for n in truth[f"{event.lower()}_frames"] if 5 <= n < count - 5]
        found = [n for kind, n in events(answers[name]) if kind == event]
        assert true
        for frame in true:
            assert min(abs(n - frame) for n in found) <= 3, (event, frame, found)


def test_the_ventricle_of_the_phantom_is_outlined(answers):
    found = next(f for f in answers["ejection_fraction"].findings if isinstance(f, Labels)).data.numpy()
    true = phantom()[1].data.numpy()
    each = [dice(found[n] == 1, true[n] == 1) for n in range(0, len(true), 10)]
    assert np.mean(each) > 0.88


def test_twice_the_frame_times_halve_the_heart_rate_and_leave_ef(answers):
    scan = phantom()[0]
    assert scan.times_s is not None
    slow = dataclasses.replace(scan, times_s=tuple(2 * t for t in scan.times_s))
    rate = value(usvol.run(usvol.build_task("cardiac_phase", device="cpu"), slow), "heart_rate")
    assert rate == pytest.approx(value(answers["cardiac_phase"], "heart_rate") / 2, rel=0.05)
    ef = value(usvol.run(usvol.build_task("ejection_fraction", device="cpu"), slow), "ejection_fraction")
    assert ef == pytest.approx(value(answers["ejection_fraction"], "ejection_fraction"), abs=1)


def test_twice_the_frame_times_halve_the_rate_of_a_slow_heart():
    """44 beats per minute become 22, fewer than in any training clip."""
    config = CONFIG.model_copy(update={"fps": 60, "heart_rate_bpm": 44})
    scan, _, _ = simulate_labelled(SEED, config)
    assert scan.times_s is not None
    slow = dataclasses.replace(scan, times_s=tuple(2 * t for t in scan.times_s))
    task = usvol.build_task("cardiac_phase", device="cpu")
    before, after = usvol.run(task, scan), usvol.run(task, slow)
    assert value(before, "heart_rate") == pytest.approx(44, rel=0.08)
    assert value(after, "heart_rate") == pytest.approx(value(before, "heart_rate") / 2, rel=0.05)
    assert "implausible_rate" in {flag.code for flag in after.flags}


def test_every_second_frame_gives_the_same_heart_rate_and_ef(answers):
    scan = phantom()[0]
    assert scan.times_s is not None
    half = dataclasses.replace(scan, data=scan.data[::2], times_s=scan.times_s[::2])
    rate = value(usvol.run(usvol.build_task("cardiac_phase", device="cpu"), half), "heart_rate")
    assert rate == pytest.approx(value(answers["cardiac_phase"], "heart_rate"), rel=0.05)
    ef = value(usvol.run(usvol.build_task("ejection_fraction", device="cpu"), half), "ejection_fraction")
    assert ef == pytest.approx(value(answers["ejection_fraction"], "ejection_fraction"), abs=3)


def store() -> None:
    """Write the answers of the weights that ship now to ``GOLDEN``."""
    kept = {"cardiac_phase": ("heart_rate",), "ejection_fraction": ("ejection_fraction",)}
    answer = {}
    for name, keys in kept.items():
        result = usvol.run(usvol.build_task(name, device="cpu"), phantom()[0])
        answer[name] = {
            "weights_sha256": result.provenance["weights_sha256"],
            "events": events(result),
            "measurements": {key: value(result, key) for key in keys},
        }
    GOLDEN.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    store()
