"""What surrounds a fetal head, or stands in its place, and how a probe looks at it."""

from __future__ import annotations

import dataclasses

import numpy as np

from models3d.phantoms import _surroundings as surroundings
from models3d.phantoms._canvas import MATERIALS, Canvas
from models3d.phantoms._fetal_head_anatomy import HEAD_MATERIALS
from models3d.phantoms._shapes import (
    Space,
    ellipsoid,
    random_direction,
    random_rotation,
    round_cone,
    smooth_field,
)
from models3d.phantoms._tissues import drawn_tissues
from models3d.phantoms._view import WIDEST_DEG, needed
from usvol.simulation.probe import Probe, draw_probe
from usvol.simulation.tissue import TISSUES, Tissue

FIRST_HEAD = len(MATERIALS)  # head materials follow those of the prenatal canvas

_LIKE = {
    "scalp": "fetal_soft", "skull": "fetal_bone", "suture": "membrane", "csf": "fluid", "brain": "brain",
    "falx": "membrane", "thalamus": "brain", "ventricle": "fluid", "choroid_plexus": "choroid_plexus",
    "cavum": "fluid", "cavum_wall": "membrane", "cerebellum": "brain", "vermis": "choroid_plexus",
    "brainstem": "brain", "insula": "membrane", "skull_base": "fetal_bone", "face": "fetal_soft",
    "orbit": "fluid", "lens": "membrane", "jaw": "fetal_bone", "neck": "fetal_soft",
    "vertebra": "fetal_bone", "trachea": "fluid", "callosum": "brain", "dense_skull": "fetal_bone",
}  # fmt: skip


def scene_tissues(
    rng: np.random.Generator, *, style: surroundings.Style, thick_mm: float
) -> tuple[Tissue, ...]:
    """Draw all tissues: those of the mother as in the prenatal phantom, then those of the head.

    What a skull of ``thick_mm`` takes from the sound is drawn per crossing, as thin skulls are drawn too
    thick: 0.3-2.2 dB/MHz, and 3-8 dB/MHz where it is dense.
    """
    mother = drawn_tissues(rng, style=style, wall_seen=bool(rng.random() < 0.8))
    fetus, brain = rng.uniform(-13, -1), rng.uniform(-27, -12)
    fluid = rng.uniform(-60, -34)
    echo = {
        "scalp": fetus, "face": fetus + rng.normal(0, 1.5), "neck": fetus + rng.normal(0, 2),
        "skull": rng.uniform(0, 6), "skull_base": rng.uniform(-3, 5), "jaw": rng.uniform(-3, 5),
        "vertebra": rng.uniform(-3, 5), "suture": fetus - rng.uniform(0, 6),
        "csf": brain + rng.uniform(-14, 7) if rng.random() < 0.6 else fluid,
        "brain": brain, "falx": brain + rng.uniform(6, 22), "thalamus": brain + rng.uniform(-8, 4),
        "ventricle": min(fluid, brain - 8), "choroid_plexus": brain + rng.uniform(10, 22),
        "cavum": min(fluid, brain - 8), "cavum_wall": brain + rng.uniform(6, 20),
        "cerebellum": brain + rng.uniform(-4, 7), "vermis": brain + rng.uniform(5, 16),
        "brainstem": brain + rng.uniform(-6, 5), "insula": brain + rng.uniform(4, 18),
        "orbit": fluid, "lens": rng.uniform(-16, -6), "trachea": fluid,
        "callosum": brain + rng.uniform(-8, 2),
    }  # fmt: skip
    bone = rng.uniform(4, 14)
    lost = {"skull": rng.uniform(0.3, 2.2) * 10 / thick_mm, "dense_skull": rng.uniform(3, 8) * 10 / thick_mm}
    echo["dense_skull"] = echo["skull"]
    head = []
    for name in HEAD_MATERIALS:
        base = TISSUES[_LIKE[name]]
        loss = base.attenuation_db_cm_mhz * rng.uniform(0.7, 1.4)
        if base.name == "fetal_bone":
            loss = lost.get(name, bone)
        head.append(
            dataclasses.replace(
                base,
                name=name,
                echo_db=float(echo[name]),
                attenuation_db_cm_mhz=float(loss),
                impedance_mrayl=base.impedance_mrayl * float(rng.uniform(0.97, 1.03)),
                texture_db=base.texture_db * float(rng.uniform(0.3, 1.8)),
            )
        )
    return (*mother, *head)


