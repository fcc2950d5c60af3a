from __future__ import annotations

import math
from pathlib import Path as FilePath

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from models3d.recipes.needle import (
    NOWHERE,
    TRAINING,
    Settings,
    Volumes,
    examples,
    loss,
    new_network,
    opened,
    resampled_loss,
    tube_loss,
)
from models3d.recipes.needle_path import (
    TUBE,
    Path,
    coarse_view,
    fit_path,
    levelled,
    sampled,
    tube_frame,
    tube_points,
)
from models3d.recipes.needle_tubes import bright_path, found_shafts, tube_truth
from usvol.result import Labels, Line, Result
from usvol.scan import Grid, Source
from usvol.training.cases import Case

SMALL = Settings(side=16, coarse=(2, 4), fine=(2, 4, 4), code=6, tubes=1)


def sample(needle: bool = True) -> dict[str, torch.Tensor]:
    grey = (torch.rand(40, 44, 48, generator=torch.Generator().manual_seed(1)) * 90).to(torch.uint8)
    labels = torch.zeros(40, 44, 48, dtype=torch.uint8)
    if needle:
        labels[19:21, 20:22, 10:40] = 1
        grey[19:21, 20:22, 10:40] = 240
    labels[:, :3] = NOWHERE
    return {"grey": grey, "labels": labels, "step": torch.tensor([0.4, 0.4, 0.4], dtype=torch.float64)}


def bent(bend: float) -> np.ndarray:
    s = np.linspace(-40, 40, 200)
    ahead, side = np.array([0.6, 0.0, 0.8]), np.array([0.0, 1.0, 0.0])
    return np.array([50.0, 60.0, 70.0]) + s[:, None] * ahead + bend * s[:, None] ** 2 * side


@pytest.mark.parametrize("bend", [0.0, 1.2e-3])
def test_path_follows_a_bent_line_through_noise(bend):
    noisy = bent(bend) + np.random.default_rng(0).normal(0, 0.5, (200, 3))
    path = fit_path(noisy)
    assert path.locate(bent(bend))[1].max() < 0.45
    assert abs(path.ahead @ (0.6, 0.0, 0.8)) > 0.999
    assert path.end - path.start == pytest.approx(80, abs=3)


def test_the_tube_holds_the_path_in_its_middle():
    path = fit_path(bent(1e-3))
    points = tube_points(path, np.array([-20.0, 0, 20]), frame=tube_frame(path), wide=4)
    assert points.shape == (3, 4, 4, 3)
    np.testing.assert_allclose(points.mean((1, 2)), path.points(np.array([-20.0, 0, 20])), atol=1e-9)
    index = torch.arange(60.0).reshape(1, 60, 1, 1).expand(1, 60, 60, 60)
    at = np.full((1, 1, 2, 3), 20.0)
    assert sampled(index, at, scale=np.array([2.0, 1, 1])).flatten().tolist() == pytest.approx([10, 10])


def test_levels_span_0_to_1_whatever_the_gain():
    grey, mask = torch.rand(20, 20, 20), torch.ones(20, 20, 20, dtype=torch.bool)
    torch.testing.assert_close(levelled(grey * 40 + 7, mask), levelled(grey, mask), atol=1e-4, rtol=0)
    assert float(levelled(grey, mask).max()) == 1


@pytest.mark.parametrize("shape", [(64, 64, 64), (50, 33, 20), (40, 64, 7)])
def test_the_coarse_view_holds_the_largest_of_what_a_sample_covers(shape):
    level = torch.rand(64, 64, 40)
    wanted = torch.nn.functional.adaptive_max_pool3d(level[None], shape)[0]
    torch.testing.assert_close(coarse_view(level, shape)[1], wanted, rtol=0, atol=0)


def test_a_thin_line_survives_the_coarse_view():
    level = torch.zeros(32, 32, 32)
    level[16, 16, :] = 1
    mean, largest = coarse_view(level, (8, 8, 8))
    assert float(largest[4, 4].min()) == 1
    assert float(mean.max()) == pytest.approx(1 / 16)


@pytest.mark.parametrize("needle", [True, False])
def test_examples_have_one_size_and_labels_that_count(needle):
    torch.manual_seed(0)
    items = [Volumes([sample(needle)], SMALL)[0] for _ in range(12)]
    assert {tuple(item["view"].shape) for item in items} == {(2, 16, 16, 16)}
    assert {tuple(item["tube"].shape) for item in items} == {(1, 2, TUBE, 20, 20)}
    marked = sum(int((item["view_labels"] == 1).sum() + (item["shaft"] == 1).sum()) for item in items)
    assert (marked > 0) is needle
    assert all(bool(item["view"].isfinite().all() and item["tube"].isfinite().all()) for item in items)


