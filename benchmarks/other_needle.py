"""Simulated needles, and wires, from a second, independent simulator: to test transfer, never to train.

It shares no code, scenes or acoustics with ``usvol.simulation`` and ``models3d.phantoms``. Tissue is
correlated noise with sheets, streaks, vessels and bone, laid out on the beams; the shaft is drawn as the arcs
of its near and far wall and what rings between them, or bright throughout, blurred with the beam, and dimmed
where it is steep. What a network scores here tells how far it depends on the simulator it learnt from; it
says nothing about patients.

    python benchmarks/other_needle.py --n 40 --seed 0 -o DIR            (needles; no needle in one of four)
    python benchmarks/other_needle.py --n 12 --wires -o DIR             (wires side by side in water or gel)
    usvol evaluate needle pairs --data DIR         (of wires, axis_deg and missed: one of them is labelled)

writes ``images/``, ``labels/``, ``labels.json`` and ``patients.csv`` (as the data adapter ``pairs`` reads
them), ``truth.json`` and, with ``--sheet``, a contact sheet. Levels go from easy to hard in turn.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from other_simulator import (
    LEVELS,
    Imaging,
    Probe,
    Volume,
    as_grey,
    command_line,
    sheet,
    speckle,
    write,
    write_tables,
)
from scipy import ndimage

NEEDLES_MM = {17: 1.473, 22: 0.718}
"""Outer diameter by gauge."""
_STEP_MM = (0.4, 0.35, 0.12)  # between beam samples (tilt, turn, depth), mid-depth
_LABEL_VOXELS = 0.75  # least radius of the label, in voxels


@dataclass(frozen=True, slots=True, eq=False)
class Rod:
    """A needle or wire in mm (z, y, x): tip, direction back to the hub, bow (1/mm, across it), size."""

    tip: np.ndarray
    back: np.ndarray
    across: np.ndarray
    bow: float
    radius: float
    length: float

    def points(self, along: np.ndarray) -> np.ndarray:
        """Return points (n, 3) so far behind the tip."""
        return self.tip + along[:, None] * self.back + 0.5 * self.bow * along[:, None] ** 2 * self.across

    def distance(self, world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return length behind the tip and distance from the axis of points (n, 3)."""
        away = world - self.tip
        along = away @ self.back
        return along, np.linalg.norm(world - self.points(along), axis=1)


@dataclass(frozen=True, slots=True)
class Look:
    """How a rod sounds: bright throughout or only its walls; levels in dB over tissue; gaps in mm."""

    filled: bool
    level_db: float
    steep_db: float
    gaps: tuple[tuple[float, float], ...]
    far_db: float
    ring_db: float
    rings: int
    comet_db: float
    glimmer_db: float
    shadow: float


