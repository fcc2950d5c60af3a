"""Where a simulated image lies: grids and fans of convex and linear probes.

World axes of ``Frame.PROBE``: x along the probe, 0 in its middle; y away from it, 0 at its surface.
"""

from __future__ import annotations

import math

from usvol.scan import Fan, Grid


def convex(size: int, *, depth_mm: float, radius_mm: float, half_angle_deg: float) -> tuple[Grid, Fan]:
    """Place a square image of a curved probe; a fan wider than it is deep is cut at its sides."""
    fan = Fan((-radius_mm, 0.0), radius_mm, radius_mm + depth_mm, -half_angle_deg, half_angle_deg)
    top_mm = radius_mm * (math.cos(math.radians(half_angle_deg)) - 1)
    step_mm = (depth_mm - top_mm) / size
    origin_mm = (0.0, top_mm + step_mm / 2, step_mm * (1 - size) / 2)
    return Grid((1, size, size), (step_mm, step_mm, step_mm), origin_mm), fan


def linear(size: int, *, depth_mm: float, width_mm: float) -> Grid:
    """Place a square array of samples over the rectangle that a straight probe sees."""
    rows_mm, columns_mm = depth_mm / size, width_mm / size
    origin_mm = (0.0, rows_mm / 2, (columns_mm - width_mm) / 2)
    return Grid((1, size, size), (rows_mm, rows_mm, columns_mm), origin_mm)
