"""The tissues of the prenatal phantom: library tissues, varied so that no contrast can be relied on."""

from __future__ import annotations

import dataclasses

import numpy as np

from models3d.phantoms._canvas import MATERIALS
from models3d.phantoms._surroundings import Style
from usvol.simulation.tissue import TISSUES, Tissue

# Material to library tissue, where the names differ.
_LIKE = {
    "surrounding": "muscle", "bowel": "muscle", "pelvic_bone": "bone", "urine": "fluid",
    "bladder_wall": "muscle",
    "canal": "fluid", "basal_plate": "decidua", "subchorionic": "fluid", "lacuna": "blood",
    "chorionic_plate": "placenta", "amniotic_fluid": "fluid", "coelomic_fluid": "fluid", "septum": "decidua",
    "yolk_wall": "membrane", "cord_vessel": "blood", "fetal_organ": "liver", "fetal_lung": "lung_fetal",
    "fetal_fluid": "fluid", "ventricle": "fluid", "falx": "membrane", "skull": "fetal_bone", "organ": "liver",
    "vessel": "blood",
}  # fmt: skip


def drawn_tissues(rng: np.random.Generator, *, style: Style, wall_seen: bool) -> tuple[Tissue, ...]:
    """Draw the tissues of one body, in the order of ``MATERIALS``.

    Against the myometrium (-20 to -7 dB) the placenta is 4-12 dB brighter: in the first trimester it is the
    more echogenic of the two. The decidua lies between them. Fluid from anechoic (-60 dB) to hazy (-26 dB);
    the fetus from -14 to 0 dB.
    """
    echo = {name: TISSUES[_LIKE.get(name, name)].echo_db + float(rng.normal(0, 1.5)) for name in MATERIALS}
    muscle = rng.uniform(-20, -7)
    # Equal echoes would leave nothing to be seen: no reader could label that.
    placenta = muscle + rng.uniform(4, 12)
    hazy = rng.random() < 0.25
    fluid = rng.uniform(-42, -26) if hazy else rng.uniform(-62, -40)
    fetus = rng.uniform(-14, 0)
    echo |= {
        "myometrium": muscle,
        "cervix": muscle + rng.normal(0, 3),
        "fibroid": muscle - rng.uniform(1, 9),
        "placenta": placenta,
        "lacuna": placenta - rng.uniform(8, 28),
        "chorionic_plate": placenta + rng.uniform(1, 6),
        "decidua": rng.uniform(muscle, placenta - 2),
        "basal_plate": placenta - rng.uniform(3, 14),
        "subchorionic": rng.uniform(-55, -18),
        "amniotic_fluid": fluid,
        "coelomic_fluid": fluid + rng.choice((0.0, rng.uniform(2, 14))),
        "membrane": rng.uniform(-26, -4),
        "septum": rng.uniform(-20, -4),
        "yolk_wall": rng.uniform(-18, -4),
        "cord": rng.uniform(-18, -5),
        "fetal_soft": fetus,
        "fetal_organ": fetus + rng.normal(0, 2.5),
        "fetal_lung": fetus + rng.normal(0, 3),
        "brain": fetus - rng.uniform(2, 16),
        "ventricle": fetus - rng.uniform(10, 40),
        "choroid_plexus": fetus + rng.uniform(0, 7),
        "surrounding": {
            "layered": muscle + rng.normal(0, 3),
            "homogeneous": rng.choice((muscle, rng.uniform(-22, 0))),
            "dark": rng.uniform(-55, -32),
            "patchy": rng.uniform(-20, -4),
        }[style],
    }
    if not wall_seen:  # the muscle cannot be told from what lies around it
        echo["surrounding"] = echo["myometrium"]
    coarse = rng.uniform(0.2, 2.0)
    return tuple(_tissue(rng, name, echo_db=float(echo[name]), coarse=coarse) for name in MATERIALS)


def _tissue(rng: np.random.Generator, name: str, *, echo_db: float, coarse: float) -> Tissue:
    base = TISSUES[_LIKE.get(name, name)]
    return dataclasses.replace(
        base,
        name=name,
        echo_db=echo_db,
        attenuation_db_cm_mhz=base.attenuation_db_cm_mhz * float(rng.uniform(0.6, 1.5)),
        impedance_mrayl=base.impedance_mrayl * float(rng.uniform(0.99, 1.01)),
        scatterers_per_cell=base.scatterers_per_cell * float(rng.choice((1.0, rng.uniform(0.2, 1)))),
        texture_mm=base.texture_mm * float(rng.uniform(0.6, 2)),
        texture_db=base.texture_db * coarse,
    )