@dataclass(frozen=True, slots=True, eq=False)
class Beams:
    """What lies on the beams (tilt, turn, depth): axes, world (mm), echo of tissue (dB), loss (dB/mm)."""

    probe: Probe
    axes: list[np.ndarray]
    step_mm: np.ndarray
    world: np.ndarray = field(repr=False)
    echo_db: np.ndarray = field(repr=False)
    loss: np.ndarray = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Samples along tilt, turn and depth."""
        return tuple(len(axis) for axis in self.axes)

    def index(self, world: np.ndarray) -> np.ndarray:
        """Return fractional indices (n, 3) of points in mm."""
        first, steps = np.array([a[0] for a in self.axes]), np.array([a[1] - a[0] for a in self.axes])
        return (self.probe.to_beams(world) - first) / steps


def simulate(seed: int, level: int, *, wires: bool) -> tuple[Volume, dict[str, object]]:
    """Return one volume with its label map, and facts about it. The same seed and level give the same."""
    rng = np.random.default_rng([seed, level, 91 + wires])
    probe = draw_probe(rng)
    spacing = np.exp(rng.uniform(np.log(0.2), np.log(0.5))) * np.exp(
        rng.normal(0, (0.02, 0.1, 0.2)[level], 3)
    )
    volume, world, seen = empty_volume(probe, np.clip(spacing, 0.18, 0.6))
    present = wires or rng.random() < 0.75
    rods = draw_wires(rng, probe) if wires else [draw_needle(rng, probe)] if present else []
    beams = lay_out(rng, probe, bare=wires, level=level)
    looks = [draw_look(rng, level=level, wires=wires) for _ in rods]
    grey = acquired(rng, beams, imaging=draw_imaging(rng, level), rods=list(zip(rods, looks, strict=True)))
    place = beams.index(world).T
    volume.grey.reshape(-1)[seen] = ndimage.map_coordinates(grey, place, order=1, mode="nearest")
    least = _LABEL_VOXELS * float(volume.spacing_mm.max())
    for rod in rods[:1]:  # of wires one: all have its direction
        along, away = rod.distance(world)
        marked = (along >= 0) & (along <= rod.length) & (away <= max(rod.radius, least))
        volume.labels.reshape(-1)[np.flatnonzero(seen)[marked]] = 1
    facts: dict[str, object] = {"seed": seed, "level": LEVELS[level], "fan": probe.kind, "wires": wires}
    facts["filled"] = bool(looks and looks[0].filled)
    facts |= {"shape": list(volume.grey.shape), "spacing_mm": volume.spacing_mm.round(4).tolist()}
    return volume, facts | truth_of(rods, probe)


def truth_of(rods: list[Rod], probe: Probe) -> dict[str, object]:
    """Return where the needle (or the first of the wires) lies, in mm of the scene (z, y, x: y is depth)."""
    if not rods:
        return {"present": False}
    rod = rods[0]
    held = probe.sees(probe.to_beams(rod.points(np.arange(0, rod.length, 0.1))))
    return {
        "present": True,
        "tip_mm": rod.tip.round(3).tolist(),
        "back": rod.back.round(5).tolist(),
        "inside_mm": round(0.1 * float(held.sum()), 1),
        "radius_mm": rod.radius,
        "bow_per_mm": rod.bow,
    }


def draw_probe(rng: np.random.Generator) -> Probe:
    """Draw a linear array moved or tilted, or a small convex one."""
    kind = str(rng.choice(["box", "box", "curved", "cone"]))
    depth = rng.uniform(25, 50)
    if kind == "box":
        return Probe(kind, 0, 0, rng.uniform(12, 19), rng.uniform(9, 18), depth)
    behind, tilt = (rng.uniform(12, 40), rng.uniform(10, 30)) if kind == "curved" else (14.0, 14.0)
    half = rng.uniform(10, 17)
    return Probe(kind, behind, tilt, half / (0.5 * depth + behind), half / (0.5 * depth + tilt), depth)


def draw_imaging(rng: np.random.Generator, level: int) -> Imaging:
    """Draw a machine for needles: finer beams than one for the womb."""

    def between(*ranges: tuple[float, float]) -> float:
        return float(rng.uniform(*ranges[level]))

    return Imaging(
        axial_mm=between((0.12, 0.2), (0.12, 0.3), (0.15, 0.4)),
        lateral_mm=between((0.3, 0.5), (0.3, 0.7), (0.4, 1.0)),
        elevation_mm=between((0.4, 0.7), (0.4, 1.1), (0.6, 1.6)),
        looks=int(rng.integers(1, 4)),
        shadow=between((0.1, 0.3), (0.2, 0.6), (0.3, 1.0)),
        haze_db=between((36, 44), (30, 42), (24, 36)),
        clutter_db=between((38, 46), (32, 42), (26, 36)),
        noise_db=between((50, 60), (44, 56), (36, 48)),
        range_db=between((48, 60), (45, 66), (40, 72)),
        headroom_db=between((18, 24), (14, 26), (10, 28)),
        gamma=between((0.9, 1.2), (0.75, 1.4), (0.6, 1.7)),
        smooth=between((0.0, 0.6), (0.0, 0.8), (0.0, 1.0)),
    )


def empty_volume(probe: Probe, spacing: np.ndarray) -> tuple[Volume, np.ndarray, np.ndarray]:
    """Return an empty volume around the fan, at most 160 samples a side; points in mm that it sees; which."""
    low, high = probe.bounds()
    spacing = np.maximum(spacing, (high - low) / 160)
    shape = np.ceil((high - low) / spacing).astype(int)
    origin = low + spacing / 2
    world = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1) * spacing + origin
    world = world.reshape(-1, 3)
    seen = probe.sees(probe.to_beams(world))
    return Volume(np.zeros(shape, np.float32), np.zeros(shape, np.uint8), spacing, origin), world[seen], seen


def draw_needle(rng: np.random.Generator, probe: Probe) -> Rod:
    """Draw a needle that comes in from a side or from above, its tip and 6 to 45 mm of it in the view."""
    most = np.array([probe.half_tilt, probe.half_width])
    for _ in range(2000):
        tip = probe.to_world(np.array([[*rng.uniform(-most, most), rng.uniform(0, probe.depth_mm)]]))[0]
        dip, heading = np.radians(rng.uniform(5, 75)), rng.uniform(0, 2 * np.pi)
        back = np.array([np.cos(dip) * np.sin(heading), -np.sin(dip), np.cos(dip) * np.cos(heading)])
        across = np.cross(back, rng.normal(size=3))
        bow = 0.0 if rng.random() < 0.6 else float(1 / rng.uniform(120, 400))
        radius = float(rng.choice(list(NEEDLES_MM.values()))) / 2
        rod = Rod(tip, back, across / np.linalg.norm(across), bow, radius, 90.0)
        held = probe.sees(probe.to_beams(rod.points(np.arange(-2.5, 90, 0.5))))
        # In one piece, and the view goes on beyond the tip.
        if 6 <= 0.5 * held[5:].sum() <= 45 and held[: int(held.sum())].all():
            return rod
    raise RuntimeError("no place for a needle")


def draw_wires(rng: np.random.Generator, probe: Probe) -> list[Rod]:
    """Draw three to eight wires side by side, right through the view."""
    dip, heading = np.radians(rng.uniform(-35, 35)), rng.uniform(0, 2 * np.pi)
    back = np.array([np.cos(dip) * np.sin(heading), -np.sin(dip), np.cos(dip) * np.cos(heading)])
    across = np.cross(back, (0, 1, 0))
    across /= np.linalg.norm(across)
    above, radius = np.cross(back, across), rng.uniform(0.05, 0.25)
    gap, count = rng.uniform(6, 12), int(rng.integers(3, 9))
    middle = np.array([0, probe.depth_mm / 2, 0])
    spots = rng.permutation([(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)])[:count]
    ends = [middle + gap * (a * across + b * above) - 60 * back for a, b in spots]
    return [Rod(end, back, across, 0.0, float(radius), 120.0) for end in ends]


def draw_look(rng: np.random.Generator, *, level: int, wires: bool) -> Look:
    """Draw how a needle or wire sounds: harder ones are dimmer, fade more when steep, and have gaps."""
    count = 0 if wires else int(rng.integers(0, (1, 3, 4)[level]))
    places = [rng.uniform(3, 30) for _ in range(count)]
    return Look(
        filled=wires or rng.random() < 0.4,
        level_db=rng.uniform(*((24, 34), (18, 32), (14, 26))[level]) - (4 if wires else 0),
        steep_db=rng.uniform(*((4, 10), (5, 14), (6, 16))[level]),
        gaps=tuple((place, place + rng.uniform(1, 5)) for place in places),
        far_db=-60 if wires else rng.uniform(-16, -5),
        ring_db=rng.uniform(-14, -6),
        rings=0 if wires or rng.random() < 0.4 else int(rng.integers(1, 5)),
        comet_db=-60 if wires or rng.random() < 0.5 else rng.uniform(-32, -18),
        glimmer_db=rng.uniform(0.5, 4),
        shadow=0 if wires else rng.uniform(0, 0.6),
    )


def lay_out(rng: np.random.Generator, probe: Probe, *, bare: bool, level: int) -> Beams:
    """Lay tissue, or bare water or gel, out on the beams."""
    middle = 0.6 * probe.depth_mm
    scale = np.ones(2) if probe.kind == "box" else middle + np.array([probe.tilt_mm, probe.turn_mm])
    extents = np.array([*np.array([probe.half_tilt, probe.half_width]) * 2 * scale, probe.depth_mm])
    counts = np.clip(extents / _STEP_MM, 24, (110, 120, 420)).astype(int)
    halves = ((-probe.half_tilt, probe.half_tilt), (-probe.half_width, probe.half_width), (0, probe.depth_mm))
    axes = [np.linspace(*ends, count) for ends, count in zip(halves, counts, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    world = probe.to_world(grid.reshape(-1, 3)).reshape(grid.shape).astype(np.float32)
    step = extents / (counts - 1)
    shape = grid.shape[:3]
    if bare:
        gel = rng.random() < 0.5
        echo = np.full(shape, -14.0 if gel else -55.0, np.float32)
        return Beams(probe, axes, step, world, echo, np.full(shape, 0.02, np.float32))
    echo, loss = tissue(rng, world, step=step, level=level)
    return Beams(probe, axes, step, world, echo, loss)


def field_of(rng: np.random.Generator, shape: tuple[int, ...], *, sigma: np.ndarray) -> np.ndarray:
    """Return smooth noise of mean 0 and deviation 1, blurred by so many samples."""
    noise = ndimage.gaussian_filter(
        rng.standard_normal(shape, np.float32), np.minimum(sigma, 40), truncate=2.5
    )
    return (noise - noise.mean()) / noise.std()


def tissue(
    rng: np.random.Generator, world: np.ndarray, *, step: np.ndarray, level: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return echo (dB) and loss (dB/mm) of muscle or gland with streaks, sheets, vessels, perhaps bone."""
    shape = world.shape[:3]
    echo = -13 + rng.uniform(1, 3) * field_of(rng, shape, sigma=np.full(3, rng.uniform(1.5, 5)) / step)
    streaks = np.array([rng.uniform(0.3, 6), rng.uniform(1.5, 9), rng.uniform(0.15, 0.4)]) / step
    bright = field_of(rng, shape, sigma=streaks)
    echo += rng.uniform(1, (3, 5, 7)[level]) * np.clip(bright - 0.6, 0, 2.5)
    loss = np.full(shape, 0.45, np.float32)
    bend = np.stack([rng.normal(0, 0.12, 4), rng.normal(0, 0.12, 4)], 1)
    for slope in bend[: int(rng.integers(0, 5))]:  # sheets of fascia
        height = world[..., 1] - rng.uniform(3, world[..., 1].max())
        height = height - slope[0] * world[..., 0] - slope[1] * world[..., 2]
        thick = rng.uniform(0.15, 0.4)
        echo += rng.uniform(6, (10, 14, 18)[level]) * np.exp(-0.5 * (height / thick) ** 2)
    for _ in range(int(rng.integers(0, 3))):  # vessels
        through = rng.normal(size=3) * (1, 0.3, 1)
        through /= np.linalg.norm(through)
        away = world - world.reshape(-1, 3)[rng.integers(world[..., 0].size)]
        away = np.linalg.norm(away - (away @ through)[..., None] * through, axis=-1)
        radius = rng.uniform(1.2, 4)
        echo = np.where(away < radius, -48, echo + 5 * np.exp(-0.5 * ((away - radius) / 0.25) ** 2))
        loss = np.where(away < radius, 0.02, loss)
    if rng.random() < (0.1, 0.3, 0.4)[level]:  # bone near the bottom
        top = rng.uniform(0.75, 0.95) * world[..., 1].max() + rng.normal(0, 0.02) * world[..., 2] ** 2
        under = world[..., 1] - top
        echo = np.where(under > 0, np.where(under < 0.5, 14, -20), echo)
        loss = np.where(under > 0, 6.0, loss)
    return echo.astype(np.float32), loss.astype(np.float32)


