"""The only code that interpolates: onto other grids, other sizes, and between beam and image space.

Every sample stands for the cell around it, so a grid covers indices -0.5 … n-0.5: inside that extent the
outermost samples are repeated, outside it the answer is 0. Integer samples come back rounded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from usvol.errors import UncalibratedError
from usvol.result import Finding, Heatmap, Labels, Plane
from usvol.scan import Fan, Grid, Matrix3, Scan, Sector, Shape3
from usvol.supervision import check

_CHUNK_SAMPLES = 1 << 22  # output samples per interpolation call: about 100 MB of temporaries
_EDGE = 0.5 + 1e-3  # half a cell, and the rounding of float32 coordinates
_SLICE_SAMPLES = 1024  # along a side of a reslice, at most


def resample(scan: Scan, grid: Grid, *, mode: str = "linear") -> Scan:
    """Sample a scan on another grid through world coordinates; 0 outside the scan.

    No filter is applied before thinning: use ``resize`` first where ``grid`` is much coarser.

    Args:
        scan: any kind; its dtype is kept (integers are rounded).
        grid: where to sample; calibrated if and only if the scan is.
        mode: ``"linear"`` or ``"nearest"``.

    Raises:
        UncalibratedError: one grid has a scale and the other has none.

    Example:
        >>> from usvol.scan import Grid, Scan
        >>> scan = Scan(torch.arange(4.0).reshape(1, 1, 1, 1, 4), Grid((1, 1, 4)))
        >>> resample(scan, scan.grid.resized((1, 1, 2))).data.flatten().round(decimals=3).tolist()
        [0.5, 2.5]
    """
    if grid == scan.grid:
        return scan
    moved = scan.with_data(
        sample_on(scan.data, scan.grid, target=grid, mode=mode),
        grid=grid,
        step=f"resampled ({mode}) to {grid.shape}",
    )
    return dataclasses.replace(moved, sector=_resampled_sector(scan, grid))


def resize(scan: Scan, shape: Shape3) -> Scan:
    """Change the number of samples (z, y, x) over the same extent; shrinking averages, so nothing aliases.

    The filter is the triangle of twice the shrink factor (that of Pillow's and torch's ``antialias``).

    Example:
        >>> from usvol.scan import Grid, Scan
        >>> scan = Scan(torch.zeros(3, 1, 1, 64, 48, dtype=torch.uint8), Grid((1, 64, 48), (1.0, 1.0, 1.0)))
        >>> resize(scan, (1, 32, 24)).grid.spacing_mm
        (1.0, 2.0, 2.0)
    """
    shape = (int(shape[0]), int(shape[1]), int(shape[2]))
    if shape == tuple(scan.grid.shape):
        return scan
    grid = scan.grid.resized(shape)
    resized = scan.with_data(_resized(scan.data, shape), grid=grid, step=f"resized to {shape}")
    return dataclasses.replace(resized, sector=_resized_sector(scan, shape))


def reslice(scan: Scan, plane: Plane, *, step: float | None = None) -> Scan:
    """Cut a volume along an oblique plane: a planar scan on its own grid, which holds the whole section.

    Rows run against ``plane.up``, so that up is up in the picture; columns run along ``cross(normal, -up)``
    of the (z, y, x) vectors. Frames, channels, dtype, calibration and sector are those of the scan; 0
    outside it.

    Args:
        scan: a volume, or a 3D+t clip (every frame is cut).
        plane: in world coordinates of the scan, anywhere across it.
        step: distance of samples in world units (mm if calibrated); None for the finest of the scan's own.

    Raises:
        ValueError: the plane misses the volume (``cross_section`` is empty), or the scan is planar already.

    Example:
        >>> from usvol.scan import Grid, Scan
        >>> scan = Scan(torch.ones(1, 1, 8, 10, 12), Grid((8, 10, 12), (1.0, 0.5, 0.5)))
        >>> cut = reslice(scan, Plane("axial", (3.5, 2.0, 2.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0)))
        >>> cut.grid.shape, cut.grid.spacing_mm
        ((1, 10, 16), (0.5, 0.5, 0.5))
    """
    return resample(scan, plane_grid(plane, scan.grid, step=step))


def plane_grid(plane: Plane, grid: Grid, *, step: float | None = None) -> Grid:
    """Return the planar grid, square samples, of the rectangle around a plane's section of ``grid``.

    Its directions are the plane's: z the normal, y against ``up``, x ``cross(normal, -up)``. Coarser than
    asked where a side would exceed 1024 samples.

    Raises:
        ValueError: as ``reslice``.
    """
    if grid.is_planar:
        raise ValueError(f"a reslice needs a volume, this grid is {grid.shape}")
    corners = cross_section(plane, grid)
    if not len(corners):
        raise ValueError(f"plane {plane.name!r} through {plane.point} misses the volume")
    axes = plane_axes(plane)
    normal, down, right = np.asarray(axes).T
    places = corners @ np.stack([down, right], 1)
    low, extent = places.min(0), np.ptp(places, axis=0)
    step = max(min(grid.step) if step is None else step, float(extent.max()) / _SLICE_SAMPLES)
    counts = np.maximum(1, np.ceil(extent / step - 1e-6)).astype(int)
    first = low + extent / 2 - (counts - 1) / 2 * step
    origin = normal * (normal @ np.asarray(plane.point)) + down * first[0] + right * first[1]
    shape = (1, int(counts[0]), int(counts[1]))
    z, y, x = (float(v) for v in origin)
    moved = dataclasses.replace(grid, shape=shape, direction=axes)
    if grid.is_calibrated:
        return dataclasses.replace(moved, spacing_mm=(step, step, step), origin_mm=(z, y, x))
    return dataclasses.replace(moved, step_px=(step, step, step), origin_px=(z, y, x))


def plane_axes(plane: Plane) -> Matrix3:
    """Return the directions of a plane's reslice: columns normal, down and right, orthonormal."""
    normal = np.asarray(plane.normal, float)
    normal = normal / np.linalg.norm(normal)
    down = -np.asarray(plane.up, float)
    down = down - normal * (normal @ down)
    down = down / np.linalg.norm(down)
    rows = np.stack([normal, down, np.cross(normal, down)], 1).tolist()
    return (tuple(rows[0]), tuple(rows[1]), tuple(rows[2]))


