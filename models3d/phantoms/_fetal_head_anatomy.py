"""A fetal head drawn in its own axes: skull, brain, face and neck, each part where it may be missing.

Array axes are (forward, left, up), mm, the middle of the skull at 0 and the mid-sagittal plane at left = 0.
Places of inner structures are given as parts of the skull's half axes, after the axial and mid-sagittal
planes of ISUOG's guidelines (Malinger et al., UOG 2020, 56:476).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models3d.phantoms._shapes import (
    Array,
    Space,
    blended,
    ellipsoid_at,
    random_direction,
    round_cone,
    smooth_field,
    unit,
)

# Index of a material here; 255 is what is not head.
HEAD_MATERIALS = (
    "scalp", "skull", "suture", "csf", "brain", "falx", "thalamus", "ventricle", "choroid_plexus", "cavum",
    "cavum_wall", "cerebellum", "vermis", "brainstem", "insula", "skull_base", "face", "orbit", "lens", "jaw",
    "neck", "vertebra", "trachea", "callosum", "dense_skull",
)  # fmt: skip
NOTHING = 255
INDEX = {name: index for index, name in enumerate(HEAD_MATERIALS)}

# Outer-to-outer biparietal diameter, mm, by completed weeks: rounded from Hadlock et al. 1984 and, before 14
# weeks, Salomon et al. 2003; between them linear.
_WEEKS = (11, 12, 13, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34)
_BPD_MM = (18, 21, 25, 28, 35, 42, 48, 54, 60, 66, 72, 77, 82, 86)


@dataclass(frozen=True, slots=True)
class Build:
    """The sizes of one head, and what of it is there to be seen.

    Attributes:
        radii_mm: half axes of the skull: forward (OFD / 2), left (BPD / 2), up.
        weeks: gestational age.
        detail: 0 skull and midline only, 1 every part.
        midline: whether there is a falx to be seen at all.
    """

    radii_mm: tuple[float, float, float]
    weeks: float
    detail: float
    midline: bool


def bpd_mm(weeks: float) -> float:
    """Return the mean biparietal diameter (mm) at 11-34 weeks."""
    return float(np.interp(weeks, _WEEKS, _BPD_MM))


def drawn_build(rng: np.random.Generator, *, weeks: float) -> Build:
    """Draw a head: cephalic index 0.70-0.88, height 0.72-0.88 of the length, 5 % around the chart's BPD."""
    width = bpd_mm(weeks) * rng.normal(1, 0.05)
    length = width / rng.uniform(0.70, 0.88)
    height = length * rng.uniform(0.72, 0.88)
    return Build(
        (length / 2, width / 2, height / 2),
        weeks,
        float(np.clip(1.5 * rng.random() - 0.1, 0, 1)),
        bool(rng.random() < 0.96),
    )


def head_space(build: Build, *, voxel_mm: float) -> Space:
    """Return the space a head with its face and neck takes."""
    a, b, c = build.radii_mm
    low = np.array([-1.3 * a, -1.3 * b, -2.4 * c])
    high = np.array([1.5 * a, 1.3 * b, 1.25 * c])
    f, left, u = (int(n) for n in np.ceil((high - low) / voxel_mm))
    return Space((f, left, u), voxel_mm, (float(low[0]), float(low[1]), float(low[2])))


