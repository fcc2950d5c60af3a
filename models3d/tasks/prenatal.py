"""Segment placenta, gestational sac and fetus in a 3D volume of the first trimester, and measure them.

A 3D network after Yang et al. (IEEE TMI 38:180, 2019) reads the whole field of view, then once more what it
found, closer. It was trained on simulated volumes only (``models3d/phantoms/prenatal.py``). Not a medical
device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models3d.recipes.prenatal import CLASSES, NAMES, SELECTION, TRAINING, Settings
from models3d.recipes.working_volume import (
    CHANNELS,
    cropped,
    cube,
    native_side,
    scan_input,
    uncube,
    working,
)
from models3d.tasks._prenatal_anatomy import chances_of, surface_of, surface_of_mask, tidy
from usvol import measurement, quality
from usvol.postprocessing import share_at_edge
from usvol.quality import FeatureStatistics
from usvol.result import Finding, Flag, Labels, Measurement, Severity, Surface
from usvol.runtime import Network, Precision, compile_network
from usvol.scan import Grid, Kind, Scan, Selection, Shape3
from usvol.supervision import track
from usvol.training.members import Member, WeightsName, restore

__all__ = ["TRAINING", "Config", "build"]

_PLACENTA, _SAC, _FETUS = NAMES
_FINEST = 192  # samples along the longest side that are looked at closely
_ROOM = 0.2  # of what was found, on each side, when looking closer
_CLOSER = 0.85  # of the field of view: looking closer at more than this shows nothing new
_CUT_SHARE = 0.02  # of a structure's surface at the edge of the sector that counts as cut
# Volumes in mL beyond which something is no pregnancy of 9 to 15 weeks, or its scale is wrong. Generous on
# purpose: they tell errors of scale, not growth.
_PLAUSIBLE_ML = {"placenta": (4.0, 300.0), "whole_sac": (5.0, 400.0), "fetus": (0.8, 170.0)}


class Config(BaseModel):
    """Settings of a run."""

    model_config = ConfigDict(extra="forbid")

    weights: WeightsName = "prenatal"
    member: Member = None
    flips: bool = Field(
        True,
        description="average over the mirrored volumes (8 passes), which gives the ranges of the volumes",
    )
    closer: bool = Field(True, description="look again at what was found, at a finer resolution")
    precision: Precision = "f32"


def build(config: Config, device: str) -> Prenatal:
    """Load the network and make it ready on ``device``.

    Raises:
        WeightsError: no such weights, or a wrong checksum. ConfigError: no such member.
    """
    restored = restore(TRAINING, "models3d", name=config.weights, member=config.member or 0)
    settings: Settings = restored.settings
    compiled = compile_network(
        restored.network,
        torch.rand(1, CHANNELS, *[settings.size] * 3),
        device=device,
        precision=config.precision,
        dynamic_dims=(),
    )
    return Prenatal(
        network=compiled,
        settings=settings,
        config=config,
        statistics=quality.from_tensors(restored.state),
        members=restored.members,
        train_patients=restored.train_patients,
        provenance={
            **restored.provenance,
            "architecture": settings.architecture,
            "engine": compiled.engine,
        },
    )


@dataclass(slots=True, eq=False)
class Prenatal:
    """The task: see the module's first lines. ``train_patients`` are hashed, for ``usvol evaluate``."""

    network: Network
    settings: Settings
    config: Config
    statistics: FeatureStatistics | None = None
    members: int = 1
    train_patients: frozenset[str] = frozenset()
    provenance: dict[str, Any] = field(default_factory=dict)
    accepts: frozenset[Kind] = frozenset({Kind.VOLUME})
    selection: Selection = SELECTION

    def preprocess(self, scan: Scan) -> Scan:
        """Make the volume isotropic, at about the finest of its spacings, as float32."""
        return working(scan, side=native_side(scan, least=self.settings.size, most=_FINEST))

    def infer(self, scan: Scan) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Look at the whole view, then closer at what was found.

        Returns:
            Chances ``value z y x`` of the block looked at; voxels of each label in each repeated answer
            (``answer value``); the network's features of the whole view; start and shape of the block.
        """
        whole = (0, 0, 0), scan.grid.shape
        block = whole
        volume = self._input(scan, block)
        chances = self._seen(volume, flips=())
        # The gate's statistics are those of volumes as they are stored, not in their stance.
        features = self.network(cube(volume, side=self.settings.size)[None])[1][0].cpu()
        if self.config.closer:
            block = _around(tidy(chances), scan.grid)
        if block == whole and not self.config.flips:
            answers = [chances]
        else:
            volume = self._input(scan, block)
            flips = tuple(_flips(self.config.flips))
            answers = [self._seen(volume, flips=chosen) for chosen in track(flips)]
        counts = torch.stack([torch.bincount(a.argmax(0).flatten(), minlength=CLASSES) for a in answers])
        return torch.stack(answers).mean(0), counts, features, torch.tensor(block)

    def postprocess(self, raw: tuple[Tensor, Tensor, Tensor, Tensor], scan: Scan) -> tuple[Finding, ...]:
        """Return the label map, and the surfaces of fetus and placenta where there are any."""
        chances, counts = raw[0], raw[1].double()
        labels = tidy(chances)
        evidence = chances_of(labels, chances)
        grid = _grid(raw, scan)
        own = torch.bincount(chances.argmax(0).flatten(), minlength=CLASSES).double().clamp_min(1)
        ranges = {
            value: (
                min(1.0, float((counts[:, value] / own[value]).min())),
                max(1.0, float((counts[:, value] / own[value]).max())),
            )
            for value in NAMES
        }
        found: list[Finding] = [
            Labels(
                "structures",
                torch.from_numpy(labels)[None],
                grid,
                NAMES,
                evidence=evidence[None],
                size_range=ranges if self.config.flips else None,
            )
        ]
        present = [value for value in (_FETUS, _PLACENTA) if (labels == value).any()]
        found += [surface_of(evidence, value, grid=grid, name=NAMES[value]) for value in present]
        return tuple(found)

    def measure(self, findings: tuple[Finding, ...], scan: Scan) -> tuple[Measurement, ...]:
        """Return volumes in mL, with their range over repeated answers, and surface areas in cm²."""
        labels = next(f for f in findings if isinstance(f, Labels))
        reason = scan.calibration.reason
        ml = {v: measurement.volume_ml(labels, v, reason=reason) for v in NAMES}
        ranges = labels.size_range
        bounds = {v: (ml[v] * ranges[v][0], ml[v] * ranges[v][1]) if ranges else (None, None) for v in NAMES}
        numbers = [_volume(f"{NAMES[v]}_volume", ml[v], bounds[v]) for v in NAMES]
        parts = [bounds[v] for v in (_SAC, _FETUS)]
        both = tuple(sum(p[i] for p in parts) if ranges else None for i in (0, 1))  # type: ignore[misc]
        numbers.append(_volume("whole_sac_volume", ml[_SAC] + ml[_FETUS], both))  # type: ignore[arg-type]
        meshes = {f.name: f for f in findings if isinstance(f, Surface)}
        for value in (_FETUS, _PLACENTA):
            name = f"{NAMES[value]}_surface_area"
            mesh = meshes.get(NAMES[value])
            if mesh is None:
                numbers.append(Measurement(name, None, "cm²", note="not detected"))
                continue
            area = measurement.surface_area_cm2(mesh, labels.grid, reason=reason)
            numbers.append(Measurement(name, area, "cm²"))
        return tuple(numbers)

    def follow(self, findings: tuple[Finding, ...], changed: Collection[int]) -> tuple[Finding, ...]:
        """Draw the surfaces of a corrected label map from the map itself."""
        labels = next(f for f in findings if isinstance(f, Labels))
        if findings.index(labels) not in changed:
            return findings
        kept = [f for f in findings if not isinstance(f, Surface)]
        present = [value for value in (_FETUS, _PLACENTA) if bool((labels.data == value).any())]
        return (*kept, *(surface_of_mask(labels, value, name=NAMES[value]) for value in present))

    def flags(self, raw: tuple[Tensor, Tensor, Tensor, Tensor], scan: Scan) -> tuple[Flag, ...]:
        """Report nothing found, structures cut by the view, impossible sizes, volumes unlike training's."""
        labels = tidy(raw[0])
        none = Flag("not_detected", "Neither placenta, gestational sac nor fetus was found.", Severity.INFO)
        found = [] if labels.any() else [none]
        found += [*_cut(labels, raw, scan), *_implausible(labels, _grid(raw, scan))]
        if self.statistics is not None and (flag := quality.judge(raw[2], self.statistics)) is not None:
            found.append(flag)
        return tuple(found)

    def _input(self, scan: Scan, block: tuple[Shape3, Shape3]) -> Tensor:
        return scan_input(working(cropped(scan, block[0], shape=block[1]), side=self.settings.size))

    def _seen(self, volume: Tensor, *, flips: tuple[int, ...]) -> Tensor:
        """Return chances ``value z y x`` of one look at ``channel z y x``.

        The network reads every volume in its own ``_stance``, so a turned one gets the same answer, turned.
        """
        order, mirrored = _stance(volume[0])
        flips = tuple(set(mirrored) ^ set(flips))
        padded = cube(volume, side=self.settings.size)[None].permute(0, 1, *order).flip(flips)
        logits, _ = self.network(padded.contiguous())
        chances = torch.softmax(logits.cpu().float(), 1).flip(flips)
        back = [2 + order.index(axis) for axis in (2, 3, 4)]
        z, y, x = volume.shape[1:]
        inside = uncube(chances.permute(0, 1, *back), (z, y, x))[0]
        # Nothing is found where there is no picture.
        mask = volume[-1] > 0.5
        nothing = torch.zeros(CLASSES, 1, 1, 1)
        nothing[0] = 1
        return torch.where(mask, inside, nothing)


