"""How ``covid_severity`` learns: first from phantoms and POCUS, then a last layer from COVID-BLUES.

Few clips and noisy labels: trained from scratch on COVID-BLUES, the network fits its patients and little
else. So readers of frames and time are trained on simulated clips, whose severity, A-lines and B-lines are
exact, and on POCUS classes and findings; then only the last layer is fitted to the experts' severities, a
small problem held close to what the phantoms taught (ridge).

Ordinal targets: SORD with squared distance, softmax(-2 |y - k|²) (Díaz & Marathe, CVPR 2019; Roy et al.,
IEEE TMI 39:2676, 2020).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from usvol import metrics
from usvol.canonical import on_screen
from usvol.metrics import Estimate, UndefinedMetricError, bootstrap_ci
from usvol.resampling import to_beam_space
from usvol.result import Result, Scores
from usvol.scan import Grid, Scan, Selection
from usvol.training.augmentation import vary_beam_clips
from usvol.training.cases import Case
from usvol.training.recipe import Batch, FitSettings, Recipe, Row, Sample
from video.data.pocus import CLASSES as POCUS_CLASSES
from video.nets.frame_lstm import FrameLSTM, Readers

logger = logging.getLogger(__name__)

CLASSES = ("0", "1", "2", "3")
A_LINES, B_LINES = 4, 5
POCUS_FINDINGS = ("consolidations", "effusion", "pleural_irregularities", "b_lines")
OUTPUTS = len(CLASSES) + 2 + len(POCUS_CLASSES) + len(POCUS_FINDINGS)

SELECTION = Selection(fps=5.0, max_frames=160, max_side_px=512)  # what the task reads
_STORED = (160, 128)  # depth samples and lines kept per frame before resizing to the input
_DEPTHS = ((0.0, 1.0), (0.0, 0.8), (0.0, 0.6), (0.1, 0.9))  # shares of the depth that a view shows
_SMOOTHING = 0.05  # of yes/no targets
_LENGTHS = (1, 1, 2, 4)  # frames per clip, drawn per step; frames per step stay about constant


class Settings(FitSettings):
    """Training settings of ``covid_severity``."""

    width: int = Field(20, ge=4, description="maps of the first layer; the last has five times as many")
    dropout: float = Field(0.3, ge=0, lt=1, description="on frame features and before the head")
    depth_samples: int = Field(128, ge=32, description="input samples along a scan line")
    lines: int = Field(112, ge=32, description="input scan lines")
    readers: int = Field(3, ge=1, description="networks trained side by side, whose answers are averaged")
    ridge: float = Field(100.0, gt=0, description="penalty on leaving the severity layer learnt on phantoms")
    ridge_signs: float = Field(
        2.0, gt=0, description="the same for A-lines and B-lines, whose labels are steadier"
    )
    pocus_weight: float = Field(0.4, ge=0, description="weight of the POCUS targets")
    pocus_repeats: int = Field(12, ge=1, description="times each POCUS clip is seen per epoch")
    signs_weight: float = Field(0.5, ge=0, description="weight of the A-line and B-line targets")
    geometry: float = Field(0.5, ge=0, description="strength of geometric augmentation")

    @property
    def input_size(self) -> tuple[int, int]:
        """Samples along depth and lines."""
        return (self.depth_samples, self.lines)


def as_beams(scan: Scan) -> Scan:
    """Straighten a canonical cine along its scan lines: ``t 1 1 depth line`` as float grey levels 0-255."""
    beams = to_beam_space(on_screen(scan), depth_samples=_STORED[0], lines=_STORED[1])
    return scan.with_data(
        beams[:, :, None].float(), grid=Grid((1, *_STORED)), step=f"scan lines, depth × line {_STORED}"
    )


def views(frames: Tensor, *, size: tuple[int, int], mirror: bool = True) -> Tensor:
    """Cut frames ``t depth line`` to each of the depths to look at: ``view t 1 depth line`` of ``size``.

    The readers look at the whole depth and closer, as scanners and operators choose depth differently; with
    ``mirror`` each view is followed by its mirror image.
    """
    depth = frames.shape[1]
    cut = [frames[:, int(a * depth) : int(b * depth)].float() for a, b in _DEPTHS]
    clips = torch.stack([resized(part, size)[:, None] for part in cut])
    return torch.cat([clips, clips.flip(-1)]) if mirror else clips


def resized(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize frames ``t y x`` with anti-aliasing."""
    return F.interpolate(frames[:, None], size=size, mode="bilinear", antialias=True, align_corners=False)[
        :, 0
    ]


