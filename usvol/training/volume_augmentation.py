"""Vary volumes as probes, patients, scanners and exports vary them, and as another simulator would.

Everything works on one volume ``z y x`` (float32, 0-1 inside the mask) and uses torch's global random state,
so that a seeded training is reproducible. The ranges are wider than life on purpose (domain randomisation,
Tobin et al., IROS 2017; for ultrasound to be read across devices, Zhang et al., IEEE TMI 39:2531, 2020).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from usvol.resampling import likeliest_label

_SIGNED_PERMUTATIONS = [
    torch.eye(3)[list(order)] * torch.tensor(signs)[:, None]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]


@dataclass(frozen=True, slots=True, eq=False)
class LabelledVolume:
    """Grey levels, where there is a picture at all, and labels, all ``z y x``."""

    grey: Tensor
    mask: Tensor
    labels: Tensor


def vary_pose(volume: LabelledVolume, *, side: int, strength: float = 1.0) -> LabelledVolume:
    """Turn, mirror, stretch (up to 15 % per axis) and frame anew; sample on ``side``³ voxels.

    All 48 orientations are equally likely; half the volumes are also turned by any small angle (normal, 15°).
    The frame is the whole view, or what is labelled with some room around, or anything between.
    ``strength`` 0 keeps the pose: the longest side of the volume fills the cube.
    """
    size = torch.tensor(volume.grey.shape, dtype=torch.float32)
    matrix, centre, view = torch.eye(3), torch.zeros(3), size.max()
    if strength > 0:
        matrix = _SIGNED_PERMUTATIONS[int(torch.randint(48, ()))].clone()
        if _chance(0.5):
            matrix = matrix @ _rotation(torch.randn(3) * math.radians(15) * strength)
        matrix = matrix * torch.exp(_uniform(-0.15, 0.15, 3) * strength)
        centre, view = _framed(volume.labels, size)
    # affine_grid counts x, y, z.
    theta = torch.cat([matrix * (view / size)[:, None], centre[:, None]], 1).flip(0)[:, [2, 1, 0, 3]]
    place = F.affine_grid(theta[None], [1, 1, side, side, side], align_corners=False)
    mask = F.grid_sample(volume.mask[None, None].float(), place, mode="nearest", align_corners=False)[0, 0]
    # Labels by weight, not from the nearest voxel: that would shift boundaries by up to half of one.
    hot = [(volume.labels == value).float() for value in range(1, int(volume.labels.max()) + 1)]
    grey, *shares = F.grid_sample(torch.stack([volume.grey, *hot])[None], place, align_corners=False)[0]
    labels = likeliest_label([1 - sum(shares, torch.zeros_like(grey)), *shares])
    return LabelledVolume(grey * mask, mask > 0.5, labels * (mask > 0.5))


def cut_view(volume: LabelledVolume, *, chance: float = 0.35) -> LabelledVolume:
    """Cut the field of view by one to three planes or a cone, in some volumes; labels go with it.

    At most half of the labelled voxels are lost, else nothing is cut.
    """
    if not _chance(chance):
        return volume
    points = _coordinates(volume.grey.shape)
    kept = torch.ones_like(volume.mask)
    if _chance(0.3):
        axis = F.normalize(torch.randn(3), dim=0)
        from_apex = points + axis * _uniform(0.9, 2.0)
        radius = from_apex.norm(dim=-1)
        kept &= (from_apex @ axis) > radius * math.cos(math.radians(float(_uniform(25, 60))))
    else:
        for _ in range(int(torch.randint(1, 4, ()))):
            kept &= points @ F.normalize(torch.randn(3), dim=0) < _uniform(0.2, 0.8)
    kept &= volume.mask
    labelled = volume.labels > 0
    if int((labelled & kept).sum()) < 0.5 * int(labelled.sum()):
        return volume
    return LabelledVolume(volume.grey * kept, kept, volume.labels * kept)


def vary_picture(grey: Tensor, mask: Tensor, *, strength: float = 1.0) -> Tensor:
    """Vary speckle, resolution, contact, haze, depth compensation, gain, dynamic range and noise.

    Each step happens in some volumes only; returns 0-1 inside the mask and 0 outside. ``strength`` scales the
    chance of every step.
    """
    steps: tuple[tuple[float, Callable[[Tensor], Tensor]], ...] = (
        (0.25, _coarser),
        (0.35, _blurred),
        (0.4, _speckled),
        (0.35, _unevenly_bright),
        (0.3, _shadowed),
        (0.3, _hazy),
        (0.7, _regraded),
        (0.35, _noisy),
        (0.15, _sharpened),
    )
    for chance, step in steps:
        if _chance(chance * strength):
            grey = step(grey)
    return grey.clamp(0, 1) * mask


def _coarser(grey: Tensor) -> Tensor:
    """Lose resolution along each axis by a factor of 1 to 2.5, as thick planes and few lines do."""
    size = [max(8, round(n / float(_uniform(1, 2.5)))) for n in grey.shape]
    small = F.interpolate(grey[None, None], size=size, mode="trilinear", align_corners=False)
    mode = "trilinear" if _chance(0.7) else "nearest"
    return F.interpolate(
        small, size=grey.shape, mode=mode, align_corners=False if mode == "trilinear" else None
    )[0, 0]


def _blurred(grey: Tensor) -> Tensor:
    return _smooth(grey, [float(s) for s in _uniform(0.0, 1.3, 3)])


def _sharpened(grey: Tensor) -> Tensor:
    return grey + _uniform(0.3, 1.2) * (grey - _smooth(grey, [1.0, 1.0, 1.0]))


def _speckled(grey: Tensor) -> Tensor:
    """Multiply by grain of random size and strength; dark regions stay dark."""
    grain = torch.randn_like(grey)
    if _chance(0.7):
        grain = _smooth(grain, [float(s) for s in _uniform(0.3, 1.3, 3)])
        grain = grain / grain.std().clamp_min(1e-6)
    return grey * (1 + _uniform(0.1, 0.5) * grain).clamp_min(0)


def _unevenly_bright(grey: Tensor) -> Tensor:
    """Multiply by a smooth field: depth compensation, contact, heterogeneous tissue."""
    return grey * torch.exp(float(_uniform(0.1, 0.5)) * _smooth_field(grey))


def _shadowed(grey: Tensor) -> Tensor:
    """Darken one to three cones that start somewhere and run out of the volume, as behind bone or gas."""
    points = _coordinates(grey.shape)
    along = F.normalize(torch.randn(3), dim=0)
    for _ in range(int(torch.randint(1, 4, ()))):
        at = points - _uniform(-0.7, 0.7, 3)
        depth = at @ along
        across = (at.square().sum(-1) - depth.square()).clamp_min(0).sqrt()
        inside = torch.sigmoid((_uniform(0.03, 0.2) + 0.1 * depth - across) * 40) * torch.sigmoid(depth * 40)
        grey = grey * (1 - _uniform(0.3, 0.95) * inside)
    return grey


def _hazy(grey: Tensor) -> Tensor:
    """Fill the dark with a smooth veil of clutter, most of all in fluid."""
    veil = (_smooth_field(grey) * 0.5 + 0.5).clamp(0, 1) * _uniform(0.05, 0.35)
    return grey + veil * (1 - grey)


def _regraded(grey: Tensor) -> Tensor:
    """Change gain, dynamic range and grey map; sometimes leave the logarithmic scale of a scanner."""
    if _chance(0.15):
        # What a scanner shows is proportional to dB: undo that in part (10-25 dB kept out of it).
        grey = 10 ** ((grey - 1) * _uniform(0.3, 1.2))
    grey = grey.clamp(0, 1) ** torch.exp(_uniform(-0.6, 0.6))
    if _chance(0.5):
        # A low threshold lets the dark fall to black, a high one saturates the bright.
        low, high = _uniform(-0.15, 0.15), _uniform(0.7, 1.2)
        grey = (grey - low) / (high - low)
    return grey.clamp(0, 1)


def _noisy(grey: Tensor) -> Tensor:
    return grey + torch.randn_like(grey) * _uniform(0.01, 0.1)


def _smooth_field(like: Tensor) -> Tensor:
    """Return a smooth random field of unit deviation."""
    knots = torch.randn(1, 1, *(int(torch.randint(2, 6, ())) for _ in range(3)))
    field = F.interpolate(knots, size=like.shape, mode="trilinear", align_corners=True)[0, 0]
    return field / field.std().clamp_min(1e-6)


def _smooth(grey: Tensor, sigmas: list[float]) -> Tensor:
    """Convolve with a Gaussian of ``sigmas`` voxels along z, y, x."""
    values = grey[None, None]
    for axis, sigma in enumerate(sigmas):
        if sigma < 0.2:
            continue
        reach = max(1, math.ceil(2.5 * sigma))
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
        shape, padding = [1, 1, 1], [0, 0, 0]
        shape[axis], padding[axis] = 2 * reach + 1, reach
        values = F.conv3d(values, (kernel / kernel.sum()).reshape(1, 1, *shape), padding=padding)
    return values[0, 0]


def _coordinates(shape: torch.Size) -> Tensor:
    """Return the position of every voxel, -1 to 1 along each axis: ``z y x 3``."""
    axes = [torch.linspace(-1, 1, n) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def _framed(labels: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Draw the centre (-1 to 1) and the side (voxels) of a cube to look at."""
    whole = size.max() * _uniform(0.85, 1.2)
    inside = (labels[::2, ::2, ::2] > 0).nonzero().float() * 2
    draw = float(torch.rand(()))
    if not len(inside) or draw < 0.35:
        return _uniform(-0.08, 0.08, 3), whole
    low, high = inside.min(0).values, inside.max(0).values + 2
    tight = (high - low).max() * _uniform(1.15, 1.7)
    if draw < 0.65:
        tight = tight * (whole / tight).clamp_min(1) ** torch.rand(())
    middle = (low + high) / 2 + _uniform(-0.15, 0.15, 3) * tight
    # The wider the frame, the nearer its centre is to the volume's.
    share = ((tight - (high - low).max()) / (whole - (high - low).max()).clamp_min(1)).clamp(0, 1)
    return (middle / size * 2 - 1) * (1 - share), tight


def _rotation(angles: Tensor) -> Tensor:
    """Return the rotation by the vector ``angles`` (radians)."""
    z, y, x = (float(a) for a in angles)
    return torch.linalg.matrix_exp(torch.tensor([[0.0, -x, y], [x, 0.0, -z], [-y, z, 0.0]]))


def _uniform(low: float, high: float, count: int | None = None) -> Tensor:
    return low + (high - low) * torch.rand(() if count is None else (count,))


def _chance(probability: float) -> bool:
    return bool(torch.rand(()) < probability)
