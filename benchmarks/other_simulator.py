"""Simulated first-trimester volumes from a second, independent simulator: to test transfer, never to train.

It shares no code, anatomy or acoustics with ``usvol.simulation`` and the phantoms of ``models3d``: anatomy is
an implicit function (``other_anatomy``), speckle is multiplicative noise with the correlation of a beam, and
fans, attenuation, shadows, haze and grey maps are drawn anew. What a network scores here tells how far it
depends on the simulator it learnt from; it says nothing about patients.

    python benchmarks/other_simulator.py --n 20 --seed 0 -o DIR
    usvol evaluate prenatal pairs --data DIR

writes ``images/``, ``labels/``, ``labels.json`` and ``patients.csv`` (as the data adapter ``pairs`` reads
them), ``truth.json`` and, with ``--sheet``, a contact sheet. Levels go from easy to hard in turn.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from other_anatomy import ECHO_DB, LABELS, LOSS_DB_MM, NAMES, Scene, draw_scene, look, noise
from scipy import ndimage

LEVELS = ("easy", "medium", "hard")
SOFT_DB_MM = 0.5  # what the depth compensation of the machine makes up for
FLUIDS = ("fluid", "stomach", "brain", "heart")


@dataclass(frozen=True, slots=True)
class Probe:
    """A fan: beams turn about a line ``turn_mm`` behind the skin, their plane about one ``tilt_mm`` behind.

    ``box``: parallel beams; then the half widths are in mm, else in radians.
    """

    kind: str
    turn_mm: float
    tilt_mm: float
    half_width: float
    half_tilt: float
    depth_mm: float

    def to_world(self, beams: np.ndarray) -> np.ndarray:
        """Map (tilt, turn, depth) of shape (n, 3) to world (z, y, x) in mm."""
        tilt, turn, depth = beams.T
        if self.kind == "box":
            return np.stack([tilt, depth, turn], 1)
        radius = depth + self.turn_mm
        ahead = radius * np.cos(turn) - self.turn_mm + self.tilt_mm
        return np.stack([ahead * np.sin(tilt), ahead * np.cos(tilt) - self.tilt_mm, radius * np.sin(turn)], 1)

    def to_beams(self, world: np.ndarray) -> np.ndarray:
        """Undo ``to_world``."""
        z, y, x = world.T
        if self.kind == "box":
            return np.stack([z, x, y], 1)
        ahead = np.hypot(z, y + self.tilt_mm) - self.tilt_mm + self.turn_mm
        tilt, turn = np.arctan2(z, y + self.tilt_mm), np.arctan2(x, ahead)
        return np.stack([tilt, turn, np.hypot(x, ahead) - self.turn_mm], 1)

    def sees(self, beams: np.ndarray) -> np.ndarray:
        """Tell which beam coordinates lie inside the fan."""
        tilt, turn, depth = beams.T
        inside = (np.abs(tilt) <= self.half_tilt) & (np.abs(turn) <= self.half_width)
        return inside & (depth >= 0) & (depth <= self.depth_mm)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and the highest corner (z, y, x in mm) of the box around the fan."""
        edge = np.linspace(-1, 1, 9)
        sides = edge * self.half_tilt, edge * self.half_width, (0, self.depth_mm)
        world = self.to_world(np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 3))
        return world.min(0), np.maximum(world.max(0), (0, self.depth_mm, 0))


@dataclass(frozen=True, slots=True)
class Imaging:
    """How echoes become grey levels; the beam's size is in mm, ``looks`` are averaged (compounding)."""

    axial_mm: float
    lateral_mm: float
    elevation_mm: float
    looks: int
    shadow: float
    haze_db: float
    clutter_db: float
    noise_db: float
    range_db: float
    headroom_db: float
    gamma: float
    smooth: float


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """Grey levels 0-1 and labels (z, y, x), y being depth; spacing and place of the first sample in mm."""

    grey: np.ndarray
    labels: np.ndarray
    spacing_mm: np.ndarray
    origin_mm: np.ndarray


