"""How ``cardiac_phase`` learns: a phase curve for every frame of a cine, with its extrema on ED and ES.

The curve is 1 at ED and 0 at ES, linear in time between: with a sharp turn at either end, its extrema are
well defined. Loss: squared error, a penalty where it runs the wrong way, and a term that asks for the
extremum of each half beat on the labelled frame (the structured losses of Dezaki et al., IEEE TMI 38:1821,
2019); beside it, whether a frame *is* ED or ES, which also holds at the ends of a clip, where a curve has no
turn. Where the ventricle is outlined, the CNN also learns its size in each frame, which moves with the phase:
from the phase alone, the loss stood still for the first 360 steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from scipy.signal import find_peaks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from usvol import metrics
from usvol.metrics import Estimate, bootstrap_ci
from usvol.result import Curve, Event, Result
from usvol.training.cases import Case
from usvol.training.recipe import Batch, FitSettings, Recipe, Row, Sample
from video.nets.phase_lstm import PhaseLSTM
from video.recipes.echo_clips import (
    SELECTION,
    clock,
    drawn_window,
    event_times,
    gate_tensors,
    prepare,
    prepare_labelled,
    read_labels,
    steps_s,
    varied,
)

CURVE = "cardiac_phase"
EVENTS = ("ED", "ES")
MATCH_S = 0.15
"""Farthest a found event may be from a true one to be the same, s."""

Found = tuple[str, int, float]
"""An event: name, frame, how sure it is (0-1)."""

_HEAT_S = 0.02  # width of the target around an event
# How sure an event must be that is seen from one side only; chosen on simulated validation clips.
_SURE_AT_THE_END, _SURE_NEAR_IT = {"ED": 0.8, "ES": 0.6}, 0.3
_BORDER_S = 0.1  # events nearer to the ends of a clip are also scored apart, as Lane et al. (2021) do
_USUAL_FPS = 50.0
_BLOCKS = 16  # half beats per clip at most


class Settings(FitSettings):
    """Training settings of ``cardiac_phase``."""

    width: int = Field(16, ge=4, description="maps of the first layer; the last has four times as many")
    hidden: int = Field(96, ge=8, description="LSTM units in each direction")
    layers: int = Field(2, ge=1, description="LSTM layers")
    dropout: float = Field(0.2, ge=0, lt=1, description="on what the LSTM reads")
    length: int = Field(40, ge=8, description="frames per training clip")
    pose: float = Field(1.0, ge=0, le=1, description="strength of augmentation")
    order_weight: float = Field(1.0, ge=0, description="weight of the penalty on running the wrong way")
    extrema_weight: float = Field(0.1, ge=0, description="weight of the extrema term")
    event_weight: float = Field(0.5, ge=0, description="weight of the ED and ES logits")
    size_weight: float = Field(4.0, ge=0, description="weight of the ventricle's size, where it is outlined")


class Clips(Dataset[Batch]):
    """Training examples: windows of cines at some frame rate, with targets where the phase is known."""

    def __init__(self, samples: Sequence[Sample], settings: Settings) -> None:
        self.samples = [sample for sample in samples if bool(positions(sample).isfinite().any())]
        self.settings = settings

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Batch:
        sample, length = self.samples[index], self.settings.length
        chosen = drawn_window(sample, length=length)
        times = clock(sample)[chosen]
        place = positions(sample)[chosen]
        steps = steps_s(sample["times_s"][chosen])
        if float(torch.rand(())) < 0.1:
            steps = torch.zeros_like(steps)
        heat = torch.stack([_heat(times, event_times(sample, e.lower())) for e in EVENTS])
        return {
            "frames": sample["frames"][chosen],
            "steps_s": steps,
            "position": place,
            "heat": heat,
            "size": log_sizes(sample)[chosen],
        }


def log_sizes(sample: Mapping[str, Any]) -> Tensor:
    """Return the logarithm of the ventricle's area in every frame (t), in pixels; NaN where not outlined."""
    sizes = torch.full((len(sample["frames"]),), math.nan)
    if "masks" in sample:
        area = sample["masks"].flatten(1).sum(1).float()
        sizes[sample["mask_frames"]] = torch.where(area > 0, area, torch.nan).log()
    return sizes


