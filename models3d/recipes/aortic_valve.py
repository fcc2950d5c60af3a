"""How ``aortic_valve`` learns: all its networks at once, from patches of simulated volumes drawn on the fly.

Every volume of a batch gives the whole view at 2.5 mm (position), patches around the valve turned by up to
60° or any way (orientation), patches in the frames of perturbed boxes (pose, scale and score) and one aligned
cube (labels and mesh). The losses are summed; the networks share nothing, so each learns as it would alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from models3d.nets.marginal_space import MarginalSpace, rotations
from models3d.recipes.aortic_valve_patches import (
    COARSE,
    GROWTH,
    MARGIN,
    NEAR_MM,
    NEAR_SIDE,
    OFFSET_MM,
    OFFSET_SHARE,
    PATCH,
    ROOM,
    SIDE,
    Levels,
    Poses,
    angle_deg,
    axis_turns,
    coarse_step,
    corner_distance,
    corners,
    levels,
    look,
    random_rotations,
    rotations_within,
    small_rotations,
    working_mm,
)
from models3d.recipes.aortic_valve_scores import row, score
from models3d.recipes.working_volume import CHANNELS, grey_levels, network_input
from models3d.tasks import _aortic_shape as shape
from models3d.tasks._aortic_mesh import N_VERTICES
from usvol import quality
from usvol.resampling import resize, sample_on
from usvol.result import Labels
from usvol.scan import Grid, Scan, Selection
from usvol.supervision import shown
from usvol.training.recipe import Batch, FitSettings, Recipe, Sample
from usvol.training.volume_augmentation import vary_picture

SELECTION = Selection()
CLASSES = 2  # blood inside the root's wall, cusps included; cusps
NEAR, BOXES = 8, 7  # patches per draw for orientation and for pose
DRAWS = 2  # of these patches per volume: making the volume's levels costs as much as all patches
WITHIN_DEG = 60.0  # the orientation network corrects turns up to it; sixty orientations leave none over 45°
SEEN = 0.5  # part of the valve in view from which it counts as there
UNSEEN = 0.05  # and below which it counts as absent; what lies between teaches nothing
FAR_MM = 25.0  # from the valve: where there is none
TYPICAL_MM = (19.0, 34.0, 34.0)  # size of a box where there is no valve to take it from
ALIGNED_DEG = 35.0  # turn at which the score of an orientation is 1/e
QUALITY_MM = 8.0  # corner distance at which the score of a box is 1/e
_HEAT_SAMPLES = 1.6  # deviation of the target of the position network


Part = Literal["position", "orientation", "pose", "aligned"]


class Settings(FitSettings):
    """Training settings of ``aortic_valve``."""

    width: int = Field(16, ge=4, description="maps of the first layers; deeper ones have multiples of it")
    sparsity: float = Field(
        0.0, ge=0, lt=1, description="share of the first layer's weights of the patch networks to prune"
    )
    picture: float = Field(0.5, ge=0, le=1, description="how often grey levels are varied")
    modes: int = Field(24, ge=1, description="of the statistical shape model")
    networks: tuple[Part, ...] = Field(
        get_args(Part), min_length=1, description="those that learn; others stay as `init` gives them"
    )


def prepare(scan: Scan) -> dict[str, Tensor]:
    """Keep a canonical volume at about 1 mm: ``grey z y x`` (uint8), ``inside`` the sector, ``affine``."""
    small = working_mm(scan)
    grey, mask = grey_levels(small)
    return {
        "grey": (grey * 255).round().to(torch.uint8),
        "inside": mask.to(torch.uint8),
        "affine": torch.from_numpy(small.grid.affine),
    }


def prepare_labelled(scan: Scan, labels: Labels) -> dict[str, Tensor]:
    """Keep a canonical volume and what part of each sample is inside the root and is cusp (uint8, 0-255)."""
    kept = prepare(scan)
    on_grid = sample_on(labels.data[:1, None], labels.grid, target=scan.grid, mode="nearest")
    z, y, x = kept["grey"].shape
    for name, mask in (("root_share", on_grid > 0), ("cusp_share", on_grid == 2)):
        whole = Scan(mask.float() * 255, scan.grid)
        kept[name] = resize(whole, (z, y, x)).data[0, 0].round().to(torch.uint8)
    return kept


class Volumes(Dataset[Batch]):
    """Training examples: all patches of a volume, anew each time."""

    def __init__(self, samples: Sequence[Sample], settings: Settings) -> None:
        self.samples = samples
        self.settings = settings

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Batch:
        sample = self.samples[index]
        source = source_of(sample, picture=self.settings.picture)
        truth, known = truth_of(sample)
        batch: Batch = {"known": torch.tensor(float(known)), "there": torch.tensor(float(truth is not None))}
        drawn: dict[Part, tuple[str, Callable[[], Batch]]] = {
            "position": ("position", lambda: _whole(source, truth)),
            "orientation": ("near", lambda: _joined([_near(source, truth) for _ in range(DRAWS)])),
            "pose": ("box", lambda: _joined([_boxes(source, truth) for _ in range(DRAWS)])),
            "aligned": ("aligned", lambda: _aligned(source, sample, truth)),
        }
        for part in self.settings.networks:
            name, draw = drawn[part]
            batch |= {f"{name}_{key}": value for key, value in draw().items()}
        return batch


def _joined(parts: Sequence[Batch]) -> Batch:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def source_of(sample: Sample, *, picture: float = 0.0) -> Levels:
    """Return the levels of a kept volume, its picture varied."""
    grey, mask = sample["grey"].float() / 255, sample["inside"] > 0
    if picture > 0:
        grey = vary_picture(grey, mask, strength=picture)
    return levels(network_input(grey, mask), grid_of(sample))


def grid_of(sample: Sample) -> Grid:
    """Return the grid of a kept volume."""
    affine = sample["affine"]
    step = affine[:3, :3].norm(dim=0)
    direction = tuple(tuple(row) for row in (affine[:3, :3] / step).tolist())
    z, y, x = sample["grey"].shape
    return Grid((z, y, x), tuple(step.tolist()), tuple(affine[:3, 3].tolist()), direction)  # type: ignore[arg-type]


def truth_of(sample: Sample) -> tuple[Poses | None, bool]:
    """Return the valve's box, None where none is seen, and whether that is known at all."""
    share = float(sample["in_view"]) if sample["present"] else 0.0
    if share < SEEN:
        return None, share < UNSEEN
    return pose_of(sample["box"]), True


