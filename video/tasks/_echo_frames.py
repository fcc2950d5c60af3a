"""Frames of a prepared cine for the echocardiography networks, and the time between them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from usvol.resampling import sample_on
from usvol.scan import Scan
from usvol.supervision import track
from video.recipes.echo_clips import framed, steps_s

T = TypeVar("T")

_CHUNK = 32  # frames a network sees at once


def squared(scan: Scan) -> Scan:
    """Frame a canonical cine as training does, and take the mask of its sector along."""
    square = framed(scan)
    if scan.sector is None:
        return square
    inside = scan.sector.mask.float()[None, None, None]
    on_square = sample_on(inside, scan.grid, target=square.grid, mode="nearest")[0, 0, 0] > 0.5
    return dataclasses.replace(square, sector=dataclasses.replace(scan.sector, mask=on_square))


def grey_frames(scan: Scan) -> Tensor:
    """Return the frames of a prepared cine as training has them: ``t y x`` (uint8)."""
    return scan.data[:, 0, 0].round().clamp(0, 255).to(torch.uint8)


def in_chunks(network: Callable[[Tensor], T], frames: Tensor) -> Iterator[T]:
    """Yield what a network says of frames ``t y x``, some at a time: it is called with ``1 t 1 y x``."""
    for part in track(frames.split(_CHUNK)):
        yield network(part.float()[None, :, None])


def frame_steps(times_s: tuple[float, ...] | None, chosen: Tensor) -> Tensor:
    """Return the time in s to the frame before for the frames ``chosen`` (…, t); 0 where it is unknown."""
    if times_s is None:
        return steps_s(torch.full(chosen.shape, math.nan))
    return steps_s(torch.tensor(times_s)[chosen])
