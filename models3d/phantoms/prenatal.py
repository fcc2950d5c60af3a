"""First-trimester pregnancy, 10-14 weeks, in 3D: placenta, gestational sac and fetus with exact labels.

The anatomy is drawn as implicit shapes, all of them deformed, and turned into materials for
``usvol.simulation``. Variety goes before detail: sizes, sites, echoes and which structures exist at all are
drawn independently, so that nothing about this generator can be learnt but what the three structures have in
common.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage
from torch import Tensor

from models3d.phantoms import _surroundings as surroundings
from models3d.phantoms import _uterus as uterus
from models3d.phantoms._canvas import LABEL_NAMES, MATERIALS, PLACENTA, SAC, Canvas, blank, clear
from models3d.phantoms._fetus import Fetus, crl_of, drawn_details, pose
from models3d.phantoms._fetus_drawing import fill_fetus
from models3d.phantoms._shapes import Array, Space, random_direction, random_rotation, smooth_field, unit
from models3d.phantoms._tissues import drawn_tissues
from models3d.phantoms._view import aimed, missed, volume_grid
from usvol.resampling import sample_labels
from usvol.result import Labels
from usvol.scan import Grid, Scan, Vec3
from usvol.simulation.acquisition import acquire
from usvol.simulation.beam_geometry import beam_index
from usvol.simulation.probe import Probe, draw_imaging
from usvol.simulation.tissue import Anatomy

_VOXELS, _VOXEL_MM = 1.4e6, (0.7, 1.1)  # of the uterus, about, and their size
_MARGIN_MM = 8.0  # by which a sac may grow to hold its fetus
_CUT_BELOW = 0.995  # part of a structure in the field of view under which it counts as cut


class Config(BaseModel):
    """What to simulate; a field left at None is drawn from the range its description gives."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weeks: float | None = Field(default=None, ge=9, le=15, description="gestational age, 10-14")
    fetuses: int | None = Field(default=None, ge=1, le=2, description="2 in 5 %")
    placenta_site: uterus.Site | None = Field(default=None, description="anterior and posterior 30 % each")
    detail: float | None = Field(
        default=None, ge=0, le=1, description="of the fetus: 0 outline, 1 bones and organs"
    )
    style: surroundings.Style | None = Field(default=None, description="of what lies around the uterus")
    cut: bool | None = Field(default=None, description="by the field of view, 15 %")
    size: int | None = Field(default=None, ge=64, le=256, description="samples along a side at most, 96-160")
    spacing_mm: Vec3 | None = Field(default=None, description="z, y, x; 0.3-1.5, anisotropic in 40 %")
    empty: float = Field(default=0.0, ge=0, le=1, description="chance that there is no pregnancy at all")


@dataclass(frozen=True, slots=True, eq=False)
class Pregnancy:
    """A drawn anatomy with its truth.

    Attributes:
        labels: uint8 ``z y x`` on ``anatomy.grid``: 0 background, 1 placenta, 2 gestational sac (fluid,
            membranes, yolk sac and cord; without the fetus), 3 fetus.
        facts: plain values: ages, lengths, sites, volumes in mL, what is present.
        probe: one that looks at it.
        target_mm: lowest and highest world (z, y, x) of the sac, mostly with its placenta.
    """

    anatomy: Anatomy
    labels: Tensor
    facts: dict[str, Any]
    probe: Probe
    target_mm: np.ndarray


@dataclass(frozen=True, slots=True)
class _Case:
    """What the whole scene depends on."""

    weeks: float
    fetuses: int
    crl_mm: tuple[float, ...]
    detail: float
    style: surroundings.Style
    endocavitary: bool
    cut: bool
    empty: bool
    wall: bool


