"""Find the mid-sagittal plane of a fetal head in a 3D volume, however the head lies, or say there is none.

A small network finds the head, another tries sixty orientations of it, a third refines the likeliest step by
step (after Li et al., MICCAI 2018); the likeness of both sides is reported as confidence (after Nie et al.,
UMB 2017). Trained on simulated volumes only (``models3d/phantoms/fetal_head.py``). Not a medical device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models3d.recipes._midsagittal_examples import View, pyramid
from models3d.recipes._midsagittal_scores import PLANE, UNCERTAIN
from models3d.recipes.midsagittal_plane import SELECTION, TRAINING, stored
from models3d.recipes.working_volume import CHANNELS, picture_of, stretched
from models3d.tasks._midsagittal_search import (
    Pose,
    Readers,
    distinct,
    found_sphere,
    refined,
    scanned,
)
from models3d.tasks._midsagittal_symmetry import searched, similarity
from usvol import measurement
from usvol.result import Box, Finding, Flag, Measurement, Plane, Scores, Severity
from usvol.runtime import Precision, compile_network
from usvol.scan import Grid, Kind, Matrix3, Scan, Selection, vec3
from usvol.training.members import WeightsName, restore

__all__ = ["TRAINING", "Config", "build"]

Raw = tuple[Tensor, Tensor, Tensor]  # five numbers (see ``infer``); centre and radii; frame

_WHOLE = 0.9  # part of the skull's ellipsoid in view from which on its diameters are measured
_SURE = 0.93  # chance that the axes are right below which the plane is flagged; chosen on validation
_HARDLY = 0.85  # and below which there may be no head at all: of 14 such validation volumes 7 hold none
_PLAUSIBLE_BPD_MM = (12.0, 115.0)


class Config(BaseModel):
    """Settings of a run."""

    model_config = ConfigDict(extra="forbid")

    weights: WeightsName = "midsagittal_plane"
    method: Literal["iterative", "one_shot", "symmetry"] = Field(
        "iterative", description="how: refined step by step; one look; or the search for symmetry alone"
    )
    candidates: int = Field(
        16, ge=1, le=60, description="of sixty orientations tried, those refined; all where no plane is sure"
    )
    steps: int = Field(4, ge=1, le=12, description="refinements of each candidate")
    least_chance: float = Field(
        0.5, ge=0, le=1, description="chance of a head below which there is none; set on simulated volumes"
    )
    precision: Precision = "f32"


def build(config: Config, device: str) -> MidsagittalPlane:
    """Load the networks and make them ready on ``device``.

    Raises:
        WeightsError: no such weights, or a wrong checksum.
    """
    restored = restore(TRAINING, "models3d", name=config.weights)
    network, settings = restored.network, restored.settings
    whole, coarse, fine = (
        torch.rand(count, CHANNELS, *[side] * 3)
        for count, side in zip((1, 2, 2), (settings.view, *settings.sides), strict=True)
    )
    options: dict[str, Any] = {"device": device, "precision": config.precision}
    readers = Readers(
        compile_network(network.finder, whole, dynamic_dims=(), **options),
        compile_network(network.coarse, coarse, dynamic_dims=(0,), **options),
        compile_network(network.fine, fine, dynamic_dims=(), **options),
        settings,
    )
    return MidsagittalPlane(
        readers=readers,
        config=config,
        train_patients=restored.train_patients,
        provenance={
            **restored.provenance,
            "method": config.method,
            "engine": readers.fine.engine,
        },
    )


@dataclass(slots=True, eq=False)
class MidsagittalPlane:
    """The task: see the module's first lines. ``train_patients`` are hashed, for ``usvol evaluate``."""

    readers: Readers
    config: Config
    train_patients: frozenset[str] = frozenset()
    provenance: dict[str, Any] = field(default_factory=dict)
    accepts: frozenset[Kind] = frozenset({Kind.VOLUME})
    selection: Selection = SELECTION

    def preprocess(self, scan: Scan) -> Scan:
        """Make the volume isotropic, 64 to 112 samples along its longest side, as float32."""
        return stored(scan)

    def infer(self, scan: Scan) -> Raw:
        """Find the head and its pose.

        Returns:
            Chance of a head (see ``_there``), correlation of its two sides, part of it in view,
            chance that its axes are right, and 1 if it is seen in the picture alone (``_views``); its centre
            and half axes (samples of ``scan``); its axes forward, left, up as columns. Zeros without a head.
        """
        looks = ((view, found_sphere(view, self.readers)) for view in _views(scan))
        seen_in = next(((n, view, sphere) for n, (view, sphere) in enumerate(looks) if sphere), None)
        if seen_in is None:
            return torch.zeros(5), torch.zeros(2, 3), torch.zeros(3, 3)
        again, view, (centre, radius, chance) = seen_in
        pose = self._pose(view, centre, radius=radius)
        if self.config.method == "symmetry":
            pose = _by_symmetry(view, centre, radius=radius)
        likeness = similarity(view, centre=pose.centre, radii=pose.radii, frame=pose.frame)
        there, seen = self._there(chance, pose), _in_view(view, pose)
        numbers = torch.tensor([there, likeness, seen, pose.aligned, float(again)])
        return numbers, torch.stack([pose.centre, pose.radii]), pose.frame

    def postprocess(self, raw: Raw, scan: Scan) -> tuple[Finding, ...]:
        """Return whether there is a head, and if so its plane and its box."""
        chance = float(raw[0][0])
        there = chance >= self.config.least_chance and chance > 0
        scores = Scores("head", ("none", "head"), (1 - chance, chance), "head" if there else "none")
        if not there:
            return (scores,)
        return (scores, *_findings(raw, scan.grid))

    def measure(self, findings: tuple[Finding, ...], scan: Scan) -> tuple[Measurement, ...]:
        """Return diameters in mm, angles of the plane's normal to the volume's axes, and the symmetry."""
        plane = next((f for f in findings if isinstance(f, Plane)), None)
        box = next((f for f in findings if isinstance(f, Box)), None)
        reason = scan.calibration.reason
        scan.grid.require_spacing_mm("diameters and angles of a head", reason)
        return (
            *_diameters(box, scan.grid, found=plane is not None),
            *_angles(plane, scan.grid),
            _symmetry(plane),
        )

    def flags(self, raw: Raw, scan: Scan) -> tuple[Flag, ...]:
        """Report that there is no head, or an uncertain plane, a head cut by the view, an impossible size."""
        if not float(raw[0][0]) >= self.config.least_chance or not float(raw[0][0]):
            return (Flag("not_detected", "No fetal head was found.", Severity.INFO),)
        return tuple(_warnings(raw, scan.grid))

    def _there(self, chance: float, pose: Pose) -> float:
        """Return the chance of a head: the root of the finder's, who sees least, times the reader's two."""
        judged = chance**0.5 * pose.present
        return judged * pose.aligned if self.config.method == "iterative" else judged

    def _pose(self, view: View, centre: Tensor, *, radius: float) -> Pose:
        # A first look sets place and size right: a head cut by the view looks small to the finder.
        first = scanned(view, self.readers, centre=centre, radius=radius)[:4]
        centre = torch.stack([p.centre for p in first]).median(0).values
        radius = float(torch.stack([p.radii.mean() for p in first]).median())
        poses = scanned(view, self.readers, centre=centre, radius=radius)
        if self.config.method != "iterative":
            return poses[0]
        count = self.config.candidates
        best = self._best(view, poses[:count])
        if best.aligned < _SURE and count < len(poses):
            best = max(best, self._best(view, poses[count:]), key=lambda p: p.aligned)
        return best

    def _best(self, view: View, poses: Sequence[Pose]) -> Pose:
        """Return the likeliest of what both readers make of some poses."""
        near = [refined(view, self.readers, pose=p, steps=2, near=False) for p in poses]
        steps = self.config.steps
        best = [refined(view, self.readers, pose=p, steps=steps, near=True) for p in distinct(near)]
        return max(best, key=lambda p: p.aligned)


