"""Find end-diastole and end-systole in an echocardiography cine, and time the heart by them.

A small CNN reads every frame and a bidirectional LSTM the clip, with the time between frames as an input
(after Dezaki et al., IEEE TMI 38:1821, 2019, and Lane et al., Comput Biol Med 133:104373, 2021): any length,
any frame rate, any number of beats. Without frame times the events are given as frames, and nothing in
seconds. It was trained on simulated cines only (``video/phantoms/heart.py``). Not a medical device.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from usvol import quality
from usvol.inference import temporal_windows
from usvol.quality import FeatureStatistics
from usvol.result import Curve, Finding, Flag, Measurement, Scores, Severity
from usvol.runtime import Network, Precision, compile_network
from usvol.scan import Kind, Scan, Selection
from usvol.training.members import Member, WeightsName, restore
from video.nets.phase_lstm import PhaseLSTM
from video.recipes.cardiac_phase import (
    CURVE,
    TRAINING,
    Found,
    found_events,
    judged_features,
    phase_curve,
)
from video.recipes.echo_clips import SELECTION, SIDE, framed, gate_features
from video.tasks._echo_beats import (
    LESS_THAN_ONE_BEAT,
    NO_EVENTS,
    RR,
    cycle_measurements,
    file_frames,
    rr_curve,
    whole_beats,
)
from video.tasks._echo_frames import frame_steps, grey_frames, in_chunks

__all__ = ["TRAINING", "Config", "build"]

DETECTION = "ed_es_detection"
_WINDOW = 80  # frames the LSTM reads at once
_FASTEST_S = 0.0095  # between frames: training has at most 100 per second, faster clips are thinned
_SLOWEST_S = 0.06  # between frames: beyond it, events are told no better than that
_SURE = (
    0.65  # of the events, on average: 58 of 60 simulated validation clips are surer, no lung clip tried was
)
_PLAUSIBLE_BPM = (25.0, 240.0)
_BORDER_S = 0.06
_PACES = (1.0, 0.5, 2.0)  # of the frame times at which a clip is read
_UNSURE = 0.75  # of its events: only then a clip is read at another pace
_SURER = 0.12  # by which another pace must beat the file's own: at true frame times no validation clip's did


class Config(BaseModel):
    """Settings of a run."""

    model_config = ConfigDict(extra="forbid")

    weights: WeightsName = "cardiac_phase"
    member: Member = None
    decline: bool = Field(
        True, description="name no ED and ES in clips far from those of training, or unlike them and unsure"
    )
    precision: Precision = "f32"


def build(config: Config, device: str) -> CardiacPhase:
    """Load the network and make it ready on ``device``.

    Raises:
        WeightsError: no such weights, or a wrong checksum. ConfigError: no such member.
    """
    restored = restore(TRAINING, "video", name=config.weights, member=config.member or 0)
    network: PhaseLSTM = restored.network
    encoder = compile_network(
        network.encoder,
        torch.rand(1, 3, 1, SIDE, SIDE) * 255,
        device=device,
        precision=config.precision,
        dynamic_dims=(1,),
    )
    reader = compile_network(
        Reading(network),
        (torch.rand(1, 4, network.encoder.features), torch.full((1, 4), 0.02)),
        device=device,
        precision=config.precision,
        dynamic_dims=(0, 1),
    )
    return CardiacPhase(
        encoder=encoder,
        reader=reader,
        config=config,
        statistics=quality.from_tensors(restored.state),
        members=restored.members,
        train_patients=restored.train_patients,
        provenance={**restored.provenance, "engine": encoder.engine},
    )


class Reading(nn.Module):
    """The part of a network that reads features ``b t f`` and steps ``b t`` over time: ``b t 3``."""

    def __init__(self, network: PhaseLSTM) -> None:
        super().__init__()
        self.network = network

    def forward(self, embedded: Tensor, steps: Tensor) -> Tensor:
        """Return the three outputs of every frame."""
        return self.network.read(embedded, steps)


Raw = tuple[Tensor, Tensor, Tensor]


@dataclass(slots=True, eq=False)
class CardiacPhase:
    """The task: see the module's first lines. ``train_patients`` are hashed, for ``usvol evaluate``."""

    encoder: Network
    reader: Network
    config: Config
    statistics: FeatureStatistics | None = None
    members: int = 1
    train_patients: frozenset[str] = frozenset()
    provenance: dict[str, Any] = field(default_factory=dict)
    accepts: frozenset[Kind] = frozenset({Kind.CINE})
    selection: Selection = SELECTION

    def preprocess(self, scan: Scan) -> Scan:
        """Scale and pad the frames to squares of 112 pixels."""
        return framed(scan)

    def infer(self, scan: Scan) -> Raw:
        """Return the outputs ``t 3`` of every frame, what the gate judges, and two facts of the clip.

        The facts: the pace it was read at, and how sure its events are at the file's own.

        A heart slower or faster than those of training, or a file with wrong frame times, is read as if its
        frames lay closer or farther apart, where that makes its events surer.
        """
        frames = grey_frames(scan)
        chosen = thinned(scan.times_s, count=len(frames))
        embedded = torch.cat([e[0].cpu() for e in in_chunks(self.encoder, frames[chosen])])
        steps = frame_steps(scan.times_s, chosen)
        paces = _PACES if scan.times_s is not None else _PACES[:1]
        tried: list[tuple[float, Tensor, list[Found]]] = []
        for pace in paces:
            outputs = _between(self._read_clip(embedded, pace * steps), chosen, count=len(frames))
            tried.append((pace, outputs, found_events(outputs, _at_pace(scan.times_s, pace))))
            if _certainty(_inner(tried[0][2], scan.times_s)) >= _UNSURE:
                break
        inner = [_certainty(_inner(events, scan.times_s)) for *_, events in tried]
        pace, outputs, _ = tried[max(range(len(tried)), key=lambda n: inner[n] - (_SURER if n else 0.0))]
        facts = torch.tensor([pace, _certainty(tried[0][2])])
        return outputs, gate_features(judged_features(embedded)), facts

    def postprocess(self, raw: Raw, scan: Scan) -> tuple[Finding, ...]:
        """Return the phase curve with its events, how sure they are, and the RR intervals there are."""
        found = [] if self._declines(raw) else _found(raw, scan)
        curve = phase_curve(raw[0], scan.times_s, frames=file_frames(scan), found=found)
        certainty = _certainty(found)
        detection = Scores(
            DETECTION,
            ("unsure", "sure"),
            (1 - certainty, certainty),
            "sure" if certainty >= 0.5 else "unsure",
        )
        intervals = rr_curve(curve)
        return (curve, detection) if intervals is None else (curve, detection, intervals)

    def measure(self, findings: tuple[Finding, ...], scan: Scan) -> tuple[Measurement, ...]:
        """Return beats, rate, RR, systole and diastole from the curve's events, and how sure these are."""
        del scan
        curve = _phase(findings)
        detection = next(f for f in findings if isinstance(f, Scores) and f.name == DETECTION)
        there = bool(curve.events)
        confidence = Measurement(
            "confidence",
            detection.probabilities[1] if there else None,
            "1",
            note="mean over ED and ES, before any correction" if there else NO_EVENTS,
        )
        return (*cycle_measurements(curve), confidence)

    def follow(self, findings: tuple[Finding, ...], changed: Collection[int]) -> tuple[Finding, ...]:
        """Make the RR intervals anew from events that were moved by hand."""
        curve = _phase(findings)
        if findings.index(curve) not in changed:
            return findings
        kept = tuple(f for f in findings if not (isinstance(f, Curve) and f.name == RR))
        intervals = rr_curve(curve)
        return kept if intervals is None else (*kept, intervals)

    def flags(self, raw: Raw, scan: Scan) -> tuple[Flag, ...]:
        """Report clips unlike the training's, too short, too slow, or of an impossible rate."""
        flags = [*self._gate(raw), *_slow(scan)]
        if not self._declines(raw):
            flags += _other_pace(float(raw[2][0]))
            found = _found(raw, scan)
            flags += _cycle_flags(phase_curve(raw[0], scan.times_s, frames=file_frames(scan), found=found))
        return tuple(flags)

    def _read_clip(self, embedded: Tensor, steps: Tensor) -> Tensor:
        """Return the outputs ``t 3`` for features ``t f`` and steps ``t``."""
        seen = torch.cat([embedded, steps[:, None]], 1)
        if len(seen) <= _WINDOW:
            return self._read(seen[None])[0].cpu()
        return temporal_windows(self._read, seen, length=_WINDOW)

    def _read(self, seen: Tensor) -> Tensor:
        return self.reader(seen[..., :-1], seen[..., -1])

    def _gate(self, raw: Raw) -> Iterator[Flag]:
        if self.statistics is not None and (flag := quality.judge(raw[1], self.statistics)) is not None:
            yield flag

    def _declines(self, raw: Raw) -> bool:
        """Whether a clip is far from those of training, or unlike them and without events to be sure of."""
        doubts = [flag.severity for flag in self._gate(raw)] if self.config.decline else []
        return Severity.SEVERE in doubts or bool(doubts and float(raw[2][1]) < _SURE)


