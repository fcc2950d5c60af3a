"""Tubes that ``needle`` learns from: along needles, beside them, and along whatever else is bright.

A line that looks like a needle to the first network need not be one, so most tubes without a needle follow
the brightest of many random lines (informed re-sampling of negatives, Pourtaherian et al., MICCAI 2017, done
for lines); once there is a first network, they may follow the lines that it proposes as well. What is true of
a tube is computed from the needles, wherever the tube lies.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models3d.recipes.needle_path import (
    TUBE,
    Path,
    fit_path,
    levelled,
    sampled,
    tube_frame,
    tube_points,
)
from models3d.recipes.working_volume import in_picture
from usvol.training.recipe import Sample
from usvol.training.volume_augmentation import vary_picture

NOWHERE = 255  # label of voxels outside the sector
LEAST_POINTS = 6  # voxels of a needle, for a path through them

UNKNOWN = -1.0  # of a truth: does not count
_POINTS = 600  # voxels that a path is fitted to
_END = 0.25  # a fitted path ends so many samples beyond the shaft: voxels are counted whole
_BEYOND = 3.0  # samples beyond an end in which the view must go on for it to be a tip
_WITHIN = 8.0  # samples from the tube's axis to a shaft that counts as in it; beyond, up to
_NEARLY = 10.0  # this, it is left open
_ALONG, _ACROSS = 0.36, 0.7  # slope of a shaft that runs along the tube, and of one that crosses it
_ENOUGH = 12  # slices of it that make a tube one along a needle
_ROLLED = 0.25  # share of tubes turned about their axis
_UPWARD = 0.1  # how often a tube is read against the depth axis
_AT_NEEDLE, _BESIDE, _ANYWHERE = 0.45, 0.1, 0.15  # shares of tubes; the others follow what stands out
_THIN = 0.7  # how often lines are judged by how they stand out, in place of how bright they are
_LINES = 500  # random lines of which the best is taken, at most
_SHORTEST = 10.0  # samples, of such a line
_KNOTS = 40  # samples along each of them


@dataclass(frozen=True, slots=True, eq=False)
class Shaft:
    """A needle in fine coordinates: its path, which of its ends are tips, its radius in samples."""

    path: Path
    tips: tuple[bool, bool]
    radius: float

    @property
    def tip(self) -> float | None:
        """Length along the path of the tip; None if it is not in the view, or both ends could be it."""
        if self.tips[0] == self.tips[1]:
            return None
        return self.path.start if self.tips[0] else self.path.end


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """A volume to draw tubes from.

    Attributes:
        parts: level and inside the sector; ``2 z y x``.
        marked: (n, 3) voxels of needles; ``owner``: of which, (n,).
        step: spacing (z, y, x).
        lines: that the first look proposes, needles or not, in samples of the finest spacing.
    """

    parts: Tensor
    marked: np.ndarray
    owner: np.ndarray
    step: np.ndarray
    lines: tuple[Path, ...] = ()


def opened(sample: Sample) -> Volume:
    """Return a prepared volume as tubes are drawn from it."""
    labels = sample["labels"]
    inside = labels != NOWHERE
    marked = ((labels > 0) & inside).nonzero(as_tuple=True)
    parts = torch.stack([levelled(sample["grey"], inside), inside.float()])
    return Volume(parts, torch.stack(marked, 1).numpy(), labels[marked].numpy(), sample["step"].numpy())


def drawn_tube(volume: Volume, *, picture: float, proposed: float = 0.0) -> dict[str, Tensor]:
    """Draw a tube, and what is true of it; a share ``proposed`` of them along the volume's ``lines``.

    Returns:
        ``tube``: level and inside, ``2 s v u``; ``shaft`` (s,): 1, 0 or -1 (open); ``offset`` (2, s): down
        and aside, where ``shaft`` is 1; ``tip``: slice, or NaN for none; and as numbers, -1 where open:
        ``tip_known``, ``needle``, ``log_radius`` (NaN where unknown).
    """
    scale = volume.step / drawn_unit(volume)
    shafts = found_shafts(volume, scale)
    if volume.lines and float(torch.rand(())) < proposed:
        path = volume.lines[int(torch.randint(len(volume.lines), ()))].scaled(float(scale.min()))
    else:
        path = _drawn_path(volume, shafts, scale)
    path = jittered(path, far=float(torch.rand(())) < 0.5)
    step = 1.0 if float(torch.rand(())) < 0.7 else float(_uniform(1.0, 1.5))
    s = (np.arange(TUBE) - (TUBE - 1) / 2) * step + float(_uniform(-40, 40))
    s += (path.start + path.end) / 2
    # Down along y, as needles go from a probe on top; not always, for the volume may be turned.
    if (float(torch.rand(())) < _UPWARD) == (path.ahead[1] >= 0):
        s = s[::-1].copy()
    frame = drawn_frame(path, rolled=_ROLLED)
    tube = read_tube(volume, tube_points(path, s, frame=frame), scale=scale, picture=picture)
    return {"tube": tube, **tube_truth(shafts, path, s=s, frame=frame)}


def drawn_unit(volume: Volume) -> float:
    """Draw how long a fine sample is, about the finest spacing of the volume."""
    return float(volume.step.min()) * math.exp(float(_uniform(-0.25, 0.3)))


def drawn_frame(path: Path, *, rolled: float) -> np.ndarray:
    """Draw a tube's directions across: mirrored or not, and in a share ``rolled`` turned about the axis."""
    roll = float(_uniform(0, 2 * math.pi)) if float(torch.rand(())) < rolled else 0.0
    frame = tube_frame(path, roll=roll)
    if float(torch.rand(())) < 0.5:
        frame[1] *= -1
    return frame