def simulate(seed: int, level: str) -> tuple[Volume, dict[str, object]]:
    """Return one volume with its label map, and facts about it. The same seed and level give the same."""
    rng = np.random.default_rng([seed, LEVELS.index(level), 77])
    scene, facts = draw_scene(rng, LEVELS.index(level))
    probe = draw_probe(rng, scene, level=LEVELS.index(level))
    imaging = draw_imaging(rng, LEVELS.index(level))
    beams = acquire(scene, probe, imaging=imaging, rng=rng)
    volume = convert(scene, probe, beams=beams, grid=draw_grid(rng, probe, level=LEVELS.index(level)))
    return volume, {**facts, "seed": seed, "level": level, "fan": probe.kind, **measured(volume)}


def draw_probe(rng: np.random.Generator, scene: Scene, *, level: int) -> Probe:
    """Draw a fan that shows the whole sac, or (sometimes, if hard) cuts it."""
    kind = str(rng.choice(["box", "cone", "curved"]))
    room = rng.uniform(1.1, 1.35) if level < 2 else rng.uniform(0.75, 1.3)
    reach = (float(scene.sac.radii.max()) + 6) * room
    depth = float(scene.sac.centre[1] + scene.sac.radii.max() * room + rng.uniform(4, 20))
    if kind == "box":
        return Probe(kind, 0, 0, reach, reach * rng.uniform(0.85, 1.1), depth)
    behind = rng.uniform(5, 15) if kind == "cone" else rng.uniform(35, 60)
    tilt = behind if kind == "cone" else rng.uniform(15, 35)
    middle = float(scene.sac.centre[1])
    half_width = np.arctan2(reach, middle + behind)
    half_tilt = np.arctan2(reach, middle + tilt)
    return Probe(kind, behind, tilt, float(min(half_width, 0.72)), float(min(half_tilt, 0.72)), depth)


def draw_imaging(rng: np.random.Generator, level: int) -> Imaging:
    """Draw a machine; harder ones are blurred, shadowed, noisy and harsh."""

    def between(*ranges: tuple[float, float]) -> float:
        return float(rng.uniform(*ranges[level]))

    return Imaging(
        axial_mm=between((0.25, 0.4), (0.25, 0.5), (0.3, 0.7)),
        lateral_mm=between((0.5, 0.8), (0.6, 1.2), (0.8, 1.7)),
        elevation_mm=between((0.6, 1.0), (0.8, 1.6), (1.0, 2.4)),
        looks=int(rng.integers(1, 4)),
        shadow=between((0.05, 0.15), (0.1, 0.45), (0.25, 0.8)),
        haze_db=between((34, 40), (26, 38), (18, 32)),
        clutter_db=between((36, 44), (28, 40), (22, 34)),
        noise_db=between((50, 60), (42, 56), (34, 48)),
        range_db=between((48, 60), (42, 66), (36, 72)),
        headroom_db=between((20, 26), (16, 28), (12, 30)),
        gamma=between((0.9, 1.2), (0.75, 1.4), (0.6, 1.8)),
        smooth=between((0.0, 0.6), (0.0, 0.8), (0.0, 1.0)),
    )


