"""How ``ejection_fraction`` learns: the ventricle's mask in every frame, EF by CNN and by CNN-LSTM.

One network gives three answers that are shown side by side. Losses: cross-entropy and soft Dice of the masks
(Milletari et al., 3DV 2016) on the frames that somebody outlined (all, in phantoms), a robust error of both
EFs, and of the ventricle's relative size in time where every frame is outlined.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from usvol import metrics
from usvol.measurement import chamber_discs, ejection_fraction_percent, simpson_volume
from usvol.metrics import Estimate, UndefinedMetricError, bootstrap_ci
from usvol.result import Labels, Result
from usvol.training.cases import Case
from usvol.training.recipe import Batch, FitSettings, Recipe, Row, Sample
from video.nets.ventricle_net import VentricleNet
from video.recipes.echo_clips import (
    SELECTION,
    VENTRICLE,
    drawn_window,
    event_times,
    gate_tensors,
    prepare,
    prepare_labelled,
    read_labels,
    steps_s,
    varied,
)

MASKS = "left_ventricle"
EF_NAMES = {
    "fused": "ejection_fraction",
    "segmentation": "ejection_fraction_segmentation",
    "clip": "ejection_fraction_cnn_lstm",
    "frames": "ejection_fraction_cnn",
}
"""Measurements of the task, in %."""

_REDUCED = 50.0  # EF below it counts as reduced in the AUC
_EF_SCALE = 10.0
_MOMENTS = 5  # last of the network's features: area, centre and spread of the mask


class Settings(FitSettings):
    """Training settings of ``ejection_fraction``."""

    width: int = Field(
        16, ge=4, description="maps at half resolution; the deepest level has four times as many"
    )
    hidden: int = Field(64, ge=8, description="LSTM units in each direction")
    dropout: float = Field(0.2, ge=0, lt=1, description="before the heads")
    length: int = Field(20, ge=4, description="frames per training clip")
    pose: float = Field(1.0, ge=0, le=1, description="strength of augmentation")
    mask_weight: float = Field(1.0, ge=0, description="weight of the masks")
    ef_weight: float = Field(0.5, ge=0, description="weight of each EF, per 10 points")
    area_weight: float = Field(1.0, ge=0, description="weight of the relative size in time")


class Beats(Dataset[Batch]):
    """Training examples: a beat of each cine with its EF, and the masks there are."""

    def __init__(self, samples: Sequence[Sample], settings: Settings) -> None:
        self.samples = [sample for sample in samples if sample.get("ef_percent") is not None]
        self.settings = settings

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Batch:
        sample, length = self.samples[index], self.settings.length
        around, ef = _beat(sample)
        chosen = drawn_window(sample, length=length, around_s=around)
        at = sample["mask_frames"]
        if 0 < len(at) < len(sample["frames"]):
            # The few frames that were outlined are put in the place of their nearest neighbours.
            for frame in at:
                chosen[(chosen - frame).abs().argmin()] = frame
            chosen = chosen.sort().values
        masks = torch.zeros(length, *sample["frames"].shape[1:], dtype=torch.bool)
        hits = (chosen[:, None] == at[None]).nonzero()
        masks[hits[:, 0]] = sample["masks"][hits[:, 1]]
        known = torch.zeros(length, dtype=torch.bool)
        known[hits[:, 0]] = True
        return {
            "frames": sample["frames"][chosen],
            "steps_s": steps_s(sample["times_s"][chosen]),
            "masks": masks,
            "known": known,
            "ef": torch.tensor(float(ef)),
        }


def _beat(sample: Mapping[str, Any]) -> tuple[tuple[float, float] | None, float]:
    """Draw a beat of a sample: first and last moment that must be seen, and its EF in %."""
    beats = sample.get("beats")
    if beats:
        ed_s, es_s, ef = beats[int(torch.randint(len(beats), ()))]
        return (ed_s, es_s), ef
    ends = [t for name in ("ed", "es") for t in event_times(sample, name)]
    return ((min(ends), max(ends)) if len(ends) >= 2 else None), float(sample["ef_percent"])


def loss(network: nn.Module, batch: Batch, *, settings: Settings) -> Tensor:
    """Return the loss of one batch: masks, both EFs, relative size."""
    assert isinstance(network, VentricleNet)
    clips, masks = varied(batch["frames"].float(), batch["masks"].float(), strength=settings.pose)
    assert masks is not None
    outputs = network(clips[:, :, None], batch["steps_s"])
    target = F.avg_pool2d(masks, 2)
    known = batch["known"]
    total = settings.mask_weight * mask_loss(outputs.masks.float(), target, known=known)
    for guess in (outputs.ef_frames, outputs.ef_clip):
        error = F.smooth_l1_loss(guess.float() / _EF_SCALE, batch["ef"] / _EF_SCALE, beta=0.5)
        total = total + settings.ef_weight * error
    size = target.sum((2, 3))
    relative = size / size.amax(1, keepdim=True).clamp(min=1)
    whole = known.all(1, keepdim=True).expand_as(relative).float()
    area = (whole * (outputs.area.float() - relative).square()).sum() / whole.sum().clamp(min=1)
    return total + settings.area_weight * area


def mask_loss(logits: Tensor, target: Tensor, *, known: Tensor) -> Tensor:
    """Return cross-entropy plus soft Dice loss of the frames ``b t y x`` that are known."""
    if not bool(known.any()):
        return logits.sum() * 0
    logits, target = logits[known], target[known]
    entropy = F.binary_cross_entropy_with_logits(logits, target)
    chance = torch.sigmoid(logits)
    both = (chance * target).sum((1, 2))
    either = (chance + target).sum((1, 2))
    return 4 * entropy + (1 - (2 * both + 1) / (either + 1)).mean()


def ef_by_discs(labels: Labels, *, ed: int, es: int, label: int = VENTRICLE) -> float:
    """Return the EF in % of one beat from its masks by single-plane discs; no scale is needed.

    Raises:
        ValueError: a mask too small to be cut into discs, or a systole larger than its diastole.
    """
    volumes = [simpson_volume(chamber_discs(labels, label, frame=frame)) for frame in (ed, es)]
    return ejection_fraction_percent(*volumes)


def protocol_clips(count: int, *, length: int = 32, period: int = 2) -> list[Tensor]:
    """Return the frames of every clip of the EchoNet protocol: ``length`` frames, every ``period``-th.

    Ouyang et al. (2020) answer a video by the mean over all of these. A video too short for one gives one
    clip, its last frame repeated.
    """
    span = (length - 1) * period + 1
    steps = period * torch.arange(length)
    return [(start + steps).clamp(max=count - 1) for start in range(max(1, count - span + 1))]


def row(result: Result, case: Case) -> Row:
    """Put the task's EFs and masks beside the reference; NaN where the task declined or nobody outlined."""
    measured = {m.name: m.value for m in result.measurements}
    values: Row = {
        f"ef_{key}": np.nan if measured.get(name) is None else float(str(measured[name]))
        for key, name in EF_NAMES.items()
    }
    values["true_ef"] = float(case.reference["ef_percent"])
    truth = case.reference.get("labels") or read_labels(case)
    found = next((f for f in result.findings if isinstance(f, Labels) and f.name == MASKS), None)
    for event in ("ed", "es"):
        frames = list(case.reference[f"{event}_frames"])
        values[f"dice_{event}"] = np.nan if truth is None or found is None else _dice(found, truth, frames)
    return values


