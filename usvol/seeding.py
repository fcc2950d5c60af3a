"""Labels grown from a few seeds by the random walker: how to make training labels from clicks.

Each sample gets the structure that a random walker starting there reaches first, where walking across a
change of brightness is unlikely (Grady, IEEE TPAMI 28:1768, 2006). Looney et al. (ISBI 2017; JCI Insight 3,
2018) made their placental labels from seeds this way, before a network learnt them.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from usvol.errors import ConfigError, KindError
from usvol.resampling import resize, sample_on
from usvol.result import Labels
from usvol.scan import Grid, Scan, Shape3, Vec3

BACKGROUND = 255  # seed value of "none of the structures"

_SMALLEST_MARGIN = 4  # samples


@dataclass(frozen=True, slots=True)
class Walk:
    """How the walker goes.

    Attributes:
        beta: how unlikely it is to cross a change of brightness; higher keeps to edges, and to speckle.
        smoothing: Gaussian deviation that evens speckle out first, in smallest sample steps; 0 for none.
        margin: how far around the seeds labels may grow, as a share of the seeds' extent on each axis.
        max_samples: above this the walk is done on a coarser grid, which bounds memory (about 1 kB each).
    """

    beta: float = 3000.0
    smoothing: float = 1.0
    margin: float = 0.25
    max_samples: int = 1 << 18


def random_walker_labels(
    scan: Scan, seeds: Tensor, *, names: Mapping[int, str], walk: Walk | None = None
) -> Labels:
    """Grow labels from seeds, on the grid of the scan.

    Work is confined to the seeds' bounding box and a margin; beyond it all is background. A box of more than
    ``walk.max_samples`` is walked on a coarser grid; its probabilities are put back by linear interpolation.
    Anisotropic spacing counts as distance. Samples outside ``scan.sector``, if known, are background.

    Args:
        scan: one volume or image of one channel.
        seeds: ``z y x`` integers on the scan's grid: 0 unknown, a key of ``names``, or ``BACKGROUND``
            (see ``seeds_at`` for seeds from points).
        names: label value (1-254) to structure.
        walk: how; None for the defaults.

    Raises:
        KindError: the scan is a clip, or has several channels.
        ConfigError: seeds on another grid, of unknown values, or missing for a structure or the background;
            or a constant picture.

    Example:
        >>> data = torch.full((1, 1, 20, 24, 24), 40, dtype=torch.uint8)
        >>> data[..., 6:14, 8:16, 8:16] = 180
        >>> scan = Scan(data, Grid((20, 24, 24), (1.0, 1.0, 1.0)))
        >>> seeds = seeds_at(scan.grid, {1: [(10, 12, 12)], BACKGROUND: [(1, 1, 1), (18, 22, 22)]})
        >>> walk = Walk(smoothing=0)  # this picture has no speckle
        >>> int(random_walker_labels(scan, seeds, names={1: "placenta"}, walk=walk).data.sum())
        512
    """
    walk = walk or Walk()
    _check(scan, seeds, names)
    start, shape = _box(seeds, walk.margin)
    window = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
    grid = scan.grid.crop(start, shape)
    part = Scan(scan.data[(slice(None), slice(None), *window)].float(), grid)
    coarse = resize(part, _coarser(shape, walk.max_samples))
    usable = None if scan.sector is None else scan.sector.mask.reshape(scan.grid.shape)[window]
    values = [*sorted(names), BACKGROUND]
    marked = seeds[window]
    walkable = None
    if usable is not None:
        walkable = sample_on(usable[None, None], grid, target=coarse.grid, mode="nearest")[0, 0]
    carried = _carried(marked, grid, coarse.grid)
    chances = _walked(coarse, carried, usable=walkable, values=values, walk=walk)
    fine = sample_on(chances[None], coarse.grid, target=grid)[0]
    chosen = torch.tensor([*sorted(names), 0], dtype=torch.uint8)[fine.argmax(0)]
    # Argmax of zeros is the first structure: what no seed reaches is background.
    chosen[fine.amax(0) <= 0] = 0
    if usable is not None:
        chosen[~usable] = 0
    chosen[marked != 0] = torch.where(marked == BACKGROUND, 0, marked)[marked != 0].to(torch.uint8)
    labels = torch.zeros((1, *scan.grid.shape), dtype=torch.uint8)
    labels[(0, *window)] = chosen
    return Labels("random_walker", labels, scan.grid, dict(names))


def seeds_at(
    grid: Grid, points: Mapping[int, Sequence[Vec3]], *, radius: float = 0.0, are_indices: bool = False
) -> Tensor:
    """Return seeds ``z y x`` (uint8) with a ball of ``radius`` (world units: mm if calibrated) at each point.

    Args:
        grid: of the scan.
        points: seed value to points (z, y, x) in world coordinates, or in sample indices.
        radius: 0 marks the nearest sample only.
        are_indices: whether points are indices rather than world coordinates.

    Raises:
        ConfigError: a point outside the grid, or two values on one sample.
    """
    seeds = torch.zeros(grid.shape, dtype=torch.uint8)
    for value, places in points.items():
        for place in places:
            index = np.asarray(place, float) if are_indices else grid.to_index(np.asarray(place, float))
            nearest = np.floor(index + 0.5).astype(int)
            if (nearest < 0).any() or (nearest >= grid.shape).any():
                raise ConfigError(
                    f"Seed {value} at {tuple(place)} lies outside the scan, {grid.shape} samples."
                )
            for at in _ball(grid, nearest, radius):
                if int(seeds[at]) not in (0, value):
                    raise ConfigError(
                        f"Seeds {int(seeds[at])} and {value} meet at sample {at}. Move them apart, or make "
                        "the radius smaller."
                    )
                seeds[at] = value
    return seeds


def _ball(grid: Grid, centre: np.ndarray, radius: float) -> list[tuple[int, int, int]]:
    reach = [math.floor(radius / step) for step in grid.step]
    offsets = np.stack(np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"), -1).reshape(-1, 3)
    inside = np.linalg.norm(offsets * grid.step, axis=1) <= radius + 1e-9
    places = centre + offsets[inside]
    places = places[((places >= 0) & (places < grid.shape)).all(1)]
    return [(int(z), int(y), int(x)) for z, y, x in places]


def _check(scan: Scan, seeds: Tensor, names: Mapping[int, str]) -> None:
    if scan.data.shape[:2] != (1, 1):
        raise KindError(
            f"Seeds grow in one volume of one channel, not in {scan.data.shape[0]} frames of "
            f"{scan.data.shape[1]} channels. Pick a frame, or canonicalise the scan."
        )
    if tuple(seeds.shape) != tuple(scan.grid.shape):
        raise ConfigError(f"Seeds are {tuple(seeds.shape)} samples (z, y, x), the scan is {scan.grid.shape}.")
    if not names or not all(0 < value < BACKGROUND for value in names):
        raise ConfigError(f"Structures need values 1 to {BACKGROUND - 1}, got {sorted(names)}.")
    found = set(seeds.unique().tolist()) - {0}
    if strange := sorted(found - {*names, BACKGROUND}):
        raise ConfigError(f"Seeds hold the values {strange}; known are {sorted(names)} and {BACKGROUND}.")
    if missing := sorted({*names, BACKGROUND} - found):
        called = ", ".join(names.get(value, "the background (BACKGROUND)") for value in missing)
        raise ConfigError(f"No seed for {called}. Each structure and the background need at least one.")


def _box(seeds: Tensor, margin: float) -> tuple[tuple[int, int, int], Shape3]:
    """Return the first index and the shape of the seeds' bounding box with its margin."""
    start, shape = [], []
    for places, size in zip(seeds.nonzero().T, seeds.shape, strict=True):
        low, high = int(places.min()), int(places.max())
        wider = max(_SMALLEST_MARGIN, math.ceil(margin * (high - low)))
        start.append(max(0, low - wider))
        shape.append(min(size, high + wider + 1) - start[-1])
    return (start[0], start[1], start[2]), (shape[0], shape[1], shape[2])


