"""Simulated fetal heads from a second, independent simulator: to test transfer, never to train.

It shares no code, anatomy or acoustics with ``usvol.simulation`` and the phantoms of ``models3d``: anatomy is
an implicit function (``other_head_anatomy``), speckle is multiplicative noise with the correlation of a beam;
fan, bone's shade and echoes of echoes, haze, noise and grey map are drawn anew. What the task scores here
tells how far it depends on the simulator its networks learnt from; it says nothing about patients.

    python benchmarks/other_head.py --n 25 --seed 0 -o DIR --sheet sheet.png
    usvol evaluate midsagittal_plane phantom_files --data DIR

writes NAME.nii.gz and NAME.json (as ``usvol simulate`` does). Levels go from easy to hard in turn; every
fifth volume holds no head. Lengths are mm, coordinates (z, y, x) with depth along y, in LPS.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from other_anatomy import Blob, noise
from other_head_anatomy import (
    MATERIALS,
    Head,
    Part,
    Scene,
    draw_frame,
    draw_head,
    draw_scene,
    size_mm,
)
from other_simulator import LEVELS, Imaging, Probe, command_line, draw_imaging, speckle, stored
from scipy import ndimage

SIMULATED = "Simulated by another simulator than the one the networks learnt from: no patient, no device."
_TRIES = 200
_SHELLS = (0.3, 0.6, 0.8, 0.93)
_SHELL_SHARE = (0.1, 0.25, 0.3, 0.35)
_EDGE_MM = 1.0  # over which one material passes into the next
_FACE_MM = 1.5  # a face answers in full before what lies behind it is shaded
_PASSED = (0.006, 2.5)  # least and most of the amplitude that is left; most: behind fluid
_FLUIDS = -35.0  # dB: what is darker has no grain


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """Grey levels 0-1 (z, y, x); spacing and place of the first sample in mm."""

    grey: np.ndarray
    spacing_mm: np.ndarray
    origin_mm: np.ndarray


def simulate(seed: int, level: str) -> tuple[Volume, dict[str, Any]]:
    """Return one volume and its truth in the form the recipe reads. The same seed and level give the same."""
    step = LEVELS.index(level)
    rng = np.random.default_rng([seed, step, 772])
    present, cut = seed % 5 != 4, rng.random() < (0.0, 0.1, 0.35)[step]
    weeks = rng.uniform(14, 32)
    radii, frame = size_mm(rng, weeks), draw_frame(rng)
    centre, probe = _placed(rng, frame * radii, cut=cut and present)
    head = draw_head(rng, (centre, frame, radii), weeks=weeks, level=step)
    scene, kind = draw_scene(rng, centre, head=head if present else None, radii=radii, level=step)
    beams = acquire(scene, probe, imaging=draw_imaging(rng, step), rng=rng)
    volume = convert(probe, beams=beams, grid=draw_grid(rng, probe, level=step))
    truth: dict[str, Any] = {
        "seed": seed,
        "level": level,
        "present": present,
        "scene": kind,
        "weeks": round(weeks, 2) if present else None,
        "shadowed": bool(present and head.bone_db > 10),
        "fan": probe.kind,
        "shape": list(volume.grey.shape),
        "spacing_mm": volume.spacing_mm.round(4).tolist(),
    }
    return volume, truth | (truth_of(head, in_view(centre, frame * radii, probe=probe)) if present else {})


def truth_of(head: Head, seen: float) -> dict[str, Any]:
    """Return where the head is, in mm and world (z, y, x), as plain values; sizes are from outer to outer."""
    outer = head.radii + head.bone_mm / 2
    forward, left, up = (head.frame[:, k].round(9).tolist() for k in range(3))
    centre = head.centre.round(6).tolist()
    return {
        "plane": {"point": centre, "normal": left, "up": up, "forward": forward},
        "centre_mm": centre,
        "radii_mm": (outer * (1, 1, (1 + head.base) / 2)).round(4).tolist(),
        "bpd_mm": round(2 * float(outer[1]), 3),
        "ofd_mm": round(2 * float(outer[0]), 3),
        "in_view": round(seen, 4),
        "bone_db": round(head.bone_db, 2),
    }


def in_view(centre: np.ndarray, half_axes: np.ndarray, *, probe: Probe) -> float:
    """Return the part of the skull's ellipsoid (half axes as columns, in mm) that the fan covers."""
    k = np.arange(200) + 0.5
    polar, turn = np.arccos(1 - k / 100), np.pi * (1 + 5**0.5) * k
    sphere = np.stack([np.cos(polar), np.sin(polar) * np.sin(turn), np.sin(polar) * np.cos(turn)], 1)
    share = 0.0
    for shell, weight in zip(_SHELLS, _SHELL_SHARE, strict=True):
        points = centre + shell * sphere @ half_axes.T
        share += weight * float(probe.sees(probe.to_beams(points)).mean())
    return share


