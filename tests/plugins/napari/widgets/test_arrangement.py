"""Meshes, label maps and volumes do not hide each other, and what was found is turned to."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.layers import Labels, Surface

from usvol_napari.layers import Key
from usvol_napari.widgets.workbench import Workbench


def test_slices_and_3d_show_what_can_be_seen_there(viewer, analysed, guided, solid, qtbot):
    workbench = Workbench(viewer)
    qtbot.addWidget(workbench)
    analysed(guided, solid)
    assert viewer.dims.ndisplay == 3, "a plane is shown face on"
    (mesh,) = [one for one in viewer.layers if isinstance(one, Surface) and Key.ROLE not in one.metadata]
    (mask,) = [one for one in viewer.layers if isinstance(one, Labels)]
    assert (mesh.visible, mask.visible) == (True, False)
    viewer.dims.ndisplay = 2
    assert (mesh.visible, mask.visible) == (False, True)
    mask.visible = False
    viewer.dims.ndisplay = 3
    viewer.dims.ndisplay = 2
    assert not mask.visible, "what the user hides stays hidden"
    viewer.dims.order = (1, 0, 2)
    sections = viewer.layers["sections of planes and boxes"]
    (line,) = sections.data
    assert sections.visible
    assert np.allclose(line[:, 0], 15.0), "where the plane z = 15 mm crosses the slice"
    viewer.layers.remove(sections)
    viewer.dims.set_point(1, 3.0)
    assert sections.name not in viewer.layers, "what was deleted does not come back"
    viewer.layers.clear()
    assert len(viewer.layers) == 0
