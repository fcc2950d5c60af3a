"""From envelope to grey: log compression, grey map, post filters, JPEG. All in beam space."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from usvol.simulation.probe import Imaging

_SPECKLE_DB = 5.57  # standard deviation of log-compressed Rayleigh speckle
_SOFT_DB = -7.0  # typical soft tissue, relative to bright tissue
_AUTO_DB = 25.0  # the most that automatic gain corrects
_TISSUE_AT = 0.6  # of the range: where bright tissue is shown at a gain of 0


def grey_levels(envelope: Tensor, imaging: Imaging) -> Tensor:
    """Compress an envelope ``r az el`` logarithmically, apply grey map and post filters: float32, 0-1."""
    level_db = 20 * torch.log10(envelope.clamp(min=1e-8))
    level_db += imaging.gain_db + (imaging.auto_gain * _offset_db(level_db) if imaging.auto_gain > 0 else 0.0)
    shown = (_TISSUE_AT + level_db / imaging.dynamic_range_db).clamp(0, 1)
    if imaging.smoothing > 0:
        shown = _despeckled(shown, imaging)
    if imaging.sharpening > 0:
        shown = _sharpened(shown, imaging.sharpening)
    return _mapped(shown, imaging)


def _offset_db(level_db: Tensor) -> float:
    """Gain that puts the upper quartile of all levels at that of soft tissue, as an operator would."""
    upper = float(torch.quantile(level_db[::3, ::2, ::2].flatten(), 0.75))
    return max(-_AUTO_DB, min(_AUTO_DB, _SOFT_DB - upper))


def _mapped(shown: Tensor, imaging: Imaging) -> Tensor:
    """Apply the grey map: reject, power, S-curve; together they span the curves that vendors offer."""
    kept = ((shown - imaging.reject) / (1 - imaging.reject)).clamp(0, 1).pow(imaging.gamma)
    curve = kept.square() * (3 - 2 * kept)
    return kept + imaging.contrast * (curve - kept)


def _mean(values: Tensor, width: int) -> Tensor:
    """Average over ``width`` samples along each axis that has as many."""
    size = [width if n >= width else 1 for n in values.shape]
    padding = [n // 2 for n in size]
    return F.avg_pool3d(values[None, None], size, 1, padding, count_include_pad=False)[0, 0]


def _despeckled(shown: Tensor, imaging: Imaging) -> Tensor:
    """Reduce speckle where the variance is that of speckle alone (Lee, IEEE PAMI 2(2), 1980, in the log)."""
    mean = _mean(shown, 3)
    variance = (_mean(shown.square(), 3) - mean.square()).clamp(min=0)
    speckle = (_SPECKLE_DB / imaging.dynamic_range_db) ** 2 / imaging.compounding
    keep = (1 - speckle / variance.clamp(min=1e-8)).clamp(min=0)
    return shown + imaging.smoothing * (1 - keep) * (mean - shown)


def _sharpened(shown: Tensor, strength: float) -> Tensor:
    """Enhance edges by an unsharp mask of five samples."""
    return (shown + strength * (shown - _mean(shown, 5))).clamp(0, 1)


def jpeg_compressed(beams: Tensor, quality: int) -> Tensor:
    """Return uint8 beams ``r az el`` as JPEG (ITU-T T.81) of each plane ``r az`` gives them back."""
    planes = beams.permute(2, 0, 1).contiguous().cpu().numpy()
    restored = np.empty_like(planes)
    for number, plane in enumerate(planes):
        stream = io.BytesIO()
        Image.fromarray(plane).save(stream, "JPEG", quality=quality)
        restored[number] = np.asarray(Image.open(stream))
    return torch.from_numpy(restored).to(beams.device).permute(1, 2, 0)
