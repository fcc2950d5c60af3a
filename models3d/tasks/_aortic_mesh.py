"""The aortic root as a mesh of fixed topology: which vertex is what, its frame, box, landmarks and distances.

860 vertices: the wall, 13 rings from the annulus to the sinotubular junction of 48 vertices each, whose
columns 0, 16 and 32 are the middles of the right, non- and left coronary sinus and 8, 24 and 40 the
commissures; the centres of two caps; three cusps of 6 rows (attachment to free edge) by 13 columns. The wall
with its caps is closed; the cusps are open sheets in it.

Vertices are world (z, y, x). Faces run counter-clockwise seen from outside in (x, y, z), as meshes are
written; seen in (z, y, x), a mirror image, they run the other way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

Points = NDArray[np.floating]
Faces = NDArray[np.int64]

ROWS, COLUMNS = 13, 48
CUSP_ROWS, CUSP_COLUMNS = 6, 13
N_WALL = ROWS * COLUMNS
CAPS = (N_WALL, N_WALL + 1)
N_CUSP = CUSP_ROWS * CUSP_COLUMNS
N_VERTICES = N_WALL + 2 + 3 * N_CUSP
CUSPS = ("right", "non_coronary", "left")
COMMISSURES = ("right_non", "non_left", "left_right")
LABEL_NAMES = {
    1: "annulus",
    2: "right_sinus",
    3: "non_coronary_sinus",
    4: "left_sinus",
    5: "sinotubular_junction",
    6: "right_cusp",
    7: "non_coronary_cusp",
    8: "left_cusp",
    9: "annulus_centre",
    10: "sinotubular_centre",
}
_NEAREST = 24  # triangles by centre among which the closest one is


def cusp_start(cusp: int) -> int:
    """Index of the first vertex of cusp 0 (right), 1 (non-coronary) or 2 (left)."""
    return N_WALL + 2 + cusp * N_CUSP


def _wall_faces() -> Faces:
    row, column = np.meshgrid(np.arange(ROWS - 1), np.arange(COLUMNS), indexing="ij")
    here, beside = row * COLUMNS + column, row * COLUMNS + (column + 1) % COLUMNS
    above, across = here + COLUMNS, beside + COLUMNS
    return np.concatenate([_triangles(here, above, beside), _triangles(beside, above, across)])


def _cap_faces() -> Faces:
    column = np.arange(COLUMNS)
    after, top = (column + 1) % COLUMNS, (ROWS - 1) * COLUMNS
    bottom = _triangles(np.full(COLUMNS, CAPS[0]), column, after)
    return np.concatenate([bottom, _triangles(np.full(COLUMNS, CAPS[1]), top + after, top + column)])


def _cusp_faces() -> Faces:
    row, column = np.meshgrid(np.arange(CUSP_ROWS - 1), np.arange(CUSP_COLUMNS - 1), indexing="ij")
    here = row * CUSP_COLUMNS + column
    beside, above, across = here + 1, here + CUSP_COLUMNS, here + CUSP_COLUMNS + 1
    one = np.concatenate([_triangles(here, above, beside), _triangles(beside, above, across)])
    return np.concatenate([one + cusp_start(k) for k in range(3)])


def _triangles(*corners: NDArray[np.int64]) -> Faces:
    return np.stack([c.ravel() for c in corners], -1).astype(np.int64)


def _vertex_labels() -> NDArray[np.uint8]:
    sinus = 2 + ((np.arange(COLUMNS) + 7) // 16) % 3
    wall = np.tile(sinus, (ROWS, 1))
    wall[0], wall[-1] = 1, 5
    cusps = np.repeat((6, 7, 8), N_CUSP)
    return np.concatenate([wall.ravel(), (9, 10), cusps]).astype(np.uint8)


ROOT_FACES: Faces = np.concatenate([_wall_faces(), _cap_faces()])
"""The wall and its caps: a closed surface."""
CUSP_FACES: Faces = _cusp_faces()
FACES: Faces = np.concatenate([ROOT_FACES, CUSP_FACES])
SHEETS: Faces = np.concatenate([_wall_faces(), CUSP_FACES])
"""What there is to be seen: wall and cusps, without the caps."""
VERTEX_LABELS = _vertex_labels()


def wall_rings(vertices: Points) -> Points:
    """The wall's vertices as (rows, columns, 3): row 0 is the annulus, the last the sinotubular junction."""
    return vertices[:N_WALL].reshape(ROWS, COLUMNS, 3)


def cusp_sheet(vertices: Points, cusp: int) -> Points:
    """The vertices of one cusp as (rows, columns, 3): row 0 is its attachment, the last its free edge."""
    start = cusp_start(cusp)
    return vertices[start : start + N_CUSP].reshape(CUSP_ROWS, CUSP_COLUMNS, 3)


