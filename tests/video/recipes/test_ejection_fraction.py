from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from usvol import weights
from usvol.result import Labels, Measurement, Result
from usvol.scan import Grid, Source
from usvol.training.cases import Case
from usvol.training.loop import recipe_of
from video.recipes import ejection_fraction as recipe
from video.recipes.ejection_fraction import (
    EF_NAMES,
    MASKS,
    TRAINING,
    Beats,
    Settings,
    ef_by_discs,
    loss,
    mask_loss,
    new_network,
    protocol_clips,
)

SMALL = Settings(width=4, hidden=8, length=8)


def sample(*, every=True, frames=30):
    """A cine of 1 s with ED on frame 5 and ES on frame 15; every frame outlined, or these two."""
    at = list(range(frames)) if every else [5, 15]
    masks = torch.zeros(len(at), 112, 112, dtype=torch.bool)
    for k, frame in enumerate(at):
        masks[k, 30 : 80 - abs(frame - 5), 40:70] = True
    return {
        "id": "a",
        "frames": torch.randint(0, 255, (frames, 112, 112), dtype=torch.uint8),
        "times_s": torch.arange(frames) / 30,
        "masks": masks,
        "mask_frames": torch.tensor(at),
        "ed_frames": [5],
        "es_frames": [15],
        "ef_percent": 52.0,
        **({"beats": [[5 / 30, 0.5, 55.0]]} if every else {}),
    }


def test_examples_show_a_whole_beat_with_its_masks():
    torch.manual_seed(0)
    for item, ef in ((Beats([sample()], SMALL)[0], 55.0), (Beats([sample(every=False)], SMALL)[0], 52.0)):
        assert item["frames"].shape == item["masks"].shape == (8, 112, 112)
        assert float(item["ef"]) == ef
    whole = Beats([sample()], SMALL)[0]
    assert bool(whole["known"].all())
    few = Beats([sample(every=False)], SMALL)[0]
    assert int(few["known"].sum()) == 2
    assert sorted(few["masks"].sum((1, 2)).tolist())[-2:] == [40 * 30, 50 * 30]


def test_cases_without_an_ejection_fraction_are_left_out():
    assert len(Beats([{**sample(), "ef_percent": None}, sample()], SMALL)) == 1


def test_loss_of_mixed_batches_is_finite_and_learns():
    torch.manual_seed(0)
    items = [Beats([s], SMALL)[0] for s in (sample(), sample(every=False))]
    value = loss(new_network(SMALL), default_collate(items), settings=SMALL)
    assert bool(value.isfinite())
    value.backward()


def test_a_right_mask_costs_less_and_unknown_frames_nothing():
    target = torch.zeros(1, 2, 56, 56)
    target[:, :, 20:40, 20:40] = 1
    known = torch.tensor([[True, False]])
    logits = (target - 0.5) * 12
    wrong = logits.clone()
    wrong[0, 1] *= -1
    assert float(mask_loss(logits, target, known=known)) < 0.1
    torch.testing.assert_close(mask_loss(logits, target, known=known), mask_loss(wrong, target, known=known))
    assert float(mask_loss(-logits, target, known=known)) > 3
    assert float(mask_loss(logits, target, known=torch.zeros_like(known))) == 0


def ventricle(*sizes, grid=None):
    grid = grid or Grid((1, 120, 100))
    y, x = np.indices(grid.shape[1:])
    data = np.stack([((y - 60) / (45 * s)) ** 2 + ((x - 50) / (22 * s)) ** 2 < 1 for s in sizes])
    return Labels(MASKS, torch.from_numpy(data[:, None].astype(np.uint8)), grid, {1: "left_ventricle"})


def test_ejection_fraction_from_masks_needs_no_scale():
    labels = ventricle(1.0, 0.8)
    assert ef_by_discs(labels, ed=0, es=1) == pytest.approx(100 * (1 - 0.8**3), abs=1.5)
    with pytest.raises(ValueError, match="swapped"):
        ef_by_discs(labels, ed=1, es=0)


def test_the_echonet_protocol_takes_every_start():
    clips = protocol_clips(70)
    assert len(clips) == 70 - 62
    assert clips[0].tolist() == list(range(0, 64, 2))
    assert clips[-1][-1] == 69
    (short,) = protocol_clips(20)
    assert short[:11].tolist() == [*range(0, 20, 2), 19]
    assert len(short) == 32


def outcome(values, labels=None):
    measured = tuple(Measurement(EF_NAMES[k], v, "%") for k, v in values.items())
    return Result("ejection_fraction", Grid((1, 120, 100)), Source(), (labels,) if labels else (), measured)


def test_rows_hold_every_answer_beside_the_reference(tmp_path):
    truth = ventricle(1.0, 0.9, 0.8)
    reference = {"ef_percent": 49.0, "ed_frames": [0], "es_frames": [2], "labels": truth}
    case = Case("a", "a", tmp_path, reference, dataset="simulated")
    row = recipe.row(outcome({"fused": 50.0, "segmentation": 48.0, "clip": None}, truth), case)
    assert (row["ef_fused"], row["ef_segmentation"], row["true_ef"]) == (50, 48, 49)
    assert math.isnan(row["ef_clip"]) and math.isnan(row["ef_frames"])
    assert row["dice_ed"] == row["dice_es"] == 1.0
    worse = recipe.row(outcome({"fused": 50.0}, ventricle(0.8, 0.9, 0.8)), case)
    assert 0.5 < worse["dice_ed"] < 0.9
    assert math.isnan(recipe.row(outcome({"fused": 50.0}), case)["dice_ed"])


def test_scores_pool_those_answered_and_tell_how_many():
    true = [30.0, 45.0, 60.0, 70.0, 55.0]
    rows = [
        {"ef_fused": t + d, "ef_segmentation": t + 4, "ef_clip": t, "ef_frames": np.nan, "true_ef": t,
         "dice_ed": 0.9, "dice_es": 0.8}
        for t, d in zip(true, (2, -2, 2, -2, np.nan), strict=True)
    ]  # fmt: skip
    estimates = recipe.score(rows, list("abcde"))
    assert estimates["answered"].value == pytest.approx(0.8)
    assert estimates["mae"].value == estimates["rmse"].value == pytest.approx(2)
    assert estimates["bias_segmentation"].value == pytest.approx(4)
    assert estimates["r_squared_clip"].value == pytest.approx(1)
    assert estimates["limit_low"].value < estimates["bias"].value < estimates["limit_high"].value
    assert estimates["dice_es"].value == pytest.approx(0.8)
    assert "mae_frames" not in estimates


def test_the_recipe_is_found_by_name_and_trains_on_simulated_hearts(trained):
    assert recipe_of("ejection_fraction") is TRAINING
    stored = weights.load_file(trained("ejection_fraction"))
    network = new_network(Settings.model_validate_json(stored.metadata["settings"]))
    assert {f"member_0.{k}" for k in network.state_dict()} == set(stored.state)
