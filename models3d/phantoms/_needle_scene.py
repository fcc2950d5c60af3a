"""What a needle is put into: muscle with fibres, layered limbs with bone, nerves and vessels, spine, gel."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

import numpy as np

from models3d.phantoms._needle_shaft import Shaft
from models3d.phantoms._shapes import (
    Array,
    Space,
    ellipsoid,
    random_direction,
    random_rotation,
    round_cone,
    smooth_field,
    unit,
)
from usvol.simulation.tissue import TISSUES, Tissue

Style = Literal["chicken", "leg", "nerve", "spine", "gel"]
STYLES: tuple[Style, ...] = get_args(Style)

# A voxel holds the index of its material; the first is what fills the map.
MATERIALS = (
    "muscle", "septum", "skin", "fat", "fascia", "bone", "fluid", "nerve", "sheath", "blood", "vessel_wall",
    "ligament", "target",
)  # fmt: skip
_INDEX = {name: index for index, name in enumerate(MATERIALS)}
_LIKE = {
    "septum": "fascia", "nerve": "decidua", "sheath": "fascia", "vessel_wall": "fascia", "ligament": "fascia",
    "target": "bone",
}  # fmt: skip


def drawn_scene(rng: np.random.Generator, space: Space, *, style: Style) -> tuple[Array, tuple[Tissue, ...]]:
    """Draw the materials (uint8 ``z y x``) and tissues of one scene."""
    materials = np.zeros(space.shape, np.uint8)
    depth_mm = space.shape[1] * space.voxel_mm
    if style == "gel":
        _targets(rng, materials, space)
        return materials, _tissues(rng, style)
    if style != "spine" or rng.random() < 0.5:
        _fibres(rng, materials, space)
    if style in ("leg", "nerve"):
        _tubes(rng, materials, space, style=style)
    if rng.random() < {"chicken": 0.1, "leg": 0.5, "nerve": 0.3, "spine": 0.8}[style]:
        _bone(rng, materials, space, plates=style == "spine")
    if style != "chicken":
        _sheets(rng, materials, space, count=int(rng.integers(1, 5)))
        _layers(rng, materials, space, thickness_mm=rng.uniform(0.05, 0.45) * depth_mm)
    elif rng.random() < 0.4:  # meat in a water bath
        surface = rng.uniform(0.03, 0.3) * depth_mm + 1.2 * _flat_field(rng, space, 15)
        materials[np.broadcast_to(space.axes()[1] < surface, space.shape)] = _INDEX["fluid"]
    return materials, _tissues(rng, style)


def without_bone_before(
    materials: Array, space: Space, *, shaft_mm: np.ndarray, face_mm: np.ndarray
) -> Array:
    """Turn bone into muscle if a tenth of the shaft's points (n, 3) lie in it or in its shadow.

    ``face_mm``: where the beams to those points leave the probe (n, 3).
    """
    share = np.linspace(0, 1, 48)[:, None, None]
    index = np.round(space.index((face_mm + share * (shaft_mm - face_mm)).reshape(-1, 3))).astype(int)
    z, y, x = np.clip(index, 0, np.array(space.shape)[:, None] - 1)
    hidden = (materials[z, y, x] == _INDEX["bone"]).reshape(len(share), -1).any(0)
    if hidden[: max(1, len(hidden) // 8)].any() or hidden.mean() > 0.1:
        materials[materials == _INDEX["bone"]] = _INDEX["muscle"]
    return materials


def drawn_threads(rng: np.random.Generator, space: Space) -> list[Shaft]:
    """Draw bright fibres: short, bent lines, many of them parallel."""
    low = np.asarray(space.origin_mm)
    extent = np.asarray(space.shape) * space.voxel_mm
    common = unit(random_direction(rng) * (1, 0.4, 1))
    threads = []
    for _ in range(int(rng.choice((0, 2, 4, 8), p=(0.25, 0.3, 0.25, 0.2)))):
        spread = 0.08 if rng.random() < 0.7 else 1.0
        ahead = unit(common + spread * rng.standard_normal(3))
        side = unit(np.cross(ahead, random_direction(rng)))
        threads.append(
            Shaft(
                tip_mm=low + rng.uniform(0.05, 0.95, 3) * extent,
                direction=ahead,
                side=side,
                bend_mm=float(rng.uniform(12, 80)),
                radius_mm=float(rng.uniform(0.1, 0.35)),
                length_mm=float(rng.uniform(2, 11)),
            )
        )
    return threads


def _flat_field(rng: np.random.Generator, space: Space, correlation_mm: float) -> Array:
    """Draw a random field over z and x alone."""
    flat = Space((space.shape[0], 1, space.shape[2]), space.voxel_mm, space.origin_mm)
    return smooth_field(rng, flat, correlation_mm=correlation_mm)


def _fibres(rng: np.random.Generator, materials: Array, space: Space) -> None:
    """Draw the connective tissue between bundles of muscle: wavy, broken, parallel sheets."""
    across = unit(random_direction(rng) * (0.5, 1, 0.5))
    period_mm = rng.uniform(1.5, 6)
    wave = smooth_field(rng, space, correlation_mm=rng.uniform(6, 20))
    phase = (space.along(across, np.zeros(3)) + np.float32(rng.uniform(0.3, 2)) * wave) / np.float32(
        period_mm
    )
    sheets = (phase - np.floor(phase)) < np.float32(max(rng.uniform(0.3, 0.7), space.voxel_mm) / period_mm)
    # One wave more, stretched, says where sheets are whole.
    broken = np.roll(wave, space.shape[0] // 2, axis=0) > np.float32(rng.uniform(-0.8, 0.9))
    materials[sheets & broken] = _INDEX["septum"]


def _sheets(rng: np.random.Generator, materials: Array, space: Space, *, count: int) -> None:
    """Draw fascia planes, roughly along the skin."""
    y = space.axes()[1]
    z, _, x = space.axes()
    extent = space.shape[1] * space.voxel_mm
    for _ in range(count):
        slope = rng.normal(0, 0.25, 2)
        middle = space.origin_mm[1] + rng.uniform(0.1, 0.95) * extent
        level = middle + slope[0] * z + slope[1] * x + rng.uniform(0.2, 1.5) * _flat_field(rng, space, 14)
        thick = np.float32(max(rng.uniform(0.3, 0.9), space.voxel_mm))
        materials[np.abs(y - level.astype(np.float32)) < thick / 2] = _INDEX["fascia"]


def _layers(rng: np.random.Generator, materials: Array, space: Space, *, thickness_mm: float) -> None:
    """Draw skin and fat, sometimes under gel or water."""
    y = space.axes()[1]
    gel = rng.uniform(0.5, 4) if rng.random() < 0.25 else 0.0
    skin = rng.uniform(0.8, 2.2)
    bottom = np.zeros((), np.float32)
    for material, thick in (("fluid", gel), ("skin", skin), ("fat", thickness_mm), ("fascia", 0.7)):
        top = bottom
        bottom = bottom + np.maximum(thick * (1 + 0.12 * _flat_field(rng, space, 18)), 0).astype(np.float32)
        materials[(y >= top) & (y < bottom)] = _INDEX[material]


def _tubes(rng: np.random.Generator, materials: Array, space: Space, *, style: Style) -> None:
    """Draw vessels, and nerves with their sheaths, through the whole view."""
    low = np.asarray(space.origin_mm)
    extent = np.asarray(space.shape) * space.voxel_mm
    kinds = ["vessel"] * int(rng.integers(0, 3)) + ["nerve"] * int(
        rng.integers(1, 3) if style == "nerve" else 0
    )
    for kind in kinds:
        middle = low + extent * rng.uniform((0.2, 0.3, 0.2), (0.8, 0.85, 0.8))
        ahead = unit(random_direction(rng) * (1, 0.3, 1)) * extent.max()
        radius = float(rng.uniform(1.0, 4.0))
        tube = round_cone(space, np.stack([middle - ahead, middle + ahead]), radii_mm=(radius, radius))
        wall = max(rng.uniform(0.3, 0.8), space.voxel_mm)
        inside, around = ("blood", "vessel_wall") if kind == "vessel" else ("nerve", "sheath")
        materials[tube < wall] = _INDEX[around]
        materials[tube < 0] = _INDEX[inside]
        if kind == "nerve":  # fascicles: dark in a bright frame
            grain = smooth_field(rng, space.part(space.whole), correlation_mm=1.2)
            materials[(tube < 0) & (grain > 0.3)] = _INDEX["sheath"]


def _bone(rng: np.random.Generator, materials: Array, space: Space, *, plates: bool) -> None:
    """Draw a long bone, or plates such as laminae, in the deeper half."""
    low = np.asarray(space.origin_mm)
    extent = np.asarray(space.shape) * space.voxel_mm
    for _ in range(int(rng.integers(1, 4)) if plates else 1):
        middle = low + extent * rng.uniform((0.1, 0.55, 0.1), (0.9, 1.05, 0.9))
        if plates:
            radii = rng.uniform((5, 1.5, 5), (14, 3, 14))
            shape = ellipsoid(space, middle, frame=random_rotation(rng), radii_mm=radii)
        else:
            ahead = unit(random_direction(rng) * (1, 0.15, 1)) * extent.max()
            radius = float(rng.uniform(4, 10))
            middle[1] += 0.6 * radius
            shape = round_cone(space, np.stack([middle - ahead, middle + ahead]), radii_mm=(radius, radius))
        materials[shape < 0] = _INDEX["bone"]


def _targets(rng: np.random.Generator, materials: Array, space: Space) -> None:
    """Draw round inclusions in gel, bright or anechoic."""
    low = np.asarray(space.origin_mm)
    extent = np.asarray(space.shape) * space.voxel_mm
    for _ in range(int(rng.integers(0, 5))):
        centre = low + extent * rng.uniform(0.1, 0.9, 3)
        radius = float(rng.uniform(0.6, 5))
        box = space.box(centre, radius + 1)
        ball = ellipsoid(space.part(box), centre, frame=np.eye(3), radii_mm=np.full(3, radius))
        bright = radius < 1.5 or rng.random() < 0.3
        materials[box][ball < 0] = _INDEX["target" if bright else "fluid"]


def _tissues(rng: np.random.Generator, style: Style) -> tuple[Tissue, ...]:
    """Vary the library's tissues; muscle from -24 to -5 dB, gel from -40 to -6 dB."""
    muscle = rng.uniform(-40, -6) if style == "gel" else rng.uniform(-24, -5)
    echo = {name: TISSUES[_LIKE.get(name, name)].echo_db + float(rng.normal(0, 2)) for name in MATERIALS}
    echo |= {
        "muscle": muscle,
        "septum": min(muscle + rng.uniform(4, 16), 3),
        "fat": rng.uniform(-22, -6),
        "fascia": rng.uniform(-6, 5),
        "nerve": rng.uniform(-20, -8),
        "sheath": rng.uniform(-10, 2),
        "vessel_wall": rng.uniform(-10, 2),
        "ligament": rng.uniform(-10, 2),
        "fluid": rng.uniform(-60, -32),
    }
    coarse = rng.uniform(0.2, 1.6)
    return tuple(_tissue(rng, name, echo_db=float(echo[name]), coarse=coarse) for name in MATERIALS)


def _tissue(rng: np.random.Generator, name: str, *, echo_db: float, coarse: float) -> Tissue:
    base = TISSUES[_LIKE.get(name, name)]
    thin = name == "septum"
    impedance = 1.66 * math.exp(rng.normal(0, 0.015)) if thin else base.impedance_mrayl
    return dataclasses.replace(
        base,
        name=name,
        echo_db=echo_db,
        attenuation_db_cm_mhz=base.attenuation_db_cm_mhz * float(rng.uniform(0.6, 1.4)),
        impedance_mrayl=impedance * float(rng.uniform(0.99, 1.01)),
        scatterers_per_cell=base.scatterers_per_cell * float(rng.choice((1.0, rng.uniform(0.2, 1)))),
        texture_mm=base.texture_mm * float(rng.uniform(0.6, 2)),
        texture_db=base.texture_db * coarse,
    )
