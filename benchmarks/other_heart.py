"""How ``aortic_valve`` does on volumes of a second, independent simulator: a test of transfer.

The transoesophageal volumes share no code, anatomy or acoustics with what the networks learnt from, and none
is ever trained on. The anatomy is that of ``other_heart_anatomy``; fan, speckle, attenuation, shadows, haze,
noise and grey map are drawn anew for each seed, in three levels in turn. The numbers say nothing about
patients.

    python benchmarks/other_heart.py --n 24 --seed 0 --absent 8 --sheet sheet.png --json rows.json

simulates in memory, runs the task on each volume and prints the recipe's measures with 95 % intervals.
``--no-task`` only simulates. Lengths are mm, coordinates (z, y, x) with the probe at the origin and depth
along y.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from other_anatomy import noise, unit
from other_heart_anatomy import (
    ECHO_DB,
    LOSS_DB_MM,
    NAMES,
    Heart,
    draw_heart,
    leaflets,
    look,
    mesh_of,
)
from other_simulator import LEVELS, Imaging, Probe, speckle
from scipy import ndimage
from scipy.spatial.transform import Rotation

from models3d.tasks._aortic_measures import measures
from models3d.tasks._aortic_mesh import N_WALL, SHEETS, box_of, landmarks
from usvol import pipeline, registry
from usvol.metrics import Estimate
from usvol.scan import Calibration, Grid, Scan, Source, Trust, vec3
from usvol.training.cases import Case
from usvol.training.loop import recipe_of
from usvol.training.recipe import Recipe, Row

SIMULATED = "simulated by another simulator than the one the networks learnt from; no patients"
ABSENT_SEED = 10_000  # what volumes without a valve add to the seed
LEVEL_MEASURES = ("position_mm", "corner_mm", "axis_deg", "mesh_mm", "failure_rate", "no_valve_recall")
_TRIES = 400


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """Where the probe is: local = ``rotation``ᵀ (world - ``centre_mm``), in mm."""

    probe: Probe
    rotation: np.ndarray
    centre_mm: np.ndarray

    def to_world(self, local: np.ndarray) -> np.ndarray:
        """Map local points (n, 3) to the world, in mm."""
        return local @ self.rotation.T + self.centre_mm

    def to_local(self, world: np.ndarray) -> np.ndarray:
        """Undo ``to_world``."""
        return (world - self.centre_mm) @ self.rotation

    def seen(self, local: np.ndarray) -> np.ndarray:
        """Tell which local points lie in the fan."""
        return self.probe.sees(self.probe.to_beams(self.to_world(local)))


def simulate(seed: int, level: str, *, absent: bool = False) -> tuple[Scan, dict[str, Any]]:
    """Return one volume (uint8) and its truth in the form the recipe reads. The same arguments give the same.

    With ``absent`` the fan points at chambers, and no part of the root is in view.
    """
    step = LEVELS.index(level)
    rng = np.random.default_rng([seed, step, 771 if absent else 770])
    heart, view = _elsewhere(rng, step) if absent else _at_the_root(rng, step)
    imaging = draw_imaging(rng, step)
    axes = beam_axes(view.probe)
    beams = acquire(heart, view, imaging=imaging, rng=rng)
    grid = draw_grid(rng, view.probe, level=step)
    data = torch.from_numpy(convert(beams, view.probe, axes=axes, grid=grid))[None, None]
    source = Source(calibration=Calibration(Trust.MEASURED, "drawn by the simulator"))
    scan = Scan(data, grid, source=source, history=(f"simulated other_heart, seed {seed}, {level}",))
    return scan, {**truth_of(heart, view, grid=grid, absent=absent), "seed": seed, "level": level}


def truth_of(heart: Heart, view: View, *, grid: Grid, absent: bool) -> dict[str, Any]:
    """Return what there is to be found, in mm and world (z, y, x), as plain values."""
    vertices = view.to_world(mesh_of(heart.root))
    wall = vertices[:N_WALL]
    index = grid.to_index(wall)
    inside = ((index > -0.5) & (index < np.array(grid.shape) - 0.5)).all(1)
    seen = float((inside & view.probe.sees(view.probe.to_beams(wall))).mean())
    facts: dict[str, Any] = {
        "present": not absent,
        "in_view": 0.0 if absent else seen,
        "visible": "absent" if absent else "whole" if seen >= 0.999 else "partial",
        "cusps": 3 if heart.root.fused is None else 2,
        "calcified": bool(heart.calcium),
        "opening": round(heart.root.opened, 4),
        "phase": 0.2 if heart.root.opened > 0.1 else 0.7,
        "fan_deg": [
            round(2 * float(np.degrees(a)), 1) for a in (view.probe.half_tilt, view.probe.half_width)
        ],
        "fan_mm": round(view.probe.depth_mm, 1),
        "box": None,
        "vertices_mm": None,
        "measures": None,
    }
    if absent:
        return facts
    centre, size, rotation = box_of(vertices)
    return facts | {
        "box": {"centre_mm": centre.tolist(), "size_mm": size.tolist(), "rotation": rotation.tolist()},
        "vertices_mm": vertices.tolist(),
        "landmarks_mm": {name: point.tolist() for name, point in landmarks(vertices).items()},
        "measures": measures(vertices),
    }


def _turn_onto(rng: np.random.Generator, *, ahead: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """Return a rotation, rolled at random, that takes the unit vector ``ahead`` to ``onto``."""
    frames = []
    for vector in (ahead, onto):
        side = unit(np.cross(vector, np.eye(3)[int(np.abs(vector).argmin())]))
        frames.append(np.stack([vector, side, np.cross(vector, side)], 1))
    rolled = Rotation.from_rotvec(onto * rng.uniform(0, 2 * np.pi)).as_matrix()
    return rolled @ frames[1] @ frames[0].T


def _tilted(rng: np.random.Generator, *, most_deg: float) -> np.ndarray:
    """Draw how the probe, behind the heart, looks at it (local): ahead or askew."""
    askew = np.radians(most_deg) * np.sqrt(rng.random())
    turn = rng.uniform(0, 2 * np.pi)
    return np.array([np.sin(askew) * np.cos(turn), np.cos(askew), np.sin(askew) * np.sin(turn)])


def _draw_fan(rng: np.random.Generator, *, least_mm: float) -> Probe:
    """Draw a matrix probe's pyramid of 60-95 degrees either way and 80-140 mm depth."""
    halves = np.radians(rng.uniform(30, 47.5, 2))
    depth = rng.uniform(np.clip(least_mm, 80, 135), 140)
    return Probe("cone", 0.0, 0.0, float(halves[0]), float(halves[1]), float(depth))