def pose_of(box: Mapping[str, Any]) -> Poses:
    """Return the pose of a phantom's box."""
    names = ("centre_mm", "rotation", "size_mm")
    return Poses(*(torch.tensor(box[name], dtype=torch.float32)[None] for name in names))


def _whole(source: Levels, truth: Poses | None) -> Batch:
    """Look at the whole volume, turned any way, with the valve in the picture."""
    step = coarse_step(source.grid) * (1 + 0.15 * (2 * torch.rand(1) - 1))
    frame = random_rotations(1)
    centre = source.middle + 12 * torch.randn(3)
    if truth is not None:
        # The valve stays two samples inside the cube.
        local = frame[0].T @ (truth.centre[0] - centre)
        limit = float(step) * (COARSE / 2 - 2)
        centre = centre + frame[0] @ (local - local.clamp(-limit, limit))
    pose = Poses(centre[None], frame, torch.ones(1, 3))
    heat = torch.zeros(COARSE, COARSE, COARSE)
    if truth is not None:
        place = frame[0].T @ (truth.centre[0] - centre) / step + (COARSE - 1) / 2
        ticks = torch.arange(COARSE)
        a, b, c = (torch.exp(-0.5 * ((ticks - p) / _HEAT_SAMPLES) ** 2) for p in place)
        heat = a[:, None, None] * b[:, None] * c
        heat = heat / heat.max()
    return {"volume": look(source, pose, step_mm=step, count=COARSE)[0], "heat": heat}


def _near(source: Levels, truth: Poses | None) -> Batch:
    """Look around places near the valve, turned by up to 60°, two of them any way; the last elsewhere."""
    step = NEAR_MM * (1 + 0.12 * (2 * torch.rand(NEAR) - 1))
    size, quality_of = torch.tensor(TYPICAL_MM).repeat(NEAR, 1), torch.zeros(NEAR)
    if truth is None:
        centre, frames = _anywhere(source, NEAR), random_rotations(NEAR)
        target = {
            "move": torch.zeros(NEAR, 3),
            "turn": torch.eye(3).repeat(NEAR, 1, 1),
            "weight": torch.zeros(NEAR),
        }
    else:
        centre = truth.centre + 4.0 * torch.randn(NEAR, 3)
        centre[-1:] = _away(source, truth, 1)
        frames = truth.rotation @ rotations_within(torch.full((NEAR,), WITHIN_DEG))
        frames[-3:] = random_rotations(3)
        back = frames.transpose(1, 2)
        # A step larger than meant makes everything look smaller.
        ratio = (NEAR_MM / step)[:, None]
        local = (back @ (truth.centre - centre)[..., None])[..., 0]
        size, turn = truth.size * ratio, back @ truth.rotation
        angle, apart = angle_deg(turn), local.norm(dim=1)
        weight = ((angle < WITHIN_DEG + 1) & (apart < FAR_MM / 2)).float()
        target = {"move": local * ratio, "turn": turn, "weight": weight}
        quality_of = torch.exp(-((angle / ALIGNED_DEG) ** 2) - (apart / 10) ** 2)
    poses = Poses(centre, frames, torch.ones(NEAR, 3))
    return {
        "patch": look(source, poses, step_mm=step, count=NEAR_SIDE),
        **target,
        "size": size,
        "quality": quality_of,
    }


