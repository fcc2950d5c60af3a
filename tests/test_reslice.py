"""Oblique cuts of volumes: where they lie, how they are turned, and what is written of them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from usvol import writing
from usvol.formats import nifti
from usvol.resampling import cross_section, plane_axes, plane_grid, reslice
from usvol.result import Line, Plane, Result
from usvol.scan import Frame, Grid, Scan, Source

SPACING = (0.9, 0.5, 0.7)


def turned_grid(angles=(20, -35, 50)) -> Grid:
    turn = Rotation.from_euler("zyx", angles, degrees=True).as_matrix()
    rows = turn.tolist()
    direction = (tuple(rows[0]), tuple(rows[1]), tuple(rows[2]))
    return Grid((30, 48, 40), SPACING, (-12.0, 7.0, 3.0), direction, Frame.PATIENT_LPS)


def linear(grid: Grid, weights=(1.5, -2.0, 0.7)) -> Scan:
    """A volume whose samples are a linear function of the world, which interpolation keeps exactly."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    values = grid.to_world(index) @ np.asarray(weights)
    return Scan(torch.from_numpy(values)[None, None], grid)


def any_plane(grid: Grid, seed: int) -> Plane:
    rng = np.random.default_rng(seed)
    normal, side = rng.standard_normal((2, 3))
    normal /= np.linalg.norm(normal)
    up = np.cross(normal, side) / np.linalg.norm(np.cross(normal, side))
    point = grid.to_world(rng.uniform(0.2, 0.8, 3) * np.asarray(grid.shape))
    return Plane("cut", tuple(point), tuple(normal), tuple(up))


@pytest.mark.parametrize("seed", range(6))
def test_samples_lie_in_the_plane_and_carry_the_values_of_their_places(seed):
    grid = turned_grid()
    plane = any_plane(grid, seed)
    cut = reslice(linear(grid), plane)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in cut.grid.shape], indexing="ij"), -1)
    world = cut.grid.to_world(index)
    assert np.abs((world - np.asarray(plane.point)) @ np.asarray(plane.normal)).max() < 1e-9
    inner = grid.to_index(world)
    inside = ((inner >= 0) & (inner <= np.asarray(grid.shape) - 1)).all(-1)
    assert inside.sum() > 100
    expected = world @ np.asarray((1.5, -2.0, 0.7))
    np.testing.assert_allclose(cut.data[0, 0].numpy()[inside], expected[inside], atol=2e-3)
    outside = ((inner < -0.6) | (inner > np.asarray(grid.shape) - 0.4)).any(-1)
    assert not cut.data[0, 0].numpy()[outside].any()


@pytest.mark.parametrize("seed", range(6))
def test_the_picture_holds_the_whole_section_upright_and_true_to_scale(seed):
    grid = turned_grid()
    plane = any_plane(grid, seed)
    section = plane_grid(plane, grid)
    assert section.spacing_mm == (0.5, 0.5, 0.5) and section.frame is grid.frame
    corners = section.to_index(cross_section(plane, grid))
    assert (corners[:, 1:] > -0.5 - 1e-6).all()
    assert (corners[:, 1:] < np.asarray(section.shape[1:]) - 0.5 + 1e-6).all()
    assert np.ptp(corners[:, 1:], axis=0) == pytest.approx(np.asarray(section.shape[1:]), abs=1)
    axes = np.asarray(plane_axes(plane))
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1)
    point = np.asarray(plane.point)
    up = section.to_index(point + np.asarray(plane.up)) - section.to_index(point)
    np.testing.assert_allclose(up, (0, -2, 0), atol=1e-9)


def test_the_cut_of_a_grid_along_its_own_axis_is_the_slice():
    data = torch.randint(0, 255, (2, 1, 9, 11, 13), dtype=torch.uint8)
    scan = Scan(data, Grid((9, 11, 13), (1.0, 1.0, 1.0)), times_s=(0.0, 0.1))
    cut = reslice(scan, Plane("slice", (4.0, 5.0, 6.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0)))
    assert torch.equal(cut.data, data[:, :, 4:5]) and cut.times_s == scan.times_s


