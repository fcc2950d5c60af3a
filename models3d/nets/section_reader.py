"""A small network that reads where a needle's axis runs, and how thick it is, from means along a tube.

Speckle that blurs a single slice averages out over a part of the shaft; what is left is the shaft's own cross
section: its near wall, its far wall, what rings behind it. The axis is placed by soft-argmax in the mean of
each part (Luvizon et al., Comput. Graph. 85:15, 2019), in the light of the mean of all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SECTION_ANSWERS = 3
"""Per section: offset of the axis, down and aside, in samples; weight of it in the fit of the axis."""
SIZE_ANSWERS = 2
"""Per tube: logarithm of the radius in samples; logit of the thicker gauge."""
_LEAST = 0.3  # weight under which a mean is not enlarged further: there is no shaft in that part


def _convolution(inputs: int, maps: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, maps, 3, padding=1, bias=False), nn.BatchNorm2d(maps), nn.ReLU(inplace=True)
    )


class SectionReader(nn.Module):
    """Read sections ``b 2 k v u`` (sums of weighted levels, and of weights) and facts ``b f`` of tubes.

    Untrained it leaves the axis where the tube's is: weights of which only the first two looks have learned
    are of use.

    Args:
        facts: numbers known of a tube.
        across: samples across it, v and u: even.
        slices: that a section sums.
        maps: of the finer convolutions; the coarser ones have twice as many.
    """

    def __init__(self, facts: int, *, across: int, slices: int, maps: int = 16) -> None:
        super().__init__()
        self.slices = slices
        self.all = nn.Sequential(
            _convolution(1, maps),
            _convolution(maps, maps),
            nn.MaxPool2d(2),
            _convolution(maps, 2 * maps),
            _convolution(2 * maps, 2 * maps),
        )
        inputs = 2 * maps * (across // 2) ** 2 + facts
        self.summary = nn.Sequential(
            nn.Dropout(0.2), nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()
        )
        self.fine = nn.Sequential(_convolution(1, maps), _convolution(maps, maps))
        self.coarse = nn.Sequential(nn.MaxPool2d(2), _convolution(maps, 2 * maps))
        self.mixed = _convolution(4 * maps, 2 * maps)
        self.reduce = nn.Conv2d(2 * maps, maps, 1)
        self.place = nn.Sequential(_convolution(maps, maps), nn.Conv2d(maps, 1, 1))
        self.shift = nn.Linear(64, 2)
        self.weight = nn.Linear(2 * maps + 1, 1)
        self.size = nn.Linear(64, SIZE_ANSWERS)
        for last in (self.place[-1], self.shift):
            for values in last.parameters():
                nn.init.zeros_(values)

    def forward(self, sections: Tensor, facts: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``b SECTION_ANSWERS k`` and ``b SIZE_ANSWERS``."""
        count, side = sections.shape[2], sections.shape[-1]
        level, weights = sections[:, 0], sections[:, 1]
        mean = (level / weights.clamp_min(_LEAST)).reshape(-1, 1, side, side)
        of_all = self.all((level.sum(1) / weights.sum(1).clamp_min(_LEAST))[:, None])
        summary = self.summary(torch.cat([of_all.flatten(1), facts], 1))
        fine = self.fine(mean)
        context = of_all[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
        mixed = self.mixed(torch.cat([self.coarse(fine), context], 1))
        enlarged = F.interpolate(self.reduce(mixed), scale_factor=2.0, mode="nearest")
        scores = self.place(fine + enlarged)[:, 0]
        chances = torch.softmax(scores.flatten(1), 1).reshape(-1, side, side)
        across = torch.arange(side, dtype=chances.dtype, device=chances.device) - (side - 1) / 2
        offset = torch.stack([chances.sum(2) @ across, chances.sum(1) @ across], 1)
        offset = offset.reshape(-1, count, 2) + self.shift(summary)[:, None]
        share = weights.mean((2, 3)) / self.slices
        log_share = share.clamp_min(1e-3).log()
        seen = torch.cat([mixed.mean((2, 3)).reshape(-1, count, mixed.shape[1]), log_share[..., None]], 2)
        weight = F.softplus(self.weight(seen)[..., 0]) * share * self.slices
        return torch.cat([offset.transpose(1, 2), weight[:, None]], 1), self.size(summary)
