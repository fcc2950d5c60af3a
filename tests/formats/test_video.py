"""Video clips: the right frames at the right times by either decoder, and damage told by its name."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from usvol.errors import CorruptFileError, EmptyFileError, TooLargeError, TruncatedFileError, UsvolError
from usvol.formats import video, video_clip, video_decord, video_pyav
from usvol.formats.video_clip import inspect_clip
from usvol.scan import Selection, Trust

FRAMES, HEIGHT, WIDTH = 48, 64, 96
# Bits of the frame number are painted as bright or dark squares, which no codec here confuses.
BITS, SQUARE = 6, 16
# MPEG-4 part 2 leaves the inverse DCT to the decoder: two libavcodec versions differ by up to 2.
TOLERANCE = {"mpeg4": 2}


def numbered(count: int = FRAMES) -> np.ndarray:
    """Frames ``t y x`` of speckle that carry their own number."""
    rng = np.random.default_rng(7)
    frames = rng.integers(40, 90, (count, HEIGHT, WIDTH)).astype(np.uint8)
    for number in range(count):
        for bit in range(BITS):
            value = 240 if number >> bit & 1 else 0
            frames[number, :SQUARE, bit * SQUARE : (bit + 1) * SQUARE] = value
    return frames


def numbers_in(scan) -> list[int]:
    """Read the painted frame numbers back."""
    scale = scan.data.shape[-1] / WIDTH
    centres = [int((bit + 0.5) * SQUARE * scale) for bit in range(BITS)]
    row = int(SQUARE / 2 * scale)
    seen = scan.data[:, 0, 0, row, centres] > 120
    return [sum(int(on) << bit for bit, on in enumerate(frame)) for frame in seen]


def encode(path: Path, codec: str = "libx264", *, pts: list[int] | None = None, **options) -> Path:
    """Write the numbered frames; ``pts`` in milliseconds makes the frame rate variable."""
    pixel_format = options.pop("pixel_format", "yuv420p")
    rotation, aspect = options.pop("rotation", None), options.pop("aspect", None)
    container_options = options.pop("container_options", {})
    frames = numbered(len(pts) if pts else FRAMES)
    with av.open(str(path), "w", container_options=container_options) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixel_format
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="gray").reformat(format=pixel_format)
            if pts is not None:
                frame.pts, frame.time_base = pts[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


CONTAINERS = {
    "h264.mp4": ("libx264", "decord"),
    "h264.mov": ("libx264", "decord"),
    "h264.avi": ("libx264", "decord"),
    "mjpeg.avi": ("mjpeg", "decord"),
    "mpeg4.avi": ("mpeg4", "decord"),
    "mpeg2.mpeg": ("mpeg2video", "pyav"),
    "h264.mkv": ("libx264", "decord"),
    "vp9.webm": ("libvpx-vp9", "decord"),
    "wmv2.wmv": ("wmv2", "pyav"),
    "h264.ts": ("libx264", "pyav"),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, (codec, _) in CONTAINERS.items():
        rate = {} if codec in {"libx264", "mjpeg"} else {"b": "4M", "g": "6"}
        encode(folder / name, codec, pixel_format="yuvj420p" if codec == "mjpeg" else "yuv420p", **rate)
    video.write_gif(folder / "delays.gif", numbered(), fps=25)
    return folder


@pytest.mark.parametrize("name", [*CONTAINERS, "delays.gif"])
def test_every_container_gives_every_frame_at_its_time(clips, name):
    scan, header = video.read(clips / name), video.probe(clips / name)
    assert scan.data.shape == (FRAMES, 3, 1, HEIGHT, WIDTH)
    assert numbers_in(scan) == list(range(FRAMES))
    assert scan.times_s == pytest.approx([i / 25 for i in range(FRAMES)], abs=1e-3)
    assert scan.history[0].endswith(CONTAINERS.get(name, ("", "pyav"))[1])
    assert (header.frames, header.channels, header.dtype) == (FRAMES, 3, "uint8")
    assert header.grid == scan.grid
    assert header.times_s == scan.times_s
    assert scan.calibration.trust is Trust.ABSENT
    assert scan.source.warnings == ()


@pytest.mark.parametrize("name", [*CONTAINERS, "delays.gif"])
@pytest.mark.parametrize(
    "selection", [Selection(max_frames=7), Selection(fps=6), Selection(max_frames=5, max_side_px=48)]
)
def test_selection_takes_the_frames_it_names(clips, name, selection):
    scan = video.read(clips / name, selection)
    assert scan.source.frame_indices is not None
    assert numbers_in(scan) == list(scan.source.frame_indices)
    assert scan.times_s == pytest.approx([i / 25 for i in scan.source.frame_indices], abs=1e-3)
    assert max(scan.grid.shape) == (selection.max_side_px or WIDTH)
    if selection.max_side_px:
        assert scan.grid.step_px == pytest.approx((1, 2, 2))
        assert scan.grid.origin_px == pytest.approx((0, 0.5, 0.5))


def test_fps_beyond_the_clip_keeps_every_frame(clips):
    assert video.read(clips / "h264.mp4", Selection(fps=60)).source.frame_indices is None


@pytest.mark.parametrize("name", [n for n, (_, decoder) in CONTAINERS.items() if decoder == "decord"])
def test_decord_and_pyav_agree(clips, name):
    _assert_decoders_agree(clips / name)


def _assert_decoders_agree(path: Path) -> None:
    clip = inspect_clip(path)
    assert video_decord.can_decode(clip)
    every, size = tuple(range(min(clip.frames, 40))), (clip.height, clip.width)
    one = video_decord.decode(clip, every, size=size)
    other = video_pyav.decode(clip, every, size=size)
    assert other.times_s == clip.times_s
    tolerance = TOLERANCE.get(clip.codec, 0)
    assert (np.maximum(one, other.frames) - np.minimum(one, other.frames)).max() <= tolerance
    few, small = every[::8], (clip.height // 3, clip.width // 3)
    one = video_decord.decode(clip, few, size=small)
    other = video_pyav.decode(clip, few, size=small)
    assert np.abs(one.astype(np.int16) - other.frames).mean() < 0.05


def test_decord_and_pyav_agree_on_real_clips(shared_data):
    everything = [
        *sorted((shared_data / "lus/blues/lus_videos").glob("*.mp4"))[::60],
        *sorted((shared_data / "lus/pocus/videos").rglob("*.avi"))[::7],
        *sorted((shared_data / "lus/pocus/videos").rglob("*.mp4"))[::9],
        *sorted((shared_data / "video").glob("*.mp4")),
    ]
    assert len(everything) >= 12
    for path in everything:
        _assert_decoders_agree(path)


def test_real_edit_lists_show_only_what_they_show(shared_data):
    path = shared_data / "lus/pocus/videos/convex/Cov_denault_proposedUS_vid5.mov"
    scan = video.read(path)
    assert scan.data.shape[0] == 192
    assert scan.source.metadata["edit_list"]
    assert scan.history[0].endswith("pyav")
    assert np.diff(np.asarray(scan.times_s)) == pytest.approx(1 / 60, abs=1e-4)


def test_stream_copy_with_edit_list_hides_the_lead_in(tmp_path):
    source = encode(tmp_path / "whole.mp4", g="12", bf="2")
    trimmed = tmp_path / "trimmed.mp4"
    with av.open(str(source)) as reading, av.open(str(trimmed), "w") as writing:
        stream = reading.streams.video[0]
        copy = writing.add_stream_from_template(stream)
        for packet in reading.demux(stream):
            if packet.dts is None:
                continue
            # Time stamps before zero become an edit list: 18 frames are there but not shown.
            shift = round(18 / 25 / stream.time_base)
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = copy
            writing.mux(packet)
    scan = video.read(trimmed)
    shown = numbers_in(scan)
    assert shown == list(range(FRAMES - len(shown), FRAMES))
    assert len(shown) < FRAMES
    assert scan.history[0].endswith("pyav")
    assert video.probe(trimmed).frames == len(shown)


def test_variable_frame_rate_is_kept(tmp_path):
    pts = [0, 40, 80, 200, 240, 500, 540, 580, 620, 1000]
    for name in ("vfr.mp4", "vfr.mkv"):
        scan = video.read(encode(tmp_path / name, pts=pts))
        assert scan.times_s == pytest.approx([t / 1000 for t in pts], abs=2e-3)
        assert numbers_in(scan) == list(range(len(pts)))
    thinned = video.read(tmp_path / "vfr.mp4", Selection(fps=5))
    assert thinned.source.frame_indices == (0, 3, 5, 7, 8, 9)


def test_first_frame_is_time_zero_even_if_the_file_starts_later(tmp_path):
    path = encode(tmp_path / "late.mkv", pts=[5000 + 40 * i for i in range(10)])
    assert video.read(path).times_s == pytest.approx([0.04 * i for i in range(10)], abs=2e-3)


def test_times_are_not_invented(tmp_path):
    raw = encode(tmp_path / "raw.m2v", "mpeg2video")
    raw = raw.rename(tmp_path / "raw.mpeg")
    scan = video.read(raw)
    assert scan.data.shape[0] == FRAMES
    assert scan.times_s is None
    assert any("no reliable frame times" in w for w in scan.source.warnings)
    gif = tmp_path / "still_running.gif"
    data = bytearray(video.write_gif(gif, numbered(), fps=25).read_bytes())
    for start in _occurrences(data, b"\x21\xf9\x04"):
        data[start + 4 : start + 6] = b"\0\0"
    gif.write_bytes(data)
    assert video.read(gif).times_s is None
    avi = tmp_path / "norate.avi"
    data = bytearray(video.write_video(avi, numbered(), fps=25).read_bytes())
    main, stream = data.index(b"avih") + 8, data.index(b"strh") + 8
    data[main : main + 4] = bytes(4)
    data[stream + 20 : stream + 28] = bytes(8)
    avi.write_bytes(data)
    scan = video.read(avi)
    assert scan.times_s is None
    assert numbers_in(scan) == list(range(FRAMES))


def _scramble(data: bytearray, at: int, length: int = 4000) -> None:
    length = min(length, len(data) - at)
    data[at : at + length] = np.random.default_rng(3).integers(0, 256, length, dtype=np.uint8).tobytes()


def _occurrences(data: bytes, needle: bytes) -> list[int]:
    found, at = [], data.find(needle)
    while at >= 0:
        found.append(at)
        at = data.find(needle, at + 1)
    return found


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_applied(tmp_path, rotation):
    upright = video.read(encode(tmp_path / "upright.mp4")).data
    scan = video.read(encode(tmp_path / "turned.mp4", rotation=rotation))
    assert scan.source.metadata["rotation_deg"] == rotation
    assert video.probe(tmp_path / "turned.mp4").grid.shape == scan.grid.shape
    expected = np.rot90(upright, rotation // 90, axes=(3, 4)).astype(int)
    # Two runs of the encoder differ a little.
    assert np.abs(scan.data.numpy() - expected).mean() < 2
    small = video.read(tmp_path / "turned.mp4", Selection(max_side_px=48))
    assert small.grid.shape == ((1, 48, 32) if rotation % 180 else (1, 32, 48))


def test_rotation_turns_the_same_way_as_decord(tmp_path):
    import decord

    path = encode(tmp_path / "turned.mp4", rotation=90)
    other = decord.VideoReader(str(path))[0].asnumpy().transpose(2, 0, 1)
    assert np.abs(video.read(path).data[0, :, 0].numpy().astype(int) - other).max() <= 2


def test_non_square_pixels_are_told(tmp_path):
    scan = video.read(encode(tmp_path / "wide.mp4", aspect=Fraction(4, 3)))
    assert scan.source.metadata["pixel_aspect"] == "4/3"
    assert any("not square" in w for w in scan.source.warnings)


def test_grey_codecs_keep_one_channel_and_their_depth(tmp_path):
    scan = video.read(encode(tmp_path / "grey.mkv", "ffv1", pixel_format="gray"))
    assert np.array_equal(scan.data[:, 0, 0], numbered())
    deep = encode(tmp_path / "deep.mkv", "ffv1", pixel_format="gray16le")
    scan = video.read(deep)
    assert video.probe(deep).dtype == "uint16"
    assert scan.data.shape[1] == 1
    assert int(scan.data.max()) > 255


def test_transparent_gif_is_black_where_nothing_is_drawn(tmp_path):
    from PIL import Image

    pixels = np.zeros((2, 20, 30, 4), np.uint8)
    pixels[:, 5:10, 5:10] = 255
    images = [Image.fromarray(p, "RGBA") for p in pixels]
    images[0].save(tmp_path / "t.gif", save_all=True, append_images=images[1:], duration=100, disposal=2)
    data = video.read(tmp_path / "t.gif").data
    assert int(data[0, :, 0, 7, 7].min()) == 255
    assert int(data[0, :, 0, 15, 20].max()) == 0


@pytest.mark.parametrize("name", [*CONTAINERS, "delays.gif"])
def test_half_a_file_is_truncated(clips, tmp_path, name):
    whole = (clips / name).read_bytes()
    half = tmp_path / name
    half.write_bytes(whole[: len(whole) // 2 | 1])  # odd: never between two packets of a transport stream
    with pytest.raises(TruncatedFileError, match=r"early|moov") as caught:
        video.read(half)
    with pytest.raises(TruncatedFileError, match=r"early|moov"):
        video.probe(half)
    if "moov" in str(caught.value):
        return
    scan = video.read(half, allow_truncated=True)
    assert 8 < scan.data.shape[0] < FRAMES - 8
    assert numbers_in(scan)[:8] == list(range(8))
    assert any("incomplete" in w and "early" in w for w in scan.source.warnings)


def test_half_an_avi_says_how_many_frames_of_how_many(tmp_path):
    path = video.write_video(tmp_path / "cut.avi", np.tile(numbered(50), (4, 1, 1)), fps=25)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(TruncatedFileError, match=r"(98|99|100) of 200 frames"):
        video.read(path)
    scan = video.read(path, allow_truncated=True)
    assert scan.data.shape[0] in {99, 100}
    assert len(scan.times_s) == scan.data.shape[0]


def test_fast_start_mp4_cut_in_half(tmp_path):
    path = encode(tmp_path / "fast.mp4", container_options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(TruncatedFileError, match=rf"\d+ of {FRAMES} frames can be decoded.*allow_truncated"):
        video.read(path)


def test_missing_index_only_is_a_warning(clips, tmp_path):
    data = (clips / "mjpeg.avi").read_bytes()
    path = tmp_path / "noindex.avi"
    path.write_bytes(data[: data.index(b"idx1")])
    scan = video.read(path)
    assert numbers_in(scan) == list(range(FRAMES))
    assert any("ends early, but all frames are there" in w for w in scan.source.warnings)


@pytest.mark.parametrize("name", [n for n in CONTAINERS if n not in {"vp9.webm", "wmv2.wmv"}])
def test_damage_inside_names_the_frame(clips, tmp_path, name):
    clip = inspect_clip(clips / name)
    with av.open(str(clips / name)) as container:
        places = [(p.pts or p.dts, p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray((clips / name).read_bytes())
    hit = len(data) // 2
    _scramble(data, hit)
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"frame \d+ ") as caught:
        video.read(path)
    named = int(str(caught.value).split("frame ")[1].split()[0])
    first = next(i for i, (_, pos, size) in enumerate(places) if pos is None or pos + size > hit)
    if all(pos is not None for _, pos, _ in places) and clip.container in {"mov", "avi"}:
        assert abs(named - first) <= 4
    assert 0 < named < FRAMES


def test_concealed_damage_in_one_large_frame_is_found(tmp_path):
    """Decord and players patch this frame up without a word."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (20, 240, 320), dtype=np.uint8)
    path = video.write_video(tmp_path / "noise.mp4", frames, fps=25)
    with av.open(str(path)) as container:
        places = [(p.pts, p.pos, p.size) for p in container.demux(video=0) if p.size]
    pts, pos, size = places[10]
    assert size > 8000
    data = bytearray(path.read_bytes())
    data[pos + size // 3 : pos + size // 3 + 4000] = rng.integers(0, 256, 4000, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    clip = inspect_clip(path)
    assert video_decord.decode(clip, (0, 1), size=(240, 320)).shape[0] == 2
    with pytest.raises(CorruptFileError, match="frame") as caught:
        video.read(path)
    shown = sorted(p for p, _, _ in places).index(pts)
    assert f"frame {shown} of 20" in str(caught.value)
    scan = video.read(path, allow_truncated=True)
    assert scan.data.shape[0] == 20
    assert any(f"frame {shown} of 20 is damaged" in w for w in scan.source.warnings)


def test_damaged_webm_is_told(clips, tmp_path):
    data = bytearray((clips / "vp9.webm").read_bytes())
    middle = len(data) // 2
    _scramble(data, middle)
    path = tmp_path / "bad.webm"
    path.write_bytes(data)
    try:
        scan = video.read(path)
    except UsvolError:
        return
    assert any("pause" in w for w in scan.source.warnings)


def test_damaged_gif_is_corrupt(clips, tmp_path):
    data = bytearray((clips / "delays.gif").read_bytes())
    middle = len(data) // 2
    _scramble(data, middle)
    path = tmp_path / "bad.gif"
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"frame \d+"):
        video.read(path)


