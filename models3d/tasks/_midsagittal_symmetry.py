"""Symmetry of a head about a plane: how alike its two sides are, and the search for the most alike.

The search alone is the idea of Nie et al. (UMB 43:286, 2017) for the first trimester: given a sphere about
the head, the mid-sagittal plane is the plane of best correlation between the volume and its mirror image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from models3d.recipes._midsagittal_examples import Cube, View, cut

_SIDE = 40
_DIRECTIONS = 240
_OFFSETS = (-0.2, -0.1, 0.0, 0.1, 0.2)  # of the radius


def similarity(view: View, *, centre: Tensor, radii: Tensor, frame: Tensor) -> float:
    """Return the correlation (-1 to 1) of a head's ellipsoid with its mirror image about its own plane.

    ``frame``: columns forward, left, up; the mirror turns left round. Grey levels are smoothed over about a
    twentieth of the head first, as speckle has no symmetry; 0 where too little of both sides is in view.
    """
    half = 1.1 * float(radii.max())
    grey, mask = cut(view, Cube(centre, half, frame), side=_SIDE)
    line = (torch.arange(_SIDE) + 0.5) / _SIDE * 2 - 1
    place = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1) * half / radii
    inside = (place.square().sum(-1) < 1.08) & mask & mask.flip(1)
    if int(inside.sum()) < 0.05 * _SIDE**3:
        return 0.0
    smooth = F.avg_pool3d(grey[None, None], 3, 1, 1)[0, 0]
    return float(_correlation(smooth[inside][None], smooth.flip(1)[inside][None])[0])


def searched(view: View, *, centre: Tensor, radius: float) -> tuple[Tensor, Tensor, float]:
    """Return point, unit normal and correlation of the plane of best symmetry about a sphere.

    All directions of a half sphere in steps of about 9°, each at five offsets; then three rounds of smaller
    steps about the best.
    """
    half = 1.15 * radius
    grey, mask = cut(view, Cube(centre, half, torch.eye(3)), side=_SIDE)
    volume = torch.stack([F.avg_pool3d(grey[None, None], 3, 1, 1)[0, 0], mask.float()])
    normals = _half_sphere(_DIRECTIONS)
    offsets = torch.tensor(_OFFSETS) * radius / half
    planes = torch.cat([normals.repeat_interleave(len(offsets), 0), offsets.repeat(len(normals))[:, None]], 1)
    best, value = _best(volume, planes, radius / half)
    for step in (0.08, 0.04, 0.02):
        near = best + step * torch.randn(40, 4, generator=torch.Generator().manual_seed(7))
        near = torch.cat([F.normalize(near[:, :3], dim=1), near[:, 3:]], 1)
        better, other = _best(volume, near, radius / half)
        if other > value:
            best, value = better, other
    normal = best[:3]
    return centre + normal * best[3] * half, normal, value


def _best(volume: Tensor, planes: Tensor, radius: float) -> tuple[Tensor, float]:
    """Return the plane (normal, offset; the cube spans -1 to 1) of highest correlation, and that."""
    line = (torch.arange(_SIDE) + 0.5) / _SIDE * 2 - 1
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
    points = points[points.square().sum(1) < radius**2][::5]
    here = _sampled(volume, points[None])[0]
    values = []
    for some in planes.split(64):
        away = points @ some[:, :3].T - some[:, 3]
        mirrored = points[None] - 2 * away.T[..., None] * some[:, None, :3]
        there = _sampled(volume, mirrored)
        weight = here[1] * there[:, 1]
        value = _correlation(here[0].expand_as(there[:, 0]), there[:, 0], weight=weight)
        # A mirror that shows next to nothing of the head twice says nothing about it.
        values.append(torch.where(weight.mean(1) > 0.3, value, torch.full_like(value, -1.0)))
    joined = torch.cat(values)
    index = int(joined.argmax())
    return planes[index], float(joined[index])


def _sampled(volume: Tensor, points: Tensor) -> Tensor:
    """Sample ``c z y x`` at points (b, n, 3) of -1 to 1: ``b c n``."""
    place = points.flip(-1)[:, :, None, None]
    both = volume[None].expand(len(points), -1, -1, -1, -1)
    return F.grid_sample(both, place, align_corners=False)[..., 0, 0]


def _correlation(a: Tensor, b: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Return Pearson's correlation along the last axis."""
    weight = torch.ones_like(a) if weight is None else weight
    total = weight.sum(-1, keepdim=True).clamp_min(1e-6)
    a = a - (a * weight).sum(-1, keepdim=True) / total
    b = b - (b * weight).sum(-1, keepdim=True) / total
    power = (a.square() * weight).sum(-1) * (b.square() * weight).sum(-1)
    return (a * b * weight).sum(-1) / power.sqrt().clamp_min(1e-6)


def _half_sphere(count: int) -> Tensor:
    """Return unit vectors (n, 3) spread evenly over half a sphere (Fibonacci lattice)."""
    k = torch.arange(count) + 0.5
    z = 1 - k / count
    turn = math.pi * (1 + 5**0.5) * k
    flat = (1 - z.square()).sqrt()
    return torch.stack([z, flat * torch.sin(turn), flat * torch.cos(turn)], 1)
