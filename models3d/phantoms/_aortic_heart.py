"""What lies around an aortic root: chambers, vessels, mitral leaflets, lung; painted as tissue materials.

Coordinates are the root's own, (a, b, c) in mm: a towards the ascending aorta, b towards the right ventricle
in front, c towards the right atrium. The left atrium lies behind (-b), the left ventricle below (-a) and to
the left (-c). Everything is moved, resized or left out at random.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from models3d.phantoms._aortic_geometry import Array, Root, cusp_points, part_of, radius
from models3d.phantoms._shapes import Space, ellipsoid_at, smooth_field
from usvol.simulation.tissue import TISSUES, Tissue

MATERIALS = (
    "surrounding", "patch", "lung", "myocardium", "atrial_wall", "blood", "atrial_blood", "aortic_wall",
    "annulus", "cusp", "mitral", "calcium", "pericardium", "fat",
)  # fmt: skip
INDEX = {name: index for index, name in enumerate(MATERIALS)}
_LIKE = {
    "surrounding": "muscle", "patch": "fat", "lung": "gas", "myocardium": "muscle", "atrial_wall": "muscle",
    "atrial_blood": "blood", "aortic_wall": "membrane", "annulus": "fascia", "cusp": "membrane",
    "mitral": "membrane", "calcium": "fetal_bone", "pericardium": "fascia",
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Chamber:
    """An ellipsoid of blood in a wall: centre, radii (mm) and axes as columns, along (a, b, c)."""

    centre: Array
    radii: Array
    axes: Array
    wall_mm: float
    wall: str
    blood: str


@dataclass(frozen=True, slots=True, eq=False)
class Heart:
    """All but the root itself.

    Attributes:
        bend: how far outflow tract and ascending aorta leave the axis, mm per mm² towards (b, c).
        flare: growth of their radius per part of the height.
        tube_parts: from where to where, in parts of the height, the tube of the outflow and aorta is painted.
        mitral: hinge centre, direction to the ventricle and half width of the mitral valve, or None.
        nodules: places (cusp, place, up) and radii (mm) of calcium on the cusps.
    """

    chambers: tuple[Chamber, ...]
    bend: Array
    flare: tuple[float, float]
    tube_parts: tuple[float, float]
    wall_mm: float
    cusp_mm: float
    mitral: Chamber | None
    nodules: Array
    lung: Array | None
    patchy: float


def drawn_heart(rng: np.random.Generator, root: Root, *, calcified: bool) -> Heart:
    """Draw the heart around a root; right heart and pulmonary artery lack a chamber in a sixth each."""
    behind = float(root.top_mm + max(root.bulge_mm))
    ventricle = _chamber(
        rng,
        (-rng.uniform(34, 46), -rng.uniform(4, 14), -rng.uniform(2, 12)),
        (rng.uniform(34, 46), rng.uniform(17, 26), rng.uniform(17, 26)),
        wall_mm=rng.uniform(6, 12),
        names=("myocardium", "blood"),
    )
    radii = rng.uniform((20, 15, 20), (32, 26, 34))
    atrium = _chamber(
        rng,
        (rng.uniform(2, 14), -(behind + radii[1] + rng.uniform(1, 3)), rng.normal(0, 5)),
        radii,
        wall_mm=rng.uniform(1.2, 3),
        names=("atrial_wall", "atrial_blood"),
    )
    kept = [chamber for chamber in _right_heart(rng, root, behind=behind) if rng.random() < 0.84]
    mitral = _mitral(rng, ventricle, behind=float(min(root.annulus_mm))) if rng.random() < 0.9 else None
    return Heart(
        chambers=(ventricle, *kept, atrium),
        bend=rng.normal(0, 0.004, (2, 2)) + np.array([[0.004, 0.003], [0.002, 0.003]]),
        flare=(rng.uniform(-0.08, 0.12), rng.uniform(-0.06, 0.1)),
        tube_parts=(-rng.uniform(0.5, 0.9), rng.uniform(2, 4)),
        wall_mm=rng.uniform(1.2, 2.8),
        cusp_mm=rng.uniform(1.6, 2.6) if calcified else rng.uniform(0.9, 1.7),
        mitral=mitral,
        nodules=_nodules(rng) if calcified else np.zeros((0, 4)),
        lung=rng.normal(0, 1, 3) if rng.random() < 0.3 else None,
        patchy=rng.uniform(0, 1),
    )


def _right_heart(rng: np.random.Generator, root: Root, *, behind: float) -> tuple[Chamber, ...]:
    """Right ventricle, its outflow tract before the root, right atrium, pulmonary artery."""
    wide, high = max(root.annulus_mm), root.height_mm
    ventricle = _chamber(
        rng,
        (-rng.uniform(18, 34), wide + rng.uniform(16, 24), rng.uniform(-8, 14)),
        rng.uniform((26, 10, 16), (40, 18, 28)),
        wall_mm=rng.uniform(2.5, 5),
        names=("myocardium", "blood"),
    )
    outflow = _chamber(
        rng,
        (rng.uniform(4, 16), behind + rng.uniform(8, 14), -rng.uniform(0, 14)),
        rng.uniform((16, 8, 18), (26, 13, 30)),
        wall_mm=rng.uniform(1.5, 4),
        names=("myocardium", "blood"),
    )
    atrium = _chamber(
        rng,
        (rng.uniform(-4, 16), rng.uniform(-8, 8), behind + rng.uniform(16, 24)),
        rng.uniform((18, 16, 14), (28, 26, 22)),
        wall_mm=rng.uniform(1.2, 3),
        names=("atrial_wall", "atrial_blood"),
    )
    artery = _chamber(
        rng,
        (high + rng.uniform(4, 18), rng.uniform(2, 14), -(behind + rng.uniform(9, 14))),
        rng.uniform((10, 14, 8), (16, 26, 13)),
        wall_mm=rng.uniform(1.2, 2.5),
        names=("aortic_wall", "blood"),
    )
    return ventricle, outflow, atrium, artery


def _chamber(
    rng: np.random.Generator,
    centre: tuple[float, ...],
    radii: Array | tuple[float, ...],
    *,
    wall_mm: float,
    names: tuple[str, str],
) -> Chamber:
    turn = rng.normal(0, 0.22, 3)
    cross = np.array([[0, -turn[2], turn[1]], [turn[2], 0, -turn[0]], [-turn[1], turn[0], 0]])
    axes, _ = np.linalg.qr(np.eye(3) + cross)
    axes = axes * np.sign(np.diag(axes))
    return Chamber(np.asarray(centre, float), np.asarray(radii, float), axes, wall_mm, *names)


def _mitral(rng: np.random.Generator, ventricle: Chamber, *, behind: float) -> Chamber:
    """The mitral annulus: centre, length of its anterior leaflet and half axes, axes (first: to the apex)."""
    half = rng.uniform(13, 19)
    centre = np.array([-rng.uniform(1, 6), -(behind + half + rng.uniform(0, 3)), -rng.uniform(0, 6)])
    radii = np.array([rng.uniform(16, 24), half, half * rng.uniform(1, 1.3)])
    axes = _frame_along(ventricle.centre - np.array([6, 0, 0]) - centre)
    return Chamber(centre, radii, axes, rng.uniform(1, 2), "mitral", "blood")


def _frame_along(direction: Array) -> Array:
    first = direction / np.linalg.norm(direction)
    second = np.array([0.0, 1.0, 0.0]) - first[1] * first
    second /= np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)], 1)


def _nodules(rng: np.random.Generator) -> Array:
    count = int(rng.integers(2, 9))
    place = np.clip(rng.normal(0, 0.5, count), -0.95, 0.95)
    up, size = rng.uniform(0.05, 0.95, count), rng.uniform(0.9, 2.6, count)
    return np.stack([rng.integers(0, 3, count), place, up, size], 1)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Voxels to paint: their material, and where they lie along (a, b, c) from the root, mm, float32."""

    space: Space
    materials: np.ndarray
    local: tuple[Array, Array, Array]


