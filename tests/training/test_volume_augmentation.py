from __future__ import annotations

import pytest
import torch

from usvol.training.volume_augmentation import LabelledVolume, cut_view, vary_picture, vary_pose


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def volume(shape=(24, 32, 40)):
    """Grey levels that are the label over 4, so that both can be seen to move together."""
    labels = torch.zeros(shape, dtype=torch.uint8)
    labels[6:18, 8:22, 10:28] = 2
    labels[8:16, 12:18, 16:24] = 3
    mask = torch.ones(shape, dtype=torch.bool)
    mask[:, :, :4] = False
    return LabelledVolume(labels.float() / 4 * mask, mask, labels)


def test_without_strength_the_pose_stays():
    before = volume()
    after = vary_pose(before, side=40, strength=0.0)
    assert torch.equal(after.labels[8:32, 4:36], before.labels)
    assert torch.equal(after.mask[8:32, 4:36], before.mask)
    assert not after.mask[:8].any()


def test_labels_move_with_the_picture():
    overlaps, poses = [], []
    for _ in range(12):
        moved = vary_pose(volume(), side=32)
        assert moved.grey.shape == moved.labels.shape == moved.mask.shape == (32, 32, 32)
        assert not moved.grey[~moved.mask].any()
        fetus = moved.labels == 3
        overlaps.append(float(moved.grey[fetus].mean()))
        poses.append(tuple(fetus.nonzero().float().mean(0).round().int().tolist()))
    assert min(overlaps) > 0.55
    assert len(set(poses)) > 6


def test_frames_reach_from_the_whole_view_to_what_is_labelled():
    shares = [float((vary_pose(volume(), side=24).labels > 0).float().mean()) for _ in range(40)]
    assert min(shares) < 0.06
    assert max(shares) > 0.15


def test_a_cut_takes_picture_and_labels_but_not_most_of_them():
    whole = volume()
    cuts = [cut_view(whole, chance=1.0) for _ in range(12)]
    assert any(int(c.mask.sum()) < int(whole.mask.sum()) for c in cuts)
    for cut in cuts:
        assert not cut.labels[~cut.mask].any() or torch.equal(cut.mask, whole.mask)
        assert int((cut.labels > 0).sum()) >= 0.5 * int((whole.labels > 0).sum())
    assert cut_view(whole, chance=0.0) is whole


def test_pictures_stay_in_range_and_in_their_sector():
    whole = volume()
    pictures = [vary_picture(whole.grey, whole.mask, strength=1.5) for _ in range(12)]
    for picture in pictures:
        assert picture.isfinite().all()
        assert 0 <= float(picture.min()) <= float(picture.max()) <= 1
        assert not picture[~whole.mask].any()
    assert len({round(float(p.mean()), 4) for p in pictures}) > 8
    assert torch.equal(vary_picture(whole.grey, whole.mask, strength=0.0), whole.grey)


def test_the_same_seed_gives_the_same_volume():
    answers = []
    for _ in range(2):
        torch.manual_seed(3)
        moved = vary_pose(volume(), side=24)
        answers.append(vary_picture(moved.grey, moved.mask))
    assert torch.equal(*answers)


def test_boundaries_of_labels_stay_where_they_are_when_sampled_anew():
    """Of a ball, drawn coarsely and sampled finer; the labels of the nearest voxels overlap by 0.95."""
    places = torch.stack(torch.meshgrid(*[torch.arange(24) - 11.5] * 3, indexing="ij"), -1)
    ball = (places.norm(dim=-1) < 7.3).to(torch.uint8)
    fine = vary_pose(LabelledVolume(ball.float(), torch.ones_like(ball).bool(), ball), side=60, strength=0.0)
    exact = torch.stack(torch.meshgrid(*[(torch.arange(60) - 29.5) / 2.5] * 3, indexing="ij"), -1)
    true, found = exact.norm(dim=-1) < 7.3, fine.labels == 1
    assert float(2 * (true & found).sum() / (true.sum() + found.sum())) > 0.96
