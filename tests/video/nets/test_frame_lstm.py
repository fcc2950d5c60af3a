from __future__ import annotations

import pytest
import torch
from torch import nn

from video.nets.frame_lstm import FrameLSTM, Readers, Residual, with_contrast


@pytest.fixture
def net():
    torch.manual_seed(0)
    return FrameLSTM(5, width=4, hidden=6).eval()


def clips(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 255


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 32, 32), (2, 7, 1, 128, 112), (3, 2, 1, 33, 57), (1, 40, 1, 64, 48)]
)
@torch.no_grad()
def test_answers_have_a_row_per_frame_and_per_clip_for_any_size(net, shape):
    frames, clip = net(clips(*shape))
    assert frames.shape == (*shape[:2], 5)
    assert clip.shape == (shape[0], 5)
    assert bool(frames.isfinite().all())
    torch.testing.assert_close(frames.mean(1), clip)


@torch.no_grad()
def test_the_clip_answer_is_read_off_the_features_alone(net):
    batch = clips(2, 6, 1, 64, 48)
    features = net.features(batch)
    assert features.shape == (2, 6, net.head.in_features)
    torch.testing.assert_close(net.head(features).mean(1), net(batch)[1])
    torch.testing.assert_close(net.head(features.mean(1)), net(batch)[1])


@torch.no_grad()
def test_each_clip_of_a_batch_is_answered_by_itself(net):
    batch = clips(3, 4, 1, 64, 48)
    together = net(batch)[0]
    for i in range(3):
        torch.testing.assert_close(net(batch[i : i + 1])[0][0], together[i], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_frames_are_embedded_alone_but_answered_in_context(net):
    batch = clips(1, 6, 1, 64, 48)
    changed = batch.clone()
    changed[:, 5] = 0
    embedded, other = net.embed(batch), net.embed(changed)
    torch.testing.assert_close(embedded[:, :5], other[:, :5], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(embedded[:, 5], other[:, 5], atol=1e-3)
    assert float((net(batch)[0] - net(changed)[0])[:, 4].abs().max()) > 1e-5


@torch.no_grad()
def test_played_backwards_a_frame_keeps_its_embedding_and_changes_its_answer(net):
    batch = clips(1, 6, 1, 64, 48)
    torch.testing.assert_close(net.embed(batch.flip(1)).flip(1), net.embed(batch), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(net(batch.flip(1))[0].flip(1), net(batch)[0], atol=1e-6)


@torch.no_grad()
def test_bands_tell_depths_apart_and_no_lines():
    torch.manual_seed(0)
    net = FrameLSTM(3, width=4, bands=4).eval()
    shallow = torch.full((1, 1, 1, 128, 128), 30.0)
    deep = shallow.clone()
    shallow[..., 8:24, :] = 200
    deep[..., 104:120, :] = 200
    assert not torch.allclose(net.embed(shallow), net.embed(deep), atol=1e-3)
    left, right = (torch.full((1, 1, 1, 128, 128), 30.0) for _ in range(2))
    left[..., 40:56] = 200
    right[..., 72:88] = 200
    far = (net.embed(shallow) - net.embed(deep)).norm()
    assert float((net.embed(left) - net.embed(right)).norm()) < 0.2 * float(far)


@torch.no_grad()
def test_readers_stand_side_by_side():
    torch.manual_seed(0)
    readers = Readers([FrameLSTM(5, width=4) for _ in range(3)]).eval()
    batch = clips(2, 3, 1, 48, 48)
    answers = readers(batch)
    assert answers.shape == (2, 3, 3, 5)
    for index, reader in enumerate(readers.each()):
        torch.testing.assert_close(answers[:, :, index], reader(batch)[0])
    assert not torch.allclose(answers[:, :, 0], answers[:, :, 1])


def test_every_weight_learns():
    torch.manual_seed(0)
    net = FrameLSTM(5, width=4, dropout=0.0)
    net(clips(2, 3, 1, 48, 48))[1].square().sum().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not idle


def test_dropout_is_random_in_training_and_off_in_evaluation(net):
    batch = clips(1, 3, 1, 48, 48)
    assert torch.equal(net(batch)[0], net(batch)[0])
    net.dropout.train()
    assert not torch.equal(net(batch)[0], net(batch)[0])


@torch.no_grad()
def test_a_residual_block_halves_and_mirrors_with_its_input():
    torch.manual_seed(0)
    block = Residual(4, 6, stride=1).eval()
    maps = torch.rand(2, 4, 16, 12)
    assert block(maps).shape == (2, 6, 16, 12)
    assert Residual(4, 6, stride=2).eval()(maps).shape == (2, 6, 8, 6)
    for part in block.modules():  # symmetric kernels commute with mirroring, so the wiring must
        if isinstance(part, nn.Conv2d):
            part.weight.copy_((part.weight + part.weight.flip(-1)) / 2)
    torch.testing.assert_close(block(maps.flip(-1)).flip(-1), block(maps), rtol=1e-4, atol=1e-5)


def texture(gain=1.0):
    """Speckle bright enough that the logarithm's foot at 8 grey levels hardly counts."""
    generator = torch.Generator().manual_seed(3)
    smooth = torch.nn.functional.avg_pool2d(torch.rand(1, 1, 100, 100, generator=generator), 5, stride=1)
    return (60 + 150 * smooth) * gain


def test_gain_leaves_the_detail_channel_alone_and_moves_brightness():
    one, louder = with_contrast(texture()), with_contrast(texture(1.2))
    brightness, detail = (louder - one).abs().mean((0, 2, 3)).tolist()
    assert brightness > 0.15
    assert detail < 0.05 * brightness
    assert detail < 0.02 * float(one[:, 1].std())


def test_contrast_is_finite_on_black_flat_and_saturated_pictures():
    for level in (0.0, 128.0, 255.0):
        channels = with_contrast(torch.full((2, 1, 37, 50), level))
        assert channels.shape == (2, 2, 37, 50)
        assert bool(channels.isfinite().all())
        torch.testing.assert_close(channels[:, 1], torch.zeros(2, 37, 50), atol=1e-4, rtol=0)


def test_contrast_mirrors_with_its_picture_where_cells_fit():
    picture = texture()
    torch.testing.assert_close(
        with_contrast(picture.flip(-1)).flip(-1), with_contrast(picture), rtol=1e-4, atol=1e-4
    )