def _placed(rng: np.random.Generator, half_axes: np.ndarray, *, cut: bool) -> tuple[np.ndarray, Probe]:
    """Draw place and fan so that the whole head is seen, or, if ``cut``, six to nine tenths of it."""
    reach = float(np.linalg.norm(half_axes, axis=0).max())
    near, deep = float(np.linalg.norm(half_axes[1])), rng.uniform(8, 50)
    kind = str(rng.choice(["box", "cone", "curved"]))
    least, most = (0.6, 0.9) if cut else (0.97, 1.0)
    for attempt in range(_TRIES):
        aside = rng.normal(0, 0.7, 2) if cut else rng.normal(0, 0.15, 2) * (1 - attempt / _TRIES)
        depth = near + deep + (0 if cut else 0.1 * attempt)
        centre = np.array([aside[0] * reach, depth, aside[1] * reach])
        probe = draw_probe(rng, kind, reach=reach, depth_mm=depth)
        if least <= in_view(centre, half_axes, probe=probe) <= most:
            return centre, probe
    raise RuntimeError("no fan shows the head as wanted")


def draw_probe(rng: np.random.Generator, kind: str, *, reach: float, depth_mm: float) -> Probe:
    """Draw a fan for a target of radius ``reach`` at a depth."""
    wide, tall = reach * rng.uniform(1.0, 1.4, 2)
    bottom = depth_mm + reach * rng.uniform(1.05, 1.4)
    if kind == "box":
        return Probe(kind, 0, 0, wide, tall, bottom)
    behind = rng.uniform(5, 15) if kind == "cone" else rng.uniform(35, 60)
    tilt = behind if kind == "cone" else rng.uniform(15, 35)
    ahead = np.array([depth_mm + behind, depth_mm + tilt])
    half_width, half_tilt = np.minimum(np.arctan2((wide, tall), ahead - 0.2 * reach), 0.8)
    return Probe(kind, behind, tilt, float(half_width), float(half_tilt), bottom)


def beam_axes(probe: Probe) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the tilts, turns and depths that are sampled, and the steps between them in mm (mid-depth)."""
    middle = 0.6 * probe.depth_mm
    scale = np.ones(2) if probe.kind == "box" else middle + np.array([probe.tilt_mm, probe.turn_mm])
    extents_mm = np.array([*np.array([probe.half_tilt, probe.half_width]) * 2 * scale, probe.depth_mm])
    counts = np.clip(extents_mm / (0.9, 0.9, 0.45), 48, (128, 128, 320)).astype(int)
    axes = [
        np.linspace(-probe.half_tilt, probe.half_tilt, counts[0]),
        np.linspace(-probe.half_width, probe.half_width, counts[1]),
        np.linspace(0, probe.depth_mm, counts[2]),
    ]
    return axes, extents_mm / (counts - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """Echo amplitude and two-way loss in dB/mm at points, painted over in turn."""

    points: np.ndarray
    amplitude: np.ndarray
    loss: np.ndarray

    def paint(self, weight: np.ndarray, name: str, *, where: np.ndarray | None = None) -> None:
        """Blend a material in, by weights 0-1 of the points ``where`` (all of them if None)."""
        chosen = slice(None) if where is None else where
        echo_db, loss = MATERIALS[name]
        self.amplitude[chosen] += weight * (10 ** (echo_db / 20) - self.amplitude[chosen])
        self.loss[chosen] += weight * (loss - self.loss[chosen])


def soft(depth_mm: np.ndarray) -> np.ndarray:
    """Return how much of a point lies inside: 1 well below the surface, 0 well outside."""
    return np.clip(0.5 - depth_mm / _EDGE_MM, 0, 1)


def sheet_of(distance_mm: np.ndarray, thick_mm: float) -> np.ndarray:
    """Return how much of a point lies in a sheet of that thickness about distance 0."""
    return soft(np.abs(distance_mm) - thick_mm / 2)


def look(scene: Scene, points: np.ndarray, *, ahead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return echo amplitude and loss in dB/mm at points (n, 3) passed in unit directions ``ahead``."""
    points, ahead = np.asfortranarray(points, np.float32), ahead.astype(np.float32)
    field = Field(points, np.full(len(points), 0.2, np.float32), np.zeros(len(points), np.float32))
    fold = noise(scene.lattice, points, size_mm=22.0).astype(np.float32)
    _paint_mother(scene, field, fold=fold)
    for part in scene.bodies:
        _paint_part(field, part)
    grain = 1.5 * noise(scene.lattice, points, size_mm=5.0, shift=3.1)
    grain += 1.5 * noise(scene.lattice, points, size_mm=15.0, shift=7.9)
    if scene.head is not None:
        _paint_head(field, scene.head, ahead=ahead, fold=fold)
    solid = field.amplitude > 10 ** (_FLUIDS / 20)
    level = 20 * np.log10(np.maximum(field.amplitude, 1e-4))
    level = np.where(solid, -12 + scene.contrast * (level + 12) + grain, level)
    return (10 ** (level / 20)).astype(np.float32), field.loss