def _at_the_root(rng: np.random.Generator, level: int) -> tuple[Heart, View]:
    """Draw a heart and a view that shows the whole root, up to 40 mm off the fan's axis."""
    ahead = _tilted(rng, most_deg=(40, 50, 60)[level])
    distance = rng.uniform(38, 80)
    heart = draw_heart(rng, level, ahead=ahead, depth_mm=distance)
    mesh = mesh_of(heart.root)
    core = np.array([heart.root.height / 2, 0.0, 0.0])
    around = core + 1.06 * (mesh[:N_WALL] - core)
    for attempt in range(_TRIES):
        distance = min(distance + (attempt > _TRIES / 2) * 0.5, 80)
        probe = _draw_fan(rng, least_mm=distance + 24)
        share = 1 - 0.8 * attempt / _TRIES
        tilt, turn = rng.uniform(-1, 1, 2) * (probe.half_tilt, probe.half_width) * share
        place = probe.to_world(np.array([[tilt, turn, distance]]))[0]
        rotation = _turn_onto(rng, ahead=ahead, onto=unit(place))
        view = View(probe, rotation, place - rotation @ core)
        if np.hypot(place[0], place[2]) <= 40 and view.seen(around).all():
            return heart, view
    raise RuntimeError("no view shows the whole root")


