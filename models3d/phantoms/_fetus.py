"""A fetus of 10-14 weeks: posed skeleton of round cones and ellipsoids, and how it fills a canvas.

Proportions of the crown-rump length (CRL) follow first-trimester charts: biparietal diameter about a third
of it, femur 0.14-0.18. Own coordinates are (s, v, l): towards the head, ventral, left.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from models3d.phantoms._shapes import turned, unit

_VERTEBRAE = 22


@dataclass(frozen=True, slots=True, eq=False)
class Cone:
    """A capsule with a radius at each end; ``ends`` is (2, 3)."""

    name: str
    ends: np.ndarray
    radii: tuple[float, float]
    bone: float = 0.0  # radius of the bone along its axis; 0 without


@dataclass(frozen=True, slots=True, eq=False)
class Ball:
    """An ellipsoid; the columns of ``frame`` are its axes."""

    name: str
    centre: np.ndarray
    frame: np.ndarray
    radii: np.ndarray


@dataclass(frozen=True, slots=True)
class Details:
    """Which structures are drawn."""

    limbs: bool
    bones: bool
    skull: bool
    brain: bool
    spine: bool
    ribs: bool
    organs: bool


@dataclass(frozen=True, slots=True, eq=False)
class Fetus:
    """A posed fetus, lengths in mm, in its own or (after ``placed``) in world coordinates.

    Attributes:
        body: parts whose union is the fetus; head and face are balls, all else cones.
        head: frame and radii of the skull's outline; spine: points (n, 3) of the vertebral bodies.
        trunk: centreline (n, 3); axes: columns s, v, l.
    """

    crl_mm: float
    body: tuple[Cone | Ball, ...]
    head: Ball
    spine: np.ndarray
    trunk: np.ndarray
    axes: np.ndarray
    details: Details

    @property
    def navel(self) -> np.ndarray:
        """Where the cord leaves the abdomen."""
        return self.trunk[4] + self.axes[:, 1] * 0.15 * self.crl_mm

    def hull(self) -> tuple[np.ndarray, np.ndarray]:
        """Points (n, 3) and radii (n,) whose balls cover the fetus about."""
        points, radii = [], []
        for part in self.body:
            if isinstance(part, Cone):
                for h in (0.0, 0.5, 1.0):
                    points.append(part.ends[0] + h * (part.ends[1] - part.ends[0]))
                    radii.append(part.radii[0] + h * (part.radii[1] - part.radii[0]))
            else:
                for signs in np.eye(3):
                    step = part.frame @ (signs * part.radii) * 0.5
                    for side in (-1, 1):
                        points.append(part.centre + side * step)
                        radii.append(float(0.5 * (signs @ part.radii + part.radii.min())))
        return np.array(points), np.array(radii)

    def placed(self, rotation: np.ndarray, centre_mm: np.ndarray) -> Fetus:
        """The fetus turned by ``rotation`` and moved to ``centre_mm``."""

        def at(points: np.ndarray) -> np.ndarray:
            return points @ rotation.T + centre_mm

        def moved(ball: Ball) -> Ball:
            return dataclasses.replace(ball, centre=at(ball.centre), frame=rotation @ ball.frame)

        return dataclasses.replace(
            self,
            body=tuple(
                dataclasses.replace(part, ends=at(part.ends)) if isinstance(part, Cone) else moved(part)
                for part in self.body
            ),
            head=moved(self.head),
            spine=at(self.spine),
            trunk=at(self.trunk),
            axes=rotation @ self.axes,
        )


def crl_of(age_days: float) -> float:
    """Mean crown-rump length (mm) at a gestational age (days).

    Inverse of Robinson and Fleming (Br J Obstet Gynaecol 82, 1975): days = 8.052 √(1.037 CRL) + 23.73.
    """
    return ((age_days - 23.73) / 8.052) ** 2 / 1.037


def pose(rng: np.random.Generator, crl_mm: float, *, details: Details) -> Fetus:
    """Draw build and joint angles of a fetus of a crown-rump length, centred on its trunk and head."""
    stout = rng.uniform(0.88, 1.15)
    flexion = math.radians(rng.uniform(0, 75))
    trunk, tangents = _centreline(length=rng.uniform(0.48, 0.56), flexion=flexion)
    radii = (
        np.interp(np.linspace(0, 1, len(trunk)), (0, 0.15, 0.4, 0.75, 1), (0.09, 0.135, 0.16, 0.158, 0.115))
        * stout
    )
    head = _head(rng, trunk[0], up=-tangents[0])
    body: list[Cone | Ball] = [
        Cone("trunk", trunk[i : i + 2], (float(radii[i]), float(radii[i + 1]))) for i in range(len(trunk) - 1)
    ]
    # Broader than deep: the same chain again, to the left and right.
    for side in (-0.03, 0.03):
        shifted = trunk + np.array([0, 0, side])
        body += [
            Cone("trunk", shifted[i : i + 3 : 2], (float(radii[i]) * 0.96, float(radii[i + 2]) * 0.96))
            for i in (0, 2, 4)
        ]
    body += [
        Cone("neck", np.stack([trunk[0], head.centre]), (0.085 * stout, 0.08 * stout)),
        head,
        *_face(rng, head),
    ]
    if details.limbs:
        body += _limbs(rng, trunk=trunk, crl_mm=crl_mm, stout=stout)
    normal = np.stack([-tangents[:, 1], tangents[:, 0], tangents[:, 2]], -1)  # dorsal
    spots = np.linspace(0, len(trunk) - 1.001, _VERTEBRAE)
    low, part = spots.astype(int), spots % 1
    spine = trunk + normal * (0.62 * radii[:, None])
    spine = spine[low] + part[:, None] * (spine[low + 1] - spine[low])
    scale = crl_mm / _crown_rump(head, trunk[-1], float(radii[-1]))
    centre = (trunk.mean(0) + head.centre) / 2
    return Fetus(
        crl_mm=crl_mm,
        body=tuple(
            _scaled_cone(part, scale, centre) if isinstance(part, Cone) else _scaled_ball(part, scale, centre)
            for part in body
        ),
        head=_scaled_ball(head, scale, centre),
        spine=(spine - centre) * scale,
        trunk=(trunk - centre) * scale,
        axes=np.eye(3),
        details=details,
    )


def _scaled_cone(cone: Cone, scale: float, centre: np.ndarray) -> Cone:
    radii = (cone.radii[0] * scale, cone.radii[1] * scale)
    return dataclasses.replace(cone, ends=(cone.ends - centre) * scale, radii=radii, bone=cone.bone * scale)


def _scaled_ball(ball: Ball, scale: float, centre: np.ndarray) -> Ball:
    return dataclasses.replace(ball, centre=(ball.centre - centre) * scale, radii=ball.radii * scale)


def _centreline(*, length: float, flexion: float) -> tuple[np.ndarray, np.ndarray]:
    """Trunk from neck to sacrum, hollow on its ventral side: points and unit tangents (n, 3)."""
    angle = np.linspace(-flexion / 2, flexion / 2, 7)
    tangents = np.stack([-np.cos(angle), np.sin(angle), np.zeros(7)], -1)
    steps = (tangents[1:] + tangents[:-1]) / 2 * length / 6
    return np.concatenate([np.zeros((1, 3)), np.cumsum(steps, 0)]), tangents


def _head(rng: np.random.Generator, neck: np.ndarray, *, up: np.ndarray) -> Ball:
    left = np.array([0.0, 0.0, 1.0])
    nod = turned(left, math.radians(rng.uniform(-15, 35)))
    nod = nod if (nod @ up)[1] >= (nod.T @ up)[1] else nod.T
    up = nod @ up
    turn = turned(up, math.radians(rng.normal(0, 18)))
    front = unit(np.array([-up[1], up[0], 0.0]))
    front, left = turn @ front, turn @ left
    half = np.array([rng.uniform(0.17, 0.2), rng.uniform(0.195, 0.235), rng.uniform(0.155, 0.185)])
    centre = neck + up * (half[0] * rng.uniform(1.0, 1.25)) + front * rng.uniform(-0.01, 0.04)
    return Ball("head", centre, np.stack([up, front, left], -1), half)


def _face(rng: np.random.Generator, head: Ball) -> list[Cone | Ball]:
    up, front, _ = head.frame.T
    jaw = head.centre + front * head.radii[1] * 0.62 - up * head.radii[0] * 0.55
    nose = head.centre + front * head.radii[1] * 0.98 - up * head.radii[0] * 0.25
    return [
        Ball("face", jaw, head.frame, np.array([0.085, 0.07, 0.085]) * rng.uniform(0.85, 1.15)),
        Cone("nose", np.stack([nose, nose - up * 0.02 + front * 0.012]), (0.02, 0.022)),
    ]


def _limbs(rng: np.random.Generator, *, trunk: np.ndarray, crl_mm: float, stout: float) -> list[Cone | Ball]:
    """Arms up towards the face and bent hips and knees on average, any posture at times."""
    grown = float(np.interp(crl_mm, (30, 60, 85), (0.72, 0.95, 1.05)))
    wild = rng.uniform(0.25, 0.7)
    parts: list[Cone | Ball] = []
    for side in (-1.0, 1.0):
        shoulder = trunk[0] + 0.25 * (trunk[1] - trunk[0]) + np.array([0, 0, side * 0.125])
        upper = unit(np.array([-0.6, 0.7, side * 0.5]) + wild * rng.standard_normal(3))
        fore = unit(np.array([0.7, 0.6, -side * 0.35]) + 0.25 * upper + wild * rng.standard_normal(3))
        joints = shoulder + np.cumsum(
            [upper * 0, upper * 0.16 * grown, fore * 0.14 * grown, fore * 0.075 * grown], 0
        )
        parts += _limb("arm", joints, radii=np.array([0.046, 0.036, 0.024, 0.028]) * stout)
        hip = trunk[-2] + 0.5 * (trunk[-1] - trunk[-2]) + np.array([0, 0, side * 0.075])
        thigh = unit(np.array([-0.15, 1.0, side * 0.4]) + wild * rng.standard_normal(3))
        shank = unit(np.array([-0.8, -0.1, -side * 0.35]) + 0.3 * thigh + wild * rng.standard_normal(3))
        foot = unit(np.array([-0.2, 0.8, 0.0]) + 0.4 * shank + 0.5 * wild * rng.standard_normal(3))
        joints = hip + np.cumsum(
            [thigh * 0, thigh * 0.185 * grown, shank * 0.165 * grown, foot * 0.085 * grown], 0
        )
        parts += _limb("leg", joints, radii=np.array([0.062, 0.042, 0.028, 0.024]) * stout)
    return parts


def _limb(name: str, joints: np.ndarray, *, radii: np.ndarray) -> list[Cone | Ball]:
    return [
        Cone(name, joints[i : i + 2], (float(radii[i]), float(radii[i + 1])), bone=(0.0135, 0.012, 0.0)[i])
        for i in range(3)
    ]


def _crown_rump(head: Ball, sacrum: np.ndarray, radius: float) -> float:
    """Greatest length from the skull to the rump of a fetus at scale 1."""
    line = unit(head.centre - sacrum)
    support = float(np.linalg.norm(head.radii * (head.frame.T @ line)))
    return float((head.centre - sacrum) @ line) + support + radius


def drawn_details(rng: np.random.Generator, level: float) -> Details:
    """Draw which structures show; ``level`` 0 is a mere outline, 1 nearly everything."""

    def shown(chance: float) -> bool:
        return bool(rng.random() < chance * level)

    return Details(
        limbs=bool(rng.random() < 0.55 + 0.43 * level),
        bones=shown(0.9),
        skull=shown(0.92),
        brain=shown(0.9),
        spine=shown(0.9),
        ribs=shown(0.7),
        organs=shown(0.85),
    )
