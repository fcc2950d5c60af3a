from __future__ import annotations

import pytest
import torch

from models3d.nets.deepmedic import MAPS, MARGIN, DeepMedic


@pytest.fixture
def network():
    torch.manual_seed(0)
    return DeepMedic(2, 3, hidden=8).eval()


@torch.no_grad()
def test_whole_volumes_are_answered_voxel_by_voxel(network):
    logits, features = network(torch.rand(1, 2, 9, 12, 6))
    assert logits.shape == (1, 3, 9, 12, 6)
    assert features.shape == (1, MAPS[-1])


@torch.no_grad()
def test_a_segment_is_answered_as_in_its_volume(network):
    volume = torch.rand(1, 2, 9 + 2 * MARGIN, 9 + 2 * MARGIN, 9 + 2 * MARGIN)
    whole = network(volume)[0]
    segment = network.segment(volume)
    middle = whole[..., MARGIN:-MARGIN, MARGIN:-MARGIN, MARGIN:-MARGIN]
    assert segment.shape == middle.shape == (1, 3, 9, 9, 9)
    assert torch.allclose(segment, middle, atol=1e-4)


@torch.no_grad()
def test_both_pathways_see_what_they_should(network):
    """A voxel 8 away reaches the fine pathway; one 20 away only the context."""
    blocks = torch.rand(1, 2, *[3 + 2 * MARGIN] * 3)
    centre = MARGIN + 1
    for distance, fine_changes in ((7, True), (20, False)):
        other = blocks.clone()
        other[:, :, centre + distance, centre, centre] += 3
        change = (network._maps(other) - network._maps(blocks)).abs()[0, :, 1, 1, 1]
        assert bool(change[: MAPS[-1]].any()) is fine_changes
        assert bool(change[MAPS[-1] :].any())
