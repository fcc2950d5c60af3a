"""MetaImage, NRRD and PLUS sweeps: what counts as a calibration, poses, broken files."""

from __future__ import annotations

import contextlib
import gzip

import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from usvol.batch.item import Stated
from usvol.errors import (
    CorruptFileError,
    EmptyFileError,
    ReadError,
    TooLargeError,
    TruncatedFileError,
    UnsupportedFormatError,
    UsvolError,
)
from usvol.formats import metaimage
from usvol.formats.plus_sequence import probe_axes
from usvol.scan import Frame, Kind, Selection, Trust

VOLUME = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)


def save(path, data=VOLUME, spacing=(0.5, 0.625, 0.75), origin=(1.0, 2.0, 3.0), **keys):
    image = SimpleITK.GetImageFromArray(data)
    image.SetSpacing(spacing[: image.GetDimension()])
    image.SetOrigin(origin[: image.GetDimension()])
    for key, value in keys.items():
        image.SetMetaData(key, value)
    SimpleITK.WriteImage(image, str(path))
    return path


def edit(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    return path


def sweep(path, frames=3, spacing=b"1 1 1", stamps=(7.0, 7.5, 8.25), orientation="MF"):
    lines = [
        "ObjectType = Image", "NDims = 3", "BinaryData = True", "CompressedData = False",
        "TransformMatrix = 1 0 0 0 1 0 0 0 1", "Offset = 0 0 0", f"DimSize = 6 5 {frames}",
        "Kinds = domain domain list", f"ElementSpacing = {spacing.decode()}", "ElementType = MET_UCHAR",
        f"UltrasoundImageOrientation = {orientation}", "UltrasoundImageType = BRIGHTNESS",
    ]  # fmt: skip
    for i in range(frames):
        prefix = f"Seq_Frame{i:04d}_"
        lines += [
            f"{prefix}ProbeToTrackerTransform = 1 0 0 {i} 0 1 0 0 0 0 1 0 0 0 0 1",
            f"{prefix}ProbeToTrackerTransformStatus = {'OK' if i else 'INVALID'}",
            f"{prefix}Timestamp = {stamps[i]}",
            f"{prefix}ImageStatus = OK",
        ]
    lines.append("ElementDataFile = LOCAL\n")
    path.write_bytes("\n".join(lines).encode() + bytes(range(30)) * frames)
    return path


@pytest.mark.parametrize("suffix", ["mha", "mhd", "nrrd", "nhdr"])
def test_geometry_is_read(tmp_path, suffix):
    path = save(tmp_path / f"größe 体.{suffix}")
    assert metaimage.sniff(path, path.read_bytes()[:4096])
    header, scan = metaimage.probe(path), metaimage.read(path)
    assert header.kind is Kind.VOLUME
    assert header.grid == scan.grid
    assert scan.grid.spacing_mm == pytest.approx((0.75, 0.625, 0.5))
    assert scan.grid.origin_mm == pytest.approx((3, 2, 1))
    assert np.array_equal(scan.data[0, 0].numpy(), VOLUME)
    assert scan.calibration.trust is Trust.MEASURED


def test_only_a_declared_patient_space_is_one(tmp_path):
    assert metaimage.probe(save(tmp_path / "a.nrrd")).grid.frame is Frame.PATIENT_LPS
    assert metaimage.probe(save(tmp_path / "a.mha")).grid.frame is Frame.PROBE


def test_ras_nrrd_becomes_lps(tmp_path):
    path = edit(save(tmp_path / "a.nrrd"), b"left-posterior-superior", b"right-anterior-superior")
    assert metaimage.probe(path).grid.to_world([0, 0, 1]) == pytest.approx([3, -2, -1.5])


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_itks_default_geometry_is_no_calibration(tmp_path, suffix):
    header = metaimage.probe(save(tmp_path / f"a.{suffix}", spacing=(1, 1, 1), origin=(0, 0, 0)))
    assert header.grid.spacing_mm is None
    assert "default" in header.source.calibration.reason
    moved = metaimage.probe(save(tmp_path / f"b.{suffix}", spacing=(1, 1, 1), origin=(0, 5, 0)))
    assert moved.grid.spacing_mm == (1, 1, 1)


def test_a_spacing_left_out_is_no_calibration(tmp_path):
    mha = edit(save(tmp_path / "a.mha"), b"ElementSpacing = 0.5 0.625 0.75\n", b"")
    assert metaimage.probe(mha).grid.spacing_mm is None
    nrrd = save(tmp_path / "a.nrrd").read_bytes()
    body = nrrd.split(b"\n\n", 1)[1]
    (tmp_path / "b.nrrd").write_bytes(
        b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 6 5 4\nencoding: raw\n\n" + body
    )
    header = metaimage.probe(tmp_path / "b.nrrd")
    assert header.grid.spacing_mm is None
    assert header.grid.frame is Frame.PROBE
    assert np.array_equal(metaimage.read(tmp_path / "b.nrrd").data[0, 0].numpy(), VOLUME)


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("um", 0.001), ("cm", 10), ("pixel", None)])
def test_nrrd_units_are_honoured(tmp_path, unit, factor):
    path = edit(
        save(tmp_path / "a.nrrd"),
        b"encoding:",
        f'space units: "{unit}" "{unit}" "{unit}"\nencoding:'.encode(),
    )
    spacing = metaimage.probe(path).grid.spacing_mm
    assert spacing == (
        None if factor is None else pytest.approx((0.75 * factor, 0.625 * factor, 0.5 * factor))
    )


