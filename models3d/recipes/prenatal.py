"""How ``prenatal`` learns: three networks by one recipe, from simulated pregnancies and own labelled volumes.

``architecture`` picks the 3D FCN of Yang et al. (TMI 2019), the FCN refined by its recurrent stage (``init``
then names the weights of the trained FCN, which stay as they are), or DeepMedic (Kamnitsas et al. 2017;
Looney et al. 2017). Loss: cross-entropy and soft Dice (Milletari et al., 3DV 2016) in equal parts; Dice
balances the classes, as it weighs each by its own size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from models3d.data.pairs import read_labels
from models3d.nets.deepmedic import MARGIN, DeepMedic
from models3d.nets.fcn_rnn import FCN, ORDERS, BrickReader, Norm, Segmenter, cut, halve, joined, lapped
from models3d.recipes.working_volume import CHANNELS, grey_levels, native_side, network_input, working
from usvol import metrics, quality
from usvol.metrics import Estimate, column_ci
from usvol.resampling import sample_labels
from usvol.result import Labels, Result
from usvol.scan import Scan, Selection
from usvol.supervision import shown
from usvol.training.cases import Case
from usvol.training.recipe import Batch, FitSettings, Recipe, Row, Sample
from usvol.training.volume_augmentation import LabelledVolume, cut_view, vary_picture, vary_pose

NAMES: dict[int, str] = {1: "placenta", 2: "gestational_sac", 3: "fetus"}
SHORT: dict[int, str] = {1: "placenta", 2: "sac", 3: "fetus"}
CLASSES = 1 + len(NAMES)
SELECTION = Selection()

_COARSEST, _FINEST = 96, 160  # samples along the longest side of what is kept for training
_NOWHERE = 255  # label of voxels outside the sector
_AUXILIARY = (0.4, 0.2)  # weight of the losses at 1/4 and 1/8 resolution
_SCOPES = 0.3  # weight of the recurrent stage's losses on bricks, planes of bricks and single orders
_NO_SECTOR = 0.15  # share of training volumes whose sector is not told to the network
_FALSE_ALARMS = 0.05  # share of volumes like those of training that the out-of-distribution gate flags


class Settings(FitSettings):
    """Training settings of ``prenatal``."""

    architecture: Literal["fcn", "fcn_rnn", "deepmedic"] = Field("fcn", description="which network")
    size: int = Field(96, ge=48, description="voxels along the side of the network's cube; a multiple of 24")
    widths: tuple[int, int, int] = Field(
        (20, 48, 96), description="maps of the FCN at 1/2, 1/4, 1/8 resolution"
    )
    depth: int = Field(4, ge=0, description="further convolutions at 1/8 resolution")
    norm: Norm = Field("group", description="batch or group normalisation of the FCN; batch learns faster")
    brick: int = Field(8, ge=2, description="side of the bricks of the recurrent stage, at half resolution")
    code: int = Field(256, ge=8, description="length of a brick's code")
    hidden: int = Field(192, ge=8, description="LSTM units in each direction")
    segment: int = Field(27, ge=9, description="side of DeepMedic's outputs in training; a multiple of 3")
    segments: int = Field(3, ge=1, description="DeepMedic's segments per volume and step")
    class_weights: tuple[float, float, float, float] = Field(
        (0.6, 1.4, 1.0, 1.2), description="of background, placenta, sac and fetus in the cross-entropy"
    )
    pose: float = Field(1.0, ge=0, le=1, description="strength of geometric augmentation")
    picture: float = Field(0.7, ge=0, le=1, description="how often grey levels are varied")

    @field_validator("size")
    @classmethod
    def _divisible(cls, size: int) -> int:
        if size % 24:
            raise ValueError("a multiple of 24 is needed, such as 72 or 96")
        return size


def prepare(scan: Scan) -> dict[str, Tensor]:
    """Keep a canonical volume isotropic, at about its finest spacing: ``grey z y x`` (uint8)."""
    return _kept(_small(scan))


def prepare_labelled(scan: Scan, labels: Labels) -> dict[str, Tensor]:
    """Keep a canonical volume and its labels: ``grey``, ``labels`` (255 outside the sector), ``known``."""
    small = _small(scan)
    kept = _kept(small)
    on_grid = sample_labels(labels.data[0], labels.grid, target=small.grid, count=CLASSES)
    inside = kept["labels"] != _NOWHERE
    kept["labels"] = torch.where(inside, on_grid, kept["labels"]).contiguous()
    return {**kept, "known": torch.tensor([value in labels.names for value in NAMES])}


def _small(scan: Scan) -> Scan:
    return working(scan, side=native_side(scan, least=_COARSEST, most=_FINEST))


def _kept(small: Scan) -> dict[str, Tensor]:
    grey, mask = grey_levels(small)
    return {"grey": (grey * 255).round().to(torch.uint8), "labels": torch.where(mask, 0, _NOWHERE).byte()}


class Volumes(Dataset[Batch]):
    """Training examples: every volume anew in another pose, view and picture."""

    def __init__(self, samples: Sequence[Sample], settings: Settings) -> None:
        self.samples = samples
        self.settings = settings

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Batch:
        sample, settings = self.samples[index], self.settings
        volume = vary_pose(_stored(sample), side=settings.size, strength=settings.pose)
        if settings.pose > 0:
            volume = cut_view(volume)
        grey, mask = volume.grey, volume.mask
        if settings.picture > 0:
            grey = vary_picture(grey, mask, strength=settings.picture)
            if float(torch.rand(())) < _NO_SECTOR:
                mask = torch.ones_like(mask)
        known = sample.get("known", torch.ones(len(NAMES), dtype=torch.bool))
        return {"volume": network_input(grey, mask), "labels": volume.labels, "known": known}


def _stored(sample: Sample) -> LabelledVolume:
    mask = sample["labels"] != _NOWHERE
    return LabelledVolume(sample["grey"].float() / 255, mask, sample["labels"] * mask)


def loss(network: nn.Module, batch: Batch, *, settings: Settings) -> Tensor:
    """Return the loss of one batch for the network at hand, deep supervision included."""
    volumes = batch["volume"].contiguous(memory_format=torch.channels_last_3d)
    labels, known = batch["labels"].long(), batch["known"]
    weights = torch.tensor(settings.class_weights, device=volumes.device)
    if isinstance(network, DeepMedic):
        blocks, inner, owner = segments(volumes, labels, size=settings.segment, count=settings.segments)
        return overlap_loss(network.segment(blocks), inner, known=known[owner], weights=weights)
    assert isinstance(network, Segmenter)
    if network.reader is not None:
        return _sequence_loss(network, volumes, labels, known=known, weights=weights)
    full, middle, coarse, _ = network.fcn.all_scales(volumes)
    total = overlap_loss(full, labels, known=known, weights=weights)
    for share, logits, step in zip(_AUXILIARY, (middle, coarse), (4, 8), strict=True):
        thin = labels[:, step // 2 - 1 :: step, step // 2 - 1 :: step, step // 2 - 1 :: step]
        total = total + share * overlap_loss(logits, thin, known=known, weights=weights)
    return total


def overlap_loss(logits: Tensor, labels: Tensor, *, known: Tensor, weights: Tensor) -> Tensor:
    """Return weighted cross-entropy plus soft Dice loss (mean over structures, pooled over the batch).

    Args:
        logits: ``b class z y x``.
        labels: ``b z y x``.
        known: ``b structure``; what a data set does not label counts as background in both.
        weights: of each class in the cross-entropy.
    """
    log_chance = _merged(torch.log_softmax(logits.float(), 1), known)
    entropy = F.nll_loss(log_chance, labels, weight=weights)
    chance = log_chance.exp()
    true = F.one_hot(labels, CLASSES).movedim(-1, 1).to(chance.dtype)
    axes = (0, 2, 3, 4)
    both, either = (chance * true).sum(axes), (chance + true).sum(axes)
    # One voxel of smoothing keeps a structure that the batch lacks from dominating.
    dice = (2 * both + 1) / (either + 1)
    return entropy + 1 - dice[1:].mean()


def _merged(log_chance: Tensor, known: Tensor) -> Tensor:
    """Count structures that a case does not label as background."""
    if bool(known.all()):
        return log_chance
    hidden = F.pad(~known, (1, 0))[..., None, None, None]
    as_background = hidden | (torch.arange(CLASSES, device=known.device)[:, None, None, None] == 0)
    background = log_chance.masked_fill(~as_background, -torch.inf).logsumexp(1, keepdim=True)
    merged = log_chance.masked_fill(hidden, -20.0)
    return torch.cat([background, merged[:, 1:]], 1)


def _sequence_loss(
    network: Segmenter, volumes: Tensor, labels: Tensor, *, known: Tensor, weights: Tensor
) -> Tensor:
    """Return the loss of the recurrent stage, supervised at every length of sequence.

    Scopes: every time step (a brick), every plane of bricks (a sub-sequence), a whole sequence (one order),
    and the average of all orders at full resolution. All but the last look at one order, drawn per step.
    """
    reader = network.reader
    assert reader is not None
    with torch.no_grad():
        logits = network.fcn(volumes)
        read = halve(logits)
        true = F.avg_pool3d(F.one_hot(labels, CLASSES).movedim(-1, 1).float(), 2)
    answers = [answer.float() for answer in reader.each_order(read.exp())]
    drawn = int(torch.randint(len(ORDERS), ()))
    bricks = cut(read, brick=reader.brick) + answers[drawn]
    targets = cut(true, brick=reader.brick)
    fast = ORDERS[drawn][1:]
    total = _soft_entropy(bricks, targets, axis=4)
    total = total + _soft_entropy(
        lapped(bricks, axes=fast, brick=reader.brick),
        lapped(targets, axes=fast, brick=reader.brick),
        axis=4,
    )
    corrections = [joined(answer, brick=reader.brick) for answer in answers]
    total = total + _soft_entropy(read + corrections[drawn], true, axis=1)
    mean = F.interpolate(torch.stack(corrections).mean(0), scale_factor=2.0, mode="trilinear")
    return overlap_loss(logits + mean, labels, known=known, weights=weights) + _SCOPES * total


def _soft_entropy(logits: Tensor, shares: Tensor, *, axis: int) -> Tensor:
    return -(shares * torch.log_softmax(logits, axis)).sum(axis).mean()


def segments(volumes: Tensor, labels: Tensor, *, size: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut ``count`` segments per volume: blocks with their margins, labels of the middle, and whose they are.

    Half of them are centred on a labelled voxel, as Kamnitsas et al. sample.
    """
    padded = F.pad(volumes, [MARGIN] * 6)
    blocks, inner, owner = [], [], []
    limit = torch.tensor(labels.shape[1:]) - size
    for index in range(len(volumes)):
        inside = (labels[index] > 0).nonzero()
        for _ in range(count):
            start = (torch.rand(3) * (limit + 1)).long()
            if len(inside) and float(torch.rand(())) < 0.5:
                start = inside[int(torch.randint(len(inside), ()))].cpu() - size // 2
            z, y, x = torch.minimum(start.clamp_min(0), limit).tolist()
            wide = size + 2 * MARGIN
            blocks.append(padded[index, :, z : z + wide, y : y + wide, x : x + wide])
            inner.append(labels[index, z : z + size, y : y + size, x : x + size])
            owner.append(index)
    return torch.stack(blocks), torch.stack(inner), torch.tensor(owner)