def _boxes(source: Levels, truth: Poses | None) -> Batch:
    """Look into perturbed boxes: near the truth, farther, turned about the axis, and one elsewhere."""
    if truth is None:
        size = torch.tensor(TYPICAL_MM) * torch.exp(0.15 * torch.randn(BOXES, 3))
        poses = Poses(_anywhere(source, BOXES), random_rotations(BOXES), size)
        true = poses
        weight = quality_of = torch.zeros(BOXES)
    else:
        poses = perturbed(truth, source)
        true = truth[[0] * BOXES]
        distance = corner_distance(poses, true)
        weight = (distance < 20).float()
        weight[5:] = 0
        quality_of = torch.exp(-((distance / QUALITY_MM) ** 2))
    back = poses.rotation.transpose(1, 2)
    return {
        "patch": look(source, poses, step_mm=poses.scale * ROOM / PATCH, count=PATCH),
        "move": (back @ (true.centre - poses.centre)[..., None])[..., 0],
        "turn": back @ true.rotation,
        "size": true.size.clone(),
        "own": poses.size,
        "weight": weight,
        "quality": quality_of,
    }


def perturbed(truth: Poses, source: Levels) -> Poses:
    """Draw the boxes of ``_boxes`` around a true one."""
    wide = torch.tensor([1.5, 2.5, 3.5, 3.5, 6.0, 3.0, 0.0])
    angle = torch.tensor([5.0, 8.0, 12.0, 15.0, 25.0, 12.0, 0.0])
    growth = torch.tensor([0.05, 0.08, 0.12, 0.15, 0.2, 0.1, 0.15])
    rotation = truth.rotation @ small_rotations(angle)
    turn = float(torch.rand(())) * 240 + 60
    rotation[5] = rotation[5] @ axis_turns([turn])[0]
    rotation[6] = random_rotations(1)[0]
    centre = truth.centre + torch.randn(BOXES, 3) * wide[:, None]
    centre[6:] = _away(source, truth, 1)
    size = truth.size * torch.exp(
        torch.randn(BOXES, 3) * growth[:, None] * 0.7 + torch.randn(BOXES, 1) * growth[:, None] * 0.7
    )
    return Poses(centre, rotation, size)


def _aligned(source: Levels, sample: Sample, truth: Poses | None) -> Batch:
    """Look into one cube aligned with the box but for a small error, with its labels and mesh."""
    if truth is None:
        # Nothing is learnt from it, but batch statistics want a picture.
        pose = Poses(_anywhere(source, 1), random_rotations(1), torch.tensor([TYPICAL_MM]))
        return {
            "cube": look(source, pose, step_mm=aligned_step(pose), count=SIDE, fine=True)[0],
            "shares": torch.zeros(CLASSES, SIDE, SIDE, SIDE),
            "points": torch.zeros(N_VERTICES, 3),
            "half_mm": torch.ones(()),
        }
    angle = torch.tensor([7.0]) * torch.rand(1)
    pose = Poses(
        truth.centre + 1.6 * torch.randn(1, 3),
        truth.rotation @ small_rotations(angle),
        truth.size * torch.exp(0.05 * torch.randn(1, 3)),
    )
    step = aligned_step(pose)
    shares = torch.stack([sample["root_share"], sample["cusp_share"]]).float() / 255
    true = Levels((shares,), source.grid)
    local = (torch.tensor(sample["vertices_mm"]) - pose.centre) @ pose.rotation[0]
    half = step[0] * SIDE / 2
    return {
        "cube": look(source, pose, step_mm=step, count=SIDE, fine=True)[0],
        "shares": look(true, pose, step_mm=step, count=SIDE, fine=True)[0],
        "points": local / half,
        "half_mm": half,
    }


