"""Where a finder of heads sees one in a volume, rightly or not.

A run takes the likeliest; the readers of a training learn from the others what is no head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from skimage import measure
from torch import Tensor

from models3d.recipes._midsagittal_examples import Cube, View, cut
from models3d.recipes.working_volume import network_input

_LEAST_MASS = 3e-4  # part of the finder's cube that a head fills at least


class Sphere(NamedTuple):
    """A head as the finder sees it: centre and mean radius in samples, and its chance."""

    centre: Tensor
    radius: float
    chance: float


def spheres(view: View, finder: Callable[[Tensor], Tensor], *, side: int, least: float = 0.5) -> list[Sphere]:
    """Return the connected parts in which a finder sees a head by a chance above ``least``, largest first.

    Four turns of the view are averaged.

    Args:
        view: the whole volume.
        finder: inputs ``b channel side side side`` to logits ``b s s s``.
        side: of the whole view as the finder sees it.
        least: chance from which a sample counts.
    """
    size = torch.tensor(view.grey.shape, dtype=torch.float32)
    half = float(size.max()) / 2 * 1.02
    cube = Cube((size - 1) / 2, half, torch.eye(3))
    grey, mask = cut(view, cube, side=side)
    whole = network_input(grey, mask)[None]
    turned = [whole, whole.flip(2, 4), whole.flip(3), whole.transpose(2, 4)]
    logits = torch.cat([finder(v.contiguous()) for v in turned]).float().cpu()
    back = (logits[0], logits[1].flip(0, 2), logits[2].flip(1), logits[3].transpose(0, 2))
    chance = torch.sigmoid(torch.stack(tuple(back)).mean(0)).numpy()
    parts = np.asarray(measure.label(chance > least, connectivity=1))
    numbers = np.arange(1, int(parts.max()) + 1)
    mass = np.asarray(ndimage.sum_labels(chance, parts, numbers))
    step, found = 2 * half / chance.shape[0], []
    for number in numbers[np.argsort(-mass, kind="stable")]:
        inside = parts == number
        if inside.mean() < _LEAST_MASS:
            continue
        place = np.argwhere(inside).T @ chance[inside] / chance[inside].sum()
        centre = cube.centre + torch.from_numpy(place).float() * step - half + step / 2
        radius = float(np.cbrt(inside.sum() * 3 / (4 * np.pi))) * step
        found.append(Sphere(centre, radius, float(chance[inside].mean())))
    return found