@dataclass(frozen=True, slots=True, eq=False)
class DrawnHead:
    """A head being drawn: coordinates as parts of the skull's half axes, depth below its surface in mm."""

    rng: np.random.Generator
    build: Build
    space: Space
    parts: Array
    unit: tuple[Array, Array, Array]
    depth_mm: Array

    def fill(self, mask: Array, material: str) -> None:
        self.parts[mask] = INDEX[material]

    def ellipsoid(self, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Array:
        """Negative inside an ellipsoid given in parts of the half axes; about a part of them elsewhere."""
        local = [q - np.float32(m) for q, m in zip(self.unit, centre, strict=True)]
        return ellipsoid_at(local, np.asarray(radii))

    def both(self, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Array:
        """The same on either side of the midline, slightly unlike each other."""
        f, side, u = self.unit
        shift = self.rng.normal(0, 0.015, 3)
        local = (
            f - np.float32(centre[0]) - np.float32(shift[0]) * np.sign(side),
            np.abs(side) - np.float32(centre[1]) - np.float32(shift[1]) * np.sign(side),
            u - np.float32(centre[2]) - np.float32(shift[2]) * np.sign(side),
        )
        return ellipsoid_at(list(local), np.asarray(radii) * self.rng.normal(1, 0.05))

    def cone(self, ends: tuple[tuple[float, ...], tuple[float, ...]], radii: tuple[float, float]) -> Array:
        """Distance (mm) to a rod between two places; radii in parts of the skull's width."""
        scaled = np.asarray(ends) * np.asarray(self.build.radii_mm)
        b = self.build.radii_mm[1]
        return round_cone(self.space, scaled, radii_mm=(radii[0] * b, radii[1] * b))

    def seen(self, least_detail: float) -> bool:
        """Whether a part that needs so much detail is drawn; the draw keeps every part optional."""
        return self.build.detail >= least_detail and self.rng.random() < 0.9


def draw_head(rng: np.random.Generator, build: Build, *, voxel_mm: float) -> tuple[Array, Space]:
    """Draw a head: uint8 indices into ``HEAD_MATERIALS``, 255 where there is none, and their space."""
    space = head_space(build, voxel_mm=voxel_mm)
    head = begun(rng, build, space=space)
    fill_outside(head)
    fill_skull(head)
    _fill_brain(head)
    if build.midline:
        _fill_midline(head)
    _fill_depths(head)
    return head.parts, space


def begun(rng: np.random.Generator, build: Build, *, space: Space) -> DrawnHead:
    """Lay out the skull: an ellipsoid, wider behind, flatter below, a little uneven and unequal."""
    a, b, c = build.radii_mm
    f, side, u = space.axes()
    forward, left, up = f / np.float32(a), side / np.float32(b), u / np.float32(c)
    wider = np.float32(rng.uniform(0, 0.16))
    left = left * (1 + wider * forward - np.float32(0.25) * wider)
    up = np.where(up < 0, up * np.float32(rng.uniform(1.0, 1.25)), up) + 0 * forward
    depth = ellipsoid_at(
        [forward * np.float32(a), left * np.float32(b), up * np.float32(c)], np.array([a, b, c])
    )
    field = smooth_field(rng, space, correlation_mm=0.8 * a)
    even, odd = (field + field[:, ::-1]) / 2, (field - field[:, ::-1]) / 2
    depth = depth + np.float32(0.03 * a * rng.random()) * even + np.float32(0.012 * a * rng.random()) * odd
    parts = np.full(space.shape, NOTHING, np.uint8)
    whole = tuple(np.broadcast_to(q, space.shape) for q in (forward, left, up))
    return DrawnHead(rng, build, space, parts, (whole[0], whole[1], whole[2]), depth)


def fill_outside(head: DrawnHead) -> None:
    """Draw neck with spine and windpipe, face with orbits, nose and jaws, and the scalp."""
    rng, b = head.rng, head.build.radii_mm[1]
    bend, side = rng.uniform(-0.55, 0.3), rng.normal(0, 0.12)
    foot = (-0.45 + bend, side, -2.6)
    neck = head.cone(((-0.3, 0, -0.75), foot), (rng.uniform(0.5, 0.68), rng.uniform(0.5, 0.75)))
    face = head.ellipsoid(
        (0.52, 0, -0.72), (rng.uniform(0.4, 0.5), 0.72, rng.uniform(0.6, 0.75))
    ) * np.float32(b)
    solid = blended(face, neck, width_mm=0.25 * b)
    head.fill(solid < 0, "face")
    head.fill((neck < 0) & (face > 0), "neck")
    nose = head.ellipsoid((0.98, 0, -0.72), (0.14, 0.15, 0.18))
    head.fill(nose < 0, "face")
    if head.seen(0.15):
        spine = head.cone(((-0.42, 0, -0.95), (foot[0] - 0.15, foot[1], foot[2])), (0.16, 0.18))
        rings = np.sin(head.unit[2] * np.float32(rng.uniform(28, 45))) > -0.3
        head.fill((spine < 0) & rings, "vertebra")
    if head.seen(0.4):
        head.fill(head.cone(((-0.02, 0, -1.3), (foot[0] + 0.3, foot[1], -2.6)), (0.1, 0.1)) < 0, "trachea")
    if head.seen(0.1):
        at = (rng.uniform(0.66, 0.74), rng.uniform(0.36, 0.44), rng.uniform(-0.62, -0.5))
        size = rng.uniform(0.17, 0.22)
        head.fill(head.both(at, (0.9 * size, size * 1.1, size * 1.1)) < 0, "orbit")
        if head.seen(0.5):
            head.fill(head.both((at[0] + 0.11, at[1], at[2]), (0.04, 0.07, 0.07)) < 0, "lens")
    if head.seen(0.1):
        for height, reach in ((rng.uniform(-1.0, -0.88), 0.88), (rng.uniform(-1.32, -1.16), 0.8)):
            arch = np.hypot(head.unit[0] - 0.4, head.unit[1] * 0.9) - np.float32(0.42 * reach)
            ring = np.hypot(arch, (head.unit[2] - np.float32(height)) * 0.8)
            head.fill((ring < 0.055) & (head.unit[0] > 0.35), "jaw")
    scalp = b * rng.uniform(0.05, 0.12)
    head.fill((head.depth_mm < np.float32(scalp)) & (head.parts == NOTHING), "scalp")


def skull_mm(build: Build, space: Space) -> float:
    """Return how thick the vault is drawn: 0.8 mm at 11 weeks to 2.5 at 34, and no thinner than it can be."""
    return max(0.8 + 0.075 * (build.weeks - 11), 1.5 * space.voxel_mm)


def fill_skull(head: DrawnHead) -> None:
    """Draw the vault with its sutures and fontanelles, thin bone, and CSF for everything within."""
    rng, (f, side, u) = head.rng, head.unit
    width_mm = head.build.radii_mm[1]
    thick = skull_mm(head.build, head.space)
    shell = (head.depth_mm < 0) & (head.depth_mm >= np.float32(-thick))
    head.fill(head.depth_mm < 0, "csf")
    head.fill(shell, "skull")
    open_mm = rng.uniform(0.6, 3.2) if rng.random() < 0.85 else 0.0
    gap = np.float32(open_mm / width_mm)
    opened = (np.abs(side) < gap) & (u > 0.2) & (f > -0.75)
    opened |= (np.abs(f - np.float32(rng.uniform(0.3, 0.45)) + 0.15 * np.abs(side)) < 0.8 * gap) & (u > -0.1)
    opened |= (np.abs(f + np.float32(rng.uniform(0.6, 0.75)) - 0.2 * np.abs(side)) < 0.8 * gap) & (u > -0.2)
    fontanelle = np.abs(f - 0.4) + np.abs(side) < np.float32(rng.uniform(0.1, 0.3))
    opened |= fontanelle & (u > 0.3)
    if head.build.weeks < 14:  # the vault ossifies from its middle plates outward
        opened |= u > np.float32(rng.uniform(0.5, 1.3))
    head.fill(shell & opened, "suture")
    if head.seen(0.05):
        base = [((0.05, 0.08, -0.62), (-0.45, 0.72, -0.55)), ((0.1, 0.08, -0.6), (0.42, 0.72, -0.42))]
        for start, end in base:
            for sign in (1.0, -1.0):
                ends = ((start[0], sign * start[1], start[2]), (end[0], sign * end[1], end[2]))
                head.fill((head.cone(ends, (0.07, 0.05)) < 0) & (head.depth_mm < 0), "skull_base")


def densify(rng: np.random.Generator, parts: Array, *, space: Space, towards: np.ndarray) -> None:
    """Make about half of the vault that faces ``towards`` so dense that it shadows what is behind it."""
    across = random_direction(rng)
    across = across - towards * (towards @ across)
    cap = unit(towards + unit(across) * rng.uniform(0.8, 2.0))
    middle = np.zeros(3)
    facing = space.along(cap, middle) > np.float32(
        rng.uniform(0, 0.25) * float(np.abs(space.origin_mm).min())
    )
    parts[(parts == INDEX["skull"]) & facing] = INDEX["dense_skull"]


def _fill_brain(head: DrawnHead) -> None:
    """Draw the hemispheres, lateral ventricles and choroid plexus: these fill the early head."""
    rng, weeks = head.rng, head.build.weeks
    a = head.build.radii_mm[0]
    gap = a * rng.uniform(0.07, 0.16) * (1.0 if weeks > 16 else 0.6)
    brain = (head.depth_mm < np.float32(-gap)) & (head.parts == INDEX["csf"])
    head.fill(brain, "brain")
    if head.build.detail < 0.1:
        return
    early = float(np.clip((19 - weeks) / 7, 0, 1))
    size = 0.45 + 0.9 * early + rng.normal(0, 0.08)
    body = head.both((-0.05, 0.30 + 0.1 * early, 0.22), (0.48, 0.12 * size + 0.04, 0.16 * size + 0.05))
    horn = head.both((-0.48, 0.40, 0.06), (0.26, 0.13 * size + 0.04, 0.18 * size + 0.05))
    cavity = np.minimum(body, horn) < 0
    head.fill(cavity & brain, "ventricle")
    if head.seen(0.1):
        bulk = 0.6 + 0.5 * early + rng.normal(0, 0.08)
        plexus = head.both((-0.3, 0.36 + 0.04 * early, 0.14), (0.34 * bulk, 0.14 * bulk, 0.17 * bulk))
        head.fill((plexus < 0) & brain & cavity, "choroid_plexus")


def _fill_midline(head: DrawnHead) -> None:
    """Draw the fissure between the hemispheres with the falx in it, which stops above the deep nuclei."""
    rng, (f, side, u) = head.rng, head.unit
    width = head.build.radii_mm[1]
    inside = np.isin(head.parts, [INDEX["brain"], INDEX["csf"]]) & (head.depth_mm < 0)
    core = np.hypot(
        (f + 0.05) / np.float32(rng.uniform(0.5, 0.62)), (u + 0.1) / np.float32(rng.uniform(0.42, 0.55))
    )
    above = (core > 1) & (u > -0.35) & inside
    bow = np.float32(rng.normal(0, 0.012)) * (1 - f**2)
    off = np.abs(side - bow) * np.float32(width)
    fissure = max(rng.uniform(0.6, 1.4) * width / 40, 0.9 * head.space.voxel_mm)
    if rng.random() < 0.6:
        head.fill(above & (off < np.float32(2.2 * fissure)), "csf")
    head.fill(above & (off < np.float32(fissure)), "falx")


def _fill_depths(head: DrawnHead) -> None:
    """Draw what lies deep: callosum, cavum, thalami, third ventricle, insulae, stem and cerebellum."""
    rng, weeks, inside = head.rng, head.build.weeks, head.depth_mm < 0
    if head.seen(0.2) and weeks > 17:
        arc = np.hypot((head.unit[0] + 0.03) / 0.45, (head.unit[2] + 0.05) / 0.36) - 1
        callosum = (np.abs(arc) < 0.1) & (head.unit[2] > 0.02) & (np.abs(head.unit[1]) < 0.22)
        head.fill(callosum & inside, "callosum")
    if head.seen(0.15):
        head.fill((head.both((-0.08, 0.17, -0.12), (0.24, 0.15, 0.2)) < 0) & inside, "thalamus")
        if head.seen(0.3):
            head.fill((head.ellipsoid((-0.05, 0, -0.14), (0.16, 0.025, 0.14)) < 0) & inside, "ventricle")
    if head.seen(0.15) and weeks > 16.5:
        box = np.maximum(
            np.maximum(
                np.abs(head.unit[0] - np.float32(rng.uniform(0.25, 0.33))) / 0.15,
                np.abs(head.unit[2] - 0.06) / 0.11,
            ),
            np.abs(head.unit[1]) / np.float32(rng.uniform(0.07, 0.11)),
        )
        head.fill((box < 1.35) & inside, "cavum_wall")
        head.fill((box < 1) & inside, "cavum")
    if head.seen(0.3) and weeks > 16:
        head.fill((head.both((0.12, 0.68, -0.05), (0.2, 0.05, 0.2)) < 0) & inside, "insula")
    if head.seen(0.1):
        stem = head.cone(((-0.12, 0, -0.3), (-0.36, 0, -0.85)), (0.2, 0.15))
        head.fill((stem < 0) & inside, "brainstem")
    if head.seen(0.05):
        grown = float(np.clip((weeks - 10) / 10, 0.55, 1))
        head.fill(head.ellipsoid((-0.62, 0, -0.5), (0.28, 0.5, 0.2)) < 0, "csf")
        lobes = head.both((-0.55, 0.26, -0.45), (0.2 * grown, 0.3 * grown, 0.19 * grown))
        head.fill((lobes < 0) & inside, "cerebellum")
        if head.seen(0.3):
            head.fill((head.ellipsoid((-0.56, 0, -0.44), (0.15, 0.06, 0.16)) < 0) & inside, "vermis")
