from __future__ import annotations

import torch

from models3d.nets.head_pose import POSE_NUMBERS, HeadFinder, PlaneNetwork, PoseReader, frame_of

WIDTHS = (4, 6, 8)


def test_finder_answers_at_half_resolution():
    finder = HeadFinder(3, widths=WIDTHS)
    assert finder(torch.rand(2, 3, 16, 24, 16)).shape == (2, 8, 12, 8)


def test_reader_gives_the_numbers_of_a_pose_and_learns_every_weight():
    reader = PoseReader(3, side=16, widths=WIDTHS)
    numbers = reader(torch.rand(4, 3, 16, 16, 16))
    assert numbers.shape == (4, POSE_NUMBERS)
    (frame_of(numbers).sum() + numbers[:, 6:].sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in reader.parameters())


def test_frames_are_orthonormal_with_left_as_forward_by_up():
    torch.manual_seed(0)
    frames = frame_of(torch.randn(64, POSE_NUMBERS))
    eye = torch.eye(3).expand(64, 3, 3)
    torch.testing.assert_close(frames.mT @ frames, eye, atol=1e-5, rtol=0)
    torch.testing.assert_close(frames[:, :, 1], torch.linalg.cross(frames[:, :, 0], frames[:, :, 2]))
    given = torch.zeros(1, POSE_NUMBERS)
    given[0, 0], given[0, 5] = 2.0, 3.0
    torch.testing.assert_close(frame_of(given)[0, :, ::2], torch.eye(3)[:, ::2])


def test_the_three_networks_fit_in_one_small_file():
    network = PlaneNetwork(3, sides=(24, 32), widths=(20, 40, 80))
    assert 2 * sum(p.numel() for p in network.parameters()) < 8e6, "float16, bytes"
