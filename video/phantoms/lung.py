"""Lung ultrasound: sliding pleura, A-lines, B-lines, consolidation and white lung, severity 0-3.

The clip is built in beam space (depth × line): chest wall and lung are speckle fields of their own, and the
lung's moves sideways with breathing. Artefacts follow how they arise (Soldati et al., J Ultrasound Med 38,
2019; scores as ibid. 39, 2020): A-lines repeat the distance probe-pleura, B-lines hang on points of the
pleura and run to the bottom, ribs cast shadows. Then log compression and scan conversion.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from usvol.resampling import scan_convert
from usvol.scan import Calibration, Fan, Scan, Source, Trust
from usvol.simulation import chest_wall, placement
from usvol.simulation.speckle import (
    complex_speckle,
    log_compress,
    renewing_speckle,
    shifted,
    smooth_noise,
    smooth_step,
    uneven_contact,
)

_DEPTH_SAMPLES = 320
_LINES = 128
_MARGIN_MM = 40.0  # of lung to the left and right of the view, which breathing brings in


class Config(BaseModel):
    """What to simulate; a field left at None is drawn from the range its description gives."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    probe: Literal["convex", "linear"] | None = Field(default=None, description="convex (75 %) or linear")
    severity: int | None = Field(default=None, ge=0, le=3, description="0 to 3")
    frames: int = Field(default=64, ge=1, le=2000)
    fps: float = Field(default=25.0, gt=0, le=200)
    size: int = Field(default=256, ge=32, le=2048, description="rows and columns of the image")
    depth_mm: float | None = Field(default=None, ge=30, le=250, description="convex 70-160, linear 40-70")
    pleura_mm: float | None = Field(
        default=None, ge=5, le=60, description="12-32 mm, at most 0.35 of the depth"
    )
    slide_mm: float | None = Field(default=None, ge=0, le=40, description="half the excursion: 1.5-10 mm")
    breaths_per_minute: float | None = Field(default=None, gt=0, le=90, description="10-32")
    gain_db: float | None = Field(default=None, ge=-60, le=60, description="-14 to 5 around a bright picture")
    dynamic_range_db: float | None = Field(default=None, ge=20, le=120, description="46-68")
    ribs: int | None = Field(default=None, ge=0, le=3, description="0-2, convex mostly 1-2")


@dataclass(frozen=True, slots=True)
class _Setup:
    """Every drawn number that is not a field of samples; lengths in mm."""

    probe: str
    severity: int
    depth_mm: float
    pleura_mm: float
    slide_mm: float
    period_s: float
    gain_db: float
    dynamic_range_db: float
    ribs: int
    radius_mm: float  # of the probe's surface; 0 for linear
    half_angle_deg: float
    width_mm: float  # along the probe's surface
    tilt: float  # of the pleura: mm depth per mm along it
    haze_db: float
    haze_mm: float
    gamma: float
    flatness: float  # of the pleura: 0 follows the probe, 1 is a straight line in the image
    contrast: float  # of the speckle, 1 without compounding
    fps: float
    frames: int
    size: int

    @property
    def step_mm(self) -> float:
        """Depth of one beam sample."""
        return self.depth_mm / _DEPTH_SAMPLES

    @property
    def pitch_mm(self) -> float:
        """Distance of neighbouring lines at the depth of the pleura."""
        if self.probe == "linear":
            return self.width_mm / _LINES
        return math.radians(2 * self.half_angle_deg) * (self.radius_mm + self.pleura_mm) / _LINES

    @property
    def lateral_mm(self) -> np.ndarray:
        """Position of each line along the pleura, 0 in the middle."""
        return ((np.arange(_LINES) + 0.5 - _LINES / 2) * self.pitch_mm).astype(np.float32)

    @property
    def depths_mm(self) -> np.ndarray:
        """Depth of each beam sample."""
        return ((np.arange(_DEPTH_SAMPLES) + 0.5) * self.step_mm).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Lesion:
    """A consolidation in lung coordinates (mm): position along the pleura, width, thickness."""

    at_mm: float
    width_mm: float
    thickness_mm: float


