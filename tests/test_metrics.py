from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usvol import metrics
from usvol.errors import UncalibratedError
from usvol.metrics import Estimate, UndefinedMetricError, bootstrap_ci, column_ci
from usvol.scan import Grid

PREDICTED = [0, 1, 2, 2, 3, 1, 0, 3]
TRUE = [0, 1, 1, 2, 3, 0, 0, 2]


def test_class_metrics_on_a_table_worked_by_hand():
    # Reference class 0: 2 of 3 right, 1: 1 of 2, 2: 1 of 2, 3: 1 of 1.
    assert metrics.accuracy(PREDICTED, TRUE) == pytest.approx(5 / 8)
    assert metrics.balanced_accuracy(PREDICTED, TRUE) == pytest.approx((2 / 3 + 1 / 2 + 1 / 2 + 1) / 4)
    # F1: 4/5, 2/4, 2/4, 2/3 with supports 3, 2, 2, 1.
    assert metrics.f1_weighted(PREDICTED, TRUE) == pytest.approx((3 * 4 / 5 + 2 / 2 + 2 / 2 + 2 / 3) / 8)
    np.testing.assert_array_equal(
        metrics.confusion(PREDICTED, TRUE, classes=4),
        [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 1]],
    )


def test_kappa_agrees_with_the_weighted_table():
    table = metrics.confusion(PREDICTED, TRUE, classes=4).astype(float)
    weights = (np.arange(4)[:, None] - np.arange(4)) ** 2
    chance = np.outer(table.sum(1), table.sum(0)) / table.sum()
    assert metrics.kappa_quadratic(PREDICTED, TRUE) == pytest.approx(
        1 - (weights * table).sum() / (weights * chance).sum()
    )


def test_kappa_agrees_with_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics")
    import torch

    rng = np.random.default_rng(3)
    predicted, true = rng.integers(0, 4, 300), rng.integers(0, 4, 300)
    peer = torchmetrics.CohenKappa(task="multiclass", num_classes=4, weights="quadratic")
    expected = float(peer(torch.from_numpy(predicted), torch.from_numpy(true)))
    assert metrics.kappa_quadratic(predicted, true) == pytest.approx(expected, abs=1e-6)


def test_weighted_f1_and_auc_agree_with_torchmetrics():
    functional = pytest.importorskip("torchmetrics").functional
    import torch

    rng = np.random.default_rng(4)
    predicted, true = rng.integers(0, 4, 200), rng.integers(0, 3, 200)
    ours = metrics.f1_weighted(predicted, true)
    peer = functional.f1_score(
        torch.from_numpy(predicted),
        torch.from_numpy(true),
        task="multiclass",
        num_classes=4,
        average="weighted",
    )
    assert ours == pytest.approx(float(peer), abs=1e-6)
    scores, positive = rng.random(200).round(1), rng.integers(0, 2, 200)
    peer = functional.auroc(torch.from_numpy(scores), torch.from_numpy(positive), task="binary")
    assert metrics.auc(scores, positive) == pytest.approx(float(peer), abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30))
def test_kappa_is_symmetric_and_at_most_one(pairs):
    predicted, true = (np.array(column) for column in zip(*pairs, strict=True))
    try:
        value = metrics.kappa_quadratic(predicted, true)
    except UndefinedMetricError:
        assert len({*predicted, *true}) == 1
        return
    assert -1.0 - 1e-9 <= value <= 1.0
    assert value == pytest.approx(metrics.kappa_quadratic(true, predicted))


def test_rank_metrics_depend_on_order_alone():
    score = np.array([0.1, 0.4, 0.35, 0.8, 0.8])
    assert metrics.auc(score, [0, 0, 1, 1, 0]) == pytest.approx((1 + 0 + 0 + 1 + 1 + 0.5) / 6)
    assert metrics.spearman(score, np.exp(score)) == pytest.approx(1.0)
    assert metrics.spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert metrics.spearman(score, -score) == pytest.approx(-1.0)


def test_errors_in_their_own_unit():
    assert metrics.mae([1.0, 4.0], [2.0, 2.0]) == 1.5
    assert metrics.frame_error([10, 20], [12, 19]) == 1.5


