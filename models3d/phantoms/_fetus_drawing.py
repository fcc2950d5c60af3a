"""How a posed fetus fills the canvas: its outline, then skull, brain, spine, ribs, organs and long bones."""

from __future__ import annotations

import math

import numpy as np

from models3d.phantoms._canvas import FETUS, Box, Canvas
from models3d.phantoms._fetus import Ball, Cone, Fetus
from models3d.phantoms._shapes import (
    FAR_MM,
    Array,
    Space,
    blended,
    ellipsoid,
    ellipsoid_at,
    round_cone,
    smooth_field,
)

_MARGIN_MM = 4.0


def fill_fetus(rng: np.random.Generator, canvas: Canvas, *, fetus: Fetus, limit_mm: Array) -> None:
    """Draw a fetus where ``limit_mm`` (distance over the whole space, negative inside) lets it lie."""
    points, radii = fetus.hull()
    low, high = (points - radii[:, None]).min(0), (points + radii[:, None]).max(0)
    box = canvas.space.box((low + high) / 2, (high - low) / 2 + 2 * _MARGIN_MM)
    space = canvas.space.part(box)
    if min(space.shape) < 2:
        return
    depth = _outline(space, fetus)
    depth += smooth_field(rng, space, correlation_mm=rng.uniform(5, 12)) * np.float32(
        rng.uniform(0.0, 0.013) * fetus.crl_mm
    )
    np.maximum(depth, limit_mm[box] + np.float32(0.3), out=depth)
    inside = depth < 0
    canvas.fill(inside, "fetal_soft", box=box, label=FETUS)
    if fetus.details.organs:
        _fill_organs(rng, canvas, fetus=fetus)
    if fetus.details.ribs:
        _fill_ribs(rng, canvas, fetus=fetus)
    if fetus.details.spine:
        _fill_spine(rng, canvas, fetus=fetus)
    _fill_head(rng, canvas, fetus=fetus)
    if fetus.details.bones:
        _fill_bones(canvas, fetus)


def _outline(space: Space, fetus: Fetus) -> Array:
    field = np.full(space.shape, FAR_MM, np.float32)
    width_mm = 0.03 * fetus.crl_mm
    for part in fetus.body:
        if isinstance(part, Cone):
            reach = np.abs(part.ends[1] - part.ends[0]) / 2 + max(part.radii) + _MARGIN_MM
            box = space.box(part.ends.mean(0), reach)
            near = space.part(box)
            distance = round_cone(near, part.ends, radii_mm=part.radii)
        else:
            box = space.box(part.centre, _reach(part) + _MARGIN_MM)
            near = space.part(box)
            distance = ellipsoid(near, part.centre, frame=part.frame, radii_mm=part.radii)
        if distance.size:
            # Limbs keep their shape; head, neck and trunk flow into each other.
            narrow = part.name in ("arm", "leg", "nose")
            field[box] = blended(field[box], distance, width_mm=width_mm * (0.35 if narrow else 1.0))
    return field


def _reach(ball: Ball) -> np.ndarray:
    return np.sqrt((np.square(ball.frame) * np.square(ball.radii)).sum(1))


def _within(canvas: Canvas, centre: np.ndarray, half_mm: float | np.ndarray) -> tuple[Box, Space, np.ndarray]:
    """The box about a point, its space, and where it is fetal."""
    box = canvas.space.box(centre, half_mm)
    return box, canvas.space.part(box), canvas.labels[box] == FETUS


def _fill_ball(
    canvas: Canvas, material: str, *, centre: np.ndarray, frame: np.ndarray, radii: np.ndarray
) -> None:
    box, space, fetal = _within(canvas, centre, float(radii.max()) + 1)
    canvas.fill(fetal & (ellipsoid(space, centre, frame=frame, radii_mm=radii) < 0), material, box=box)


def _fill_head(rng: np.random.Generator, canvas: Canvas, *, fetus: Fetus) -> None:
    head = fetus.head
    box, space, fetal = _within(canvas, head.centre, _reach(head) + 2)
    if not fetal.any():
        return
    up, front, left = local = [space.along(head.frame[:, i], head.centre) for i in range(3)]
    depth = ellipsoid_at(local, head.radii)
    scalp_mm, skull_mm = rng.uniform(0.3, 1.0), max(rng.uniform(0.7, 1.3), 0.9 * space.voxel_mm)
    inner = -scalp_mm - skull_mm
    if fetus.details.brain:
        canvas.fill(fetal & (depth < inner), "brain", box=box)
        # Lateral ventricles fill most of each half, the plexuses most of the ventricles.
        size = head.radii * rng.uniform(0.5, 0.68) * np.array([0.75, 1.0, 0.55])
        shift, back = 0.36 * head.radii[2], rng.uniform(-0.1, 0.1) * head.radii[1]
        for side in (-1, 1):
            ventricle = ellipsoid_at([up, front - back, left - side * shift], size)
            canvas.fill(fetal & (depth < inner) & (ventricle < 0), "ventricle", box=box)
            plexus = ellipsoid_at([up, front - back + 0.15 * size[1], left - side * shift], size * 0.78)
            canvas.fill(fetal & (depth < inner) & (plexus < 0), "choroid_plexus", box=box)
        canvas.fill(fetal & (depth < inner) & (np.abs(left) < 0.55 * space.voxel_mm), "falx", box=box)
    if fetus.details.skull:
        shell = (depth < -scalp_mm) & (depth > inner)
        # Sutures, fontanelles and what is not yet bone.
        patchy = smooth_field(rng, space, correlation_mm=rng.uniform(5, 10)) < rng.uniform(0.6, 2.5)
        canvas.fill(fetal & shell & patchy, "skull", box=box)


