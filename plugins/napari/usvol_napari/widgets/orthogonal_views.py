"""Three linked slices through a volume, with label maps over them."""

from __future__ import annotations

from typing import Any

import numpy as np
from napari.layers import Image, Labels
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QGridLayout, QWidget

from usvol_napari.layers import colour_of
from usvol_napari.placement import Placement
from usvol_napari.widgets.listening import listen
from usvol_napari.widgets.shown import chosen_layer, shown_scan
from usvol_napari.widgets.slice_view import SliceView
from usvol_napari.widgets.timers import single_shot

# Displayed row axis, column axis and the axis cut across, among z y x; in a probe's frame y is depth.
_VIEWS = {"depth × lateral (z slice)": (1, 2, 0), "depth × elevation (x slice)": (1, 0, 2),
          "elevation × lateral (y slice)": (0, 2, 1)}  # fmt: skip
_COLOURS = ("#56b4e9", "#e69f00", "#009e73")  # of the slices across z, y, x
_REDRAW_MS = 30


class OrthogonalViews(QWidget):
    """Follows the viewer's point, and moves it by the mouse."""

    def __init__(self, viewer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.viewer = viewer
        self.views = {name: SliceView(name) for name in _VIEWS}
        layout = QGridLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(3)
        for number, (name, view) in enumerate(self.views.items()):
            layout.addWidget(view, number // 2, number % 2)
            view.picked.connect(lambda row, column, axes=_VIEWS[name]: self._go(axes, row, column))
        self._timer = single_shot(self.draw, self, after_ms=_REDRAW_MS)
        listen(self, self._later, to=(viewer.dims.events.point, viewer.layers.events))

    def draw(self) -> None:
        """Draw the three slices through the viewer's point."""
        found = self._volume()
        if found is None or not self.isVisible():
            for view in self.views.values() if found is None else ():
                view.clear()
            return
        layer, placement = found
        index = self._index(layer)
        for name, (row, column, across) in _VIEWS.items():
            pixels = self._pixels(layer, index, across)
            pixels = pixels if row < column else pixels.transpose(1, 0, 2)
            step = (placement.grid.step[row], placement.grid.step[column])
            self.views[name].show_slice(
                pixels,
                step=step,
                cross=(index[-3 + row], index[-3 + column]),
                colours=(_COLOURS[row], _COLOURS[column]),
            )

    def showEvent(self, a0: QShowEvent | None) -> None:  # noqa: N802 (Qt's name)
        """Draw when the tab opens."""
        super().showEvent(a0)
        self._later()

    def _later(self, _event: Any = None) -> None:
        self._timer.start()

    def _volume(self) -> tuple[Image, Placement] | None:
        layer = chosen_layer(self.viewer)
        shown = shown_scan(layer) if layer is not None else None
        if not isinstance(layer, Image) or shown is None or shown.placement.grid.is_planar:
            return None
        return layer, shown.placement

    def _index(self, layer: Any) -> np.ndarray:
        """Return the samples of a layer at the viewer's point, within the layer."""
        index = np.asarray(layer.world_to_data(self.viewer.dims.point[-layer.ndim :]))
        return np.clip(np.round(index), 0, np.asarray(layer.data.shape[: layer.ndim]) - 1).astype(int)

    def _pixels(self, layer: Image, index: np.ndarray, across: int) -> np.ndarray:
        """Return one slice as RGB, label maps over it, its axes in the order z y x."""
        low, high = np.asarray(layer.contrast_limits, float).tolist()
        samples = np.asarray(layer.data[_cut(index, across)], np.float32)
        if layer.rgb:
            pixels = samples * (255.0 / max(high, 1e-12))
        else:
            pixels = np.repeat(((samples - low) * (255.0 / max(high - low, 1e-12)))[..., None], 3, -1)
        pixels = pixels.clip(0, 255)
        for labels in self.viewer.layers:
            if isinstance(labels, Labels) and labels.visible and _fits(labels, layer):
                _paint(pixels, np.asarray(labels.data[_cut(self._index(labels), across)]), labels)
        return pixels.astype(np.uint8)

    def _go(self, axes: tuple[int, int, int], row: float, column: float) -> None:
        found = self._volume()
        if found is None:
            return
        layer, _ = found
        index = self._index(layer).astype(float)
        index[-3 + axes[0]], index[-3 + axes[1]] = row, column
        point = layer.data_to_world(index)
        first = self.viewer.dims.ndim - layer.ndim
        self.viewer.dims.set_point(range(first, self.viewer.dims.ndim), point)


def _fits(labels: Labels, layer: Image) -> bool:
    """Tell whether labels lie voxel on voxel over a volume."""
    return labels.data.shape[-3:] == layer.data.shape[: layer.ndim][-3:] and all(
        np.allclose(one[-3:], other[-3:])
        for one, other in ((labels.scale, layer.scale), (labels.translate, layer.translate))
    )


def _cut(index: np.ndarray, across: int) -> tuple[Any, ...]:
    chosen: list[Any] = [*index[:-3].tolist(), slice(None), slice(None), slice(None)]
    chosen[len(chosen) - 3 + across] = int(index[-3 + across])
    return tuple(chosen)


def _paint(pixels: np.ndarray, values: np.ndarray, labels: Labels) -> None:
    for value in np.unique(values[values > 0]).tolist():
        inside = values == value
        colour = np.multiply(colour_of(value)[:3], 255.0)
        pixels[inside] = pixels[inside] * (1 - labels.opacity) + colour * labels.opacity
