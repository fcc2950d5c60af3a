"""The heart at its largest diastole, drawn once on a raster in heart coordinates: what sound meets where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from usvol.simulation.speckle import smooth_noise
from video.phantoms._heart_shape import NODES, Motion, Ventricle, profile

Array = NDArray[np.float64]

CELL_MM = 0.6
_BEFORE_MM, _ASIDE_MM = 40.0, 100.0  # of the raster beyond the apex and to each side
# Index of each material; the leaflets are drawn frame by frame.
_AROUND, _LUNG, _PERICARDIUM, _WALL, _BLOOD, _RIGHT_WALL, _FIBROUS, _DEEP = range(8)


@dataclass(frozen=True, slots=True)
class Plan:
    """The other chambers; lengths in mm. ``right`` is None in a two-chamber view."""

    right: Right | None
    left_atrium_mm: tuple[float, float]
    septum_mm: float
    papillary: tuple[tuple[int, float, float], ...]
    roughness_mm: float
    pericardium_mm: float


@dataclass(frozen=True, slots=True)
class Right:
    """Right ventricle (width at the base, level of its apex, 0-1, thickness of its wall) and atrium."""

    width_mm: float
    apex: float
    wall_mm: float
    atrium_mm: tuple[float, float]
    offset_mm: float


@dataclass(frozen=True, slots=True)
class Echoes:
    """Level (dB), one-way attenuation (dB/cm/MHz) and impedance (MRayl) of each material, by index."""

    level_db: tuple[float, ...]
    attenuation: tuple[float, ...]
    impedance: tuple[float, ...]
    texture_db: float
    texture_mm: float


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """Fields on the raster and outlines, all at the largest diastole.

    Attributes:
        fields: float32 ``channel A U``: amplitude, attenuation, log impedance, and two sets of complex
            scatterers (real, imaginary) of mean square 1.
        origin_mm: A and U of cell (0, 0).
        outer_mm: half-width (side, node) of the outside of the left ventricle's wall.
        right_mm: width (node,) of the right ventricle; zeros without one.
        roof_mm: A of the atrial roof, beyond which nothing moves.
        atrium_mm: A, U of the left atrium's centre and its half-axes.
    """

    fields: Tensor
    origin_mm: tuple[float, float]
    outer_mm: Array
    right_mm: Array
    roof_mm: float
    atrium_mm: tuple[float, float, float, float]


def draw_echoes(rng: np.random.Generator) -> Echoes:
    """Draw how the materials echo: blood dark, muscle grey, pericardium and valve rings bright."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    muscle = between(-17, -6)
    level = (
        between(-20, -6),
        between(-10, 2),
        between(-4, 6),
        muscle,
        between(-50, -32),
        muscle + between(-3, 3),
        between(-4, 4),
        between(-18, -6),
    )
    attenuation = (0.6, 1.2, 0.8, between(0.4, 0.8), 0.15, 0.6, 0.9, 0.6)
    impedance = (1.63, between(0.9, 1.4), between(1.75, 1.95), between(1.68, 1.74), 1.66, 1.7, 1.85, 1.66)
    return Echoes(level, attenuation, impedance, between(1, 4), between(1, 3))


def drawn(
    rng: np.random.Generator, ventricle: Ventricle, *, plan: Plan, echoes: Echoes, rest: Motion
) -> Drawing:
    """Draw the raster; ``rest`` is the motion at the largest diastole alone."""
    rows = int((rest.reach_mm + _BEFORE_MM) / CELL_MM)
    columns = int(2 * _ASIDE_MM / CELL_MM)
    a = (-_BEFORE_MM + CELL_MM * np.arange(rows))[:, None]
    u = (-_ASIDE_MM + CELL_MM * np.arange(columns))[None]
    annulus = float(rest.annulus_mm[0])
    outer = _outer(ventricle, rest)
    right = _right_widths(plan.right, rest)
    atrium = (annulus + 0.86 * plan.left_atrium_mm[0], 0.0, *plan.left_atrium_mm)
    roof = atrium[0] + atrium[2] + plan.septum_mm
    material = np.full((rows, columns), _AROUND, np.uint8)
    tables = _Tables(a.astype(float), u.astype(float), rest=rest, outer=outer, right=right)
    _fill_around(rng, material, tables, plan=plan, roof=roof)
    _fill_right(material, tables, plan=plan, annulus=annulus)
    _fill_left(rng, material, tables, plan=plan, annulus=annulus, apical_mm=ventricle.apical_mm)
    _fill_atria(material, tables, plan=plan, atrium=atrium, annulus=annulus)
    _fill_ring(material, tables, plan=plan, annulus=annulus)
    fields = _fields(rng, material, echoes)
    return Drawing(torch.from_numpy(fields), (-_BEFORE_MM, -_ASIDE_MM), outer, right, float(roof), atrium)


