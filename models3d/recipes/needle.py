"""How ``needle`` learns: a look over the view, one along candidate lines, and one at means along these.

Needles fill less than a thousandth of a volume. The first look's loss re-samples the rest by what the network
makes of it (informed re-sampling of negatives; Pourtaherian et al., MICCAI 2017): per batch, the hardest
voxels that are no needle count extra in a cross-entropy balanced between both; soft Dice (Milletari et al.,
3DV 2016) counts all. The second look learns from tubes (``needle_tubes.py``) which lines are needles, where
their axis runs and where it ends. Both learn together; the third, which reads the axis finer
(``needle_sections.py``), after them.

``architecture`` picks the first network: a light 3D U-Net, or the tri-planar CNN of Pourtaherian et al.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from models3d.data.pairs import read_labels
from models3d.nets.needle_fcn import LightUNet, Looks, TubeReader
from models3d.nets.section_reader import SectionReader
from models3d.nets.triplanar import TriPlanar
from models3d.recipes.needle_lines import proposed_lines
from models3d.recipes.needle_path import TUBE, WIDE, Path, coarse_shape, coarse_view
from models3d.recipes.needle_scores import NAMES, row, score
from models3d.recipes.needle_sections import FACTS, SECTIONS, Shafts, section_loss
from models3d.recipes.needle_tubes import NOWHERE, Volume, drawn_tube, opened
from usvol.resampling import sample_on
from usvol.result import Labels
from usvol.scan import Scan, Selection
from usvol.training.members import start_from
from usvol.training.recipe import Batch, FitSettings, Recipe, Sample
from usvol.training.volume_augmentation import vary_picture

SELECTION = Selection()
PHANTOM: dict[str, Any] = {"needles": 3, "size": 104}
"""Of training volumes: more needles in each, for simulating takes longer than learning."""

_HARD = 0.02  # of the negatives count extra in the cross-entropy: the hardest, by this share at least
_LEAST = 64  # of them per volume, needle or none
_EASY = 2.0  # weight of the mean over all negatives: they are right soon, and hardly count then
_PROPOSED = 4  # lines that the first network proposes in a volume of the training
_TIP_SPREAD = 1.5  # samples, of the tip as the second look learns it


class Settings(FitSettings):
    """Training settings of ``needle``."""

    architecture: Literal["fcn", "triplanar"] = Field("fcn", description="the coarse network")
    coarse: tuple[int, ...] = Field((8, 24, 40, 64), description="maps of the coarse U-Net, from full to 1/8")
    fine: tuple[int, int, int] = Field((16, 24, 48), description="maps of the reader of tubes")
    code: int = Field(64, ge=4, description="length of its code of a slice")
    side: int = Field(48, ge=16, multiple_of=8, description="samples along the side of coarse crops")
    tubes: int = Field(4, ge=1, description="tubes per volume and step")
    picture: float = Field(0.7, ge=0, le=1, description="how often grey levels are varied")
    proposed: float = Field(
        0.0, ge=0, le=1, description="share of tubes along lines that the first network of `init` proposes"
    )

    look: Literal["first_two", "third"] = Field(
        "first_two", description="which learn: the first and the second, or the third from those of `init`"
    )
    kept: int = Field(
        0, ge=0, description="tubes of a volume that the third draws once and learns from; 0: anew each time"
    )

    @model_validator(mode="after")
    def _from_something(self) -> Settings:
        if self.proposed > 0 and self.init is None:
            raise ValueError(
                "proposed: the weights whose first network proposes lines are to be named as init"
            )
        if self.look == "third" and self.init is None:
            raise ValueError("look: the weights whose second network reads tubes are to be named as init")
        if 0 < self.kept < self.tubes:
            raise ValueError(f"kept: {self.tubes} tubes are taken of those kept, so keep as many at least")
        return self


def prepare(scan: Scan) -> dict[str, Tensor]:
    """Keep a canonical volume as it is: ``grey z y x``, ``labels`` (255 outside the sector), its spacing."""
    assert scan.sector is not None
    mask = scan.sector.mask.reshape(scan.grid.shape)
    grey = scan.data[0, 0]
    if grey.dtype != torch.uint8:
        low, high = grey.min(), grey.max()
        grey = ((grey - low) / (high - low).clamp_min(1e-6) * 255).round().to(torch.uint8)
    step = torch.tensor(scan.grid.step, dtype=torch.float64)
    labels = torch.where(mask, 0, NOWHERE).to(torch.uint8)
    return {"grey": grey.contiguous(), "labels": labels, "step": step}


def prepare_labelled(scan: Scan, labels: Labels) -> dict[str, Tensor]:
    """Keep a canonical volume with the voxels of its needles."""
    kept = prepare(scan)
    on_grid = sample_on(labels.data[:1, None], labels.grid, target=scan.grid, mode="nearest")[0, 0]
    kept["labels"] = torch.where(kept["labels"] == NOWHERE, kept["labels"], on_grid).contiguous()
    return kept


class Volumes(Dataset[Batch]):
    """Training examples: a crop of the coarse view, in any orientation, and tubes."""

    def __init__(self, samples: Sequence[Sample], settings: Settings) -> None:
        self.samples = samples
        self.settings = settings
        self.first = _earlier(settings).coarse if settings.proposed > 0 else None
        self.lines: dict[int, tuple[Path, ...]] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Batch:
        settings = self.settings
        volume = self._with_lines(opened(self.samples[index]), index)
        view, of_view = _crop(volume, self.samples[index]["labels"], settings=settings)
        tubes = [
            drawn_tube(volume, picture=settings.picture, proposed=settings.proposed)
            for _ in range(settings.tubes)
        ]
        together = {key: torch.stack([tube[key] for tube in tubes]) for key in tubes[0]}
        return {"view": view, "view_labels": of_view, **together}

    @torch.no_grad()
    def _with_lines(self, volume: Volume, index: int) -> Volume:
        """Add the lines that the first network proposes, told once per volume."""
        if self.first is None:
            return volume
        if index not in self.lines:
            scale = volume.step / volume.step.min()
            lines = proposed_lines(
                self.first, volume.parts[0], step=volume.step, scale=scale, count=_PROPOSED
            )
            self.lines[index] = tuple(lines)
        return dataclasses.replace(volume, lines=self.lines[index])


def examples(samples: Sequence[Sample], settings: Settings) -> Dataset[Batch]:
    """Return what the looks that learn learn from."""
    if settings.look == "first_two":
        return Volumes(samples, settings)
    second = _earlier(settings).fine
    return Shafts(samples, second, tubes=settings.tubes, kept=settings.kept, picture=settings.picture)


def _earlier(settings: Settings) -> Looks:
    """Return the networks of ``init``, as they are there."""
    assert settings.init is not None
    network = new_network(settings)
    start_from(FilePath(settings.init), network)
    return network.eval()


def _crop(volume: Volume, labels: Tensor, *, settings: Settings) -> tuple[Tensor, Tensor]:
    """Cut ``2 z y x`` of the coarse view and its labels (255: do not count), turned and mirrored."""
    z, y, x = coarse_shape(volume.parts.shape[1:], volume.step, longest=float(_uniform(50, 76)))
    view = coarse_view(volume.parts[0], (z, y, x))
    needle = (labels > 0) * volume.parts[1]
    inside, needle = F.adaptive_max_pool3d(torch.stack([volume.parts[1], needle]), (z, y, x))
    of_view = torch.where(inside > 0, needle, float(NOWHERE)).to(torch.uint8)
    order = torch.randperm(3).tolist()
    flips = [axis for axis in range(3) if float(torch.rand(())) < 0.5]
    view = view.permute(0, *(axis + 1 for axis in order)).flip([axis + 1 for axis in flips])
    of_view = of_view.permute(order).flip(flips)
    marked = (of_view == 1).nonzero()
    size = torch.tensor(of_view.shape)
    middle = (torch.rand(3) * size).long()
    if len(marked) and float(torch.rand(())) < 0.75:
        middle = marked[int(torch.randint(len(marked), ()))] + (torch.randn(3) * 6).long()
    side = settings.side
    start = torch.minimum((middle - side // 2).clamp_min(0), (size - side).clamp_min(0))
    block = tuple(slice(int(a), int(a) + side) for a in start)
    pad = [n for axis in (2, 1, 0) for n in (0, max(0, side - int(size[axis])))]
    view, of_view = F.pad(view[(slice(None), *block)], pad), F.pad(of_view[block], pad, value=NOWHERE)
    if settings.picture > 0:
        view = _varied(view, of_view != NOWHERE, strength=settings.picture)
    return view.contiguous(), of_view.contiguous()


def _varied(view: Tensor, mask: Tensor, *, strength: float) -> Tensor:
    """Vary both channels of a coarse view in the same way."""
    state = torch.get_rng_state()
    channels = []
    for channel in view:
        torch.set_rng_state(state)
        channels.append(vary_picture(channel, mask, strength=strength))
    return torch.stack(channels)


def loss(network: Looks, batch: Batch, *, settings: Settings) -> Tensor:
    """Return the loss of the looks that learn."""
    truth = {key: values.flatten(0, 1) for key, values in batch.items() if not key.startswith("view")}
    if settings.look == "third":
        return section_loss(*network.sections(truth["sections"], truth["facts"]), truth=truth)
    views, answers = network.coarse(batch["view"]), network.fine(truth["tube"])
    return resampled_loss(views, batch["view_labels"]) + tube_loss(*answers, truth=truth)


def tube_loss(slices: Tensor, whole: Tensor, *, truth: Mapping[str, Tensor]) -> Tensor:
    """Return the loss of what tubes answer (``TubeReader``), given what is true of them (``drawn_tube``)."""
    slices, whole = slices.float(), whole.float()
    shaft, needle = truth["shaft"], truth["needle"]
    counted = (truth["tube"][:, 1].amax((2, 3)) > 0.5) & (shaft >= 0)
    total = _mean(_entropy(slices[:, 0], shaft), counted) + _mean(_entropy(whole[:, 0], needle), needle >= 0)
    off = F.smooth_l1_loss(slices[:, 1:3], truth["offset"], reduction="none", beta=0.25).sum(1)
    total = total + _mean(off, counted & (shaft == 1))
    known = ~truth["log_radius"].isnan()
    total = total + _mean((whole[:, 2] - truth["log_radius"].nan_to_num()).abs(), known)
    return total + 0.5 * _mean(_tip_entropy(slices[:, 3], whole[:, 1], truth["tip"]), truth["tip_known"] > 0)


def _tip_entropy(tips: Tensor, none: Tensor, true: Tensor) -> Tensor:
    """Return the cross-entropy ``b`` of which slice the tip is in (``b s``), if any, over its entropy."""
    absent = true.isnan()
    away = torch.arange(tips.shape[1], device=tips.device) - true.nan_to_num()[:, None]
    wanted = torch.softmax(-0.5 * (away / _TIP_SPREAD) ** 2, 1) * ~absent[:, None]
    wanted = torch.cat([wanted, absent[:, None].float()], 1)
    chances = torch.log_softmax(torch.cat([tips, none[:, None]], 1), 1)
    return (torch.xlogy(wanted, wanted) - wanted * chances).sum(1)


def _entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels.clamp_min(0), reduction="none")


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return (values * counted).sum() / counted.sum().clamp_min(1)


def resampled_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return balanced cross-entropy with the hardest negatives counted extra, plus soft Dice.

    With the hardest negatives alone, training stayed where every candidate is as likely as any other.

    Args:
        logits: ``b z y x``.
        labels: ``b z y x``, 0 or 1; 255 does not count.
    """
    logits, counted = logits.float(), labels != NOWHERE
    positive, negative = labels == 1, labels == 0
    entropy = F.binary_cross_entropy_with_logits(logits, positive.float(), reduction="none")
    total = logits.new_zeros(())
    if count := int(negative.sum()):
        wanted = max(int(_HARD * count), 2 * int(positive.sum()), _LEAST * len(logits))
        hardest = entropy[negative].topk(min(count, wanted)).values
        total = 0.25 * hardest.mean() + _EASY * entropy[negative].mean()
    if bool(positive.any()):
        total = total + 0.5 * entropy[positive].mean()
    chance = torch.sigmoid(logits) * counted
    dice = (2 * (chance * positive).sum() + 1) / (chance.sum() + positive.sum() + 1)
    return total + 1 - dice


def new_network(settings: Settings) -> Looks:
    """Return the untrained networks."""
    coarse = TriPlanar(2) if settings.architecture == "triplanar" else LightUNet(2, widths=settings.coarse)
    fine = TubeReader(2, across=WIDE, widths=settings.fine, code=settings.code)
    looks = Looks(coarse, fine, SectionReader(FACTS, across=WIDE, slices=TUBE // SECTIONS))
    for idle in (looks.sections,) if settings.look == "first_two" else (coarse, fine):
        idle.requires_grad_(False)
    return looks


def _uniform(low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(())


TRAINING = Recipe(
    Settings=Settings,
    prepare=prepare,
    selection=SELECTION,
    examples=examples,
    network=new_network,
    loss=loss,
    stratum=lambda _: 0.0,
    row=row,
    metrics=score,
    datasets=("pairs",),
    phantom="needle",
    phantom_settings=PHANTOM,
    prepare_labelled=prepare_labelled,
    read_labels=lambda case: read_labels(case, names=NAMES),
    phantoms_suffice=True,
)