def draw(seed: int, config: Config | None = None) -> Pregnancy:
    """Draw one anatomy, its labels and facts; the same seed and config give the same.

    Example:
        >>> pregnancy = draw(1, Config(weeks=12))
        >>> pregnancy.labels.shape == pregnancy.anatomy.materials.shape, pregnancy.facts["fetuses"]
        (True, 1)
    """
    config = config or Config()
    rng = np.random.default_rng((seed, 0))
    case = _case(rng, config)
    plan, front_mm = _laid_out(rng, case, site=config.placenta_site)
    pregnant = _pregnant(rng, case, plan)
    whole = rng.random() < 0.6 and not case.cut
    points = _outline_mm(rng, pregnant, inner=PLACENTA if whole else SAC)
    probe = aimed(rng, points, endocavitary=case.endocavitary)
    if case.cut:
        probe, move_mm = missed(rng, probe, points=points)
        pregnant, move_mm = _moved(pregnant, move_mm)
        plan = dataclasses.replace(plan, centre_mm=plan.centre_mm + move_mm)
        points = points + move_mm
    canvas = blank(_space(probe, pregnant.space))
    _fill_around(rng, canvas, case=case, plan=plan, front_mm=front_mm)
    crl_mm: list[float] = []
    if not case.empty:
        canvas.paste(pregnant)
        crl_mm = list(case.crl_mm)
    tissues = drawn_tissues(rng, style=case.style, wall_seen=case.wall)
    anatomy = Anatomy(torch.from_numpy(canvas.materials), canvas.space.grid, tissues)
    labels = torch.from_numpy(canvas.labels)
    target = np.stack([points.min(0), points.max(0)])
    facts = {
        "gestational_age_weeks": None if case.empty else round(case.weeks, 2),
        "fetuses": 0 if case.empty else case.fetuses,
        "crl_mm": [round(v, 2) for v in crl_mm],
        "placenta_site": None if case.empty else plan.site,
        "volume_ml": _volumes_ml(labels, anatomy.grid),
        "present": _present(canvas),
        "style": case.style,
        "detail": round(case.detail, 3),
    }
    return Pregnancy(anatomy, labels, facts, probe, target)


def simulate_labelled(seed: int, config: Config | None = None) -> tuple[Scan, Labels, dict[str, Any]]:
    """Simulate one volume: scan ``1 1 z y x`` (uint8), labels on its grid, and truth as plain values.

    Labels end where the beams do (``scan.sector.mask``). Truth: the facts of ``draw``;
    ``volume_in_view_ml`` and, per structure, ``cut`` by the field of view; probe and grid.

    Example:
        >>> scan, labels, truth = simulate_labelled(1, Config(size=64))
        >>> labels.data.shape[1:] == scan.data.shape[2:], sorted(truth["cut"])
        (True, ['fetus', 'gestational_sac', 'placenta'])
    """
    config = config or Config()
    pregnancy = draw(seed, config)
    rng = np.random.default_rng((seed, 1))
    drawn_size = int(rng.integers(96, 161))
    grid = volume_grid(
        rng,
        pregnancy.probe,
        target=pregnancy.target_mm,
        size=config.size or drawn_size,
        spacing_mm=config.spacing_mm,
    )
    scan = acquire(pregnancy.anatomy, pregnancy.probe, imaging=draw_imaging(rng), seed=seed, grid=grid).scan
    scan = dataclasses.replace(scan, history=(f"simulated prenatal, seed {seed}",))
    assert scan.sector is not None
    drawn = sample_labels(
        pregnancy.labels, pregnancy.anatomy.grid, target=scan.grid, count=1 + len(LABEL_NAMES)
    )
    data = drawn * scan.sector.mask
    labels = Labels("structures", data[None], scan.grid, LABEL_NAMES)
    whole = pregnancy.facts["volume_ml"]
    seen = _volumes_ml(_in_view(pregnancy, grid), pregnancy.anatomy.grid)
    truth = {
        "seed": seed,
        **pregnancy.facts,
        "volume_in_view_ml": seen,
        "cut": {name: seen[name] < _CUT_BELOW * whole[name] for name in LABEL_NAMES.values()},
        "probe": dataclasses.asdict(pregnancy.probe),
        "shape": list(grid.shape),
        "spacing_mm": list(grid.spacing_mm or ()),
    }
    return scan, labels, truth


