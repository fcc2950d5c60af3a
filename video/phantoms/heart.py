"""Beating heart, apical four- and two-chamber views: cines with exact outlines and volume.

The anatomy is drawn once, at the largest diastole. Each frame maps every beam sample back to that drawing by
a closed form (long axis shortening, walls thickening at constant area, tilted image plane), so echoes *and
speckle* move with the tissue. Volume follows the cycle of Wiggers: isovolumic contraction, ejection,
isovolumic relaxation, E wave, rest, A wave. Ranges are wide on purpose.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from usvol.result import Labels
from usvol.scan import Scan
from usvol.simulation.acquisition import develop_cine
from usvol.simulation.beam_geometry import image_grid
from usvol.simulation.echoes import draw_still, form_echoes
from usvol.simulation.probe import Imaging, Probe
from video.phantoms import _heart_cycle as cycle
from video.phantoms import _heart_drawing as drawing
from video.phantoms import _heart_shape as shape
from video.phantoms._heart_frames import Scene, medium_of
from video.phantoms._heart_outlines import LABEL_NAMES, Outlines, label_map, outlines_of
from video.phantoms._heart_view import aimed, drawn_imaging, posed, shaded, valves_of

Array = NDArray[np.float64]
View = Literal["A4C", "A2C"]

_CHUNK = 16  # frames rendered at a time


class Config(BaseModel):
    """What to simulate; a field left at None is drawn from the range its description gives."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    view: View | None = Field(default=None, description="A4C 75 %, A2C 25 %")
    ef_percent: float | None = Field(default=None, ge=10, le=80, description="15-78")
    heart_rate_bpm: float | None = Field(default=None, ge=30, le=180, description="42-160, mostly 55-100")
    rhythm: cycle.Rhythm | None = Field(
        default=None, description="sinus 80 %, fibrillation 12 %, ectopic beats 8 %"
    )
    beats: float | None = Field(default=None, gt=0, le=10, description="length of the clip in beats, 1.2-4")
    fps: float | None = Field(default=None, ge=10, le=200, description="20-100")
    max_frames: int = Field(default=128, ge=1, le=4000, description="longer clips are cut")
    size: int | None = Field(default=None, ge=32, le=1024, description="rows of the image, 112-176")
    foreshortening: float | None = Field(
        default=None, ge=0, le=0.35, description="part of the long axis that the plane misses, 0-0.3"
    )
    scale: float | None = Field(
        default=None, ge=0.4, le=1.4, description="of the heart; 0.85-1.2, in 15 % a child's 0.5-0.85"
    )
    quality: float | None = Field(default=None, ge=0, le=1, description="of the acoustic window, 0 poor to 1")


@dataclass(frozen=True, slots=True)
class _Case:
    """Every number that is drawn before the anatomy."""

    view: View
    ef: float
    bpm: float
    rhythm: cycle.Rhythm
    fps: float
    frames: int
    size: int
    foreshortening: float
    scale: float
    quality: float


@dataclass(frozen=True, slots=True, eq=False)
class Heart:
    """A drawn heart, ready to be rendered.

    Attributes:
        scene, probe, imaging: what meets the beams, the beams, and how they are shown.
        outlines: of left ventricle, its wall and left atrium at each frame, in the image (mm).
        times_s, volume_ml: per frame.
        facts: plain values.
    """

    scene: Scene
    probe: Probe
    imaging: Imaging
    outlines: Outlines
    times_s: Array
    volume_ml: Array
    facts: dict[str, Any]
    size: int


