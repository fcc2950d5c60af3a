"""The pregnant uterus without its fetus: wall, cervix, placenta, sac, membranes, yolk sac, cord.

All surfaces are distances to one deformed ellipsoid, the uterine cavity, so that they nest: the placenta is a
cap of drawn thickness that grows inwards, outwards or both, and the gestational sac is what it leaves free.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from scipy import ndimage

from models3d.phantoms._canvas import PLACENTA, SAC, Canvas
from models3d.phantoms._shapes import (
    Array,
    Space,
    ellipsoid,
    ellipsoid_at,
    random_direction,
    random_rotation,
    round_cone,
    smooth_field,
    turned,
    unit,
)

Site = Literal["anterior", "posterior", "lateral", "fundal", "low"]
SITES: tuple[Site, ...] = get_args(Site)
_EDGE_MM = 0.8  # thinner than this at its rim, the placenta ends


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Drawn numbers of a uterus; columns of ``frame``: towards the cervix, backwards, sideways.

    Attributes:
        radii_mm: of the cavity; ``wall_mm``: thickness of the muscle; 0 draws none.
        site_direction: of the placenta's middle in units of the cavity's radii (own axes).
        extent_rad, rim_rad: half angle of the placenta, and over which it tapers.
        outward: part of its thickness that lies outside the cavity.
    """

    centre_mm: np.ndarray
    frame: np.ndarray
    radii_mm: np.ndarray
    wall_mm: float
    roughness: float
    site: Site
    site_direction: np.ndarray
    thickness_mm: float
    extent_rad: float
    rim_rad: float
    outward: float
    decidua_mm: float

    @property
    def reach_mm(self) -> np.ndarray:
        """Half extent of the cavity along world z, y, x before deformation."""
        return np.sqrt((np.square(self.frame) * np.square(self.radii_mm)).sum(1))


@dataclass(frozen=True, slots=True, eq=False)
class Womb:
    """Distances (mm) over one space: to the cavity, to the sac, and to sac and placenta together."""

    space: Space
    plan: Plan
    sac: Array
    bed: Array
    thickness: Array

    def grown(self, by_mm: float) -> Womb:
        """The same with a sac larger by ``by_mm`` all around."""
        step = np.float32(by_mm)
        return dataclasses.replace(self, sac=self.sac - step, bed=self.bed - step)


def drawn_plan(
    rng: np.random.Generator, *, crl_mm: float, fetuses: int, site: Site | None, centre_mm: np.ndarray
) -> Plan:
    """Draw a uterus for fetuses of a crown-rump length."""
    long_mm = crl_mm * rng.uniform(0.53, 0.7) + rng.uniform(1, 6)
    radii = np.array([long_mm, long_mm * rng.uniform(0.62, 1.0), long_mm * rng.uniform(0.66, 1.0)])
    radii = np.maximum(radii, (0.53 * crl_mm, 0.36 * crl_mm, 0.36 * crl_mm)) * (1.2 if fetuses > 1 else 1.0)
    drawn = SITES[rng.choice(5, p=(0.3, 0.3, 0.15, 0.13, 0.12))]
    site = site or drawn
    side = rng.choice((-1.0, 1.0))
    middle = {
        "anterior": (0.0, -1.0, 0.0),
        "posterior": (0.0, 1.0, 0.0),
        "lateral": (0.0, 0.0, side),
        "fundal": (-1.0, 0.0, 0.0),
        "low": (0.75, 0.65 * side, 0.0),
    }[site]
    outward = float(rng.choice((0.0, rng.uniform(0, 0.85)), p=(0.15, 0.85)))
    thickness = rng.uniform(8, 30)
    # A cap that grows inwards must leave room for the fetus.
    thickness = min(thickness, (float(radii.min()) - 0.26 * crl_mm) * 1.1 / max(1 - outward, 0.05))
    return Plan(
        centre_mm=centre_mm,
        frame=_frame(rng),
        radii_mm=np.minimum(radii, 58),
        wall_mm=float(rng.uniform(5, 20)),
        roughness=float(rng.uniform(0.0, 1.0)),
        site=site,
        site_direction=unit(np.array(middle) + 0.28 * rng.standard_normal(3)),
        thickness_mm=max(float(thickness), 6.0),
        extent_rad=math.radians(rng.uniform(36, 80)),
        rim_rad=rng.uniform(0.12, 0.7),
        outward=outward,
        decidua_mm=float(rng.choice((0.0, rng.uniform(0.8, 4)), p=(0.25, 0.75))),
    )