def simulate(seed: int, config: Config | None = None) -> tuple[Scan, dict[str, Any]]:
    """Simulate one volume and its truth, without the label map: see ``simulate_labelled``."""
    scan, _, truth = simulate_labelled(seed, config)
    return scan, truth


def _case(rng: np.random.Generator, config: Config) -> _Case:
    weeks, twins, detail = rng.uniform(10, 14), rng.random() < 0.05, rng.random()
    style = surroundings.STYLES[rng.choice(4, p=(0.5, 0.2, 0.12, 0.18))]
    endocavitary, cut, empty = rng.random() < 0.25, rng.random() < 0.15, rng.random() < config.empty
    weeks = weeks if config.weeks is None else config.weeks
    fetuses = config.fetuses or (2 if twins else 1)
    # One standard deviation of the chart is about 4 days' growth of a tenth.
    crl = np.clip(crl_of(7 * weeks) * rng.normal(1, 0.05) * rng.normal(1, 0.03, 2), 22, 92)
    # Outlines, everything, and what lies between in equal parts.
    level = float(np.clip(1.6 * detail - 0.2, 0, 1))
    return _Case(
        weeks=weeks,
        fetuses=fetuses,
        crl_mm=tuple(float(v) for v in crl[:fetuses]),
        detail=level if config.detail is None else config.detail,
        style=config.style or style,
        endocavitary=bool(endocavitary),
        cut=bool(cut) if config.cut is None else config.cut,
        empty=bool(empty),
        wall=bool(rng.random() < 0.8),
    )


def _laid_out(
    rng: np.random.Generator, case: _Case, *, site: uterus.Site | None
) -> tuple[uterus.Plan, float]:
    """Draw the uterus and put it in front of the probe: plan, and depth (mm) of what lies before it."""
    plan = uterus.drawn_plan(
        rng, crl_mm=max(case.crl_mm), fetuses=case.fetuses, site=site, centre_mm=np.zeros(3)
    )
    front_mm = rng.uniform(3, 16) if case.endocavitary else rng.uniform(14, 50)
    around = plan.wall_mm * 1.3 + _outer_mm(plan) * 0.7
    depth = front_mm + around + float(plan.reach_mm[1]) * 1.05
    aside = rng.normal(0, 6, 2)
    return dataclasses.replace(plan, centre_mm=np.array([aside[0], depth, aside[1]])), float(front_mm)


def _outer_mm(plan: uterus.Plan) -> float:
    return plan.decidua_mm + plan.outward * plan.thickness_mm * 1.3 + 4


def _pregnant(rng: np.random.Generator, case: _Case, plan: uterus.Plan) -> Canvas:
    """Draw the uterus with what it holds on a canvas of its own."""
    half = plan.reach_mm * 1.2 + 1.6 * plan.wall_mm + _outer_mm(plan) + _MARGIN_MM
    voxel_mm = float(np.clip((8 * float(np.prod(half)) / _VOXELS) ** (1 / 3), *_VOXEL_MM))
    first = np.ceil((plan.centre_mm - half) / voxel_mm).astype(int)
    first[1] = max(first[1], 0)  # nothing lies before the probe's face
    shape = np.ceil((plan.centre_mm + half) / voxel_mm).astype(int) - first
    z, y, x = (float(v) for v in first * voxel_mm)
    canvas = clear(Space((int(shape[0]), int(shape[1]), int(shape[2])), voxel_mm, (z, y, x)))
    _fill_pregnancy(rng, canvas, case=case, plan=plan)
    return canvas


def _outline_mm(rng: np.random.Generator, pregnant: Canvas, *, inner: int) -> np.ndarray:
    """Points (n, 3) all over what has the label ``inner`` or a higher one, among them the outermost."""
    voxels = np.argwhere(pregnant.labels >= inner)
    ends = [index for axis in range(3) for index in (voxels[:, axis].argmin(), voxels[:, axis].argmax())]
    chosen = np.concatenate([ends, rng.integers(len(voxels), size=4000)])
    return voxels[chosen] * pregnant.space.voxel_mm + pregnant.space.origin_mm