def aligned_step(poses: Poses) -> Tensor:
    """Distance (n,) in mm of the samples of aligned cubes."""
    return poses.size.amax(-1) * MARGIN / SIDE


def _anywhere(source: Levels, count: int) -> Tensor:
    """Draw places (count, 3) in the field of view, mm."""
    inside = (source.volumes[-1][-1] > 0.5).nonzero()
    if not len(inside):
        return source.middle.repeat(count, 1)
    drawn = inside[torch.randint(len(inside), (count,))].float() * 4 + 1.5 + torch.randn(count, 3)
    affine = torch.from_numpy(source.grid.affine).float()
    return drawn @ affine[:3, :3].T + affine[:3, 3]


def _away(source: Levels, truth: Poses, count: int) -> Tensor:
    """Draw places (count, 3) in the field of view, of several the farthest from the valve."""
    drawn = _anywhere(source, 4 * count).reshape(4, count, 3)
    best = (drawn - truth.centre).norm(dim=-1).argmax(0)
    return drawn[best, torch.arange(count)]


def loss(network: nn.Module, batch: Batch, *, settings: Settings) -> Tensor:
    """Return the sum of the losses of all networks that learn on one batch."""
    assert isinstance(network, MarginalSpace)
    parts = losses(network, batch, settings=settings)
    return torch.stack(list(parts.values())).sum()


def losses(network: MarginalSpace, batch: Batch, *, settings: Settings) -> dict[str, Tensor]:
    """Return the losses by name."""
    known, found = batch["known"], dict[str, Tensor]()
    weight = (known * batch["there"]).clone()
    if "position" in settings.networks:
        heat = network.position(_last(batch["position_volume"]))[:, 0].float()
        found["position"] = _heat_loss(heat, batch["position_heat"], known)
    if "orientation" in settings.networks:
        near = network.orientation(_last(batch["near_patch"].flatten(0, 1))).float()
        found["orientation"] = _turn_loss(near, batch)
        found["near"] = _score_loss(near, batch, "near", known)
    if "pose" in settings.networks:
        boxes = network.pose(_last(batch["box_patch"].flatten(0, 1))).float()
        found["pose"] = _box_loss(boxes, batch)
        found["score"] = _score_loss(boxes, batch, "box", known)
    if "aligned" in settings.networks:
        logits, points = network.aligned(_last(batch["aligned_cube"]))
        found["labels"] = _share_loss(logits.float(), batch["aligned_shares"], weight)
        found["mesh"] = _mesh_loss(points.float(), batch, weight)
    return found


def _heat_loss(logits: Tensor, heat: Tensor, known: Tensor) -> Tensor:
    """Penalty-reduced focal loss of a heat map (Zhou et al., Objects as Points, 2019, eq. 1)."""
    chance = torch.sigmoid(logits).clamp(1e-5, 1 - 1e-5)
    peak = heat > 0.85
    found = -((1 - chance) ** 2) * chance.log() * peak
    empty = -((1 - heat) ** 4) * chance**2 * (1 - chance).log() * ~peak
    each = (found + empty).sum((1, 2, 3)) / peak.sum((1, 2, 3)).clamp_min(1)
    return (each * known).sum() / known.sum().clamp_min(1)


def _turn_loss(answers: Tensor, batch: Batch) -> Tensor:
    """Mean corner distance in cm of a true-size box moved and turned as answered, plus that of its size."""
    true, weight = _flat(batch, "near"), batch["near_weight"].flatten()
    guess = Poses(answers[:, 6:9] * OFFSET_MM, rotations(answers[:, :6]), true.size)
    size = torch.tensor(TYPICAL_MM) * (GROWTH * answers[:, 9:12]).clamp(-1, 1).exp()
    apart = (corners(guess) - corners(true)).norm(dim=-1).mean(-1) / 10
    apart = apart + (size.log() - true.size.log()).abs().mean(-1)
    return (apart * weight).sum() / weight.sum().clamp_min(1)


def _box_loss(answers: Tensor, batch: Batch) -> Tensor:
    """Mean corner distance in cm of the corrected box from the true one."""
    true, weight = _flat(batch, "box"), batch["box_weight"].flatten()
    own = batch["box_own"].flatten(0, 1)
    scale = own.log().mean(-1, keepdim=True).exp()
    guess = Poses(
        answers[:, 6:9] * OFFSET_SHARE * scale,
        rotations(answers[:, :6]),
        own * (GROWTH * answers[:, 9:12]).clamp(-1, 1).exp(),
    )
    apart = (corners(guess) - corners(true)).norm(dim=-1).mean(-1) / 10
    return 2 * (apart * weight).sum() / weight.sum().clamp_min(1)


