"""Anatomy of ``other_heart``: an aortic root and the heart about it as an implicit function of position.

Coordinates are local, in mm: along the root from the annulus to the aorta; towards the middle of the right
coronary sinus, which is anterior; towards the patient's right, the non-coronary side. The root is a tube
whose section is three overlapping discs, its cusps are Bézier sheets; chambers are blobs and chains of balls
that push one another aside. Sizes: annulus 18-29 mm, sinuses 26-42 mm, sinotubular junction 20-36 mm, height
15-28 mm. Test data only: shares nothing with the phantoms that networks are trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from other_anatomy import Blob, noise, unit
from scipy import ndimage
from scipy.spatial import KDTree

from models3d.tasks._aortic_mesh import COLUMNS, CUSP_COLUMNS, CUSP_ROWS, ROWS

# name: mean echo in dB, two-way attenuation in dB/mm beyond what the machine makes up for
MATERIALS = {
    "blood": (-46.0, -0.1), "fat": (-19.0, 0.15), "muscle": (-19.0, 0.05), "atrial": (-11.0, 0.08),
    "vessel": (-5.0, 0.12), "fibrous": (-4.0, 0.15), "lung": (-13.0, 0.9), "calcium": (4.0, 5.0),
}  # fmt: skip
NAMES = tuple(MATERIALS)
ECHO_DB, LOSS_DB_MM = (np.array(column, np.float32) for column in zip(*MATERIALS.values(), strict=True))
CHAMBERS = ("lv", "la", "ra", "rv")
THIRD = 2 * np.pi / 3
SLAB = 1 << 19  # points looked at in one go


@dataclass(frozen=True, slots=True)
class Root:
    """The root: radii, heights and offsets in mm, directions in radians about its axis (0: right sinus).

    Attributes:
        ring: mean radius of the annulus; ``oval`` its flattening (0: a circle), long along ``oval_turn``.
        top: radius of the sinotubular junction.
        bulge: how far the discs of the three sinuses lie off the axis: 1/√3 of what two of them add to the
            width; ``uneven`` of it from sinus to sinus.
        belly: powers that shape the bulge along the height.
        lean: rise of annulus and junction per mm off the axis, along ``lean_turn``.
        bend: radius and direction of the curve of the axis, of the aorta and of the outflow tract.
        tops: height of the commissures as a share of the root's; ``meet`` of where the cusps meet.
        off_centre: where the cusps meet, off the axis.
        opened: 0 (closed) to 1; ``gape`` is the radius of the open valve as a share of the annulus'.
        fused: the cusp that is grown together with the one after it, or None.
    """

    ring: float
    oval: float
    oval_turn: float
    top: float
    height: float
    bulge: float
    uneven: tuple[float, float]
    belly: tuple[float, float]
    lean: tuple[float, float]
    lean_turn: tuple[float, float]
    bend: tuple[float, float, float, float]
    tops: float
    meet: float
    off_centre: tuple[float, float]
    opened: float
    gape: float
    half_mm: float
    fused: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Sheets:
    """Thin leaflets as clouds: points and unit normals (n, 3), half thickness in mm and echo in dB (n,)."""

    points: np.ndarray
    normals: np.ndarray
    half_mm: np.ndarray
    echo_db: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Heart:
    """A root with its surroundings; ``chains`` of a chamber are (points (n, 3), radii (n,)) in mm."""

    root: Root
    blobs: dict[str, tuple[Blob, ...]]
    chains: dict[str, tuple[tuple[np.ndarray, np.ndarray], ...]]
    walls: dict[str, float]
    septa: dict[tuple[str, str], float]
    hinge: np.ndarray
    upward: np.ndarray
    mitral: np.ndarray
    papillary: tuple[tuple[np.ndarray, np.ndarray], ...]
    coronaries: tuple[tuple[np.ndarray, np.ndarray], ...]
    sheets: Sheets
    calcium: tuple[tuple[np.ndarray, float], ...]
    lattice: np.ndarray
    blood_db: float
    contrast: float


def draw_root(rng: np.random.Generator, level: int, *, bicuspid: bool, calcified: bool) -> Root:
    """Draw a root of an adult."""
    ring = rng.uniform(18.8, 27.6)
    sinus = float(np.clip(ring * rng.uniform(1.2, 1.5), 27, 40))
    top = float(np.clip(ring * rng.uniform(0.98, 1.25), 20.5, min(35.5, sinus - 2)))
    height = float(np.clip(0.85 * ring * rng.uniform(0.8, 1.2), 15.5, 27.5))
    systole = rng.random() < 0.4
    opened = rng.uniform(0.55, 1.0) if systole else rng.uniform(0.0, 0.04)
    stiff = (0.55 if calcified else 1.0) * (0.8 if bicuspid else 1.0)
    return Root(
        ring=ring / 2,
        oval=rng.uniform(0.0, min(0.1, 29 / ring - 1, 1 - 18 / ring)),
        oval_turn=rng.uniform(0, np.pi),
        top=top / 2,
        height=height,
        bulge=(sinus - (ring + top) / 2) / 3**0.5,
        uneven=(rng.uniform(0, 0.05 + 0.04 * level), rng.uniform(0, 2 * np.pi)),
        belly=(rng.uniform(0.75, 1.15), rng.uniform(0.8, 1.3)),
        lean=(rng.uniform(0, 0.1), rng.uniform(0, 0.14)),
        lean_turn=(rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)),
        bend=(rng.uniform(85, 200), rng.normal(1.3, 0.7), rng.uniform(50, 120), rng.normal(2.9, 0.5)),
        tops=rng.uniform(0.82, 0.95),
        meet=rng.uniform(0.42, 0.6),
        off_centre=(float(rng.normal(0, 0.6)), float(rng.normal(0, 0.6))),
        opened=float(opened * stiff),
        gape=rng.uniform(0.8, 0.95),
        half_mm=rng.uniform(0.3, 0.6) + (0.25 if calcified else 0.0),
        fused=int(rng.choice([2, 0, 1], p=[0.75, 0.2, 0.05])) if bicuspid else None,
    )


def axis_at(root: Root, along: np.ndarray) -> np.ndarray:
    """Return where the middle of the tube lies off the straight axis (n, 2), by mm along it."""
    far, turn, near, back = root.bend
    above, below = np.maximum(along, 0) ** 2 / (2 * far), np.minimum(along, 0) ** 2 / (2 * near)
    # Beyond 70 mm the quadratic would run off sideways faster than any aorta.
    above = np.where(along > 70, 4900 / (2 * far) + (along - 70) * 70 / far, above)
    return np.stack(
        [above * np.cos(turn) + below * np.cos(back), above * np.sin(turn) + below * np.sin(back)], -1
    )


def rims(root: Root, azimuth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the height in mm of annulus and sinotubular junction by azimuth."""
    low = root.ring * root.lean[0] * np.cos(azimuth - root.lean_turn[0])
    return low, root.height + root.top * root.lean[1] * np.cos(azimuth - root.lean_turn[1])