def new_network(settings: Settings) -> nn.Module:
    """Return the untrained network; called with volumes it returns logits and features."""
    if settings.architecture == "deepmedic":
        return DeepMedic(CHANNELS, CLASSES)
    fcn = FCN(CHANNELS, CLASSES, widths=settings.widths, depth=settings.depth, norm=settings.norm)
    if settings.architecture == "fcn":
        return Segmenter(fcn)
    return Segmenter(
        fcn, BrickReader(CLASSES, brick=settings.brick, code=settings.code, hidden=settings.hidden)
    )


@torch.no_grad()
def describe(
    network: nn.Module, seen: Sequence[Sample], *, held: Sequence[Sample], settings: Settings
) -> dict[str, Tensor]:
    """Return what the features of training cases look like, for the out-of-distribution gate.

    The limit is set on ``held``, which the network was not trained on; without such cases there is no gate.
    """
    if len(seen) < 2 or not held:
        return {}
    few = seen[:: max(1, len(seen) // 200)]
    rows = [
        torch.cat(
            [_features(network, sample, settings=settings) for sample in shown(group, "looking at features")]
        )
        for group in (few, held)
    ]
    return quality.to_tensors(quality.fit(rows[0], rows[1], false_alarm_rate=_FALSE_ALARMS))


def _features(network: nn.Module, sample: Sample, *, settings: Settings) -> Tensor:
    volume = vary_pose(_stored(sample), side=settings.size, strength=0.0)
    return network(network_input(volume.grey, volume.mask)[None])[1].float()


def row(result: Result, case: Case) -> Row:
    """Compare with the reference by structure: Dice, distances in mm, volumes in mL."""
    reference = case.reference.get("labels")
    if not isinstance(reference, Labels):
        reference = read_labels(case, names=NAMES)
    found = next(f for f in result.findings if isinstance(f, Labels))
    ml = float(np.prod(result.grid.require_spacing_mm("a comparison of volumes"))) / 1000
    answer: Row = {}
    for value in reference.names:
        name = SHORT[value]
        predicted, true = ((labels.data[0] == value).numpy() for labels in (found, reference))
        answer[f"dice_{name}"] = metrics.dice(predicted, true)
        answer[f"hd95_mm_{name}"] = metrics.hd95_mm(predicted, true, grid=result.grid)
        answer[f"asd_mm_{name}"] = metrics.asd_mm(predicted, true, grid=result.grid)
        answer[f"volume_ml_{name}"] = float(predicted.sum()) * ml
        answer[f"true_ml_{name}"] = float(true.sum()) * ml
    answer["flags"] = [flag.code for flag in result.flags]
    return answer


def score(rows: Sequence[Row], groups: Sequence[str]) -> Mapping[str, Estimate]:
    """Return the mean of each measure over cases, with its 95 % interval over patients.

    ``sac`` is label 2, the sac's content without the fetus. ``volume_error_percent``: mean absolute error,
    over cases that have the structure; ``volume_bias_percent``: the same, signed.
    """
    estimates: dict[str, Estimate] = {}
    for name in SHORT.values():
        labelled = [(r, g) for r, g in zip(rows, groups, strict=True) if f"dice_{name}" in r]
        for key in (f"dice_{name}", f"hd95_mm_{name}", f"asd_mm_{name}"):
            estimates |= column_ci(key, [(r[key], g) for r, g in labelled])
        present = [(r, g) for r, g in labelled if r[f"true_ml_{name}"] > 0]
        errors = [(100 * (r[f"volume_ml_{name}"] / r[f"true_ml_{name}"] - 1), g) for r, g in present]
        estimates |= column_ci(f"volume_error_percent_{name}", [(abs(e), g) for e, g in errors])
        estimates |= column_ci(f"volume_bias_percent_{name}", errors)
    return estimates


TRAINING = Recipe(
    Settings=Settings,
    prepare=prepare,
    selection=SELECTION,
    examples=Volumes,
    network=new_network,
    loss=loss,
    stratum=lambda _: 0.0,
    row=row,
    metrics=score,
    datasets=("pairs",),
    phantom="prenatal",
    prepare_labelled=prepare_labelled,
    read_labels=lambda case: read_labels(case, names=NAMES),
    describe=describe,
    phantoms_suffice=True,
)
