"""Anatomy of ``other_head``: a fetal head of 14-32 weeks in its uterus, as implicit functions of position.

The skull is an egg, thin at sutures and fontanelles; within lie falx, cavum, thalami, ventricles with plexus,
cerebellum and cistern; without, face, neck, trunk, fluid, placenta and mother. Or there is no head at all.
Places in the head are shares of its half axes (forward, left, up). Test data only: shares nothing with the
phantoms that networks are trained on.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from other_anatomy import Blob, unit
from scipy import ndimage
from scipy.spatial.transform import Rotation

# Biparietal diameter, outer to inner (so middle to middle of the bone), of about the mean head at each age.
_WEEKS, _BPD_MM = (14, 16, 18, 20, 22, 24, 26, 28, 30, 32), (28, 35, 41, 47, 54, 60, 65, 71, 76, 80)
# name: mean echo in dB, two-way attenuation in dB/mm beyond what the machine's depth gain makes up for
MATERIALS = {
    "maternal": (-14.0, 0.0), "fat": (-9.0, 0.02), "muscle": (-18.0, 0.08), "myometrium": (-19.0, 0.06),
    "fluid": (-54.0, -0.3), "placenta": (-10.0, 0.0), "skin": (-6.0, 0.1), "flesh": (-14.0, 0.03),
    "brain": (-25.0, -0.05), "thalamus": (-31.0, -0.05), "csf": (-48.0, -0.25), "plexus": (-7.0, 0.02),
    "pia": (-13.0, 0.0), "falx": (-3.0, 0.1), "cerebellum": (-20.0, 0.0), "vermis": (-14.0, 0.0),
    "stem": (-23.0, 0.0), "bone": (3.0, 4.0), "membrane": (-8.0, 0.2), "lens": (-14.0, 0.1),
    "lung": (-11.0, 0.05), "liver": (-16.0, 0.02), "cord": (-13.0, 0.0), "wall": (-9.0, 0.05),
}  # fmt: skip
ABSENT = ("limbs", "trunk", "cysts", "septate", "fluid", "tissue")


@dataclass(frozen=True, slots=True, eq=False)
class Tube:
    """Balls strung along a line: points (k, 3) and radii (k,) in mm."""

    points: np.ndarray
    radii: np.ndarray

    def depth_mm(self, points: np.ndarray) -> np.ndarray:
        """Return the distance outside the surface (negative inside)."""
        nearest = np.full(len(points), np.inf, np.float32)
        for k, (start, end) in enumerate(itertools.pairwise(self.points)):
            along = end - start
            share = np.clip((points - start) @ along / max(float(along @ along), 1e-9), 0, 1)
            away = np.linalg.norm(points - start - share[:, None] * along, axis=1)
            radius = self.radii[k] + share * (self.radii[k + 1] - self.radii[k])
            nearest = np.minimum(nearest, away - radius)
        return nearest


Part = tuple[Blob | Tube, str]


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A skull and what is in it; ``frame`` has columns forward, left, up in the world (z, y, x).

    ``radii`` (forward, left, up) go to the middle of the bone; ``base`` is how far the skull reaches down, as
    a share of how far it reaches up. One passage of the bone costs ``bone_db``, more where it is slanted.
    """

    weeks: float
    centre: np.ndarray
    frame: np.ndarray
    radii: np.ndarray
    egg: float
    base: float
    power: float
    bone_mm: float
    bone_db: float
    slant: float
    suture_mm: float
    fontanelle_mm: float
    scalp_mm: float
    space_mm: float
    falx_mm: float
    inside: tuple[Part, ...]

    def local(self, points: np.ndarray) -> np.ndarray:
        """Return points (n, 3) in the head's axes, in mm."""
        return (points - self.centre) @ self.frame

    def at(self, *shares: float) -> np.ndarray:
        """Return a place in the world, given in shares of the half axes forward, left and up."""
        return self.centre + self.frame @ (np.array(shares) * self.radii)

    def skull(self, local: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the distance outside the middle of the bone in mm, and the outward unit normal (local)."""
        scale = np.empty_like(local)
        scale[:, 0] = self.radii[0]
        scale[:, 1] = self.radii[1] * (1 - self.egg * np.clip(local[:, 0] / self.radii[0], -1.2, 1.2))
        scale[:, 2] = self.radii[2] * np.where(local[:, 2] < 0, self.base, 1)
        share = np.abs(local) / scale
        reach = np.maximum((share**self.power).sum(1) ** (1 / self.power), 1e-3)
        normal = np.sign(local) * share ** (self.power - 1) / scale
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        return np.linalg.norm(local, axis=1) * (1 - 1 / reach), normal

    def gap_mm(self, local: np.ndarray) -> np.ndarray:
        """Return the distance of points near the skull to its nearest suture or fontanelle, in mm."""
        a, b, c = self.radii
        f, side, u = local[:, 0] / a, np.abs(local[:, 1]) / b, local[:, 2] / c
        bregma, lambda_ = 0.28, -0.86
        coronal = np.abs(f - bregma - 0.2 * (1 - u)) * a + np.maximum(-0.25 - u, 0) * c
        behind = (
            np.abs(f - lambda_ - 0.32 * side) * a + np.maximum(u - 0.55, 0) * c + np.maximum(-0.3 - u, 0) * c
        )
        sagittal = side * b + np.maximum(lambda_ - f, 0) * a + np.maximum(-u, 0) * c
        squamous = np.abs(u + 0.22 + 0.1 * np.abs(f)) * c + np.maximum(np.abs(f) - 0.5, 0) * a
        squamous += np.maximum(0.6 - side, 0) * b
        gap = np.minimum(np.minimum(coronal, behind), np.minimum(sagittal, squamous))
        top = c * np.sqrt(1 - bregma**2)
        diamond = np.abs(local[:, 0] - bregma * a) / 1.4 + np.abs(local[:, 1]) + np.abs(local[:, 2] - top) / 3
        posterior = np.abs(local[:, 0] - lambda_ * a) + np.abs(local[:, 1]) + np.maximum(-local[:, 2], 0)
        spots = np.minimum(diamond - self.fontanelle_mm, posterior - 0.4 * self.fontanelle_mm)
        return np.minimum(gap, spots)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Everything before the probe; the skin is at y = 0, y is depth, and the womb begins at ``wall_mm``."""

    head: Head | None
    wall_mm: float
    cavity: Tube | None
    placenta: tuple[np.ndarray, float] | None
    bodies: tuple[Part, ...]
    lattice: np.ndarray
    contrast: float


def size_mm(rng: np.random.Generator, weeks: float) -> np.ndarray:
    """Draw half axes forward, left, up of a skull."""
    left = np.interp(weeks, _WEEKS, _BPD_MM) * np.clip(rng.normal(1, 0.04), 0.9, 1.1) / 2
    forward = left / np.clip(rng.normal(0.79, 0.035), 0.71, 0.87)
    return np.array([forward, left, forward * rng.uniform(0.78, 0.92)])


def draw_frame(rng: np.random.Generator) -> np.ndarray:
    """Draw axes forward, left, up (columns), turned any way. In (z, y, x) left is forward x up."""
    turn = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    return np.stack([turn[:, 0], np.cross(turn[:, 0], turn[:, 2]), turn[:, 2]], 1)


def draw_head(
    rng: np.random.Generator, pose: tuple[np.ndarray, np.ndarray, np.ndarray], *, weeks: float, level: int
) -> Head:
    """Draw a head whose centre, axes and half axes are given."""
    centre, frame, radii = pose
    mature = (weeks - 14) / 18
    bare = Head(
        weeks=weeks,
        centre=centre,
        frame=frame,
        radii=radii,
        egg=rng.uniform(0.06, 0.16),
        base=rng.uniform(0.72, 0.85),
        power=rng.uniform(2.0, 2.3),
        bone_mm=(0.7 + 1.1 * mature) * rng.uniform(0.85, 1.2),
        bone_db=float(rng.uniform(*((2, 5), (4, 10), (10, 22))[level])) * (0.7 + 0.5 * mature),
        slant=rng.uniform(1, 4),
        suture_mm=rng.uniform(1.2, 3.0),
        fontanelle_mm=rng.uniform(4, 7) + 3 * mature,
        scalp_mm=(1.2 + 2.2 * mature) * rng.uniform(0.8, 1.3),
        space_mm=(2.2 - 0.6 * mature) * rng.uniform(0.6, 1.4),
        falx_mm=rng.uniform(0.5, 1.0),
        inside=(),
    )
    parts = (*_ventricles(rng, bare), *_deep(rng, bare), *_hind(rng, bare), *_base_bones(rng, bare))
    return dataclasses.replace(bare, inside=parts)


def _blob(head: Head, at: Sequence[float], *, radii: Sequence[float], turn: float = 0.0) -> Blob:
    """Return an ellipsoid in shares of the half axes, turned about the head's up (radians)."""
    axes = Rotation.from_rotvec([0, 0, turn]).as_matrix() @ head.frame.T
    return Blob(head.at(*at), np.asarray(radii, float) * head.radii, axes)


def _tube(head: Head, line: Sequence[Sequence[float]], *, radii_mm: Sequence[float] | np.ndarray) -> Tube:
    return Tube(np.stack([head.at(*point) for point in line]), np.asarray(radii_mm, float))


def _ventricles(rng: np.random.Generator, head: Head) -> list[Part]:
    """Lateral ventricles: as wide in mm at any age, so that they fill a young head; plexus on both sides."""
    young = float(np.clip((24 - head.weeks) / 10, 0, 1))
    atrium = min(rng.uniform(2.8, 3.9), 0.3 * head.radii[1])
    parts: list[Part] = []
    for side in (-1, 1):
        wide = atrium * rng.uniform(0.85, 1.15)
        line = [
            (0.5, 0.17, 0.2),
            (0.2, 0.2, 0.36),
            (-0.12, 0.25, 0.36),
            (-0.4, 0.38, 0.16),
            (-0.62, 0.4, 0.1),
        ]
        line = [(f, side * s, u) for f, s, u in line]
        lumen = _tube(head, line, radii_mm=np.array([0.6, 0.55, 0.6, 1.0, 0.45]) * wide)
        horn = _tube(head, [line[3], (-0.2, side * 0.5, -0.18)], radii_mm=(0.8 * wide, 0.3 * wide))
        parts += [(Tube(t.points, t.radii + 0.5), "pia") for t in (lumen, horn)]
        parts += [(lumen, "csf"), (horn, "csf")]
        size = rng.uniform(0.8, 1.15)
        long = (0.17 + 0.2 * young) * size
        plexus = _blob(
            head,
            (-0.4 + 0.75 * long, side * (0.36 - 0.1 * young), 0.2 + 0.06 * young),
            radii=(long, 0.82 * wide / head.radii[1], (1.0 + 0.4 * young) * wide / head.radii[2]),
            turn=side * rng.uniform(0.15, 0.35),
        )
        parts.append((plexus, "plexus"))
    return parts


def _deep(rng: np.random.Generator, head: Head) -> list[Part]:
    """Thalami, third ventricle, cavum of the septum, Sylvian fissures."""
    parts: list[Part] = []
    for side in (-1, 1):
        parts.append(
            (_blob(head, (0.0, side * 0.16, -0.03), radii=(0.22, 0.14, 0.2), turn=side * 0.25), "thalamus")
        )
        fissure = _tube(head, [(0.25, side * 0.72, -0.05), (-0.12, side * 0.68, 0.08)], radii_mm=(1.0, 0.7))
        parts.append((fissure, "pia"))
    slit = float(rng.uniform(0.5, 1.2))
    parts.append((_blob(head, (0.03, 0, -0.06), radii=(0.17, slit / head.radii[1], 0.15)), "csf"))
    if head.weeks > 16:
        wide = float(np.interp(head.weeks, (16, 20, 32), (1.0, 2.0, 3.4))) * rng.uniform(0.8, 1.2)
        for more, name in ((0.7, "pia"), (0.0, "csf")):
            radii = (0.14 + more / head.radii[0], (wide + more) / head.radii[1], 0.085 + more / head.radii[2])
            parts.append((Blob(head.at(0.38, 0, 0.1), np.array(radii) * head.radii, head.frame.T, 2.5), name))
    return parts


def _hind(rng: np.random.Generator, head: Head) -> list[Part]:
    """Brain stem, cistern, cerebellum: about as many mm wide as the weeks."""
    half = head.weeks * rng.uniform(0.48, 0.56) / head.radii[1]
    stem = _tube(
        head,
        [(0.02, 0, -0.22), (-0.1, 0, -0.5), (-0.28, 0, -1.0)],
        radii_mm=np.array([0.16, 0.2, 0.14]) * head.radii[1],
    )
    deep = rng.uniform(2.2, 4.2) / head.radii[0]
    parts: list[Part] = [(stem, "stem")]
    parts.append((_blob(head, (-0.6 - deep, 0, -0.42), radii=(0.1 + deep, 0.4, 0.18)), "csf"))
    for side in (-1, 1):
        lobe = _blob(
            head, (-0.44, side * 0.52 * half, -0.38), radii=(0.15, 0.5 * half, 0.17), turn=side * 0.25
        )
        parts += [(Blob(lobe.centre, lobe.radii + 0.6, lobe.axes), "pia"), (lobe, "cerebellum")]
    parts.append((_blob(head, (-0.45, 0, -0.37), radii=(0.14, 0.13 * half + 0.02, 0.17)), "vermis"))
    return parts


def _base_bones(rng: np.random.Generator, head: Head) -> list[Part]:
    """Petrous ridges and wings of the sphenoid, which make the X of the skull's base; the clivus."""
    thick = head.bone_mm * rng.uniform(0.8, 1.4) + 0.4
    parts: list[Part] = [(_tube(head, [(0.12, 0, -0.5), (-0.2, 0, -0.74)], radii_mm=(thick, thick)), "bone")]
    for side in (-1, 1):
        ridge = [(-0.08, side * 0.2, -0.56), (-0.4, side * 0.72, -0.46)]
        wing = [(0.18, side * 0.15, -0.5), (0.36, side * 0.76, -0.36)]
        parts += [(_tube(head, line, radii_mm=(thick, 0.7 * thick)), "bone") for line in (ridge, wing)]
    return parts


def outer_parts(rng: np.random.Generator, head: Head, *, trunk: np.ndarray) -> list[Part]:
    """Face, ears, neck with spine, and the trunk about a point that is given."""
    a, b = head.radii[:2]
    parts: list[Part] = []
    neck = np.stack([head.at(-0.3, 0, -0.5), head.at(-0.36, 0, -1.15), trunk])
    parts.append((Tube(neck, np.array([0.62, 0.5, 0.85]) * b), "flesh"))
    along = unit(trunk - neck[1])
    side = unit(head.frame[:, 1] - (head.frame[:, 1] @ along) * along)
    axes = np.stack([np.cross(side, along), side, along])
    chest = Blob(trunk + 0.55 * a * along, np.array([0.85 * b, b, 1.3 * a]) * rng.uniform(0.9, 1.1), axes)
    parts += body(chest, head.weeks)
    back = -0.3 * b * (head.frame[:, 0] + 0.3 * axes[0])
    for share in np.linspace(0.1, 1, 9):
        where = neck[1] + share * (trunk - neck[1]) + back
        parts += [(Tube(np.stack([where, where + 0.07 * b * along]), np.full(2, 0.07 * b + 0.3)), "bone")]
    parts.append((_blob(head, (0.5, 0, -0.72), radii=(0.47, 0.6, 0.52)), "flesh"))
    parts.append(
        (_tube(head, [(0.88, 0, -0.55), (1.02, 0, -0.74)], radii_mm=np.array([0.1, 0.13]) * b), "flesh")
    )
    parts.append((_tube(head, [(0.9, 0, -0.97), (0.86, 0, -1.14)], radii_mm=np.full(2, 0.14 * b)), "flesh"))
    arch = [(0.3, -0.42, -0.86), (0.68, -0.3, -1.0), (0.8, 0, -1.02), (0.68, 0.3, -1.0), (0.3, 0.42, -0.86)]
    for low, name, forth in ((0.0, "bone", 0.0), (-0.24, "bone", -0.03)):
        jaw = [(f + forth, s, u + 0.24 + low) for f, s, u in arch]
        parts.append((_tube(head, jaw, radii_mm=np.full(5, 0.035 * b + 0.4)), name))
    for half in (-1, 1):
        orbit = _blob(head, (0.7, half * 0.4, -0.58), radii=(0.2, 0.25, 0.22))
        ball = Blob(orbit.centre, np.full(3, 0.19 * b), orbit.axes)
        parts += [
            (orbit, "bone"),
            (Blob(orbit.centre + 1.5 * head.frame[:, 0], orbit.radii - 0.9, orbit.axes), "flesh"),
        ]
        parts += [
            (ball, "fluid"),
            (Blob(head.at(0.81, half * 0.4, -0.58), np.full(3, 0.07 * b), orbit.axes), "lens"),
        ]
        parts.append((_blob(head, (-0.08, half * 1.02, -0.42), radii=(0.1, 0.1, 0.2)), "skin"))
    return parts


def body(trunk: Blob, weeks: float) -> list[Part]:
    """A trunk (front, side, along) with ribs, spine, heart, stomach and liver."""
    front, side, along = trunk.axes * trunk.radii[:, None]
    parts: list[Part] = [(Blob(trunk.centre, trunk.radii + 1.0, trunk.axes), "skin"), (trunk, "flesh")]
    middle = trunk.centre - 0.3 * along
    parts.append((Blob(middle, trunk.radii * (0.75, 0.75, 0.4), trunk.axes), "lung"))
    parts.append((Blob(trunk.centre + 0.4 * along, trunk.radii * (0.7, 0.75, 0.4), trunk.axes), "liver"))
    parts.append((Blob(middle + 0.25 * front, trunk.radii * (0.33, 0.33, 0.2), trunk.axes), "csf"))
    parts.append(
        (
            Blob(trunk.centre + 0.3 * along + 0.35 * side, np.full(3, 0.2) * trunk.radii[1], trunk.axes),
            "fluid",
        )
    )
    thick = 0.4 + 0.03 * weeks
    for k in np.arange(-0.85, 0.9, 0.11):
        for half in (-0.08, 0.08, 0.0):
            back = (
                trunk.centre + k * along - (0.75 if half else 0.6) * front * np.sqrt(1 - k * k) + half * side
            )
            parts.append((Tube(np.stack([back, back + 0.02 * along]), np.full(2, thick)), "bone"))
        if k < 0.25:
            turn = np.linspace(-2.3, 2.3, 7)
            ring = 0.86 * np.sqrt(1 - k * k) * (-np.cos(turn)[:, None] * front + np.sin(turn)[:, None] * side)
            parts.append((Tube(trunk.centre + k * along + ring, np.full(7, 0.6 * thick)), "bone"))
    return parts


def limbs(rng: np.random.Generator, centre: np.ndarray, *, reach: float, count: int) -> list[Part]:
    """Arms and legs: flesh with a bone in it, somewhere about a point."""
    parts: list[Part] = []
    for _ in range(count):
        away = unit(rng.normal(size=3))
        start = centre + away * reach * rng.uniform(0.5, 1.0)
        line = [start]
        for _ in range(2):
            line.append(line[-1] + unit(rng.normal(size=3)) * reach * rng.uniform(0.45, 0.7))
        thick = reach * rng.uniform(0.1, 0.18)
        parts.append((Tube(np.stack(line), np.array([1.1, 0.9, 0.7]) * thick), "flesh"))
        for one, two in itertools.pairwise(line):
            bone = np.stack([one + 0.12 * (two - one), one + 0.88 * (two - one)])
            parts.append((Tube(bone, np.full(2, 0.2 * thick + 0.3)), "bone"))
    return parts


def draw_scene(
    rng: np.random.Generator, centre: np.ndarray, *, head: Head | None, radii: np.ndarray, level: int
) -> tuple[Scene, str]:
    """Draw the uterus about a head, or about what there is in its stead; return also which that is."""
    lattice = ndimage.gaussian_filter(rng.normal(size=(40, 40, 40)), 1.0, mode="wrap").astype(np.float32)
    lattice /= lattice.std()
    reach = float(radii.max())
    kind = "head" if head is not None else str(rng.choice(ABSENT))
    parts: list[Part] = limbs(rng, centre, reach=1.6 * reach, count=int(rng.integers(0, 3)))
    along = unit(rng.normal(size=3))
    if head is not None:
        along = -head.frame[:, 2] + rng.uniform(-0.2, 0.6) * head.frame[:, 0] + rng.normal(0, 0.15, 3)
        along = unit(np.array([along[0], max(along[1], -0.4), along[2]]))  # not out through the mother
        trunk = head.at(-0.36, 0, -1.15) + along * 1.1 * radii[1]
        parts += outer_parts(rng, head, trunk=trunk)
        near = float(np.abs(head.frame[1]) @ radii)
    else:
        parts, near = _instead(rng, kind, centre=centre, reach=reach), 0.8 * reach
    room = np.exp(rng.uniform(np.log(2), np.log(25)))
    cavity = Tube(np.stack([centre, centre + along * 2.5 * reach]), np.full(2, reach + room))
    site = unit(rng.normal(size=3))
    return Scene(
        head=head,
        wall_mm=float(max(centre[1] - near - rng.uniform(0.3, 1) * room, 5)),
        cavity=None if kind in ("cysts", "tissue", "septate") else cavity,
        placenta=(site, float(rng.uniform(12, 28))) if rng.random() < 0.6 else None,
        bodies=tuple(parts),
        lattice=lattice,
        contrast=(1.0, rng.uniform(0.75, 1.0), rng.uniform(0.5, 0.9))[level],
    ), kind


def _instead(rng: np.random.Generator, kind: str, *, centre: np.ndarray, reach: float) -> list[Part]:
    """Draw what lies where there is no head."""
    axes = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    if kind == "limbs":
        return limbs(rng, centre, reach=0.8 * reach, count=int(rng.integers(4, 8)))
    if kind == "trunk":
        radii = reach * np.array([0.75, 0.85, 1.5]) * rng.uniform(0.8, 1.05)
        return body(Blob(centre, radii, axes), 20) + limbs(rng, centre, reach=1.3 * reach, count=3)
    parts: list[Part] = []
    if kind == "cysts":
        for _ in range(int(rng.integers(3, 9))):
            where = centre + rng.uniform(-0.9, 0.9, 3) * reach
            blob = Blob(where, reach * rng.uniform(0.12, 0.35) * rng.uniform(0.7, 1.3, 3), axes)
            parts += [(Blob(where, blob.radii + 0.7, axes), "wall"), (blob, "fluid")]
    if kind == "septate":
        radii = reach * rng.uniform(0.65, 1.0, 3)
        parts += [
            (Blob(centre, radii + rng.uniform(1, 4), axes), "wall"),
            (Blob(centre, radii, axes), "fluid"),
        ]
        flat = rng.uniform(0.6, 1.2) / radii[2]
        parts.append((Blob(centre + 0.2 * radii[2] * axes[2], radii * (0.94, 0.94, flat), axes), "membrane"))
        parts.append((Blob(centre - 0.6 * radii[2] * axes[2], radii * 0.35, axes), "maternal"))
    if kind == "fluid":
        share = np.linspace(0, 1, 30)[:, None]
        wave = np.sin(share * 7 + 1) * axes[0] + np.cos(share * 5) * axes[1]
        line = centre + (share - 0.5) * 2 * reach * axes[2] + 0.4 * reach * wave
        parts.append((Tube(line, np.full(30, rng.uniform(2, 6))), "cord"))
    if kind == "tissue":
        for _ in range(int(rng.integers(0, 4))):
            where = centre + rng.uniform(-1, 1, 3) * reach
            name = str(rng.choice(["myometrium", "fat", "muscle", "liver"]))
            parts.append((Blob(where, reach * rng.uniform(0.2, 0.6, 3), axes), name))
    return parts