@pytest.mark.parametrize(
    ("function", "first", "second"),
    [
        (metrics.kappa_quadratic, [1, 1], [1, 1]),
        (metrics.spearman, [1, 1, 1], [1, 2, 3]),
        (metrics.auc, [0.2, 0.3], [1, 1]),
        (metrics.mae, [], []),
    ],
)
def test_undefined_is_an_error_and_never_nan(function, first, second):
    with pytest.raises(UndefinedMetricError):
        function(first, second)


@pytest.mark.parametrize(
    "function", [metrics.mae, metrics.spearman, metrics.auc, metrics.kappa_quadratic, metrics.accuracy]
)
def test_nan_is_refused(function):
    with pytest.raises(ValueError, match="NaN"):
        function([0, math.nan, 1], [0, 1, 1])


def test_classes_must_be_whole_numbers_and_in_range():
    with pytest.raises(ValueError, match="integers"):
        metrics.accuracy([0.5, 1], [0, 1])
    with pytest.raises(ValueError, match="4 classes"):
        metrics.confusion([4], [0], classes=4)
    with pytest.raises(ValueError, match="class names"):
        metrics.accuracy(["covid"], ["covid"])


def test_dice_of_cubes_that_overlap_by_half():
    first, second = np.zeros((2, 8, 8, 8), bool)
    first[2:4], second[3:5] = True, True
    assert metrics.dice(first, second) == 0.5
    assert metrics.dice(first, first) == 1.0
    assert metrics.dice(first, np.zeros_like(first)) == 0.0
    assert metrics.dice(np.zeros_like(first), np.zeros_like(first)) == 1.0


def test_surface_distances_are_in_mm_along_the_right_axis():
    first, second = np.zeros((2, 12, 12, 12), bool)
    first[4:6, 4:6, 4:6] = True
    second[7:9, 4:6, 4:6] = True
    grid = Grid((12, 12, 12), spacing_mm=(2.0, 0.5, 0.25))
    assert metrics.hd95_mm(first, second, grid=grid) == pytest.approx(6.0)
    # Every voxel of a 2-voxel cube lies on its surface: half are 4 mm from the other cube, half 6 mm.
    assert metrics.asd_mm(first, second, grid=grid) == pytest.approx(5.0)
    doubled = Grid((12, 12, 12), spacing_mm=(4.0, 1.0, 0.5))
    assert metrics.hd95_mm(first, second, grid=doubled) == pytest.approx(12.0)


def test_surface_distance_on_a_planar_grid_ignores_the_placeholder_z():
    first, second = np.zeros((2, 1, 16, 16), bool)
    first[0, 4:8, 4:8] = True
    second[0, 4:8, 7:11] = True
    grid = Grid((1, 16, 16), spacing_mm=(9.0, 1.0, 0.5))
    assert metrics.hd95_mm(first, second, grid=grid) == pytest.approx(1.5)


def test_surface_distance_of_empty_masks_and_without_scale():
    grid = Grid((3, 4, 12), spacing_mm=(1.0, 1.0, 1.0))
    empty = np.zeros(grid.shape, bool)
    full = ~empty
    assert metrics.hd95_mm(empty, empty, grid=grid) == 0.0
    assert metrics.asd_mm(empty, full, grid=grid) == pytest.approx(13.0)
    with pytest.raises(UncalibratedError):
        metrics.hd95_mm(full, full, grid=Grid((3, 4, 12)))