def radius(root: Root, share: np.ndarray, *, azimuth: np.ndarray) -> np.ndarray:
    """Return the inner radius in mm at a share of the height (0 annulus, 1 junction, beyond: the vessels)."""
    part = np.clip(share, 0, 1)
    disc = root.ring + (root.top - root.ring) * part**2 * (3 - 2 * part)
    rise, fall = root.belly
    peak = (rise / (rise + fall)) ** rise * (fall / (rise + fall)) ** fall
    off = root.bulge * part**rise * (1 - part) ** fall / peak
    off = off * (1 + root.uneven[0] * np.cos(azimuth - root.uneven[1]))
    angle = (azimuth + THIRD / 2) % THIRD - THIRD / 2
    off = np.minimum(off, 1.1 * disc)
    lobed = off * np.cos(angle) + np.sqrt(disc**2 - (off * np.sin(angle)) ** 2)
    oval = 1 + root.oval * (1 - part) ** 2 * np.cos(2 * (azimuth - root.oval_turn))
    wider = 1 + 0.12 * np.clip(share - 1, 0, 1.5) + 0.1 * np.clip(-share, 0, 1)
    return lobed * oval * wider


def wall_at(root: Root, share: np.ndarray, *, azimuth: np.ndarray) -> np.ndarray:
    """Return points (..., 3) of the inner wall."""
    low, high = rims(root, azimuth)
    along = low + (high - low) * share
    off = radius(root, share, azimuth=azimuth)[..., None] * np.stack([np.cos(azimuth), np.sin(azimuth)], -1)
    return np.concatenate([along[..., None], axis_at(root, along) + off], -1)


