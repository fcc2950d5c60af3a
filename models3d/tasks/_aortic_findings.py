"""What ``aortic_valve`` reports: labels, boxes, meshes, the annulus over time, measurements with ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models3d.recipes.aortic_valve_scores import NAMES
from models3d.tasks._aortic_measures import measures
from models3d.tasks._aortic_mesh import FACES, N_WALL, VERTEX_LABELS, box_of
from models3d.tasks._aortic_surface import Aligned, cube_grid
from usvol.resampling import sample_on
from usvol.result import Box, Curve, Finding, Labels, Measurement, Surface
from usvol.scan import Grid, Scan, Shape3, vec3

NAME = "aortic_valve"
MEASURED_FROM = 0.985  # part of the wall well in the field of view from which the valve is measured
_EDGE = 2.0  # samples (about mm) from the edge of the view within which nothing is well in it
_UNITS = {"_mm2": "mm²", "_mm": "mm", "_ml": "mL"}
_NONE = (
    "annulus_diameter_min_mm",
    "annulus_diameter_max_mm",
    "annulus_diameter_area_mm",
    "annulus_perimeter_mm",
)
_NONE += ("annulus_area_mm2", "sinus_diameter_mm", "sinotubular_diameter_mm", "cusp_height_right_mm")
_NONE += ("cusp_height_non_coronary_mm", "cusp_height_left_mm", "root_height_mm", "root_volume_ml")


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One frame: score of the box, what was read in it, the mesh (860, 3) in mm, part of it in view."""

    chance: float
    aligned: Aligned
    vertices: Tensor
    seen: float


def nothing(scan: Scan) -> Labels:
    """Return an empty label map: what is said where there is no valve."""
    frames = torch.zeros(len(scan.data), *scan.grid.shape, dtype=torch.uint8)
    return Labels(NAME, frames, scan.grid, NAMES)


def seen_share(vertices: Tensor, scan: Scan) -> float:
    """Return the part of the wall's vertices that lies in the sector and in the volume, not at their edge.

    The network has never seen a valve beyond the view, so that the mesh of one that is cut ends at the edge.
    """
    places = scan.grid.to_index(vertices[:N_WALL].double().numpy())
    around = np.stack(np.meshgrid(*[(-1.0, 0.0, 1.0)] * 3, indexing="ij"), -1).reshape(-1, 3)
    around *= _EDGE / np.maximum(np.linalg.norm(around, axis=1, keepdims=True), 1)
    index = np.round(places[:, None] + around).astype(int)
    shape = np.asarray(scan.grid.shape)
    inside = ((index >= 0) & (index < shape)).all(-1)
    assert scan.sector is not None
    mask = scan.sector.mask.reshape(scan.grid.shape).numpy()
    inside &= mask[tuple(np.moveaxis(np.clip(index, 0, shape - 1), -1, 0))]
    return float(inside.all(1).mean())


def findings_of(readings: Mapping[int, Reading], scan: Scan) -> tuple[Finding, ...]:
    """Return the labels of all frames, and box and mesh of each; no mesh where the valve is cut."""
    found: list[Finding] = [_labels(readings, scan)]
    for frame, reading in readings.items():
        name = NAME if frame == min(readings) else f"{NAME}_{frame:03d}"
        index = frame if len(scan.data) > 1 else None
        box = _box(reading, name=name, frame_index=index)
        if not _within(np.asarray(box.centre)[None], scan.grid).all():
            continue
        found.append(box)
        if reading.seen >= MEASURED_FROM:
            found.append(_surface(reading, scan, name=name, frame_index=index))
    return tuple(found)


def curve_of(readings: Mapping[int, Reading], scan: Scan) -> Curve | None:
    """Return the area-derived diameter of the annulus over the frames in which the valve is whole, if any."""
    frames = [frame for frame, reading in readings.items() if reading.seen >= MEASURED_FROM]
    if not frames:
        return None
    values = [
        measures(readings[frame].vertices.double().numpy())["annulus_diameter_area_mm"] for frame in frames
    ]
    times_s = None if scan.times_s is None else tuple(scan.times_s[frame] for frame in frames)
    in_file = scan.source.frame_indices or range(len(scan.data))
    return Curve("annulus_diameter_area", tuple(values), "mm", times_s, tuple(in_file[f] for f in frames))