def scene(space: Space, *, centre_mm: Array, rotation: Array) -> Scene:
    """Blank voxels of ``space`` in the frame of a root at ``centre_mm`` with axes as columns."""
    local = [space.along(rotation[:, axis], centre_mm) for axis in range(3)]
    return Scene(space, np.zeros(space.shape, np.uint8), (local[0], local[1], local[2]))


def paint(rng: np.random.Generator, scene: Scene, *, heart: Heart, beat: float, diastole: float) -> None:
    """Paint all but the root: ``beat`` scales the ventricle, ``diastole`` (0-1) opens the mitral valve."""
    materials = scene.materials
    wave = smooth_field(rng, scene.space, correlation_mm=18) * np.float32(rng.uniform(0.4, 2))
    if heart.patchy > 0.4:
        rough = smooth_field(rng, scene.space, correlation_mm=float(rng.uniform(12, 40)))
        materials[rough > rng.uniform(0.2, 1.2)] = INDEX["patch"]
        materials[rough < -rng.uniform(0.5, 1.5)] = INDEX["fat"]
    if heart.lung is not None:
        direction = heart.lung / np.linalg.norm(heart.lung)
        away = sum(q * np.float32(d) for q, d in zip(scene.local, direction, strict=True))
        materials[away + wave > rng.uniform(55, 80)] = INDEX["lung"]
    for number, chamber in enumerate(heart.chambers):
        swollen = chamber if number else dataclasses.replace(chamber, radii=chamber.radii * (1, beat, beat))
        _paint_chamber(scene, swollen, wave)
    if heart.mitral is not None:
        _paint_mitral(scene, heart.mitral, diastole=diastole)