def _found(raw: Raw, scan: Scan) -> list[Found]:
    """Return the events of a clip, searched for at the pace it was read at."""
    return found_events(raw[0], _at_pace(scan.times_s, float(raw[2][0])))


def _at_pace(times_s: tuple[float, ...] | None, pace: float) -> tuple[float, ...] | None:
    return None if times_s is None else tuple(pace * t for t in times_s)


def _inner(found: list[Found], times_s: tuple[float, ...] | None) -> list[Found]:
    """Return the events away from the ends of a clip, where one is seen from one side only; or all."""
    if times_s is None:
        return found
    low, high = times_s[0] + _BORDER_S, times_s[-1] - _BORDER_S
    return [event for event in found if low <= times_s[event[1]] <= high] or found


def _certainty(found: list[Found]) -> float:
    """Return how sure the events are on average, 0-1; 0 without any."""
    return float(np.mean([chance for *_, chance in found])) if found else 0.0


def thinned(times_s: tuple[float, ...] | None, *, count: int) -> Tensor:
    """Return the frames that the network reads: all, or every n-th of a clip faster than any in training."""
    if times_s is None or count < 2:
        return torch.arange(count)
    step_s = (times_s[-1] - times_s[0]) / (count - 1)
    every = max(1, round(_FASTEST_S / step_s)) if 0 < step_s < _FASTEST_S else 1
    return torch.arange(0, count, every)


