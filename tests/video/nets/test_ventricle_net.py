from __future__ import annotations

import pytest
import torch

from video.nets.ventricle_net import VentricleNet, moments


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return VentricleNet(width=4, hidden=8).eval()


def clip(frames, *, seed=0):
    return torch.rand(1, frames, 1, 112, 112, generator=torch.Generator().manual_seed(seed)) * 255


@pytest.mark.parametrize("frames", [2, 9])
def test_a_clip_gives_masks_and_two_ejection_fractions(network, frames):
    outputs = network(clip(frames), torch.full((1, frames), 0.02))
    assert outputs.masks.shape == (1, frames, 56, 56)
    assert outputs.ef_frames.shape == outputs.ef_clip.shape == (1,)
    assert outputs.area.shape == (1, frames)
    assert 0 <= float(outputs.area.min()) <= float(outputs.area.max()) <= 1
    assert 20 < float(outputs.ef_clip) < 80


def test_the_order_of_frames_is_the_lstms_business_only(network):
    steps = torch.full((1, 6), 0.02)
    forward, mixed = (network(frames, steps) for frames in (clip(6), clip(6)[:, [3, 0, 5, 1, 4, 2]]))
    torch.testing.assert_close(forward.ef_frames, mixed.ef_frames, atol=1e-3, rtol=1e-4)
    moved = forward.area[:, [3, 0, 5, 1, 4, 2]] - mixed.area
    assert float(moved.detach().abs().max()) > 1e-6


def test_moments_of_a_known_rectangle():
    chance = torch.zeros(1, 101, 101)
    chance[:, 20:61, 40:61] = 1
    area, cy, cx, sy, sx = moments(chance)[0].tolist()
    assert area == pytest.approx(4 * 41 * 21 / 101**2, rel=1e-3)
    assert (cy, cx) == (pytest.approx(0.4, abs=1e-3), pytest.approx(0.5, abs=1e-3))
    assert sy / 4 == pytest.approx(0.41 / 12**0.5, rel=0.02)
    assert sx / 4 == pytest.approx(0.21 / 12**0.5, rel=0.02)


def test_every_weight_learns():
    learner = VentricleNet(width=4, hidden=8).train()
    outputs = learner(clip(3), torch.full((1, 3), 0.02))
    total = (
        outputs.masks.square().mean() + outputs.ef_frames.square().mean() + outputs.ef_clip.square().mean()
    )
    (total + outputs.area.mean()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in learner.parameters())