class _Tables:
    """Half-widths looked up for every row of the raster, and the coordinates."""

    __slots__ = ("a", "inner", "outer", "right", "u")

    def __init__(self, a: Array, u: Array, *, rest: Motion, outer: Array, right: Array) -> None:
        self.a, self.u = a, u
        node = np.clip((a[:, 0] / rest.reach_mm * (NODES - 1)).round().astype(int), 0, NODES - 1)
        self.inner = rest.half_mm[0][:, node][:, :, None]
        self.outer = outer[:, node][:, :, None]
        self.right = right[node][:, None]

    def within(self, widths: Array) -> NDArray[np.bool_]:
        return (self.u > -widths[0]) & (self.u < widths[1])


def _outer(ventricle: Ventricle, rest: Motion) -> Array:
    """Return half-widths of the epicardium: a wider bullet from A = 0, at least 60 % of the wall thick."""
    nodes = np.linspace(0, rest.reach_mm, NODES)
    annulus = float(rest.annulus_mm[0])
    shape = profile(np.clip(nodes / annulus, 0, 1), widest=0.6, waist=0.05, bluntness=2.2)
    outer = []
    for side in (0, 1):
        inner, wall = rest.half_mm[0, side], ventricle.wall_mm[side]
        bullet = shape * (inner.max() + wall)
        outer.append(np.maximum(bullet, np.where(nodes > ventricle.apical_mm, inner + 0.6 * wall, 0)))
    return np.stack(outer)


def _right_widths(right: Right | None, rest: Motion) -> Array:
    nodes = np.linspace(0, rest.reach_mm, NODES)
    if right is None:
        return np.zeros(NODES)
    annulus = float(rest.annulus_mm[0])
    part = np.clip((nodes / annulus - right.apex) / (1 - right.apex), 0, None)
    grown = np.minimum(part, 1) ** 0.6 * (1 - 0.12 * np.clip(part - 0.75, 0, 1))
    return right.width_mm * np.where(nodes < annulus, grown, grown * np.exp(-(((nodes - annulus) / 25) ** 2)))


def _fill_around(
    rng: np.random.Generator, material: NDArray[np.uint8], at: _Tables, *, plan: Plan, roof: float
) -> None:
    """Lung to the sides, tissue behind the atria, the bright pericardium around the ventricles."""
    edge = smooth_noise(rng, (len(at.a), 1), sigma=(20.0, 0.0)) * 6
    left = -(at.outer[0] + at.right + rng.uniform(4, 25)) + edge
    lung = (at.u < left) | (at.u > at.outer[1] + rng.uniform(3, 20) + edge)
    material[lung & (at.a > -10)] = _LUNG
    material[np.broadcast_to(at.a > roof + 6 + edge, material.shape)] = _DEEP
    sac = at.outer + plan.pericardium_mm
    wall = plan.right.wall_mm if plan.right else 0.0
    beside = (at.u > -(sac[0] + at.right + wall)) & (at.u < sac[1])
    heart = (at.a > -plan.pericardium_mm) & (at.a < roof) & beside
    material[heart] = _PERICARDIUM
    material[heart & (at.a > roof - 30) & (np.abs(at.u) > at.outer.mean(0) + 5)] = _AROUND


def _fill_right(material: NDArray[np.uint8], at: _Tables, *, plan: Plan, annulus: float) -> None:
    if plan.right is None:
        return
    beside = -at.u - at.outer[0]
    until = annulus - plan.right.offset_mm
    near = (at.a > 0) & (at.a < until) & (beside > -1)
    material[near & (beside < at.right + plan.right.wall_mm) & (at.right > 0)] = _RIGHT_WALL
    material[near & (beside > 0) & (beside < at.right)] = _BLOOD


