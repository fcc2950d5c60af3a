"""The members of an ensemble in one state dict: what they share is stored once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_SHARED = "shared."


def join_members(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return one state dict with keys ``shared.NAME`` and ``member_K.NAME``.

    Example:
        >>> import torch
        >>> one, two = torch.zeros(1), torch.ones(1)
        >>> sorted(join_members([{"a": one, "b": one}, {"a": one, "b": two}]))
        ['member_0.b', 'member_1.b', 'shared.a']
    """
    joined: dict[str, Tensor] = {}
    for name, first in states[0].items():
        values = [state[name] for state in states]
        if len(values) > 1 and all(value.equal(first) for value in values):
            joined[_SHARED + name] = first
        else:
            joined |= {f"member_{k}.{name}": value for k, value in enumerate(values)}
    return joined


def member_state(joined: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Return the state dict of one member; undoes ``join_members``."""
    own = f"member_{index}."
    return {
        name.removeprefix(_SHARED).removeprefix(own): value
        for name, value in joined.items()
        if name.startswith((_SHARED, own))
    }
