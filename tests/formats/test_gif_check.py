"""GIFs: cut ones are no stills, whole ones may be, and their delays are their frame times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from usvol.errors import CorruptFileError, TruncatedFileError
from usvol.formats import video
from usvol.scan import Kind


def save(path: Path, delays_ms: list[int]) -> Path:
    """Write one frame of coarse speckle per delay."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 8, (len(delays_ms), 24, 32), dtype=np.uint8) * 32
    first, *others = (Image.fromarray(frame) for frame in pixels)
    first.save(path, save_all=True, append_images=others, duration=delays_ms)
    return path


@pytest.mark.parametrize("length", [4, 6, 10, 13, 30, 400, 785, 800])
def test_the_start_of_a_gif_is_no_still(tmp_path, length):
    path = save(tmp_path / "start.gif", [40] * 8)
    path.write_bytes(path.read_bytes()[:length])
    for open_ in (video.probe, video.read):
        with pytest.raises((TruncatedFileError, CorruptFileError)):
            open_(path)


def test_any_cut_but_between_frames_is_told(tmp_path):
    whole = save(tmp_path / "a.gif", [40] * 4).read_bytes()
    path = tmp_path / "cut.gif"
    outcomes = []
    for length in range(len(whole) - 1, 14, -37):
        path.write_bytes(whole[:length])
        try:
            outcomes.append(video.probe(path).frames)
        except (TruncatedFileError, CorruptFileError):
            outcomes.append(None)
    assert outcomes.count(None) > 0.8 * len(outcomes)
    assert 1 not in outcomes[: len(outcomes) // 2]


def test_a_whole_gif_of_one_frame_is_a_still(tmp_path):
    path = save(tmp_path / "still.gif", [40])
    assert video.probe(path).kind is Kind.IMAGE
    assert video.read(path).data.shape[-2:] == (24, 32)


def test_a_pause_is_told_by_the_header(tmp_path):
    path = save(tmp_path / "pause.gif", [440 if n == 20 else 40 for n in range(40)])
    (warning,) = video.probe(path).source.warnings
    assert warning.startswith("a pause of 0.44 s after frame 20")
    assert warning in video.read(path).source.warnings
