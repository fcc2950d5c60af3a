"""Outline the left ventricle in an apical cine and measure its ejection fraction, beat by beat.

One network outlines the ventricle in every frame; the size over time gives ED and ES. EF of each beat by the
discs of the masks (Lang et al., ASE/EACVI 2015) and by a CNN-LSTM and a CNN that read the beat (after Ouyang
et al., Nature 580:252, 2020, and Smistad et al., TUFFC 67:2595, 2020), side by side and fused. EF needs no
scale and no clock: everything is read at the heart's own pace. Volumes in mL need a scale. It was trained on
simulated cines only (``video/phantoms/heart.py``). Not a medical device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from usvol import loading, quality, weights
from usvol.canonical import canonicalise
from usvol.errors import KindError
from usvol.quality import FeatureStatistics
from usvol.resampling import restore as placed
from usvol.result import Curve, Finding, Flag, Labels, Measurement, Scores
from usvol.runtime import Network, Precision, compile_network
from usvol.scan import Kind, Scan, Selection
from usvol.training.members import Member, WeightsName, restore
from video.nets.ventricle_net import VentricleNet
from video.recipes.echo_clips import SELECTION, SIDE, gate_features
from video.recipes.ejection_fraction import (
    EF_NAMES,
    MASKS,
    TRAINING,
    Settings,
    judged_features,
    protocol_clips,
)
from video.tasks._echo_beats import EVENTS, at_curve, file_frames, own_times, size_events, systoles
from video.tasks._echo_biplane import View, biplane, biplane_declined, biplane_measurements, view_of
from video.tasks._echo_flags import Seen, ventricle_flags, ventricle_missing
from video.tasks._echo_fraction import beat_windows, ef_curve, ef_measurements, ef_scores, fused
from video.tasks._echo_frames import frame_steps, grey_frames, in_chunks, squared
from video.tasks._echo_ventricle import VOLUME, areas, as_labels, beat_discs, tidied, volume_curve, volumes

__all__ = ["TRAINING", "Config", "biplane", "build"]

_CLIPS = 64  # read by the LSTM at a time


class Config(BaseModel):
    """Settings of a run."""

    model_config = ConfigDict(extra="forbid")

    weights: WeightsName = "ejection_fraction"
    member: Member = None
    fusion: float = Field(
        0.4,
        ge=0,
        le=1,
        description="share of the mean of CNN-LSTM and CNN in the fused EF; the rest is that of the masks",
    )
    clips: Literal["beats", "protocol"] = Field(
        "beats",
        description="what the CNN-LSTM reads: each beat, or all clips of 32 frames at period 2 (EchoNet)",
    )
    second: str | None = Field(
        None,
        description="file of the other apical view (two-chamber beside four-chamber) of the same heart, read "
        "as it is (no stated scale or rate): adds biplane volumes and EF",
    )
    decline: bool = Field(
        True, description="measure nothing in clips unlike those of the training (out_of_distribution)"
    )
    precision: Precision = "f32"


def build(config: Config, device: str) -> EjectionFraction:
    """Load the network and make it ready on ``device``; read the second view, if there is one.

    Raises:
        WeightsError: no such weights, or a wrong checksum. ConfigError: no such member.
        ReadError: the second view cannot be read. KindError: it is no cine.
    """
    restored = restore(TRAINING, "video", name=config.weights, member=config.member or 0)
    network: VentricleNet = restored.network
    settings: Settings = restored.settings
    see = compile_network(
        Seeing(network),
        torch.rand(1, 3, 1, SIDE, SIDE) * 255,
        device=device,
        precision=config.precision,
        dynamic_dims=(1,),
    )
    judge = compile_network(
        Judging(network),
        (torch.rand(2, settings.length, network.features), torch.full((2, settings.length), 0.02)),
        device=device,
        precision=config.precision,
        dynamic_dims=(0, 1),
    )
    task = EjectionFraction(
        see=see,
        judge=judge,
        config=config,
        length=settings.length,
        statistics=quality.from_tensors(restored.state),
        members=restored.members,
        train_patients=restored.train_patients,
        provenance={**restored.provenance, "engine": see.engine},
    )
    return task if config.second is None else _with_second(task, Path(config.second))


class Seeing(nn.Module):
    """The part of a network that sees frames: clip ``1 t 1 y x`` to mask logits and features."""

    def __init__(self, network: VentricleNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask logits ``b t y x`` and features ``b t f``."""
        return self.network.see(clips)


