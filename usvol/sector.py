"""Find the insonified sector of a planar scan and fit its fan, from the scan's own statistics.

Around the sector a scanner paints one constant level; text, rulers, logos and calipers stay still while
tissue, even dark tissue, flickers with speckle and noise. Colour (Doppler boxes, coloured text) leaves the
scan's own tone curve. The edges of what remains are fitted with lines and arcs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from usvol.fan_fitting import FanFit, fan_mask, fit_fan
from usvol.scan import Fan, Grid, Scan, Sector

_FRAMES = 32  # frames looked at
_COLOUR_FRAMES = 8  # frames looked at for colour, at full size
_SIDE_PX = 512  # longer side of the search image
_NOISE = (2, 6, 12)  # grey levels by which a painted constant varies: video codecs, JPEG, dithered GIF
_WHITE = 255.0
_CHROMA = 36  # chroma distance from the scan's own tone curve that only colour reaches
_MOSTLY = 0.6  # of a sector
_MIN_AREA = 0.03  # of the image: less is no sector


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """What the frames of a planar scan do at each pixel (arrays ``y x``, 8-bit grey levels).

    Attributes:
        brightest, spread: temporal maximum, and maximum minus minimum, on every ``factor``-th pixel.
        coloured: True where a frame shows a colour, on every pixel.
        moves: whether the scan is a cine in which more than a little changes.
        factor: thinning; sample i is pixel ``factor * i + factor // 2``.
    """

    brightest: np.ndarray
    spread: np.ndarray
    coloured: np.ndarray
    moves: bool
    factor: int


def planar_sector(scan: Scan) -> tuple[Sector, FanFit | None]:
    """Find the sector of an image or cine; the fit says how well the fan explains its edges.

    ``shape`` is ``"unknown"`` and the mask True everywhere (colour excepted) where nothing can be told.
    """
    statistics = gather(scan.data[:, :, 0])
    shape, fit, mask = _shape(statistics, scan.grid)
    fan = _in_world(fit.fan, scan.grid) if fit is not None else None
    if statistics.coloured[mask].mean() < _MOSTLY:  # more is a colour picture, and no overlay
        mask = mask & ~statistics.coloured
    return Sector(mask=torch.from_numpy(mask), fan=fan, shape=shape), fit


def gather(data: Tensor) -> Statistics:
    """Gather temporal statistics from at most 32 frames of ``t c y x`` data, long sides thinned to 512 px."""
    factor = -(-max(data.shape[-2:]) // _SIDE_PX)
    frames = eight_bit(_some(data, _FRAMES)[..., factor // 2 :: factor, factor // 2 :: factor])
    grey = grey_levels(frames)
    brightest = grey.amax(0).numpy()
    spread = brightest - grey.amin(0).numpy()
    lit = brightest > _NOISE[0]
    moves = len(frames) > 1 and float((spread[lit] > _NOISE[0]).mean() if lit.any() else 0.0) > 0.2
    return Statistics(brightest, spread, _coloured(eight_bit(_some(data, _COLOUR_FRAMES))), moves, factor)


def _some(data: Tensor, count: int) -> Tensor:
    count = min(count, data.shape[0])
    return data[torch.linspace(0, data.shape[0] - 1, count).round().long()]


def eight_bit(data: Tensor) -> Tensor:
    """Map samples of any dtype to the uint8 grey levels of a screen, for looking at (not for measuring).

    Levels of 0-255 in a wider type are rounded, those of 0-1 multiplied by 255; others are scaled so that the
    darkest is 0 and the brightest 255 (of those from 0 on, 0 stays 0).
    """
    if data.dtype == torch.uint8:
        return data
    values = data.float()
    low, high = float(values.amin()), float(values.amax())
    if low >= 0 and 1 < high <= _WHITE:
        return values.round().to(torch.uint8)
    if low >= 0 and high <= 1:
        return (_WHITE * values).round().to(torch.uint8)
    black = low if low < 0 or low > _WHITE else 0.0
    return ((values - black) * (_WHITE / max(high - black, 1e-12))).round().to(torch.uint8)


def grey_levels(data: Tensor) -> Tensor:
    """Turn ``t c …`` samples (1 grey, 3 RGB, 4 RGBA) into grey ``t …``, dtype kept (ITU-R BT.601 luma)."""
    channels = data.shape[1]
    if channels < 3:
        return data[:, 0]
    red, green, blue = data[:, 0], data[:, 1], data[:, 2]
    if data.dtype == torch.uint8:
        # Weights of seven bits keep the sum within int16, four times faster than float.
        luma = red.to(torch.int16).mul_(38).add_(green, alpha=75).add_(blue, alpha=15)
        return luma.add_(64).bitwise_right_shift_(7).to(torch.uint8)
    luma = 0.299 * red.double() + 0.587 * green.double() + 0.114 * blue.double()
    return luma.to(data.dtype) if data.is_floating_point() else luma.round().to(data.dtype)


def _coloured(frames: Tensor) -> np.ndarray:
    """Mark pixels whose colour leaves the tone curve of the scan (a tinted grey map has one too)."""
    nothing = np.zeros(tuple(frames.shape[-2:]), dtype=bool)
    if frames.shape[1] < 3:
        return nothing
    red, green, blue = (frames[:, channel].to(torch.int16) for channel in range(3))
    chroma = torch.stack([red - green, blue - green])
    if int(chroma.abs().amax()) <= _CHROMA:
        return nothing
    tone = (grey_levels(frames) >> 3).int()
    usual = _tone_curve(chroma[..., ::4, ::4].flatten(1), tone[..., ::4, ::4].flatten())
    distance = (chroma - usual[:, tone]).abs_().amax(0)
    coloured = (distance > _CHROMA).any(0).numpy()
    # Chroma is stored at half resolution, so a coloured stroke is wider than its strongest pixels.
    return ndimage.binary_dilation(coloured, iterations=2)


def _tone_curve(chroma: Tensor, tone: Tensor) -> Tensor:
    """Tell the usual chroma (2, 32) at each of 32 grey tones: 0 unless the whole scan is tinted."""
    usual = torch.zeros(2, 32, dtype=torch.int16)
    lit = chroma[:, tone > 1]
    if lit.shape[1] == 0 or int(lit.median(dim=1).values.abs().amax()) <= _CHROMA // 3:
        return usual
    for level in torch.unique(tone).tolist():
        usual[:, level] = chroma[:, tone == level].median(dim=1).values
    return usual


def _tissue(statistics: Statistics, noise: int) -> np.ndarray:
    """Mark what may be insonified, on the thinned image; all True if nothing is painted around it."""
    brightest, spread = statistics.brightest, statistics.spread
    still = spread <= noise
    level = _painted_level(brightest, still, noise)
    if level is None:
        return np.ones_like(still)
    factor = statistics.factor
    lit = (np.abs(brightest.astype(np.int16) - level) > noise) | ~still
    if statistics.moves:
        lit &= ~(still & (brightest > level))
    else:
        lit &= brightest > level
    lit &= ~statistics.coloured[factor // 2 :: factor, factor // 2 :: factor]
    lit = ndimage.uniform_filter(lit.astype(np.float32), 3) > 0.5
    return _largest(ndimage.binary_opening(lit, iterations=1 if statistics.moves else 2))


def _painted_level(brightest: np.ndarray, still: np.ndarray, noise: int) -> int | None:
    """Tell the grey level painted around the sector, or None when the sector fills the image."""
    height, width = brightest.shape
    band = np.zeros_like(still)
    band_y, band_x = max(1, height // 50), max(1, width // 50)
    band[:band_y] = band[-band_y:] = True
    band[:, :band_x] = band[:, -band_x:] = True
    candidates = brightest[band & still]
    if candidates.size < 0.01 * band.sum():
        return None
    level = int(np.bincount(candidates, minlength=256).argmax())
    painted = still & (np.abs(brightest.astype(np.int16) - level) <= noise)
    return level if painted.mean() > 0.005 else None


def _largest(mask: np.ndarray) -> np.ndarray:
    """Keep the largest component, and others that shadows may have cut off from it."""
    labels = np.asarray(ndimage.label(mask)[0])  # type: ignore[index]
    if labels.max() <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept = sizes >= 0.1 * sizes.max()
    kept[0] = False
    return kept[labels]


def _shape(statistics: Statistics, grid: Grid) -> tuple[str, FanFit | None, np.ndarray]:
    """Try a fan at rising noise, then a rectangle; else keep everything."""
    size, factor, aspect = grid.shape[1:], statistics.factor, grid.step[2] / grid.step[1]
    tissues = []
    for noise in _NOISE:
        tissue = _tissue(statistics, noise)
        if tissue.all() or tissue.mean() < _MIN_AREA:
            continue
        fit = fit_fan(tissue, aspect=aspect)
        if fit is not None:
            fit = _scaled(fit, factor, aspect)
            return "fan", fit, fan_mask(fit.fan, size, aspect=aspect)
        tissues.append(tissue)
    box = _rectangle(tissues[0]) if tissues else None
    mask = np.ones(size, dtype=bool) if box is None else np.zeros(size, dtype=bool)
    if box is not None:
        top, bottom, left, right = (edge * factor for edge in box)
        mask[top:bottom, left:right] = True
    return ("unknown" if box is None else "linear"), None, mask


def _rectangle(tissue: np.ndarray) -> tuple[int, int, int, int] | None:
    """Find the box (top, bottom, left, right) if tissue fills it or borders on three of its sides."""
    rows, columns = np.flatnonzero(tissue.mean(1) > 0.02), np.flatnonzero(tissue.mean(0) > 0.02)
    if not len(rows) or not len(columns):
        return None
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    inner = np.asarray(ndimage.binary_fill_holes(tissue[top:bottom, left:right]))
    edges = (inner[:4].any(0), inner[-4:].any(0), inner[:, :4].any(1), inner[:, -4:].any(1))
    borders = sum(edge.mean() > 0.5 for edge in edges)
    return (top, bottom, left, right) if inner.mean() > 0.85 or borders >= 3 else None


def _scaled(fit: FanFit, factor: int, aspect: float) -> FanFit:
    """Map a fit on the smaller image to full-size pixels (sample i there is sample factor*i + factor//2)."""
    fan, offset = fit.fan, factor // 2
    apex = (fan.apex[0] * factor + offset, fan.apex[1] * factor + offset * aspect)
    moved = dataclasses.replace(
        fan, apex=apex, radius_min=fan.radius_min * factor, radius_max=fan.radius_max * factor
    )
    return dataclasses.replace(fit, fan=moved, residual_px=fit.residual_px * factor)


def _in_world(fan: Fan, grid: Grid) -> Fan:
    """Map a fan in pixels (x already in units of y) to the plane of its grid, in world units."""
    step = grid.step[1]
    _, y, x = grid.in_plane(np.asarray(grid.origin))
    return dataclasses.replace(
        fan,
        apex=(float(y) + fan.apex[0] * step, float(x) + fan.apex[1] * step),
        radius_min=fan.radius_min * step,
        radius_max=fan.radius_max * step,
    )
