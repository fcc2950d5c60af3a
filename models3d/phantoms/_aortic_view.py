"""How a transoesophageal matrix probe looks at the valve: opening, depth, and where in it the valve lies."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from models3d.phantoms._shapes import Space, random_rotation, turned
from usvol.scan import Grid
from usvol.simulation.beam_geometry import beam_index, bounding_box_mm
from usvol.simulation.probe import Probe

Array = np.ndarray
_TRIES, _PER_PROBE = 400, 25
_ASIDE_MM = 40.0  # from the probe's axis, at most
_VOXEL_MM = (0.7, 1.7)


def drawn_probe(rng: np.random.Generator, *, quick: bool) -> Probe:
    """Draw a matrix probe: 4-8 MHz, depth 60-140 mm (deep views with low frequencies), half angles 22-48°.

    ``quick`` has few beams, enough for a volume of about 1.2 mm.
    """
    depth = float(rng.uniform(60, 140))
    frequency = 4 + 4 * float(np.clip(0.6 * (140 - depth) / 80 + 0.4 * rng.random(), 0, 1))
    aperture, radius = float(rng.uniform(8, 13)), float(rng.uniform(0, 5))
    lines, planes = (int(n) for n in (rng.integers(44, 60, 2) if quick else rng.integers(64, 97, 2)))
    return Probe(
        kind="matrix_3d",
        frequency_mhz=frequency,
        depth_mm=depth,
        focus_mm=depth * float(rng.uniform(0.35, 0.8)),
        azimuth_deg=float(rng.uniform(24, 48)),
        elevation_deg=float(rng.uniform(22, 48)),
        bandwidth=float(rng.uniform(0.45, 0.8)),
        radius_mm=radius,
        sweep_radius_mm=radius,
        aperture_mm=aperture,
        elevation_aperture_mm=aperture * float(rng.uniform(0.7, 1)),
        f_number=float(rng.uniform(1.5, 3)),
        lines=lines,
        planes=planes,
        samples=int(np.clip(depth / (0.6 if quick else 0.35), 100, 400)),
    )


def drawn_rotation(rng: np.random.Generator) -> Array:
    """Draw the axes of the root in the world (columns), det +1 in (z, y, x).

    In 60 % as through the oesophagus, the left atrium nearest to the probe, turned about the beam at random;
    else anyhow.
    """
    if rng.random() >= 0.6:
        return random_rotation(rng)
    spin = rng.uniform(0, 2 * np.pi)
    first = np.array([np.cos(spin), 0.0, np.sin(spin)])
    second = np.array([0.0, 1.0, 0.0])
    upright = np.stack([first, second, np.cross(first, second)], 1)
    lean = rng.normal(0, 0.35, 3)
    return turned(lean, float(np.linalg.norm(lean))) @ upright


def inside_beams(probe: Probe, points_mm: Array) -> Array:
    """Whether world points (n, 3) lie among the beams: bool (n,)."""
    z, y, x = torch.from_numpy(np.asarray(points_mm, np.float32)).unbind(-1)
    index = beam_index(probe, (z, y, x))
    sizes = torch.tensor((probe.samples, probe.lines, probe.planes))
    return ((index >= -0.5) & (index <= sizes - 0.5)).all(-1).numpy()


def inside_grid(grid: Grid, points_mm: Array) -> Array:
    """Whether world points (n, 3) lie on the grid: bool (n,)."""
    index = np.asarray(grid.to_index(np.asarray(points_mm)))
    return np.asarray(((index >= -0.5) & (index <= np.array(grid.shape) - 0.5)).all(-1))


def placed(
    rng: np.random.Generator, probe: Probe, *, points_mm: Array, share: tuple[float, float]
) -> tuple[Probe, Array]:
    """Move points (n, 3) about 0 until a share of them in the range given is seen; the probe and the move.

    The middle is at most 40 mm off the probe's axis. A probe in whose fan there is no such place is opened.
    """
    for attempt in range(_TRIES):
        if attempt and attempt % _PER_PROBE == 0:
            probe = _opened(probe)
        depth = rng.uniform(14, probe.depth_mm)
        limits = np.minimum(np.tan(np.radians([probe.elevation_deg, probe.azimuth_deg])) * depth, _ASIDE_MM)
        aside = rng.uniform(-1, 1, 2) * limits
        if np.hypot(*aside) > _ASIDE_MM:
            continue
        move = np.array([aside[0], depth, aside[1]])
        moved = points_mm + move
        seen = inside_beams(probe, moved).mean()
        if share[0] <= seen <= share[1] and (share[1] < 1 or moved[:, 1].min() > 3):
            return probe, move
    return probe, np.array([0.0, 0.62 * probe.depth_mm, 0.0])


def _opened(probe: Probe) -> Probe:
    return dataclasses.replace(
        probe,
        depth_mm=min(1.12 * probe.depth_mm, 140.0),
        azimuth_deg=min(1.12 * probe.azimuth_deg, 48.0),
        elevation_deg=min(1.12 * probe.elevation_deg, 48.0),
    )


def beside(rng: np.random.Generator, probe: Probe, *, points_mm: Array) -> Array:
    """A move that takes points (n, 3) about 0 out of the beams altogether, to the side or behind."""
    for far in np.linspace(1.0, 4.0, 200):
        turn = rng.uniform(0, 2 * np.pi)
        depth = rng.uniform(0.3, 1.2) * probe.depth_mm
        reach = far * (25 + depth * np.tan(np.radians(probe.azimuth_deg)))
        move = np.array([reach * np.sin(turn), depth, reach * np.cos(turn)])
        if not inside_beams(probe, points_mm + move).any():
            return move
    return np.array([0.0, 3 * probe.depth_mm, 0.0])


def space_of(probe: Probe, *, voxels: float) -> Space:
    """Cubic voxels over all beams, about ``voxels`` of them and 0.7-1.7 mm wide."""
    low, high = (np.array(corner) for corner in bounding_box_mm(probe))
    step = float(np.clip((np.prod(high - low) / voxels) ** (1 / 3), *_VOXEL_MM))
    shape = np.ceil((high - low) / step).astype(int) + 1
    z, y, x = (float(v) for v in low)
    return Space((int(shape[0]), int(shape[1]), int(shape[2])), step, (z, y, x))
