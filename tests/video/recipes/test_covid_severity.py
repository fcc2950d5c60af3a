from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from usvol.canonical import canonicalise
from usvol.resampling import to_beam_space
from usvol.result import Measurement, Result, Scores
from usvol.scan import Grid, Source
from usvol.training.cases import Case
from video.phantoms.lung import Config, simulate
from video.recipes import covid_severity as recipe
from video.recipes.covid_severity import (
    A_LINES,
    B_LINES,
    OUTPUTS,
    TRAINING,
    Clips,
    Settings,
    adapt,
    as_beams,
    calibrate,
    expected_severity,
    loss,
    new_network,
    prepare,
)

SMALL = Settings(width=4, readers=2, depth_samples=32, lines=32, dropout=0.0, pocus_repeats=3)


def labelled(name, severity, *, frames=6, seed=0):
    """A clip whose brightness grows with severity, under noise."""
    generator = torch.Generator().manual_seed(seed)
    grey = 40 + 40 * severity + 40 * torch.rand(frames, 160, 128, generator=generator)
    return {
        "id": name,
        "dataset": "blues",
        "severity": severity,
        "a_lines": severity < 2,
        "b_lines": severity > 0,
        "frames": grey.to(torch.uint8),
    }


def pocus(name, label="covid"):
    generator = torch.Generator().manual_seed(len(name))
    return {
        "id": name,
        "dataset": "pocus",
        "label": label,
        "effusion": None,
        "consolidations": True,
        "b_lines": False,
        "a_lines": True,
        "pleural_irregularities": None,
        "frames": torch.randint(0, 255, (3, 160, 128), generator=generator, dtype=torch.uint8),
    }


def cohort(*, count=12, seed=0):
    return [labelled(f"clip_{seed}_{i}", i % 4, seed=100 * seed + i) for i in range(count)]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return new_network(SMALL).eval()


@pytest.mark.parametrize("severity", range(4))
def test_targets_are_softmax_of_squared_distance(severity):
    (target,) = Clips([labelled("a", severity)], SMALL).targets
    weights = [math.exp(-2 * (k - severity) ** 2) for k in range(4)]
    expected = [w / sum(weights) for w in weights]
    assert target["sord"].tolist() == pytest.approx(expected, abs=1e-6)
    assert int(target["sord"].argmax()) == severity
    assert target["severity"] == severity
    assert target["signs"].tolist() == [float(severity < 2), float(severity > 0)]
    assert target["has_severity"] == 1


def test_pocus_clips_are_repeated_and_carry_no_severity():
    clips = Clips([labelled("a", 1), pocus("b"), pocus("c", "healthy")], SMALL)
    assert len(clips) == 1 + 2 * 3
    assert sorted(s["id"] for s in clips.samples) == ["a", *["b"] * 3, *["c"] * 3]
    for sample, target in zip(clips.samples, clips.targets, strict=True):
        assert target["has_severity"] == float("severity" in sample)
    target = clips.targets[1]
    assert target["label"].tolist() == [0, 0, 1, 0]
    assert target["findings"].tolist() == [1, 0, 0, 0]
    once = Clips([pocus("b")], Settings(pocus_repeats=1))
    assert len(once) == 1


def test_examples_are_ordered_frames_of_one_length_and_collate():
    torch.manual_seed(0)
    frames = torch.arange(40, dtype=torch.uint8)[:, None, None].expand(40, 160, 128)
    long, short = {**labelled("a", 0), "frames": frames}, {**pocus("b"), "frames": frames[:2]}
    clips = Clips([long, short], Settings(pocus_repeats=1))
    starts = set()
    for _ in range(20):
        numbers = clips[0]["frames"][:, 0, 0].int()
        steps = numbers.diff()
        assert len(numbers) == 4
        assert int(steps.min()) == int(steps.max()) in range(1, 5)
        starts.add(int(numbers[0]))
    assert len(starts) > 5
    assert bool((clips[1]["frames"][:, 0, 0].int().diff() >= 0).all())
    assert default_collate([clips[0], clips[1]])["frames"].shape == (2, 4, 160, 128)


