"""Damaged media: only typed errors escape, nothing hangs, memory stays bounded."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from usvol.errors import UsvolError
from usvol.formats.video import write_gif, write_video
from usvol.loading import load, probe

NAMES = ("a.mp4", "a.avi", "a.mkv", "a.gif", "a.png", "a.jpg", "a.tif")
GROWTH_LIMIT_KB = 1_500_000


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    frames = np.random.default_rng(0).integers(0, 255, (8, 32, 48), dtype=np.uint8)
    for name in NAMES[:3]:
        write_video(folder / name, frames, fps=25)
    write_gif(folder / "a.gif", frames, fps=25)
    for name in NAMES[4:]:
        Image.fromarray(frames[0]).save(folder / name)
    return folder


def _survives(path: Path) -> None:
    """Read a damaged file: it must give a valid scan or a typed error."""
    for allow_truncated in (False, True):
        try:
            scan = load(path, allow_truncated=allow_truncated)
        except UsvolError:
            continue
        else:
            assert scan.data.numel() > 0
            assert scan.times_s is None or len(scan.times_s) == scan.data.shape[0]
    try:
        frames = probe(path).frames
    except UsvolError:
        return
    assert frames > 0


@pytest.mark.parametrize("name", NAMES)
def test_truncations(media, tmp_path, name):
    data = (media / name).read_bytes()
    path = tmp_path / name
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for length in sorted({1, 3, 8, 12, 20, 64, 200, *np.linspace(1, len(data) - 1, 12).astype(int).tolist()}):
        path.write_bytes(data[:length])
        _survives(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH_LIMIT_KB


@pytest.mark.parametrize("name", NAMES)
@given(
    flips=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12
    ),
    in_header=st.booleans(),
)
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_flipped_bytes(media, tmp_path, name, flips, in_header):
    data = bytearray((media / name).read_bytes())
    reach = min(len(data), 700) if in_header else len(data)
    for place, value in flips:
        # An MP4's tables lie at its end.
        at = int(place * reach)
        data[len(data) - 1 - at if in_header and name == "a.mp4" else at] = value
    path = tmp_path / name
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _survives(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH_LIMIT_KB
