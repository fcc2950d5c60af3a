"""One type for volumes, cines and 3D+t clips: samples, geometry, time, source.

Axes are ``t c z y x`` everywhere, and every triple of coordinates is ``(z, y, x)``,
world coordinates included: in ``Frame.PATIENT_LPS`` world z is superior, y posterior, x left.

This module imports no torch, so that headers can be inspected without it.
"""

from __future__ import annotations

import copyreg
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from usvol.errors import UncalibratedError

if TYPE_CHECKING:
    from torch import Tensor

Vec3 = tuple[float, float, float]
Shape3 = tuple[int, int, int]
Matrix3 = tuple[Vec3, Vec3, Vec3]

IDENTITY: Matrix3 = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


class Kind(StrEnum):
    """What a scan is, read off its shape."""

    IMAGE = "image"
    CINE = "cine"
    VOLUME = "volume"
    VOLUME_SEQUENCE = "volume+t"


class Frame(StrEnum):
    """The coordinate system that ``Grid`` places its samples in."""

    PROBE = "probe"
    PATIENT_LPS = "patient-lps"


def _read_only(facts: dict[str, Any]) -> MappingProxyType[str, Any]:
    return MappingProxyType(facts)


# Scans and results hold such mappings. Pickle cannot find their class by name, but finds this function.
copyreg.pickle(MappingProxyType, lambda facts: (_read_only, (dict(facts),)))


