"""Find a needle in a 3D volume or 3D+t clip: entry, tip, axis, shaft, and how fast it moves.

A light 3D network looks over the view, lines are drawn through what it marks, and a second one looks along
each of them at full resolution: which is a needle, and where it ends. A third reads from means along the
needle where exactly its axis runs, and how thick it is. Trained on simulated volumes only
(``models3d/phantoms/needle.py``). Not a medical device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models3d.nets.needle_fcn import SLICE_ANSWERS, TUBE_ANSWERS
from models3d.nets.section_reader import SIZE_ANSWERS
from models3d.recipes.needle import SELECTION, TRAINING
from models3d.recipes.needle_lines import proposed_lines
from models3d.recipes.needle_path import (
    COARSE,
    TUBE,
    WIDE,
    Path,
    fit_path,
    levelled,
    sampled,
    tube_frame,
    tube_lengths,
    tube_points,
    unit_of,
)
from models3d.recipes.needle_sections import FACTS, OUTER_MM, SECTIONS, facts, fitted, moved, sections
from models3d.recipes.needle_tubes import LEAST_POINTS
from models3d.recipes.working_volume import in_picture
from models3d.tasks._needle_motion import smoothed_tips
from models3d.tasks._needle_tracing import (
    Reading,
    Trace,
    refined,
    trace,
    tube_mask,
)
from usvol import measurement
from usvol.result import Finding, Flag, Labels, Line, Measurement, Plane, Severity
from usvol.runtime import Network, Precision, compile_network
from usvol.scan import Frame, Kind, Scan, Selection, vec3
from usvol.training.members import Member, WeightsName, restore

__all__ = ["TRAINING", "Config", "build"]

Seen = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""What the looks make of frames: see ``Needle.infer``."""

_LINES = 4  # that the second look judges, at most
_AT_ONCE = 2
_ENOUGH = 3.0  # log odds of a needle with which no further line is judged
_READINGS = 3  # of the axis, each about where the one before has it
_HARDLY = 0.05  # chance of a shaft under which a slice is not read again
_LEAST_RADIUS = 0.75  # of the mask, in voxels: a thinner one has holes


class Config(BaseModel):
    """Settings of a run."""

    model_config = ConfigDict(extra="forbid")

    weights: WeightsName = "needle"
    member: Member = None
    threshold: float = Field(
        0.5, ge=0, le=1, description="confidence under which nothing is reported; set on simulated volumes"
    )
    gauge: Literal[17, 22] | None = Field(
        None, description="of the needle, which sets the mask's thickness; unset: the likelier of the two"
    )
    smooth: bool = Field(True, description="smooth the tip over the frames of a clip (Kalman)")
    precision: Precision = "f32"


def build(config: Config, device: str) -> Needle:
    """Load the networks and make them ready on ``device``.

    Raises:
        WeightsError: no such weights, or a wrong checksum. ConfigError: no such member.
    """
    restored = restore(TRAINING, "models3d", name=config.weights, member=config.member or 0)
    network = restored.network
    compiled = [
        compile_network(part, example, device=device, precision=config.precision, dynamic_dims=dynamic)
        for part, example, dynamic in (
            (network.coarse, torch.rand(1, 2, COARSE, COARSE, COARSE), ()),
            (network.fine, torch.rand(1, 2, TUBE, WIDE, WIDE), (0,)),
            (network.sections, (torch.rand(1, 2, SECTIONS, WIDE, WIDE), torch.rand(1, FACTS)), ()),
        )
    ]
    return Needle(
        *compiled,
        config=config,
        members=restored.members,
        train_patients=restored.train_patients,
        provenance={
            **restored.provenance,
            "architecture": restored.settings.architecture,
            "engine": compiled[0].engine,
        },
    )


