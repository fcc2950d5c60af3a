"""Tidy label maps by what anatomy allows. Nothing here adds tissue: voxels are only taken away or renamed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]

_NEIGHBOURS = ndimage.generate_binary_structure(3, 1)


def large_components(mask: Mask, *, share: float) -> Mask:
    """Keep the connected parts (6 neighbours) of a mask ``z y x`` of at least ``share`` of its largest.

    Example:
        >>> mask = np.zeros((1, 1, 9), bool)
        >>> mask[..., :4] = mask[..., 6] = True
        >>> large_components(mask, share=0.5).astype(int).ravel().tolist()
        [1, 1, 1, 1, 0, 0, 0, 0, 0]
    """
    parts, count = _parts(mask)
    if count < 2:
        return mask.copy()
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.append(False, sizes[1:] >= share * sizes.max())[parts]


def components_near(mask: Mask, other: Mask, *, reach: int) -> Mask:
    """Keep the connected parts of ``mask`` that come within ``reach`` voxels of ``other`` (city blocks).

    Example:
        >>> mask, other = np.zeros((2, 1, 1, 9), bool)
        >>> mask[..., 0] = mask[..., 5] = other[..., 7] = True
        >>> components_near(mask, other, reach=2).astype(int).ravel().tolist()
        [0, 0, 0, 0, 0, 1, 0, 0, 0]
    """
    if not mask.any() or not other.any():
        return np.zeros_like(mask)
    near = np.asarray(ndimage.binary_dilation(other, _NEIGHBOURS, iterations=reach), bool) if reach else other
    parts, count = _parts(mask)
    touched = np.zeros(count + 1, bool)
    touched[np.unique(parts[near])] = True
    touched[0] = False
    return touched[parts]


def enclosed(mask: Mask, by: Mask) -> Mask:
    """Tell which connected parts of ``mask`` have no neighbour but ``by`` (and the volume's edge).

    Example:
        >>> mask, by = np.zeros((2, 1, 1, 7), bool)
        >>> mask[..., 1] = mask[..., 4] = by[..., 3] = by[..., 5] = True
        >>> enclosed(mask, by).astype(int).ravel().tolist()
        [0, 0, 0, 0, 1, 0, 0]
    """
    foreign = np.asarray(ndimage.binary_dilation(~(mask | by), _NEIGHBOURS), bool)
    parts, count = _parts(mask)
    open_ = np.zeros(count + 1, bool)
    open_[np.unique(parts[foreign & mask])] = True
    open_[0] = True
    return ~open_[parts]


def share_at_edge(mask: Mask, inside: Mask) -> float:
    """Return the share of a mask's surface voxels that touch the end of the volume or of ``inside``.

    Surface voxels are those with a neighbour outside the mask. 0 for an empty mask.
    """
    if not mask.any():
        return 0.0
    surface, rim = (m & ~np.asarray(ndimage.binary_erosion(m, _NEIGHBOURS), bool) for m in (mask, inside))
    return float((surface & rim).sum() / surface.sum())


def _parts(mask: Mask) -> tuple[NDArray[np.int32], int]:
    parts = np.empty(mask.shape, np.int32)
    return parts, int(ndimage.label(mask, _NEIGHBOURS, output=parts))  # type: ignore[arg-type]
