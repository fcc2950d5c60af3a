"""Aortic root and valve in transoesophageal 3D echocardiography, still or over the cycle, with exact truth.

A root in closed form (``_aortic_geometry``) amid a heart (``_aortic_heart``), looked at by a matrix probe
(``_aortic_view``). Tricuspid or bicuspid, calcified with shadows or not, open or shut, at any angle and up to
40 mm off the axis; some cut by the edge of the view, some absent.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models3d.phantoms import _aortic_heart as hearts
from models3d.phantoms import _aortic_view as views
from models3d.phantoms._aortic_geometry import (
    Root,
    drawn_root,
    mesh_points,
    opening,
    pulsed,
    radius,
)
from models3d.phantoms._shapes import turned
from models3d.phantoms._view import volume_grid
from models3d.tasks._aortic_measures import measures
from models3d.tasks._aortic_mesh import N_WALL, box_of, landmarks
from usvol.result import Labels
from usvol.scan import Grid, Scan, Vec3
from usvol.simulation.acquisition import acquire
from usvol.simulation.probe import Imaging, Probe, draw_imaging
from usvol.simulation.tissue import Anatomy, Tissue

Content = Literal["valve", "elsewhere", "removed", "tube", "blank"]
LABEL_NAMES = {1: "aortic_root", 2: "cusps"}
_WHOLE = 0.98  # share of the wall in view from which a valve counts as whole
_CUSP_MM = 0.9  # half the thickness with which cusps are labelled
_VOXELS = {True: 0.9e6, False: 2.5e6}


class Config(BaseModel):
    """What to simulate; a field left at None is drawn from the range its description gives."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    absent: float = Field(default=0.0, ge=0, le=1, description="chance that no aortic valve is in view")
    cut: bool | None = Field(default=None, description="by the edge of the view, 12 %")
    phase: float | None = Field(default=None, ge=0, le=1, description="of the cycle; 0.04-0.38 open; 45 %")
    cusps: Literal[2, 3] | None = Field(default=None, description="2 in 15 %")
    calcified: bool | None = Field(default=None, description="20 %")
    frames: int = Field(default=1, ge=1, le=60, description="of one cycle; 1 is a still volume")
    size: int | None = Field(default=None, ge=48, le=256, description="samples along a side at most, 80-160")
    spacing_mm: Vec3 | None = Field(default=None, description="z, y, x; 0.3-1.5, anisotropic in 40 %")
    quick: bool = Field(default=False, description="few beams and a small volume: for training in bulk")


@dataclass(frozen=True, slots=True, eq=False)
class Valve:
    """A drawn heart and how it is looked at.

    Attributes:
        rotation: axes of the root in the world as columns; ``centre_mm`` is the centre of the annulus.
        motion: how far (mm) and how much (rad) the root moves towards the apex and turns in systole.
        strain: by how much the annulus widens in systole.
        phase: at the first frame.
        cycle_s: duration of one beat.
    """

    content: Content
    root: Root
    heart: hearts.Heart
    tissues: tuple[Tissue, ...]
    probe: Probe
    centre_mm: np.ndarray
    rotation: np.ndarray
    motion: tuple[float, np.ndarray]
    strain: float
    phase: float
    cycle_s: float
    calcified: bool


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """The valve at one phase: its root then, how far it is open, and its place and axes in the world."""

    phase: float
    root: Root
    opened: float
    centre_mm: np.ndarray
    rotation: np.ndarray

    def world(self, local_mm: np.ndarray) -> np.ndarray:
        """World points of points along the root's axes."""
        return local_mm @ self.rotation.T + self.centre_mm

    @property
    def vertices_mm(self) -> np.ndarray:
        """The mesh (860, 3) in the world."""
        return self.world(mesh_points(self.root, opened=self.opened))


def draw(seed: int, config: Config | None = None) -> Valve:
    """Draw one heart and its view; the same seed and config give the same.

    Example:
        >>> valve = draw(1, Config(cusps=2))
        >>> valve.root.fused is not None, valve.content
        (True, 'valve')
    """
    config = config or Config()
    rng = np.random.default_rng((seed, 0))
    calcified, cut = bool(rng.random() < 0.2), bool(rng.random() < 0.12)
    calcified = calcified if config.calcified is None else config.calcified
    cut = cut if config.cut is None else config.cut
    absent: Content = rng.choice(("elsewhere", "removed", "tube", "blank"), p=(0.4, 0.25, 0.2, 0.15))
    content: Content = absent if rng.random() < config.absent else "valve"
    phase = float(rng.uniform(0.05, 0.37) if rng.random() < 0.45 else rng.uniform(0.4, 1.0))
    root = drawn_root(rng, cusps=config.cusps, calcified=calcified)
    if content == "tube":
        root = _straightened(root)
    heart = hearts.drawn_heart(rng, root, calcified=calcified)
    rotation = views.drawn_rotation(rng)
    probe = views.drawn_probe(rng, quick=config.quick)
    points = mesh_points(root, opened=0.0)[:N_WALL] @ rotation.T
    middle = points.mean(0)
    if content == "elsewhere":
        move = views.beside(rng, probe, points_mm=points - middle)
    else:
        share = (0.45, 0.93) if cut and content == "valve" else (1.0, 1.0)
        probe, move = views.placed(rng, probe, points_mm=points - middle, share=share)
    return Valve(
        content=content,
        root=root,
        heart=heart,
        tissues=hearts.drawn_tissues(rng),
        probe=probe,
        centre_mm=move - middle,
        rotation=rotation,
        motion=(float(rng.uniform(1, 5)), rng.normal(0, 0.03, 3)),
        strain=float(rng.uniform(0, 0.06)),
        phase=phase if config.phase is None else config.phase,
        cycle_s=float(rng.uniform(0.6, 1.2)),
        calcified=calcified,
    )


