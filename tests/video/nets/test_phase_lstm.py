from __future__ import annotations

import pytest
import torch

from video.nets.phase_lstm import PhaseLSTM, time_inputs


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return PhaseLSTM(width=4, hidden=8).eval()


def clip(frames, *, seed=0):
    return torch.rand(1, frames, 1, 112, 112, generator=torch.Generator().manual_seed(seed)) * 255


@pytest.mark.parametrize("frames", [1, 2, 17])
def test_any_number_of_frames_gives_one_answer_each(network, frames):
    outputs = network(clip(frames), torch.full((1, frames), 0.02))
    assert outputs.shape == (1, frames, 3)
    assert bool(outputs.isfinite().all())


def test_clips_of_a_batch_do_not_mix(network):
    both = torch.cat([clip(5), clip(5, seed=1)])
    steps = torch.full((2, 5), 0.02)
    torch.testing.assert_close(network(both, steps)[:1], network(both[:1], steps[:1]), atol=1e-5, rtol=1e-4)


def test_the_time_between_frames_matters(network):
    slow, quick = (network(clip(6), torch.full((1, 6), step)) for step in (0.05, 0.01))
    assert float((slow - quick).detach().abs().max()) > 1e-4


def test_an_unknown_step_is_told_apart_from_the_usual_one():
    assert time_inputs(torch.tensor([[0.0, 0.025]])).tolist() == [[[0.0, 0.0], [0.0, 1.0]]]


def test_every_weight_learns(network):
    learner = PhaseLSTM(width=4, hidden=8).train()
    embedded = learner.encoder(clip(4))
    answers = learner.read(embedded, torch.full((1, 4), 0.02))
    (answers.square().sum() + learner.size(embedded).square().sum()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in learner.parameters())
