"""Left ventricle per frame, ejection fraction per clip: a light U-Net whose features an LSTM reads in time.

Segmentation, CNN and CNN-LSTM share one encoder, so that the three answers of a clip cost one pass, as masks
and landmarks do in Jafari et al., IJCARS 14:1027, 2019.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from video.nets.frame_lstm import Residual, with_contrast
from video.nets.phase_lstm import time_inputs

_EF_CENTRE, _EF_SPREAD = 50.0, 15.0  # so that the heads' outputs are of size 1


@dataclass(frozen=True, slots=True, eq=False)
class VentricleOutputs:
    """What a clip gives.

    Attributes:
        masks: logits ``b t y x`` of the left ventricle at half the input's resolution.
        ef_frames: EF in % by the CNN alone, ``b``.
        ef_clip: EF in % by CNN and LSTM, ``b``.
        area: size of the ventricle as the LSTM's reading sees it, ``b t``, relative to the clip's largest.
    """

    masks: Tensor
    ef_frames: Tensor
    ef_clip: Tensor
    area: Tensor


class VentricleNet(nn.Module):
    """Clip ``b t 1 y x`` (grey 0-255; sides multiples of 16), steps ``b t`` (s) to ``VentricleOutputs``."""

    def __init__(self, *, width: int = 16, hidden: int = 64, dropout: float = 0.2) -> None:
        super().__init__()
        widths = (width, 2 * width, 3 * width, 4 * width)
        self.stem = nn.Sequential(
            nn.Conv2d(2, width, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            Residual(width, width, stride=1),
        )
        self.down = nn.ModuleList(Residual(a, b, stride=2) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(
            Residual(a + b, b, stride=1) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=False)
        )
        self.mask = nn.Conv2d(width, 1, 1)
        # Placed features, and for the mask its area and spread, which EF follows from.
        self.features = widths[-1] * 4 + 5
        self.frame_head = nn.Sequential(
            nn.Linear(2 * self.features, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 1)
        )
        self.project = nn.Sequential(nn.Linear(self.features, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.memory = nn.LSTM(hidden + 2, hidden, batch_first=True, bidirectional=True)
        self.area = nn.Linear(2 * hidden, 1)
        self.clip_head = nn.Sequential(
            nn.Linear(6 * hidden, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 1)
        )

    def forward(self, clips: Tensor, steps_s: Tensor) -> VentricleOutputs:
        """Return masks and EF of every clip."""
        masks, features = self.see(clips)
        ef_frames, ef_clip, area = self.judge(features, steps_s)
        return VentricleOutputs(masks, ef_frames, ef_clip, area)

    def see(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask logits ``b t y x`` and features ``b t f`` of frames."""
        count, length = clips.shape[:2]
        images = with_contrast(clips.flatten(0, 1)).contiguous(memory_format=torch.channels_last)
        levels = [self.stem(images)]
        for stage in self.down:
            levels.append(stage(levels[-1]))
        deep = maps = levels.pop()
        for stage in self.up:
            skipped = levels.pop()
            maps = stage(
                torch.cat([F.interpolate(maps, size=skipped.shape[-2:], mode="nearest"), skipped], 1)
            )
        logits = self.mask(maps)[:, 0]
        placed = F.adaptive_avg_pool2d(deep, (2, 2)).flatten(1)
        features = torch.cat([placed, moments(torch.sigmoid(logits))], 1)
        return logits.unflatten(0, (count, length)), features.unflatten(0, (count, length))

    def judge(self, features: Tensor, steps_s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return EF by frames, EF by the LSTM (both %, ``b``) and the relative size ``b t``."""
        # The small number keeps the gradient finite where a clip repeats one frame.
        spread = (features.var(1, unbiased=False) + 1e-6).sqrt()
        ef_frames = self.frame_head(torch.cat([features.mean(1), spread], -1))[:, 0]
        remembered, _ = self.memory(torch.cat([self.project(features), time_inputs(steps_s)], -1))
        area = torch.sigmoid(self.area(remembered)[..., 0])
        pooled = torch.cat([remembered.mean(1), remembered.amax(1), remembered.amin(1)], -1)
        ef_clip = self.clip_head(pooled)[:, 0]
        return ef_frames * _EF_SPREAD + _EF_CENTRE, ef_clip * _EF_SPREAD + _EF_CENTRE, area


def moments(chance: Tensor) -> Tensor:
    """Return area, centre and spread along both axes of soft masks ``n y x``, each about 0-1: ``n 5``."""
    y = torch.linspace(0, 1, chance.shape[-2], device=chance.device)
    x = torch.linspace(0, 1, chance.shape[-1], device=chance.device)
    total = chance.sum((1, 2)).clamp(min=1e-3)
    rows, columns = chance.sum(2) / total[:, None], chance.sum(1) / total[:, None]
    cy, cx = rows @ y, columns @ x
    sy = (rows @ y.square() - cy.square()).clamp(min=1e-6).sqrt()
    sx = (columns @ x.square() - cx.square()).clamp(min=1e-6).sqrt()
    return torch.stack([total / chance[0].numel() * 4, cy, cx, 4 * sy, 4 * sx], 1)