def cross_section(plane: Plane, grid: Grid, *, border: float = 0.5) -> np.ndarray:
    """Return the corners (n, 3) of a plane's section of a volume, in world coordinates and in order.

    A convex polygon of 3 to 6 corners; none where the plane misses the volume. ``border``: how far, in
    samples, the volume reaches beyond the centres of its outermost samples.
    """
    limits = [(-border, n - 1 + border) for n in grid.shape]
    ends = np.array(np.meshgrid(*limits, indexing="ij")).reshape(3, 8).T
    world = grid.to_world(ends)
    axes = np.asarray(plane_axes(plane))
    height = (world - np.asarray(plane.point)) @ axes[:, 0]
    # Corners are numbered by the bits of (z, y, x), so an edge joins two that differ in one.
    pairs = [(a, a | bit) for bit in (1, 2, 4) for a in range(8) if not a & bit]
    crossed = [(a, b) for a, b in pairs if (height[a] >= 0) != (height[b] >= 0)]
    if len(crossed) < 3:
        return np.zeros((0, 3))
    points = np.stack(
        [world[a] + (world[b] - world[a]) * height[a] / (height[a] - height[b]) for a, b in crossed]
    )
    around = (points - points.mean(0)) @ axes[:, 1:]
    return points[np.argsort(np.arctan2(around[:, 0], around[:, 1]))]