def cusp_at(root: Root, cusp: int, *, rows: int, columns: int) -> np.ndarray:
    """Return a cusp as (rows, columns, 3): attachment to free edge, commissure to commissure."""
    across = np.linspace(-1, 1, columns)
    middle, side = cusp * THIRD, np.abs(across)
    azimuth = middle + across * THIRD / 2
    start = wall_at(root, root.tops * side**1.8, azimuth=azimuth)
    corner = middle + np.sign(across) * THIRD / 2
    commissure = wall_at(root, np.full(columns, root.tops), azimuth=corner)
    low, high = rims(root, azimuth)
    centre = axis_at(root, np.array(root.meet * root.height)) + np.array(root.off_centre)
    outward = np.array([np.cos(middle), np.sin(middle)])
    line = centre + side[:, None] * (commissure[:, 1:] - centre)
    # The sheets of two cusps lie side by side where they meet.
    line = line + outward * (root.half_mm * 0.9 * (1 - side**4))[:, None]
    edge = root.meet * root.height + side**1.4 * (commissure[:, 0] - root.meet * root.height)
    shut = np.column_stack([edge, line])
    bent = np.column_stack([start[:, 0] + 0.06 * (edge - start[:, 0]), line + 0.08 * (start[:, 1:] - line)])
    height = low + (high - low) * (0.84 + (root.tops - 0.84) * side**2)
    away = root.gape * root.ring + side**3 * (
        radius(root, np.full(columns, root.tops), azimuth=azimuth) - root.gape * root.ring
    )
    wide = axis_at(root, height) + away[:, None] * np.column_stack([np.cos(azimuth), np.sin(azimuth)])
    gone = np.column_stack([height, wide])
    stem = 0.5 * (start + gone)
    stem[:, 1:] = 0.35 * start[:, 1:] + 0.65 * wide
    opened = _opened(root, cusp, across)[:, None]
    end, bent = shut + opened * (gone - shut), bent + opened * (stem - bent)
    part = np.linspace(0, 1, rows)[:, None, None]
    return (1 - part) ** 2 * start + 2 * part * (1 - part) * bent + part**2 * end


def _opened(root: Root, cusp: int, across: np.ndarray) -> np.ndarray:
    """How far each column of a cusp opens: less where it is grown together with its neighbour."""
    opened = np.full(len(across), root.opened)
    if root.fused is None or cusp not in (root.fused, (root.fused + 1) % 3):
        return opened
    from_seam = np.clip(1 - across if cusp == root.fused else 1 + across, 0, 2)
    return opened * np.clip(from_seam / 1.6, 0, 1) ** 1.5


def mesh_of(root: Root) -> np.ndarray:
    """Return the root as the 860 vertices (local, mm) that the task's mesh has."""
    azimuth = np.arange(COLUMNS) * 2 * np.pi / COLUMNS
    share = np.linspace(0, 1, ROWS)
    height, around = np.broadcast_arrays(share[:, None], azimuth)
    rings = wall_at(root, height, azimuth=around)
    cusps = [cusp_at(root, k, rows=CUSP_ROWS, columns=CUSP_COLUMNS).reshape(-1, 3) for k in range(3)]
    return np.concatenate([rings.reshape(-1, 3), rings[[0, -1]].mean(1), *cusps])