def at_phase(valve: Valve, phase: float) -> Moment:
    """The valve at a phase of the cycle, moved from where it is at ``valve.phase``."""
    far, turn = valve.motion
    share = _systole(phase) - _systole(valve.phase)
    turning = turned(turn, float(np.linalg.norm(turn)) * share)
    return Moment(
        phase=phase,
        root=pulsed(valve.root, phase=phase, strain=valve.strain),
        opened=opening(phase, valve.root.gape),
        centre_mm=valve.centre_mm - far * share * valve.rotation[:, 0],
        rotation=turning @ valve.rotation,
    )


def anatomy(valve: Valve, moment: Moment, *, seed: int, quick: bool = False) -> Anatomy:
    """Paint the heart at one moment on voxels all over the view."""
    rng = np.random.default_rng((seed, 2))
    space = views.space_of(valve.probe, voxels=_VOXELS[quick])
    scene = hearts.scene(space, centre_mm=moment.centre_mm, rotation=moment.rotation)
    if valve.content == "blank":
        scene = dataclasses.replace(scene, local=tuple(q + np.float32(500) for q in scene.local))
    beat = 1 - 0.25 * _systole(moment.phase)
    hearts.paint(rng, scene, heart=valve.heart, beat=beat, diastole=hearts.mitral_opening(moment.phase))
    if valve.content in ("valve", "tube", "elsewhere"):
        with_cusps = valve.content != "tube"
        hearts.paint_root(scene, moment.root, heart=valve.heart, opened=moment.opened, with_cusps=with_cusps)
    return Anatomy(torch.from_numpy(scene.materials), space.grid, valve.tissues)


def simulate_labelled(seed: int, config: Config | None = None) -> tuple[Scan, Labels, dict[str, Any]]:
    """Simulate a volume or one cycle: scan ``t 1 z y x`` (uint8), labels on its grid, truth as plain values.

    Labels: 1 the blood in the root from annulus to sinotubular junction, 2 the cusps in it; they end where
    the beams do. Truth: ``present``, ``visible`` (whole, partial, absent), ``in_view``, and per frame the
    box (centre, size along its axes, axes as columns of ``rotation``), the mesh's vertices, landmarks and
    measures, in mm and (z, y, x); ``box`` and the others once more for the first frame, None when absent.

    Example:
        >>> scan, labels, truth = simulate_labelled(1, Config(size=64, quick=True))
        >>> labels.data.shape[1:] == scan.data.shape[2:], truth["visible"], len(truth["vertices_mm"])
        (True, 'whole', 860)
    """
    config = config or Config()
    valve = draw(seed, config)
    rng = np.random.default_rng((seed, 1))
    moments = [at_phase(valve, (valve.phase + i / config.frames) % 1.0) for i in range(config.frames)]
    grid = _grid(rng, valve, config)
    imaging = draw_imaging(rng)
    if config.frames > 1:
        imaging = dataclasses.replace(imaging, auto_gain=0.0)
    scans = [
        _acquired(valve, moment, imaging=imaging, grid=grid, seed=(seed, i, config.quick))
        for i, moment in enumerate(moments)
    ]
    times = tuple(valve.cycle_s * i / config.frames for i in range(config.frames))
    scan = dataclasses.replace(
        scans[0],
        data=torch.cat([s.data for s in scans]),
        times_s=times if config.frames > 1 else None,
        history=(f"simulated aortic_root, seed {seed}",),
    )
    assert scan.sector is not None
    there = valve.content == "valve"
    maps = [_labels_on(m, valve.heart, grid) if there else torch.zeros(grid.shape) for m in moments]
    data = torch.stack([m.to(torch.uint8) * scan.sector.mask for m in maps])
    labels = Labels("structures", data, scan.grid, LABEL_NAMES)
    return scan, labels, _truth(valve, moments, grid=grid, seed=seed)


def simulate(seed: int, config: Config | None = None) -> tuple[Scan, dict[str, Any]]:
    """Simulate one scan and its truth, without the label map: see ``simulate_labelled``."""
    scan, _, truth = simulate_labelled(seed, config)
    return scan, truth