def _between(outputs: Tensor, chosen: Tensor, *, count: int) -> Tensor:
    """Spread outputs of some frames over all, linearly in between."""
    if len(chosen) == count:
        return outputs
    columns = [np.interp(np.arange(count), chosen.numpy(), column) for column in outputs.T.numpy()]
    return torch.from_numpy(np.stack(columns, 1)).float()


def _phase(findings: tuple[Finding, ...]) -> Curve:
    return next(f for f in findings if isinstance(f, Curve) and f.name == CURVE)


def _slow(scan: Scan) -> Iterator[Flag]:
    times_s = scan.times_s
    if times_s is None or len(times_s) < 2:
        return
    step_s = (times_s[-1] - times_s[0]) / (len(times_s) - 1)
    if step_s > _SLOWEST_S:
        message = (
            f"One frame every {1000 * step_s:.0f} ms: ED and ES are told no better than that. "
            "Record at 20 frames per second or more."
        )
        yield Flag("low_frame_rate", message, Severity.WARNING)


def _other_pace(pace: float) -> Iterator[Flag]:
    if pace != 1:
        heart = "slow" if pace < 1 else "fast"
        message = (
            f"The events are surer, and were read, as if the frame times were {pace:g} times as long: "
            f"an unusually {heart} heart, or are the frame times of the file wrong?"
        )
        yield Flag("unusual_pace", message, Severity.INFO)


def _cycle_flags(curve: Curve) -> Iterator[Flag]:
    if not whole_beats(curve.events):
        names = " and ".join(sorted({event.name for event in curve.events}))
        message = (
            f"In this clip {LESS_THAN_ONE_BEAT}: only {names} found" if names else "No ED and no ES found"
        )
        yield Flag("less_than_one_beat", f"{message}; there is no heart rate.", Severity.WARNING)
    measured = {m.name: m.value for m in cycle_measurements(curve)}
    rate = measured["heart_rate"]
    low, high = _PLAUSIBLE_BPM
    if isinstance(rate, float) and not low <= rate <= high:
        message = f"{rate:.0f} beats per minute is no heart rate. Are the frame times of the file right?"
        yield Flag("implausible_rate", message, Severity.WARNING)