_NONE = "not detected"


def _views(scan: Scan) -> Iterator[View]:
    """Yield a volume in its sector, then in its picture alone.

    The sector holds some of the black around the picture. Beside it a picture whose own black is grey, as
    haze or gain makes it, looks unlike any that the finder has learnt.
    """
    assert scan.sector is not None
    sector = scan.sector.mask.reshape(scan.grid.shape)
    yield _view(scan, sector)
    yield _view(scan, picture_of(scan.data[0, 0], sector))


def _view(scan: Scan, mask: Tensor) -> View:
    grey = stretched(scan.data[0, 0], mask)
    return View(grey, mask, coarser=pyramid(grey, mask))


def _symmetry(plane: Plane | None) -> Measurement:
    if plane is None:
        return Measurement("symmetry", None, "1", note=_NONE)
    note = "not judged: the plane was moved by hand" if plane.confidence is None else None
    return Measurement("symmetry", plane.confidence, "1", note=note)


def _by_symmetry(view: View, centre: Tensor, *, radius: float) -> Pose:
    """Return a pose whose plane is that of best symmetry: no reader judges it, or tells forward and up."""
    point, normal, _ = searched(view, centre=centre, radius=radius)
    aside = torch.eye(3)[int(normal.abs().argmin())]
    up = torch.nn.functional.normalize(aside - normal * (normal @ aside), dim=0)
    forward = torch.linalg.cross(up, normal)
    return Pose(point, torch.full((3,), radius), torch.stack([forward, normal, up], 1), present=1.0)