def _acquired(
    valve: Valve, moment: Moment, *, imaging: Imaging, grid: Grid, seed: tuple[int, int, bool]
) -> Scan:
    number, frame, quick = seed
    body = anatomy(valve, moment, seed=number, quick=quick)
    return acquire(body, valve.probe, imaging=imaging, seed=number + 7919 * frame, grid=grid).scan


def _grid(rng: np.random.Generator, valve: Valve, config: Config) -> Grid:
    drawn = int(rng.integers(80, 113) if config.quick else rng.integers(96, 161))
    if valve.content == "elsewhere":
        centre = np.array([0.0, rng.uniform(0.4, 0.7) * valve.probe.depth_mm, 0.0])
        target = centre + np.array([[-18.0], [18.0]])
    else:
        wall = at_phase(valve, valve.phase).vertices_mm[:N_WALL]
        target = np.stack([wall.min(0), wall.max(0)])
        target[:, 1] = np.clip(target[:, 1], 0, valve.probe.depth_mm)
    return volume_grid(
        rng, valve.probe, target=target, size=config.size or drawn, spacing_mm=config.spacing_mm
    )


def _labels_on(moment: Moment, heart: hearts.Heart, grid: Grid) -> Tensor:
    """Label the samples of a grid from the closed form: uint8 ``z y x``."""
    found = np.zeros(grid.shape, np.uint8)
    index = np.asarray(grid.to_index(moment.vertices_mm))
    low = np.clip(np.floor(index.min(0)).astype(int) - 2, 0, np.array(grid.shape))
    high = np.clip(np.ceil(index.max(0)).astype(int) + 3, low, np.array(grid.shape))
    if (high <= low).any():
        return torch.from_numpy(found)
    places = np.stack(
        np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), -1
    )
    local = ((np.asarray(grid.to_world(places)) - moment.centre_mm) @ moment.rotation).astype(np.float32)
    axes = (local[..., 0], local[..., 1], local[..., 2])
    part, away, azimuth = hearts.coordinates(axes, moment.root, heart=heart)
    lumen = (part >= 0) & (part <= 1) & (away < radius(moment.root, part, azimuth=azimuth))
    inner = found[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    inner[lumen] = 1
    cusp = hearts.near(axes, hearts.cusp_cloud(moment.root, opened=moment.opened), radius_mm=_CUSP_MM)
    inner[cusp] = np.where(inner[cusp] > 0, 2, 0)
    return torch.from_numpy(found)


def _truth(valve: Valve, moments: list[Moment], *, grid: Grid, seed: int) -> dict[str, Any]:
    there = valve.content == "valve"
    frames = [_frame_truth(moment) for moment in moments] if there else []
    wall = moments[0].vertices_mm[:N_WALL]
    seen = float((views.inside_beams(valve.probe, wall) & views.inside_grid(grid, wall)).mean())
    first: dict[str, Any] = frames[0] if there else {}
    return {
        "seed": seed,
        "present": there,
        "content": valve.content,
        "in_view": round(seen, 4) if there else 0.0,
        "visible": "absent" if not there else "whole" if seen >= _WHOLE else "partial",
        "cusps": 3 if valve.root.fused is None else 2,
        "calcified": valve.calcified,
        "shadow": valve.calcified and there,
        **{name: first.get(name) for name in ("phase", "opening", "box", "vertices_mm", "landmarks_mm")},
        "measures": first.get("measures"),
        "frame": frames,
        "frame_times_s": [round(valve.cycle_s * i / len(moments), 5) for i in range(len(moments))],
        "probe": dataclasses.asdict(valve.probe),
        "shape": list(grid.shape),
        "spacing_mm": list(grid.spacing_mm or ()),
    }


def _frame_truth(moment: Moment) -> dict[str, Any]:
    vertices = moment.vertices_mm
    centre, size, rotation = box_of(vertices)
    return {
        "phase": round(moment.phase, 5),
        "opening": round(moment.opened, 5),
        "box": {
            "centre_mm": _plain(centre),
            "size_mm": _plain(size),
            "rotation": _plain(rotation, digits=8),
        },
        "vertices_mm": _plain(vertices),
        "landmarks_mm": {name: _plain(point) for name, point in landmarks(vertices).items()},
        "measures": {name: round(value, 4) for name, value in measures(vertices).items()},
    }


def _plain(values: np.ndarray, *, digits: int = 4) -> list[Any]:
    return np.round(values, digits).tolist()


def _systole(phase: float) -> float:
    """How far the ventricle has contracted (0-1)."""
    return float(np.exp(-0.5 * ((phase - 0.32) / 0.13) ** 2))


def _straightened(root: Root) -> Root:
    """A vessel of the same width, without sinuses: what the aorta is elsewhere."""
    ring = float(np.mean(root.annulus_mm))
    return dataclasses.replace(
        root, annulus_mm=(ring, ring), top_mm=ring, bulge_mm=(0.0, 0.0, 0.0), base_tilt=(0.0, 0.0)
    )
