"""Search a volume through marginal spaces: position, then orientation, then scale; or follow a known pose.

Few hypotheses live through each space: places of the heat map, each tried in 120 orientations, which the
orientation network scores and corrects; the pose network does the same with the best of every place. A score
tells a hypothesis that is nearly right from one that is not, hardly two that are not: so all are corrected
twice before any goes, and those that have become alike count once. The root looks much the same turned about
its axis or end for end, so the best hypotheses are also tried that way: the score knows which is right. Where
several agree, their mean is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models3d.recipes.aortic_valve import TYPICAL_MM
from models3d.recipes.aortic_valve_patches import (
    COARSE,
    NEAR_MM,
    NEAR_SIDE,
    PATCH,
    ROOM,
    Levels,
    Poses,
    axis_turns,
    coarse_step,
    corner_distance,
    corrected,
    look,
    mean_pose,
    turned,
)
from models3d.tasks._orientations import turns_of_any_grid

Networks = Mapping[str, Callable[..., Any]]

_APART = 5  # samples of the heat map within which one maximum is kept
_ALIKE_MM = 5.0  # corner distance within which hypotheses are followed as one
_AGREE_MM = 8.0  # and within which they are one answer


@dataclass(frozen=True, slots=True)
class Effort:
    """How many hypotheses are followed.

    Attributes:
        places: local maxima of the heat map.
        oriented: of the orientations of each, so many reach the pose network.
        kept: hypotheses that are followed after the second look.
        turned: of the best after the second look, and again before the last two, so many are tried turned.
        rounds: looks of the pose network at each, the first included.
    """

    places: int = 4
    oriented: int = 5
    kept: int = 8
    turned: int = 3
    rounds: int = 6


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The best pose (one), the chance that a valve is there, and the answers that agreed with it."""

    pose: Poses
    chance: float
    agreeing: Poses
    heat: float


def search(networks: Networks, source: Levels, *, logits: Tensor, effort: Effort) -> Found:
    """Search the whole volume; ``logits`` (a, b, c) are what the position network says of it."""
    centres, heat = places(logits, source, count=effort.places)
    poses = orientations(networks, source, centres=centres, each=effort.oriented)
    return refined(networks, source, poses=poses, effort=effort, heat=float(heat.max()))


def follow(networks: Networks, source: Levels, *, last: Poses, heat: float) -> Found:
    """Look only where the valve was in the frame before."""
    return refined(networks, source, poses=last, effort=Effort(kept=1, turned=0, rounds=2), heat=heat)


def places(logits: Tensor, source: Levels, *, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` highest maxima of a heat map ``a b c``: places (n, 3) in mm and their chances."""
    chance = torch.sigmoid(logits.float())
    peaks = F.max_pool3d(chance[None, None], _APART, stride=1, padding=_APART // 2)[0, 0] == chance
    values, flat = (chance * peaks).flatten().topk(count)
    index = torch.stack(torch.unravel_index(flat, chance.shape), 1)
    padded = F.pad(chance, [1] * 6)
    middle = (COARSE - 1) / 2
    step = coarse_step(source.grid)
    around = torch.stack(torch.meshgrid(*[torch.arange(-1, 2)] * 3, indexing="ij"), -1).reshape(-1, 3)
    centres = []
    for place in index:
        z, y, x = place.tolist()
        weight = padded[z : z + 3, y : y + 3, x : x + 3].flatten()
        mean = place + (around * weight[:, None]).sum(0) / weight.sum().clamp_min(1e-9)
        centres.append(source.middle + (mean - middle) * step)
    return torch.stack(centres), values


def orientations(networks: Networks, source: Levels, *, centres: Tensor, each: int) -> Poses:
    """Try 120 orientations at each place; return the ``each`` likeliest of every place, corrected."""
    turns = torch.stack(turns_of_any_grid())
    start = Poses(
        centres.repeat_interleave(len(turns), 0),
        turns.repeat(len(centres), 1, 1),
        torch.tensor([TYPICAL_MM] * len(turns) * len(centres)),
    )
    step = torch.full((len(start),), NEAR_MM)
    answers = networks["orientation"](look(source, start, step_mm=step, count=NEAR_SIDE)).float()
    best = answers[:, 12].reshape(len(centres), -1).topk(each, 1).indices
    best = (best + len(turns) * torch.arange(len(centres))[:, None]).flatten()
    return turned(start[best], answers[best])


def distinct(poses: Poses, score: Tensor, *, count: int) -> Poses:
    """Return the ``count`` best poses, best first, without those like a better one."""
    kept: list[int] = []
    for k in score.argsort(descending=True).tolist():
        if len(kept) == count:
            break
        if not kept or float(corner_distance(poses[[k] * len(kept)], poses[kept]).min()) > _ALIKE_MM:
            kept.append(k)
    return poses[kept]


def with_turns(poses: Poses, *, count: int) -> Poses:
    """Add to poses, best first, the first ``count`` turned about the long axis and end for end."""
    about = axis_turns([60.0 * k for k in range(6)])
    end_for_end = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    turns = torch.cat([about, end_for_end @ about])[1:]
    rotation = (poses.rotation[:count, None] @ turns).flatten(0, 1)
    each = len(turns)
    return Poses(
        torch.cat([poses.centre, poses.centre[:count].repeat_interleave(each, 0)]),
        torch.cat([poses.rotation, rotation]),
        torch.cat([poses.size, poses.size[:count].repeat_interleave(each, 0)]),
    )


def refined(networks: Networks, source: Levels, *, poses: Poses, effort: Effort, heat: float) -> Found:
    """Score and correct hypotheses in rounds, keep the best, and average those that agree with the best."""
    score = torch.zeros(len(poses))
    for number in range(effort.rounds):
        patches = look(source, poses, step_mm=poses.scale * ROOM / PATCH, count=PATCH)
        answers = networks["pose"](patches).float()
        score = torch.sigmoid(answers[:, 12])
        poses = corrected(poses, answers)
        if 0 < number < effort.rounds - 1 and len(poses) > effort.kept:
            poses = distinct(poses, score, count=effort.kept)
        if effort.turned and number in (1, effort.rounds - 3):
            poses = with_turns(poses, count=min(effort.turned, len(poses)))
    top = int(score.argmax())
    near = corner_distance(poses, poses[[top] * len(poses)]) < _AGREE_MM
    agreeing = poses[near]
    return Found(mean_pose(agreeing, score[near]), float(score[top]), agreeing, heat)
