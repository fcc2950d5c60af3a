"""Cut cubes out of a volume at any place, size and turn, and say where the head lies in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models3d.recipes.working_volume import network_input
from usvol.training.volume_augmentation import vary_picture

# Half a cube's side in mean radii of the skull: the coarse reader sees face and nape, the fine one the head.
COARSE_REACH, FINE_REACH = 1.6, 1.35
# Largest turn from which each reader corrects; the turn within which a cube counts as aligned. Sixty turns
# spread as those of an icosahedron leave no orientation farther than 45° from the nearest.
_TURN_DEG, _ALIGNED_DEG = {False: 60.0, True: 22.0}, {False: 30.0, True: 12.0}
_SPREAD = {False: 0.2, True: 0.1}  # of a cube's middle about the head's, in its radii (normal)
_WRONG = 0.3  # of the cubes of a head are turned by more, so that readers learn to tell
_AWAY = 0.1  # of the cubes of a volume with a head show something else
_ALIKE = 0.75  # of the cubes without a head show what looks like one
_SECTOR_UNKNOWN = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A volume and its head in index space (z, y, x; isotropic samples).

    Attributes:
        grey: 0-1 ``z y x``, or uint8; mask: where there is a picture.
        centre, radii: of the skull; frame: columns forward, left, up. None without a head.
        coarser: by side of the blocks averaged (2-4), grey and mask ``2 z y x``; made by ``pyramid``.
    """

    grey: Tensor
    mask: Tensor
    centre: Tensor | None = None
    radii: Tensor | None = None
    frame: Tensor | None = None
    coarser: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Cube:
    """Where to cut: middle and half side in samples, and the directions of the cube's axes as columns."""

    centre: Tensor
    half: float
    axes: Tensor


def view_of(sample: Mapping[str, Any]) -> View:
    """Return a cached sample with its truth moved from the world to its samples."""
    grey, mask = sample["grey"], sample["mask"].bool()
    levels = pyramid(grey, mask)
    if not sample["present"]:
        return View(grey, mask, coarser=levels)
    affine = sample["affine"].double()
    steps = affine[:3, :3].norm(dim=0)  # equal but for the rounding of the number of samples
    turn = (affine[:3, :3] / steps).T
    plane = sample["plane"]
    centre = turn @ (torch.tensor(sample["centre_mm"], dtype=torch.float64) - affine[:3, 3]) / steps
    axes = [torch.tensor(plane[k], dtype=torch.float64) for k in ("forward", "normal", "up")]
    radii = torch.tensor(sample["radii_mm"], dtype=torch.float64) / steps.mean()
    frame = (turn @ torch.stack(axes, 1)).float()
    return View(grey, mask, centre.float(), radii.float(), frame, levels)


def pyramid(grey: Tensor, mask: Tensor) -> dict[int, Tensor]:
    """Average blocks of 2³ to 4³ samples, once per volume: ``cut`` then touches little memory."""
    both = torch.stack([_scaled(grey), mask.float()])
    return {block: F.avg_pool3d(both[None], block)[0] for block in (2, 3, 4) if min(grey.shape) >= block}


def _scaled(grey: Tensor) -> Tensor:
    return grey.float() / 255 if grey.dtype == torch.uint8 else grey


def cut(view: View, cube: Cube, *, side: int) -> tuple[Tensor, Tensor]:
    """Sample grey and mask on ``side``³ points of a cube; nothing outside the volume.

    Where the points lie two samples apart or more, blocks of samples are averaged first: no speckle aliases,
    and a thin falx is not missed.
    """
    block = min(4, max(1, int(2 * cube.half / side)))
    centre = cube.centre
    if block in view.coarser:
        both = view.coarser[block]
    else:
        block = 1
        low = (centre - 1.74 * cube.half - 1).floor().clamp_min(0).long()
        high = torch.minimum((centre + 1.74 * cube.half + 2).ceil().long(), torch.tensor(view.grey.shape))
        if bool((high <= low).any()):
            return torch.zeros(side, side, side), torch.zeros(side, side, side, dtype=torch.bool)
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        both = torch.stack([_scaled(view.grey[box]), view.mask[box].float()])
        centre = centre - low
    size = torch.tensor(both.shape[1:], dtype=torch.float32) * block
    # affine_grid counts x, y, z and spans -1 to 1 between the outer edges of the samples.
    scale = (2 / size)[:, None] * cube.axes * cube.half
    shift = (2 * centre + 1) / size - 1
    theta = torch.cat([scale, shift[:, None]], 1).flip(0)[:, [2, 1, 0, 3]]
    place = F.affine_grid(theta[None], [1, 1, side, side, side], align_corners=False)
    grey, mask = F.grid_sample(both[None], place, align_corners=False)[0]
    return grey, mask > 0.5