def test_tubes_follow_the_lines_that_the_first_network_of_earlier_weights_proposes(tmp_path):
    class Bright(torch.nn.Module):
        def forward(self, views: torch.Tensor) -> torch.Tensor:
            return torch.where(views[:, 1] > 0.6, 6.0, -6.0)

    earlier = tmp_path / "earlier.safetensors"
    save_file({k: v.contiguous() for k, v in new_network(SMALL).state_dict().items()}, earlier)
    settings = SMALL.model_copy(update={"proposed": 1.0, "init": str(earlier), "picture": 0.0})
    examples = Volumes([sample()], settings)
    assert examples.first is not None and not examples.first.training
    examples.first = Bright()
    torch.manual_seed(2)
    _ = examples[0]
    line = examples.lines[0][0]
    assert abs(line.ahead[2]) > 0.99
    np.testing.assert_allclose(line.points(np.array([0.0]))[0][:2], (19.5, 20.5), atol=1.0)
    examples.lines[0] = (line,)
    assert all(float(examples[0]["needle"]) == 1 for _ in range(8))
    with pytest.raises(ValidationError, match="init"):
        Settings(proposed=0.5)


def test_a_scaled_path_is_the_same_path():
    path = fit_path(bent(1.2e-3))
    s = np.array([-30.0, 0.0, 25.0])
    np.testing.assert_allclose(path.scaled(0.5).points(s / 2), path.points(s) / 2, atol=1e-9)


def test_shafts_are_fitted_to_their_voxels_and_the_tip_is_the_end_within_the_view():
    stored = sample()
    stored["labels"][19:21, 20:22, :10] = 1  # it comes in at the side
    (shaft,) = found_shafts(opened(stored), np.ones(3))
    assert shaft.radius == pytest.approx(math.sqrt(4 / math.pi), rel=0.05)
    assert shaft.tip is not None
    np.testing.assert_allclose(shaft.path.points(np.array([shaft.tip]))[0], (19.5, 20.5, 39.25), atol=0.2)
    (floating,) = found_shafts(opened(sample()), np.ones(3))
    assert floating.tips == (True, True) and floating.tip is None, "which end is the tip cannot be known"


def truth_of(path: Path, *, at: float = 0.0) -> dict[str, torch.Tensor]:
    stored = sample()
    stored["labels"][19:21, 20:22, :10] = 1
    shafts = found_shafts(opened(stored), np.ones(3))
    return tube_truth(shafts, path, s=np.arange(TUBE) - TUBE / 2 + at, frame=np.eye(3)[:2])


def test_what_is_true_of_a_tube_along_a_needle_beside_it_and_across_it():
    ahead = np.array([0.0, 0, 1])
    along = truth_of(Path(np.array([18.5, 22.5, 20.0]), ahead, np.zeros(3), -20, 20))
    on = along["shaft"] == 1
    assert float(along["needle"]) == 1 and int(on.sum()) == pytest.approx(40, abs=1)
    np.testing.assert_allclose(along["offset"][:, on].mean(1), (1.0, -2.0), atol=0.05)
    assert float(along["tip"]) == pytest.approx(TUBE / 2 + 39.25 - 20, abs=0.3)
    assert float(along["tip_known"]) == 1
    beside = truth_of(Path(np.array([5.0, 22.5, 20.0]), ahead, np.zeros(3), -20, 20))
    assert float(beside["needle"]) == 0 and not bool((beside["shaft"] == 1).any())
    across = truth_of(Path(np.array([19.5, 20.5, 20.0]), np.array([1.0, 0, 0]), np.zeros(3), -20, 20))
    assert float(across["needle"]) == 0 and not bool((across["shaft"] == 1).any())
    elsewhere = truth_of(Path(np.array([18.5, 22.5, 20.0]), ahead, np.zeros(3), -20, 20), at=-50.0)
    assert bool(elsewhere["tip"].isnan()) and float(elsewhere["tip_known"]) == 1, "the tip is not in the tube"


def test_the_brightest_of_many_lines_is_often_the_bright_one():
    torch.manual_seed(0)
    level = torch.rand(40, 44, 48) * 0.3
    level[19:21, 20:22, 5:40] = 1.0
    lines = [bright_path(level, np.ones(3)) for _ in range(20)]
    assert sum(abs(line.ahead[2]) > 0.97 for line in lines) >= 4
    assert any(abs(line.ahead[2]) < 0.9 for line in lines), "not always: other lines are to be known as well"