def _fill_left(
    rng: np.random.Generator,
    material: NDArray[np.uint8],
    at: _Tables,
    *,
    plan: Plan,
    annulus: float,
    apical_mm: float,
) -> None:
    """The wall, the cavity with its rough lining, and papillary muscles in it."""
    long = (at.a > 0) & (at.a < annulus)
    material[long & at.within(at.outer)] = _WALL
    lining = np.abs(smooth_noise(rng, (2, len(at.a), 1), sigma=(0, 4.0, 0))) * plan.roughness_mm
    # Trabeculae are coarsest at the apex; the outline that people trace passes over them.
    lining *= np.clip(1.6 - at.a / annulus, 0.2, 1.5)
    cavity = long & (at.a > apical_mm) & at.within((at.inner - lining).clip(0))
    material[cavity] = _BLOOD
    for side, level, size in plan.papillary:
        sign = 1 if side else -1
        centre = apical_mm + level * (annulus - apical_mm)
        row = int(np.clip((centre + _BEFORE_MM) / CELL_MM, 0, len(at.a) - 1))
        middle = sign * (at.inner[side][row, 0] - 0.9 * size)
        blob = ((at.a - centre) / (2.2 * size)) ** 2 + ((at.u - middle) / size) ** 2 < 1
        material[cavity & blob] = _WALL


def _fill_atria(
    material: NDArray[np.uint8],
    at: _Tables,
    *,
    plan: Plan,
    atrium: tuple[float, float, float, float],
    annulus: float,
) -> None:
    def fill(centre: tuple[float, float], size: tuple[float, float], *, first: float, wall_mm: float) -> None:
        # A little squarer than an ellipse.
        far = np.abs(at.a - centre[0]) ** 2.4, np.abs(at.u - centre[1]) ** 2.4
        below = at.a >= first
        outside = far[0] / (size[0] + wall_mm) ** 2.4 + far[1] / (size[1] + wall_mm) ** 2.4
        material[below & (outside < 1) & (material != _BLOOD)] = _RIGHT_WALL
        material[below & (far[0] / size[0] ** 2.4 + far[1] / size[1] ** 2.4 < 1)] = _BLOOD

    fill(atrium[:2], atrium[2:], first=annulus, wall_mm=plan.septum_mm)
    if plan.right is not None:
        size = plan.right.atrium_mm
        first = annulus - plan.right.offset_mm
        middle = -(atrium[3] + plan.septum_mm + size[1])
        fill((first + 0.86 * size[0], middle), size, first=first, wall_mm=plan.septum_mm)


def _fill_ring(material: NDArray[np.uint8], at: _Tables, *, plan: Plan, annulus: float) -> None:
    """Fibrous tissue at the hinges of the valves."""
    row = int((annulus + _BEFORE_MM) / CELL_MM)
    hinges = [(annulus, -at.inner[0][row, 0] - 2), (annulus, at.inner[1][row, 0] + 2)]
    if plan.right is not None:
        first = annulus - plan.right.offset_mm
        hinges += [(first, -at.outer[0][row, 0]), (first, -at.outer[0][row, 0] - at.right[row, 0])]
    for a, u in hinges:
        material[((at.a - a) / 3.0) ** 2 + ((at.u - u) / 3.5) ** 2 < 1] = _FIBROUS


def _fields(rng: np.random.Generator, material: NDArray[np.uint8], echoes: Echoes) -> NDArray[np.float32]:
    """Turn materials into amplitude, attenuation and log impedance, and add scatterers."""
    width = echoes.texture_mm / CELL_MM
    texture = smooth_noise(rng, material.shape, sigma=(width, 1.5 * width)) * echoes.texture_db
    coarse = smooth_noise(rng, material.shape, sigma=(12.0, 12.0)) * 2.5
    level = np.asarray(echoes.level_db, np.float32)[material] + texture + coarse
    values = [10 ** (level / 20)]
    values += [np.asarray(v, np.float32)[material] for v in (echoes.attenuation, np.log(echoes.impedance))]
    soft = [ndimage.gaussian_filter(v, 0.6, output=np.float32) for v in values]
    scatterers = rng.standard_normal((4, *material.shape), dtype=np.float32) / np.float32(np.sqrt(2))
    return np.concatenate([np.stack(soft), scatterers]).astype(np.float32)
