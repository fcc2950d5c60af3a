"""Probes and scanner settings, and the ranges they are drawn from.

World axes of ``Frame.PROBE``: x lateral (azimuth), y depth below the middle of the face, z elevation; mm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

ProbeKind = Literal["mechanical_3d", "matrix_3d", "convex", "sector", "linear"]


@dataclass(frozen=True, slots=True)
class Probe:
    """An array and how its beams are laid out.

    The array is an arc of ``radius_mm`` along azimuth (0: all beams leave one point; linear: straight). A
    volume sweeps that plane about an axis ``sweep_radius_mm`` behind the face: the turning axis of a
    mechanical probe, the virtual apex of a matrix.

    Attributes:
        frequency_mhz: centre of the received band; ``bandwidth`` is its full width at -6 dB over the centre.
        depth_mm: from the face to the last sample.
        azimuth_deg: half the opening of the fan; unused by a linear probe.
        elevation_deg: half the sweep; unused with one plane.
        width_mm: length of a linear face; None for all others.
        aperture_mm: active length along azimuth; ``elevation_aperture_mm``: height of the elements.
        f_number: smallest of the growing receive aperture.
        focus_mm: transmit focus; ``elevation_focus_mm``: that of the lens.
        lines, planes, samples: beams along azimuth, along elevation (1: a plane), samples along each.
    """

    kind: ProbeKind
    frequency_mhz: float
    depth_mm: float
    focus_mm: float
    azimuth_deg: float = 35.0
    elevation_deg: float = 30.0
    bandwidth: float = 0.6
    radius_mm: float = 0.0
    sweep_radius_mm: float = 0.0
    width_mm: float | None = None
    aperture_mm: float = 16.0
    elevation_aperture_mm: float = 10.0
    elevation_focus_mm: float | None = None
    f_number: float = 2.0
    lines: int = 80
    planes: int = 64
    samples: int = 224

    def __post_init__(self) -> None:
        if (self.width_mm is None) == (self.kind == "linear"):
            raise ValueError("a linear probe has width_mm, any other has none")
        if min(self.frequency_mhz, self.depth_mm, self.focus_mm, self.aperture_mm, self.bandwidth) <= 0:
            raise ValueError("frequency, depth, focus, aperture and bandwidth must be above 0")
        if min(self.radius_mm, self.sweep_radius_mm) < 0 or min(self.lines, self.planes, self.samples) < 1:
            raise ValueError("radii must be >= 0, and beams and samples at least 1")
        if not (0 < self.azimuth_deg < 90 and 0 < self.elevation_deg < 90):
            raise ValueError("half angles lie between 0 and 90 degrees")

    @property
    def wavelength_mm(self) -> float:
        """Wavelength at the centre frequency."""
        return SPEED_MM_US / self.frequency_mhz

    @property
    def is_planar(self) -> bool:
        """Whether it images one plane."""
        return self.planes == 1

    @property
    def half_width(self) -> float:
        """Half of what the lines span: mm along a linear face, else radians."""
        return self.width_mm / 2 if self.width_mm is not None else math.radians(self.azimuth_deg)

    @property
    def step_mm(self) -> float:
        """Distance of samples along a beam."""
        return self.depth_mm / self.samples


SPEED_MM_US = 1.54
"""Speed of sound that scanners assume, mm/µs."""


@dataclass(frozen=True, slots=True)
class Imaging:
    """How a scanner turns echoes into grey.

    Levels are relative to bright soft tissue (``Tissue.echo_db`` 0).

    Attributes:
        dynamic_range_db: from black to white; ``gain_db`` shifts it (0: bright tissue at 0.6 of the range).
        auto_gain: part (0-1) of the wrong brightness that is corrected; per image, so leave it 0 in cines.
        tgc_db_cm_mhz: attenuation the time gain compensation assumes.
        tgc_error_db: errors of its sliders, evenly spaced in depth.
        gamma, contrast: grey map: power, then blend (0-1) with an S-curve.
        reject: what the scanner shows as black, as a fraction of the range.
        compounding: independent looks averaged after detection.
        penetration_mm: depth at which electronic noise is as strong as bright tissue.
        clutter_db: echoes from elsewhere (side of the beam, aberration) where none arise.
        haze_db, haze_mm: reverberant tail behind strong layers: level and length.
        reverberation_db: second echo of an interface, at twice its depth.
        side_lobe_db: two-way, next to the main lobe.
        specular_db: echo of an interface of reflection coefficient 1 hit squarely.
        specular_power: exponent of the cosine with which it falls off with the angle.
        aberration: factor on the lateral width of the beam, 1 or more.
        dropout: fraction of lines without contact; ``dropout_db`` what they lose.
        smoothing, sharpening: strength (0-1) of speckle reduction and edge enhancement.
        jpeg_quality: of the stored planes, 1-95; None for lossless.
    """

    dynamic_range_db: float = 60.0
    gain_db: float = 0.0
    auto_gain: float = 0.0
    tgc_db_cm_mhz: float = 0.4
    tgc_error_db: tuple[float, ...] = (0.0,)
    gamma: float = 1.0
    contrast: float = 0.0
    reject: float = 0.0
    compounding: int = 1
    penetration_mm: float = 250.0
    clutter_db: float = -48.0
    haze_db: float = -30.0
    haze_mm: float = 6.0
    reverberation_db: float = -30.0
    side_lobe_db: float = -45.0
    specular_db: float = 34.0
    specular_power: float = 6.0
    aberration: float = 1.0
    dropout: float = 0.0
    dropout_db: float = 20.0
    smoothing: float = 0.0
    sharpening: float = 0.0
    jpeg_quality: int | None = None

    def __post_init__(self) -> None:
        if self.dynamic_range_db <= 0 or self.gamma <= 0 or self.compounding < 1 or not self.tgc_error_db:
            raise ValueError("dynamic range and gamma must be above 0, looks at least 1, sliders at least 1")
        parts = (self.auto_gain, self.contrast, self.reject, self.dropout, self.smoothing, self.sharpening)
        if not all(0 <= part <= 1 for part in parts) or self.reject == 1:
            raise ValueError("gain correction, contrast, reject, dropout and filters lie between 0 and 1")
        if self.aberration < 1:
            raise ValueError(f"aberration widens the beam: 1 or more, got {self.aberration}")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 95:
            raise ValueError(f"JPEG quality lies between 1 and 95, got {self.jpeg_quality}")


@dataclass(frozen=True, slots=True)
class _Range:
    """What a kind of probe is drawn from: (low, high) of each number."""

    frequency_mhz: tuple[float, float]
    depth_mm: tuple[float, float]
    azimuth_deg: tuple[float, float]
    radius_mm: tuple[float, float]
    sweep_mm: tuple[float, float]
    aperture_mm: tuple[float, float]


# Typical of products on the market: curved and endocavitary swept probes, matrix arrays, and planar ones.
_RANGES: dict[ProbeKind, _Range] = {
    "mechanical_3d": _Range((3, 7), (60, 200), (28, 45), (30, 52), (15, 45), (10, 20)),
    "matrix_3d": _Range((2, 5), (70, 200), (25, 45), (0, 12), (0, 12), (10, 20)),
    "convex": _Range((2, 6), (60, 200), (25, 38), (40, 65), (0, 0), (10, 22)),
    "sector": _Range((1.5, 4), (80, 200), (35, 45), (0, 6), (0, 0), (10, 20)),
    "linear": _Range((5, 14), (40, 80), (1, 1), (0, 0), (0, 0), (8, 16)),
}
_ENDOCAVITARY = _Range((5, 9), (40, 90), (45, 70), (9, 13), (8, 14), (6, 12))


def draw_probe(
    rng: np.random.Generator,
    *,
    kind: ProbeKind | None = None,
    depth_mm: float | None = None,
    endocavitary: bool = False,
) -> Probe:
    """Draw a probe of ``kind`` (None: mechanical or matrix 3D) from the ranges of this module.

    Frequency 1.5-14 MHz and depth 40-200 mm by kind (``_RANGES``), deep views with low frequencies; focus at
    0.35-0.8 of the depth, bandwidth 0.45-0.8, f-number 1.5-3, half sweep 20-42°, lines 64-96, planes 56-80.
    ``endocavitary``: a small wide mechanical probe near its target.
    """
    kind = kind or ("mechanical_3d" if rng.random() < 0.7 else "matrix_3d")
    limits = _ENDOCAVITARY if endocavitary else _RANGES[kind]
    depth = float(depth_mm if depth_mm is not None else rng.uniform(*limits.depth_mm))
    low, high = limits.frequency_mhz
    shallow = 1 - (depth - limits.depth_mm[0]) / (limits.depth_mm[1] - limits.depth_mm[0])
    frequency = low + (high - low) * float(np.clip(0.6 * shallow + 0.4 * rng.random(), 0, 1))
    planar = kind in ("convex", "sector", "linear")
    radius = float(rng.uniform(*limits.radius_mm))
    sweep = radius if kind == "matrix_3d" else float(rng.uniform(*limits.sweep_mm))
    aperture = float(rng.uniform(*limits.aperture_mm))
    focus = depth * float(rng.uniform(0.35, 0.8))
    return Probe(
        kind=kind,
        frequency_mhz=frequency,
        depth_mm=depth,
        focus_mm=focus,
        azimuth_deg=float(rng.uniform(*limits.azimuth_deg)),
        elevation_deg=float(rng.uniform(20, 42)),
        bandwidth=float(rng.uniform(0.45, 0.8)),
        radius_mm=radius,
        sweep_radius_mm=sweep,
        width_mm=float(rng.uniform(36, 55)) if kind == "linear" else None,
        aperture_mm=aperture,
        elevation_aperture_mm=aperture * float(rng.uniform(0.5, 0.9 if kind == "mechanical_3d" else 1.0)),
        elevation_focus_mm=None if kind == "matrix_3d" else depth * float(rng.uniform(0.4, 0.7)),
        f_number=float(rng.uniform(1.5, 3)),
        lines=128 if planar else int(rng.integers(64, 97)),
        planes=1 if planar else int(rng.integers(56, 81)),
        samples=int(np.clip(depth / 0.35, 192, 512 if planar else 256)),
    )


def draw_imaging(rng: np.random.Generator) -> Imaging:
    """Draw scanner settings, wide enough to hold those of most vendors and most patients.

    Dynamic range 35-75 dB, gain ±8 dB, TGC assumed 0.4-0.6 dB/cm/MHz with errors of 2 dB (eight sliders),
    gamma 0.7-1.4, S-curve 0-0.7, 1-3 looks, clutter -60 to -34 dB, haze -38 to -16 dB over 2-14 mm, and the
    rest as below.
    """

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    return Imaging(
        dynamic_range_db=between(35, 75),
        gain_db=float(np.clip(rng.normal(0, 4), -8, 8)),
        auto_gain=between(0.75, 1),
        tgc_db_cm_mhz=between(0.4, 0.6),
        tgc_error_db=tuple(rng.normal(0, 2, 8).round(2).tolist()),
        gamma=between(0.7, 1.4),
        contrast=between(0, 0.7),
        reject=between(0, 0.08),
        compounding=int(rng.choice((1, 2, 3), p=(0.5, 0.3, 0.2))),
        penetration_mm=between(220, 420),
        clutter_db=between(-60, -34),
        haze_db=between(-38, -16),
        haze_mm=between(2, 14),
        reverberation_db=between(-45, -18),
        side_lobe_db=between(-60, -32),
        specular_db=between(26, 40),
        specular_power=between(3, 14),
        aberration=between(1, 1.8),
        dropout=float(rng.choice((0.0, between(0.02, 0.15)), p=(0.7, 0.3))),
        dropout_db=between(6, 35),
        smoothing=float(rng.choice((0.0, between(0.2, 0.8)), p=(0.35, 0.65))),
        sharpening=float(rng.choice((0.0, between(0.1, 0.6)), p=(0.6, 0.4))),
        jpeg_quality=None if rng.random() < 0.4 else int(rng.integers(55, 96)),
    )