@pytest.mark.parametrize(("unit", "factor"), [("cm", 10.0), ("um", 1e-3), ("mm", 1.0), ("?", 1.0)])
def test_metaimage_units_are_honoured(tmp_path, unit, factor):
    path = save(tmp_path / "a.mha")
    edit(path, b"ElementDataFile", f"DistanceUnits = {unit}\nElementDataFile".encode())
    grid = metaimage.read(path).grid
    assert grid.spacing_mm == pytest.approx((0.75 * factor, 0.625 * factor, 0.5 * factor))
    edit(path, f"DistanceUnits = {unit}".encode(), b"DistanceUnits = parsec")
    scan = metaimage.read(path)
    assert not scan.grid.is_calibrated and "no length" in scan.calibration.reason


@pytest.mark.parametrize("axis", range(3))
def test_a_spacing_of_nan_along_an_axis_of_space_is_no_calibration(tmp_path, axis):
    stated = ["1.5", "1.4", "1.3"]
    path = nrrd(tmp_path / "a.nrrd", VOLUME, f"spacings: {' '.join(stated)}")
    assert metaimage.read(path).grid.spacing_mm == pytest.approx((1.3, 1.4, 1.5))
    stated[axis] = "nan"
    scan = metaimage.read(nrrd(path, VOLUME, f"spacings: {' '.join(stated)}"))
    assert not scan.grid.is_calibrated and scan.calibration.trust is Trust.ABSENT
    assert scan.calibration.reason.endswith(f"no sample spacing along {'xyz'[axis]}")
    # What is stated counts, and not times what the header says, which is not believed.
    assert Stated((0.8, 0.3, 0.4)).load(path).grid.spacing_mm == pytest.approx((0.8, 0.3, 0.4))
    assert metaimage.probe(path).with_spacing((0.8, 0.3, 0.4)).grid.spacing_mm == pytest.approx(
        (0.8, 0.3, 0.4)
    )


@pytest.mark.parametrize("axis", [0, 2])
def test_a_direction_of_none_along_an_axis_of_space_is_no_calibration(tmp_path, axis):
    directions = ["(0.5,0,0)", "(0,0.6,0)"]
    directions.insert(axis, "none")
    lines = ("space: left-posterior-superior", f"space directions: {' '.join(directions)}")
    scan = metaimage.read(nrrd(tmp_path / "a.nrrd", VOLUME, *lines))
    assert not scan.grid.is_calibrated
    assert scan.calibration.reason.endswith(f"along {'xyz'[axis]}")


