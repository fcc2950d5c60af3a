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


def aimed(rng: np.random.Generator, points: np.ndarray, *, endocavitary: bool, cut: bool) -> Probe:
    """Draw a probe whose beams hold the points (n, 3), with room to spare, or miss some of them."""
    probe = draw_probe(rng, endocavitary=endocavitary, depth_mm=float(points[:, 1].max()) + 15)
    far, azimuth, elevation = needed(probe, points)
    near = float(points[:, 1].min())
    spare = rng.uniform((4, 1.03, 1.03), (26, 1.5, 1.5))
    short = rng.uniform(0.5, 0.88, 3)
    side = int(rng.choice(4, p=(0.35, 0.35, 0.15, 0.15))) if cut else -1
    depth = far + spare[0] if side != 2 else near + (far - near) * short[0]
    azimuth *= short[1] if side in (0, 3) else spare[1]
    elevation *= short[2] if side in (1, 3) else spare[2]
    return dataclasses.replace(
        probe,
        depth_mm=float(depth),
        focus_mm=float(depth * rng.uniform(0.35, 0.8)),
        azimuth_deg=float(np.clip(azimuth + (side < 0), 12, WIDEST_DEG + 6)),
        elevation_deg=float(np.clip(elevation + (side < 0), 12, WIDEST_DEG + 6)),
        samples=int(np.clip(depth / 0.35, 192, 320)),
    )


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
    if spacing_mm is not None:
        step = np.array(spacing_mm)
    else:
        step = np.clip((high - low).max() / size * stretch, *SPACING_MM)
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
