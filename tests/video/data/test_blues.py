from __future__ import annotations

from collections import Counter

import pytest

from usvol.errors import DatasetError
from video.data.blues import cases

HEADER = "video_file,Severity Score,A-lines,B-lines,comments\n"
ROWS = (
    'patient_2_R1,0.0,no,yes,"intact pleura line, multiple A-lines, 2 B-lines"\n'
    "patient_2_R2,1.0,yes,yes,\n"
    "patient_10_L3_2,3.0,no,Yes,white lung\n"
)


@pytest.fixture
def folder(tmp_path):
    """The published layout, with three of the clips it names and one that nobody labelled."""
    (tmp_path / "lus_videos").mkdir()
    for name in ("patient_2_R1", "patient_2_R2", "patient_10_L3_2", "patient_99_R1"):
        (tmp_path / "lus_videos" / f"{name}.mp4").touch()
    (tmp_path / "severity.csv").write_text(HEADER + ROWS, encoding="utf-8")
    return tmp_path


def test_labelled_clips_become_cases(folder):
    found = cases(folder)
    assert [case.id for case in found] == ["patient_10_L3_2", "patient_2_R1", "patient_2_R2"]
    repeat, first, second = found
    assert first.reference == {"severity": 0, "a_lines": False, "b_lines": True, "point": "R1"}
    assert repeat.reference == {"severity": 3, "a_lines": False, "b_lines": True, "point": "L3"}
    assert second.reference["a_lines"] is True
    assert first.patient_key == second.patient_key != repeat.patient_key
    assert {case.dataset for case in found} == {"blues"}
    assert first.path == folder / "lus_videos" / "patient_2_R1.mp4"


def test_a_clip_that_is_not_there_is_no_case(folder):
    (folder / "lus_videos" / "patient_2_R1.mp4").unlink()
    assert len(cases(folder)) == 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("patient_2_R1,4.0,no,yes,", "4.0"),
        ("patient_2_R1,0.5,no,yes,", "0.5"),
        ("patient_2_R1,,no,yes,", "patient_2_R1"),
        ("patient_2_R1,nan,no,yes,", "nan"),
        ("patient_2_R1,1.0,maybe,yes,", "A-lines"),
        ("patient_2_R1,1.0,no,,", "B-lines"),
    ],
)
def test_a_label_that_was_not_published_is_refused_by_name(folder, row, said):
    (folder / "severity.csv").write_text(f"{HEADER}{row}\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=said):
        cases(folder)


def test_a_table_saved_by_a_spreadsheet_is_read_or_refused_by_what_it_lacks(folder):
    table = folder / "severity.csv"
    table.write_text(HEADER + ROWS, encoding="utf-8-sig")
    assert len(cases(folder)) == 3
    for text, encoding, said in (
        ((HEADER + ROWS).replace(",", ";"), "utf-8", "severity.csv: lacks the columns"),
        ((HEADER + ROWS).replace("A-lines,", "Alines,"), "utf-8", r"lacks the columns \['A-lines'\]"),
        (HEADER + "patient_2_R1,1.0\n", "utf-8", "patient_2_R1 has A-lines ''"),
        (HEADER + ROWS.replace("white", "weiß"), "latin-1", "severity.csv: cannot be read.*UTF-8"),
    ):
        table.write_text(text, encoding=encoding)
        with pytest.raises(DatasetError, match=said):
            cases(folder)


def test_a_name_without_a_patient_is_refused(folder):
    (folder / "lus_videos" / "clip7.mp4").touch()
    (folder / "severity.csv").write_text(f"{HEADER}clip7,1.0,no,yes,\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"clip7.*patient_<number>"):
        cases(folder)


@pytest.mark.parametrize("missing", ["severity.csv", "lus_videos"])
def test_another_folder_is_refused(folder, missing):
    (folder / missing).rename(folder / "renamed")
    with pytest.raises(DatasetError, match=r"severity\.csv and lus_videos"):
        cases(folder)


def test_a_table_without_its_clips_is_refused(folder):
    for clip in (folder / "lus_videos").iterdir():
        clip.unlink()
    with pytest.raises(DatasetError, match="none of the clips"):
        cases(folder)


def test_the_published_data_set_is_read_whole(shared_data):
    root = shared_data / "lus" / "blues"
    if not root.is_dir():
        pytest.skip("COVID-BLUES is not there")
    found = cases(root)
    assert len(found) == 279
    assert len({case.patient_key for case in found}) == 49
    assert len({case.id for case in found}) == 279
    assert set(Counter(case.reference["severity"] for case in found)) == {0, 1, 2, 3}
    assert {case.reference["point"] for case in found} == {"L1", "L2", "L3", "R1", "R2", "R3"}
    assert all(case.path.stat().st_size > 0 for case in found)
