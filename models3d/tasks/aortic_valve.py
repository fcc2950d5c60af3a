"""Find the aortic valve in 3D transoesophageal ultrasound: box, labels, mesh, and its dimensions.

Marginal space deep learning after Ghesu et al. (IEEE TMI 35:1217, 2016). It was trained on simulated volumes
only (``models3d/phantoms/aortic_root.py``). Not a medical device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models3d.nets.marginal_space import MarginalSpace
from models3d.recipes.aortic_valve import SELECTION, TRAINING, whole_view
from models3d.recipes.aortic_valve_patches import (
    COARSE,
    NEAR_SIDE,
    PATCH,
    SIDE,
    Levels,
    Poses,
    levels,
    working_mm,
)
from models3d.recipes.working_volume import CHANNELS, scan_input, working
from models3d.tasks import _aortic_shape as shape
from models3d.tasks._aortic_detection import Effort, Found, follow, search
from models3d.tasks._aortic_findings import (
    MEASURED_FROM,
    Reading,
    curve_of,
    findings_of,
    measurements_of,
    nothing,
    seen_share,
)
from models3d.tasks._aortic_shape import ShapeModel
from models3d.tasks._aortic_surface import Aligned, cusps_seen, fitted, read
from usvol import quality
from usvol.quality import FeatureStatistics
from usvol.result import Finding, Flag, Measurement, Severity
from usvol.runtime import Network, Precision, compile_network
from usvol.scan import Kind, Scan, Selection
from usvol.training.members import WeightsName, restore

__all__ = ["TRAINING", "Config", "build"]

Raw = tuple[Tensor, ...]
_BLIND = 48  # samples along the longest side of a volume that is not searched


class Config(BaseModel):
    """Settings of a run."""

    model_config = ConfigDict(extra="forbid")

    weights: WeightsName = "aortic_valve"
    stage: Literal["detection", "labels", "shape"] = Field(
        "shape", description="where the mesh comes from: the box alone, the aligned network, the shape model"
    )
    repeats: int = Field(
        3, ge=0, le=16, description="further looks from poses a little off, which give ranges of measurements"
    )
    places: int = Field(4, ge=1, le=8, description="places of the heat map that are followed")
    least_chance: float = Field(
        0.6, ge=0, le=1, description="score of the best box below which no valve is reported"
    )
    least_cusps: float = Field(
        0.66, ge=0, le=1, description="chance of what looks most like cusps below which it is only a vessel"
    )
    precision: Precision = "f32"


def build(config: Config, device: str) -> AorticValve:
    """Load the networks and make them ready on ``device``.

    Raises:
        WeightsError: no such weights, or a wrong checksum.
    """
    restored = restore(TRAINING, "models3d", name=config.weights)
    networks = {
        name: compile_network(module, example, device=device, precision=config.precision, dynamic_dims=free)
        for name, (module, example, free) in parts_of(restored.network, repeats=config.repeats).items()
    }
    return AorticValve(
        networks=networks,
        model=shape.from_tensors(restored.state),
        config=config,
        statistics=quality.from_tensors(restored.state),
        train_patients=restored.train_patients,
        provenance={**restored.provenance, "engine": networks["pose"].engine},
    )


def parts_of(network: MarginalSpace, *, repeats: int) -> dict[str, tuple[nn.Module, Tensor, tuple[int, ...]]]:
    """Return every network of the task with an example of its input and the dimensions that vary."""
    around = torch.rand(2, CHANNELS, NEAR_SIDE, NEAR_SIDE, NEAR_SIDE)
    patches = torch.rand(2, CHANNELS, PATCH, PATCH, PATCH)
    return {
        "position": (_Positions(network.position), torch.rand(1, CHANNELS, COARSE, COARSE, COARSE), ()),
        "orientation": (network.orientation, around, (0,)),
        "pose": (network.pose, patches, (0,)),
        "aligned": (network.aligned, torch.rand(1 + repeats, CHANNELS, SIDE, SIDE, SIDE), ()),
    }


class _Positions(nn.Module):
    """The position network, with the mean of its lowest maps: what the volume looks like."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        logits, _, _, coarse = self.network.all_scales(volumes)  # type: ignore[operator]
        return logits, coarse.mean((2, 3, 4))


