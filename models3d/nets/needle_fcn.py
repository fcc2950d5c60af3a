"""Two light 3D U-Nets that find a needle: one over the whole view, one in a tube around a candidate.

Encoder and decoder after Ronneberger et al. (MICCAI 2015) and Çiçek et al. (MICCAI 2016), a few maps wide,
with batch normalisation (Ioffe & Szegedy 2015). Most arithmetic is done at half the input's resolution.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _convolution(inputs: int, maps: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, maps, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm3d(maps),
        nn.ReLU(inplace=True),
    )


class LightUNet(nn.Module):
    """Map volumes ``b channel z y x`` to one logit per voxel ``b z y x``.

    Args:
        channels: input channels.
        widths: maps at full resolution, at 1/2, 1/4, …; sides are multiples of 2 ** (len - 1).
    """

    def __init__(self, channels: int, *, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = _convolution(channels, widths[0])
        self.down = nn.ModuleList(
            nn.Sequential(_convolution(a, b, stride=2), _convolution(b, b)) for a, b in pairwise(widths)
        )
        pairs = list(pairwise(widths))[::-1]
        self.reduce = nn.ModuleList(nn.Conv3d(b, a, 1, bias=False) for a, b in pairs)
        self.up = nn.ModuleList(_convolution(2 * a, a) for a, _ in pairs)
        self.head = nn.Conv3d(widths[0], 1, 1)
        nn.init.constant_(self.head.bias, -4.0)  # type: ignore[arg-type]

    def forward(self, volumes: Tensor) -> Tensor:
        """Return logits."""
        skips = [self.stem(volumes)]
        for down in self.down:
            skips.append(down(skips[-1]))
        values = skips.pop()
        for reduce, up in zip(self.reduce, self.up, strict=True):
            # Fewer maps first: enlarging is linear, and so is the 1 × 1 × 1 convolution.
            larger = F.interpolate(reduce(values), scale_factor=2.0, mode="nearest")
            values = up(torch.cat([larger, skips.pop()], 1))
        return self.head(values)[:, 0]


class TwoLooks(nn.Module):
    """The coarse look and the fine one; trained together, run one after the other."""

    def __init__(self, coarse: nn.Module, fine: nn.Module) -> None:
        super().__init__()
        self.coarse = coarse
        self.fine = fine

    def forward(self, views: Tensor, tubes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of coarse views and of tubes."""
        return self.coarse(views), self.fine(tubes)