def _paint_chamber(scene: Scene, chamber: Chamber, wave: Array) -> None:
    distance = _distance(scene, chamber) + wave
    scene.materials[distance < chamber.wall_mm] = INDEX[chamber.wall]
    scene.materials[distance < 0] = INDEX[chamber.blood]


def _distance(scene: Scene, chamber: Chamber) -> Array:
    return ellipsoid_at(_along(scene, chamber), chamber.radii)


def _along(scene: Scene, chamber: Chamber) -> list[Array]:
    moved = [q - np.float32(c) for q, c in zip(scene.local, chamber.centre, strict=True)]
    a, b, c = moved
    return [np.float32(u) * a + np.float32(v) * b + np.float32(w) * c for u, v, w in chamber.axes.T]


def _paint_mitral(scene: Scene, valve: Chamber, *, diastole: float) -> None:
    """The orifice (a short tube of blood) and two leaflets, hanging into the ventricle when open."""
    down, b, c = _along(scene, valve)
    length, front, side = valve.radii
    ring = (b / np.float32(front)) ** 2 + (c / np.float32(side)) ** 2
    scene.materials[(ring < 0.95) & (np.abs(down) < 0.8 * length)] = INDEX["blood"]
    across, up = np.meshgrid(np.linspace(-1, 1, 40), np.linspace(0, 1, 24), indexing="ij")
    rim = np.sqrt(1 - (0.94 * across) ** 2)
    points = []
    for sign, reach in ((1.0, 1.15), (-1.0, 0.75)):
        # Shut, the leaflets meet behind the middle; open, they hang along the walls.
        meet = -0.2 * front
        shut = np.stack(
            [0.3 * length * up, (1 - up) * sign * front * rim + up * meet * rim, side * across], -1
        )
        hang = np.stack(
            [length * reach * up * rim, sign * front * rim * (1 - 0.35 * up), side * across * 0.95], -1
        )
        points.append(((1 - diastole) * shut + diastole * hang).reshape(-1, 3))
    cloud = np.concatenate(points) @ valve.axes.T + valve.centre
    stamp(scene, cloud, radius_mm=max(0.5 * valve.wall_mm, 0.55 * scene.space.voxel_mm), material="mitral")


def stamp(scene: Scene, cloud: Array, *, radius_mm: float, material: str) -> None:
    """Give a material to the voxels within ``radius_mm`` of points (n, 3) along (a, b, c)."""
    hit = near(scene.local, cloud, radius_mm=radius_mm)
    scene.materials[hit] = INDEX[material]


def near(local: tuple[Array, Array, Array], cloud: Array, *, radius_mm: float) -> tuple[Array, ...]:
    """Index of the voxels within ``radius_mm`` of points (n, 3); ``local`` are the voxels' coordinates."""
    low, high = cloud.min(0) - radius_mm, cloud.max(0) + radius_mm
    inside = np.logical_and.reduce([(q > a) & (q < b) for q, a, b in zip(local, low, high, strict=True)])
    where = np.nonzero(inside)
    if not len(where[0]):
        return where
    places = np.stack([q[where] for q in local], 1)
    distance, _ = KDTree(cloud).query(places, distance_upper_bound=radius_mm)
    hit = np.isfinite(distance)
    return tuple(axis[hit] for axis in where)


def paint_root(scene: Scene, root: Root, *, heart: Heart, opened: float, with_cusps: bool = True) -> None:
    """Paint outflow tract, root, cusps, calcium and ascending aorta over what is there."""
    part, away, azimuth = coordinates(scene.local, root, heart=heart)
    first, last = heart.tube_parts
    reach = root.top_mm + max(root.bulge_mm) + max(root.annulus_mm) + heart.wall_mm
    where = np.nonzero((part > first) & (part < last) & (away < reach))
    part, away, azimuth = part[where], away[where], azimuth[where]
    flare = 1 + heart.flare[0] * np.maximum(-part, 0) + heart.flare[1] * np.maximum(part - 1, 0)
    depth = away - radius(root, part, azimuth=azimuth) * flare
    was = scene.materials[where]
    # The outflow tract has no wall of its own where it opens into the ventricle.
    wall = np.where(part < 0, (was != INDEX["blood"]) & (depth < 0.6 * heart.wall_mm), depth < heart.wall_mm)
    painted = np.where(wall, np.where(part < 0, INDEX["myocardium"], INDEX["aortic_wall"]), was)
    painted = np.where(
        (np.abs(part) < 0.06) & (depth < heart.wall_mm) & (depth > -1), INDEX["annulus"], painted
    )
    scene.materials[where] = np.where(depth < 0, INDEX["blood"], painted)
    if not with_cusps:
        return
    cloud = cusp_cloud(root, opened=opened)
    thick = max(0.5 * heart.cusp_mm, 0.6 * scene.space.voxel_mm)
    stamp(scene, cloud, radius_mm=thick, material="cusp")
    for cusp, place, up, size in heart.nodules:
        centre = cusp_points(root, int(cusp), place=np.array([place]), up=np.array([up]), opened=opened)
        stamp(
            scene, centre.reshape(1, 3), radius_mm=max(size, 0.8 * scene.space.voxel_mm), material="calcium"
        )


