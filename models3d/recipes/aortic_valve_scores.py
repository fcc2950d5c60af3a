"""How ``aortic_valve`` is scored: boxes, meshes, labels, diameters, and volumes that show no valve.

Position is the distance of the box centres, corner the mean distance of its eight corners, mesh the mean
distance of the surfaces, as Ghesu et al. (IEEE TMI 35:1217, 2016) report them. They are taken over valves
that are whole in the picture and were found; how many of those were missed or lie off by more than 10 mm is
the failure rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from models3d.data.pairs import read_labels
from models3d.recipes.aortic_valve_patches import Poses, corner_distance
from models3d.tasks._aortic_mesh import mesh_distance_mm
from usvol import metrics
from usvol.metrics import Estimate, column_ci
from usvol.result import Box, Labels, Measurement, Result, Surface
from usvol.training.cases import Case
from usvol.training.recipe import Row

NAMES: dict[int, str] = {1: "aortic_root", 2: "cusps"}
MEASURED = ("annulus_diameter_area", "annulus_diameter_min", "annulus_diameter_max", "sinus_diameter")
MEASURED += ("sinotubular_diameter",)
FAILED_MM = 10.0
_WHOLE = "whole"


def row(result: Result, case: Case) -> Row:
    """Compare with the truth: distances in mm, Dice, diameters; what the case lacks is left out."""
    reference = case.reference
    box = next((f for f in result.findings if isinstance(f, Box)), None)
    mesh = next((f for f in result.findings if isinstance(f, Surface)), None)
    answer: Row = {"found": box is not None, "flags": [flag.code for flag in result.flags]}
    labels = reference.get("labels") or ("present" not in reference and read_labels(case, names=NAMES))
    if isinstance(labels, Labels):
        answer |= _overlaps(result, labels)
    if "present" not in reference:
        return answer
    answer |= {name: reference.get(name) for name in ("visible", "in_view", "cusps", "calcified", "phase")}
    if box is not None and reference.get("box"):
        true, found = _pose(reference["box"]), _posed(box)
        answer["position_mm"] = float((true.centre - found.centre).norm())
        answer["corner_mm"] = float(corner_distance(found, true))
        # The angle between the long axes says how well a short-axis view would be placed.
        cosine = float(true.rotation[0, :, 0] @ found.rotation[0, :, 0])
        answer["axis_deg"] = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    if mesh is not None and reference.get("vertices_mm"):
        answer["mesh_mm"] = mesh_distance_mm(
            np.asarray(mesh.vertices, float), np.asarray(reference["vertices_mm"], float)
        )
    if reference.get("measures"):
        answer |= _measured(result.measurements, reference["measures"])
    return answer


def score(rows: Sequence[Row], groups: Sequence[str]) -> Mapping[str, Estimate]:
    """Return the measures with their 95 % intervals over volumes.

    ``failure_rate``: share of the valves whole in the picture that were not found or lie more than 10 mm off.
    ``no_valve_recall``: of the volumes without a valve, those said to have none; ``no_valve_precision``: of
    those said to have none, the ones without. ``cut_recall``: of the valves partly in view, those said to be.
    ``NAME_bias_mm`` with ``NAME_loa_low_mm`` and ``…_high_mm``: measured minus true, and the limits of
    agreement (Bland & Altman, Lancet 1986).
    """
    estimates: dict[str, Estimate] = {}
    whole = [(r, g) for r, g in zip(rows, groups, strict=True) if r.get("visible", _WHOLE) == _WHOLE]
    for key in ("position_mm", "corner_mm", "axis_deg", "mesh_mm", "dice_root", "dice_cusps"):
        some = [(r[key], g) for r, g in whole if key in r]
        estimates |= column_ci(key, some)
        if key.endswith("_mm"):
            estimates |= column_ci(f"{key.removesuffix('_mm')}_median_mm", some, statistic=np.median)
    failed = [(float(r.get("position_mm", np.inf) > FAILED_MM), g) for r, g in whole if "visible" in r]
    estimates |= column_ci("failure_rate", failed)
    for name in MEASURED:
        errors = [(r[f"{name}_error_mm"], g) for r, g in whole if f"{name}_error_mm" in r]
        estimates |= column_ci(f"{name}_bias_mm", errors)
        for limit, side in (("low", -1), ("high", 1)):
            estimates |= column_ci(f"{name}_loa_{limit}_mm", errors, statistic=partial(_limit, side=side))
    return estimates | _presence(rows, groups)


def _presence(rows: Sequence[Row], groups: Sequence[str]) -> dict[str, Estimate]:
    judged = [
        (r["visible"] == "absent", not r["found"], g)
        for r, g in zip(rows, groups, strict=True)
        if "visible" in r
    ]
    absent = [(float(said), g) for none, said, g in judged if none]
    said = [(float(none), g) for none, said, g in judged if said]
    cut = [
        (float("cut_by_sector_edge" in r["flags"] or not r["found"]), g)
        for r, g in zip(rows, groups, strict=True)
        if r.get("visible") == "partial"
    ]
    found = column_ci("cut_recall", cut)
    if not absent:
        return found
    found |= column_ci("no_valve_recall", absent)
    return found | column_ci("no_valve_precision", said)


def _limit(errors: np.ndarray, *, side: int) -> float:
    return metrics.agreement_limit(errors, np.zeros_like(errors), side=side)


def _overlaps(result: Result, reference: Labels) -> Row:
    found = next(f for f in result.findings if isinstance(f, Labels))
    one, other = (labels.data[0].numpy() for labels in (found, reference))
    return {
        "dice_root": metrics.dice(one > 0, other > 0),
        "dice_cusps": metrics.dice(one == 2, other == 2),
    }


def _measured(measurements: Sequence[Measurement], true: Mapping[str, float]) -> Row:
    """Return the error in mm of every diameter that was measured."""
    found = {m.name: m.value for m in measurements if isinstance(m.value, float)}
    return {
        f"{name}_error_mm": float(found[name]) - true[f"{name}_mm"]
        for name in MEASURED
        if name in found and f"{name}_mm" in true
    }


def _posed(box: Box) -> Poses:
    return Poses(
        *(torch.tensor(part, dtype=torch.float32)[None] for part in (box.centre, box.rotation, box.size))
    )


def _pose(box: Mapping[str, Any]) -> Poses:
    return Poses(
        *(torch.tensor(box[k], dtype=torch.float32)[None] for k in ("centre_mm", "rotation", "size_mm"))
    )