def restore(finding: Finding, grid: Grid) -> Finding:
    """Put a finding back on ``grid``, normally the grid of the file as read.

    ``Labels`` are resampled by nearest neighbour, or where they carry ``evidence`` by that: linearly, then
    the likeliest label. ``Heatmap`` is resampled linearly; everything else is in world coordinates, which
    every grid derived from one file shares (in mm, or in file samples), and is unchanged.
    """
    if isinstance(finding, Labels) and finding.evidence is not None:
        data = (
            finding.data if finding.grid == grid else _likeliest(finding.evidence, finding.grid, target=grid)
        )
        return dataclasses.replace(finding, data=data, grid=grid, evidence=None)
    if not isinstance(finding, Labels | Heatmap) or finding.grid == grid:
        return finding
    mode = "nearest" if isinstance(finding, Labels) else "linear"
    data = sample_on(finding.data[:, None], finding.grid, target=grid, mode=mode)[:, 0]
    return dataclasses.replace(finding, data=data, grid=grid)


def _likeliest(evidence: Tensor, source: Grid, *, target: Grid) -> Tensor:
    """Return the label ``t z y x`` (uint8) of most evidence ``t value z y x``; 0 outside ``source``."""
    labels = torch.zeros(evidence.shape[0], *target.shape, dtype=torch.uint8)
    corners = np.array(np.meshgrid(*[(-1, n) for n in source.shape], indexing="ij")).reshape(3, -1).T
    index = target.to_index(source.to_world(corners))
    low = np.clip(np.floor(index.min(0)), 0, target.shape).astype(int)
    high = np.clip(np.ceil(index.max(0)) + 1, 0, target.shape).astype(int)
    if (high <= low).any():
        return labels
    z, y, x = (int(n) for n in high - low)
    for start, count in _slabs((z, y, x)):
        slab = target.crop((low[0] + start, low[1], low[2]), (count, y, x))
        found = likeliest_label(sample_on(evidence, source, target=slab).unbind(1))
        first = int(low[0]) + start
        labels[:, first : first + count, int(low[1]) : int(high[1]), int(low[2]) : int(high[2])] = found
    return labels


def to_beam_space(scan: Scan, *, depth_samples: int, lines: int) -> Tensor:
    """Straighten a planar scan: ``t c depth line`` along the scan lines of its fan, dtype kept.

    Sample i of a line lies at the centre of the i-th of ``depth_samples`` equal steps from ``radius_min`` to
    ``radius_max``; lines likewise in angle. Thinning averages. Without a fan (linear or unknown sector,
    cropped to it by ``canonicalise``) the lines are columns, so this is a plain resize.
    """
    if not scan.grid.is_planar:
        raise ValueError(f"beam space of a planar scan only, this one is {scan.grid.shape}")
    fan = scan.sector.fan if scan.sector is not None else None
    if fan is None:
        return _resized(scan.data, (1, depth_samples, lines))[:, :, 0]
    finer_depth, finer_line = _oversampling(fan, scan.grid, depth_samples, lines)
    size = (depth_samples * finer_depth, lines * finer_line)
    index = _world_to_index(scan.grid, _beam_points(fan, scan.grid, size))
    sampled = _interpolate(scan.data, index[None].float(), mode="linear", pool=(finer_depth, finer_line))
    return sampled[:, :, 0]


def scan_convert(samples: Tensor, grid: Grid, *, fan: Fan | None) -> Tensor:
    """Draw beam samples ``t c depth line`` on a planar grid: ``t c 1 y x``, 0 outside.

    The inverse of ``to_beam_space``: ``fan`` lies in the plane of ``grid``; without one the samples span the
    grid.
    """
    depth, lines = samples.shape[-2:]
    if fan is None:
        return _resized(samples[:, :, None], grid.shape)
    y, x = _plane_coordinates(grid)
    dy, dx = y - fan.apex[0], x - fan.apex[1]
    span_deg = fan.angle_max_deg - fan.angle_min_deg
    radius = (torch.hypot(dy, dx) - fan.radius_min) / (fan.radius_max - fan.radius_min) * depth - 0.5
    angle = (torch.rad2deg(torch.atan2(dx, dy)) - fan.angle_min_deg) / span_deg * lines - 0.5
    index = torch.stack([torch.zeros_like(radius), radius, angle], -1)
    return _interpolate(samples[:, :, None], index[None].float(), mode="linear")


