from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch

from models3d.phantoms._aortic_geometry import drawn_root, mesh_points, opening
from models3d.phantoms.aortic_root import Config, at_phase, draw, simulate, simulate_labelled
from models3d.tasks._aortic_measures import measures
from models3d.tasks._aortic_mesh import CUSP_COLUMNS, N_WALL, box_of, cusp_sheet, enclosed_ml, landmarks


@cache
def volume(seed, **options):
    return simulate_labelled(
        seed, Config(quick=True, size=64, spacing_mm=(1.4, 1.4, 1.4), cut=False, **options)
    )


def test_same_seed_same_volume():
    first, _, truth = volume(1)
    again, truth_again = simulate(1, Config(quick=True, size=64, spacing_mm=(1.4, 1.4, 1.4), cut=False))
    assert torch.equal(first.data, again.data)
    assert truth == truth_again
    assert json.loads(json.dumps(truth)) == truth


def test_labels_lie_where_the_mesh_does():
    scan, labels, truth = volume(1)
    assert scan.data.dtype == torch.uint8 and labels.data.shape == (1, *scan.grid.shape)
    assert truth["present"] and truth["visible"] == "whole" and truth["in_view"] > 0.98
    root = labels.data[0].numpy() > 0
    voxel_ml = float(np.prod(scan.grid.require_spacing_mm("volume"))) / 1000
    assert root.sum() * voxel_ml == pytest.approx(truth["measures"]["root_volume_ml"], rel=0.08)
    middle = scan.grid.to_world(np.argwhere(root).mean(0))
    np.testing.assert_allclose(middle, truth["box"]["centre_mm"], atol=2)
    # Blood is darker than what is around it.
    index = np.round(scan.grid.to_index(np.array(truth["vertices_mm"])[:N_WALL])).astype(int)
    wall = scan.data[0, 0].numpy()[tuple(np.clip(index, 0, np.array(scan.grid.shape) - 1).T)]
    assert wall.mean() > scan.data[0, 0].numpy()[labels.data[0].numpy() == 1].mean()


def test_truth_is_that_of_the_mesh():
    valve = draw(2, Config(cut=False))
    moment = at_phase(valve, valve.phase)
    vertices = moment.vertices_mm
    _, size, axes = box_of(vertices)
    assert np.linalg.det(axes) == pytest.approx(1)
    np.testing.assert_allclose(axes, moment.rotation, atol=0.08)
    found = measures(vertices)
    major, minor = moment.root.annulus_mm
    assert found["annulus_diameter_area_mm"] == pytest.approx(2 * np.sqrt(major * minor), rel=0.02)
    assert found["sinotubular_diameter_mm"] == pytest.approx(2 * moment.root.top_mm, rel=0.02)
    assert size[0] == pytest.approx(moment.root.height_mm, rel=0.35)
    assert enclosed_ml(vertices) > 0
    hinges = landmarks(vertices)
    assert np.linalg.norm(hinges["hinge_right"] - hinges["annulus_centre"]) == pytest.approx(
        found["annulus_diameter_area_mm"] / 2, rel=0.25
    )


def test_the_valve_opens_and_shuts():
    root = drawn_root(np.random.default_rng(0), cusps=3, calcified=False)
    shut, wide = (mesh_points(root, opened=o) for o in (0.0, 1.0))
    for cusp in range(3):
        tips = [cusp_sheet(v, cusp)[-1, CUSP_COLUMNS // 2] for v in (shut, wide)]
        away = [float(np.hypot(*tip[1:])) for tip in tips]
        assert away[0] < 0.5 and away[1] > 0.6 * min(root.annulus_mm)
        # Attachments stay, and neighbours share their closed edges.
        np.testing.assert_allclose(cusp_sheet(shut, cusp)[0], cusp_sheet(wide, cusp)[0])
        half = CUSP_COLUMNS // 2
        other = cusp_sheet(shut, (cusp + 1) % 3)[-1, : half + 1]
        np.testing.assert_allclose(cusp_sheet(shut, cusp)[-1, half:], other[::-1], atol=1e-6)
    assert opening(0.8, 1.0) == 0 and opening(0.2, 1.0) > 0.9


def test_a_bicuspid_valve_has_a_raphe():
    root = drawn_root(np.random.default_rng(0), cusps=2, calcified=False)
    assert root.fused is not None
    wide = mesh_points(root, opened=1.0)
    one, other = cusp_sheet(wide, root.fused), cusp_sheet(wide, (root.fused + 1) % 3)
    np.testing.assert_allclose(one[:, -1], other[:, 0], atol=1e-6)
    assert np.hypot(*one[-1, -1, 1:]) < 0.7 * root.top_mm


def test_absent_and_cut_valves_are_told():
    contents = {draw(seed, Config(absent=1.0)).content for seed in range(12)}
    assert contents == {"elsewhere", "removed", "tube", "blank"}
    _, labels, truth = volume(3, absent=1.0)
    assert not truth["present"] and truth["box"] is None and truth["frame"] == []
    assert truth["visible"] == "absent" and not labels.data.any()
    _, _, truth = simulate_labelled(4, Config(quick=True, size=48, cut=True))
    assert truth["visible"] == "partial" and 0.2 < truth["in_view"] < 0.98


def test_poses_cover_every_direction_and_40_mm_aside():
    valves = [draw(seed, Config(cut=False)) for seed in range(40)]
    along = np.stack([v.rotation[:, 0] for v in valves])
    assert (np.abs(along).max(0) > 0.9).all() and (along.min(0) < -0.5).all()
    aside = [float(np.hypot(v.centre_mm[0], v.centre_mm[2])) for v in valves]
    assert max(aside) > 20 and min(aside) < 10
    assert {v.root.fused is None for v in valves} == {True, False}


def test_a_clip_moves():
    config = Config(quick=True, size=48, frames=3, phase=0.0, cut=False)
    scan, labels, truth = simulate_labelled(6, config)
    assert scan.data.shape[0] == labels.data.shape[0] == len(truth["frame"]) == 3
    assert scan.times_s is not None and scan.times_s[0] == 0 and scan.times_s[2] < 1.2
    opened = [frame["opening"] for frame in truth["frame"]]
    assert opened[0] == 0 and opened[1] > 0.05
    centres = np.array([frame["box"]["centre_mm"] for frame in truth["frame"]])
    assert 0.2 < np.linalg.norm(centres[1] - centres[0]) < 10
