"""NIfTI: geometry codes, units, times, sample types, broken files."""

from __future__ import annotations

import contextlib
import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from usvol.errors import (
    CorruptFileError,
    EmptyFileError,
    ReadError,
    TooLargeError,
    TruncatedFileError,
    UnsupportedFormatError,
    UsvolError,
)
from usvol.formats import nifti
from usvol.loading import FileClass, classify, load, probe
from usvol.scan import Frame, Grid, Kind, Selection, Trust

AFFINE = np.array([[0.0, -2.0, 0, 10], [3.0, 0, 0, 20], [0, 0, 4.0, 30], [0, 0, 0, 1]])
VOLUME = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)


def save(path, data=VOLUME, affine=AFFINE, *, units=("mm", "sec"), codes=(1, 1), **fields):
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units(*units)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    for key, value in fields.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def test_ras_becomes_lps(tmp_path):
    scan = nifti.read(save(tmp_path / "a.nii.gz"))
    assert scan.kind is Kind.VOLUME
    assert scan.grid.shape == (6, 5, 4)
    assert scan.grid.spacing_mm == pytest.approx((4, 2, 3))
    assert scan.grid.frame is Frame.PATIENT_LPS
    x, y, z = (AFFINE @ [1, 2, 3, 1])[:3]
    assert scan.grid.to_world([3, 2, 1]) == pytest.approx([z, -y, -x])
    assert scan.data[0, 0, 3, 2, 1] == VOLUME[1, 2, 3]


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("meter", 1000), ("micron", 0.001)])
def test_units_of_length_are_honoured(tmp_path, unit, factor):
    scan = nifti.read(save(tmp_path / "a.nii", units=(unit, "sec")))
    assert scan.grid.spacing_mm == pytest.approx((4 * factor, 2 * factor, 3 * factor))
    assert scan.grid.origin_mm == pytest.approx((30 * factor, -20 * factor, -10 * factor))
    assert not scan.source.warnings


def test_an_unstated_unit_is_millimetres_with_a_warning(tmp_path):
    scan = nifti.read(save(tmp_path / "a.nii", units=("unknown", "unknown")))
    assert scan.grid.spacing_mm == pytest.approx((4, 2, 3))
    assert any("not stated" in warning for warning in scan.source.warnings)


def test_without_a_code_the_place_is_the_probes(tmp_path):
    scan = nifti.read(save(tmp_path / "a.nii", codes=(0, 0)))
    assert scan.grid.frame is Frame.PROBE
    assert scan.grid.spacing_mm == pytest.approx((4, 2, 3))
    assert "no sform and no qform" in scan.calibration.reason


def test_a_header_that_nobody_filled_in_is_no_calibration(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), None), tmp_path / "bare.nii.gz")
    scan = nifti.read(tmp_path / "bare.nii.gz")
    assert not scan.grid.is_calibrated and scan.grid.frame is Frame.PROBE
    assert scan.calibration.trust is Trust.ABSENT and "nobody filled in" in scan.calibration.reason
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "mm.nii.gz")
    assert nifti.read(tmp_path / "mm.nii.gz").grid.spacing_mm == (1.0, 1.0, 1.0)


def test_a_pixdim_of_zero_without_codes_is_no_calibration(tmp_path):
    path = save(tmp_path / "a.nii", codes=(0, 0))
    content = bytearray(path.read_bytes())
    content[80:84] = struct.pack("<f", float("nan"))
    path.write_bytes(content)
    header = nifti.probe(path)
    assert header.grid.spacing_mm is None
    assert header.source.calibration.trust is Trust.ABSENT


def test_the_sform_wins_and_a_different_qform_is_told(tmp_path):
    image = nib.Nifti1Image(VOLUME, AFFINE)
    image.header.set_xyzt_units("mm")
    image.set_sform(AFFINE, 2)
    moved = AFFINE.copy()
    moved[0, 3] += 50
    image.set_qform(moved, 1)
    nib.save(image, tmp_path / "a.nii")
    scan = nifti.read(tmp_path / "a.nii")
    assert scan.grid.origin_mm == pytest.approx((30, -20, -10))
    assert any("apart" in warning for warning in scan.source.warnings)


