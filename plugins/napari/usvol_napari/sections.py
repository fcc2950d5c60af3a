"""Where planes and boxes cross the slice on the screen: napari draws in a slice only what lies in it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from napari.layers import Layer, Shapes

from usvol.result import Box
from usvol_napari.layers import Key


def polygons_of(layer: Layer) -> list[np.ndarray]:
    """Return the flat convex outlines (n, 3), in viewer coordinates, of the plane or box of a layer."""
    if not isinstance(layer, Shapes) or layer.ndim != 3 or Key.FINDING not in layer.metadata:
        return []
    if layer.metadata[Key.PLACEMENT].grid.is_planar:
        return []  # its axes are t, y, x
    drawn = [np.asarray(path, float) for path in layer.data]
    if layer.metadata.get(Key.ROLE) == "outline":
        return drawn
    if not isinstance(layer.metadata[Key.FINDING], Box):
        return []
    one, other = (path[:4] for path in drawn[:2])  # opposite faces, their corners in the same order
    sides = [np.stack([one[a], one[b], other[b], other[a]]) for a, b in ((0, 1), (1, 2), (2, 3), (3, 0))]
    return [one, other, *sides]


def crossings(polygons: Iterable[np.ndarray], *, axis: int, at: float) -> list[np.ndarray]:
    """Return the segments (2, 3) in which convex polygons (n, 3) cross the plane ``axis`` = ``at``."""
    found = []
    for polygon in polygons:
        height = polygon[:, axis] - at
        after, next_height = np.roll(polygon, -1, axis=0), np.roll(height, -1)
        crossed = (height >= 0) != (next_height >= 0)
        if crossed.sum() == 2:
            share = (height / np.where(crossed, height - next_height, 1.0))[crossed, None]
            found.append(polygon[crossed] + share * (after - polygon)[crossed])
    return found
