from __future__ import annotations

import dataclasses
import hashlib
import threading
from typing import Any

import pytest
import torch

from usvol import pipeline
from usvol.errors import KindError, UncalibratedError
from usvol.result import Curve, Flag, Labels, Measurement
from usvol.scan import Grid, Kind, Scan, Selection, Source


@dataclasses.dataclass
class Spot:
    """A task that marks every sample above 127 on a grid of half the size."""

    accepts: frozenset[Kind] = frozenset({Kind.VOLUME, Kind.CINE})
    selection: Selection = dataclasses.field(default_factory=Selection)
    provenance: dict[str, Any] = dataclasses.field(default_factory=lambda: {"weights_sha256": "ab" * 32})
    lock_seen: list[bool] = dataclasses.field(default_factory=list)
    lock: threading.Lock | None = None

    def preprocess(self, scan: Scan) -> Scan:
        from usvol.resampling import resize

        z, y, x = scan.grid.shape
        return resize(scan, (max(z // 2, 1), y // 2, x // 2))

    def infer(self, scan: Scan) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        if self.lock is not None:
            self.lock_seen.append(self.lock.locked())
        return (scan.data[:, 0] > 127).to(torch.uint8)

    def postprocess(self, raw, scan):
        return (Labels("spot", raw, scan.grid, {1: "spot"}),)

    def measure(self, findings, scan):
        spacing = scan.grid.require_spacing_mm("The volume", scan.calibration.reason)
        voxel = spacing[0] * spacing[1] * spacing[2]
        return (Measurement("volume", float(findings[0].data.sum()) * voxel / 1000, "mL"),)

    def flags(self, raw, scan):
        return (Flag("own", "the task's own remark"),)


def volume(spacing_mm=(1.0, 1.0, 1.0)) -> Scan:
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(20, 60, (1, 1, 32, 40, 48), generator=generator, dtype=torch.uint8)
    data[..., 8:24, 12:28, 16:32] = 255
    return Scan(data, Grid((32, 40, 48), spacing_mm=spacing_mm))


def codes(result) -> list[str]:
    return [flag.code for flag in result.flags]


def test_findings_come_back_on_the_grid_of_the_scan():
    scan = volume()
    before = scan.data.clone()
    result = pipeline.run(Spot(), scan, name="spot")
    (labels,) = result.findings
    assert labels.grid == scan.grid
    assert labels.data.shape == (1, 32, 40, 48)
    wanted = scan.data[:, 0] > 127
    overlap = (labels.data.bool() & wanted).sum() * 2 / (labels.data.bool().sum() + wanted.sum())
    assert overlap > 0.95
    assert torch.equal(scan.data, before)
    assert result.task == "spot"


def test_numbers_come_from_the_finding_that_is_returned():
    result = pipeline.run(Spot(), volume())
    single, double = (pipeline.run(Spot(), volume((s, s, s))).measurements[0].value for s in (1.0, 2.0))
    assert single == pytest.approx(float(result.findings[0].data.sum()) / 1000)
    assert single == pytest.approx(4.096, rel=0.1)
    assert double == pytest.approx(8 * single)


def test_without_scale_the_finding_stays_and_the_number_is_refused():
    result = pipeline.run(Spot(), volume(None))
    assert result.findings
    assert not result.measurements
    assert {"uncalibrated", "not_measured", "own"} == set(codes(result))
    message = next(flag.message for flag in result.flags if flag.code == "not_measured")
    assert "The volume needs a calibrated scan" in message


def test_a_bug_in_measure_stays_a_bug():
    class Buggy(Spot):
        def measure(self, findings, scan):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pipeline.run(Buggy(), volume())

    class Early(Spot):
        def preprocess(self, scan):
            raise UncalibratedError("The input size", "no scale")

    with pytest.raises(UncalibratedError):
        pipeline.run(Early(), volume())


def test_kinds_that_are_not_taken_are_refused_with_a_way_out():
    still = Scan(torch.zeros(1, 1, 1, 8, 8, dtype=torch.uint8), Grid((1, 8, 8)))
    with pytest.raises(KindError, match=r"takes cines and volumes, not still images.*clip"):
        pipeline.run(Spot(), still, name="spot")
    clip = Scan(torch.zeros(2, 1, 1, 8, 8, dtype=torch.uint8), Grid((1, 8, 8)))
    only_volumes = Spot(accepts=frozenset({Kind.VOLUME}))
    with pytest.raises(KindError, match=r"takes volumes, not cines.*usvol tasks"):
        pipeline.run(only_volumes, clip)


def test_flags_tell_of_unknown_times_and_of_what_the_source_warns():
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 255, (4, 1, 1, 32, 32), generator=generator, dtype=torch.uint8)
    source = Source(warnings=("burned-in annotation",))
    clip = Scan(data, Grid((1, 32, 32)), source=source)
    result = pipeline.run(Spot(), clip)
    assert {"unknown_frame_times", "source", "uncalibrated"} <= set(codes(result))
    assert "burned-in annotation" in [flag.message for flag in result.flags]
    timed = dataclasses.replace(clip, times_s=(0.0, 0.1, 0.2, 0.3))
    assert "unknown_frame_times" not in codes(pipeline.run(Spot(), timed))
    assert "unknown_frame_times" not in codes(pipeline.run(Spot(), volume()))


def test_provenance_tells_how_the_result_was_made(tmp_path):
    path = tmp_path / "scan.bin"
    path.write_bytes(b"samples")
    scan = dataclasses.replace(volume(), source=Source(path=path))
    facts = pipeline.run(Spot(), scan).provenance
    assert facts["input_sha256"] == hashlib.sha256(b"samples").hexdigest()
    assert facts["weights_sha256"] == "ab" * 32
    assert facts["versions"]["torch"] == str(torch.__version__)
    stages = ["canonicalise", "preprocess", "infer", "postprocess", "restore", "measure"]
    assert list(facts["stage_seconds"]) == stages
    assert all(seconds >= 0 for seconds in facts["stage_seconds"].values())
    with pytest.raises(TypeError):
        facts["versions"] = {}


def test_the_sha256_of_a_folder_follows_names_and_contents(tmp_path):
    (tmp_path / "a.png").write_bytes(b"1")
    first = pipeline.input_sha256(tmp_path)
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    second = pipeline.input_sha256(tmp_path)
    (tmp_path / "b.png").write_bytes(b"2")
    assert len({first, second, pipeline.input_sha256(tmp_path)}) == 3
    assert pipeline.input_sha256(None) is None
    assert pipeline.input_sha256(tmp_path / "gone") is None


def test_the_network_runs_in_turn():
    lock = threading.Lock()
    task = Spot(lock=lock)
    pipeline.run(task, volume(), turn=lock)
    assert task.lock_seen == [True]
    assert not lock.locked()


def test_same_input_same_answer():
    first, second = (pipeline.run(Spot(), volume()) for _ in range(2))
    assert torch.equal(first.findings[0].data, second.findings[0].data)
    assert first.measurements == second.measurements
    assert not any(isinstance(finding, Curve) for finding in first.findings)
