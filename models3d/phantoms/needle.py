"""A needle in tissue, in 3D or 3D+t: 17 G and 22 G shafts, straight or bent, with exact truth; or none.

Tissue comes from ``_needle_scene``, the shaft's echo from ``_needle_shaft``; sound from ``usvol.simulation``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from models3d.phantoms._needle_scene import STYLES, Style, drawn_scene, drawn_threads, without_bone_before
from models3d.phantoms._needle_shaft import (
    Finish,
    Shaft,
    drawn_finish,
    shaft_mask,
    thread_finish,
    with_shafts,
)
from models3d.phantoms._shapes import Space, random_direction, unit
from usvol.result import Labels
from usvol.scan import Frame, Grid, Scan, Vec3
from usvol.simulation.acquisition import develop
from usvol.simulation.beam_geometry import beam_index, beam_points, bounding_box_mm
from usvol.simulation.echoes import form_echoes
from usvol.simulation.probe import Imaging, Probe, ProbeKind, draw_imaging, draw_probe
from usvol.simulation.propagation import insonify
from usvol.simulation.tissue import Anatomy

LABEL_NAMES = {1: "needle"}
OUTER_MM: dict[int, float] = {17: 1.473, 22: 0.718}
"""Outer diameter by gauge (ISO 9626)."""

_INSIDE_MM = (5.0, 40.0)  # length in the volume
_TRIES = 400
_ALONG_MM = np.arange(0, 80, 0.25)
_LABEL_VOXELS = 0.75  # least radius of the label, in voxels: thinner ones would have holes


class Config(BaseModel):
    """What to simulate; a field left at None is drawn from the range its description gives."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    present: bool | None = Field(default=None, description="whether there is a needle, 2 in 3")
    gauge: Literal[17, 22] | None = Field(default=None, description="17 and 22 equally")
    angle_deg: float | None = Field(default=None, ge=-90, le=90, description="to the probe's face, -10 to 80")
    bend_mm: float | None = Field(default=None, ge=100, description="radius of the bend, 100-500 in 35 %")
    through: bool | None = Field(default=None, description="whether it leaves the view again, 5 %")
    clear: bool = Field(default=False, description="no gaps in the echo")
    style: Style | None = Field(default=None, description="of the tissue")
    size: int | None = Field(default=None, ge=32, le=256, description="samples along a side at most, 72-128")
    spacing_mm: Vec3 | None = Field(default=None, description="z, y, x; 0.2-0.5, anisotropic in 35 %")
    frames: int = Field(default=1, ge=1, le=64, description="of a clip in which the needle advances")
    needles: int = Field(
        default=1, ge=1, le=4, description="how many if any, labelled 1, 2, …: training sees more of them so"
    )


@dataclass(frozen=True, slots=True)
class _View:
    """How the tissue is looked at."""

    probe: Probe
    imaging: Imaging
    grid: Grid


def simulate_labelled(seed: int, config: Config | None = None) -> tuple[Scan, Labels, dict[str, Any]]:
    """Simulate one volume or clip: scan ``t 1 z y x`` (uint8), the shaft's voxels, and truth as plain values.

    Truth, in world (z, y, x) mm: ``entry_mm`` (where the shaft enters the field of view), ``tip_mm``,
    ``direction``, ``gauge``, ``radius_mm``, ``bend_mm``, ``inside_mm`` (length in the view),
    ``angle_to_face_deg``, ``tip_in_view``; of the last frame, and ``frames`` of all. Without a needle they
    are None, and ``present`` is False.

    Example:
        >>> scan, labels, truth = simulate_labelled(1, Config(size=48, present=True))
        >>> bool(labels.data.any()), truth["present"], len(truth["tip_mm"])
        (True, True, 3)
    """
    config = config or Config()
    rng = np.random.default_rng((seed, 5))
    style = config.style or STYLES[rng.choice(len(STYLES), p=(0.25, 0.25, 0.22, 0.13, 0.15))]
    drawn = bool(rng.random() < 2 / 3)
    present = drawn if config.present is None else config.present
    view = _drawn_view(rng, config)
    shafts = [_placed(rng, view, config=config) for _ in range(config.needles if present else 0)]
    space = _space(view.probe)
    materials, tissues = drawn_scene(rng, space, style=style)
    for shaft in shafts:
        materials = without_bone_before(materials, space, **_looked_at(shaft, view))
    anatomy = Anatomy(torch.from_numpy(materials), space.grid, tissues)
    threads = [(thread, thread_finish(rng, thread)) for thread in drawn_threads(rng, space)]
    back_mm, times_s = _advancing(rng, frames=config.frames)
    finishes = [drawn_finish(rng, shaft, clear=config.clear) for shaft in shafts]
    clip = [[shaft.withdrawn(by) for shaft in shafts] for by in back_mm]
    scans = _scanned(
        anatomy, view, seed=seed, threads=threads, frames=[list(zip(f, finishes, strict=True)) for f in clip]
    )
    scan = dataclasses.replace(
        scans[0],
        data=torch.cat([scan.data for scan in scans]),
        times_s=times_s,
        history=(f"simulated needle, seed {seed}",),
    )
    names = {n: LABEL_NAMES.get(n, f"needle_{n}") for n in range(1, config.needles + 1)}
    labels = Labels("needle", torch.stack([_labelled(frame, scan) for frame in clip]), scan.grid, names)
    shaft = shafts[0] if shafts else None
    through = bool(shaft is not None and not _seen(shaft.tip_mm[None], view)[0])
    frames = [_facts(frame[0] if frame else None, view, through=through) for frame in clip]
    truth = {
        "seed": seed,
        "present": present,
        **frames[-1],
        "gauge": None if shaft is None else _gauge(shaft),
        "bend_mm": None if shaft is None or shaft.bend_mm is None else round(shaft.bend_mm, 1),
        "radius_mm": None if shaft is None else shaft.radius_mm,
        "frames": frames,
        "style": style,
        "probe": dataclasses.asdict(view.probe),
        "spacing_mm": list(view.grid.step),
    }
    return scan, labels, truth


