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


@cache
def turns_of_any_grid() -> tuple[Tensor, ...]:
    """Return sixty_turns, and these turned by a right angle: what is tried is then the same however axes lie.

    The icosahedron's rotations hold those of a tetrahedron, half of the rotations of a cube; with the others
    added, a volume turned by right angles is looked at in the same 120 ways.
    """
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    return (*sixty_turns(), *(quarter @ turn for turn in sixty_turns()))