def from_beam_space(
    samples: Tensor,
    *,
    radius_mm: tuple[float, float],
    azimuth_rad: tuple[float, float],
    elevation_rad: tuple[float, float],
    grid: Grid,
) -> Tensor:
    """Scan-convert a 3D beam-space volume ``r az el`` to ``z y x`` on ``grid`` (mm), 0 outside.

    World axes of ``Frame.PROBE``: x lateral (azimuth), y depth, z out of plane (elevation), apex at 0. A
    point has radius |p|, azimuth atan2(x, y), elevation atan2(z, y): the angles of ITK's
    ``PhasedArray3DSpecialCoordinatesImage``, whose own z is the depth. Each pair is (first sample, step).

    Raises:
        UncalibratedError: ``grid`` has no scale.
    """
    grid.require_spacing_mm("scan conversion from beam space")
    parts = []
    for start, count in _slabs(grid.shape):
        world = _world_points(grid.crop((start, 0, 0), (count, *grid.shape[1:])))
        z, y, x = world.unbind(-1)
        polar = (torch.linalg.vector_norm(world, dim=-1), torch.atan2(x, y), torch.atan2(z, y))
        places = (radius_mm, azimuth_rad, elevation_rad)
        index = torch.stack([(p - first) / step for p, (first, step) in zip(polar, places, strict=True)], -1)
        parts.append(_interpolate(samples[None, None], index.float(), mode="linear", edge=1e-3)[0, 0])
    return torch.cat(parts)


def sample_on(data: Tensor, source: Grid, *, target: Grid, mode: str = "linear") -> Tensor:
    """Sample ``t c z y x`` data on grid ``source`` at the samples of grid ``target``; dtype kept."""
    _check_units(source, target)
    parts = []
    for start, count in _slabs(target.shape):
        slab = target.crop((start, 0, 0), (count, *target.shape[1:]))
        matrix = np.linalg.inv(source.affine) @ slab.affine
        parts.append(_interpolate(data, _lattice(slab.shape, matrix).float(), mode=mode))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def sample_labels(labels: Tensor, source: Grid, *, target: Grid, count: int) -> Tensor:
    """Carry a label map ``z y x`` to another grid: the label with most weight among the 8 voxels around.

    Args:
        labels: values 0 (background; also what lies outside the source) to ``count`` - 1, any integer type.
        source: its grid.
        target: grid of the answer, uint8.
        count: number of labels, background included.
    """
    hot = torch.stack([(labels == value).float() for value in range(1, count)])[None]
    shares = sample_on(hot, source, target=target)[0]
    return likeliest_label([1 - shares.sum(0), *shares])


def likeliest_label(weights: Sequence[Tensor]) -> Tensor:
    """Return which of ``weights`` is largest, voxel by voxel (uint8; the first of equals)."""
    best, *others = weights
    label = torch.zeros_like(best, dtype=torch.uint8)
    for value, weight in enumerate(others, 1):  # several times faster than argmax over so short an axis
        label = torch.where(weight > best, value, label)
        best = torch.maximum(best, weight)
    return label


def sample_at(data: Tensor, index: Tensor, *, mode: str = "linear") -> Tensor:
    """Sample ``c z y x`` data at fractional indices (z, y, x) of shape (Z, Y, X, 3): ``c Z Y X``.

    For geometries that no ``Grid`` describes, such as the beams of a probe; outside the data 0, dtype kept.
    """
    return _interpolate(data[None], index, mode=mode)[0]