def beam_axes(probe: Probe) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the tilts, turns and depths that are sampled, and the steps between them in mm (mid-depth)."""
    middle = 0.6 * probe.depth_mm
    scale = np.ones(2) if probe.kind == "box" else middle + np.array([probe.tilt_mm, probe.turn_mm])
    extents_mm = np.array([*np.array([probe.half_tilt, probe.half_width]) * 2 * scale, probe.depth_mm])
    counts = np.clip(extents_mm / (0.9, 0.9, 0.45), 48, (150, 150, 400)).astype(int)
    axes = [
        np.linspace(-probe.half_tilt, probe.half_tilt, counts[0]),
        np.linspace(-probe.half_width, probe.half_width, counts[1]),
        np.linspace(0, probe.depth_mm, counts[2]),
    ]
    return axes, extents_mm / (counts - 1)


def acquire(scene: Scene, probe: Probe, *, imaging: Imaging, rng: np.random.Generator) -> np.ndarray:
    """Return grey levels 0-1 along the beams (tilt, turn, depth)."""
    axes, step_mm = beam_axes(probe)
    shape = tuple(len(axis) for axis in axes)
    points = probe.to_world(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)).astype(np.float32)
    material = look(scene, points)[1]
    echo_db = ECHO_DB[material]
    fluid = np.isin(material, [NAMES.index(name) for name in FLUIDS])
    echo_db = np.where(fluid, echo_db, -12 + scene.contrast * (echo_db + 12))
    grain = 1.6 * noise(scene.lattice, points, size_mm=5.0, shift=3.1)
    maternal = np.isin(material, [NAMES.index(name) for name in ("maternal", "fat", "myometrium")])
    grain += np.where(maternal, 2.2 * noise(scene.lattice, points, size_mm=15.0, shift=7.9), 0)
    echo_db += np.where(fluid, 0, grain)
    echo_db, loss = echo_db.reshape(shape), (LOSS_DB_MM[material] - SOFT_DB_MM).reshape(shape)
    # A wall across the beam glints; what lies behind it is shaded or enhanced.
    glint = np.abs(np.diff(ndimage.gaussian_filter1d(echo_db, 1.0), axis=2, prepend=echo_db[..., :1]))
    shade_db = imaging.shadow * np.cumsum(ndimage.gaussian_filter(loss, (0.7, 0.7, 0)), 2) * step_mm[2]
    signal = 10 ** ((echo_db - np.clip(shade_db, -9, 45)) / 20) * (1 + 0.12 * np.clip(glint - 1, 0, 10))
    spread = np.array([imaging.elevation_mm, imaging.lateral_mm, imaging.axial_mm]) / step_mm
    signal = ndimage.gaussian_filter(signal.astype(np.float32), 0.6 * spread)
    clutter = ndimage.gaussian_filter(signal, (4, 5, 2)) * 10 ** (-imaging.clutter_db / 20)
    haze = 10 ** (-imaging.haze_db / 20) * np.exp(-axes[2] / 25).astype(np.float32)
    picture = (signal + clutter) * speckle(rng, shape, spread=spread, looks=imaging.looks)
    picture += haze * speckle(rng, shape, spread=spread * 1.5, looks=1)
    hiss = 10 ** ((-imaging.noise_db + 12 * axes[2] / probe.depth_mm) / 20)
    picture += hiss.astype(np.float32) * speckle(rng, shape, spread=np.full(3, 0.4), looks=1)
    return as_grey(picture, imaging)


def as_grey(picture: np.ndarray, imaging: Imaging) -> np.ndarray:
    """Compress the logarithm of the echo amplitude to grey levels 0-1."""
    decibel = 20 * np.log10(np.maximum(picture, 1e-6))
    # Tissue fills most of the picture; the machine's gain puts it that far below white.
    white = np.quantile(decibel[::2, ::2, ::3], 0.6) + imaging.headroom_db
    grey = np.clip((decibel - white) / imaging.range_db + 1, 0, 1) ** imaging.gamma
    return ndimage.gaussian_filter(grey, imaging.smooth)


def speckle(
    rng: np.random.Generator, shape: tuple[int, ...], *, spread: np.ndarray, looks: int
) -> np.ndarray:
    """Return multiplicative noise of mean 1: Rayleigh for one look, root of a gamma variable for more."""
    intensity = np.zeros(shape, np.float32)
    for _ in range(2 * looks):
        intensity += (
            ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), spread, truncate=3.0) ** 2
        )
    amplitude = np.sqrt(intensity)
    return amplitude / amplitude.mean()


def draw_grid(rng: np.random.Generator, probe: Probe, *, level: int) -> Volume:
    """Draw spacing and extent of an empty volume around the fan: 64 to 256 samples, 0.3 to 1.5 mm."""
    low, high = probe.bounds()
    size = high - low
    wanted = np.exp(rng.uniform(np.log(0.4), np.log(1.4)))
    uneven = np.exp(rng.normal(0, (0.05, 0.25, 0.45)[level], 3))
    spacing = np.clip(wanted * uneven, np.maximum(size / 256, 0.3), np.minimum(size / 64, 1.5))
    shape = np.clip(np.ceil(size / spacing), 64, 256).astype(int)
    empty = np.zeros(shape, np.float32)
    return Volume(empty, empty.astype(np.uint8), spacing, low + spacing / 2)


def convert(scene: Scene, probe: Probe, *, beams: np.ndarray, grid: Volume) -> Volume:
    """Sample beams and anatomy on the grid; outside the fan both are 0."""
    axes, _ = beam_axes(probe)
    first, steps = np.array([a[0] for a in axes]), np.array([a[1] - a[0] for a in axes])
    index = [
        np.arange(n) * s + o for n, s, o in zip(grid.grey.shape, grid.spacing_mm, grid.origin_mm, strict=True)
    ]
    for z, height in enumerate(index[0]):
        plane = np.stack(np.meshgrid([height], index[1], index[2], indexing="ij"), -1).reshape(-1, 3)
        place = probe.to_beams(plane)
        seen = probe.sees(place)
        grey = ndimage.map_coordinates(beams, ((place[seen] - first) / steps).T, order=1, mode="nearest")
        grid.grey[z].reshape(-1)[seen] = grey
        if seen.any():
            grid.labels[z].reshape(-1)[seen] = look(scene, plane[seen].astype(np.float32))[0]
    return grid


def measured(volume: Volume) -> dict[str, object]:
    """Return grid and volumes in mL of what the fan shows."""
    voxel_ml = float(np.prod(volume.spacing_mm)) / 1000
    counts = np.bincount(volume.labels.ravel(), minlength=len(LABELS))
    return {
        "shape": list(volume.grey.shape),
        "spacing_mm": [round(float(s), 4) for s in volume.spacing_mm],
        "volume_ml": {name: round(float(counts[v]) * voxel_ml, 2) for name, v in LABELS.items() if v},
    }


def stored(rng: np.random.Generator, grey: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the grey levels in one of the sample types and ranges that files have."""
    kind = str(rng.choice(["uint8", "int16", "int16 12 bit", "float32 0-1", "float32 0-255"]))
    white = {"uint8": 255, "int16": 32000, "int16 12 bit": 4095, "float32 0-1": 1, "float32 0-255": 255}[kind]
    values = grey * white
    return (values if "float" in kind else values.round()).astype(kind.partition(" ")[0]), kind