def _paint_mother(scene: Scene, field: Field, *, fold: np.ndarray) -> None:
    """Fat and muscle below the skin, the womb's muscle, its cavity with fluid, the placenta."""
    y = field.points[:, 1]
    field.paint(soft(np.abs(y - 0.6) - 0.9), "skin")
    field.paint(soft(np.maximum(1.5 - y, y - 0.45 * scene.wall_mm - 1.5 * fold)), "fat")
    muscle = np.maximum(0.5 * scene.wall_mm - y, y - 0.7 * scene.wall_mm) - fold
    field.paint(soft(muscle) * (np.sin(y / 1.3 + 2 * fold) > -0.6), "muscle")
    if scene.cavity is None:
        return
    outside = scene.cavity.depth_mm(field.points) + 1.5 * fold
    outside = np.maximum(outside, scene.wall_mm + fold - y)
    field.paint(soft(outside - 7), "myometrium")
    field.paint(soft(np.abs(outside) - 0.8), "wall")
    field.paint(soft(outside), "fluid")
    if scene.placenta is not None:
        site, thick = scene.placenta
        away = field.points - scene.cavity.points[0]
        away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-3)
        deep = thick * np.sqrt(np.clip(1 - (np.arccos(np.clip(away @ site, -1, 1)) / 1.1) ** 2, 0, 1))
        field.paint(soft(np.maximum(outside, -outside - deep - 1.5 * fold)) * (deep > 2), "placenta")


def _paint_part(field: Field, part: Part, *, among: np.ndarray | None = None) -> None:
    """Paint a blob or tube, looking only at points in its box (of those ``among``)."""
    shape, name = part
    if isinstance(shape, Blob):
        low, high = shape.centre - shape.radii.max() - 1, shape.centre + shape.radii.max() + 1
    else:
        low = (shape.points - shape.radii[:, None]).min(0) - 1
        high = (shape.points + shape.radii[:, None]).max(0) + 1
    near = among
    for axis in range(3):
        place = field.points[:, axis] if near is None else field.points[near, axis]
        inside = np.flatnonzero((place > np.float32(low[axis])) & (place < np.float32(high[axis])))
        near = inside if near is None else near[inside]
    if near is not None and len(near):
        field.paint(soft(shape.depth_mm(field.points[near])).astype(np.float32), name, where=near)


def _paint_head(field: Field, head: Head, *, ahead: np.ndarray, fold: np.ndarray) -> None:
    """Scalp, brain with all that is in it, falx and bone."""
    near = np.flatnonzero(np.linalg.norm(field.points - head.centre, axis=1) < 1.25 * head.radii.max() + 6)
    local = head.local(field.points[near]).astype(np.float32)
    depth, normal = head.skull(local)
    keep = depth < head.scalp_mm + head.bone_mm + 2
    near, local, depth, normal = near[keep], local[keep], depth[keep], normal[keep]
    along = ahead[near] @ head.frame
    half = head.bone_mm / 2
    scalp = depth - half - head.scalp_mm
    field.paint(soft(scalp), "flesh", where=near)
    field.paint(sheet_of(scalp, 0.6), "skin", where=near)
    field.paint(soft(depth + half), "csf", where=near)
    brain = depth + half + head.space_mm * (1 + 0.4 * fold[near])
    field.paint(soft(brain), "brain", where=near)
    field.paint(0.6 * sheet_of(brain, 0.5), "pia", where=near)
    if head.weeks > 24:
        furrow = sheet_of(4 * fold[near], 0.4) * (brain > -0.16 * head.radii[1])
        field.paint(0.5 * furrow * soft(brain), "pia", where=near)
    within = near[depth < 0]
    for part in head.inside:
        _paint_part(field, part, among=within)
    _paint_midline(field, head, where=near, local=local, along=along)
    _paint_bone(field, head, where=near, local=local, slanted=np.abs((normal * along).sum(1)))