def positions(sample: Mapping[str, Any]) -> Tensor:
    """Return beats since some ED for every frame (t): whole at ED, a half more at ES; NaN where unknown."""
    times = clock(sample).double()
    if "position_in_beat" in sample:
        part = np.unwrap(np.asarray(sample["position_in_beat"], float), period=1.0)
        return torch.from_numpy(part).float()
    known = [(t, 0.0) for t in event_times(sample, "ed")] + [(t, 0.5) for t in event_times(sample, "es")]
    place = torch.full_like(times, math.nan)
    if len(known) < 2:
        return place.float()
    at, count = _counted(sorted(known))
    if at.size < 2:
        return place.float()
    inside = (times >= at[0]) & (times <= at[-1])
    place[inside] = torch.from_numpy(np.interp(times[inside].numpy(), at, count))
    return place.float()


def _counted(known: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Number alternating events on; the longest run without a gap (two EDs in a row) is kept."""
    runs: list[list[tuple[float, float]]] = [[known[0]]]
    for before, event in itertools.pairwise(known):
        if event[1] == before[1]:
            runs.append([])
        runs[-1].append(event)
    run = max(runs, key=len)
    return np.array([t for t, _ in run]), run[0][1] + 0.5 * np.arange(len(run))


def _heat(times: Tensor, events: Sequence[float]) -> Tensor:
    """Return 1 at an event and less around it: (t,); in frames where times are unknown."""
    width = _HEAT_S if float(times[-1] - times[0]) < 0.7 * len(times) else 1.0
    heat = torch.zeros_like(times)
    for event in events:
        heat = torch.maximum(heat, torch.exp(-0.5 * ((times - event) / width).square()))
    return heat


def phase_of(position: Tensor) -> Tensor:
    """Return the phase, 1 at ED to 0 at ES, from beats since some ED."""
    return (1 - 2 * (position - position.floor())).abs()


def loss(network: nn.Module, batch: Batch, *, settings: Settings) -> Tensor:
    """Return the loss of one batch: curve, order, extrema and events."""
    assert isinstance(network, PhaseLSTM)
    clips, _ = varied(batch["frames"].float(), None, strength=settings.pose)
    embedded = network.encoder(clips[:, :, None])
    outputs = network.read(embedded, batch["steps_s"]).float()
    known = batch["position"].isfinite()
    position = torch.nan_to_num(batch["position"], nan=0.0)
    phase = torch.sigmoid(outputs[..., 0])
    weight = known.float()
    curve = (weight * (phase - phase_of(position)).square()).sum() / weight.sum().clamp(min=1)
    total = curve + settings.order_weight * order_loss(phase, position, known=known)
    heat = batch["heat"] * weight[:, None]
    for number, sign in enumerate((1.0, -1.0)):
        blocks = torch.where(known, (position + 0.5 * (1 - number)).floor(), torch.full_like(position, -1e6))
        total = total + settings.extrema_weight * extrema_loss(
            sign * outputs[..., 0], blocks, heat=heat[:, number]
        )
    events = F.binary_cross_entropy_with_logits(outputs[..., 1:].mT, heat, reduction="none")
    share = (events * weight[:, None]).sum() / weight.sum().clamp(min=1) / len(EVENTS)
    total = total + settings.event_weight * share
    return total + settings.size_weight * size_loss(network.size(embedded)[..., 0].float(), batch["size"])


def size_loss(sizes: Tensor, true: Tensor) -> Tensor:
    """Return how far logarithms of sizes ``b t`` are from the true ones, less the mean of each clip.

    The mean does not count: how large the whole picture is says nothing of the phase.
    """
    known = true.isfinite()
    count = known.sum(1, keepdim=True).clamp(min=1)
    off = torch.where(known, sizes - torch.nan_to_num(true), 0.0)
    off = (off - off.sum(1, keepdim=True) / count) * known
    return F.smooth_l1_loss(off, torch.zeros_like(off), beta=0.1, reduction="sum") / count.sum()


def order_loss(phase: Tensor, position: Tensor, *, known: Tensor) -> Tensor:
    """Return how far the curve ``b t`` runs up in systole and down in diastole, per frame."""
    half = (2 * position).floor()
    same = (half[:, 1:] == half[:, :-1]) & known[:, 1:] & known[:, :-1]
    falling = (half[:, 1:] % 2) == 0
    wrong = F.relu(torch.where(falling, phase.diff(dim=1), -phase.diff(dim=1)))
    return (wrong * same).sum() / same.sum().clamp(min=1)


def extrema_loss(score: Tensor, blocks: Tensor, *, heat: Tensor) -> Tensor:
    """Return the cross-entropy of "where in its block is the maximum of ``score``" with the labelled place.

    ``blocks`` ``b t`` number the stretches around each event; those whose event lies outside do not count.
    """
    first = blocks.masked_fill(blocks < -1e5, torch.inf).amin(1, keepdim=True)
    number = (blocks - torch.where(first.isfinite(), first, torch.zeros_like(first))).long()
    inside = number[:, None] == torch.arange(_BLOCKS, device=number.device)[:, None]
    target = inside * heat[:, None]
    labelled = target.amax(-1) > 0.5
    spread = score[:, None].masked_fill(~inside, -1e4).logsumexp(-1)
    reached = (target * score[:, None]).sum(-1) / target.sum(-1).clamp(min=1e-6)
    return ((spread - reached) * labelled).sum() / labelled.sum().clamp(min=1)


def found_events(outputs: Tensor, times_s: Sequence[float] | None) -> list[Found]:
    """Return ED and ES of a cine, alternating in time.

    Candidates are turns of the phase curve, moved to the nearby frame that looks most like the event. Near
    the ends of a clip, where a turn is seen from one side only, and on its first and last frames they must
    look like one. ``outputs`` are those of the network, ``t 3``.
    """
    chance = torch.sigmoid(outputs).double().numpy()
    step_s = 1 / _USUAL_FPS if times_s is None else (times_s[-1] - times_s[0]) / max(len(times_s) - 1, 1)
    near, apart = (max(1, round(s / step_s)) for s in (0.06, 0.2))
    found: list[Found] = []
    for number, name in enumerate(EVENTS):
        height = chance[:, 0] if name == "ED" else 1 - chance[:, 0]
        likely = chance[:, 1 + number]
        looks = likely + 0.3 * height
        last = len(height) - 1
        turns = find_peaks(height, prominence=0.2, distance=apart)[0].tolist()
        # With a wall at either end the turns count there that stand out on their inner side alone.
        walled = np.pad(height, 1, constant_values=float(height.min()) - 1)
        half = find_peaks(walled, prominence=0.2, distance=apart)[0] - 1
        ends = (slice(0, near), slice(max(0, last + 1 - near), last + 1))
        seen_half = [*half.tolist(), *(end.start + int(likely[end].argmax()) for end in ends)]
        for turn in turns + [n for n in seen_half if height[n] > 0.6]:
            around = range(max(0, turn - near), min(last, turn + near) + 1)
            frame = max(around, key=lambda n: looks[n])
            needed = 0.0 if turn in turns else _SURE_AT_THE_END[name] if frame in (0, last) else _SURE_NEAR_IT
            if likely[frame] > needed:
                found.append((name, frame, float(likely[frame])))
    return _alternating(sorted(set(found), key=lambda event: event[1]))


def _alternating(found: list[Found]) -> list[Found]:
    """Of neighbours of one name keep the surer."""
    kept: list[Found] = []
    for event in found:
        if kept and kept[-1][0] == event[0]:
            kept[-1] = max(kept[-1], event, key=lambda e: e[2])
        else:
            kept.append(event)
    return kept


def phase_curve(
    outputs: Tensor, times_s: tuple[float, ...] | None, *, frames: Sequence[int], found: Sequence[Found]
) -> Curve:
    """Return the phase of every frame, with the events ``found`` in it."""
    values = torch.sigmoid(outputs[:, 0]).tolist()
    events = tuple(Event(name, at, None if times_s is None else times_s[at]) for name, at, _ in found)
    return Curve(CURVE, tuple(values), "1", times_s, tuple(frames), events=events)


def row(result: Result, case: Case) -> Row:
    """Put found beside true events: sums of errors and counts, of all events and of those not at the ends."""
    (curve,) = (f for f in result.findings if isinstance(f, Curve) and f.name == CURVE)
    times = curve.times_s or tuple(n / _USUAL_FPS for n in range(len(curve.values)))
    sample = {"times_s": torch.tensor(times, dtype=torch.float64), **case.reference}
    step_s = (times[-1] - times[0]) / max(len(times) - 1, 1)
    values: Row = {}
    for name in EVENTS:
        guessed = [times[e.index] for e in curve.events if e.name == name]
        true = event_times(sample, name.lower())
        for part, border_s in (("", 0.0), ("inner_", _BORDER_S)):
            key = f"{part}{name.lower()}"
            counts = _counts(guessed, true, within=(times[0] + border_s, times[-1] - border_s))
            values |= {f"{key}_{k}": v for k, v in counts.items()}
            values[f"{key}_frames"] = values[f"{key}_ms"] / 1000 / step_s
    return values


def _counts(
    guessed: Sequence[float], true: Sequence[float], *, within: tuple[float, float]
) -> dict[str, float]:
    """Match true events within a stretch. A guess beyond it, or at an event beyond it, is no false one."""
    low, high = within
    kept, beyond = ([t for t in true if (low <= t <= high) == inside] for inside in (True, False))
    pairs = metrics.matched_events(guessed, kept, tolerance=MATCH_S)
    matched = {i for i, _ in pairs}
    spare = [g for i, g in enumerate(guessed) if i not in matched and low <= g <= high]
    false = len(spare) - len(metrics.matched_events(spare, beyond, tolerance=MATCH_S))
    errors = [guessed[i] - kept[j] for i, j in pairs]
    return {
        "ms": 1000 * sum(abs(e) for e in errors),
        "signed_ms": 1000 * sum(errors),
        "matched": len(pairs),
        "true": len(kept),
        "guessed": len(pairs) + false,
    }


def score(rows: Sequence[Row], groups: Sequence[str]) -> Mapping[str, Estimate]:
    """Return errors in frames and ms, precision and recall of events, with 95 % intervals over patients."""

    def pooled(part: str, total: str) -> Estimate:
        columns = [[r[name] for r in rows] for name in (part, total)]
        return bootstrap_ci(metrics.pooled_share, columns, groups=groups)

    estimates: dict[str, Estimate] = {}
    for part in ("", "inner_"):
        for event in ("ed", "es"):
            name = f"{part}{event}"
            estimates |= {
                f"{name}_frames": pooled(f"{name}_frames", f"{name}_matched"),
                f"{name}_ms": pooled(f"{name}_ms", f"{name}_matched"),
                f"{name}_bias_ms": pooled(f"{name}_signed_ms", f"{name}_matched"),
                f"{name}_precision": pooled(f"{name}_matched", f"{name}_guessed"),
                f"{name}_recall": pooled(f"{name}_matched", f"{name}_true"),
            }
    return estimates


def new_network(settings: Settings) -> PhaseLSTM:
    """Return the untrained network."""
    return PhaseLSTM(
        width=settings.width, hidden=settings.hidden, layers=settings.layers, dropout=settings.dropout
    )


@torch.no_grad()
def describe(
    network: nn.Module, seen: Sequence[Sample], *, held: Sequence[Sample], settings: Settings
) -> dict[str, Tensor]:
    """Return what the features of training clips look like, for the out-of-distribution gate."""
    del settings
    assert isinstance(network, PhaseLSTM)
    return gate_tensors(lambda clip: judged_features(network.encoder(clip)[0]), seen, held=held)


def judged_features(embedded: Tensor) -> Tensor:
    """Return the part of the encoder's features ``t f`` that the gate judges: means over places."""
    return embedded.unflatten(-1, (-1, 16)).mean(-1)


TRAINING = Recipe(
    Settings=Settings,
    prepare=prepare,
    selection=SELECTION,
    examples=Clips,
    network=new_network,
    loss=loss,
    stratum=lambda case: float(case.reference.get("ef_percent") or 0.0),
    row=row,
    metrics=score,
    datasets=("unity_echophase", "echonet_dynamic", "camus", "echonet_pediatric"),
    phantom="heart",
    phantom_settings={"size": 128, "max_frames": 96},
    prepare_labelled=prepare_labelled,
    read_labels=read_labels,
    describe=describe,
    phantoms_suffice=True,
)
