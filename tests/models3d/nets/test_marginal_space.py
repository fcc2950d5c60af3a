from __future__ import annotations

import pytest
import torch

from models3d.nets.marginal_space import (
    POSE_NUMBERS,
    AlignedReader,
    MarginalSpace,
    PoseReader,
    SparseConvolution,
    rotations,
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_six_numbers_make_a_proper_rotation_and_zeros_make_none():
    made = rotations(torch.randn(50, 6))
    torch.testing.assert_close(made.transpose(1, 2) @ made, torch.eye(3).repeat(50, 1, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(made), torch.ones(50), atol=1e-5, rtol=0)
    assert torch.equal(rotations(torch.zeros(2, 6)), torch.eye(3).repeat(2, 1, 1))


def test_pruning_takes_the_smallest_weights_of_each_filter_and_keeps_its_norm():
    layer = SparseConvolution(2, 4, kernel=3, sparsity=0.9)
    before = layer.weight.detach().clone()
    layer.prune(0.5)
    after = layer.weight.detach()
    kept = after.flatten(1) != 0
    assert kept.sum(1).tolist() == [27] * 4
    torch.testing.assert_close(after.flatten(1).abs().sum(1), before.flatten(1).abs().sum(1))
    smallest_kept = before.flatten(1).abs().masked_fill(~kept, torch.inf).amin(1)
    largest_gone = before.flatten(1).abs().masked_fill(kept, 0).amax(1)
    assert (smallest_kept >= largest_gone).all()


def test_training_prunes_in_rounds_and_what_is_gone_stays_gone():
    layer = SparseConvolution(1, 2, kernel=3, sparsity=0.8, rounds=4, every=3).train()
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    shares = []
    for _ in range(20):
        optimiser.zero_grad()
        layer(torch.rand(1, 1, 8, 8, 8)).square().mean().backward()
        optimiser.step()
        shares.append(float((layer.active == 0).float().mean()))
    assert shares == sorted(shares)
    assert shares[2] == pytest.approx(5 / 27)
    assert shares[-1] == pytest.approx(21 / 27)
    layer.eval()
    kernel = layer.weight.detach() * layer.active
    volume = torch.rand(1, 1, 8, 8, 8)
    expected = torch.nn.functional.conv3d(volume, kernel, stride=2, padding=1)
    torch.testing.assert_close(layer(volume), expected)


def test_without_sparsity_nothing_is_pruned():
    layer = SparseConvolution(1, 2, kernel=3, sparsity=0.0, every=1).train()
    for _ in range(3):
        layer(torch.rand(1, 1, 8, 8, 8))
    assert bool(layer.active.all())
    assert int(layer.steps) == 0


@torch.no_grad()
def test_readers_answer_poses_labels_and_points():
    for side in (16, 24):
        reader = PoseReader(3, side=side, width=4).eval()
        assert reader(torch.rand(2, 3, side, side, side)).shape == (2, POSE_NUMBERS)
    reader = AlignedReader(3, 2, points=7, side=24, widths=(4, 8, 8)).eval()
    logits, points = reader(torch.rand(2, 3, 24, 24, 24))
    assert logits.shape == (2, 2, 24, 24, 24)
    assert points.shape == (2, 7, 3)


def test_all_networks_have_a_prefix_in_one_state():
    state = MarginalSpace(3, 2, points=5, sides=(16, 24, 48), width=4).state_dict()
    assert {name.split(".")[0] for name in state} == {"position", "orientation", "pose", "aligned"}