class Trust(StrEnum):
    """Where a calibration comes from."""

    MEASURED = "measured by device"
    STATED = "stated by user"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far the sample spacing may be trusted, and why.

    ``reason`` is always filled: the header field used, or what was missing or contradictory.
    """

    trust: Trust
    reason: str


@dataclass(frozen=True, slots=True)
class Grid:
    """A regular sampling grid: index ``(z, y, x)`` to world ``(z, y, x)``.

    A calibrated grid has ``spacing_mm`` and ``origin_mm`` and its world unit is the millimetre.
    An uncalibrated one has neither; its world unit is the sample of the file it was read from, and
    ``step_px`` and ``origin_px`` say how it samples that file, so that results can be put back.

    Attributes:
        shape: samples along z, y, x; a planar image has ``shape[0] == 1``.
        spacing_mm: distance of neighbouring samples, or None. On a planar grid (``is_planar``) the z entry is
            the thickness that the file states, else a placeholder equal to the y entry, and volumes cannot be
            measured.
        origin_mm: world position of sample (0, 0, 0), or None.
        direction: columns are the unit world vectors of the index axes z, y, x.
    """

    shape: Shape3
    spacing_mm: Vec3 | None = None
    origin_mm: Vec3 | None = None
    direction: Matrix3 = IDENTITY
    frame: Frame = Frame.PROBE
    step_px: Vec3 = (1.0, 1.0, 1.0)
    origin_px: Vec3 = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"a grid needs three positive sizes (z, y, x), got {self.shape}")
        if self.spacing_mm is not None:
            if not all(math.isfinite(s) and s > 0 for s in self.spacing_mm):
                raise ValueError(f"spacing must be positive and finite, got {self.spacing_mm}")
            if self.origin_mm is None:
                object.__setattr__(self, "origin_mm", (0.0, 0.0, 0.0))
        elif self.origin_mm is not None:
            raise ValueError("an uncalibrated grid has no origin in mm")

    @property
    def is_calibrated(self) -> bool:
        """Whether the world unit is the millimetre."""
        return self.spacing_mm is not None

    @property
    def is_planar(self) -> bool:
        """Whether the grid is one slice thick."""
        return self.shape[0] == 1

    @property
    def step(self) -> Vec3:
        """World units between neighbouring samples (mm, or file samples if uncalibrated)."""
        return self.spacing_mm if self.spacing_mm is not None else self.step_px

    @property
    def origin(self) -> Vec3:
        """World position of sample (0, 0, 0) (mm, or file samples if uncalibrated)."""
        return self.origin_mm if self.origin_mm is not None else self.origin_px

    @property
    def affine(self) -> np.ndarray:
        """4×4 float64 matrix from index (z, y, x, 1) to world (z, y, x, 1)."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.asarray(self.direction) * np.asarray(self.step)
        matrix[:3, 3] = self.origin
        return matrix

    def to_world(self, index: np.ndarray) -> np.ndarray:
        """Map indices of shape (..., 3) to world coordinates of shape (..., 3)."""
        return np.asarray(index, float) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, world: np.ndarray) -> np.ndarray:
        """Map world coordinates of shape (..., 3) to indices of shape (..., 3)."""
        return (np.asarray(world, float) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def in_plane(self, world: np.ndarray) -> np.ndarray:
        """Map world coordinates (..., 3) to those along the grid's own axes z, y, x."""
        return np.asarray(world, float) @ np.asarray(self.direction)

    def require_spacing_mm(self, quantity: str, reason: str = "its file carries no scale") -> Vec3:
        """Return the spacing in mm, or raise ``UncalibratedError`` naming ``quantity``."""
        if self.spacing_mm is None:
            raise UncalibratedError(quantity, reason)
        return self.spacing_mm

    def crop(self, start: Sequence[int], shape: Shape3) -> Grid:
        """Return the grid of the block of ``shape`` that begins at index ``start``."""
        return self._moved(self.to_world(np.asarray(start, float)), self.step, shape)

    def resized(self, shape: Shape3) -> Grid:
        """Return a grid of another shape over the same extent (sample edges coincide).

        A planar axis stays as it is.
        """
        ratio = np.asarray(self.shape, float) / np.asarray(shape, float)
        first = self.to_world((ratio - 1) / 2)
        return self._moved(first, tuple(np.asarray(self.step) * ratio), shape)

    def with_spacing(self, spacing_mm: Vec3) -> Grid:
        """Return the same samples at a stated spacing (z, y, x).

        It counts per sample of the file where the grid is uncalibrated, so frames that were shrunk in
        decoding get it times ``step_px``; else per sample of this grid, whose first stays where it is.
        """
        if self.is_calibrated:
            return dataclasses.replace(self, spacing_mm=vec3(spacing_mm))
        z, y, x = np.asarray(spacing_mm, float) * self.step_px
        turn = np.asarray(self.direction)
        origin = turn @ (np.asarray(spacing_mm, float) * (turn.T @ self.origin_px))
        spacing = (y if self.is_planar else z, y, x)
        return dataclasses.replace(self, spacing_mm=vec3(spacing), origin_mm=vec3(origin))

    def per_file_sample(self, spacing_mm: Vec3) -> Vec3:
        """Turn a spacing stated of this grid's own samples into what ``with_spacing`` takes."""
        return spacing_mm if self.is_calibrated else vec3(np.asarray(spacing_mm, float) / self.step_px)

    def _moved(self, origin: Any, step: Any, shape: Shape3) -> Grid:
        shape = tuple(int(n) for n in shape)  # type: ignore[assignment]
        if self.is_calibrated:
            return dataclasses.replace(self, shape=shape, origin_mm=vec3(origin), spacing_mm=vec3(step))
        return dataclasses.replace(self, shape=shape, origin_px=vec3(origin), step_px=vec3(step))


@dataclass(frozen=True, slots=True)
class Source:
    """Where a scan comes from.

    Attributes:
        path: file or folder; None for a scan made in memory.
        format: reader that produced it, such as ``"dicom"``.
        calibration: trust in the spacing, with the reason.
        modality, vendor, probe: as the file says, or None.
        patient_key: the same for all scans of a patient, made of the identity by a hash; None if unknown. A
            pseudonym, not anonymous: who has a list of identities can tell which one it is.
        frame_indices: file frames that were decoded, or None for all of them.
        warnings: what the user should know, such as burned-in annotation or a truncated tail.
        metadata: format-specific facts (ultrasound regions, tracking poses); read-only.
        stated_fps: frame rate (frames per second) that the user states, or None.
    """

    path: Path | None = None
    format: str = "memory"
    calibration: Calibration = Calibration(Trust.ABSENT, "made in memory without a scale")
    modality: str | None = None
    vendor: str | None = None
    probe: str | None = None
    patient_key: str | None = None
    frame_indices: tuple[int, ...] | None = None
    warnings: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    stated_fps: float | None = None

    def with_stated_spacing(self, spacing_mm: Vec3) -> Source:
        """Return the source of a scan whose spacing (z, y, x) in mm the user states."""
        reason = f"spacing {spacing_mm} mm (z, y, x) stated by the user"
        return dataclasses.replace(self, calibration=Calibration(Trust.STATED, reason))


@dataclass(frozen=True, slots=True)
class Fan:
    """A planar fan (convex, phased or sector probe) in the plane of its grid and in its world units.

    Attributes:
        apex: (y, x) along the grid's own rows and columns where the scan lines meet, often outside the image;
            world y and x where ``direction`` is the identity (``Grid.in_plane`` in general).
        radius_min, radius_max: distance from the apex to the first and last sample of a line.
        angle_min_deg, angle_max_deg: of the outer lines, 0 down the rows, positive along the columns.
    """

    apex: tuple[float, float]
    radius_min: float
    radius_max: float
    angle_min_deg: float
    angle_max_deg: float


@dataclass(frozen=True, slots=True, eq=False)
class Sector:
    """The insonified part of a scan.

    Attributes:
        mask: bool ``y x`` (planar) or ``z y x`` on the scan's grid; False on overlays and outside.
        fan: fitted fan geometry, or None when the sector is linear or unknown.
        shape: ``"fan"``, ``"linear"`` or ``"unknown"``.
    """

    mask: Tensor
    fan: Fan | None
    shape: str


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """Samples ``t c z y x`` on a grid, with frame times and source.

    A volume has ``t == 1``, a planar cine ``z == 1``, a 3D+t clip neither. The stored dtype is kept.

    Attributes:
        times_s: one increasing time per frame, or None when the frame rate is unknown.
        history: one line per processing step.
        sector: the insonified region once ``canonicalise`` has found it.
    """

    data: Tensor
    grid: Grid
    times_s: tuple[float, ...] | None = None
    source: Source = Source()
    history: tuple[str, ...] = ()
    sector: Sector | None = None

    def __post_init__(self) -> None:
        if self.data.ndim != 5 or tuple(self.data.shape[2:]) != tuple(self.grid.shape):
            raise ValueError(f"data must be (t, c, *{self.grid.shape}), got {tuple(self.data.shape)}")
        if self.times_s is not None and len(self.times_s) != self.data.shape[0]:
            raise ValueError(f"{self.data.shape[0]} frames but {len(self.times_s)} frame times")

    @property
    def kind(self) -> Kind:
        """What this scan is, read off its shape."""
        return kind_of(self.data.shape[0], self.grid.shape)

    @property
    def calibration(self) -> Calibration:
        """Trust in the spacing, with the reason."""
        return self.source.calibration

    def with_data(self, data: Tensor, *, step: str, grid: Grid | None = None) -> Scan:
        """Return a scan with new samples (and grid), with ``step`` noted in the history."""
        return dataclasses.replace(self, data=data, grid=grid or self.grid, history=(*self.history, step))

    def with_spacing(self, spacing_mm: Vec3) -> Scan:
        """Return the scan with a spacing (z, y, x) in mm that the user states: see ``Grid.with_spacing``."""
        source = self.source.with_stated_spacing(spacing_mm)
        return dataclasses.replace(
            self,
            grid=self.grid.with_spacing(spacing_mm),
            source=source,
            history=(*self.history, source.calibration.reason),
        )

    def with_fps(self, fps: float) -> Scan:
        """Return the scan with frame times of a constant rate (frames per second) that the user states."""
        indices = self.source.frame_indices or range(self.data.shape[0])
        return dataclasses.replace(
            self,
            times_s=_stated_times_s(indices, fps),
            source=dataclasses.replace(self.source, stated_fps=fps),
            history=(*self.history, f"frame rate {fps} Hz stated by the user"),
        )


@dataclass(frozen=True, slots=True)
class Header:
    """What ``probe`` reads without decoding samples.

    Attributes:
        frames: number of frames (t); channels: samples per pixel (c).
        dtype: numpy name of the stored sample type.
        times_s: frame times, or None when unknown (or not in the header).
    """

    grid: Grid
    frames: int
    channels: int
    dtype: str
    times_s: tuple[float, ...] | None
    source: Source

    @property
    def kind(self) -> Kind:
        """What the scan will be."""
        return kind_of(self.frames, self.grid.shape)

    def with_spacing(self, spacing_mm: Vec3) -> Header:
        """Return the header with a spacing (z, y, x) in mm that the user states (``Grid.with_spacing``)."""
        source = self.source.with_stated_spacing(spacing_mm)
        return dataclasses.replace(self, grid=self.grid.with_spacing(spacing_mm), source=source)

    def with_fps(self, fps: float) -> Header:
        """Return the header with frame times of a constant rate (frames per second) that the user states."""
        source = dataclasses.replace(self.source, stated_fps=fps)
        return dataclasses.replace(self, times_s=_stated_times_s(range(self.frames), fps), source=source)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which frames a task needs, and how large.

    Attributes:
        max_frames: decode at most this many, spread evenly over what ``fps`` leaves; None for all.
        fps: thin the cine to about this rate where frame times are known; None to keep every frame.
        max_side_px: scale frames down while decoding so that the longer side is at most this.
        stated_fps: rate of the file's frames as the user states it: counts in place of their times.
    """

    max_frames: int | None = None
    fps: float | None = None
    max_side_px: int | None = None
    stated_fps: float | None = field(default=None, repr=False)  # no part of what a task asks for

    def __post_init__(self) -> None:
        for name in ("max_frames", "fps", "max_side_px", "stated_fps"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive, got {value}")


def kind_of(frames: int, shape: Shape3) -> Kind:
    """Tell image, cine, volume and 3D+t apart by the number of frames and the shape (z, y, x)."""
    if shape[0] == 1:
        return Kind.CINE if frames > 1 else Kind.IMAGE
    return Kind.VOLUME_SEQUENCE if frames > 1 else Kind.VOLUME


def _stated_times_s(indices: Sequence[int], fps: float) -> tuple[float, ...]:
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"frame rate must be positive, got {fps}")
    return tuple(i / fps for i in indices)


def vec3(values: Any) -> Vec3:
    """Return three numbers of any sequence or array as plain floats."""
    z, y, x = (float(v) for v in values)
    return (z, y, x)
