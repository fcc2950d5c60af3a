"""Clips whose format states no end are known to be cut by their last frame."""

from __future__ import annotations

import av
import numpy as np
import pytest

from usvol.errors import TruncatedFileError
from usvol.formats import video

PACKET = 188  # bytes


@pytest.fixture
def stream(tmp_path) -> list[bytes]:
    """The packets of a transport stream of 30 frames of speckle."""
    path = tmp_path / "whole.ts"
    frames = np.random.default_rng(7).integers(40, 90, (30, 64, 96), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        out = container.add_stream("libx264", rate=25)
        out.width, out.height, out.pix_fmt = 96, 64, "yuv420p"
        for pixels in frames:
            container.mux(
                out.encode(av.VideoFrame.from_ndarray(pixels, format="gray").reformat(format="yuv420p"))
            )
        container.mux(out.encode(None))
    assert video.read(path).data.shape[0] == 30
    whole = path.read_bytes()
    return [whole[at : at + PACKET] for at in range(0, len(whole), PACKET)]


def test_a_transport_stream_cut_between_packets_ends_early(stream, tmp_path):
    begins = [bool(packet[1] & 0x40) for packet in stream]
    later = range(len(stream) // 2, len(stream))
    first = next(n for n in later if begins[n] and not any(begins[n + 1 : n + 3]))
    cut = tmp_path / "cut.ts"
    cut.write_bytes(b"".join(stream[: first + 2]))
    with pytest.raises(TruncatedFileError, match=r"ends early: frame \d+, its last"):
        video.read(cut)
    scan = video.read(cut, allow_truncated=True)
    assert 8 < scan.data.shape[0] < 30
    assert any("incomplete" in w and "early" in w for w in scan.source.warnings)
