"""Draw planes, lines and boxes over pictures of a scan: three orthogonal cuts, and the reslice of a plane."""

from __future__ import annotations

import numpy as np
from PIL import ImageDraw

from usvol.report import panels
from usvol.resampling import cross_section
from usvol.result import Box, Line, Plane
from usvol.scan import Grid


def draw_plane(
    draw: ImageDraw.ImageDraw,
    plane: Plane,
    *,
    grid: Grid,
    cut: tuple[int, int],
    size: tuple[int, int],
) -> None:
    """Draw where ``plane`` meets one cut of a volume: a line, with a tick to the side its ``up`` points to.

    Args:
        draw: on the picture of the cut.
        plane: in world coordinates of the volume.
        grid: of the volume.
        cut: axis (0-2) and index of the slice shown; rows and columns are the other two axes, in order.
        size: of the picture, (width, height) px.
    """
    axis, at = cut
    corners = cross_section(plane, grid)
    if not len(corners):
        return
    index = grid.to_index(corners)
    height = index[:, axis] - at
    pairs = [(a, (a + 1) % len(index)) for a in range(len(index))]
    ends = [
        index[a] + (index[b] - index[a]) * height[a] / (height[a] - height[b])
        for a, b in pairs
        if (height[a] >= 0) != (height[b] >= 0)
    ]
    if len(ends) != 2:
        return
    a, b = (_pixel(end, grid, axis=axis, size=size) for end in ends)
    draw.line((*a, *b), fill=panels.PALETTE[0], width=2)
    middle = _pixel(grid.to_index(np.asarray(plane.point)), grid, axis=axis, size=size)
    tip = np.asarray(plane.point) + np.asarray(plane.up) * min(grid.step)
    up = _pixel(grid.to_index(tip), grid, axis=axis, size=size) - middle
    # A short arrow only where up lies about in this cut.
    if np.linalg.norm(up) > 0.3 * max(size) / max(grid.shape):
        foot = a + (b - a) * np.clip(((middle - a) @ (b - a)) / max(float((b - a) @ (b - a)), 1e-9), 0, 1)
        head = foot + up / np.linalg.norm(up) * 0.08 * max(size)
        draw.line((*foot, *head), fill=panels.INK, width=1)
        draw.ellipse((*(head - 2), *(head + 2)), fill=panels.INK)


def draw_line(draw: ImageDraw.ImageDraw, line: Line, *, grid: Grid, axis: int, size: tuple[int, int]) -> None:
    """Draw a line, projected along ``axis`` of ``grid``, on a picture of ``size`` px; a ring is its tip."""
    entry, tip = (
        _pixel(grid.to_index(np.asarray(p)), grid, axis=axis, size=size) for p in (line.entry, line.tip)
    )
    draw.line((*entry, *tip), fill=panels.PALETTE[0], width=2)
    draw.ellipse((*(tip - 3), *(tip + 3)), outline=panels.INK)


def draw_box(draw: ImageDraw.ImageDraw, box: Box, *, grid: Grid, axis: int, size: tuple[int, int]) -> None:
    """Draw the twelve edges of a box, projected along ``axis`` of ``grid``, on a picture of ``size`` px.

    The edges along its first axis are brighter: they tell how it is turned.
    """
    rotation, half = np.asarray(box.rotation, float), np.asarray(box.size, float) / 2
    signs = np.array([(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], float)
    corners = grid.to_index(np.asarray(box.centre) + (signs * half) @ rotation.T)
    pixels = [_pixel(corner, grid, axis=axis, size=size) for corner in corners]
    for along, step in ((2, 1), (1, 2), (0, 4)):
        colour = panels.PALETTE[0] if along == 0 else panels.FAINT
        for start in (k for k in range(8) if signs[k, along] < 0):
            draw.line((*pixels[start], *pixels[start + step]), fill=colour, width=1)


def _pixel(index: np.ndarray, grid: Grid, *, axis: int, size: tuple[int, int]) -> np.ndarray:
    """Return the pixel (x, y) of an index (z, y, x) on a picture of the cut across ``axis``."""
    rows, columns = (k for k in range(3) if k != axis)
    width, height = size
    return np.array([
        (index[columns] + 0.5) / grid.shape[columns] * width,
        (index[rows] + 0.5) / grid.shape[rows] * height,
    ])  # fmt: skip
