from __future__ import annotations

import itertools

import pytest
import torch

from models3d.nets.fcn_rnn import FCN, ORDERS, BrickReader, Segmenter, cut, halve, joined, lapped

SMALL = {"widths": (4, 8, 8), "depth": 1}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def reader(**options):
    return BrickReader(3, brick=4, code=8, hidden=6, **options).eval()


def taught(module):
    """Give the last layer weights, which start at 0."""
    torch.nn.init.normal_(module.decode.weight)
    return module


def test_the_fcn_answers_every_voxel_and_supervises_at_three_scales():
    full, middle, coarse, maps = FCN(2, 3, **SMALL).all_scales(torch.rand(2, 2, 16, 24, 8))
    assert full.shape == (2, 3, 16, 24, 8)
    assert middle.shape == (2, 3, 4, 6, 2)
    assert coarse.shape == (2, 3, 2, 3, 1)
    assert maps.shape == (2, 8, 2, 3, 1)


def test_bricks_overlap_by_half_and_are_where_they_say():
    volume = torch.rand(2, 3, 8, 12, 4)
    bricks = cut(volume, brick=4)
    assert bricks.shape == (2, 3, 5, 1, 3, 4, 4, 4)
    for z, y in itertools.product(range(3), range(5)):
        assert torch.equal(bricks[:, z, y, 0], volume[:, :, 2 * z : 2 * z + 4, 2 * y : 2 * y + 4])


def test_joining_undoes_cutting_and_averages_what_overlaps():
    volume = torch.rand(2, 3, 8, 12, 4)
    assert torch.allclose(joined(cut(volume, brick=4), brick=4), volume)
    bricks = torch.zeros(1, 2, 1, 1, 1, 4, 4, 4)
    bricks[:, 1] = 1
    assert joined(bricks, brick=4)[0, 0, :, 0, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1]


def test_overlaps_are_averaged_along_chosen_axes_only():
    bricks = torch.arange(3.0).reshape(1, 3, 1, 1, 1, 1, 1, 1).expand(1, 3, 2, 1, 1, 4, 4, 4)
    planes = lapped(bricks, axes=(1, 2), brick=4)
    assert planes.shape == (1, 3, 3, 2, 1, 4, 2, 2)
    assert planes[0, :, 0, 0, 0, 0, 0, 0].tolist() == [0, 1, 2]


def test_every_axis_is_the_slowest_of_one_order():
    assert sorted(order[0] for order in ORDERS) == [0, 1, 2]
    assert all(sorted(order) == [0, 1, 2] for order in ORDERS)


def test_an_untrained_reader_changes_nothing():
    network = Segmenter(FCN(2, 3, **SMALL), reader()).eval()
    volumes = torch.rand(1, 2, 16, 16, 16)
    logits, features = network(volumes)
    assert torch.allclose(logits, network.fcn(volumes))
    assert features.shape == (1, 4 + 8 + 8)


def test_features_are_means_over_the_picture_at_all_scales():
    network = Segmenter(FCN(2, 3, **SMALL)).eval()
    volumes = torch.rand(1, 2, 16, 16, 16)
    volumes[:, 1] = 0
    volumes[:, 1, :8] = 1
    fine, middle, coarse = network.fcn.encoded(volumes)
    half = [maps[:, :, : maps.shape[2] // 2].mean((2, 3, 4)) for maps in (fine, middle, coarse)]
    torch.testing.assert_close(network(volumes)[1], torch.cat(half, 1))


def test_the_order_of_bricks_matters_and_orders_differ():
    chances = torch.softmax(torch.randn(1, 3, 8, 8, 8), 1)
    answers = taught(reader()).each_order(chances)
    assert len(answers) == 3
    assert all(a.shape == (1, 3, 3, 3, 3, 4, 4, 4) for a in answers)
    assert not torch.allclose(answers[0], answers[1], atol=1e-4)


def test_orders_follow_their_axes():
    """A volume with its axes turned by one gives the first order what the next order had."""
    chances = torch.softmax(torch.randn(1, 3, 8, 8, 8), 1)
    module = taught(reader())
    symmetric = module.encode.weight.reshape(8, 3, 4, 4, 4)
    turns = [symmetric.permute(0, 1, *(2 + (a + k) % 3 for a in range(3))) for k in range(3)]
    with torch.no_grad():
        # Codes that do not tell the axes of a brick apart.
        module.encode.weight.copy_(sum(turns).reshape(8, -1) / 3)
    codes = [a.flatten(4).mean(-1) for a in module.each_order(chances)]
    turned = [a.flatten(4).mean(-1) for a in module.each_order(chances.permute(0, 1, 3, 4, 2))]
    assert torch.allclose(turned[0], codes[1].permute(0, 2, 3, 1), atol=1e-5)


def test_the_last_brick_reaches_the_first_and_back():
    """Both directions are read along the whole sequence."""
    chances = torch.full((1, 3, 8, 8, 8), 1 / 3)
    module = taught(reader())
    for changed, looked_at in ((0, -1), (-1, 0)):
        other = chances.clone()
        other[:, 0, changed, changed, changed] += 0.3
        before, after = (
            module.each_order(c)[0][0, looked_at, looked_at, looked_at] for c in (chances, other)
        )
        assert not torch.equal(before, after)


def test_only_the_reader_learns():
    network = Segmenter(FCN(2, 3, **SMALL), reader())
    learning = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert learning == {"reader"}
    network.train()
    assert network.reader.training
    assert not any(module.training for module in network.fcn.modules())
    assert all(p.requires_grad for p in Segmenter(FCN(2, 3, **SMALL)).parameters())


def test_halving_keeps_probabilities():
    logits = torch.randn(1, 3, 4, 4, 4)
    halved = halve(logits).exp()
    assert torch.allclose(halved.sum(1), torch.ones(1, 2, 2, 2), atol=1e-4)
    assert torch.allclose(halved[0, :, 0, 0, 0], torch.softmax(logits, 1)[0, :, :2, :2, :2].mean((1, 2, 3)))


def test_an_odd_brick_is_refused():
    with pytest.raises(ValueError, match="even side"):
        BrickReader(3, brick=5)