def _elsewhere(rng: np.random.Generator, level: int) -> tuple[Heart, View]:
    """Draw a heart and a view of its chambers without the root: past it from behind, or from the stomach."""
    ahead = _tilted(rng, most_deg=30)
    distance = rng.uniform(45, 75)
    heart = draw_heart(rng, level, ahead=ahead, depth_mm=distance)
    mesh = mesh_of(heart.root)
    core = np.array([heart.root.height / 2, 0.0, 0.0])
    gastric = rng.random() < 0.4
    for attempt in range(_TRIES):
        if gastric or attempt > _TRIES / 2:
            here = np.array([-45.0, -48.0, 0.0]) + rng.normal(0, 5, 3)
            target = np.array([-42.0, -10.0, -10.0]) + rng.normal(0, 8, 3)
        else:
            here = core - ahead * distance
            target = np.array([rng.uniform(-80, 15), rng.uniform(-45, 10), rng.uniform(-60, 60)])
        probe = _draw_fan(rng, least_mm=80)
        narrow = 1 - 0.3 * attempt / _TRIES
        probe = Probe("cone", 0, 0, probe.half_width * narrow, probe.half_tilt * narrow, rng.uniform(80, 110))
        rotation = _turn_onto(rng, ahead=unit(target - here), onto=np.array([0.0, 1.0, 0.0]))
        view = View(probe, rotation, -rotation @ here)
        if not view.seen(core + 1.1 * (mesh - core)).any() and _blood(heart, view, rng=rng) > 0.2:
            return heart, view
    raise RuntimeError("every view shows the root")


def _blood(heart: Heart, view: View, *, rng: np.random.Generator) -> float:
    """Return about how much of the fan's volume is blood."""
    half = (view.probe.half_tilt, view.probe.half_width)
    depth = view.probe.depth_mm * rng.random((2000, 1)) ** (1 / 3)
    beams = np.hstack([rng.uniform(-1, 1, (2000, 2)) * half, depth])
    return float((look(heart, view.to_local(view.probe.to_world(beams))) == NAMES.index("blood")).mean())


def draw_imaging(rng: np.random.Generator, level: int) -> Imaging:
    """Draw a machine; lateral sizes are mm at 60 mm depth. Harder ones are blurred, shadowed and noisy."""

    def between(*ranges: tuple[float, float]) -> float:
        return float(rng.uniform(*ranges[level]))

    return Imaging(
        axial_mm=between((0.3, 0.5), (0.35, 0.65), (0.45, 0.9)),
        lateral_mm=between((0.7, 1.0), (0.8, 1.4), (1.1, 2.0)),
        elevation_mm=between((0.8, 1.2), (0.9, 1.7), (1.2, 2.4)),
        looks=int(rng.integers(1, 3)),
        shadow=between((0.4, 0.9), (0.6, 1.2), (0.8, 1.5)),
        haze_db=between((30, 38), (24, 34), (18, 28)),
        clutter_db=between((30, 38), (24, 34), (19, 28)),
        noise_db=between((48, 58), (40, 52), (33, 45)),
        range_db=between((34, 44), (31, 48), (28, 52)),
        headroom_db=between((5, 9), (4, 11), (2, 13)),
        gamma=between((1.0, 1.4), (0.9, 1.6), (0.8, 1.9)),
        smooth=between((0.3, 0.8), (0.2, 0.9), (0.0, 1.1)),
    )


def beam_axes(probe: Probe) -> list[np.ndarray]:
    """Return the tilts and turns (radians) and depths (mm) that are sampled."""
    tilts, turns = (int(np.clip(2 * half / 0.0155, 64, 110)) for half in (probe.half_tilt, probe.half_width))
    return [
        np.linspace(-probe.half_tilt, probe.half_tilt, tilts),
        np.linspace(-probe.half_width, probe.half_width, turns),
        np.linspace(0, probe.depth_mm, int(probe.depth_mm / 0.5)),
    ]


