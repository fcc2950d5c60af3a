"""Move planes by hand: tilt and turn them about their own axes, shift them, and take one through a volume."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from usvol.resampling import plane_axes
from usvol.result import Plane
from usvol.scan import Grid, vec3


def nudged(plane: Plane, *, offset: float = 0.0, tilt_deg: float = 0.0, turn_deg: float = 0.0) -> Plane:
    """Return a plane tilted about its own left-right axis, then turned about ``up``, then shifted.

    Its point stays on both rotation axes; ``up`` stays as far up as the tilt lets it.

    Args:
        plane: where to start.
        offset: shift along the new normal, in world units (mm if calibrated).
        tilt_deg: rotation from ``up`` towards the normal.
        turn_deg: rotation of the normal towards the right of the picture.

    Example:
        >>> start = Plane("cut", (0.0, 0.0, 0.0), normal=(1.0, 0.0, 0.0), up=(0.0, -1.0, 0.0))
        >>> moved = nudged(start, offset=2.0, turn_deg=90.0)
        >>> [round(v, 6) + 0.0 for v in (*moved.normal, *moved.point)]
        [0.0, 0.0, 1.0, 0.0, 0.0, 2.0]
    """
    normal, down, right = np.asarray(plane_axes(plane)).T
    tilt, turn = math.radians(tilt_deg), math.radians(turn_deg)
    up = -down * math.cos(tilt) + normal * math.sin(tilt)
    normal = normal * math.cos(tilt) + down * math.sin(tilt)
    normal = normal * math.cos(turn) + right * math.sin(turn)
    point = np.asarray(plane.point, float) + offset * normal
    # How sure the network was is said of its own plane alone.
    confidence = None if offset or tilt_deg or turn_deg else plane.confidence
    return dataclasses.replace(
        plane, point=vec3(point), normal=vec3(normal), up=vec3(up), confidence=confidence
    )


def middle_plane(grid: Grid, *, name: str = "plane") -> Plane:
    """Return the plane through the middle of a volume across its z axis, the y axis pointing down."""
    centre = grid.to_world((np.asarray(grid.shape) - 1) / 2)
    across, down, _ = np.asarray(grid.direction, float).T
    return Plane(name, vec3(centre), normal=vec3(across), up=vec3(-down))