def draw_heart(rng: np.random.Generator, level: int, *, ahead: np.ndarray, depth_mm: float) -> Heart:
    """Draw a heart for a probe that looks along ``ahead`` (local, unit) from ``depth_mm`` behind the root."""
    bicuspid, calcified = rng.random() < 0.15, rng.random() < 0.2
    root = draw_root(rng, level, bicuspid=bicuspid, calcified=calcified)
    wide = root.ring + 0.6 * root.bulge + root.top * 0.25
    hinge = np.array([-1.0, -root.ring - 1, 0.0])
    slope = rng.uniform(0.75, 1.1)
    down = np.array([-np.cos(slope), -np.sin(slope), 0.0])
    upward = np.array([np.sin(slope), -np.cos(slope), 0.0])
    mitral = hinge + down * rng.uniform(14, 17)
    blobs, chains = _chambers(rng, root, wide=wide, mitral=mitral + upward * 9)
    near, far = root.ring + 0.6 * root.bulge + 1, depth_mm - rng.uniform(4, 8)
    half = max((far - near) / 2, 7.0)
    core = np.array([root.height / 2, 0.0, 0.0])
    frame = np.linalg.qr(np.stack([ahead, *np.eye(3)[[0, 2]]]).T)[0].T
    size = np.array([half, rng.uniform(22, 32), rng.uniform(22, 30)])
    blobs["la"] = (Blob(core - ahead * (far - half), size, frame, 2.0), *blobs["la"])
    cusps = [
        _cloud(cusp_at(root, k, rows=60, columns=90), root.half_mm, rng.uniform(-3, 1)) for k in range(3)
    ]
    leaflets = _mitral(rng, hinge=hinge, down=down, upward=upward, shut=root.opened > 0.2)
    lattice = ndimage.gaussian_filter(rng.normal(size=(40, 40, 40)), 1.0, mode="wrap").astype(np.float32)
    muscle = rng.uniform(8, 12)
    return Heart(
        root=root,
        blobs=blobs,
        chains=chains,
        walls={"aorta": rng.uniform(1.5, 2.4), "lv": muscle, "la": 2.2, "ra": 1.8, "rv": rng.uniform(2.5, 4)},
        septa={
            ("lv", "rv"): muscle,
            ("lv", "la"): 5.0,
            ("lv", "ra"): 4.0,
            ("la", "ra"): rng.uniform(1.5, 4.5),
            ("ra", "rv"): 1.3,
        },
        hinge=hinge,
        upward=upward,
        mitral=mitral,
        papillary=_papillary(rng),
        coronaries=_coronaries(rng, root),
        sheets=_joined([*cusps, *leaflets, _pulmonary(chains["rv"][0][0], opened=root.opened)]),
        calcium=_calcium(rng, root) if calcified else (),
        lattice=lattice / lattice.std(),
        blood_db=float(rng.uniform(-52, -40) + (0, 1, 3)[level]),
        contrast=(1.0, rng.uniform(0.75, 1.05), rng.uniform(0.5, 0.95))[level],
    )


def _chambers(
    rng: np.random.Generator, root: Root, *, wide: float, mitral: np.ndarray
) -> tuple[dict[str, tuple[Blob, ...]], dict[str, tuple[tuple[np.ndarray, np.ndarray], ...]]]:
    """Return blobs and chains of balls of each chamber but the part of the left atrium at the probe."""
    grown, beat = rng.uniform(0.9, 1.12), 0.84 if root.opened > 0.2 else 1.0

    def blob(centre: Sequence[float], radii: Sequence[float], lean: Sequence[float] = (1, 0, 0)) -> Blob:
        frame = np.linalg.qr(np.stack([unit(np.array(lean, float)), *np.eye(3)[1:]]).T)[0].T
        return Blob(np.array(centre) + rng.normal(0, 1, 3), np.array(radii) * grown, frame, 2.0)

    outflow = np.array([[-26, wide + 18, 14], [-8, wide + 13, 6], [6, wide + 10, -9], [19, wide + 1, -24],
                        [34, 0, -29], [48, -22, -24], [48, -26, 26]], float)  # fmt: skip
    outflow[:, 1:] += rng.normal(0, 1.2, (7, 2))
    caliber = np.array([16, 15, 13.5, 11.5, 12.5, 10.5, 8.5]) * grown
    appendage = (np.array([[6, -24, -20], [14, -12, -34], [15, 0, -40]], float), np.array([8.0, 6.5, 4.5]))
    vein = (np.array([[14, -42, -18], [22, -48, -48]], float), np.array([7.0, 5.5]))
    cava = (
        np.array([[6, -6, wide + 22], [40, -10, wide + 16], [75, -12, wide + 14]], float),
        np.full(3, 8.5),
    )
    blobs = {
        "lv": (blob((-34, -12, -8), (44, 25 * beat, 25 * beat), (1, 0.08, 0.3)),),
        "la": (Blob(mitral, np.full(3, 16.5), np.eye(3), 2.0),),
        "ra": (blob((-2, 0, wide + 19), (27, 25, 21)),),
        "rv": (blob((-42, 30, 14), (36, 18 * beat, 30 * beat), (1, 0.05, 0.3)),),
    }
    chains = {"lv": (), "la": (appendage, vein), "ra": (cava,), "rv": ((outflow, caliber),)}
    return blobs, chains