@pytest.mark.parametrize("time", ["s", "seconds", "us", "usec", "msec", "frames"])
def test_a_unit_of_time_beside_millimetres_takes_no_scale(tmp_path, time):
    clip = np.stack([VOLUME] * 2)
    units = f'units: "mm" "mm" "mm" "{time}"'
    path = nrrd(
        tmp_path / "a.nrrd", clip, "spacings: 0.5 0.6 0.7 1", units, "kinds: domain domain domain time"
    )
    scan = metaimage.read(path)
    assert scan.grid.spacing_mm == pytest.approx((0.7, 0.6, 0.5))
    assert (scan.times_s is not None) is (time != "frames")


@pytest.mark.parametrize(
    ("space", "frame"),
    [
        ("left-posterior-superior", Frame.PATIENT_LPS),
        ("RAS", Frame.PATIENT_LPS),
        ("3D-left-handed", Frame.PROBE),
        ("3D-right-handed", Frame.PROBE),
        ("scanner-xyz", Frame.PROBE),
    ],
)
def test_a_handed_space_is_not_the_patients(tmp_path, space, frame):
    lines = (f"space: {space}", "space directions: (2,0,0) (0,3,0) (0,0,4)", "space origin: (1,1,1)")
    assert metaimage.read(nrrd(tmp_path / "a.nrrd", VOLUME, *lines)).grid.frame is frame


def test_a_slice_spacing_of_one_is_told(tmp_path):
    header = metaimage.probe(save(tmp_path / "a.mha", spacing=(0.3, 0.3, 1.0), origin=(0, 0, 0)))
    assert any("slice spacing" in warning for warning in header.source.warnings)
    edit(tmp_path / "a.mha", b"ElementDataFile", b"DistanceUnits = cm\nElementDataFile")
    assert metaimage.probe(tmp_path / "a.mha").source.warnings == ()


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_colour_planes_and_four_axes(tmp_path, suffix):
    colour = np.random.default_rng(0).integers(0, 255, (4, 5, 6, 3)).astype(np.uint8)
    image = SimpleITK.GetImageFromArray(colour, isVector=True)
    SimpleITK.WriteImage(image, str(tmp_path / f"c.{suffix}"))
    scan = metaimage.read(tmp_path / f"c.{suffix}")
    assert metaimage.probe(tmp_path / f"c.{suffix}").channels == 3
    assert np.array_equal(scan.data[0].numpy(), np.moveaxis(colour, -1, 0))
    plane = metaimage.read(save(tmp_path / f"p.{suffix}", VOLUME[0]))
    assert plane.kind is Kind.IMAGE
    assert plane.grid.spacing_mm == pytest.approx((0.625, 0.625, 0.5))
    clip = np.stack([VOLUME, VOLUME + 1])
    image = SimpleITK.GetImageFromArray(clip, isVector=False)
    image.SetSpacing((0.5, 0.6, 0.7, 2.0))
    SimpleITK.WriteImage(image, str(tmp_path / f"t.{suffix}"))
    scan = metaimage.read(tmp_path / f"t.{suffix}")
    assert scan.kind is Kind.VOLUME_SEQUENCE
    assert np.array_equal(scan.data[:, 0].numpy(), clip)
    assert scan.times_s is None


def test_an_nrrd_list_axis_is_time(tmp_path):
    clip = np.stack([VOLUME, VOLUME + 1])
    image = SimpleITK.GetImageFromArray(np.moveaxis(clip, 0, -1), isVector=True)
    image.SetSpacing((0.5, 0.625, 0.75))
    SimpleITK.WriteImage(image, str(tmp_path / "a.nrrd"))
    path = edit(tmp_path / "a.nrrd", b"kinds: vector", b"kinds: list")
    header, scan = metaimage.probe(path), metaimage.read(path)
    assert header.kind is scan.kind is Kind.VOLUME_SEQUENCE
    assert np.array_equal(scan.data[:, 0].numpy(), clip)
    assert scan.grid.spacing_mm == pytest.approx((0.75, 0.625, 0.5))


CLIP = np.random.default_rng(1).integers(0, 255, (4, 5, 6)).astype(np.uint8)  # t y x


