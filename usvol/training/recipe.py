"""What a task module exports as ``TRAINING`` so that ``usvol train`` and ``usvol evaluate`` know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from usvol.metrics import Estimate
from usvol.result import Labels, Result
from usvol.scan import Scan, Selection
from usvol.training.cases import Case

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.data import Dataset

Row = dict[str, Any]
Sample = dict[str, Any]
Batch = dict[str, "Tensor"]
Precision = Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true"]


class FitSettings(BaseModel):
    """Hyperparameters every recipe has; a task's own ``Settings`` extends it."""

    model_config = ConfigDict(extra="forbid")

    epochs: int = Field(30, ge=1, description="passes over the training cases; fixed, no early stopping")
    batch_size: int = Field(16, ge=1, description="cases per step")
    learning_rate: float = Field(2e-3, gt=0, description="peak of the one-cycle schedule (AdamW)")
    weight_decay: float = Field(2e-2, ge=0, description="AdamW weight decay")
    average: float = Field(0.98, ge=0, lt=1, description="decay of the running average of the weights")
    precision: Precision = Field("32-true", description="Lightning precision, such as bf16-mixed on a GPU")
    devices: str = Field(
        "1",
        pattern=r"^(auto|[1-9]\d*)$",
        coerce_numbers_to_str=True,
        description="Lightning devices: a number, or auto for all GPUs",
    )
    workers: int = Field(0, ge=0, description="data loading processes")
    seed: int = Field(0, ge=0, lt=2**32, description="of initialisation, order and augmentation")
    folds: int = Field(
        5, ge=1, description="members of the ensemble, each blind to one patient fold; 1: one that sees all"
    )
    phantoms: int = Field(0, ge=0, description="simulated cases to train on, beside the data sets")
    phantoms_held: int = Field(0, ge=0, description="of these, the last so many are kept from training")
    phantom_workers: int = Field(0, ge=0, description="processes that simulate; 0: this one")
    cache: str | None = Field(None, description="folder of prepared cases; OUT/cache if none is given")
    init: str | None = Field(None, description="safetensors file to start from (matching tensors are taken)")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a task learns and how it is scored.

    Without ``adapt`` every member of the ensemble is trained from scratch on the task's own data set less one
    fold of patients, together with all auxiliary cases. With it, one network is trained on auxiliary cases
    alone (phantoms and other data sets), and ``adapt`` then fits each member to the task's own data set less
    one fold: the way to go where labels are few.

    Attributes:
        Settings: hyperparameters (a ``FitSettings``), read from the YAML of ``usvol train``.
        prepare: a scan to tensors, once; the result is cached on disk and holds no patient identity.
        selection: which frames ``prepare`` needs.
        examples: samples to a map-style data set of training batches' items.
        network: a fresh network.
        loss: network, batch, ``settings`` to a scalar.
        stratum: the number that folds should balance.
        row: what the result says of a case and what the reference says, as flat numbers.
        metrics: rows to estimates with 95 % intervals over patients (``groups``).
        confusion: rows to counts, references in rows.
        adapt: trained network, the samples of each member, ``settings`` to the members' whole states.
        calibrate: all members' networks, each with the samples held out from it, to numbers kept per member.
        datasets: public data sets it trains on, by registry name; the first is the task's own.
        phantom: simulated cases come from this phantom, or None; ``phantom_settings`` are its settings.
        prepare_labelled: a canonical scan and the labels of its voxels to tensors, for tasks that learn label
            maps; used instead of ``prepare`` wherever there are labels. The phantom then offers
            ``simulate_labelled(seed, config)``: scan, ``Labels``, truth.
        read_labels: the label map of a case of its data sets, or None where nobody outlined it.
        describe: network, the samples it saw and those held out from it, ``settings`` to tensors that are
            kept beside its weights.
        phantoms_suffice: whether it may be trained without any data set.
    """

    Settings: type[FitSettings]
    prepare: Callable[[Scan], dict[str, Tensor]]
    selection: Selection
    examples: Callable[[Sequence[Sample], Any], Dataset[Batch]]
    network: Callable[[Any], nn.Module]
    loss: Callable[..., Tensor]
    stratum: Callable[[Case], float]
    row: Callable[[Result, Case], Row]
    metrics: Callable[[Sequence[Row], Sequence[str]], Mapping[str, Estimate]]
    confusion: Callable[[Sequence[Row]], np.ndarray] | None = None
    adapt: Callable[..., list[dict[str, Tensor]]] | None = None
    calibrate: Callable[..., list[dict[str, float]]] | None = None
    datasets: tuple[str, ...] = ()
    phantom: str | None = None
    phantom_settings: Mapping[str, Any] = field(default_factory=dict)
    prepare_labelled: Callable[[Scan, Labels], dict[str, Tensor]] | None = None
    read_labels: Callable[[Case], Labels | None] | None = None
    describe: Callable[..., dict[str, Tensor]] | None = None
    phantoms_suffice: bool = False
