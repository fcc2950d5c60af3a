from __future__ import annotations

import pytest
import torch

from usvol.training import augmentation
from usvol.training.augmentation import (
    blank_patch,
    shade_beams,
    vary_beam_clips,
    vary_gain,
    vary_geometry,
)

SIZE = (48, 40)


@pytest.fixture
def stills():
    """Six clips, each of five equal frames, with structure in every direction."""
    torch.manual_seed(0)
    frames = torch.nn.functional.interpolate(torch.rand(6, 1, 9, 7), SIZE, mode="bicubic").clamp(0, 1) * 255
    return frames.repeat(1, 5, 1, 1)


def frames_agree(clips: torch.Tensor) -> bool:
    return torch.allclose(clips, clips[:, :1].expand_as(clips), atol=1e-3)


@pytest.mark.parametrize(
    "vary",
    [
        lambda clips: vary_geometry(clips, size=SIZE),
        vary_gain,
        lambda clips: shade_beams(clips, chance=1.0),
        lambda clips: blank_patch(clips, chance=1.0),
    ],
    ids=["geometry", "gain", "shade", "patch"],
)
def test_all_frames_of_a_clip_change_alike_and_clips_differently(vary, stills):
    torch.manual_seed(1)
    stills = stills[:1].repeat(6, 1, 1, 1)
    varied = vary(stills)
    assert varied.shape == stills.shape
    assert not torch.allclose(varied, stills, atol=1)
    assert frames_agree(varied)
    assert any(not torch.allclose(varied[0], other, atol=1) for other in varied[1:])


def test_only_noise_differs_between_the_frames_of_a_clip(stills, monkeypatch):
    torch.manual_seed(2)
    assert not frames_agree(vary_beam_clips(stills, size=SIZE))
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    assert frames_agree(vary_beam_clips(stills, size=SIZE))


@pytest.mark.parametrize("seed", range(8))
def test_grey_levels_stay_within_0_and_255(seed, stills):
    torch.manual_seed(seed)
    extreme = torch.where(stills > 128, 255.0, 0.0)
    varied = vary_beam_clips(extreme, size=(32, 64))
    assert varied.shape == (6, 5, 32, 64)
    assert varied.dtype == torch.float32
    assert bool(varied.isfinite().all())
    assert 0 <= float(varied.min()) <= float(varied.max()) <= 255
    assert float(varied.max()) > 100


def test_strength_0_leaves_the_geometry_alone_but_for_mirroring(stills):
    torch.manual_seed(3)
    clips = torch.cat([stills] * 4)
    varied = vary_geometry(clips, size=SIZE, strength=0.0)
    same = [torch.allclose(a, b, atol=0.05) for a, b in zip(varied, clips, strict=True)]
    mirrored = [torch.allclose(a, b.flip(-1), atol=0.05) for a, b in zip(varied, clips, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert any(same) and any(mirrored)


def test_a_seed_repeats_it_and_the_input_is_left_alone(stills):
    before = stills.clone()
    torch.manual_seed(4)
    first = vary_beam_clips(stills, size=SIZE)
    torch.manual_seed(4)
    assert torch.equal(first, vary_beam_clips(stills, size=SIZE))
    assert torch.equal(stills, before)
    assert not torch.equal(first, vary_beam_clips(stills, size=SIZE))


def test_gain_keeps_the_order_of_grey_levels_at_a_depth():
    torch.manual_seed(5)
    ramp = torch.linspace(0, 255, 40).expand(4, 2, 48, 40)
    assert bool((vary_gain(ramp).diff(dim=-1) > 0).all())


def test_chance_0_changes_nothing(stills):
    assert torch.equal(shade_beams(stills, chance=0.0), stills)
    assert torch.equal(blank_patch(stills, chance=0.0), stills)


def test_a_patch_is_one_rectangle_of_at_most_a_third_of_each_side():
    torch.manual_seed(6)
    for clip in augmentation.blank_patch(torch.full((20, 2, *SIZE), 9.0), chance=1.0):
        rows, columns = (clip[0] == 0).any(1), (clip[0] == 0).any(0)
        height, width = int(rows.sum()), int(columns.sum())
        assert 0 < height <= SIZE[0] // 3
        assert 0 < width <= SIZE[1] // 3
        assert int((clip[0] == 0).sum()) == height * width