def _paint_midline(
    field: Field, head: Head, *, where: np.ndarray, local: np.ndarray, along: np.ndarray
) -> None:
    """Falx, fissure: about the core of the brain they stop, in front at the cavum; best seen from aside."""
    forward, up = local[:, 0] / head.radii[0], local[:, 2] / head.radii[2]
    depth = head.skull(local)[0]
    core = np.hypot((forward - 0.02) / 0.5, (up - 0.02) / 0.4)
    there = (core > 1) & (depth < 0) & ((up > -0.5) & (forward > 0.1) | (up > -0.2))
    bend = 0.35 * np.sin(4 * forward + 2 * up)
    facing = 0.35 + 0.65 * along[:, 1] ** 2
    field.paint(sheet_of(local[:, 1] - bend, head.falx_mm) * there * facing, "falx", where=where)
    arch = sheet_of((core - 1) * 0.45 * head.radii[0], 0.7) * (up > 0) * soft(np.abs(local[:, 1]) - 1.5)
    field.paint(0.6 * arch, "pia", where=where)
    # The tentorium slopes down to either side above the cerebellum.
    tent = local[:, 2] + (0.14 + 0.16 * np.abs(local[:, 1]) / head.radii[1]) * head.radii[2]
    field.paint(0.5 * sheet_of(tent, 0.7) * (forward < -0.32) * (depth < 0), "falx", where=where)


def _paint_bone(
    field: Field, head: Head, *, where: np.ndarray, local: np.ndarray, slanted: np.ndarray
) -> None:
    """Bone with its gaps; ``slanted`` is the cosine between beam and normal. It glints where that is 1."""
    depth = head.skull(local)[0]
    shell = sheet_of(depth, head.bone_mm)
    at = np.flatnonzero(shell > 0)
    shell, cosine, spot = shell[at], slanted[at], local[at]
    closed = 1 - soft(head.gap_mm(spot) - head.suture_mm / 2)
    # Below, the vault gives way to the bones of the base, and to the hole for the spinal cord.
    low = -spot[:, 2] / (head.base * head.radii[2])
    closed *= 1 - 0.65 * np.clip((low - 0.6) / 0.2, 0, 1)
    field.paint(shell * (1 - closed), "membrane", where=where[at])
    glint = 0.3 + 1.3 * cosine**4
    amplitude = 10 ** (MATERIALS["bone"][0] / 20) * glint
    field.amplitude[where[at]] += shell * closed * (amplitude - field.amplitude[where[at]])
    loss = head.bone_db / head.bone_mm * (1 + head.slant * (1 - cosine) ** 2)
    field.loss[where[at]] += shell * closed * (loss - field.loss[where[at]])


def seen_by_beams(scene: Scene, probe: Probe) -> tuple[np.ndarray, np.ndarray]:
    """Return echo amplitude and loss (dB/mm) along all beams (tilt, turn, depth)."""
    axes, _ = beam_axes(probe)
    shape = tuple(len(axis) for axis in axes)
    amplitude, loss = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for start in range(0, shape[0], 16):
        part = slice(start, start + 16)
        beams = np.stack(np.meshgrid(axes[0][part], *axes[1:], indexing="ij"), -1).reshape(-1, 3)
        points = probe.to_world(beams)
        ahead = probe.to_world(beams + np.array([0.0, 0.0, 1.0])) - points
        some = (-1, *shape[1:])
        amplitude[part], loss[part] = (v.reshape(some) for v in look(scene, points, ahead=ahead))
    return amplitude, loss


