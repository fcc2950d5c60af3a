"""What both echocardiography recipes read: clips in a square of 112 pixels, their times, their outlines.

Training and task prepare a cine with the same ``framed``, so that they see the same picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from usvol import quality
from usvol.canonical import on_screen
from usvol.resampling import resize, sample_on
from usvol.result import Labels
from usvol.scan import Scan, Selection
from usvol.supervision import shown
from usvol.training.augmentation import blank_patch, vary_gain
from usvol.training.cases import Case
from usvol.training.recipe import Sample
from video.data import camus, echonet_dynamic, echonet_pediatric

SIDE = 112
SELECTION = Selection(max_side_px=320)
VENTRICLE = 1

_LABELLED = {
    "camus": camus.read_labels,
    "echonet_dynamic": echonet_dynamic.read_labels,
    "echonet_pediatric": echonet_pediatric.read_labels,
}
_OUTLINED = ("echonet_dynamic", "echonet_pediatric")
_GATE_FRAMES, _GATE_CASES = 48, 200  # looked at for the out-of-distribution gate, at most


def framed(scan: Scan) -> Scan:
    """Scale a canonical cine so that its longer side fills 112 pixels, and pad it to a square.

    Pixels become square in world units; an uncalibrated scan's are taken as square already.
    """
    _, height, width = (n * s for n, s in zip(scan.grid.shape, scan.grid.step, strict=True))
    longer = max(height, width)
    rows, columns = (max(1, round(SIDE * side / longer)) for side in (height, width))
    small = resize(on_screen(scan), (1, rows, columns))
    top, left = (SIDE - rows) // 2, (SIDE - columns) // 2
    data = F.pad(small.data, (left, SIDE - columns - left, top, SIDE - rows - top))
    grid = small.grid.crop((0, -top, -left), (1, SIDE, SIDE))
    # The sector belongs to the grid before the padding; nothing after this asks for it.
    bare = Scan(small.data, small.grid, scan.times_s, scan.source, small.history)
    return bare.with_data(data, grid=grid, step=f"square of {SIDE} pixels")


def prepare(scan: Scan) -> dict[str, Tensor]:
    """Keep a canonical cine: ``frames t y x`` (uint8), ``times_s t`` (NaN if unknown), and no masks."""
    square = framed(scan)
    times = [math.nan] * len(square.data) if scan.times_s is None else list(scan.times_s)
    return {
        "frames": square.data[:, 0, 0].round().to(torch.uint8).contiguous(),
        "times_s": torch.tensor(times, dtype=torch.float32),
        "masks": torch.zeros(0, SIDE, SIDE, dtype=torch.bool),
        "mask_frames": torch.zeros(0, dtype=torch.long),
    }


def prepare_labelled(scan: Scan, labels: Labels) -> dict[str, Tensor]:
    """Keep a canonical cine as ``prepare`` does, and the ventricle's ``masks k y x`` of ``mask_frames k``."""
    square = framed(scan)
    on_grid = sample_on(labels.data[:, None], labels.grid, target=square.grid, mode="nearest")[:, 0, 0]
    frames = labels.frame_indices if labels.frame_indices is not None else range(len(on_grid))
    decoded = scan.source.frame_indices or tuple(range(len(scan.data)))
    kept = [(k, decoded.index(frame)) for k, frame in enumerate(frames) if frame in decoded]
    return {
        **prepare(scan),
        "masks": on_grid[[k for k, _ in kept]] == VENTRICLE,
        "mask_frames": torch.tensor([at for _, at in kept], dtype=torch.long),
    }


def read_labels(case: Case) -> Labels | None:
    """Return the outlines of a case, or None where nobody drew any."""
    if case.dataset not in _LABELLED or (case.dataset in _OUTLINED and not case.reference["outlines"]):
        return None
    return _LABELLED[case.dataset](case)


def steps_s(times_s: Tensor) -> Tensor:
    """Return the time to the frame before, (…, t), the first like the second; 0 where it is unknown."""
    if times_s.shape[-1] < 2:
        return torch.zeros_like(times_s)
    steps = times_s.diff(dim=-1)
    return torch.nan_to_num(torch.cat([steps[..., :1], steps], -1), nan=0.0)