def placed(
    rng: np.random.Generator, volume: Volume, *, level: int
) -> tuple[list[int], list[int], np.ndarray]:
    """Draw how the samples are stored: order and flips of the axes, and the affine to world x, y, z (RAS).

    Every case is stored in any of the 48 orders. The header of an easy one says where depth lies (posterior,
    as in a volume scanned from the front); in others, as in files of research tools, it may say nothing.
    """
    order = [int(a) for a in rng.permutation(3)]
    flips = [a for a in range(3) if rng.random() < 0.5]
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    says_truth = level == 0 or rng.random() < 0.5
    towards = {0: 2, 1: 1, 2: 0}  # z, y (depth) and x of the scene are superior, posterior and left
    for axis, source in enumerate(order):
        sign = (-1.0 if axis in flips else 1.0) * (1.0 if source == 0 else -1.0)
        world = towards[source] if says_truth else axis
        affine[world, axis] = volume.spacing_mm[source] * (sign if says_truth else 1.0)
    return order, flips, affine


def write(
    folder: Path, name: str, *, volume: Volume, rng: np.random.Generator, level: int
) -> dict[str, object]:
    """Write volume and labels as NIfTI, and return how."""
    order, flips, affine = placed(rng, volume, level=level)
    grey, kind = stored(rng, volume.grey)
    for part, samples in (("images", grey), ("labels", volume.labels)):
        path = folder / part / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(np.flip(samples.transpose(order), tuple(flips)), affine)
        image.header.set_xyzt_units("mm")
        nib.save(image, path)
    return {"samples": kind, "axes": order, "flipped": flips, "affine": affine.tolist()}


