from __future__ import annotations

import numpy as np
import pytest

from usvol.errors import DatasetError
from usvol.formats.video_writing import write_video
from usvol.loading import load
from usvol.training.cases import of_split
from video.data.echonet_dynamic import cases, read_labels

FILES = "FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split\n"
NAMES = ("0X100009310A3BD7FC", "0X1002E8FBACD08477", "0X1005D03EED19C65B")
ROWS = (
    f"{NAMES[0]},78.49840597,14.88136797,69.21053366,112,112,50,12,VAL\n"
    f"{NAMES[1]},59.10198811,40.38387624,98.74288352,112,112,50,12,TRAIN\n"
    f"{NAMES[2]},62.36379841,14.2677839,37.90973395,112,112,50,12,TEST\n"
    "0X1007,54.5,33.1,72.9,112,112,55,12,TRAIN\n"
)


def chords(name, frame, *, half_width):
    """The long axis, then 20 level chords from row 30 down to row 68, as the tables have them."""
    lines = [f"{name}.avi,56.0,30.0,56.0,68.0,{frame}"]
    lines += [f"{name}.avi,{56 - half_width},{y},{56 + half_width},{y},{frame}" for y in range(30, 70, 2)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def folder(tmp_path):
    """The published layout: three of the four cines are there, the last of them not traced."""
    (tmp_path / "Videos").mkdir()
    for name in NAMES:
        write_video(tmp_path / "Videos" / f"{name}.avi", np.zeros((12, 112, 112), np.uint8), fps=50)
    (tmp_path / "FileList.csv").write_text(FILES + ROWS)
    traced = [chords(name, 9, half_width=12) + chords(name, 3, half_width=20) for name in NAMES[:2]]
    (tmp_path / "VolumeTracings.csv").write_text("FileName,X1,Y1,X2,Y2,Frame\n" + "".join(traced))
    return tmp_path


def test_cines_become_cases_with_their_official_split(folder):
    found = cases(folder)
    assert [case.id for case in found] == list(NAMES)
    assert [case.split for case in found] == ["validation", "train", "test"]
    assert [case.id for case in of_split(found, "train")] == [NAMES[1]]
    first = found[0]
    assert first.reference["ef_percent"] == pytest.approx(78.4984, abs=1e-4)
    assert (first.reference["edv_ml"], first.reference["fps"]) == (pytest.approx(69.2105, abs=1e-4), 50)
    assert (first.reference["ed_frames"], first.reference["es_frames"]) == ([3], [9])
    assert found[2].reference["ed_frames"] == found[2].reference["es_frames"] == []
    assert NAMES[0] not in first.patient_key
    assert len({case.patient_key for case in found}) == 3


def test_outlines_become_masks_on_the_grid_of_the_file(folder):
    labels = read_labels(cases(folder)[0])
    assert labels.frame_indices == (3, 9)
    assert labels.grid == load(cases(folder)[0].path).grid
    assert labels.names == {1: "left_ventricle"}
    ed, es = labels.data[:, 0].numpy()
    assert ed[50, 36:77].all()
    assert not ed[:, :35].any()
    assert not ed[:29].any()
    # the long axis, which reaches no farther than the chords, adds nothing
    assert es.sum() == pytest.approx(25 * 39, rel=0.05)
    assert ed.sum() > es.sum()


def test_a_cine_that_nobody_traced_has_no_labels(folder):
    with pytest.raises(DatasetError, match="nobody traced"):
        read_labels(cases(folder)[2])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [(",VAL", ",DEV", "DEV"), ("78.49840597", "high", "EF"), ("Split", "Part", "Split")],
)
def test_what_was_not_published_is_refused_by_name(folder, old, new, said):
    table = folder / "FileList.csv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(DatasetError, match=said):
        cases(folder)


@pytest.mark.parametrize("missing", ["FileList.csv", "VolumeTracings.csv", "Videos"])
def test_another_folder_is_refused(folder, missing):
    (folder / missing).rename(folder / "renamed")
    with pytest.raises(DatasetError, match=missing):
        cases(folder)
