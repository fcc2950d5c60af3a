from __future__ import annotations

import numpy as np
import pytest
import torch

from usvol.result import Labels
from usvol.scan import Grid, Scan, Source
from usvol.training.cases import Case
from video.recipes.echo_clips import (
    SIDE,
    drawn_window,
    framed,
    prepare,
    prepare_labelled,
    read_labels,
    steps_s,
    varied,
)


def cine(*, frames=4, spacing=(1.0, 1.0, 1.0), times=True, indices=None):
    grid = Grid((1, 90, 150), spacing)
    data = torch.zeros(frames, 1, 1, 90, 150, dtype=torch.uint8)
    data[..., 30:60, 50:100] = 200
    source = Source(frame_indices=indices)
    return Scan(data, grid, tuple(n / 25 for n in range(frames)) if times else None, source)


def test_a_cine_fills_a_square_without_being_stretched():
    square = framed(cine())
    assert square.data.shape == (4, 1, 1, SIDE, SIDE)
    assert square.grid.spacing_mm[1] == pytest.approx(square.grid.spacing_mm[2], rel=0.02)
    bright = square.data[0, 0, 0] > 100
    height, width = bright.any(1).sum(), bright.any(0).sum()
    assert float(width / height) == pytest.approx(50 / 30, rel=0.1)
    # what lies where in the world stays there
    centre = square.grid.to_world(
        np.array([0, *(float(v.float().mean()) for v in bright.nonzero(as_tuple=True))])
    )
    assert centre[1:] == pytest.approx([44.5, 74.5], abs=1)
    tall = framed(cine(spacing=(3.0, 3.0, 1.0)))
    assert tall.data.shape[-2:] == (SIDE, SIDE)
    assert not tall.data[..., :20].any()


def test_masks_lie_on_the_square_and_keep_their_frames():
    scan = cine(frames=4)
    data = (scan.data[[1, 3], 0] > 0).to(torch.uint8)
    labels = Labels("reference", data, scan.grid, {1: "left_ventricle"}, frame_indices=(1, 3))
    kept = prepare_labelled(scan, labels)
    assert kept["mask_frames"].tolist() == [1, 3]
    bright = kept["frames"][1] > 100
    overlap = (kept["masks"][0] & bright).sum() / (kept["masks"][0] | bright).sum()
    assert float(overlap) > 0.9


def test_masks_of_frames_that_were_not_decoded_are_left_out():
    scan = cine(frames=3, indices=(0, 4, 8))
    labels = Labels(
        "r", torch.ones(2, 1, 90, 150, dtype=torch.uint8), scan.grid, {1: "lv"}, frame_indices=(4, 5)
    )
    kept = prepare_labelled(scan, labels)
    assert kept["mask_frames"].tolist() == [1]
    assert kept["masks"].shape == (1, SIDE, SIDE)


def test_unknown_times_stay_unknown():
    kept = prepare(cine(times=False))
    assert not bool(kept["times_s"].isfinite().any())
    assert steps_s(kept["times_s"]).tolist() == [0, 0, 0, 0]
    assert steps_s(prepare(cine())["times_s"]).tolist() == pytest.approx([0.04] * 4)


@pytest.mark.parametrize("frames", [3, 12, 60])
def test_windows_are_of_one_length_and_keep_a_beat_whole(frames):
    torch.manual_seed(0)
    sample = {"frames": torch.zeros(frames, 2, 2), "times_s": torch.arange(frames) / 20}
    for _ in range(20):
        chosen = drawn_window(sample, length=10)
        assert len(chosen) == 10
        assert 0 <= int(chosen.min()) <= int(chosen.max()) < frames
        assert bool((chosen.diff() >= 0).all())
        if frames == 60:
            beat = drawn_window(sample, length=10, around_s=(1.0, 2.0))
            assert int(beat[0]) <= 20 and int(beat[-1]) >= 40


def test_masks_go_where_the_picture_goes():
    torch.manual_seed(0)
    clips = torch.zeros(6, 3, SIDE, SIDE)
    clips[:, :, 40:80, 30:60] = 200
    moved, masks = varied(clips, (clips > 0).float(), strength=1.0)
    assert masks is not None
    for clip, mask in zip(moved, masks, strict=True):
        inside, outside = clip[mask > 0.9].mean(), clip[mask < 0.1].mean()
        assert float(inside) > 3 * float(outside)
    same, _ = varied(clips, None, strength=0.0)
    assert same.shape == clips.shape


def test_only_what_somebody_outlined_has_labels(tmp_path):
    assert read_labels(Case("a", "a", tmp_path, dataset="unity_echophase")) is None
    assert read_labels(Case("a", "a", tmp_path, {"outlines": {}}, dataset="echonet_dynamic")) is None
