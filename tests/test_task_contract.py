"""What every task must keep, registered ones and the README's: tested on simulated scans."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import usvol
from usvol import registry, weights
from usvol.errors import KindError, WeightsError
from usvol.result import (
    Box,
    Curve,
    Finding,
    Heatmap,
    Labels,
    Line,
    Measurement,
    Plane,
    Result,
    Scores,
    Surface,
)
from usvol.scan import Grid, Kind, Scan, Selection
from usvol.task import Task

UNITS = {
    "",
    "1",
    "%",
    "mm",
    "mm²",
    "cm²",
    "mL",
    "mm/s",
    "°",
    "s",
    "ms",
    "1/min",
    "frames",
    "score",
    "grade",
    "level",
}
NAMES = [*usvol.tasks(), "motion (README)"]
SHAPES = {
    Kind.IMAGE: (1, (1, 96, 120)),
    Kind.CINE: (12, (1, 96, 120)),
    Kind.VOLUME: (1, (40, 48, 56)),
    Kind.VOLUME_SEQUENCE: (3, (32, 40, 48)),
}


@pytest.fixture(scope="module")
def build(request):
    """Return a builder of tasks by name; weights are read once per task."""
    built: dict[str, Task] = {}

    def of(name: str) -> Task:
        if name not in built:
            built[name] = readme_task() if name == "motion (README)" else usvol.build_task(name, device="cpu")
        return built[name]

    return of


def readme_task() -> Task:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class Motion" in b]
    module = types.ModuleType("readme_motion")
    sys.modules["readme_motion"] = module
    exec(compile(code, "README.md", "exec"), module.__dict__)
    return module.build(module.Config(), "cpu")


def speckle(kind: Kind) -> Scan:
    """Noise with a bright bar that drifts: nothing a task was made for, and nothing it may choke on."""
    frames, shape = SHAPES[kind]
    rng = np.random.default_rng(5)
    data = rng.rayleigh(40, (frames, 1, *shape)).clip(0, 255).astype(np.uint8)
    for t in range(frames):
        data[t, ..., 20 + t : 24 + t, 10:30] = 220
    grid = Grid(shape, spacing_mm=(0.5, 0.5, 0.5))
    times_s = tuple(t / 25 for t in range(frames)) if frames > 1 else None
    return Scan(torch.from_numpy(data), grid, times_s=times_s)


def scans(name: str, task: Task) -> Iterator[Scan]:
    """Yield noise of every kind the task accepts, and a case of the phantom it was made with."""
    yield from (speckle(kind) for kind in sorted(task.accepts))
    known = name in usvol.tasks()
    phantom = registry.module(registry.Group.TASKS, name).TRAINING.phantom if known else "lung"
    yield registry.module(registry.Group.PHANTOMS, phantom).simulate(seed=1)[0]


def check_finding(finding: Finding, scan: Scan) -> None:
    """Assert that a finding is well formed and lies on the grid, or in the world, of the scan as given."""
    frames = scan.data.shape[0]
    match finding:
        case Labels() | Heatmap():
            labelled = frames if finding.frame_indices is None else len(finding.frame_indices)
            assert finding.grid == scan.grid
            assert tuple(finding.data.shape) == (labelled, *scan.grid.shape)
            assert all(0 <= i < frames for i in finding.frame_indices or ())
            if isinstance(finding, Labels):
                assert finding.data.dtype == torch.uint8
                assert set(finding.data.unique().tolist()) <= {0, *finding.names}
            else:
                assert finding.data.dtype == torch.float32
                assert 0 <= float(finding.data.min()) <= float(finding.data.max()) <= 1
        case Curve():
            count = len(finding.values)
            assert count == len(finding.frame_indices) <= frames
            assert list(finding.frame_indices) == sorted(set(finding.frame_indices))
            assert all(
                len(part) == count
                for part in (finding.times_s, finding.low, finding.high)
                if part is not None
            )
            assert all(0 <= event.index < count for event in finding.events)
            assert finding.unit in UNITS
            if scan.times_s is None:
                assert finding.times_s is None, "frame times were invented"
        case Scores():
            assert len(finding.classes) == len(finding.probabilities)
            assert sum(finding.probabilities) == pytest.approx(1.0, abs=1e-4)
            assert finding.decision in finding.classes
        case Plane():
            check_inside([finding.point], scan.grid)
            assert np.linalg.norm(finding.normal) == pytest.approx(1.0, abs=1e-4)
            assert np.dot(finding.normal, finding.up) == pytest.approx(0.0, abs=1e-4)
        case Line():
            check_inside([finding.tip], scan.grid)
        case Box():
            check_inside([finding.centre], scan.grid)
            np.testing.assert_allclose(
                np.asarray(finding.rotation).T @ finding.rotation, np.eye(3), atol=1e-4
            )
        case Surface():
            check_inside(finding.vertices.numpy(), scan.grid)
            assert 0 <= int(finding.faces.min()) <= int(finding.faces.max()) < len(finding.vertices)
    assert all(math.isfinite(number) for number in numbers(finding))


def check_inside(points: Any, grid: Grid) -> None:
    index = grid.to_index(np.asarray(points, float))
    assert (index >= -1).all(), "outside the grid"
    assert (index <= np.asarray(grid.shape)).all(), "outside the grid"


def check_measurement(measurement: Measurement) -> None:
    assert measurement.unit in UNITS, f"unit {measurement.unit!r} is not one of {sorted(UNITS)}"
    if measurement.value is None:
        assert measurement.note
    elif isinstance(measurement.value, float | int):
        assert math.isfinite(measurement.value)
    bounds = (measurement.low, measurement.high)
    assert all(math.isfinite(bound) for bound in bounds if bound is not None)


def check_result(result: Result, scan: Scan) -> None:
    assert result.grid == scan.grid
    assert result.findings
    assert len({(type(finding), finding.name) for finding in result.findings}) == len(result.findings)
    assert len({m.name for m in result.measurements}) == len(result.measurements)
    for finding in result.findings:
        check_finding(finding, scan)
    for measurement in result.measurements:
        check_measurement(measurement)


def check_run(task: Task, scan: Scan) -> Result:
    """Assert that a task leaves the scan alone, answers well and answers the same again."""
    before = scan.data.clone()
    result = usvol.run(task, scan)
    assert torch.equal(scan.data, before), "the input was changed"
    check_result(result, scan)
    again = usvol.run(task, scan)
    assert [numbers(f) for f in result.findings] == [numbers(f) for f in again.findings], "two answers"
    assert result.measurements == again.measurements
    return result


def numbers(value: Any) -> list[float]:
    """Flatten all numbers of a finding, tensors included."""
    if isinstance(value, Tensor):
        return value.double().flatten().tolist()
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return []
    if isinstance(value, int | float):
        return [float(value)]
    if dataclasses.is_dataclass(value):
        return [n for f in dataclasses.fields(value) for n in numbers(getattr(value, f.name))]
    if isinstance(value, dict):
        return [n for item in value.items() for n in numbers(item)]
    return [n for item in value for n in numbers(item)] if isinstance(value, tuple | list) else []


@pytest.mark.parametrize("name", NAMES)
def test_task_has_the_parts_of_one(name, build):
    task = build(name)
    assert isinstance(task, Task)
    assert task.accepts
    assert task.accepts <= set(Kind)
    assert isinstance(task.selection, Selection)
    if name in usvol.tasks():
        entry = usvol.tasks()[name]
        assert entry.summary, "the first line of the module's docstring describes the task"
        assert entry.accepts == task.accepts, "'usvol tasks' reads off another kind than the task accepts"


@pytest.mark.parametrize("name", NAMES)
def test_task_answers_well_on_every_scan_it_accepts(name, build):
    seen = [check_run(build(name), scan) for scan in scans(name, build(name))]
    assert seen


@pytest.mark.parametrize("name", NAMES)
def test_task_refuses_every_kind_it_does_not_accept(name, build):
    for kind in set(Kind) - build(name).accepts:
        with pytest.raises(KindError):
            usvol.run(build(name), speckle(kind))


@pytest.mark.parametrize("facts", [{}, {"task": "other", "members": "1", "settings": "{}"}])
@pytest.mark.parametrize("name", usvol.tasks())
def test_weights_of_another_task_are_refused(name, facts, tmp_path):
    path = tmp_path / "other.safetensors"
    weights.save(path, {"member_0.layer.weight": torch.zeros(3)}, metadata=facts)
    with pytest.raises(WeightsError, match="train"):
        usvol.build_task(name, device="cpu", overrides={"weights": str(path)})


@pytest.mark.parametrize("name", NAMES)
def test_task_invents_neither_scale_nor_frame_times(name, build):
    for kind in build(name).accepts:
        known = speckle(kind)
        unknown = dataclasses.replace(known, grid=Grid(known.grid.shape), times_s=None)
        result = check_run(build(name), unknown)
        assert "uncalibrated" in {flag.code for flag in result.flags}
        physical = {"mm", "mm²", "cm²", "mL", "mm/s", "s", "ms", "1/min"}
        assert not [m.name for m in result.measurements if m.unit in physical and m.value is not None]


@pytest.mark.parametrize("name", NAMES)
def test_answer_is_written_whole(name, build, tmp_path):
    from usvol.writing import read_complete

    scan = speckle(min(build(name).accepts))
    folder = usvol.write(usvol.run(build(name), scan), tmp_path / "item", scan=scan)
    content = read_complete(folder)
    assert content is not None
    assert content["findings"]


@dataclasses.dataclass
class Broken:
    """A task with one fault, which the checks above must see."""

    fault: str
    accepts = frozenset({Kind.CINE})
    selection = Selection()
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    runs: int = 0

    def preprocess(self, scan: Scan) -> Scan:
        return scan

    def infer(self, scan: Scan) -> Tensor:
        self.runs += 1
        return scan.data.float().mean((1, 2, 3, 4))

    def postprocess(self, raw: Tensor, scan: Scan) -> tuple[Finding, ...]:
        values = raw.tolist()
        if self.fault == "not a number":
            values[0] = math.nan
        if self.fault == "another answer":
            values[0] = float(self.runs)
        if self.fault == "too many frames":
            values += values
        times_s = tuple(i / 30 for i in range(len(values))) if self.fault == "invented times" else None
        return (Curve("mean", tuple(values), "1", times_s, tuple(range(len(values)))),)

    def measure(self, findings: tuple[Finding, ...], scan: Scan) -> tuple[Measurement, ...]:
        if self.fault == "changed input":
            scan.data[0] = 0
        return (Measurement("mean", 1.0, "furlong" if self.fault == "unknown unit" else "1"),)

    def flags(self, raw: Tensor, scan: Scan) -> tuple[()]:
        return ()


@pytest.mark.parametrize(
    "fault",
    ["not a number", "another answer", "too many frames", "invented times", "changed input", "unknown unit"],
)
def test_the_contract_sees_a_broken_task(fault):
    scan = dataclasses.replace(speckle(Kind.CINE), times_s=None)
    check_run(Broken("none"), scan)
    with pytest.raises(AssertionError):
        check_run(Broken(fault), scan)