def _interpolate(
    data: Tensor, index: Tensor, *, mode: str, edge: float = _EDGE, pool: tuple[int, int] = (1, 1)
) -> Tensor:
    """Sample ``t c z y x`` data at indices (z, y, x) of shape (Z, Y, X, 3): ``t c Z Y X``, dtype kept.

    ``pool`` averages blocks of (Y, X) answers. Frames share the coordinates, so they travel as channels.
    """
    if mode not in ("linear", "nearest"):
        raise ValueError(f"mode is 'linear' or 'nearest', got {mode!r}")
    sizes = torch.tensor(data.shape[2:], dtype=torch.float32, device=index.device)
    middle = (sizes - 1) / 2
    within = (index - middle).abs_() <= middle + edge
    inside = (within[..., 0] & within[..., 1] & within[..., 2]).to(data.device)
    nearest = mode == "nearest"
    # Rounding here, not in grid_sample, keeps ties (0.5) going the same way along every axis.
    index = torch.floor(index + 0.5) if nearest else index
    # An axis of one sample has no places: grid_sample takes that sample whatever it is given.
    place = index.flip(-1).div_(middle.flip(-1).clamp(min=0.5)).sub_(1)[None].to(data.device)
    chunk = max(1, _CHUNK_SAMPLES // max(1, inside.numel() * data.shape[1]))
    parts = []
    for frames in data.split(chunk):
        check()
        sampled = _grid_sample(frames, place, "nearest" if nearest else "bilinear") * inside
        if pool != (1, 1):
            sampled = F.avg_pool3d(sampled, (1, *pool))
        parts.append(_as_dtype(sampled, data.dtype))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _grid_sample(frames: Tensor, place: Tensor, mode: str) -> Tensor:
    """Call ``grid_sample`` (order x, y, z) on ``t c z y x`` frames, in 2D where one slice is sampled."""
    t, c, depth = frames.shape[:3]
    values = frames if frames.is_floating_point() else frames.float()
    values = values.flatten(0, 1)[None]
    options = {"mode": mode, "padding_mode": "border", "align_corners": True}
    place = place.to(values.dtype)
    if depth == 1 and place.shape[1] == 1:
        flat = F.grid_sample(values[:, :, 0], place[:, 0, :, :, :2], **options)
        return flat.reshape(t, c, 1, *flat.shape[2:])
    # torch spreads a batch over its threads, never one volume: so the points asked for become a batch.
    points = place.reshape(-1, 3)
    batch = max(1, min(len(points), torch.get_num_threads()))
    filled = F.pad(points, (0, 0, 0, -len(points) % batch)).reshape(batch, 1, 1, -1, 3)
    solid = F.grid_sample(values.expand(batch, -1, -1, -1, -1), filled, **options)
    solid = solid.transpose(0, 1).reshape(t * c, -1)[:, : len(points)]
    return solid.reshape(t, c, *place.shape[1:4])


def _resized(data: Tensor, shape: Shape3) -> Tensor:
    """Resize ``t c z y x`` data with a triangle filter along each axis, dtype kept."""
    c, depth, height, width = data.shape[1:]
    # torch filters uint8 natively on a CPU, several times faster than in float.
    native = data.dtype == torch.uint8 and data.device.type == "cpu" and shape[0] == depth
    parts = []
    for frames in data.split(max(1, _CHUNK_SAMPLES // max(1, c * depth * height * width))):
        check()
        values = frames if native or frames.is_floating_point() else frames.float()
        if (height, width) != tuple(shape[1:]):
            values = _filtered(values.flatten(0, 2)[:, None], shape[1:])
        values = values.reshape(len(frames) * c, 1, depth, shape[1] * shape[2])
        if depth != shape[0]:
            values = _filtered(values, (shape[0], values.shape[-1]))
        parts.append(_as_dtype(values.reshape(len(frames), c, *shape), data.dtype))
    return torch.cat(parts)


def _filtered(values: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False, antialias=True)


def _as_dtype(values: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.bool:
        return values >= 0.5
    if values.dtype == dtype or dtype.is_floating_point:
        return values.to(dtype)
    return values.round().clamp(torch.iinfo(dtype).min, torch.iinfo(dtype).max).to(dtype)


def _resampled_sector(scan: Scan, grid: Grid) -> Sector | None:
    if scan.sector is None:
        return None
    mask = scan.sector.mask.reshape(1, 1, *scan.grid.shape)
    moved = sample_on(mask.to(torch.uint8), scan.grid, target=grid, mode="nearest")[0, 0].bool()
    return dataclasses.replace(scan.sector, mask=moved[0] if grid.is_planar else moved)


def _resized_sector(scan: Scan, shape: Shape3) -> Sector | None:
    if scan.sector is None:
        return None
    mask = scan.sector.mask.reshape(1, 1, *scan.grid.shape).to(torch.uint8)
    nearest = F.interpolate(mask, size=shape, mode="nearest-exact")[0, 0].bool()
    return dataclasses.replace(scan.sector, mask=nearest[0] if scan.grid.is_planar else nearest)


def _check_units(source: Grid, target: Grid) -> None:
    if source.is_calibrated != target.is_calibrated:
        raise UncalibratedError("Resampling between these two grids", "only one of them has a scale")
    if source.frame != target.frame:
        raise ValueError(f"the grids lie in different frames, {source.frame} and {target.frame}")


def _slabs(shape: Shape3) -> Iterator[tuple[int, int]]:
    """Cut z into (start, count) slabs of bounded size."""
    step = max(1, _CHUNK_SAMPLES // (shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        check()
        yield start, min(step, shape[0] - start)


def _world_points(grid: Grid) -> Tensor:
    """World coordinates of every sample: float64 (Z, Y, X, 3)."""
    return _lattice(grid.shape, grid.affine)


def _lattice(shape: Shape3, matrix: np.ndarray) -> Tensor:
    """Carry the indices of a grid of ``shape`` through an affine matrix (4, 4): float64 (Z, Y, X, 3)."""
    z, y, x = (torch.arange(n, dtype=torch.float64) for n in shape)
    rows = matrix[:3].tolist()
    return torch.stack(
        [(a * z[:, None] + b * y + d)[:, :, None] + c * x for a, b, c, d in rows],
        -1,
    )


def _plane_coordinates(grid: Grid) -> tuple[Tensor, Tensor]:
    """Places of the samples of a planar grid down its rows and along its columns, each (Y, X)."""
    if not grid.is_planar:
        raise ValueError(f"a fan lies in a planar grid, this one is {grid.shape}")
    _, y, x = grid.in_plane(np.asarray(grid.origin))
    rows = y + grid.step[1] * torch.arange(grid.shape[1], dtype=torch.float64)
    columns = x + grid.step[2] * torch.arange(grid.shape[2], dtype=torch.float64)
    down, along = torch.meshgrid(rows, columns, indexing="ij")
    return down, along


def _world_to_index(grid: Grid, world: Tensor) -> Tensor:
    return _affine(world, np.linalg.inv(grid.affine))


def _affine(points: Tensor, matrix: np.ndarray) -> Tensor:
    linear = torch.from_numpy(np.ascontiguousarray(matrix[:3, :3].T))
    return points @ linear + torch.from_numpy(matrix[:3, 3].copy())


def _beam_points(fan: Fan, grid: Grid, size: tuple[int, int]) -> Tensor:
    """World (z, y, x) of the beam samples: float64 (depth, line, 3)."""
    depth, lines = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in size)
    radius = fan.radius_min + depth * (fan.radius_max - fan.radius_min)
    angle = torch.deg2rad(fan.angle_min_deg + lines * (fan.angle_max_deg - fan.angle_min_deg))
    y = fan.apex[0] + radius[:, None] * torch.cos(angle)
    x = fan.apex[1] + radius[:, None] * torch.sin(angle)
    places = torch.stack([torch.full_like(y, grid.in_plane(np.asarray(grid.origin))[0]), y, x], -1)
    return places @ torch.tensor(grid.direction, dtype=torch.float64).T


def _oversampling(fan: Fan, grid: Grid, depth_samples: int, lines: int) -> tuple[int, int]:
    """How many samples to average per answer so that neighbours lie at most about one pixel apart."""
    depth_step = (fan.radius_max - fan.radius_min) / depth_samples / grid.step[1]
    arc = math.radians(fan.angle_max_deg - fan.angle_min_deg) * (fan.radius_min + fan.radius_max) / 2
    line_step = arc / lines / grid.step[2]
    return max(1, min(8, round(depth_step))), max(1, min(8, round(line_step)))
