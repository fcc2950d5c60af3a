"""A needle's shaft: its centreline, a line or a shallow arc, and the echo it leaves on the beams.

Steel reflects like a mirror: what returns to the probe depends on the angle between beam and shaft. Around
and behind it lie the echo of its far wall, sound that rings inside it (reverberation: a row of echoes; comet
tail: a streak) and a slight shadow (Huang et al., Anesth. Analg. 104:1259, 2007; Scholten et al., Anaesthesia
72 Suppl. 1:57, 2017). Some shafts, as with a coating or a filled lumen, scatter from all of their thickness.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from models3d.phantoms._shapes import unit
from usvol.scan import Grid
from usvol.simulation.beam_geometry import beam_index, pitches_mm
from usvol.simulation.point_spread import axial_sigma_mm, elevation_sigma_mm, lateral_sigma_mm
from usvol.simulation.probe import Imaging, Probe
from usvol.simulation.propagation import Medium

Points = np.ndarray  # (n, 3), world z, y, x in mm
_KNOT_MM = 0.25  # of what varies along a shaft
_BEAD_MM = 0.1
_TURNS = (-0.5, 0.0, 0.5)  # about the axis, radians: the strip of a cylinder that faces the probe
_STANDS_OUT_DB = 12.0  # a shaft over bright tissue, at least, gaps apart
_NOTHING_DB = -60.0
_DISC = 24  # points of a shaft's cross section
_SIGMA_MIN = 0.45  # of a sample or a beam, as the point spread function has it


@dataclass(frozen=True, slots=True, eq=False)
class Shaft:
    """A centreline that ends in a tip, from where it goes back for ``length_mm``.

    Attributes:
        tip_mm: world (z, y, x); ``direction``: unit, of the shaft at its tip, pointing forward.
        side: unit, across ``direction``: towards the centre of the bend.
        bend_mm: radius of the bend; None for a straight shaft.
        radius_mm: half the outer diameter.
    """

    tip_mm: np.ndarray
    direction: np.ndarray
    side: np.ndarray
    bend_mm: float | None
    radius_mm: float
    length_mm: float

    def points(self, back_mm: np.ndarray) -> Points:
        """World points of the centreline at arc lengths back from the tip."""
        s = -np.asarray(back_mm, float)[:, None]
        if self.bend_mm is None:
            return self.tip_mm + s * self.direction
        angle = s / self.bend_mm
        return self.tip_mm + self.bend_mm * (np.sin(angle) * self.direction + (1 - np.cos(angle)) * self.side)

    def directions(self, back_mm: np.ndarray) -> Points:
        """Unit tangents, pointing to the tip, at arc lengths back from it."""
        s = -np.asarray(back_mm, float)[:, None]
        angle = s / (self.bend_mm or math.inf)
        return np.cos(angle) * self.direction + np.sin(angle) * self.side

    def coordinates(self, points_mm: Points) -> tuple[np.ndarray, np.ndarray]:
        """Arc length back from the tip and distance from the centreline of world points, each (n,)."""
        across = np.cross(self.direction, self.side)
        if self.bend_mm is None:
            away = points_mm - self.tip_mm
            along = away @ self.direction
            return -along, np.sqrt(np.maximum((away**2).sum(-1) - along**2, 0))
        away = points_mm - (self.tip_mm + self.bend_mm * self.side)
        ahead, outward, aside = away @ self.direction, -(away @ self.side), away @ across
        distance = np.hypot(np.hypot(ahead, outward) - self.bend_mm, aside)
        return -self.bend_mm * np.arctan2(ahead, outward), distance

    def withdrawn(self, by_mm: float) -> Shaft:
        """The shaft with its tip drawn back along its own centreline."""
        back = np.array([by_mm])
        ahead = self.directions(back)[0]
        side = self.side if self.bend_mm is None else unit(self.side - (self.side @ ahead) * ahead)
        return dataclasses.replace(
            self,
            tip_mm=self.points(back)[0],
            direction=ahead,
            side=side,
            length_mm=max(self.length_mm - by_mm, 0.0),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Finish:
    """How a shaft sounds; levels in dB, 0 being bright tissue.

    Attributes:
        level_db: of the echo when hit squarely; ``fall_power``: exponent of its fall with the angle, down to
            ``rough_db`` below (grooves, roughness).
        varying_db: along the shaft, at ``back_mm``; gaps included.
        far_wall_db, ring_db: of the far wall and of each repetition, relative to what came before.
        ring_mm: distance of repetitions; ``rings``: how many.
        fill_db: of what the whole thickness scatters, relative to the near wall's echo.
        tail_db, tail_mm: level and length of the streak behind the shaft.
        shadow_db: what sound loses that passes it, one way.
    """

    level_db: float
    fall_power: float
    rough_db: float
    back_mm: np.ndarray
    varying_db: np.ndarray
    far_wall_db: float = _NOTHING_DB
    ring_db: float = _NOTHING_DB
    ring_mm: float = 1.0
    rings: int = 0
    fill_db: float = _NOTHING_DB
    tail_db: float = _NOTHING_DB
    tail_mm: float = 3.0
    shadow_db: float = 0.0


def drawn_finish(rng: np.random.Generator, shaft: Shaft, *, clear: bool) -> Finish:
    """Draw how a needle sounds, with gaps of 1-5 mm where its echo is lost; ``clear``: without gaps."""
    back = np.arange(0, shaft.length_mm + _KNOT_MM, _KNOT_MM)
    count = max(4, len(back))
    varying = rng.uniform(0.5, 3.5) * _smoothed(rng.standard_normal(count), rng.uniform(0.5, 4) / _KNOT_MM)
    for _ in range(0 if clear else int(rng.choice(4, p=(0.35, 0.3, 0.2, 0.15)))):
        # Not at the tip: what shows nothing there has no tip that could be marked.
        half = 0.5 * rng.uniform(1, min(6, 1 + 0.25 * shaft.length_mm))
        middle = rng.uniform(min(half + 1.5, shaft.length_mm), max(shaft.length_mm, half + 2))
        place = np.arange(count) * _KNOT_MM
        varying -= rng.uniform(8, 35) / (1 + np.exp((np.abs(place - middle) - half) / 0.25))
    if rng.random() < 0.35:  # an echogenic tip
        varying += rng.uniform(2, 8) * (np.arange(count) * _KNOT_MM < rng.uniform(1, 4))
    ringing, tail = rng.random() < 0.5, rng.random() < 0.6
    level_db = rng.uniform(18, 36)
    fill_db = rng.uniform(-12, 10) if rng.random() < 0.4 else _NOTHING_DB
    return Finish(
        level_db=level_db - max(fill_db, 0),
        fall_power=rng.uniform(1.5, 7),
        # However steep, it stays clearly brighter than tissue: what nobody sees cannot be marked. With 3 dB
        # in place of 12, half of the shafts were within 0.75 deviations of the speckle around them.
        rough_db=rng.uniform(3, min(22, level_db - _STANDS_OUT_DB)),
        back_mm=np.arange(count) * _KNOT_MM,
        varying_db=varying,
        far_wall_db=rng.uniform(-18, -4),
        ring_db=rng.uniform(-14, -5) if ringing else _NOTHING_DB,
        ring_mm=rng.uniform(0.8, 1.3) * 2 * shaft.radius_mm if rng.random() < 0.6 else rng.uniform(0.6, 3),
        rings=int(rng.integers(1, 6)) if ringing else 0,
        tail_db=rng.uniform(-34, -16) if tail else _NOTHING_DB,
        tail_mm=rng.uniform(1.5, 8),
        shadow_db=rng.uniform(0, 5),
        fill_db=fill_db,
    )


def thread_finish(rng: np.random.Generator, shaft: Shaft) -> Finish:
    """Draw how a fibre or another thread of tissue sounds: dimmer, fading at both ends, nothing behind."""
    back = np.arange(0, shaft.length_mm + _KNOT_MM, _KNOT_MM)
    varying = rng.uniform(1, 4) * _smoothed(rng.standard_normal(len(back)), rng.uniform(0.5, 3) / _KNOT_MM)
    fade = np.minimum(back, back[-1] - back) / rng.uniform(0.5, 2.5)
    return Finish(
        level_db=rng.uniform(-8, 8),
        fall_power=rng.uniform(1.5, 6),
        rough_db=rng.uniform(6, 16),
        back_mm=back,
        varying_db=varying - 15 * np.clip(1 - fade, 0, 1),
    )


def with_shafts(
    medium: Medium, shafts: Sequence[tuple[Shaft, Finish]], *, probe: Probe, imaging: Imaging
) -> Medium:
    """Add the echoes of shafts to what lies on the beams.

    They go where interfaces have theirs, so that haze, clutter, side lobes and the repetition at twice the
    depth follow from them.
    """
    if not shafts:
        return medium
    echo, tails = torch.zeros(medium.echo.shape), torch.zeros(medium.echo.numel())
    attenuation = medium.attenuation_db_cm_mhz.clone()
    for shaft, finish in shafts:
        beads = _beads(shaft, finish, probe=probe, imaging=imaging)
        if not len(beads.level):
            continue
        for below_mm, level_db in _walls(shaft, finish):
            below = np.array((below_mm / beads.sine / probe.step_mm, 0, 0))
            _splat(echo, beads.index + below, beads.dose * 10 ** (level_db / 20))
        _add_tail(tails, beads, finish=finish, probe=probe, shape=tuple(echo.shape))
        _add_fill(tails, beads, finish=finish, shape=tuple(echo.shape))
        if finish.shadow_db > 0:
            _add_shadow(attenuation, beads, finish=finish, probe=probe, thick_mm=2 * shaft.radius_mm)
    # What the tissue reflects at its own angle is kept; the shaft's angle is in its level already.
    touched = echo.flatten().nonzero()[:, 0]
    reflection, cosine = medium.reflection.flatten().clone(), medium.cosine.flatten().clone()
    facing = 0.97 * cosine[touched].pow(imaging.specular_power) + 0.03
    added = echo.flatten()[touched] * 10 ** (-imaging.specular_db / 20)
    reflection[touched] = reflection[touched] * facing + added
    cosine[touched] = 1.0
    streaked = tails.nonzero()[:, 0]
    brightness = medium.echo.flatten().clone()
    brightness[streaked] = torch.hypot(brightness[streaked], tails[streaked])
    shape = medium.echo.shape
    return dataclasses.replace(
        medium,
        reflection=reflection.reshape(shape),
        cosine=cosine.reshape(shape),
        echo=brightness.reshape(shape),
        attenuation_db_cm_mhz=attenuation,
    )


def _walls(shaft: Shaft, finish: Finish) -> list[tuple[float, float]]:
    """Depth (mm) below the near wall, across the shaft, and level (dB) of each echo."""
    walls = [(0.0, 0.0)]
    if finish.far_wall_db > _NOTHING_DB:
        walls.append((2 * shaft.radius_mm, finish.far_wall_db))
    return walls + [(n * finish.ring_mm, n * finish.ring_db) for n in range(1, finish.rings + 1)]


@dataclass(frozen=True, slots=True, eq=False)
class _Beads:
    """A shaft's near wall as a string of points, one entry each.

    Attributes:
        index: (n, 3) fractional r, az, el; ``level``: amplitude that is to be seen on the axis.
        dose: amplitude to put there so that the point spread function makes that level of it.
        sine: of the mean angle between beam and shaft.
        within: (m, 3) as ``index``, of points spread over the shaft's thickness; ``within_level``: theirs.
    """

    index: np.ndarray
    level: np.ndarray
    dose: np.ndarray
    sine: float
    within: np.ndarray
    within_level: np.ndarray


def _beads(shaft: Shaft, finish: Finish, *, probe: Probe, imaging: Imaging) -> _Beads:
    back = np.arange(0, shaft.length_mm, _BEAD_MM)
    axis, ahead = shaft.points(back), shaft.directions(back)
    limits = np.array((probe.samples, probe.lines, probe.planes))
    index = _index(probe, axis)
    kept = ((index > -3) & (index < limits + 2)).all(1)
    back, axis, ahead, index = back[kept], axis[kept], ahead[kept], index[kept]
    # The beam's direction is the gradient of range.
    beam = np.stack([_index(probe, axis + 0.01 * unit_z)[:, 0] - index[:, 0] for unit_z in np.eye(3)], 1)
    beam /= np.maximum(np.linalg.norm(beam, axis=1, keepdims=True), 1e-9)
    cosine = (beam * ahead).sum(1)
    facing = beam - cosine[:, None] * ahead
    facing /= np.maximum(np.linalg.norm(facing, axis=1, keepdims=True), 0.05)
    sine = np.sqrt(np.maximum(1 - cosine**2, 0.02))
    fall = np.minimum(-20 * finish.fall_power * np.log10(sine), finish.rough_db)
    level = 10 ** ((finish.level_db - fall + np.interp(back, finish.back_mm, finish.varying_db)) / 20)
    dose = level * _dose(probe, imaging, index=index, step=_index(probe, axis + 0.01 * ahead) - index)
    aside = np.cross(ahead, facing)

    def around(radius_mm: float, turn: float) -> np.ndarray:
        return _index(probe, axis - radius_mm * (math.cos(turn) * facing + math.sin(turn) * aside))

    wall = np.concatenate([around(shaft.radius_mm, turn) for turn in _TURNS])
    # Sunflower: as many points in any part of the disc.
    spots = range(_DISC if finish.fill_db > _NOTHING_DB else 0)
    disc = [around(shaft.radius_mm * math.sqrt((k + 0.5) / _DISC), math.pi * (1 + 5**0.5) * k) for k in spots]
    within = np.concatenate(disc) if disc else np.zeros((0, 3))
    count, mean = len(_TURNS), float(sine.mean()) if len(sine) else 1.0
    return _Beads(
        wall, np.tile(level, count), np.tile(dose / count, count), mean, within, np.tile(level, len(disc))
    )


def _dose(probe: Probe, imaging: Imaging, *, index: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Amplitude per bead for a level of 1 on the axis of the shaft, whatever its angle.

    A string of points with n per mm adds up to n a / (2π s_az s_el) √(2π / Q) relative to a sheet across the
    beams, with widths s in lines and planes; Q sums the squares of the shaft's direction over the widths in
    mm. ``step`` is the change of index over 0.01 mm along the shaft.
    """
    row = np.clip(np.round(index[:, 0]).astype(int), 0, probe.samples - 1)
    along, out = (pitch.numpy()[row] for pitch in pitches_mm(probe))
    lateral = np.maximum(lateral_sigma_mm(probe, imaging).numpy()[row] / along, _SIGMA_MIN)
    elevation = np.maximum(elevation_sigma_mm(probe, imaging).numpy()[row] / out, _SIGMA_MIN)
    axial = max(axial_sigma_mm(probe) / probe.step_mm, _SIGMA_MIN)
    q = (100 * step / np.stack([np.full(len(row), axial), lateral, elevation], 1)) ** 2
    return _BEAD_MM * np.sqrt(q.sum(1) / (2 * math.pi)) * 2 * math.pi * lateral * elevation


