"""Bring the index-to-world matrices of files into ``Grid`` form, and back.

Files give a 4×4 matrix from index (x, y, z, 1) to world (x, y, z, 1) in LPS or probe axes.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from usvol.errors import CorruptFileError
from usvol.scan import Frame, Grid, Matrix3, Shape3, vec3

_ROUNDING, _SHEAR_REFUSED = 1e-4, 0.02
_REVERSED = np.eye(4)[[2, 1, 0, 3]]


def grid_from_affine(
    path: Path, affine: np.ndarray, *, shape: Shape3, frame: Frame, calibrated: bool = True
) -> tuple[Grid, tuple[str, ...]]:
    """Return the grid of shape (z, y, x) with this matrix, and what had to be mended.

    Spacing is the length of the matrix's columns; a plane whose third column is 0 gets a normal as long as
    its y. Axes that are slightly sheared are replaced by the nearest orthogonal ones (polar decomposition)
    with a warning. Without calibration the matrix is in samples of the file.

    Raises:
        CorruptFileError: not finite, a column of length 0, or axes sheared by more than about 1°.
    """
    matrix = np.asarray(affine, float)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise CorruptFileError(path, "its index-to-world matrix is not finite", "write its geometry anew")
    step = np.linalg.norm(matrix[:3, :3], axis=0)
    if shape[0] == 1 and step[2] < 1e-9:
        matrix = _with_normal(matrix)
        step = np.linalg.norm(matrix[:3, :3], axis=0)
    if step.min() < 1e-9 or step.max() > 1e6:
        raise CorruptFileError(path, f"its sample spacing is {step.tolist()}", "write its geometry anew")
    direction, notes = _orthonormal(path, matrix[:3, :3] / step)
    spacing, origin, axes = vec3(step[::-1]), vec3(matrix[2::-1, 3]), _matrix(direction[::-1, ::-1])
    if calibrated:
        return Grid(shape, spacing, origin, axes, frame), notes
    return Grid(shape, None, None, axes, frame, step_px=spacing, origin_px=origin), notes


def affine_of(grid: Grid) -> np.ndarray:
    """Return the 4×4 matrix from index (x, y, z, 1) to world (x, y, z, 1) of a grid."""
    return _REVERSED @ grid.affine @ _REVERSED


def _with_normal(matrix: np.ndarray) -> np.ndarray:
    """Fill in the third axis that a planar file leaves at zero."""
    normal = np.cross(matrix[:3, 0], matrix[:3, 1])
    length = float(np.linalg.norm(normal)) or 1.0
    filled = matrix.copy()
    filled[:3, 2] = normal / length * np.linalg.norm(matrix[:3, 1])
    return filled


def _orthonormal(path: Path, axes: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    left, _, right = np.linalg.svd(axes)
    nearest = left @ right
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if shear > _SHEAR_REFUSED:
        angle = math.degrees(math.asin(min(1.0, shear)))
        raise CorruptFileError(
            path,
            f"its axes are sheared by {angle:.1f}°, so it is no regular grid",
            "resample it",
        )
    if shear > _ROUNDING:
        return nearest, (
            f"its axes are sheared by {math.degrees(shear):.2f}°; the nearest right angles are used",
        )
    return nearest, ()


def _matrix(values: np.ndarray) -> Matrix3:
    # Rounding leaves negative zeros, which read badly and mean nothing.
    first, second, third = (vec3(row) for row in values + 0.0)
    return (first, second, third)
