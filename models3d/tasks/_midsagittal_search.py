"""From a volume to the pose of its head: find it, try sixty orientations, refine the likeliest.

Everything lies in the index space of an isotropic volume. The answer is a ``Pose``; there is none where no
head is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models3d.nets.head_pose import frame_of
from models3d.recipes._midsagittal_examples import COARSE_REACH, FINE_REACH, Cube, View, cut
from models3d.recipes._midsagittal_finding import Sphere, spheres
from models3d.recipes.midsagittal_plane import PERHAPS, Settings
from models3d.recipes.working_volume import network_input
from models3d.tasks._orientations import sixty_turns
from usvol.runtime import Network

_FLIP = torch.tensor([1.0, -1.0, 1.0])  # left and right of a head's own axes
_LEVELS = (0.5, PERHAPS)  # chances from which a sample counts as one of a head
_LIKE_DEG = 15.0  # within which two answers are one


@dataclass(frozen=True, slots=True, eq=False)
class Readers:
    """The three networks, ready to run, and what they expect."""

    finder: Network
    coarse: Network
    fine: Network
    settings: Settings


@dataclass(frozen=True, slots=True, eq=False)
class Pose:
    """A head: centre and half axes (forward, left, up) in samples, axes as columns, and two chances.

    Attributes:
        present: chance that this is a head.
        aligned: chance that the cube it was read from had the head's axes (within 12°; coarse: 30°).
    """

    centre: Tensor
    radii: Tensor
    frame: Tensor
    present: float
    aligned: float = 0.0


def found_sphere(view: View, readers: Readers) -> Sphere | None:
    """Return the likeliest head, a faint one where there is no other; None where there is none."""
    for least in _LEVELS:
        found = spheres(view, readers.finder, side=readers.settings.view, least=least)
        if found:
            return found[0]
    return None


def scanned(view: View, readers: Readers, *, centre: Tensor, radius: float) -> list[Pose]:
    """Return the coarse reader's answers for cubes in sixty orientations, the best aligned first."""
    cubes = [Cube(centre, COARSE_REACH * radius, axes) for axes in sixty_turns()]
    numbers = readers.coarse(_inputs(view, cubes, readers.settings.sides[0])).float().cpu()
    poses = [_pose(n, c, reach=COARSE_REACH) for n, c in zip(numbers, cubes, strict=True)]
    return sorted(poses, key=lambda p: -p.aligned)


def refined(view: View, readers: Readers, *, pose: Pose, steps: int, near: bool) -> Pose:
    """Let the fine reader (``near``) or the coarse one correct a pose ``steps`` times.

    Each time it also sees the mirror image: its answer, mirrored back, is averaged with the other, so a plane
    of symmetry is found without a bias to either side.
    """
    reader, reach = (readers.fine, FINE_REACH) if near else (readers.coarse, COARSE_REACH)
    for _ in range(steps):
        half = reach * float(pose.radii.mean())
        cubes = [Cube(pose.centre, half, pose.frame), Cube(pose.centre, half, pose.frame * _FLIP)]
        numbers = reader(_inputs(view, cubes, readers.settings.sides[near])).float().cpu()
        mirrored = numbers[1].clone()
        for start in (0, 3, 6):
            mirrored[start : start + 3] *= _FLIP
        pose = _pose((numbers[0] + mirrored) / 2, cubes[0], reach=reach)
    return pose


def distinct(poses: Sequence[Pose]) -> list[Pose]:
    """Return the poses without those like an earlier one."""
    kept: list[Pose] = []
    for pose in poses:
        if all(turn_deg(pose.frame, other.frame) > _LIKE_DEG for other in kept):
            kept.append(pose)
    return kept


def turn_deg(a: Tensor, b: Tensor) -> float:
    """Return the angle of the rotation between two frames."""
    cosine = ((a.T @ b).trace() - 1) / 2
    return float(torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))))


def _inputs(view: View, cubes: Sequence[Cube], side: int) -> Tensor:
    return torch.stack([network_input(*cut(view, cube, side=side)) for cube in cubes])


def _pose(numbers: Tensor, cube: Cube, *, reach: float) -> Pose:
    frame = frame_of(numbers[None])[0]
    forward, up = cube.axes @ frame[:, 0], cube.axes @ frame[:, 2]
    return Pose(
        cube.centre + cube.axes @ numbers[6:9] * cube.half,
        torch.exp(numbers[9:12].clamp(-1.5, 1.5)) * cube.half / reach,
        torch.stack([forward, torch.linalg.cross(forward, up), up], 1),
        float(torch.sigmoid(numbers[12])),
        float(torch.sigmoid(numbers[13])),
    )
