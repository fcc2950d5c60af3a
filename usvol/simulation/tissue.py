"""Tissues as sound meets them, and the anatomy a phantom hands to the simulator.

Attenuation, speed of sound and density (impedance) follow Duck, Physical Properties of Tissue (1990);
ICRU Report 61 (1998); Mast, ARLO 1, 37 (2000). Echogenicity is relative: the order in which a sonographer
ranks these tissues, with fluid 60 dB below bright soft tissue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from usvol.scan import Grid

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tissue:
    """One material.

    Attributes:
        echo_db: root mean square backscatter; 0 is bright soft tissue, -60 anechoic fluid.
        attenuation_db_cm_mhz: one way; in bone and gas it includes what their surface reflects.
        impedance_mrayl: density times speed of sound, in 10⁶ kg/(m² s).
        scatterers_per_cell: per resolution cell; below about 10 speckle is not fully developed.
        texture_mm: correlation length of slow variation of echogenicity; 0 is homogeneous.
        texture_db: its standard deviation.
    """

    name: str
    echo_db: float
    attenuation_db_cm_mhz: float
    impedance_mrayl: float
    scatterers_per_cell: float = 20.0
    texture_mm: float = 0.0
    texture_db: float = 0.0

    def __post_init__(self) -> None:
        if self.attenuation_db_cm_mhz < 0 or self.impedance_mrayl <= 0 or self.scatterers_per_cell <= 0:
            raise ValueError(f"{self.name}: attenuation must be >= 0, impedance and density above 0")


@dataclass(frozen=True, slots=True, eq=False)
class Anatomy:
    """A body of materials in front of a probe.

    Attributes:
        materials: uint8 ``z y x``, indices into ``tissues``.
        grid: calibrated, in the probe's frame: y is the depth below the middle of the probe's face (mm),
            x lateral and z elevation, 0 on the probe's axis. Beyond it the outermost samples continue.
        tissues: at most 256.
    """

    materials: Tensor
    grid: Grid
    tissues: tuple[Tissue, ...]

    def __post_init__(self) -> None:
        self.grid.require_spacing_mm("simulated sound")
        if tuple(self.materials.shape) != tuple(self.grid.shape):
            raise ValueError(f"materials {tuple(self.materials.shape)} do not lie on grid {self.grid.shape}")
        if not 0 < len(self.tissues) <= 256:
            raise ValueError(f"one to 256 tissues, got {len(self.tissues)}")


_LIBRARY = (
    Tissue("fluid", -60, 0.01, 1.51),  # amniotic, also urine
    Tissue("blood", -36, 0.15, 1.66),
    Tissue("skin", -1, 1.6, 1.80, texture_mm=2, texture_db=1),
    Tissue("fat", -13, 0.45, 1.39, texture_mm=5, texture_db=2),
    Tissue("fascia", 2, 0.8, 1.75),
    Tissue("muscle", -11, 0.6, 1.66, texture_mm=3, texture_db=2),
    Tissue("myometrium", -10, 0.6, 1.66, texture_mm=6, texture_db=1.5),
    Tissue("decidua", -4, 0.5, 1.64, texture_mm=4, texture_db=1.5),
    Tissue("cervix", -11, 0.8, 1.67, texture_mm=5, texture_db=1.5),
    Tissue("fibroid", -16, 1.2, 1.69, texture_mm=5, texture_db=3),
    Tissue("placenta", -4, 0.5, 1.63, texture_mm=4, texture_db=1.2),
    Tissue("fetal_soft", -7, 0.4, 1.62, texture_mm=3, texture_db=2.5),
    Tissue("brain", -20, 0.35, 1.58, texture_mm=3, texture_db=1.5),
    Tissue("choroid_plexus", 0, 0.4, 1.62),
    Tissue("lung_fetal", -9, 0.5, 1.61, texture_mm=3, texture_db=1),
    Tissue("liver", -9, 0.5, 1.65, texture_mm=5, texture_db=1),
    Tissue("kidney", -13, 0.6, 1.63, texture_mm=3, texture_db=1.5),
    Tissue("cord", -7, 0.3, 1.60, scatterers_per_cell=8),
    Tissue("membrane", -6, 0.5, 1.74),
    Tissue("cartilage", -19, 1.5, 1.78),
    Tissue("fetal_bone", 3, 9.0, 3.2, scatterers_per_cell=8),  # being ossified
    Tissue("bone", 0, 18.0, 6.5, scatterers_per_cell=8),
    Tissue("gas", -12, 60.0, 0.0004, scatterers_per_cell=4),
    Tissue("metal", 0, 30.0, 45.0, scatterers_per_cell=4),
)
TISSUES: Mapping[str, Tissue] = MappingProxyType({tissue.name: tissue for tissue in _LIBRARY})
"""Typical tissues by name; phantoms vary them with ``dataclasses.replace``."""
