"""Planes and boxes leave their trace in every slice."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("napari")

from napari.layers import Layer

from usvol.result import Box, Plane, Result
from usvol.scan import Grid, Scan
from usvol_napari.layers import result_layers, scan_layers
from usvol_napari.sections import crossings, polygons_of

EYE = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def layers_of(*findings):
    scan = Scan(torch.zeros(1, 1, 16, 20, 24, dtype=torch.uint8), Grid((16, 20, 24), (1.0, 1.0, 1.0)))
    result = Result("toy", scan.grid, scan.source, findings, ())
    return [Layer.create(*layer) for layer in [*scan_layers(scan), *result_layers(result, scan)]]


def test_a_box_is_cut_into_a_rectangle_and_missed_beside_it():
    box = Box("box", (8.0, 10.0, 12.0), (6.0, 4.0, 8.0), EYE)
    polygons = [polygon for one in layers_of(box) for polygon in polygons_of(one)]
    assert len(polygons) == 6
    ends = np.concatenate(crossings(polygons, axis=0, at=6.3))
    assert len(ends) == 8
    assert np.allclose(ends.min(0), (6.3, 8.0, 8.0))
    assert np.allclose(ends.max(0), (6.3, 12.0, 16.0))
    assert crossings(polygons, axis=0, at=12.0) == []


def test_a_box_in_a_cine_has_no_sections():
    scan = Scan(torch.zeros(3, 1, 1, 20, 24, dtype=torch.uint8), Grid((1, 20, 24), (1.0, 1.0, 1.0)))
    box = Box("box", (0.0, 10.0, 12.0), (1.0, 4.0, 8.0), EYE, None, 1)
    result = Result("toy", scan.grid, scan.source, (box,), ())
    (layer,) = (Layer.create(*one) for one in result_layers(result, scan))
    assert polygons_of(layer) == []


def test_an_oblique_plane_is_cut_along_its_line():
    tilted = Plane("cut", (8.0, 10.0, 12.0), (1.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    polygons = [p for one in layers_of(tilted) for p in polygons_of(one)]
    ((start, end),) = crossings(polygons, axis=0, at=5.0)
    assert start[:2] == pytest.approx((5.0, 13.0))
    assert end[:2] == pytest.approx((5.0, 13.0))
    assert sorted((start[2], end[2])) == pytest.approx([0.0, 23.0])


def test_layers_of_one_name_are_told_apart():
    box = Box("a", (8.0, 10.0, 12.0), (6.0, 4.0, 8.0), EYE)
    plane = Plane("a", (8.0, 10.0, 12.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0))
    names = [one.name for one in layers_of(box, plane)]
    assert names[1:] == ["a", "a plane", "a outline"]
