from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from usvol import weights
from usvol.result import Curve, Event, Result
from usvol.scan import Grid, Source
from usvol.training.cases import Case
from usvol.training.loop import recipe_of
from video.recipes import cardiac_phase as recipe
from video.recipes.cardiac_phase import (
    CURVE,
    TRAINING,
    Clips,
    Settings,
    extrema_loss,
    found_events,
    log_sizes,
    loss,
    new_network,
    order_loss,
    phase_curve,
    phase_of,
    positions,
    size_loss,
)

SMALL = Settings(width=4, hidden=8, length=12)
FPS = 40.0


def sample(*, frames=60, known=True, simulated=True):
    """A cine of 1 s beats with ED at 0.2 and 1.2 s, ES at 0.55 s."""
    times = torch.arange(frames) / FPS
    facts = {
        "id": "a",
        "frames": torch.randint(0, 255, (frames, 112, 112), dtype=torch.uint8),
        "times_s": times if known else torch.full((frames,), math.nan),
        "masks": torch.zeros(0, 112, 112, dtype=torch.bool),
        "mask_frames": torch.zeros(0, dtype=torch.long),
        "ed_frames": [8, 48],
        "es_frames": [22],
    }
    if simulated:
        place = np.interp(times, [-0.45, 0.2, 0.55, 1.2, 1.55], [-0.5, 0, 0.5, 1, 1.5])
        facts |= {"ed_times_s": [0.2, 1.2], "es_times_s": [0.55], "position_in_beat": (place % 1).tolist()}
    return facts


def perfect(frames=60):
    """What a perfect network would answer about ``sample``."""
    place = positions(sample(frames=frames))
    phase = phase_of(place).clamp(0.02, 0.98)
    events = torch.full((frames, 2), -4.0)
    events[[8, 48], 0] = 4.0
    events[22, 1] = 4.0
    return torch.cat([torch.logit(phase)[:, None], events], 1)


def test_phase_is_1_at_ed_and_0_at_es_and_unknown_beyond_labelled_events():
    simulated, labelled = positions(sample()), positions(sample(simulated=False))
    assert phase_of(simulated)[[8, 22, 48]] == pytest.approx([1, 0, 1], abs=0.01)
    assert bool(simulated.isfinite().all())
    assert labelled[[8, 22, 48]].tolist() == pytest.approx([0, 0.5, 1], abs=1e-5)
    assert not bool(labelled[:8].isfinite().any()) and not bool(labelled[49:].isfinite().any())
    torch.testing.assert_close(phase_of(labelled[8:49]), phase_of(simulated[8:49]), atol=0.02, rtol=0)


def test_without_times_positions_are_counted_in_frames():
    place = positions(sample(known=False, simulated=False))
    assert place[[8, 15, 22, 48]].tolist() == pytest.approx([0, 0.25, 0.5, 1], abs=1e-5)


def test_two_diastoles_in_a_row_end_a_run():
    odd = {**sample(simulated=False), "ed_frames": [8, 30, 48], "es_frames": [22]}
    place = positions(odd)
    assert not bool(place[31:].isfinite().any())
    assert bool(place[8:31].isfinite().all())


def test_a_curve_in_order_costs_nothing_and_a_reversed_one_does():
    place = positions(sample())[None]
    known = torch.ones_like(place, dtype=torch.bool)
    assert float(order_loss(phase_of(place), place, known=known)) == pytest.approx(0, abs=1e-6)
    assert float(order_loss(1 - phase_of(place), place, known=known)) > 0.02


def test_extrema_belong_on_the_labelled_frame():
    place = positions(sample())[None]
    heat = torch.stack([recipe._heat(torch.arange(60) / FPS, [0.2, 1.2])])
    blocks = (place + 0.5).floor()
    right = torch.logit(phase_of(place).clamp(0.01, 0.99)) * 4
    values = [float(extrema_loss(s, blocks, heat=heat)) for s in (right, right.roll(6, 1), -right)]
    assert values == sorted(values)
    assert values[0] < 0.5 * values[1]


def test_events_are_found_where_they_are_and_in_order():
    found = found_events(perfect(), tuple((torch.arange(60) / FPS).tolist()))
    assert [(name, at) for name, at, _ in found] == [("ED", 8), ("ES", 22), ("ED", 48)]
    assert all(sure > 0.9 for *_, sure in found)
    assert [(n, at) for n, at, _ in found_events(perfect(), None)] == [("ED", 8), ("ES", 22), ("ED", 48)]


def test_an_event_on_the_first_frame_is_found_and_a_flat_curve_has_none():
    found = found_events(perfect()[8:], tuple((torch.arange(52) / FPS).tolist()))
    assert [(name, at) for name, at, _ in found] == [("ED", 0), ("ES", 14), ("ED", 40)]
    flat = torch.zeros(40, 3) - 3
    assert found_events(flat, None) == []


