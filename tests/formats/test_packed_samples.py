"""Compressed samples of MetaImage and NRRD: whole ones are read, no damaged one is."""

from __future__ import annotations

import gzip
import zlib

import numpy as np
import pytest

from usvol.errors import CorruptFileError, ReadError, TruncatedFileError
from usvol.formats import metaimage, packed_samples
from usvol.scan import Grid

NOISE = np.random.default_rng(5).integers(0, 255, (12, 16, 20), dtype=np.uint8)
RAW = NOISE.tobytes()
ZLIB, GZIP = zlib.compress(RAW), gzip.compress(RAW)
META = (
    "ObjectType = Image", "NDims = 3", "BinaryData = True", "DimSize = 20 16 12", "ElementType = MET_UCHAR",
    "ElementSpacing = 0.5 0.5 0.6",
)  # fmt: skip
NRRD = ("NRRD0004", "type: uchar", "dimension: 3", "sizes: 20 16 12", "spacings: 0.5 0.5 0.6")


def meta(path, content, *lines, place="LOCAL", packed="True"):
    lines = (*META, f"CompressedData = {packed}", *lines, f"ElementDataFile = {place}\n")
    path.write_bytes("\n".join(lines).encode() + content)
    return path


def nrrd(path, content, *lines, encoding="gzip"):
    path.write_bytes("\n".join((*NRRD, f"encoding: {encoding}", *lines, "\n")).encode() + content)
    return path


def size(content):
    return f"CompressedDataSize = {len(content)}"


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


def is_whole(path):
    metaimage.probe(path)
    return np.array_equal(metaimage.read(path).data[0, 0].numpy(), NOISE)


@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd", "a.nhdr"])
def test_what_is_written_is_whole_and_any_flipped_bit_is_found(tmp_path, name):
    path = tmp_path / name
    metaimage.write_image(path, NOISE, grid=Grid(NOISE.shape, (0.5, 0.5, 0.5)))
    assert is_whole(path)
    packed = next((file for file in tmp_path.iterdir() if file != path), path)
    whole = packed.read_bytes()
    for place in (len(whole) - 3, len(whole) - 400, len(whole) - 1500):
        packed.write_bytes(flipped(whole, place))
        metaimage.probe(path)
        with pytest.raises((CorruptFileError, TruncatedFileError), match="compressed|unpack"):
            metaimage.read(path)


def test_whole_metaimages_are_read(tmp_path):
    path = tmp_path / "a.mha"
    assert is_whole(meta(path, ZLIB, size(ZLIB)))
    assert is_whole(meta(path, GZIP, size(GZIP)))
    assert is_whole(meta(path, ZLIB + b"trailing", size(ZLIB)))
    assert is_whole(meta(path, ZLIB + b"trailing", size(ZLIB + b"trailing")))
    surplus = zlib.compress(RAW + b"surplus")
    assert is_whole(meta(path, surplus, size(surplus)))
    (tmp_path / "a.zraw").write_bytes(ZLIB)
    assert is_whole(meta(tmp_path / "a.mhd", b"", place="a.zraw"))
    (tmp_path / "a.zraw").write_bytes(b"header" + ZLIB)
    assert is_whole(meta(tmp_path / "a.mhd", b"", "HeaderSize = 6", size(ZLIB), place="a.zraw"))


def test_metaimages_that_are_not_whole_are_refused(tmp_path):
    path = tmp_path / "a.mha"
    with pytest.raises(TruncatedFileError, match="end early"):
        metaimage.read(meta(path, ZLIB, size(ZLIB[:-50])))
    few = zlib.compress(RAW[:-1])
    with pytest.raises(TruncatedFileError, match="3840 bytes of samples are expected and unpack to 3839"):
        metaimage.read(meta(path, few, size(few)))
    # MetaIO reads the first member alone.
    members = gzip.compress(RAW[:1000]) + gzip.compress(RAW[1000:])
    with pytest.raises(TruncatedFileError, match="unpack to 1000"):
        metaimage.read(meta(path, members, size(members)))
    with pytest.raises(CorruptFileError, match="damaged"):
        metaimage.read(meta(path, flipped(ZLIB, 2000), size(ZLIB), packed="T"))


def test_compressed_samples_of_unknown_size_are_refused(tmp_path):
    with pytest.raises(CorruptFileError, match="states no CompressedDataSize"):
        metaimage.read(meta(tmp_path / "a.mha", ZLIB))
    (tmp_path / "a.zraw").write_bytes(b"header" + ZLIB)
    with pytest.raises(CorruptFileError, match="states no CompressedDataSize"):
        metaimage.read(meta(tmp_path / "a.mhd", b"", "HeaderSize = 6", place="a.zraw"))