def test_bootstrap_resamples_patients_and_not_clips():
    # Ten clips each of ten patients, all clips of a patient alike: the spread is that of ten patients.
    patients = np.repeat(np.arange(10), 10)
    error = np.repeat(np.arange(10.0), 10)
    zero = np.zeros(100)
    clustered = bootstrap_ci(metrics.mae, (error, zero), groups=patients.tolist())
    naive = bootstrap_ci(metrics.mae, (error, zero), groups=list(range(100)))
    assert clustered.value == naive.value == 4.5
    half_width = 1.96 * np.std(np.arange(10)) / math.sqrt(10)
    assert clustered.high - clustered.low == pytest.approx(2 * half_width, rel=0.1)
    assert naive.high - naive.low == pytest.approx(2 * half_width / math.sqrt(10), rel=0.1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_bootstrap_interval_holds_the_value_and_repeats(seed):
    rng = np.random.default_rng(seed)
    rows = (rng.random(30), rng.random(30))
    groups = rng.integers(0, 8, 30).tolist()
    first = bootstrap_ci(metrics.mae, rows, groups=groups, n=200, seed=seed)
    assert first.low <= first.value <= first.high
    assert first == bootstrap_ci(metrics.mae, rows, groups=groups, n=200, seed=seed)


def test_bootstrap_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(11)
    hits = 0
    for trial in range(200):
        effect = np.repeat(rng.normal(size=40), 3)
        rows = (np.abs(effect + 5), np.zeros(120))
        interval = bootstrap_ci(
            metrics.mae, rows, groups=np.repeat(np.arange(40), 3).tolist(), n=200, seed=trial
        )
        hits += interval.low <= 5.0 <= interval.high
    assert 0.87 <= hits / 200 <= 0.99


def test_bootstrap_drops_few_undefined_draws_and_refuses_many():
    rows = (np.linspace(0, 1, 12), np.array([0, 1] * 6))
    assert isinstance(bootstrap_ci(metrics.auc, rows, groups=list(range(12)), n=300), Estimate)
    lonely = (np.linspace(0, 1, 12), np.array([1] + [0] * 11))
    with pytest.raises(UndefinedMetricError, match="draws of patients"):
        bootstrap_ci(metrics.auc, lonely, groups=list(range(12)), n=300)


@pytest.mark.parametrize(
    ("rows", "groups", "message"),
    [
        (([1.0, math.nan], [1.0, 1.0]), ["a", "b"], "NaN"),
        (([1.0, 2.0], [1.0, 1.0]), ["a", "a"], "two patients"),
        (([1.0, 2.0], [1.0, 1.0]), ["a"], "groups"),
    ],
)
def test_bootstrap_refuses(rows, groups, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_ci(metrics.mae, rows, groups=groups, n=10)


def test_a_column_has_the_interval_of_the_bootstrap():
    values, patients = np.linspace(0, 1, 12) ** 2, list("aabbccddeeff")
    column = list(zip(values.tolist(), patients, strict=True))
    assert column_ci("error_mm", column) == {"error_mm": bootstrap_ci(np.mean, (values,), groups=patients)}
    median = column_ci("median_mm", column, statistic=np.median)
    assert median == {"median_mm": bootstrap_ci(np.median, (values,), groups=patients)}


def test_a_column_without_an_interval_is_left_out():
    def undefined(values: np.ndarray) -> float:
        raise UndefinedMetricError(f"of {values.size} cases")

    assert column_ci("error_mm", []) == {}
    assert column_ci("error_mm", [(1.0, "a"), (2.0, "a")]) == {}
    assert column_ci("error_mm", [(1.0, "a"), (2.0, "b")], statistic=undefined) == {}
    with pytest.raises(ValueError, match="NaN"):
        column_ci("error_mm", [(math.nan, "a"), (2.0, "b")])


def test_agreement_of_continuous_values_worked_by_hand():
    predicted, true = [52.0, 40.0, 63.0, 30.0], [50.0, 44.0, 60.0, 31.0]  # differences 2, -4, 3, -1
    assert metrics.bias(predicted, true) == 0.0
    assert metrics.rmse(predicted, true) == pytest.approx(math.sqrt(30 / 4))
    spread = math.sqrt(30 / 3)
    assert metrics.agreement_limit(predicted, true, side=1) == pytest.approx(1.96 * spread)
    assert metrics.agreement_limit(predicted, true, side=-1) == pytest.approx(-1.96 * spread)
    variance = sum((t - np.mean(true)) ** 2 for t in true)
    assert metrics.r_squared(predicted, true) == pytest.approx(1 - 30 / variance)
    assert metrics.r_squared(true, true) == 1.0
    with pytest.raises(UndefinedMetricError):
        metrics.r_squared([1.0, 2.0], [3.0, 3.0])


def test_events_are_paired_one_to_one_within_the_tolerance():
    assert metrics.matched_events([10, 31, 50], [12, 30], tolerance=5) == [(0, 0), (1, 1)]
    assert metrics.matched_events([10, 11], [10], tolerance=5) == [(0, 0)]
    # as many pairs as can be, though 11 is nearer to 10 than 16 is
    assert metrics.matched_events([11, 16], [10, 14], tolerance=6) == [(0, 0), (1, 1)]
    assert metrics.matched_events([3], [9], tolerance=5) == []
    assert metrics.matched_events([], [9], tolerance=5) == []


def test_shares_are_pooled_over_cases():
    assert metrics.pooled_share([1, 0, 3], [2, 0, 4]) == pytest.approx(4 / 6)
    with pytest.raises(UndefinedMetricError):
        metrics.pooled_share([0], [0])
