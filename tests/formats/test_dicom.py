"""Ultrasound DICOM: calibration, frame times, colour, privacy, broken files."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
import tracemalloc

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from usvol.batch.discovery import discover
from usvol.errors import (
    CorruptFileError,
    EmptyFileError,
    EncryptedFileError,
    ReadError,
    TooLargeError,
    TruncatedFileError,
    UnsupportedFormatError,
    UsvolError,
)
from usvol.formats import dicom
from usvol.formats.dicom_header import open_header
from usvol.formats.dicom_pixels import decode
from usvol.formats.dicom_regions import Region
from usvol.scan import Kind, Selection, Trust

GREY = np.arange(40 * 60, dtype=np.uint8).reshape(40, 60) // 2
CINE = np.stack([np.full((40, 60), 10 * i, np.uint8) for i in range(6)])


@pytest.fixture
def read(tmp_path, dicom_files):
    def build_and_read(pixels=GREY, selection=None, **attributes):
        path = dicom_files.save(tmp_path / "a.dcm", dicom_files.build(pixels, **attributes))
        return dicom.read(path, selection)

    return build_and_read


def test_a_clip_beside_the_only_dicom_file_of_a_folder_is_not_lost(tmp_path, dicom_files):
    dicom_files.save(tmp_path / "a.dcm", dicom_files.build(GREY))
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(64))
    (tmp_path / "notes.txt").write_text("not a scan")
    assert [item.path for item in discover([tmp_path]).items] == [tmp_path / "a.dcm", clip]


# Calibration


def test_a_2d_region_in_cm_calibrates(read, dicom_files):
    scan = read(SequenceOfUltrasoundRegions=[dicom_files.region()])
    assert scan.grid.spacing_mm == pytest.approx((0.5, 0.5, 0.5))
    assert scan.calibration.trust is Trust.MEASURED
    (region,) = scan.source.metadata["regions"]
    assert isinstance(region, Region)
    assert (region.spatial_format, region.data_type, region.unit_y) == ("2D", "tissue", "cm")
    assert region.extent_mm == pytest.approx((20, 30))


def test_anisotropic_pixels_keep_their_two_sizes(read, dicom_files):
    scan = read(SequenceOfUltrasoundRegions=[dicom_files.region(PhysicalDeltaX=0.1)])
    assert scan.grid.spacing_mm == pytest.approx((0.5, 0.5, 1.0))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"RegionLocationMaxX1": 62}, "scaled or cropped"),
        ({"RegionLocationMaxY1": 400}, "scaled or cropped"),
        ({"RegionLocationMinX0": 59}, "empty"),
        ({"PhysicalUnitsXDirection": 4}, "not cm"),
        ({"PhysicalUnitsYDirection": 0}, "not cm"),
        ({"PhysicalDeltaY": 0.0}, "pixel size is 0"),
        ({"PhysicalDeltaX": float("nan")}, "pixel size"),
        ({"PhysicalDeltaX": 1.5, "PhysicalDeltaY": 1.5}, "600 mm deep"),
        ({"PhysicalDeltaX": 0.004, "PhysicalDeltaY": 0.004}, "1.6 mm deep"),
        ({"PhysicalDeltaX": 0.4}, "times as high"),
    ],
)
def test_a_region_that_contradicts_itself_calibrates_nothing(read, dicom_files, changes, reason):
    scan = read(SequenceOfUltrasoundRegions=[dicom_files.region(**changes)], PixelSpacing=[0.5, 0.5])
    assert scan.grid.spacing_mm is None
    assert scan.calibration.trust is Trust.ABSENT
    assert reason in scan.calibration.reason


def test_an_exclusive_region_end_is_accepted(read, dicom_files):
    region = dicom_files.region(RegionLocationMaxX1=60, RegionLocationMaxY1=40)
    assert read(SequenceOfUltrasoundRegions=[region]).grid.spacing_mm is not None


def test_regions_that_disagree_calibrate_nothing(read, dicom_files):
    other = dicom_files.region(PhysicalDeltaX=0.06, PhysicalDeltaY=0.06)
    scan = read(SequenceOfUltrasoundRegions=[dicom_files.region(), other])
    assert scan.grid.spacing_mm is None
    assert "disagree" in scan.calibration.reason


def test_mmode_and_doppler_regions_calibrate_nothing_alone_but_are_told(read, dicom_files):
    mmode = dicom_files.region(RegionSpatialFormat=2, PhysicalUnitsXDirection=4, PhysicalDeltaX=0.01)
    doppler = dicom_files.region(RegionSpatialFormat=3, RegionDataType=3)
    scan = read(SequenceOfUltrasoundRegions=[mmode, doppler])
    assert scan.grid.spacing_mm is None
    assert "M-mode" in scan.calibration.reason
    assert "PW Doppler" in scan.calibration.reason
    both = read(SequenceOfUltrasoundRegions=[mmode, dicom_files.region()])
    assert both.grid.spacing_mm == pytest.approx((0.5, 0.5, 0.5))
    assert any("2D regions only" in warning for warning in both.source.warnings)


@pytest.mark.parametrize(
    ("attributes", "spacing"),
    [
        ({"PixelSpacing": [0.4, 0.5]}, (0.4, 0.4, 0.5)),
        ({"PixelSpacing": [1.0, 1.0]}, None),
        ({"PixelSpacing": [0.0, 0.5]}, None),
        ({"PixelSpacing": [50.0, 50.0]}, None),
        ({"ImagerPixelSpacing": [0.4, 0.5]}, None),
        ({"NominalScannedPixelSpacing": [0.4, 0.5]}, None),
        ({}, None),
    ],
)
def test_pixel_spacing_counts_only_where_it_is_valid(read, attributes, spacing):
    scan = read(**attributes)
    assert scan.grid.spacing_mm == (None if spacing is None else pytest.approx(spacing))
    assert scan.calibration.reason


# Selections


def test_a_selection_thins_and_scales_a_cine(read, dicom_files):
    timed = {"FrameTime": 40, "SequenceOfUltrasoundRegions": [dicom_files.region()]}
    scan = read(CINE, Selection(max_frames=3, max_side_px=30), **timed)
    assert tuple(scan.data.shape) == (3, 1, 1, 20, 30)
    assert scan.data[:, 0, 0, 5, 5].tolist() == [0, 20, 50]
    assert scan.times_s == pytest.approx((0, 0.08, 0.2))
    assert scan.source.frame_indices == (0, 2, 5)
    assert scan.grid.spacing_mm[1:] == pytest.approx((1.0, 1.0))


# Samples and colour


def test_monochrome1_is_inverted(read):
    assert np.array_equal(read(PhotometricInterpretation="MONOCHROME1").data[0, 0, 0].numpy(), 255 - GREY)


def test_signed_and_12_bit_samples_keep_their_values(read):
    deep = (GREY.astype(np.int16) - 60) * 100
    assert np.array_equal(read(deep).data[0, 0, 0].numpy(), deep)
    twelve = GREY.astype(np.uint16) * 16
    scan = read(twelve, BitsStored=12, HighBit=11)
    assert np.array_equal(scan.data[0, 0, 0].numpy(), twelve)


def test_rescale_is_applied(read):
    scan = read(RescaleSlope=0.5, RescaleIntercept=-10)
    assert np.allclose(scan.data[0, 0, 0].numpy(), GREY * 0.5 - 10)


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes_give_their_colours(read, bits):
    scale = 257 if bits == 16 else 1
    ramp = np.arange(256)
    tables = {"Red": ramp * scale, "Green": (255 - ramp) * scale, "Blue": np.zeros(256, int)}
    attributes = {}
    for name, table in tables.items():
        attributes[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        attributes[f"{name}PaletteColorLookupTableData"] = table.astype(f"<u{bits // 8}").tobytes()
    scan = read(PhotometricInterpretation="PALETTE COLOR", **attributes)
    assert np.array_equal(scan.data[0, :, 0].numpy(), np.stack([GREY, 255 - GREY, GREY * 0]))


def test_ybr_becomes_rgb(read):
    ybr = np.zeros((4, 6, 3), np.uint8)
    ybr[:] = (76, 85, 255)  # pure red, ITU-R BT.601
    red = read(ybr, PhotometricInterpretation="YBR_FULL").data[0, :, 0, 2, 2].tolist()
    assert red[0] > 250
    assert max(red[1:]) < 4


def _halved(path, pairs, dicom_files, syntax=ExplicitVRLittleEndian):
    blank = np.zeros((*pairs.shape[:2], 2 * pairs.shape[2], 3), np.uint8)
    dataset = dicom_files.build(blank, PhotometricInterpretation="YBR_FULL_422", PixelData=pairs.tobytes())
    dataset.file_meta.TransferSyntaxUID = syntax
    return dicom_files.save(path, dataset)


@pytest.mark.parametrize("kept", [None, [0], [0, 1], [1, 2], [5], [0, 3, 5]])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_halved_colours_that_are_not_compressed_are_exact_in_every_frame(tmp_path, dicom_files, syntax, kept):
    pairs = np.random.default_rng(3).integers(0, 256, (6, 8, 5, 4), np.uint8)  # Y1 Y2 Cb Cr
    y, cb, cr = pairs[..., :2].reshape(6, 8, 10), *(pairs[..., i].repeat(2, -1) - 128.0 for i in (2, 3))
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 1).clip(0, 255)
    path = _halved(tmp_path / "halved.dcm", pairs, dicom_files, syntax)
    dataset, layout = open_header(path)
    decoded = decode(path, dataset, layout=layout, indices=kept)
    assert np.abs(decoded - rgb[kept or range(6)]).max() <= 0.51  # rounding alone


def test_a_selection_of_halved_colours_loads_no_other_frames(tmp_path, dicom_files):
    pairs = np.full((128, 256, 128, 4), 128, np.uint8)
    pairs[..., :2] = np.arange(128)[:, None, None, None]
    path = _halved(tmp_path / "halved.dcm", pairs, dicom_files)
    tracemalloc.start()
    scan = dicom.read(path, Selection(max_frames=2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6 < path.stat().st_size / 2
    assert scan.data[:, :, 0, 9, 9].tolist() == [[0] * 3, [127] * 3]


@pytest.mark.parametrize("pixels", [GREY, CINE])
def test_deflated_files_are_read(tmp_path, dicom_files, pixels):
    dataset = dicom_files.build(pixels)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    scan = dicom.read(dicom_files.save(tmp_path / "deflated.dcm", dataset))
    assert np.array_equal(scan.data[:, 0, 0].numpy(), pixels.reshape(-1, 40, 60))


def test_planar_configuration_is_undone(read):
    colour = np.random.default_rng(0).integers(0, 255, (4, 6, 3)).astype(np.uint8)
    planes = np.ascontiguousarray(colour.transpose(2, 0, 1)).tobytes()
    scan = read(colour, PixelData=planes, PlanarConfiguration=1)
    assert np.array_equal(scan.data[0, :, 0].numpy(), colour.transpose(2, 0, 1))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_cines_decode_exactly_and_by_frame(tmp_path, dicom_files, syntax):
    noise = np.random.default_rng(1).integers(0, 255, (5, 40, 60)).astype(np.uint8)
    dataset = dicom_files.build(noise)
    dataset.compress(syntax)
    path = dicom_files.save(tmp_path / "c.dcm", dataset)
    assert np.array_equal(dicom.read(path).data[:, 0, 0].numpy(), noise)
    thinned = dicom.read(path, Selection(max_frames=2))
    assert np.array_equal(thinned.data[:, 0, 0].numpy(), noise[[0, 4]])


def test_a_file_without_preamble_is_read(tmp_path, dicom_files):
    dataset = dicom_files.build(GREY)
    path = tmp_path / "bare"
    with path.open("wb") as file:
        pydicom.filewriter.write_dataset(pydicom.filebase.DicomFileLike(file), _bare(dataset))
    assert dicom.sniff(path, path.read_bytes()[:4096])
    assert np.array_equal(dicom.read(path).data[0, 0, 0].numpy(), GREY)


def _bare(dataset):
    plain = Dataset()
    plain.update({element.tag: element for element in dataset})
    plain._is_little_endian, plain._is_implicit_VR = True, True
    plain.set_original_encoding(is_implicit_vr=True, is_little_endian=True)
    return plain


# Privacy


def test_the_patient_enters_as_a_hash_only(tmp_path, dicom_files, caplog):
    path = dicom_files.save(tmp_path / "a.dcm", dicom_files.build(GREY))
    with caplog.at_level(logging.DEBUG):
        header = dicom.probe(path)
    key = header.source.patient_key
    assert len(key) == 64
    assert "SECRET" not in repr(header)
    assert "Jane" not in repr(header)
    assert "SECRET" not in caplog.text
    other = dicom_files.save(tmp_path / "b.dcm", dicom_files.build(GREY, PatientID="SECRET-18"))
    assert dicom.probe(other).source.patient_key != key
    nobody = dicom_files.save(tmp_path / "n.dcm", dicom_files.build(GREY, PatientID="--"))
    assert dicom.probe(nobody).source.patient_key is None


@pytest.mark.parametrize(("value", "flagged"), [("YES", True), (None, True), ("NO", False)])
def test_burned_in_annotation_is_flagged(read, value, flagged):
    scan = read(**({} if value is None else {"BurnedInAnnotation": value}))
    assert any("text" in warning for warning in scan.source.warnings) is flagged


# Volumes


def test_enhanced_volumes_over_time(tmp_path, dicom_files):
    clip = np.random.default_rng(2).integers(0, 255, (3, 4, 5, 6)).astype(np.uint8)
    affine = np.diag([0.5, 0.6, 0.7, 1])
    path = dicom_files.save(tmp_path / "v.dcm", dicom_files.enhanced(clip, affine, step_s=0.04))
    header, scan = dicom.probe(path), dicom.read(path)
    assert header.kind is Kind.VOLUME_SEQUENCE
    assert header.grid.spacing_mm == pytest.approx((0.7, 0.6, 0.5))
    assert header.times_s == pytest.approx((0, 0.04, 0.08))
    assert np.array_equal(scan.data[:, 0].numpy(), clip)
    thinned = dicom.read(path, Selection(max_frames=2))
    assert np.array_equal(thinned.data[:, 0].numpy(), clip[[0, 2]])
    assert thinned.times_s == pytest.approx((0, 0.08))


def test_a_mapping_to_the_transducer_moves_the_volume(tmp_path, dicom_files):
    dataset = dicom_files.enhanced(np.zeros((1, 2, 3, 4), np.uint8), np.diag([1.0, 1.0, 1.0, 1.0]))
    dataset.VolumeToTransducerMappingMatrix = [0, -1, 0, 5, 1, 0, 0, 6, 0, 0, 1, 7, 0, 0, 0, 1]
    grid = dicom.probe(dicom_files.save(tmp_path / "v.dcm", dataset)).grid
    assert grid.origin_mm == pytest.approx((7, 6, 5))
    assert grid.to_world([0, 0, 1]) == pytest.approx([7, 7, 5])


def test_planes_that_are_not_parallel_are_no_volume(tmp_path, dicom_files):
    dataset = dicom_files.enhanced(np.zeros((1, 3, 3, 4), np.uint8), np.eye(4))
    for angle, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        plane = Dataset()
        plane.ImageOrientationVolume = [np.cos(angle / 5), 0, np.sin(angle / 5), 0, 1, 0]
        group.PlaneOrientationVolumeSequence = [plane]
    with pytest.raises(UnsupportedFormatError, match="not parallel"):
        dicom.probe(dicom_files.save(tmp_path / "v.dcm", dataset))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files[2].unlink(), "mm apart"),
        (lambda files: shutil.copy(files[0], files[0].with_name("copy.dcm")), "where another does"),
        (lambda files: _edit(files[1], Rows=5, PixelData=b"\0" * 30), "differ in size"),
        (lambda files: _edit(files[1], SeriesInstanceUID="1.2.3"), "2 series"),
        (lambda files: _edit(files[1], ImagePositionPatient=[9, 9, 1]), "sideways"),
        (lambda files: _delete(files[1], "ImagePositionPatient"), "no position"),
    ],
)
def test_series_that_are_no_volume_say_why(tmp_path, dicom_files, change, message):
    folder = dicom_files.series(tmp_path / "s", np.zeros((6, 4, 6), np.uint8), np.eye(4))
    by_place = sorted(folder.iterdir(), key=lambda p: pydicom.dcmread(p).ImagePositionPatient[2])
    change(by_place)
    with pytest.raises(ReadError, match=message):
        dicom.probe(folder)


def _edit(path, **attributes):
    dataset = pydicom.dcmread(path)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


def _delete(path, keyword):
    dataset = pydicom.dcmread(path)
    delattr(dataset, keyword)
    dataset.save_as(path)


def test_a_folder_of_one_file_is_that_file(tmp_path, dicom_files):
    dicom_files.save(tmp_path / "only.dcm", dicom_files.build(GREY))
    (tmp_path / "notes.txt").write_text("no scan")
    assert dicom.sniff(tmp_path, b"")
    assert dicom.probe(tmp_path).kind is Kind.IMAGE


# Broken files


def broken(tmp_path, dataset_or_bytes, dicom_files=None):
    path = tmp_path / "größe ü.dcm"
    if isinstance(dataset_or_bytes, bytes):
        path.write_bytes(dataset_or_bytes)
    else:
        dicom_files.save(path, dataset_or_bytes)
    return path


def test_ten_gigabytes_in_the_header_allocate_nothing(tmp_path, dicom_files):
    dataset = dicom_files.build(CINE)
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 10_000, 10_000, 100
    path = broken(tmp_path, dataset, dicom_files)
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(TooLargeError, match="GiB"):
        dicom.read(path)
    assert time.perf_counter() - started < 5
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", EmptyFileError),
        (bytes.fromhex("3082040006092a864886f70d010703") + b"\0" * 500, EncryptedFileError),
        (b"\0" * 128 + b"DICM", ReadError),
        (b"\0" * 128 + b"DICM" + b"\xff" * 300, ReadError),
    ],
)
def test_bytes_that_are_no_image(tmp_path, content, error):
    with pytest.raises(error):
        dicom.probe(broken(tmp_path, content))


def test_cut_files_are_truncated(tmp_path, dicom_files):
    whole = broken(tmp_path, dicom_files.build(CINE), dicom_files).read_bytes()
    with pytest.raises(TruncatedFileError):
        dicom.probe(broken(tmp_path, whole[:-1000]))
    dataset = dicom_files.build(np.random.default_rng(0).integers(0, 255, (5, 16, 24)).astype(np.uint8))
    dataset.compress(RLELossless)
    whole = broken(tmp_path, dataset, dicom_files).read_bytes()
    with pytest.raises(TruncatedFileError):
        dicom.probe(broken(tmp_path, whole[: -len(whole) // 4]))


@pytest.mark.parametrize(
    ("attributes", "error"),
    [
        ({"NumberOfFrames": 0}, EmptyFileError),
        ({"NumberOfFrames": 9}, ReadError),
        ({"Rows": 0}, CorruptFileError),
        ({"BitsAllocated": 13}, CorruptFileError),
        ({"PhotometricInterpretation": "CMYK"}, ReadError),
    ],
)
def test_headers_that_contradict_the_samples(tmp_path, dicom_files, attributes, error):
    with pytest.raises(error):
        dicom.read(broken(tmp_path, dicom_files.build(CINE, **attributes), dicom_files))


def test_an_object_without_image_says_so(tmp_path, dicom_files):
    dataset = dicom_files.build(GREY, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(dataset, keyword)
    with pytest.raises(UnsupportedFormatError, match="Basic Text SR"):
        dicom.probe(broken(tmp_path, dataset, dicom_files))


def test_damaged_compressed_frames_are_corrupt(tmp_path, dicom_files):
    dataset = dicom_files.build(GREY)
    dataset.compress(JPEG2000Lossless)
    dataset.PixelData = encapsulate([b"\xff\x4f\xff\x51" + b"\x17" * 400])
    with pytest.raises(CorruptFileError, match="decoding"):
        dicom.read(broken(tmp_path, dataset, dicom_files))


@settings(max_examples=120, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_files_raise_typed_errors_only(tmp_path, dicom_files, data):
    compressed = data.draw(st.booleans())
    timed = {"FrameTime": 30, "CineRate": 20, "SequenceOfUltrasoundRegions": [dicom_files.region()]}
    dataset = dicom_files.build(CINE[:3, :8, :12].copy(), **timed)
    if compressed:
        dataset.compress(RLELossless, generate_instance_uid=False)
    content = bytearray(broken(tmp_path, dataset, dicom_files).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(len(content) // 2, len(content)))]
    with contextlib.suppress(UsvolError):  # anything else fails the test
        assert dicom.read(broken(tmp_path, bytes(content))).data.numel() > 0


# Real files


def test_the_four_chamber_cine_is_refused_as_calibration(shared_data):
    scan = dicom.read(shared_data / "dicom" / "a4c_cine_ybr.dcm", Selection(max_frames=2))
    assert scan.grid.spacing_mm is None
    assert "320 × 240" in scan.calibration.reason
    header = dicom.probe(shared_data / "dicom" / "a4c_cine_ybr.dcm")
    assert (header.kind, header.frames, header.channels) == (Kind.CINE, 30, 3)
    assert header.times_s[1] == pytest.approx(0.033333)


def test_real_files_have_their_calibration(shared_data):
    def spacing(name):
        return dicom.probe(shared_data / "dicom" / name).grid.spacing_mm

    assert spacing("aloka_dual_pane.dcm")[1:] == pytest.approx((0.38265, 0.38265), abs=1e-5)
    assert spacing("sonoque_anechoic_3mm.dcm")[1:] == pytest.approx((0.0291, 0.0291))
    assert spacing("palette_2frame.dcm")[1:] == pytest.approx((0.262288, 0.262288), abs=1e-6)
    for name in ("palette.dcm", "power_doppler_jpeg2k.dcm", "power_doppler_rgb.dcm"):
        assert spacing(name) is None


def test_the_two_power_doppler_encodings_show_the_same_colours(shared_data):
    rgb = dicom.read(shared_data / "dicom" / "power_doppler_rgb.dcm").data[0, :, 0].float()
    j2k = dicom.read(shared_data / "dicom" / "power_doppler_jpeg2k.dcm").data[0, :, 0].float()
    assert abs(rgb.mean((1, 2)) - j2k.mean((1, 2))).max() < 1
    assert rgb[0].max() == 255
    assert (rgb[0] - rgb[2]).max() > 150


def test_real_palettes_are_mostly_grey(shared_data):
    for name in ("aloka_dual_pane.dcm", "palette_2frame.dcm"):
        image = dicom.read(shared_data / "dicom" / name).data[0, :, 0].int()
        grey = (image.amax(0) - image.amin(0)) <= 2
        assert 0.8 < grey.float().mean() < 1  # the rest is coloured text and markers
        assert image.max() > 200