SKIPS = [
    ((), RAW, b""),
    (("byte skip: 7",), b"skipped" + RAW, b""),
    (("byte skip: -1",), b"skipped" + RAW, b""),
    (("byte skip: -3",), b"skipped" + RAW + b"xy", b""),
    (("line skip: 2",), RAW, b"one\ntwo\n"),
    (("line skip: 1", "byte skip: 3"), b"abc" + RAW, b"one\n"),
]


@pytest.mark.parametrize(("lines", "unpacked", "before"), SKIPS)
@pytest.mark.parametrize("encoding", ["gzip", "gz"])
def test_an_nrrd_is_checked_whatever_is_skipped(tmp_path, lines, unpacked, before, encoding):
    path, packed = tmp_path / "a.nrrd", gzip.compress(unpacked)
    assert is_whole(nrrd(path, before + packed, *lines, encoding=encoding))
    trailed = nrrd(path, before + packed + b"trailing", *lines, encoding=encoding)
    if "-" in "".join(lines):
        with pytest.raises(CorruptFileError, match="damaged"):  # NrrdIO counts it among the samples
            metaimage.read(trailed)
    else:
        assert is_whole(trailed)
    with pytest.raises(CorruptFileError, match="damaged"):
        metaimage.read(nrrd(path, before + flipped(packed, len(packed) - 8), *lines, encoding=encoding))
    with pytest.raises(TruncatedFileError, match="end early"):
        metaimage.read(nrrd(path, before + packed[:-4], *lines, encoding=encoding))
    with pytest.raises(TruncatedFileError, match="unpack to"):
        metaimage.read(nrrd(path, before + gzip.compress(unpacked[8:]), *lines, encoding=encoding))


def test_gzip_members_after_one_another_are_one_stream(tmp_path):
    halves = gzip.compress(RAW[:1000]) + gzip.compress(RAW[1000:])
    assert is_whole(nrrd(tmp_path / "a.nrrd", halves))
    with pytest.raises(TruncatedFileError, match="end early"):
        metaimage.read(nrrd(tmp_path / "a.nrrd", halves[:-9]))


def test_an_nrrd_of_zlib_is_no_gzip(tmp_path):
    with pytest.raises(CorruptFileError, match="damaged"):  # NrrdIO takes it for samples that are not packed
        metaimage.read(nrrd(tmp_path / "a.nrrd", zlib.compress(RAW, 0)))


def test_a_skip_that_is_no_number_is_corrupt(tmp_path):
    with pytest.raises(CorruptFileError):
        metaimage.read(nrrd(tmp_path / "a.nrrd", GZIP, "byte skip: many"))


@pytest.mark.parametrize("kind", ["mhd list", "mhd pattern", "nhdr list", "nhdr pattern"])
def test_samples_in_many_files_are_checked(tmp_path, kind):
    suffix, form = kind.split()
    names = [f"plane {n:02d}.z" if form == "list" else f"plane{n:02d}.z" for n in range(1, 13)]
    pack = zlib.compress if suffix == "mhd" else gzip.compress
    for name, plane in zip(names, NOISE, strict=True):
        (tmp_path / name).write_bytes(pack(plane.tobytes()))
    listed = "\n".join(names)
    if suffix == "mhd":
        place = "plane%02d.z 1 12 1" if form == "pattern" else f"LIST\n{listed}"
        path = meta(tmp_path / "a.mhd", b"", place=place)
    else:
        place = "plane%02d.z 1 12 1 2" if form == "pattern" else f"LIST 2\n{listed}"
        path = tmp_path / "a.nhdr"
        path.write_text("\n".join((*NRRD, "encoding: gzip", f"data file: {place}\n")))
    assert is_whole(path)
    damaged = tmp_path / names[7]
    whole = damaged.read_bytes()
    damaged.write_bytes(flipped(whole, len(whole) - 1 if suffix == "mhd" else len(whole) - 8))
    with pytest.raises(CorruptFileError, match="damaged"):
        metaimage.read(path)
    damaged.write_bytes(pack(NOISE[7].tobytes()[:-1]))
    with pytest.raises(TruncatedFileError, match="unpack to 319"):
        metaimage.read(path)
    damaged.unlink()
    with pytest.raises(ReadError):
        metaimage.read(path)


def test_a_stream_of_far_more_than_is_needed_is_refused_early(tmp_path, monkeypatch):
    monkeypatch.setattr(packed_samples, "_SURPLUS_BYTES", 1000)
    with pytest.raises(CorruptFileError, match="more than"):
        metaimage.read(nrrd(tmp_path / "a.nrrd", gzip.compress(RAW + bytes(1001))))