def _papillary(rng: np.random.Generator) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    base = np.array([[[-62, -28, 4], [-38, -22, 5]], [[-62, -12, -32], [-38, -13, -23]]], float)
    return tuple((line + rng.normal(0, 1.5, (2, 3)), np.array([6.0, 3.5])) for line in base)


def _coronaries(rng: np.random.Generator, root: Root) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Return the first centimetres of the right and the left coronary artery."""
    found = []
    for azimuth in (rng.normal(0, 0.15), 2 * THIRD + rng.normal(0, 0.15)):
        start = wall_at(root, np.array(rng.uniform(0.6, 0.8)), azimuth=np.array(azimuth))
        out = unit(np.array([0.0, np.cos(azimuth), np.sin(azimuth)]))
        turned = unit(out + np.array([rng.uniform(-0.6, 0.1), *rng.normal(0, 0.6, 2)]))
        line = np.stack([start - 2 * out, start + 4 * out, start + 4 * out + 14 * turned])
        found.append((line, np.full(3, rng.uniform(1.2, 2.0))))
    return tuple(found)


def _calcium(rng: np.random.Generator, root: Root) -> tuple[tuple[np.ndarray, float], ...]:
    """Return lumps on the cusps, most of them where these are attached."""
    spots = []
    for _ in range(int(rng.integers(2, 8))):
        sheet = cusp_at(root, int(rng.integers(3)), rows=20, columns=40)
        row = int(20 * rng.beta(1.2, 2.0))
        spots.append((sheet[row, int(rng.integers(6, 34))], float(rng.uniform(0.8, 2.4))))
    return tuple(spots)


def _mitral(
    rng: np.random.Generator, *, hinge: np.ndarray, down: np.ndarray, upward: np.ndarray, shut: bool
) -> list[Sheets]:
    """Return the anterior leaflet, which hangs from the aortic annulus, and the posterior one."""
    across, part = np.linspace(-1, 1, 50), np.linspace(0, 1, 40)[:, None, None]
    sideways = np.array([0.0, 0.0, 1.0])
    bow, width = np.cos(across * np.pi / 2)[:, None], np.sin(across * np.pi / 2)[:, None]
    span = rng.uniform(29, 33)
    front = hinge + sideways * 15 * width + down * 4 * (1 - bow)
    back = hinge + down * (4 + (span - 4) * bow) + sideways * 16 * width
    seam = hinge + down * (6 + 15 * bow) + sideways * 15 * width - upward * (2 + 4 * bow)
    if shut:
        tips = (seam - down * 0.4, seam + down * 0.4)
        knees = (0.5 * (front + seam) + upward * 1.5, 0.6 * back + 0.4 * seam + upward)
    else:
        swing = rng.uniform(0.5, 1.0)
        apart = np.array([-1.0, 0.15, 0.0])
        tips = (front + (apart * 22 * swing + (1 - swing) * down * 12) * (0.3 + 0.7 * bow),
                back + (-upward * 11 - down * 3 * (1 - swing)) * (0.4 + 0.6 * bow))  # fmt: skip
        knees = tuple(0.5 * (b + t) + upward * (-1.5) for b, t in zip((front, back), tips, strict=True))
    sheets = []
    for base, knee, tip in zip((front, back), knees, tips, strict=True):
        surface = (1 - part) ** 2 * base + 2 * part * (1 - part) * knee + part**2 * tip
        sheets.append(_cloud(surface, rng.uniform(0.6, 1.1), rng.uniform(-6, -2)))
    return sheets


def _pulmonary(outflow: np.ndarray, *, opened: float) -> Sheets:
    """Return the pulmonary valve: a shallow dome of three pouches, or a sleeve when open."""
    along = unit(outflow[4] - outflow[2])
    one = unit(np.cross(along, [0.0, 0.3, 1.0]))
    other = np.cross(along, one)
    turn, out = np.linspace(0, 2 * np.pi, 100)[None, :, None], np.linspace(0, 1, 30)[:, None, None]
    around = np.cos(turn) * one + np.sin(turn) * other
    pouch = along * (-5 * np.sin(np.pi * out) * np.abs(np.cos(1.5 * turn)))
    dome = outflow[3] + around * 11 * out + pouch
    sleeve = outflow[3] + around * (10.5 - 2 * out) + along * 9 * out
    return _cloud(dome if opened < 0.2 else sleeve, 0.35, -5.0)


def _cloud(surface: np.ndarray, half_mm: float, echo_db: float) -> Sheets:
    one, other = np.gradient(surface, axis=0), np.gradient(surface, axis=1)
    normal = np.cross(one, other).reshape(-1, 3)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    points = surface.reshape(-1, 3)
    return Sheets(points, normal, np.full(len(points), half_mm), np.full(len(points), echo_db))


def _joined(sheets: Sequence[Sheets]) -> Sheets:
    names = ("points", "normals", "half_mm", "echo_db")
    return Sheets(*(np.concatenate([getattr(s, name) for s in sheets]) for name in names))


def look(heart: Heart, points: np.ndarray) -> np.ndarray:
    """Return the index of the material (uint8) at local points (n, 3) in mm, without the leaflets."""
    parts = np.array_split(points.astype(np.float32), max(1, len(points) // SLAB))
    return np.concatenate([_look(heart, part) for part in parts])


def leaflets(heart: Heart, points: np.ndarray, *, eye: np.ndarray, blur_mm: float) -> np.ndarray:
    """Return the amplitude (n,) that leaflets echo towards ``eye`` (local, mm); softened by ``blur_mm``."""
    amplitude, sheets = np.zeros(len(points), np.float32), heart.sheets
    low, high = sheets.points.min(0) - 2, sheets.points.max(0) + 2
    near = np.flatnonzero(((points > low) & (points < high)).all(1))
    tree = KDTree(sheets.points)
    reach, which = (np.asarray(found) for found in tree.query(points[near], distance_upper_bound=2.0))
    hit = np.isfinite(reach)
    near, reach, which = near[hit], reach[hit], which[hit]
    sight = points[near] - eye
    sight /= np.linalg.norm(sight, axis=1, keepdims=True)
    facing = np.abs(np.einsum("nk,nk->n", sight, sheets.normals[which]))
    half = sheets.half_mm[which]
    cover = np.clip((half - reach) / blur_mm + 0.5, 0, 1)
    amplitude[near] = cover * 10 ** (sheets.echo_db[which] / 20) * (0.3 + 0.9 * facing)
    return amplitude


def _chain(points: np.ndarray, line: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Return the distance in mm outside a chain of balls (negative inside)."""
    best = np.full(len(points), np.inf, np.float32)
    for a, b, one, other in zip(line[:-1], line[1:], radii[:-1], radii[1:], strict=True):
        along = (b - a).astype(np.float32)
        from_a = points - a.astype(np.float32)
        part = np.clip(from_a @ along / max(float(along @ along), 1e-6), 0, 1)
        away = from_a - part[:, None] * along
        away = np.sqrt(np.einsum("nk,nk->n", away, away))
        best = np.minimum(best, away - (one + (other - one) * part).astype(np.float32))
    return best