def _index(probe: Probe, points_mm: np.ndarray) -> np.ndarray:
    z, y, x = torch.from_numpy(points_mm).unbind(-1)
    return beam_index(probe, (z, y, x)).numpy()


def _splat(target: Tensor, index: np.ndarray, amount: np.ndarray) -> None:
    """Add amounts at fractional indices (n, 3) to the eight samples around each."""
    low = np.floor(index).astype(int)
    part = index - low
    for corner in np.ndindex(2, 2, 2):
        place = low + corner
        share = np.prod(np.where(np.array(corner) == 1, part, 1 - part), axis=1)
        inside = ((place >= 0) & (place < tuple(target.shape))).all(1)
        spot = tuple(torch.from_numpy(place[inside]).T)
        target.index_put_(spot, torch.from_numpy((amount * share)[inside]).float(), accumulate=True)


def _around(beads: _Beads, depth: np.ndarray, shape: tuple[int, ...]) -> tuple[Tensor, np.ndarray]:
    """Flat indices of the samples ``depth`` below each bead on the lines next to it, and which are inside."""
    line = np.round(beads.index[:, 1:]).astype(int)
    row = np.ceil(beads.index[:, 0]).astype(int)[:, None] + depth
    inside = (row >= 0) & (row < shape[0]) & np.all((line >= 0) & (line < shape[1:]), axis=1)[:, None]
    flat = (row * shape[1] + line[:, :1]) * shape[2] + line[:, 1:]
    return torch.from_numpy(flat[inside]), inside