@pytest.mark.parametrize(("shear", "outcome"), [(0.002, "warning"), (0.3, "error")])
def test_sheared_axes_are_mended_or_refused(tmp_path, shear, outcome):
    sheared = np.eye(4)
    sheared[0, 1] = shear
    path = save(tmp_path / "a.nii", affine=sheared, codes=(1, 0))
    if outcome == "error":
        with pytest.raises(CorruptFileError, match="sheared"):
            nifti.read(path)
        return
    scan = nifti.read(path)
    assert any("sheared" in warning for warning in scan.source.warnings)
    direction = np.array(scan.grid.direction)
    assert np.allclose(direction.T @ direction, np.eye(3), atol=1e-12)


@pytest.mark.parametrize(
    ("unit", "step", "times"),
    [
        ("sec", 0.5, (0, 0.5, 1.0)),
        ("msec", 20, (0, 0.02, 0.04)),
        ("usec", 20, (0, 2e-5, 4e-5)),
        ("unknown", 0.5, None),
        ("hz", 0.5, None),
        ("sec", 0, None),
        ("sec", -1, None),
    ],
)
def test_frame_times_need_a_unit_and_a_step(tmp_path, unit, step, times):
    clip = np.stack([VOLUME, VOLUME + 1, VOLUME + 2], -1)
    pixdim = np.array([1, 3, 2, 4, step, 1, 1, 1], np.float32)
    scan = nifti.read(save(tmp_path / "a.nii", clip, units=("mm", unit), codes=(1, 0), pixdim=pixdim))
    assert scan.kind is Kind.VOLUME_SEQUENCE
    assert scan.times_s == (None if times is None else pytest.approx(times))
    assert bool(scan.source.warnings) is (times is None)
    assert scan.data[:, 0, 0, 0, 0].tolist() == [0, 1, 2]


def test_a_selection_takes_frames(tmp_path):
    clip = np.stack([VOLUME + i for i in range(5)], -1)
    scan = nifti.read(save(tmp_path / "a.nii", clip), Selection(max_frames=2))
    assert scan.data[:, 0, 0, 0, 0].tolist() == [0, 4]
    assert scan.source.frame_indices == (0, 4)


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [("uint8", "uint8"), ("int16", "int16"), ("uint16", "int32"), (">i2", "int16"), ("float64", "float64")],
)
def test_values_and_types_are_kept(tmp_path, dtype, kept):
    data = (np.arange(120).reshape(4, 5, 6) * (500 if dtype == "uint16" else 1)).astype(dtype)
    image = nib.Nifti1Image(data.astype(np.dtype(dtype).newbyteorder("=")), AFFINE)
    if dtype.startswith(">"):
        image = nib.Nifti1Image(data, AFFINE, nib.Nifti1Header(endianness=">"))
        image.header.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a.nii")
    scan = nifti.read(tmp_path / "a.nii")
    assert str(scan.data.dtype) == f"torch.{kept}"
    assert np.array_equal(scan.data[0, 0].numpy(), data.transpose(2, 1, 0))


def test_scaled_samples_become_float(tmp_path):
    image = nib.Nifti1Image(VOLUME.astype(np.int16), AFFINE)
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "a.nii")
    stored = np.asarray(nib.load(tmp_path / "a.nii").dataobj)
    scan = nifti.read(tmp_path / "a.nii")
    assert str(scan.data.dtype) == "torch.float32"
    assert np.allclose(scan.data[0, 0].numpy(), stored.transpose(2, 1, 0))


