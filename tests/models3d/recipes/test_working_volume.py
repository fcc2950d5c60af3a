from __future__ import annotations

import pytest
import torch
from skimage.morphology import convex_hull_image

from models3d.recipes.working_volume import _hull, network_input


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
