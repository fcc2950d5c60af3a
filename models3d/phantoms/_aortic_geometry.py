"""The aortic root in closed form: wall, sinuses and cusps in the root's own axes, from a few numbers.

Axes: a along the root, 0 at the annulus; azimuth phi about it from b, where the middle of the right coronary
sinus lies, towards c on the non-coronary side. Sizes as in adults (Roman et al., Am. J. Cardiol. 64, 1989;
Hamdan et al., JACC 59, 2012; heights of cusps: Schaefers et al., JTCVS 146, 2013).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from models3d.tasks._aortic_mesh import COLUMNS, CUSP_COLUMNS, CUSP_ROWS, ROWS

Array = np.ndarray
_FULLEST = 0.45  # part of the height at which the sinuses are widest
_LUNULA = 0.8  # part of a cusp below the line where it touches its neighbours


@dataclass(frozen=True, slots=True, eq=False)
class Root:
    """One root with its valve.

    Attributes:
        annulus_mm: half axes of the ring at the hinges; ``turn_rad`` is the azimuth of the first.
        top_mm: radius of the sinotubular junction, ``height_mm`` above the annulus.
        bulge_mm: how far each sinus (right, non-coronary, left) reaches outside the cone between them.
        width_rad: azimuth that each sinus takes up; their sum is a full turn.
        base_tilt, top_tilt: slope and azimuth of the planes of annulus and sinotubular junction.
        commissures: heights of right-non, non-left and left-right commissure, as parts of the height.
        crown: exponent of the attachments: 2 is a parabola.
        coaptation: height of the middle of the closed free edges, as part of the height.
        lunula_mm: height of the zone where closed cusps touch; sag_mm: of the belly below a straight cusp.
        fused: commissure (0-2) that is a raphe instead (a bicuspid valve), or None.
        gape: opening in mid systole, 0-1; small in stenosis.
    """

    annulus_mm: tuple[float, float]
    turn_rad: float
    top_mm: float
    height_mm: float
    bulge_mm: tuple[float, float, float]
    width_rad: tuple[float, float, float]
    base_tilt: tuple[float, float]
    top_tilt: tuple[float, float]
    commissures: tuple[float, float, float]
    crown: float
    coaptation: float
    lunula_mm: float
    sag_mm: float
    fused: int | None
    gape: float


def drawn_root(rng: np.random.Generator, *, cusps: int | None, calcified: bool) -> Root:
    """Draw a root: annulus 18-31 mm across, sinuses and junction wider by drawn factors; 15 % bicuspid."""
    width = float(np.clip(rng.normal(24, 2.8), 17.5, 32))
    oval = rng.uniform(1.0, 1.35)
    major, minor = width * math.sqrt(oval) / 2, width / math.sqrt(oval) / 2
    top = width / 2 * rng.uniform(0.95, 1.4)
    bicuspid = rng.random() < 0.15 if cusps is None else cusps == 2
    # Right and left fused in most, right and non-coronary in a quarter (Sievers & Schmidtke, JTCVS 2007).
    raphe = int(rng.choice(3, p=(0.25, 0.05, 0.7)))
    shares = rng.normal(1, 0.07, 3)
    if bicuspid:
        shares[(raphe + 2) % 3] *= rng.uniform(1.1, 1.5)
    shares = np.clip(shares, 0.8, 1.6)
    first, second, third = (float(s) for s in 2 * math.pi * shares / shares.sum())
    heights = rng.uniform(0.82, 0.99, 3)
    if bicuspid:
        heights[raphe] = rng.uniform(0.5, 0.75)
    height = width * rng.uniform(0.72, 1.1)
    bulge = top * rng.uniform(0.12, 0.42) * rng.normal(1, 0.12, 3)
    return Root(
        annulus_mm=(major, minor),
        turn_rad=rng.uniform(0, math.pi),
        top_mm=top,
        height_mm=height,
        bulge_mm=(float(bulge[0]), float(bulge[1]), float(bulge[2])),
        width_rad=(first, second, third),
        base_tilt=(abs(rng.normal(0, 0.08)), rng.uniform(0, 2 * math.pi)),
        top_tilt=(abs(rng.normal(0, 0.08)), rng.uniform(0, 2 * math.pi)),
        commissures=(float(heights[0]), float(heights[1]), float(heights[2])),
        crown=rng.uniform(1.6, 2.4),
        coaptation=rng.uniform(0.32, 0.55),
        lunula_mm=rng.uniform(1.5, 4),
        sag_mm=rng.uniform(0.5, 3.5),
        fused=raphe if bicuspid else None,
        gape=rng.uniform(0.15, 0.5) if calcified else rng.uniform(0.7, 1),
    )


def pulsed(root: Root, *, phase: float, strain: float) -> Root:
    """The root at a phase of the cycle: it widens by ``strain`` towards the end of systole."""
    swell = 1 + strain * math.exp(-0.5 * ((phase - 0.25) / 0.12) ** 2)
    major, minor = root.annulus_mm
    changed = {"annulus_mm": (major * swell, minor / math.sqrt(swell)), "top_mm": root.top_mm * swell}
    return Root(**{name: changed.get(name, getattr(root, name)) for name in Root.__slots__})


def opening(phase: float, gape: float) -> float:
    """How far the valve is open (0-1) at a phase of the cycle: shut but from 0.04 to 0.38 (systole)."""
    if not 0.04 < phase < 0.38:
        return 0.0
    rise = min(max((phase - 0.04) / 0.06, 0), 1)
    fall = min(max((0.38 - phase) / 0.07, 0), 1)
    return gape * min(_eased(rise), _eased(fall)) * (1 - 0.5 * max(phase - 0.12, 0))


def sector(root: Root, azimuth: Array) -> tuple[Array, Array]:
    """Which sinus (0-2) an azimuth (rad) is in, and where: -1 and 1 at its commissures, 0 in its middle."""
    edges = np.cumsum(root.width_rad)
    turned = np.mod(azimuth + np.float32(root.width_rad[0] / 2), np.float32(2 * math.pi))
    which = (turned >= edges[0]).astype(np.int8) + (turned >= edges[1])
    starts = np.array([0.0, edges[0], edges[1]], np.float32)
    place = (turned - starts[which]) / np.array(root.width_rad, np.float32)[which] * 2 - 1
    return which, place


def azimuth_of(root: Root, place: Array, *, cusp: int) -> Array:
    """Azimuth (rad) of a place (-1 to 1) in a sinus."""
    start = np.cumsum((-root.width_rad[0] / 2, *root.width_rad))[cusp]
    return start + (place + 1) / 2 * root.width_rad[cusp]


def radius(root: Root, part: Array, *, azimuth: Array) -> Array:
    """Radius (mm) of the wall at a part of the height, 0 at the annulus and 1 at the junction.

    Below 0 the outflow tract goes on, above 1 the ascending aorta, without sinuses.
    """
    major, minor = root.annulus_mm
    turn = azimuth - np.float32(root.turn_rad)
    ring = major * minor / np.sqrt((minor * np.cos(turn)) ** 2 + (major * np.sin(turn)) ** 2)
    held = np.clip(part, 0, 1)
    which, place = sector(root, azimuth)
    lobe = 0.3 + 0.7 * np.cos(np.float32(math.pi / 2) * place)
    wave = np.sin(np.float32(math.pi) * held ** np.float32(math.log(0.5) / math.log(_FULLEST)))
    bulge = np.array(root.bulge_mm, np.float32)[which] * lobe * np.maximum(wave, 0) ** np.float32(1.2)
    return ring + (root.top_mm - ring) * held * held * (3 - 2 * held) + bulge


def part_of(root: Root, along: Array, *, away: Array, azimuth: Array) -> Array:
    """Part of the height at which a point lies, between the tilted planes of annulus and junction."""
    low, high = (away * slope * np.cos(azimuth - at) for slope, at in (root.base_tilt, root.top_tilt))
    return (along - low) / (root.height_mm - low + high)


def wall_points(root: Root, part: Array, *, azimuth: Array) -> Array:
    """Points (..., 3) of the wall, as (a, b, c) in mm."""
    away = radius(root, part, azimuth=azimuth)
    return _placed(root, part, away, azimuth)


def cusp_points(root: Root, cusp: int, *, place: Array, up: Array, opened: float) -> Array:
    """Points (..., 3) of a cusp: ``place`` -1 to 1 across it, ``up`` 0 (attachment) to 1."""
    place, up = np.broadcast_arrays(np.asarray(place, float), np.asarray(up, float))
    aside, azimuth = np.abs(place), azimuth_of(root, place, cusp=cusp)
    ends = np.array([root.commissures[(cusp + 2) % 3], root.commissures[cusp]])
    height = np.where(place < 0, ends[0], ends[1])
    fused = np.where(place < 0, root.fused == (cusp + 2) % 3, root.fused == cusp)
    attached = wall_points(root, height * aside**root.crown, azimuth=azimuth)
    shut = _shut_edge(root, cusp, place, height=height, fused=fused)
    wall = radius(root, 0.9 * height, azimuth=azimuth)
    near = np.where(fused, 0.84 - 0.44 * aside**2, 0.84 + 0.1 * aside**3)
    wide = _placed(root, height * np.where(fused, 1 - 0.1 * aside, 0.95 + 0.05 * aside), near * wall, azimuth)
    edge = (1 - opened) * shut + opened * wide
    drop = np.zeros_like(edge)
    drop[..., 0] = (1 - opened) * (1 - aside**2)
    line = (1 - opened) * (shut - root.lunula_mm * drop) + opened * (attached + _LUNULA * (wide - attached))
    below = np.minimum(up / _LUNULA, 1)[..., None]
    belly = (1 - below) * attached + below * line - 4 * below * (1 - below) * root.sag_mm * drop
    over = np.maximum(up - _LUNULA, 0)[..., None] / (1 - _LUNULA)
    return belly + over * (edge - line)


def _shut_edge(root: Root, cusp: int, place: Array, *, height: Array, fused: Array) -> Array:
    """Closed free edge: from each commissure to the middle of the root, along a line its neighbour shares."""
    aside = np.abs(place)
    toward = np.where(
        place < 0, azimuth_of(root, np.array(-1.0), cusp=cusp), azimuth_of(root, np.array(1.0), cusp=cusp)
    )
    reach = np.where(fused, 0.25, 0.94) * radius(root, height, azimuth=toward) * aside
    level = root.coaptation + (height - root.coaptation) * aside**1.5 * np.where(fused, 0.25, 1)
    return _placed(root, level, reach, toward)


def _placed(root: Root, part: Array, away: Array, azimuth: Array) -> Array:
    low, high = (away * slope * np.cos(azimuth - at) for slope, at in (root.base_tilt, root.top_tilt))
    along = root.height_mm * part + (1 - part) * low + part * high
    return np.stack(np.broadcast_arrays(along, away * np.cos(azimuth), away * np.sin(azimuth)), -1)


def mesh_points(root: Root, *, opened: float) -> Array:
    """All vertices (860, 3) of the mesh of ``models3d.tasks._aortic_mesh``, as (a, b, c) in mm."""
    column = np.arange(COLUMNS)
    cusp = ((column + 8) // 16) % 3
    place = ((column + 8) % 16 - 8) / 8
    azimuth = np.array([float(azimuth_of(root, p, cusp=int(k))) for k, p in zip(cusp, place, strict=True)])
    wall = wall_points(root, np.linspace(0, 1, ROWS)[:, None], azimuth=azimuth[None])
    across, up = np.linspace(-1, 1, CUSP_COLUMNS)[None], np.linspace(0, 1, CUSP_ROWS)[:, None]
    sheets = [cusp_points(root, k, place=across, up=up, opened=opened).reshape(-1, 3) for k in range(3)]
    caps = np.stack([wall[0].mean(0), wall[-1].mean(0)])
    return np.concatenate([wall.reshape(-1, 3), caps, *sheets])


def _eased(share: float) -> float:
    return share * share * (3 - 2 * share)
