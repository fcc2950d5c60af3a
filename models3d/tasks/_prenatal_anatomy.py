"""What anatomy allows of placenta, sac and fetus: the clean-up of ``prenatal``, and its surfaces."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from skimage.measure import marching_cubes
from torch import Tensor

from usvol.postprocessing import components_near, enclosed, large_components
from usvol.result import Labels, Surface
from usvol.scan import Grid

PLACENTA, SAC, FETUS = 1, 2, 3
_SACS = 0.15  # of the largest: a smaller sac is a stray (twins have two of about one size)
_FETUSES = 0.1
_PLACENTAS = 0.15
_REACH = 3  # voxels between placenta and sac: membranes and the resolution
_LEAST = 12  # voxels: fewer are noise
_SMOOTHING = 0.8  # voxels, of the evidence that surfaces are drawn from


def tidy(chances: Tensor) -> np.ndarray:
    """Return labels ``z y x`` (uint8) of chances ``value z y x`` that anatomy allows, adding no tissue.

    Sacs and fetuses much smaller than the largest go; flecks of fetus in the fluid become sac, fluid inside
    the fetus (stomach, bladder) becomes fetus; the placenta lies on a sac.
    """
    labels = chances.argmax(0).numpy().astype(np.uint8)
    whole = (labels == SAC) | (labels == FETUS)
    kept = large_components(whole, share=_SACS)
    labels[whole & ~kept] = 0
    fetus = labels == FETUS
    flecks = fetus & ~large_components(fetus, share=_FETUSES)
    inside = enclosed(flecks, labels == SAC)
    labels[flecks] = np.where(inside[flecks], SAC, 0)
    labels[enclosed(labels == SAC, labels == FETUS)] = FETUS
    placenta = labels == PLACENTA
    near = components_near(placenta, (labels == SAC) | (labels == FETUS), reach=_REACH)
    labels[placenta & ~large_components(near, share=_PLACENTAS)] = 0
    for value in (PLACENTA, SAC, FETUS):
        if 0 < (labels == value).sum() < _LEAST:
            labels[labels == value] = 0
    return labels


def chances_of(labels: np.ndarray, chances: Tensor) -> Tensor:
    """Return chances whose largest is ``labels``: where they differ, that label is made certain."""
    wanted = torch.from_numpy(labels.astype(np.int64))
    certain = torch.nn.functional.one_hot(wanted, chances.shape[0]).movedim(-1, 0).to(chances.dtype)
    return torch.where(chances.argmax(0) == wanted, chances, certain)


def surface_of(chances: Tensor, value: int, *, grid: Grid, name: str) -> Surface:
    """Return the surface where ``value`` stops being the likeliest, in world coordinates.

    Marching cubes (Lewiner et al., J Graph Tools 8:1, 2003) on the smoothed lead over the next likeliest
    label, closed at the end of the grid.
    """
    others = chances.clone()
    others[value] = 0
    lead = (chances[value] - others.amax(0)).numpy()
    smooth = ndimage.gaussian_filter(lead, _SMOOTHING)
    # A thin structure must not vanish in smoothing.
    field = smooth if smooth.max() > 0 else lead
    vertices, faces, _, _ = marching_cubes(np.pad(field, 1, constant_values=-1.0), 0.0)
    index = np.clip(vertices - 1, -0.5, np.asarray(grid.shape) - 0.5)
    if np.linalg.det(np.asarray(grid.direction)) < 0:
        faces = faces[:, ::-1]  # in a mirrored grid the outside would be inside
    return Surface(
        name,
        torch.from_numpy(np.ascontiguousarray(grid.to_world(index), np.float32)),
        torch.from_numpy(np.ascontiguousarray(faces, np.int64)),
    )


def surface_of_mask(labels: Labels, value: int, *, name: str) -> Surface:
    """Return the surface of one label of a map that carries no evidence, as ``surface_of`` draws it."""
    mask = labels.data[0] == value
    inside = torch.nonzero(mask)
    low = (inside.amin(0) - 3).clamp(min=0)
    high = torch.minimum(inside.amax(0) + 4, torch.tensor(mask.shape))
    block = mask[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))].float()
    z, y, x = block.shape
    grid = labels.grid.crop(low.tolist(), (z, y, x))
    return surface_of(torch.stack([1 - block, block]), 1, grid=grid, name=name)
