from __future__ import annotations

import numpy as np
import pytest

from models3d.tasks._aortic_mesh import N_WALL, box_of, normals


@pytest.fixture(scope="module")
def simulator(benchmark_module):
    return benchmark_module("other_heart")


@pytest.fixture(scope="module")
def valve(simulator):
    return simulator.simulate(0, "easy", absent=False)


def grey_at(scan, points):
    index = np.round(scan.grid.to_index(points)).astype(int)
    shape = np.array(scan.grid.shape)
    inside = ((index >= 0) & (index < shape)).all(1)
    return scan.data[0, 0].numpy()[tuple(index[inside].T)].astype(float)


def test_the_truth_lies_where_the_picture_has_it(valve):
    scan, truth = valve
    vertices = np.array(truth["vertices_mm"])
    wall, out = vertices[:N_WALL], normals(vertices)[:N_WALL]
    on_wall, blood = grey_at(scan, wall + 0.5 * out), grey_at(scan, wall - 4 * out)
    assert np.median(on_wall) > np.median(blood) + 60


def test_the_box_is_that_of_the_mesh_and_the_root_has_the_size_of_one(valve):
    _, truth = valve
    centre, size, rotation = box_of(np.array(truth["vertices_mm"]))
    assert np.allclose(truth["box"]["centre_mm"], centre, atol=1e-3)
    assert np.allclose(truth["box"]["size_mm"], size, atol=1e-3)
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert 17 < truth["measures"]["annulus_diameter_area_mm"] < 30


def test_a_heart_without_the_valve_in_view_has_no_truth_of_one(simulator):
    scan, truth = simulator.simulate(simulator.ABSENT_SEED, "medium", absent=True)
    assert truth["visible"] == "absent"
    assert truth["box"] is None
    assert scan.data.any()
