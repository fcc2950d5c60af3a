from __future__ import annotations

import numpy as np
import pytest

from usvol.errors import DatasetError
from usvol.formats.video_writing import write_video
from video.data.echonet_pediatric import cases, read_labels

NAMES = ("CR32a7555-CR32a7582-000039", "CR32a7557-CR32a7582-000074")


@pytest.fixture
def folder(tmp_path):
    """The published layout: two cines, of the second of which systole was not traced."""
    for view in ("A4C", "PSAX"):
        (tmp_path / view / "Videos").mkdir(parents=True)
        for name in NAMES:
            write_video(tmp_path / view / "Videos" / f"{name}.avi", np.zeros((6, 112, 112), np.uint8), fps=30)
        (tmp_path / view / "FileList.csv").write_text(
            "FileName,EF,Sex,Age,Weight,Height,Split\n"
            f"{NAMES[0]}.avi,61.2665,F,0,3.9,50,7\n{NAMES[1]}.avi,55.1,M,12,,,0\n"
        )
        square = [f"{NAMES[0]}.avi,{x},{y},2" for x, y in ((30, 30), (70, 30), (70, 60), (30, 60))]
        square += [f"{NAMES[0]}.avi,{x},{y},5" for x, y in ((40, 40), (60, 40), (60, 60), (40, 60))]
        square += [f"{NAMES[1]}.avi,{x},{y},1" for x, y in ((30, 30), (70, 30), (70, 60))]
        square += [f"{NAMES[1]}.avi,,,No Systolic"]
        (tmp_path / view / "VolumeTracings.csv").write_text("FileName,X,Y,Frame\n" + "\n".join(square) + "\n")
    return tmp_path


def test_cines_become_cases_with_their_official_fold(folder):
    first, second = cases(folder)
    assert (first.fold, second.fold, first.split) == (7, 0, None)
    assert first.path == folder / "A4C" / "Videos" / f"{NAMES[0]}.avi"
    assert first.reference["ef_percent"] == pytest.approx(61.2665)
    assert (first.reference["weight_kg"], second.reference["weight_kg"]) == (3.9, None)
    assert (first.reference["ed_frames"], first.reference["es_frames"]) == ([2], [5])
    assert second.reference["ed_frames"] == second.reference["es_frames"] == []
    assert first.patient_key != second.patient_key
    assert [case.path.parts[-3] for case in cases(folder, view="PSAX")] == ["PSAX", "PSAX"]
    assert cases(folder / "A4C") == cases(folder)


def test_outlines_become_masks(folder):
    labels = read_labels(cases(folder)[0])
    assert labels.frame_indices == (2, 5)
    assert int(labels.data[0].sum()) == 41 * 31
    assert labels.data[1, 0, 50, 50] == 1
    assert labels.data[1, 0, 35, 50] == 0
    assert read_labels(cases(folder)[1]).frame_indices == (1,)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [(",50,7", ",50,10", "'10'"), ("61.2665", "nan", "EF"), ("Split", "Fold", "Split")],
)
def test_what_was_not_published_is_refused_by_name(folder, old, new, said):
    table = folder / "A4C" / "FileList.csv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(DatasetError, match=said):
        cases(folder)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"A4C/FileList\.csv"):
        cases(tmp_path)