def test_the_loss_of_tubes_is_least_at_the_truth_and_ignores_what_is_open():
    truth = truth_of(Path(np.array([18.5, 22.5, 20.0]), np.array([0.0, 0, 1]), np.zeros(3), -20, 20))
    truth = {key: value[None] for key, value in truth.items()}
    truth |= {"tube": torch.ones(1, 2, TUBE, 20, 20)}
    shaft = torch.where(truth["shaft"] > 0, 9.0, -9.0)
    tips = -0.5 * ((torch.arange(TUBE)[None] - truth["tip"]) / 1.5) ** 2
    slices = torch.cat([shaft[:, None], truth["offset"], tips[:, None]], 1)
    whole = torch.stack([torch.tensor([9.0]), torch.tensor([-9.0]), truth["log_radius"]], 1)
    assert float(tube_loss(slices, whole, truth=truth)) == pytest.approx(0, abs=0.02)
    wrong = {
        "shaft": slices.clone().index_fill_(1, torch.tensor([0]), -9.0),
        "offset": slices + torch.tensor([0.0, 2, 0, 0])[None, :, None],
        "tip": torch.cat([slices[:, :3], slices[:, 3:].roll(-20, 2)], 1),
    }
    for name, answer in wrong.items():
        assert float(tube_loss(answer, whole, truth=truth)) > 0.3, name
    unknown = {**truth, "needle": torch.tensor([-1.0]), "tip_known": torch.zeros(1)}
    assert float(tube_loss(slices, torch.tensor([[-9.0, 9.0, 0.12]]), truth=unknown)) < 0.1


def test_the_hardest_negatives_weigh_most():
    labels = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    labels[0, 4, 4, 2:6] = 1
    easy = torch.where(labels == 1, 6.0, -6.0)
    wrong = easy.clone()
    wrong[0, 0, 0, :3] = 6.0
    ignored = labels.clone()
    ignored[0, 0, 0, :3] = NOWHERE
    assert float(resampled_loss(wrong, labels)) > float(resampled_loss(easy, labels)) + 0.2
    assert float(resampled_loss(wrong, ignored)) == pytest.approx(
        float(resampled_loss(easy, labels)), abs=1e-3
    )


@pytest.mark.parametrize(
    "learning", [{}, {"architecture": "triplanar"}, {"look": "third", "tubes": 4, "picture": 0.0}], ids=str
)
def test_a_few_steps_reduce_the_loss(learning, tmp_path):
    torch.manual_seed(0)
    earlier = tmp_path / "earlier.safetensors"
    save_file({k: v.contiguous() for k, v in new_network(SMALL).state_dict().items()}, earlier)
    settings = SMALL.model_copy(update={"init": str(earlier), **learning})
    network = new_network(settings).train()
    items = [examples([sample()], settings)[0] for _ in range(2)]
    batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    steps = torch.optim.Adam(network.parameters(), 0.01)
    values = []
    for _ in range(12):
        value = loss(network, batch, settings=settings)
        steps.zero_grad()
        value.backward()
        steps.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.8 * values[0]


def answer(found: bool, *, present: bool, shift_mm: float = 0.0) -> dict[str, object]:
    grid = Grid((4, 4, 40), (1.0, 1.0, 1.0))
    data = torch.zeros(1, 4, 4, 40, dtype=torch.uint8)
    data[0, 2, 2, :20] = 1
    true = Labels("needle", data if present else data * 0, grid, {1: "needle"})
    line = Line("needle", (2.0, 2.0, 0.0), (2.0, 2.0, 20.0 + shift_mm), 0.9)
    findings = (true, line) if found else (Labels("needle", data * 0, grid, {1: "needle"}),)
    truth = {"present": present, "tip_mm": [2, 2, 20], "direction": [0, 0, 1], "tip_in_view": True}
    truth = truth if present else {"present": False}
    case = Case("a", "a", FilePath(), {**truth, "labels": true}, dataset="simulated")
    return TRAINING.row(Result("needle", grid, Source(), findings, ()), case)


def test_rows_and_scores_say_what_was_missed_and_how_far_off_the_tip_is():
    rows = [
        answer(True, present=True, shift_mm=0.5),
        answer(True, present=True, shift_mm=1.5),
        answer(False, present=True),
        answer(True, present=False),
        answer(False, present=False),
    ]
    scores = {name: e.value for name, e in TRAINING.metrics(rows, list("abcde")).items()}
    assert scores["tip_mm"] == pytest.approx(1.0)
    assert scores["axis_deg"] == pytest.approx(0, abs=1e-6)
    assert scores["missed"] == pytest.approx(1 / 3)
    assert scores["false_alarm"] == 0.5
    assert scores["f1"] == pytest.approx(2 / 3)
    assert all(math.isfinite(value) for value in scores.values())
