from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models3d.recipes.aortic_valve_scores import row, score
from usvol.result import Box, Labels, Measurement, Result, Surface
from usvol.scan import Grid, Source
from usvol.training.cases import Case

GRID = Grid((20, 20, 20), (1.0, 1.0, 1.0))
EYE = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
BOX = {"centre_mm": [10.0, 10.0, 10.0], "size_mm": [6.0, 8.0, 8.0], "rotation": [list(r) for r in EYE]}


@pytest.fixture
def vertices():
    from models3d.phantoms._aortic_geometry import drawn_root, mesh_points

    return mesh_points(drawn_root(np.random.default_rng(0), cusps=3, calcified=False), opened=0.0)


def labels(value=1):
    data = torch.zeros(1, 20, 20, 20, dtype=torch.uint8)
    data[:, 5:15, 5:15, 5:15] = value
    return Labels("aortic_valve", data, GRID, {1: "aortic_root", 2: "cusps"})


def case(**more):
    truth = {"present": True, "visible": "whole", "in_view": 1.0, "box": BOX, "labels": labels()}
    return Case("a", "a", Path(), {**truth, **more})


def result(*findings, measurements=()):
    return Result("aortic_valve", GRID, Source(), findings, measurements)


def test_a_box_is_compared_by_centre_and_corners():
    box = Box("aortic_valve", (13.0, 14.0, 10.0), (6.0, 8.0, 8.0), EYE)
    answer = row(result(labels(), box), case())
    assert answer["position_mm"] == pytest.approx(5)
    assert answer["corner_mm"] == pytest.approx(5)
    assert answer["axis_deg"] == pytest.approx(0, abs=0.1)
    assert answer["dice_root"] == 1


def test_a_mesh_is_compared_by_its_surface(vertices):
    moved = vertices + np.array([0.0, 0.0, 1.0])
    mesh = Surface("aortic_valve", torch.from_numpy(moved), torch.zeros(1, 3, dtype=torch.long))
    answer = row(result(labels(), mesh), case(vertices_mm=vertices.tolist()))
    assert 0.2 < answer["mesh_mm"] < 1


def test_diameters_are_compared_where_they_were_measured():
    found = (Measurement("annulus_diameter_area", 24.0, "mm"), Measurement("sinus_diameter", None, "mm"))
    true = {"annulus_diameter_area_mm": 22.5, "sinus_diameter_mm": 30.0}
    answer = row(result(labels(), measurements=found), case(measures=true))
    assert answer["annulus_diameter_area_error_mm"] == pytest.approx(1.5)
    assert "sinus_diameter_error_mm" not in answer


def rows(*kinds):
    """whole and found at a distance (a number), whole and missed, absent and found or not, cut."""
    made = []
    for kind in kinds:
        one = {"visible": "whole", "found": True}
        if kind == "missed":
            one["found"] = False
        elif kind in ("none, said", "none, missed"):
            one |= {"visible": "absent", "found": kind == "none, missed"}
        elif kind == "cut":
            one |= {"visible": "partial", "position_mm": 99.0, "flags": ["cut_by_sector_edge"]}
        else:
            one |= {"position_mm": kind, "corner_mm": 2 * kind, "annulus_diameter_area_error_mm": kind - 2}
        made.append({"flags": [], **one})
    return made


def test_failures_are_valves_missed_or_far_off_among_those_whole_in_view():
    some = rows(1.0, 3.0, 20.0, "missed", "none, said", "cut", "cut")
    found = score(some, [str(k) for k in range(len(some))])
    assert found["failure_rate"].value == 0.5
    assert found["position_mm"].value == pytest.approx(8)
    assert found["position_median_mm"].value == 3
    assert found["cut_recall"].value == 1


def test_no_valve_has_a_precision_and_a_recall():
    some = rows(1.0, "missed", "none, said", "none, said", "none, said", "none, missed")
    found = score(some, [str(k) for k in range(len(some))])
    assert found["no_valve_recall"].value == 0.75
    assert found["no_valve_precision"].value == 0.75


def test_limits_of_agreement_lie_about_the_bias():
    some = rows(*np.random.default_rng(0).normal(2.5, 1.0, 40).tolist())
    found = score(some, [str(k) for k in range(len(some))])
    bias = found["annulus_diameter_area_bias_mm"].value
    low, high = (found[f"annulus_diameter_area_loa_{side}_mm"].value for side in ("low", "high"))
    assert bias == pytest.approx(0.5, abs=0.4)
    assert (low + high) / 2 == pytest.approx(bias)
    assert high - low == pytest.approx(3.92, rel=0.35)
