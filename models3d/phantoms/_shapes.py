"""Implicit shapes on a voxel grid: signed distances in mm, negative inside, evaluated in bounding boxes.

Ellipsoid distances are the first-order estimate value / |gradient|; those of cones take the nearest point of
the axis. Blends are the polynomial smooth minimum (Quilez, "Smooth minimum", 2013).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from usvol.scan import Frame, Grid, Shape3, Vec3

Array = np.ndarray  # float32
FAR_MM = np.float32(1e3)


@dataclass(frozen=True, slots=True)
class Space:
    """A cubic-voxel grid aligned with the world; ``origin_mm`` is the world (z, y, x) of voxel 0."""

    shape: Shape3
    voxel_mm: float
    origin_mm: Vec3

    @property
    def grid(self) -> Grid:
        """The same as a ``Grid`` in the probe's frame."""
        return Grid(self.shape, (step := self.voxel_mm, step, step), self.origin_mm, frame=Frame.PROBE)

    @property
    def whole(self) -> tuple[slice, slice, slice]:
        """The box of all voxels."""
        return (slice(0, self.shape[0]), slice(0, self.shape[1]), slice(0, self.shape[2]))

    def box(self, centre_mm: np.ndarray, half_mm: float | np.ndarray) -> tuple[slice, slice, slice]:
        """Voxels within ``half_mm`` (one number or per axis) of a world point, clipped to the grid."""
        low = (np.asarray(centre_mm) - half_mm - self.origin_mm) / self.voxel_mm
        high = (np.asarray(centre_mm) + half_mm - self.origin_mm) / self.voxel_mm
        spans = [
            slice(min(max(math.floor(a), 0), n), max(min(math.ceil(b) + 1, n), 0))
            for a, b, n in zip(low, high, self.shape, strict=True)
        ]
        return (spans[0], spans[1], spans[2])

    def part(self, box: tuple[slice, slice, slice]) -> Space:
        """The space of one box."""
        shape = tuple(max(s.stop - s.start, 0) for s in box)
        origin = tuple(o + s.start * self.voxel_mm for o, s in zip(self.origin_mm, box, strict=True))
        return Space((shape[0], shape[1], shape[2]), self.voxel_mm, (origin[0], origin[1], origin[2]))

    def axes(self) -> tuple[Array, Array, Array]:
        """World z, y, x of the voxels, shaped to broadcast."""
        z, y, x = (
            (np.arange(n, dtype=np.float32) * np.float32(self.voxel_mm) + np.float32(o))
            for n, o in zip(self.shape, self.origin_mm, strict=True)
        )
        return z[:, None, None], y[:, None], x

    def along(self, direction: np.ndarray, centre_mm: np.ndarray) -> Array:
        """Signed distance (mm) of every voxel along a unit world direction from a point."""
        z, y, x = self.axes()
        dz, dy, dx = (np.float32(v) for v in direction)
        c = np.asarray(centre_mm, np.float32)
        return (z - c[0]) * dz + ((y - c[1]) * dy + (x - c[2]) * dx)

    def index(self, points_mm: np.ndarray) -> np.ndarray:
        """Voxel indices (3, n) of world points (n, 3)."""
        return ((np.asarray(points_mm) - self.origin_mm) / self.voxel_mm).T


def smooth_field(rng: np.random.Generator, space: Space, *, correlation_mm: float) -> Array:
    """Draw a random field of unit variance and roughly Gaussian correlation over ``space``."""
    step_mm = max(correlation_mm / 1.6, space.voxel_mm)
    coarse = tuple(max(2, math.ceil(n * space.voxel_mm / step_mm) + 1) for n in space.shape)
    noise = torch.from_numpy(rng.standard_normal((1, 1, *coarse), dtype=np.float32))
    kernel = torch.tensor([0.25, 0.5, 0.25])
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = 3
        pad = [0] * 6
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = 1
        noise = F.conv3d(F.pad(noise, pad, mode="replicate"), kernel.reshape(shape))
    noise = noise / 0.375**1.5  # what the kernel leaves of the standard deviation, three times
    if space.shape == coarse:
        return noise[0, 0].numpy()
    return F.interpolate(noise, size=space.shape, mode="trilinear", align_corners=True)[0, 0].numpy()


def ellipsoid(space: Space, centre_mm: np.ndarray, *, frame: np.ndarray, radii_mm: np.ndarray) -> Array:
    """Distance to an ellipsoid whose axes are the columns of ``frame``."""
    local = [space.along(frame[:, i], centre_mm) for i in range(3)]
    return ellipsoid_at(local, radii_mm)


def ellipsoid_at(local: list[Array], radii_mm: np.ndarray) -> Array:
    """Distance to an ellipsoid from coordinates along its own axes."""
    value = np.zeros((), np.float32)
    slope = np.zeros((), np.float32)
    for q, r in zip(local, radii_mm, strict=True):
        scaled = np.square(q * np.float32(1 / r))
        value = value + scaled
        slope = slope + scaled * np.float32(1 / r**2)
    value = np.sqrt(value)
    # |p/r| (|p/r| - 1) / |p/r²|: exact on a sphere, first order elsewhere.
    return value * (value - np.float32(1)) / np.sqrt(slope + np.float32(1e-12))


def round_cone(space: Space, ends_mm: np.ndarray, *, radii_mm: tuple[float, float]) -> Array:
    """Distance to a capsule from ``ends_mm[0]`` to ``ends_mm[1]`` with a radius at each end."""
    a, b = np.asarray(ends_mm, np.float64)
    length = max(float(np.linalg.norm(b - a)), 1e-6)
    axis = (b - a) / length
    along = space.along(axis, a)
    z, y, x = space.axes()
    square = np.square(z - np.float32(a[0])) + (
        np.square(y - np.float32(a[1])) + np.square(x - np.float32(a[2]))
    )
    held = np.clip(along, 0, np.float32(length))
    square -= np.square(along)
    square += np.square(along - held)
    np.maximum(square, 0, out=square)
    radius = np.float32(radii_mm[0]) + held * np.float32((radii_mm[1] - radii_mm[0]) / length)
    return np.sqrt(square) - radius


def blended(a: Array, b: Array, *, width_mm: float) -> Array:
    """Smooth union of two distances; the blend reaches ``width_mm`` either side."""
    mix = np.maximum(np.float32(width_mm) - np.abs(a - b), 0)
    return np.minimum(a, b) - np.square(mix) * np.float32(0.25 / width_mm)


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """Draw a uniform rotation matrix (Shoemake 1992: a normalised Gaussian quaternion)."""
    w, x, y, z = (q := rng.standard_normal(4)) / np.linalg.norm(q)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def turned(axis: np.ndarray, angle_rad: float) -> np.ndarray:
    """Rotation matrix about a world axis (Rodrigues)."""
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle_rad) * cross + (1 - math.cos(angle_rad)) * cross @ cross


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector at length 1."""
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


def random_direction(rng: np.random.Generator) -> np.ndarray:
    """Draw a uniform unit vector."""
    return unit(rng.standard_normal(3))