def fill_mother(
    rng: np.random.Generator,
    canvas: Canvas,
    *,
    centre_mm: np.ndarray,
    radius_mm: float,
    style: surroundings.Style,
) -> None:
    """Draw abdominal wall, uterus, placenta and amniotic fluid about a place where a head may be put."""
    space = canvas.space
    front_mm = max(float(centre_mm[1]) - 1.3 * radius_mm, 3.0)
    if style == "patchy":
        surroundings.fill_patches(rng, canvas)
    if style in ("layered", "patchy"):
        surroundings.fill_wall(rng, canvas, thickness_mm=front_mm * rng.uniform(0.4, 0.95))
    middle = centre_mm + random_direction(rng) * radius_mm * rng.uniform(0, 0.6)
    radii = radius_mm * rng.uniform(1.0, 2.6, 3)
    depth = ellipsoid(space, middle, frame=random_rotation(rng), radii_mm=radii)
    field = smooth_field(rng, space, correlation_mm=max(1.2 * radius_mm, 10))
    depth = depth + np.float32(0.2 * radius_mm) * field
    wall = rng.uniform(4, 12)
    before = space.axes()[1] > np.float32(0.5 * front_mm)
    canvas.fill((depth < np.float32(wall)) & before, "myometrium")
    canvas.fill((depth < 0) & before, "amniotic_fluid")
    if rng.random() < 0.7:
        side = random_direction(rng)
        cap = space.along(side, middle) > np.float32(rng.uniform(0.1, 0.7) * float(radii.min()))
        thick = np.float32(radius_mm * rng.uniform(0.2, 0.8))
        canvas.fill((depth < 0) & (depth > -thick) & cap & before, "placenta")


def fill_limbs(rng: np.random.Generator, canvas: Canvas, *, centre_mm: np.ndarray, radius_mm: float) -> None:
    """Draw arms, hands, cord and the trunk of a fetus around a place: they touch a head, and are none."""
    for _ in range(int(rng.integers(0, 5))):
        start = centre_mm + random_direction(rng) * radius_mm * rng.uniform(1.15, 2.0)
        ends = np.stack([start, start + random_direction(rng) * radius_mm * rng.uniform(0.5, 1.6)])
        thick = radius_mm * rng.uniform(0.07, 0.22)
        _fill_rod(canvas, ends, radius_mm=thick, material="fetal_soft")
        if rng.random() < 0.7:
            _fill_rod(canvas, ends, radius_mm=thick * rng.uniform(0.25, 0.5), material="fetal_bone")
        elif rng.random() < 0.5:
            _fill_rod(canvas, ends, radius_mm=thick * 0.4, material="cord_vessel")


def fill_trunk(
    rng: np.random.Generator, canvas: Canvas, *, centre_mm: np.ndarray, axis: np.ndarray, radius_mm: float
) -> None:
    """Draw a fetal trunk with ribs, spine, lungs and stomach, its long axis along ``axis``."""
    frame = random_rotation(rng)
    frame[:, 0] = axis
    frame[:, 1] -= axis * (axis @ frame[:, 1])
    frame[:, 1] /= np.linalg.norm(frame[:, 1])
    frame[:, 2] = np.cross(frame[:, 0], frame[:, 1])
    radii = radius_mm * rng.uniform((1.2, 0.8, 0.8), (1.9, 1.2, 1.2))
    box = canvas.space.box(centre_mm, float(radii.max()))
    space = canvas.space.part(box)
    if min(space.shape) < 2:
        return
    body = ellipsoid(space, centre_mm, frame=frame, radii_mm=radii)
    canvas.fill(body < 0, "fetal_soft", box=box)
    along = space.along(frame[:, 0], centre_mm)
    if rng.random() < 0.7:
        rib = np.abs(np.sin(along * np.float32(rng.uniform(6, 9) / radii[0]))) > 0.8
        shell = (body < np.float32(-0.06 * radius_mm)) & (body > np.float32(-0.14 * radius_mm))
        canvas.fill(shell & rib & (along > 0), "fetal_bone", box=box)
    canvas.fill(
        (body < np.float32(-0.2 * radius_mm)) & (along > np.float32(0.2 * radii[0])), "fetal_lung", box=box
    )
    stomach = ellipsoid(
        space,
        centre_mm - frame[:, 0] * 0.2 * radii[0] + frame[:, 1] * 0.35 * radii[1],
        frame=frame,
        radii_mm=radii * 0.22,
    )
    canvas.fill(stomach < 0, "fetal_fluid", box=box)
    back = centre_mm - frame[:, 2] * 0.7 * radii[2]
    _fill_rod(
        canvas,
        np.stack([back - axis * radii[0], back + axis * radii[0]]),
        radius_mm=0.13 * radius_mm,
        material="fetal_bone",
    )