@dataclass(slots=True, eq=False)
class AorticValve:
    """The task: see the module's first lines."""

    networks: Mapping[str, Network]
    model: ShapeModel
    config: Config
    statistics: FeatureStatistics | None = None
    train_patients: frozenset[str] = frozenset()
    provenance: dict[str, Any] = field(default_factory=dict)
    members: int = 1
    accepts: frozenset[Kind] = frozenset({Kind.VOLUME, Kind.VOLUME_SEQUENCE})
    selection: Selection = SELECTION

    def preprocess(self, scan: Scan) -> Scan:
        """Resample every frame to 1 mm as float32; without a scale, to few samples that are not searched."""
        return working_mm(scan) if scan.grid.is_calibrated else working(scan, side=_BLIND)

    def infer(self, scan: Scan) -> Raw:
        """Search the first frame, follow the valve through the others, and read its aligned cube in each.

        Returns:
            Per frame: score of the best box, centre, rotation and size of it, chances in the aligned cube
            ``t 2 a b c``, repeated meshes ``t k 860 3`` and the one made of them; once: the features of the
            volume.
        """
        readings: list[tuple[Found, Aligned]] = []
        features, found = torch.zeros(0), None
        effort = Effort(places=self.config.places)
        for frame in range(len(scan.data) if scan.grid.is_calibrated else 0):
            source = levels(scan_input(scan, frame=frame), scan.grid)
            found = self._followed(source, found)
            if found is None:
                logits, looks = self.networks["position"](whole_view(source))
                features = features if frame else looks[0].cpu()
                found = search(self.networks, source, logits=logits[0, 0].cpu(), effort=effort)
            aligned = read(self.networks["aligned"], source, pose=found.pose, repeats=self.config.repeats)
            readings.append((found, aligned))
        meshes = [self._mesh(aligned) for _, aligned in readings]
        return (*_stacked(readings), torch.stack(meshes) if meshes else torch.zeros(0), features)

    def postprocess(self, raw: Raw, scan: Scan) -> tuple[Finding, ...]:
        """Return the labels of all frames, and box and mesh of each in which a whole valve was found."""
        readings = self._readings(raw, scan)
        if not readings:
            return (nothing(scan),)
        found = findings_of(readings, scan)
        curve = curve_of(readings, scan) if len(scan.data) > 1 else None
        return found if curve is None else (*found, curve)

    def measure(self, findings: tuple[Finding, ...], scan: Scan) -> tuple[Measurement, ...]:
        """Return diameters, heights and the volume of the root in the first frame, with their ranges."""
        return measurements_of(findings, scan)

    def flags(self, raw: Raw, scan: Scan) -> tuple[Flag, ...]:
        """Report that there is no valve, that it is cut, and volumes unlike those of training."""
        if not scan.grid.is_calibrated:
            message = "The valve is searched for in mm: state the spacing (--spacing). Nothing was searched."
            return (Flag("not_searched", message, Severity.SEVERE),)
        flags = []
        readings = self._readings(raw, scan)
        if not readings:
            best = float(raw[0].max())
            vessel = " What looks most like it shows no cusps." if best >= self.config.least_chance else ""
            message = f"No aortic valve was found (best score {best:.2f}).{vessel}"
            flags.append(Flag("not_detected", message, Severity.WARNING))
        elif min(r.seen for r in readings.values()) < MEASURED_FROM:
            message = "The aortic valve is only partly in the field of view: it is not measured."
            flags.append(Flag("cut_by_sector_edge", message, Severity.WARNING))
        if self.statistics is not None and (flag := quality.judge(raw[-1], self.statistics)) is not None:
            flags.append(flag)
        return tuple(flags)

    def _followed(self, source: Levels, last: Found | None) -> Found | None:
        """Return the valve where it was in the frame before, or None: search anew."""
        if last is None or last.chance < self.config.least_chance:
            return None
        found = follow(self.networks, source, last=last.pose, heat=last.heat)
        return found if found.chance >= self.config.least_chance else None

    def _readings(self, raw: Raw, scan: Scan) -> dict[int, Reading]:
        """Return what was found, by frame."""
        chance, centre, rotation, size, chances, meshes, fits, _ = raw
        readings = {}
        for frame in torch.nonzero(chance >= self.config.least_chance)[:, 0].tolist():
            if cusps_seen(chances[frame]) < self.config.least_cusps:
                continue
            pose = Poses(centre[[frame]], rotation[[frame]], size[[frame]])
            aligned = Aligned(chances[frame], pose, meshes[frame])
            # The shape model pulls the mesh of a cut valve together, and into the view.
            share = min(seen_share(mesh, scan) for mesh in (fits[frame], meshes[frame].mean(0)))
            readings[frame] = Reading(float(chance[frame]), aligned, fits[frame], share)
        return readings

    def _mesh(self, aligned: Aligned) -> Tensor:
        if self.config.stage == "detection":
            centre, rotation, size = (getattr(aligned.pose, k)[0] for k in ("centre", "rotation", "size"))
            return shape.place(self.model, centre=centre, size=size, rotation=rotation)
        return aligned.meshes.mean(0) if self.config.stage == "labels" else fitted(aligned, self.model)


def _stacked(readings: list[tuple[Found, Aligned]]) -> Raw:
    """Put the frames together; without any, tensors of none."""
    if not readings:
        return (torch.zeros(0),) * 6
    poses = [aligned.pose for _, aligned in readings]
    return (
        torch.tensor([found.chance for found, _ in readings]),
        *(torch.cat([getattr(pose, name) for pose in poses]) for name in ("centre", "rotation", "size")),
        torch.stack([aligned.chances for _, aligned in readings]),
        torch.stack([aligned.meshes for _, aligned in readings]),
    )
