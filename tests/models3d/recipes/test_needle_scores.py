from __future__ import annotations

import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image

from models3d.data.pairs import cases
from models3d.recipes.needle import TRAINING
from models3d.recipes.needle_scores import labelled_truth
from usvol.errors import DatasetError
from usvol.evaluation import evaluate
from usvol.result import Line, Result
from usvol.scan import Source, vec3
from usvol.synthesis import synthesise

SEEN = {"present": True, "through": False, "clear": True, "size": 64, "spacing_mm": (0.4, 0.4, 0.4)}


def case_of(folder, seed, **settings):
    """A volume and its label map, as a user would have them, and what the phantom says of them."""
    made = synthesise("needle", out=folder, seed=seed, settings={**SEEN, **settings})
    return cases(folder)[-1], made[0].truth


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_label_map_tells_the_axis_and_which_end_is_the_tip(tmp_path, seed):
    case, truth = case_of(tmp_path, seed)
    found = labelled_truth(case)
    assert found["present"]
    assert found["tip_in_view"]
    assert np.linalg.norm(found["tip_mm"] - truth["tip_mm"]) < 0.6
    assert found["direction"] @ np.array(truth["direction"]) > np.cos(np.radians(4))


def test_an_end_with_only_black_of_the_sector_beyond_it_is_no_tip(tmp_path):
    case, truth = case_of(tmp_path, 6, size=100, angle_deg=0.0)  # its sector is told in blocks of two samples
    found = labelled_truth(case)
    assert found["tip_in_view"]
    assert np.linalg.norm(found["tip_mm"] - truth["tip_mm"]) < 0.6


def test_what_is_not_known_of_a_label_map_is_not_compared(tmp_path):
    through, truth = case_of(tmp_path, 5, through=True)
    assert truth["tip_in_view"] is False
    line = Line("needle", vec3(truth["entry_mm"]), vec3(truth["tip_mm"]), 0.9)
    labels = labelled_truth(through)["labels"]
    row = TRAINING.row(Result("needle", labels.grid, Source(), (line, labels), ()), through)
    assert row["f1"] == 1
    assert row["axis_deg"] < 4
    assert "tip_mm" not in row
    empty, _ = case_of(tmp_path / "none", 1, present=False)
    assert labelled_truth(empty)["present"] is False


def test_few_voxels_are_a_needle_without_an_axis(tmp_path):
    case, _ = case_of(tmp_path, 1)
    image = Nifti1Image.from_filename(case.reference["label"])
    marked = np.zeros(image.shape, np.uint8)
    marked[30, 30, 30:33] = 1
    Nifti1Image(marked, image.affine, image.header).to_filename(case.reference["label"])
    found = labelled_truth(case)
    assert found["present"]
    assert found["direction"] is None


def test_a_folder_of_labelled_volumes_is_evaluated(tmp_path):
    for seed, present in ((1, True), (3, False)):
        synthesise("needle", out=tmp_path, count=2, seed=seed, settings={**SEEN, "present": present})
    outcome = evaluate("needle", str(tmp_path))
    assert outcome.dataset == "pairs"
    assert [row["present"] for row in outcome.rows] == [True, True, False, False]
    assert {"f1", "missed", "false_alarm"} <= set(outcome.metrics)


def test_a_folder_without_a_data_set_of_the_task_is_refused_with_the_reason(tmp_path):
    with pytest.raises(DatasetError, match="pairs: .*no volume with a label map"):
        evaluate("needle", str(tmp_path))
    with pytest.raises(DatasetError, match="--data DIR"):
        evaluate("needle", str(tmp_path / "none"))
