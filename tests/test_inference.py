from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from usvol.inference import sliding_window, temporal_windows, window_starts, with_flips


def test_sliding_window_of_a_pointwise_network_is_the_network():
    torch.manual_seed(0)
    network = nn.Conv3d(1, 3, 1)
    volume = torch.rand(1, 1, 19, 30, 23)
    shapes = []

    def watched(block):
        shapes.append(tuple(block.shape))
        return network(block)

    answer = sliding_window(watched, volume, window=(8, 16, 16), overlap=0.25, batch=2)
    torch.testing.assert_close(answer, network(volume).detach(), rtol=1e-4, atol=1e-5)
    assert {shape[1:] for shape in shapes} == {(1, 8, 16, 16)}
    assert len(shapes) > 1


def test_sliding_window_of_a_volume_smaller_than_the_window():
    answer = sliding_window(lambda block: block * 2, torch.ones(1, 1, 3, 20, 5), window=(8, 8, 8))
    torch.testing.assert_close(answer, torch.full((1, 1, 3, 20, 5), 2.0))


def test_sliding_window_refuses_what_it_cannot_blend():
    with pytest.raises(TypeError, match="one tensor"):
        sliding_window(lambda block: (block, block), torch.ones(1, 1, 8, 8, 8), window=(8, 8, 8))


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 40))
def test_windows_cover_every_frame_and_stay_inside(frames, length, stride):
    if frames < length or stride > length:
        with pytest.raises(ValueError, match=r"windows|skips"):
            list(window_starts(frames, length, stride=stride))
        return
    starts = list(window_starts(frames, length, stride=stride))
    assert starts == sorted(set(starts))
    covered = {frame for start in starts for frame in range(start, start + length)}
    assert covered == set(range(frames))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(1, 16), st.integers(1, 4))
def test_a_framewise_network_does_not_notice_the_windows(frames, length, batch):
    clip = torch.arange(frames * 6, dtype=torch.float32).reshape(frames, 1, 2, 3)
    answer = temporal_windows(lambda w: w.sum((2, 3, 4))[..., None] * 2, clip, length=length, batch=batch)
    assert answer.shape == (frames, 1)
    torch.testing.assert_close(answer[:, 0], 2 * clip.sum((1, 2, 3)))


def test_the_middle_of_a_window_counts_more_than_its_edge():
    # Windows start at 0 and 2; the network answers with the position in the window.
    clip = torch.zeros(6, 1)
    answer = temporal_windows(lambda w: torch.arange(4.0).expand(len(w), 4), clip, length=4, stride=2)
    # Frame 2 is position 2 (weight 2) of the first window and 0 (weight 1) of the second.
    torch.testing.assert_close(answer, torch.tensor([0, 1, (2 * 2 + 0) / 3, (3 + 2 * 1) / 3, 2, 3]))


def test_a_short_clip_is_continued_with_its_last_frame():
    seen = []
    answer = temporal_windows(lambda w: seen.append(w) or w, torch.tensor([1.0, 2.0]), length=4)
    assert seen[0].tolist() == [[1.0, 2.0, 2.0, 2.0]]
    assert answer.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="without frames"):
        temporal_windows(lambda w: w, torch.zeros(0, 1), length=4)


def test_flips_of_an_equivariant_network_agree():
    sample = torch.rand(1, 1, 5, 6, 7)
    calls = []
    mean, sd = with_flips(lambda x: calls.append(x) or x * 3, sample, dims=(2, 3, 4), spatial=True)
    assert len(calls) == 8
    assert len({tuple(x.flatten().tolist()) for x in calls}) == 8
    torch.testing.assert_close(mean, sample * 3)
    assert float(sd.max()) < 1e-6


def test_flips_show_the_spread_of_a_score():
    # The score is the left pixel: 1 as it is, 3 when flipped.
    sample = torch.tensor([[1.0, 2.0, 3.0]])
    mean, sd = with_flips(lambda x: x[:, 0], sample, dims=(1,), spatial=False)
    assert mean.tolist() == [2.0]
    assert sd.tolist() == [1.0]
