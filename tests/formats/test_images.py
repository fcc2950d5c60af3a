"""Stills: depth, colour and orientation kept, folders of stills as cines, damage told by its name."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from usvol.errors import (
    CorruptFileError,
    EmptyFileError,
    ReadError,
    TooLargeError,
    TruncatedFileError,
)
from usvol.formats import images, samples, still_decoding
from usvol.scan import Kind, Selection, Trust

HEIGHT, WIDTH = 40, 60


def ramp() -> np.ndarray:
    return (np.arange(HEIGHT)[:, None] * 3 + np.arange(WIDTH)[None] * 2).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    Image.fromarray(pixels, mode).save(path, **options)
    return path


def series(folder: Path, count: int = 12, pattern: str = "beat_{}.png") -> Path:
    folder.mkdir()
    for number in range(1, count + 1):
        save(folder / pattern.format(number), np.full((HEIGHT, WIDTH), number, np.uint8))
    return folder


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_grey_still_is_read_exactly(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", ramp())
    scan, header = images.read(path), images.probe(path)
    assert scan.kind is header.kind is Kind.IMAGE
    assert scan.data.shape == (1, 1, 1, HEIGHT, WIDTH)
    assert np.array_equal(scan.data[0, 0, 0], ramp())
    assert (header.grid, header.channels, header.dtype) == (scan.grid, 1, "uint8")
    assert scan.times_s is None


def test_jpeg_colour(tmp_path):
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[..., 0] = 200
    scan = images.read(save(tmp_path / "a.jpg", pixels, quality=95))
    assert scan.data.shape == (1, 3, 1, HEIGHT, WIDTH)
    assert np.abs(scan.data[0, :, 0].float().mean((1, 2)).numpy() - [200, 0, 0]).max() < 3


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_kept(tmp_path, suffix):
    pixels = ramp().astype(np.uint16) * 200
    path = save(tmp_path / f"a{suffix}", pixels)
    assert images.probe(path).dtype == "uint16"
    scan = images.read(path)
    assert np.array_equal(scan.data[0, 0, 0].numpy(), pixels)
    small = images.read(path, Selection(max_side_px=30))
    assert abs(float(small.data.float().mean()) / float(pixels.mean()) - 1) < 0.01


def test_16_bit_tif_of_which_zero_is_white_is_inverted(tmp_path):
    pixels = ramp().astype(np.uint16) * 200
    for name, photometric in (("black.tif", 1), ("white.tif", 0)):
        save(tmp_path / name, pixels, tiffinfo={262: photometric})
    with Image.open(tmp_path / "white.tif") as image:
        assert (image.mode, image.tag_v2[262]) == ("I;16", 0)
    assert np.array_equal(images.read(tmp_path / "black.tif").data[0, 0, 0].numpy(), pixels)
    scan = images.read(tmp_path / "white.tif")
    assert np.array_equal(scan.data[0, 0, 0].numpy(), 65535 - pixels)


def test_float_tif(tmp_path):
    pixels = ramp().astype(np.float32) / 7
    scan = images.read(save(tmp_path / "a.tif", pixels))
    assert np.array_equal(scan.data[0, 0, 0].numpy(), pixels)


def test_palette_is_looked_up(tmp_path):
    image = Image.fromarray((ramp() // 64).astype(np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    image.save(tmp_path / "colour.png")
    scan = images.read(tmp_path / "colour.png")
    assert scan.data[0, :, 0, 0, 0].tolist() == [255, 0, 0]
    image.putpalette([200, 200, 200, 100, 100, 100, 50, 50, 50, 0, 0, 0])
    image.save(tmp_path / "grey.png")
    scan = images.read(tmp_path / "grey.png")
    assert scan.data.shape[1] == 1
    assert scan.data[0, 0, 0, 0, 0] == 200


def test_alpha_lies_on_black(tmp_path):
    pixels = np.full((HEIGHT, WIDTH, 4), 200, np.uint8)
    pixels[..., 3] = 0
    pixels[:10, :10, 3] = 255
    scan = images.read(save(tmp_path / "a.png", pixels))
    assert scan.data.shape[1] == 3
    assert int(scan.data[0, :, 0, 5, 5].min()) == 200
    assert int(scan.data[0, :, 0, 20:, 20:].max()) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[still_decoding.EXIF_ORIENTATION] = orientation
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[: HEIGHT // 2, : WIDTH // 2] = 250
    path = save(tmp_path / "a.jpg", pixels, exif=exif, quality=95)
    scan = images.read(path)
    assert images.probe(path).grid == scan.grid
    expected = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: pixels.T,
        6: np.rot90(pixels, -1), 7: pixels[::-1, ::-1].T, 8: np.rot90(pixels),
    }[orientation]  # fmt: skip
    assert np.abs(scan.data[0, 0, 0].numpy().astype(int) - expected).mean() < 3


def test_print_resolution_is_no_calibration(tmp_path):
    for name in ("a.png", "a.jpg"):
        scan = images.read(save(tmp_path / name, ramp(), dpi=(300, 300)))
        assert scan.calibration.trust is Trust.ABSENT
        assert "300 dpi" in scan.calibration.reason
        assert scan.grid.spacing_mm is None


def test_pages_of_a_tif_are_frames(tmp_path):
    pages = [Image.fromarray(np.full((HEIGHT, WIDTH), n, np.uint8)) for n in range(9)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    scan = images.read(tmp_path / "a.tif")
    assert scan.kind is images.probe(tmp_path / "a.tif").kind is Kind.CINE
    assert scan.data[:, 0, 0, 0, 0].tolist() == list(range(9))
    assert scan.times_s is None
    some = images.read(tmp_path / "a.tif", Selection(max_frames=3))
    assert some.data[:, 0, 0, 0, 0].tolist() == [0, 4, 8] == list(some.source.frame_indices)


def test_pages_of_different_sizes_are_refused(tmp_path):
    pages = [Image.fromarray(np.zeros((HEIGHT, WIDTH + n), np.uint8)) for n in range(2)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(CorruptFileError, match="page 1 is 61x40"):
        images.read(tmp_path / "a.tif")


def test_folder_of_numbered_stills_is_a_cine_in_natural_order(tmp_path):
    folder = series(tmp_path / "beat")
    (folder / "notes.txt").write_text("heart")
    (folder / "README").write_text("heart")
    (folder / ".DS_Store").write_bytes(b"x")
    assert images.sniff(folder, b"")
    scan = images.read(folder)
    assert scan.kind is images.probe(folder).kind is Kind.CINE
    assert scan.data[:, 0, 0, 0, 0].tolist() == list(range(1, 13))
    assert scan.times_s is None
    assert "stills carry no frame times" in scan.source.warnings
    some = images.read(folder, Selection(max_frames=3, max_side_px=30))
    assert some.data[:, 0, 0, 0, 0].tolist() == [1, 7, 12]
    assert some.source.frame_indices == (0, 6, 11)
    assert some.grid.shape == (1, 20, 30)


def test_missing_numbers_are_told(tmp_path):
    folder = series(tmp_path / "beat")
    (folder / "beat_5.png").unlink()
    scan = images.read(folder)
    assert scan.data.shape[0] == 11
    assert any(w.startswith("1 numbers are missing") for w in scan.source.warnings)


def test_stills_of_unequal_size_or_depth_are_refused(tmp_path):
    folder = series(tmp_path / "beat")
    save(folder / "beat_7.png", np.zeros((HEIGHT, WIDTH + 4), np.uint8))
    with pytest.raises(CorruptFileError, match=r"beat_7\.png is 64x40"):
        images.read(folder)
    save(folder / "beat_7.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    with pytest.raises(CorruptFileError, match="3 channels"):
        images.read(folder)


def test_numbered_tifs_of_several_pages_are_a_cine_each(tmp_path):
    pages = [Image.fromarray(np.full((HEIGHT, WIDTH), n, np.uint8)) for n in range(4)]
    for number in range(3):
        pages[0].save(tmp_path / f"patient_{number}.tif", save_all=True, append_images=pages[1:])
    assert not images.sniff(tmp_path, b"")
    with pytest.raises(ReadError, match="no single series"):
        images.read(tmp_path)
    for number in range(3):
        thumbnail = pages[0].resize((12, 8))
        pages[number].save(tmp_path / f"patient_{number}.tif", save_all=True, append_images=[thumbnail])
    assert images.read(tmp_path).data[:, 0, 0, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("stranger", ["other.png", "beat_x.png", "pulse_3.png", "clip.mp4", "beat_01.png"])
def test_a_collection_is_no_series(tmp_path, stranger):
    folder = series(tmp_path / "beat")
    save(folder / "beat_1.png", ramp())
    (folder / stranger).write_bytes((folder / "beat_1.png").read_bytes())
    assert not images.sniff(folder, b"")
    with pytest.raises(ReadError, match="no single series"):
        images.read(folder)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp"])
def test_cut_stills_are_truncated(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (200, 300), dtype=np.uint8)
    path = save(tmp_path / name, noise)
    data = path.read_bytes()
    assert images.probe(path).grid.shape == (1, 200, 300)
    path.write_bytes(data[: len(data) // 2])
    for open_ in (images.probe, images.read):
        with pytest.raises(TruncatedFileError):
            open_(path)


@pytest.mark.parametrize(
    "name", ["a.jpg", "a.tif", "a.bmp"]
)  # Pillow seeks a PNG's orientation behind its samples
def test_whole_stills_are_probed_without_decoding(tmp_path, monkeypatch, name):
    path = save(tmp_path / name, np.zeros((20, 30), np.uint8))
    monkeypatch.setattr(Image.Image, "load", None)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert images.probe(path).grid.shape == (1, 20, 30)


def test_damaged_png_is_corrupt(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 300), dtype=np.uint8)
    path = save(tmp_path / "a.png", noise)
    data = bytearray(path.read_bytes())
    data[20_000:24_000] = bytes(4000)
    path.write_bytes(data)
    with pytest.raises(CorruptFileError):
        images.read(path)


def test_empty_file(tmp_path):
    path = tmp_path / "a.png"
    path.touch()
    with pytest.raises(EmptyFileError):
        images.read(path)


def test_decompression_bombs_are_refused(tmp_path):
    path = save(tmp_path / "a.png", ramp())
    data = bytearray(path.read_bytes())
    for side in (20_000, 2_000_000_000):
        data[16:24] = side.to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        path.write_bytes(data)
        with pytest.raises(TooLargeError):
            images.probe(path)
        with pytest.raises(TooLargeError):
            images.read(path)


def test_series_beyond_memory_is_refused(tmp_path, monkeypatch):
    folder = series(tmp_path / "beat")
    monkeypatch.setattr(samples, "MAX_DECODED_BYTES", 10_000)
    with pytest.raises(TooLargeError, match="frames"):
        images.read(folder)
    assert images.read(folder, Selection(max_frames=2)).data.shape[0] == 2


def test_real_stills(shared_data):
    paths = sorted((shared_data / "lus/pocus/images").rglob("*.*"))
    assert len(paths) == 31
    for path in paths[::4]:
        scan, header = images.read(path), images.probe(path)
        assert scan.kind is Kind.IMAGE
        assert header.grid == scan.grid
        assert scan.grid.spacing_mm is None
        with Image.open(path) as image:
            assert np.array_equal(scan.data[0, :, 0].permute(1, 2, 0), np.asarray(image.convert("RGB")))
