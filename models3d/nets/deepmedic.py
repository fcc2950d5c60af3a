"""DeepMedic: two pathways of small 3D convolutions, one at full resolution and one on a coarse context.

After Kamnitsas et al. (Med Image Anal 36:61, 2017), which Looney et al. (ISBI 2017) applied to the placenta:
eight 3×3×3 convolutions without padding in each pathway, the second on the input thinned by 3; both joined
by two layers of 1×1×1 convolutions. Residual links as in the later releases of the network. Our choices:
larger segments (the published 9³ outputs waste most of a CPU's work on margins), and averaging as the way to
thin.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAPS = (30, 30, 40, 40, 40, 40, 50, 50)
THINNING = 3
REACH = len(MAPS)  # voxels that a pathway loses on each side
MARGIN = REACH * THINNING  # voxels around the output that the network sees


class DeepMedic(nn.Module):
    """Map volumes ``b channel z y x`` (sides multiples of 3) to logits ``b class z y x``.

    Args:
        channels: input channels.
        classes: number of classes, background included.
        hidden: maps of the layers that join the pathways.
        dropout: on the last two layers.
    """

    def __init__(self, channels: int, classes: int, *, hidden: int = 150, dropout: float = 0.5) -> None:
        super().__init__()
        self.fine = _Pathway(channels)
        self.context = _Pathway(channels)
        self.join = nn.Sequential(
            nn.Conv3d(2 * MAPS[-1], hidden, 1, bias=False),
            nn.BatchNorm3d(hidden),
            nn.PReLU(hidden),
            nn.Dropout3d(dropout),
            nn.Conv3d(hidden, hidden, 1, bias=False),
            nn.BatchNorm3d(hidden),
            nn.PReLU(hidden),
            nn.Dropout3d(dropout),
            nn.Conv3d(hidden, classes, 1),
        )
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of whole volumes, and the mean of the context's maps ``b feature``."""
        maps = self._maps(F.pad(volumes, [MARGIN] * 6))
        return self.join(maps), maps[:, MAPS[-1] :].mean((2, 3, 4))

    def segment(self, blocks: Tensor) -> Tensor:
        """Return the logits of the middle of ``blocks``: sides smaller by ``2 MARGIN``, a multiple of 3."""
        return self.join(self._maps(blocks))

    def _maps(self, blocks: Tensor) -> Tensor:
        trim = MARGIN - REACH
        fine = self.fine(F.pad(blocks, [-trim] * 6))
        context = self.context(F.avg_pool3d(blocks, THINNING))
        return torch.cat([fine, F.interpolate(context, scale_factor=float(THINNING), mode="nearest")], 1)


class _Pathway(nn.Module):
    """Eight convolutions without padding; every second one takes the middle of what came before it along."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        sizes = (channels, *MAPS)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(inputs, maps, 3, bias=False),
                nn.BatchNorm3d(maps),
                nn.PReLU(maps),
            )
            for inputs, maps in zip(sizes, MAPS, strict=False)
        )

    def forward(self, values: Tensor) -> Tensor:
        before = values
        for number, layer in enumerate(self.layers):
            after = layer(values)
            if number % 2 == 1 and number > 1:
                past = F.pad(before, [-2] * 6)
                missing = after.shape[1] - past.shape[1]
                after = after + F.pad(past, [0] * 6 + [0, missing])
            if number % 2 == 1:
                before = after
            values = after
        return values