def draw(seed: int, config: Config | None = None) -> Heart:
    """Draw one heart with its motion; the same seed and config give the same.

    Example:
        >>> heart = draw(1, Config(view="A4C", ef_percent=60, fps=25, beats=1))
        >>> round(heart.facts["ef_percent"]), len(heart.volume_ml) == len(heart.times_s)
        (59, True)
    """
    rng = np.random.default_rng((seed, 6))
    case = _case(rng, config or Config())
    ventricle, plan = _anatomy(rng, case)
    full = shape.capacity_ml(ventricle)
    pump = cycle.draw_pump(rng, bpm=case.bpm, ef=case.ef, edv_ml=0.96 * full, rhythm=case.rhythm)
    times_s = np.arange(case.frames) / case.fps
    beats = cycle.draw_beats(rng, pump, duration_s=float(times_s[-1]))
    volume_ml = cycle.volume_ml(beats, pump, times_s=times_s)
    change = cycle.shape_change(beats, times_s=times_s)
    reach = _reach_mm(ventricle, plan)
    rest = shape.moved(ventricle, volumes_ml=np.array([full]), change=np.zeros(1), reach_mm=reach)
    motion = shape.moved(ventricle, volumes_ml=volume_ml, change=change, reach_mm=reach)
    drawn = drawing.drawn(rng, ventricle, plan=plan, echoes=drawing.draw_echoes(rng), rest=rest)
    pose = posed(rng, times_s=times_s, ejected=1 - volume_ml / full, view=case.view)
    opening = cycle.valve_opening(beats, times_s=times_s)
    probe = aimed(rng, pose, roof_mm=drawn.roof_mm, scale=case.scale)
    scene = Scene(
        drawing=drawn,
        rest=rest,
        half_mm=shape.faded(motion, rest),
        knots_mm=np.stack([motion.apex_mm, motion.annulus_mm], 1),
        right_squeeze=_right_squeeze(rng, plan, ejected=1 - volume_ml / full),
        valves=valves_of(rng, drawn, plan=plan, motion=motion, opening=opening),
        pose=pose,
        decorrelation=rng.uniform(0.2, 1.2) * (1 - volume_ml / full) + rng.uniform(0, 0.15) * times_s,
        leaflet=(10 ** (rng.uniform(-6, 3) / 20), 0.08, float(rng.uniform(0.8, 1.5))),
        **shaded(rng, probe, times_s=times_s, pose=pose, quality=case.quality),
    )
    outlines = outlines_of(scene, motion)
    facts = _facts(case, beats, times_s=times_s) | {"seed": seed}
    imaging = drawn_imaging(rng, quality=case.quality)
    return Heart(scene, probe, imaging, outlines, times_s, volume_ml, facts, case.size)


def simulate_labelled(seed: int, config: Config | None = None) -> tuple[Scan, Labels, dict[str, Any]]:
    """Simulate one cine: scan ``t 1 1 y x`` (uint8), labels of all frames on its grid, truth as plain values.

    Labels: 1 cavity of the left ventricle (papillary muscles included), 2 its wall, 3 left atrium. Truth: the
    numbers drawn; per frame ``volume_ml`` (true, of the whole ventricle: biplane Simpson without tilt),
    ``position_in_beat`` (0 ED, 0.5 ES), ``apex_mm`` and ``annulus_mm`` (image y, x); ``ed_frames``,
    ``es_frames`` and their exact ``…_times_s``; ``beats`` with both in the clip (ED and ES in s, EF in %);
    ``ef_percent`` (mean over them, else that of the first beat), ``edv_ml``, ``esv_ml``.

    Example:
        >>> scan, labels, truth = simulate_labelled(1, Config(fps=20, beats=1, max_frames=4, size=64))
        >>> scan.data.shape[0] == labels.data.shape[0] == len(truth["volume_ml"])
        True
    """
    heart = draw(seed, config)
    grid = image_grid(heart.probe, _image_shape(heart.probe, heart.size))
    times_s = tuple(heart.times_s.tolist())
    with torch.no_grad():
        envelope = _envelope(heart, seed=seed)
        scan = develop_cine(envelope, heart.probe, imaging=heart.imaging, grid=grid, times_s=times_s)
    data = label_map(heart.outlines, grid)
    scan = dataclasses.replace(scan, history=(f"simulated heart, seed {seed}",))
    truth = {
        **heart.facts,
        "volume_ml": heart.volume_ml.round(3).tolist(),
        "apex_mm": heart.outlines.apex_mm.round(2).tolist(),
        "annulus_mm": heart.outlines.annulus_mm.round(2).tolist(),
        "depth_mm": round(heart.probe.depth_mm, 1),
        "fan_deg": round(2 * heart.probe.azimuth_deg, 1),
    }
    return scan, Labels("truth", data, grid, LABEL_NAMES), truth


def simulate(seed: int, config: Config | None = None) -> tuple[Scan, dict[str, Any]]:
    """Simulate one cine and its truth; as ``simulate_labelled``, without the label map."""
    scan, _, truth = simulate_labelled(seed, config)
    return scan, truth