@dataclass(slots=True, eq=False)
class Needle:
    """The task: see the module's first lines. ``train_patients`` are hashed, for ``usvol evaluate``."""

    coarse: Network
    fine: Network
    sections: Network
    config: Config
    members: int = 1
    train_patients: frozenset[str] = frozenset()
    provenance: dict[str, Any] = field(default_factory=dict)
    accepts: frozenset[Kind] = frozenset({Kind.VOLUME, Kind.VOLUME_SEQUENCE})
    selection: Selection = SELECTION

    def preprocess(self, scan: Scan) -> Scan:
        """Leave the volume as it is: the looks sample it themselves."""
        return scan

    def infer(self, scan: Scan) -> Seen:
        """Look over every frame, then along the best lines in it, then at means along the surest.

        Returns:
            ``frame 11``: middle, direction, bend, start and end of the surest line in fine coordinates, NaN
            where there is none; ``frame SLICE_ANSWERS s`` and ``frame TUBE_ANSWERS``: what is read in the
            tube around it; ``frame 11`` and ``frame SIZE_ANSWERS``: the needle's axis, and how thick it is.
        """
        seen = [self._seen(scan, number) for number in range(scan.data.shape[0])]
        paths, slices, whole, axes, sizes = (torch.stack(part) for part in zip(*seen, strict=True))
        return paths, slices, whole, axes, sizes

    def postprocess(self, raw: Seen, scan: Scan) -> tuple[Finding, ...]:
        """Return the shaft's voxels and, where there is a needle, its line per frame and its plane."""
        traces = self._traces(raw, scan)
        masks = [
            torch.zeros(scan.grid.shape, dtype=torch.uint8) if t is None else self._mask(t, scan, number)
            for number, t in enumerate(traces)
        ]
        found: list[Finding] = [Labels("needle", torch.stack(masks), scan.grid, {1: "needle"})]
        lines = _lines(traces, scan)
        if len(lines) > 1 and self.config.smooth and scan.times_s is not None:
            lines = _smoothed(lines, scan.times_s)
        found += lines
        if lines:
            found.append(_needle_plane(lines[-1]))
        return tuple(found)

    def follow(self, findings: tuple[Finding, ...], changed: Collection[int]) -> tuple[Finding, ...]:
        """Move the plane to a corrected line, and the voxels of its frame, as thick as they were."""
        lines = [f for i, f in enumerate(findings) if isinstance(f, Line) and i in changed]
        made: list[Finding] = list(findings)
        for place, finding in enumerate(findings) if lines else ():
            if place not in changed and isinstance(finding, Plane):
                made[place] = _needle_plane([f for f in findings if isinstance(f, Line)][-1])
            if place not in changed and isinstance(finding, Labels):
                made[place] = _drawn_along(lines, finding)
        return tuple(made)

    def measure(self, findings: tuple[Finding, ...], scan: Scan) -> tuple[Measurement, ...]:
        """Return tip (mm), insertion depth (mm), angle to the face (degrees), and the tip's speed (mm/s).

        Of a clip: those of the last frame that shows a needle, and the mean speed while it is seen.
        """
        lines = [f for f in findings if isinstance(f, Line)]
        scan.grid.require_spacing_mm("a needle's tip", scan.calibration.reason)
        if not lines:
            names = (*(f"tip_{axis}" for axis in "zyx"), "insertion_depth")
            return (
                *(Measurement(name, None, "mm", note="not detected") for name in names),
                Measurement("angle_to_face", None, "°", note="not detected"),
                Measurement("confidence", None, "1", note="not detected"),
            )
        last, reason = lines[-1], scan.calibration.reason
        depth = measurement.length_mm([last.entry, last.tip], scan.grid, reason=reason)
        numbers = [
            Measurement(f"tip_{axis}", value, "mm") for axis, value in zip("zyx", last.tip, strict=True)
        ]
        numbers += [Measurement("insertion_depth", depth, "mm", note="from the edge of the view to the tip")]
        numbers += [_angle(last, scan), Measurement("confidence", last.confidence, "1")]
        if scan.data.shape[0] > 1:
            numbers.append(_speed(lines, scan))
        return tuple(numbers)

    def flags(self, raw: Seen, scan: Scan) -> tuple[Flag, ...]:
        """Report a needle that leaves the view, so that its tip is not in it."""
        traces = [t for t in self._traces(raw, scan) if t is not None]
        if not traces:
            return (Flag("not_detected", "No needle was found.", Severity.INFO),)
        if not traces[-1].tip_seen:
            message = (
                "The needle runs out of the field of view at both ends: its tip need not be the end shown."
            )
            return (Flag("tip_outside_view", message, Severity.WARNING),)
        return ()

    def _seen(self, scan: Scan, number: int) -> Seen:
        """Return what ``infer`` returns, of one frame."""
        assert scan.sector is not None
        mask = scan.sector.mask.reshape(scan.grid.shape)
        level = levelled(scan.data[number, 0], mask)
        scale = _scale(scan)
        paths = proposed_lines(self.coarse, level, step=np.asarray(scan.grid.step), scale=scale, count=_LINES)
        if not paths:
            return _nothing()
        both = torch.stack([level, mask.float()])
        path = self._surest(both, paths, scale, held=lambda p: _held(p, scan, number)).downward()
        tube = _tubes(both, [path], scale)
        slices, whole = (answer.cpu().float() for answer in self.fine(tube))
        axis, sizes = self._axis(both, path, tube=tube, shaft=slices[0, 0].sigmoid().numpy(), scan=scan)
        return _packed(path), slices[0], whole[0], _packed(axis), sizes

    def _axis(
        self, both: Tensor, path: Path, *, tube: Tensor, shaft: np.ndarray, scan: Scan
    ) -> tuple[Path, Tensor]:
        """Return the axis that the third look reads along a path, from its tube, and the size of it.

        It places the axis too near to the middle of the tube, so it reads again about where it has placed it.
        """
        scale, lengths = _scale(scan), tube_lengths(path)
        sample_mm = unit_of(scan.grid) if scan.grid.is_calibrated else None
        axis, sizes = path, torch.zeros(1, SIZE_ANSWERS)
        for number in range(_READINGS):
            at = tube_lengths(axis)
            # The second look knows which slices show a shaft; every other of those is enough to read again.
            chance = np.interp(path.locate(axis.points(at))[0], lengths, shaft)
            if number:
                chance = np.where((chance > _HARDLY) & (np.arange(TUBE) % 2 == 1), 2 * chance, 0)
                tube = _tube_where(both, axis, scale=scale, taken=chance > 0)
            step = float(at[1] - at[0])
            known = facts(axis, step=step, largest=float(scale.max()), sample_mm=sample_mm)
            weighted = sections(tube, torch.from_numpy(chance).float()[None])
            answers, sizes = self.sections(weighted, known[None])
            curve = fitted(answers.cpu(), torch.tensor([step]))[0].double().numpy()
            axis = moved(axis, curve, lengths=at, frame=tube_frame(axis))
        return axis, sizes[0].cpu().float()

    def _surest(
        self, both: Tensor, paths: list[Path], scale: np.ndarray, *, held: Callable[[Path], np.ndarray]
    ) -> Path:
        """Return the axis that is read in the tube around the surest line, of as many as it takes."""
        best: tuple[float, Path, Tensor, Tensor] | None = None
        for first in range(0, len(paths), _AT_ONCE):
            some = paths[first : first + _AT_ONCE]
            for path, slices, whole in zip(some, *self.fine(_tubes(both, some, scale)), strict=True):
                if best is None or float(whole[0]) > best[0]:
                    best = float(whole[0]), path, slices.cpu().float(), whole.cpu().float()
            if best is not None and best[0] > _ENOUGH:
                break
        assert best is not None
        _, path, slices, whole = best
        return refined(_reading(path, slices, whole, inside=held(path)), path)

    def _traces(self, raw: Seen, scan: Scan) -> list[Trace | None]:
        traces: list[Trace | None] = []
        for number, (packed, slices, whole, axis, sizes) in enumerate(
            zip(raw[0].numpy(), *raw[1:], strict=True)
        ):
            traces.append(None)
            if np.isnan(packed[0]):
                continue
            path = _unpacked(packed)
            reading = _reading(path, slices, whole, inside=_held(path, scan, number))
            found = trace(reading, path, axis=_unpacked(axis.numpy()), radius=self._radius(sizes, scan))
            if found is not None and found.confidence >= self.config.threshold:
                traces[-1] = found
        return traces

    def _radius(self, sizes: Tensor, scan: Scan) -> float:
        """Return the radius in fine samples: of the gauge where the scan has millimetres, else as seen."""
        if not scan.grid.is_calibrated:
            return float(sizes[0].exp())
        gauge = self.config.gauge or (17 if float(sizes[1]) > 0 else 22)
        return OUTER_MM[gauge] / 2 / unit_of(scan.grid)

    def _mask(self, found: Trace, scan: Scan, number: int) -> Tensor:
        scale = _scale(scan)
        radius = max(found.radius, _LEAST_RADIUS * float(scale.max()))
        mask = tube_mask(found.path, radius=radius, shape=scan.grid.shape, scale=scale)
        voxels = mask.nonzero().numpy()
        outside = voxels[~_seen_at(voxels, scan, number)]
        mask[tuple(torch.from_numpy(outside).T)] = 0
        return mask


