"""How the probe looks at the sac: opening and depth that hold it, or cut it, and the grid of the volume."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from usvol.scan import Frame, Grid, Vec3
from usvol.simulation.beam_geometry import bounding_box_mm
from usvol.simulation.probe import Probe, draw_probe

WIDEST_DEG = 68.0
SPACING_MM = (0.3, 1.5)


def needed(probe: Probe, points: np.ndarray) -> tuple[float, float, float]:
    """Range (mm), half azimuth and half elevation (degrees) that hold world points (n, 3)."""
    z, y, x = points.T
    swept = np.hypot(z, y + probe.sweep_radius_mm)
    depth = swept - probe.sweep_radius_mm + probe.radius_mm
    return (
        float((np.hypot(x, depth) - probe.radius_mm).max()),
        math.degrees(np.abs(np.arctan2(x, depth)).max()),
        math.degrees(np.abs(np.arctan2(z, y + probe.sweep_radius_mm)).max()),
    )


def aimed(rng: np.random.Generator, points: np.ndarray, *, endocavitary: bool) -> Probe:
    """Draw a probe whose beams hold the points (n, 3), with room to spare."""
    probe = draw_probe(rng, endocavitary=endocavitary, depth_mm=float(points[:, 1].max()) + 15)
    far, azimuth, elevation = needed(probe, points)
    spare, least = rng.uniform((3, 1.03, 1.03), (26, 1.4, 1.4)), rng.uniform((20, 16), (36, 34))
    depth = far + spare[0]
    return dataclasses.replace(
        probe,
        depth_mm=float(depth),
        focus_mm=float(depth * rng.uniform(0.35, 0.8)),
        azimuth_deg=float(np.clip(azimuth * spare[1] + 1, least[0], WIDEST_DEG)),
        elevation_deg=float(np.clip(elevation * spare[2] + 1, least[1], WIDEST_DEG)),
        samples=int(np.clip(depth / 0.35, 192, 320)),
    )


def missed(rng: np.random.Generator, probe: Probe, *, points: np.ndarray) -> tuple[Probe, np.ndarray]:
    """Make a probe miss a tenth to a third of the points' extent: by its depth, or by moving them aside.

    Returns the probe and the move (z, y, x) in mm.
    """
    low, high = points.min(0), points.max(0)
    part, side = float(rng.uniform(0.1, 0.35)), rng.choice((-1.0, 1.0))
    axis = int(rng.choice(3, p=(0.4, 0.2, 0.4)))
    if axis == 1:
        depth = float(high[1] - part * (high[1] - low[1]))
        return dataclasses.replace(probe, depth_mm=depth, focus_mm=min(probe.focus_mm, depth)), np.zeros(3)
    angle, radius = (
        (probe.azimuth_deg, probe.radius_mm) if axis == 2 else (probe.elevation_deg, probe.sweep_radius_mm)
    )
    middle = (low + high) / 2
    edge = (radius + middle[1]) * math.tan(math.radians(angle))
    extent = high[axis] - low[axis]
    move = np.zeros(3)
    move[axis] = side * (edge + extent * (part - 0.5)) - middle[axis]
    return probe, move


def volume_grid(
    rng: np.random.Generator, probe: Probe, *, target: np.ndarray, size: int, spacing_mm: Vec3 | None
) -> Grid:
    """Draw the grid of the volume, at most ``size`` samples along a side.

    Mostly the box around all beams, now and then one around ``target`` (lowest and highest world corner)
    with a margin, which beams may fill whole. What is too large for the coarsest spacing is cropped about
    the target.
    """
    low, high = (np.array(corner) for corner in bounding_box_mm(probe))
    closer, margin = rng.random() < 0.25, rng.uniform(3, 30, (2, 3))
    if closer:
        low, high = np.maximum(low, target[0] - margin[0]), np.minimum(high, target[1] + margin[1])
    stretch = np.ones(3) if rng.random() < 0.6 else rng.uniform(1, 2.2, 3)
    # Never so fine that a whole sac would not fit.
    coarsest = max(SPACING_MM[1], 1.04 * float(np.ptp(target, axis=0).max()) / size)
    step = np.clip((high - low).max() / size * stretch, SPACING_MM[0], coarsest)
    if spacing_mm is not None:
        step = np.array(spacing_mm)
    extent = np.minimum(high - low, size * step)
    middle = np.clip(target.mean(0), low + extent / 2, high - extent / 2)
    shape = np.clip(np.round(extent / step), 8, size).astype(int)
    first = middle - (shape - 1) / 2 * step
    return Grid(
        (int(shape[0]), int(shape[1]), int(shape[2])),
        (float(step[0]), float(step[1]), float(step[2])),
        (float(first[0]), float(first[1]), float(first[2])),
        frame=Frame.PROBE,
    )
