from __future__ import annotations

import dataclasses
import json
from functools import cache

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models3d.phantoms import needle
from models3d.phantoms._needle_shaft import Shaft, shaft_mask
from models3d.phantoms.needle import OUTER_MM, Config, simulate, simulate_labelled
from usvol.scan import Grid

SMALL = {"size": 56, "spacing_mm": (0.5, 0.5, 0.5), "clear": True}


@cache
def volume(seed, **settings):
    return simulate_labelled(seed, Config(**{**SMALL, **settings}))


def test_same_seed_same_volume_other_seed_another():
    first, _, truth = volume(1, present=True)
    again, truth_again = simulate(1, Config(**SMALL, present=True))
    assert torch.equal(first.data, again.data)
    assert truth == truth_again
    assert truth["tip_mm"] != volume(2, present=True)[2]["tip_mm"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_labels_run_from_entry_to_tip(seed):
    scan, labels, truth = volume(seed, present=True, through=False)
    assert json.loads(json.dumps(truth)) == truth
    voxels = scan.grid.to_world(np.argwhere(labels.data[0].numpy()))
    along = (voxels - truth["entry_mm"]) @ np.array(truth["direction"])
    assert along.max() == pytest.approx(truth["inside_mm"], abs=0.6)
    assert along.min() < 1.5
    assert 4.5 <= truth["inside_mm"] <= 40.5
    assert truth["tip_in_view"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_shaft_is_brighter_than_what_lies_around(seed):
    scan, labels, _ = volume(seed, present=True)
    grey, needle = scan.data[0, 0].float(), labels.data[0].bool()
    assert scan.sector is not None
    assert grey[needle].mean() > grey[scan.sector.mask & ~needle].mean() + 15


def test_a_filled_shaft_is_bright_in_its_middle(monkeypatch):
    drawn = needle.drawn_finish

    def grey(fill_db):
        def finish(rng, shaft, *, clear):
            return dataclasses.replace(drawn(rng, shaft, clear=clear), fill_db=fill_db, far_wall_db=-60.0)

        monkeypatch.setattr(needle, "drawn_finish", finish)
        seen = Config(size=80, spacing_mm=(0.3, 0.3, 0.3), gauge=17, present=True, clear=True)
        scan, labels, _ = simulate_labelled(2, seen)
        return scan.data[0, 0].float()[labels.data[0].bool()].mean()

    assert grey(6.0) > grey(-60.0) + 5


def test_without_a_needle_nothing_is_labelled_and_nothing_claimed():
    _, labels, truth = volume(1, present=False)
    assert not labels.data.any()
    assert not truth["present"]
    assert truth["tip_mm"] is None and truth["gauge"] is None


def test_a_needle_that_passes_through_has_no_tip_in_view():
    _, labels, truth = volume(4, present=True, through=True)
    assert labels.data.any()
    assert not truth["tip_in_view"]


def test_the_angle_to_the_face_is_the_one_asked_for():
    _, _, truth = volume(5, present=True, angle_deg=30, bend_mm=400)
    assert truth["angle_to_face_deg"] == pytest.approx(30, abs=4)
    assert truth["bend_mm"] == 400


def test_a_clip_shows_the_needle_advance():
    scan, labels, truth = volume(6, present=True, frames=3)
    assert scan.data.shape[0] == labels.data.shape[0] == 3
    assert scan.times_s is not None and len(truth["frames"]) == 3
    inside = [frame["inside_mm"] or 0.0 for frame in truth["frames"]]
    assert inside == sorted(inside)
    assert inside[0] < inside[-1]


@pytest.mark.parametrize("bend_mm", [None, 150.0])
def test_points_and_coordinates_of_a_shaft_agree(bend_mm):
    shaft = Shaft(np.array([1.0, 2, 3]), np.array([0.6, 0, 0.8]), np.array([0.0, 1, 0]), bend_mm, 0.5, 30)
    back = np.linspace(0, 30, 7)
    at, away = shaft.coordinates(shaft.points(back))
    np.testing.assert_allclose(at, back, atol=1e-6)
    np.testing.assert_allclose(away, 0, atol=1e-5)
    np.testing.assert_allclose(shaft.withdrawn(10).points(back[:3]), shaft.points(back[:3] + 10), atol=1e-6)


@pytest.mark.parametrize("gauge", [17, 22])
def test_the_mask_has_the_volume_of_the_shaft(gauge):
    radius = OUTER_MM[gauge] / 2
    shaft = Shaft(np.zeros(3), np.array([0.0, 0.6, 0.8]), np.array([1.0, 0, 0]), None, radius, 12)
    grid = Grid((40, 120, 140), (0.1, 0.1, 0.1), (-2.0, -11.0, -13.0))
    count = int(shaft_mask(shaft, grid, radius_mm=radius).sum())
    assert count * 0.1**3 == pytest.approx(np.pi * radius**2 * 12, rel=0.03)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValidationError):
        Config(bend_mm=20)
    with pytest.raises(ValueError, match="larger"):
        simulate(1, Config(size=32, spacing_mm=(0.05, 0.05, 0.05), present=True))