def _aorta(root: Root, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mm outside the tube of outflow tract, root and aorta, and the share of the root's height."""
    middle = axis_at(root, points[:, 0]).astype(np.float32)
    off, over = points[:, 1] - middle[:, 0], points[:, 2] - middle[:, 1]
    azimuth = np.arctan2(over, off)
    low, high = rims(root, azimuth)
    share = (points[:, 0] - low) / (high - low)
    return np.hypot(off, over) - radius(root, share, azimuth=azimuth), share


def _look(heart: Heart, points: np.ndarray) -> np.ndarray:
    wobble = noise(heart.lattice, points, size_mm=18.0)
    tube, share = _aorta(heart.root, points)
    valve_plane = (points - heart.hinge.astype(np.float32)) @ heart.upward.astype(np.float32)
    away = {}
    for name in CHAMBERS:
        shapes = [blob.depth_mm(points) for blob in heart.blobs[name]]
        shapes += [_chain(points, line, radii) for line, radii in heart.chains[name]]
        away[name] = np.minimum.reduce(shapes).astype(np.float32) + 0.7 * wobble
    away["lv"] = np.maximum(away["lv"], valve_plane)
    away["la"] = np.maximum(away["la"], -valve_plane)
    tract = np.where(share < 0, np.maximum(tube, -(points[:, 0] + 24)), np.inf)
    away["lv"] = np.minimum(away["lv"], tract)
    orifice = np.linalg.norm(points - heart.mitral.astype(np.float32), axis=1) < 16
    material = _tissue(heart, away, wobble=wobble, orifice=orifice)
    for line, radii in heart.papillary:
        inside = (_chain(points, line, radii) < 0.6 * wobble) & (away["lv"] < 0)
        material[inside] = NAMES.index("muscle")
    above = share >= 0
    for line, radii in heart.coronaries:
        near = np.flatnonzero(np.abs(points - line[1]).max(1) < 22)
        reach = _chain(points[near], line, radii)
        rind = (reach < 0.9) & (tube[near] > 0)
        material[near[rind]] = NAMES.index("vessel")
        material[near[rind & (reach < 0)]] = NAMES.index("blood")
    ostia = material == NAMES.index("blood")
    shell = above & (tube > 0) & (tube < heart.walls["aorta"])
    mouth = np.zeros(len(points), bool)
    for line, radii in heart.coronaries:
        near = np.flatnonzero(shell & (np.abs(points - line[1]).max(1) < 22))
        mouth[near[_chain(points[near], line, radii) < 0]] = True
    material[shell & ~(mouth & ostia)] = NAMES.index("vessel")
    material[above & (tube <= 0)] = NAMES.index("blood")
    # The fibrous ring and the triangles below the commissures, where the root passes into the ventricle.
    ring = (np.abs(share) < 0.08) & (tube > 0) & (tube < 2.2)
    material[ring] = NAMES.index("fibrous")
    for spot, size in heart.calcium:
        lump = np.einsum("nk,nk->n", points - spot, points - spot) < (size * (1 + 0.25 * wobble)) ** 2
        material[lump] = NAMES.index("calcium")
    return material


def _tissue(
    heart: Heart, away: dict[str, np.ndarray], *, wobble: np.ndarray, orifice: np.ndarray
) -> np.ndarray:
    """Return materials from the distances in mm outside the chambers, which share the walls between them."""
    every = np.stack([away[name] for name in CHAMBERS])
    first = every.argmin(0)
    nearest = every.min(0)
    material = np.full(len(first), NAMES.index("fat"), np.uint8)
    material[nearest > 13 + 5 * wobble] = NAMES.index("lung")
    stuff = {"lv": "muscle", "rv": "muscle", "la": "atrial", "ra": "atrial"}
    for k in np.argsort([heart.walls[name] for name in CHAMBERS])[::-1]:
        name = CHAMBERS[k]
        material[away[name] < heart.walls[name] + 0.3 * wobble] = NAMES.index(stuff[name])
    cavity = nearest < 0
    for k, name in enumerate(CHAMBERS):
        for j, other in enumerate(CHAMBERS):
            pair = (name, other) if k < j else (other, name)
            if j == k:
                continue
            wall = cavity & (first == k) & (away[other] - away[name] < heart.septa.get(pair, 2.0))
            cavity &= ~(wall & ~orifice) if pair == ("lv", "la") else ~wall
    material[cavity] = NAMES.index("blood")
    return material
