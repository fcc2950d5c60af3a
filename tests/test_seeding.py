from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from usvol.errors import ConfigError, KindError
from usvol.scan import Grid, Scan, Sector
from usvol.seeding import BACKGROUND, Walk, random_walker_labels, seeds_at

GRID = Grid((22, 36, 30), spacing_mm=(1.6, 1.0, 1.2), origin_mm=(5.0, -3.0, 2.0))
CENTRE = GRID.to_world(np.array([10.5, 17.5, 14.5]))
RADIUS_MM = 11.0
AROUND = [CENTRE + 15.0 * np.array(o) * s for o in np.eye(3) for s in (1, -1)]
NAMES = {1: "placenta"}


def sphere(grid: Grid = GRID) -> torch.Tensor:
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    return torch.from_numpy(np.linalg.norm(grid.to_world(index) - CENTRE, axis=-1) < RADIUS_MM)


def speckled(grid: Grid = GRID, *, scale: float = 1.0) -> Scan:
    """A sphere twice as bright as what surrounds it, under multiplicative Rayleigh noise."""
    noise = np.random.default_rng(0).rayleigh(0.8, grid.shape)
    data = torch.from_numpy(np.where(sphere(grid).numpy(), 90, 45) * noise * scale)
    return Scan(data.to(torch.uint8 if scale == 1 else torch.float32)[None, None], grid)


def seeds(grid: Grid = GRID) -> torch.Tensor:
    inside = CENTRE + np.array([(0, 0, 0), (5, 0, 0), (0, -5, 3)])
    return seeds_at(grid, {1: [tuple(p) for p in inside], BACKGROUND: [tuple(p) for p in AROUND]}, radius=2.0)


def dice(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(2 * (found & wanted).sum() / (found.sum() + wanted.sum()))


def test_a_sphere_in_speckle_is_found_from_nine_seeds_on_an_anisotropic_grid():
    scan = speckled()
    before = scan.data.clone()
    labels = random_walker_labels(scan, seeds(), names=NAMES)
    assert labels.grid == scan.grid
    assert labels.data.dtype == torch.uint8
    assert labels.names == NAMES
    assert dice(labels.data[0] == 1, sphere()) > 0.9
    assert torch.equal(scan.data, before)


def test_the_scale_of_the_samples_does_not_matter():
    one, other = (random_walker_labels(speckled(scale=s), seeds(), names=NAMES).data for s in (10.0, 1000.0))
    assert dice(one[0] == 1, other[0] == 1) > 0.99


def test_a_large_box_is_walked_on_a_coarser_grid_and_put_back():
    grid = dataclasses.replace(GRID.resized((44, 72, 60)))
    labels = random_walker_labels(speckled(grid), seeds(grid), names=NAMES, walk=Walk(max_samples=20_000))
    assert labels.data.shape == (1, 44, 72, 60)
    assert dice(labels.data[0] == 1, sphere(grid)) > 0.9


def test_two_structures_and_every_seed_keep_their_values():
    scan = speckled()
    marked = seeds()
    marked[0, 0, 0] = 7
    labels = random_walker_labels(scan, marked, names={1: "placenta", 7: "other"}).data[0]
    assert set(labels.unique().tolist()) == {0, 1, 7}
    assert (labels[marked == 1] == 1).all()
    assert (labels[marked == BACKGROUND] == 0).all()
    assert int(labels[0, 0, 0]) == 7


def test_nothing_grows_beyond_the_margin_or_outside_the_sector():
    noise = torch.rand(1, 1, *GRID.shape, generator=torch.Generator().manual_seed(0))
    flat = Scan(noise, GRID)
    marked = seeds_at(GRID, {1: [(10, 10, 10)], BACKGROUND: [(10, 10, 20)]}, are_indices=True)
    labels = random_walker_labels(flat, marked, names=NAMES).data[0]
    places = labels.nonzero()
    assert places[:, 0].min() >= 6 and places[:, 0].max() <= 14
    assert len(places) > 50
    mask = torch.ones(GRID.shape, dtype=torch.bool)
    mask[:, :, :10] = False
    cut = dataclasses.replace(flat, sector=Sector(mask, None, "unknown"))
    assert int(random_walker_labels(cut, marked, names=NAMES).data[0, :, :, :10].sum()) == 0


def test_planar_and_uncalibrated_scans_are_grown_too():
    data = torch.full((1, 1, 1, 40, 40), 30, dtype=torch.uint8)
    data[..., 10:30, 12:28] = 160
    scan = Scan(data, Grid((1, 40, 40)))
    marked = seeds_at(scan.grid, {1: [(0, 20, 20)], BACKGROUND: [(0, 2, 2), (0, 38, 38)]}, radius=1)
    labels = random_walker_labels(scan, marked, names=NAMES, walk=Walk(smoothing=0)).data[0]
    assert dice(labels == 1, data[0, 0] > 100) > 0.95


def test_seeds_are_balls_in_world_units():
    ball = seeds_at(GRID, {3: [tuple(GRID.to_world(np.array([10, 10, 10])))]}, radius=1.7)
    assert ball[:, 10, 10].nonzero().flatten().tolist() == [9, 10, 11]
    assert ball[10, :, 10].nonzero().flatten().tolist() == [9, 10, 11]
    assert int((ball > 0).sum()) == 1 + 2 + 2 + 2 + 4  # centre, three axes, diagonals of y and x
    assert int(seeds_at(GRID, {3: [(0, 0, 0)]}, are_indices=True).sum()) == 3


@pytest.mark.parametrize(
    ("marked", "names", "said"),
    [
        (torch.zeros(3, 3, 3), NAMES, "the scan is"),
        (seeds() * (seeds() == 1), NAMES, "No seed for the background"),
        (seeds() * (seeds() == BACKGROUND), NAMES, "No seed for placenta"),
        (seeds(), {2: "sac"}, r"hold the values \[1\]"),
        (seeds(), {0: "sac"}, "values 1 to 254"),
    ],
)
def test_seeds_that_do_not_fit_are_refused_with_a_way_out(marked, names, said):
    with pytest.raises(ConfigError, match=said):
        random_walker_labels(speckled(), marked, names=names)


def test_points_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="outside the scan"):
        seeds_at(GRID, {1: [(500.0, 0.0, 0.0)]})
    with pytest.raises(ConfigError, match="meet at sample"):
        seeds_at(GRID, {1: [(5, 5, 5)], 2: [(5, 5, 5)]}, are_indices=True)


def test_a_constant_picture_and_clips_are_refused():
    flat = Scan(torch.full((1, 1, *GRID.shape), 50, dtype=torch.uint8), GRID)
    with pytest.raises(ConfigError, match="constant"):
        random_walker_labels(flat, seeds(), names=NAMES)
    clip = Scan(torch.zeros(2, 1, 1, 8, 8, dtype=torch.uint8), Grid((1, 8, 8)))
    with pytest.raises(KindError, match="Pick a frame"):
        random_walker_labels(clip, torch.zeros(1, 8, 8), names=NAMES)
