"""Compare predictions with references: one pure function per metric, and 95 % intervals over patients.

Vectors have one entry per case. Classes are the integers 0 … k-1. A metric that the data leave undefined
(one class only, no variance, nothing to divide by) raises ``UndefinedMetricError``: none returns NaN.
The definitions follow Metrics Reloaded (Maier-Hein et al., Nat Methods 2024) and agree with scikit-learn
where it has them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from usvol.scan import Grid

UNDEFINED_SHARE_MAX = 0.1


class UndefinedMetricError(ValueError):
    """The data leave the metric without a value."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic and its interval, in the unit of the statistic."""

    value: float
    low: float
    high: float


def bootstrap_ci(
    statistic: Callable[..., float],
    rows: Sequence[ArrayLike],
    *,
    groups: Sequence[Hashable],
    n: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Return ``statistic(*rows)`` with its 95 % percentile interval over resampled patients.

    Whole groups are drawn with replacement (cluster bootstrap, Davison & Hinkley 1997, §3.8), because
    the clips of one patient are no independent cases. Draws that leave the statistic undefined are left
    out; if they are more than a tenth, the interval would be a fiction and is refused.

    Args:
        statistic: function of one array per entry of ``rows``.
        rows: equally long arrays, one entry per case along the first axis.
        groups: the patient of each case.
        n: number of draws.
        seed: of the draws; same seed, same interval.

    Raises:
        ValueError: NaN or infinite values, unequal lengths, or fewer than two groups.
        UndefinedMetricError: the statistic is undefined on all cases or on too many draws.

    Example:
        >>> bootstrap_ci(mae, ([1.0, 2.0, 4.0], [1.0, 2.0, 3.0]), groups=["a", "a", "b"], n=100)
        Estimate(value=0.3333333333333333, low=0.0, high=1.0)
    """
    columns = [_finite(column) for column in rows]
    members = _members(groups, columns)
    value = float(statistic(*columns))
    if not math.isfinite(value):
        raise UndefinedMetricError(f"the statistic is {value} on all {len(groups)} cases")
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(n):
        chosen = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        try:
            draws.append(float(statistic(*(column[chosen] for column in columns))))
        except UndefinedMetricError:
            continue
    if len(draws) < (1 - UNDEFINED_SHARE_MAX) * n:
        raise UndefinedMetricError(f"the statistic is undefined on {n - len(draws)} of {n} draws of patients")
    low, high = np.percentile(draws, (2.5, 97.5))
    return Estimate(value, float(low), float(high))


def column_ci(
    name: str,
    column: Sequence[tuple[float, Hashable]],
    *,
    statistic: Callable[..., float] = np.mean,
) -> dict[str, Estimate]:
    """Return ``{name: estimate}``, by default of the mean, for one column of a table of cases.

    Nothing is returned, rather than a number without an interval, for fewer than two patients and where the
    statistic is undefined. The draws are those of ``bootstrap_ci`` for seed 0.

    Args:
        name: of the measure, with its unit.
        column: value and patient of each case that has the value.
        statistic: function of the array of values.

    Raises:
        ValueError: NaN or infinite values.

    Example:
        >>> column_ci("error_mm", [(1.0, "a"), (1.0, "b")])
        {'error_mm': Estimate(value=1.0, low=1.0, high=1.0)}
        >>> column_ci("error_mm", [(1.0, "a"), (3.0, "a")])
        {}
    """
    groups = [group for _, group in column]
    if len(set(groups)) < 2:
        return {}
    values = np.asarray([value for value, _ in column], float)
    try:
        return {name: bootstrap_ci(statistic, (values,), groups=groups)}
    except UndefinedMetricError:
        return {}


def dice(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Return the Dice overlap (0-1) of two masks of any equal shape; 1 when both are empty."""
    predicted, true = _masks(prediction, reference)
    total = int(predicted.sum()) + int(true.sum())
    return 2.0 * int((predicted & true).sum()) / total if total else 1.0


def hd95_mm(prediction: ArrayLike, reference: ArrayLike, *, grid: Grid) -> float:
    """Return the 95th percentile Hausdorff distance in mm of two masks ``z y x`` on ``grid``.

    The larger of the two directed percentiles, by MONAI. 0 when both masks are empty; the diagonal of
    the grid when one is (the worst case, as Metrics Reloaded advises).

    Raises:
        UncalibratedError: ``grid`` carries no scale.
    """
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    return _surface_distance(compute_hausdorff_distance, prediction, reference, grid, percentile=95.0)


def asd_mm(prediction: ArrayLike, reference: ArrayLike, *, grid: Grid) -> float:
    """Return the average symmetric surface distance in mm of two masks ``z y x`` on ``grid``.

    By MONAI; empty masks and missing scale as for ``hd95_mm``.
    """
    from monai.metrics.surface_distance import compute_average_surface_distance

    return _surface_distance(compute_average_surface_distance, prediction, reference, grid, symmetric=True)


def confusion(prediction: ArrayLike, reference: ArrayLike, *, classes: int) -> NDArray[np.int64]:
    """Count cases: entry ``[i, j]`` holds those of reference class i that were called j."""
    predicted, true = _classes(prediction, reference)
    if predicted.max() >= classes or true.max() >= classes:
        raise ValueError(f"{classes} classes, but labels reach {max(predicted.max(), true.max())}")
    return np.bincount(true * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def accuracy(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Return the share (0-1) of cases called right."""
    predicted, true = _classes(prediction, reference)
    return float((predicted == true).mean())


def balanced_accuracy(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Return the mean sensitivity (0-1) over the classes that occur in the reference."""
    predicted, true = _classes(prediction, reference)
    return float(np.mean([(predicted[true == k] == k).mean() for k in np.unique(true)]))


def f1_weighted(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Return the F1 score (0-1) averaged over classes by their frequency in the reference."""
    predicted, true = _classes(prediction, reference)
    total = 0.0
    for k in np.unique(true):
        hits = int(((predicted == k) & (true == k)).sum())
        support = int((true == k).sum())
        total += support * 2 * hits / (support + int((predicted == k).sum()))
    return total / true.size


def kappa_quadratic(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Return Cohen's kappa with quadratic weights (Cohen 1968), at most 1, 0 at chance.

    Raises:
        UndefinedMetricError: prediction and reference are one and the same constant.
    """
    predicted, true = _classes(prediction, reference)
    observed = float(((predicted - true) ** 2).mean())
    # Chance disagreement, E[(p - t)²] for independent p and t with the observed marginals.
    expected = float(predicted.var() + true.var() + (predicted.mean() - true.mean()) ** 2)
    if expected == 0:
        raise UndefinedMetricError("kappa needs two classes, and every case is of one")
    return 1.0 - observed / expected


def spearman(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Return Spearman's rank correlation (-1 to 1), ties by mean rank.

    Raises:
        UndefinedMetricError: one of the two is constant.
    """
    from scipy.stats import rankdata

    predicted, true = _pair(prediction, reference)
    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        raise UndefinedMetricError("a rank correlation needs values that differ")
    return float(np.corrcoef(rankdata(predicted), rankdata(true))[0, 1])


def auc(score: ArrayLike, reference: ArrayLike) -> float:
    """Return the area under the ROC curve (0-1): a positive case scores above a negative one.

    Args:
        score: any real number per case; ties count half (Mann-Whitney).
        reference: 1 positive, 0 negative.

    Raises:
        UndefinedMetricError: only one class occurs.
    """
    from scipy.stats import rankdata

    scores, true = _pair(score, reference)
    if not np.isin(true, (0, 1)).all():
        raise ValueError("the reference of an AUC is 0 or 1")
    positives = int(true.sum())
    negatives = true.size - positives
    if not positives or not negatives:
        raise UndefinedMetricError("an AUC needs positive and negative cases")
    ranks = float(rankdata(scores)[true == 1].sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def mae(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Return the mean absolute error, in the unit of the values."""
    predicted, true = _pair(prediction, reference)
    return float(np.abs(predicted - true).mean())


def rmse(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Return the root mean square error, in the unit of the values."""
    predicted, true = _pair(prediction, reference)
    return float(np.sqrt(np.mean((predicted - true) ** 2)))


def bias(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Return the mean of prediction less reference, in the unit of the values."""
    predicted, true = _pair(prediction, reference)
    return float((predicted - true).mean())


def agreement_limit(prediction: ArrayLike, reference: ArrayLike, *, side: int) -> float:
    """Return the lower (``side`` -1) or upper (1) 95 % limit of agreement (Bland & Altman, Lancet 1986).

    Raises:
        UndefinedMetricError: fewer than two cases.
    """
    predicted, true = _pair(prediction, reference)
    if predicted.size < 2:
        raise UndefinedMetricError("limits of agreement need two cases")
    difference = predicted - true
    return float(difference.mean() + side * 1.96 * difference.std(ddof=1))


def r_squared(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Return the coefficient of determination, at most 1; 0 is as good as the reference's mean.

    Raises:
        UndefinedMetricError: the reference is constant.
    """
    predicted, true = _pair(prediction, reference)
    spread = float(((true - true.mean()) ** 2).sum())
    if spread == 0:
        raise UndefinedMetricError("a coefficient of determination needs references that differ")
    return 1.0 - float(((predicted - true) ** 2).sum()) / spread


def pooled_share(parts: ArrayLike, totals: ArrayLike) -> float:
    """Return the sum of parts over the sum of totals: precision, recall or a mean error pooled over cases.

    Raises:
        UndefinedMetricError: the totals are all 0.
    """
    part, total = _pair(parts, totals)
    if total.sum() == 0:
        raise UndefinedMetricError("nothing was counted")
    return float(part.sum() / total.sum())


def matched_events(prediction: ArrayLike, reference: ArrayLike, *, tolerance: float) -> list[tuple[int, int]]:
    """Pair predicted with true events, one to one: positions in both, as many pairs as can be.

    Among pairings within ``tolerance`` (in the unit of the events) the one of least total distance is taken
    (Hungarian method, Kuhn 1955). What stays alone was missed or made up.

    Example:
        >>> matched_events([10, 31, 50], [12, 30], tolerance=5)
        [(0, 0), (1, 1)]
    """
    from scipy.optimize import linear_sum_assignment

    predicted, true = np.asarray(prediction, float), np.asarray(reference, float)
    if predicted.size == 0 or true.size == 0:
        return []
    distance = np.abs(predicted[:, None] - true[None])
    # Beyond the tolerance no pair is worth having, whatever it spares others.
    far = (distance.size + 1.0) * (tolerance + 1.0)
    rows, columns = linear_sum_assignment(np.where(distance <= tolerance, distance, far))
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(i, j) for i, j in pairs if distance[i, j] <= tolerance]


def frame_error(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Return the mean absolute difference, in frames, of event indices such as ED or ES."""
    predicted, true = _classes(prediction, reference)
    return float(np.abs(predicted - true).mean())


def _surface_distance(
    distance: Callable[..., object],
    prediction: ArrayLike,
    reference: ArrayLike,
    grid: Grid,
    **options: object,
) -> float:
    import torch

    spacing_mm = grid.require_spacing_mm("a surface distance")
    predicted, true = _masks(prediction, reference)
    if predicted.shape != tuple(grid.shape):
        raise ValueError(f"masks of shape {predicted.shape} do not lie on a grid of {grid.shape}")
    if not predicted.any() or not true.any():
        both_empty = not predicted.any() and not true.any()
        return (
            0.0 if both_empty else math.hypot(*(n * s for n, s in zip(grid.shape, spacing_mm, strict=True)))
        )
    planar = grid.is_planar
    pair = [torch.from_numpy(mask[0] if planar else mask)[None, None] for mask in (predicted, true)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="monai")
        value = distance(
            *pair, include_background=True, spacing=list(spacing_mm[1:] if planar else spacing_mm), **options
        )
    return float(value)  # type: ignore[arg-type]


def _finite(values: ArrayLike) -> NDArray:
    array = np.asarray(values)
    if array.dtype == object or array.dtype.kind in "US":
        raise ValueError("metrics compare numbers; map class names to integers first")
    if array.size == 0 or array.ndim == 0:
        raise UndefinedMetricError("a metric needs at least one case")
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {array.size} values are NaN or infinite")
    return array


def _pair(prediction: ArrayLike, reference: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    predicted, true = _finite(prediction).astype(float), _finite(reference).astype(float)
    if predicted.ndim != 1 or predicted.shape != true.shape:
        raise ValueError(f"one value per case is needed in both, got shapes {predicted.shape}, {true.shape}")
    return predicted, true


def _classes(prediction: ArrayLike, reference: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    predicted, true = _pair(prediction, reference)
    for values in (predicted, true):
        if (values != np.floor(values)).any() or values.min() < 0:
            raise ValueError("classes and frames are the integers 0, 1, 2, …")
    return predicted.astype(np.int64), true.astype(np.int64)


def _masks(prediction: ArrayLike, reference: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    predicted, true = np.asarray(prediction), np.asarray(reference)
    if predicted.shape != true.shape:
        raise ValueError(f"masks differ in shape: {predicted.shape}, {true.shape}")
    return predicted.astype(bool), true.astype(bool)


def _members(groups: Sequence[Hashable], columns: Sequence[NDArray]) -> list[NDArray[np.int64]]:
    if not columns or any(len(column) != len(groups) for column in columns):
        raise ValueError(f"{len(groups)} groups for columns of {[len(column) for column in columns]} cases")
    of_group: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        of_group.setdefault(group, []).append(index)
    if len(of_group) < 2:
        raise ValueError("a bootstrap over patients needs at least two patients")
    return [np.asarray(indices) for indices in of_group.values()]