def landmarks(vertices: Points) -> dict[str, Points]:
    """Name the hinges (nadirs), the commissures (tops of the attachments) and the centres, each (3,)."""
    sheets = [cusp_sheet(vertices, k) for k in range(3)]
    found = {f"hinge_{name}": sheets[k][0, CUSP_COLUMNS // 2] for k, name in enumerate(CUSPS)}
    for k, name in enumerate(COMMISSURES):
        found[f"commissure_{name}"] = (sheets[k][0, -1] + sheets[(k + 1) % 3][0, 0]) / 2
    return found | {"annulus_centre": vertices[CAPS[0]], "sinotubular_centre": vertices[CAPS[1]]}


def root_frame(vertices: Points) -> Points:
    """Axes of the root as columns (3, 3), det +1 in (z, y, x).

    First along the root, annulus to sinotubular centre; second perpendicular to it, towards the middle of the
    right coronary sinus; third towards the non-coronary side.
    """
    rings = wall_rings(vertices)
    base, top = rings[0].mean(0), rings[-1].mean(0)
    first = _unit(top - base)
    toward = rings[3:10, 0].mean(0) - base
    second = _unit(toward - (toward @ first) * first)
    return np.stack([first, second, np.cross(first, second)], axis=1)


def box_of(vertices: Points, rotation: Points | None = None) -> tuple[Points, Points, Points]:
    """Return centre, size and rotation of the tight box around the wall along the axes of the root."""
    rotation = root_frame(vertices) if rotation is None else rotation
    local = vertices[:N_WALL] @ rotation
    low, high = local.min(0), local.max(0)
    return rotation @ ((low + high) / 2), high - low, rotation


def corners(centre: Points, size: Points, *, rotation: Points) -> Points:
    """World corners (8, 3) of a box, in the order of the signs of its axes."""
    signs = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 3, indexing="ij"), -1).reshape(8, 3)
    return np.asarray(centre) + (signs * np.asarray(size)) @ np.asarray(rotation).T


def normals(vertices: Points) -> Points:
    """Unit normals (860, 3): out of the root for wall and caps, towards the aorta for the cusps."""
    found = np.zeros((N_VERTICES, 3))
    a, b, c = (vertices[FACES[:, i]] for i in range(3))
    # Faces are wound for (x, y, z): their cross product in (z, y, x) points the other way.
    area = np.cross(c - a, b - a)
    for corner in range(3):
        np.add.at(found, FACES[:, corner], area)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def enclosed_ml(vertices: Points) -> float:
    """Volume in mL that wall and caps enclose (divergence theorem)."""
    a, b, c = (vertices[ROOT_FACES[:, i]][:, ::-1] for i in range(3))
    return float(np.einsum("ni,ni->", a, np.cross(b, c)) / 6 / 1000)


def mesh_distance_mm(first: Points, second: Points, *, faces: Faces = SHEETS) -> float:
    """Mean distance of the vertices of either mesh to the surface of the other, both ways averaged."""
    used = np.unique(faces)
    there = surface_distance_mm(first[used], second, faces=faces).mean()
    back = surface_distance_mm(second[used], first, faces=faces).mean()
    return float(there + back) / 2


def surface_distance_mm(points: Points, vertices: Points, *, faces: Faces = SHEETS) -> Points:
    """Distance (n,) of each point (n, 3) to the nearest of the triangles."""
    triangles = vertices[faces]
    count = min(_NEAREST, len(faces))
    _, near = KDTree(triangles.mean(1)).query(points, k=count)
    return _to_triangles(points, triangles[near.reshape(len(points), count)]).min(1)


def _to_triangles(points: Points, triangles: Points) -> Points:
    """Distance (n, k) of points (n, 3) to triangles (n, k, 3, 3)."""
    a, b, c = (triangles[..., i, :] for i in range(3))
    point = points[:, None]
    edges = np.minimum(
        _to_segment(point, a, b), np.minimum(_to_segment(point, b, c), _to_segment(point, c, a))
    )
    u, v, w = b - a, c - a, point - a
    uu, uv, vv = (u * u).sum(-1), (u * v).sum(-1), (v * v).sum(-1)
    wu, wv = (w * u).sum(-1), (w * v).sum(-1)
    scale = np.maximum(uu * vv - uv**2, 1e-12)
    s, t = (vv * wu - uv * wv) / scale, (uu * wv - uv * wu) / scale
    normal = np.cross(u, v)
    height = np.abs((normal * w).sum(-1)) / np.maximum(np.linalg.norm(normal, axis=-1), 1e-9)
    return np.where((s >= 0) & (t >= 0) & (s + t <= 1), height, edges)


def _to_segment(point: Points, a: Points, b: Points) -> Points:
    along = b - a
    part = ((point - a) * along).sum(-1) / np.maximum((along * along).sum(-1), 1e-12)
    return np.linalg.norm(point - a - np.clip(part, 0, 1)[..., None] * along, axis=-1)


def _unit(vector: Points) -> Points:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)