def _in_view(view: View, pose: Pose) -> float:
    """Return the part of the skull's ellipsoid that lies in the picture."""
    unit = torch.from_numpy(_ball()).float()
    index = (pose.centre + (unit * pose.radii) @ pose.frame.T).round().long()
    inside = ((index >= 0) & (index < torch.tensor(view.mask.shape))).all(1)
    index = index[inside]
    return float(view.mask[index[:, 0], index[:, 1], index[:, 2]].sum()) / len(unit)


def _findings(raw: Raw, grid: Grid) -> Iterator[Finding]:
    """Yield the plane and, where its centre is in the volume, the head's box, in the world of ``grid``."""
    centre, radii = raw[1].double().numpy()
    turn = np.asarray(grid.direction)
    forward, up = (turn @ raw[2][:, k].double().numpy() for k in (0, 2))
    forward = forward / np.linalg.norm(forward)
    up = up - forward * (forward @ up)
    up = up / np.linalg.norm(up)
    left = np.cross(forward, up)
    world = grid.to_world(centre)
    inside = _nearest_inside(grid, world, left)
    yield Plane(PLANE, vec3(inside), vec3(left), vec3(up), confidence=float(np.clip(raw[0][1], 0, 1)))
    if bool(np.all((centre >= 0) & (centre <= np.asarray(grid.shape) - 1))):
        size = 2 * radii * float(np.mean(grid.step))
        rows = np.stack([forward, left, up], 1).tolist()
        axes: Matrix3 = (tuple(rows[0]), tuple(rows[1]), tuple(rows[2]))
        yield Box("head", vec3(world), vec3(size), axes, confidence=float(raw[0][0]))


def _nearest_inside(grid: Grid, point: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Return a point of the plane in the volume: ``point`` itself where it lies in it."""
    start = point
    for _ in range(50):
        index = grid.to_index(point)
        held = np.clip(index, 0, np.asarray(grid.shape) - 1)
        if np.allclose(index, held, atol=0.4):
            break
        moved = grid.to_world(held)
        point = moved - normal * (normal @ (moved - start))
    return point


def _diameters(box: Box | None, grid: Grid, *, found: bool) -> Iterator[Measurement]:
    note = "not measured: too little of the head lies in the volume" if found else _NONE
    for name, column in (("bpd", 1), ("ofd", 0)):
        if box is None or _in_grid(box, grid) < _WHOLE:
            yield Measurement(name, None, "mm", note=note)
            continue
        axis = np.asarray(box.rotation)[:, column] * box.size[column] / 2
        middle = np.asarray(box.centre)
        length = measurement.length_mm([vec3(middle - axis), vec3(middle + axis)], grid)
        yield Measurement(name, length, "mm", note="outer to outer, of the ellipsoid read from the skull")


def _in_grid(box: Box, grid: Grid) -> float:
    """Return the part of a box's ellipsoid that lies in the volume."""
    half = _ball() * np.asarray(box.size) / 2
    index = grid.to_index(np.asarray(box.centre) + half @ np.asarray(box.rotation).T)
    return float(((index > -0.5) & (index < np.asarray(grid.shape) - 0.5)).all(1).mean())


def _ball() -> np.ndarray:
    """Return points (n, 3) spread evenly over the unit ball, a little short of its surface."""
    line = np.linspace(-0.95, 0.95, 17)
    points = np.stack(np.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
    return points[np.square(points).sum(1) < 1]


def _angles(plane: Plane | None, grid: Grid) -> Iterator[Measurement]:
    for name, column in (("z", 0), ("y", 1), ("x", 2)):
        title = f"normal_to_{name}_axis"
        if plane is None:
            yield Measurement(title, None, "°", note=_NONE)
            continue
        axis = vec3(np.asarray(grid.direction)[:, column])
        angle = measurement.angle_deg(plane.normal, axis, grid=grid)
        yield Measurement(title, min(angle, 180 - angle), "°")


def _warnings(raw: Raw, grid: Grid) -> Iterator[Flag]:
    share, aligned, again = raw[0][2:].tolist()
    if aligned < _SURE or again:
        reason = "Too little of what lies in the head is seen."
        if aligned < _HARDLY or again:
            reason = "This may be no head at all."
        message = f"The plane is uncertain (chance that it is near: {aligned:.2f}). {reason} Check it, or "
        yield Flag(UNCERTAIN, f"{message}acquire from another side.", Severity.WARNING)
    if share < _WHOLE:
        yield Flag(
            "cut_by_sector_edge",
            f"Only {100 * share:.0f} % of the head lies in the view: its diameters are extrapolated.",
            Severity.WARNING,
        )
    low, high = _PLAUSIBLE_BPD_MM
    bpd_mm = 2 * float(raw[1][1][1]) * float(np.mean(grid.step))
    if grid.is_calibrated and not low <= bpd_mm <= high:
        yield Flag(
            "implausible_size",
            f"A biparietal diameter of {bpd_mm:.3g} mm is no size of a fetal head ({low:g} to {high:g} mm). "
            "Is the scale of the file right?",
            Severity.WARNING,
        )
