from __future__ import annotations

import logging

import pytest

from usvol.errors import DatasetError
from video.data.unity_echophase import cases

HEADER = (
    "AVIname,Number of Frames,Training/Testing,"
    "Op1 ED1,Op1 ES1,Op1 ED2,Op1 ES2,Op1 ED3,Op1 ES3,Op2 ED1,Op2 ES1,Op2 ED2,Op2 ES2\n"
)
ROWS = (
    "0001.avi,60,Training,3,20,40,55,,,4,21,,\n"
    "0002,48,Testing,,12,30,48,,,1,,,\n"
    "0003.avi,30,Training,2,9,,,,,2,9,,\n"
)


@pytest.fixture
def folder(tmp_path):
    """Two of the three cines that the table names."""
    (tmp_path / "videos").mkdir()
    for name in ("0001", "0002"):
        (tmp_path / "videos" / f"{name}.avi").touch()
    (tmp_path / "labels.csv").write_text(HEADER + ROWS)
    return tmp_path


def test_cines_become_cases_with_both_experts_frames_counted_from_0(folder):
    first, second = cases(folder)
    assert (first.split, second.split) == ("train", "test")
    assert (first.reference["ed_frames"], first.reference["es_frames"]) == ([2, 39], [19, 54])
    assert (first.reference["ed_frames_2"], first.reference["es_frames_2"]) == ([3], [20])
    assert (second.reference["ed_frames"], second.reference["es_frames"]) == ([29], [11, 47])
    assert second.reference["es_frames_2"] == []
    assert first.patient_key != second.patient_key


def test_a_frame_0_means_that_frames_are_counted_from_0(folder):
    (folder / "labels.csv").write_text(
        HEADER + ROWS.replace(",Training,3,", ",Training,0,").replace("48,,", "47,,")
    )
    assert cases(folder)[0].reference["ed_frames"] == [0, 40]


def test_a_table_that_does_not_tell_is_counted_from_1_with_a_warning(folder, caplog):
    (folder / "labels.csv").write_text(HEADER + ROWS.replace("30,48,", "30,47,"))
    with caplog.at_level(logging.WARNING):
        assert cases(folder)[0].reference["ed_frames"] == [2, 39]
    assert "0 or 1" in caplog.text


def test_columns_may_name_the_operator_last(folder):
    swapped = HEADER.replace("Op1 ED1", "ED1 Op1").replace("Op1 ES1", "ES_1_op1")
    (folder / "labels.csv").write_text(swapped + ROWS)
    assert cases(folder)[0].reference["ed_frames"] == [2, 39]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Training/Testing", "Set", "Training/Testing"),
        ("Op1 ES", "Op3 ES", "Op1 ES1"),
        (",Testing,", ",Held,", "'Held'"),
        ("60,Training,3", "60,Training,61", "outside"),
    ],
)
def test_another_table_is_refused(folder, old, new, said):
    table = folder / "labels.csv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(DatasetError, match=said):
        cases(folder)


def test_two_tables_or_none_are_refused(folder):
    (folder / "more.csv").touch()
    with pytest.raises(DatasetError, match="has 2"):
        cases(folder)
    with pytest.raises(DatasetError, match="has 0"):
        cases(folder / "videos")
