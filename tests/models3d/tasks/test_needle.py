from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import usvol
from models3d.recipes.needle_lines import candidates
from models3d.recipes.needle_path import Path, fit_path
from models3d.tasks._needle_motion import smoothed_tips
from models3d.tasks._needle_tracing import _SELECTED, Reading, Trace, trace, tube_mask
from models3d.tasks.needle import Config, Needle, _tubes
from usvol import pipeline
from usvol.result import Labels, Line, Plane, Result
from usvol.runtime import Network
from usvol.scan import Frame, Grid, Scan

GRID = Grid((60, 60, 60), (0.5, 0.5, 0.5), (1.0, 2.0, 3.0), frame=Frame.PROBE)


def bright_is_needle(views: torch.Tensor) -> torch.Tensor:
    """Stand in for the look over the view."""
    return torch.where(views[:, 0] > 0.3, 6.0, -6.0)


def bright_is_shaft(tubes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Stand in for the look along a line."""
    level, inside = tubes[:, 0], tubes[:, 1].amax((2, 3)) > 0.5
    bright = (level > 0.6).float()
    area = bright.sum((2, 3))
    across = torch.arange(level.shape[-1]) - (level.shape[-1] - 1) / 2
    down = (bright.sum(3) * across).sum(2) / area.clamp_min(1)
    aside = (bright.sum(2) * across).sum(2) / area.clamp_min(1)
    shaft = area > 0
    ended = torch.nn.functional.pad(~shaft & inside, (4, 4))
    beyond = [
        torch.stack([ended.roll(step * n, 1)[:, 4:-4] for n in (1, 2, 3, 4)]).all(0) for step in (1, -1)
    ]
    tip = torch.where(shaft & (beyond[0] | beyond[1]), 8.0, -8.0)
    count = shaft.sum(1)
    radius = 0.5 * (area.sum(1) / count.clamp_min(1) / torch.pi).clamp_min(0.1).log()
    whole = torch.stack([torch.where(count > 5, 6.0, -6.0), torch.zeros(len(tubes)), radius], 1)
    return torch.stack([torch.where(shaft, 6.0, -6.0), down, aside, tip], 1), whole


def bright_is_axis(sections: torch.Tensor, facts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Stand in for the look at means along the line."""
    del facts
    bright = (sections[:, 0] / sections[:, 1].clamp_min(0.3) > 0.4).float()
    area = bright.sum((2, 3))
    across = torch.arange(bright.shape[-1]) - (bright.shape[-1] - 1) / 2
    offset = [(bright.sum(axis) * across).sum(2) / area.clamp_min(1) for axis in (3, 2)]
    radius = 0.5 * (area.max(1).values / torch.pi).clamp_min(0.1).log()
    return torch.stack([*offset, area], 1), torch.stack([radius, torch.full_like(radius, 3.0)], 1)


def task(**settings) -> Needle:
    stands = (bright_is_needle, bright_is_shaft, bright_is_axis)
    coarse, fine, sections = (Network(part, "test", "cpu", "f32", 0.0) for part in stands)
    return Needle(coarse, fine, sections, Config(**settings))


def scan(length: int = 40, frames: int = 1, *, axis: int = 2) -> Scan:
    """A bar from the side of the volume, two voxels thick, that gets a voxel longer per frame."""
    noise = np.random.default_rng(1).integers(1, 40, (1, 1, 60, 60, 60), dtype=np.uint8)
    data = torch.from_numpy(noise).repeat(frames, 1, 1, 1, 1)
    for number in range(frames):
        bar = data[number, 0].movedim(axis, 2)
        bar[29:31, 29:31, : length + number] = 250
    times = tuple(number / 10 for number in range(frames)) if frames > 1 else None
    return Scan(data, GRID, times)


def line_of(result: Result) -> Line:
    return next(f for f in result.findings if isinstance(f, Line))


def numbers(result: Result) -> dict[str, object]:
    return {m.name: m.value for m in result.measurements}


def test_tip_entry_plane_and_numbers_of_a_bar():
    result = usvol.run(task(), scan())
    line, values = line_of(result), numbers(result)
    np.testing.assert_allclose(line.tip, GRID.to_world(np.array([29.5, 29.5, 39.5])), atol=0.6)
    np.testing.assert_allclose(line.entry, GRID.to_world(np.array([29.5, 29.5, -0.5])), atol=0.8)
    assert values["insertion_depth"] == pytest.approx(20, abs=0.8)
    assert values["angle_to_face"] == pytest.approx(0, abs=1)
    assert values["tip_x"] == pytest.approx(line.tip[2])
    plane = next(f for f in result.findings if isinstance(f, Plane))
    assert abs(np.dot(plane.normal, np.subtract(line.tip, line.entry))) < 1e-6
    labels = next(f for f in result.findings if isinstance(f, Labels)).data[0]
    true = scan().data[0, 0] > 200
    assert 2 * int((labels.bool() & true).sum()) / int(labels.sum() + true.sum()) > 0.8


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_turning_the_volume_turns_the_needle(axis):
    line = line_of(usvol.run(task(), scan(axis=axis)))
    index = GRID.to_index(np.array(line.tip))
    assert int(np.argmax(np.abs(index - 29.5))) == axis
    assert index[axis] == pytest.approx(39.5, abs=1.2)
    ahead = np.subtract(line.tip, line.entry)
    assert ahead[axis] / np.linalg.norm(ahead) > 0.999


def test_nothing_found_is_said_and_not_guessed():
    empty = dataclasses.replace(scan(), data=torch.full((1, 1, 60, 60, 60), 10, dtype=torch.uint8))
    result = usvol.run(task(), empty)
    assert not [f for f in result.findings if isinstance(f, Line | Plane)]
    assert {m.note for m in result.measurements} == {"not detected"}
    assert "not_detected" in {flag.code for flag in result.flags}


def test_weak_evidence_is_no_needle():
    assert not [f for f in usvol.run(task(threshold=1.0), scan()).findings if isinstance(f, Line)]


def test_a_needle_through_the_whole_view_is_flagged():
    assert "tip_outside_view" in {flag.code for flag in usvol.run(task(), scan(60)).flags}
    assert "tip_outside_view" not in {flag.code for flag in usvol.run(task(), scan(40)).flags}


def test_no_millimetres_without_calibration_but_a_line():
    plain = dataclasses.replace(scan(), grid=Grid((60, 60, 60)))
    result = usvol.run(task(), plain)
    assert line_of(result).tip[2] == pytest.approx(39.5, abs=1)
    assert not result.measurements
    assert "not_measured" in {flag.code for flag in result.flags}


def test_a_clip_has_a_line_per_frame_and_the_speed_of_the_tip():
    result = usvol.run(task(), scan(30, 6))
    lines = [f for f in result.findings if isinstance(f, Line)]
    assert [line.frame_index for line in lines] == list(range(6))
    assert numbers(result)["tip_speed"] == pytest.approx(5, rel=0.15)
    unknown = usvol.run(task(), dataclasses.replace(scan(30, 6), times_s=None))
    assert numbers(unknown)["tip_speed"] is None


def test_plane_and_voxels_follow_a_needle_that_was_dragged():
    clip = scan(frames=3)
    worker = task()
    found = pipeline.run(worker, clip, name="needle")
    lines = [i for i, f in enumerate(found.findings) if isinstance(f, Line)]
    last = found.findings[lines[-1]]
    dragged = dataclasses.replace(last, tip=(last.tip[0] + 4.0, last.tip[1] - 6.0, last.tip[2] - 3.0))
    edited = list(found.findings)
    edited[lines[-1]] = dragged
    result = pipeline.remeasure(worker, found, findings=edited, scan=clip)
    plane = next(f for f in result.findings if isinstance(f, Plane))
    for end in (dragged.entry, dragged.tip):
        assert abs(np.dot(np.subtract(end, plane.point), plane.normal)) < 1e-6
    before, after = (next(f for f in r.findings if isinstance(f, Labels)) for r in (found, result))
    assert torch.equal(before.data[:-1], after.data[:-1]), "the other frames stay"
    places = GRID.to_world(after.data[-1].nonzero().numpy().astype(float))
    assert np.linalg.norm(places - dragged.tip, axis=1).min() < 0.8
    assert int(after.data[-1].sum()) == pytest.approx(int(before.data[-1].sum()), rel=0.4)
    assert result.provenance["corrected"] == [last.name]
    painted = list(edited)
    painted[0] = dataclasses.replace(before, data=torch.zeros_like(before.data))
    both = pipeline.remeasure(worker, found, findings=painted, scan=clip)
    assert not both.findings[0].data.any(), "what was painted stays as it was painted"


def test_the_gauge_sets_the_thickness_of_the_mask():
    sizes = [
        int(
            next(f for f in usvol.run(task(gauge=gauge), scan()).findings if isinstance(f, Labels)).data.sum()
        )
        for gauge in (22, 17)
    ]
    assert sizes[0] < sizes[1]
    seen = next(f for f in usvol.run(task(), scan()).findings if isinstance(f, Labels))
    assert int(seen.data.sum()) == sizes[1], "unset: the likelier, which is the thicker here"


def test_the_axis_is_read_again_about_where_it_was_placed():
    def half(sections: torch.Tensor, facts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        answers, sizes = bright_is_axis(sections, facts)
        return answers * torch.tensor([0.5, 0.5, 1.0])[:, None], sizes

    reader = dataclasses.replace(task(), sections=Network(half, "test", "cpu", "f32", 0.0))
    level = (scan().data[0, 0] > 200).float()
    both = torch.stack([level, torch.ones(60, 60, 60)])
    aside = Path.between(np.array([31.5, 27.5, 0]), np.array([31.5, 27.5, 40]))
    tube = _tubes(both, [aside], np.ones(3))
    axis, _ = reader._axis(both, aside, tube=tube, shaft=np.ones(128), scan=scan())
    np.testing.assert_allclose(axis.points(np.array([0.0]))[0][:2], 29.5, atol=0.3)
    unseen, _ = reader._axis(both, aside, tube=tube, shaft=np.zeros(128), scan=scan())
    np.testing.assert_allclose(unseen.points(np.array([0.0])), aside.points(np.array([0.0])))


@pytest.mark.parametrize(("odds", "surest", "reads"), [([4, 0, 9, 9], 0, 1), ([0, 1, 2, -1], 2, 2)])
def test_lines_are_read_two_at_a_time_until_one_is_sure(odds, surest, reads):
    calls: list[list[float]] = []
    left = iter(odds)

    def fine(tubes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append([float(next(left)) for _ in tubes])
        whole = torch.zeros(len(tubes), 3)
        whole[:, 0] = torch.tensor(calls[-1])
        return torch.full((len(tubes), 4, 128), -9.0), whole

    reader = dataclasses.replace(task(), fine=Network(fine, "test", "cpu", "f32", 0.0))
    lines = [Path.between(np.array([5.0, 5, x]), np.array([50.0, 50, x])) for x in (10.0, 20, 30, 40)]
    everywhere = np.ones(128, bool)
    path = reader._surest(torch.ones(2, 60, 60, 60), lines, np.ones(3), held=lambda _: everywhere)
    assert path is lines[surest] and len(calls) == reads


def test_distinct_lines_are_found_among_scattered_false_positives_the_surest_first():
    logits = torch.full((32, 32, 32), -6.0)
    rng = np.random.default_rng(3)
    logits[tuple(rng.integers(0, 32, (3, 25)))] = 2.0
    for n in range(20):
        logits[10, 6 + n // 2, 5 + n] = 1.5
    for n in range(8):
        logits[25, 20, 4 + n] = 2.0
    paths = candidates(logits, scale=np.ones(3), grid_shape=(64, 64, 64), count=2)
    ways = [np.array([0.0, 0.5, 1.0]) / np.linalg.norm([0, 0.5, 1]), np.array([0.0, 0, 1])]
    assert [abs(path.ahead @ way) > 0.99 for path, way in zip(paths, ways, strict=True)] == [True, True]
    assert len(candidates(logits, scale=np.ones(3), grid_shape=(64, 64, 64), count=1)) == 1
    nothing = torch.full((8, 8, 8), -6.0)
    assert candidates(nothing, scale=np.ones(3), grid_shape=(8, 8, 8), count=3) == []


def traced(reading: Reading, path: Path) -> Trace | None:
    """Trace a needle whose axis lies one sample deeper than its tube's, and half a sample to a side."""
    axis = dataclasses.replace(path, middle=path.middle + np.array([1.0, -0.5]) @ reading.frame)
    return trace(reading, path, axis=axis, radius=2.0)


def read(shaft: np.ndarray, *, tip: float | None, inside: np.ndarray | None = None) -> Reading:
    count = len(shaft)
    tips = np.full(count, -9.0) if tip is None else -0.5 * (np.arange(count) - tip) ** 2
    slices = np.stack([np.where(shaft, 5.0, -5.0), np.full(count, 1.0), np.full(count, -0.5), tips])
    whole = np.array([_SELECTED + 3.0, -2.0, np.log(2.0)])
    inside = np.ones(count, bool) if inside is None else inside
    return Reading(slices, whole, np.arange(count) - count / 2, np.eye(3)[:2], inside)


def test_the_tip_is_between_slices_the_way_in_on_the_side_of_the_shaft_and_gaps_are_bridged():
    path = Path(np.zeros(3), np.array([0.0, 0, 1]), np.zeros(3), -20, 20)
    shaft = np.arange(80) < 50
    shaft[20:26] = False
    found = traced(read(shaft, tip=49.3), path)
    assert found is not None and found.tip_seen and found.radius == pytest.approx(2)
    np.testing.assert_allclose(found.path.points(np.array([found.path.end]))[0], (1.0, -0.5, 9.3), atol=0.1)
    np.testing.assert_allclose(found.path.points(np.array([found.path.start]))[0][2], -40, atol=0.1)
    assert found.confidence == pytest.approx(1 / (1 + np.exp(-3.0)))
    turned = traced(read(~shaft, tip=49.3), path)
    assert turned is not None
    assert turned.path.ahead[2] == pytest.approx(-1)
    np.testing.assert_allclose(turned.path.points(np.array([turned.path.end]))[0][2], 9.3, atol=0.1)


def test_of_two_ends_as_likely_the_deeper_one_is_the_tip():
    down = Path(np.zeros(3), np.array([0.0, 1, 0]), np.zeros(3), -20, 20)
    inside = (np.arange(80) >= 10) & (np.arange(80) < 70)
    shaft = (np.arange(80) >= 20) & (np.arange(80) < 60)
    both = read(shaft, tip=60.0, inside=inside)
    both.slices[3] = np.maximum(both.slices[3], 0.5 - 0.5 * (np.arange(80) - 20) ** 2)
    found = traced(both, down)
    assert found is not None and found.path.ahead[1] > 0.99
    assert found.path.points(np.array([found.path.end]))[0][1] == pytest.approx(20, abs=0.3)


def test_of_two_ends_as_likely_the_tip_is_the_one_to_which_the_shaft_runs_all_the_way():
    path = Path(np.zeros(3), np.array([0.0, 0, 1]), np.zeros(3), -20, 20)
    for shaft, ahead in ((np.arange(80) < 60, 1.0), (np.arange(80) >= 20, -1.0)):
        both = read(shaft, tip=60.0)
        both.slices[3] = np.maximum(both.slices[3], -0.5 * (np.arange(80) - 20) ** 2)
        found = traced(both, path)
        assert found is not None and found.path.ahead[2] == pytest.approx(ahead)
        assert found.path.points(np.array([found.path.end]))[0][2] == pytest.approx(20 * ahead, abs=0.3)


@pytest.mark.parametrize(("edge", "other"), [(68, 20), (11, 60)])
def test_of_two_ends_as_likely_the_one_at_the_edge_of_the_view_is_the_way_in(edge, other):
    path = Path(np.zeros(3), np.array([0.0, 0, 1]), np.zeros(3), -20, 20)
    place = np.arange(80)
    shaft = (place >= min(edge, other)) & (place <= max(edge, other))
    both = read(shaft, tip=edge, inside=(place >= 10) & (place < 70))
    both.slices[3] = np.maximum(both.slices[3], -0.3 - 0.5 * (place - other) ** 2)
    found = traced(both, path)
    assert found is not None
    assert found.path.points(np.array([found.path.end]))[0][2] == pytest.approx(other - 40, abs=0.3)


def test_a_shaft_without_a_tip_runs_from_edge_to_edge_and_no_shaft_is_none():
    path = Path(np.zeros(3), np.array([0.0, 0, 1]), np.zeros(3), -20, 20)
    inside = (np.arange(80) >= 10) & (np.arange(80) < 70)
    through = traced(read(np.ones(80, bool), tip=None, inside=inside), path)
    assert through is not None and not through.tip_seen
    assert through.path.end - through.path.start == pytest.approx(59, abs=0.5)
    assert through.path.ahead[2] == pytest.approx(1)
    somewhat = read(np.ones(80, bool), tip=None, inside=inside)
    somewhat.slices[3, 16] = -5.0
    up = traced(somewhat, path)
    assert up is not None and not up.tip_seen
    assert up.path.ahead[2] == pytest.approx(-1), "the end that looks more like a tip is given as the tip"
    assert traced(read(np.zeros(80, bool), tip=None), path) is None
    assert traced(read(np.ones(80, bool), tip=None, inside=np.zeros(80, bool)), path) is None


def test_the_mask_of_a_path_is_a_tube():
    path = fit_path(np.array([[20.0, 20, x] for x in range(5, 36)]), bends=False)
    mask = tube_mask(path, radius=3.0, shape=(40, 40, 40), scale=np.ones(3))
    assert int(mask.sum()) == pytest.approx(np.pi * 9 * 32, rel=0.06)


def test_smoothing_follows_a_steady_tip_and_calms_it():
    rng = np.random.default_rng(0)
    times = np.arange(30) / 10
    true = np.outer(times, [0.0, 3.0, 4.0])
    tips, speeds = smoothed_tips(true + rng.normal(0, 0.4, true.shape), times)
    assert np.linalg.norm(tips - true, axis=1).mean() < 0.35
    assert np.linalg.norm(speeds, axis=1).mean() == pytest.approx(5, rel=0.2)
