"""3D FCN and its sequential refinement by a BiLSTM over bricks, for dense labels of 3D ultrasound.

After Yang et al. (MICCAI 2017, LNCS 10433:711; IEEE TMI 38:180, 2019): a U-shaped fully convolutional network
with three resolutions, skips by sum and deep supervision proposes class probabilities; a recurrent network
reads them as a sequence of overlapping bricks and repairs them, supervised at several lengths of sequence.

The papers leave open, and we choose: a strided stem and a transposed convolution as head, so that three
resolutions reach 1/8 of the input and most work is done at 1/4 of it; bricks of 8 voxels every 4, at half
resolution; three raster orders, one per axis; a linear code of each brick, shared by all orders; the answer
of the BiLSTM added to the logarithm of what it read, so that an untrained one changes nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Raster orders of the bricks (slowest to fastest axis), each axis slowest once.
ORDERS: tuple[tuple[int, int, int], ...] = ((0, 1, 2), (1, 2, 0), (2, 0, 1))


Norm = Literal["batch", "group"]


def _normalisation(maps: int, norm: Norm) -> nn.Module:
    return nn.BatchNorm3d(maps) if norm == "batch" else nn.GroupNorm(max(1, maps // 4), maps)


def _convolution(inputs: int, maps: int, *, norm: Norm) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, maps, 3, padding=1, bias=False), _normalisation(maps, norm), nn.ReLU(inplace=True)
    )


class FCN(nn.Module):
    """Map volumes ``b channel z y x`` (sides multiples of 8) to logits ``b class z y x``.

    Args:
        channels: input channels.
        classes: number of classes, background included.
        widths: maps at 1/2, 1/4 and 1/8 of the input's resolution.
        depth: convolutions at the lowest resolution after the first.
        norm: batch normalisation learns these volumes several times faster than that of groups of 4 maps.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        widths: tuple[int, int, int] = (20, 48, 96),
        depth: int = 4,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        fine, middle, coarse = widths
        layer = partial(_convolution, norm=norm)
        self.stem = nn.Sequential(
            nn.Conv3d(channels, fine, 4, stride=2, padding=1, bias=False),
            _normalisation(fine, norm),
            nn.ReLU(inplace=True),
        )
        self.down_fine = layer(fine, fine)
        self.down_middle = nn.Sequential(layer(fine, middle), layer(middle, middle))
        self.bottom = nn.Sequential(layer(middle, coarse), *(layer(coarse, coarse) for _ in range(depth)))
        self.raise_coarse = nn.Conv3d(coarse, middle, 1)
        self.up_middle = nn.Sequential(layer(middle, middle), layer(middle, middle))
        self.raise_middle = nn.Conv3d(middle, fine, 1)
        self.up_fine = layer(fine, fine)
        self.head = nn.ConvTranspose3d(fine, classes, 4, stride=2, padding=1)
        self.auxiliary = nn.ModuleList([nn.Conv3d(middle, classes, 1), nn.Conv3d(coarse, classes, 1)])
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, volumes: Tensor) -> Tensor:
        """Return the logits."""
        return self.all_scales(volumes)[0]

    def all_scales(self, volumes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the logits at full, 1/4 and 1/8 resolution (deep supervision), and the lowest maps."""
        maps = self.encoded(volumes)
        return *self.decoded(*maps), maps[2]

    def encoded(self, volumes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the maps at 1/2, 1/4 and 1/8 of the input's resolution, on the way down."""
        fine = self.down_fine(self.stem(volumes))
        middle = self.down_middle(F.max_pool3d(fine, 2))
        return fine, middle, self.bottom(F.max_pool3d(middle, 2))

    def decoded(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits at full, 1/4 and 1/8 resolution of what ``encoded`` returned."""
        middle = self.up_middle(middle + _doubled(self.raise_coarse(coarse)))
        fine = self.up_fine(fine + _doubled(self.raise_middle(middle)))
        return self.head(fine), self.auxiliary[0](middle), self.auxiliary[1](coarse)


class BrickReader(nn.Module):
    """Read class probabilities as sequences of overlapping bricks, and answer with corrections of logits.

    Args:
        classes: number of classes.
        brick: side of a brick in voxels; bricks overlap by half.
        code: length of a brick's code.
        hidden: units of the LSTM in each direction.
    """

    def __init__(self, classes: int, *, brick: int = 8, code: int = 256, hidden: int = 192) -> None:
        super().__init__()
        if brick % 2:
            raise ValueError(f"bricks that overlap by half have an even side, not {brick}")
        self.classes, self.brick = classes, brick
        voxels = classes * brick**3
        self.encode = nn.Linear(voxels, code)
        self.lstm = nn.LSTM(code, hidden, batch_first=True, bidirectional=True)
        self.decode = nn.Linear(2 * hidden, voxels)
        nn.init.zeros_(self.decode.weight)
        nn.init.zeros_(self.decode.bias)

    def forward(self, chances: Tensor) -> Tensor:
        """Return corrections ``b class z y x``, averaged over overlaps and orders."""
        answers = self.each_order(chances)
        return torch.stack([joined(a, brick=self.brick) for a in answers]).mean(0)

    def each_order(self, chances: Tensor) -> list[Tensor]:
        """Return what each raster order answers for every brick: ``b Z Y X class brick brick brick``."""
        bricks = cut(chances, brick=self.brick)
        shape = bricks.shape
        codes = F.relu(self.encode(bricks.flatten(4)))
        answers = []
        for order in ORDERS:
            axes = [1 + axis for axis in order]
            sequence = codes.permute(0, *axes, 4)
            read = self.lstm(sequence.flatten(1, 3))[0].reshape(*sequence.shape[:4], -1)
            back = [0, *(1 + axes.index(axis) for axis in (1, 2, 3)), 4]
            answers.append(self.decode(read.permute(back)).reshape(shape))
        return answers


class Segmenter(nn.Module):
    """An FCN, alone or followed by a ``BrickReader``: ``b channel z y x`` to logits ``b class z y x``.

    With a reader the FCN is not trained on: it must come with weights of its own.
    """

    def __init__(self, fcn: FCN, reader: BrickReader | None = None) -> None:
        super().__init__()
        self.fcn = fcn
        self.reader = reader
        if reader is not None:
            fcn.requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> Segmenter:
        """Set the mode; below a reader the FCN stays in evaluation mode, its batch statistics with it."""
        super().train(mode)
        if self.reader is not None:
            self.fcn.eval()
        return self

    def forward(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits, and what the volumes look like ``b feature``.

        The last channel of ``volumes`` says where there is a picture. Features are the means over it of the
        maps at all three resolutions.
        """
        maps = self.fcn.encoded(volumes)
        logits = self.fcn.decoded(*maps)[0]
        features = torch.cat([_mean_inside(m, volumes[:, -1:]) for m in maps], 1)
        if self.reader is None:
            return logits, features
        halved = halve(logits)
        return logits + _doubled_smoothly(self.reader(halved.exp())), features


def halve(logits: Tensor) -> Tensor:
    """Return log-probabilities at half resolution: the mean probability of every 2×2×2 voxels."""
    return F.avg_pool3d(torch.softmax(logits.float(), 1), 2).clamp_min(1e-5).log()


def cut(volume: Tensor, *, brick: int) -> Tensor:
    """Cut ``b c z y x`` into bricks that overlap by half: ``b Z Y X c brick brick brick``.

    Sides must be multiples of half a brick.
    """
    half = brick // 2
    b, c, *size = volume.shape
    z, y, x = (n // half for n in size)
    cells = volume.reshape(b, c, z, half, y, half, x, half).permute(0, 2, 4, 6, 1, 3, 5, 7)
    for axis in (1, 2, 3):
        count = cells.shape[axis] - 1
        pair = (cells.narrow(axis, 0, count), cells.narrow(axis, 1, count))
        cells = torch.cat(pair, dim=axis + 4)
    return cells


def joined(bricks: Tensor, *, brick: int) -> Tensor:
    """Average overlapping bricks ``b Z Y X c brick brick brick`` into ``b c z y x``; undoes ``cut``."""
    half = brick // 2
    cells = lapped(bricks, axes=(0, 1, 2), brick=brick).permute(0, 4, 1, 5, 2, 6, 3, 7)
    b, c, z, _, y, _, x, _ = cells.shape
    return cells.reshape(b, c, z * half, y * half, x * half)


def lapped(bricks: Tensor, *, axes: tuple[int, ...], brick: int) -> Tensor:
    """Average the overlaps of bricks ``b Z Y X c brick brick brick`` along ``axes`` (0 to 2) only.

    Along these axes the answer counts half bricks, one more than there are bricks, each ``brick / 2`` wide.
    """
    cells, weight = bricks, torch.ones_like(bricks[:1, ..., :1, :, :, :])
    for axis in axes:
        cells, weight = (_lapped(values, 1 + axis, brick // 2) for values in (cells, weight))
    return cells / weight


def _lapped(values: Tensor, axis: int, half: int) -> Tensor:
    """Add the second half of each brick along ``axis`` to the first half of the next."""
    within = axis + 4
    first, second = values.narrow(within, 0, half), values.narrow(within, half, half)
    edge = torch.zeros_like(first.narrow(axis, 0, 1))
    return torch.cat([first, edge], axis) + torch.cat([edge, second], axis)


def _mean_inside(maps: Tensor, mask: Tensor) -> Tensor:
    """Return the mean ``b c`` of maps ``b c z y x`` over a mask ``b 1 z y x`` of a multiple of their size."""
    weight = F.avg_pool3d(mask, mask.shape[-1] // maps.shape[-1])
    return (maps * weight).sum((2, 3, 4)) / weight.sum((2, 3, 4)).clamp_min(1e-6)


def _doubled(values: Tensor) -> Tensor:
    return F.interpolate(values, scale_factor=2.0, mode="nearest")


def _doubled_smoothly(values: Tensor) -> Tensor:
    return F.interpolate(values, scale_factor=2.0, mode="trilinear", align_corners=False)
