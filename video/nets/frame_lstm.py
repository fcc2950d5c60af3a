"""A small residual CNN on every frame, a bidirectional LSTM over the frames, several heads.

The frame encoder follows He et al. (CVPR 2016) at a tenth of its width; the recurrent reading of frame
features follows the CNN-LSTM systems for ultrasound cines (Dezaki et al., IEEE TMI 38:1821, 2019).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CONTRAST_CELL = 8  # samples per cell of the local mean and deviation


class FrameLSTM(nn.Module):
    """Clip ``b t 1 y x`` (grey level 0-255) to ``frames b t outputs`` and ``clip b outputs``.

    The clip output is the mean over its frames' outputs, each of which has seen the whole clip through the
    LSTM; the frame output is therefore a curve over time that explains the clip output exactly.
    """

    def __init__(
        self, outputs: int, *, width: int = 16, hidden: int = 64, dropout: float = 0.4, bands: int = 4
    ) -> None:
        super().__init__()
        widths = (width, width, 2 * width, 4 * width, 5 * width)
        self.encoder = nn.Sequential(
            nn.Conv2d(2, width, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            *(
                Residual(a, b, stride=1 if last else 2)
                for a, b, last in zip(widths, widths[1:], (False, False, False, True), strict=False)
            ),
        )
        self.bands = bands
        features = (bands + 1) * widths[-1]
        self.memory = nn.LSTM(features, hidden, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * hidden + features, outputs)

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs per frame (b, t, outputs) and per clip (b, outputs)."""
        frames = self.head(self.dropout(self.features(clips)))
        return frames, frames.mean(1)

    def features(self, clips: Tensor) -> Tensor:
        """Return what the last layer sees (b, t, features): the frame, and the LSTM's reading of the clip."""
        embedded = self.dropout(self.embed(clips))
        remembered, _ = self.memory(embedded)
        return torch.cat([remembered, embedded], -1)

    def embed(self, clips: Tensor) -> Tensor:
        """Return one feature vector per frame (b, t, features).

        Maps are averaged across the image in ``bands`` bands of depth, since near field, pleura and what
        lies below mean different things; their maximum over the image is added.
        """
        count, length = clips.shape[:2]
        images = with_contrast(clips.flatten(0, 1)).contiguous(memory_format=torch.channels_last)
        maps = self.encoder(images)
        banded = F.adaptive_avg_pool2d(maps, (self.bands, 1)).flatten(1)
        return torch.cat([banded, maps.amax((2, 3))], 1).unflatten(0, (count, length))


class Readers(nn.Module):
    """Independent networks side by side: clip ``b t 1 y x`` to outputs ``b t reader output``."""

    def __init__(self, readers: Sequence[FrameLSTM]) -> None:
        super().__init__()
        self.readers = nn.ModuleList(readers)

    def forward(self, clips: Tensor) -> Tensor:
        """Return every reader's outputs for every frame."""
        return torch.stack([reader(clips)[0] for reader in self.each()], 2)

    def each(self) -> list[FrameLSTM]:
        """Return the networks."""
        return [reader for reader in self.readers if isinstance(reader, FrameLSTM)]


class Residual(nn.Module):
    """Two 3×3 convolutions with batch normalisation around a shortcut."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity(),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps ``n outputs y x`` (halved when the stride is 2)."""
        return F.relu(self.body(maps) + self.shortcut(maps))


def with_contrast(images: Tensor) -> Tensor:
    """Turn grey levels ``n 1 y x`` (0-255) into brightness and local contrast ``n 2 y x``.

    Brightness is compressed by a logarithm. Local contrast is brightness less its local mean over its local
    deviation (Jarrett et al., ICCV 2009), which gain and depth compensation hardly change.
    """
    bright = (torch.log1p(images / 8) - 1.2) / 0.9

    def local(values: Tensor) -> Tensor:
        cells = F.avg_pool2d(values, _CONTRAST_CELL)
        return F.interpolate(cells, size=values.shape[-2:], mode="bilinear", align_corners=False)

    detail = bright - local(bright)
    return torch.cat([bright, detail / (local(detail**2).sqrt() + 0.25)], 1)