def _stance(level: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the order of axes (of ``b c z y x``) and those to mirror after it, told from the volume itself.

    Axes go by the spread of what is bright, and point to where more of it is: moments of the grey levels,
    which turn with them.
    """
    spreads, leans = [], []
    for axis in range(3):
        weight = level.double().sum([other for other in range(3) if other != axis])
        place = torch.arange(len(weight), dtype=torch.float64) - (len(weight) - 1) / 2
        spreads.append(float((weight * place**2).sum()))
        leans.append(float((weight * place).sum()))
    order = sorted(range(3), key=lambda axis: spreads[axis])
    return tuple(2 + axis for axis in order), tuple(2 + n for n, axis in enumerate(order) if leans[axis] < 0)


def _flips(wanted: bool) -> Iterator[tuple[int, ...]]:
    for count in range(4 if wanted else 1):
        yield from combinations((2, 3, 4), count)


def _around(labels: np.ndarray, grid: Grid) -> tuple[Shape3, Shape3]:
    """Return start and shape, in samples of ``grid``, of what is labelled (on a coarser grid) with room."""
    whole = (0, 0, 0), grid.shape
    inside = np.argwhere(labels > 0)
    if not len(inside):
        return whole
    ratio = np.asarray(grid.shape) / labels.shape
    low, high = inside.min(0) * ratio, (inside.max(0) + 1) * ratio
    room = _ROOM * (high - low).max()
    start = np.clip(np.floor(low - room), 0, None).astype(int)
    end = np.minimum(np.ceil(high + room).astype(int), grid.shape)
    shape = end - start
    if shape.max() > _CLOSER * max(grid.shape):
        return whole
    return (int(start[0]), int(start[1]), int(start[2])), (int(shape[0]), int(shape[1]), int(shape[2]))


def _grid(raw: Sequence[Tensor], scan: Scan) -> Grid:
    """Return the grid of the block that was looked at, as fine as the network sees it."""
    start, shape = raw[3].tolist()
    z, y, x = raw[0].shape[1:]
    return scan.grid.crop(start, tuple(shape)).resized((z, y, x))


def _volume(name: str, ml: float, bounds: tuple[float | None, float | None]) -> Measurement:
    if ml == 0:
        return Measurement(name, None, "mL", note="not detected")
    note = None if bounds[0] is None else "range over mirrored copies of the volume"
    return Measurement(name, ml, "mL", low=bounds[0], high=bounds[1], note=note)


def _cut(labels: np.ndarray, raw: Sequence[Tensor], scan: Scan) -> Iterator[Flag]:
    start, shape = raw[3].tolist()
    block = dataclasses.replace(scan, data=scan.data[..., :1].expand_as(scan.data))
    seen = working(cropped(block, tuple(start), shape=tuple(shape)), side=max(labels.shape))
    assert seen.sector is not None
    inside = seen.sector.mask.reshape(labels.shape).numpy()
    # The end of the block is an edge only where the view ends there too.
    ends = [(a > 0, a + n < whole) for a, n, whole in zip(start, shape, scan.grid.shape, strict=True)]
    wide = np.pad(inside, [(int(a), int(b)) for a, b in ends], mode="edge")
    structures = np.pad(labels, [(int(a), int(b)) for a, b in ends])
    cut = [NAMES[v] for v in NAMES if share_at_edge(structures == v, wide) > _CUT_SHARE]
    if cut:
        names = ", ".join(name.replace("_", " ") for name in cut)
        yield Flag(
            "cut_by_sector_edge",
            f"Only partly in the field of view: {names}. The volume measured is what can be seen of it.",
            Severity.WARNING,
        )


def _implausible(labels: np.ndarray, grid: Grid) -> Iterator[Flag]:
    if grid.spacing_mm is None:
        return
    ml = float(np.prod(grid.spacing_mm)) / 1000
    counts = np.bincount(labels.ravel(), minlength=CLASSES) * ml
    sizes = {
        "placenta": counts[_PLACENTA],
        "whole_sac": counts[_SAC] + counts[_FETUS],
        "fetus": counts[_FETUS],
    }
    for name, (low, high) in _PLAUSIBLE_ML.items():
        if sizes[name] > 0 and not low <= sizes[name] <= high:
            yield Flag(
                "implausible_size",
                f"{name.replace('_', ' ')}: {sizes[name]:.3g} mL is no size of the first trimester "
                f"({low:g} to {high:g} mL). Is the scale of the file right?",
                Severity.WARNING,
            )
