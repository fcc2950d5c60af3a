"""The task with stand-in networks whose answers are known; what the weights reach is tested elsewhere."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import usvol
from models3d.phantoms._aortic_geometry import drawn_root, mesh_points
from models3d.recipes.aortic_valve_patches import (
    COARSE,
    COARSE_MM,
    NEAR_SIDE,
    PATCH,
    SIDE,
    Poses,
    axis_turns,
    levels,
)
from models3d.tasks import _aortic_shape as shape
from models3d.tasks._aortic_detection import Effort, distinct, orientations, places
from models3d.tasks._aortic_findings import Reading, evidence, findings_of
from models3d.tasks._aortic_mesh import FACES, box_of
from models3d.tasks._aortic_surface import Aligned, cube_grid
from models3d.tasks.aortic_valve import AorticValve, Config
from usvol.resampling import sample_on
from usvol.result import Box, Curve, Labels, Surface
from usvol.runtime import Network
from usvol.scan import Grid, Scan

CENTRE = (2.0, 40.0, -4.0)


def network(answer):
    return Network(answer, "torch", "cpu", "f32", 0.0)


def valve_task(*, score=4.0, cusps=True, **config):
    """A valve upright at CENTRE, found by whoever looks: every answer is 'no correction'."""
    rng = np.random.default_rng(0)
    roots = [mesh_points(drawn_root(rng, cusps=3, calcified=False), opened=0.0) for _ in range(6)]
    model = shape.fit(torch.tensor(np.stack(roots)).float(), modes=3)
    _, size, _ = box_of(model.mean.double().numpy())
    calls = []

    def position(view):
        heat = torch.full((1, 1, COARSE, COARSE, COARSE), -8.0)
        half = COARSE // 2
        heat[0, 0, half, half, half] = heat[0, 0, half - 1, half - 1, half - 1] = 5
        calls.append("position")
        return heat, torch.ones(1, 4)

    def orientation(patches):
        assert patches.shape[2:] == (NEAR_SIDE, NEAR_SIDE, NEAR_SIDE)
        calls.append("orientation")
        return likeliest_first(patches)

    def pose(patches):
        assert patches.shape[2:] == (PATCH, PATCH, PATCH)
        calls.append("pose")
        return likeliest_first(patches)

    def likeliest_first(patches):
        answers = torch.zeros(len(patches), 13)
        # The first hypothesis is the likeliest.
        answers[:, 12] = score - 0.1 * torch.arange(len(patches))
        return answers

    def aligned(cubes):
        half = float(size.max()) * 1.35 / 2
        spread = 1 + 0.01 * torch.arange(len(cubes))[:, None, None]
        points = (model.mean / half * spread).expand(len(cubes), -1, -1)
        logits = torch.full((len(cubes), 2, SIDE, SIDE, SIDE), -5.0)
        logits[:, 0, 14:34, 10:38, 10:38] = 5
        if cusps:
            logits[:, 1, 20:24, 14:34, 14:34] = 3
        return logits, points

    networks = {"position": position, "orientation": orientation, "pose": pose, "aligned": aligned}
    task = AorticValve({k: network(v) for k, v in networks.items()}, model, Config(**config))
    return task, calls


def volume(frames=1, grid=None):
    shape3 = (70, 80, 72)
    grid = grid or Grid(shape3, (1.0, 1.0, 1.0), (-34.5, 0.0, -35.5))
    data = torch.from_numpy(np.random.default_rng(1).integers(20, 200, (frames, 1, *shape3), dtype=np.uint8))
    return Scan(data, grid, tuple(0.04 * t for t in range(frames)) if frames > 1 else None)


def test_box_labels_mesh_and_measurements_describe_one_valve():
    task, _ = valve_task()
    result = usvol.run(task, volume())
    box = next(f for f in result.findings if isinstance(f, Box))
    mesh = next(f for f in result.findings if isinstance(f, Surface))
    labels = next(f for f in result.findings if isinstance(f, Labels))
    assert box.confidence == pytest.approx(torch.sigmoid(torch.tensor(4.0)).item())
    centre, size, _ = box_of(mesh.vertices.double().numpy())
    assert np.allclose(centre, box.centre, atol=1e-3)
    assert np.allclose(size, box.size, atol=1e-3)
    assert np.array_equal(mesh.faces.numpy(), FACES)
    where = labels.grid.to_world(np.argwhere(labels.data[0].numpy() == 1)).mean(0)
    assert np.linalg.norm(where - box.centre) < 4
    numbers = {m.name: m for m in result.measurements}
    annulus = numbers["annulus_diameter_area"]
    assert annulus.unit == "mm"
    assert annulus.low < annulus.value < annulus.high  # type: ignore[operator]
    assert numbers["root_volume"].unit == "mL"
    assert numbers["annulus_area"].unit == "mm²"
    assert "not_detected" not in {flag.code for flag in result.flags}


def test_a_low_score_is_reported_as_no_valve_not_as_a_guess():
    task, _ = valve_task(score=-4.0)
    result = usvol.run(task, volume())
    assert [type(f) for f in result.findings] == [Labels]
    assert not result.findings[0].data.any()  # type: ignore[union-attr]
    assert "not_detected" in {flag.code for flag in result.flags}
    assert {m.note for m in result.measurements} == {"not detected"}
    assert all(m.value is None for m in result.measurements)


def test_a_vessel_without_cusps_is_no_valve():
    task, _ = valve_task(cusps=False)
    result = usvol.run(task, volume())
    assert not [f for f in result.findings if isinstance(f, Box | Surface)]
    (flag,) = (flag for flag in result.flags if flag.code == "not_detected")
    assert "no cusps" in flag.message


def test_a_valve_cut_by_the_edge_is_said_to_be_and_not_measured():
    task, _ = valve_task()
    scan = volume()
    near = dataclasses.replace(
        scan, data=scan.data[..., :44, :], grid=Grid((70, 44, 72), (1.0,) * 3, (-34.5, 0, -35.5))
    )
    result = usvol.run(task, near)
    # The stand-in finds it in the middle: make that too small for a valve.
    small = dataclasses.replace(
        scan, data=scan.data[..., :20, :], grid=Grid((70, 20, 72), (1.0,) * 3, (-34.5, 0, -35.5))
    )
    cut = usvol.run(task, small)
    assert "cut_by_sector_edge" not in {f.code for f in result.flags}
    assert "cut_by_sector_edge" in {f.code for f in cut.flags}
    assert not [f for f in cut.findings if isinstance(f, Surface)]
    assert {m.note for m in cut.measurements} == {"partly outside the field of view"}
    clip = dataclasses.replace(small, data=small.data.expand(2, -1, -1, -1, -1), times_s=(0.0, 0.1))
    assert not [f for f in usvol.run(task, clip).findings if isinstance(f, Curve)]


def test_without_a_scale_nothing_is_searched():
    task, calls = valve_task()
    result = usvol.run(task, volume(grid=Grid((70, 80, 72))))
    assert not calls
    assert {"not_searched", "uncalibrated"} <= {flag.code for flag in result.flags}
    assert [type(f) for f in result.findings] == [Labels]


def test_a_clip_is_followed_from_frame_to_frame_and_gives_a_curve():
    task, calls = valve_task()
    result = usvol.run(task, volume(frames=4))
    assert calls.count("position") == 1  # the search, in the first frame only
    curve = next(f for f in result.findings if isinstance(f, Curve))
    assert curve.frame_indices == (0, 1, 2, 3)
    assert curve.times_s == (0.0, 0.04, 0.08, 0.12)
    for kind in (Box, Surface):
        assert [f.frame_index for f in result.findings if isinstance(f, kind)] == [0, 1, 2, 3]
    labels = next(f for f in result.findings if isinstance(f, Labels))
    assert labels.data.flatten(1).any(1).tolist() == [True] * 4


@pytest.mark.parametrize("corner", [(-34.5, 0.0, -35.5), (0.0, 38.0, -80.0), (60.0, 0.0, 0.0)])
def test_the_labels_of_a_clip_are_the_cubes_wherever_they_reach_into_the_view(corner):
    scan = volume(frames=2, grid=Grid((70, 80, 72), (1.0, 1.0, 1.0), corner))
    pose = Poses(torch.tensor([CENTRE]), axis_turns([30.0]), torch.full((1, 3), 25.0))
    chances = torch.rand(2, SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    reading = Reading(0.9, Aligned(chances, pose, torch.zeros(1, 860, 3)), torch.zeros(860, 3), 1.0)
    (labels, *_) = findings_of({1: reading}, scan)
    assert isinstance(labels, Labels)
    seen = sample_on(evidence(chances)[None], cube_grid(pose, scan.grid.frame), target=scan.grid)[0]
    assert torch.equal(labels.data[1].long(), seen.argmax(0))
    assert bool(labels.data[1].any()) == (corner[0] < 60)
    assert not labels.data[0].any()


def test_places_are_the_maxima_of_the_heat_map_between_its_samples():
    source = levels(torch.zeros(3, 40, 40, 40), Grid((40, 40, 40), (1.0, 1.0, 1.0)))
    ticks = torch.arange(COARSE)
    heat = torch.zeros(COARSE, COARSE, COARSE)
    for centre in ((10.4, 12.0, 30.0), (25.0, 25.0, 8.0)):
        a, b, c = (torch.exp(-0.5 * ((ticks - p) / 1.2) ** 2) for p in centre)
        heat = heat + a[:, None, None] * b[:, None] * c
    found, chances = places(torch.logit(heat.clamp(1e-4, 1 - 1e-4)), source, count=2)
    middle = (COARSE - 1) / 2
    expected = source.middle + (torch.tensor([[25.0, 25.0, 8.0], [10.4, 12.0, 30.0]]) - middle) * COARSE_MM
    torch.testing.assert_close(found, expected, atol=1.0, rtol=0)
    assert chances[0] >= chances[1] > 0.5
    assert Effort().rounds > 1


def test_hypotheses_that_became_alike_are_followed_once_and_every_place_is_heard():
    def poses(offsets):
        count = len(offsets)
        return Poses(
            torch.tensor(offsets)[:, None] * torch.ones(3),
            torch.eye(3).repeat(count, 1, 1),
            torch.full((count, 3), 20.0),
        )

    scores = torch.tensor([0.5, 0.9, 0.8, 0.7])
    kept = distinct(poses([0.0, 30.0, 31.0, 60.0]), scores, count=2)
    assert kept.centre[:, 0].tolist() == [30.0, 60.0]
    source = levels(torch.zeros(3, 40, 40, 40), Grid((40, 40, 40), (1.0, 1.0, 1.0)))

    def first_is_likeliest(patches):
        answers = torch.zeros(len(patches), 13)
        answers[:, 12] = -torch.arange(len(patches)).float()
        return answers

    centres = torch.tensor([[5.0, 5.0, 5.0], [30.0, 30.0, 30.0]])
    tried = orientations({"orientation": first_is_likeliest}, source, centres=centres, each=2)
    assert tried.centre[:, 0].tolist() == [5.0, 5.0, 30.0, 30.0]