class Judging(nn.Module):
    """The part of a network that judges a beat: features ``b t f`` and steps ``b t`` to EFs ``b 2``."""

    def __init__(self, network: VentricleNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, steps: Tensor) -> Tensor:
        """Return EF in % by the LSTM and by the frames alone."""
        ef_frames, ef_clip, _ = self.network.judge(features, steps)
        return torch.stack([ef_clip, ef_frames], 1)


Raw = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(slots=True, eq=False)
class EjectionFraction:
    """The task: see the module's first lines. ``train_patients`` are hashed, for ``usvol evaluate``."""

    see: Network
    judge: Network
    config: Config
    length: int
    statistics: FeatureStatistics | None = None
    second: View | None = None
    members: int = 1
    train_patients: frozenset[str] = frozenset()
    provenance: dict[str, Any] = field(default_factory=dict)
    accepts: frozenset[Kind] = frozenset({Kind.CINE})
    selection: Selection = SELECTION

    def preprocess(self, scan: Scan) -> Scan:
        """Scale and pad the frames to squares of 112 pixels; the sector's mask goes with them."""
        return squared(scan)

    def infer(self, scan: Scan) -> Raw:
        """Outline every frame, find the beats and let the LSTM read each.

        Returns:
            Masks ``t y x`` (uint8); events ``n 2`` (0 ED or 1 ES, frame), in time; EFs ``k 3`` (frame, by
            CNN-LSTM, by CNN); what the gate judges of the clip.
        """
        logits, features = (
            torch.cat([part[0].cpu() for part in parts])
            for parts in zip(*in_chunks(self.see, grey_frames(scan)), strict=True)
        )
        times_s = own_times((logits > 0).flatten(1).sum(1).tolist(), scan.times_s)
        masks = tidied(logits, times_s)
        gate = gate_features(judged_features(features))
        turns: list[tuple[str, int]] = []
        if not (ventricle_missing(masks) or self._declines(gate)):
            turns = size_events(areas(masks).tolist(), times_s)
        events = torch.tensor([(EVENTS.index(name), at) for name, at in turns]).reshape(-1, 2)
        return masks, events, self._judged(features, turns, times_s=times_s), gate

    def postprocess(self, raw: Raw, scan: Scan) -> tuple[Finding, ...]:
        """Return masks, volume over time with ED and ES, EF of every beat by each method, and its class."""
        masks, events, efs, _ = raw
        labels = as_labels(masks, scan.grid)
        turns = [(EVENTS[kind], at) for kind, at in events.tolist()]
        curve = volume_curve(
            volumes(labels),
            scan.grid,
            times_s=scan.times_s,
            frames=file_frames(scan),
            events=at_curve(turns, scan.times_s),
        )
        at = efs[:, 0].long().tolist()
        read = [
            ef_curve(EF_NAMES[key], efs[:, column].tolist(), at=at, like=curve)
            for column, key in ((1, "clip"), (2, "frames"))
        ]
        both = self._fused(labels, curve, read)
        return (labels, curve, *both, *(one for one in read if one is not None))

    def measure(self, findings: tuple[Finding, ...], scan: Scan) -> tuple[Measurement, ...]:
        """Return EF by every method, volumes in mL where there is a scale, and the long axis' shortening."""
        labels, curve = _masks(findings), _curve(findings, VOLUME)
        others = [f for f in findings if isinstance(f, Curve) and f is not curve]
        numbers = ef_measurements(labels, curve, others=others, reason=scan.calibration.reason)
        if self.second is None:
            return numbers
        if (
            scan.source.path is not None
            and scan.source.path.resolve() == Path(str(self.config.second)).resolve()
        ):
            return (*numbers, *biplane_declined("both views are the same clip"))
        own = view_of(labels, curve, patient_key=scan.source.patient_key)
        return (*numbers, *biplane_measurements(own, self.second))

    def follow(self, findings: tuple[Finding, ...], changed: Collection[int]) -> tuple[Finding, ...]:
        """Make the volume anew from corrected masks, and EF from these and from moved events.

        Events stay where they are when a mask is painted. The LSTM is not asked again, so the fused EF is
        then that of the masks alone.
        """
        labels, curve = _masks(findings), _curve(findings, VOLUME)
        places = {findings.index(one) for one in (labels, curve)}
        if not places & set(changed):
            return findings
        if findings.index(labels) in changed:
            values = volume_curve(
                volumes(labels),
                labels.grid,
                times_s=curve.times_s,
                frames=curve.frame_indices,
                events=curve.events,
            )
            findings = tuple(values if f is curve else f for f in findings)
            curve = values
        made = (labels, curve)
        kept = [
            f for f in findings if f not in made and not isinstance(f, Scores) and f.name != EF_NAMES["fused"]
        ]
        return (labels, curve, *self._fused(labels, curve, ()), *kept)

    def flags(self, raw: Raw, scan: Scan) -> tuple[Flag, ...]:
        """Report clips unlike the training's, and what may be wrong with the ventricle outlined."""
        masks, events, efs, gate = raw
        found = [] if (flag := self._gate(gate)) is None else [flag]
        if self._declines(gate):
            return tuple(found)
        turns = at_curve([(EVENTS[kind], at) for kind, at in events.tolist()], scan.times_s)
        labels = as_labels(masks, scan.grid)
        sector = None if scan.sector is None else scan.sector.mask
        seen = Seen(labels, systoles(turns), sector, tuple(efs[:, 1].tolist()))
        return (*found, *ventricle_flags(seen))

    def _judged(
        self, features: Tensor, turns: list[tuple[str, int]], *, times_s: tuple[float, ...] | None
    ) -> Tensor:
        """Return EFs ``k 3`` (frame, by CNN-LSTM, by CNN) of every beat, or of every clip of the protocol."""
        count = len(features)
        beats = [beat for beat in systoles(at_curve(turns, None)) if beat.is_whole]
        if not beats:
            return torch.zeros(0, 3)
        if self.config.clips == "protocol":
            windows = torch.stack(protocol_clips(count))[:, None]
            at = windows[:, 0, windows.shape[-1] // 2]
        else:
            windows = torch.stack([beat_windows(beat, length=self.length, count=count) for beat in beats])
            at = torch.tensor([beat.es for beat in beats])
        flat = windows.flatten(0, 1)
        steps = frame_steps(times_s, flat)
        answers = torch.cat([
            self.judge(features[some], step).cpu()
            for some, step in zip(flat.split(_CLIPS), steps.split(_CLIPS), strict=True)
        ])  # fmt: skip
        means = answers.unflatten(0, windows.shape[:2]).mean(1)
        return torch.cat([at[:, None].float(), means.clamp(0, 100)], 1)

    def _fused(self, labels: Labels, curve: Curve, read: Sequence[Curve | None]) -> tuple[Finding, ...]:
        """Return the fused EF of every beat and the class of their mean; nothing without a beat.

        ``read`` are the EFs by CNN-LSTM and by CNN; a beat that neither read has the EF of its masks.
        """
        beats = systoles(curve.events)
        there = [one.values for one in read if one is not None]
        regressed: list[float | None] = [None] * len(beats)
        if there:
            means = [sum(some) / len(some) for some in zip(*there, strict=True)]
            each = self.config.clips == "beats" and len(means) == len(beats)
            regressed = [*means] if each else [sum(means) / len(means)] * len(beats)
        values = [
            fused(discs, ef, share=self.config.fusion)
            for discs, ef in zip(beat_discs(labels, beats), regressed, strict=True)
        ]
        found = ef_curve(EF_NAMES["fused"], values, at=[beat.es for beat in beats], like=curve)
        return () if found is None else (found, ef_scores(sum(found.values) / len(found.values)))

    def _gate(self, features: Tensor) -> Flag | None:
        return None if self.statistics is None else quality.judge(features, self.statistics)

    def _declines(self, features: Tensor) -> bool:
        return self.config.decline and self._gate(features) is not None


def _masks(findings: tuple[Finding, ...]) -> Labels:
    return next(f for f in findings if isinstance(f, Labels) and f.name == MASKS)


def _curve(findings: tuple[Finding, ...], name: str) -> Curve:
    return next(f for f in findings if isinstance(f, Curve) and f.name == name)


def _with_second(task: EjectionFraction, path: Path) -> EjectionFraction:
    """Analyse the other view once, and keep its beats with the task."""
    scan = loading.load(path, selection=task.selection)
    if scan.kind not in task.accepts:
        raise KindError(f"{path.name}: the second view must be a cine, and this is a {scan.kind}.")
    with torch.no_grad():
        prepared = task.preprocess(canonicalise(scan))
        found = task.postprocess(task.infer(prepared), prepared)
    findings = tuple(placed(finding, scan.grid) for finding in found)
    view = view_of(_masks(findings), _curve(findings, VOLUME), patient_key=scan.source.patient_key)
    facts = {**task.provenance, "second_sha256": weights.sha256_of(path) if path.is_file() else None}
    return dataclasses.replace(task, second=view, provenance=facts)