def nrrd(path, samples, *lines, packed=False, detached=False):
    """Write an NRRD of samples, the slowest axis first."""
    content = gzip.compress(samples.tobytes()) if packed else samples.tobytes()
    sizes = " ".join(str(n) for n in samples.shape[::-1])
    lines = ["NRRD0004", "type: uchar", f"dimension: {samples.ndim}", f"sizes: {sizes}", *lines]
    lines += [f"encoding: {'gzip' if packed else 'raw'}", *(["data file: samples.raw"] if detached else [])]
    header = ("\n".join(lines) + "\n\n").encode()
    path.write_bytes(header if detached else header + content)
    if detached:
        path.with_name("samples.raw").write_bytes(content)
    return path


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    ("geometry", "spacing"),
    [
        ("spacings: {} {} {}", (0.4, 0.4, 0.5)),
        ("space dimension: 2\nspace directions: {} {} {}", (0.4, 0.4, 0.5)),
        (
            "space: right-anterior-superior\nspace directions: {} {} {}\nspace origin: (1,2,3)",
            (0.4, 0.4, 0.5),
        ),
        ("content: {} {} {}", None),
    ],
)
def test_a_plane_with_an_nrrd_list_axis_is_a_cine(tmp_path, place, geometry, spacing):
    steps = {"spacings": ["0.5", "0.4"], "space dimension": ["(0.5,0)", "(0,0.4)"]}
    steps = steps.get(geometry.partition(":")[0], ["(0,0.5,0)", "(0,0,0.4)"])
    kinds = ["domain", "domain"]
    kinds.insert(place, "list")
    steps.insert(place, "nan" if geometry.startswith("spacings") else "none")
    samples = np.moveaxis(CLIP, 0, 2 - place)  # NRRD counts its axes from the fastest
    path = nrrd(tmp_path / "a.nrrd", samples, f"kinds: {' '.join(kinds)}", geometry.format(*steps))
    header, scan = metaimage.probe(path), metaimage.read(path)
    assert header.kind is scan.kind is Kind.CINE
    assert np.array_equal(scan.data[:, 0, 0].numpy(), CLIP)
    assert scan.grid == header.grid
    assert scan.grid.spacing_mm == (spacing and pytest.approx(spacing))
    assert scan.times_s is None
    if geometry.startswith("space:"):
        assert scan.grid.frame is Frame.PATIENT_LPS
        # Index x runs along anterior, y along superior, from right 1, anterior 2, superior 3.
        assert scan.grid.to_world([0, 1, 2]) == pytest.approx([3.4, -3, -1])


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_an_nrrd_plane_in_space_is_a_still(tmp_path, packed, detached):
    geometry = (
        "space: left-posterior-superior",
        "space directions: (0,0.5,0) (0,0,0.4)",
        "space origin: (1,2,3)",
    )
    path = nrrd(tmp_path / "list.nhdr", CLIP[0], *geometry, packed=packed, detached=detached)
    header, scan = metaimage.probe(path), metaimage.read(path)
    assert header.kind is scan.kind is Kind.IMAGE
    assert np.array_equal(scan.data[0, 0, 0].numpy(), CLIP[0])
    assert scan.grid.spacing_mm == pytest.approx((0.4, 0.4, 0.5))
    assert scan.grid.to_world([0, 1, 2]) == pytest.approx([3.4, 3, 1])