def read_tube(volume: Volume, points: np.ndarray, *, scale: np.ndarray, picture: float) -> Tensor:
    """Sample level and inside at points ``s v u 3``, grey levels varied so often: ``2 s v u``."""
    level, inside = sampled(volume.parts, points, scale=scale)
    mask = inside > 0.5
    grey = level * mask
    if picture > 0:
        grey = vary_picture(grey, mask, strength=picture)
    return torch.stack([grey, mask.float()])


def found_shafts(volume: Volume, scale: np.ndarray) -> list[Shaft]:
    """Fit a path to each needle, and see where the view goes on beyond its ends."""
    shafts = []
    for owner in np.unique(volume.owner):
        points = volume.marked[volume.owner == owner]
        count = len(points)
        if count < LEAST_POINTS:
            continue
        few = points if count <= _POINTS else points[np.linspace(0, count - 1, _POINTS).astype(int)]
        path = fit_path(few * scale)
        s = path.locate(points * scale)[0]
        path = dataclasses.replace(path, start=float(s.min()) - _END, end=float(s.max()) + _END)
        beyond = path.points(np.array([path.start - _BEYOND, path.end + _BEYOND]))
        seen = in_picture(*volume.parts, places=beyond / scale)
        # A cylinder's volume tells its radius.
        area = count * float(np.prod(scale)) / max(path.end - path.start, 1.0)
        shafts.append(Shaft(path, (bool(seen[0]), bool(seen[1])), math.sqrt(area / math.pi)))
    return shafts


def _drawn_path(volume: Volume, shafts: list[Shaft], scale: np.ndarray) -> Path:
    """Draw a needle's path, one that misses it, a line that stands out, or any line."""
    draw = float(torch.rand(()))
    if shafts and draw < _AT_NEEDLE + _BESIDE:
        path = shafts[int(torch.randint(len(shafts), ()))].path
        return path if draw < _AT_NEEDLE else _missing(path)
    if draw > 1 - _ANYWHERE:
        ends = torch.rand(2, 3).double().numpy() * volume.parts.shape[1:] * scale
        return Path.between(ends[0], ends[1], least=_SHORTEST / 2)
    return bright_path(volume.parts[0], scale)


def _missing(path: Path) -> Path:
    """Turn a path about a point of it, or move it aside, so that it hardly follows what it did."""
    about = path.points(np.array([float(_uniform(path.start, path.end))]))[0]
    aside = torch.randn(3).double().numpy()
    aside -= (aside @ path.ahead) * path.ahead
    aside /= np.linalg.norm(aside)
    ahead = path.ahead
    if float(torch.rand(())) < 0.5:
        turn = math.radians(float(_uniform(12, 70)))
        ahead = math.cos(turn) * path.ahead + math.sin(turn) * aside
    else:
        about = about + aside * float(_uniform(7, 25))
    return Path(about, ahead, np.zeros(3), path.start, path.end)


