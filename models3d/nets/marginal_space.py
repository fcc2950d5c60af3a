"""Networks of marginal space deep learning: where, how turned, how large, and what lies in the box.

After Ghesu et al. (MICCAI 2015; IEEE TMI 35:1217, 2016): the pose of an object in a volume is searched in
spaces of growing dimension, p(T,R,S|I) = p(T|I) p(R|T,I) p(S|T,R,I), each by a network of its own that looks
at a patch resampled in the frame of the hypothesis. Their networks score a grid of hypotheses in every space
and are sparse; ours are small convolutional networks that answer with a correction of the hypothesis as well
as a score, so that few hypotheses do. The sparsity of their Algorithm 8 is kept as an option of the first
layer: a learned pattern of the voxels that are looked at.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models3d.nets.fcn_rnn import FCN

POSE_NUMBERS = 13  # 6 of rotation, 3 of translation, 3 of logarithmic size, 1 of score


class SparseConvolution(nn.Conv3d):
    """A convolution whose smallest weights go, round by round, until ``1 - sparsity`` of each filter is left.

    Sparse adaptive networks (Ghesu et al. 2016, Algorithm 8): after every ``every`` training steps the
    smallest active weights of each filter are set to zero, in ``rounds`` equal shares, and the others are
    rescaled so that the L1 norm of the filter stays.
    """

    active: Tensor
    steps: Tensor

    def __init__(
        self, channels: int, maps: int, *, kernel: int, sparsity: float, rounds: int = 8, every: int = 100
    ) -> None:
        super().__init__(channels, maps, kernel, stride=2, padding=kernel // 2, bias=False)
        self.sparsity, self.rounds, self.every = sparsity, rounds, every
        self.register_buffer("active", torch.ones_like(self.weight))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Convolve with the active weights; in training, count the step and prune when it is time."""
        if self.training and self.sparsity > 0:
            self.steps += 1
            done = int(self.steps) // self.every
            if int(self.steps) % self.every == 0 and done <= self.rounds:
                self.prune(self.sparsity * done / self.rounds)
        # A running average of the mask, as training keeps one, lies between 0 and 1 for a while.
        kept = self.weight * (self.active > 0.5)
        return self._conv_forward(input, kept, None)

    @torch.no_grad()
    def prune(self, share: float) -> None:
        """Switch off the smallest weights of each filter until ``share`` of them are, keeping its L1 norm."""
        flat = (self.weight * self.active).flatten(1)
        norm = flat.abs().sum(1, keepdim=True)
        count = int(share * flat.shape[1])
        keep = torch.ones_like(flat)
        keep.scatter_(1, flat.abs().argsort(1)[:, :count], 0.0)
        left = flat * keep
        left = left * norm / left.abs().sum(1, keepdim=True).clamp_min(1e-12)
        self.active.copy_(keep.view_as(self.active))
        self.weight.copy_(left.view_as(self.weight))


class PoseReader(nn.Module):
    """Read cubic patches ``b channel z y x`` in the frame of a hypothesis: ``b 13`` (see ``POSE_NUMBERS``).

    Args:
        channels: of the patch.
        side: samples along its side, a multiple of 8.
        width: maps of the first layer; twice, four and six times as many deeper.
        sparsity: share of the first layer's weights that training prunes.
    """

    def __init__(self, channels: int, *, side: int, width: int = 16, sparsity: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Sequential(
            SparseConvolution(channels, width, kernel=5, sparsity=sparsity),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )
        self.middle = nn.Sequential(
            *_layer(width, 2 * width), nn.MaxPool3d(2), *_layer(2 * width, 4 * width), nn.MaxPool3d(2)
        )
        self.last = nn.Sequential(*_layer(4 * width, 6 * width), nn.Flatten(), nn.Dropout(0.1))
        self.answer = nn.Sequential(
            nn.Linear((side // 8) ** 3 * 6 * width, 128),
            nn.BatchNorm1d(128),
            nn.ReLU(inplace=True),
            nn.Linear(128, POSE_NUMBERS),
        )
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, patches: Tensor) -> Tensor:
        """Return the numbers of the correction, of order one."""
        return self.answer(self.last(self.middle(self.first(patches))))


class AlignedReader(nn.Module):
    """Read a cube aligned with the object: logits ``b class z y x``, and points ``b point 3`` of a mesh.

    The points are those of a mesh of fixed topology, in units of half the cube, from its middle, along its
    axes. They are read off the lowest maps of the FCN through a layer of ``codes``, which can hold that many
    modes of shape.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        points: int,
        side: int,
        widths: tuple[int, int, int],
        codes: int = 96,
    ) -> None:
        super().__init__()
        self.fcn = FCN(channels, classes, widths=widths, depth=1, norm="batch")
        self.thin = nn.Sequential(
            nn.Conv3d(widths[2], 24, 1, bias=False), nn.BatchNorm3d(24), nn.ReLU(inplace=True), nn.Flatten()
        )
        self.squeeze = nn.Sequential(
            nn.Linear(24 * (side // 8) ** 3, codes), nn.BatchNorm1d(codes), nn.ReLU(inplace=True)
        )
        self.place = nn.Linear(codes, 3 * points)

    def forward(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and points."""
        logits, _, _, coarse = self.fcn.all_scales(volumes)
        points = self.place(self.squeeze(self.thin(coarse)))
        return logits, points.unflatten(1, (-1, 3))


class MarginalSpace(nn.Module):
    """All networks of one object: ``position``, ``orientation``, ``pose`` (with scale) and ``aligned``.

    ``position`` maps the whole volume, coarse, to the logit of the object's centre at every sample.
    ``sides`` are the samples along the side of what the last three look at.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        points: int,
        sides: tuple[int, int, int],
        width: int = 16,
        sparsity: float = 0.0,
    ) -> None:
        super().__init__()
        self.position = FCN(channels, 1, widths=(width, 2 * width, 4 * width), depth=1, norm="batch")
        near, box, side = sides
        self.orientation = PoseReader(channels, side=near, width=width, sparsity=sparsity)
        self.pose = PoseReader(channels, side=box, width=width, sparsity=sparsity)
        widths = (width, 2 * width, 4 * width)
        self.aligned = AlignedReader(channels, classes, points=points, side=side, widths=widths)


def rotations(numbers: Tensor) -> Tensor:
    """Return rotation matrices ``… 3 3`` of six numbers each; zeros mean no rotation.

    The first two columns by Gram-Schmidt (Zhou et al., CVPR 2019), the third by their cross product.
    """
    start = torch.tensor([1.0, 0, 0, 0, 1.0, 0], device=numbers.device)
    first, second = (numbers.float() + start).split(3, -1)
    first = F.normalize(first, dim=-1)
    second = F.normalize(second - (first * second).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second, dim=-1)], -1)


def _layer(inputs: int, maps: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv3d(inputs, maps, 3, padding=1, bias=False),
        nn.BatchNorm3d(maps),
        nn.ReLU(inplace=True),
    )