def simulate(seed: int, config: Config | None = None) -> tuple[Scan, dict[str, Any]]:
    """Simulate one volume and its truth, without the label map: see ``simulate_labelled``."""
    scan, _, truth = simulate_labelled(seed, config)
    return scan, truth


def _drawn_view(rng: np.random.Generator, config: Config) -> _View:
    """Draw the grid of the volume, and a probe whose beams cover it, nearly or amply."""
    spacing = rng.uniform(0.2, 0.5)
    stretch = rng.uniform(0.75, 1.4, 3) if rng.random() < 0.35 else np.ones(3)
    step = np.clip(spacing * stretch, 0.18, 0.6)
    largest = config.size or int(rng.integers(72, 129))
    if config.spacing_mm is not None:
        step = np.array(config.spacing_mm)
    # No narrower than a needle is long, no wider than such probes look.
    extent = np.clip(largest * step * rng.uniform((0.6, 0.7, 0.7), 1.0), 9, (40, 60, 48))
    shape = np.clip(np.round(extent / step), 24, largest).astype(int)
    extent = shape * step
    top = float(rng.choice((0.0, rng.uniform(0, 12))))
    probe = _drawn_probe(rng, extent, top_mm=top)
    near, far = (corner[1] for corner in bounding_box_mm(probe))
    top = float(np.clip(top, near, max(far - extent[1], near)))
    aside = rng.normal(0, 0.04, 2) * extent[[0, 2]]
    first = np.array([aside[0] - extent[0] / 2, top, aside[1] - extent[2] / 2]) + step / 2
    grid = Grid(
        (int(shape[0]), int(shape[1]), int(shape[2])),
        (float(step[0]), float(step[1]), float(step[2])),
        (float(first[0]), float(first[1]), float(first[2])),
        frame=Frame.PROBE,
    )
    imaging = dataclasses.replace(
        draw_imaging(rng),
        compounding=int(rng.choice((1, 2), p=(0.85, 0.15))),  # each look costs as much as the first
        penetration_mm=float(rng.uniform(60, 140)),
        specular_db=float(rng.uniform(22, 34)),
        haze_mm=float(rng.uniform(1, 6)),
    )
    return _View(probe, imaging, grid)