def acquire(heart: Heart, view: View, *, imaging: Imaging, rng: np.random.Generator) -> np.ndarray:
    """Return grey levels 0-1 along the beams (tilt, turn, depth)."""
    axes = beam_axes(view.probe)
    shape = tuple(len(axis) for axis in axes)
    world = view.probe.to_world(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3))
    points = view.to_local(world).astype(np.float32)
    material = look(heart, points)
    echo_db = ECHO_DB[material]
    blood = material == NAMES.index("blood")
    echo_db = np.where(blood, heart.blood_db, -8 + heart.contrast * (echo_db + 8))
    echo_db += np.where(blood, 1.0, 1.8) * noise(heart.lattice, points, size_mm=5.0, shift=3.1)
    loose = material == NAMES.index("fat")
    echo_db += np.where(loose, 3.5, 0.0) * noise(heart.lattice, points, size_mm=14.0, shift=9.7)
    thin = leaflets(heart, points, eye=view.to_local(np.zeros(3)), blur_mm=0.7).reshape(shape)
    loss = LOSS_DB_MM[material].reshape(shape) + 0.4 * np.minimum(thin, 1)
    # What lies on the skin of the probe is the wall of the gullet, whatever chamber was drawn there.
    gullet = (axes[2] < rng.uniform(2.5, 5)).astype(np.float32)
    echo_db = echo_db.reshape(shape) * (1 - gullet) - 14 * gullet
    step_mm = np.array([60 * (axes[0][1] - axes[0][0]), 60 * (axes[1][1] - axes[1][0]), axes[2][1]])
    spread = np.array([imaging.elevation_mm, imaging.lateral_mm, imaging.axial_mm]) / step_mm
    signal = _lit(echo_db, thin, loss=loss, imaging=imaging, step_mm=float(step_mm[2]))
    signal *= _dropout(rng, shape, level_db=3 + 60 / imaging.haze_db)
    signal = ndimage.gaussian_filter(signal.astype(np.float32), 0.6 * spread)
    clutter = ndimage.gaussian_filter(signal, (5, 5, 2)) * 10 ** (-imaging.clutter_db / 20) * 3
    haze = 10 ** (-imaging.haze_db / 20) * np.exp(-axes[2] / rng.uniform(12, 30)).astype(np.float32)
    picture = (signal + clutter) * speckle(rng, shape, spread=spread, looks=imaging.looks)
    picture += haze * speckle(rng, shape, spread=spread * 1.4, looks=1)
    hiss = 10 ** ((-imaging.noise_db + 14 * (axes[2] / view.probe.depth_mm) ** 2) / 20)
    picture += hiss.astype(np.float32) * speckle(rng, shape, spread=np.full(3, 0.4), looks=1)
    return _as_grey(picture, imaging)


def _lit(
    echo_db: np.ndarray, thin: np.ndarray, *, loss: np.ndarray, imaging: Imaging, step_mm: float
) -> np.ndarray:
    """Return amplitudes: surfaces across the beam glint, and what lies behind others is shaded."""
    glint = np.abs(np.diff(ndimage.gaussian_filter1d(echo_db, 1.0), axis=2, prepend=echo_db[..., :1]))
    shade_db = imaging.shadow * np.cumsum(ndimage.gaussian_filter(loss, (0.6, 0.6, 0)), 2) * step_mm
    bright = 10 ** (echo_db / 20) * (0.8 + 0.14 * np.clip(glint - 1, 0, 10)) + thin
    return bright * 10 ** (-np.clip(shade_db, -3, 40) / 20)


def _dropout(rng: np.random.Generator, shape: tuple[int, ...], *, level_db: float) -> np.ndarray:
    """Return a gain (tilt, turn, 1) that varies over the face of the probe, as contact does."""
    coarse = ndimage.gaussian_filter(rng.standard_normal(shape[:2]), 9, mode="reflect")
    return 10 ** (-np.abs(coarse / coarse.std() * level_db / 2) / 20)[..., None].astype(np.float32)


def _as_grey(picture: np.ndarray, imaging: Imaging) -> np.ndarray:
    """Compress the logarithm of the amplitude to grey levels 0-1; walls, a small part of it, are white."""
    decibel = 20 * np.log10(np.maximum(picture, 1e-6))
    white = np.quantile(decibel[::2, ::2, ::3], 0.9) + imaging.headroom_db
    grey = np.clip((decibel - white) / imaging.range_db + 1, 0, 1) ** imaging.gamma
    return ndimage.gaussian_filter(grey, imaging.smooth)


