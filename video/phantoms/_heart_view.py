"""How the heart is looked at: pose and its wander, probe, valves, contact, lung, scanner settings."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from usvol.simulation.probe import Imaging, Probe, draw_imaging
from usvol.simulation.speckle import smooth_noise
from video.phantoms._heart_drawing import Drawing, Plan
from video.phantoms._heart_frames import Pose, Valve
from video.phantoms._heart_shape import NODES, Motion

Array = NDArray[np.float64]


def posed(rng: np.random.Generator, *, times_s: Array, ejected: Array, view: Literal["A4C", "A2C"]) -> Pose:
    """Draw where the heart is: breathing, the probe's drift and jerks, and the heart's own swing."""
    breath = _breathing(rng, times_s)
    drift = _wander(rng, times_s, period_s=2.0)
    held = rng.random() < 0.5  # the patient holds the breath
    depth_mm = rng.uniform(0, 0.5 if held else 4)
    side_mm = rng.uniform(-1, 1) * depth_mm
    shift = rng.uniform(-4, 12) if view == "A4C" else rng.uniform(-10, 10)
    x = shift + side_mm * breath + rng.uniform(0, 1.5) * drift[0] + rng.uniform(-3, 3) * ejected
    y = (
        rng.uniform(14, 30)
        + depth_mm * breath
        + rng.uniform(0, 1.0) * drift[1]
        + rng.uniform(-2, 3) * ejected
    )
    tilt = np.radians(
        rng.uniform(-14, 14)
        + rng.uniform(0, 1.5) * drift[2]
        + rng.uniform(-5, 5) * ejected
        + rng.uniform(0, 1) * breath
    )
    return Pose(x, y, tilt, mirrored=bool(rng.random() < 0.1))


def _breathing(rng: np.random.Generator, times_s: Array) -> Array:
    """Draw the breath (t,), -1 to 1, with a period of 2.5-6 s."""
    return np.sin(2 * np.pi * (times_s / rng.uniform(2.5, 6) + rng.random()))


def _wander(rng: np.random.Generator, times_s: Array, *, period_s: float) -> Array:
    """Draw three slow random walks of about unit size: (3, t)."""
    waves = rng.normal(0, 1, (3, 4)) / np.arange(1, 5)
    phases = rng.uniform(0, 2 * np.pi, (3, 4))
    turns = 2 * np.pi * times_s[None, None] * np.arange(1, 5)[None, :, None] / (4 * period_s)
    return (waves[:, :, None] * np.sin(turns + phases[:, :, None])).sum(1)


def aimed(rng: np.random.Generator, pose: Pose, *, roof_mm: float, scale: float) -> Probe:
    """Draw a phased array that sees the heart to a little beyond, or a little short of, the atrial roof."""
    depth = float(np.median(pose.y_mm) + roof_mm + rng.uniform(-12, 25) * scale)
    frequency = float(rng.uniform(1.7, 3.6) if scale > 0.85 else rng.uniform(2.5, 6))
    aperture = float(rng.uniform(14, 22))
    return Probe(
        kind="sector",
        frequency_mhz=frequency,
        depth_mm=depth,
        focus_mm=depth * float(rng.uniform(0.35, 0.8)),
        azimuth_deg=float(rng.uniform(30, 45)),
        bandwidth=float(rng.uniform(0.45, 0.8)),
        radius_mm=float(rng.uniform(0, 4)),
        aperture_mm=aperture,
        f_number=float(rng.uniform(1.5, 3)),
        lines=int(rng.integers(72, 113)),
        planes=1,
        samples=int(np.clip(depth / 0.75, 144, 240)),
    )


def valves_of(
    rng: np.random.Generator, drawing: Drawing, *, plan: Plan, motion: Motion, opening: Array
) -> tuple[Valve, ...]:
    """Hang leaflets on the annuli, closed (0) to open (1): mitral, and tricuspid where there is one."""
    annulus = motion.annulus_mm
    # Half-widths of the mitral annulus at each time, a little below the hinge line.
    node = int(np.clip(annulus.max() / motion.reach_mm * (NODES - 1), 0, NODES - 1))
    septal, lateral = motion.half_mm[:, 0, node], motion.half_mm[:, 1, node]
    lengths = (float(rng.uniform(0.55, 0.7)), float(rng.uniform(0.4, 0.52)))
    turn = np.radians(rng.uniform(62, 88))
    valves = [_valve(-septal, lateral, annulus, opening=opening, lengths=lengths, turn=turn)]
    if plan.right is not None:
        first = -drawing.outer_mm[0][node] - 0 * annulus
        second = first - drawing.right_mm[node]
        valves.append(
            _valve(
                second, first, annulus - plan.right.offset_mm, opening=opening, lengths=(0.5, 0.5), turn=turn
            )
        )
    return tuple(valves)


def _valve(
    first: Array, second: Array, annulus: Array, *, opening: Array, lengths: tuple[float, float], turn: float
) -> Valve:
    """Leaflets from both hinges: meeting between them, tented, when closed; turned to the apex when open."""
    width = second - first
    meet = first + width * lengths[0] / sum(lengths)
    tips_a, tips_u = [], []
    for hinge, sign, length in ((first, 1.0, lengths[0]), (second, -1.0, lengths[1])):
        reach = np.abs(meet - hinge)
        closed = np.arctan2(0.12 * width, reach)
        angle = closed + (turn - closed) * opening
        # Closed leaflets overlap; the free part of them is what meets in the middle.
        long = np.hypot(reach, 0.12 * width) * (1 - opening) + length * width * opening
        tips_a.append(annulus - long * np.sin(angle))
        tips_u.append(hinge + sign * long * np.cos(angle))
    hinge_a = np.stack([annulus, annulus], 1)
    return Valve(hinge_a, np.stack([first, second], 1), np.stack(tips_a, 1), np.stack(tips_u, 1))


def shaded(
    rng: np.random.Generator, probe: Probe, *, times_s: Array, pose: Pose, quality: float
) -> dict[str, Any]:
    """Draw the chest wall and what dims lines: contact, ribs, lung that breathing brings in."""
    shape = (probe.samples, probe.lines, 1)
    grain = smooth_noise(rng, (probe.samples, probe.lines), sigma=(1.2, 9.0))
    level_db = rng.uniform(-12, -2) + 4 * grain
    wall = torch.from_numpy((10 ** (level_db / 20)).astype(np.float32)).reshape(shape)
    impedance = np.log(1.6 + 0.05 * smooth_noise(rng, (probe.samples, probe.lines), sigma=(2.0, 30.0)))
    deep = float(rng.uniform(0.35, 0.85) * (np.median(pose.y_mm) - 3))
    chest = (deep, wall, torch.from_numpy(impedance.astype(np.float32)).reshape(shape))
    poor = 1 - quality
    lines = np.linspace(-1, 1, probe.lines)
    loss_db = poor * rng.uniform(1, 5) * smooth_noise(rng, (probe.lines,), sigma=(9.0,)).clip(-1, 3)
    shadow = np.broadcast_to(loss_db[:, None], (probe.lines, len(times_s))).copy()
    if rng.random() < 0.25 + 0.4 * poor:
        side = 1.0 if rng.random() < 0.7 else -1.0
        breath = rng.uniform(0, 0.08) * _breathing(rng, times_s)
        edge = rng.uniform(0.55, 0.95) + breath
        strength = rng.uniform(6, 30) * (0.3 + 0.7 * poor)
        shadow += strength / (1 + np.exp(-(side * lines[:, None] - edge) / 0.07))
    factor = 10 ** (-shadow / 20)
    return {"chest": chest, "shade": torch.from_numpy(factor.astype(np.float32))[None]}


def drawn_imaging(rng: np.random.Generator, *, quality: float) -> Imaging:
    """Draw scanner settings as for any scan, with more haze and clutter in a poor window.

    One look per frame, no automatic gain: both would flicker.
    """
    base = draw_imaging(rng)
    poor = 1 - quality
    return dataclasses.replace(
        base,
        auto_gain=0.0,
        compounding=1,
        dynamic_range_db=float(rng.uniform(42, 70)),
        gain_db=float(np.clip(rng.normal(4, 4), -4, 12)),
        haze_db=float(rng.uniform(-44, -30) + 14 * poor),
        haze_mm=float(rng.uniform(6, 30)),
        clutter_db=float(rng.uniform(-52, -42) + 12 * poor),
        penetration_mm=float(rng.uniform(200, 340)),
    )
