"""Draw meshes: shaded pictures from three sides, by points and a depth buffer in numpy.

No graphics library takes part: VTK needs OpenGL, which servers and containers may lack, and its failure to
find any ends the process. Of a mesh with closed parts and open sheets the closed parts are drawn as glass, so
that the sheets inside (the cusps of a valve in its root) show; any other mesh is solid.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from usvol.report import panels
from usvol.result import Surface
from usvol.scan import Matrix3

Array = np.ndarray
_OVER = 1.5  # drawn larger, then shrunk
_MARGIN = 0.06  # of the picture, around the mesh
_GAP = 0.012  # of the picture: points nearer to the front than this belong to its layer
_STEP_PX = 0.75  # between points
_POINTS_MAX = 300_000
_LIGHT = np.array([-0.35, -0.55, 0.76])  # right, down, towards the viewer
_GLASS = (0.28, 0.4)  # how much the front and the next layer of glass hide
_BARS_MM = (1, 2, 5, 10, 20, 50, 100)

# Right, down and towards the viewer, as axes and signs. Axes right-handed in (z, y, x) are left-handed
# in space, and no view may be a mirror image.
_VIEWS = (("side", (2, -1, 3)), ("side, turned", (-3, -1, 2)), ("end on", (-3, 2, 1)))


def picture(
    surface: Surface, *, axes: Matrix3 | None = None, in_mm: bool = False, side: int = 220
) -> Image.Image:
    """Draw a mesh from three sides.

    Args:
        surface: the mesh; its ``vertex_labels`` colour it.
        axes: columns are the axes to look along, as of a ``Box``: the first points up in both side views, and
            the last view looks down on it. None: y of the world points down.
        in_mm: whether a bar of scale may be drawn.
        side: of each of the three pictures, px.
    """
    vertices = np.asarray(surface.vertices, float)
    frame = np.array([[0, 0, -1], [-1, 0, 0], [0, 1, 0]], float) if axes is None else np.asarray(axes, float)
    local = (vertices - (vertices.min(0) + vertices.max(0)) / 2) @ frame
    labels = None if surface.vertex_labels is None else np.asarray(surface.vertex_labels).astype(int)
    faces, glass = faces_seen(surface)
    reach = 2 * max(float(np.linalg.norm(local, axis=1).max()), 1e-9)
    scale = side * (1 - 2 * _MARGIN) / reach
    places, normals, face = _splatted(_OVER * scale * local, faces)
    colours, clear = _colours(labels, faces)[face], glass[face]
    sheet = Image.new("RGB", (3 * side + 2 * 4, side), panels.PAPER)
    for number, (caption, directions) in enumerate(_VIEWS):
        order = [abs(d) - 1 for d in directions]
        signs = np.sign(directions).astype(np.float32)
        shade = _shaded(normals[:, order] * signs)[:, None] * colours
        tile = _view(places[:, order] * signs, shade, glass=clear, side=side)
        draw = ImageDraw.Draw(tile)
        draw.text((4, 2), caption, fill=panels.FAINT, font=panels.font(10))
        if in_mm and number == 0:
            _draw_bar(draw, scale=scale, side=side)
        sheet.paste(tile, (number * (side + 4), 0))
    return sheet


def faces_seen(surface: Surface) -> tuple[Array, Array]:
    """Return the faces (m, 3) to draw of a mesh, and whether each is glass: it encloses open sheets."""
    faces = np.asarray(surface.faces, np.int64)
    glass = _glass(faces, len(surface.vertices))
    if surface.vertex_labels is None:
        return faces, glass
    labels = np.asarray(surface.vertex_labels).astype(int)
    # A label that one vertex alone bears marks the middle of a lid, which would hide what is behind it.
    lids = (np.bincount(labels)[labels] == 1)[faces].any(1) & glass
    return faces[~lids], glass[~lids]


def _view(places: Array, colour: Array, *, glass: Array, side: int) -> Image.Image:
    """Draw points (right, down, near) of a colour: the nearest solid one, and glass before it."""
    size = round(_OVER * side)
    column, row = (np.clip(places[:, i] + size / 2, 0, size - 1).astype(np.int64) for i in (0, 1))
    pixel, near = row * size + column, places[:, 2]
    canvas = np.tile(np.array(panels.PAPER, np.float32), (size * size, 1))
    depth = np.full(size * size, -np.inf, np.float32)
    solid = np.flatnonzero(~glass)
    front = solid[_nearest(pixel[solid], near[solid], count=size * size)]
    canvas[pixel[front]], depth[pixel[front]] = colour[front], near[front]
    clear = np.flatnonzero(glass & (near > depth[pixel]))
    layers = []
    for _ in _GLASS:
        front = clear[_nearest(pixel[clear], near[clear], count=size * size)]
        layers.append(front)
        top = np.full(size * size, np.inf, np.float32)
        top[pixel[front]] = near[front]
        clear = clear[near[clear] < top[pixel[clear]] - _GAP * size]
    for front, strength in reversed(list(zip(layers, _GLASS, strict=True))):
        canvas[pixel[front]] += strength * (colour[front] - canvas[pixel[front]])
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8).reshape(size, size, 3))
    return image.resize((side, side), Image.Resampling.LANCZOS)


def _nearest(pixel: Array, near: Array, *, count: int) -> Array:
    """Index of the points nearest to the viewer in each pixel that has any."""
    top = np.full(count, -np.inf, np.float32)
    np.maximum.at(top, pixel, near)
    return np.flatnonzero(near == top[pixel])


def _glass(faces: Array, count: int) -> Array:
    """Tell faces of closed parts, if the mesh has open sheets, too: bool (m,)."""
    edges = np.sort(np.concatenate([faces[:, (0, 1)], faces[:, (1, 2)], faces[:, (2, 0)]]), axis=1)
    links = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    part = connected_components(links, directed=False)[1]
    _, first, shared = np.unique(edges, axis=0, return_index=True, return_counts=True)
    is_open = np.zeros(count, bool)
    is_open[part[edges[first[shared == 1], 0]]] = True
    closed = ~is_open[part[faces[:, 0]]]
    return closed & (not closed.all())


def _splatted(places: Array, faces: Array) -> tuple[Array, Array, Array]:
    """Put points on every face, a pixel apart unless that makes too many; places, normals, faces."""
    normals = _vertex_normals(places, faces)
    corners = places[faces]
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(1)
    counts = np.maximum(np.ceil(edges / _STEP_PX), 1)
    fewer = min(1.0, math.sqrt(_POINTS_MAX / max(float((counts**2 / 2).sum()), 1.0)))
    counts = np.ceil(counts * fewer).astype(int)
    both = np.concatenate([places, normals], axis=1).astype(np.float32)
    parts, owners = [np.zeros((0, 6), np.float32)], [np.zeros(0, np.int64)]
    for count in np.unique(counts):
        chosen = np.flatnonzero(counts == count)
        weights = _spread(int(count))
        parts.append((weights @ both[faces[chosen]]).reshape(-1, 6))
        owners.append(np.repeat(chosen, len(weights)))
    spread = np.concatenate(parts)
    return spread[:, :3], spread[:, 3:], np.concatenate(owners)


def _spread(count: int) -> Array:
    """Weights (n, 3) of the corners for points all over a triangle, ``count`` along each side."""
    u, v = (q.ravel() for q in np.meshgrid(*[(np.arange(count) + 1 / 3) / count] * 2))
    u, v = u[u + v <= 1], v[u + v <= 1]
    return np.stack([1 - u - v, u, v], 1).astype(np.float32)


def _vertex_normals(places: Array, faces: Array) -> Array:
    a, b, c = (places[faces[:, i]] for i in range(3))
    area = np.cross(b - a, c - a)
    total = np.stack([np.bincount(faces.ravel(), np.repeat(area[:, i], 3), len(places)) for i in range(3)], 1)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def _shaded(normals: Array) -> Array:
    """Brightness of a surface lit from the upper left, the same on either face of it."""
    length = np.maximum(np.linalg.norm(normals, axis=1), 1e-9)
    facing = np.abs(normals[:, 2]) / length
    turned = normals * np.sign(normals[:, 2:] + 1e-12)
    lit = np.clip(turned @ _LIGHT / length, 0, 1)
    return 0.2 + 0.35 * facing + 0.4 * lit + 0.25 * lit**12


def _colours(labels: Array | None, faces: Array) -> Array:
    """Colour (m, 3) of every face: that of the label most of its corners bear."""
    palette = np.array(panels.PALETTE, float)
    if labels is None:
        return np.tile(palette[1], (len(faces), 1))
    middle = np.sort(labels[faces], axis=1)[:, 1]
    return np.where((middle > 0)[:, None], palette[(middle - 1) % len(palette)], 180.0)


def _draw_bar(draw: ImageDraw.ImageDraw, *, scale: float, side: int) -> None:
    length_mm = max((b for b in _BARS_MM if b * scale <= 0.3 * side), default=None)
    if length_mm is None:
        return
    left, top = 8, side - 8
    draw.line((left, top, left + length_mm * scale, top), fill=panels.INK, width=2)
    draw.text((left, top - 14), f"{length_mm} mm", fill=panels.FAINT, font=panels.font(10))
