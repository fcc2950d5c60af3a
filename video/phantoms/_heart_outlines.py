"""Outlines of the moving chambers in the image, and the label maps they fill."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from usvol.scan import Grid
from video.phantoms._heart_frames import Scene
from video.phantoms._heart_shape import NODES, Motion

Array = NDArray[np.float64]

LABEL_NAMES = {1: "left_ventricle", 2: "myocardium", 3: "left_atrium"}
_EVERY = 8  # of the nodes along the axis, for outlines
_FINER = 4  # times as many samples as the grid has, to draw on
_ROUND = np.linspace(0, 2 * np.pi, 48, endpoint=False)


@dataclass(frozen=True, slots=True, eq=False)
class Outlines:
    """Closed outlines (t, point, 2) and points in the image, y and x in mm.

    ``cavity`` runs from the septal annulus over the apex to the lateral one; ``wall`` is the outside of the
    wall; ``annulus_mm`` (t, 2, 2) holds both hinges.
    """

    cavity: Array
    wall: Array
    atrium: Array
    apex_mm: Array
    annulus_mm: Array


def outlines_of(scene: Scene, motion: Motion) -> Outlines:
    """Map the outlines at rest to every frame."""
    rest = scene.rest
    apex, annulus = float(rest.apex_mm[0]), float(rest.annulus_mm[0])
    nodes = np.arange(0, NODES, _EVERY)
    at = nodes / (NODES - 1) * rest.reach_mm
    inside = np.concatenate([[apex + 0.2], at[(at > apex + 0.2) & (at < annulus)], [annulus]])
    cavity = _both_sides(scene, inside, _half(motion.half_mm, inside, rest.reach_mm))
    outer = np.concatenate([at[at < annulus], [annulus]])
    wall = _both_sides(scene, outer, _outside(scene, outer))
    a0, u0, da, du = scene.drawing.atrium_mm
    ring_a = np.maximum(a0 + da * np.cos(_ROUND), annulus)
    ring_u = u0 + du * np.sin(_ROUND)
    count = len(scene.half_mm)
    atrium = _in_image(scene, ring_a, np.broadcast_to(ring_u, (count, len(ring_u))))
    tips = _in_image(scene, np.array([apex]), np.zeros((count, 1)))[:, 0]
    half = _half(motion.half_mm, np.array([annulus]), rest.reach_mm)[..., 0] * np.array([-1.0, 1.0])
    hinges = np.stack([_in_image(scene, np.array([annulus]), half[:, [n]])[:, 0] for n in (0, 1)], 1)
    return Outlines(cavity, wall, atrium, tips, hinges)


def _half(half_mm: Array, at: Array, reach_mm: float) -> Array:
    """Look up half-widths (t, side, point) at A."""
    node = np.clip(np.round(at / reach_mm * (NODES - 1)).astype(int), 0, NODES - 1)
    return half_mm[:, :, node]


def _outside(scene: Scene, at: Array) -> Array:
    """Return the outer half-widths of the wall at each time: u² = U² - w₀² + w²."""
    reach = scene.rest.reach_mm
    now, rest = _half(scene.half_mm, at, reach), _half(scene.rest.half_mm, at, reach)
    outer = _half(scene.drawing.outer_mm[None], at, reach)
    return np.sqrt(np.clip(outer**2 - rest**2 + now**2, 0, None))


def _both_sides(scene: Scene, at: Array, half: Array) -> Array:
    up = _in_image(scene, at, -half[:, 0])[:, ::-1]
    return np.concatenate([up, _in_image(scene, at, half[:, 1])], 1)


def _in_image(scene: Scene, at: Array, u: Array) -> Array:
    """Map A at rest (point,) and u now (t, point) to the image (t, point, 2)."""
    apex, annulus = float(scene.rest.apex_mm[0]), float(scene.rest.annulus_mm[0])
    roof = scene.drawing.roof_mm
    now = np.stack([np.interp(at, [0, apex, annulus, roof], [0, k1, k2, roof]) for k1, k2 in scene.knots_mm])
    now = np.where(at > roof, at, now)
    return np.stack(scene.pose.to_image(now, u), -1)


def label_map(outlines: Outlines, grid: Grid) -> Tensor:
    """Fill the outlines on a planar grid: uint8 ``t 1 y x``."""
    origin, step = np.asarray(grid.origin)[1:], np.asarray(grid.step)[1:]
    count, (rows, columns) = len(outlines.cavity), grid.shape[1:]
    data = np.empty((count, *grid.shape), np.uint8)
    layers = [
        (label, ((places - origin) / step + 0.5)[..., ::-1] * _FINER)
        for label, places in ((2, outlines.wall), (3, outlines.atrium), (1, outlines.cavity))
    ]
    for t in range(count):
        canvas = Image.new("L", (columns * _FINER, rows * _FINER))
        pen = ImageDraw.Draw(canvas)
        for label, corners in layers:
            pen.polygon(corners[t].ravel().tolist(), fill=label)
        # The middle of each pixel decides.
        data[t, 0] = np.asarray(canvas)[_FINER // 2 :: _FINER, _FINER // 2 :: _FINER]
    return torch.from_numpy(data)
