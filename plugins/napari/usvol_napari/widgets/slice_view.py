"""Pictures of slices apart from napari's canvas: plain Qt, quick without a graphics card."""

from __future__ import annotations

import numpy as np
from qtpy.QtCore import QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QImage, QMouseEvent, QPainter, QPaintEvent, QPen
from qtpy.QtWidgets import QSizePolicy, QWidget

from usvol_napari.widgets.signals import Signal

_PAPER, _INK = QColor(16, 18, 22), QColor(226, 230, 236)


class SliceView(QWidget):
    """One picture with true proportions, a title, and a cross that can be moved by the mouse.

    ``picked`` brings row and column (float samples) of a click or drag.
    """

    picked = Signal(float, float)

    def __init__(self, title: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.title = title
        self._image: QImage | None = None
        self._step = (1.0, 1.0)
        self._cross: tuple[float, float] | None = None
        self._colours = (QColor("#56b4e9"), QColor("#e69f00"))
        self.setMinimumSize(90, 90)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)

    def sizeHint(self) -> QSize:  # noqa: N802 (Qt's name)
        """Return the size Qt should begin with."""
        return QSize(170, 150)

    def show_slice(
        self,
        pixels: np.ndarray,
        *,
        step: tuple[float, float],
        cross: tuple[float, float] | None = None,
        colours: tuple[str, str] | None = None,
    ) -> None:
        """Show pixels (rows, columns, 3) uint8 of size ``step``, with a cross at (row, column).

        ``colours`` are those of the cross's horizontal and vertical line: of the slices that they stand for.
        """
        kept = np.asarray(pixels, np.uint8)
        height, width = kept.shape[:2]
        # A copy: Qt would read memory that Python may free.
        self._image = QImage(kept.tobytes(), width, height, 3 * width, QImage.Format.Format_RGB888).copy()
        self._step, self._cross = step, cross
        if colours:
            self._colours = (QColor(colours[0]), QColor(colours[1]))
        self.update()

    def clear(self) -> None:
        """Show nothing."""
        self._image = None
        self.update()

    def paintEvent(self, a0: QPaintEvent | None) -> None:  # noqa: ARG002, N802 (Qt's names)
        """Draw picture, cross and title."""
        painter = QPainter(self)
        painter.fillRect(self.rect(), _PAPER)
        if self._image is not None:
            place = self._place()
            painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
            painter.drawImage(place, self._image)
            if self._cross is not None:
                self._draw_cross(painter, place)
        painter.setPen(_INK)
        painter.drawText(6, 15, self.title)
        painter.end()

    def mousePressEvent(self, a0: QMouseEvent | None) -> None:  # noqa: N802 (Qt's name)
        """Move the cross to where the mouse was pressed."""
        self._pick(a0)

    def mouseMoveEvent(self, a0: QMouseEvent | None) -> None:  # noqa: N802 (Qt's name)
        """Move the cross along with the mouse."""
        self._pick(a0)

    def _pick(self, event: QMouseEvent | None) -> None:
        if self._image is None or event is None:
            return
        place, position = self._place(), event.position()
        row = (position.y() - place.top()) / place.height() * self._image.height() - 0.5
        column = (position.x() - place.left()) / place.width() * self._image.width() - 0.5
        self.picked.emit(
            float(np.clip(row, 0, self._image.height() - 1)),
            float(np.clip(column, 0, self._image.width() - 1)),
        )

    def _place(self) -> QRectF:
        """Return where the picture stands: as large as fits, in true proportion."""
        assert self._image is not None
        height, width = self._image.height() * self._step[0], self._image.width() * self._step[1]
        scale = min(self.width() / width, self.height() / height)
        size = (width * scale, height * scale)
        return QRectF((self.width() - size[0]) / 2, (self.height() - size[1]) / 2, *size)

    def _draw_cross(self, painter: QPainter, place: QRectF) -> None:
        assert self._image is not None
        assert self._cross is not None
        y = place.top() + (self._cross[0] + 0.5) / self._image.height() * place.height()
        x = place.left() + (self._cross[1] + 0.5) / self._image.width() * place.width()
        for colour, start, end in (
            (self._colours[0], QPointF(place.left(), y), QPointF(place.right(), y)),
            (self._colours[1], QPointF(x, place.top()), QPointF(x, place.bottom())),
        ):
            pen = QPen(colour)
            pen.setCosmetic(True)
            pen.setStyle(Qt.PenStyle.DashLine)
            painter.setPen(pen)
            painter.drawLine(start, end)