def _tubes(both: Tensor, paths: list[Path], scale: np.ndarray) -> Tensor:
    """Sample level and mask (``2 z y x``) in the tubes around paths: ``b 2 s v u``."""
    points = np.stack([tube_points(path, tube_lengths(path), frame=tube_frame(path)) for path in paths])
    tubes = sampled(both, points.reshape(-1, *points.shape[2:]), scale=scale)
    tubes = tubes.reshape(2, *points.shape[:-1]).movedim(1, 0)
    inside = tubes[:, 1] > 0.5
    return torch.stack([tubes[:, 0] * inside, inside.float()], 1)


def _tube_where(both: Tensor, path: Path, *, scale: np.ndarray, taken: np.ndarray) -> Tensor:
    """Sample the slices ``taken`` (s,) of the tube around a path, 0 in the others: ``1 2 s v u``."""
    tube = torch.zeros(1, 2, len(taken), WIDE, WIDE)
    points = tube_points(path, tube_lengths(path)[taken], frame=tube_frame(path))
    level, inside = sampled(both, points, scale=scale)
    tube[0, 0, taken], tube[0, 1, taken] = level * (inside > 0.5), (inside > 0.5).float()
    return tube


def _held(path: Path, scan: Scan, number: int) -> np.ndarray:
    """Whether the picture of a frame holds each slice's middle along a path."""
    return _seen_at(path.points(tube_lengths(path)) / _scale(scan), scan, number)


