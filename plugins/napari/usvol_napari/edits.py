"""From layers that the user has edited back to findings: what is on the screen, in the order of the file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from usvol.result import Labels, Line
from usvol.scan import Vec3
from usvol_napari.layers import Key
from usvol_napari.placement import Placement, to_file, to_world

if TYPE_CHECKING:
    from napari.layers import Labels as LabelsLayer
    from napari.layers import Points


def labels_of(layer: LabelsLayer) -> Labels:
    """Return the label map that a layer of ``finding_layers`` shows now, as ``labels_shown``."""
    return labels_shown(np.asarray(layer.data), layer.metadata)


def labels_shown(data: np.ndarray, metadata: Mapping[str, Any]) -> Labels:
    """Return the label map that the samples of a layer show, on the grid of the finding in its metadata.

    Frames that the task did not label come with those on which something was painted, if the task saw them.
    Painted values without a name are named by their number. Ranges of size no longer hold and are dropped.
    """
    finding: Labels = metadata[Key.FINDING]
    painted = data.astype(np.uint8)
    shown = (1, *painted.shape[-2:]) if finding.grid.is_planar else tuple(painted.shape[-3:])
    frames = painted.reshape(-1, *shown)
    positions, seen = finding.frame_indices, _frames_seen(metadata)
    if metadata[Key.PLACEMENT].has_time:
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
    return line_shown(np.asarray(ends.data), ends.metadata)


def line_shown(points: np.ndarray, metadata: Mapping[str, Any]) -> Line:
    """Return the line between two points (entry, tip) of a layer of role ``ends``.

    Raises:
        ValueError: there are not two points.
    """
    if len(points) != 2:
        raise ValueError(f"a line has two ends, this layer has {len(points)} points")
    finding: Line = metadata[Key.FINDING]
    placement: Placement = metadata[Key.PLACEMENT]
    entry, tip = (_triple(point) for point in to_world(points, placement))
    return dataclasses.replace(finding, entry=entry, tip=tip, confidence=None)


def _frames_seen(metadata: Mapping[str, Any]) -> list[int]:
    """Return the frames shown that the task saw, by their position in its scan."""
    result, placement = metadata.get(Key.RESULT), metadata[Key.PLACEMENT]
    seen = result.source.frame_indices if result is not None else None
    return list(range(placement.frames)) if seen is None else list(seen)


def _labelled(frames: np.ndarray, positions: tuple[int, ...]) -> list[int]:
    painted = np.flatnonzero(frames.reshape(len(frames), -1).any(1)).tolist()
    return sorted({*positions, *painted})


def _triple(point: np.ndarray) -> Vec3:
    z, y, x = (float(v) for v in point)
    return (z, y, x)