@dataclass(frozen=True, slots=True, eq=False)
class _Pathology:
    """What hangs on the lung, in lung coordinates (mm along the pleura)."""

    a_lines: bool
    a_line_strength: float
    b_positions_mm: np.ndarray
    b_widths_mm: np.ndarray
    b_strengths: np.ndarray
    lesions: tuple[_Lesion, ...]
    white: bool
    roughness_mm: float
    gaps: float


def simulate(seed: int, config: Config | None = None) -> tuple[Scan, dict[str, Any]]:
    """Simulate one clip: a calibrated, timed scan ``t 1 1 y x`` (uint8) and its truth as plain values.

    The same seed and config give the same samples. Truth: ``severity`` 0-3, ``a_lines``, ``b_lines``,
    ``b_line_count`` (seen for at least a quarter of the clip), ``consolidations``, ``white_lung``,
    ``pleura_mm``; per frame ``pleura_depth_mm`` (middle line) and ``slide_mm`` (of the lung, sideways);
    ``fan`` (mm, or None); and the settings drawn.

    Example:
        >>> scan, truth = simulate(1, Config(severity=0, frames=4, size=64))
        >>> scan.data.shape, truth["a_lines"]
        (torch.Size([4, 1, 1, 64, 64]), True)
    """
    rng = np.random.default_rng(seed)
    setup = _setup(rng, config or Config())
    pathology = _pathology(rng, setup)
    times_s = np.arange(setup.frames) / setup.fps
    phase = 2 * np.pi * (times_s / setup.period_s + rng.random())
    # Inspiration is quicker than expiration: a second harmonic skews the sine.
    breath = np.sin(phase) + 0.2 * np.sin(2 * phase + 0.6)
    slide_mm = (setup.slide_mm * breath + rng.uniform(-0.3, 0.3) * times_s).astype(np.float32)
    amplitude, visibility, pleura_mm = _echoes(
        rng, setup, pathology=pathology, slide_mm=slide_mm, breath=breath.astype(np.float32)
    )
    shown = log_compress(
        amplitude, gain_db=setup.gain_db, dynamic_range_db=setup.dynamic_range_db, gamma=setup.gamma
    )
    if setup.probe == "linear":
        grid, fan = placement.linear(setup.size, depth_mm=setup.depth_mm, width_mm=setup.width_mm), None
    else:
        grid, fan = placement.convex(
            setup.size,
            depth_mm=setup.depth_mm,
            radius_mm=setup.radius_mm,
            half_angle_deg=setup.half_angle_deg,
        )
    data = scan_convert(torch.from_numpy(shown)[:, None], grid, fan=fan)
    seen = int((visibility >= 0.25).sum())
    motion = {"slide_mm": slide_mm, "pleura_depth_mm": pleura_mm}
    source = Source(
        format="simulated",
        calibration=Calibration(Trust.MEASURED, "known: the phantom was simulated on this grid"),
        modality="US",
        probe=setup.probe,
    )
    scan = Scan(data, grid, tuple(times_s.tolist()), source, (f"simulated lung, seed {seed}",))
    return scan, {"seed": seed, **_truth(setup, pathology, motion=motion, seen=seen, fan=fan)}


def _truth(
    setup: _Setup, pathology: _Pathology, *, motion: dict[str, np.ndarray], seen: int, fan: Fan | None
) -> dict[str, Any]:
    settings = {key: value for key, value in dataclasses.asdict(setup).items() if key != "slide_mm"}
    return {
        **settings,
        "a_lines": pathology.a_lines,
        "b_lines": seen > 0 or pathology.white,
        "b_line_count": seen,
        "consolidations": [dataclasses.asdict(lesion) for lesion in pathology.lesions],
        "white_lung": pathology.white,
        **{name: [round(float(v), 4) for v in values] for name, values in motion.items()},
        "fan": dataclasses.asdict(fan) if fan is not None else None,
    }


