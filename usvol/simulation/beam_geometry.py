"""Where the samples of each beam lie, and which beam meets a point: the geometry of ``Probe``.

An arc of elements (radius R, azimuth a) is swept about an axis (distance S behind the face, elevation e):
at range r, v = (R + r) cos a - R is the depth in the array's plane, and

    x = (R + r) sin a,    y = (S + v) cos e - S,    z = (S + v) sin e,

a torus, as 3D probes with a motor have it; R = S = 0 is a pyramid of beams from one point. On a straight
face a is x itself, and v is r. Sample i is the centre of the i-th of equal steps, as in ``resampling``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from usvol.scan import Frame, Grid, Shape3, Vec3
from usvol.simulation.probe import Probe


def ranges_mm(probe: Probe) -> Tensor:
    """Distance from the face of each sample of a beam: float32 (samples,)."""
    return (torch.arange(probe.samples) + 0.5) * probe.step_mm


def pitches_mm(probe: Probe) -> tuple[Tensor, Tensor]:
    """Distance of neighbouring lines along azimuth and along elevation, at each range: (samples,) each."""
    distance = ranges_mm(probe)
    azimuth = 2 * probe.half_width / probe.lines
    along = torch.full_like(distance, azimuth) if probe.width_mm is not None else azimuth * _arc(probe)
    elevation = 2 * math.radians(probe.elevation_deg) / probe.planes
    return along, elevation * (probe.sweep_radius_mm + distance)


def _arc(probe: Probe) -> Tensor:
    return probe.radius_mm + ranges_mm(probe)


def beam_points(probe: Probe) -> tuple[Tensor, Tensor, Tensor]:
    """World z, y, x (mm) of every sample, each broadcastable to ``r az el``."""
    across = ((torch.arange(probe.lines) + 0.5) / probe.lines * 2 - 1) * probe.half_width
    out = ((torch.arange(probe.planes) + 0.5) / probe.planes * 2 - 1) * math.radians(probe.elevation_deg)
    if probe.width_mm is not None:
        x, depth = across[None, :, None], ranges_mm(probe)[:, None, None]
    else:
        arc = _arc(probe)[:, None, None]
        x = arc * torch.sin(across)[None, :, None]
        depth = arc * torch.cos(across)[None, :, None] - probe.radius_mm
    if probe.is_planar:
        return torch.zeros(1, 1, 1), depth, x
    distance, out = probe.sweep_radius_mm + depth, out[None, None]
    return distance * torch.sin(out), distance * torch.cos(out) - probe.sweep_radius_mm, x


def beam_index(probe: Probe, points: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Fractional index (r, az, el) of the sample at world z, y, x: float (..., 3)."""
    z, y, x = points
    if probe.is_planar:
        depth, elevation = y, torch.zeros((), device=y.device)
    else:
        distance = torch.hypot(z, y + probe.sweep_radius_mm)
        depth, elevation = distance - probe.sweep_radius_mm, torch.atan2(z, y + probe.sweep_radius_mm)
    if probe.width_mm is not None:
        distance, across = depth, x
    else:
        distance = torch.hypot(x, depth + probe.radius_mm) - probe.radius_mm
        across = torch.atan2(x, depth + probe.radius_mm)
    half = math.radians(probe.elevation_deg)
    index = (
        distance / probe.step_mm - 0.5,
        (across / probe.half_width + 1) / 2 * probe.lines - 0.5,
        (elevation / half + 1) / 2 * probe.planes - 0.5,
    )
    return torch.stack(torch.broadcast_tensors(*index), -1)


def bounding_box_mm(probe: Probe) -> tuple[Vec3, Vec3]:
    """Lowest and highest world (z, y, x) that any beam reaches; z is 0 for one plane."""
    half = probe.half_width
    angles = np.linspace(-half, half, 65)
    sweep = np.zeros(1) if probe.is_planar else np.radians(np.linspace(-1, 1, 65) * probe.elevation_deg)
    distance = np.array([0.0, probe.depth_mm])[:, None, None]
    if probe.width_mm is not None:
        x, depth = angles[None, :, None], distance
    else:
        x = (probe.radius_mm + distance) * np.sin(angles)[None, :, None]
        depth = (probe.radius_mm + distance) * np.cos(angles)[None, :, None] - probe.radius_mm
    z = (probe.sweep_radius_mm + depth) * np.sin(sweep)
    y = (probe.sweep_radius_mm + depth) * np.cos(sweep) - probe.sweep_radius_mm
    if probe.is_planar:
        z, y = np.zeros(1), depth
    low, high = ((float(f(z)), float(f(y)), float(f(x))) for f in (np.min, np.max))
    return low, high


def image_grid(probe: Probe, shape: Shape3 | None = None) -> Grid:
    """Return a grid around all beams, of ``shape`` (z, y, x), or isotropic of about 128³ (a plane: 256²)."""
    low, high = (np.array(corner) for corner in bounding_box_mm(probe))
    extent = high - low
    if probe.is_planar:
        spacing = extent[1:].max() / 256 if shape is None else None
        rows = (extent[1:] / spacing).round().astype(int) if spacing else np.array(shape)[1:]
        step_y, step_x = (float(s) for s in extent[1:] / rows)
        origin = (0.0, float(low[1]) + step_y / 2, float(low[2]) + step_x / 2)
        return Grid((1, int(rows[0]), int(rows[1])), (step_y, step_y, step_x), origin, frame=Frame.PROBE)
    if shape is None:
        spacing = float(np.prod(extent) ** (1 / 3)) / 128
        sizes = np.maximum((extent / spacing).round().astype(int), 1)
    else:
        sizes = np.array(shape)
    step = extent / sizes
    first = low + step / 2
    return Grid(
        (int(sizes[0]), int(sizes[1]), int(sizes[2])),
        (float(step[0]), float(step[1]), float(step[2])),
        (float(first[0]), float(first[1]), float(first[2])),
        frame=Frame.PROBE,
    )
