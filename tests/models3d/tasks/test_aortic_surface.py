from __future__ import annotations

import numpy as np
import pytest
import torch

from models3d.phantoms._aortic_geometry import drawn_root, mesh_points
from models3d.recipes.aortic_valve import aligned_step
from models3d.recipes.aortic_valve_patches import SIDE, Poses, corner_distance, levels, random_rotations
from models3d.tasks import _aortic_shape as shape
from models3d.tasks._aortic_mesh import N_WALL, box_of, mesh_distance_mm, normals
from models3d.tasks._aortic_surface import Aligned, at_boundaries, cube_grid, fitted, nearby, read
from usvol.scan import Frame, Grid


@pytest.fixture(scope="module")
def meshes():
    rng = np.random.default_rng(0)
    return torch.stack(
        [
            torch.from_numpy(mesh_points(drawn_root(rng, cusps=3, calcified=False), opened=0.0)).float()
            for _ in range(12)
        ]
    )


@pytest.fixture(scope="module")
def aligned(meshes):
    """The first mesh with what a perfect network would see of it: inside the wall 1, outside 0."""
    from scipy.spatial import cKDTree

    vertices = meshes[0]
    centre, size, rotation = box_of(vertices.double().numpy())
    pose = Poses(*(torch.from_numpy(v).float()[None] for v in (centre, rotation, size)))
    grid = cube_grid(pose, Frame.PROBE)
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    points = grid.to_world(index).reshape(-1, 3)
    wall = vertices[:N_WALL].double().numpy()
    distance, nearest = cKDTree(wall).query(points)
    outward = normals(vertices.double().numpy())[:N_WALL][nearest]
    depth = ((wall[nearest] - points) * outward).sum(1)
    chance = torch.from_numpy(np.clip(0.5 + depth / 2, 0, 1)).float().reshape(grid.shape)
    assert distance.max() > 3
    return Aligned(torch.stack([chance, torch.zeros_like(chance)]), pose, vertices[None])


def test_the_grid_of_a_cube_lies_as_its_pose(aligned):
    grid = cube_grid(aligned.pose, Frame.PROBE)
    middle = grid.to_world(np.full(3, (SIDE - 1) / 2))
    assert np.allclose(middle, aligned.pose.centre[0].numpy(), atol=1e-4)
    along = grid.to_world(np.array([1.0, 0, 0])) - grid.to_world(np.zeros(3))
    step = float(aligned_step(aligned.pose)[0])
    assert np.allclose(along, step * aligned.pose.rotation[0, :, 0].numpy(), atol=1e-4)


def test_a_wall_that_is_off_goes_back_to_the_boundary_seen(aligned):
    true = aligned.meshes[0]
    normal = torch.from_numpy(normals(true.double().numpy())).float()
    inner = slice(48, N_WALL - 48)  # rims see the ends of the root as well
    off = true + 1.5 * normal
    moved, weights = at_boundaries(off, aligned)
    before = (off - true)[inner].norm(dim=1).mean()
    after = ((moved - true)[inner] * normal[inner]).sum(1).abs().mean()
    assert float(after) < 0.4 < 1.4 < float(before)
    assert float(weights[inner].mean()) > 0.9
    assert float(weights[N_WALL + 2 :].max()) < 0.5  # no cusp was seen anywhere


def test_the_shape_model_brings_back_what_was_scattered(aligned, meshes):
    model = shape.fit(meshes, modes=8)
    true = aligned.meshes[0]
    torch.manual_seed(0)
    scattered = Aligned(aligned.chances, aligned.pose, (true + 0.8 * torch.randn_like(true))[None])
    distance = [
        mesh_distance_mm(m.double().numpy(), true.double().numpy())
        for m in (scattered.meshes[0], fitted(scattered, model))
    ]
    assert distance[1] < 0.6 * distance[0]


def test_repeated_looks_start_from_poses_around_and_are_the_same_each_time():
    pose = Poses(torch.zeros(1, 3), random_rotations(1), torch.tensor([[20.0, 30, 30]]))
    poses = nearby(pose, count=4)
    again = nearby(pose, count=4)
    assert len(poses) == 5
    assert torch.equal(poses.centre, again.centre)
    assert torch.equal(poses[[0]].centre, pose.centre)
    torch.testing.assert_close(poses.centre[2] + poses.centre[1], torch.zeros(3))
    distance = corner_distance(poses, pose[[0] * 5])
    assert 0 < float(distance[1:].min()) < float(distance.max()) < 10
    assert len(nearby(pose, count=0)) == 1


def test_points_read_in_cubes_come_back_to_the_world():
    """A network that always answers the middle of its cube."""
    grid = Grid((30, 30, 30), (1.0, 1.0, 1.0))
    pose = Poses(torch.full((1, 3), 15.0), random_rotations(1), torch.full((1, 3), 20.0))

    def network(cubes):
        return torch.zeros(len(cubes), 2, *cubes.shape[2:]), torch.zeros(len(cubes), 860, 3)

    found = read(network, levels(torch.rand(3, 30, 30, 30), grid), pose=pose, repeats=2)
    centres = nearby(pose, count=2).centre
    torch.testing.assert_close(found.meshes, centres[:, None].expand(3, 860, 3))
    assert found.chances.shape == (2, SIDE, SIDE, SIDE)
