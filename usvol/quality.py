"""Tell scans that a network was not made for: far from its training set, dark, frozen, saturated, no sector.

A network answers any input, and often surely where it has learnt nothing. So its own features of a scan are
compared with those of its training cases (Mahalanobis distance, Lee et al., NeurIPS 2018, with the shrunk
covariance of Ledoit & Wolf, J Multivariate Anal 88:365, 2004). The limit is the operating point: a stated
share of held-out cases of the training kind lies beyond it. The statistics travel with the weights.

Chosen by trial against the distance to the 5th nearest training case (Sun et al., ICML 2022), on features of
``covid_severity``: with limits at 5 % false alarms, it flagged 65 % of lung clips of other devices (POCUS,
convex) instead of 31 to 55 %.

The checks of the image need no network and serve any task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from usvol.result import Flag, Severity
from usvol.scan import Scan

OUT_OF_DISTRIBUTION = "out_of_distribution"

_PREFIX = "quality."
_FLOOR = 0.05  # of the median deviation: features that hardly vary in training would else decide alone
_FAR = 2.0  # limits: beyond this the flag is severe
_FRAMES, _SAMPLES = 16, 1 << 18  # frames, and samples of each, that the image checks look at
_DARK = 4.0 / 255  # of white: below this mean, a picture shows next to nothing
_STILL = 0.05 / 255  # of white: mean change between frames of a frozen clip
_SATURATED = 0.25  # share of samples at white


@dataclass(frozen=True, slots=True, eq=False)
class FeatureStatistics:
    """What the features of training cases look like, and how far is too far.

    Attributes:
        centre: mean of each feature (d).
        log_deviation: logarithm of each feature's standard deviation (d).
        whitening: inverse root of the shrunk correlation of the features (d, d), symmetric.
        limit: distance beyond which a case is out of distribution.
        beyond: held-out cases whose distance is at or beyond the limit.
        held_out: number of held-out cases the limit was set on.
    """

    centre: Tensor
    log_deviation: Tensor
    whitening: Tensor
    limit: float
    beyond: int
    held_out: int

    @property
    def false_alarm_rate(self) -> float:
        """Chance that a new case of the training kind is flagged (exact for exchangeable cases)."""
        return self.beyond / (self.held_out + 1)


def fit(features: Tensor, held_out: Tensor, *, false_alarm_rate: float = 0.01) -> FeatureStatistics:
    """Describe the features of training cases, and set the limit on cases held out from training.

    The limit is the k-th largest held-out distance with k = false_alarm_rate × (n + 1), so that at most that
    share of new cases of the same kind is flagged (conformal p-value; Vovk et al. 2005). With fewer held-out
    cases than the rate needs, k is 1: their largest distance, at a rate of 1 / (n + 1).

    Args:
        features: one row per training case (n, d), n at least 2; a few hundred columns at most, for the
            file keeps d × d numbers.
        held_out: the same of cases the network was not trained on (m, d), of the same kind.
        false_alarm_rate: wanted share of in-distribution cases that are flagged, 0-1.

    Raises:
        ValueError: too few rows, other widths, or values that are not finite.

    Example:
        >>> rows = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
        >>> statistics = fit(rows[:200], rows[200:])
        >>> round(statistics.false_alarm_rate, 2), judge(rows[0], statistics) is None
        (0.01, True)
        >>> judge(rows[0] + 9, statistics).code
        'out_of_distribution'
    """
    features, held_out = features.double(), held_out.double()
    if features.ndim != 2 or features.shape[0] < 2 or held_out.ndim != 2 or held_out.shape[0] < 1:
        raise ValueError(
            f"needs (n >= 2, d) and (m >= 1, d), got {tuple(features.shape)}, {tuple(held_out.shape)}"
        )
    if features.shape[1] != held_out.shape[1]:
        raise ValueError(f"{features.shape[1]} features in training, {held_out.shape[1]} in held-out cases")
    if not bool(features.isfinite().all() and held_out.isfinite().all()):
        raise ValueError("features must be finite")
    centre, deviation = features.mean(0), features.std(0)
    positive = deviation[deviation > 0]
    floor = float(positive.median()) * _FLOOR if len(positive) else 1.0
    deviation = deviation.clamp(min=max(floor, 1e-7))
    statistics = FeatureStatistics(
        centre=_coarse_and_fine(centre).sum(0),
        log_deviation=_as_stored(deviation.log()),
        whitening=_as_stored(_inverse_root(_shrunk((features - centre) / deviation))),
        limit=math.inf,
        beyond=0,
        held_out=len(held_out),
    )
    distances = distance(held_out, statistics).sort(descending=True).values
    beyond = max(1, min(len(distances), math.floor(false_alarm_rate * (len(distances) + 1) + 1e-9)))
    return FeatureStatistics(
        statistics.centre,
        statistics.log_deviation,
        statistics.whitening,
        limit=float(_as_stored(distances[beyond - 1])),
        beyond=beyond,
        held_out=len(held_out),
    )


def distance(features: Tensor, statistics: FeatureStatistics) -> Tensor:
    """Return the Mahalanobis distance over √d of features ``… d``: at most about 1 for a training case."""
    centred = (features.float().cpu() - statistics.centre) / statistics.log_deviation.exp()
    return (centred @ statistics.whitening).square().mean(-1).sqrt()


def judge(features: Tensor, statistics: FeatureStatistics) -> Flag | None:
    """Flag a case (features ``d``) that lies beyond the limit; None for one that does not.

    Features that are not finite are flagged as well. Beyond twice the limit the flag is severe.
    """
    ratio = float(distance(features.flatten(), statistics)) / max(statistics.limit, 1e-12)
    if ratio <= 1:
        return None
    how_far = f"{ratio:.1f} times the limit" if math.isfinite(ratio) else "not finite"
    message = (
        f"Unlike the scans this network was trained on: the distance of its features is {how_far}. "
        f"The limit flags {statistics.false_alarm_rate:.1%} of scans like those of training "
        f"(set on {statistics.held_out} held-out ones). Do not rely on the findings."
    )
    severe = not ratio <= _FAR
    return Flag(OUT_OF_DISTRIBUTION, message, Severity.SEVERE if severe else Severity.WARNING)


def to_tensors(statistics: FeatureStatistics) -> dict[str, Tensor]:
    """Return the statistics as tensors for a weights file; float16 storage loses nothing."""
    return {
        f"{_PREFIX}centre": _coarse_and_fine(statistics.centre),
        f"{_PREFIX}log_deviation": statistics.log_deviation,
        f"{_PREFIX}whitening": statistics.whitening,
        f"{_PREFIX}limit": torch.tensor(statistics.limit),
        f"{_PREFIX}held_out": torch.tensor([statistics.beyond, statistics.held_out]),
    }


def from_tensors(state: Mapping[str, Tensor]) -> FeatureStatistics | None:
    """Read the statistics out of the tensors of a weights file; None where it has none."""
    if f"{_PREFIX}limit" not in state:
        return None
    beyond, held_out = (int(n) for n in state[f"{_PREFIX}held_out"])
    return FeatureStatistics(
        centre=state[f"{_PREFIX}centre"].float().sum(0),
        log_deviation=state[f"{_PREFIX}log_deviation"].float(),
        whitening=state[f"{_PREFIX}whitening"].float(),
        limit=float(state[f"{_PREFIX}limit"]),
        beyond=beyond,
        held_out=held_out,
    )


def image_checks(scan: Scan, *, white: float | None = None) -> tuple[Flag, ...]:
    """Look at the samples alone: too dark, frozen, saturated, and in planar scans no sector found.

    Samples outside the sector (``canonicalise`` sets them to 0) are left out where the scan's mask fits. In a
    volume the shape of the sector is never known, so its absence says nothing.

    Args:
        scan: canonical, or preprocessed.
        white: sample value of a white pixel; by default 255 for uint8, else one that 0.1 % of samples reach.
    """
    frames, mask = _looked_at(scan)
    black = min(0.0, float(frames.min()))
    if white is None:
        white = 255.0 if scan.data.dtype == torch.uint8 else _top(frames)
    reach = max(white - black, 1e-12)
    inside = (frames if mask is None else frames[..., mask]) - black
    found = []
    if not float(inside.mean()) >= _DARK * reach:
        message = "The picture is almost black; the findings mean little."
        found.append(Flag("too_dark", message, Severity.SEVERE))
    elif float((inside >= reach).float().mean()) > _SATURATED:
        message = f"More than {_SATURATED:.0%} of the picture is pure white: gain or export clipped it."
        found.append(Flag("saturated", message, Severity.WARNING))
    if len(frames) > 1 and float(frames.diff(dim=0).abs().mean()) < _STILL * reach:
        found.append(Flag("frozen", "The frames do not change: a frozen image?", Severity.WARNING))
    if scan.grid.is_planar and (scan.sector is None or scan.sector.shape == "unknown"):
        message = "No fan or rectangle of an ultrasound image was recognised."
        found.append(Flag("sector_unknown", message, Severity.WARNING))
    return tuple(found)


def _looked_at(scan: Scan) -> tuple[Tensor, Tensor | None]:
    """Thin a scan to a few frames of bounded size ``t c z y x`` (float), and its mask likewise."""
    count = min(_FRAMES, len(scan.data))
    chosen = torch.linspace(0, len(scan.data) - 1, count).round().long()
    step = math.ceil((math.prod(scan.grid.shape) / _SAMPLES) ** (1 / 3 if scan.grid.shape[0] > 1 else 1 / 2))
    thin = (..., slice(None, None, step if scan.grid.shape[0] > 1 else 1), *[slice(None, None, step)] * 2)
    mask = None if scan.sector is None else scan.sector.mask
    if mask is None or mask.numel() != math.prod(scan.grid.shape):
        return scan.data[thin][chosen].float(), None
    mask = mask.reshape(scan.grid.shape)[thin]
    return scan.data[thin][chosen].float(), mask if bool(mask.any()) else None


def _top(frames: Tensor) -> float:
    values = frames.flatten()
    return float(values.kthvalue(max(1, math.ceil(0.999 * len(values)))).values)


def _shrunk(standard: Tensor) -> Tensor:
    """Shrink the covariance of centred rows (n, d) towards c × identity (Ledoit & Wolf 2004)."""
    count, width = standard.shape
    covariance = standard.T @ standard / count
    scale = covariance.diagonal().mean()
    identity = torch.eye(width, dtype=standard.dtype)
    dispersion = (covariance - scale * identity).square().sum()
    # Mean squared distance of the rows' outer products from the covariance, without forming them.
    noise = (standard.square().sum(1).square().mean() - covariance.square().sum()) / count
    share = float((noise / dispersion).clamp(0, 1)) if float(dispersion) > 0 else 1.0
    return (1 - share) * covariance + share * scale * identity


def _inverse_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=1e-4).rsqrt()) @ vectors.T


def _coarse_and_fine(values: Tensor) -> Tensor:
    """Split into two float16 parts, for features whose mean is large against their deviation."""
    coarse = _as_stored(values)
    return torch.stack([coarse, _as_stored(values - coarse)])


def _as_stored(values: Tensor) -> Tensor:
    """Round to what a float16 weights file keeps, so that limits hold after reading it back."""
    return values.half().float()
