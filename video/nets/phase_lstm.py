"""Frames and the time between them to a curve of the cardiac phase: CNN per frame, bidirectional LSTM.

After Dezaki et al. (IEEE TMI 38:1821, 2019) and Lane et al. (Comput Biol Med 133:104373, 2021), at a tenth of
their width and with time as an input, so that any frame rate and any number of beats will do.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from video.nets.frame_lstm import Residual, with_contrast

USUAL_STEP_S = 0.025
"""Time between frames that counts as 1 in the inputs."""


class PhaseLSTM(nn.Module):
    """Clip ``b t 1 y x`` (grey 0-255) and steps ``b t`` (s to the frame before) to ``b t 3``.

    Outputs: logit of the phase (1 at ED, 0 at ES), logits of "this frame is ED" and "this frame is ES".
    """

    def __init__(self, *, width: int = 16, hidden: int = 96, layers: int = 2, dropout: float = 0.2) -> None:
        super().__init__()
        self.encoder = FrameEncoder(width)
        features = self.encoder.features
        self.project = nn.Sequential(nn.Linear(2 * features, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.memory = nn.LSTM(
            hidden + 2,
            hidden,
            num_layers=layers,
            dropout=dropout if layers > 1 else 0.0,
            batch_first=True,
            bidirectional=True,
        )
        self.head = nn.Linear(2 * hidden, 3)
        # Used in training only: from what a frame shows, how large its ventricle is.
        self.size = nn.Linear(features, 1)

    def forward(self, clips: Tensor, steps_s: Tensor) -> Tensor:
        """Return the three outputs of every frame."""
        return self.read(self.encoder(clips), steps_s)

    def read(self, embedded: Tensor, steps_s: Tensor) -> Tensor:
        """Return the outputs from the features ``b t f`` of frames."""
        # A difference of slices: OpenVINO knows no diff.
        change = torch.cat([torch.zeros_like(embedded[:, :1]), embedded[:, 1:] - embedded[:, :-1]], 1)
        seen = self.project(torch.cat([embedded, change], -1))
        remembered, _ = self.memory(torch.cat([seen, time_inputs(steps_s)], -1))
        return self.head(remembered)


class FrameEncoder(nn.Module):
    """Small residual CNN on every frame of a clip ``b t 1 y x`` (grey 0-255): features ``b t f``.

    Maps are averaged over a 4 × 4 grid of places, so that where something is stays known.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = (width, width, 2 * width, 4 * width)
        self.stem = nn.Sequential(
            nn.Conv2d(2, width, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stages = nn.ModuleList(Residual(a, b, stride=2) for a, b in itertools.pairwise(widths))
        self.squeeze = nn.Conv2d(widths[-1], 2 * width, 1)
        self.features = 2 * width * 16

    def forward(self, clips: Tensor) -> Tensor:
        """Return one feature vector per frame."""
        count, length = clips.shape[:2]
        maps = self.stem(with_contrast(clips.flatten(0, 1)).contiguous(memory_format=torch.channels_last))
        for stage in self.stages:
            maps = stage(maps)
        placed = F.adaptive_avg_pool2d(F.relu(self.squeeze(maps)), (4, 4))
        return placed.flatten(1).unflatten(0, (count, length))


def time_inputs(steps_s: Tensor) -> Tensor:
    """Return log of the step (0 at 25 ms) and whether it is known, ``b t 2``; a step of 0 is unknown."""
    known = (steps_s > 0).float()
    size = torch.log(steps_s.clamp(min=1e-3) / USUAL_STEP_S) * known
    return torch.stack([size, known], -1)
