"""Fetal head, 11-34 weeks, in 3D, with its exact mid-sagittal plane; or a volume without a head.

Drawn by formula, or from the label maps of a fetal brain atlas in a folder the user names (``atlas``). The
head lies in any orientation, whole or partly outside the view, its far half often in the shadow of the near
skull.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from models3d.phantoms import _fetal_head_scene as scene
from models3d.phantoms import _surroundings as surroundings
from models3d.phantoms._canvas import blank
from models3d.phantoms._fetal_head_anatomy import densify, draw_head, drawn_build, skull_mm
from models3d.phantoms._fetal_head_atlas import draw_atlas_head
from models3d.phantoms._shapes import Space, random_direction, random_rotation
from models3d.phantoms._view import missed, volume_grid
from usvol.scan import Grid, Scan
from usvol.simulation.acquisition import acquire
from usvol.simulation.beam_geometry import beam_index
from usvol.simulation.probe import Probe, draw_imaging
from usvol.simulation.tissue import Anatomy

_VOXELS_ACROSS = (40, 60)  # of the skull's length, with few and with all beams
_CUT, _SHADOWED = 0.15, 0.3


class Config(BaseModel):
    """What to simulate; a field left at None is drawn from the range its description gives."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weeks: float | None = Field(default=None, ge=11, le=34, description="gestational age, 11-34")
    present: bool | None = Field(default=None, description="whether there is a head")
    absent: float = Field(default=0.15, ge=0, le=1, description="share without one, where that is drawn")
    cut: bool | None = Field(default=None, description="head partly outside the view; 15 %")
    shadowed: bool | None = Field(
        default=None, description="half of the near skull is so dense that it hides what is behind it; 30 %"
    )
    size: int | None = Field(default=None, ge=32, le=256, description="samples along a side, 72-144")
    beams: float = Field(default=1.0, gt=0.2, le=2, description="factor on beams, voxels: below 1 is quicker")
    atlas: Path | None = Field(
        default=None, description="folder of a fetal brain atlas (parcellation.nii.gz per age), or None"
    )


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A drawn anatomy, the probe that looks at it, and what is true of it.

    Attributes:
        frame: columns are the head's axes in the world (z, y, x): forward, left, up; None without a head.
        centre_mm: of the skull, or of where one might be.
        radii_mm: half axes of the skull along forward, left and up.
    """

    anatomy: Anatomy
    probe: Probe
    frame: np.ndarray | None
    centre_mm: np.ndarray
    radii_mm: np.ndarray
    facts: dict[str, Any]


def draw(seed: int, config: Config | None = None) -> Head:
    """Draw one anatomy and its truth; the same seed and config give the same.

    Example:
        >>> head = draw(3, Config(weeks=20, present=True))
        >>> head.frame.shape, bool(35 < 2 * head.radii_mm[1] < 60)
        ((3, 3), True)
    """
    config = config or Config()
    rng = np.random.default_rng((seed, 0))
    weeks, present, cut, shadowed = _case(rng, config)
    style = surroundings.STYLES[rng.choice(4, p=(0.5, 0.2, 0.15, 0.15))]
    across = round(float(np.clip(60 * config.beams, *_VOXELS_ACROSS)))
    if config.atlas is None:
        build = drawn_build(rng, weeks=weeks)
        voxel_mm = 2 * build.radii_mm[0] / across
        parts, own = draw_head(rng, build, voxel_mm=voxel_mm)
    else:
        parts, own, build = draw_atlas_head(rng, config.atlas, across=across)
        voxel_mm = own.voxel_mm
    radii = np.asarray(build.radii_mm)
    frame = _any_frame(rng)
    if shadowed:
        densify(rng, parts, space=own, towards=-frame[1])
    reach = float(radii.max())
    # 5-60 mm of mother before the head, less before small ones.
    depth = reach * rng.uniform(1.1, 1.6) + rng.uniform(4, 12 + 45 * rng.random())
    centre = np.array([rng.normal(0, 0.15) * reach, depth, rng.normal(0, 0.15) * reach])
    points = centre + (frame @ (radii[:, None] * _sphere(400).T)).T
    probe = scene.looked_at(rng, points, radius_mm=reach, beams=config.beams)
    if cut and present:
        probe, move = missed(rng, probe, points=points)
        centre, points = centre + move, points + move
    canvas = blank(_space(probe, centre, reach=reach, voxel_mm=voxel_mm))
    scene.fill_mother(rng, canvas, centre_mm=centre, radius_mm=reach, style=style)
    scene.fill_limbs(rng, canvas, centre_mm=centre, radius_mm=reach)
    if present:
        if rng.random() < 0.5:
            away = -frame[:, 2] + 0.3 * random_direction(rng)
            away /= np.linalg.norm(away)
            trunk = centre + away * reach * rng.uniform(2.6, 3.4)
            scene.fill_trunk(rng, canvas, centre_mm=trunk, axis=away, radius_mm=reach)
        scene.paste_head(canvas, parts, space=own, frame=frame, centre_mm=centre)
    else:
        scene.fill_decoys(rng, canvas, centre_mm=centre, radius_mm=reach)
    if rng.random() < 0.2:
        surroundings.fill_gas(rng, canvas, centre_mm=centre, reach_mm=np.full(3, 1.2 * reach))
    tissues = scene.scene_tissues(rng, style=style, thick_mm=skull_mm(build, own))
    facts = {"weeks": round(float(build.weeks), 2), "shadowed": bool(shadowed and present), "style": style}
    return Head(
        Anatomy(torch.from_numpy(canvas.materials), canvas.space.grid, tissues),
        probe,
        frame if present else None,
        centre,
        radii,
        facts,
    )


def simulate(seed: int, config: Config | None = None) -> tuple[Scan, dict[str, Any]]:
    """Simulate one volume: scan ``1 1 z y x`` (uint8) and its truth as plain values.

    Truth: ``present``; with a head ``plane`` (point, normal = the fetus's left, up, forward; world z, y, x),
    ``centre_mm``, ``radii_mm`` (forward, left, up), ``in_view`` (part of the skull's ellipsoid that beams and
    grid cover), ``bpd_mm`` and ``ofd_mm``, ``weeks``, ``shadowed``; probe and grid.

    Example:
        >>> scan, truth = simulate(3, Config(size=48, present=True, beams=0.5))
        >>> max(scan.data.shape), sorted(truth["plane"])
        (46, ['forward', 'normal', 'point', 'up'])
    """
    config = config or Config()
    head = draw(seed, config)
    rng = np.random.default_rng((seed, 1))
    drawn_size = int(rng.integers(72, 145))
    reach = float(head.radii_mm.max())
    target = np.stack([head.centre_mm - reach, head.centre_mm + reach])
    grid = volume_grid(rng, head.probe, target=target, size=config.size or drawn_size, spacing_mm=None)
    scan = acquire(head.anatomy, head.probe, imaging=draw_imaging(rng), seed=seed, grid=grid).scan
    scan = dataclasses.replace(scan, history=(f"simulated fetal head, seed {seed}",))
    truth: dict[str, Any] = {
        "seed": seed,
        "present": head.frame is not None,
        **head.facts,
        "probe": dataclasses.asdict(head.probe),
        "shape": list(grid.shape),
        "spacing_mm": list(grid.spacing_mm or ()),
    }
    if head.frame is None:
        return scan, {**truth, "weeks": None}
    forward, left, up = (head.frame[:, k].round(9).tolist() for k in range(3))
    centre = head.centre_mm.round(6).tolist()
    truth |= {
        "plane": {"point": centre, "normal": left, "up": up, "forward": forward},
        "centre_mm": centre,
        "radii_mm": head.radii_mm.round(6).tolist(),
        "bpd_mm": round(2 * float(head.radii_mm[1]), 3),
        "ofd_mm": round(2 * float(head.radii_mm[0]), 3),
        "in_view": round(_in_view(head, grid), 4),
    }
    return scan, truth


def _case(rng: np.random.Generator, config: Config) -> tuple[float, bool, bool, bool]:
    """Draw age (weeks), presence, cut, shadow; what ``config`` states stands and changes no other draw."""
    weeks, present = rng.uniform(11, 34), rng.random() >= config.absent
    cut, shadowed = rng.random() < _CUT, rng.random() < _SHADOWED
    return (
        float(weeks) if config.weeks is None else config.weeks,
        bool(present) if config.present is None else config.present,
        bool(cut) if config.cut is None else config.cut,
        bool(shadowed) if config.shadowed is None else config.shadowed,
    )


def _any_frame(rng: np.random.Generator) -> np.ndarray:
    """Draw axes forward, left, up: any rotation. In (z, y, x) order left is the product forward × up."""
    turn = random_rotation(rng)
    forward, up = turn[:, 0], turn[:, 1]
    return np.stack([forward, np.cross(forward, up), up], 1)


def _sphere(count: int) -> np.ndarray:
    """Return points (n, 3) spread evenly over the unit sphere (Fibonacci lattice)."""
    k = np.arange(count) + 0.5
    polar, turn = np.arccos(1 - 2 * k / count), np.pi * (1 + 5**0.5) * k
    return np.stack([np.cos(polar), np.sin(polar) * np.sin(turn), np.sin(polar) * np.cos(turn)], 1)


def _space(probe: Probe, centre_mm: np.ndarray, *, reach: float, voxel_mm: float) -> Space:
    """Voxels around the head, from the probe's face on; beyond, the outermost continue."""
    low, high = centre_mm - 1.7 * reach, centre_mm + 1.7 * reach
    low[1], high[1] = 0.0, min(float(high[1]), probe.depth_mm + 2 * voxel_mm)
    shape = np.ceil((high - low) / voxel_mm).astype(int) + 1
    return Space(
        (int(shape[0]), int(shape[1]), int(shape[2])), voxel_mm, (float(low[0]), float(low[1]), float(low[2]))
    )


def _in_view(head: Head, grid: Grid) -> float:
    """Part of the skull's ellipsoid that lies in the fan and in the grid."""
    assert head.frame is not None
    shells = np.concatenate([r * _sphere(200) for r in (0.3, 0.6, 0.8, 0.93)])
    weight = np.repeat([0.1, 0.25, 0.3, 0.35], 200)
    world = head.centre_mm + (head.frame @ (head.radii_mm[:, None] * shells.T)).T
    index = grid.to_index(world)
    seen = ((index > -0.5) & (index < np.asarray(grid.shape) - 0.5)).all(-1)
    z, y, x = torch.from_numpy(world).float().unbind(-1)
    beams = torch.tensor((head.probe.samples, head.probe.lines, head.probe.planes))
    place = beam_index(head.probe, (z, y, x))
    seen &= ((place >= -0.5) & (place <= beams - 0.5)).all(-1).numpy()
    return float(weight[seen].sum() / weight.sum())