def fill_decoys(rng: np.random.Generator, canvas: Canvas, *, centre_mm: np.ndarray, radius_mm: float) -> None:
    """Draw something round that is no head: organ, bladder, empty uterus, cyst, trunk or a piece of bone."""
    kinds = rng.permutation(["organ", "bladder", "uterus", "ball", "trunk", "bone", "nothing"])
    for kind in kinds[: int(rng.integers(1, 4))]:
        place = centre_mm + rng.normal(0, 0.5, 3) * radius_mm
        if kind == "organ":
            surroundings.fill_organ(rng, canvas, centre_mm=place)
        elif kind == "bladder":
            surroundings.fill_bladder(rng, canvas, centre_mm=place)
        elif kind == "uterus":
            surroundings.fill_empty_uterus(rng, canvas, centre_mm=place)
        elif kind == "trunk":
            fill_trunk(rng, canvas, centre_mm=place, axis=random_direction(rng), radius_mm=radius_mm)
        elif kind == "ball":
            _fill_ball(rng, canvas, centre_mm=place, radius_mm=radius_mm)
        elif kind == "bone":
            surroundings.fill_bone(rng, canvas, below_mm=float(place[1]))


def _fill_ball(rng: np.random.Generator, canvas: Canvas, *, centre_mm: np.ndarray, radius_mm: float) -> None:
    """Draw a fibroid or a cyst with a wall: as round as a head, without bone or midline."""
    box = canvas.space.box(centre_mm, 1.6 * radius_mm)
    space = canvas.space.part(box)
    if min(space.shape) < 2:
        return
    radii = radius_mm * rng.uniform(0.5, 1.3, 3)
    depth = ellipsoid(space, centre_mm, frame=random_rotation(rng), radii_mm=radii)
    canvas.fill(depth < 0, str(rng.choice(("membrane", "myometrium", "placenta"))), box=box)
    inner = str(rng.choice(("urine", "fibroid", "placenta", "amniotic_fluid")))
    canvas.fill(depth < np.float32(-0.08 * radius_mm), inner, box=box)


def _fill_rod(canvas: Canvas, ends_mm: np.ndarray, *, radius_mm: float, material: str) -> None:
    radius_mm = max(radius_mm, 0.7 * canvas.space.voxel_mm)
    box = canvas.space.box(ends_mm.mean(0), np.abs(ends_mm[1] - ends_mm[0]) / 2 + radius_mm + 1)
    space = canvas.space.part(box)
    if min(space.shape) >= 2:
        canvas.fill(round_cone(space, ends_mm, radii_mm=(radius_mm, radius_mm)) < 0, material, box=box)


def paste_head(
    canvas: Canvas, head: np.ndarray, *, space: Space, frame: np.ndarray, centre_mm: np.ndarray
) -> None:
    """Put a head, drawn in its own axes, on the canvas: columns of ``frame`` are its axes in the world."""
    corners = np.array(
        np.meshgrid(
            *[(o, o + (n - 1) * space.voxel_mm) for n, o in zip(space.shape, space.origin_mm, strict=True)]
        )
    )
    world = frame @ corners.reshape(3, 8) + centre_mm[:, None]
    box = canvas.space.box((world.max(1) + world.min(1)) / 2, np.ptp(world, axis=1) / 2)
    part = canvas.space.part(box)
    if min(part.shape) < 1:
        return
    inside = np.ones((), bool)
    index = []
    for axis in range(3):
        along = part.along(frame[:, axis], centre_mm)
        place = np.rint((along - np.float32(space.origin_mm[axis])) * np.float32(1 / space.voxel_mm)).astype(
            np.int32
        )
        inside = inside & (place >= 0) & (place < space.shape[axis])
        index.append(place)
    flat = (index[0] * space.shape[1] + index[1]) * space.shape[2] + index[2]
    drawn = head.ravel()[np.where(inside, flat, 0)]
    mask = inside & (drawn < len(HEAD_MATERIALS))
    canvas.materials[box][mask] = drawn[mask] + FIRST_HEAD


def looked_at(rng: np.random.Generator, points_mm: np.ndarray, *, radius_mm: float, beams: float) -> Probe:
    """Draw a probe whose fan holds points (n, 3), with little or much room; fewer ``beams`` are quicker."""
    deepest = float(points_mm[:, 1].max())
    endocavitary = deepest < 75 and rng.random() < 0.3
    probe = draw_probe(rng, endocavitary=endocavitary, depth_mm=deepest + 15)
    far, azimuth, elevation = needed(probe, points_mm)
    spare = rng.uniform(1, 1.5, 3) ** np.array([1.0, 1.3, 1.3])
    depth = far + radius_mm * (spare[0] - 0.95)
    return dataclasses.replace(
        probe,
        depth_mm=float(depth),
        focus_mm=float(depth * rng.uniform(0.35, 0.8)),
        azimuth_deg=float(np.clip(azimuth * spare[1] + 1, 14, WIDEST_DEG)),
        elevation_deg=float(np.clip(elevation * spare[2] + 1, 14, WIDEST_DEG)),
        lines=round(rng.uniform(56, 90) * beams),
        planes=round(rng.uniform(48, 80) * beams),
        samples=round(float(np.clip(depth / 0.4, 150, 256)) * beams),
    )
