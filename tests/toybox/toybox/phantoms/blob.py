"""A bright square that moves over a dark field."""

from __future__ import annotations

import torch
from pydantic import BaseModel

from usvol.scan import Grid, Scan


class Config(BaseModel):
    """Settings."""

    frames: int = 8
    size: int = 12


def simulate(seed: int, config: Config | None = None) -> tuple[Scan, dict[str, int]]:
    config = config or Config()
    data = torch.full((config.frames, 1, 1, 64, 64), 20, dtype=torch.uint8)
    for index in range(config.frames):
        left = 8 + (index + seed) % 24
        data[index, 0, 0, 20 : 20 + config.size, left : left + config.size] = 220
    times = tuple(index / 25 for index in range(config.frames))
    truth = {"bright_samples": config.frames * config.size**2}
    return Scan(data, Grid((1, 64, 64)), times), truth
