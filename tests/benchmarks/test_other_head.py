from __future__ import annotations

import numpy as np
import pytest

from models3d.data import phantom_files
from usvol import load


@pytest.fixture(scope="module")
def simulator(benchmark_module):
    return benchmark_module("other_head")


@pytest.fixture(scope="module")
def case(simulator, tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    volume, truth = simulator.simulate(210, "easy")
    simulator.write(folder, "head", volume=volume, truth=truth)
    (found,) = phantom_files.cases(folder)
    return found


def test_the_skull_lies_where_the_truth_of_the_file_says(case):
    truth, scan = case.reference, load(case.path)
    left = np.array(truth["plane"]["normal"])
    out = np.arange(0.4, 1.4, 0.02)[:, None]
    for side in (-1, 1):
        points = np.array(truth["centre_mm"]) + side * out * left * truth["radii_mm"][1]
        index = np.clip(np.rint(scan.grid.to_index(points)).astype(int), 0, np.array(scan.grid.shape) - 1)
        grey = scan.data[0, 0].numpy()[tuple(index.T)]
        assert out[np.argmax(grey), 0] == pytest.approx(1.0, abs=0.12)


def test_left_is_forward_times_up_and_sizes_fit_the_age(case):
    truth = case.reference
    forward, left, up = (np.array(truth["plane"][k]) for k in ("forward", "normal", "up"))
    np.testing.assert_allclose(np.cross(forward, up), left, atol=1e-6)
    assert truth["present"]
    assert 14 <= truth["weeks"] <= 32
    assert 20 < truth["bpd_mm"] < truth["ofd_mm"] < 130


def test_every_fifth_volume_holds_no_head(simulator):
    assert simulator.simulate(4, "easy")[1]["present"] is False