def test_expected_severity_is_the_mean_grade_and_ignores_other_outputs():
    outputs = torch.full((2, OUTPUTS), 7.0)
    outputs[0, :4] = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    outputs[1, :4] = torch.tensor([50.0, 0, 0, 0])
    assert expected_severity(outputs).tolist() == pytest.approx([2.0, 0.0], abs=1e-5)


def test_loss_is_finite_for_every_mixture(network):
    torch.manual_seed(1)
    mixtures = [
        [labelled("a", 2), pocus("b")] * 2,
        [pocus("b")] * 4,
        [labelled("a", 0), labelled("b", 3)] * 2,
        [{**labelled("a", 1), "frames": torch.zeros(1, 160, 128, dtype=torch.uint8)}] * 4,
    ]
    for samples in mixtures:
        clips = Clips(samples, Settings(pocus_repeats=1))
        batch = default_collate([clips[i] for i in range(len(clips))])
        for _ in range(4):
            value = loss(network, batch, settings=SMALL).detach()
            assert value.ndim == 0
            assert bool(value.isfinite())
            assert float(value) > 0


def test_pocus_targets_count_by_their_weight_and_severity_is_not_asked_of_them(network):
    clips = Clips([pocus("b"), pocus("c", "viral")] * 2, Settings(pocus_repeats=1))
    batch = default_collate([clips[i] for i in range(4)])

    def value(weight):
        torch.manual_seed(2)
        value = loss(network, batch, settings=SMALL.model_copy(update={"pocus_weight": weight}))
        return float(value.detach())

    assert value(0.0) == 0
    assert value(0.8) == pytest.approx(2 * value(0.4), rel=1e-5)
    batch["sord"], batch["severity"] = batch["sord"].flip(1), batch["severity"] + 3
    assert value(0.4) == pytest.approx(value(0.8) / 2, rel=1e-5)


def test_the_network_learns_a_few_clips():
    torch.manual_seed(0)
    network = new_network(SMALL).train()
    clips = Clips([labelled(str(i), 3 * (i % 2), seed=i) for i in range(8)], SMALL)
    solver = torch.optim.Adam(network.parameters(), lr=3e-3)
    values = []
    for _ in range(40):
        solver.zero_grad()
        value = loss(network, default_collate([clips[i] for i in range(8)]), settings=SMALL)
        value.backward()
        solver.step()
        values.append(float(value.detach()))
    assert np.mean(values[-8:]) < 0.75 * np.mean(values[:8])


def test_adapt_leaves_the_readers_alone_and_changes_only_the_first_outputs(network):
    before = copy.deepcopy(network.state_dict())
    group = cohort()
    (state,) = adapt(network, [group], settings=SMALL)
    assert set(state) == set(before)
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)
    changed = {name for name in before if not torch.equal(state[name], before[name])}
    assert changed == {f"readers.{i}.head.{part}" for i in range(2) for part in ("weight", "bias")}
    for name in changed:
        assert torch.equal(state[name][B_LINES + 1 :], before[name][B_LINES + 1 :])


def test_adapt_is_deterministic_and_each_group_stands_alone(network):
    one, two = cohort(seed=1), cohort(seed=2)
    first = adapt(network, [one, two], settings=SMALL)
    torch.rand(7)
    again = adapt(network, [one, two], settings=SMALL)
    alone = adapt(network, [two], settings=SMALL)
    for state, other in ((first[0], again[0]), (first[1], again[1]), (first[1], alone[0])):
        assert all(torch.equal(state[name], other[name]) for name in state)
    assert not torch.equal(first[0]["readers.0.head.weight"], first[1]["readers.0.head.weight"])