def test_steps_are_the_callers_or_bounded_and_scales_are_not_invented():
    grid = turned_grid()
    plane = any_plane(grid, 1)
    assert plane_grid(plane, grid, step=0.25).spacing_mm == (0.25, 0.25, 0.25)
    assert max(plane_grid(plane, grid, step=1e-3).shape) <= 1024
    bare = Grid((20, 20, 20))
    cut = plane_grid(Plane("cut", (9.0, 9.0, 9.0), (0.6, 0.8, 0.0), (0.0, 0.0, 1.0)), bare)
    assert not cut.is_calibrated and cut.step == (1.0, 1.0, 1.0)


def test_a_plane_that_misses_the_volume_says_so():
    grid = Grid((9, 11, 13), (1.0, 1.0, 1.0))
    far = Plane("far", (40.0, 5.0, 6.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0))
    assert not len(cross_section(far, grid))
    with pytest.raises(ValueError, match="misses"):
        reslice(linear(grid), far)
    with pytest.raises(ValueError, match="volume"):
        plane_grid(far, dataclasses.replace(grid, shape=(1, 11, 13)))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_plane_found_is_written_as_picture_and_image_with_its_own_geometry(tmp_path, channels):
    grid = turned_grid()
    grey = (linear(grid).data - linear(grid).data.min()).clamp(0, 255).to(torch.uint8)
    scan = Scan(grey.expand(1, channels, *grid.shape), grid)
    plane = any_plane(grid, 3)
    folder = writing.write(Result("toy", grid, Source(), (plane,), ()), tmp_path / "item", scan=scan)
    (finding,) = json.loads((folder / "result.json").read_text(encoding="utf-8"))["findings"]
    cut = reslice(scan, plane)
    back = nifti.read(folder / finding["file"])
    np.testing.assert_allclose(back.grid.affine, cut.grid.affine, atol=1e-5)
    assert (back.data.int() - cut.data[:, :1].int()).abs().max() <= (1 if channels == 3 else 0)
    with Image.open(folder / finding["picture"]) as picture:
        assert picture.size == cut.grid.shape[:0:-1]
    assert finding["normal"] == pytest.approx(plane.normal)


def test_without_its_scan_a_plane_is_numbers_only(tmp_path):
    grid = turned_grid()
    folder = writing.write(Result("toy", grid, Source(), (any_plane(grid, 3),), ()), tmp_path / "item")
    assert sorted(p.name for p in folder.iterdir()) == ["result.json"]


def test_the_preview_draws_planes_and_lines_where_they_are(tmp_path):
    grid = Grid((40, 40, 40), (1.0, 1.0, 1.0))
    scan = Scan(torch.full((1, 1, *grid.shape), 40, dtype=torch.uint8), grid)
    plane = Plane("cut", (20.0, 20.0, 10.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))
    needle = Line("needle", (5.0, 5.0, 10.0), (30.0, 30.0, 10.0))
    pictures = {}
    for name, found in (("plain", ()), ("drawn", (plane, needle))):
        folder = writing.write(Result("toy", grid, Source(), found, ()), tmp_path / name, scan=scan)
        with Image.open(folder / "preview.png") as picture:
            pictures[name] = np.asarray(picture.convert("RGB")).astype(int)
    plain, drawn = pictures["plain"], pictures["drawn"]
    assert drawn.shape[1] == 4 * 256 + 12 and plain.shape[1] == 3 * 256 + 8
    changed = np.abs(drawn[:, :256] - plain[:, :256]).sum(-1) > 60
    columns = np.flatnonzero(changed.sum(0) > 200)
    assert len(columns) and np.abs(columns - 10.5 / 40 * 256).max() <= 2
