"""Clips written for previews and the demo read back as the same frames at the same times."""

from __future__ import annotations

import numpy as np
import pytest

from usvol.formats import video


def steps(count: int = 12) -> np.ndarray:
    """Frames ``t y x`` whose grey value says which they are."""
    return np.broadcast_to((20 * np.arange(count, dtype=np.uint8))[:, None, None], (count, 64, 96)).copy()


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".avi", ".mkv"])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_write_then_read(tmp_path, suffix, channels):
    frames = steps()
    if channels:
        frames = np.repeat(frames[..., None], channels, axis=-1)
    scan = video.read(video.write_video(tmp_path / f"w{suffix}", frames, fps=12.5))
    assert scan.data.shape == (12, 3, 1, 64, 96)
    tolerance = 0 if suffix == ".mkv" else 4
    assert np.abs(scan.data[:, 0, 0].numpy().astype(int) - steps()).max() <= tolerance
    assert scan.times_s == pytest.approx([0.08 * i for i in range(12)], abs=1e-3)


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_write_gif(tmp_path, channels):
    frames = steps() if channels is None else np.repeat(steps()[..., None], channels, axis=-1)
    scan = video.read(video.write_gif(tmp_path / "w.gif", frames, fps=10))
    assert np.array_equal(scan.data[:, 0, 0], steps())
    assert scan.times_s == pytest.approx([0.1 * i for i in range(12)], abs=1e-6)


def test_odd_sizes_are_padded(tmp_path):
    frames = np.full((3, 33, 47), 128, np.uint8)
    assert video.read(video.write_video(tmp_path / "odd.mp4", frames, fps=10)).grid.shape == (1, 34, 48)


def test_refusals(tmp_path):
    frames = steps()
    with pytest.raises(ValueError, match=r"\.txt"):
        video.write_video(tmp_path / "a.txt", frames, fps=10)
    with pytest.raises(ValueError, match="uint8"):
        video.write_video(tmp_path / "a.mp4", frames.astype(float), fps=10)
    with pytest.raises(ValueError, match="positive"):
        video.write_video(tmp_path / "a.mp4", frames, fps=0)