def _moved(canvas: Canvas, move_mm: np.ndarray) -> tuple[Canvas, np.ndarray]:
    """Move a canvas by whole voxels; return the move made, too."""
    move = np.round(move_mm / canvas.space.voxel_mm) * canvas.space.voxel_mm
    z, y, x = (float(v) for v in move + canvas.space.origin_mm)
    return dataclasses.replace(canvas, space=dataclasses.replace(canvas.space, origin_mm=(z, y, x))), move


def _space(probe: Probe, womb: Space) -> Space:
    """Voxels on the lattice of ``womb``: all of it, and the field of view up to 4 cm around it."""
    step = womb.voxel_mm
    reach = probe.depth_mm + max(probe.radius_mm, probe.sweep_radius_mm)
    fan = reach * np.sin(np.radians([probe.elevation_deg, 90.0, probe.azimuth_deg]))
    low = np.array(womb.origin_mm)
    high = low + (np.array(womb.shape) - 1) * step
    first = np.minimum(low, np.maximum(-fan, low - 40))
    last = np.maximum(high, np.minimum(fan, high + 40))
    first[1], last[1] = 0.0, max(high[1], probe.depth_mm)
    first = np.round(first / step).astype(int)
    shape = np.round(last / step).astype(int) - first + 1
    z, y, x = (float(v) for v in first * step)
    return Space((int(shape[0]), int(shape[1]), int(shape[2])), step, (z, y, x))


def _fill_around(
    rng: np.random.Generator, canvas: Canvas, *, case: _Case, plan: uterus.Plan, front_mm: float
) -> None:
    reach = plan.reach_mm + plan.wall_mm
    if case.style == "patchy":
        surroundings.fill_patches(rng, canvas)
    if case.style in ("layered", "patchy") and not case.endocavitary:
        surroundings.fill_wall(rng, canvas, thickness_mm=front_mm * rng.uniform(0.6, 1))
    if case.empty:
        if rng.random() < 0.5:
            surroundings.fill_organ(rng, canvas, centre_mm=plan.centre_mm + rng.normal(0, 15, 3))
        if rng.random() < 0.5:
            surroundings.fill_empty_uterus(rng, canvas, centre_mm=plan.centre_mm + rng.normal(0, 10, 3))
    if case.style == "layered" or case.empty:
        if rng.random() < 0.25:
            surroundings.fill_bone(rng, canvas, below_mm=float(plan.centre_mm[1] + reach[1]))
        if rng.random() < 0.45:
            place = surroundings.bladder_place(
                rng, frame=plan.frame, centre_mm=plan.centre_mm, reach_mm=reach
            )
            surroundings.fill_bladder(rng, canvas, centre_mm=place)
    if case.style != "dark" and rng.random() < 0.4:
        surroundings.fill_gas(rng, canvas, centre_mm=plan.centre_mm, reach_mm=reach)


def _fill_pregnancy(rng: np.random.Generator, canvas: Canvas, *, case: _Case, plan: uterus.Plan) -> None:
    womb = uterus.womb(rng, canvas.space, plan=plan)
    gap = uterus.amnion_gap(rng, womb) if rng.random() < 0.55 else np.zeros((), np.float32)
    level = _between(rng, womb=womb)
    details = drawn_details(rng, case.detail)
    lying = [
        _lying(rng, pose(rng, crl_mm, details=details), womb=womb, room=room)
        for room, crl_mm in zip(_rooms(womb.sac + gap, level, case), case.crl_mm, strict=True)
    ]
    # A sac never presses on what it holds: it makes room.
    womb = womb.grown(float(np.clip(max(over for _, over in lying) - 0.5, 0, _MARGIN_MM)))
    uterus.fill_uterus(rng, canvas, womb=womb, wall=case.wall)
    if gap.ndim:
        uterus.fill_amnion(rng, canvas, distance=womb.sac + gap)
    if case.fetuses > 1 and rng.random() < 0.85:
        half = max(rng.uniform(0.3, 1.6), 0.5 * canvas.space.voxel_mm)
        canvas.fill((canvas.labels == SAC) & (np.abs(level) < half), "septum")
    if rng.random() < 0.4:
        uterus.fill_yolk_sac(rng, canvas, womb=womb)
    corded = rng.random() < 0.6
    for (fetus, _), room in zip(lying, _rooms(womb.sac + gap, level, case), strict=True):
        if corded:
            uterus.fill_cord(rng, canvas, womb=womb, navel=fetus.navel)
        fill_fetus(rng, canvas, fetus=fetus, limit_mm=room)


