"""Beam-space 3D volumes: samples along radius, elevation and azimuth, scan-converted on reading.

The geometry is that of ITK's ``PhasedArray3DSpecialCoordinatesImage``: a sample at radius r, azimuth a and
elevation e lies at r (tan a, tan e, 1) / sqrt(1 + tan² a + tan² e) in ITK's (x, y, z), which are the probe's
(lateral, out of plane, depth). On disk it is a MetaImage or NRRD with the keys of ``KEYS``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from usvol.errors import CorruptFileError, MissingExtraError
from usvol.formats.metaimage_header import TextHeader, read_header
from usvol.formats.samples import check_size, to_tensor
from usvol.scan import Calibration, Frame, Grid, Header, Scan, Selection, Source, Trust

if TYPE_CHECKING:
    from torch import Tensor

NAME = "beamspace"
KEYS = ("FirstSampleDistance", "RadiusSampleSize", "AzimuthAngularSeparation", "ElevationAngularSeparation")
"""Header keys, named as in ITK: mm, mm, radians, radians."""

_MAX_SIDE = 512
_RADIANS_LIMIT = math.pi / 2


@dataclass(frozen=True, slots=True, eq=False)
class Beams:
    """A 3D beam-space volume.

    Attributes:
        samples: tensor ``radius elevation azimuth``.
        first_mm, step_mm: radius of the first sample, and between samples.
        azimuth_rad, elevation_rad: angle between neighbouring lines; the middle line points along 0.
    """

    samples: Tensor
    first_mm: float
    step_mm: float
    azimuth_rad: float
    elevation_rad: float


def is_beam_space(fields: Mapping[str, str]) -> bool:
    """Tell beam-space samples by the keys in their header."""
    return all(key in fields for key in KEYS)


def sniff(path: Path, head: bytes) -> bool:  # noqa: ARG001  every format has this signature
    """Tell a MetaImage or NRRD with the beam-space keys."""
    return all(key.encode() in head for key in KEYS)


def probe(path: Path) -> Header:
    """Describe the volume that ``read`` converts to."""
    text = read_header(path)
    geometry = _geometry(path, text)
    return Header(_grid(geometry, text.sizes), 1, 1, text.dtype, None, _source(path, geometry))


def read(path: Path, selection: Selection | None = None) -> Scan:  # noqa: ARG001  one frame, one size
    """Read the beams and scan-convert them to isotropic samples ``t c z y x`` in the probe's frame."""
    import SimpleITK

    from usvol.formats.metaimage import typed_errors

    geometry = _geometry(path, read_header(path))
    with typed_errors(path, "reading the samples"):
        array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    beams = Beams(to_tensor(array, path), *geometry)
    return dataclasses.replace(convert(beams), source=_source(path, geometry))


def convert(beams: Beams, grid: Grid | None = None) -> Scan:
    """Scan-convert beams to ``grid``, or to an isotropic grid around them; 0 outside."""
    # The resampler stands above the readers; beam space is the one format that cannot be read without it.
    from usvol.resampling import from_beam_space

    radii, elevations, azimuths = beams.samples.shape
    grid = grid or _grid(_parameters(beams), (azimuths, elevations, radii))
    check_size(Path("beam space"), grid.shape, dtype="float32")
    volume = from_beam_space(
        beams.samples.transpose(1, 2),
        radius_mm=(beams.first_mm, beams.step_mm),
        azimuth_rad=(-beams.azimuth_rad * (azimuths - 1) / 2, beams.azimuth_rad),
        elevation_rad=(-beams.elevation_rad * (elevations - 1) / 2, beams.elevation_rad),
        grid=grid,
    )
    note = Calibration(Trust.MEASURED, "radius and angles of the beam-space samples")
    return Scan(volume[None, None], grid, None, Source(format=NAME, calibration=note))


def from_itk(image: Any) -> Beams:
    """Return the beams of an ``itk.PhasedArray3DSpecialCoordinatesImage``."""
    itk = _itk()
    # numpy reads plain images only; both share the container of samples.
    plain = itk.Image[itk.template(image)[1][0], 3].New()
    plain.SetRegions(image.GetLargestPossibleRegion())
    plain.SetPixelContainer(image.GetPixelContainer())
    return Beams(
        to_tensor(itk.array_from_image(plain), Path("itk image")),
        *_itk_geometry(itk, image),
    )


def to_itk(beams: Beams) -> Any:
    """Return beams as an ``itk.PhasedArray3DSpecialCoordinatesImage`` of float32."""
    itk = _itk()
    array = np.ascontiguousarray(beams.samples.numpy(), dtype=np.float32)
    plain = itk.image_from_array(array)
    image = itk.PhasedArray3DSpecialCoordinatesImage[itk.F].New()
    image.SetRegions(plain.GetLargestPossibleRegion())
    image.SetPixelContainer(plain.GetPixelContainer())
    image.SetFirstSampleDistance(beams.first_mm)
    image.SetRadiusSampleSize(beams.step_mm)
    image.SetAzimuthAngularSeparation(beams.azimuth_rad)
    image.SetElevationAngularSeparation(beams.elevation_rad)
    return image