def _flat(batch: Batch, name: str) -> Poses:
    return Poses(*(batch[f"{name}_{key}"].flatten(0, 1) for key in ("move", "turn", "size")))


def _score_loss(answers: Tensor, batch: Batch, name: str, known: Tensor) -> Tensor:
    quality_of = batch[f"{name}_quality"]
    weight = known[:, None].expand_as(quality_of).flatten()
    each = F.binary_cross_entropy_with_logits(answers[:, 12], quality_of.flatten(), reduction="none")
    return (each * weight).sum() / weight.sum().clamp_min(1)


def _share_loss(logits: Tensor, shares: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy and soft Dice (Milletari et al., 3DV 2016) of two masks with soft edges."""
    entropy = F.binary_cross_entropy_with_logits(logits, shares, reduction="none").mean((2, 3, 4))
    chance, axes = torch.sigmoid(logits), (2, 3, 4)
    overlap = (2 * (chance * shares).sum(axes) + 1) / (
        chance.square().sum(axes) + shares.square().sum(axes) + 1
    )
    each = (3 * entropy + 1 - overlap).mean(1)
    return (each * weight).sum() / weight.sum().clamp_min(1)


def _mesh_loss(points: Tensor, batch: Batch, weight: Tensor) -> Tensor:
    """Mean distance of corresponding points in units of 5 mm."""
    apart = (points - batch["aligned_points"]).square().sum(-1).add(1e-6).sqrt().mean(1)
    return (apart * batch["aligned_half_mm"] / 5 * weight).sum() / weight.sum().clamp_min(1)


def _last(volumes: Tensor) -> Tensor:
    return volumes.contiguous(memory_format=torch.channels_last_3d)


def new_network(settings: Settings) -> MarginalSpace:
    """Return the untrained networks."""
    network = MarginalSpace(
        CHANNELS,
        CLASSES,
        points=N_VERTICES,
        sides=(NEAR_SIDE, PATCH, SIDE),
        width=settings.width,
        sparsity=settings.sparsity,
    )
    # Nearly every sample of a heat map is 0: start there.
    assert network.position.head.bias is not None
    nn.init.constant_(network.position.head.bias, -4.0)
    return network


@torch.no_grad()
def describe(
    network: nn.Module, seen: Sequence[Sample], *, held: Sequence[Sample], settings: Settings
) -> dict[str, Tensor]:
    """Return the shape model of the meshes seen, and the gate: features seen, its limit set on ``held``."""
    meshes = [torch.tensor(s["vertices_mm"]) for s in seen if s.get("vertices_mm")]
    if len(meshes) < 3:
        return {}
    model = shape.fit(torch.stack(meshes), modes=min(settings.modes, len(meshes) - 1))
    found = dict(shape.tensors(model))
    few = seen[:: max(1, len(seen) // 150)]
    groups = [[_features(network, s) for s in shown(group, "looking at features")] for group in (few, held)]
    if min(len(group) for group in groups) >= 2:
        found |= quality.to_tensors(quality.fit(*(torch.stack(group) for group in groups)))
    return found


def _features(network: nn.Module, sample: Sample) -> Tensor:
    assert isinstance(network, MarginalSpace)
    source = source_of(sample)
    return features(network, whole_view(source))


def whole_view(source: Levels) -> Tensor:
    """Return what the position network sees of a volume: ``1 channel 64 64 64``, in world directions."""
    pose = Poses(source.middle[None], torch.eye(3)[None], torch.ones(1, 3))
    return look(source, pose, step_mm=torch.tensor([coarse_step(source.grid)]), count=COARSE)


def features(network: MarginalSpace, view: Tensor) -> Tensor:
    """Return the mean of the position network's lowest maps: what the volume looks like."""
    return network.position.all_scales(view)[3].float().mean((0, 2, 3, 4))


TRAINING = Recipe(
    Settings=Settings,
    prepare=prepare,
    selection=SELECTION,
    examples=Volumes,
    network=new_network,
    loss=loss,
    stratum=lambda _: 0.0,
    row=row,
    metrics=score,
    datasets=("pairs",),
    phantom="aortic_root",
    phantom_settings={"absent": 0.15, "quick": True},
    prepare_labelled=prepare_labelled,
    describe=describe,
    phantoms_suffice=True,
)
