"""Two light networks that find a needle: one over the whole view, one along a tube around a line.

The first is a U-Net after Ronneberger et al. (MICCAI 2015) and Çiçek et al. (MICCAI 2016), a few maps wide,
with batch normalisation (Ioffe & Szegedy 2015); most arithmetic is done at half the input's resolution. The
second turns every slice across the tube into a code, and reads the sequence of codes by dilated convolutions
(van den Oord et al. 2016; Bai et al. 2018), which see gaps in an echo, and what comes after them.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLICE_ANSWERS = 4
"""Per slice: logit of a shaft; its offset from the axis, down and aside, in samples; logit of the tip."""
TUBE_ANSWERS = 3
"""Per tube: logit of a needle along it; logit of no tip in it; logarithm of the radius in samples,
which only helps to learn: a run takes that of the third look."""
_DILATIONS = (1, 2, 4, 8, 16, 32)


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
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

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


class TubeReader(nn.Module):
    """Read tubes ``b channel s v u`` slice by slice: what is where along them, and whether it is a needle.

    Args:
        channels: input channels.
        across: samples across the tube, v and u: a multiple of 4; s is even.
        widths: maps at 1/2 across, after that, and at 1/4 across and 1/2 along.
        code: length of a slice's code.
    """

    def __init__(
        self, channels: int, *, across: int, widths: tuple[int, int, int] = (16, 24, 48), code: int = 64
    ) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.stem = nn.Sequential(
            nn.Conv3d(channels, fine, (3, 4, 4), stride=(1, 2, 2), padding=1, bias=False),
            nn.BatchNorm3d(fine),
            nn.ReLU(inplace=True),
        )
        self.body = nn.Sequential(_convolution(fine, middle), _convolution(middle, middle))
        self.down = nn.Sequential(_convolution(middle, coarse, stride=2), _convolution(coarse, coarse))
        self.code_fine = nn.Conv3d(middle, code, (1, across // 2, across // 2))
        self.code_coarse = nn.Conv3d(coarse, code, (1, across // 4, across // 4))
        self.sequence = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm1d(code), nn.ReLU(), nn.Conv1d(code, code, 3, padding=step, dilation=step)
            )
            for step in _DILATIONS
        )
        self.place_fine, self.place_coarse = nn.Conv3d(middle, 1, 1), nn.Conv3d(coarse, 1, 1)
        self.slices = nn.Sequential(nn.BatchNorm1d(code), nn.ReLU(), nn.Conv1d(code, SLICE_ANSWERS - 2, 1))
        self.whole = nn.Sequential(nn.Linear(2 * code, code), nn.ReLU(), nn.Linear(code, TUBE_ANSWERS))
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, tubes: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``b SLICE_ANSWERS s`` and ``b TUBE_ANSWERS``."""
        middle = self.body(self.stem(tubes))
        coarse = self.down(middle)
        code = F.interpolate(self.code_coarse(coarse)[..., 0, 0], scale_factor=2.0, mode="nearest")
        codes = self.code_fine(middle)[..., 0, 0] + code
        for step in self.sequence:
            codes = codes + step(codes)
        place = F.interpolate(self.place_coarse(coarse), scale_factor=2.0, mode="trilinear")
        offsets = _expected((self.place_fine(middle) + place)[:, 0])
        shaft, tip = self.slices(codes).chunk(2, 1)
        pooled = torch.cat([codes.mean(2), codes.amax(2)], 1)
        return torch.cat([shaft, offsets, tip], 1), self.whole(pooled)


def _expected(scores: Tensor) -> Tensor:
    """Return the mean place ``b 2 s`` of scores ``b s v u``, made chances in each slice (soft-argmax).

    In samples of a tube twice as fine across, from its axis.
    """
    side = scores.shape[-1]
    chances = torch.softmax(scores.flatten(2), 2).reshape(scores.shape)
    across = 2 * torch.arange(side, dtype=scores.dtype, device=scores.device) - (side - 1)
    return torch.stack([chances.sum(3) @ across, chances.sum(2) @ across], 1)


class Looks(nn.Module):
    """The look over the view, the one along a line, and the one at means of that; run one after the other."""

    def __init__(self, coarse: nn.Module, fine: nn.Module, sections: nn.Module) -> None:
        super().__init__()
        self.coarse = coarse
        self.fine = fine
        self.sections = sections
