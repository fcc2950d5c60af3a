"""A task that returns what does not fit ends its own item, by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from usvol import pipeline, writing
from usvol.errors import TaskError
from usvol.result import (
    Box,
    Curve,
    Event,
    Finding,
    Flag,
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

GRID = Grid((6, 8, 10), (1.0, 0.5, 0.5))
EYE = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
ORIGIN, ALONG, UP = (0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
CORNERS, TRIANGLE = torch.eye(3), torch.tensor([[0, 1, 2]])


def scan(frames: int = 1) -> Scan:
    data = np.random.default_rng(0).integers(0, 255, (frames, 1, 6, 8, 10)).astype(np.uint8)
    times = tuple(i / 10 for i in range(frames)) if frames > 1 else None
    return Scan(torch.from_numpy(data), GRID, times)


def labels(shape=(1, 6, 8, 10), *, value: float = 1, dtype=torch.uint8, **changes) -> Labels:
    found = Labels("organ", torch.full(shape, value, dtype=dtype), GRID, {1: "organ"})
    return dataclasses.replace(found, **changes)


@dataclasses.dataclass
class Says:
    """A task that returns what it is told to."""

    found: Any = ()
    measured: Any = ()
    remarks: Any = ()
    accepts: frozenset[Kind] = frozenset(Kind)
    selection: Selection = Selection()
    provenance: dict[str, Any] = dataclasses.field(default_factory=lambda: {"task": "says"})

    def preprocess(self, scan: Scan) -> Scan:
        return scan

    def infer(self, scan: Scan) -> torch.Tensor:
        return scan.data

    def postprocess(self, raw: Any, scan: Scan) -> Any:
        return self.found

    def measure(self, findings: Any, scan: Scan) -> Any:
        return self.measured

    def flags(self, raw: Any, scan: Scan) -> Any:
        return self.remarks


SOUND: list[tuple[int, Finding]] = [
    (1, labels()),
    (3, labels((3, 6, 8, 10))),
    (3, labels((1, 6, 8, 10), frame_indices=(2,))),
    (1, labels(evidence=torch.rand(1, 2, 6, 8, 10))),
    (1, Heatmap("doubt", torch.rand(1, 6, 8, 10), GRID)),
    (3, Surface("mesh", CORNERS, TRIANGLE, frame_index=2)),
    (1, Surface("nothing", torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))),
    (1, Plane("cut", ORIGIN, ALONG, UP)),
    (1, Line("needle", ORIGIN, ALONG)),
    (1, Box("box", ORIGIN, (1.0, 2.0, 3.0), EYE)),
    (3, Curve("area", (1.0, 2.0), "mm²", None, (0, 40), events=(Event("ED", 1, None),))),
    (1, Scores("grade", ("a", "b"), (0.2, 0.8), "b")),
]

UNSOUND: list[tuple[int, Finding, str]] = [
    (1, labels((1, 10, 8, 6)), "shape .1, 10, 8, 6."),
    (1, labels((1, 3, 4, 5)), "shape"),
    (1, labels((6, 8, 10)), "shape"),
    (1, labels(value=0.7, dtype=torch.float32), "uint8"),
    (1, labels(value=2), "values .2."),
    (1, labels(value=0, names={0: "background"}), "1 to 255"),
    (1, labels(evidence=torch.rand(1, 2, 6, 8, 9)), "evidence"),
    (3, labels(), "frame_indices says"),
    (1, labels(frame_indices=(4,)), "of a scan of 1 frames"),
    (3, labels(frame_indices=(0, 1)), "frame_indices"),
    (1, Heatmap("doubt", torch.rand(1, 6, 8, 9), GRID), "shape"),
    (1, Heatmap("doubt", torch.zeros(1, 6, 8, 10, dtype=torch.uint8), GRID), "float32"),
    (1, Surface("mesh", CORNERS, TRIANGLE + 1), "no indices of its 3 vertices"),
    (1, Surface("mesh", CORNERS, TRIANGLE - 1), "no indices"),
    (1, Surface("mesh", CORNERS, torch.tensor([[0, 1, 2, 0]])), "faces .1, 4."),
    (1, Surface("mesh", CORNERS * torch.nan, TRIANGLE), "no numbers"),
    (1, Surface("mesh", CORNERS, TRIANGLE, frame_index=1), "frame 1"),
    (1, Plane("cut", ORIGIN, ALONG, ALONG), "right angle"),
    (1, Plane("cut", ORIGIN, ORIGIN, UP), "length 1"),
    (1, Plane("cut", (0.0, float("nan"), 0.0), ALONG, UP), "three numbers"),
    (1, Line("needle", ORIGIN, (float("inf"), 0.0, 0.0)), "three numbers"),
    (1, Box("box", ORIGIN, (1.0, 2.0, 3.0), (ALONG, ALONG, ALONG)), "right angles"),
    (3, Curve("area", (1.0, 2.0), "mm²", (0.0,), (0, 1)), "2 values and 1 times_s"),
    (3, Curve("area", (1.0,), "mm²", None, (0,), events=(Event("ED", 1, None),)), "event beyond"),
    (1, Scores("grade", ("a", "b"), (1.0,), "b"), "1 probabilities"),
    (1, Scores("grade", ("a", "b"), (0.2, 0.8), "c"), "none of its classes"),
]


@pytest.mark.parametrize(("frames", "finding"), SOUND)
def test_sound_findings_pass(frames, finding):
    (found,) = pipeline.run(Says((finding,)), scan(frames)).findings
    assert type(found) is type(finding)


@pytest.mark.parametrize(("frames", "finding", "said"), UNSOUND)
def test_findings_that_do_not_fit_are_named(frames, finding, said):
    with pytest.raises(TaskError, match=f"'says': {type(finding).__name__} '{finding.name}'.*{said}"):
        pipeline.run(Says((finding,)), scan(frames))


@pytest.mark.parametrize("found", [None, labels(), "labels", ("labels",), [None]])
def test_postprocess_returns_findings(found):
    with pytest.raises(TaskError, match="'says': postprocess returned"):
        pipeline.run(Says(found), scan())


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (None, "measure returned NoneType"),
        ((1.0,), "measure returned float"),
        ((Measurement("v", [1, 2], "mL"),), "'v' is .1, 2."),  # type: ignore[arg-type]
        ((Measurement("v", 1.0, "mL", low="little"),), "'v'"),  # type: ignore[arg-type]
        ((Measurement("v", 1.0, "mL"), Measurement("v", 2.0, "mL")), "more than one"),
    ],
)
def test_measurements_are_numbers_or_texts_of_names_of_their_own(measured, said):
    with pytest.raises(TaskError, match=said):
        pipeline.run(Says((), measured), scan())


def test_numbers_of_numpy_and_texts_pass():
    values: list[Any] = [np.float32(1.5), 2, "left", None]
    measured = tuple(Measurement(f"m{index}", value, "") for index, value in enumerate(values))
    assert len(pipeline.run(Says((), measured, (Flag("x", "y"),)), scan()).measurements) == 4


def test_flags_are_flags():
    with pytest.raises(TaskError, match="flags returned str"):
        pipeline.run(Says((), (), ("bad",)), scan())


def test_a_mesh_made_by_hand_is_checked_before_it_is_written(tmp_path):
    mesh = Surface("mesh", CORNERS, TRIANGLE + 7)
    with pytest.raises(TaskError, match="no indices"):
        writing.write(Result("t", GRID, scan().source, (mesh,), ()), tmp_path / "x")
    assert not (tmp_path / "x").exists()