def draw_grid(rng: np.random.Generator, probe: Probe, *, level: int) -> Grid:
    """Draw the samples about the fan: 96 to 200 a side, 0.4 to 1.2 mm, uneven in harder ones."""
    edge = np.linspace(-1, 1, 9)
    rim = np.stack(np.meshgrid(edge * probe.half_tilt, edge * probe.half_width, (0, 1), indexing="ij"), -1)
    world = probe.to_world(rim.reshape(-1, 3) * (1, 1, probe.depth_mm))
    low, high = world.min(0), np.maximum(world.max(0), (0, probe.depth_mm, 0))
    wanted = np.exp(rng.uniform(np.log(0.5), np.log(1.2), 1)) * np.exp(
        rng.normal(0, (0.03, 0.12, 0.25)[level], 3)
    )
    size = high - low
    spacing = np.clip(wanted, np.maximum(size / 200, 0.4), np.minimum(size / 96, 1.2))
    count = np.clip(np.ceil(size / spacing - 1e-6), 96, 200).astype(int)
    return Grid((int(count[0]), int(count[1]), int(count[2])), vec3(spacing), vec3(low + spacing / 2))


def convert(beams: np.ndarray, probe: Probe, *, axes: Sequence[np.ndarray], grid: Grid) -> np.ndarray:
    """Sample the beams on a grid as uint8 (z, y, x); 0 outside the fan."""
    first, steps = np.array([a[0] for a in axes]), np.array([a[1] - a[0] for a in axes])
    volume = np.zeros(grid.shape, np.uint8)
    rest = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape[1:]), indexing="ij"), -1).reshape(-1, 2)
    for z in range(grid.shape[0]):
        place = probe.to_beams(grid.to_world(np.column_stack([np.full(len(rest), z), rest])))
        seen = probe.sees(place)
        grey = ndimage.map_coordinates(beams, ((place[seen] - first) / steps).T, order=1, mode="nearest")
        volume[z].reshape(-1)[seen] = np.clip(255 * grey, 1, 255).round()
    return volume


