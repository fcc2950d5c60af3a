"""Write → read gives the same samples at the same physical coordinates, in every format."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from usvol.formats import dicom, metaimage, nifti
from usvol.scan import Frame, Grid

SHAPE, SPACING, ORIGIN = (3, 4, 5), (1.25, 0.5, 0.75), (-12.5, 30.0, 7.25)
ORIENTATIONS = [
    tuple(
        tuple(float(sign * (axis == column)) for axis, sign in zip(order, signs, strict=True))
        for column in range(3)
    )
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]
FORMATS = ("nii.gz", "nii", "mha", "mhd", "nrrd", "nhdr", "dicom series", "enhanced US volume")


def rotation(quaternion) -> np.ndarray:
    w, x, y, z = np.asarray(quaternion, float) / np.linalg.norm(quaternion)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def grid_of(direction, frame=Frame.PATIENT_LPS, origin=ORIGIN) -> Grid:
    return Grid(SHAPE, SPACING, origin, tuple(map(tuple, np.asarray(direction, float).tolist())), frame)


def xyz_affine(grid: Grid) -> np.ndarray:
    flip = np.eye(4)[[2, 1, 0, 3]]
    return flip @ grid.affine @ flip


def write_and_read(kind, folder, data, grid, dicom_files):
    if kind == "dicom series":
        return dicom.read(dicom_files.series(folder / "series", data, xyz_affine(grid)))
    if kind == "enhanced US volume":
        return dicom.read(
            dicom_files.save(folder / "volume.dcm", dicom_files.enhanced(data[None], xyz_affine(grid)))
        )
    path = folder / f"volume.{kind}"
    module, write = (
        (nifti, nifti.write_nifti) if kind.startswith("nii") else (metaimage, metaimage.write_image)
    )
    write(path, data, grid=grid)
    return module.read(path)


def places(samples: np.ndarray, grid: Grid) -> np.ndarray:
    """World coordinates in the order of the sample values, which are all different."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1).reshape(-1, 3)
    return grid.to_world(index)[np.argsort(samples.ravel())]


def assert_same_places(scan, data, grid):
    samples = scan.data[0, 0].numpy()
    assert np.array_equal(np.sort(samples.ravel()), np.sort(data.ravel()))
    assert np.abs(places(samples, scan.grid) - places(data, grid)).max() < 2e-4
    assert scan.grid.is_calibrated


DATA = np.random.default_rng(0).permutation(np.prod(SHAPE)).astype(np.uint8).reshape(SHAPE)


def test_the_orientations_are_the_48_of_a_cube():
    assert len(set(ORIENTATIONS)) == 48
    assert all(abs(np.linalg.det(np.array(o))) == 1 for o in ORIENTATIONS)


@pytest.mark.parametrize("kind", FORMATS)
def test_all_48_orientations_keep_their_place(kind, tmp_path, dicom_files):
    for number, direction in enumerate(ORIENTATIONS):
        folder = tmp_path / str(number)
        folder.mkdir()
        grid = grid_of(direction)
        scan = write_and_read(kind, folder, DATA, grid, dicom_files)
        assert_same_places(scan, DATA, grid)
        if "dicom" not in kind and "enhanced" not in kind:  # those keep the stored layout as well
            assert np.array_equal(scan.data[0, 0].numpy(), DATA)
            assert np.allclose(scan.grid.direction, grid.direction, atol=1e-6)


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    quaternion=st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1),
    mirrored=st.booleans(),
    origin=st.tuples(*[st.floats(-300, 300)] * 3),
)
def test_oblique_directions_keep_their_place(
    kind, tmp_path_factory, dicom_files, quaternion, mirrored, origin
):
    direction = rotation(quaternion) * (-1 if mirrored else 1)
    grid = grid_of(direction, origin=origin)
    scan = write_and_read(kind, tmp_path_factory.mktemp("oblique"), DATA, grid, dicom_files)
    assert_same_places(scan, DATA, grid)


@pytest.mark.parametrize("kind", [f for f in FORMATS if "dicom" not in f and "enhanced" not in f])
@pytest.mark.parametrize("frame", list(Frame))
def test_the_frame_survives(kind, frame, tmp_path, dicom_files):
    scan = write_and_read(kind, tmp_path, DATA, grid_of(ORIENTATIONS[13], frame), dicom_files)
    assert scan.grid.frame is frame


def test_dicom_frames_are_patient_for_a_series_and_probe_for_a_volume(tmp_path, dicom_files):
    grid = grid_of(ORIENTATIONS[0])
    assert write_and_read("dicom series", tmp_path, DATA, grid, dicom_files).grid.frame is Frame.PATIENT_LPS
    assert write_and_read("enhanced US volume", tmp_path, DATA, grid, dicom_files).grid.frame is Frame.PROBE


@pytest.mark.parametrize("kind", [f for f in FORMATS if "dicom" not in f and "enhanced" not in f])
def test_pixels_never_come_back_as_millimetres(kind, tmp_path, dicom_files):
    grid = Grid(SHAPE, direction=ORIENTATIONS[7], step_px=(2.0, 1.0, 1.5), origin_px=(3.0, 0.0, -1.0))
    scan = write_and_read(kind, tmp_path, DATA, grid, dicom_files)
    assert scan.grid.spacing_mm is None
    assert scan.calibration.reason
    assert np.allclose(scan.grid.affine, grid.affine, atol=1e-6)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_probe_of_the_header_agrees_with_the_samples(kind, tmp_path, dicom_files):
    scan = write_and_read(kind, tmp_path, DATA, grid_of(ORIENTATIONS[21]), dicom_files)
    module = dicom if "dicom" in kind or "enhanced" in kind else nifti if "nii" in kind else metaimage
    header = module.probe(scan.source.path)
    assert (header.frames, header.channels, *header.grid.shape) == tuple(scan.data.shape)
    assert header.grid == scan.grid
    assert header.kind is scan.kind
