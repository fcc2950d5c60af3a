"""How the axis of a needle is read finer than slice by slice: from means over parts of a tube around it.

The second look says in which slices there is a shaft; a tube's slices are averaged, weighted by that, in
``SECTIONS`` parts, which ``SectionReader`` reads. Its answers are made one shallow parabola by least squares,
and it learns from how far that is from the true axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from models3d.recipes.needle_path import (
    BEND_DEVIATION,
    TUBE,
    Path,
    refitted,
    tube_frame,
    tube_lengths,
    tube_points,
)
from models3d.recipes.needle_tubes import (
    LEAST_POINTS,
    NOWHERE,
    Volume,
    drawn_frame,
    drawn_unit,
    found_shafts,
    jittered,
    opened,
    read_tube,
    tube_truth,
)
from models3d.recipes.working_volume import in_picture
from usvol.training.recipe import Batch, Sample

SECTIONS = 8
FACTS = 5
OUTER_MM = {17: 1.473, 22: 0.718}
"""Outer diameter by gauge (ISO 9626)."""

_USUAL_MM = 1 / 3  # of a fine sample
_BETWEEN_MM = math.sqrt(OUTER_MM[17] * OUTER_MM[22]) / 2  # radius that is as far from both
_HELD = 0.02  # weight with which the middle and the slope of the fit are held at the tube's own
_BEND_HELD = 0.2
_ROLLED = 0.1  # share of tubes turned about their axis: the depth axis is not always known
_UNCALIBRATED = 0.1
_AS_FOUND, _OFF = 0.4, 0.2  # shares of tubes that lie where the second look puts a line, or samples off
_SHIFT = 6.0  # samples along it by which the middle of a tube misses that of its needle, at most
_UNSEEN = 0.08  # of sections are taken out
_GAIN = 0.15  # deviation of the logarithm by which levels are varied


def sections(tubes: Tensor, shaft: Tensor) -> Tensor:
    """Return ``b 2 k v u``, sums of levels and of their weights, of tubes ``b 2 s v u``.

    Args:
        tubes: level and inside.
        shaft: chance of a shaft in each slice, ``b s``.
    """
    weights = shaft[:, :, None, None] * tubes[:, 1]
    both = torch.stack([tubes[:, 0] * weights, weights], 1)
    return both.unflatten(2, (SECTIONS, -1)).sum(3)


def facts(path: Path, *, step: float, largest: float, sample_mm: float | None) -> Tensor:
    """Return what is known of a tube, ``FACTS`` numbers.

    Args:
        path: that it runs along.
        step: samples between its slices.
        largest: fine samples per index of the volume along the axis of the widest spacing.
        sample_mm: of a fine sample; None if that is unknown.
    """
    size = (0.0, 0.0) if sample_mm is None else (1.0, math.log(sample_mm / _USUAL_MM))
    return torch.tensor([*size, step - 1, math.log(largest), abs(float(path.ahead[1]))])


def fitted(answers: Tensor, step: Tensor) -> Tensor:
    """Fit a parabola to the answers ``b 3 k`` of sections: coefficients ``b 3 2`` of 1, x and x².

    Down and aside; x runs from -1 to 1 along the tube, whose slices are ``step`` (b,) samples apart.
    """
    with torch.autocast(answers.device.type, enabled=False):
        offset, weight = answers[:, :2].float().transpose(1, 2), answers[:, 2].float()
        columns = _columns(SECTIONS, like=offset)
        weighted = columns.T * weight[:, None]
        bend = BEND_DEVIATION * (step.float() * TUBE / 2) ** 2
        held = torch.stack([torch.full_like(bend, _HELD), torch.full_like(bend, _HELD), _BEND_HELD / bend**2])
        return torch.linalg.solve(weighted @ columns + torch.diag_embed(held.T), weighted @ offset)


def moved(path: Path, coefficients: np.ndarray, *, lengths: np.ndarray, frame: np.ndarray) -> Path:
    """Return ``path`` where a fit (3, 2) puts it, that of a tube with slices at ``lengths``."""
    middle, half = float(lengths.mean()), float(lengths[1] - lengths[0]) * len(lengths) / 2
    constant, slope, curve = coefficients
    offset = constant - slope * middle / half + curve * (middle / half) ** 2
    ahead = path.ahead + (slope / half - 2 * curve * middle / half**2) @ frame
    longer = float(np.linalg.norm(ahead))
    ahead = ahead / longer
    bend = (path.bend + curve / half**2 @ frame) / longer**2
    return Path(
        path.middle + offset @ frame,
        ahead,
        bend - (bend @ ahead) * ahead,
        path.start * longer,
        path.end * longer,
    )


class Shafts(Dataset[Batch]):
    """Training examples: sections of tubes along needles, and where in them the needles run.

    Args:
        samples: prepared volumes; those without a needle are left out.
        second: the second look, which says in which slices there is a shaft.
        tubes: per example; ``kept``: drawn of a volume once, to take those from (0: they are drawn anew).
        picture: how often their grey levels are varied.
    """

    def __init__(
        self, samples: Sequence[Sample], second: nn.Module, *, tubes: int, kept: int, picture: float
    ) -> None:
        self.samples = [s for s in samples if _holds_needle(s)]
        self.second = second
        self.tubes = tubes
        self.kept = kept
        self.picture = picture
        self.drawn: dict[int, Batch] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Batch:
        if not self.kept:
            return varied(self._draw(index, self.tubes))
        if index not in self.drawn:
            drawn = self._draw(index, self.kept)
            self.drawn[index] = {**drawn, "sections": drawn["sections"].half()}
        some = torch.randperm(self.kept)[: self.tubes]
        return varied({key: values[some].float() for key, values in self.drawn[index].items()})

    @torch.no_grad()
    def _draw(self, index: int, count: int) -> Batch:
        volume = opened(self.samples[index])
        drawn = [drawn_along(volume, self.second, picture=self.picture) for _ in range(count)]
        together = {key: torch.stack([tube[key] for tube in drawn]) for key in drawn[0]}
        tubes = together.pop("tube")
        slices, _ = self.second(tubes)
        return {"sections": sections(tubes, slices[:, 0].sigmoid()), **together}


def varied(drawn: Batch) -> Batch:
    """Mirror tubes (sections ``n 2 k v u``, offset ``n 2 s``) aside, vary their levels, take sections out."""
    read, offset = drawn["sections"].clone(), drawn["offset"].clone()
    mirrored = torch.rand(len(read)) < 0.5
    read[mirrored] = read[mirrored].flip(-1)
    offset[mirrored, 1] *= -1
    read *= (torch.rand(len(read), 1, read.shape[2], 1, 1) >= _UNSEEN).float()
    read[:, 0] *= (_GAIN * torch.randn(len(read), 1, 1, 1)).exp()
    return {**drawn, "sections": read, "offset": offset}


def drawn_along(volume: Volume, second: nn.Module, *, picture: float) -> Batch:
    """Draw a tube along one of the volume's needles, as near to it as those of a run are.

    Some lie where the second look puts a line that is far off, as in a run's first reading, some are
    off by as much, the others nearer, as in its further ones. What is returned: see ``drawn_tube``.
    """
    sample_mm = drawn_unit(volume)
    scale = volume.step / sample_mm
    shafts = found_shafts(volume, scale)
    path = shafts[int(torch.randint(len(shafts), ()))].path
    draw = float(torch.rand(()))
    path = jittered(path, far=draw < _AS_FOUND + _OFF).downward()
    if draw < _AS_FOUND:
        path = _as_found(volume, jittered(path, far=True), second=second, scale=scale)
    lengths = tube_lengths(path) + _SHIFT * (2 * float(torch.rand(())) - 1)
    step = float(lengths[1] - lengths[0])
    frame = drawn_frame(path, rolled=_ROLLED)
    tube = read_tube(volume, tube_points(path, lengths, frame=frame), scale=scale, picture=picture)
    truth = tube_truth(shafts, path, s=lengths, frame=frame)
    known_mm = None if float(torch.rand(())) < _UNCALIBRATED else sample_mm
    return {
        "tube": tube,
        "facts": facts(path, step=step, largest=float(scale.max()), sample_mm=known_mm),
        "step": torch.tensor(step),
        "thick": (truth["log_radius"].exp() * sample_mm > _BETWEEN_MM).float(),
        **{key: truth[key] for key in ("shaft", "offset", "log_radius")},
    }


@torch.no_grad()
def _as_found(volume: Volume, path: Path, *, second: nn.Module, scale: np.ndarray) -> Path:
    """Return where the second look puts a path in its own tube."""
    lengths, frame = tube_lengths(path), tube_frame(path)
    tube = read_tube(volume, tube_points(path, lengths, frame=frame), scale=scale, picture=0)
    slices = second(tube[None])[0][0].double().numpy()
    held = in_picture(*volume.parts, places=path.points(lengths) / scale)
    points = path.points(lengths) + slices[1:3].T @ frame
    return refitted(path, points, chance=held / (1 + np.exp(-slices[0]))).downward()


def section_loss(answers: Tensor, sizes: Tensor, *, truth: Mapping[str, Tensor]) -> Tensor:
    """Return the loss of what sections answer (``SectionReader``), given what is true (``drawn_along``).

    The fitted axis counts, and half as much what single sections say; then radius and gauge.
    """
    shaft, offset = (truth["shaft"] == 1).float(), truth["offset"].transpose(1, 2)
    curve = _columns(TUBE, like=offset) @ fitted(answers, truth["step"])
    off = F.smooth_l1_loss(curve, offset, reduction="none", beta=0.1).sum(2)
    total = ((off * shaft).sum(1) / shaft.sum(1).clamp_min(1)).mean()
    count = shaft.unflatten(1, (SECTIONS, -1)).sum(2)
    mean = (offset * shaft[..., None]).unflatten(1, (SECTIONS, -1)).sum(2) / count.clamp_min(1)[..., None]
    half_full = (count > TUBE / SECTIONS / 2).float()
    off = F.smooth_l1_loss(answers[:, :2].float().transpose(1, 2), mean, reduction="none", beta=0.1).sum(2)
    total = total + 0.5 * (off * half_full).sum() / half_full.sum().clamp_min(1)
    known = ~truth["log_radius"].isnan()
    if bool(known.any()):
        sizes, radius, thick = sizes[known].float(), truth["log_radius"][known], truth["thick"][known]
        total = total + 0.5 * (sizes[:, 0] - radius).abs().mean()
        total = total + 0.5 * F.binary_cross_entropy_with_logits(sizes[:, 1], thick)
    return total


def _columns(count: int, *, like: Tensor) -> Tensor:
    """Return 1, x and x² of the middles of ``count`` equal parts of -1 to 1: ``count 3``."""
    x = (2 * torch.arange(count, dtype=like.dtype, device=like.device) + 1) / count - 1
    return torch.stack([torch.ones_like(x), x, x**2], 1)


def _holds_needle(sample: Sample) -> bool:
    counts = torch.bincount(sample["labels"].flatten(), minlength=NOWHERE + 1)
    return int(counts[1:NOWHERE].max()) >= LEAST_POINTS
