"""Vary clips in beam space as operators, patients and scanners vary them.

All functions take and return grey levels (0-255, float32) of clips ``b t depth line`` and use torch's
global random state, so that a seeded training is reproducible.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def vary_beam_clips(clips: Tensor, *, size: tuple[int, int], geometry: float = 1.0) -> Tensor:
    """Vary geometry, gain, contact and noise, alike in all frames of a clip; resample to ``size``."""
    clips = shade_beams(vary_gain(vary_geometry(clips, size=size, strength=geometry)))
    clips = clips + torch.randn_like(clips) * (6 * torch.rand(len(clips), 1, 1, 1))
    return blank_patch(clips.clamp(0, 255))


def vary_geometry(clips: Tensor, *, size: tuple[int, int], strength: float = 1.0) -> Tensor:
    """Mirror, scale depth (0.8-1.2) and width (0.8-1.2), shear a little and shift (up to 8 %)."""
    count, length = clips.shape[:2]

    def uniform(span: float) -> Tensor:
        return (2 * torch.rand(count) - 1) * span * strength

    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0] = mirror * (1 + uniform(0.2))
    matrix[:, 0, 1] = uniform(0.1)
    matrix[:, 1, 0] = uniform(0.1)
    matrix[:, 1, 1] = 1 + uniform(0.2)
    matrix[:, 0, 2], matrix[:, 1, 2] = uniform(0.16), uniform(0.16)
    place = F.affine_grid(matrix, [count, length, *size], align_corners=False)
    return F.grid_sample(clips, place, align_corners=False, padding_mode="zeros")


def vary_gain(clips: Tensor) -> Tensor:
    """Change gamma (0.7-1.4), gain (sd 15 %) and depth compensation (sd 15 % at four depths)."""
    count = len(clips)
    gamma = torch.exp((2 * torch.rand(count, 1, 1, 1) - 1) * math.log(1.4))
    clips = 255 * (clips / 255).clamp(0, 1) ** gamma
    depth = F.interpolate(
        0.15 * torch.randn(count, 1, 4, 1), size=(clips.shape[2], 1), mode="bilinear", align_corners=True
    )
    return clips * torch.exp(depth + 0.15 * torch.randn(count, 1, 1, 1))


def shade_beams(clips: Tensor, *, chance: float = 0.3) -> Tensor:
    """Darken a band of neighbouring beams, as poor contact or a rib does, in some clips."""
    count, _, _, lines = clips.shape
    centre, width = torch.rand(count, 1) * lines, lines * (0.03 + 0.1 * torch.rand(count, 1))
    hit = (torch.rand(count, 1) < chance) * (0.3 + 0.6 * torch.rand(count, 1))
    band = torch.exp(-(((torch.arange(lines)[None] - centre) / width) ** 2))
    return clips * (1 - hit * band)[:, None, None, :]


def blank_patch(clips: Tensor, *, chance: float = 0.3) -> Tensor:
    """Erase a rectangle (up to a third of each side) in some clips (DeVries & Taylor 2017)."""
    clips = clips.clone()
    height, width = clips.shape[-2:]
    for clip in _chosen(clips, chance):
        h, w = (int(torch.randint(side // 12, side // 3, ())) for side in (height, width))
        y, x = int(torch.randint(height - h, ())), int(torch.randint(width - w, ()))
        clip[:, y : y + h, x : x + w] = 0
    return clips


def _chosen(clips: Tensor, chance: float) -> list[Tensor]:
    return [clip for clip, draw in zip(clips, torch.rand(len(clips)), strict=True) if draw < chance]