def _setup(rng: np.random.Generator, config: Config) -> _Setup:
    def drawn(value: float | None, low: float, high: float) -> float:
        chance = float(rng.uniform(low, high))  # drawn always, so that one field does not move the others
        return chance if value is None else float(value)

    linear_chance, severity_chance, rib_chance = rng.random(), int(rng.integers(4)), rng.random()
    probe = config.probe or ("linear" if linear_chance < 0.25 else "convex")
    linear = probe == "linear"
    depth_mm = drawn(config.depth_mm, *((40, 70) if linear else (70, 160)))
    pleura_mm = drawn(config.pleura_mm, 12, 32)
    if config.pleura_mm is None:
        pleura_mm = min(pleura_mm, 0.35 * depth_mm)
    ribs = int(rib_chance * (2.2 if linear else 2.99))
    return _Setup(
        probe=probe,
        severity=severity_chance if config.severity is None else config.severity,
        depth_mm=depth_mm,
        pleura_mm=pleura_mm,
        slide_mm=drawn(config.slide_mm, 1.5, 10),
        period_s=60 / drawn(config.breaths_per_minute, 10, 32),
        gain_db=drawn(config.gain_db, -14, 5),
        dynamic_range_db=drawn(config.dynamic_range_db, 46, 68),
        ribs=ribs if config.ribs is None else config.ribs,
        radius_mm=0.0 if linear else drawn(None, 38, 62),
        half_angle_deg=0.0 if linear else drawn(None, 26, 38),
        width_mm=drawn(None, 36, 52),
        tilt=drawn(None, -0.12, 0.12),
        haze_db=drawn(None, -32, -19),
        haze_mm=drawn(None, 14, 70),
        gamma=drawn(None, 1.0, 1.9),
        flatness=drawn(None, 0.35, 1.15),
        contrast=drawn(None, 0.35, 0.85),
        fps=config.fps,
        frames=config.frames,
        size=config.size,
    )


def _pathology(rng: np.random.Generator, setup: _Setup) -> _Pathology:
    """Draw what a severity means: A-lines; few B-lines; small lesions; large lesion or white lung."""
    severity = setup.severity
    half = float(setup.lateral_mm[-1])
    white = severity == 3 and bool(rng.random() < 0.55)
    count = int(rng.integers(*((0, 3), (1, 5), (3, 8), (1, 6))[severity]))
    a_chance = (1.0, 0.45, 0.1, 0.0)[severity]
    lesions: list[_Lesion] = []
    if severity == 2:
        for _ in range(int(rng.integers(1, 4))):
            size = float(rng.uniform(4, 12))
            lesions.append(
                _Lesion(float(rng.uniform(-0.8, 0.8) * half), size, size * float(rng.uniform(0.4, 0.8)))
            )
    if severity == 3 and not white:
        width = float(rng.uniform(0.7, 1.6) * half)
        thickness = float(rng.uniform(0.25, 0.6)) * (setup.depth_mm - setup.pleura_mm)
        lesions.append(_Lesion(float(rng.uniform(-0.4, 0.4) * half), width, thickness))
    positions = rng.uniform(-half - 0.5 * setup.slide_mm, half + 0.5 * setup.slide_mm, count)
    wide = rng.random(count) < (0.15, 0.35, 0.5, 0.5)[severity]
    widths = np.where(wide, rng.uniform(5, 15, count), rng.uniform(1.5, 4.5, count))
    return _Pathology(
        a_lines=bool(rng.random() < a_chance),
        a_line_strength=float(rng.uniform(0.3, 0.75)),
        b_positions_mm=positions,
        b_widths_mm=widths,
        b_strengths=rng.uniform(0.4, 1.0, count) * (0.6 + 0.15 * severity),
        lesions=tuple(lesions),
        white=white,
        roughness_mm=float(rng.uniform(*((0.03, 0.2), (0.3, 0.7), (0.5, 1.1), (0.6, 1.3))[severity])),
        gaps=float(rng.uniform(*((0, 0.15), (0.1, 0.5), (0.3, 0.8), (0.3, 0.9))[severity])),
    )


