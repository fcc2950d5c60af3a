from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

import usvol
from models3d.data.pairs import cases, read_labels
from usvol.errors import DatasetError, LeakageError
from usvol.formats.nifti import write_nifti
from usvol.scan import Grid
from usvol.training.cases import require_disjoint

GRID = Grid((5, 6, 7), spacing_mm=(1.0, 0.5, 0.7), origin_mm=(3.0, -2.0, 1.0))
TASK = {1: "placenta", 2: "gestational_sac", 3: "fetus"}
V2 = {"labels": {"background": 0, "Fetus": 1, "Gestational Sac": 2}, "file_ending": ".nii.gz"}


def write(path: Path, data: np.ndarray | None = None, *, grid: Grid = GRID, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if data is None:
        data = np.random.default_rng(seed).integers(0, 200, grid.shape).astype(np.uint8)
    write_nifti(path, data[None], grid=grid)
    return path


def labels(values: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    data = np.zeros(GRID.shape, np.uint8)
    for number, value in enumerate(values):
        data[number] = value
    return data


@pytest.fixture
def nnunet(tmp_path) -> Path:
    for number in range(3):
        write(tmp_path / f"imagesTr/P{number // 2}_{number:03d}_0000.nii.gz", seed=number)
        write(tmp_path / f"labelsTr/P{number // 2}_{number:03d}.nii.gz", labels())
    (tmp_path / "dataset.json").write_text(json.dumps(V2), encoding="utf-8")
    (tmp_path / "imagesTr/notes.txt").write_text("gain 60 %", encoding="utf-8")
    return tmp_path


def test_an_nnunet_folder_is_read_with_its_names_put_in_the_values_of_the_task(nnunet):
    found = cases(nnunet)
    assert [case.id for case in found] == ["P0_000", "P0_001", "P1_002"]
    assert found[0].path.name == "P0_000_0000.nii.gz"
    assert found[0].dataset == "pairs"
    reference = read_labels(found[0], names=TASK)
    assert reference.names == {2: "gestational_sac", 3: "fetus"}
    assert reference.data.shape == (1, 5, 6, 7)
    assert reference.data[0, :, 0, 0].tolist() == [0, 3, 2, 0, 0]
    assert reference.grid == usvol.load(found[0].path).grid


def test_version_1_of_nnunet_names_values_the_other_way_round(nnunet):
    (nnunet / "dataset.json").write_text(
        json.dumps({"labels": {"0": "background", "1": "fetus", "2": "placenta"}})
    )
    assert read_labels(cases(nnunet)[0], names=TASK).data.unique().tolist() == [0, 1, 3]


def test_two_folders_and_two_formats(tmp_path):
    write(tmp_path / "labels/a_seg.nii.gz", labels())
    image = SimpleITK.GetImageFromArray(np.ones(GRID.shape, np.int16))
    image.SetSpacing((0.7, 0.5, 1.0))
    image.SetOrigin((1.0, -2.0, 3.0))
    (tmp_path / "images").mkdir()
    SimpleITK.WriteImage(image, str(tmp_path / "images/a.nrrd"))
    (case,) = cases(tmp_path)
    reference = read_labels(case, names=TASK)
    assert reference.names == TASK
    assert reference.grid == usvol.load(case.path).grid


def test_side_by_side_keeps_numbers_at_the_end_of_names(tmp_path):
    for number, ending in enumerate(("_labels", "-seg")):
        write(tmp_path / f"sim_{number:04d}.nii.gz", seed=number)
        write(tmp_path / f"sim_{number:04d}{ending}.nii.gz", labels())
    assert [case.id for case in cases(tmp_path)] == ["sim_0000", "sim_0001"]


def test_a_volume_without_labels_is_left_out_by_name(tmp_path, caplog):
    write(tmp_path / "a.nii.gz")
    write(tmp_path / "a_seg.nii.gz", labels())
    write(tmp_path / "lonely.nii.gz")
    with caplog.at_level(logging.WARNING):
        assert len(cases(tmp_path)) == 1
    assert "lonely" in caplog.text


def patients(root: Path) -> list[str]:
    return [case.patient for case in cases(root)]


def test_patients_come_from_a_table_a_mapping_or_a_pattern(nnunet, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(set(patients(nnunet))) == 3
    assert "counts as its own patient" in caplog.text
    path = nnunet / "patients.json"
    path.write_text(json.dumps({"pattern": "^(?P<patient>P[0-9])_"}))
    assert patients(nnunet) == ["P0", "P0", "P1"]
    path.write_text(json.dumps({"P0_000": "x", "P0_001.nii.gz": "x", "P1_002": "y"}))
    assert patients(nnunet) == ["x", "x", "y"]
    (nnunet / "patients.csv").write_text("case,patient\nP0_000,7\nP0_001,7\nP1_002,8\n")
    assert patients(nnunet) == ["7", "7", "8"]
    (nnunet / "patients.csv").write_text("case,patient\nP0_000, 7\n P0_001,7 \nP1_002,8\nP1_002,8\n")
    assert patients(nnunet) == ["7", "7", "8"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("patients.csv", "case,patient\nP0_000,7\n", "no patient for P0_001, P1_002"),
        ("patients.csv", "file;who\n", "columns 'case' and 'patient'"),
        ("patients.json", '{"pattern": "^P[0-9]"}', r"group \(\?P<patient>"),
        ("patients.json", '{"pattern": "(?P<patient>Q.)"}', "finds no patient in P0_000"),
        ("patients.json", '{"pattern": "("}', "no regular expression"),
        ("patients.json", "[1]", "must hold an object"),
        ("patients.json", '{"P0_000": null, "P0_001": 1, "P1_002": 2}', "unlike for P0_000"),
        ("patients.json", '{"P0_000": 1.0, "P0_001": ["x"], "P1_002": 2}', "unlike for P0_000, P0_001"),
        (
            "patients.csv",
            "case,patient\nP0_000,7\nP0_001,7\nP1_002,8\nP0_000,9\n",
            "two patients for 'P0_000'",
        ),
        ("patients.csv", "case,patient\nP0_000,7\nP0_001, \nP1_002,8\n", "no patient for P0_001"),
        ("dataset.json", "{", "JSON"),
        ("dataset.json", "{}", 'needs "labels"'),
        ("dataset.json", '{"labels": {"a": 1, "b": 1}}', "same value 1"),
        ("dataset.json", '{"labels": {"whole": [1, 2]}}', "no regions"),
    ],
)
def test_tables_that_do_not_fit_are_refused_with_a_way_out(nnunet, name, content, said):
    (nnunet / name).write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError, match=said):
        cases(nnunet)


def test_a_volume_known_by_its_content_stays_the_same_patient_elsewhere(tmp_path):
    for folder in ("one", "two"):
        write(tmp_path / folder / "a.nii.gz", seed=3)
        write(tmp_path / folder / "a_seg.nii.gz", labels())
    write(tmp_path / "two" / "b.nii.gz", seed=4)
    write(tmp_path / "two" / "b_seg.nii.gz", labels())
    (one,), two = cases(tmp_path / "one"), cases(tmp_path / "two")
    assert one.patient_key == two[0].patient_key != two[1].patient_key


def test_a_volume_trained_on_is_known_whoever_is_named_its_patient_later(nnunet):
    before = cases(nnunet)
    (nnunet / "patients.csv").write_text("case,patient\nP0_000,7\nP0_001,7\nP1_002,8\n")
    after = cases(nnunet)
    assert [case.patient_key for case in before] != [case.patient_key for case in after]
    for known, tested in ((before, after), (after, before)):
        with pytest.raises(LeakageError, match="2 of the test patients" if tested is after else "3 of"):
            require_disjoint([key for case in known for key in case.keys], tested)
    require_disjoint(list(after[2].keys), after[:2])


@pytest.mark.parametrize(
    ("shape", "said"), [((2, 5, 6, 7), "a volume sequence of 2 frames"), ((1, 1, 6, 7), "an? image of 1")]
)
def test_pairs_are_single_volumes(tmp_path, shape, said):
    grid = Grid(shape[1:], GRID.spacing_mm)
    write_nifti(tmp_path / "a.nii.gz", np.random.default_rng(0).random(shape).astype(np.float32), grid=grid)
    write_nifti(tmp_path / "a_seg.nii.gz", np.zeros((1, *shape[1:]), np.uint8), grid=grid)
    with pytest.raises(DatasetError, match="pairs are single volumes"):
        cases(tmp_path)


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (dataclasses.replace(GRID, shape=(5, 6, 8)), r"\(5, 6, 7\) and \(5, 6, 8\)"),
        (dataclasses.replace(GRID, spacing_mm=(1.0, 0.5, 0.8)), "corners lie up to"),
        (dataclasses.replace(GRID, origin_mm=(3.0, -2.0, 1.5)), "corners lie up to 0.5 mm"),
        (Grid(GRID.shape), "only one has a scale.*a_seg.nii.gz has none"),
    ],
)
def test_a_label_map_on_another_grid_is_refused(tmp_path, grid, said):
    write(tmp_path / "a.nii.gz")
    write(tmp_path / "a_seg.nii.gz", np.zeros(grid.shape, np.uint8), grid=grid)
    with pytest.raises(DatasetError, match=said):
        cases(tmp_path)