def view_example(view: View, *, side: int, picture: float) -> tuple[Tensor, Tensor]:
    """Return the whole view, turned at random, for the finder, and which of its samples are head."""
    size = torch.tensor(view.grey.shape, dtype=torch.float32)
    middle = (size - 1) / 2
    half = float(size.max()) / 2 * _between(0.85, 1.3)
    cube = Cube(middle + torch.randn(3) * 0.05 * size, half, any_axes())
    grey, mask = cut(view, cube, side=side)
    truth = torch.zeros(side // 2, side // 2, side // 2)
    if view.centre is not None:
        truth = _occupied(view, cube, side=side // 2)
    return _picture(grey, mask, picture), truth


def pose_example(
    view: View, *, side: int, picture: float, near: bool, alike: Sequence[tuple[Tensor, float]] = ()
) -> tuple[Tensor, Tensor]:
    """Return a cube about the head and 15 numbers: its pose there, and what counts.

    ``near``: as the fine reader sees it, else as the coarse one. ``alike``: centres and radii of what is no
    head and looks like one; most cubes without a head show these, where there are any. Number 12: whether
    there is a head; 13: whether the cube's axes are the head's within 12° (coarse: 30°); 14: whether it is
    turned by so little that its pose can be read, which is to be learnt then only.
    """
    truth = torch.zeros(15)
    away = view.centre is None or float(torch.rand(())) < _AWAY
    if view.centre is None or view.radii is None or view.frame is None or away:
        cube = _elsewhere(view)
        if alike and float(torch.rand(())) < _ALIKE:
            cube = _about(alike[int(torch.randint(len(alike), ()))], near=near)
        grey, mask = cut(view, cube, side=side)
        return _picture(grey, mask, picture), truth
    turned_little = float(torch.rand(())) > _WRONG
    spread = _SPREAD[near]
    radius = float(view.radii.mean())
    reach = FINE_REACH if near else COARSE_REACH
    axes = view.frame @ small_turn(_TURN_DEG[near]) if turned_little else any_axes()
    if torch.rand(()) < 0.5:  # a mirrored head is a head
        flip = torch.diag(torch.tensor([1.0, -1.0, 1.0]))
        axes = axes @ flip if turned_little else axes
    half = reach * radius * math.exp(float(torch.randn(())) * 0.6 * spread)
    cube = Cube(view.centre + torch.randn(3) * spread * radius, half, axes)
    grey, mask = cut(view, cube, side=side)
    forward, up = axes.T @ view.frame[:, 0], axes.T @ view.frame[:, 2]
    truth[0:3], truth[3:6] = forward, up
    truth[6:9] = axes.T @ (view.centre - cube.centre) / half
    truth[9:12] = torch.log(view.radii * reach / half)
    truth[12] = 1
    # Told by forward and up alone: a mirrored cube is aligned as well.
    trace = float(forward[0] + torch.linalg.cross(up, forward)[1] + up[2])
    truth[13] = float(trace > 1 + 2 * math.cos(math.radians(_ALIGNED_DEG[near])))
    truth[14] = float(trace > 1 + 2 * math.cos(math.radians(_TURN_DEG[near] + 1)))
    return _picture(grey, mask, picture), truth


def any_axes() -> Tensor:
    """Draw the axes of a cube: any rotation, half of them mirrored."""
    turn = torch.linalg.qr(torch.randn(3, 3)).Q
    return turn * torch.where(torch.rand(3) < 0.5, -1.0, 1.0)


def small_turn(limit_deg: float) -> Tensor:
    """Draw a rotation about any axis by an angle up to the limit."""
    axis = F.normalize(torch.randn(3), dim=0)
    angle = math.radians(limit_deg) * float(torch.rand(()))
    z, y, x = (float(a) * angle for a in axis)
    return torch.linalg.matrix_exp(torch.tensor([[0.0, -x, y], [x, 0.0, -z], [-y, z, 0.0]]))


def _elsewhere(view: View) -> Cube:
    size = torch.tensor(view.grey.shape, dtype=torch.float32)
    radius = float(size.max()) * _between(0.12, 0.4) if view.radii is None else float(view.radii.mean())
    centre = torch.rand(3) * size
    if view.centre is not None:
        off = centre - view.centre
        centre = view.centre + F.normalize(off, dim=0) * max(float(off.norm()), 1.4 * radius)
    return Cube(centre, COARSE_REACH * radius, any_axes())


def _about(sphere: tuple[Tensor, float], *, near: bool) -> Cube:
    """Draw a cube about what a finder takes for a head, as one that is being refined may lie."""
    centre, radius = sphere
    reach = FINE_REACH if near else COARSE_REACH
    half = reach * radius * math.exp(0.15 * float(torch.randn(())))
    return Cube(centre + torch.randn(3) * 0.15 * radius, half, any_axes())


def _occupied(view: View, cube: Cube, *, side: int) -> Tensor:
    """Return 1 where the points of a cube lie in the skull's ellipsoid."""
    assert view.centre is not None
    assert view.frame is not None
    assert view.radii is not None
    line = (torch.arange(side) + 0.5) / side * 2 - 1
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1) * cube.half
    world = points @ cube.axes.T + cube.centre
    local = (world - view.centre) @ view.frame / view.radii
    return (local.square().sum(-1) < 1).float()


def _picture(grey: Tensor, mask: Tensor, strength: float) -> Tensor:
    if not bool(mask.any()):
        return network_input(grey, mask)
    if strength > 0:
        grey = vary_picture(grey, mask, strength=strength)
        if float(torch.rand(())) < _SECTOR_UNKNOWN:
            mask = torch.ones_like(mask)
    return network_input(grey, mask)


def _between(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))
