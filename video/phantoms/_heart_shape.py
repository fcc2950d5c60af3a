"""The left ventricle in space, its section by a (tilted) plane, and how both move: closed form, mm.

Heart coordinates of the image plane: a along the long axis from the epicardial apex towards the atria, u
across it (negative: septal, in a two-chamber view inferior). Capitals are the same coordinates at the largest
diastole, in which the anatomy is drawn once: every moment is a map of the plane onto that drawing.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NODES = 1024  # of the tables along the axis
_LEVELS = 240  # of the ventricle's length in integrals
_FADE_MM = 12.0  # beyond the annulus, over which its motion across the axis dies out


@dataclass(frozen=True, slots=True, eq=False)
class Ventricle:
    """The cavity at the largest diastole: a stack of ellipses, apex to annulus.

    Attributes:
        length_mm: of the long axis.
        seen, crossed: half-widths (2, levels) in the plane of the view (towards -u, +u) and across it, mm.
        grip_seen, grip_crossed: how much each level and side joins in the contraction, about 1.
        shortening: part of the contraction (0-1) that the long axis joins in.
        tilt_rad: of the image plane against the long axis, about the annulus: foreshortening.
        wall_mm: thickness of the septal and of the free wall; ``apical_mm``: of the apex.
        apical_share: part of the shortening taken up by a thickening apex.
    """

    length_mm: float
    seen: Array
    crossed: Array
    grip_seen: Array
    grip_crossed: Array
    shortening: float
    tilt_rad: float
    wall_mm: tuple[float, float]
    apical_mm: float
    apical_share: float

    @property
    def levels(self) -> Array:
        """Fraction of the long axis from the apex at which the half-widths stand."""
        return np.linspace(0, 1, self.seen.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class Motion:
    """Where the section is at each time; (t,) or (t, side, node), mm.

    ``apex_mm`` and ``annulus_mm`` are a of the imaged apex (endocardium) and of the annulus; ``half_mm`` the
    half-width at node n, which stands at A = n / (NODES - 1) · ``reach_mm``.
    """

    apex_mm: Array
    annulus_mm: Array
    half_mm: Array
    reach_mm: float


def profile(levels: Array, *, widest: float, waist: float, bluntness: float) -> Array:
    """Return the half-width 0-1 of a bullet: 0 at the apex, 1 at ``widest``, ``1 - waist`` at the base."""
    below = np.clip((widest - levels) / widest, 0, 1)
    above = np.clip((levels - widest) / (1 - widest), 0, 1)
    return (1 - below**bluntness) ** (1 / bluntness) * (1 - waist * above**2)


def capacity_ml(ventricle: Ventricle) -> float:
    """Return the volume at the largest diastole: the sum of its ellipses (biplane Simpson), mL."""
    return float(ventricle.length_mm * _mean_area_mm2(ventricle, np.zeros(1))[0] / 1000)


def _mean_area_mm2(ventricle: Ventricle, contraction: Array) -> Array:
    """Area of the cross-sections averaged over the length, for each degree of contraction: (n,)."""
    c = contraction[:, None, None]
    seen = (ventricle.seen * (1 - c * ventricle.grip_seen)).clip(0).sum(1)
    crossed = (ventricle.crossed * (1 - c * ventricle.grip_crossed)).clip(0).sum(1)
    return np.pi / 4 * np.trapezoid(seen * crossed, ventricle.levels, axis=1)


def contraction_of(ventricle: Ventricle, *, volumes_ml: Array, change: Array) -> tuple[Array, Array]:
    """Return the length (mm) and the contraction of the widths that give each volume.

    ``change`` shortens the axis a little more (1: by 2 %) at the same volume, as between the valves' motions.
    """
    full = capacity_ml(ventricle)
    ejected = 1 - volumes_ml / full
    length = ventricle.length_mm * (1 - ventricle.shortening * ejected - 0.02 * change)
    degrees = np.linspace(-0.15, 0.98, 400)
    areas = _mean_area_mm2(ventricle, degrees)
    wanted = 1000 * volumes_ml / length
    return length, np.interp(-wanted, -areas, degrees)


def section(ventricle: Ventricle, *, length_mm: Array, contraction: Array) -> tuple[Array, Array]:
    """Cut the ventricle by the image plane at each time.

    Returns the half-widths (t, side, level) at ``linspace(0, 1)`` of the way from the annulus to the farthest
    level, and the imaged length (t,) from the annulus to the imaged apex.
    """
    way = np.linspace(0, 1, _LEVELS)
    along = way[None] * length_mm[:, None]
    c = contraction[:, None]
    level = 1 - way * np.cos(ventricle.tilt_rad)
    seen = np.stack([_at(ventricle, "seen", side, level=level, c=c) for side in (0, 1)], 1)
    across = _at(ventricle, "crossed", 1, level=level, c=c)
    off = along * np.sin(ventricle.tilt_rad)
    left = np.sqrt(np.clip(1 - (off / np.maximum(across, 1e-3)) ** 2, 0, 1))
    cut = np.where(off < across, left, 0.0)
    half = seen * cut[:, None]
    inside = (half.sum(1) > 0.2).cumprod(1)
    last = inside.sum(1) - 1
    return half * inside[:, None], along[np.arange(len(along)), last]


def _at(ventricle: Ventricle, which: str, side: int, *, level: Array, c: Array) -> Array:
    """Half-width (t, level) at a fraction of the axis, contracted."""
    width = np.interp(level, ventricle.levels, getattr(ventricle, which)[side])
    grip = np.interp(level, ventricle.levels, getattr(ventricle, f"grip_{which}")[side])
    return (width * (1 - c * grip)).clip(0)


def tilt_for(ventricle: Ventricle, *, foreshortening: float) -> float:
    """Return the tilt (rad) at which the diastolic section is shorter by this part of the long axis."""
    tilts = np.linspace(0, 0.6, 25)
    length = np.array([ventricle.length_mm])
    lost = []
    for tilt in tilts:
        tilted = dataclasses.replace(ventricle, tilt_rad=float(tilt))
        lost.append(1 - section(tilted, length_mm=length, contraction=np.zeros(1))[1][0] / length[0])
    return float(np.interp(foreshortening, np.maximum.accumulate(lost), tilts)) if foreshortening > 0 else 0.0


def moved(ventricle: Ventricle, *, volumes_ml: Array, change: Array, reach_mm: float) -> Motion:
    """Return where apex, annulus and walls are at each volume; at ``capacity_ml`` they are at rest."""
    length, contraction = contraction_of(ventricle, volumes_ml=volumes_ml, change=change)
    half, seen_mm = section(ventricle, length_mm=length, contraction=contraction)
    rest = section(ventricle, length_mm=np.array([ventricle.length_mm]), contraction=np.zeros(1))[1][0]
    shortened = (ventricle.length_mm - length) * np.cos(ventricle.tilt_rad)
    annulus = ventricle.apical_mm + rest - (1 - ventricle.apical_share) * shortened
    apex = annulus - seen_mm
    # The wall over the apex never becomes thinner than half of what it is in diastole.
    apex = np.maximum(apex, 0.5 * ventricle.apical_mm)
    nodes = np.linspace(0, reach_mm, NODES)
    base_mm = ventricle.apical_mm + rest
    tables = np.zeros((len(length), 2, NODES))
    for t in range(len(length)):
        # A of a node to a at time t, to the way from the annulus.
        a = np.interp(nodes, [0, ventricle.apical_mm, base_mm], [0, apex[t], annulus[t]])
        way = (annulus[t] - a) / length[t]
        for side in (0, 1):
            inside = np.interp(way, np.linspace(0, 1, _LEVELS), half[t, side])
            tables[t, side] = np.where(nodes <= base_mm, inside, half[t, side, 0])
    return Motion(apex, annulus, tables, reach_mm)


def faded(motion: Motion, rest: Motion) -> Array:
    """Return the half-widths with the motion beyond the annulus dying out: (t, side, node)."""
    nodes = np.linspace(0, motion.reach_mm, NODES)
    beyond = np.clip(nodes - rest.annulus_mm[0], 0, None)
    return rest.half_mm + (motion.half_mm - rest.half_mm) * np.exp(-((beyond / _FADE_MM) ** 2))
