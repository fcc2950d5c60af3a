"""Bring any scan into one form: oriented, one grey channel, cropped to the insonified sector.

Nothing is interpolated, so calibrated world coordinates stay what they were.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from usvol.scan import Grid, Scan, Sector
from usvol.sector import eight_bit, grey_levels, planar_sector

_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.bool: torch.uint8}
_WHITE = 255.0  # the brightest level of a screen
_COARSE = 64  # samples along the longest axis of the volume in which the 3D sector is looked for


def canonicalise(scan: Scan) -> Scan:
    """Orient, turn grey, crop to the insonified sector and set everything outside it to 0.

    Samples that are no numbers (NaN, infinite) become the darkest level there is, +∞ the brightest. Levels
    below 0, or all above 255, are counted from the darkest, so that black is 0 as it is outside the sector.
    Volumes are permuted and flipped (exactly) so that their index axes run along world z, y, x as nearly as
    they can; planar scans keep their rows and columns. ``sector`` is filled; where no sector can be told from
    the samples the scan is not cropped, and only colour is masked.

    Example:
        >>> import torch
        >>> from usvol.scan import Grid, Scan
        >>> data = torch.zeros(1, 1, 1, 80, 80, dtype=torch.uint8)
        >>> data[..., 20:70, 10:60] = 90
        >>> canonicalise(Scan(data, Grid((1, 80, 80)))).grid.origin_px
        (0.0, 20.0, 10.0)
    """
    scan = oriented(_from_black(_finite(_in_usual_type(scan))))
    return _masked(_as_grey(_cropped(dataclasses.replace(scan, sector=find_sector(scan)))))


def on_screen(scan: Scan) -> Scan:
    """Return a planar scan in the grey levels that networks for cines learn from: see ``eight_bit``."""
    data = scan.data
    if data.dtype == torch.uint8:
        return scan
    levels = eight_bit(data.to(torch.float32).nan_to_num())
    return scan.with_data(levels, step=f"{data.dtype} brought to 8 bits")


def not_finite(scan: Scan) -> int:
    """Count the samples of a scan that are no numbers: NaN or infinite."""
    return int((~scan.data.isfinite()).sum()) if scan.data.is_floating_point() else 0


def find_sector(scan: Scan) -> Sector:
    """Find the insonified part of a scan: mask, shape and, in planar scans, fan geometry."""
    scan = _finite(scan)
    return planar_sector(scan)[0] if scan.grid.is_planar else _solid_sector(scan)


def oriented(scan: Scan) -> Scan:
    """Permute and flip the index axes of a volume so that its direction is closest to the identity."""
    if scan.grid.is_planar:
        return scan
    direction = np.asarray(scan.grid.direction)
    orders = itertools.permutations(range(3))
    order = max(orders, key=lambda order: sum(abs(direction[world, order[world]]) for world in range(3)))
    flips = [w for w in range(3) if direction[w, order[w]] < 0]
    if order == (0, 1, 2) and not flips:
        return scan
    data = scan.data.permute(0, 1, *(2 + axis for axis in order)).flip([2 + axis for axis in flips])
    return scan.with_data(
        data.contiguous(), grid=_reordered(scan.grid, order, flips), step=f"axes {order} flipped {flips}"
    )


def _finite(scan: Scan) -> Scan:
    count = not_finite(scan)
    if not count:
        return scan
    known = scan.data[scan.data.isfinite()]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    return scan.with_data(
        scan.data.nan_to_num(low, posinf=high, neginf=low), step=f"{count} samples that are no numbers filled"
    )


def _from_black(scan: Scan) -> Scan:
    """Count grey levels from the darkest where 0 is none of them, or lies amid them: signed samples, dB."""
    if scan.data.dtype == torch.uint8:
        return scan
    low, high = (float(level) for level in scan.data.aminmax())
    if 0 <= low <= _WHITE:
        return scan
    step = f"levels {low:g} to {high:g} counted from the darkest"
    if scan.data.is_floating_point():
        return scan.with_data((scan.data - low) * (_WHITE / max(high - low, 1e-12)), step=step)
    wide = torch.int64 if high - low > torch.iinfo(torch.int32).max else torch.int32
    return scan.with_data(scan.data.to(wide) - int(low), step=step)


def _in_usual_type(scan: Scan) -> Scan:
    stored, usual = scan.data.dtype, _WIDER.get(scan.data.dtype)
    return scan if usual is None else scan.with_data(scan.data.to(usual), step=f"{stored} as {usual}")


def _reordered(grid: Grid, order: tuple[int, ...], flips: list[int]) -> Grid:
    corner = np.zeros(3)
    columns = np.asarray(grid.direction)[:, order]
    for axis in flips:
        corner[order[axis]] = grid.shape[order[axis]] - 1
        columns[:, axis] *= -1
    placed = grid.crop(corner, tuple(grid.shape[axis] for axis in order))  # type: ignore[arg-type]
    direction = tuple(tuple(float(v) + 0.0 for v in row) for row in columns)
    step = tuple(grid.step[axis] for axis in order)
    name = "spacing_mm" if grid.is_calibrated else "step_px"
    return dataclasses.replace(placed, direction=direction, **{name: step})  # type: ignore[arg-type]


def _cropped(scan: Scan) -> Scan:
    """Cut a scan and its sector to the bounding box of the mask."""
    assert scan.sector is not None
    mask = scan.sector.mask.reshape(scan.grid.shape)
    window, start = [], []
    for axis in range(3):
        used = torch.nonzero(mask.movedim(axis, 0).flatten(1).any(1))[:, 0]
        if len(used) == 0:
            return scan
        window.append(slice(int(used[0]), int(used[-1]) + 1))
        start.append(int(used[0]))
    data, mask = scan.data[(slice(None), slice(None), *window)], mask[tuple(window)]
    z, y, x = mask.shape
    grid = scan.grid.crop(start, (z, y, x))
    cropped = scan.with_data(
        data, grid=grid, step=f"cropped to the {scan.sector.shape} sector at {tuple(start)}"
    )
    sector = dataclasses.replace(scan.sector, mask=mask[0] if grid.is_planar else mask)
    return dataclasses.replace(cropped, sector=sector)


def _as_grey(scan: Scan) -> Scan:
    if scan.data.shape[1] == 1:
        return scan
    return scan.with_data(grey_levels(scan.data)[:, None], step="one grey channel")


def _masked(scan: Scan) -> Scan:
    """Set everything outside the sector to 0, in memory of its own."""
    assert scan.sector is not None
    if bool(scan.sector.mask.all()):
        return dataclasses.replace(scan, data=scan.data.contiguous())
    mask = scan.sector.mask.reshape(scan.grid.shape)
    return scan.with_data(scan.data * mask.to(scan.data.dtype), step="set to 0 outside the sector")


def _solid_sector(scan: Scan) -> Sector:
    """Find the largest block of a volume (or 3D+t clip) that differs from the constant level around it."""
    frames = scan.data[:: max(1, scan.data.shape[0] // 8)]
    ends = [torch.tensor([0, n - 1]) for n in scan.grid.shape]
    level = frames[:, :, ends[0]][..., ends[1], :][..., ends[2]].flatten().median()
    lit = (frames != level).flatten(0, 1).any(0)
    everything = Sector(torch.ones(scan.grid.shape, dtype=torch.bool), None, "unknown")
    if float(lit.float().mean()) > 0.995 or not bool(lit.any()):
        return everything
    step = -(-max(scan.grid.shape) // _COARSE)
    factors = [min(step, n) for n in scan.grid.shape]
    coarse = F.avg_pool3d(lit[None, None].float(), factors, ceil_mode=True)[0, 0].numpy() > 0.05
    labels = np.asarray(ndimage.label(coarse)[0])  # type: ignore[index]
    if labels.max() == 0:
        return everything
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    solid = ndimage.binary_fill_holes(ndimage.binary_dilation(labels == int(sizes.argmax())))
    mask = _enlarged(torch.from_numpy(np.asarray(solid)), factors)
    z, y, x = scan.grid.shape
    return Sector(mask[:z, :y, :x].contiguous(), None, "unknown")


def _enlarged(mask: Tensor, factors: Sequence[int]) -> Tensor:
    for axis, factor in enumerate(factors):
        mask = mask.repeat_interleave(factor, dim=axis)
    return mask
