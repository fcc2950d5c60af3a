"""What the parts of the prenatal phantom draw on: a material map and a label map of one space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models3d.phantoms._shapes import Space

Box = tuple[slice, slice, slice]

BACKGROUND, PLACENTA, SAC, FETUS = range(4)
LABEL_NAMES = {PLACENTA: "placenta", SAC: "gestational_sac", FETUS: "fetus"}

# A voxel holds the index of its material here; "surrounding" is also what lies outside the map.
MATERIALS = (
    "surrounding", "skin", "fat", "muscle", "fascia", "bowel", "gas", "pelvic_bone", "urine", "bladder_wall",
    "myometrium", "cervix", "fibroid", "canal", "decidua", "basal_plate", "subchorionic",
    "placenta", "lacuna", "chorionic_plate", "amniotic_fluid", "coelomic_fluid", "membrane", "septum",
    "yolk_wall", "cord", "cord_vessel",
    "fetal_soft", "fetal_organ", "fetal_lung", "fetal_fluid", "brain", "ventricle", "choroid_plexus", "falx",
    "skull", "fetal_bone",
    "organ", "vessel",
)  # fmt: skip
_CLEAR = 255
INDEX = {name: index for index, name in enumerate(MATERIALS)}


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """Material and label of every voxel, ``z y x`` uint8, written in place."""

    space: Space
    materials: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def fill(
        self, mask: np.ndarray, material: str, *, box: Box | None = None, label: int | None = None
    ) -> None:
        """Set the material (and label) of the voxels of ``mask``, which covers ``box``."""
        box = box or self.space.whole
        self.materials[box][mask] = INDEX[material]
        if label is not None:
            self.labels[box][mask] = label

    def part(self, box: Box) -> Canvas:
        """The canvas of one box, which writes into this one."""
        return Canvas(self.space.part(box), self.materials[box], self.labels[box])

    def paste(self, other: Canvas) -> None:
        """Copy what was drawn on another canvas, whose voxels lie on this one's lattice."""
        start = np.subtract(other.space.origin_mm, self.space.origin_mm) / self.space.voxel_mm
        first = [round(float(v)) for v in start]
        low = [max(-v, 0) for v in first]
        high = [min(n, m - v) for n, m, v in zip(other.space.shape, self.space.shape, first, strict=True)]
        source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        target = tuple(slice(v + a, v + b) for v, a, b in zip(first, low, high, strict=True))
        drawn = other.materials[source] != _CLEAR
        self.materials[target][drawn] = other.materials[source][drawn]
        self.labels[target][drawn] = other.labels[source][drawn]


def blank(space: Space) -> Canvas:
    """A canvas of nothing but the surrounding tissue."""
    return Canvas(space, np.zeros(space.shape, np.uint8), np.zeros(space.shape, np.uint8))


def clear(space: Space) -> Canvas:
    """A canvas to ``paste``, on which nothing is drawn yet."""
    return Canvas(space, np.full(space.shape, _CLEAR, np.uint8), np.zeros(space.shape, np.uint8))
