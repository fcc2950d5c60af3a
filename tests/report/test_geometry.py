from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from usvol.report.geometry import draw_box
from usvol.result import Box
from usvol.scan import Grid


def outline(box, *, axis):
    grid = Grid((40, 50, 60), (1.0, 1.0, 1.0))
    rows, columns = (n for k, n in enumerate(grid.shape) if k != axis)
    shown = Image.new("RGB", (columns, rows))
    draw_box(ImageDraw.Draw(shown), box, grid=grid, axis=axis, size=shown.size)
    y, x = np.nonzero(np.asarray(shown).sum(-1))
    return y.min(), y.max(), x.min(), x.max()


def test_a_box_is_outlined_where_it_lies_in_each_cut():
    straight = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    box = Box("valve", (20.0, 25.0, 30.0), (10.0, 20.0, 30.0), straight)
    np.testing.assert_allclose(outline(box, axis=0), (15, 35, 15, 45), atol=1)
    np.testing.assert_allclose(outline(box, axis=1), (15, 25, 15, 45), atol=1)
    np.testing.assert_allclose(outline(box, axis=2), (15, 25, 15, 35), atol=1)
    # Its first axis along x: columns of the rotation are its axes.
    turned = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0))
    np.testing.assert_allclose(
        outline(Box("valve", box.centre, box.size, turned), axis=0), (15, 35, 25, 35), atol=1
    )