def transmitted(loss: np.ndarray, step_mm: np.ndarray, *, smear: float) -> np.ndarray:
    """Return what part of the amplitude is left along the beams, from the loss in dB/mm.

    A beam is as wide as its aperture, so a shadow, or the light through a gap in bone, widens and pales with
    the depth below what casts it: to a deviation of ``smear`` times the root of that depth (all in mm).
    """
    late = round(_FACE_MM / step_mm[2])
    loss = np.concatenate([np.zeros_like(loss[..., :late]), loss[..., :-late]], 2)
    gain, block = np.empty_like(loss), 8
    passed = np.ones(loss.shape[:2], np.float32)
    for start in range(0, loss.shape[2], block):
        part = slice(start, start + block)
        lost_db = np.cumsum(loss[..., part], 2) * step_mm[2]
        gain[..., part] = passed[..., None] * 10 ** (-lost_db / 20)
        passed = np.clip(gain[..., part][..., -1], *_PASSED)
        passed = ndimage.gaussian_filter(passed, smear * np.sqrt(block * step_mm[2]) / step_mm[:2])
    return np.clip(gain, *_PASSED)


def acquire(scene: Scene, probe: Probe, *, imaging: Imaging, rng: np.random.Generator) -> np.ndarray:
    """Return grey levels 0-1 along the beams (tilt, turn, depth)."""
    axes, step_mm = beam_axes(probe)
    amplitude, loss = seen_by_beams(scene, probe)
    shape = amplitude.shape
    signal = amplitude * transmitted(loss, step_mm, smear=rng.uniform(0.3, 0.5))
    spread = np.array([imaging.elevation_mm, imaging.lateral_mm, imaging.axial_mm]) / step_mm
    signal = ndimage.gaussian_filter(signal.astype(np.float32), 0.6 * spread)
    # Sound that goes to and fro between bone and probe or scalp comes back late, and smeared.
    late, weaker = rng.uniform(2.5, 7), rng.uniform(0.5, 0.75) * imaging.clutter_db
    smeared = ndimage.gaussian_filter(signal, (1.5, 1.5, 1.0))
    for bounce in (1, 2, 3):
        shift = round(bounce * late / step_mm[2])
        signal[..., shift:] += smeared[..., :-shift] * np.float32(10 ** (-weaker * (0.6 + 0.4 * bounce) / 20))
    clutter = ndimage.gaussian_filter(signal, (4, 5, 3)) * np.float32(10 ** (-imaging.clutter_db / 20))
    haze = 10 ** (-imaging.haze_db / 20) * np.exp(-axes[2] / 25).astype(np.float32)
    picture = (signal + clutter) * speckle(rng, shape, spread=spread, looks=imaging.looks)
    picture += haze * speckle(rng, shape, spread=spread * 1.5, looks=1)
    hiss = 10 ** ((-imaging.noise_db + 12 * axes[2] / probe.depth_mm) / 20)
    picture += hiss.astype(np.float32) * speckle(rng, shape, spread=np.full(3, 0.4), looks=1)
    # The machine's gain puts soft tissue, some -13 dB here, that far below white.
    decibel = 20 * np.log10(np.maximum(picture, 1e-6))
    grey = np.clip((decibel + 13 - imaging.headroom_db) / imaging.range_db + 1, 0, 1) ** imaging.gamma
    return ndimage.gaussian_filter(grey, imaging.smooth)


def draw_grid(rng: np.random.Generator, probe: Probe, *, level: int) -> Volume:
    """Draw spacing and extent of an empty volume around the fan: 64 to 160 samples, 0.4 to 1.5 mm."""
    low, high = probe.bounds()
    size = high - low
    wanted = np.exp(rng.uniform(np.log(0.5), np.log(1.4)))
    uneven = np.exp(rng.normal(0, (0.0, 0.2, 0.35)[level], 3))
    spacing = np.clip(wanted * uneven, np.maximum(size / 160, 0.4), np.minimum(size / 64, 1.5))
    shape = np.clip(np.ceil(size / spacing), 64, 160).astype(int)
    return Volume(np.zeros(shape, np.float32), spacing, low + spacing / 2)


def convert(probe: Probe, *, beams: np.ndarray, grid: Volume) -> Volume:
    """Sample the beams on the grid; outside the fan it is 0."""
    axes, _ = beam_axes(probe)
    first, steps = np.array([a[0] for a in axes]), np.array([a[1] - a[0] for a in axes])
    index = [
        np.arange(n) * s + o for n, s, o in zip(grid.grey.shape, grid.spacing_mm, grid.origin_mm, strict=True)
    ]
    for z, height in enumerate(index[0]):
        plane = np.stack(np.meshgrid([height], index[1], index[2], indexing="ij"), -1).reshape(-1, 3)
        place = probe.to_beams(plane)
        seen = probe.sees(place)
        grey = ndimage.map_coordinates(beams, ((place[seen] - first) / steps).T, order=1, mode="nearest")
        grid.grey[z].reshape(-1)[seen] = grey
    return grid


