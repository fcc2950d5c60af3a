"""From an aligned cube to labels and a mesh: boundaries along normals, held to what roots look like.

An active shape model (Cootes et al. 1995) as in Ghesu et al. (IEEE TMI 35:1217, 2016): every vertex of an
initial mesh looks along its normal for the boundary that the network sees there, moves, and the whole is
projected on the shape model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models3d.recipes.aortic_valve import aligned_step
from models3d.recipes.aortic_valve_patches import SIDE, Levels, Poses, look, small_rotations
from models3d.tasks import _aortic_shape as shape
from models3d.tasks._aortic_mesh import N_WALL, normals
from models3d.tasks._aortic_shape import ShapeModel
from usvol.resampling import sample_at
from usvol.scan import Frame, Grid

REACH_MM = 3.5  # to either side of a vertex, along its normal
_STEP_MM = 0.25
_CUSP_REACH_MM = 2.5
_CUSP_SAMPLES = 300  # of a cube that show cusps at least: the smallest cusps fill three times as many
_LEAST = 0.15  # evidence of a cusp that is worth moving for
_UNSEEN = 0.2  # weight, in the shape model, of a vertex that found no boundary
_SPREAD_MM, _SPREAD_DEG, _SPREAD_GROWTH = 1.2, 4.0, 0.04  # of the poses that repeated answers start from


@dataclass(frozen=True, slots=True, eq=False)
class Aligned:
    """What the network says of one cube, and of others a little off.

    Attributes:
        chances: of the root's blood and of cusps ``2 a b c``.
        pose: of the cube, one.
        meshes: the points read from each look ``k 860 3``, mm; the first from this cube.
    """

    chances: Tensor
    pose: Poses
    meshes: Tensor


def read(
    network: Callable[[Tensor], tuple[Tensor, Tensor]], source: Levels, *, pose: Poses, repeats: int
) -> Aligned:
    """Look into the cube at ``pose``, and into ``repeats`` others moved, turned and scaled a little."""
    poses = nearby(pose, count=repeats)
    step = aligned_step(poses)
    logits, points = network(look(source, poses, step_mm=step, count=SIDE, fine=True))
    half = (step * SIDE / 2)[:, None, None]
    meshes = (points.float() * half) @ poses.rotation.transpose(1, 2) + poses.centre[:, None]
    return Aligned(torch.sigmoid(logits[0].float()), pose, meshes)


def cusps_seen(chances: Tensor) -> float:
    """Return how sure the network is of the samples it would most likely call cusp in a cube ``2 a b c``."""
    return float(chances[1].flatten().topk(_CUSP_SAMPLES).values.mean())


def nearby(pose: Poses, *, count: int) -> Poses:
    """Return the pose and ``count`` others, always the same, in pairs to either side."""
    if not count:
        return pose
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        move = _SPREAD_MM * torch.randn(count, 3)
        turn = small_rotations(torch.full((count,), _SPREAD_DEG))
        growth = torch.exp(_SPREAD_GROWTH * torch.randn(count, 1))
    odd = torch.arange(count) % 2 == 1
    move[odd] = -move[torch.nonzero(odd)[:, 0] - 1]
    return Poses(
        torch.cat([pose.centre, pose.centre + move]),
        torch.cat([pose.rotation, pose.rotation @ turn]),
        torch.cat([pose.size, pose.size * growth]),
    )


def cube_grid(pose: Poses, frame: Frame) -> Grid:
    """Return the grid of the aligned cube: turned, isotropic."""
    step = float(aligned_step(pose)[0])
    rotation = pose.rotation[0].double().numpy()
    corner = pose.centre[0].double().numpy() - rotation @ np.full(3, (SIDE - 1) / 2 * step)
    z, y, x = (float(v) for v in corner)
    direction = tuple(tuple(float(v) for v in line) for line in rotation)
    return Grid((SIDE, SIDE, SIDE), (step, step, step), (z, y, x), direction, frame)  # type: ignore[arg-type]


def fitted(aligned: Aligned, model: ShapeModel, *, limit: float = 3.0) -> Tensor:
    """Return the mesh ``860 3`` (mm): the mean answer, moved to the boundaries seen, held by the model."""
    start = aligned.meshes.mean(0)
    moved, weights = at_boundaries(start, aligned)
    return shape.project(model, moved, limit=limit, weights=weights)


def at_boundaries(mesh: Tensor, aligned: Aligned) -> tuple[Tensor, Tensor]:
    """Move each vertex along its normal to the boundary seen there; and how far each is to be trusted.

    The wall goes to where the chance of the root's blood falls through one half, the cusps to the middle of
    what is cusp; caps and vertices that see no boundary stay.
    """
    normal = torch.from_numpy(normals(mesh.double().numpy())).float()
    offsets = torch.arange(-REACH_MM, REACH_MM + _STEP_MM / 2, _STEP_MM)
    seen = _along(mesh, normal, aligned, offsets=offsets)
    shift = torch.zeros(len(mesh))
    weights = torch.full((len(mesh),), _UNSEEN)
    wall = slice(0, N_WALL)
    shift[wall], found = _crossing(seen[0, wall], offsets)
    weights[wall] = torch.where(found, 1.0, _UNSEEN)
    cusps = slice(N_WALL + 2, None)
    near = offsets.abs() <= _CUSP_REACH_MM
    weight = seen[1, cusps] * near
    total = weight.sum(1)
    clear = weight.amax(1) > _LEAST
    shift[cusps] = torch.where(clear, (weight * offsets).sum(1) / total.clamp_min(1e-6), 0.0)
    weights[cusps] = torch.where(clear, 1.0, _UNSEEN)
    return mesh + shift[:, None] * normal, weights


def _along(mesh: Tensor, normal: Tensor, aligned: Aligned, *, offsets: Tensor) -> Tensor:
    """Sample the chances along normals: ``2 vertex offset``."""
    points = mesh[:, None] + offsets[:, None] * normal[:, None]
    step = float(aligned_step(aligned.pose)[0])
    local = (points - aligned.pose.centre[0]) @ aligned.pose.rotation[0]
    index = local / step + (SIDE - 1) / 2
    return sample_at(aligned.chances, index[None])[:, 0]


def _crossing(chance: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Find where a profile ``vertex offset`` falls through one half nearest to 0; and whether it does."""
    high, low = chance[:, :-1], chance[:, 1:]
    falls = (high >= 0.5) & (low < 0.5)
    place = offsets[:-1] + (high - 0.5) / (high - low).clamp_min(1e-6) * _STEP_MM
    distance = torch.where(falls, place.abs(), torch.inf)
    best = distance.argmin(1, keepdim=True)
    found = falls.any(1)
    return torch.where(found, place.gather(1, best)[:, 0], 0.0), found
