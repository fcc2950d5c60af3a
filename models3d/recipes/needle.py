"""How ``needle`` learns: a coarse look over the view and a fine one along candidates, from label maps.

Needles fill less than a thousandth of a volume. Both losses re-sample the rest by what the network makes of
it (informed re-sampling of negatives; Pourtaherian et al., MICCAI 2017): per batch, the hardest voxels that
are no needle count extra in a cross-entropy balanced between both; soft Dice (Milletari et al., 3DV 2016)
counts all. Half of the tubes that miss a needle run along something else that is bright.

``architecture`` picks the coarse network: a light 3D U-Net, or the tri-planar CNN of Pourtaherian et al.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from models3d.data.pairs import read_labels
from models3d.nets.needle_fcn import LightUNet, TwoLooks
from models3d.nets.triplanar import TriPlanar
from models3d.recipes.needle_path import (
    Path,
    coarse_view,
    fit_path,
    levelled,
    sampled,
    tube_frame,
    tube_points,
)
from usvol import metrics
from usvol.metrics import Estimate, column_ci
from usvol.resampling import sample_on
from usvol.result import Labels, Line, Result
from usvol.scan import Scan, Selection
from usvol.training.cases import Case
from usvol.training.recipe import Batch, FitSettings, Recipe, Row, Sample
from usvol.training.volume_augmentation import vary_picture

SELECTION = Selection()
NOWHERE = 255  # label of voxels outside the sector
PHANTOM: dict[str, Any] = {"needles": 3, "size": 104}
"""Of training volumes: more needles in each, for simulating takes longer than learning."""

_HARD = 0.02  # of the negatives count extra in the cross-entropy: the hardest, by this share at least
_LEAST = 64  # of them per volume, needle or none
_EASY = 2.0  # weight of the mean over all negatives: they are right soon, and hardly count then
_POINTS = 600  # voxels that a path is fitted to


class Settings(FitSettings):
    """Training settings of ``needle``."""

    architecture: Literal["fcn", "triplanar"] = Field("fcn", description="the coarse network")
    coarse: tuple[int, ...] = Field((8, 24, 40, 64), description="maps of the coarse U-Net, from full to 1/8")
    fine: tuple[int, ...] = Field((12, 24, 40), description="maps of the fine U-Net, from full to 1/4")
    side: int = Field(48, ge=16, multiple_of=8, description="samples along the side of coarse crops")
    tube: int = Field(96, ge=16, multiple_of=4, description="samples along tubes")
    tubes: int = Field(2, ge=1, description="tubes per volume and step")
    picture: float = Field(0.7, ge=0, le=1, description="how often grey levels are varied")


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
        self._open: dict[int, _Opened] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Batch:
        settings = self.settings
        if index not in self._open:  # about 10 MB each, and they take longer to open than to look at
            self._open[index] = _opened(self.samples[index])
        volume = self._open[index]
        view, of_view = _crop(volume, settings=settings)
        tubes = [_tube(volume, settings=settings) for _ in range(settings.tubes)]
        return {
            "view": view,
            "view_labels": of_view,
            "tubes": torch.stack([tube for tube, _ in tubes]),
            "tube_labels": torch.stack([of_tube for _, of_tube in tubes]),
        }


@dataclass(frozen=True, slots=True, eq=False)
class _Opened:
    """A stored volume, ready to be looked at.

    Attributes:
        parts: level, inside the sector, needle; ``3 z y x``.
        marked: (n, 3) voxels of needles; ``owner``: of which, (n,).
        step: spacing (z, y, x).
    """

    parts: Tensor
    marked: np.ndarray
    owner: np.ndarray
    step: np.ndarray


def _opened(sample: Sample) -> _Opened:
    labels = sample["labels"]
    inside = labels != NOWHERE
    marked = ((labels > 0) & inside).nonzero(as_tuple=True)
    needle = torch.zeros(labels.shape)
    needle[marked] = 1.0
    parts = torch.stack([levelled(sample["grey"], inside), inside.float(), needle])
    return _Opened(parts, torch.stack(marked, 1).numpy(), labels[marked].numpy(), sample["step"].numpy())


def _crop(volume: _Opened, *, settings: Settings) -> tuple[Tensor, Tensor]:
    """Cut ``2 z y x`` of the coarse view and its labels (255: do not count), turned and mirrored."""
    extent = np.asarray(volume.parts.shape[1:]) * volume.step
    longest = float(_uniform(50, 76))
    z, y, x = (int(n) for n in np.clip(np.round(extent / extent.max() * longest), 4, None))
    view = coarse_view(volume.parts[0], (z, y, x))
    inside, needle = F.adaptive_max_pool3d(volume.parts[1:], (z, y, x))
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


def _tube(volume: _Opened, *, settings: Settings) -> tuple[Tensor, Tensor]:
    """Sample ``2 s v u`` (level, inside the sector) of a tube about a needle or a bright line, and labels."""
    scale = volume.step / (float(volume.step.min()) * math.exp(float(_uniform(-0.25, 0.3))))
    path = _needle_path(volume, scale) if float(torch.rand(())) < 0.75 else None
    path = _bright_path(volume.parts[0], scale) if path is None else path
    length = settings.tube
    first = path.start + (path.end - path.start) * float(torch.rand(()))
    if float(torch.rand(())) < 0.65:
        first = path.start if float(torch.rand(())) < 0.5 else path.end
    first = first - length * float(_uniform(0.15, 0.85))
    s = first + np.arange(length)
    path = _jittered(path, about=float(s.mean()))
    roll = float(_uniform(0, 2 * math.pi)) if float(torch.rand(())) < 0.4 else 0.0
    frame = tube_frame(path, roll=roll)
    if float(torch.rand(())) < 0.5:
        frame[1] *= -1
    points = tube_points(path, s if float(torch.rand(())) < 0.5 else s[::-1].copy(), frame=frame)
    level, inside, needle = sampled(volume.parts, points, scale=scale)
    mask = inside > 0.5
    grey = level * mask
    if settings.picture > 0:
        grey = vary_picture(grey, mask, strength=settings.picture)
    of_tube = torch.where(mask, (needle > 0.5).float(), float(NOWHERE)).to(torch.uint8)
    return torch.stack([grey, mask.float()]), of_tube


def _needle_path(volume: _Opened, scale: np.ndarray) -> Path | None:
    """Fit a path to one of the needles, if there is any."""
    present = np.unique(volume.owner)
    if not len(present):
        return None
    points = volume.marked[volume.owner == present[int(torch.randint(len(present), ()))]]
    if len(points) < 6:
        return None
    return fit_path(points[torch.randperm(len(points))[:_POINTS].numpy()] * scale)


def _bright_path(level: Tensor, scale: np.ndarray) -> Path:
    """Return a line through two bright voxels."""
    few = level[::2, ::2, ::2]
    bright = (few >= torch.quantile(few.flatten()[:: max(1, few.numel() // 20_000)], 0.97)).nonzero() * 2
    one, other = bright[torch.randint(len(bright), (2,))].numpy() * scale
    ahead = other - one + np.random.default_rng(int(torch.randint(1 << 30, ()))).normal(0, 0.5, 3)
    half = max(float(np.linalg.norm(ahead)) / 2, 5.0)
    return Path((one + other) / 2, ahead / np.linalg.norm(ahead), np.zeros(3), -half, half)


def _jittered(path: Path, *, about: float) -> Path:
    """Displace a path as a coarse fit would: by a sample or two, and a few degrees about a point of it."""
    pivot = path.points(np.array([about]))[0]
    noise = torch.randn(3, 3).double().numpy()
    ahead = path.ahead + 2 * about * path.bend + noise[0] * float(_uniform(0, 0.04))
    ahead /= np.linalg.norm(ahead)
    bend = path.bend + noise[1] * 2e-4
    bend -= (bend @ ahead) * ahead
    moved = pivot + noise[2] * float(_uniform(0, 2.0))
    # The parabola again counts s from its own middle.
    middle = moved - about * ahead - about**2 * bend
    return Path(middle, ahead, bend, path.start, path.end)


def _varied(view: Tensor, mask: Tensor, *, strength: float) -> Tensor:
    """Vary both channels of a coarse view in the same way."""
    state = torch.get_rng_state()
    channels = []
    for channel in view:
        torch.set_rng_state(state)
        channels.append(vary_picture(channel, mask, strength=strength))
    return torch.stack(channels)


def loss(network: nn.Module, batch: Batch, *, settings: Settings) -> Tensor:
    """Return the loss of both looks."""
    del settings
    tubes, of_tubes = batch["tubes"].flatten(0, 1), batch["tube_labels"].flatten(0, 1)
    views, lengths = network(batch["view"], tubes)
    return resampled_loss(views, batch["view_labels"]) + resampled_loss(lengths, of_tubes)


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


def new_network(settings: Settings) -> TwoLooks:
    """Return the untrained networks."""
    if settings.architecture == "triplanar":
        return TwoLooks(TriPlanar(2), LightUNet(2, widths=settings.fine))
    return TwoLooks(LightUNet(2, widths=settings.coarse), LightUNet(2, widths=settings.fine))


def row(result: Result, case: Case) -> Row:
    """Compare with the truth: voxels found, tip (mm), axis (degrees), whether there is a needle at all."""
    truth = case.reference
    reference = truth["labels"]
    lines = [f for f in result.findings if isinstance(f, Line)]
    found = next((f.data[0].numpy() > 0 for f in result.findings if isinstance(f, Labels)), None)
    true = reference.data[0].numpy() == 1
    answer: Row = {
        "present": bool(truth["present"]),
        "found": bool(lines),
        "confidence": lines[0].confidence if lines else None,
        "style": truth.get("style"),
        "gauge": truth.get("gauge"),
        "inside_mm": truth.get("inside_mm"),
        "angle_to_face_deg": truth.get("angle_to_face_deg"),
        "tip_in_view": truth.get("tip_in_view"),
        "flags": [flag.code for flag in result.flags],
    }
    if answer["present"]:
        answer["f1"] = 0.0 if found is None else metrics.dice(found, true)
    if not (lines and answer["present"] and result.grid.is_calibrated):
        return answer
    entry, tip = np.array(lines[0].entry), np.array(lines[0].tip)
    ahead = (tip - entry) / max(float(np.linalg.norm(tip - entry)), 1e-9)
    sine = float(np.linalg.norm(np.cross(ahead, truth["direction"])))
    answer["axis_deg"] = math.degrees(math.asin(min(sine, 1.0)))
    if truth["tip_in_view"]:
        answer["tip_mm"] = float(np.linalg.norm(tip - truth["tip_mm"]))
    return answer


def score(rows: Sequence[Row], groups: Sequence[str]) -> Mapping[str, Estimate]:
    """Return f1 over volumes with a needle (0 if missed), and what else the module's row says.

    ``tip_mm`` (mean) and ``tip_mm_p95``, ``axis_deg``: over needles that were found; the tip only where it is
    in the field of view. ``false_alarm``: of volumes without a needle; ``missed``: of those with one.
    """
    cases = list(zip(rows, groups, strict=True))
    f1, tip_mm, axis_deg = (
        [(float(r[key]), g) for r, g in cases if r.get(key) is not None]
        for key in ("f1", "tip_mm", "axis_deg")
    )
    estimates = column_ci("f1", f1) | column_ci("tip_mm", tip_mm)
    estimates |= column_ci("tip_mm_p95", tip_mm, statistic=lambda values: float(np.percentile(values, 95)))
    estimates |= column_ci("axis_deg", axis_deg)
    for name, present in (("false_alarm", False), ("missed", True)):
        wrong = [(float(r["found"] is not present), g) for r, g in cases if r["present"] is present]
        estimates |= column_ci(name, wrong)
    return estimates


def _uniform(low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(())


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
    phantom="needle",
    phantom_settings=PHANTOM,
    prepare_labelled=prepare_labelled,
    read_labels=lambda case: read_labels(case, names={1: "needle"}),
    phantoms_suffice=True,
)