def sheet(rows: list[tuple[str, Volume]], path: Path, *, about: int = LABELS["fetus"]) -> None:
    """Draw three planes of each volume through a label, plain and with the outlines of its labels."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(rows), 6, figsize=(15, 2.6 * len(rows)), squeeze=False)
    for line, (title, volume) in zip(axes, rows, strict=True):
        inside = np.argwhere(volume.labels == about)
        middle = np.median(inside, 0).astype(int) if len(inside) else np.array(volume.grey.shape) // 2
        line[0].set_ylabel(title, fontsize=7)
        for axis in range(3):
            plane, marks = (np.take(v, middle[axis], axis) for v in (volume.grey, volume.labels))
            step = np.delete(volume.spacing_mm, axis)
            if axis == 2:
                plane, marks, step = plane.T, marks.T, step[::-1]
            for view in (line[2 * axis], line[2 * axis + 1]):
                view.imshow(plane, cmap="gray", vmin=0, vmax=1, aspect=step[0] / step[1])
                view.set_xticks([])
                view.set_yticks([])
            for value, colour in ((1, "tab:orange"), (2, "tab:cyan"), (3, "tab:red")):
                if (marks == value).any():
                    line[2 * axis + 1].contour(marks == value, [0.5], colors=colour, linewidths=0.8)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def command_line(about: str | None) -> argparse.ArgumentParser:
    """Return what every simulator of volumes is asked on the command line."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--n", type=int, default=20, help="number of volumes")
    parser.add_argument("--seed", type=int, default=0, help="of the first volume; the others follow")
    parser.add_argument("--level", choices=(*LEVELS, "mixed"), default="mixed")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--sheet", type=Path, help="PNG with planes of all volumes")
    return parser


def write_tables(folder: Path, truth: list[dict[str, object]], *, labels: dict[str, int]) -> None:
    """Write what is true of the cases, the names of their labels, and that each is a patient of its own."""
    (folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    (folder / "labels.json").write_text(json.dumps({"labels": labels}) + "\n", encoding="utf-8")
    with (folder / "patients.csv").open("w", encoding="utf-8", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["case", "patient"])
        table.writerows([case["case"], f"other-simulator-{case['case']}"] for case in truth)


def main() -> None:
    """Write the test set."""
    options = command_line(__doc__).parse_args()
    truth, rows = [], []
    for seed in range(options.seed, options.seed + options.n):
        level = LEVELS[seed % len(LEVELS)] if options.level == "mixed" else options.level
        name = f"other_{level}_{seed:04d}"
        volume, facts = simulate(seed, level)
        rng = np.random.default_rng([seed, 78])
        how = write(options.out, name, volume=volume, rng=rng, level=LEVELS.index(level))
        truth.append({"case": name, "simulated": True, **facts, **how})
        print(name, facts["fan"], facts["shape"], facts["spacing_mm"], facts["volume_ml"], flush=True)
        if options.sheet:
            rows.append((f"{name}\n{facts['fan']}", volume))
    write_tables(options.out, truth, labels=LABELS)
    if options.sheet:
        sheet(rows, options.sheet)


if __name__ == "__main__":
    main()
