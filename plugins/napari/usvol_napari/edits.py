"""From layers that the user has edited back to findings: what is on the screen, in the order of the file."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from usvol.result import Labels, Line
from usvol.scan import Vec3
from usvol_napari.layers import Key
from usvol_napari.placement import Placement, to_file, to_world

if TYPE_CHECKING:
    from napari.layers import Labels as LabelsLayer
    from napari.layers import Points


def labels_of(layer: LabelsLayer) -> Labels:
    """Return the label map that a layer of ``finding_layers`` shows now, on the grid of its finding.

    Frames that the task did not label come with those on which something was painted, if the task saw them.
    Painted values without a name are named by their number. Ranges of size no longer hold and are dropped.
    """
    finding: Labels = layer.metadata[Key.FINDING]
    painted = np.asarray(layer.data).astype(np.uint8)
    planar = finding.grid.is_planar
    shown = (1, *painted.shape[-2:]) if planar else tuple(painted.shape[-3:])
    frames = painted.reshape(-1, *shown)
    positions, seen = finding.frame_indices, _frames_seen(layer)
    if layer.metadata[Key.PLACEMENT].has_time:
        places = range(len(seen)) if positions is None else _labelled(frames[seen], positions)
        frames = frames[[seen[place] for place in places]]
        positions = None if positions is None else tuple(places)
    new = sorted(set(np.unique(frames).tolist()) - {0, *finding.names})
    return dataclasses.replace(
        finding,
        data=to_file(frames, finding.grid),
        names={**finding.names, **{value: f"label {value}" for value in new}},
        frame_indices=positions,
        size_range=None,
    )


def line_of(ends: Points) -> Line:
    """Return the line whose entry and tip are the first two points of a layer of role ``ends``.

    Raises:
        ValueError: the layer does not hold two points.
    """
    if len(ends.data) != 2:
        raise ValueError(f"a line has two ends, this layer has {len(ends.data)} points")
    finding: Line = ends.metadata[Key.FINDING]
    placement: Placement = ends.metadata[Key.PLACEMENT]
    entry, tip = (_triple(point) for point in to_world(ends.data, placement))
    return dataclasses.replace(finding, entry=entry, tip=tip, confidence=None)


def _frames_seen(layer: LabelsLayer) -> list[int]:
    """Return the frames shown that the task saw, by their position in its scan."""
    result, placement = layer.metadata.get(Key.RESULT), layer.metadata[Key.PLACEMENT]
    seen = result.source.frame_indices if result is not None else None
    return list(range(placement.frames)) if seen is None else list(seen)


def _labelled(frames: np.ndarray, positions: tuple[int, ...]) -> list[int]:
    painted = np.flatnonzero(frames.reshape(len(frames), -1).any(1)).tolist()
    return sorted({*positions, *painted})


def _triple(point: np.ndarray) -> Vec3:
    z, y, x = (float(v) for v in point)
    return (z, y, x)
