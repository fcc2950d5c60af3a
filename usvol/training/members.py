"""The members of an ensemble in one state dict: what they share is stored once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file

from usvol import weights
from usvol.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from usvol.training.recipe import Recipe
    from usvol.weights import Weights

logger = logging.getLogger(__name__)

WeightsName = Annotated[
    str, Field(description="name of shipped weights, or the .safetensors file `usvol train` wrote")
]
Member = Annotated[
    int | None, Field(ge=0, description="use one network of an ensemble only; the first if unset")
]

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


def start_from(path: Path, *networks: nn.Module) -> None:
    """Give like networks the tensors of a safetensors file that fit them; of an ensemble the first member's.

    Raises:
        ConfigError: no such file, or nothing in it fits.
    """
    if not path.is_file():
        raise ConfigError(f"init: there is no file {path}.")
    own = networks[0].state_dict()
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"init: {path} is no whole safetensors file ({error}).") from error
    stored |= member_state(stored, 0)
    taken = {k: v.float() for k, v in stored.items() if k in own and own[k].shape == v.shape}
    if not taken:
        raise ConfigError(f"init: no tensor of {path} fits this network. Give weights of the same task.")
    logger.info("%d of %d tensors start from %s", len(taken), len(own), path.name)
    for network in networks:
        network.load_state_dict(taken, strict=False)


@dataclass(frozen=True, slots=True, eq=False)
class Restored:
    """One trained member, ready to build a task from.

    Attributes:
        network: of the recipe, in evaluation mode, on the CPU.
        settings: it was trained with (the recipe's ``Settings``).
        state: every tensor stored for it, such as the statistics beside the network's own.
        members: in the ensemble.
        train_patients: hashed, which ``usvol evaluate`` keeps from the test.
        provenance: name and sha256 of the weights.
    """

    network: Any
    settings: Any
    state: dict[str, Tensor]
    members: int
    train_patients: frozenset[str]
    provenance: dict[str, Any]


def restore(recipe: Recipe, package: str, *, name: str, member: int = 0) -> Restored:
    """Load one member of the weights ``name`` (shipped by ``package``, or a file of one's own).

    Raises:
        WeightsError: no such weights, a wrong checksum, or of another task. ConfigError: no such member.
    """
    stored = weights.find(package, name)
    with expected_of(stored):
        count = int(stored.metadata["members"])
        if member >= count:
            raise ConfigError(f"member: these weights have members 0 to {count - 1}, not {member}.")
        settings = recipe.Settings.model_validate_json(stored.metadata["settings"])
        state = member_state(stored.state, member)
        network = recipe.network(settings)
        network.load_state_dict({key: state[key] for key in network.state_dict()})
        return Restored(
            network=network.eval(),
            settings=settings,
            state=state,
            members=count,
            train_patients=frozenset(json.loads(stored.metadata["train_patients"])[member]),
            provenance={"weights": stored.name, "weights_sha256": stored.sha256},
        )


@contextmanager
def expected_of(stored: Weights) -> Iterator[None]:
    """Turn what fails when other weights than a task's own are put into it into one error that says so.

    Raises:
        WeightsError: a fact, a setting or a tensor that the task needs is missing or does not fit.
    """
    try:
        yield
    except (LookupError, ValueError, RuntimeError) as error:
        said = stored.metadata.get("task")
        whose = f"of the task {said!r}, perhaps of another version" if said else "without what 'train' notes"
        raise WeightsError(
            f"{stored.name}: these weights are {whose}, and do not fit here. Give the file that "
            "'usvol train' wrote for this task; one of an earlier version can be trained on from: "
            "'usvol train TASK --set init=FILE'."
        ) from error