def _add_tail(tails: Tensor, beads: _Beads, *, finish: Finish, probe: Probe, shape: tuple[int, ...]) -> None:
    if finish.tail_db <= _NOTHING_DB:
        return
    depth = np.arange(max(2, math.ceil(4 * finish.tail_mm / probe.step_mm)))
    place, inside = _around(beads, depth, shape)
    fading = 10 ** (finish.tail_db / 20) * np.exp(-depth * probe.step_mm / finish.tail_mm)
    level = torch.from_numpy((beads.level[:, None] * fading)[inside]).float()
    tails.scatter_reduce_(0, place, level, "amax")


def _add_fill(tails: Tensor, beads: _Beads, *, finish: Finish, shape: tuple[int, ...]) -> None:
    spot = np.round(beads.within).astype(int)
    inside = ((spot >= 0) & (spot < shape)).all(1)
    place = np.ravel_multi_index(tuple(spot[inside].T), shape)
    level = beads.within_level[inside] * 10 ** (finish.fill_db / 20)
    tails.scatter_reduce_(0, torch.from_numpy(place), torch.from_numpy(level).float(), "amax")


def _add_shadow(attenuation: Tensor, beads: _Beads, *, finish: Finish, probe: Probe, thick_mm: float) -> None:
    depth = np.arange(max(1, round(thick_mm / beads.sine / probe.step_mm)))
    place, _ = _around(beads, depth, tuple(attenuation.shape))
    attenuation.view(-1)[place.unique()] += (
        finish.shadow_db / probe.frequency_mhz / (len(depth) * probe.step_mm / 10)
    )


