from __future__ import annotations

import numpy as np
import pytest
import SimpleITK

from usvol.errors import CorruptFileError, DatasetError
from usvol.scan import Kind, Selection
from usvol.training.cases import load_case
from video.data.camus import cases, read_labels

SPACING = (0.308, 0.154)
NEW = "ED: 1\nES: 5\nNbFrame: 5\nSex: F\nAge: 56\nImageQuality: Good\nEF: 54\nFrameRate: 50\n"
OLD = "ED: 2\nES: 4\nNbFrame: 5\nSex: M\nAge: 71\nImageQuality: Poor\nLVedv: 94.4\nLVesv: 41.7\nLVef: 55.8\n"


def write(path, frames):
    image = SimpleITK.GetImageFromArray(frames)
    image.SetSpacing((*SPACING, 1.0)[: image.GetDimension()])
    SimpleITK.WriteImage(image, str(path))


def sequence():
    """Five frames, 40 rows and 30 columns, brighter with time and with depth."""
    return (np.arange(5)[:, None, None] * 40 + np.arange(40)[None, :, None]).repeat(30, 2).astype(np.uint8)


def outlined(count):
    labels = np.zeros((count, 40, 30), np.uint8)
    labels[:, 10:20, 8:20] = 2
    labels[:, 12:20, 10:18] = 1
    labels[:, 22:30, 10:18] = 3
    return labels


@pytest.fixture
def nifti(tmp_path):
    for patient in ("patient0001", "patient0002"):
        folder = tmp_path / "database_nifti" / patient
        folder.mkdir(parents=True)
        for view in ("2CH", "4CH"):
            (folder / f"Info_{view}.cfg").write_text(NEW)
            write(folder / f"{patient}_{view}_half_sequence.nii.gz", sequence())
            write(folder / f"{patient}_{view}_half_sequence_gt.nii.gz", outlined(5))
            write(folder / f"{patient}_{view}_ED.nii.gz", sequence()[0])
            write(folder / f"{patient}_{view}_ED_gt.nii.gz", outlined(1)[0])
    (tmp_path / "database_split").mkdir()
    (tmp_path / "database_split" / "subgroup_training.txt").write_text("patient0001\n")
    (tmp_path / "database_split" / "subgroup_testing.txt").write_text("patient0002\n")
    return tmp_path


@pytest.fixture
def metaimage(tmp_path):
    folder = tmp_path / "training" / "patient0007"
    folder.mkdir(parents=True)
    for view in ("2CH", "4CH"):
        (folder / f"Info_{view}.cfg").write_text(OLD)
        write(folder / f"patient0007_{view}_sequence.mhd", sequence())
        for event in ("ED", "ES"):
            write(folder / f"patient0007_{view}_{event}.mhd", sequence()[:1])
            write(folder / f"patient0007_{view}_{event}_gt.mhd", outlined(1))
    return tmp_path


def test_nifti_release_one_case_per_patient_and_view(nifti):
    found = cases(nifti)
    assert [case.id for case in found] == [f"patient000{n}_{v}CH" for n in (1, 2) for v in (2, 4)]
    assert [case.split for case in found] == ["train", "train", "test", "test"]
    first, second = found[:2]
    assert first.patient_key == second.patient_key != found[2].patient_key
    assert (second.reference["view"], second.reference["quality"]) == ("4CH", "Good")
    assert (second.reference["ed_frames"], second.reference["es_frames"]) == ([0], [4])
    assert (second.reference["ef_percent"], second.reference["edv_ml"], second.reference["fps"]) == (
        54,
        None,
        50,
    )
    assert cases(nifti / "database_nifti")[0].split == "train"


def test_cines_are_read_as_calibrated_cines_upright(nifti):
    case = cases(nifti)[0]
    scan = load_case(case, selection=Selection())
    assert scan.kind is Kind.CINE
    assert scan.data.shape == (5, 1, 1, 40, 30)
    assert scan.grid.spacing_mm == pytest.approx((SPACING[1], SPACING[1], SPACING[0]), abs=1e-6)
    assert scan.times_s == pytest.approx((0, 0.02, 0.04, 0.06, 0.08))
    assert np.array_equal(scan.data[:, 0, 0].numpy(), sequence())
    assert scan.source.patient_key == case.patient_key


def test_every_frame_of_the_nifti_release_is_outlined(nifti):
    labels = read_labels(cases(nifti)[0])
    assert labels.frame_indices is None
    assert labels.data.shape == (5, 1, 40, 30)
    assert labels.names[3] == "left_atrium"
    assert np.array_equal(labels.data[:, 0].numpy(), outlined(5))
    assert labels.grid == load_case(cases(nifti)[0], selection=Selection()).grid


def test_metaimage_release_has_two_outlined_frames_and_volumes(metaimage):
    case = cases(metaimage)[1]
    assert (case.split, case.reference["ef_percent"], case.reference["edv_ml"]) == ("train", 55.8, 94.4)
    assert case.reference["fps"] is None
    assert load_case(case, selection=Selection()).times_s is None
    labels = read_labels(case)
    assert labels.frame_indices == (1, 3)
    assert np.array_equal(labels.data[:, 0].numpy(), outlined(2))


def test_a_test_patient_without_references_says_so(metaimage):
    (metaimage / "training").rename(metaimage / "testing")
    for path in metaimage.rglob("*_gt.*"):
        path.unlink()
    case = cases(metaimage)[0]
    assert case.split == "test"
    with pytest.raises(DatasetError, match="references"):
        read_labels(case)


@pytest.mark.parametrize(
    ("old", "new", "said"), [("ES: 5", "ES: 9", "frame 9 of 5"), ("EF: 54", "EF: good", "good")]
)
def test_information_that_contradicts_itself_is_refused(nifti, old, new, said):
    info = nifti / "database_nifti" / "patient0001" / "Info_4CH.cfg"
    info.write_text(info.read_text().replace(old, new))
    with pytest.raises(DatasetError, match=said):
        cases(nifti)


def test_a_damaged_file_is_named(nifti):
    case = cases(nifti)[0]
    case.path.write_bytes(b"no image")
    with pytest.raises(CorruptFileError, match="half_sequence"):
        load_case(case, selection=Selection())


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="database_nifti"):
        cases(tmp_path)