def test_ridge_recovers_severity_that_is_linear_in_a_feature():
    """40 cases whose first feature is their severity, among 5 features of noise."""
    generator = torch.Generator().manual_seed(0)
    grades = torch.arange(40) % 4
    features = torch.randn(40, 6, generator=generator)
    features[:, 0] = 5 + 0.3 * grades
    targets = default_collate(
        [recipe._severity_target({"severity": int(g), "a_lines": g < 2, "b_lines": g > 0}) for g in grades]
    )

    head = torch.nn.Linear(6, OUTPUTS)
    torch.nn.init.zeros_(head.weight)

    def fit(ridge):
        settings = SMALL.model_copy(update={"ridge": ridge, "ridge_signs": ridge})
        weight, bias = recipe._ridge(features, targets, head=head, settings=settings)
        return features @ weight.T + bias, weight

    outputs, weight = fit(1e-4)
    severity = expected_severity(outputs)
    assert float((severity - grades).abs().max()) < 0.3
    assert bool(((outputs[:, A_LINES] > 0) == (grades < 2)).all())
    assert bool(((outputs[:, B_LINES] > 0) == (grades > 0)).all())
    ladder = torch.stack([weight[k, 0] for k in range(4)])
    assert bool((ladder.diff() > 0).all())
    heavy, shrunk = fit(1e4)
    assert float(shrunk.abs().max()) < 1e-2
    assert float(expected_severity(heavy).std()) < 0.05
    assert float(expected_severity(heavy).mean()) == pytest.approx(1.5, abs=0.1)


def test_a_heavy_ridge_only_scales_what_the_phantoms_taught():
    grades = torch.arange(40) % 4
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    features[:, 0] += grades
    targets = default_collate(
        [recipe._severity_target({"severity": int(g), "a_lines": g < 2, "b_lines": g > 0}) for g in grades]
    )
    head = torch.nn.Linear(6, OUTPUTS)
    settings = SMALL.model_copy(update={"ridge": 1e5, "ridge_signs": 1e5})
    weight, _ = recipe._ridge(features, targets, head=head, settings=settings)
    ratio = weight[:4] / head.weight.detach()[:4]
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio), rtol=0.05, atol=1e-3)


def test_an_adapted_network_orders_clips_it_has_not_seen(network):
    (state,) = adapt(network, [cohort(count=16)], settings=SMALL.model_copy(update={"ridge": 0.1}))
    network.load_state_dict(state)
    new = [recipe._answer(network, labelled("n", s, seed=900 + s), settings=SMALL) for s in range(4)]
    assert new == sorted(new)
    assert new[3] - new[0] > 1.5


@pytest.fixture
def folds(network):
    """Three members fitted on the other folds' clips, and the clips held out from each."""
    held = [cohort(seed=k) for k in range(3)]
    rest = [[s for j in range(3) if j != k for s in held[j]] for k in range(3)]
    members = []
    for state in adapt(network, rest, settings=SMALL):
        members.append(copy.deepcopy(network))
        members[-1].load_state_dict(state)
    return members, held


@pytest.mark.parametrize("k", range(3))
def test_a_members_calibration_never_sees_the_labels_it_will_be_tested_on(folds, k):
    members, held = folds
    before = calibrate(members, held, settings=SMALL)
    relabelled = [*held]
    relabelled[k] = [{**sample, "severity": 3 if sample["severity"] else 1} for sample in held[k]]
    after = calibrate(members, relabelled, settings=SMALL)
    assert after[k] == before[k]
    assert all(after[j] != before[j] for j in range(3) if j != k)


def test_a_members_calibration_never_sees_the_pictures_it_will_be_tested_on(folds):
    members, held = folds
    before = calibrate(members, held, settings=SMALL)
    swapped = [cohort(count=7, seed=50), *held[1:]]
    assert calibrate(members, swapped, settings=SMALL)[0] == before[0]


def test_calibration_gives_answers_the_experts_mean_and_spread(folds, monkeypatch):
    members, held = folds
    monkeypatch.setattr(recipe, "_answer", lambda network, sample, *, settings: 1.2 + sample["severity"] / 5)
    for numbers in calibrate(members, held, settings=SMALL):
        assert numbers["gain"] == pytest.approx(5)
        assert numbers["offset"] == pytest.approx(-6)
        assert numbers["deviation"] == pytest.approx(0, abs=1e-6)


def test_calibration_of_a_constant_answer_stays_finite(folds, monkeypatch):
    members, held = folds
    monkeypatch.setattr(recipe, "_answer", lambda network, sample, *, settings: 1.4)
    for numbers in calibrate(members, held, settings=SMALL):
        assert numbers["offset"] + numbers["gain"] * 1.4 == pytest.approx(1.5)
        assert numbers["deviation"] == pytest.approx(math.sqrt(1.25))


@pytest.fixture(scope="module")
def clip():
    return canonicalise(simulate(3, Config(frames=5, size=128))[0])