def shaft_mask(shaft: Shaft, grid: Grid, *, radius_mm: float) -> Tensor:
    """Voxels whose centres lie within ``radius_mm`` of the centreline, tip to end: bool ``z y x``."""
    trace = grid.to_index(shaft.points(np.arange(0, shaft.length_mm + 0.3, 0.3)))
    reach = np.ceil(radius_mm / np.asarray(grid.step)) + 1
    inside = ((trace > -reach) & (trace < grid.shape + reach)).all(1)
    mask = np.zeros(grid.shape, bool)
    if not inside.any():
        return torch.from_numpy(mask)
    low = np.clip(np.floor(trace[inside].min(0) - reach), 0, None).astype(int)
    high = np.minimum(np.ceil(trace[inside].max(0) + reach) + 1, grid.shape).astype(int)
    near = np.zeros(tuple(high - low), bool)
    around = np.stack(np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"), -1).reshape(
        -1, 1, 3
    )
    voxels = (np.round(trace[inside])[None] + around).reshape(-1, 3).astype(int) - low
    voxels = voxels[((voxels >= 0) & (voxels < near.shape)).all(1)]
    near[tuple(voxels.T)] = True
    index = np.argwhere(near) + low
    back, distance = shaft.coordinates(grid.to_world(index))
    kept = (distance <= radius_mm) & (back >= 0) & (back <= shaft.length_mm)
    mask[tuple(index[kept].T)] = True
    return torch.from_numpy(mask)


def _smoothed(values: np.ndarray, sigma: float) -> np.ndarray:
    """Blur white noise along a shaft; what a short shaft sees of it deviates by 1 and has mean 0."""
    smooth = ndimage.gaussian_filter1d(values, sigma, mode="reflect")
    smooth = smooth - smooth.mean()
    return smooth / max(float(smooth.std()), 1e-6)