def test_scaling_does_not_hide_complex_samples_and_is_not_of_colours(tmp_path):
    image = nib.Nifti1Image(np.full((4, 5, 6), 1 + 2j, np.complex64), np.eye(4))
    image.header.set_slope_inter(2, 0)
    nib.save(image, tmp_path / "complex.nii")
    with pytest.raises(CorruptFileError, match="complex64, not numbers"):
        nifti.read(tmp_path / "complex.nii")
    colours = np.zeros((4, 5, 6), [(c, "u1") for c in "RGB"])
    colours["G"] = 7
    image = nib.Nifti1Image(colours, np.eye(4))
    image.header.set_slope_inter(2, 0)
    nib.save(image, tmp_path / "rgb.nii")
    assert nifti.read(tmp_path / "rgb.nii").data[0, :, 0, 0, 0].tolist() == [0, 7, 0]


def test_rgb_samples_are_three_channels(tmp_path):
    rgb = np.zeros((4, 5, 6), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    rgb["R"], rgb["G"], rgb["B"] = VOLUME, VOLUME + 1, 7
    nib.save(nib.Nifti1Image(rgb, AFFINE), tmp_path / "a.nii.gz")
    header, scan = nifti.probe(tmp_path / "a.nii.gz"), nifti.read(tmp_path / "a.nii.gz")
    assert (header.channels, header.dtype) == (3, "uint8")
    expected = np.stack([VOLUME, VOLUME + 1, np.full_like(VOLUME, 7)]).transpose(0, 3, 2, 1)
    assert np.array_equal(scan.data[0].numpy(), expected)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 1, 3)])