def coordinates(local: tuple[Array, Array, Array], root: Root, *, heart: Heart) -> tuple[Array, Array, Array]:
    """Part of the height, distance from the (bent) axis in mm and azimuth of places along (a, b, c)."""
    a, b, c = local
    under, over = np.minimum(a, 0) ** 2, np.maximum(a - np.float32(root.height_mm), 0) ** 2
    (low_b, low_c), (high_b, high_c) = heart.bend.astype(np.float32)
    b = b + low_b * under + high_b * over
    c = c + low_c * under + high_c * over
    away, azimuth = np.hypot(b, c), np.arctan2(c, b)
    return part_of(root, a, away=away, azimuth=azimuth), away, azimuth


def cusp_cloud(root: Root, *, opened: float) -> Array:
    """Points (n, 3) all over the three cusps, less than a millimetre apart."""
    place, up = np.meshgrid(np.linspace(-1, 1, 45), np.linspace(0, 1, 28), indexing="ij")
    return np.concatenate(
        [cusp_points(root, k, place=place, up=up, opened=opened).reshape(-1, 3) for k in range(3)]
    )


def drawn_tissues(rng: np.random.Generator) -> tuple[Tissue, ...]:
    """Draw the tissues in the order of ``MATERIALS``: blood -55 to -28 dB, muscle -17 to -4."""
    echo = {name: TISSUES[_LIKE.get(name, name)].echo_db + float(rng.normal(0, 2)) for name in MATERIALS}
    blood = rng.uniform(-55, -28)
    muscle = rng.uniform(-17, -4)
    echo |= {
        "surrounding": rng.uniform(-20, 0),
        "patch": rng.uniform(-22, 0),
        "lung": rng.uniform(-8, 4),
        "myocardium": muscle,
        "atrial_wall": muscle + rng.uniform(-1, 9),
        "blood": blood,
        "atrial_blood": blood + rng.choice((0.0, rng.uniform(0, 10))),
        "aortic_wall": muscle + rng.uniform(0, 10),
        "annulus": muscle + rng.uniform(2, 12),
        "cusp": muscle + rng.uniform(-4, 9),
        "mitral": muscle + rng.uniform(-4, 9),
        "calcium": rng.uniform(3, 12),
    }
    damping = {"lung": rng.uniform(2, 8), "calcium": rng.uniform(6, 25)}
    tissues = []
    for name in MATERIALS:
        base = TISSUES[_LIKE.get(name, name)]
        # Lung and calcium reflect much: not all of what their impedance would, for they are rough.
        impedance = {"lung": 1.3, "calcium": 2.4}.get(name, base.impedance_mrayl)
        tissues.append(
            dataclasses.replace(
                base,
                name=name,
                echo_db=float(echo[name]),
                attenuation_db_cm_mhz=float(
                    damping.get(name, base.attenuation_db_cm_mhz * rng.uniform(0.5, 1.3))
                ),
                impedance_mrayl=float(impedance * rng.uniform(0.985, 1.015)),
                scatterers_per_cell=base.scatterers_per_cell * float(rng.choice((1.0, rng.uniform(0.3, 1)))),
                texture_mm=base.texture_mm * float(rng.uniform(0.6, 2)),
                texture_db=base.texture_db * float(rng.uniform(0.3, 2)),
            )
        )
    return tuple(tissues)


def mitral_opening(phase: float) -> float:
    """How far the mitral valve is open (0-1): early filling and atrial contraction, shut in systole."""
    early = math.exp(-0.5 * ((phase - 0.55) / 0.07) ** 2)
    late = 0.6 * math.exp(-0.5 * ((phase - 0.9) / 0.05) ** 2)
    return min(early + late + (0.25 if 0.45 < phase < 0.97 else 0.0), 1.0)