def _envelope(heart: Heart, *, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    still = draw_still(heart.probe, heart.imaging, generator=generator)
    parts = []
    for start in range(0, len(heart.times_s), _CHUNK):
        frames = slice(start, min(start + _CHUNK, len(heart.times_s)))
        medium, scatterers = medium_of(heart.scene, heart.probe, frames=frames)
        parts.append(
            form_echoes(
                medium,
                heart.probe,
                imaging=heart.imaging,
                generator=generator,
                scatterers=scatterers,
                still=still,
            )
        )
    return torch.cat(parts, 2)


def _image_shape(probe: Probe, rows: int) -> tuple[int, int, int]:
    half = np.radians(probe.azimuth_deg)
    height = probe.depth_mm + probe.radius_mm * (1 - np.cos(half))
    width = 2 * (probe.depth_mm + probe.radius_mm) * np.sin(half)
    return (1, rows, max(16, round(rows * width / height)))


def _case(rng: np.random.Generator, config: Config) -> _Case:
    def drawn(value: float | None, chance: float) -> float:
        return float(chance if value is None else value)

    bpm = drawn(config.heart_rate_bpm, np.clip(rng.normal(76, 18), 42, 160))
    child, small, large = rng.random() < 0.15, rng.uniform(0.5, 0.85), rng.uniform(0.85, 1.2)
    if child and config.heart_rate_bpm is None:
        bpm = float(np.clip(1.4 * bpm, 70, 175))
    fps = drawn(config.fps, rng.uniform(20, 100))
    beats = drawn(config.beats, rng.uniform(1.2, 4.0))
    frames = int(np.clip(round(beats * 60 / bpm * fps), 2, config.max_frames))
    rhythms: tuple[cycle.Rhythm, ...] = ("sinus", "fibrillation", "ectopic")
    rhythm = rhythms[int(rng.choice(3, p=(0.8, 0.12, 0.08)))]
    view: View = "A4C" if rng.random() < 0.75 else "A2C"
    size = int(rng.integers(112, 177))
    missed = rng.uniform(0, 0.12) if rng.random() < 0.7 else rng.uniform(0.12, 0.3)
    return _Case(
        view=config.view or view,
        ef=drawn(config.ef_percent, rng.uniform(15, 78)) / 100,
        bpm=bpm,
        rhythm=config.rhythm or rhythm,
        fps=fps,
        frames=min(frames, config.max_frames),
        size=config.size or size,
        foreshortening=drawn(config.foreshortening, missed),
        scale=drawn(config.scale, small if child else large),
        quality=drawn(config.quality, rng.uniform(0, 1) ** 0.7),
    )


def _anatomy(rng: np.random.Generator, case: _Case) -> tuple[shape.Ventricle, drawing.Plan]:
    """Draw the chambers: weak ventricles tend to be wide (dilated), strong ones to have thick walls."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    weak = (0.55 - case.ef) * between(0, 1)
    length = case.scale * between(74, 96)
    radius = case.scale * between(19, 27) * (1 + 0.6 * weak)
    levels = np.linspace(0, 1, 160)
    skew = between(-0.15, 0.15)
    sides = np.array([[1 + skew], [1 - skew]])
    seen = radius * sides * _bullets(rng, levels)
    crossed = radius * between(0.88, 1.12) * _bullets(rng, levels)
    wall = case.scale * between(7, 12.5)
    ventricle = shape.Ventricle(
        length_mm=length,
        seen=seen,
        crossed=crossed,
        grip_seen=_grip(rng, levels),
        grip_crossed=_grip(rng, levels),
        shortening=between(0.18, 0.36),
        tilt_rad=0.0,
        wall_mm=(wall * between(0.85, 1.2), wall * between(0.8, 1.05)),
        apical_mm=wall * between(0.6, 0.95),
        apical_share=between(0.05, 0.25),
    )
    tilt = shape.tilt_for(ventricle, foreshortening=case.foreshortening)
    atrium = case.scale * between(18, 28)
    right = drawing.Right(
        width_mm=case.scale * between(20, 40),
        apex=between(0.12, 0.4),
        wall_mm=case.scale * between(3, 6),
        atrium_mm=(case.scale * between(17, 26), case.scale * between(15, 24)),
        offset_mm=case.scale * between(2, 8),
    )
    papillary = tuple(
        (int(rng.integers(2)), between(0.4, 0.65), case.scale * between(2.5, 5))
        for _ in range(int(rng.integers(0, 3)))
    )
    plan = drawing.Plan(
        right=right if case.view == "A4C" else None,
        left_atrium_mm=(atrium, atrium * between(0.75, 1.0)),
        septum_mm=case.scale * between(1.5, 3.5),
        papillary=papillary,
        roughness_mm=between(0, 1.3),
        pericardium_mm=between(0.8, 3),
    )
    return dataclasses.replace(ventricle, tilt_rad=tilt), plan


def _bullets(rng: np.random.Generator, levels: Array) -> Array:
    """Draw the half-widths 0-1 of two sides, much alike: (2, level)."""
    widest, waist, bluntness = rng.uniform(0.5, 0.75), rng.uniform(0.05, 0.4), rng.uniform(1.8, 2.6)
    return np.stack(
        [
            shape.profile(
                levels,
                widest=float(np.clip(widest + rng.normal(0, 0.05), 0.4, 0.85)),
                waist=float(np.clip(waist + rng.normal(0, 0.06), 0, 0.5)),
                bluntness=float(np.clip(bluntness + rng.normal(0, 0.1), 1.6, 3)),
            )
            for _ in range(2)
        ]
    )


def _grip(rng: np.random.Generator, levels: Array) -> Array:
    """Draw how much each level and side contracts; in a third of hearts one region hardly does."""
    grip = 1 + rng.uniform(-0.15, 0.15, (2, 1)) + rng.uniform(-0.2, 0.2, (2, 1)) * (levels - 0.5)
    if rng.random() < 0.33:
        side, centre, width = int(rng.integers(2)), rng.uniform(0, 0.9), rng.uniform(0.12, 0.35)
        grip[side] *= 1 - rng.uniform(0.4, 1.0) * np.exp(-(((levels - centre) / width) ** 2))
    return grip.clip(0)


def _reach_mm(ventricle: shape.Ventricle, plan: drawing.Plan) -> float:
    """Return A up to which the drawing goes: well behind the atria."""
    right = plan.right.atrium_mm[0] if plan.right else 0.0
    return ventricle.apical_mm + ventricle.length_mm + 2 * max(plan.left_atrium_mm[0], right) + 45.0


def _right_squeeze(rng: np.random.Generator, plan: drawing.Plan, *, ejected: Array) -> Array:
    if plan.right is None:
        return np.zeros_like(ejected)
    most = rng.uniform(0.1, 0.4)
    return most * np.clip(ejected / max(float(ejected.max()), 0.05), 0, 1)


def _facts(case: _Case, beats: tuple[cycle.Beat, ...], *, times_s: Array) -> dict[str, Any]:
    last = float(times_s[-1])
    ed = [b.ed_s for b in beats if 0 <= b.ed_s <= last]
    es = [b.es_s for b in beats if 0 <= b.es_s <= last]
    whole = [b for b in beats if b.ed_s >= 0 and b.es_s <= last]
    used = whole or [beats[0]]
    ef = [100 * (b.edv_ml - b.esv_ml) / b.edv_ml for b in used]
    intervals = [b.next_s - b.ed_s for b in beats]
    return {
        "view": case.view,
        "rhythm": case.rhythm,
        "fps": round(case.fps, 3),
        "heart_rate_bpm": round(60 / float(np.median(intervals)), 2),
        "foreshortening": round(case.foreshortening, 4),
        "quality": round(case.quality, 3),
        "ef_percent": round(float(np.mean(ef)), 3),
        "beats": [[round(b.ed_s, 5), round(b.es_s, 5), round(e, 3)] for b, e in zip(whole, ef, strict=False)],
        "edv_ml": round(float(np.mean([b.edv_ml for b in used])), 2),
        "esv_ml": round(float(np.mean([b.esv_ml for b in used])), 2),
        "ed_times_s": [round(t, 5) for t in ed],
        "es_times_s": [round(t, 5) for t in es],
        "ed_frames": [round(t * case.fps) for t in ed],
        "es_frames": [round(t * case.fps) for t in es],
        "position_in_beat": cycle.position_in_beat(beats, times_s=times_s).round(4).tolist(),
    }