def write(folder: Path, name: str, *, volume: Volume, truth: dict[str, Any]) -> None:
    """Write the volume as NIfTI, easy ones aside in any order of axes, and its truth as JSON."""
    rng = np.random.default_rng([truth["seed"], 773])
    grey, kind = stored(rng, volume.grey)
    order, flips = [2, 1, 0], [False] * 3
    if truth["level"] != "easy":
        order, flips = [int(a) for a in rng.permutation(3)], [bool(f) for f in rng.random(3) < 0.5]
    to_ras = np.array([[0, 0, -1.0], [0, -1, 0], [1, 0, 0]])  # from (z, y, x) in LPS to (x, y, z) in RAS
    affine, corner = np.eye(4), volume.origin_mm.copy()
    for axis, (source, flip) in enumerate(zip(order, flips, strict=True)):
        step = volume.spacing_mm[source] * (-1 if flip else 1)
        affine[:3, axis] = to_ras[:, source] * step
        corner[source] -= min(step, 0) * (grey.shape[source] - 1)
    affine[:3, 3] = to_ras @ corner
    samples = np.flip(grey.transpose(order), tuple(axis for axis in range(3) if flips[axis]))
    image = nib.Nifti1Image(np.ascontiguousarray(samples), affine)
    image.header.set_xyzt_units("mm")
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(image, folder / f"{name}.nii.gz")
    facts = {"schema": "usvol.synthetic/1", "phantom": "other_head", "seed": truth["seed"]}
    facts |= {"truth": {**truth, "samples": kind, "axes": order, "flips": flips}, "notice": SIMULATED}
    (folder / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def planes(volume: Volume, truth: dict[str, Any], *, step_mm: float = 0.7) -> list[tuple[str, np.ndarray]]:
    """Return axial, mid-sagittal and coronal plane of the head, and one along the beams."""
    centre = volume.origin_mm + volume.spacing_mm * (np.array(volume.grey.shape) - 1) / 2
    forward, left, up, half = np.array([0, -1.0, 0]), np.array([0, 0, 1.0]), np.array([1.0, 0, 0]), 70.0
    if truth["present"]:
        forward, left, up = (np.array(truth["plane"][k]) for k in ("forward", "normal", "up"))
        centre = np.array(truth["centre_mm"])
        half = 1.5 * max(truth["radii_mm"])
    steps = np.arange(-half, half, step_mm)
    down, right = np.array([0, 1.0, 0]), np.array([0, 0, 1.0])
    views = (
        ("axial, raised", -forward, left),
        ("mid-sagittal", -up, -forward),
        ("coronal", -up, left),
        ("beams", down, right),
    )
    found = []
    for name, rows, columns in views:
        raised = 0.12 * half / 1.5 * up if name.startswith("axial") and truth["present"] else 0
        world = centre + raised + steps[:, None, None] * rows + steps[None, :, None] * columns
        index = np.moveaxis((world - volume.origin_mm) / volume.spacing_mm, -1, 0)
        found.append((name, ndimage.map_coordinates(volume.grey, index, order=1)))
    return found


def sheet(cases: list[tuple[str, Volume, dict[str, Any]]], path: Path) -> None:
    """Draw four planes of each volume."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = -(-len(cases) // 2)
    figure, axes = plt.subplots(rows, 8, figsize=(20, 2.6 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for number, (name, volume, truth) in enumerate(cases):
        line = axes[number // 2, 4 * (number % 2) : 4 * (number % 2) + 4]
        title = f"{name} {truth['fan']} {truth['weeks'] or truth['scene']}"
        for axis, (view, picture) in zip(line, planes(volume, truth), strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axis.set_title(title if view.startswith("axial") else view, fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)


def main() -> None:
    """Write the test set."""
    options = command_line(__doc__).parse_args()
    cases = []
    for seed in range(options.seed, options.seed + options.n):
        level = LEVELS[seed % len(LEVELS)] if options.level == "mixed" else options.level
        name, start = f"other_{level}_{seed:04d}", time.perf_counter()
        volume, truth = simulate(seed, level)
        write(options.out, name, volume=volume, truth=truth)
        seconds = time.perf_counter() - start
        print(f"{name} {truth['scene']} {truth['fan']} {truth['shape']} {seconds:.1f} s", flush=True)
        if options.sheet:
            cases.append((name, volume, truth))
    if options.sheet:
        sheet(cases, options.sheet)


if __name__ == "__main__":
    main()