def _coarser(shape: Shape3, max_samples: int) -> Shape3:
    factor = max(
        1.0, (math.prod(shape) / max_samples) ** (1 / sum(n > 1 for n in shape) if max(shape) > 1 else 1)
    )
    z, y, x = (max(1, math.floor(n / factor)) for n in shape)
    return (z, y, x)


def _carried(seeds: Tensor, grid: Grid, coarse: Grid) -> np.ndarray:
    """Put every seed into the coarse sample that holds it; where two values meet, none is left."""
    if coarse.shape == grid.shape:
        return seeds.numpy().astype(np.int32)
    carried = np.zeros(coarse.shape, np.int32)
    index = seeds.nonzero().numpy()
    places = np.floor((index + 0.5) * (np.array(coarse.shape) / grid.shape)).astype(int)
    values = seeds.numpy()[tuple(index.T)].astype(np.int32)
    meeting = np.zeros(coarse.shape, bool)
    for value in np.unique(values):
        at = tuple(places[values == value].T)
        meeting[at] |= carried[at] != 0
        carried[at] = value
    carried[meeting] = 0
    return carried


def _walked(
    coarse: Scan, seeds: np.ndarray, *, usable: Tensor | None, values: list[int], walk: Walk
) -> Tensor:
    """Return the chance of each of ``values`` at every sample: float32 ``value z y x``."""
    from skimage.segmentation import random_walker

    samples = coarse.data[0, 0].numpy()
    step = np.asarray(coarse.grid.step)
    low, high = np.quantile(samples[:: max(1, len(samples) // 64)], (0.005, 0.995))
    if not high > low:
        raise ConfigError("The picture around the seeds is constant: there is no edge to grow to.")
    samples = np.clip((samples - low) / (high - low), 0, 1)
    if walk.smoothing > 0:
        samples = ndimage.gaussian_filter(samples, walk.smoothing * step.min() / step)
    marks = np.zeros(seeds.shape, np.int32)
    for number, value in enumerate(values, 1):
        marks[seeds == value] = number
    present = sorted(set(np.unique(marks)) - {0})
    if len(present) < len(values):
        raise ConfigError(
            "Seeds of different structures lie so close together that they meet on the coarser grid. Move "
            "them apart, or raise max_samples."
        )
    if usable is not None:
        marks[~usable.numpy() & (marks == 0)] = -1
    if not (marks == 0).any():
        return torch.stack([torch.from_numpy(marks == number).float() for number in present])
    mode = "cg_mg" if importlib.util.find_spec("pyamg") else "cg_j"
    # prob_tol only silences a warning about rounding of the solver, which the choice of the largest bears.
    options = {"beta": walk.beta, "mode": mode, "prob_tol": 1.0, "return_full_prob": True}
    chances = random_walker(samples, marks, spacing=tuple(step / step.min()), **options)
    return torch.from_numpy(np.asarray(chances, np.float32))
