"""What ``usvol info`` says of good, bad and stray files, and its exit codes."""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from usvol import cli
from usvol.batch import discovery
from usvol.cli_output import ExitCode
from usvol.formats.metaimage import write_image
from usvol.formats.nifti import write_nifti
from usvol.formats.video import write_gif
from usvol.scan import Grid

GB_10 = (3000, 3000, 1200)


@pytest.fixture
def info(monkeypatch, capfd):
    """Run the verb in this process; give exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["usvol", "info", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0), *capfd.readouterr()

    return run


@pytest.fixture
def good(tmp_path) -> Path:
    frames = np.random.default_rng(0).integers(0, 255, (5, 40, 48), dtype=np.uint8)
    return write_gif(tmp_path / "beat.gif", frames, fps=20)


def bad_files(folder: Path, good: Path) -> dict[Path, str]:
    """Write one file per way to be bad; return each with the error it must give."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(GB_10)
    header.set_data_dtype(np.uint8)
    huge = header.binaryblock + bytes(2000)
    none = bytearray(huge)
    struct.pack_into("<h", none, 46, 0)
    size = " ".join(map(str, GB_10))
    meta = (
        f"ObjectType = Image\nNDims = 3\nDimSize = {size}\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    )
    contents = {
        "empty.mp4": (b"", "EmptyFileError"),
        "empty": (b"", "EmptyFileError"),
        "huge.nii": (huge, "TooLargeError"),
        "huge.nii.gz": (gzip.compress(huge), "TooLargeError"),
        "huge.mha": (meta.encode() + bytes(100), "TooLargeError"),
        "none.nii": (bytes(none), "EmptyFileError"),
        "cut.gif": (good.read_bytes()[:30], "TruncatedFileError"),
        "half.gif": (good.read_bytes()[:-40], "TruncatedFileError"),
        "locked.pdf": (b"%PDF-1.7\ntrailer<</Encrypt 5 0 R>>", "EncryptedFileError"),
        "locked.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(90) + b"\x24\x06\xf1\x07\x01", "EncryptedFileError"),
        "zeros.dcm": (bytes(5000), "UnknownFormatError"),
        "noise.mp4": (bytes(range(7, 256)) * 9, "CorruptFileError"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    told = {folder / name: error for name, (_, error) in contents.items()}
    locked = folder / "locked.zip"
    with zipfile.ZipFile(locked, "w") as archive:
        archive.writestr("clip.mp4", b"x" * 1000)
    data = bytearray(locked.read_bytes())
    data[6] |= 1
    locked.write_bytes(data)
    return told | {locked: "EncryptedFileError"}


def test_bad_files_give_one_clean_line_each(info, tmp_path, good):
    bad = bad_files(tmp_path, good)
    code, out, err = info(*bad)
    assert code == ExitCode.NOTHING_USABLE
    lines = out.splitlines()
    assert len(lines) == 2 * len(bad)
    for path, line in zip(bad, lines[1::2], strict=True):
        assert line.startswith(f"  {bad[path]}: {path.name}: ")
        assert "To fix: " in line
    assert "Traceback" not in out + err
    assert err == f"no scan found, {len(bad)} files cannot be read\n"


def test_one_good_file_among_bad_ones_is_exit_3(info, tmp_path, good):
    bad = bad_files(tmp_path, good)
    code, out, err = info(good, *bad, "--json")
    assert code == ExitCode.SOME_FAILED
    facts = json.loads(out)
    assert [fact.get("error", {}).get("type") for fact in facts] == [None, *bad.values()]
    assert err == f"1 scan (cine: 1), {len(bad)} files cannot be read\n"


def test_tables_beside_scans_are_ignored_but_named_alone_they_fail(info, tmp_path, good):
    for name in ("labels.csv", "LICENSE", "tracking.json", "probe.xml"):
        (tmp_path / name).write_text("a,b\n" * 30)
    (tmp_path / "empty.csv").touch()
    for given in ([tmp_path], [f"{tmp_path}/*"], sorted(tmp_path.iterdir())):
        code, out, err = info(*given)
        assert code == ExitCode.DONE
        assert out.count("\n  kind ") == 1
        assert err == "1 scan (cine: 1), 5 other files ignored (tables, texts, label maps, hidden)\n"
    code, out, _ = info(tmp_path / "labels.csv")
    assert code == ExitCode.NOTHING_USABLE
    assert "it is a table, text or document, not a scan" in out


def test_files_of_no_known_format_are_named(info, tmp_path, good):
    Image.new("L", (20, 20)).save(tmp_path / "still.webp")
    (tmp_path / "labels.csv").write_text("a,b\n" * 30)
    for number in range(4):
        (tmp_path / f"export [{number}].zip").write_bytes(b"PK\x03\x04" + bytes(99))
    code, _, err = info(tmp_path)
    assert code == ExitCode.DONE
    assert "1 other file ignored (tables, texts, label maps, hidden)" in err
    told = "5 files of no format that is read: export [0].zip, export [1].zip, export [2].zip and 2 more"
    assert err.endswith(f"{told}\n")


def test_a_folder_without_scans_says_so(info, tmp_path):
    code, out, err = info(tmp_path)
    assert (code, out) == (ExitCode.NOTHING_USABLE, "")
    assert err == "no scan found\n"


def test_a_likely_placeholder_of_slice_spacing_is_told(info, tmp_path):
    path = tmp_path / "sweep.mha"
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.zeros((7, 8, 9), np.uint8))
    image.SetSpacing((0.3, 0.3, 1))
    SimpleITK.WriteImage(image, str(path))
    code, out, _ = info(path)
    assert code == ExitCode.DONE
    assert "1 × 0.3 × 0.3 mm (z, y, x), from MetaImage sample spacing" in out
    assert "likely a placeholder" in out
    write_image(path, np.zeros((7, 8, 9), np.uint8), grid=Grid((7, 8, 9), (1.0, 0.3, 0.3)))
    assert "likely a placeholder" not in info(path)[1]


def test_every_real_file_is_told(info, shared_data):
    folders = [shared_data / name for name in ("dicom", "volumes", "video", "atlas", "lus/pocus/images")]
    code, out, err = info(*folders, "--json")
    assert code == ExitCode.DONE
    facts = {Path(fact["path"]).name: fact for fact in json.loads(out)}
    assert "cannot be read" not in err
    assert "other files ignored" in err
    for fact in facts.values():
        assert fact["calibration"]["reason"]
        assert (fact["spacing_mm"] is None) == (fact["calibration"]["trust"] == "absent")
    assert "contradicts itself" in facts["a4c_cine_ybr.dcm"]["calibration"]["reason"]
    sweeps = [fact for name, fact in facts.items() if name.endswith(".igs.mha")]
    assert len(sweeps) == 4
    for fact in sweeps:
        assert fact["kind"] == "cine"
        assert fact["spacing_mm"] is None
        assert "placeholder that PLUS writes" in fact["calibration"]["reason"]
    assert any("likely a placeholder" in warning for warning in facts["frames.mha"]["warnings"])


def test_one_file_nobody_foresaw_does_not_keep_the_others_from_being_told(info, tmp_path, good, monkeypatch):
    def probe(path):
        if path.name == "odd.gif":
            raise OSError(36, "File name too long")
        return known(path)

    known = discovery.probe
    monkeypatch.setattr(discovery, "probe", probe)
    good.with_name("odd.gif").write_bytes(good.read_bytes())
    code, out, _ = info(tmp_path)
    assert code == 3
    assert "beat.gif" in out
    assert "OSError" in out


@pytest.mark.skipif(sys.platform != "linux", reason="names of bytes")
def test_a_long_name_that_is_not_utf8_is_read(info, good):
    path = os.fsdecode(os.fsencode(good.parent) + b"/" + b"\xe9" * 200 + b".gif")
    Path(path).write_bytes(good.read_bytes())
    code, out, _ = info(path)
    assert code == 0
    assert "cine (" in out


def test_a_terminal_without_our_signs_shows_others(tmp_path):
    write_nifti(tmp_path / "v.nii", np.ones((4, 5, 6), np.uint8), grid=Grid((4, 5, 6), (1.0, 2.0, 3.0)))
    line = [sys.executable, "-m", "usvol.cli", "info", str(tmp_path / "v.nii")]
    told = subprocess.run(
        line, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=True
    )
    assert b"1 ? 2 ? 3 mm" in told.stdout
