"""Mark what is brighter than a threshold, a task small enough to know every answer of.

It takes cines and volumes.
"""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, Field

from usvol.result import Curve, Finding, Flag, Labels, Measurement, Scores
from usvol.scan import Kind, Scan, Selection


class Config(BaseModel):
    """Settings."""

    threshold: float = Field(default=100.0, ge=0, le=255)
    fail_on: str = ""
    kill_on: str = ""
    full_on: str = ""


@dataclass(frozen=True)
class Bright:
    config: Config
    accepts: frozenset[Kind] = frozenset({Kind.CINE, Kind.VOLUME})
    selection: Selection = Selection()
    provenance: dict[str, Any] = field(default_factory=lambda: {"weights": "none"})

    def preprocess(self, scan: Scan) -> Scan:
        if self.config.fail_on and self.config.fail_on in str(scan.source.path):
            raise RuntimeError("a bug in the task")
        if self.config.kill_on and self.config.kill_on in str(scan.source.path):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.config.full_on and self.config.full_on in str(scan.source.path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return scan.with_data(scan.data.float(), step="to float")

    def infer(self, scan: Scan) -> torch.Tensor:
        return scan.data[:, 0]

    def postprocess(self, raw: torch.Tensor, scan: Scan) -> tuple[Finding, ...]:
        mask = (raw > self.config.threshold).to(torch.uint8)
        found: list[Finding] = [Labels("bright spots", mask, scan.grid, {1: "bright"})]
        share = mask.float().mean(dim=(1, 2, 3))
        high = float(share.mean().clamp(0, 1))
        decision = "bright" if high >= 0.5 else "dark"
        found.append(Scores("tone", ("dark", "bright"), (1 - high, high), decision))
        if len(raw) > 1:
            frames = scan.source.frame_indices or tuple(range(len(raw)))
            found.append(Curve("share", tuple(share.tolist()), "", scan.times_s, frames))
        return tuple(found)

    def measure(self, findings: tuple[Finding, ...], scan: Scan) -> tuple[Measurement, ...]:
        labels = findings[0]
        assert isinstance(labels, Labels)
        count = int(labels.data.sum())
        if scan.kind is Kind.CINE:
            return (Measurement("bright_samples", count, ""),)
        z, y, x = scan.grid.require_spacing_mm("The volume", scan.calibration.reason)
        return (Measurement("volume", count * z * y * x / 1000, "mL", low=0.0, high=1.0),)

    def flags(self, raw: torch.Tensor, scan: Scan) -> tuple[Flag, ...]:
        return (Flag("nothing_found", "Nothing is bright."),) if raw.max() <= self.config.threshold else ()


def build(config: Config, device: str) -> Bright:
    return Bright(config)