def test_training_and_task_read_the_same_picture(clip):
    stored = prepare(clip)["frames"]
    assert stored.dtype == torch.uint8
    assert stored.shape == (5, 160, 128)
    assert torch.equal(stored, to_beam_space(clip, depth_samples=160, lines=128)[:, 0].to(torch.uint8))
    beams = as_beams(clip)
    assert beams.grid == Grid((1, 160, 128))
    assert beams.times_s == clip.times_s
    # the store rounds to whole grey levels
    assert float((beams.data[:, 0, 0] - stored.float()).abs().max()) < 1.0
    assert 0 <= float(beams.data.min()) <= float(beams.data.max()) <= 255


def test_views_show_the_whole_depth_and_parts_of_it_and_their_mirror_images():
    frames = torch.arange(100.0)[None, :, None].expand(2, 100, 8)
    seen = recipe.views(frames, size=(50, 8))
    assert seen.shape == (8, 2, 1, 50, 8)
    means = seen[:4].mean((1, 2, 3, 4))
    torch.testing.assert_close(means, torch.tensor([49.5, 39.5, 29.5, 49.5]), atol=0.5, rtol=0)
    torch.testing.assert_close(seen[4:], seen[:4].flip(-1))
    assert recipe.views(frames, size=(50, 8), mirror=False).shape[0] == 4


def test_recipe_is_whole_and_its_phantom_is_a_sample():
    assert TRAINING.datasets[0] == "blues"
    config = Config.model_validate(dict(TRAINING.phantom_settings))
    scan, truth = simulate(0, config)
    sample = {**truth, **TRAINING.prepare(canonicalise(scan)), "dataset": "simulated", "id": "s"}
    batch = default_collate([Clips([sample], SMALL)[0]] * 4)
    assert batch["has_severity"].tolist() == [1.0] * 4


def result_of(severity, expected, *, signs=(0.2, 0.9)):
    scores = tuple(
        Scores(name, ("absent", "present"), (1 - p, p), "present")
        for name, p in zip(("a_lines", "b_lines"), signs, strict=True)
    )
    measurements = (
        Measurement("severity", severity, "1"),
        Measurement("severity_expected", expected, "1"),
    )
    return Result("covid_severity", Grid((1, 8, 8)), Source(), scores, measurements)


def test_rows_and_scores_compare_with_the_experts(tmp_path):
    rows, groups = [], []
    for i in range(24):
        truth = i % 4
        reference = {"severity": truth, "a_lines": truth < 2, "b_lines": truth > 0}
        case = Case(str(i), f"p{i // 2}", tmp_path, reference, dataset="blues")
        signs = (0.9 if truth < 2 else 0.1, 0.8 if truth else 0.3)
        rows.append(recipe.row(result_of(truth, truth + 0.1, signs=signs), case))
        groups.append(case.patient_key)
    assert rows[1]["a_lines"] == 0.9
    assert rows[1]["true_b_lines"] == 1.0
    metrics = recipe.score(rows, groups)
    for name in ("kappa_quadratic", "spearman", "f1_weighted", "accuracy", "auc_a_lines", "auc_b_lines"):
        assert metrics[name].value == pytest.approx(1.0), name
    assert metrics["mae"].value == pytest.approx(0.1)
    counts = recipe.confusion([*rows, {**rows[3], "severity": 0.0}])
    assert np.diag(counts).tolist() == [6, 6, 6, 6]
    assert counts[3, 0] == 1


def test_what_is_undefined_takes_no_other_measure_with_it(tmp_path, caplog):
    rows, groups = [], []
    for i in range(12):
        reference = {"severity": i % 4, "a_lines": False, "b_lines": i % 4 > 0}
        case = Case(str(i), f"p{i}", tmp_path, reference, dataset="blues")
        rows.append(recipe.row(result_of(i % 4, i % 4 + 0.1, signs=(0.2, 0.8 if i % 4 else 0.3)), case))
        groups.append(case.patient_key)
    found = recipe.score(rows, groups)
    assert "auc_a_lines" not in found
    assert found["kappa_quadratic"].value == pytest.approx(1.0)
    assert "auc_a_lines is undefined" in caplog.text