def _seen_at(places: np.ndarray, scan: Scan, number: int) -> np.ndarray:
    """Whether a frame shows places (n, 3) of its index space: in the sector, and not in black around it."""
    assert scan.sector is not None
    return in_picture(scan.data[number, 0], scan.sector.mask.reshape(scan.grid.shape), places=places)


def _reading(path: Path, slices: Tensor, whole: Tensor, *, inside: np.ndarray) -> Reading:
    answers = slices.double().numpy(), whole.double().numpy()
    return Reading(*answers, lengths=tube_lengths(path), frame=tube_frame(path), inside=inside)


def _nothing() -> Seen:
    """What ``Needle.infer`` returns of a frame without a line."""
    path = torch.full((11,), torch.nan, dtype=torch.float64)
    read = torch.zeros(SLICE_ANSWERS, TUBE), torch.zeros(TUBE_ANSWERS)
    return path, *read, path, torch.zeros(SIZE_ANSWERS)


def _packed(path: Path) -> Tensor:
    return torch.from_numpy(np.concatenate([path.middle, path.ahead, path.bend, [path.start, path.end]]))


def _unpacked(values: np.ndarray) -> Path:
    return Path(values[:3], values[3:6], values[6:9], float(values[9]), float(values[10]))


def _scale(scan: Scan) -> np.ndarray:
    """Fine samples per index of the volume."""
    return np.asarray(scan.grid.step) / unit_of(scan.grid)