def acquired(
    rng: np.random.Generator, beams: Beams, *, imaging: Imaging, rods: list[tuple[Rod, Look]]
) -> np.ndarray:
    """Return grey levels 0-1 along the beams."""
    spread = np.array([imaging.elevation_mm, imaging.lateral_mm, imaging.axial_mm]) / beams.step_mm
    loss = beams.loss - 0.45
    metal = np.zeros(beams.shape, np.float32)
    for rod, look in rods:
        metal += drawn(rng, beams, rod=rod, look=look)
        loss = loss + look.shadow * (metal > 0)
    shade = imaging.shadow * np.cumsum(ndimage.gaussian_filter(loss, (0.7, 0.7, 0)), 2) * beams.step_mm[2]
    passed = 10 ** (-np.clip(shade, -9, 45) / 20)
    signal = ndimage.gaussian_filter(10 ** (beams.echo_db / 20) * passed, 0.6 * spread)
    # A blurred line keeps its level on the axis: what is drawn is scaled to the peak of the blurred one.
    narrow = ndimage.gaussian_filter(metal, spread) * passed
    wide = ndimage.gaussian_filter(metal, spread * (3, 3, 1)) * passed
    peak = np.quantile(narrow[narrow > 0], 0.99) if metal.any() else 1.0
    echo = (narrow + 0.15 * wide) / peak * 10 ** (-13 / 20)
    if rods:
        echo *= 10 ** (max(look.level_db for _, look in rods) / 20)
    clutter = ndimage.gaussian_filter(signal, (4, 5, 6)) * 10 ** (-imaging.clutter_db / 20)
    grain = speckle(rng, beams.shape, spread=spread, looks=imaging.looks)
    picture = np.hypot((signal + clutter) * grain, echo * (0.75 + 0.25 * grain))
    haze = 10 ** (-imaging.haze_db / 20) * np.exp(-beams.axes[2] / 12).astype(np.float32)
    picture += haze * speckle(rng, beams.shape, spread=spread * 1.5, looks=1)
    hiss = 10 ** ((-imaging.noise_db + 12 * beams.axes[2] / beams.axes[2][-1]) / 20)
    picture += hiss.astype(np.float32) * speckle(rng, beams.shape, spread=np.full(3, 0.4), looks=1)
    return as_grey(picture, imaging)


