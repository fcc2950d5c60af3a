"""How a needle found compares with the true one: voxels, tip (mm), axis (degrees), and whether there is one.

A phantom says where its needle lies. Of a labelled volume that is read from the label map: a path fitted to
its voxels, whose tip is the end beyond which the view goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from models3d.data.pairs import read_labels
from models3d.recipes.needle_path import unit_of
from models3d.recipes.needle_tubes import Shaft, Volume, found_shafts
from usvol import metrics
from usvol.canonical import canonicalise
from usvol.loading import load
from usvol.metrics import Estimate, column_ci
from usvol.resampling import sample_on
from usvol.result import Labels, Line, Result
from usvol.scan import Grid
from usvol.training.cases import Case
from usvol.training.recipe import Row

NAMES = {1: "needle"}


def row(result: Result, case: Case) -> Row:
    """Compare with the truth; what cannot be compared is not in the row.

    Raises:
        DatasetError: the label map is no label map. ReadError: it, or the volume, cannot be read.
    """
    truth = case.reference if "labels" in case.reference else labelled_truth(case)
    reference = truth["labels"]
    lines = [f for f in result.findings if isinstance(f, Line)]
    found = next((f.data[0].numpy() > 0 for f in result.findings if isinstance(f, Labels)), None)
    true = reference.data[0].numpy() == 1
    answer: Row = {
        "present": bool(truth["present"]),
        "found": bool(lines),
        "confidence": lines[0].confidence if lines else None,
        "style": truth.get("style"),
        "gauge": truth.get("gauge"),
        "inside_mm": truth.get("inside_mm"),
        "angle_to_face_deg": truth.get("angle_to_face_deg"),
        "tip_in_view": truth.get("tip_in_view"),
        "flags": [flag.code for flag in result.flags],
    }
    if answer["present"]:
        answer["f1"] = 0.0 if found is None else metrics.dice(found, true)
    if not (lines and answer["present"] and result.grid.is_calibrated and truth["direction"] is not None):
        return answer
    entry, tip = np.array(lines[0].entry), np.array(lines[0].tip)
    ahead = (tip - entry) / max(float(np.linalg.norm(tip - entry)), 1e-9)
    sine = float(np.linalg.norm(np.cross(ahead, truth["direction"])))
    answer["axis_deg"] = math.degrees(math.asin(min(sine, 1.0)))
    if truth["tip_in_view"]:
        answer["tip_mm"] = float(np.linalg.norm(tip - truth["tip_mm"]))
    return answer


def labelled_truth(case: Case) -> Mapping[str, Any]:
    """Read from a label map what a phantom says of its needle; the tip only where one end alone can be it."""
    labels = read_labels(case, names=NAMES)
    scan = canonicalise(load(case.path))
    assert scan.sector is not None
    mask = scan.sector.mask.reshape(scan.grid.shape)
    on_grid = sample_on(labels.data[:1, None], labels.grid, target=scan.grid, mode="nearest")[0, 0]
    marked = (on_grid == 1).nonzero().numpy()
    step = np.asarray(scan.grid.step)
    parts = torch.stack([scan.data[0, 0].float(), mask.float()])
    volume = Volume(parts, marked, np.ones(len(marked), int), step)
    scale = step / unit_of(scan.grid)
    shafts = found_shafts(volume, scale)
    truth: dict[str, Any] = {"labels": labels, "present": bool(len(marked)), "direction": None}
    return truth | (_facts(shafts[0], scan.grid, scale) if shafts else {})


def _facts(shaft: Shaft, grid: Grid, scale: np.ndarray) -> dict[str, Any]:
    """Return direction, tip and length in mm of a shaft in fine coordinates."""
    path = shaft.path.reversed() if shaft.tips[0] and not shaft.tips[1] else shaft.path
    entry, end = grid.to_world(path.points(np.array([path.start, path.end])) / scale)
    length = float(np.linalg.norm(end - entry))
    return {
        "direction": (end - entry) / length,
        "inside_mm": length,
        "tip_in_view": shaft.tip is not None,
        "tip_mm": end,
    }


def score(rows: Sequence[Row], groups: Sequence[str]) -> Mapping[str, Estimate]:
    """Return f1 over volumes with a needle (0 if missed), and what else a row says.

    ``tip_mm`` (mean) and ``tip_mm_p95``, ``axis_deg``: over needles that were found; the tip only where it is
    in the field of view. ``false_alarm``: of volumes without a needle; ``missed``: of those with one.
    """
    cases = list(zip(rows, groups, strict=True))
    f1, tip_mm, axis_deg = (
        [(float(r[key]), g) for r, g in cases if r.get(key) is not None]
        for key in ("f1", "tip_mm", "axis_deg")
    )
    estimates = column_ci("f1", f1) | column_ci("tip_mm", tip_mm)
    estimates |= column_ci("tip_mm_p95", tip_mm, statistic=lambda values: float(np.percentile(values, 95)))
    estimates |= column_ci("axis_deg", axis_deg)
    for name, present in (("false_alarm", False), ("missed", True)):
        wrong = [(float(r["found"] is not present), g) for r, g in cases if r["present"] is present]
        estimates |= column_ci(name, wrong)
    return estimates
