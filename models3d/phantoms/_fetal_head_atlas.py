"""A fetal head from the label map of a brain atlas: its brain, and skull, scalp, face and neck around it.

Reads the layout of the spatio-temporal atlas of Fidon et al. (2021, CC0): one folder per age, such as
``GA25_notoperated``, with ``parcellation.nii.gz`` in RAS axes, left and right alike about the middle of x.
Labels: 1 white matter, 2 ventricles, 3 cerebellum, 4 outer CSF, 5 cortex, 6 deep grey, 7 stem, 8 callosum.
Its ventricles are those of spina bifida: wider than normal.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from models3d.phantoms._fetal_head_anatomy import (
    INDEX,
    NOTHING,
    Build,
    DrawnHead,
    begun,
    fill_outside,
    fill_skull,
    head_space,
)
from models3d.phantoms._shapes import Array, Space
from usvol.errors import DatasetError
from usvol.formats.nifti import read
from usvol.scan import Grid

_PART = {
    1: "brain",
    2: "ventricle",
    3: "cerebellum",
    4: "csf",
    5: "thalamus",
    6: "brainstem",
    7: "brainstem",
    8: "callosum",
}
_WHITE, _VENTRICLES, _CSF = 1, 2, 4


def draw_atlas_head(rng: np.random.Generator, folder: Path, *, across: int) -> tuple[Array, Space, Build]:
    """Draw a head around the brain of one age of the atlas: parts, their space, and sizes.

    Size (sd 6 %), proportions, choroid plexus, cavum, sutures, face and neck vary. ``folder`` is that of one
    age, or of several, of which one is drawn. ``across``: voxels along the skull.

    Raises:
        DatasetError: no ``parcellation.nii.gz`` there.
    """
    places = sorted(
        {p.parent for p in (*folder.glob("parcellation.nii.gz"), *folder.glob("*/parcellation.nii.gz"))}
    )
    if not places:
        raise DatasetError(f"{folder} holds no parcellation.nii.gz, neither itself nor a folder in it.")
    place = places[int(rng.integers(len(places)))]
    labels, step_mm, half_mm, middle_mm = _read(place)
    scale = rng.normal(1, 0.06) * rng.normal(1, 0.03, 3)
    gap = rng.uniform(1.03, 1.10)
    radii = half_mm * scale * gap
    found = re.search(r"GA(\d+)", place.name)
    weeks = float(found[1]) if found else 25.0
    build = Build(
        (float(radii[0]), float(radii[1]), float(radii[2])), weeks, float(rng.uniform(0.5, 1)), True
    )
    space = head_space(build, voxel_mm=2 * float(radii[0]) / across)
    head = begun(rng, build, space=space)
    fill_outside(head)
    fill_skull(head)
    brain = _sampled(labels, space, scale=scale * step_mm, middle=middle_mm / step_mm)
    inside = (head.depth_mm < 0) & np.isin(head.parts, [INDEX["csf"], INDEX["skull_base"]])
    for value, name in _PART.items():
        head.fill((brain == value) & inside, name)
    _fill_fissure(rng, head, brain)
    plexus = np.asarray(ndimage.binary_erosion(brain == _VENTRICLES, iterations=1), bool) & (
        head.unit[0] < rng.uniform(-0.15, 0.05)
    )
    head.fill(plexus & inside & (np.abs(head.unit[1]) > 0.08), "choroid_plexus")
    if rng.random() < 0.8 and weeks < 37:
        box = np.maximum(np.abs(head.unit[0] - 0.25) / 0.13, np.abs(head.unit[2] - 0.0) / 0.1)
        box = np.maximum(box, np.abs(head.unit[1]) / 0.08)
        head.fill((box < 1.35) & inside, "cavum_wall")
        head.fill((box < 1) & inside, "cavum")
    return head.parts, space, build


def _fill_fissure(rng: np.random.Generator, head: DrawnHead, brain: Array) -> None:
    """Draw the falx where the two hemispheres face each other across fluid or touch."""
    off = np.abs(head.unit[1]) * np.float32(head.build.radii_mm[1])
    outer = np.isin(brain, (_CSF, 5, 0)) & (head.depth_mm < 0) & (head.unit[2] > -0.3)
    width = max(0.9 * head.space.voxel_mm, rng.uniform(0.5, 1.0) * head.build.radii_mm[1] / 40)
    skull = np.isin(head.parts, (INDEX["skull"], INDEX["suture"], NOTHING))
    head.fill(outer & ~skull & (off < np.float32(width)), "falx")


@lru_cache(maxsize=4)
def _read(folder: Path) -> tuple[Array, np.ndarray, np.ndarray, np.ndarray]:
    """Return labels (forward, left, up), their step, half size of the brain with its CSF, its middle (mm)."""
    scan = read(folder / "parcellation.nii.gz")
    data = np.asarray(scan.data[0, 0])
    grid: Grid = scan.grid
    # World (z, y, x) is (superior, posterior, left): index axes that run along them, with their signs.
    turn = np.asarray(grid.direction).round()
    order = [int(np.abs(turn[row]).argmax()) for row in (1, 2, 0)]
    signs = [turn[1, order[0]] * -1, turn[2, order[1]], turn[0, order[2]]]
    labels = data.transpose(order)[tuple(slice(None, None, int(s)) for s in signs)]
    step = np.asarray(grid.require_spacing_mm("an atlas"))[order]
    inside = np.argwhere(labels > 0)
    low, high = inside.min(0) - 0.5, inside.max(0) + 0.5
    # The stem hangs below the skull's ellipsoid: its lowest part is left to the neck.
    low[2] = np.quantile(inside[:, 2], 0.01)
    half, middle = (high - low) / 2 * step, (high + low) / 2 * step
    middle[1] = (labels.shape[1] - 1) / 2 * step[1]
    return np.ascontiguousarray(labels), step, half, middle


def _sampled(labels: Array, space: Space, *, scale: np.ndarray, middle: np.ndarray) -> Array:
    """Return the atlas's label at every voxel of ``space``: nearest, 0 outside; ``scale`` is mm per label."""
    index = []
    inside = np.ones((), bool)
    for axis, along in enumerate(space.axes()):
        place = np.rint(along * np.float32(1 / scale[axis]) + np.float32(middle[axis])).astype(int)
        inside = inside & (place >= 0) & (place < labels.shape[axis])
        index.append(np.clip(place, 0, labels.shape[axis] - 1))
    return labels[tuple(index)] * inside