def measurements_of(findings: tuple[Finding, ...], scan: Scan) -> tuple[Measurement, ...]:
    """Measure the first mesh, with the range over repeated answers; None with a reason if there is none."""
    scan.grid.require_spacing_mm("the aortic valve's dimensions", scan.calibration.reason)
    mesh = next((f for f in findings if isinstance(f, Surface)), None)
    if mesh is None:
        cut = any(isinstance(f, Box) for f in findings)
        note = "partly outside the field of view" if cut else "not detected"
        return tuple(Measurement(*_named(key), note=note) for key in _NONE)
    values = measures(mesh.vertices.double().numpy())
    answers = [] if mesh.repeats is None else [measures(m.double().numpy()) for m in mesh.repeats]
    return tuple(_measurement(key, value, [a[key] for a in answers]) for key, value in values.items())


def _measurement(key: str, value: float, answers: list[float]) -> Measurement:
    """Return a value with the range of the repeated answers about their mean, carried over to it."""
    name, _, unit = _named(key)
    if len(answers) < 2:
        return Measurement(name, value, unit)
    away = np.asarray(answers) / np.mean(answers)
    note = f"range over {len(answers)} answers from poses a little apart"
    low, high = value * min(1.0, float(away.min())), value * max(1.0, float(away.max()))
    return Measurement(name, value, unit, low=low, high=high, note=note)


def _named(key: str) -> tuple[str, None, str]:
    suffix = next(s for s in _UNITS if key.endswith(s))
    return key.removesuffix(suffix), None, _UNITS[suffix]


def _box(reading: Reading, *, name: str, frame_index: int | None) -> Box:
    centre, size, rotation = box_of(reading.vertices.double().numpy())
    rows = tuple(vec3(row) for row in rotation)
    return Box(name, vec3(centre), vec3(size), rows, reading.chance, frame_index)  # type: ignore[arg-type]


def _surface(reading: Reading, scan: Scan, *, name: str, frame_index: int | None) -> Surface:
    vertices = reading.vertices
    if not _within(vertices.double().numpy(), scan.grid).all():
        index = scan.grid.to_index(vertices.double().numpy())
        held = np.clip(index, -0.5, np.asarray(scan.grid.shape) - 0.5)
        vertices = torch.from_numpy(scan.grid.to_world(held)).float()
    meshes = reading.aligned.meshes
    return Surface(
        name,
        vertices,
        torch.from_numpy(FACES),
        torch.from_numpy(VERTEX_LABELS),
        repeats=meshes if len(meshes) > 1 else None,
        frame_index=frame_index,
    )


def _within(points: np.ndarray, grid: Grid) -> np.ndarray:
    index = grid.to_index(points)
    return np.asarray(((index >= -0.5) & (index <= np.asarray(grid.shape) - 0.5)).all(1))


def _labels(readings: Mapping[int, Reading], scan: Scan) -> Labels:
    """Return labels of all frames on one grid: the cube's, or that of the whole clip."""
    cubes = {frame: evidence(r.aligned.chances) for frame, r in readings.items()}
    frame = scan.grid.frame
    if len(scan.data) == 1:
        (cube,), (reading,) = cubes.values(), readings.values()
        grid = cube_grid(reading.aligned.pose, frame)
        return Labels(NAME, cube.argmax(0)[None].to(torch.uint8), grid, NAMES, evidence=cube[None])
    data = torch.zeros(len(scan.data), *scan.grid.shape, dtype=torch.uint8)
    for number, cube in cubes.items():
        grid = cube_grid(readings[number].aligned.pose, frame)
        start, stop = _covered(grid, scan.grid)
        if (stop > start).all():
            target = scan.grid.crop(_triple(start), _triple(stop - start))
            block = tuple(slice(a, b) for a, b in zip(start.tolist(), stop.tolist(), strict=True))
            data[(number, *block)] = sample_on(cube[None], grid, target=target)[0].argmax(0).to(torch.uint8)
    return Labels(NAME, data, scan.grid, NAMES)


def _covered(cube: Grid, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return first and past-the-last index of the samples of ``grid`` that a cube can reach."""
    ends = [(-0.5, n - 0.5) for n in cube.shape]
    index = grid.to_index(cube.to_world(np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3)))
    start = np.maximum(np.floor(index.min(0)), 0).astype(int)
    return start, np.minimum(np.ceil(index.max(0)) + 1, grid.shape).astype(int)


def _triple(values: np.ndarray) -> Shape3:
    z, y, x = (int(v) for v in values)
    return z, y, x


def evidence(chances: Tensor) -> Tensor:
    """Return the evidence ``3 a b c`` of outside, root and cusps from the chances of root and cusps."""
    root, cusps = chances
    # Both are the larger above one half, as in training, whatever the other says.
    return torch.stack([1 - root, root * (2 - 2 * cusps).clamp(max=1), root * (2 * cusps).clamp(max=1)])
