"""Bring any volume to the cube that 3D networks read: isotropic, the whole view, grey levels of no scale.

Networks see a volume relative to its own field of view and to its own grey levels: neither its calibration
nor its gain, dynamic range or data type reach them, so that they may be wrong or missing.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor
from torch.nn import functional as F

from usvol.resampling import resize
from usvol.scan import Scan, Sector, Shape3

CHANNELS = 3  # grey level, its rank, and where there is a picture
_HULL = 48  # samples along the longest side when the hull of the sector is looked for
_ON_PLANE = 1e-4  # samples beyond a plane of the hull that rounding explains
_LEVELS = 512  # of the histogram that ranks are read off
_PERCENTILES = (0.01, 0.995)


def working(scan: Scan, *, side: int) -> Scan:
    """Resize a canonical volume to isotropic samples, ``side`` along its longest axis, as float32.

    A volume without scale is taken for isotropic. The sector becomes convex: fluid of level 0 at its edge
    looks like the outside, yet no probe's field has bays.
    """
    step = np.asarray(scan.grid.step)
    extent = np.asarray(scan.grid.shape) * step
    counts = np.maximum(8, np.round(extent / extent.max() * side)).astype(int)
    shape: Shape3 = (int(counts[0]), int(counts[1]), int(counts[2]))
    floating = scan.with_data(torch.nan_to_num(scan.data.float()), step="as float")
    resized = resize(floating, shape)
    return dataclasses.replace(resized, sector=_convex(resized))


def native_side(scan: Scan, *, least: int, most: int) -> int:
    """Return how many samples of its finest spacing the longest side of a volume holds, within limits."""
    step = np.asarray(scan.grid.step)
    count = float((np.asarray(scan.grid.shape) * step).max() / step.min())
    return int(np.clip(round(count), least, most))


def cropped(scan: Scan, start: Shape3, *, shape: Shape3) -> Scan:
    """Cut a block of ``shape`` at index ``start`` out of a volume, its sector with it."""
    block = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
    cut = scan.with_data(
        scan.data[(..., *block)], grid=scan.grid.crop(start, shape), step=f"cut {shape} at {start}"
    )
    if scan.sector is None:
        return cut
    mask = scan.sector.mask.reshape(scan.grid.shape)[block]
    return dataclasses.replace(cut, sector=dataclasses.replace(scan.sector, mask=mask))


def grey_levels(scan: Scan, *, frame: int = 0) -> tuple[Tensor, Tensor]:
    """Return one frame ``z y x`` scaled to 0-1 between percentiles inside the sector, and the sector."""
    assert scan.sector is not None
    mask = scan.sector.mask.reshape(scan.grid.shape)
    return stretched(scan.data[frame, 0], mask), mask


def stretched(grey: Tensor, mask: Tensor) -> Tensor:
    """Scale to 0-1 between the 1st and the 99.5th percentile inside the mask; 0 outside."""
    inside = grey.masked_select(mask)
    if not len(inside):
        return torch.zeros_like(grey)
    some = inside[:: max(1, len(inside) // 100_000)]
    low, high = torch.quantile(some, torch.tensor(_PERCENTILES)).tolist()
    if high <= low:
        low, high = float(some.min()), max(float(some.max()), float(some.min()) + 1e-6)
    return ((grey - low) / (high - low)).clamp(0, 1) * mask


def network_input(grey: Tensor, mask: Tensor) -> Tensor:
    """Return the channels ``3 z y x`` of grey levels of any scale: level 0-1, rank inside the mask, mask.

    The rank is the same under every growing grey map, so it says what gain, gamma and dynamic range cannot
    change.
    """
    level = stretched(grey, mask)
    bins = (level * (_LEVELS - 1)).round().long()
    counts = torch.bincount(bins.flatten(), minlength=_LEVELS).float()
    counts[0] -= mask.numel() - mask.count_nonzero()  # level 0 is also what lies outside
    middle = (counts.cumsum(0) - counts / 2) / counts.sum().clamp_min(1)
    rank = middle[bins] * mask
    return torch.stack([level, rank, mask.float()])


def scan_input(scan: Scan, *, frame: int = 0) -> Tensor:
    """Return the channels ``3 z y x`` of one frame of a working volume."""
    assert scan.sector is not None
    return network_input(scan.data[frame, 0], scan.sector.mask.reshape(scan.grid.shape))


def in_picture(volume: Tensor, mask: Tensor, *, places: np.ndarray) -> np.ndarray:
    """Tell which places lie between samples that are not 0, along each axis.

    The sector of a volume is told in blocks: it holds some of the black around the picture. Where it is all
    of the volume, what is black in it is shadow and part of the picture.

    Args:
        volume: canonical ``z y x``: 0 outside the sector.
        mask: the sector.
        places: (n, 3), index z y x.
    """
    volume = mask if bool(mask.all()) else volume
    index = np.round(places).astype(int)
    seen = ((index >= 0) & (index < volume.shape)).all(1)
    z, y, x = np.clip(index, 0, np.asarray(volume.shape) - 1).T
    for lines, place in ((volume[:, y, x].T, z), (volume[z, :, x], y), (volume[z, y], x)):
        lit = lines.numpy() != 0
        first, last = lit.argmax(1), lit.shape[1] - 1 - lit[:, ::-1].argmax(1)
        seen &= lit.any(1) & (first <= place) & (place <= last)
    return seen


def picture_of(volume: Tensor, mask: Tensor) -> Tensor:
    """Return the part of a mask ``z y x`` that lies in the picture, as ``in_picture`` tells of places.

    Without its outermost samples: resizing has mixed these with the black beside them.
    """
    lit, kept = volume != 0, mask.clone()
    if bool(mask.all()):
        return kept
    for axis in range(3):
        kept &= (lit.cumsum(axis) > 0) & (lit.flip(axis).cumsum(axis) > 0).flip(axis)
    return F.max_pool3d(F.pad((~kept)[None].float(), (1,) * 6, value=1.0), 3, 1)[0] == 0


def cube(values: Tensor, *, side: int) -> Tensor:
    """Pad the last three axes with 0 on both ends to ``side``."""
    return F.pad(values, [n for size in reversed(values.shape[-3:]) for n in _margins(size, side)])


def uncube(values: Tensor, shape: Shape3) -> Tensor:
    """Cut the middle of ``shape`` out of the last three axes; undoes ``cube``."""
    for axis, size in zip((-3, -2, -1), shape, strict=True):
        values = values.narrow(axis, _margins(size, values.shape[axis])[0], size)
    return values


def _margins(size: int, side: int) -> tuple[int, int]:
    before = (side - size) // 2
    return before, side - size - before


def _convex(scan: Scan) -> Sector | None:
    """Return the sector with its convex hull for a mask."""
    if scan.sector is None:
        return Sector(torch.ones(scan.grid.shape, dtype=torch.bool), None, "unknown")
    mask = scan.sector.mask.reshape(scan.grid.shape)
    if bool(mask.all()) or not bool(mask.any()):
        return dataclasses.replace(scan.sector, mask=torch.ones_like(mask))
    factor = _HULL / max(scan.grid.shape)
    small = [max(2, round(n * factor)) for n in scan.grid.shape]
    coarse = F.interpolate(mask[None, None].float(), size=small, mode="trilinear", align_corners=False)[0, 0]
    hull = _hull(coarse >= 0.5)[None, None].float()
    fine = F.interpolate(hull, size=scan.grid.shape, mode="trilinear", align_corners=False)
    return dataclasses.replace(scan.sector, mask=(fine[0, 0] >= 0.5) | mask)


def _hull(mask: Tensor) -> Tensor:
    """Return the convex hull of a mask ``z y x``; a mask that spans no volume as it is."""
    try:
        planes = ConvexHull(mask.nonzero().numpy()).equations
    except (QhullError, ValueError):
        return mask
    normals, offsets = torch.from_numpy(np.unique(planes.round(9), axis=0)).float().split((3, 1), 1)
    places = torch.cartesian_prod(*(torch.arange(float(n)) for n in mask.shape))
    # In pieces that stay in the processor's cache: half the time of one large product.
    beyond = [(some @ normals.T + offsets.T).amax(1) for some in places.split(8192)]
    return (torch.cat(beyond) <= _ON_PLANE).reshape(mask.shape)