def test_an_nrrd_clip_of_colour_planes_in_space(tmp_path):
    colour = np.stack([CLIP, CLIP // 2, CLIP // 3], axis=-1)
    geometry = (
        "space: left-posterior-superior",
        "space directions: none (0.5,0,0) (0,0.4,0) none",
        "kinds: RGB-color domain domain list",
    )
    scan = metaimage.read(nrrd(tmp_path / "a.nrrd", colour, *geometry))
    assert np.array_equal(scan.data[:, :, 0].numpy(), np.moveaxis(colour, -1, 1))


@pytest.mark.parametrize(
    ("units", "times"),
    [('units: "mm" "mm" "ms"', (0, 0.02, 0.04, 0.06)), ('units: "mm" "mm" ""', None), ("content: x", None)],
)
def test_an_nrrd_axis_of_time_is_no_slice_thickness(tmp_path, units, times):
    path = nrrd(tmp_path / "a.nrrd", CLIP, "kinds: domain domain time", "spacings: 0.5 0.4 20", units)
    scan = metaimage.read(path)
    assert scan.kind is metaimage.probe(path).kind is Kind.CINE
    assert np.array_equal(scan.data[:, 0, 0].numpy(), CLIP)
    assert scan.grid.spacing_mm == pytest.approx((0.4, 0.4, 0.5))
    assert scan.times_s == (times and pytest.approx(times))
    assert any("frame times unknown" in note for note in scan.source.warnings) is (times is None)


def test_an_nrrd_whose_time_is_not_its_last_axis_is_refused(tmp_path):
    path = nrrd(tmp_path / "a.nrrd", CLIP, "kinds: time domain domain", "spacings: 20 0.5 0.4")
    with pytest.raises(UnsupportedFormatError, match="slowest axis"):
        metaimage.read(path)


# PLUS sweeps


def test_a_plus_sweep_is_a_cine_with_poses_and_no_scale(tmp_path):
    scan = metaimage.read(sweep(tmp_path / "s.igs.mha"))
    assert scan.kind is Kind.CINE
    assert scan.grid.spacing_mm is None
    assert "placeholder" in scan.calibration.reason
    assert scan.times_s == pytest.approx((0, 0.5, 1.25))
    facts = scan.source.metadata
    assert facts["timestamps_s"] == (7.0, 7.5, 8.25)
    assert facts["poses"]["ProbeToTracker"].shape == (3, 4, 4)
    assert facts["poses"]["ProbeToTracker"][:, 0, 3].tolist() == [0, 1, 2]
    assert facts["pose_status"]["ProbeToTracker"] == ("INVALID", "OK", "OK")
    assert scan.data[1, 0, 0, 1].tolist() == [6, 7, 8, 9, 10, 11]


def test_the_configuration_beside_a_sweep_is_named_not_used(tmp_path):
    (tmp_path / "s.xml").write_text(
        '<C><Transform From="Image" To="Probe" Matrix="0 0.09 0 1 -0.08 0 0 2 0 0 0.08 3 0 0 0 1"/></C>'
    )
    header = metaimage.probe(sweep(tmp_path / "s.igs.mha"))
    assert header.grid.spacing_mm is None
    assert "s.xml" in header.source.calibration.reason
    assert "0.0900 × 0.0800" in header.source.calibration.reason


def test_a_sweep_with_a_real_spacing_keeps_it(tmp_path):
    assert metaimage.probe(sweep(tmp_path / "s.mha", spacing=b"0.2 0.3 1")).grid.spacing_mm == pytest.approx(
        (0.3, 0.3, 0.2)
    )


@pytest.mark.parametrize("stamps", [(7.0, 7.0, 8.0), (7.0, 6.0, 8.0), (7.0, float("nan"), 8.0)])
def test_time_stamps_that_do_not_rise_are_no_times(tmp_path, stamps):
    header = metaimage.probe(sweep(tmp_path / "s.mha", stamps=stamps))
    assert header.times_s is None
    assert any("do not increase" in warning for warning in header.source.warnings)


def test_frames_of_a_sweep_are_selected(tmp_path):
    scan = metaimage.read(sweep(tmp_path / "s.mha"), Selection(max_frames=2))
    assert scan.source.frame_indices == (0, 2)
    assert scan.times_s == pytest.approx((0, 1.25))


@pytest.mark.parametrize(
    ("code", "x_axis", "y_axis"),
    [("MF", (0, 0, 1), (0, 1, 0)), ("UF", (0, 0, -1), (0, 1, 0)), ("MN", (0, 0, 1), (0, -1, 0)),
     ("FM", (0, 1, 0), (0, 0, 1)), ("MFA", (0, 0, 1), (0, 1, 0))],
)  # fmt: skip
def test_orientation_codes_give_axes(code, x_axis, y_axis):
    axes = np.array(probe_axes(code))
    assert tuple(axes[:, 2]) == x_axis
    assert tuple(axes[:, 1]) == y_axis


@pytest.mark.parametrize("code", [None, "", "XX", "MM", "MU"])
def test_other_codes_give_none(code):
    assert probe_axes(code) is None


# Broken files


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_broken_files_raise_typed_errors(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(TruncatedFileError):
        metaimage.probe(path)
    path.write_bytes(whole[:40])
    with pytest.raises(CorruptFileError):
        metaimage.probe(path)
    path.write_bytes(b"")
    with pytest.raises(EmptyFileError):
        metaimage.probe(path)
    sizes = b"6 5 4"
    path.write_bytes(whole.replace(sizes, b"2200 2200 2200", 1))
    with pytest.raises(TooLargeError, match="GiB"):
        metaimage.read(path)
    path.write_bytes(whole.replace(sizes, b"6 0 4", 1))
    with pytest.raises(CorruptFileError):
        metaimage.read(path)


@pytest.mark.parametrize("suffix", ["mhd", "nhdr"])
def test_missing_samples_are_named(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}")
    (data,) = [file for file in tmp_path.iterdir() if file != path]
    data.unlink()
    with pytest.raises(CorruptFileError, match=data.name):
        metaimage.probe(path)


@pytest.mark.parametrize("suffix", ["mhd", "nhdr"])
def test_a_cut_file_called_list_is_no_list(tmp_path, suffix):
    path = save(tmp_path / f"listing.{suffix}")
    (data,) = [file for file in tmp_path.iterdir() if file != path]
    data.write_bytes(data.read_bytes()[:-30])
    assert data.name.startswith("list")
    with pytest.raises(TruncatedFileError):
        metaimage.probe(path)


def test_a_pose_that_is_no_matrix_is_corrupt(tmp_path):
    path = edit(sweep(tmp_path / "s.mha"), b"1 0 0 1 0 1 0 0", b"1 0 0 1 0")
    with pytest.raises(ReadError, match="16"):
        metaimage.probe(path)


@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_files_raise_typed_errors_only(tmp_path, data):
    suffix = data.draw(st.sampled_from(["mha", "nrrd", "igs.mha"]))
    path = tmp_path / f"f.{suffix}"
    content = bytearray((sweep(path) if suffix == "igs.mha" else save(path)).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    with contextlib.suppress(UsvolError):  # anything else fails the test
        assert metaimage.read(path).data.numel() > 0


# Real files


def test_real_plus_sweeps(shared_data):
    folder = shared_data / "volumes" / "plus"
    for name in ("BoneUltrasound_L14", "SpinePhantomFreehand"):
        header = metaimage.probe(folder / f"{name}.igs.mha")
        assert (header.kind, header.frames) == (Kind.CINE, 21)
        assert header.grid.spacing_mm is None
        assert f"{name}.xml" in header.source.calibration.reason
        poses = header.source.metadata["poses"]["ProbeToTracker"]
        assert np.allclose(np.linalg.det(poses[:, :3, :3]), 1, atol=1e-3)
        assert 0.05 < np.diff(header.times_s).mean() < 0.2
    raw = metaimage.probe(folder / "UltrasonixCurvilinearBrightnessData.igs.mha")
    assert any("not scan-converted" in warning for warning in raw.source.warnings)


def test_real_volumes(shared_data):
    spine = metaimage.read(shared_data / "volumes" / "plus" / "SpinePhantomFreehandReconstructed.mha")
    assert (spine.kind, spine.grid.spacing_mm) == (Kind.VOLUME, (0.5, 0.5, 0.5))
    mouse = metaimage.probe(shared_data / "volumes" / "itk" / "MouseLiverB.mha")
    assert mouse.grid.shape == (4, 512, 128)
    assert mouse.grid.spacing_mm == pytest.approx((0.1, 0.0385753, 0.1))
    liver = metaimage.probe(shared_data / "volumes" / "liver_sweep" / "frames.mha")
    assert liver.grid.shape == (140, 593, 739)
    assert any("slice spacing" in warning for warning in liver.source.warnings)
