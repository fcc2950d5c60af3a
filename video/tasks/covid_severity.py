"""Score a lung ultrasound cine 0-3 for COVID-19 pneumonia, frame by frame and as a whole.

Every frame is straightened along its scan lines, read by a small CNN and put in context by an LSTM. Targets
are ordinal (SORD, Díaz & Marathe, CVPR 2019, as Roy et al., IEEE TMI 39:2676, 2020, used it for this score);
A-lines and B-lines are learnt beside it. Scores follow Soldati et al., J Ultrasound Med 39:1413, 2020.
Not a medical device.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from usvol import quality, weights
from usvol.errors import ConfigError
from usvol.inference import temporal_windows
from usvol.result import Curve, Finding, Flag, Measurement, Scores
from usvol.runtime import Network, Precision, compile_network
from usvol.scan import Kind, Scan, Selection
from usvol.training.members import WeightsName, expected_of, member_state
from video.nets.frame_lstm import Readers
from video.recipes.covid_severity import (
    A_LINES,
    B_LINES,
    CLASSES,
    SELECTION,
    TRAINING,
    Settings,
    as_beams,
    expected_severity,
    new_network,
    views,
)

__all__ = ["TRAINING", "Config", "build"]

_WORST = float(len(CLASSES) - 1)
_WINDOW = 32  # frames the LSTM reads at once


class Config(BaseModel):
    """Settings of a run."""

    model_config = ConfigDict(extra="forbid")

    weights: WeightsName = "covid_severity"
    member: int | None = Field(
        None, ge=0, description="use one network of the ensemble only (cross-validation); all by default"
    )
    mirror: bool = Field(True, description="also read the clip mirrored, and average")
    precision: Precision = "f32"


def build(config: Config, device: str) -> CovidSeverity:
    """Load the ensemble and make it ready on ``device``.

    Raises:
        WeightsError: no such weights, a wrong checksum, or of another task. ConfigError: no such member.
    """
    stored = weights.find("video", config.weights)
    with expected_of(stored):
        count = int(stored.metadata["members"])
        if config.member is not None and config.member >= count:
            raise ConfigError(f"member: these weights have members 0 to {count - 1}, not {config.member}.")
        chosen = tuple(range(count)) if config.member is None else (config.member,)
        settings = Settings.model_validate_json(stored.metadata["settings"])
        patients = json.loads(stored.metadata["train_patients"])
        calibration = json.loads(stored.metadata["calibration"])
        panel = Panel([_readers(member_state(stored.state, index), settings) for index in chosen])
    network = compile_network(
        panel,
        torch.rand(2, 3, 1, *settings.input_size) * 255,
        device=device,
        precision=config.precision,
        dynamic_dims=(0, 1),
    )
    return CovidSeverity(
        network=network,
        settings=settings,
        stretch=[calibration[index] for index in chosen],
        mirror=config.mirror,
        members=count,
        train_patients=frozenset(key for index in chosen for key in patients[index]),
        provenance={
            "weights": stored.name,
            "weights_sha256": stored.sha256,
            "members": list(chosen),
            "engine": network.engine,
        },
    )


class Panel(nn.Module):
    """Members that share their readers and differ in the last layers: every frame is read once.

    Clip ``b t 1 y x`` to outputs ``b t member reader output``.
    """

    def __init__(self, members: Sequence[Readers]) -> None:
        super().__init__()
        self.readers = members[0]
        heads = [[reader.head for reader in member.each()] for member in members]
        self.weights = nn.ParameterList(
            torch.stack([h.weight for h in same]) for same in zip(*heads, strict=True)
        )
        self.biases = nn.ParameterList(
            torch.stack([h.bias for h in same]) for same in zip(*heads, strict=True)
        )

    def forward(self, clips: Tensor) -> Tensor:
        """Return every member's and reader's outputs for every frame."""
        outputs = []
        for reader, weight, bias in zip(self.readers.each(), self.weights, self.biases, strict=True):
            features = reader.features(clips)
            outputs.append(torch.einsum("btf,mof->btmo", features, weight) + bias)
        return torch.stack(outputs, 3)


@dataclass(slots=True, eq=False)
class CovidSeverity:
    """The task: see the module's first lines. ``train_patients`` are hashed, for ``usvol evaluate``."""

    network: Network
    settings: Settings
    stretch: list[dict[str, float]]
    mirror: bool
    members: int = 1
    train_patients: frozenset[str] = frozenset()
    provenance: dict[str, Any] = field(default_factory=dict)
    accepts: frozenset[Kind] = frozenset({Kind.CINE})
    selection: Selection = SELECTION

    def preprocess(self, scan: Scan) -> Scan:
        """Straighten the frames along their scan lines: ``t 1 1 depth line``, float grey levels."""
        return as_beams(scan)

    def infer(self, scan: Scan) -> Tensor:
        """Return outputs ``t member reader output``, averaged over the views (and their mirror images)."""
        clips = views(scan.data[:, 0, 0], size=self.settings.input_size, mirror=self.mirror)
        if clips.shape[1] <= _WINDOW:
            return self.network(clips).mean(0)
        return torch.stack([temporal_windows(self.network, clip, length=_WINDOW) for clip in clips]).mean(0)

    def postprocess(self, raw: Tensor, scan: Scan) -> tuple[Finding, ...]:
        """Return the severity curve, the severity of the clip, and whether A-lines and B-lines are seen."""
        votes = self._scores(raw).flatten(1)
        middle, spread = votes.mean(1).clamp(0, _WORST), votes.std(1, correction=0)
        clip = raw.mean(0)
        score = float(self._scores(clip[None]).mean())
        chances = self._chances(score)
        frames = scan.source.frame_indices or tuple(range(scan.data.shape[0]))
        return (
            Curve(
                name="severity",
                values=_floats(middle),
                unit="1",
                times_s=scan.times_s,
                frame_indices=frames,
                low=_floats((middle - 2 * spread).clamp(0, _WORST)),
                high=_floats((middle + 2 * spread).clamp(0, _WORST)),
            ),
            Scores("severity", CLASSES, _floats(chances), CLASSES[int(chances.argmax())]),
            _sign("a_lines", clip[..., A_LINES]),
            _sign("b_lines", clip[..., B_LINES]),
        )

    def measure(self, findings: tuple[Finding, ...], scan: Scan) -> tuple[Measurement, ...]:
        """Return the clip's severity and the mean and maximum of its curve, all on the 0-3 scale."""
        del scan
        curve = next(f for f in findings if isinstance(f, Curve))
        scores = {f.name: f for f in findings if isinstance(f, Scores)}
        chances = torch.tensor(scores["severity"].probabilities)
        grades = torch.arange(len(CLASSES))
        mean = float(chances @ grades.float())
        deviation = float((chances @ (grades - mean) ** 2).sqrt())
        return (
            Measurement("severity", int(scores["severity"].decision), "1", note="0-3, Soldati et al. 2020"),
            Measurement(
                "severity_expected",
                mean,
                "1",
                low=max(0.0, mean - deviation),
                high=min(_WORST, mean + deviation),
                note="mean and standard deviation of the clip's grades by their chances",
            ),
            Measurement("severity_worst_frame", max(curve.values), "1", note="highest of the curve's frames"),
            Measurement("a_lines_probability", scores["a_lines"].probabilities[1], "1"),
            Measurement("b_lines_probability", scores["b_lines"].probabilities[1], "1"),
        )

    def flags(self, raw: Tensor, scan: Scan) -> tuple[Flag, ...]:
        """Report a clip that shows little, does not move, or has no recognisable sector."""
        del raw
        return quality.image_checks(scan, white=255.0)

    def _scores(self, outputs: Tensor) -> Tensor:
        """Return scores on the experts' scale, ``t member reader``, of ``t member reader output``."""
        gain, offset = (torch.tensor([s[name] for s in self.stretch])[:, None] for name in ("gain", "offset"))
        return gain * expected_severity(outputs) + offset

    def _chances(self, score: float) -> Tensor:
        """Return the chance of each grade: normal around ``score``, as wide as on patients held out."""
        deviation = sum(s["deviation"] for s in self.stretch) / len(self.stretch)
        return torch.softmax(-0.5 * ((torch.arange(len(CLASSES)) - score) / deviation) ** 2, 0)


def _readers(state: dict[str, Tensor], settings: Settings) -> Readers:
    network = new_network(settings)
    network.load_state_dict(state)
    return network


def _sign(name: str, logits: Tensor) -> Scores:
    chance = float(torch.sigmoid(logits).mean())
    return Scores(name, ("absent", "present"), (1 - chance, chance), "present" if chance >= 0.5 else "absent")


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(round(float(v), 6) for v in values)