def _fill_organs(rng: np.random.Generator, canvas: Canvas, *, fetus: Fetus) -> None:
    scale, axes, trunk = fetus.crl_mm, fetus.axes, fetus.trunk
    chest, belly, pelvis = trunk[2], trunk[4], trunk[5]
    _fill_ball(canvas, "fetal_lung", centre=chest, frame=axes, radii=np.array([0.09, 0.1, 0.12]) * scale)
    _fill_ball(canvas, "fetal_organ", centre=belly, frame=axes, radii=np.array([0.1, 0.11, 0.12]) * scale)
    spots = (
        (chest + axes @ np.array([-0.02, 0.05, 0.02]) * scale, rng.uniform(0.028, 0.05)),  # heart
        (belly + axes @ np.array([0.0, 0.02, 0.07]) * scale, rng.uniform(0.015, 0.035)),  # stomach
        (pelvis + axes @ np.array([-0.02, 0.05, 0.0]) * scale, rng.uniform(0.015, 0.04)),  # bladder
    )
    for centre, radius in spots:
        if rng.random() < 0.8:
            stretch = rng.uniform(0.8, 1.3, 3) * radius * scale
            _fill_ball(canvas, "fetal_fluid", centre=centre, frame=axes, radii=stretch)


def _fill_spine(rng: np.random.Generator, canvas: Canvas, *, fetus: Fetus) -> None:
    radius = max(0.013 * fetus.crl_mm, 0.6 * canvas.space.voxel_mm)
    spread = rng.uniform(0.0, 0.04) * fetus.crl_mm  # of the two centres in each arch
    for vertebra in fetus.spine:
        for side in (-1, 0, 1) if spread > 1.2 * radius else (0,):
            centre = vertebra + fetus.axes[:, 2] * side * spread - fetus.axes[:, 1] * abs(side) * spread
            box, space, fetal = _within(canvas, centre, radius + 1)
            canvas.fill(
                fetal & (round_cone(space, np.stack([centre, centre]), radii_mm=(radius, radius)) < 0),
                "fetal_bone",
                box=box,
            )


def _fill_ribs(rng: np.random.Generator, canvas: Canvas, *, fetus: Fetus) -> None:
    """Draw slices of the chest's shell, open in front."""
    chest = (fetus.trunk[1] + fetus.trunk[2]) / 2
    scale = fetus.crl_mm
    box, space, fetal = _within(canvas, chest, 0.25 * scale)
    if not fetal.any():
        return
    s, v, left = [space.along(fetus.axes[:, i], chest) for i in range(3)]
    shell = ellipsoid_at([s, v, left], np.array([0.26, 0.13, 0.15]) * scale)
    thick = max(0.014 * scale, 0.7 * space.voxel_mm)
    pitch = max(0.03 * scale, 3 * space.voxel_mm)
    slant = rng.uniform(0.1, 0.5)
    level = np.cos((s + slant * v) * np.float32(2 * math.pi / pitch)) > 0.35
    bars = (np.abs(shell) < thick / 2) & level & (np.abs(s) < 0.14 * scale) & (v < 0.09 * scale)
    canvas.fill(fetal & bars, "fetal_bone", box=box)


def _fill_bones(canvas: Canvas, fetus: Fetus) -> None:
    for part in fetus.body:
        if not isinstance(part, Cone) or part.bone == 0:
            continue
        radius = max(part.bone, 0.6 * canvas.space.voxel_mm)
        # The ends are cartilage yet.
        shaft = part.ends[0] + np.array([[0.14], [0.86]]) * (part.ends[1] - part.ends[0])
        box, space, fetal = _within(canvas, shaft.mean(0), np.abs(shaft[1] - shaft[0]) / 2 + radius + 1)
        if fetal.size:
            canvas.fill(
                fetal & (round_cone(space, shaft, radii_mm=(radius, radius)) < 0), "fetal_bone", box=box
            )
