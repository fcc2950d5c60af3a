"""Frames found by seeking are those of a whole read, in any order, or the clip is not opened at all."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest

from usvol import load
from usvol.errors import CorruptFileError
from usvol.formats.video_seeking import open_seekable
from usvol.formats.video_writing import write_gif, write_video
from usvol.frame_access import open_frames

FRAMES = 60


def moving_bars(frames: int = FRAMES) -> np.ndarray:
    """Every frame differs from every other, in grey."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 80, (frames, 48, 64), dtype=np.uint8)
    for number in range(frames):
        picture[number, :, number % 64] = 255
        picture[number, number % 48] = 200
    return np.repeat(picture[..., None], 3, -1)


def encode(path, frames, *, codec, options=None):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(25), options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(params=["h264.mp4", "h264_open_gop.mkv", "mpeg4.mp4", "mjpeg.avi"])
def clip(request, tmp_path):
    path = tmp_path / request.param
    if path.suffix == ".avi":
        return write_video(path, moving_bars(), fps=25)
    if request.param.startswith("mpeg4"):
        return encode(path, moving_bars(), codec="mpeg4", options={"g": "12", "bf": "2"})
    x264 = "keyint=12:bframes=3" + (":open-gop=1" if "open" in request.param else "")
    return encode(path, moving_bars(), codec="libx264", options={"x264-params": x264})


def test_any_order_gives_the_frames_of_a_whole_read(clip):
    expected = load(clip).data.numpy()
    assert len(expected) == FRAMES
    frames = open_frames(clip, larger_than_bytes=0)
    assert frames is not None
    places = [0, FRAMES - 1, *random.Random(1).sample(range(FRAMES), 20)]
    for place in places:
        np.testing.assert_array_equal(frames.read(place, place + 1)[0], expected[place], err_msg=str(place))
    np.testing.assert_array_equal(frames.read(31, 45), expected[31:45])
    np.testing.assert_array_equal(frames.read(45, FRAMES), expected[45:])


def test_threads_may_share_a_clip(clip):
    expected = load(clip).data.numpy()
    frames = open_frames(clip, larger_than_bytes=0)
    assert frames is not None
    starts = random.Random(2).sample(range(FRAMES - 4), 12)
    with ThreadPoolExecutor(4) as pool:
        for start, got in zip(starts, pool.map(lambda s: frames.read(s, s + 4), starts), strict=True):
            np.testing.assert_array_equal(got, expected[start : start + 4])


def test_a_damaged_frame_is_named_and_the_others_stay(tmp_path):
    path = write_video(tmp_path / "clip.avi", moving_bars(), fps=25)
    expected = load(path).data.numpy()
    content = bytearray(path.read_bytes())
    place = content.index(b"00dc", len(content) // 2) + 400  # inside the samples of one frame
    content[place : place + 300] = bytes(300)
    path.write_bytes(content)
    seekable = open_seekable(path)
    assert seekable is not None
    damaged, told = [], ""
    for number in range(FRAMES):
        try:
            got = seekable.read(number, number + 1)[0]
        except CorruptFileError as error:
            damaged.append(number)
            told = str(error)
        else:
            np.testing.assert_array_equal(got, expected[number, :, 0])
    assert len(damaged) == 1
    assert f"frame {damaged[0]} " in told


@pytest.mark.parametrize("kind", ["gif", "small", "edited"])
def test_what_cannot_be_trusted_or_is_small_is_not_opened(kind, tmp_path):
    if kind == "gif":
        path = write_gif(tmp_path / "clip.gif", moving_bars(12), fps=10)
        assert open_frames(path, larger_than_bytes=0) is None
    elif kind == "small":
        assert open_frames(write_video(tmp_path / "clip.avi", moving_bars(12), fps=25)) is None
    else:
        options = {"x264-params": "keyint=12:bframes=0"}
        whole = encode(tmp_path / "whole.mp4", moving_bars(), codec="libx264", options=options)
        path = trimmed(whole, tmp_path / "edited.mp4", start_s=0.5)
        frames = open_frames(path, larger_than_bytes=0)
        if frames is not None:
            np.testing.assert_array_equal(frames.read(5, 9), load(path).data.numpy()[5:9])


def trimmed(source, target, *, start_s):
    import av

    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream = before.streams.video[0]
        copy = after.add_stream_from_template(stream)
        before.seek(int(start_s / stream.time_base), stream=stream)
        for packet in before.demux(stream):
            if packet.dts is None:
                continue
            packet.stream = copy
            after.mux(packet)
    return target