def expected_severity(outputs: Tensor) -> Tensor:
    """Return the mean of the severity distribution ``…`` (0-3) of network outputs ``… output``."""
    chances = torch.softmax(outputs[..., : len(CLASSES)], -1)
    return chances @ torch.arange(len(CLASSES), dtype=chances.dtype)


def prepare(scan: Scan) -> dict[str, Tensor]:
    """Keep a canonical clip along its scan lines: ``frames t depth line`` (uint8)."""
    beams = to_beam_space(on_screen(scan), depth_samples=_STORED[0], lines=_STORED[1])[:, 0]
    return {"frames": beams.to(torch.uint8).contiguous()}


class Clips(Dataset[Batch]):
    """Training examples: a few frames of each clip, with targets and their masks."""

    def __init__(self, samples: Sequence[Sample], settings: Settings) -> None:
        pocus = [sample for sample in samples if "severity" not in sample]
        self.samples = [*samples, *(pocus * (settings.pocus_repeats - 1))]
        self.targets = [_target(sample) for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Batch:
        frames = self.samples[index]["frames"]
        return {"frames": frames[_draw(len(frames), max(_LENGTHS))], **self.targets[index]}


def loss(network: nn.Module, batch: Batch, *, settings: Settings) -> Tensor:
    """Return the readers' summed losses on one batch of phantoms and POCUS clips, varied at random."""
    length = _LENGTHS[int(torch.randint(len(_LENGTHS), ()))]
    keep = max(4, len(batch["frames"]) // length)
    batch = {name: values[:keep] for name, values in batch.items()}
    frames = batch["frames"][:, :length].float()
    frames = vary_beam_clips(frames, size=settings.input_size, geometry=settings.geometry)
    assert isinstance(network, Readers)
    outputs = [reader(frames[:, :, None])[1] for reader in network.each()]
    return torch.stack([_pretraining_loss(o, batch, settings=settings) for o in outputs]).sum()


def _pretraining_loss(outputs: Tensor, batch: Batch, *, settings: Settings) -> Tensor:
    first = B_LINES + 1 + len(POCUS_CLASSES)
    label = F.cross_entropy(
        outputs[:, B_LINES + 1 : first], batch["label"], label_smoothing=0.1, reduction="none"
    )
    findings = _yes_no(outputs[:, first:], batch["findings"]).sum(1)
    has = batch["has_severity"]
    total = has * _severity_loss(outputs, batch, settings=settings)
    return (total + (1 - has) * settings.pocus_weight * (label + findings / 2)).mean()


def _severity_loss(outputs: Tensor, targets: Batch, *, settings: Settings) -> Tensor:
    log_chance = F.log_softmax(outputs[:, : len(CLASSES)], 1)
    error = expected_severity(outputs) - targets["severity"]
    signs = _yes_no(outputs[:, A_LINES : B_LINES + 1], targets["signs"]).sum(1)
    return -(targets["sord"] * log_chance).sum(1) + 0.3 * error**2 + settings.signs_weight * signs


def adapt(
    network: nn.Module, groups: Sequence[Sequence[Sample]], *, settings: Settings
) -> list[dict[str, Tensor]]:
    """Fit the readers' last layers to the experts' labels of each group; return the whole state for each.

    First the layer learnt on phantoms is only scaled; then its weights may move, at the cost of ``ridge`` / 2
    (``ridge_signs`` / 2) times the squared distance from there, on standardised features (L-BFGS, one reader
    after the other). Deterministic.
    """
    assert isinstance(network, Readers)
    seen = {sample["id"]: sample for group in groups for sample in group}
    features = {name: _features(network, sample, settings=settings) for name, sample in seen.items()}
    states = []
    for group in groups:
        adapted = copy.deepcopy(network)
        targets = [_severity_target(sample) for sample in group]
        batch = {name: torch.stack([t[name] for t in targets]) for name in targets[0]}
        for index, reader in enumerate(adapted.each()):
            inputs = torch.stack([features[s["id"]][index] for s in group])
            weight, bias = _ridge(inputs, batch, head=reader.head, settings=settings)
            with torch.no_grad():
                reader.head.weight[: B_LINES + 1] = weight
                reader.head.bias[: B_LINES + 1] = bias
        states.append({name: value.clone() for name, value in adapted.state_dict().items()})
    return states


@torch.no_grad()
def _features(network: Readers, sample: Sample, *, settings: Settings) -> list[Tensor]:
    clip = _clip(sample, settings)
    return [reader.features(clip).mean((0, 1)) for reader in network.each()]


def _ridge(features: Tensor, targets: Batch, *, head: nn.Linear, settings: Settings) -> tuple[Tensor, Tensor]:
    mean, deviation = features.mean(0), features.std(0) + 1e-3
    standard = (features - mean) / deviation
    learnt = head.weight.detach()[: B_LINES + 1] * deviation
    scale = torch.full((3, 1), 0.3, requires_grad=True)  # of the severities, of A-lines, of B-lines
    bias = torch.zeros(B_LINES + 1, requires_grad=True)
    rows = torch.tensor([0] * len(CLASSES) + [1, 2])

    def misfit(weight: Tensor) -> Tensor:
        return _severity_loss(standard @ weight.T + bias, targets, settings=settings).mean()

    _minimise([scale, bias], lambda: misfit(scale[rows] * learnt))
    anchor = (scale[rows] * learnt).detach()
    weight = anchor.clone().requires_grad_()
    hold = torch.tensor([settings.ridge] * len(CLASSES) + [settings.ridge_signs] * 2)[:, None]
    _minimise([weight, bias], lambda: misfit(weight) + (hold / 2 * (weight - anchor).square()).sum())
    fitted = weight.detach() / deviation
    return fitted, bias.detach() - fitted @ mean


@torch.enable_grad()
def _minimise(variables: list[Tensor], objective: Callable[[], Tensor]) -> None:
    solver = torch.optim.LBFGS(variables, max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        value = objective()
        value.backward()
        return value

    solver.step(closure)  # type: ignore[arg-type]


def calibrate(
    networks: Sequence[nn.Module], held: Sequence[Sequence[Sample]], *, settings: Settings
) -> list[dict[str, float]]:
    """Return each member's way from its mean output to the experts' scale: gain, offset, residual deviation.

    A network trained on noisy ordinal labels answers near the middle; gain and offset restore the experts'
    mean and spread. Member k's own held-out patients are what it will be tested on, so its numbers come from
    the held-out patients of all other members.
    """
    answers = [
        np.array([_answer(network, sample, settings=settings) for sample in fold])
        for network, fold in zip(networks, held, strict=True)
    ]
    labels = [np.array([sample["severity"] for sample in fold], float) for fold in held]
    return [
        _stretch(np.concatenate(answers[:k] + answers[k + 1 :]), np.concatenate(labels[:k] + labels[k + 1 :]))
        for k in range(len(networks))
    ]


def _stretch(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    gain = float(truth.std() / max(predicted.std(), 0.05))
    offset = float(truth.mean() - gain * predicted.mean())
    stretched = np.clip(gain * predicted + offset, 0, len(CLASSES) - 1)
    return {"gain": gain, "offset": offset, "deviation": float(np.sqrt(np.mean((stretched - truth) ** 2)))}


def row(result: Result, case: Case) -> Row:
    """Put the result beside the experts' labels."""
    scores = {f.name: f for f in result.findings if isinstance(f, Scores)}
    measured = {m.name: m.value for m in result.measurements}
    return {
        "severity": float(str(measured["severity"])),
        "expected": float(str(measured["severity_expected"])),
        "a_lines": scores["a_lines"].probabilities[1],
        "b_lines": scores["b_lines"].probabilities[1],
        **{f"true_{name}": float(case.reference[name]) for name in ("severity", "a_lines", "b_lines")},
    }


def score(rows: Sequence[Row], groups: Sequence[str]) -> Mapping[str, Estimate]:
    """Return agreement with the experts, each with its 95 % interval over patients.

    What the data leave undefined is not in it, such as the AUC of a sign that all clips show.

    Raises:
        UndefinedMetricError: all of it is undefined.
    """
    asked: tuple[tuple[str, Any, str, str], ...] = (
        ("kappa_quadratic", metrics.kappa_quadratic, "severity", "true_severity"),
        ("spearman", metrics.spearman, "expected", "true_severity"),
        ("f1_weighted", metrics.f1_weighted, "severity", "true_severity"),
        ("accuracy", metrics.accuracy, "severity", "true_severity"),
        ("mae", metrics.mae, "expected", "true_severity"),
        ("auc_a_lines", metrics.auc, "a_lines", "true_a_lines"),
        ("auc_b_lines", metrics.auc, "b_lines", "true_b_lines"),
    )
    estimates: dict[str, Estimate] = {}
    undefined: dict[str, UndefinedMetricError] = {}
    for name, statistic, *columns in asked:
        values = [np.array([r[column] for r in rows]) for column in columns]
        try:
            estimates[name] = bootstrap_ci(statistic, values, groups=groups)
        except UndefinedMetricError as error:
            undefined[name] = error
    if not estimates:
        raise next(iter(undefined.values()))
    for name, error in undefined.items():
        logger.warning("%s is undefined: %s", name, error)
    return estimates


def confusion(rows: Sequence[Row]) -> np.ndarray:
    """Return counts, experts in rows and the task in columns."""
    return metrics.confusion(
        np.array([r["severity"] for r in rows], int),
        np.array([r["true_severity"] for r in rows], int),
        classes=len(CLASSES),
    )


def _target(sample: Sample) -> Batch:
    return _severity_target(sample) if "severity" in sample else _pocus_target(sample)


def _severity_target(sample: Sample) -> Batch:
    steps = torch.arange(len(CLASSES)) - sample["severity"]
    return {
        **_absent_targets(),
        "has_severity": torch.tensor(1.0),
        "sord": torch.softmax(-2.0 * steps.float() ** 2, 0),
        "severity": torch.tensor(float(sample["severity"])),
        "signs": torch.tensor([float(sample["a_lines"]), float(sample["b_lines"])]),
    }


def _pocus_target(sample: Sample) -> Batch:
    return {
        **_absent_targets(),
        "label": F.one_hot(torch.tensor(POCUS_CLASSES.index(sample["label"])), len(POCUS_CLASSES)).float(),
        "findings": torch.tensor([float(bool(sample[name])) for name in POCUS_FINDINGS]),
    }


def _absent_targets() -> Batch:
    return {
        "has_severity": torch.tensor(0.0),
        "sord": torch.full((len(CLASSES),), 1 / len(CLASSES)),
        "severity": torch.tensor(0.0),
        "signs": torch.zeros(2),
        "label": torch.full((len(POCUS_CLASSES),), 1 / len(POCUS_CLASSES)),
        "findings": torch.zeros(len(POCUS_FINDINGS)),
    }


def _yes_no(logits: Tensor, targets: Tensor) -> Tensor:
    smooth = targets * (1 - 2 * _SMOOTHING) + _SMOOTHING
    return F.binary_cross_entropy_with_logits(logits, smooth, reduction="none")


def _draw(frames: int, wanted: int) -> Tensor:
    """Draw ``wanted`` frame indices: evenly spaced by 1 to 4 frames, or at random in a short clip."""
    step = int(torch.randint(1, 5, ()))
    span = (wanted - 1) * step + 1
    if span > frames:
        return torch.randint(frames, (wanted,)).sort().values
    return int(torch.randint(frames - span + 1, ())) + torch.arange(wanted) * step


def _clip(sample: Sample, settings: Settings) -> Tensor:
    """Return the views of up to 12 frames spread over the clip: ``view t 1 depth line``."""
    frames = sample["frames"]
    chosen = frames[torch.linspace(0, len(frames) - 1, min(len(frames), 12)).round().long()]
    return views(chosen, size=settings.input_size)


@torch.no_grad()
def _answer(network: nn.Module, sample: Sample, *, settings: Settings) -> float:
    frames = network(_clip(sample, settings)).mean((0, 1))
    return float(expected_severity(frames).mean())


def new_network(settings: Settings) -> Readers:
    """Return the untrained readers."""
    return Readers(
        [FrameLSTM(OUTPUTS, width=settings.width, dropout=settings.dropout) for _ in range(settings.readers)]
    )


TRAINING = Recipe(
    Settings=Settings,
    prepare=prepare,
    selection=Selection(fps=12.5, max_frames=64, max_side_px=512),
    examples=Clips,
    network=new_network,
    loss=loss,
    stratum=lambda case: float(case.reference["severity"]),
    row=row,
    metrics=score,
    confusion=confusion,
    adapt=adapt,
    calibrate=calibrate,
    datasets=("blues", "pocus"),
    phantom="lung",
    phantom_settings={"frames": 8, "fps": 3.0},
)