def _dice(found: Labels, truth: Labels, frames: Sequence[int]) -> float:
    """Return the mean Dice of the frames that both labelled; NaN without any."""
    places = [list(m.frame_indices or range(len(m.data))) for m in (found, truth)]
    scores = [
        metrics.dice(
            np.asarray(found.data[places[0].index(n)] == VENTRICLE),
            np.asarray(truth.data[places[1].index(n)] == VENTRICLE),
        )
        for n in frames
        if all(n in place for place in places)
    ]
    return float(np.mean(scores)) if scores else float("nan")


def score(rows: Sequence[Row], groups: Sequence[str]) -> Mapping[str, Estimate]:
    """Return how well EF and masks agree with the reference, each with its 95 % interval over patients.

    ``answered`` is the share of cases with a fused EF; errors are over those answered.
    """
    estimates = {"answered": _over(rows, groups, lambda a: float(a.mean()), "ef_fused", finite=False)}
    for key in EF_NAMES:
        end = "" if key == "fused" else f"_{key}"
        pair = (f"ef_{key}", "true_ef")
        estimates |= {
            f"mae{end}": _over(rows, groups, metrics.mae, *pair),
            f"rmse{end}": _over(rows, groups, metrics.rmse, *pair),
            f"r_squared{end}": _over(rows, groups, metrics.r_squared, *pair),
            f"bias{end}": _over(rows, groups, metrics.bias, *pair),
        }
    for side, end in ((-1, "low"), (1, "high")):
        limit = functools.partial(metrics.agreement_limit, side=side)
        estimates[f"limit_{end}"] = _over(rows, groups, limit, "ef_fused", "true_ef")
    estimates["auc_reduced"] = _over(rows, groups, _auc_reduced, "ef_fused", "true_ef")
    for event in ("ed", "es"):
        estimates[f"dice_{event}"] = _over(rows, groups, lambda d: float(d.mean()), f"dice_{event}")
    return {name: estimate for name, estimate in estimates.items() if estimate is not None}


