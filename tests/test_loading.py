"""The dispatcher: content before suffix, what it refuses and how it says so, and what it does not import."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import usvol
from usvol.errors import EmptyFileError, EncryptedFileError, ReadError, TruncatedFileError, UnknownFormatError
from usvol.formats.metaimage import write_image
from usvol.formats.video import write_video
from usvol.loading import FileClass, _reader, classify, load, parts, probe
from usvol.scan import Grid, Kind, Selection

OLE = b"\xd0\xcf\x11\xe0"


@pytest.fixture
def clip(tmp_path) -> Path:
    frames = np.random.default_rng(0).integers(0, 255, (10, 48, 64), dtype=np.uint8)
    return write_video(tmp_path / "clip.mp4", frames, fps=25)


@pytest.fixture
def still(tmp_path) -> Path:
    path = tmp_path / "still.png"
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(path)
    return path


@pytest.fixture
def volume(tmp_path) -> Path:
    import nibabel

    path = tmp_path / "volume.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5, 4), np.uint8), np.diag([0.5, 0.6, 0.7, 1])), path)
    return path


def test_public_names(clip):
    assert usvol.load is load
    assert usvol.probe is probe
    assert usvol.load(str(clip), selection=Selection(max_frames=3)).data.shape[0] == 3


def test_content_goes_before_suffix(tmp_path, clip, still, volume):
    expected = {clip: ("video", Kind.CINE), still: ("images", Kind.IMAGE), volume: ("nifti", Kind.VOLUME)}
    for source, (name, kind) in expected.items():
        for suffix in (".mp4", ".nii.gz", ".dcm", ".png", ".txt", ""):
            disguised = tmp_path / f"disguised{suffix}"
            shutil.copy(source, disguised)
            assert classify(disguised) is FileClass.SCAN
            assert name == _reader(disguised).NAME
            header = probe(disguised)
            assert (header.source.format, header.kind) == (name, kind)


def test_missing_path_names_near_ones(clip):
    with pytest.raises(ReadError, match=r"clpi\.mp4: there is no such file.*did you mean 'clip\.mp4'"):
        load(clip.with_name("clpi.mp4"))
    with pytest.raises(ReadError, match="there is no folder"):
        load(clip.parent / "nowhere" / "clip.mp4")


def test_empty_file(tmp_path):
    path = tmp_path / "empty.mp4"
    path.touch()
    with pytest.raises(EmptyFileError):
        load(path)
    assert classify(path) is FileClass.SCAN


@pytest.mark.parametrize("name", ["notes.txt", "a.csv", "a.mp4", "a.nii", "a.png", "a.dcm", "a.mha", "a"])
def test_text_is_no_scan_under_any_name(tmp_path, name):
    path = tmp_path / name
    path.write_text("patient,severity\n1,2\n" * 50)
    with pytest.raises(ReadError):
        load(path)
    with pytest.raises(ReadError):
        probe(path)


def test_unknown_content_lists_what_is_read(tmp_path):
    path = tmp_path / "thing.xyz"
    path.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(UnknownFormatError, match=r"NIfTI.*video"):
        load(path)
    assert classify(path) is FileClass.UNKNOWN


def _locked_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("clip.mp4", b"x" * 1000)
    data = bytearray(path.read_bytes())
    data[6] |= 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".zip", ".mp4", ".nii.gz", ".dcm"])
def test_password_protected_zip(tmp_path, suffix):
    with pytest.raises(EncryptedFileError, match=r"ZIP archive.*password"):
        load(_locked_zip(tmp_path / f"a{suffix}"))


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"%PDF-1.7\n" + bytes(200) + b"/Encrypt 5 0 R", EncryptedFileError, "PDF"),
        (b"%PDF-1.7\n" + bytes(200), UnknownFormatError, "a PDF document"),
        (OLE + bytes(600) + "EncryptedPackage".encode("utf-16-le"), EncryptedFileError, "Office"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(99), UnknownFormatError, "7-Zip.*unpack"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(99) + b"\x24\x06\xf1\x07\x01", EncryptedFileError, "7-Zip.*password"),
        (b"Salted__" + bytes(range(200)), EncryptedFileError, "password"),
        (b"-----BEGIN PGP MESSAGE-----\n\nabc", EncryptedFileError, "password"),
    ],
)
@pytest.mark.parametrize("name", ["a.bin", "a.mp4", "a.dcm"])
def test_other_files_are_named(tmp_path, content, error, words, name):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(error, match=words):
        load(path)


def test_open_zip_says_unpack(tmp_path):
    path = tmp_path / "a.mp4"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("clip.mp4", b"x")
    with pytest.raises(UnknownFormatError, match=r"ZIP archive.*unpack"):
        load(path)


def test_gzip_of_something_else(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(gzip.compress(b"hello" * 100))
    with pytest.raises(ReadError):
        load(path)


def test_allow_truncated_reaches_the_reader(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (40, 48, 64), dtype=np.uint8)
    path = write_video(tmp_path / "cut.avi", frames, fps=25)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(TruncatedFileError):
        load(path)
    scan = load(path, allow_truncated=True)
    assert 10 < scan.data.shape[0] < 30
    assert scan.source.warnings


def test_allow_truncated_is_harmless_elsewhere(still):
    assert load(still, allow_truncated=True).kind is Kind.IMAGE


def test_names_long_and_not_ascii(tmp_path, clip, still, volume):
    for source in (clip, still, volume):
        folder = tmp_path / "Übung 胎児"
        folder.mkdir(exist_ok=True)
        path = folder / ("é" * 40 + "%03d" + "x" * 150 + "".join(source.suffixes))
        shutil.copy(source, path)
        assert load(path).source.path == path
        assert probe(str(path)).grid == probe(source).grid


def test_names_that_are_not_utf_8(tmp_path, clip, still, volume):
    for name in ("sweep.mha", "detached.mhd"):
        write_image(tmp_path / name, np.zeros((3, 4, 5), np.uint8), grid=Grid((3, 4, 5)))
    folder = tmp_path / "\udce9"
    folder.mkdir()
    shutil.copy(tmp_path / "detached.zraw", folder)
    for source in (still, volume, clip, tmp_path / "sweep.mha", tmp_path / "detached.mhd"):
        path = folder / ("\udce9" + "".join(source.suffixes))
        shutil.copy(source, path)
        assert classify(path) is FileClass.SCAN
        assert load(path).source.path == probe(path).source.path == path
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ReadError, match="\ufffd.mhd: "):
        load(path)
    (folder / "beat").mkdir()
    for number in (1, 2):
        shutil.copy(still, folder / "beat" / f"{number}.png")
    assert load(folder / "beat").source.path == folder / "beat"


def test_the_parts_of_a_scan_are_the_files_it_is_read_from(tmp_path, still, volume):
    assert parts(still) == (still,)
    assert parts(volume) == (volume,)
    for name in ("v.mhd", "w.nhdr", "x.mha"):
        write_image(tmp_path / name, np.zeros((3, 4, 5), np.uint8), grid=Grid((3, 4, 5)))
    assert parts(tmp_path / "v.mhd") == (tmp_path / "v.mhd", tmp_path / "v.zraw")
    assert parts(tmp_path / "w.nhdr") == (tmp_path / "w.nhdr", tmp_path / "w.raw.gz")
    assert parts(tmp_path / "x.mha") == (tmp_path / "x.mha",)
    for name in ("p.hdr", "p.img", "text.mhd"):
        (tmp_path / name).write_text("x")
    assert parts(tmp_path / "p.hdr") == (tmp_path / "p.hdr", tmp_path / "p.img")
    assert parts(tmp_path / "text.mhd") == (tmp_path / "text.mhd",)
    folder = tmp_path / "beat"
    folder.mkdir()
    for number in (10, 2):
        shutil.copy(still, folder / f"frame{number}.png")
    (folder / "notes.txt").write_text("x")
    assert parts(folder) == (folder / "frame2.png", folder / "frame10.png")


def test_folders(tmp_path, clip, still):
    folder = tmp_path / "beat"
    folder.mkdir()
    with pytest.raises(UnknownFormatError, match="neither one series"):
        load(folder)
    for number in (1, 2, 10):
        shutil.copy(still, folder / f"frame{number}.png")
    assert load(folder).kind is probe(folder).kind is Kind.CINE
    assert classify(folder) is FileClass.SCAN
    shutil.copy(clip, folder)
    assert classify(folder) is FileClass.UNKNOWN
    with pytest.raises(UnknownFormatError, match="usvol run"):
        load(folder)


def test_sidecars(tmp_path):
    names = ("labels.csv", "a.JSON", "notes.txt", "LICENSE", "README.md", ".hidden", "sweep.xml", "DICOMDIR")
    for name in names:
        path = tmp_path / name
        path.write_text("x" * 300)
        assert classify(path) is FileClass.SIDECAR, name
    (tmp_path / "v.mhd").write_text("ObjectType = Image\nNDims = 3\n")
    (tmp_path / "v.raw").write_bytes(bytes(100))
    assert classify(tmp_path / "v.mhd") is FileClass.SCAN
    assert classify(tmp_path / "v.raw") is FileClass.SIDECAR


def test_all_real_files_are_told_apart(shared_data):
    kinds: dict[FileClass, set[str]] = {}
    for path in shared_data.rglob("*"):
        if path.is_file():
            kinds.setdefault(classify(path), set()).add(path.suffix.lower())
    assert kinds.keys() == {FileClass.SCAN, FileClass.SIDECAR}
    assert kinds[FileClass.SCAN] == {
        ".gz", ".mha", ".dcm", ".mp4", ".mov", ".avi", ".mpeg", ".gif", ".png", ".jpg",
    }  # fmt: skip
    assert kinds[FileClass.SIDECAR] == {".csv", ".txt", ".md", ".json", ".xml", ""}


@pytest.mark.parametrize("name", ["volume", "still", "clip"])
def test_probe_imports_only_what_it_needs(request, name):
    path = request.getfixturevalue(name)
    forbidden = {
        # nibabel itself imports pydicom.
        "volume": ("torch", "av", "decord"),
        "still": ("torch", "av", "decord", "pydicom", "nibabel"),
        "clip": ("torch", "decord", "pydicom", "nibabel"),
    }[name]
    code = (
        "import sys; from usvol.loading import classify, probe; classify(sys.argv[1]); probe(sys.argv[1])\n"
        "print([m for m in sys.argv[2:] if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path), *forbidden], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
