from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from usvol.postprocessing import components_near, enclosed, large_components, share_at_edge

masks = arrays.arrays(bool, (4, 5, 6), elements=st.booleans())


def empty(*shape):
    return np.zeros(shape or (6, 8, 10), bool)


@settings(max_examples=40, deadline=None)
@given(masks, masks, st.floats(0, 1))
def test_nothing_is_ever_added(mask, other, share):
    for kept in (
        large_components(mask, share=share),
        components_near(mask, other, reach=1),
        enclosed(mask, other),
    ):
        assert kept.dtype == bool
        assert not (kept & ~mask).any()


def test_small_parts_go_and_corners_do_not_join():
    mask = empty()
    mask[1:4, 1:4, 1:4] = True
    mask[4, 4, 4] = True  # touches by a corner
    mask[1:3, 1:4, 6:9] = True
    assert large_components(mask, share=0.5).sum() == 27 + 18
    assert large_components(mask, share=0.9).sum() == 27
    assert large_components(mask, share=0.0).sum() == mask.sum()
    assert not large_components(empty(), share=0.5).any()


def test_near_means_within_reach():
    mask, other = empty(), empty()
    mask[0, 0, 0] = mask[0, 0, 4] = True
    other[0, 0, 7] = True
    assert components_near(mask, other, reach=2).sum() == 0
    assert components_near(mask, other, reach=3).sum() == 1
    assert components_near(mask, other, reach=7).sum() == 2
    assert not components_near(mask, empty(), reach=9).any()
    assert components_near(mask, mask, reach=0).sum() == 2


def test_enclosed_parts_have_no_other_neighbour():
    by, mask = empty(), empty()
    by[1:5, 1:6, 1:6] = True
    mask[2, 3, 3] = True
    by &= ~mask
    mask[2, 3, 8] = True
    found = enclosed(mask, by)
    assert found[2, 3, 3]
    assert not found[2, 3, 8]


def test_share_at_edge_counts_the_surface_that_ends_where_the_picture_does():
    inside = empty(9, 9, 9)
    inside[:, :, 2:] = True
    middle, cut = empty(9, 9, 9), empty(9, 9, 9)
    middle[3:6, 3:6, 4:7] = True
    cut[3:6, 3:6, 2:5] = True
    assert share_at_edge(middle, inside) == 0
    assert share_at_edge(cut, inside) == pytest.approx(9 / 26)
    assert share_at_edge(empty(9, 9, 9), inside) == 0
    everywhere = np.ones((9, 9, 9), bool)
    assert share_at_edge(everywhere, everywhere) == 1
