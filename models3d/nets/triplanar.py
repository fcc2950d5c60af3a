"""Tri-planar voxel classification, as fully convolutional network.

After Pourtaherian et al. (MICCAI 2017; IJCARS 2018, doi 10.1007/s11548-018-1798-3): each voxel is told from
three orthogonal slices through it, 21 × 21 samples each, by a stack of convolutions that the slices share.
Patches without pooling and dilated convolutions see the same (1 + 2 (1 + 2 + 3 + 4) = 21 samples), and share
the work of neighbouring voxels. Widths are ours: the papers leave them open.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_DILATIONS = (1, 2, 3, 4)
_PLANES = ((0, 1, 2), (1, 0, 2), (2, 0, 1))  # the slice's normal first


class TriPlanar(nn.Module):
    """Map volumes ``b channel z y x`` to one logit per voxel ``b z y x``."""

    def __init__(self, channels: int, *, maps: tuple[int, int, int, int] = (12, 16, 20, 24)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, dilation in zip((channels, *maps), maps, _DILATIONS, strict=False):
            reach = (0, dilation, dilation)
            layers += [
                nn.Conv3d(
                    inputs, outputs, (1, 3, 3), padding=reach, dilation=(1, dilation, dilation), bias=False
                ),
                nn.BatchNorm3d(outputs),
                nn.ReLU(inplace=True),
            ]
        self.slices = nn.Sequential(*layers)
        self.classify = nn.Sequential(
            nn.Conv3d(3 * maps[-1], 32, 1), nn.ReLU(inplace=True), nn.Conv3d(32, 1, 1)
        )
        nn.init.constant_(self.classify[-1].bias, -4.0)  # type: ignore[arg-type]

    def forward(self, volumes: Tensor) -> Tensor:
        """Return logits."""
        seen = []
        for order in _PLANES:
            turned = self.slices(volumes.permute(0, 1, *(axis + 2 for axis in order)))
            back = [order.index(axis) + 2 for axis in range(3)]
            seen.append(turned.permute(0, 1, *back))
        return self.classify(torch.cat(seen, 1))[:, 0]