def drawn_window(sample: Sample, *, length: int, around_s: tuple[float, float] | None = None) -> Tensor:
    """Draw ``length`` frame indices, evenly spaced by 1 to 3 frames; short clips repeat their last frame.

    ``around_s`` (first and last moment that must be inside) keeps a beat whole.
    """
    frames, times = len(sample["frames"]), sample["times_s"]
    if around_s is None or not bool(times.isfinite().all()):
        widest = max(1, min(3, (frames - 1) // max(length - 1, 1)))
        step = int(torch.randint(1, widest + 1, ()))
        first = int(torch.randint(max(1, frames - (length - 1) * step), ()))
        return (first + step * torch.arange(length)).clamp(max=frames - 1)
    low, high = (int((times - t).abs().argmin()) for t in around_s)
    margin = max(1, (high - low) // 3)
    first = max(0, low - int(torch.randint(0, margin + 1, ())))
    last = min(frames - 1, high + int(torch.randint(0, margin + 1, ())))
    return torch.linspace(first, last, length).round().long()


def varied(clips: Tensor, masks: Tensor | None, *, strength: float) -> tuple[Tensor, Tensor | None]:
    """Vary pose, gain and grey map of clips ``b t y x`` (0-255), alike in all frames; masks go with them.

    Turned up to 15°, scaled by 0.8-1.2, shifted by up to 8 %, mirrored in a tenth (some laboratories do).
    """
    count = len(clips)
    angle = math.radians(15) * strength * (2 * torch.rand(count) - 1)
    scale = torch.exp(math.log(1.2) * strength * (2 * torch.rand(count) - 1))
    mirror = torch.where(torch.rand(count) < 0.1, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = scale * angle.cos() * mirror, -scale * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = scale * angle.sin() * mirror, scale * angle.cos()
    theta[:, :, 2] = 0.16 * strength * (2 * torch.rand(count, 2) - 1)
    place = F.affine_grid(theta, [count, 1, *clips.shape[-2:]], align_corners=False)
    clips = F.grid_sample(clips, place, align_corners=False)
    if masks is not None:
        masks = F.grid_sample(masks, place, align_corners=False)
    if strength > 0:
        clips = vary_gain(clips) + torch.randn_like(clips) * (5 * torch.rand(count, 1, 1, 1))
        clips = blank_patch(clips.clamp(0, 255), chance=0.15)
    return clips, masks


def event_times(sample: Mapping[str, Any], event: str) -> list[float]:
    """Return the times (s) of ED or ES of a sample: exact where they are simulated, else of their frames.

    Counted in frames where the cine has no times.
    """
    exact = sample.get(f"{event}_times_s")
    if exact is not None:
        return [float(t) for t in exact]
    times = sample["times_s"]
    known = bool(times.isfinite().all())
    return [float(times[n]) if known else float(n) for n in sample[f"{event}_frames"] if n < len(times)]


def clock(sample: Mapping[str, Any]) -> Tensor:
    """Return the time of every frame (s), or its number where times are unknown."""
    times: Tensor = sample["times_s"]
    return times if bool(times.isfinite().all()) else torch.arange(len(times), dtype=torch.float32)


def gate_tensors(
    features_of: Callable[[Tensor], Tensor], seen: Sequence[Sample], *, held: Sequence[Sample]
) -> dict[str, Tensor]:
    """Return what clips seen in training look like to a network, for the out-of-distribution gate.

    ``features_of`` maps a clip ``1 t 1 y x`` to the features ``t f`` of its frames. The limit is set on
    ``held``, which the network was not trained on; without such cases there is no gate.
    """
    if len(seen) < 2 or not held:
        return {}
    rows = [
        torch.stack([gate_features(features_of(_gate_clip(s))) for s in shown(group, "looking at features")])
        for group in (seen[:: max(1, len(seen) // _GATE_CASES)], held)
    ]
    return quality.to_tensors(quality.fit(rows[0], rows[1]))


def gate_features(features: Tensor) -> Tensor:
    """Return what the gate judges of a clip: mean and deviation over time of its frames' features ``t f``."""
    chosen = features.float()[gate_frames(len(features))]
    return torch.cat([chosen.mean(0), chosen.std(0, correction=0)])


def gate_frames(count: int) -> Tensor:
    """Return the frames of a clip that the gate looks at, spread evenly."""
    return torch.linspace(0, count - 1, min(count, _GATE_FRAMES)).round().long()


def _gate_clip(sample: Sample) -> Tensor:
    frames = sample["frames"]
    return frames[gate_frames(len(frames))].float()[None, :, None]
