from __future__ import annotations

import dataclasses
import hashlib
import pickle
import threading
from typing import Any

import pytest
import torch

from usvol import pipeline
from usvol.errors import CancelledError, KindError, UncalibratedError
from usvol.result import Curve, Flag, Labels, Line, Measurement
from usvol.scan import Grid, Kind, Scan, Selection, Source
from usvol.supervision import Progress, supervised


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


def test_samples_that_are_no_numbers_are_told_and_change_nothing_else():
    scan = volume()
    scan = dataclasses.replace(scan, data=scan.data.float())
    data = scan.data.clone()
    data[..., 0, 0, 0] = torch.nan
    plain, odd = pipeline.run(Spot(), scan), pipeline.run(Spot(), dataclasses.replace(scan, data=data))
    assert set(codes(odd)) - set(codes(plain)) == {"not_finite"}
    assert "1 of 61,440 samples" in next(f.message for f in odd.flags if f.code == "not_finite")
    assert torch.equal(odd.findings[0].data, plain.findings[0].data)


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


def test_scans_and_results_survive_pickling():
    """As loaders and pools of other processes need it, read-only mappings included."""
    scan = volume()
    result = pipeline.run(Spot(), scan)
    other, again = pickle.loads(pickle.dumps((scan, result)))
    assert torch.equal(other.data, scan.data)
    assert other.grid == scan.grid
    assert again.measurements == result.measurements
    assert dict(again.provenance) == dict(result.provenance)
    with pytest.raises(TypeError):
        again.provenance["task"] = "another"


def test_a_supervised_run_tells_its_stages_and_stops_at_any_of_them():
    heard: list[Progress] = []
    with supervised(progress=heard.append):
        whole = pipeline.run(Spot(), volume())
    assert tuple(one.stage for one in heard) == pipeline.STAGES
    assert whole.measurements == pipeline.run(Spot(), volume()).measurements
    for last in pipeline.STAGES:
        seen: list[Progress] = []
        with (
            pytest.raises(CancelledError),
            supervised(progress=seen.append, cancelled=lambda seen=seen, last=last: last in str(seen)),
        ):
            pipeline.run(Spot(), volume())
        assert seen[-1].stage == last


def corrected(labels: Labels, value: int) -> Labels:
    data = labels.data.clone()
    data[0, :4, :5, :6] = value
    return dataclasses.replace(labels, data=data)


def test_a_corrected_mask_is_measured_voxel_by_voxel():
    scan = volume()
    result = pipeline.run(Spot(), scan)
    (labels,) = result.findings
    larger = pipeline.remeasure(Spot(), result, findings=(corrected(labels, 1),), scan=scan)
    assert larger.measurements[0].value == pytest.approx(result.measurements[0].value + 0.12)
    assert larger.provenance["corrected"] == ["spot"]
    assert larger.flags == result.flags
    back = pipeline.remeasure(Spot(), larger, findings=(corrected(labels, 0),), scan=scan)
    assert back.measurements == result.measurements


def test_findings_left_as_they_were_change_nothing():
    scan = volume()
    result = pipeline.run(Spot(), scan)
    same = dataclasses.replace(
        result.findings[0], data=result.findings[0].data.clone(), size_range={1: (1, 1)}
    )
    assert pipeline.remeasure(Spot(), result, findings=(same,), scan=scan) is result


def test_what_follows_from_a_corrected_finding_is_made_anew_and_old_ranges_go():
    class WithTip(Spot):
        def postprocess(self, raw, scan):
            (labels,) = super().postprocess(raw, scan)
            labels = dataclasses.replace(labels, size_range={1: (0.9, 1.1)})
            return (labels, Line("tip", (0.0, 0.0, 0.0), (0.0, 0.0, 1.0)))

        def follow(self, findings, changed):
            assert set(changed) == {0}
            return (findings[0], Line("tip", (0.0, 0.0, 0.0), (0.0, 0.0, 2.0)))

    scan = volume()
    result = pipeline.run(WithTip(), scan)
    assert result.findings[0].size_range
    found = (corrected(result.findings[0], 1), result.findings[1])
    labels, tip = pipeline.remeasure(WithTip(), result, findings=found, scan=scan).findings
    assert labels.size_range is None
    assert tip.tip == (0.0, 0.0, 2.0)


def test_a_number_that_a_correction_leaves_as_it_was_keeps_its_range():
    class Ranged(Spot):
        def measure(self, findings, scan):
            return (*super().measure(findings, scan), Measurement("depth", 30.0000001, "mm"))

    scan = volume()
    first = pipeline.run(Ranged(), scan)
    known = (Measurement("volume", first.measurements[0].value, "mL", 1.0, 9.0),
             Measurement("depth", 30.0, "mm", 28.0, 33.0, note="of the mesh"))  # fmt: skip
    opened = dataclasses.replace(first, measurements=known)  # what follows the numbers is not written
    found = (corrected(first.findings[0], 1),)
    again = pipeline.remeasure(Ranged(), opened, findings=found, scan=scan).measurements
    assert again[0].low is None and again[0].value != known[0].value
    assert again[1] == known[1]


def test_a_correction_has_the_findings_of_its_result():
    scan = volume()
    result = pipeline.run(Spot(), scan)
    with pytest.raises(ValueError, match="0 findings are no correction of the 1"):
        pipeline.remeasure(Spot(), result, findings=(), scan=scan)


def test_a_correction_without_scale_stays_unmeasured_and_says_so_once():
    result = pipeline.run(Spot(), volume(None))
    again = pipeline.remeasure(
        Spot(), result, findings=(corrected(result.findings[0], 1),), scan=volume(None)
    )
    assert codes(again).count("not_measured") == 1
