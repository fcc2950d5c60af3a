"""Anatomy of ``other_simulator``: a first-trimester uterus as an implicit function of position.

Superellipsoids, metaballs and smooth noise; sizes of 10-14 weeks: crown-rump length 32-84 mm (age by Robinson
& Fleming, BJOG 82:702, 1975), mean sac diameter about the days of pregnancy less 30, in mm. Test data only:
shares nothing with the phantoms that networks are trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

LABELS = {"background": 0, "placenta": 1, "gestational_sac": 2, "fetus": 3}
LEVELS = ("easy", "medium", "hard")
# name: mean echo in dB, two-way attenuation in dB/mm
MATERIALS = {
    "maternal": (-15.0, 0.5), "fat": (-9.0, 0.45), "fluid": (-52.0, 0.03), "myometrium": (-18.0, 0.55),
    "decidua": (-7.0, 0.5), "placenta": (-7.0, 0.5), "plate": (-3.0, 0.4), "fibroid": (-19.0, 0.9),
    "membrane": (-20.0, 0.3), "cord": (-13.0, 0.35), "soft": (-9.0, 0.5), "brain": (-24.0, 0.3),
    "plexus": (-8.0, 0.4), "bone": (3.0, 5.0), "lung": (-6.0, 0.6), "heart": (-25.0, 0.3),
    "stomach": (-45.0, 0.05), "gas": (2.0, 9.0),
}  # fmt: skip
NAMES = tuple(MATERIALS)
ECHO_DB, LOSS_DB_MM = (np.array(column, np.float32) for column in zip(*MATERIALS.values(), strict=True))
SLAB = 1 << 20  # points looked at in one go


@dataclass(frozen=True, slots=True, eq=False)
class Blob:
    """A superellipsoid: centre and radii in mm, rows of ``axes`` are its unit axes, all (z, y, x)."""

    centre: np.ndarray
    radii: np.ndarray
    axes: np.ndarray
    power: float = 2.0

    def reach(self, points: np.ndarray) -> np.ndarray:
        """Return the relative radius of points (n, 3): below 1 inside."""
        local = np.abs((points - self.centre) @ self.axes.T / self.radii)
        if self.power == 2.0:
            return np.sqrt(np.einsum("nk,nk->n", local, local))
        return (local**self.power).sum(1) ** (1 / self.power)

    def depth_mm(self, points: np.ndarray) -> np.ndarray:
        """Return about the distance outside the surface (negative inside), along the ray from the centre."""
        reach = np.maximum(self.reach(points), 1e-3)
        return np.linalg.norm(points - self.centre, axis=1) * (1 - 1 / reach)


@dataclass(frozen=True, slots=True, eq=False)
class Fetus:
    """Flesh is a sum of metaballs; ``organs`` are painted into it in order."""

    flesh: tuple[Blob, ...]
    organs: tuple[tuple[Blob, str], ...]
    navel: np.ndarray
    head: Blob
    crl_mm: float


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Everything that is in front of the probe; the skin is at y = 0, y is depth."""

    sac: Blob
    site: np.ndarray
    thickness_mm: float
    spread_deg: float
    wall_mm: float
    uterus: Blob
    fetuses: tuple[Fetus, ...]
    threads: tuple[tuple[np.ndarray, float, str], ...]
    others: tuple[tuple[Blob, str], ...]
    lattice: np.ndarray
    contrast: float
    folds_mm: float
    amnion_mm: float | None
    septum: np.ndarray | None


def noise(lattice: np.ndarray, points: np.ndarray, *, size_mm: float, shift: float = 0.0) -> np.ndarray:
    """Return smooth noise of unit deviation and about ``size_mm`` grain at points (n, 3)."""
    place = (points / size_mm * 2 + shift).T
    return ndimage.map_coordinates(lattice, place, order=1, mode="grid-wrap")