def bright_path(level: Tensor, scale: np.ndarray) -> Path:
    """Return of some random lines through two bright voxels the brightest, or the one that stands out most.

    What stands out is brighter than what lies around it, as fibres and needles are.
    """
    few = F.max_pool3d(level[None], 2)
    if float(torch.rand(())) < _THIN:
        few = few - F.avg_pool3d(few, 7, 1, 3, count_include_pad=False)
    limit = torch.quantile(few.flatten()[:: max(1, few.numel() // 20_000)], 0.98)
    bright = (few[0] >= limit).nonzero()
    count = int(torch.exp(_uniform(0, math.log(_LINES))).ceil())
    ends = bright[torch.randint(len(bright), (count, 2))].double().numpy()
    share = np.linspace(0, 1, _KNOTS)[None, :, None]
    knots = ends[:, :1] + share * (ends[:, 1:] - ends[:, :1])
    values = sampled(few, knots[:, None], scale=np.ones(3))[0, :, 0].mean(1).numpy()
    ends = (2 * ends + 0.5) * scale
    lengths = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
    one, other = ends[int(np.argmax(np.where(lengths > _SHORTEST, values, -1.0)))]
    return Path.between(one, other, least=_SHORTEST / 2)


def jittered(path: Path, *, far: bool) -> Path:
    """Displace a path as a fit does: by up to a sample and a degree, or by several."""
    move, turn = (3.0, 0.06) if far else (0.7, 0.012)
    about = float(_uniform(path.start, path.end))
    pivot = path.points(np.array([about]))[0]
    noise = torch.randn(3, 3).double().numpy()
    ahead = path.ahead + 2 * about * path.bend + noise[0] * float(_uniform(0, turn))
    ahead /= np.linalg.norm(ahead)
    bend = (0.0 if far and float(torch.rand(())) < 0.5 else 1.0) * path.bend + noise[1] * 2e-4
    bend -= (bend @ ahead) * ahead
    moved = pivot + noise[2] * float(_uniform(0, move))
    # The parabola again counts s from its own middle.
    middle = moved - about * ahead - about**2 * bend
    return Path(middle, ahead, bend, path.start, path.end)


def tube_truth(shafts: list[Shaft], path: Path, *, s: np.ndarray, frame: np.ndarray) -> dict[str, Tensor]:
    """Return what ``drawn_tube`` says of a tube about ``path`` at lengths ``s``, without the tube itself."""
    seen = [_passing(shaft, path, s=s, frame=frame) for shaft in shafts]
    counts = [int((along == 1).sum()) for along, _ in seen]
    best = int(np.argmax(counts)) if counts else -1
    along, offset = seen[best] if counts else (np.zeros(len(s)), np.zeros((2, len(s))))
    for number, (other, _) in enumerate(seen):
        if number != best:
            along = np.where((other != 0) & (along == 0), UNKNOWN, along)
    count = counts[best] if counts else 0
    needle = UNKNOWN if count > 3 else 0.0
    tip, known, radius = math.nan, 0.0, math.nan
    if counts:
        shaft = shafts[best]
        whole = (shaft.path.end - shaft.path.start) / abs(s[1] - s[0])
        if count >= min(_ENOUGH, 0.7 * whole) and np.abs(offset[:, along == 1]).mean() < 0.75 * _WITHIN:
            needle, radius = 1.0, math.log(shaft.radius)
            tip, known = _tip(shaft, path, s=s, frame=frame)
    return {
        "shaft": torch.from_numpy(along).float(),
        "offset": torch.from_numpy(offset).float(),
        "tip": torch.tensor(tip),
        "tip_known": torch.tensor(known),
        "needle": torch.tensor(needle),
        "log_radius": torch.tensor(radius),
    }


def _passing(shaft: Shaft, path: Path, *, s: np.ndarray, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each slice whether the shaft runs through it along the tube, and where."""
    points = shaft.path.points(np.arange(shaft.path.start, shaft.path.end, 0.5))
    place, offset = _in_tube(points, path, frame)
    order = np.argsort(place)
    place, offset = place[order], offset[order]
    spots = np.stack([np.interp(s, place, offset[:, axis]) for axis in (0, 1)])
    reached = (s >= place[0]) & (s <= place[-1])
    if np.ptp(place) < 2:
        return np.where(reached, UNKNOWN, 0.0), spots * 0
    slope = np.linalg.norm(np.gradient(spots, s, axis=1), axis=0)
    away = np.abs(spots).max(0)
    along = np.where((away < _NEARLY) & (slope < _ACROSS), UNKNOWN, 0.0)
    along = np.where((away < _WITHIN) & (slope < _ALONG), 1.0, along)
    return along * reached, np.clip(spots, -_NEARLY, _NEARLY)


def _tip(shaft: Shaft, path: Path, *, s: np.ndarray, frame: np.ndarray) -> tuple[float, float]:
    """Return the slice of the tip (NaN: not in the tube), and 1 if that is known."""
    if shaft.tip is None:
        return math.nan, float(not any(shaft.tips))
    place, offset = _in_tube(shaft.path.points(np.array([shaft.tip])), path, frame)
    at = (place[0] - s[0]) / (s[1] - s[0])
    if not 0 <= at <= len(s) - 1:
        return math.nan, 1.0
    return float(at), float(np.abs(offset).max() < _WITHIN)


def _in_tube(points: np.ndarray, path: Path, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return length along a path and offset (down, aside) from it of points (n, 3)."""
    place = (points - path.middle) @ path.ahead
    return place, (points - path.points(place)) @ frame.T


def _uniform(low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(())
