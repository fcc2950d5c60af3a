"""Find a head in a volume and read its pose: a small 3D FCN and regressors of rotation, place and size.

The pose readers see a cube about the head, turned by an estimate, and give what is left to turn, as the
Iterative Transformation Network does with planes (Li et al., MICCAI 2018, LNCS 11070:392), and whether the
estimate is right at all: the coarse one from far away, the fine one from near. Rotations are read
as two directions made orthonormal, which is continuous where angles and quaternions are not (Zhou et al.,
CVPR 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POSE_NUMBERS = 14  # forward (3), up (3), offset (3), log radii (3), present, aligned


def _convolution(inputs: int, maps: int, *, stride: int = 1, size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, maps, size, stride=stride, padding=size // 2, bias=False),
        nn.BatchNorm3d(maps),
        nn.ReLU(inplace=True),
    )


class HeadFinder(nn.Module):
    """Map a view ``b channel z y x`` (sides multiples of 8) to logits of "in a head" at half resolution."""

    def __init__(self, channels: int, *, widths: tuple[int, int, int]) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.stem = _convolution(channels, fine, stride=2, size=5)
        self.down = nn.Sequential(_convolution(fine, middle, stride=2), _convolution(middle, middle))
        self.deep = nn.Sequential(
            _convolution(middle, coarse, stride=2), _convolution(coarse, coarse), _convolution(coarse, coarse)
        )
        self.deep_to_middle = nn.Conv3d(coarse, middle, 1)
        self.middle_to_fine = nn.Sequential(_convolution(middle, fine), nn.Conv3d(fine, fine, 1))
        self.head = nn.Sequential(_convolution(fine, fine), nn.Conv3d(fine, 1, 1))
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, view: Tensor) -> Tensor:
        """Return logits ``b z/2 y/2 x/2``."""
        fine = self.stem(view)
        middle = self.down(fine)
        deep = self.deep_to_middle(self.deep(middle))
        middle = middle + F.interpolate(deep, size=middle.shape[2:], mode="trilinear")
        rise = F.interpolate(self.middle_to_fine(middle), size=fine.shape[2:], mode="trilinear")
        return self.head(fine + rise)[:, 0]


class PoseReader(nn.Module):
    """Map cubes ``b channel s s s`` to ``b 14`` numbers (see ``POSE_NUMBERS``).

    Convolutions keep where things are, so the last maps are read whole instead of being averaged.
    """

    def __init__(self, channels: int, *, side: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.maps = nn.Sequential(
            _convolution(channels, fine, stride=2, size=5),
            _convolution(fine, fine),
            _convolution(fine, middle, stride=2),
            _convolution(middle, middle),
            _convolution(middle, coarse, stride=2),
            _convolution(coarse, coarse),
            _convolution(coarse, 48, size=1),
        ).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.read = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(48 * (side // 8) ** 3, 192),
            nn.BatchNorm1d(192),
            nn.ReLU(inplace=True),
            nn.Linear(192, POSE_NUMBERS),
        )

    def forward(self, cubes: Tensor) -> Tensor:
        """Return the raw numbers; ``frame_of`` makes directions of the first six."""
        return self.read(self.maps(cubes))


class PlaneNetwork(nn.Module):
    """The three networks of the task in one module."""

    def __init__(self, channels: int, *, sides: tuple[int, int], widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.finder = HeadFinder(channels, widths=widths)
        self.coarse, self.fine = (PoseReader(channels, side=side, widths=widths) for side in sides)


def frame_of(numbers: Tensor) -> Tensor:
    """Return the axes ``b 3 3`` (columns forward, left, up) of the first six numbers, by Gram-Schmidt.

    In (z, y, x) order left is forward × up.
    """
    forward = F.normalize(numbers[..., 0:3].float(), dim=-1, eps=1e-6)
    up = numbers[..., 3:6].float()
    up = up - (up * forward).sum(-1, keepdim=True) * forward
    up = F.normalize(up, dim=-1, eps=1e-6)
    return torch.stack([forward, torch.linalg.cross(forward, up), up], -1)