def draw_scene(rng: np.random.Generator, level: int) -> tuple[Scene, dict[str, object]]:
    """Draw mother, uterus, sac, placenta and fetuses."""
    twins = level > 0 and rng.random() < 0.2
    crl = rng.uniform(*((46, 72) if twins else (32, 84)))
    days = 8.052 * np.sqrt(crl * 1.037) + 23.73
    mean_radius = (days - 30) * rng.uniform(0.9, 1.1) / 2 * (1.15 if twins else 1.0)
    shape = np.array([rng.uniform(1.1, 1.35), rng.uniform(0.8, 1.0), 1.0])
    radii = mean_radius * shape / np.prod(shape) ** (1 / 3)
    radii = np.clip(rng.permutation(radii), 20, 50)
    radii[np.argmax(radii)] = max(radii.max(), 0.62 * crl)
    top = rng.uniform(18, 40)
    centre = np.array([0.0, top + radii[1] + 8, 0.0]) + rng.uniform(-1, 1, 3) * (4, 2, 4) * (1 + 2 * level)
    tilted = Rotation.from_rotvec(rng.normal(0, 0.25 if level else 0.1, 3)).as_matrix()
    sac = Blob(centre, radii, tilted, power=rng.uniform(2.0, 2.6))
    site = unit(rng.normal(size=3) * (1, 1.3, 1))
    lattice = ndimage.gaussian_filter(rng.normal(size=(40, 40, 40)), 1.0, mode="wrap").astype(np.float32)
    lattice /= lattice.std()
    thickness = rng.uniform(9, 20) * (0.75 + 0.25 * crl / 60)
    uterus = Blob(
        centre + site * thickness * 0.5 + rng.normal(0, 2, 3),
        radii + rng.uniform(10, 22) + thickness * 0.35,
        tilted @ Rotation.from_rotvec(rng.normal(0, 0.15, 3)).as_matrix(),
    )
    fetuses, septum = draw_fetuses(rng, sac, crl=crl, twins=twins, site=site)
    scene = Scene(
        sac=sac,
        site=site,
        thickness_mm=thickness,
        spread_deg=rng.uniform(48, 80),
        wall_mm=rng.uniform(2, 5),
        uterus=uterus,
        fetuses=fetuses,
        threads=draw_threads(rng, sac, fetuses=fetuses, site=site),
        others=draw_others(rng, sac, uterus=uterus, level=level),
        lattice=lattice,
        contrast=(1.0, rng.uniform(0.7, 1.0), rng.uniform(0.35, 0.8))[level],
        folds_mm=rng.uniform(0.5, 2.5),
        amnion_mm=float(rng.uniform(0.5, 5)) if rng.random() < 0.6 else None,
        septum=septum,
    )
    return scene, {"crl_mm": [round(f.crl_mm, 1) for f in fetuses], "age_weeks": round(days / 7, 2)}


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


def draw_fetuses(
    rng: np.random.Generator, sac: Blob, *, crl: float, twins: bool, site: np.ndarray
) -> tuple[tuple[Fetus, ...], np.ndarray | None]:
    """Pose one fetus, or two on either side of a septum, where least of them leaves the sac."""
    long_axis = sac.axes[int(np.argmax(sac.radii))]
    sides = (-1, 1) if twins else (0,)
    fetuses = []
    for side in sides:
        size = crl * (0.75 if twins else 1.0) * (rng.uniform(0.92, 1.08) if twins else 1.0)
        middle = sac.centre + side * long_axis * 0.5 * sac.radii.max() - site * (1 if twins else 3)
        best, least = None, np.inf
        for _ in range(25):
            place = middle + rng.normal(0, 2.0, 3)
            fetus = pose(rng, place, turn=Rotation.from_quat(rng.normal(size=4)).as_matrix(), crl=size)
            points = np.concatenate(
                [b.centre + s * b.axes * b.radii[:, None] for b in fetus.flesh for s in (1, -1)]
            )
            room = 0.88 - 0.2 * np.maximum((points - sac.centre) @ site / sac.radii.mean(), 0)
            leaving = float(np.maximum(sac.reach(points) - room, 0).sum())
            if twins:
                leaving += float(np.maximum(-side * ((points - sac.centre) @ long_axis) + 1, 0).sum())
            if leaving < least:
                best, least = fetus, leaving
        assert best is not None
        fetuses.append(best)
    return tuple(fetuses), long_axis if twins else None