def test_values_and_names_the_task_does_not_have_are_refused(nnunet):
    case = cases(nnunet)[0]
    write(nnunet / "labelsTr/P0_000.nii.gz", labels((0, 1, 7)))
    with pytest.raises(DatasetError, match=r"P0_000.nii.gz: holds the values 7"):
        read_labels(case, names=TASK)
    write(nnunet / "labelsTr/P0_000.nii.gz", labels().astype(np.float32) * 0.5)
    with pytest.raises(DatasetError, match="interpolated"):
        read_labels(case, names=TASK)
    with pytest.raises(DatasetError, match="Gestational Sac are none of the task's: fetus"):
        read_labels(case, names={1: "fetus"})


def test_a_number_that_the_label_map_has_too_is_no_channel(tmp_path):
    for name in ("case_0000", "case_0001", "other_0002"):
        write(tmp_path / f"labelsTr/{name}.nii.gz", labels())
        write(tmp_path / f"imagesTr/{name}.nii.gz")
    write(tmp_path / "labelsTr/last.nii.gz", labels())
    write(tmp_path / "imagesTr/last_0000.nii.gz")
    found = cases(tmp_path)
    assert [case.id for case in found] == ["case_0000", "case_0001", "last", "other_0002"]
    assert found[1].path.name == "case_0001.nii.gz"


def test_folders_without_pairs_are_refused(tmp_path, nnunet):
    with pytest.raises(DatasetError, match="no such folder"):
        cases(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"NAME_labels\.nii\.gz"):
        cases(tmp_path / "empty")
    write(nnunet / "labelsTr/orphan.nii.gz", labels())
    with pytest.raises(DatasetError, match="1 label maps have no volume of their name: orphan"):
        cases(nnunet)
    (nnunet / "labelsTr/orphan.nii.gz").unlink()
    write(nnunet / "imagesTr/P0_000_0001.nii.gz")
    with pytest.raises(DatasetError, match="second channel"):
        cases(nnunet)
