"""From a volume to the pose of its head: find it, read its pose from several sides, refine.

Everything lies in the index space of an isotropic volume. The answer is a ``Pose``; there is none where no
head is found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from skimage import measure
from torch import Tensor

from models3d.nets.head_pose import frame_of
from models3d.recipes._midsagittal_examples import COARSE_REACH, FINE_REACH, Cube, View, cut
from models3d.recipes.midsagittal_plane import Settings
from models3d.recipes.working_volume import network_input
from usvol.runtime import Network

_FLIP = torch.tensor([1.0, -1.0, 1.0])  # left and right of a head's own axes
_LIKE_DEG = 35.0  # within which two answers are one
_LEAST_MASS = 3e-4  # part of the finder's cube that a head fills at least


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
        aligned: chance that the axes are right within 30°; None before the fine reader has looked.
    """

    centre: Tensor
    radii: Tensor
    frame: Tensor
    present: float
    aligned: float | None = None


def found_sphere(view: View, readers: Readers) -> tuple[Tensor, float, float] | None:
    """Return centre and mean radius (samples) of the likeliest head, and the finder's chance; or None.

    Four turns of the view are averaged; the largest connected part above one half is taken.
    """
    size = torch.tensor(view.grey.shape, dtype=torch.float32)
    half, side = float(size.max()) / 2 * 1.02, readers.settings.view
    cube = Cube((size - 1) / 2, half, torch.eye(3))
    grey, mask = cut(view, cube, side=side)
    whole = network_input(grey, mask)[None]
    turned = [whole, whole.flip(2, 4), whole.flip(3), whole.transpose(2, 4)]
    logits = torch.cat([readers.finder(v.contiguous()) for v in turned]).float().cpu()
    back = (logits[0], logits[1].flip(0, 2), logits[2].flip(1), logits[3].transpose(0, 2))
    chance = torch.sigmoid(torch.stack(tuple(back)).mean(0)).numpy()
    parts = np.asarray(measure.label(chance > 0.5, connectivity=1))
    count = int(parts.max())
    if not count:
        return None
    mass = ndimage.sum_labels(chance, parts, np.arange(1, count + 1))
    inside = parts == 1 + int(np.argmax(mass))
    if inside.mean() < _LEAST_MASS:
        return None
    step = 2 * half / chance.shape[0]
    place = np.argwhere(inside).T @ chance[inside] / chance[inside].sum()
    centre = cube.centre + torch.from_numpy(place).float() * step - half + step / 2
    radius = float(np.cbrt(inside.sum() * 3 / (4 * np.pi))) * step
    return centre, radius, float(chance[inside].mean())


def read_from(
    view: View, readers: Readers, *, centre: Tensor, radius: float, starts: Sequence[Tensor]
) -> list[Pose]:
    """Return the coarse reader's answer for cubes of each turn in ``starts``."""
    cubes = [Cube(centre, COARSE_REACH * radius, axes) for axes in starts]
    numbers = readers.coarse(_inputs(view, cubes, readers.settings.patch)).float().cpu()
    return [_pose(n, c, reach=COARSE_REACH) for n, c in zip(numbers, cubes, strict=True)]


def refined(view: View, readers: Readers, *, pose: Pose, steps: int) -> Pose:
    """Let the fine reader correct a pose ``steps`` times; each time it also sees the mirror image.

    The answer for the mirrored cube, mirrored back, is averaged with the other: a plane of symmetry is then
    found without a bias to either side.
    """
    for _ in range(steps):
        half = FINE_REACH * float(pose.radii.mean())
        cubes = [Cube(pose.centre, half, pose.frame), Cube(pose.centre, half, pose.frame * _FLIP)]
        numbers = readers.fine(_inputs(view, cubes, readers.settings.patch)).float().cpu()
        for start in (0, 3, 6):
            numbers[1, start : start + 3] *= _FLIP
        mean = numbers.mean(0)
        now = _pose(mean, cubes[0], reach=FINE_REACH)
        pose = dataclasses.replace(now, aligned=float(torch.sigmoid(mean[13])))
    return pose


def starting_turns(count: int) -> list[Tensor]:
    """Return rotations (3, 3) spread over all orientations, the same every time; the first is none."""
    turns = Rotation.random(count, rng=np.random.default_rng(11)).as_matrix()
    turns[0] = np.eye(3)
    return [torch.from_numpy(t).float() for t in turns]


def gathered(poses: Sequence[Pose]) -> list[Pose]:
    """Return one pose per group of like answers, the best supported first, with common place and size."""
    centre = torch.stack([p.centre for p in poses]).median(0).values
    radii = torch.stack([p.radii for p in poses]).median(0).values
    present = float(np.mean([p.present for p in poses]))
    left = list(range(len(poses)))
    apart = np.array([[turn_deg(a.frame, b.frame) for b in poses] for a in poses])
    groups: list[tuple[int, Pose]] = []
    while left:
        support = {i: [j for j in left if apart[i, j] < _LIKE_DEG] for i in left}
        best = max(left, key=lambda i: (len(support[i]), -apart[i, support[i]].sum()))
        members = support[best]
        frame = mean_frame([poses[i].frame for i in members])
        groups.append((len(members), Pose(centre, radii, frame, present)))
        left = [i for i in left if i not in members]
    return [pose for _, pose in sorted(groups, key=lambda g: -g[0])]


def turn_deg(a: Tensor, b: Tensor) -> float:
    """Return the angle of the rotation between two frames."""
    cosine = ((a.T @ b).trace() - 1) / 2
    return float(torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))))


def mean_frame(frames: Sequence[Tensor]) -> Tensor:
    """Return the frame nearest to the average of several (all of the same handedness)."""
    u, _, v = torch.linalg.svd(torch.stack(list(frames)).mean(0))
    return u @ v


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
    )
