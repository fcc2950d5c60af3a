"""Measure the aortic root on its mesh, as transcatheter valve sizing does (Achenbach et al., JCCT 6, 2012).

Lengths are those of the vertices' unit: only call this for vertices in mm.
"""

from __future__ import annotations

import math

import numpy as np

from models3d.tasks._aortic_mesh import (
    CUSP_COLUMNS,
    CUSPS,
    Points,
    cusp_sheet,
    enclosed_ml,
    root_frame,
    wall_rings,
)

_DIRECTIONS = 90  # calipers, over half a turn


def measures(vertices: Points) -> dict[str, float]:
    """Measure a mesh (860, 3) in mm: lengths in mm, area in mm², volume in mL.

    Annulus: the virtual ring through the hinges, in its own plane: smallest and largest caliper width,
    diameter of the circle of its area, length of the ring. Sinus: largest caliper width perpendicular to the
    root's axis. Cusp height: geometric, along the middle of the cusp from its nadir to its free edge.
    """
    vertices = np.asarray(vertices, float)
    rings = wall_rings(vertices)
    annulus = in_plane(rings[0])
    widths = calipers(annulus)
    axes = root_frame(vertices)
    along = np.linalg.norm(rings[-1].mean(0) - rings[0].mean(0))
    heights = {f"cusp_height_{name}_mm": _length(_middle(vertices, k)) for k, name in enumerate(CUSPS)}
    return {
        "annulus_diameter_min_mm": float(widths.min()),
        "annulus_diameter_max_mm": float(widths.max()),
        "annulus_diameter_area_mm": 2 * math.sqrt(enclosed_area(annulus) / math.pi),
        "annulus_perimeter_mm": _length(np.concatenate([rings[0], rings[0][:1]])),
        "annulus_area_mm2": enclosed_area(annulus),
        "sinus_diameter_mm": max(float(calipers(ring @ axes[:, 1:]).max()) for ring in rings[2:-2]),
        "sinotubular_diameter_mm": 2 * math.sqrt(enclosed_area(in_plane(rings[-1])) / math.pi),
        **heights,
        "root_height_mm": float(along),
        "root_volume_ml": enclosed_ml(vertices),
    }


def in_plane(ring: Points) -> Points:
    """Coordinates (n, 2) of a ring (n, 3) in the plane that fits it best."""
    centred = ring - ring.mean(0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T


def calipers(outline: Points) -> Points:
    """Widths of an outline (n, 2) between parallel jaws, over half a turn in steps of two degrees."""
    angles = np.arange(_DIRECTIONS) * np.pi / _DIRECTIONS
    return np.ptp(outline @ np.stack([np.cos(angles), np.sin(angles)]), axis=0)


def enclosed_area(outline: Points) -> float:
    """Area within an outline (n, 2) (the shoelace formula)."""
    x, y = outline.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _middle(vertices: Points, cusp: int) -> Points:
    return cusp_sheet(vertices, cusp)[:, CUSP_COLUMNS // 2]


def _length(path: Points) -> float:
    return float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())
