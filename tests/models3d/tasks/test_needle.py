from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import usvol
from models3d.recipes.needle_path import Path, fit_path
from models3d.tasks._needle_motion import smoothed_tips
from models3d.tasks._needle_tracing import candidate, trace, tube_mask
from models3d.tasks.needle import Config, Needle
from usvol.result import Labels, Line, Plane, Result
from usvol.runtime import Network
from usvol.scan import Frame, Grid, Scan

GRID = Grid((60, 60, 60), (0.5, 0.5, 0.5), (1.0, 2.0, 3.0), frame=Frame.PROBE)


def bright_is_needle(views: torch.Tensor) -> torch.Tensor:
    """Stand in for both networks."""
    return torch.where(views[:, 0] > 0.3, 6.0, -6.0)


def task(**settings) -> Needle:
    network = Network(bright_is_needle, "test", "cpu", "f32", 0.0)
    return Needle(network, network, Config(**settings))


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


def test_the_gauge_sets_the_thickness_of_the_mask():
    sizes = [
        int(
            next(f for f in usvol.run(task(gauge=gauge), scan()).findings if isinstance(f, Labels)).data.sum()
        )
        for gauge in (22, 17)
    ]
    assert sizes[0] < sizes[1]


def test_the_line_is_found_among_scattered_false_positives():
    chance = torch.zeros(32, 32, 32)
    rng = np.random.default_rng(3)
    chance[tuple(rng.integers(0, 32, (3, 25)))] = 0.9
    for n in range(20):
        chance[10, 6 + n // 2, 5 + n] = 0.8
    path = candidate(chance, scale=np.ones(3), grid_shape=(64, 64, 64))
    assert path is not None
    true = np.array([0.0, 0.5, 1.0]) / np.linalg.norm([0, 0.5, 1])
    assert abs(path.ahead @ true) > 0.99
    assert candidate(torch.zeros(8, 8, 8), scale=np.ones(3), grid_shape=(8, 8, 8)) is None


def test_gaps_are_bridged_and_the_end_lies_between_samples():
    path = Path(np.zeros(3), np.array([0.0, 0, 1]), np.zeros(3), -20, 20)
    lengths = np.arange(-40.0, 40)
    points = np.zeros((80, 2, 2, 3))
    points[..., 2] = lengths[:, None, None]
    chance = torch.zeros(80, 2, 2)
    chance[:50] = 0.95
    chance[20:26] = 0.02
    chance[50] = 0.3
    found = trace(chance, points, path=path, along=lengths, inside=np.ones(80, bool))
    assert found is not None and found.tip_seen
    assert found.path.end == pytest.approx(9.7, abs=0.3)
    assert found.path.start == -40


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
