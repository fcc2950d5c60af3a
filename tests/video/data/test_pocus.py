from __future__ import annotations

from collections import Counter

import pytest

from usvol.errors import DatasetError
from video.data.pocus import CLASSES, FINDINGS, cases

HEADER = (
    "file,label,probe,patient,effusion,consolidations,b_lines,a_lines,pleural_irregularities,"
    "air_bronchogram,licence,source\n"
)
CLIP = "videos/convex/Cov_clip.mp4,covid,convex,84,0,1,1,0,,0,CC BY 4.0,https://example.org/a\n"
OTHER = "videos/linear/Reg_clip.avi,healthy,linear,85,,,,,,,CC BY-NC 4.0,https://example.org/b\n"
STILL = "images/convex/Pneu_still.png,pneumonia,convex,84,,,,,,,CC BY 4.0,https://example.org/c\n"


@pytest.fixture
def folder(tmp_path):
    """The published layout in small."""
    (tmp_path / "labels.csv").write_text(HEADER + OTHER + CLIP + STILL, encoding="utf-8")
    for row in (CLIP, OTHER, STILL):
        path = tmp_path / row.partition(",")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_labelled_clips_become_cases(folder):
    first, second = cases(folder)
    assert first.id == "videos/convex/Cov_clip.mp4"
    assert first.path == folder / first.id
    assert first.reference["label"] == "covid"
    assert [first.reference[name] for name in FINDINGS] == [False, True, True, False, None, False]
    assert (first.reference["probe"], first.reference["licence"]) == ("convex", "CC BY 4.0")
    assert all(second.reference[name] is None for name in FINDINGS)
    assert first.dataset == second.dataset == "pocus"


def test_stills_come_on_request_and_share_their_patient(folder):
    found = cases(folder, stills=True)
    assert len(found) == 3
    still = next(case for case in found if case.id.startswith("images/"))
    clip = next(case for case in found if case.id == "videos/convex/Cov_clip.mp4")
    assert still.patient_key == clip.patient_key


def test_a_table_saved_by_a_spreadsheet_is_read_or_refused_by_what_it_lacks(folder):
    table = folder / "labels.csv"
    table.write_text(HEADER + OTHER + CLIP, encoding="utf-8-sig")
    assert len(cases(folder)) == 2
    table.write_text((HEADER + OTHER).replace(",patient,", ",person,"), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"labels.csv: lacks the columns \['patient'\]"):
        cases(folder)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (CLIP.replace(",covid,", ",flu,"), "flu"),
        (CLIP.replace(",84,0,1,", ",84,0,yes,"), "consolidations"),
        (CLIP.replace(",84,0,1,", ",84,2,1,"), "effusion"),
    ],
)
def test_a_label_that_was_not_published_is_refused_by_name(folder, row, said):
    (folder / "labels.csv").write_text(HEADER + row, encoding="utf-8")
    with pytest.raises(DatasetError, match=said):
        cases(folder)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"labels\.csv"):
        cases(tmp_path)


def test_a_table_without_its_files_is_refused(folder):
    (folder / "labels.csv").write_text(HEADER + CLIP.replace("Cov_clip", "gone"), encoding="utf-8")
    with pytest.raises(DatasetError, match="none of the files"):
        cases(folder)


def test_the_published_data_set_is_read_whole(shared_data):
    root = shared_data / "lus" / "pocus"
    if not root.is_dir():
        pytest.skip("POCUS is not there")
    found = cases(root)
    assert len(found) == 105
    assert set(Counter(case.reference["label"] for case in found)) == set(CLASSES)
    assert all(case.path.stat().st_size > 0 for case in found)
    assert len(cases(root, stills=True)) > len(found)