def cases(seeds: range, *, level: str, absent: bool = False) -> Iterator[tuple[Scan, Case]]:
    """Yield volumes with their truth."""
    for seed in seeds:
        start = time.perf_counter()
        name = LEVELS[seed % len(LEVELS)] if level == "mixed" else level
        scan, truth = simulate(seed, name, absent=absent)
        label = f"other_heart_{name}_{'absent_' if absent else ''}{seed:05d}"
        print(f"{label} {scan.grid.shape} {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
        yield scan, Case(label, label, Path(), truth, dataset="other_heart")


def table(estimates: Mapping[str, Estimate], *, title: str) -> str:
    """Return a markdown table of measures with their 95 % intervals."""
    lines = [f"| {title} | value | 95 % low | 95 % high |", "|---|---|---|---|"]
    lines += [f"| {name} | {e.value:.3f} | {e.low:.3f} | {e.high:.3f} |" for name, e in estimates.items()]
    return "\n".join(lines)


def sheet(rows: Sequence[tuple[Scan, Case]], path: Path) -> None:
    """Draw planes z, y, x, short and long axis through the root, with the true mesh."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panes = plt.subplots(len(rows), 7, figsize=(21, 3 * len(rows)), squeeze=False)
    for line, (scan, case) in zip(panes, rows, strict=True):
        line[0].set_ylabel(case.id, fontsize=7)
        box, vertices = case.reference["box"], case.reference["vertices_mm"]
        middle = scan.grid.to_world(np.array(scan.grid.shape) / 2)
        centre = np.array(box["centre_mm"]) if box else middle
        axes = np.array(box["rotation"]) if box else np.eye(3)
        world = np.eye(3)
        views = [
            (world[:, 1], world[:, 2], 70),
            (world[:, 0], world[:, 2], 70),
            (world[:, 1], world[:, 0], 70),
        ]
        views += [(axes[:, 1], axes[:, 2], 32)] * 2 + [(axes[:, 0], axes[:, 1], 45)] * 2
        for k, (pane, (down, across, reach)) in enumerate(zip(line, views, strict=True)):
            ticks = np.linspace(-reach, reach, 200)
            plane = centre + ticks[:, None, None] * down + ticks[None, :, None] * across
            index = np.moveaxis(scan.grid.to_index(plane), -1, 0)
            grey = ndimage.map_coordinates(scan.data[0, 0].numpy().astype(np.float32), index, order=1)
            pane.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=(-reach, reach, reach, -reach))
            pane.set_xticks([])
            pane.set_yticks([])
            if vertices and k not in (3, 5):
                cut = _cut(np.array(vertices) - centre, down=down, across=across)
                pane.plot(cut[..., 0].T, cut[..., 1].T, color="tab:orange", linewidth=0.8)
    figure.tight_layout()
    figure.savefig(path, dpi=60)
    plt.close(figure)


def _cut(vertices: np.ndarray, *, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Return where the mesh crosses a plane through the origin: segments (n, 2, 2) in mm (across, down)."""
    away = vertices @ np.cross(down, across)
    segments = []
    for triangle in SHEETS:
        ends = []
        for a, b in zip(triangle, np.roll(triangle, 1), strict=True):
            if (away[a] > 0) != (away[b] > 0):
                point = vertices[a] + (vertices[b] - vertices[a]) * away[a] / (away[a] - away[b])
                ends.append((point @ across, point @ down))
        if len(ends) == 2:
            segments.append(ends)
    return np.array(segments).reshape(-1, 2, 2)


def main() -> None:
    """Simulate, run the task and print its measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="aortic_valve", help="shipped name, or a .safetensors file")
    parser.add_argument("--n", type=int, default=24, help="volumes with a valve")
    parser.add_argument("--absent", type=int, default=0, help="volumes of hearts without the valve in view")
    parser.add_argument("--seed", type=int, default=0, help="of the first volume; the others follow")
    parser.add_argument("--level", choices=(*LEVELS, "mixed"), default="mixed")
    parser.add_argument("--no-task", action="store_true", help="only simulate")
    parser.add_argument("--sheet", type=Path, help="PNG with planes of the first twelve volumes")
    parser.add_argument("--json", type=Path, help="also write truth and every number there")
    options = parser.parse_args()
    recipe, rows, truths, shown = recipe_of("aortic_valve"), [], [], []
    task = None
    if not options.no_task:
        task = registry.build_task("aortic_valve", device="cpu", overrides={"weights": options.weights})
    first = range(options.seed, options.seed + options.n)
    none = range(ABSENT_SEED + options.seed, ABSENT_SEED + options.seed + options.absent)
    some = [*((s, False) for s in first), *((s, True) for s in none)]
    for seed, absent in some:
        for scan, case in cases(range(seed, seed + 1), level=options.level, absent=absent):
            truths.append({"id": case.id, **case.reference})
            if len(shown) < 12 and options.sheet:
                shown.append((scan, case))
            if task is not None:
                found = recipe.row(pipeline.run(task, scan), case)
                rows.append({"id": case.id, "level": case.reference["level"], **found})
    print(f"{options.n} volumes with a valve, {options.absent} without; {SIMULATED}.\n")
    report(rows, recipe=recipe)
    if options.sheet:
        sheet(shown, options.sheet)
    if options.json:
        content = {"data": SIMULATED, "rows": rows, "truth": truths}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def report(rows: Sequence[Row], *, recipe: Recipe) -> None:
    """Print the measures of all volumes, and of each level with a valve."""
    if not rows:
        return
    estimates = recipe.metrics(rows, [row["id"] for row in rows])
    print(table(estimates, title=f"all {len(rows)} volumes (second simulator)"))
    for level in LEVELS:
        some = [row for row in rows if row["level"] == level]
        if len(some) > 1:
            estimates = recipe.metrics(some, [row["id"] for row in some])
            kept = {name: e for name, e in estimates.items() if name in LEVEL_MEASURES}
            print("\n" + table(kept, title=f"{len(some)} {level} volumes (second simulator)"))


if __name__ == "__main__":
    main()
