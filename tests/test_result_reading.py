"""What is written comes back: every type of finding, on every kind of grid; what is damaged is told."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from usvol import writing
from usvol.errors import CorruptFileError, EmptyFileError
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
    Severity,
    Surface,
)
from usvol.result_reading import is_result, read_result
from usvol.scan import IDENTITY, Calibration, Frame, Grid, Scan, Source, Trust

TURNED = ((0.0, 0.0, -1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
GRIDS = {
    "calibrated": Grid((4, 6, 5), (0.5, 0.4, 0.3), (1.0, 2.0, 3.0), frame=Frame.PATIENT_LPS),
    "turned": Grid((4, 6, 5), (0.5, 0.4, 0.3), (1.0, -2.0, 3.0), TURNED, Frame.PATIENT_LPS),
    "uncalibrated": Grid((4, 6, 5)),
    "shrunk": Grid((4, 6, 5), step_px=(1.0, 2.0, 2.0), origin_px=(0.0, 0.5, 0.5)),
    "planar": Grid((1, 6, 5), (0.4, 0.4, 0.3)),
}
TETRAHEDRON = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
CORNERS = torch.tensor([[0.0, 0, 0], [1, 0.25, 0], [0, 1.5, 0], [0, 0, 2]], dtype=torch.float64)


def findings(grid: Grid, frames: int = 1) -> tuple[Finding, ...]:
    some = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 3, (frames, *grid.shape), generator=some, dtype=torch.uint8)
    return (
        Labels("organs", mask, grid, {1: "liver", 2: "vessel"}, size_range={1: (0.9, 1.25)}),
        Labels("middle frame", mask[:1], grid, {2: "cyst"}, (frames // 2,)),
        Heatmap("evidence", torch.rand(frames, *grid.shape, generator=some), grid),
        Plane("axial", (1.5, 2.0, 2.5), (0.0, 0.6, 0.8), (1.0, 0.0, 0.0), 0.75),
        Line("needle", (0.0, 1.0, 2.0), (3.0, 4.5, 4.0), None, 0),
        Box("roi", (1.0, 2.0, 3.0), (2.0, 2.0, 1.0), IDENTITY, 0.5),
        Surface("skin", CORNERS, TETRAHEDRON),
        Surface("valve", CORNERS, TETRAHEDRON, torch.tensor([0, 1, 2, 3], dtype=torch.uint8), None, 0),
        Curve(
            "area", (1.0, math.nan, 3.0), "mm2", (0.0, 0.1, 0.25), (0, 2, 5), events=(Event("ED", 2, 0.25),)
        ),
        Curve("score", (0.1, 0.2), "1", None, (0, 1), (0.0, 0.1), (0.2, 0.3)),
        Scores("severity", ("none", "mild"), (0.25, 0.75), "mild"),
    )


def same(one, other) -> bool:
    """Tell whether two findings are equal to the last bit; vertices to single precision."""
    if type(one) is not type(other):
        return False
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor):
            if a.shape != b.shape or not np.allclose(a, b, rtol=1e-6, atol=0):
                return False
        elif field.name == "grid":
            if not (
                a.shape == b.shape and np.allclose(a.affine, b.affine, atol=1e-12) and a.frame == b.frame
            ):
                return False
        elif not _equal(a, b):
            return False
    return True


def _equal(a, b) -> bool:
    if isinstance(a, tuple) and a and isinstance(a[0], float):
        return isinstance(b, tuple) and np.array_equal(a, b, equal_nan=True)
    return a == b


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("frames", [1, 3])
def test_every_finding_comes_back_on_every_grid(name, frames, tmp_path):
    grid = GRIDS[name]
    scan = Scan(
        torch.zeros(frames, 1, *grid.shape, dtype=torch.uint8), grid, None if frames == 1 else (0.0, 0.1, 0.3)
    )
    written = Result("toy", grid, Source(), findings(grid, frames), ())
    back = read_result(writing.write(written, tmp_path / "item", scan=scan if name == "planar" else None))
    assert len(back.findings) == len(written.findings)
    for one, other in zip(written.findings, back.findings, strict=True):
        assert same(one, other), f"{one}\n{other}"


def test_measurements_flags_and_source_come_back(tmp_path):
    source = Source(
        Path("a/clip.mp4"), "video", Calibration(Trust.STATED, "by the user"), "US", "Maker", "C5-1", "k3y",
        (0, 4, 9), ("burned-in text",), stated_fps=25.0,
    )  # fmt: skip
    measurements = (
        Measurement("volume", 12.5, "mL", 11.0, 13.0, "approximate"),
        Measurement("severity", "mild", "1"),
        Measurement("angle", None, "deg", note="not seen"),
    )
    flags = (Flag("uncalibrated", "No scale.", Severity.INFO), Flag("cut", "At the edge."))
    written = Result("toy", GRIDS["planar"], source, (), measurements, flags, {"weights": "abc"})
    back = read_result(writing.write(written, tmp_path / "item"))
    assert (back.task, back.source, back.grid) == ("toy", source, written.grid)
    assert (back.measurements, back.flags) == (measurements, flags)
    assert back.provenance["weights"] == "abc"


def test_reading_and_writing_again_changes_no_file(tmp_path):
    grid = GRIDS["turned"]
    first = writing.write(Result("toy", grid, Source(), findings(grid), ()), tmp_path / "first")
    second = writing.write(read_result(first), tmp_path / "second")
    one, two = (json.loads((f / "result.json").read_text()) for f in (first, second))
    assert one["findings"] == two["findings"]


def test_what_is_no_result_or_damaged_is_told(tmp_path):
    assert not is_result(tmp_path)
    with pytest.raises(EmptyFileError, match="result.json"):
        read_result(tmp_path)
    grid = GRIDS["calibrated"]
    folder = writing.write(Result("toy", grid, Source(), findings(grid), ()), tmp_path / "item")
    assert is_result(folder)
    (folder / "organs.nii.gz").write_bytes(b"short")
    with pytest.raises(CorruptFileError, match="whole"):
        read_result(folder)


@pytest.mark.parametrize("change", [{"type": "hologram"}, {"file": "organs.nii.gz", "type": "curve"}])
def test_foreign_content_is_a_typed_error(change, tmp_path):
    grid = GRIDS["calibrated"]
    folder = writing.write(Result("toy", grid, Source(), findings(grid)[:1], ()), tmp_path / "item")
    path = folder / "result.json"
    content = json.loads(path.read_text())
    content["findings"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(Exception, match="item: ") as caught:
        read_result(folder)
    assert type(caught.value).__module__ == "usvol.errors"
