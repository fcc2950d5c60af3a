"""What is shown stands where the world has it, for all 48 orientations, tilted or not; and comes back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from usvol.scan import IDENTITY, Frame, Grid, Scan
from usvol_napari.placement import (
    at_spacing,
    even_step_s,
    placement_of,
    space_scale,
    space_translate,
    to_file,
    to_shown,
    to_viewer,
    to_world,
)

SHAPE = (3, 4, 5)


def orientations():
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            yield np.eye(3)[:, order] * signs


def grid_of(direction, tilt_deg=0.0) -> Grid:
    turned = Rotation.from_euler("zyx", [tilt_deg, -tilt_deg / 2, tilt_deg / 3], degrees=True).as_matrix()
    rows = (turned @ direction).tolist()
    direction = (tuple(rows[0]), tuple(rows[1]), tuple(rows[2]))
    return Grid(SHAPE, (0.5, 0.7, 1.1), (-3.0, 8.0, 20.0), direction, Frame.PATIENT_LPS)


def volume(grid: Grid, frames=1) -> Scan:
    samples = torch.arange(frames * np.prod(SHAPE)).reshape(frames, 1, *SHAPE)
    times = None if frames == 1 else tuple(0.04 * i for i in range(frames))
    return Scan(samples, grid, times)


@pytest.mark.parametrize("tilt_deg", [0.0, 12.0])
def test_every_sample_is_shown_where_the_world_has_it(tilt_deg):
    for direction in orientations():
        grid = grid_of(direction, tilt_deg)
        scan, placement = volume(grid), placement_of(volume(grid))
        shown = to_shown(scan.data[:, 0], grid)[0]
        scale, translate = np.array(space_scale(placement)), np.array(space_translate(placement))
        for index in [(0, 0, 0), (2, 3, 4), (1, 0, 3)]:
            value = int(scan.data[0, 0][index])
            place = np.argwhere(shown == value)[0] * scale + translate
            np.testing.assert_allclose(
                to_viewer([grid.to_world(np.array(index))], placement)[0], place, atol=1e-9
            )
        if tilt_deg == 0:
            np.testing.assert_allclose(place, grid.to_world(np.array(index)), atol=1e-9)
        assert (scale > 0).all()


def test_lengths_are_true_and_points_come_back_when_tilted():
    placement = placement_of(volume(grid_of(np.eye(3)[:, [2, 0, 1]] * (1, -1, 1), 20.0)))
    points = np.random.default_rng(0).normal(size=(6, 3)) * 30
    seen = to_viewer(points, placement)
    np.testing.assert_allclose(
        np.linalg.norm(np.diff(seen, axis=0), axis=1), np.linalg.norm(np.diff(points, axis=0), axis=1)
    )
    np.testing.assert_allclose(to_world(seen, placement), points, atol=1e-9)


@pytest.mark.parametrize("frames", [1, 2])
def test_what_is_shown_goes_back_into_the_order_of_the_file(frames):
    for direction in orientations():
        grid = grid_of(direction, 7.0)
        data = volume(grid, frames).data[:, 0]
        assert torch.equal(to_file(to_shown(data, grid), grid), data)


def test_planar_scans_keep_rows_and_columns():
    grid = Grid((1, 6, 4), (0.3, 0.3, 0.2), (5.0, 1.0, 2.0))
    placement = placement_of(Scan(torch.zeros(3, 1, 1, 6, 4), grid, (0.0, 0.1, 0.2)))
    assert placement.axes == ("t", "y", "x")
    assert placement.units == ("s", "mm", "mm")
    np.testing.assert_allclose(to_viewer([(5.0, 1.6, 2.4)], placement), [[1.6, 2.4]])
    np.testing.assert_allclose(to_world([(0.2, 1.6, 2.4)], placement), [[5.0, 1.6, 2.4]])


def test_without_scale_or_times_the_units_say_so():
    placement = placement_of(Scan(torch.zeros(3, 1, *SHAPE), Grid(SHAPE)))
    assert placement.axes == ("t", "z", "y", "x")
    assert placement.units == ("pixel",) * 4
    assert placement.time_step == 1.0


@pytest.mark.parametrize(
    ("times", "step"),
    [
        (None, None),
        ((0.0,), None),
        ((0.0, 0.1, 0.2), 0.1),
        ((0.0, 0.1, 0.3), None),
        ((0.0, 0.04, 0.081), 0.0405),
    ],
)
def test_only_even_times_have_a_step(times, step):
    assert even_step_s(times) == pytest.approx(step) if step else even_step_s(times) is None


def test_identity_is_left_alone():
    grid = Grid(SHAPE, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)
    assert placement_of(volume(grid)).grid is grid


def test_a_stated_spacing_is_that_of_the_samples_that_are_seen():
    grid = Grid((6, 8, 10), step_px=(2.0, 2.0, 2.0))
    stated = at_spacing(Scan(torch.zeros(1, 1, *grid.shape), grid), (0.5, 0.4, 0.4))
    assert stated.grid.spacing_mm == (0.5, 0.4, 0.4)
    assert at_spacing(stated, (1.0, 0.8, 0.8)).grid.spacing_mm == (1.0, 0.8, 0.8)
