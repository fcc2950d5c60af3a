from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from usvol.planes import middle_plane, nudged
from usvol.resampling import plane_axes, reslice
from usvol.result import Plane
from usvol.scan import Grid, Scan

START = Plane("cut", (1.0, 2.0, 3.0), normal=(1.0, 0.0, 0.0), up=(0.0, -1.0, 0.0))


def test_nothing_moved_is_the_same_plane():
    moved = nudged(START)
    sure = dataclasses.replace(START, confidence=0.8)
    assert nudged(sure).confidence == 0.8 and nudged(sure, turn_deg=5).confidence is None
    assert np.allclose((moved.point, moved.normal, moved.up), (START.point, START.normal, START.up))


@pytest.mark.parametrize(("tilt_deg", "turn_deg"), [(30.0, 0.0), (0.0, -40.0), (25.0, 65.0)])
def test_a_moved_plane_stays_orthonormal_and_at_its_distance(tilt_deg, turn_deg):
    moved = nudged(START, tilt_deg=tilt_deg, turn_deg=turn_deg, offset=5.0)
    axes = np.asarray(plane_axes(moved))
    assert np.allclose(axes.T @ axes, np.eye(3))
    assert np.dot(moved.up, moved.normal) == pytest.approx(0.0, abs=1e-12)
    assert np.dot(np.subtract(moved.point, START.point), moved.normal) == pytest.approx(5.0)


def test_angles_are_those_asked_for():
    assert np.dot(nudged(START, tilt_deg=20).normal, START.normal) == pytest.approx(
        math.cos(math.radians(20))
    )
    assert np.dot(nudged(START, turn_deg=50).normal, START.normal) == pytest.approx(
        math.cos(math.radians(50))
    )
    there = nudged(START, tilt_deg=20)
    back = nudged(there, tilt_deg=-20)
    assert np.allclose((back.normal, back.up), (START.normal, START.up))


def test_the_middle_plane_shows_the_middle_slice():
    data = torch.arange(5 * 4 * 6, dtype=torch.float32).reshape(1, 1, 5, 4, 6)
    scan = Scan(data, Grid((5, 4, 6), (2.0, 1.0, 1.0), origin_mm=(3.0, -2.0, 7.0)))
    cut = reslice(scan, middle_plane(scan.grid))
    assert torch.allclose(cut.data[0, 0, 0], data[0, 0, 2], atol=1e-4)