def _frame(rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.1:
        return random_rotation(rng)
    turn = rng.uniform(0, 2 * math.pi)
    down = np.array([math.sin(turn), 0.0, math.cos(turn)])
    back = np.array([0.0, 1.0, 0.0])
    upright = np.stack([down, back, np.cross(down, back)], -1)
    return turned(random_direction(rng), rng.normal(0, math.radians(25))) @ upright


def womb(rng: np.random.Generator, space: Space, *, plan: Plan) -> Womb:
    """Deform the cavity and grow the placenta on it."""
    size = float(plan.radii_mm.mean())
    local = [space.along(plan.frame[:, i], plan.centre_mm) for i in range(3)]
    down, back, side = local
    bend, taper = rng.normal(0, 0.12, 2), rng.normal(0, 0.1)
    bowed = np.square(down * np.float32(1 / plan.radii_mm[0])) - np.float32(0.3)
    back = back + bowed * np.float32(bend[0] * size)
    side = side + bowed * np.float32(bend[1] * size)
    wide = np.clip(1 + np.float32(taper / plan.radii_mm[0]) * down, 0.7, 1.3)
    bulge = np.float32(plan.roughness * 0.13 * size)
    local = [
        q + bulge * smooth_field(rng, space, correlation_mm=1.3 * size)
        for q in (down, back * wide, side * wide)
    ]
    cavity = ellipsoid_at(local, plan.radii_mm)
    cavity = cavity + np.float32(plan.roughness * rng.uniform(0.2, 2.0)) * smooth_field(
        rng, space, correlation_mm=rng.uniform(10, 20)
    )
    thickness = _placenta_thickness(rng, space, plan=plan, local=local)
    outward = np.float32(plan.outward)
    return Womb(space, plan, cavity + (1 - outward) * thickness, cavity - outward * thickness, thickness)


def _placenta_thickness(rng: np.random.Generator, space: Space, *, plan: Plan, local: list[Array]) -> Array:
    """Thickness (mm) of the placenta seen from the middle of the sac; 0 off it."""
    scaled = [q * np.float32(1 / r) for q, r in zip(local, plan.radii_mm, strict=True)]
    length = np.sqrt(np.square(scaled[0]) + np.square(scaled[1]) + np.square(scaled[2])) + np.float32(1e-3)
    cosine = sum(q * np.float32(n) for q, n in zip(scaled, plan.site_direction, strict=True)) / length
    angle = np.arccos(np.clip(cosine, -1, 1))
    extent = plan.extent_rad + rng.uniform(0, 0.25) * smooth_field(
        rng, space, correlation_mm=rng.uniform(15, 40)
    )
    profile = np.sqrt(np.clip((extent - angle) * np.float32(1 / plan.rim_rad), 0, 1))
    lobes = 1 + rng.uniform(0, 0.28) * smooth_field(rng, space, correlation_mm=rng.uniform(9, 26))
    thickness = np.float32(plan.thickness_mm) * profile * np.clip(lobes, 0.5, 1.5)
    # Towards the middle of the sac directions run together: nothing grows there.
    return np.where((thickness > _EDGE_MM) & (length > 0.2), thickness, np.float32(0)).astype(np.float32)


def fill_uterus(rng: np.random.Generator, canvas: Canvas, *, womb: Womb, wall: bool) -> None:
    """Draw wall, cervix, fibroids, decidua, placenta and the fluid of the sac."""
    plan, space = womb.plan, womb.space
    if wall:
        _fill_wall(rng, canvas, womb)
    near = womb.thickness > 2
    if plan.decidua_mm > 0:
        uneven = plan.decidua_mm * (1 + 0.35 * smooth_field(rng, space, correlation_mm=15))
        canvas.fill(womb.bed < uneven, "decidua")
    if rng.random() < 0.5:
        canvas.fill(near & (womb.bed < np.float32(rng.uniform(1.2, 3.5))), "basal_plate")
    if rng.random() < 0.15:
        _fill_subchorionic(rng, canvas, womb)
    canvas.fill(womb.bed < 0, "placenta", label=PLACENTA)
    if rng.random() < 0.5:
        holes = smooth_field(rng, space, correlation_mm=rng.uniform(4, 9)) > rng.uniform(1.4, 2.4)
        canvas.fill((womb.bed < -1.5) & near & holes, "lacuna")
    if rng.random() < 0.4:
        canvas.fill(near & (womb.sac < np.float32(max(1.0, space.voxel_mm))), "chorionic_plate")
    canvas.fill(womb.sac < 0, "amniotic_fluid", label=SAC)


def _fill_wall(rng: np.random.Generator, canvas: Canvas, womb: Womb) -> None:
    plan, space = womb.plan, womb.space
    uneven = rng.uniform(0.7, 1.6, 3)
    outer = ellipsoid(space, plan.centre_mm, frame=plan.frame, radii_mm=plan.radii_mm + plan.wall_mm * uneven)
    outer = outer + np.float32(rng.uniform(0.5, 3)) * smooth_field(rng, space, correlation_mm=30)
    outer = np.minimum(outer, womb.bed - np.float32(plan.decidua_mm + rng.uniform(2, 6)))
    muscle = outer < 0
    canvas.fill(muscle, "myometrium")
    if rng.random() < 0.6:
        start = plan.centre_mm + plan.frame[:, 0] * plan.radii_mm[0]
        end = start + (plan.frame[:, 0] + 0.35 * random_direction(rng)) * rng.uniform(28, 45)
        ends = np.stack([start, end])
        canvas.fill(
            round_cone(space, ends, radii_mm=(rng.uniform(12, 19), rng.uniform(10, 16))) < 0, "cervix"
        )
        canvas.fill(round_cone(space, ends, radii_mm=(0.9, 0.9)) < 0, "canal")
    for _ in range(int(rng.choice((0, 1, 2, 3), p=(0.78, 0.12, 0.06, 0.04)))):
        towards = plan.frame @ (random_direction(rng) * (plan.radii_mm + 0.6 * plan.wall_mm))
        size = rng.uniform(6, 20) * rng.uniform(0.7, 1.3, 3)
        ball = ellipsoid(space, plan.centre_mm + towards, frame=random_rotation(rng), radii_mm=size)
        canvas.fill(ball < 0, "fibroid")


def _fill_subchorionic(rng: np.random.Generator, canvas: Canvas, womb: Womb) -> None:
    """Draw a crescent of fluid between sac and wall, away from the middle of the placenta."""
    plan, space = womb.plan, womb.space
    away = unit(random_direction(rng) - 0.7 * plan.site_direction)
    spot = plan.centre_mm + plan.frame @ (away * plan.radii_mm)
    bump = np.float32(rng.uniform(3, 9)) - np.float32(0.1) * np.square(
        ellipsoid(space, spot, frame=np.eye(3), radii_mm=np.full(3, rng.uniform(5, 12))).clip(0)
    )
    canvas.fill((womb.bed < bump) & (womb.bed > 0), "subchorionic")


def amnion_gap(rng: np.random.Generator, womb: Womb) -> Array:
    """Draw how far (mm) the amnion lies inside the sac; 0 where it has fused with it."""
    gap_mm = rng.uniform(1.0, 5.0) * (
        1 + 0.7 * smooth_field(rng, womb.space, correlation_mm=rng.uniform(15, 35))
    )
    return np.maximum(gap_mm, 0).astype(np.float32)


def fill_amnion(rng: np.random.Generator, canvas: Canvas, *, distance: Array) -> None:
    """Draw the membrane, thin as a voxel allows, and the coelomic fluid outside it."""
    sac = canvas.labels == SAC
    canvas.fill(sac & (distance > 0), "coelomic_fluid")
    half = np.float32(0.5 * max(canvas.space.voxel_mm, rng.uniform(0.5, 1.0)))
    whole = rng.random() < 0.5
    seen = True if whole else smooth_field(rng, canvas.space, correlation_mm=20) < 0.7
    # Where the two have fused nothing is seen of it.
    fused = canvas.space.voxel_mm
    canvas.fill(sac & (np.abs(distance) < half) & seen & (distance - fused < 0), "membrane")


def fill_yolk_sac(rng: np.random.Generator, canvas: Canvas, *, womb: Womb) -> None:
    """Draw a ring of 3-7 mm on the wall of the sac."""
    radius = rng.uniform(1.7, 3.4)
    shallow = np.argwhere((womb.sac < -radius) & (womb.sac > -radius - 2.5))
    if not len(shallow):
        return
    centre = shallow[rng.integers(len(shallow))] * womb.space.voxel_mm + womb.space.origin_mm
    box = womb.space.box(centre, radius + 1)
    space = womb.space.part(box)
    ball = ellipsoid(space, centre, frame=np.eye(3), radii_mm=np.full(3, radius))
    sac = canvas.labels[box] == SAC
    canvas.fill(sac & (ball < 0), "yolk_wall", box=box)
    canvas.fill(sac & (ball < -max(0.8, space.voxel_mm)), "amniotic_fluid", box=box)


def fill_cord(rng: np.random.Generator, canvas: Canvas, *, womb: Womb, navel: np.ndarray) -> None:
    """Draw a coiled cord from the fetus to the placenta through the fluid of the sac."""
    plan = womb.plan
    ray = plan.frame @ (plan.site_direction * plan.radii_mm)
    steps = plan.centre_mm + np.linspace(0.2, 1.4, 60)[:, None] * ray
    depth = ndimage.map_coordinates(womb.sac, womb.space.index(steps), order=1, mode="nearest")
    beyond = np.flatnonzero(depth > 0)
    end = steps[beyond[0] if len(beyond) else -1]
    middle = [plan.centre_mm + plan.frame @ (0.6 * random_direction(rng) * plan.radii_mm) for _ in range(2)]
    t = np.linspace(0, 1, 40)[:, None]
    path = (
        (1 - t) ** 3 * navel + 3 * t * (1 - t) ** 2 * middle[0] + 3 * t**2 * (1 - t) * middle[1] + t**3 * end
    )
    turns, width = rng.uniform(2, 7), rng.uniform(0.5, 3.0)
    across = [random_direction(rng), random_direction(rng)]
    phase = 2 * math.pi * turns * t
    path = path + width * np.sin(math.pi * t) * (np.cos(phase) * across[0] + np.sin(phase) * across[1])
    radius = rng.uniform(1.2, 2.8)
    for core, material in ((radius, "cord"), (0.5 * radius, "cord_vessel")):
        if core < 0.8 * womb.space.voxel_mm:
            continue
        for ends in pairwise(path):
            pair = np.stack(ends)
            box = womb.space.box(pair.mean(0), np.abs(pair[1] - pair[0]) / 2 + core + 1)
            space = womb.space.part(box)
            if all(space.shape):
                sac = canvas.labels[box] == SAC
                canvas.fill(sac & (round_cone(space, pair, radii_mm=(core, core)) < 0), material, box=box)