def _auc_reduced(ef: np.ndarray, true: np.ndarray) -> float:
    return metrics.auc(-np.asarray(ef), (np.asarray(true) < _REDUCED).astype(int))


def _over(
    rows: Sequence[Row], groups: Sequence[str], statistic: Any, *names: str, finite: bool = True
) -> Estimate | None:
    """Estimate over the rows where all the named values are there; None where the data do not allow it."""
    columns = np.array([[r[name] for name in names] for r in rows], float)
    there = np.asarray(np.isfinite(columns).all(1), bool)
    if not finite:
        columns, there = np.isfinite(columns).astype(float), np.ones(len(rows), bool)
    kept = [g for g, t in zip(groups, there, strict=True) if t]
    if len(set(kept)) < 2:
        return None
    try:
        return bootstrap_ci(statistic, list(columns[there].T), groups=kept)
    except UndefinedMetricError:
        return None


def new_network(settings: Settings) -> VentricleNet:
    """Return the untrained network."""
    return VentricleNet(width=settings.width, hidden=settings.hidden, dropout=settings.dropout)


@torch.no_grad()
def describe(
    network: nn.Module, seen: Sequence[Sample], *, held: Sequence[Sample], settings: Settings
) -> dict[str, Tensor]:
    """Return what the features of training clips look like, for the out-of-distribution gate."""
    del settings
    assert isinstance(network, VentricleNet)
    return gate_tensors(lambda clip: judged_features(network.see(clip)[1][0]), seen, held=held)


def judged_features(features: Tensor) -> Tensor:
    """Return the part of the features ``t f`` that the gate judges: means over places, and the mask's."""
    placed, mask = features[:, :-_MOMENTS], features[:, -_MOMENTS:]
    return torch.cat([placed.unflatten(-1, (-1, 4)).mean(-1), mask], -1)


TRAINING = Recipe(
    Settings=Settings,
    prepare=prepare,
    selection=SELECTION,
    examples=Beats,
    network=new_network,
    loss=loss,
    stratum=lambda case: float(case.reference.get("ef_percent") or 0.0),
    row=row,
    metrics=score,
    datasets=("echonet_dynamic", "camus", "echonet_pediatric"),
    phantom="heart",
    phantom_settings={"size": 128, "max_frames": 96},
    prepare_labelled=prepare_labelled,
    read_labels=read_labels,
    describe=describe,
    phantoms_suffice=True,
)