def drawn(rng: np.random.Generator, beams: Beams, *, rod: Rod, look: Look) -> np.ndarray:
    """Draw a rod's echoes on the beams: arcs of its walls that face the probe, what rings, its comet tail."""
    along = np.arange(0, rod.length, 0.06)
    axis = rod.points(along)
    lowest, highest = beams.world.reshape(-1, 3).min(0) - 1, beams.world.reshape(-1, 3).max(0) + 1
    kept = ((axis > lowest) & (axis < highest)).all(1)
    along, axis = along[kept], axis[kept]
    glimmer = ndimage.gaussian_filter1d(rng.standard_normal(len(along)), rng.uniform(8, 60))
    db = look.glimmer_db * glimmer / max(float(glimmer.std()), 1e-6)
    for start, end in look.gaps:
        db -= 25 / (1 + np.exp((np.abs(along - (start + end) / 2) - (end - start) / 2) / 0.2))
    steep = abs(float(rod.back[1]))
    db -= look.steep_db * steep**2
    metal = np.zeros(beams.shape, np.float32)
    down = np.array([0, 1.0, 0]) - rod.back[1] * rod.back
    down /= max(float(np.linalg.norm(down)), 1e-6)
    aside = np.cross(rod.back, down)
    below = np.array([0, 1.0, 0])
    for depth, level in echoes(look, rod):
        for turn in np.radians((-40, -20, 0, 20, 40)):
            near = axis - rod.radius * (np.cos(turn) * down + np.sin(turn) * aside) + depth * below
            put(metal, beams, world=near, amount=np.cos(turn) * 10 ** ((db + level) / 20))
    if look.filled:
        for _ in range(30):
            radius, turn = rod.radius * np.sqrt(rng.random(len(axis))), 2 * np.pi * rng.random(len(axis))
            spots = axis + radius[:, None] * (np.cos(turn)[:, None] * down + np.sin(turn)[:, None] * aside)
            put(metal, beams, world=spots, amount=10 ** (db / 20))
    return metal


