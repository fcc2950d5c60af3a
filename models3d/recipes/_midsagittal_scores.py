"""How far a plane found in a head is from the true one: distances in mm, angles in degrees, and shares.

``distance_mm`` is the mean distance to the found plane of the points of the true plane that lie in the head
(its skull's ellipse): it grows with tilt as well as with offset. ``offset_mm`` is the distance from the
head's true centre to the found plane alone, ``centre_mm`` from centre to centre (ITN's). The difference of
the planes' distances to the origin, which some papers report, depends on where that is, and is not given.
``angle_deg`` lies between the normals, 0-90; ``turn_deg`` (0-180) is the whole rotation, which also tells
front from back and up from down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from usvol.metrics import Estimate, column_ci
from usvol.result import Plane, Result
from usvol.training.cases import Case
from usvol.training.recipe import Row

PLANE = "midsagittal_plane"
UNCERTAIN = "uncertain_plane"  # flag of a plane that is hardly seen


def row(result: Result, case: Case) -> Row:
    """Compare the plane found with the true one; a missed head has no distances."""
    truth: Mapping[str, Any] = case.reference
    plane = next((f for f in result.findings if isinstance(f, Plane) and f.name == PLANE), None)
    answer: Row = {
        "present": bool(truth["present"]),
        "detected": plane is not None,
        "flags": [flag.code for flag in result.flags],
    }
    numbers = {m.name: m.value for m in result.measurements}
    if plane is None or not truth["present"]:
        return answer
    answer |= errors(plane, truth)
    answer["confidence"] = plane.confidence
    for name in ("bpd", "ofd"):
        value = numbers.get(name)
        if isinstance(value, float | int):
            answer[f"{name}_error_mm"] = float(value) - float(truth[f"{name}_mm"])
    return answer | {key: truth[key] for key in ("weeks", "shadowed", "in_view") if key in truth}


def errors(plane: Plane, truth: Mapping[str, Any]) -> dict[str, float]:
    """Return distances (mm) and angles (degrees) of a plane to the truth of ``fetal_head``."""
    true = {key: np.asarray(value, float) for key, value in truth["plane"].items()}
    radii = np.asarray(truth["radii_mm"], float)
    point, normal, up = (np.asarray(v, float) for v in (plane.point, plane.normal, plane.up))
    disc = _disc() * radii[[0, 2]]
    inside = true["point"] + disc[:, :1] * true["forward"] + disc[:, 1:] * true["up"]
    found = np.stack([np.cross(up, normal), normal, up], 1)
    wanted = np.stack([np.cross(true["up"], true["normal"]), true["normal"], true["up"]], 1)
    cosine = (np.trace(found.T @ wanted) - 1) / 2
    return {
        "distance_mm": float(np.abs((inside - point) @ normal).mean()),
        "offset_mm": float(abs((true["point"] - point) @ normal)),
        "centre_mm": float(np.linalg.norm(true["point"] - point)),
        "angle_deg": math.degrees(math.acos(min(1.0, abs(float(normal @ true["normal"]))))),
        "turn_deg": math.degrees(math.acos(float(np.clip(cosine, -1, 1)))),
    }


def score(rows: Sequence[Row], groups: Sequence[str]) -> Mapping[str, Estimate]:
    """Return shares and means with their 95 % intervals over patients.

    ``under_4mm``, ``under_10deg`` and ``under_20deg`` are shares of all heads, a missed one counting against
    them; means and medians are over heads found. ``no_head_recall``: volumes without a head that are called
    so. ``facing_right``: heads whose whole turn is right within 30°. ``uncertain``: of the heads found, those
    whose plane is flagged as such; ``…_certain``: shares of the others.
    """
    heads = [(r, g) for r, g in zip(rows, groups, strict=True) if r["present"]]
    empty = [(r, g) for r, g in zip(rows, groups, strict=True) if not r["present"]]
    found = [(r, g) for r, g in heads if r["detected"]]
    far = math.inf
    estimates: dict[str, Estimate] = {}
    for name, key, limit in (
        ("under_4mm", "distance_mm", 4.0),
        ("under_10deg", "angle_deg", 10.0),
        ("under_20deg", "angle_deg", 20.0),
        ("facing_right", "turn_deg", 30.0),
    ):
        estimates |= column_ci(name, [(float(r.get(key, far) < limit), g) for r, g in heads])
    certain = [(r, g) for r, g in found if UNCERTAIN not in r["flags"]]
    for key, limit in (("distance_mm", 4.0), ("angle_deg", 10.0), ("angle_deg", 20.0)):
        name = f"under_{limit:.0f}{key.rpartition('_')[2]}_certain"
        estimates |= column_ci(name, [(float(r[key] < limit), g) for r, g in certain])
    estimates |= column_ci("uncertain", [(float(UNCERTAIN in r["flags"]), g) for r, g in found])
    for key in ("distance_mm", "offset_mm", "centre_mm", "angle_deg", "turn_deg"):
        estimates |= column_ci(key, [(r[key], g) for r, g in found])
    for key in ("bpd_error_mm", "ofd_error_mm"):
        estimates |= column_ci(f"{key}_absolute", [(abs(r[key]), g) for r, g in found if key in r])
    estimates |= column_ci("missed", [(float(not r["detected"]), g) for r, g in heads])
    estimates |= column_ci("no_head_recall", [(float(not r["detected"]), g) for r, g in empty])
    return estimates


def _disc() -> np.ndarray:
    """Return points (n, 2) spread evenly over the unit disc (sunflower)."""
    k = np.arange(400) + 0.5
    radius, turn = np.sqrt(k / 400), np.pi * (1 + 5**0.5) * k
    return np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1)
