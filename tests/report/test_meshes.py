from __future__ import annotations

import numpy as np
import pytest

from usvol.report import panels
from usvol.report.meshes import picture
from usvol.result import Surface

CUBE = np.array([[z, y, x] for z in (0.0, 1) for y in (0.0, 1) for x in (0.0, 1)]) * 20
SIDES = np.array([
    [0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
    [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3],
])  # fmt: skip
SHEET = np.array([[10.0, 4, 4], [10, 4, 16], [10, 16, 4]])


def pixels(surface, **options):
    return np.asarray(picture(surface, side=90, **options).convert("RGB"), int)


def drawn(image):
    return (np.abs(image - np.array(panels.PAPER)).sum(-1) > 40).mean()


def test_a_solid_is_drawn_from_three_sides_in_the_colour_of_its_label():
    labels = np.full(8, 3)
    image = pixels(Surface("cube", CUBE, SIDES, labels))
    assert image.shape == (90, 3 * 90 + 8, 3)
    red, green, blue = image[45, 45]
    assert green > red and green > blue  # PALETTE[2]
    for left in (0, 94, 188):
        assert 0.2 < drawn(image[:, left : left + 90]) < 0.6


def test_a_sheet_shows_through_the_closed_mesh_around_it():
    both = np.concatenate([CUBE, SHEET])
    labels = np.array([3] * 8 + [1] * 3)
    glass = pixels(Surface("v", both, np.concatenate([SIDES, np.array([[8, 9, 10]])]), labels))
    wall = pixels(Surface("v", both, SIDES, labels))
    # Behind the green wall is the sheet, in a colour with red; the wall alone hides it.
    assert glass[40, 40, 0] > wall[40, 40, 0] + 60
    assert wall[40, 40, 0] < wall[40, 40, 1]


def test_axes_turn_the_views():
    long = CUBE * np.array([1.0, 1.0, 3.0])
    up = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0))  # the first axis is x
    image = drawn_box(pixels(Surface("bar", long, SIDES), axes=up)[:, :90])
    assert image[0] > 2 * image[1]
    image = drawn_box(pixels(Surface("bar", long, SIDES))[:, :90])
    assert image[1] > 2 * image[0]


def drawn_box(image):
    rows, columns = np.nonzero(np.abs(image[16:] - np.array(panels.PAPER)).sum(-1) > 60)
    return np.ptp(rows), np.ptp(columns)


@pytest.mark.parametrize("in_mm", [False, True])
def test_a_bar_of_scale_is_drawn_only_in_mm(in_mm):
    image = pixels(Surface("cube", CUBE, SIDES), in_mm=in_mm)
    assert (image[78:86, :60].sum(-1) > 550).any() == in_mm
