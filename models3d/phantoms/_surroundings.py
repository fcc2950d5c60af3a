"""What lies around the uterus, or in its place: abdominal wall, bladder, bowel and its gas, bone, organs."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np

from models3d.phantoms._canvas import Canvas
from models3d.phantoms._shapes import (
    ellipsoid,
    random_direction,
    random_rotation,
    round_cone,
    smooth_field,
)

Style = Literal["layered", "homogeneous", "dark", "patchy"]
STYLES: tuple[Style, ...] = get_args(Style)


def fill_wall(rng: np.random.Generator, canvas: Canvas, *, thickness_mm: float) -> None:
    """Draw skin, fat, muscle and fasciae down to about ``thickness_mm`` under the probe."""
    space = canvas.space
    flat = type(space)((space.shape[0], 1, space.shape[2]), space.voxel_mm, space.origin_mm)
    y = space.axes()[1]
    skin = min(rng.uniform(1.2, 3.0), 0.3 * thickness_mm)
    share = rng.uniform(0.25, 0.75)
    rest = thickness_mm - skin
    layers = (
        ("skin", skin),
        ("fat", rest * share),
        ("fascia", rng.uniform(0.6, 1.4)),
        ("muscle", rest * (1 - share) * rng.uniform(0.5, 1)),
        ("fascia", rng.uniform(0.6, 1.4)),
    )
    tilt = rng.normal(0, 0.06, 2)
    z, _, x = flat.axes()
    bottom = np.zeros((), np.float32)
    for material, thick in layers:
        top, wave = bottom, 0.12 * thick * smooth_field(rng, flat, correlation_mm=45)
        bottom = bottom + np.maximum(thick + wave, 0.5).astype(np.float32)
        sheet = (y + np.float32(tilt[0]) * z + np.float32(tilt[1]) * x).astype(np.float32)
        canvas.fill((sheet >= top) & (sheet < bottom), material)


def fill_patches(rng: np.random.Generator, canvas: Canvas) -> None:
    """Draw irregular regions of fat, muscle and bowel everywhere."""
    field = smooth_field(rng, canvas.space, correlation_mm=rng.uniform(18, 45))
    for material, level in (("fat", rng.uniform(0.2, 1)), ("muscle", rng.uniform(0.8, 1.5))):
        canvas.fill(field > np.float32(level), material)
    canvas.fill(field < np.float32(rng.uniform(-1.2, -0.4)), "bowel")


def fill_bladder(rng: np.random.Generator, canvas: Canvas, *, centre_mm: np.ndarray) -> None:
    """Draw a partly filled bladder about a point."""
    radii = rng.uniform((12, 7, 14), (38, 24, 42))
    tilt = random_rotation(rng) if rng.random() < 0.3 else np.eye(3)
    box = canvas.space.box(centre_mm, float(radii.max()) + 6)
    space = canvas.space.part(box)
    if min(space.shape) < 2:
        return
    depth = ellipsoid(space, centre_mm, frame=tilt, radii_mm=radii)
    depth = depth + np.float32(rng.uniform(0, 2.5)) * smooth_field(rng, space, correlation_mm=22)
    canvas.fill(depth < rng.uniform(1.5, 4), "bladder_wall", box=box)
    canvas.fill(depth < 0, "urine", box=box)


def fill_gas(
    rng: np.random.Generator, canvas: Canvas, *, centre_mm: np.ndarray, reach_mm: np.ndarray
) -> None:
    """Draw loops of bowel with gas around an ellipsoid about ``centre_mm`` that they leave free."""
    for _ in range(int(rng.integers(1, 6))):
        direction = random_direction(rng)
        direction[1] = abs(direction[1]) if rng.random() < 0.75 else direction[1]
        centre = centre_mm + direction * (reach_mm + rng.uniform(14, 34))
        radii = rng.uniform(4, 15, 3)
        if centre[1] - radii.max() < 4:
            continue
        box = canvas.space.box(centre, float(radii.max()) * 1.6 + 2)
        space = canvas.space.part(box)
        if min(space.shape) < 2:
            continue
        loop = ellipsoid(space, centre, frame=random_rotation(rng), radii_mm=radii * 1.5)
        canvas.fill(loop < 0, "bowel", box=box)
        gas = ellipsoid(space, centre, frame=random_rotation(rng), radii_mm=radii)
        canvas.fill(gas + 1.5 * smooth_field(rng, space, correlation_mm=8) < 0, "gas", box=box)


def fill_bone(rng: np.random.Generator, canvas: Canvas, *, below_mm: float) -> None:
    """Draw the front of the sacrum, or a promontory, deeper than ``below_mm``."""
    centre = np.array([rng.normal(0, 15), below_mm + rng.uniform(18, 35), rng.normal(0, 15)])
    radii = rng.uniform((20, 10, 14), (60, 16, 30))
    canvas.fill(ellipsoid(canvas.space, centre, frame=np.eye(3), radii_mm=radii) < 0, "pelvic_bone")


def fill_organ(rng: np.random.Generator, canvas: Canvas, *, centre_mm: np.ndarray) -> None:
    """Draw a large organ with vessels, such as a liver, or one with a dark middle."""
    space = canvas.space
    radii = rng.uniform(28, 85, 3)
    depth = ellipsoid(space, centre_mm, frame=random_rotation(rng), radii_mm=radii)
    depth = depth + np.float32(rng.uniform(0, 6)) * smooth_field(rng, space, correlation_mm=35)
    inside = depth < 0
    canvas.fill(inside, "organ")
    for _ in range(int(rng.integers(0, 7))):
        start = centre_mm + random_direction(rng) * radii * rng.uniform(0.2, 0.9)
        ends = np.stack([start, start + random_direction(rng) * rng.uniform(20, 70)])
        width = (rng.uniform(1, 5), rng.uniform(0.6, 3))
        box = space.box(ends.mean(0), np.abs(ends[1] - ends[0]) / 2 + max(width) + 1)
        near = space.part(box)
        if min(near.shape):
            canvas.fill(inside[box] & (round_cone(near, ends, radii_mm=width) < 0), "vessel", box=box)
    if rng.random() < 0.3:
        core = ellipsoid(
            space, centre_mm, frame=random_rotation(rng), radii_mm=radii * rng.uniform(0.15, 0.45, 3)
        )
        canvas.fill(core < 0, rng.choice(("urine", "fat", "muscle")))


def fill_empty_uterus(rng: np.random.Generator, canvas: Canvas, *, centre_mm: np.ndarray) -> None:
    """Draw a uterus that carries nothing: muscle and the stripe of its lining."""
    frame = random_rotation(rng)
    radii = rng.uniform((28, 16, 20), (48, 26, 32))
    canvas.fill(ellipsoid(canvas.space, centre_mm, frame=frame, radii_mm=radii) < 0, "myometrium")
    lining = np.array([0.6 * radii[0], rng.uniform(1, 6), 0.55 * radii[2]])
    canvas.fill(ellipsoid(canvas.space, centre_mm, frame=frame, radii_mm=lining) < 0, "decidua")


def bladder_place(
    rng: np.random.Generator, *, frame: np.ndarray, centre_mm: np.ndarray, reach_mm: np.ndarray
) -> np.ndarray:
    """A point in front of the lower uterus, not behind the probe's face."""
    towards = frame[:, 0] * rng.uniform(0.2, 1.1) - np.array([0, 1, 0]) * rng.uniform(0.8, 1.2)
    place = centre_mm + towards * (reach_mm + rng.uniform(6, 18))
    place[1] = max(place[1], rng.uniform(16, 30))
    return place + np.array([rng.normal(0, 6), 0, rng.normal(0, 6)]) * math.sqrt(0.5)