def test_empty_and_frameless_files(tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.touch()
    with pytest.raises(EmptyFileError, match="no bytes"):
        video.read(empty)
    silent = tmp_path / "silent.mp4"
    with av.open(str(silent), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(EmptyFileError, match="no video stream"):
        video.read(silent)
    none = tmp_path / "none.avi"
    data = bytearray(video.write_video(none, numbered(2), fps=25).read_bytes())
    start = data.index(b"movi")
    none.write_bytes(data[: start + 4])
    with pytest.raises((EmptyFileError, TruncatedFileError)):
        video.read(none)


def test_huge_frames_in_the_header_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "huge.avi"
    data = bytearray(encode(path, "rawvideo", pixel_format="bgr24").read_bytes())
    form = data.index(b"strf") + 8
    data[form + 4 : form + 12] = np.array([20000, 12000], "<i4").tobytes()
    path.write_bytes(data)
    with pytest.raises(TooLargeError, match="20000x12000"):
        video.read(path)
    path = video.write_video(tmp_path / "long.mp4", numbered(), fps=25)
    monkeypatch.setattr(video, "MAX_DECODED_BYTES", 100_000)
    with pytest.raises(TooLargeError, match="Selection"):
        video.read(path)
    assert video.read(path, Selection(max_frames=4)).data.shape[0] == 4
    monkeypatch.setattr(video_clip, "MAX_FRAME_PIXELS", 100)
    with pytest.raises(TooLargeError, match="96x64"):
        video.probe(path)


def test_large_files_are_probed_without_reading_them(clips, monkeypatch):
    monkeypatch.setattr(video_clip, "DEMUX_ALWAYS_BELOW_BYTES", 100)
    header = video.probe(clips / "h264.mp4")
    assert header.frames == FRAMES
    assert header.times_s is None
    scan = video.read(clips / "h264.mp4", Selection(fps=5))
    assert scan.times_s is not None
    assert numbers_in(scan) == list(scan.source.frame_indices)
    assert len(numbers_in(scan)) < FRAMES


def test_without_decord_pyav_reads_the_same(clips, monkeypatch):
    expected = video.read(clips / "h264.mp4")
    monkeypatch.setitem(sys.modules, "decord", None)
    scan = video.read(clips / "h264.mp4")
    assert scan.history[0].endswith("pyav")
    assert np.array_equal(scan.data, expected.data)


def test_a_playlist_under_a_false_name_opens_nothing(tmp_path, clips):
    path = tmp_path / "list.mp4"
    path.write_text(f"ffconcat version 1.0\nfile '{clips / 'h264.mp4'}'\n")
    with pytest.raises(CorruptFileError):
        video.read(path)


def test_names_may_be_long_and_not_ascii(clips, tmp_path):
    path = tmp_path / ("λ-Schädel 胎児 %d " + "x" * 200 + ".mp4")
    path.write_bytes((clips / "h264.mp4").read_bytes())
    assert numbers_in(video.read(path)) == list(range(FRAMES))


def test_reading_damage_prints_nothing(clips, tmp_path):
    data = bytearray((clips / "mpeg2.mpeg").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = b"\x55" * 4000
    path = tmp_path / "bad.mpeg"
    path.write_bytes(data)
    code = (
        "import sys; from pathlib import Path; from usvol.formats import video\n"
        "from usvol.errors import UsvolError\n"
        "for name in sys.argv[1:]:\n"
        "    try: video.read(Path(name))\n"
        "    except UsvolError: pass\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path), str(clips / "h264.mp4")], capture_output=True, check=True
    )
    assert run.stdout == b""
    assert run.stderr == b""