def echoes(look: Look, rod: Rod) -> list[tuple[float, float]]:
    """Return depth below the near wall (mm) and level (dB) of what is drawn as arcs."""
    depths = np.arange(0.3, 8, 0.12).tolist() if look.comet_db > -50 else []
    comet = [(depth, look.comet_db - 2.2 * depth) for depth in depths]
    if look.filled:
        return comet
    ringing = [((n + 1) * 2 * rod.radius, n * look.ring_db + look.far_db) for n in range(1, look.rings + 1)]
    return [(0.0, 0.0), (2 * rod.radius, look.far_db), *ringing, *comet]


def put(metal: np.ndarray, beams: Beams, *, world: np.ndarray, amount: np.ndarray) -> None:
    """Add amounts at points (n, 3) to the nearest samples on the beams."""
    place = beams.index(world)
    low = np.floor(place).astype(int)
    for corner in np.ndindex(2, 2, 2):
        spot = low + corner
        share = np.prod(np.where(np.array(corner) == 1, place - low, 1 - (place - low)), axis=1)
        inside = ((spot >= 0) & (spot < metal.shape)).all(1)
        np.add.at(metal, tuple(spot[inside].T), (amount * share)[inside])


def main() -> None:
    """Write the test set."""
    parser = command_line(__doc__)
    parser.add_argument("--wires", action="store_true", help="wires in water or gel in place of needles")
    options = parser.parse_args()
    truth, rows = [], []
    for seed in range(options.seed, options.seed + options.n):
        level = seed % len(LEVELS) if options.level == "mixed" else LEVELS.index(options.level)
        name = f"other_{'wires' if options.wires else 'needle'}_{LEVELS[level]}_{seed:04d}"
        volume, facts = simulate(seed, level, wires=options.wires)
        # Level 0: the header says where depth lies, for a needle's way in depends on it.
        how = write(options.out, name, volume=volume, rng=np.random.default_rng([seed, 92]), level=0)
        truth.append({"case": name, "simulated": True, **facts, **how})
        print(name, facts["fan"], facts["shape"], facts["spacing_mm"], facts.get("inside_mm"), flush=True)
        if options.sheet:
            rows.append((name, volume))
    write_tables(options.out, truth, labels={"needle": 1})
    if options.sheet:
        sheet(rows, options.sheet, about=1)


if __name__ == "__main__":
    main()