def _echoes(
    rng: np.random.Generator,
    setup: _Setup,
    *,
    pathology: _Pathology,
    slide_mm: np.ndarray,
    breath: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Build echoes (frame, depth, line), how often each B-line is seen, and the pleura's depth per frame."""
    shade, rib_echo = chest_wall.ribs(
        rng,
        count=setup.ribs,
        depths_mm=setup.depths_mm,
        lateral_mm=setup.lateral_mm,
        pleura_mm=setup.pleura_mm + setup.tilt * setup.lateral_mm,
    )
    wall = chest_wall.tissue(
        rng,
        depths_mm=setup.depths_mm,
        lines=_LINES + 32,
        pleura_mm=setup.pleura_mm,
        contrast=setup.contrast,
    )
    lung = _Lung.draw(rng, setup, pathology)
    frames = np.empty((setup.frames, _DEPTH_SAMPLES, _LINES), np.float32)
    seen = np.zeros(len(pathology.b_positions_mm))
    lateral = setup.lateral_mm
    base = setup.pleura_mm + setup.tilt * lateral + lung.wave
    heave = rng.uniform(0.2, 1.5)
    open_line = shade[-1] > 0.5
    middle = np.empty(setup.frames)
    flicker = smooth_noise(rng, (setup.frames, max(1, len(seen))), sigma=(3.0, 0.0))
    noise = renewing_speckle(rng, (_DEPTH_SAMPLES, _LINES), sigma=(0.35 / setup.step_mm + 0.4, 2.2))
    for t in range(setup.frames):
        pleura = base + heave * breath[t] + lung.roughness_at(slide_mm[t])
        middle[t] = pleura[_LINES // 2]
        under = setup.depths_mm[:, None] - pleura
        below = smooth_step(under / 0.35)
        deep, b_seen = lung.echoes(
            float(slide_mm[t]), pleura=pleura, under=under, noise=next(noise), flicker=flicker[t]
        )
        wall_t = shifted(wall, 0.15 * float(slide_mm[t]) / setup.pitch_mm, count=_LINES)
        frames[t] = np.abs(wall_t) * (1 - below) + deep
        frames[t] = frames[t] * shade + rib_echo
        inside = np.abs(lung.b_at(float(slide_mm[t]))[:, None] - lateral) < setup.pitch_mm
        seen += (inside & open_line).any(1) * (b_seen > 0.1)
    frames *= uneven_contact(rng, (_DEPTH_SAMPLES, _LINES))
    floor = np.abs(rng.standard_normal(frames.shape, dtype=np.float32)) * np.float32(10 ** (-62 / 20))
    return frames + floor, seen / setup.frames, middle


def _specular(rng: np.random.Generator) -> np.ndarray:
    """How squarely each line meets the pleura, 0-1: A-lines live where it is near 1."""
    across = np.linspace(-1, 1, _LINES, dtype=np.float32) - np.float32(rng.uniform(-0.3, 0.3))
    return np.exp(-((across / np.float32(rng.uniform(0.3, 0.8))) ** 2))


@dataclass(frozen=True, slots=True, eq=False)
class _Lung:
    """Fields along the lung (wider than the view), and how they look at a given slide."""

    setup: _Setup
    pathology: _Pathology
    margin: int
    wave: np.ndarray
    rough: np.ndarray
    bright: np.ndarray
    texture: np.ndarray
    specular: np.ndarray
    comets: np.ndarray
    lesion_edge: np.ndarray
    pleura_db: float
    thickness_mm: float

    @staticmethod
    def draw(rng: np.random.Generator, setup: _Setup, pathology: _Pathology) -> _Lung:
        """Draw the fields of one lung."""
        margin = math.ceil(_MARGIN_MM / setup.pitch_mm)
        wide = _LINES + 2 * margin
        fine = 1.2 / setup.pitch_mm + 0.5
        angle = np.radians(np.linspace(-1, 1, _LINES, dtype=np.float32) * setup.half_angle_deg)
        # A straight pleura lies farther along the outer lines of a fan.
        curve = setup.flatness * (setup.radius_mm + setup.pleura_mm) * (1 / np.cos(angle) - 1)
        gaps = smooth_noise(rng, (wide,), sigma=(2.5 / setup.pitch_mm,))
        return _Lung(
            setup=setup,
            pathology=pathology,
            margin=margin,
            wave=(curve + smooth_noise(rng, (_LINES,), sigma=(20.0,)) * rng.uniform(0.2, 1.0)).astype(
                np.float32
            ),
            rough=smooth_noise(rng, (wide,), sigma=(fine,)) * np.float32(pathology.roughness_mm),
            bright=(
                smooth_noise(rng, (wide,), sigma=(fine,)) * 3.5
                - 22 * pathology.gaps * smooth_step((gaps - 0.8) * 4)
            ),
            texture=complex_speckle(rng, (_DEPTH_SAMPLES, wide), sigma=(0.3 / setup.step_mm + 0.4, 1.5)),
            specular=_specular(rng),
            comets=np.abs(
                complex_speckle(rng, (_DEPTH_SAMPLES, wide), sigma=(0.25 / setup.step_mm + 0.3, 2.5))
            )
            ** setup.contrast,
            lesion_edge=smooth_noise(rng, (wide,), sigma=(2.0 / setup.pitch_mm + 0.5,)),
            pleura_db=float(rng.uniform(-6, 2)),
            thickness_mm=float(rng.uniform(0.35, 0.6) + 0.12 * setup.severity),
        )

    def at(self, field: np.ndarray, slide_mm: float) -> np.ndarray:
        """Cut the view out of a field along the lung that has slid by ``slide_mm``."""
        shift = -slide_mm / self.setup.pitch_mm
        return shifted(field, self.margin + shift, count=_LINES)

    def roughness_at(self, slide_mm: float) -> np.ndarray:
        """Irregularity of the pleural line, mm per line."""
        return self.at(self.rough, slide_mm)

    def b_at(self, slide_mm: float) -> np.ndarray:
        """Position of each B-line along the view, mm."""
        return self.pathology.b_positions_mm + slide_mm

    def echoes(
        self,
        slide_mm: float,
        *,
        pleura: np.ndarray,
        under: np.ndarray,
        noise: np.ndarray,
        flicker: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Amplitude at and below the pleura (depth, line), and the strength of each B-line."""
        setup, below = self.setup, smooth_step(under / 0.35)
        solid, shred, covered = self._lesions(slide_mm, under)
        comet, strengths = self._b_lines(slide_mm, under, flicker=flicker)
        line_db = self.pleura_db + self.at(self.bright, slide_mm) + 4 * (self.specular - 1)
        line = np.exp(-((under / self.thickness_mm) ** 2)) * 10 ** (line_db / 20) * (1 - 0.85 * covered)
        line = line * (0.45 + 0.55 * self.at(self.comets, slide_mm))
        speckle = np.abs(noise) ** setup.contrast
        haze = 10 ** (setup.haze_db / 20) * np.exp(-np.maximum(under, 0) / setup.haze_mm)
        quiet = np.clip(1 - comet.max(0) * 1.4, 0, 1)
        diffuse = speckle * (haze + self._a_lines(pleura) * quiet * (1 - covered))
        grain = speckle * 0.55 + 0.5 * self.at(self.comets, slide_mm)
        tissue = np.abs(self.at(self.texture, slide_mm)) ** setup.contrast * 10 ** (-23 / 20)
        air = 10 ** (-17 / 20) * grain * shred
        deep = (diffuse + comet * grain * 10 ** (-15 / 20)) * (1 - solid) + tissue * solid + air
        return below * deep + line, strengths

    def _a_lines(self, pleura: np.ndarray) -> np.ndarray:
        """Repetitions of the pleura at multiples of its distance from the probe."""
        total = np.zeros((_DEPTH_SAMPLES, _LINES), np.float32)
        if not self.pathology.a_lines:
            return total
        for order in range(2, 6):
            away = (self.setup.depths_mm[:, None] - order * pleura) / (
                self.thickness_mm * (0.9 + 0.25 * order)
            )
            strength = 10 ** (-6 / 20) * self.pathology.a_line_strength ** (order - 0.6)
            total += np.exp(-(away**2)) * strength * self.specular ** (0.7 * order)
        return total

    def _b_lines(
        self, slide_mm: float, under: np.ndarray, *, flicker: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Comets from points of the pleura to the bottom, widening a little, as amplitude (depth, line)."""
        pathology, lateral = self.pathology, self.setup.lateral_mm
        strengths = pathology.b_strengths * np.clip(
            1 + 0.25 * flicker[: len(pathology.b_strengths)], 0.2, 1.5
        )
        total = np.zeros((_DEPTH_SAMPLES, _LINES), np.float32)
        fade = np.exp(-np.maximum(under, 0) / (1.6 * self.setup.depth_mm)).astype(np.float32)
        if pathology.white:
            patches = 0.55 + 0.35 * np.clip(self.at(self.bright, slide_mm) / 6, -1, 1)
            total += np.float32(1.0) * patches * fade
        for at, width, strength in zip(self.b_at(slide_mm), pathology.b_widths_mm, strengths, strict=True):
            across = np.abs(lateral - at) / (0.5 * width + 0.006 * np.maximum(under, 0))
            total += np.float32(strength) * np.exp(-(across**2.2)) * fade
        return total, strengths

    def _lesions(self, slide_mm: float, under: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Solid lung (0-1); its bright shredded border and air; how much of each line's pleura it covers."""
        solid, shred = np.zeros_like(under), np.zeros_like(under)
        covered = np.zeros(_LINES, np.float32)
        edge = self.at(self.lesion_edge, slide_mm)
        fine = self.at(self.rough, slide_mm) / self.pathology.roughness_mm
        for lesion in self.pathology.lesions:
            across = (self.setup.lateral_mm - lesion.at_mm - slide_mm) / (0.5 * lesion.width_mm)
            bottom = lesion.thickness_mm * (np.sqrt(np.clip(1 - across**2, 0, 1)) + 0.13 * edge + 0.07 * fine)
            bottom = np.where(np.abs(across) < 1, np.maximum(bottom, 0), 0)
            inside = smooth_step((bottom - under) / 0.5) * (bottom > 0.5)
            solid = np.maximum(solid, inside)
            rim = (
                np.exp(-(((under - bottom) / 0.9) ** 2)) * (bottom > 0.5) * np.clip(0.6 + 0.5 * edge, 0, 1.2)
            )
            beyond = (
                smooth_step((under - bottom) / 0.6)
                * (bottom > 0.5)
                * np.exp(-np.maximum(under - bottom, 0) / 30)
            )
            shred = np.maximum(shred, 1.6 * rim + 0.5 * beyond)
            if lesion.thickness_mm > 15:
                shred = np.maximum(shred, inside * self._bronchograms(slide_mm))
            covered = np.maximum(covered, smooth_step((1 - np.abs(across)) * 8) * 0.7)
        return solid, shred, covered

    def _bronchograms(self, slide_mm: float) -> np.ndarray:
        """Bright air in the bronchi of consolidated lung."""
        blobs = ndimage.gaussian_filter(np.abs(self.at(self.texture, slide_mm)), (1.5, 1.5))
        return np.clip((blobs - 1.35) * 6, 0, 2.2).astype(np.float32)