def test_planes_and_planar_cines(tmp_path, shape):
    image = nib.Nifti1Image(np.zeros(shape, np.uint8), np.diag([0.3, 0.4, 9, 1]))
    nib.save(image, tmp_path / "a.nii")
    scan = nifti.read(tmp_path / "a.nii")
    assert scan.kind is (Kind.CINE if len(shape) == 4 else Kind.IMAGE)
    assert scan.grid.spacing_mm == pytest.approx((9, 0.4, 0.3))


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("codes", [(1, 1), (0, 1), (0, 0)])
@pytest.mark.parametrize(
    ("shape", "stored"), [((4, 5, 1), 0), ((4, 5, 1), np.nan), ((4, 5), 7), ((4, 5, 1), 7)]
)
def test_a_plane_is_as_thick_as_its_header_says(tmp_path, kind, codes, shape, stored):
    affine = np.diag([0.3, 0.4, -9, 1])
    image = kind(np.zeros(shape, np.uint8), affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    content = bytearray(image.to_bytes())
    place, code = (88, "<f") if kind is nib.Nifti1Image else (128, "<d")
    struct.pack_into(code, content, place, stored)
    (tmp_path / "a.nii").write_bytes(content)
    grid = nifti.read(tmp_path / "a.nii").grid
    # An unknown thickness is that of y (``Grid``); the sform has one of its own; two axes state none.
    thickness = 9 if codes[0] else 7 if stored == 7 and len(shape) == 3 else 0.4
    assert grid.spacing_mm == pytest.approx((thickness, 0.4, 0.3))
    assert grid.direction[0][0] == (1 if codes == (0, 0) else -1)


@pytest.mark.parametrize("stored", [0.0, np.nan])
def test_a_volume_without_a_spacing_gets_none(tmp_path, stored):
    image = nib.Nifti1Image(VOLUME, np.eye(4))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    content = bytearray(image.to_bytes())
    struct.pack_into("<fff", content, 80, stored, stored, stored)
    (tmp_path / "a.nii").write_bytes(content)
    scan = nifti.read(tmp_path / "a.nii")
    assert scan.grid.spacing_mm is None
    assert scan.calibration.trust is Trust.ABSENT
    assert "pixdim" in scan.calibration.reason


def test_the_mask_of_a_plane_lies_on_the_plane(tmp_path):
    scan = nifti.read(save(tmp_path / "a.nii", VOLUME[:, :, :1], np.diag([0.3, 0.4, 9, 1])))
    nifti.write_nifti(tmp_path / "mask.nii", np.zeros(scan.grid.shape, np.uint8), grid=scan.grid)
    assert nib.load(tmp_path / "mask.nii").affine == pytest.approx(np.diag([0.3, 0.4, 9, 1]))


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("times", [None, (0.0, 0.1, 0.2), (0.5, 0.6, 1.9)])
def test_clips_come_back_with_their_times(tmp_path, suffix, times):
    clip = np.random.default_rng(0).integers(0, 255, (3, 6, 5, 4)).astype(np.uint8)
    grid = Grid((6, 5, 4), (1.0, 2.0, 3.0), (1, 2, 3), frame=Frame.PATIENT_LPS)
    nifti.write_nifti(tmp_path / f"a.{suffix}", clip, grid=grid, times_s=times)
    scan = nifti.read(tmp_path / f"a.{suffix}")
    assert np.array_equal(scan.data[:, 0].numpy(), clip)
    assert scan.times_s == (None if times is None else pytest.approx(times))


def test_nifti_2_and_pairs_are_read(tmp_path):
    nib.save(nib.Nifti2Image(VOLUME, AFFINE), tmp_path / "two.nii")
    nib.save(nib.Nifti1Pair(VOLUME, AFFINE), tmp_path / "pair.hdr")
    for name in ("two.nii", "pair.hdr", "pair.img"):
        path = tmp_path / name
        assert nifti.sniff(path, path.read_bytes()[:4096])
        assert np.array_equal(nifti.read(path).data[0, 0].numpy(), VOLUME.transpose(2, 1, 0))
    (tmp_path / "pair.img").unlink()
    with pytest.raises(CorruptFileError, match=r"pair\.img"):
        nifti.read(tmp_path / "pair.hdr")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_an_analyze_pair_says_what_it_lacks_and_what_to_do(tmp_path, order, suffix):
    header = nib.AnalyzeHeader(endianness=order)
    nib.save(nib.AnalyzeImage(VOLUME, None, header), tmp_path / f"old.img{suffix}")
    for name in (f"old.hdr{suffix}", f"old.img{suffix}"):
        assert classify(tmp_path / f"old.hdr{suffix}") is FileClass.SCAN
        for open_ in (probe, load):
            with pytest.raises(UnsupportedFormatError, match=r"ANALYZE 7\.5.*which side.*to NIfTI"):
                open_(tmp_path / name)


def test_broken_files_raise_typed_errors(tmp_path):
    whole = save(tmp_path / "à côté 体.nii").read_bytes()
    path = tmp_path / "b.nii"
    path.write_bytes(b"")
    with pytest.raises(EmptyFileError):
        nifti.probe(path)
    path.write_bytes(whole[:-20])
    with pytest.raises(TruncatedFileError):
        nifti.probe(path)
    path.write_bytes(whole[:200])
    with pytest.raises(ReadError):
        nifti.probe(path)
    packed = tmp_path / "c.nii.gz"
    noise = np.random.default_rng(0).integers(0, 255, (30, 30, 30)).astype(np.uint8)
    save(packed, noise)
    packed.write_bytes(packed.read_bytes()[:-4000])
    for open_ in (nifti.probe, nifti.read):
        with pytest.raises(TruncatedFileError):
            open_(packed)


def test_gzip_members_after_one_another_are_whole(tmp_path):
    whole = save(tmp_path / "a.nii").read_bytes()
    path = tmp_path / "b.nii.gz"
    # The trailer of such a file states the size of its last member only.
    path.write_bytes(gzip.compress(whole[:400]) + gzip.compress(whole[400:]) + gzip.compress(b""))
    assert nifti.probe(path).grid.shape == (6, 5, 4)
    assert nifti.read(path).data[0, 0, 3, 2, 1] == VOLUME[1, 2, 3]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["a.mp4", "a", "a.dcm", "a.nii", "a.nii.gz", "A.NII.GZ", "a.hdr"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_single_file_opens_under_any_name(tmp_path, kind, name, packed):
    content = kind(VOLUME, AFFINE).to_bytes()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if packed else content)
    assert nifti.probe(path).grid.spacing_mm == pytest.approx((4, 2, 3))
    scan = nifti.read(path)
    assert np.array_equal(scan.data[0, 0].numpy(), VOLUME.transpose(2, 1, 0))


def test_a_pair_under_a_false_name_says_what_to_do(tmp_path):
    nib.save(nib.Nifti1Pair(VOLUME, AFFINE), tmp_path / "pair.hdr")
    path = (tmp_path / "pair.hdr").rename(tmp_path / "pair.mp4")
    with pytest.raises(CorruptFileError, match=r"header of a NIfTI pair.*\.img beside"):
        nifti.probe(path)


def test_damage_is_told_once_and_not_logged(tmp_path, caplog, capfd):
    path = tmp_path / "b.nii"
    path.write_bytes(b"\7" * 400)
    with pytest.raises(ReadError):
        nifti.probe(path)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("packed", [False, True])
def test_ten_gigabytes_in_the_header_allocate_nothing(tmp_path, packed):
    content = bytearray(save(tmp_path / "a.nii").read_bytes())
    content[40:56] = struct.pack("<8h", 3, 2200, 2200, 2200, 1, 1, 1, 1)
    path = tmp_path / ("b.nii.gz" if packed else "b.nii")
    path.write_bytes(gzip.compress(bytes(content)) if packed else bytes(content))
    with pytest.raises(TooLargeError, match="GiB"):
        nifti.read(path)


@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_files_raise_typed_errors_only(tmp_path, data):
    packed = data.draw(st.booleans())
    whole = save(tmp_path / "f.nii").read_bytes()
    content = bytearray(gzip.compress(whole, mtime=0) if packed else whole)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(len(content), 400) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(len(content) // 2, len(content)))]
    path = tmp_path / ("g.nii.gz" if packed else "g.nii")
    path.write_bytes(content)
    with contextlib.suppress(UsvolError):  # anything else fails the test
        assert nifti.read(path).data.numel() > 0


def test_the_resect_volume_is_where_its_affine_says(shared_data):
    path = shared_data / "volumes" / "resect" / "Case4_US_before.nii.gz"
    header, affine = nifti.probe(path), nib.load(path).affine
    assert header.grid.shape == (288, 256, 256)
    assert header.grid.spacing_mm == pytest.approx((0.426,) * 3, abs=1e-4)
    for index in ([0, 0, 0], [287, 255, 255], [17, 101, 3]):
        x, y, z = (affine @ [*index[::-1], 1])[:3]
        assert header.grid.to_world(index) == pytest.approx([z, -y, -x], abs=1e-3)


def test_atlas_masks_keep_their_labels(shared_data):
    folder = shared_data / "atlas" / "fetal_brain" / "GA25_notoperated"
    scan = nifti.read(folder / "parcellation.nii.gz")
    stored = np.asarray(nib.load(folder / "parcellation.nii.gz").dataobj)
    assert np.array_equal(scan.data[0, 0].numpy(), stored.transpose(2, 1, 0))
    assert len(np.unique(stored)) == 9


def test_a_changed_byte_in_a_gzip_file_is_noticed(tmp_path):
    path = tmp_path / "v.nii.gz"
    nifti.write_nifti(
        path, np.arange(120, dtype=np.int16).reshape(4, 5, 6), grid=Grid((4, 5, 6), (1.0, 1.0, 1.0))
    )
    assert nifti.read(path).data.shape == (1, 1, 4, 5, 6)
    whole = bytearray(path.read_bytes())
    whole[-6] ^= 1  # of the checksum: what was written is not what is read
    path.write_bytes(bytes(whole))
    with pytest.raises(CorruptFileError, match="CRC"):
        nifti.read(path)
    plain = tmp_path / "v.nii"
    nifti.write_nifti(plain, np.arange(120, dtype=np.int16).reshape(4, 5, 6), grid=Grid((4, 5, 6)))
    longer = bytearray(gzip.compress(plain.read_bytes() + bytes(5000)))
    path.write_bytes(bytes(longer))
    assert nifti.read(path).data.shape == (1, 1, 4, 5, 6), "more than its samples does no harm"
    longer[-6] ^= 1
    path.write_bytes(bytes(longer))
    with pytest.raises(CorruptFileError, match="CRC"):
        nifti.read(path)