def pose(rng: np.random.Generator, place: np.ndarray, *, turn: np.ndarray, crl: float) -> Fetus:
    """Build a fetus of that crown-rump length, bent about its left-right axis (third local axis)."""
    bend = rng.uniform(0.4, 1.3)

    def at(along: float, front: float = 0.0, side: float = 0.0) -> np.ndarray:
        angle = bend * (along - 0.5)
        radius = 1 / bend
        local = np.array(
            [(radius - front) * np.sin(angle), radius - (radius - front) * np.cos(angle), side], float
        )
        local[1] -= radius * (1 - np.cos(bend / 4))
        return place + crl * local @ turn

    def blob(where: np.ndarray, radii: Sequence[float], along: float = 0.5) -> Blob:
        lean = Rotation.from_rotvec([0, 0, bend * (along - 0.5)]).as_matrix().T
        return Blob(where, crl * np.asarray(radii, float), lean @ turn)

    head = blob(at(0.2, 0.02), (0.195, 0.21, 0.165), 0.2)
    flesh = [
        head,
        blob(at(0.34, 0.16), (0.09, 0.08, 0.09), 0.3),
        blob(at(0.42), (0.12, 0.09, 0.09), 0.42),
        blob(at(0.57, 0.02), (0.15, 0.135, 0.135), 0.57),
        blob(at(0.73, 0.03), (0.15, 0.145, 0.14), 0.73),
        blob(at(0.9), (0.11, 0.11, 0.115), 0.9),
    ]
    organs: list[tuple[Blob, str]] = []
    limb_blobs, bones = limbs(rng, at, crl=crl)
    flesh += limb_blobs
    organs += [(Blob(head.centre, head.radii * 0.96, head.axes), "bone")]
    organs += [(Blob(head.centre, head.radii * 0.86, head.axes), "brain")]
    organs += [(blob(at(0.2, 0.02, s), (0.09, 0.06, 0.04), 0.2), "plexus") for s in (-0.07, 0.07)]
    organs += [(Blob(head.centre, head.radii * (0.84, 0.84, 0.035), head.axes), "plexus")]
    organs += [(blob(at(0.54, 0.03), (0.08, 0.09, 0.09), 0.54), "lung")]
    organs += [(blob(at(0.56, 0.06, 0.01), (0.045, 0.04, 0.045), 0.56), "heart")]
    organs += [(blob(at(0.7, 0.05, 0.06), (0.03, 0.035, 0.03), 0.7), "stomach")]
    organs += [(blob(at(s, -0.085), (0.012, 0.018, 0.02), s), "bone") for s in np.arange(0.38, 0.94, 0.035)]
    return Fetus(tuple(flesh), (*organs, *bones), at(0.78, 0.19), head, crl)


def limbs(
    rng: np.random.Generator, at: Callable[..., np.ndarray], *, crl: float
) -> tuple[list[Blob], list[tuple[Blob, str]]]:
    """Return arms and legs as strings of small balls, and the long bones in them."""
    flesh: list[Blob] = []
    bones: list[tuple[Blob, str]] = []
    for side, (root, knee, foot) in itertools.product((-1, 1), ((0.46, 0.5, 0.42), (0.88, 0.74, 0.9))):
        reach = rng.uniform(0.75, 1.0)
        joints = [
            at(root, 0.04, side * 0.11),
            at(knee + rng.normal(0, 0.03), 0.19 * reach, side * rng.uniform(0.12, 0.18)),
            at(foot + rng.normal(0, 0.04), 0.30 * reach, side * rng.uniform(0.05, 0.14)),
        ]
        for a, b in itertools.pairwise(joints):
            for share in np.linspace(0, 1, 4):
                radius = crl * 0.042 * (1.1 if a is joints[0] else 0.9)
                flesh.append(Blob(a + share * (b - a), np.full(3, radius), np.eye(3)))
            along = unit(b - a)
            frame = np.linalg.qr(np.stack([along, *np.eye(3)[np.argsort(np.abs(along))[:2]]]).T)[0].T
            length = float(np.linalg.norm(b - a))
            bones.append(
                (Blob((a + b) / 2, np.array([0.38 * length, 0.014 * crl, 0.014 * crl]), frame), "bone")
            )
    return flesh, bones


def draw_threads(
    rng: np.random.Generator, sac: Blob, *, fetuses: tuple[Fetus, ...], site: np.ndarray
) -> tuple[tuple[np.ndarray, float, str], ...]:
    """Return cords and a yolk sac's stalk as (points (n, 3), radius in mm, material)."""
    threads = []
    for fetus in fetuses:
        start, end = fetus.navel, sac.centre + site * sac.radii.min() * 0.95
        side = unit(np.cross(end - start, rng.normal(size=3)))
        share = np.linspace(0, 1, 40)[:, None]
        wave = np.sin(share * np.pi * rng.integers(1, 4)) * side * rng.uniform(2, 7)
        threads.append((start + share * (end - start) + wave, rng.uniform(1.4, 2.4), "cord"))
    return tuple(threads)


def draw_others(
    rng: np.random.Generator, sac: Blob, *, uterus: Blob, level: int
) -> tuple[tuple[Blob, str], ...]:
    """Return bladder, fibroids and bowel gas: what is not to be taken for sac, placenta or fetus."""
    found = []
    if rng.random() < (0.2, 0.4, 0.5)[level]:
        where = np.array([rng.normal(0, 12), rng.uniform(8, 14), rng.choice([-1, 1]) * rng.uniform(25, 45)])
        found.append((Blob(where, rng.uniform((12, 6, 14), (22, 12, 26)), np.eye(3), 2.3), "fluid"))
    for _ in range(int(rng.integers(0, 3)) if level else 0):
        away = unit(rng.normal(size=3))
        radius = rng.uniform(5, 13)
        where = uterus.centre + away * (uterus.radii.mean() * 0.97)
        found.append((Blob(where, np.full(3, radius) * rng.uniform(0.8, 1.2, 3), np.eye(3)), "fibroid"))
    if level == 2 and rng.random() < 0.5:
        where = np.array([rng.normal(0, 15), rng.uniform(10, 18), rng.choice([-1, 1]) * rng.uniform(30, 50)])
        found.append((Blob(where, rng.uniform((8, 1.5, 5), (20, 3, 12)), np.eye(3)), "gas"))
    del sac
    return tuple(found)


