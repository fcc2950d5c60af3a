"""Three sliders that tilt, turn and shift a plane."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFormLayout, QHBoxLayout, QLabel, QPushButton, QSlider, QWidget

from usvol.planes import nudged
from usvol.result import Plane
from usvol_napari.widgets.signals import Signal

_FINE = 10  # slider steps per degree, and per mm (or sample)


class PlaneSliders(QWidget):
    """Moves ``start`` about itself; ``moved`` brings the plane as it is now."""

    moved = Signal(object)

    def __init__(self, parent: QWidget | None = None, *, angle_deg: float = 45.0) -> None:
        super().__init__(parent)
        self.start: Plane | None = None
        self._unit = "mm"
        layout = QFormLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self.sliders: dict[str, QSlider] = {}
        self._readings: dict[str, QLabel] = {}
        for name in ("tilt", "turn", "offset"):
            slider, reading = QSlider(Qt.Orientation.Horizontal), QLabel()
            slider.setRange(-round(angle_deg * _FINE), round(angle_deg * _FINE))
            slider.valueChanged.connect(self._tell)
            reading.setMinimumWidth(64)
            row = QHBoxLayout()
            row.addWidget(slider)
            row.addWidget(reading)
            layout.addRow(name.capitalize(), row)
            self.sliders[name], self._readings[name] = slider, reading
        self.reset_button = QPushButton("Reset")
        self.reset_button.clicked.connect(self.reset)
        layout.addRow("", self.reset_button)

    def set_start(self, plane: Plane, *, reach: float, unit: str) -> None:
        """Begin at a plane; it can be shifted by ``reach`` (in ``unit``) either way."""
        self.start, self._unit = plane, unit
        for slider in self.sliders.values():
            slider.blockSignals(True)
            slider.setValue(0)
            slider.blockSignals(False)
        self.sliders["offset"].setRange(-round(reach * _FINE), round(reach * _FINE))
        self._read()

    @property
    def plane(self) -> Plane | None:
        """The plane as it is now."""
        if self.start is None:
            return None
        tilt, turn, offset = (self.sliders[name].value() / _FINE for name in ("tilt", "turn", "offset"))
        return nudged(self.start, offset=offset, tilt_deg=tilt, turn_deg=turn)

    def reset(self) -> None:
        """Go back to where it began."""
        for slider in self.sliders.values():
            slider.setValue(0)

    def _tell(self) -> None:
        self._read()
        if self.start is not None:
            self.moved.emit(self.plane)

    def _read(self) -> None:
        for name, reading in self._readings.items():
            unit = f" {self._unit}" if name == "offset" else "°"
            reading.setText(f"{self.sliders[name].value() / _FINE:+.1f}{unit}")
