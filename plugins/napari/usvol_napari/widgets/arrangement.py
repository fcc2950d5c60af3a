"""What is shown in slices and what in 3D, and where to look when a task has found something."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
from napari.layers import Layer, Shapes
from qtpy.QtWidgets import QWidget

from usvol.resampling import plane_axes
from usvol.result import Box, Finding, Labels, Line, Plane, Surface
from usvol_napari.layers import Key, mark_size
from usvol_napari.placement import (
    Placement,
    oriented_grid,
    space_scale,
    space_translate,
    to_shown,
    to_viewer,
)
from usvol_napari.sections import crossings, polygons_of
from usvol_napari.widgets.listening import listen
from usvol_napari.widgets.session import Analysis, session_of

_SECTIONS = "sections of planes and boxes"
_ASIDE_DEG = 20.0  # a plane is looked at from a little aside, so that it is seen to stand in the volume


class Arrangement:
    """Keeps a viewer legible as long as ``widget`` lives.

    Meshes are drawn in 3D only, label maps that have meshes in slices only; planes and boxes leave their
    trace in each slice. What the user hides or shows in slices or in 3D stays so there.
    """

    def __init__(self, viewer: Any, widget: QWidget) -> None:
        self.viewer, self._mode = viewer, viewer.dims.ndisplay
        self._kept: weakref.WeakKeyDictionary[Layer, dict[int, bool]] = weakref.WeakKeyDictionary()
        self._sections: Shapes | None = None
        self._dismissed = False  # the layer of sections was deleted: it stays away until something new comes
        dims, layers = viewer.dims.events, viewer.layers.events
        listen(widget, self._turn, to=(dims.ndisplay,))
        listen(widget, self._insert, to=(layers.inserted,))
        listen(widget, self._remove, to=(layers.removed,))
        listen(widget, self._draw_sections, to=(dims.point, dims.order))
        session = session_of(viewer)
        session.analysed.connect(self._look_at)
        session.measured.connect(self._draw_sections)

        def leave() -> None:
            session.analysed.disconnect(self._look_at)
            session.measured.disconnect(self._draw_sections)

        widget.destroyed.connect(leave)  # the session lives as long as the viewer
        for layer in viewer.layers:
            self._place(layer)
        self._draw_sections()

    def _place(self, layer: Layer) -> None:
        if Key.FINDING in layer.metadata:
            layer.visible = shown_in(layer, self._mode)

    def _insert(self, event: Any) -> None:
        self._place(event.value)
        if polygons_of(event.value):
            event.value.events.data.connect(self._draw_sections)
            self._dismissed = False
            self._draw_sections()

    def _remove(self, event: Any) -> None:
        if event.value is self._sections:
            self._sections, self._dismissed = None, True
        elif self._sections is not None:
            self._draw_sections()

    def _turn(self, _event: Any = None) -> None:
        """Show what belongs into slices, or into 3D."""
        before, self._mode = self._mode, self.viewer.dims.ndisplay
        for layer in [one for one in self.viewer.layers if Key.FINDING in one.metadata]:
            kept = self._kept.setdefault(layer, {})
            kept[before] = layer.visible
            layer.visible = kept.get(self._mode, shown_in(layer, self._mode))
        self._draw_sections()

    def _draw_sections(self, _event: Any = None) -> None:
        """Draw where planes and boxes cross the slice that is shown."""
        if self._dismissed:
            return
        dims = self.viewer.dims
        hidden = dims.order[: dims.ndim - dims.ndisplay]
        across = [axis - dims.ndim + 3 for axis in hidden if axis >= dims.ndim - 3]
        drawn: list[tuple[np.ndarray, Any]] = []
        if dims.ndim >= 3 and len(across) == 1:
            at = dims.point[dims.ndim - 3 + across[0]]
            for layer in [one for one in self.viewer.layers if isinstance(one, Shapes) and one.visible]:
                found = crossings(polygons_of(layer), axis=across[0], at=at)
                drawn += [(segment, layer.edge_color[0]) for segment in found]
            if drawn:
                self._show_sections(drawn, axis=across[0], at=at)
        if self._sections is not None:
            self._sections.visible = bool(drawn)

    def _show_sections(self, drawn: list[tuple[np.ndarray, Any]], *, axis: int, at: float) -> None:
        placements = (one.metadata.get(Key.PLACEMENT) for one in self.viewer.layers)
        placement = next(one for one in placements if one is not None)
        layer = self._sections
        if layer is None:
            active = self.viewer.layers.selection.active
            layer = self._sections = self.viewer.add_shapes(
                ndim=3, name=_SECTIONS, units=placement.space_units, axis_labels=placement.space_axes
            )
            self.viewer.layers.selection.active = active
        flat, shift = np.ones(3), np.zeros(3)
        flat[axis], shift[axis] = 0.0, at
        # Shapes are seen within half a unit of the slice only: they lie at 0, in a layer moved to the slice.
        layer.data = []
        layer.translate = shift
        layer.add_lines(
            [segment * flat for segment, _ in drawn],
            edge_width=mark_size(placement) / 3,
            edge_color=[colour for _, colour in drawn],
        )

    def _look_at(self, analysis: Analysis | None) -> None:
        """Turn to what was found: a plane face on, else the slice that holds it."""
        if analysis is None or analysis.shown.placement.grid.is_planar:
            return
        findings, placement = analysis.result.findings, analysis.shown.placement
        plane = next((f for f in findings if isinstance(f, Plane)), None)
        if plane is not None:
            self._face(plane, placement)
            return
        centres = [(rank, centre) for f in findings for rank, centre in _centre(f, placement)]
        if centres:
            first = self.viewer.dims.ndim - 3
            _, centre = min(centres, key=lambda found: found[0])
            self.viewer.dims.set_point(range(first, first + 3), centre)

    def _face(self, plane: Plane, placement: Placement) -> None:
        normal, down, right = (placement.tilt.T @ axis for axis in np.asarray(plane_axes(plane)).T)
        aside = np.radians(_ASIDE_DEG)
        self.viewer.dims.ndisplay = 3
        direction = np.cos(aside) * normal + np.sin(aside) * right
        camera = getattr(self.viewer, "scene", self.viewer).camera  # napari 0.9 moved it
        camera.set_view_direction(tuple(direction), tuple(-down))
        self.viewer.reset_view(reset_camera_angle=False)


def shown_in(layer: Layer, ndisplay: int) -> bool:
    """Tell whether a layer of a finding is shown in slices (2) or 3D (3) unless the user says otherwise."""
    finding, result = layer.metadata.get(Key.FINDING), layer.metadata.get(Key.RESULT)
    if isinstance(finding, Surface) or layer.metadata.get(Key.ROLE) == "reslice":
        return ndisplay == 3
    meshes = result is not None and any(isinstance(other, Surface) for other in result.findings)
    return not (ndisplay == 3 and meshes and isinstance(finding, Labels))


def _centre(finding: Finding, placement: Placement) -> Iterator[tuple[int, np.ndarray]]:
    """Yield a point (z, y, x) of the viewer in whose slices a finding is best seen; lowest rank is best."""
    if isinstance(finding, Line):
        yield 0, to_viewer([finding.tip], placement)[0]
    elif isinstance(finding, Labels) and bool(finding.data.any()):
        held = to_shown(finding.data, finding.grid).astype(bool).any(0)
        most = [held.sum(tuple({0, 1, 2} - {axis})).argmax() for axis in range(3)]
        grid = oriented_grid(finding.grid)
        yield 1, np.multiply(most, space_scale(placement, grid)) + space_translate(placement, grid)
    elif isinstance(finding, Box):
        yield 2, to_viewer([finding.centre], placement)[0]