def test_an_event_near_the_end_is_found_though_the_curve_hardly_turns_and_two_frames_are_no_error():
    cut = perfect()[:26]  # 100 ms after the ES
    assert [(name, at) for name, at, _ in found_events(cut, tuple((torch.arange(26) / FPS).tolist()))] == [
        ("ED", 8),
        ("ES", 22),
    ]
    unsure = cut.clone()
    unsure[22, 1:] = -4.0
    assert [name for name, *_ in found_events(unsure, None)] == ["ED"]
    assert found_events(torch.zeros(2, 3) - 3, None) == []
    assert found_events(torch.zeros(1, 3) - 3, None) == []


def test_examples_carry_the_targets_of_their_frames():
    torch.manual_seed(0)
    clips = Clips([sample(), sample(simulated=False), {**sample(simulated=False), "es_frames": []}], SMALL)
    assert len(clips) == 2
    item = clips[0]
    assert item["frames"].shape == (12, 112, 112)
    assert item["size"].isnan().all(), "nobody outlined anything"
    assert item["heat"].shape == (2, 12)
    assert item["steps_s"].shape == item["position"].shape == (12,)
    batch = default_collate([clips[0], clips[1], clips[0]])
    value = loss(new_network(SMALL), batch, settings=SMALL)
    assert bool(value.isfinite())
    value.backward()


def test_sizes_count_where_outlined_and_only_as_they_change():
    masks = torch.zeros(3, 112, 112, dtype=torch.bool)
    masks[0, :10, :10] = True
    masks[1, :10, :20] = True
    outlined = {**sample(frames=5), "masks": masks, "mask_frames": torch.tensor([1, 2, 4])}
    sizes = log_sizes(outlined)
    assert sizes.isfinite().tolist() == [False, True, True, False, False], "an empty mask has no size"
    assert float(sizes[2] - sizes[1]) == pytest.approx(math.log(2))
    assert float(size_loss(torch.nan_to_num(sizes)[None] + 3.0, sizes[None])) == pytest.approx(0, abs=1e-5)
    assert float(size_loss(torch.zeros(1, 5), sizes[None])) > 0.1
    assert float(size_loss(torch.zeros(1, 5), torch.full((1, 5), math.nan))) == 0


def result(events, *, frames=60):
    times = tuple((torch.arange(frames) / FPS).tolist())
    marks = tuple(Event(name, at, times[at]) for name, at in events)
    curve = Curve(CURVE, (0.5,) * frames, "1", times, tuple(range(frames)), events=marks)
    return Result("cardiac_phase", Grid((1, 8, 8)), Source(), (curve,), ())


def test_rows_count_errors_misses_and_inventions(tmp_path):
    case = Case("a", "a", tmp_path, {k: sample()[k] for k in ("ed_times_s", "es_times_s")})
    row = recipe.row(result([("ED", 10), ("ES", 22), ("ES", 40), ("ED", 47)]), case)
    assert (row["ed_matched"], row["ed_true"], row["ed_guessed"]) == (2, 2, 2)
    assert row["ed_frames"] == pytest.approx(3, rel=1e-4)
    assert row["ed_ms"] == pytest.approx(75, rel=1e-4)
    assert row["ed_signed_ms"] == pytest.approx(25, rel=1e-4)
    assert (row["es_matched"], row["es_guessed"]) == (1, 2)


def test_events_at_the_ends_may_be_left_out(tmp_path):
    case = Case("a", "a", tmp_path, {"ed_times_s": [0.05, 1.0], "es_times_s": [0.4]})
    row = recipe.row(result([("ED", 2), ("ES", 16), ("ED", 40)]), case)
    assert (row["ed_true"], row["inner_ed_true"], row["inner_ed_guessed"]) == (2, 1, 1)
    wrong = recipe.row(result([("ED", 40), ("ES", 0)]), case)  # an ES on the first frame that is none
    assert (wrong["es_guessed"], wrong["inner_es_guessed"], wrong["inner_es_matched"]) == (1, 0, 0)
    rows = [{**row, "id": k} for k in range(3)]
    estimates = recipe.score(rows, ["a", "b", "c"])
    assert estimates["ed_precision"].value == estimates["inner_ed_recall"].value == 1
    assert estimates["ed_frames"].value == pytest.approx(0, abs=1e-6)


def test_a_curve_is_a_finding_with_its_events():
    curve = phase_curve(perfect(), None, frames=range(60), found=found_events(perfect(), None))
    assert len(curve.values) == 60
    assert [e.name for e in curve.events] == ["ED", "ES", "ED"]
    assert curve.events[0].time_s is None


def test_the_recipe_is_found_by_name_and_trains_on_simulated_hearts(trained):
    assert recipe_of("cardiac_phase") is TRAINING
    stored = weights.load_file(trained("cardiac_phase"))
    assert stored.metadata["members"] == "1"
    network = new_network(Settings.model_validate_json(stored.metadata["settings"]))
    assert {f"member_0.{k}" for k in network.state_dict()} == set(stored.state)