def _lines(traces: list[Trace | None], scan: Scan) -> list[Line]:
    scale, lines = _scale(scan), []
    several = len(traces) > 1
    for number, found in enumerate(traces):
        if found is None:
            continue
        entry, tip = (
            vec3(scan.grid.to_world(found.path.points(np.array([at]))[0] / scale))
            for at in (found.path.start, found.path.end)
        )
        name = f"needle_{number:03d}" if several else "needle"
        lines.append(Line(name, entry, tip, found.confidence, number if several else None))
    return lines


def _smoothed(lines: list[Line], times_s: tuple[float, ...]) -> list[Line]:
    times = np.array([times_s[line.frame_index or 0] for line in lines])
    tips, _ = smoothed_tips(np.array([line.tip for line in lines]), times)
    entries, _ = smoothed_tips(np.array([line.entry for line in lines]), times)
    return [
        Line(line.name, vec3(entry), vec3(tip), line.confidence, line.frame_index)
        for line, entry, tip in zip(lines, entries, tips, strict=True)
    ]


def _drawn_along(lines: list[Line], mask: Labels) -> Labels:
    """Return a mask whose voxels in the frames of some lines run straight along these, as thick as before."""
    grid, data = mask.grid, mask.data.clone()
    scale = np.asarray(grid.step) / unit_of(grid)
    for line in lines:
        number = line.frame_index or 0
        voxels = data[number].nonzero().numpy()
        radius = _LEAST_RADIUS * float(scale.max())
        if len(voxels) >= LEAST_POINTS:
            before = fit_path(voxels * scale)
            # A cylinder's volume tells its radius.
            area = len(voxels) * float(np.prod(scale)) / (before.end - before.start)
            radius = max(radius, float(np.sqrt(area / np.pi)))
        entry, tip = (grid.to_index(np.asarray(end)) * scale for end in (line.entry, line.tip))
        data[number] = tube_mask(Path.between(entry, tip), radius=radius, shape=grid.shape, scale=scale)
    return dataclasses.replace(mask, data=data, size_range=None)


def _needle_plane(line: Line) -> Plane:
    """The plane that holds the needle and as much of the depth axis (y) as it can."""
    ahead = np.array(line.tip) - line.entry
    ahead /= np.linalg.norm(ahead)
    hint = np.array([0.0, -1.0, 0.0]) if abs(ahead[1]) < 0.97 else np.array([-1.0, 0.0, 0.0])
    normal = np.cross(ahead, hint)
    normal /= np.linalg.norm(normal)
    up = hint - (hint @ normal) * normal
    up /= np.linalg.norm(up)
    return Plane("needle_plane", line.tip, vec3(normal), vec3(up), line.confidence)


def _angle(line: Line, scan: Scan) -> Measurement:
    """The angle between needle and probe face, positive when it points away from the probe."""
    ahead = vec3(np.array(line.tip) - line.entry)
    to_depth = measurement.angle_deg(ahead, (0.0, 1.0, 0.0), grid=scan.grid, reason=scan.calibration.reason)
    known = scan.grid.frame is Frame.PROBE
    note = None if known else "takes the world's y for the direction away from the probe"
    return Measurement("angle_to_face", 90.0 - to_depth, "°", note=note)


def _speed(lines: list[Line], scan: Scan) -> Measurement:
    if len(lines) < 2:
        return Measurement("tip_speed", None, "mm/s", note="seen in fewer than two frames")
    if scan.times_s is None:
        return Measurement("tip_speed", None, "mm/s", note="the file does not say when its frames were taken")
    first, last = lines[0], lines[-1]
    passed = scan.times_s[last.frame_index or 0] - scan.times_s[first.frame_index or 0]
    way = measurement.length_mm([line.tip for line in (first, last)], scan.grid)
    return Measurement("tip_speed", way / passed, "mm/s", note="mean, from the first to the last frame seen")