def look(scene: Scene, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return label and material index (uint8 each) of points (n, 3) in mm."""
    parts = [_look(scene, part) for part in np.array_split(points, max(1, len(points) // SLAB))]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _look(scene: Scene, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    points = points.astype(np.float32)
    label = np.zeros(len(points), np.uint8)
    material = np.full(len(points), NAMES.index("maternal"), np.uint8)
    fold = noise(scene.lattice, points, size_mm=22.0)
    stripes = np.sin(points[:, 1] / 2.2 + fold) > 0.2
    material[(points[:, 1] < 16 + 2 * fold) & stripes] = NAMES.index("fat")
    material[scene.uterus.depth_mm(points) < 1.5 * fold] = NAMES.index("myometrium")
    for blob, name in scene.others:
        material[blob.reach(points) < 1 + 0.06 * fold] = NAMES.index(name)
    outside = scene.sac.depth_mm(points) + scene.folds_mm * fold
    material[outside < scene.wall_mm] = NAMES.index("decidua")
    inside = outside < 0
    label[inside], material[inside] = LABELS["gestational_sac"], NAMES.index("fluid")
    placenta, depth = _placenta(scene, points, outside)
    label[placenta], material[placenta] = LABELS["placenta"], NAMES.index("placenta")
    material[placenta & (depth < 0.9)] = NAMES.index("plate")
    cavity = np.flatnonzero(inside & ~placenta)
    if len(cavity):
        label[cavity], material[cavity] = _in_the_sac(scene, points[cavity], outside[cavity])
    return label, material


def _placenta(scene: Scene, points: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mark a crescent about the sac's surface, thickest at its site; tell the depth below its face in mm."""
    near = np.flatnonzero(np.abs(outside) < 1.4 * scene.thickness_mm)
    away = points[near] - scene.sac.centre
    away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-3)
    angle = np.degrees(np.arccos(np.clip(away @ scene.site, -1, 1))) / scene.spread_deg
    angle += 0.07 * noise(scene.lattice, points[near], size_mm=16.0, shift=5.3)
    lobes = 1 + 0.13 * noise(scene.lattice, points[near], size_mm=12.0, shift=11.7)
    thick = scene.thickness_mm * np.sqrt(np.clip(1 - angle**2, 0, 1)) * lobes
    mask, depth = np.zeros(len(points), bool), np.full(len(points), np.inf, np.float32)
    depth[near] = outside[near] + 0.4 * thick
    mask[near] = (depth[near] > 0) & (depth[near] < thick) & (thick > 2)
    return mask, depth


def _in_the_sac(scene: Scene, points: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    label = np.full(len(points), LABELS["gestational_sac"], np.uint8)
    material = np.full(len(points), NAMES.index("fluid"), np.uint8)
    if scene.amnion_mm is not None:
        gap = scene.amnion_mm * (1 + 0.6 * noise(scene.lattice, points, size_mm=35.0, shift=2.2))
        material[np.abs(-outside - gap) < 0.35] = NAMES.index("membrane")
    if scene.septum is not None:
        across = (points - scene.sac.centre) @ scene.septum
        bent = 2 * noise(scene.lattice, points, size_mm=30.0, shift=8.1)
        material[np.abs(across + bent) < 0.7] = NAMES.index("membrane")
    for line, radius, name in scene.threads:
        for knot in line:
            close = np.einsum("nk,nk->n", points - knot, points - knot) < radius**2
            material[close] = NAMES.index(name)
    for fetus in scene.fetuses:
        field = np.zeros(len(points), np.float32)
        close = np.flatnonzero(np.linalg.norm(points - fetus.flesh[3].centre, axis=1) < 0.9 * fetus.crl_mm)
        for blob in fetus.flesh:
            field[close] += np.exp(-9.0 * (blob.reach(points[close]) - 1))
        body = np.flatnonzero(field > 1)
        label[body], material[body] = LABELS["fetus"], NAMES.index("soft")
        for blob, name in fetus.organs:
            material[body[blob.reach(points[body]) < 1]] = NAMES.index(name)
    return label, material
