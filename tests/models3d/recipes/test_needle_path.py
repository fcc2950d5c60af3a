from __future__ import annotations

import numpy as np
import torch

from models3d.recipes.needle_path import in_picture


def test_the_picture_lies_between_lit_samples_along_every_axis():
    volume = torch.zeros(12, 14, 16, dtype=torch.uint8)
    volume[3:9, 4:12, 5:13] = 80
    volume[5:7, 6:8, 7:11] = 0  # a shadow in it
    volume[3:5, 4:6, 5:7] = 0  # a corner that is black
    places = np.array(
        [[6, 7, 9], [3, 4, 9], [3, 4, 5], [2, 7, 9], [8, 11, 12], [6, 12, 9], [-1, 7, 9], [6, 7, 40]]
    )
    sector = torch.zeros(volume.shape, dtype=torch.bool)
    sector[2:10, 3:13, 4:14] = True  # in blocks, larger than the picture
    seen = in_picture(volume, sector, places=places + 0.3)
    assert seen.tolist() == [True, True, False, False, True, False, False, False]
    whole = in_picture(volume, torch.ones_like(sector), places=places + 0.3)
    assert whole.tolist() == [True] * 6 + [False] * 2, "nothing around it: black is shadow"
