from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models3d.recipes.aortic_valve_patches import (
    PATCH,
    ROOM,
    Poses,
    axis_turns,
    coarse_step,
    corner_distance,
    corners,
    corrected,
    joined,
    levels,
    look,
    mean_pose,
    random_rotations,
    small_rotations,
    turned,
    working_mm,
)
from models3d.tasks import _aortic_mesh as mesh
from usvol.canonical import canonicalise
from usvol.scan import Grid, Scan

GRID = Grid((40, 44, 48), (1.0, 1.1, 0.9), (-20.0, 5.0, -21.0))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def ramp(grid=GRID):
    """World coordinates as channels, so that what is sampled says where."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    return levels(torch.from_numpy(np.moveaxis(grid.to_world(index), -1, 0)).float(), grid)


def some_poses(count=5):
    middle = ramp().middle
    return Poses(
        middle + torch.randn(count, 3),
        random_rotations(count),
        torch.tensor([[18.0, 30, 32]]).repeat(count, 1),
    )


@pytest.mark.parametrize("step_mm", [0.4, 1.0, 2.2])
def test_a_patch_is_sampled_in_the_frame_of_its_pose(step_mm):
    poses = some_poses(3)
    seen = look(ramp(), poses, step_mm=torch.full((3,), step_mm), count=5)
    ticks = (torch.arange(5) - 2.0) * step_mm
    local = torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), -1)
    for k in range(3):
        expected = local @ poses.rotation[k].T + poses.centre[k]
        torch.testing.assert_close(seen[k].movedim(0, -1), expected, atol=1e-3, rtol=0)


def test_outside_the_volume_there_is_nothing():
    pose = Poses(torch.tensor([[500.0, 0, 0]]), torch.eye(3)[None], torch.ones(1, 3))
    assert not look(ramp(), pose, step_mm=torch.ones(1), count=4).any()


def test_corners_are_those_of_the_mesh_module():
    pose = some_poses(1)
    expected = mesh.corners(pose.centre[0].numpy(), pose.size[0].numpy(), rotation=pose.rotation[0].numpy())
    assert np.allclose(corners(pose)[0].numpy(), expected, atol=1e-4)


def test_corner_distance_of_a_shift_is_the_shift_and_of_a_half_turn_the_diagonal():
    pose = some_poses(1)
    moved = Poses(pose.centre + torch.tensor([[3.0, 4.0, 0]]), pose.rotation, pose.size)
    assert float(corner_distance(pose, moved)) == pytest.approx(5, abs=1e-4)
    half = Poses(pose.centre, pose.rotation @ axis_turns([180.0]), pose.size)
    assert float(corner_distance(pose, half)) == pytest.approx(math.hypot(30, 32), abs=1e-3)


def test_right_answers_correct_a_pose_wholly():
    truth, guess = some_poses(6), some_poses(6)
    back = guess.rotation.transpose(1, 2)
    rotation = (back @ truth.rotation)[:, :, :2].transpose(1, 2).flatten(1) - torch.tensor(
        [1.0, 0, 0, 0, 1, 0]
    )
    move = (back @ (truth.centre - guess.centre)[..., None])[..., 0]
    growth = (truth.size / guess.size).log() / 0.3
    score = torch.zeros(6, 1)
    answers = torch.cat([rotation, move / (0.3 * guess.scale[:, None]), growth, score], 1)
    assert float(corner_distance(corrected(guess, answers), truth).max()) < 1e-3
    answers = torch.cat([rotation, move / 10, growth, score], 1)
    assert float(corner_distance(turned(guess, answers), truth).max()) < 1e-3


def test_the_mean_of_poses_about_one_is_that_one():
    pose = some_poses(1)
    many = Poses(
        pose.centre + 0.5 * torch.randn(400, 3),
        pose.rotation @ small_rotations(torch.full((400,), 8.0)),
        pose.size * torch.exp(0.05 * torch.randn(400, 3)),
    )
    mean = mean_pose(joined([many, many[:3]]), torch.ones(403))
    assert float(corner_distance(mean, pose)) < 0.5
    assert float(torch.det(mean.rotation[0])) == pytest.approx(1, abs=1e-5)


def test_random_rotations_point_everywhere():
    made = random_rotations(4000)
    assert float(made.mean(0).abs().max()) < 0.05
    torch.testing.assert_close(torch.linalg.det(made), torch.ones(4000), atol=1e-4, rtol=0)


def test_a_turn_about_the_axis_keeps_the_axis():
    turn = axis_turns([120.0, -120.0])
    assert torch.equal(turn[:, :, 0], torch.tensor([[1.0, 0, 0]] * 2))
    torch.testing.assert_close(turn[0] @ turn[1], torch.eye(3))
    # From second towards third, as azimuth is counted.
    assert float(turn[0][2, 1]) > 0


def test_the_working_volume_has_millimetres_and_the_coarse_one_holds_it_all():
    rng = np.random.default_rng(0)
    data = torch.from_numpy(rng.integers(1, 255, (1, 1, 30, 60, 60), dtype=np.uint8))
    small = working_mm(canonicalise(Scan(data, Grid((30, 60, 60), (2.0, 1.5, 0.8)))))
    assert np.allclose(small.grid.step, 1.0, atol=0.05)
    assert coarse_step(small.grid) == 2.5
    assert coarse_step(Grid((10, 10, 320), (1.0, 1.0, 1.0))) == 5
    assert PATCH * ROOM == 48