def write_beams(path: Path, beams: Beams) -> None:
    """Write beams as MetaImage or NRRD with the keys of ``KEYS``."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(beams.samples.numpy())
    for key, value in zip(KEYS, _parameters(beams), strict=True):
        image.SetMetaData(key, repr(float(value)))
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def _parameters(beams: Beams) -> tuple[float, float, float, float]:
    return beams.first_mm, beams.step_mm, beams.azimuth_rad, beams.elevation_rad


def _geometry(path: Path, text: TextHeader) -> tuple[float, float, float, float]:
    try:
        first, step, azimuth, elevation = (float(text.fields[key]) for key in KEYS)
    except ValueError as error:
        raise CorruptFileError(path, f"its beam geometry is no number ({error})", "write it anew") from error
    usable = all(map(math.isfinite, (first, step, azimuth, elevation))) and min(step, azimuth, elevation) > 0
    if len(text.sizes) != 3 or text.components != 1 or not usable or first < 0:
        raise CorruptFileError(path, "its beam geometry is not three axes of positive steps", "write it anew")
    for angle, lines in ((azimuth, text.sizes[0]), (elevation, text.sizes[1])):
        if angle * (lines - 1) / 2 >= _RADIANS_LIMIT:
            raise CorruptFileError(path, f"its beams span {angle * (lines - 1):.2f} radians", "write it anew")
    return first, step, azimuth, elevation


def _grid(geometry: tuple[float, float, float, float], sizes: tuple[int, ...]) -> Grid:
    """Return an isotropic grid around the beams, at the radial step unless that makes it too large.

    ``sizes`` is (azimuth, elevation, radius).
    """
    first, step, azimuth, elevation = geometry
    azimuths, elevations, radii = sizes
    last = first + step * (radii - 1)
    half_x = last * math.sin(azimuth * (azimuths - 1) / 2)
    half_z = last * math.sin(elevation * (elevations - 1) / 2)
    tangents = math.tan(azimuth * (azimuths - 1) / 2), math.tan(elevation * (elevations - 1) / 2)
    nearest = first / math.sqrt(1 + tangents[0] ** 2 + tangents[1] ** 2)
    spacing = max(step, 2 * half_x / _MAX_SIDE, 2 * half_z / _MAX_SIDE, (last - nearest) / _MAX_SIDE)
    shape = (
        max(1, math.ceil(2 * half_z / spacing) + 1),
        max(1, math.ceil((last - nearest) / spacing) + 1),
        max(1, math.ceil(2 * half_x / spacing) + 1),
    )
    origin = (-spacing * (shape[0] - 1) / 2, nearest, -spacing * (shape[2] - 1) / 2)
    return Grid(shape, (spacing, spacing, spacing), origin, frame=Frame.PROBE)


def _source(path: Path, geometry: tuple[float, float, float, float]) -> Source:
    note = Calibration(Trust.MEASURED, "radius and angles of the beam-space samples")
    facts: dict[str, Any] = dict(
        zip(("first_mm", "step_mm", "azimuth_rad", "elevation_rad"), geometry, strict=True)
    )
    return Source(path, NAME, note, metadata=MappingProxyType(facts))


def _itk_geometry(itk: Any, image: Any) -> tuple[float, float, float, float]:
    """Read the geometry off the image's index-to-point map; itk wraps no getters for it."""
    size = [int(n) for n in itk.size(image)]
    middle = np.array([(size[0] - 1) / 2, (size[1] - 1) / 2, 0.0])

    def point(azimuth: float, elevation: float, radius: float) -> np.ndarray:
        index = itk.ContinuousIndex[itk.D, 3]()
        for axis, value in enumerate(middle + np.array([azimuth, elevation, radius])):
            index.SetElement(axis, float(value))
        return np.array(image.TransformContinuousIndexToPhysicalPoint(index))

    first_mm, second_mm = point(0, 0, 0)[2], point(0, 0, 1)[2]
    beside, above = point(1, 0, 1), point(0, 1, 1)
    azimuth_rad, elevation_rad = math.atan2(beside[0], beside[2]), math.atan2(above[1], above[2])
    return float(first_mm), float(second_mm - first_mm), azimuth_rad, elevation_rad


def _itk() -> Any:
    try:
        import itk
    except ImportError as error:
        raise MissingExtraError("itk", "itk", "Exchanging beam-space volumes with ITK") from error
    return itk