def _between(rng: np.random.Generator, *, womb: uterus.Womb) -> Array:
    """Signed distance (mm) to a wavy surface across the sac, where twins are parted."""
    normal = unit(womb.plan.frame[:, 0] + 0.3 * random_direction(rng))
    wave = np.float32(rng.uniform(0, 4)) * smooth_field(rng, womb.space, correlation_mm=30)
    return womb.space.along(normal, womb.plan.centre_mm) + wave


def _rooms(distance: Array, level: Array, case: _Case) -> list[Array]:
    """Distance (mm) to the part of the sac that each fetus has for itself."""
    if case.fetuses == 1:
        return [distance]
    return [np.maximum(distance, 2 + level), np.maximum(distance, 2 - level)]


def _lying(rng: np.random.Generator, fetus: Fetus, *, womb: uterus.Womb, room: Array) -> tuple[Fetus, float]:
    """Turn and move a fetus to where ``room`` (distance, mm) holds it; and by how much it does not."""
    points, radii = fetus.hull()
    deep = np.argwhere(room < max(-0.2 * fetus.crl_mm, 0.5 * float(room.min())))
    tries = 300
    centres = deep[rng.integers(len(deep), size=tries)] * womb.space.voxel_mm + womb.space.origin_mm
    turns = np.stack([random_rotation(rng) for _ in range(tries)])
    placed = np.einsum("tij,nj->tni", turns, points) + centres[:, None]
    depth = ndimage.map_coordinates(room, womb.space.index(placed.reshape(-1, 3)), order=1, cval=50.0)
    over = (depth.reshape(tries, -1) + radii).max(1)
    fits = np.flatnonzero(over < max(0.5, float(over.min()) + 1))
    # A mother lies on her back: her child, more often than not, on the far wall.
    best = fits[np.argmax(centres[fits, 1])] if rng.random() < 0.5 else fits[0]
    return fetus.placed(turns[best], centres[best]), float(over[best])


def _in_view(pregnancy: Pregnancy, grid: Grid) -> Tensor:
    """Labels of the anatomy where beams reach and the volume's grid extends; 0 elsewhere."""
    labels, probe, source = pregnancy.labels, pregnancy.probe, pregnancy.anatomy.grid
    voxels = labels.nonzero()
    world = source.to_world(voxels.numpy())
    index = torch.from_numpy(grid.to_index(world))
    seen = ((index > -0.5) & (index < torch.tensor(grid.shape) - 0.5)).all(-1)
    z, y, x = torch.from_numpy(world).float().unbind(-1)
    beams = torch.tensor((probe.samples, probe.lines, probe.planes))
    beam = beam_index(probe, (z, y, x))
    seen &= ((beam >= -0.5) & (beam <= beams - 0.5)).all(-1)
    kept = torch.zeros_like(labels)
    kept[tuple(voxels[seen].T)] = labels[tuple(voxels[seen].T)]
    return kept


def _volumes_ml(labels: Tensor, grid: Grid) -> dict[str, float]:
    """Volume of each label, and of the whole sac with the fetus in it, in mL."""
    voxel_ml = float(np.prod(grid.require_spacing_mm("volumes"))) / 1000
    counts = {name: int((labels == value).sum()) for value, name in LABEL_NAMES.items()}
    volumes = {name: round(count * voxel_ml, 4) for name, count in counts.items()}
    return {**volumes, "whole_sac": round(volumes["gestational_sac"] + volumes["fetus"], 4)}


def _present(canvas: Canvas) -> list[str]:
    """Names of the materials that occur."""
    seen = np.zeros(len(MATERIALS), bool)
    seen[canvas.materials.ravel()] = True
    return [name for name, occurs in zip(MATERIALS, seen, strict=True) if occurs]
