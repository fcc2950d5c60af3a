"""Ultrasound regions of a DICOM image, and the pixel size they agree on.

Source: US Region Calibration Module, DICOM PS3.3 C.8.5.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from usvol.formats.dicom_times import real
from usvol.scan import Calibration, Trust

if TYPE_CHECKING:
    from pydicom import Dataset

SPATIAL_FORMATS: Mapping[int, str] = MappingProxyType(
    {0: "none", 1: "2D", 2: "M-mode", 3: "spectral", 4: "waveform", 5: "graphics"}
)
DATA_TYPES: Mapping[int, str] = MappingProxyType(
    {
        0x0: "none", 0x1: "tissue", 0x2: "colour flow", 0x3: "PW Doppler", 0x4: "CW Doppler",
        0x5: "Doppler mean trace", 0x6: "Doppler mode trace", 0x7: "Doppler max trace",
        0x8: "volume trace", 0x9: "d(volume)/dt trace", 0xA: "ECG trace", 0xB: "pulse trace",
        0xC: "phonocardiogram", 0xD: "grey bar", 0xE: "colour bar", 0xF: "integrated backscatter",
        0x10: "area trace", 0x11: "d(area)/dt trace", 0x12: "other physiological trace",
    }
)  # fmt: skip
UNITS: Mapping[int, str] = MappingProxyType(
    {
        0: "none", 1: "percent", 2: "dB", 3: "cm", 4: "s", 5: "Hz", 6: "dB/s", 7: "cm/s",
        8: "cm²", 9: "cm²/s", 0xA: "cm³", 0xB: "cm³/s", 0xC: "degree",
    }
)  # fmt: skip

MIN_EXTENT_MM, MAX_EXTENT_MM = 2.0, 400.0
"""No ultrasound image is shallower or deeper than this."""
MAX_ANISOTROPY = 5.0
_SAME = 0.01


@dataclass(frozen=True, slots=True)
class Region:
    """One calibrated rectangle of an ultrasound image; bounds are inclusive pixel indices.

    Attributes:
        spatial_format: one of ``SPATIAL_FORMATS``, such as ``"2D"``.
        data_type: one of ``DATA_TYPES``, such as ``"tissue"``.
        unit_x, unit_y: one of ``UNITS``; ``delta_x``, ``delta_y`` are in them, per pixel.
        reference_x, reference_y: pixel of the reference point, relative to (x0, y0).
    """

    spatial_format: str
    data_type: str
    x0: int
    y0: int
    x1: int
    y1: int
    unit_x: str
    unit_y: str
    delta_x: float
    delta_y: float
    reference_x: int | None = None
    reference_y: int | None = None
    flags: int = 0
    transducer_khz: float | None = None

    @property
    def is_image(self) -> bool:
        """Whether it shows anatomy in two dimensions, which alone can calibrate the image."""
        return self.spatial_format == "2D" and self.data_type in ("tissue", "colour flow")

    @property
    def extent_mm(self) -> tuple[float, float]:
        """Height and width in mm, if the unit is the centimetre."""
        return (
            10 * abs(self.delta_y) * (self.y1 - self.y0 + 1),
            10 * abs(self.delta_x) * (self.x1 - self.x0 + 1),
        )


def parse_regions(dataset: Dataset) -> tuple[Region, ...]:
    """Return every item of SequenceOfUltrasoundRegions (0018,6011) that has bounds, as it stands."""
    return tuple(_region(item) for item in dataset.get("SequenceOfUltrasoundRegions") or [])


def _region(item: Dataset) -> Region:
    return Region(
        spatial_format=_named(SPATIAL_FORMATS, item.get("RegionSpatialFormat")),
        data_type=_named(DATA_TYPES, item.get("RegionDataType")),
        x0=_whole(item.get("RegionLocationMinX0"), -1),
        y0=_whole(item.get("RegionLocationMinY0"), -1),
        x1=_whole(item.get("RegionLocationMaxX1"), -1),
        y1=_whole(item.get("RegionLocationMaxY1"), -1),
        unit_x=_named(UNITS, item.get("PhysicalUnitsXDirection")),
        unit_y=_named(UNITS, item.get("PhysicalUnitsYDirection")),
        delta_x=real(item.get("PhysicalDeltaX")),
        delta_y=real(item.get("PhysicalDeltaY")),
        reference_x=_whole(item.get("ReferencePixelX0"), None),
        reference_y=_whole(item.get("ReferencePixelY0"), None),
        flags=_whole(item.get("RegionFlags"), 0),
        transducer_khz=real(item.get("TransducerFrequency")) or None,
    )


def calibrate(
    regions: Sequence[Region], *, rows: int, columns: int
) -> tuple[tuple[float, float] | None, Calibration]:
    """Return the pixel size (y, x) in mm that the 2D regions agree on, and how far to trust it.

    None, with the reason, when there is no 2D region or when a region contradicts the image or
    another region: a scale that is wrong in one place is trusted in none.
    """
    images = [region for region in regions if region.is_image]
    if not images:
        kinds = ", ".join(f"{r.spatial_format} {r.data_type}" for r in regions) or "none"
        return None, _absent(f"no 2D ultrasound region (regions: {kinds})")
    for region in images:
        if reason := contradiction(region, rows=rows, columns=columns):
            return None, _absent(f"the ultrasound region calibration contradicts itself: {reason}")
    first = images[0]
    for other in images[1:]:
        if not (_close(first.delta_y, other.delta_y) and _close(first.delta_x, other.delta_x)):
            return None, _absent(
                "the 2D ultrasound regions disagree: "
                f"{10 * abs(first.delta_y):.4g} and {10 * abs(other.delta_y):.4g} mm per pixel"
            )
    size = (10 * abs(first.delta_y), 10 * abs(first.delta_x))
    return size, Calibration(
        Trust.MEASURED, f"SequenceOfUltrasoundRegions (0018,6011), {len(images)} 2D region(s)"
    )


def contradiction(region: Region, *, rows: int, columns: int) -> str | None:
    """Say what is impossible about a 2D region of a rows × columns image, or None."""
    if (region.unit_y, region.unit_x) != ("cm", "cm"):
        return f"its units are {region.unit_y} × {region.unit_x}, not cm"
    if not all(math.isfinite(d) and d != 0 for d in (region.delta_y, region.delta_x)):
        return f"its pixel size is {region.delta_y} × {region.delta_x} cm"
    if not (0 <= region.x0 < region.x1 and 0 <= region.y0 < region.y1):
        return f"its bounds ({region.x0}, {region.y0}) to ({region.x1}, {region.y1}) are empty"
    # Vendors write the exclusive end as often as the last pixel, so one beyond is accepted.
    if region.x1 > columns or region.y1 > rows:
        return (
            f"it reaches to pixel ({region.x1}, {region.y1}) of an image of {columns} × {rows} pixels, "
            "so the image was scaled or cropped after it was calibrated"
        )
    height, width = region.extent_mm
    if not MIN_EXTENT_MM <= height <= MAX_EXTENT_MM:
        return f"it would be {height:.4g} mm deep"
    if not MIN_EXTENT_MM <= width <= 2 * MAX_EXTENT_MM:
        return f"it would be {width:.4g} mm wide"
    ratio = abs(region.delta_y / region.delta_x)
    if not 1 / MAX_ANISOTROPY <= ratio <= MAX_ANISOTROPY:
        return f"its pixels would be {ratio:.3g} times as high as wide"
    return None


def _absent(reason: str) -> Calibration:
    return Calibration(Trust.ABSENT, reason)


def _close(a: float, b: float) -> bool:
    return math.isclose(abs(a), abs(b), rel_tol=_SAME)


def _named(names: Mapping[int, str], code: Any) -> str:
    code = _whole(code, None)
    return "missing" if code is None else names.get(code, f"code {code}")


def _whole(value: Any, missing: Any) -> Any:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return missing