def _drawn_probe(rng: np.random.Generator, extent_mm: np.ndarray, *, top_mm: float) -> Probe:
    kinds: tuple[ProbeKind, ...] = ("linear", "mechanical_3d", "matrix_3d")
    kind: ProbeKind = kinds[rng.choice(3, p=(0.4, 0.35, 0.25))]
    cover = rng.uniform(0.85, 1.35, 2)
    depth = float((top_mm + extent_mm[1]) * rng.uniform(0.95, 1.15))
    middle = top_mm + 0.55 * extent_mm[1]
    base = draw_probe(rng, kind=kind, depth_mm=float(np.clip(depth, 40, 80)))
    frequency = {"linear": (6, 14), "mechanical_3d": (4.5, 10), "matrix_3d": (3.5, 8)}[kind]
    radius = {"linear": 0.0, "mechanical_3d": rng.uniform(8, 45), "matrix_3d": rng.uniform(2, 14)}[kind]
    sweep = radius if kind == "matrix_3d" else rng.uniform(10, 60)
    elevation = math.degrees(math.atan(cover[0] * extent_mm[0] / 2 / (sweep + middle)))
    azimuth = math.degrees(math.atan(cover[1] * extent_mm[2] / 2 / (radius + middle)))
    aperture = float(rng.uniform(8, 16))
    width = float(cover[1] * extent_mm[2])
    return dataclasses.replace(
        base,
        frequency_mhz=float(rng.uniform(*frequency)),
        depth_mm=depth,
        focus_mm=depth * float(rng.uniform(0.4, 0.9)),
        azimuth_deg=float(np.clip(azimuth, 4, 60)),
        elevation_deg=float(np.clip(elevation, 4, 60)),
        radius_mm=radius,
        sweep_radius_mm=sweep,
        width_mm=width if kind == "linear" else None,
        aperture_mm=aperture,
        elevation_aperture_mm=aperture * float(rng.uniform(0.4, 1.0)),
        elevation_focus_mm=None if kind == "matrix_3d" else depth * float(rng.uniform(0.4, 0.9)),
        f_number=float(rng.uniform(1.2, 2.5)),
        lines=int(np.clip(width / rng.uniform(0.35, 0.55), 36, 84)),
        planes=int(np.clip(cover[0] * extent_mm[0] / rng.uniform(0.4, 0.65), 28, 68)),
        samples=int(np.clip(depth / rng.uniform(0.15, 0.25), 112, 200)),
    )


def _space(probe: Probe) -> Space:
    """Voxels over all that the beams reach, about half a million."""
    low, high = (np.array(corner) for corner in bounding_box_mm(probe))
    low[1] = 0.0
    voxel_mm = float(max(0.4, (np.prod(high - low) / 5.0e5) ** (1 / 3)))
    shape = np.maximum(np.ceil((high - low) / voxel_mm).astype(int) + 1, 4)
    return Space((int(shape[0]), int(shape[1]), int(shape[2])), voxel_mm, (low[0], low[1], low[2]))


def _seen(points_mm: np.ndarray, view: _View) -> np.ndarray:
    """Whether world points (n, 3) lie in the volume and between the outer beams."""
    index = view.grid.to_index(points_mm)
    inside = np.asarray(np.all((index > -0.5) & (index < np.asarray(view.grid.shape) - 0.5), axis=-1))
    if not inside.any():
        return inside
    z, y, x = torch.from_numpy(points_mm).unbind(-1)
    beam = beam_index(view.probe, (z, y, x)).numpy()
    limits = np.array((view.probe.samples, view.probe.lines, view.probe.planes)) - 0.5
    return inside & np.asarray(np.all((beam > -0.5) & (beam < limits), axis=-1))


def _placed(rng: np.random.Generator, view: _View, *, config: Config) -> Shaft:
    """Draw a shaft that comes from outside and ends in the view, 5-40 mm deep in it, or passes through it."""
    gauge = config.gauge or int(rng.choice((17, 22)))
    bent = rng.random() < 0.35
    bend = config.bend_mm or (float(rng.uniform(100, 500)) if bent else None)
    passes = bool(rng.random() < 0.05) if config.through is None else config.through
    extent = np.asarray(view.grid.shape) * view.grid.step
    longest = max(_INSIDE_MM[0], min(_INSIDE_MM[1], 0.9 * float(np.linalg.norm(extent))))
    wanted = rng.uniform(_INSIDE_MM[0], longest)
    middle = view.grid.to_world((np.asarray(view.grid.shape) - 1) / 2)
    best: Shaft | None = None
    least = math.inf
    for _ in range(_TRIES):
        ahead = _drawn_direction(rng, angle_deg=config.angle_deg)
        shaft = Shaft(
            tip_mm=middle + rng.uniform(-0.46, 0.46, 3) * extent,
            direction=ahead,
            side=unit(np.cross(ahead, random_direction(rng))),
            bend_mm=bend,
            radius_mm=OUTER_MM[gauge] / 2,
            length_mm=float(_ALONG_MM[-1]),
        )
        seen = _seen(shaft.points(_ALONG_MM), view)
        if not seen[: int(2 / 0.25)].all() or seen[-1]:
            continue
        inside = float(_ALONG_MM[np.argmin(seen)])
        # It must not come in twice.
        if seen[int(inside / 0.25) :].any() or not _INSIDE_MM[0] <= inside <= _INSIDE_MM[1]:
            continue
        if abs(inside - wanted) < least:
            best, least = shaft, abs(inside - wanted)
        if least < 1.5:
            break
    if best is None:
        raise ValueError("no needle of 5-40 mm fits this view: ask for a larger size")
    return best.withdrawn(-30.0) if passes else best


