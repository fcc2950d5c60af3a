from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from skimage.morphology import convex_hull_image

from models3d.recipes.working_volume import _hull, in_picture, network_input, picture_of


@pytest.mark.parametrize("seed", range(4))
def test_the_hull_is_that_of_scikit_image(seed):
    mask = torch.rand(20, 16, 24, generator=torch.Generator().manual_seed(seed)) > 0.995
    hull = _hull(mask)
    assert torch.equal(hull, torch.from_numpy(convex_hull_image(mask.numpy(), offset_coordinates=False)))
    assert hull.sum() > mask.sum()


def test_a_mask_that_spans_no_volume_is_its_own_hull():
    flat = torch.zeros(8, 8, 8, dtype=torch.bool)
    assert torch.equal(_hull(flat), flat)
    flat[3, 2:6, 2:6] = True
    assert torch.equal(_hull(flat), flat)


def test_ranks_count_what_lies_inside_only():
    grey = torch.arange(1.0, 65.0).reshape(4, 4, 4)
    mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    mask[:2] = True
    _, rank, inside = network_input(grey, mask)
    assert torch.equal(inside > 0, mask)
    assert not rank[~mask].any()
    assert rank[mask].mean() == pytest.approx(0.5, abs=1e-3)
    assert torch.equal(rank[mask].argsort(), torch.arange(32))


def test_the_picture_lies_between_lit_samples_along_every_axis():
    volume = torch.zeros(12, 14, 16, dtype=torch.uint8)
    volume[3:9, 4:12, 5:13] = 80
    volume[5:7, 6:8, 7:11] = 0  # a shadow in it
    volume[3:5, 4:6, 5:7] = 0  # a corner that is black
    places = np.array(
        [[6, 7, 9], [3, 4, 9], [3, 4, 5], [2, 7, 9], [8, 11, 12], [6, 12, 9], [-1, 7, 9], [6, 7, 40]]
    )
    sector = torch.zeros(volume.shape, dtype=torch.bool)
    sector[2:10, 3:13, 4:14] = True  # in blocks, larger than the picture
    seen = in_picture(volume, sector, places=places + 0.3)
    assert seen.tolist() == [True, True, False, False, True, False, False, False]
    whole = in_picture(volume, torch.ones_like(sector), places=places + 0.3)
    assert whole.tolist() == [True] * 6 + [False] * 2, "nothing around it: black is shadow"
    everywhere = torch.ones_like(volume).nonzero()
    part = in_picture(volume, sector, places=everywhere.numpy()).reshape(volume.shape) & sector.numpy()
    inner = torch.from_numpy(binary_erosion(part, np.ones((3, 3, 3))))
    assert inner.any() and torch.equal(picture_of(volume, sector), inner)
    assert bool(picture_of(volume, torch.ones_like(sector)).all())
