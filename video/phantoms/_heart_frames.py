"""The moving heart on the beams of a probe: every sample is mapped back to the drawing it came from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from usvol.simulation.beam_geometry import beam_points
from usvol.simulation.probe import Probe
from usvol.simulation.propagation import Medium, interfaces
from video.phantoms._heart_drawing import CELL_MM, Drawing
from video.phantoms._heart_shape import NODES, Motion

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Pose:
    """Where the epicardial apex is in the image (mm) and how the long axis is tilted, at each time (t,).

    ``mirrored`` shows the left ventricle on the left.
    """

    x_mm: Array
    y_mm: Array
    tilt_rad: Array
    mirrored: bool

    def to_image(self, a: Array, u: Array) -> tuple[Array, Array]:
        """Map heart coordinates (t, …) to image y, x (mm)."""
        sign = -1.0 if self.mirrored else 1.0
        extra = (1,) * (a.ndim - 1)
        x0, y0, tilt = (v.reshape(-1, *extra) for v in (self.x_mm, self.y_mm, self.tilt_rad))
        across = sign * u
        return y0 + a * np.cos(tilt) - across * np.sin(tilt), x0 + a * np.sin(tilt) + across * np.cos(tilt)


@dataclass(frozen=True, slots=True, eq=False)
class Valve:
    """Two leaflets: hinges and tips (t, 2) in heart coordinates for each of the two, mm."""

    hinge_a: Array
    hinge_u: Array
    tip_a: Array
    tip_u: Array


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """All that the frames need.

    Attributes:
        half_mm: half-widths (t, side, node) with the fade beyond the annulus; ``rest_mm`` those at rest.
        right_squeeze: part of its width that the right ventricle has lost, (t,).
        knots_mm: a of imaged apex and annulus (t, 2), beside A of both at rest.
        decorrelation: angle (rad) by which other scatterers have come into the plane, (t,).
        wall_mm: depth of the chest wall; ``wall_fields`` its amplitude and log impedance on the beams.
        leaflet: amplitude, log impedance and half thickness (mm) of the leaflets.
        shade: amplitude factor ``r az t`` or what broadcasts to it: contact, lung, endfire loss of walls.
    """

    drawing: Drawing
    rest: Motion
    half_mm: Array
    knots_mm: Array
    right_squeeze: Array
    valves: tuple[Valve, ...]
    pose: Pose
    decorrelation: Array
    leaflet: tuple[float, float, float]
    chest: tuple[float, Tensor, Tensor]
    shade: Tensor


def medium_of(scene: Scene, probe: Probe, *, frames: slice) -> tuple[Medium, Tensor]:
    """Return what the beams meet in these frames, ``r az t`` each, and the scatterers that tissue carries."""
    a, u = _heart_coordinates(scene, probe, frames=frames)
    there_a, there_u = _at_rest(scene, a, u, frames=frames)
    fields, scale = _looked_up(scene.drawing, there_a, there_u)
    amplitude, attenuation, log_impedance = fields[:3]
    turn = _per_frame(scene.decorrelation, frames)
    real = torch.cos(turn) * fields[3] + torch.sin(turn) * fields[5]
    imaginary = torch.cos(turn) * fields[4] + torch.sin(turn) * fields[6]
    scatterers = torch.complex(real, imaginary) * scale
    level, impedance, half_mm = scene.leaflet
    near = _near_leaflets(scene.valves, a, u, half_mm=half_mm, frames=frames)
    amplitude = torch.lerp(amplitude, torch.full_like(amplitude, level), near)
    log_impedance = log_impedance + near * impedance
    depth_mm, wall, wall_impedance = scene.chest
    deep = torch.sigmoid((beam_points(probe)[1] - depth_mm) / 0.7)
    amplitude = torch.lerp(wall.expand_as(amplitude), amplitude, deep.expand_as(amplitude))
    log_impedance = torch.lerp(wall_impedance.expand_as(amplitude), log_impedance, deep.expand_as(amplitude))
    shade = scene.shade[..., frames] if scene.shade.shape[-1] > 1 else scene.shade
    reflection, cosine = interfaces(log_impedance, probe, width_mm=3.0)
    density = amplitude.new_full((1, 1, 1), 20.0).expand_as(amplitude)
    return Medium(amplitude * shade, density, attenuation, reflection * shade, cosine), scatterers


def _heart_coordinates(scene: Scene, probe: Probe, *, frames: slice) -> tuple[Tensor, Tensor]:
    pose = scene.pose
    _, y, x = beam_points(probe)
    x0, y0, tilt = (_per_frame(v, frames) for v in (pose.x_mm, pose.y_mm, pose.tilt_rad))
    dx, dy = x - x0, y - y0
    u = dx * torch.cos(tilt) - dy * torch.sin(tilt)
    return dx * torch.sin(tilt) + dy * torch.cos(tilt), -u if pose.mirrored else u


def _per_frame(values: Array, frames: slice) -> Tensor:
    return torch.from_numpy(values[frames].astype(np.float32))[None, None]


def _at_rest(scene: Scene, a: Tensor, u: Tensor, *, frames: slice) -> tuple[Tensor, Tensor]:
    """Map places at a time to where their tissue is at rest.

    Along the axis: stretched between the knots. Across it: in the cavity in proportion; in the wall and
    beyond so that area is kept, U² - w₀² = u² - w² (an incompressible ring), which dies out with distance.
    """
    apex, annulus = (float(v) for v in (scene.rest.apex_mm[0], scene.rest.annulus_mm[0]))
    roof = scene.drawing.roof_mm
    k1, k2 = (_per_frame(scene.knots_mm[:, n], frames) for n in (0, 1))
    there = torch.where(
        a < k1,
        torch.where(a > 0, a * (apex / k1), a),
        torch.where(a < k2, apex + (a - k1) * ((annulus - apex) / (k2 - k1)), a),
    )
    beyond = annulus + (a - k2) * ((roof - annulus) / (roof - k2))
    there = torch.where((a >= k2) & (a < roof), beyond, there)
    node = (there * ((NODES - 1) / scene.rest.reach_mm) + 0.5).long().clamp_(0, NODES - 1)
    side = (u > 0).long()
    now = torch.from_numpy(scene.half_mm[frames].astype(np.float32))
    frame = torch.arange(now.shape[0])
    w = now.flatten()[(frame * 2 + side) * NODES + node]
    w0 = torch.from_numpy(scene.rest.half_mm[0].astype(np.float32)).flatten()[side * NODES + node]
    ring = (u.square() + w0.square() - w.square()).clamp_(min=0).sqrt()
    across = torch.where(u.abs() < w, u.abs() * w0 / w.clamp(min=0.1), ring)
    across = torch.where(there > 0, across, u.abs())
    if bool((scene.right_squeeze > 0).any()):
        across = torch.where(side == 0, _right_at_rest(scene, across, node, frames=frames), across)
    return there, torch.where(side == 1, across, -across)


def _right_at_rest(scene: Scene, across: Tensor, node: Tensor, *, frames: slice) -> Tensor:
    """Undo the narrowing of the right ventricle, which begins at the outside of the septum."""
    outer = torch.from_numpy(scene.drawing.outer_mm[0].astype(np.float32))[node]
    width = torch.from_numpy(scene.drawing.right_mm.astype(np.float32))[node]
    lost = _per_frame(scene.right_squeeze, frames)
    beside = across - outer
    narrow = width * (1 - lost)
    outside = beside + width * lost * torch.exp(-(beside - narrow).clamp(min=0) / 15)
    widened = torch.where(beside < narrow, beside / (1 - lost), outside)
    return torch.where(beside > 0, outer + widened, across)


def _looked_up(drawing: Drawing, a: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Sample the drawing: ``channel r az t``, and the factor that keeps the scatterers' mean square at 1."""
    rows, columns = drawing.fields.shape[1:]
    row = ((a - drawing.origin_mm[0]) / CELL_MM).clamp(0, rows - 1)
    column = ((u - drawing.origin_mm[1]) / CELL_MM).clamp(0, columns - 1)
    place = torch.stack([column * (2 / (columns - 1)) - 1, row * (2 / (rows - 1)) - 1], -1)
    fields = F.grid_sample(
        drawing.fields[None], place.reshape(1, a.shape[0], -1, 2), mode="bilinear", align_corners=True
    )
    kept = torch.ones(())
    for index in (row, column):
        part = index - index.floor()
        kept = kept * (part.square() + (1 - part).square())
    return fields.reshape(-1, *a.shape), kept.rsqrt()


def _near_leaflets(
    valves: tuple[Valve, ...], a: Tensor, u: Tensor, *, half_mm: float, frames: slice
) -> Tensor:
    """Return 1 on the leaflets, falling to 0 beside them."""
    nearest = torch.full_like(a, 1e6)
    for valve in valves:
        for leaflet in (0, 1):
            ha, hu, ta, tu = (
                _per_frame(v[:, leaflet], frames)
                for v in (valve.hinge_a, valve.hinge_u, valve.tip_a, valve.tip_u)
            )
            da, du = ta - ha, tu - hu
            pa, pu = a - ha, u - hu
            along = ((pa * da + pu * du) / (da.square() + du.square())).clamp(0, 1)
            nearest = torch.minimum(nearest, (pa - along * da).square() + (pu - along * du).square())
    return torch.exp(-((nearest / half_mm**2) ** 2))
