"""Labels that were painted on a layer of napari's own: a label map that lies where the layer does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from napari.utils.transforms import Affine

from usvol.encoding import slug
from usvol.errors import ConfigError
from usvol.result import Labels
from usvol.scan import Grid, vec3
from usvol_napari.placement import Placement, to_world

_MM = {"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "centimeter": 10.0, "um": 1e-3, "micrometer": 1e-3}
_SECONDS = {"s": 1.0, "second": 1.0, "ms": 1e-3, "millisecond": 1e-3}
_MOST = 255


def painted_labels(
    data: np.ndarray, options: Mapping[str, Any], *, over: Placement | None = None
) -> tuple[Labels, list[float] | None]:
    """Return the label map of a layer, and the times (s) of its frames where they are known.

    They lie in the world of the scan that they are painted ``over``. The first axis counts frames where its
    unit is a time, its name ``t``, or it is the fourth. Without a unit of length the labels have no scale.

    Raises:
        ConfigError: the layer is sheared, or holds values that a label map does not.
    """
    name, count = str(options.get("name", "labels")), data.ndim
    units = [str(unit) for unit in options.get("units") or ("pixel",) * count]
    axes = [str(axis) for axis in options.get("axis_labels") or ("",) * count]
    timed = count > 3 or (count == 3 and (units[0] in _SECONDS or axes[0] == "t"))
    space = min(count - timed, 3)
    values = np.unique(data)
    if values[0] < 0 or values[-1] > _MOST:
        wrong = values[0] if values[0] < 0 else values[-1]
        raise ConfigError(f"Layer {name!r} holds the label {wrong}: only 1 to {_MOST} can be saved.")
    linear, offset = _lies(options, count, space, name)
    shape = (*(1,) * (3 - space), *data.shape[-space:])
    grid = _grid((shape[0], shape[1], shape[2]), linear, offset, units[-space:])
    grid = grid if over is None else _in_world(grid, over)
    samples = torch.from_numpy(np.ascontiguousarray(data.reshape(-1, *shape).astype(np.uint8)))
    names = {value: f"label {value}" for value in values.tolist() if value}
    step_s = abs(float(options.get("scale", (1.0,))[0])) * _SECONDS.get(units[0], 0.0) if timed else 0.0
    times_s = [frame * step_s for frame in range(len(samples))] if step_s else None
    return Labels(slug(name), samples, grid, names), times_s


def _lies(options: Mapping[str, Any], count: int, space: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrix and the offset that bring the samples of a layer to the viewer, along its last axes.

    Raises:
        ConfigError: its axes are no right angles to each other.
    """
    own = Affine(
        scale=options.get("scale", (1.0,) * count),
        translate=options.get("translate", (0.0,) * count),
        rotate=options.get("rotate"),
        shear=options.get("shear"),
        ndim=count,
    ).affine_matrix
    matrix = np.asarray(options.get("affine", np.eye(count + 1)), float) @ own
    linear = matrix[:-1, :-1]
    lengths = np.linalg.norm(linear, axis=0)
    turned = linear / lengths
    mixed = np.abs(turned[:-space, -space:]).max(initial=0.0)  # of frames and space
    if mixed > 1e-4 or np.abs(turned.T @ turned - np.eye(count)).max() > 1e-4:
        raise ConfigError(
            f"Layer {name!r} is sheared, and files hold right angles only. Reset its transform first."
        )
    return linear[-space:, -space:], matrix[-space - 1 : -1, -1]


def _grid(shape: tuple[int, int, int], linear: np.ndarray, offset: np.ndarray, units: list[str]) -> Grid:
    space = len(offset)
    lengths = np.linalg.norm(linear, axis=0)
    direction = np.eye(3)
    direction[3 - space :, 3 - space :] = linear / lengths
    rows = [(float(a), float(b), float(c)) for a, b, c in direction]
    turned = (rows[0], rows[1], rows[2])
    if len(set(units)) > 1 or units[0] not in _MM:
        return Grid(shape, direction=turned)
    unit_mm = _MM[units[0]]
    z, y, x = (unit_mm * float(step) for step in (lengths[0], *lengths)[-3:])
    away = (unit_mm * float(place) for place in (0.0, *offset)[-3:])
    origin = (next(away), next(away), next(away))
    return Grid(shape, (z, y, x), origin, turned)


def _in_world(grid: Grid, over: Placement) -> Grid:
    """Return a grid in the viewer's coordinates as one in the world of a scan, which the viewer turns."""
    turned = [vec3(row) for row in over.tilt @ np.asarray(grid.direction)]
    direction = (turned[0], turned[1], turned[2])
    if not grid.is_calibrated:
        return dataclasses.replace(grid, direction=direction, frame=over.grid.frame)
    count = len(over.space_axes)
    origin = vec3(to_world(np.asarray(grid.origin)[None, -count:], over)[0])
    return dataclasses.replace(grid, direction=direction, origin_mm=origin, frame=over.grid.frame)
