"""Orientations that a search tries, spread evenly over all there are."""

from __future__ import annotations

from functools import cache

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor


@cache
def sixty_turns() -> tuple[Tensor, ...]:
    """Return the rotations (3, 3) of an icosahedron: no orientation is farther than 45° from one of them."""
    return tuple(torch.from_numpy(turn).float() for turn in Rotation.create_group("I").as_matrix())
