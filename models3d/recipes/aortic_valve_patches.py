"""Poses of a box, and patches of a volume in their frames: what all networks of ``aortic_valve`` look at.

Triples are (z, y, x) world coordinates in mm. A pose has a centre, a rotation whose columns are the box's own
axes, and its full size along them; the samples of a patch run along these axes in this order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models3d.nets.marginal_space import rotations
from models3d.recipes.working_volume import working
from usvol.resampling import sample_at
from usvol.scan import Grid, Scan

SPACING_MM = 1.0  # of the working volume
LONGEST = 192  # samples along its longest side at most
PATCH = 24  # samples along the side of what the pose is read off
COARSE = 64  # samples along the side of the cube the position is searched in
COARSE_MM = 2.5  # their distance; 160 mm is deeper than a transoesophageal volume mostly is
NEAR_SIDE, NEAR_MM = 16, 3.4  # samples along the side of the cube around a position, and their distance
ROOM = 2.0  # side of the patch a pose is read off, over the geometric mean of the box's sides
SIDE = 48  # samples along the side of the aligned cube
MARGIN = 1.35  # side of the aligned cube over the longest side of the box
OFFSET_MM, OFFSET_SHARE, GROWTH = 10.0, 0.3, 0.3  # what one unit of a network's answer means
_POOLED = (1, 2, 4)
_SIGNS = torch.tensor([[a, b, c] for a in (-1.0, 1) for b in (-1.0, 1) for c in (-1.0, 1)])


@dataclass(frozen=True, slots=True, eq=False)
class Poses:
    """Boxes: ``centre`` (n, 3) mm, ``rotation`` (n, 3, 3), ``size`` (n, 3) mm."""

    centre: Tensor
    rotation: Tensor
    size: Tensor

    def __len__(self) -> int:
        return len(self.centre)

    def __getitem__(self, chosen: Tensor | slice | list[int]) -> Poses:
        return Poses(self.centre[chosen], self.rotation[chosen], self.size[chosen])

    @property
    def scale(self) -> Tensor:
        """Geometric mean of the sides (n,) in mm."""
        return self.size.log().mean(-1).exp()


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """A working volume ``channel z y x`` averaged over 1, 2 and 4 samples, and where it lies."""

    volumes: tuple[Tensor, ...]
    grid: Grid

    @property
    def middle(self) -> Tensor:
        """World position of the middle of the volume."""
        return torch.from_numpy(self.grid.to_world((np.asarray(self.grid.shape) - 1) / 2)).float()


def working_mm(scan: Scan) -> Scan:
    """Resize a canonical, calibrated volume to samples of about 1 mm, as float32, with a convex sector."""
    extent = max(n * s for n, s in zip(scan.grid.shape, scan.grid.step, strict=True))
    return working(scan, side=int(np.clip(round(extent / SPACING_MM), 16, LONGEST)))


def levels(channels: Tensor, grid: Grid) -> Levels:
    """Average ``channel z y x`` over blocks, so that coarse patches do not alias."""
    return Levels(
        tuple(channels if n == 1 else F.avg_pool3d(channels, n, ceil_mode=True) for n in _POOLED), grid
    )


def look(source: Levels, poses: Poses, *, step_mm: Tensor, count: int, fine: bool = False) -> Tensor:
    """Sample cubes of ``count`` samples, ``step_mm`` (n,) apart, in the frames of poses: ``n channel a b c``.

    ``fine`` takes the full resolution, whatever the step. Outside the volume: 0.
    """
    level = (
        0
        if fine
        else max(k for k, n in enumerate(_POOLED) if k == 0 or n * SPACING_MM <= float(step_mm.min()))
    )
    ticks = torch.arange(count) - (count - 1) / 2
    local = torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), -1).reshape(-1, 3)
    to_index = torch.from_numpy(np.linalg.inv(source.grid.affine)).float()
    frames = to_index[:3, :3] @ poses.rotation * step_mm[:, None, None]
    start = poses.centre @ to_index[:3, :3].T + to_index[:3, 3]
    index = local @ frames.transpose(1, 2) + start[:, None]
    pool = _POOLED[level]
    index = (index - (pool - 1) / 2) / pool
    volume = source.volumes[level]
    sampled = sample_at(volume, index.reshape(len(poses) * count, count, count, 3))
    return sampled.reshape(len(volume), len(poses), count, count, count).transpose(0, 1)


def coarse_step(grid: Grid) -> float:
    """Distance (mm) of the samples the position is searched at: more than usual where a volume is larger."""
    longest = max(n * s for n, s in zip(grid.shape, grid.step, strict=True))
    return max(COARSE_MM, longest / COARSE)


def corners(poses: Poses) -> Tensor:
    """Return the corners (n, 8, 3) of boxes, mm."""
    local = _SIGNS * poses.size[:, None] / 2
    return poses.centre[:, None] + local @ poses.rotation.transpose(1, 2)


def corner_distance(first: Poses, second: Poses) -> Tensor:
    """Return the mean distance (n,) in mm of the corners of two boxes, each to its own (Ghesu et al.)."""
    return (corners(first) - corners(second)).norm(dim=-1).mean(-1)


def turned(poses: Poses, answers: Tensor) -> Poses:
    """Apply the answers (n, 13) of the orientation network: new centre and rotation, and a size."""
    rotation = poses.rotation @ rotations(answers[:, :6])
    move = (poses.rotation @ (answers[:, 6:9] * OFFSET_MM)[..., None])[..., 0]
    return Poses(poses.centre + move, rotation, poses.size * (GROWTH * answers[:, 9:12]).clamp(-1, 1).exp())


def corrected(poses: Poses, answers: Tensor) -> Poses:
    """Apply the answers (n, 13) of the pose network, which counts in scales of the hypothesis."""
    rotation = poses.rotation @ rotations(answers[:, :6])
    local = answers[:, 6:9] * OFFSET_SHARE * poses.scale[:, None]
    move = (poses.rotation @ local[..., None])[..., 0]
    return Poses(poses.centre + move, rotation, poses.size * (GROWTH * answers[:, 9:12]).clamp(-1, 1).exp())


def joined(poses: Sequence[Poses]) -> Poses:
    """Concatenate poses."""
    return Poses(*(torch.cat([getattr(p, name) for p in poses]) for name in ("centre", "rotation", "size")))


def mean_pose(poses: Poses, weights: Tensor) -> Poses:
    """Return the weighted mean of poses, as one; the rotation is the closest to the mean matrix (by SVD)."""
    share = weights / weights.sum()
    left, _, right = torch.linalg.svd((poses.rotation * share[:, None, None]).sum(0))
    turn = torch.diag(torch.tensor([1.0, 1.0, float(torch.sign(torch.det(left @ right)))]))
    return Poses(
        (poses.centre * share[:, None]).sum(0)[None],
        (left @ turn @ right)[None],
        (poses.size.log() * share[:, None]).sum(0).exp()[None],
    )


def axis_turns(angles_deg: Sequence[float]) -> Tensor:
    """Return rotations (n, 3, 3) about the first axis."""
    made = torch.eye(3).repeat(len(angles_deg), 1, 1)
    for matrix, angle in zip(made, angles_deg, strict=True):
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        matrix[1:, 1:] = torch.tensor([[c, -s], [s, c]])
    return made


def random_rotations(count: int) -> Tensor:
    """Draw rotations (n, 3, 3), all equally likely (unit quaternions, Shoemake 1992)."""
    w, x, y, z = F.normalize(torch.randn(count, 4), dim=1).unbind(1)
    rows = (
        *(1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        *(2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        *(2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack(rows, 1).reshape(count, 3, 3)


def small_rotations(angles_deg: Tensor) -> Tensor:
    """Draw rotations (n, 3, 3) by normally distributed angles of deviation ``angles_deg`` (n,) per axis."""
    return _turned_about(torch.randn(len(angles_deg), 3) * torch.deg2rad(angles_deg)[:, None])


def rotations_within(limits_deg: Tensor) -> Tensor:
    """Draw rotations (n, 3, 3) about any axis by angles up to ``limits_deg`` (n,), all equally likely."""
    axes = F.normalize(torch.randn(len(limits_deg), 3), dim=1)
    return _turned_about(axes * (torch.deg2rad(limits_deg) * torch.rand(len(limits_deg)))[:, None])


def angle_deg(rotation: Tensor) -> Tensor:
    """Return the angle (…) of rotations ``… 3 3``."""
    cosine = (rotation.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))


def _turned_about(vectors: Tensor) -> Tensor:
    a, b, c = vectors.unbind(1)
    zero = torch.zeros_like(a)
    skew = torch.stack([zero, -c, b, c, zero, -a, -b, a, zero], 1).reshape(-1, 3, 3)
    return torch.linalg.matrix_exp(skew)