def _drawn_direction(rng: np.random.Generator, *, angle_deg: float | None) -> np.ndarray:
    """Draw where a needle points: any way along the face, mostly down into the tissue."""
    azimuth = rng.uniform(0, 2 * math.pi)
    angle = math.radians(rng.uniform(-10, 80) if angle_deg is None else angle_deg)
    flat = math.cos(angle)
    return np.array([flat * math.sin(azimuth), math.sin(angle), flat * math.cos(azimuth)])


def _looked_at(shaft: Shaft, view: _View) -> dict[str, np.ndarray]:
    """The shaft's points in the view, tip first, and where on the face the beams to them begin."""
    points = shaft.points(_ALONG_MM)
    points = points[_seen(points, view)]
    z, y, x = torch.from_numpy(points).unbind(-1)
    beam = beam_index(view.probe, (z, y, x)).round().long()
    lines = beam[:, 1].clamp(0, view.probe.lines - 1), beam[:, 2].clamp(0, view.probe.planes - 1)
    size = (view.probe.samples, view.probe.lines, view.probe.planes)
    face = torch.stack([part.expand(size)[0][lines] for part in beam_points(view.probe)], -1)
    return {"shaft_mm": points, "face_mm": face.double().numpy()}


def _advancing(rng: np.random.Generator, *, frames: int) -> tuple[list[float], tuple[float, ...] | None]:
    """Draw how far (mm) the needle is drawn back in each frame, and the frame times.

    It advances at 1-10 mm/s, stopping now and then; the last frame shows it whole.
    """
    if frames == 1:
        return [0.0], None
    rate = rng.uniform(3, 12)
    speed = rng.uniform(1, 10) * np.where(rng.random(frames - 1) < 0.1, 0, 1)
    back = np.append(np.cumsum((speed / rate)[::-1])[::-1], 0.0)
    return [float(by) for by in back], tuple(round(n / rate, 4) for n in range(frames))


def _scanned(
    anatomy: Anatomy,
    view: _View,
    *,
    seed: int,
    threads: list[tuple[Shaft, Finish]],
    frames: list[list[tuple[Shaft, Finish]]],
) -> list[Scan]:
    generator = torch.Generator().manual_seed(seed)
    still = insonify(anatomy, view.probe, generator=generator)
    still = with_shafts(still, threads, probe=view.probe, imaging=view.imaging)
    scans = []
    state = generator.get_state()
    for needles in frames:
        # The same scatterers in every frame: tissue that does not move.
        generator.set_state(state)
        medium = with_shafts(still, needles, probe=view.probe, imaging=view.imaging)
        envelope = form_echoes(medium, view.probe, imaging=view.imaging, generator=generator)
        scans.append(develop(envelope, view.probe, imaging=view.imaging, grid=view.grid).scan)
    return scans


def _labelled(shafts: list[Shaft], scan: Scan) -> torch.Tensor:
    """The voxels of each shaft that lie in the sector: uint8 ``z y x``."""
    assert scan.sector is not None
    labels = torch.zeros(scan.grid.shape, dtype=torch.uint8)
    for number, shaft in enumerate(shafts, start=1):
        radius_mm = max(shaft.radius_mm, _LABEL_VOXELS * max(scan.grid.step))
        labels[shaft_mask(shaft, scan.grid, radius_mm=radius_mm) & scan.sector.mask] = number
    return labels


def _facts(shaft: Shaft | None, view: _View, *, through: bool) -> dict[str, Any]:
    if shaft is None:
        keys = ("entry_mm", "tip_mm", "direction", "inside_mm", "angle_to_face_deg", "tip_in_view")
        return dict.fromkeys(keys)
    back = np.arange(0, shaft.length_mm, 0.1)
    seen = _seen(shaft.points(back), view)
    if not seen.any():
        return {**_facts(None, view, through=through), "tip_in_view": False}
    first, last = back[np.argmax(seen)], back[len(seen) - 1 - np.argmax(seen[::-1])]
    entry, tip = (shaft.points(np.array([at]))[0] for at in (last, first))
    ahead = unit(tip - entry) if last > first else shaft.direction
    return {
        "entry_mm": [round(float(v), 4) for v in entry],
        "tip_mm": [round(float(v), 4) for v in tip],
        "direction": [round(float(v), 6) for v in ahead],
        "inside_mm": round(float(last - first), 3),
        "angle_to_face_deg": round(math.degrees(math.asin(float(np.clip(ahead[1], -1, 1)))), 3),
        "tip_in_view": not through,
    }


def _gauge(shaft: Shaft) -> int:
    return min(OUTER_MM, key=lambda gauge: abs(OUTER_MM[gauge] / 2 - shaft.radius_mm))
