"""Closed vendor volumes: recognised, never guessed at, with the export that can be read instead."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from usvol.errors import UnsupportedFormatError
from usvol.scan import Header, Scan, Selection

if TYPE_CHECKING:
    from pydicom import Dataset

NAME = "vendor"

KRETZ_MAGIC = b"KRETZFILE"
QLAB_CARTESIAN = "1.2.840.113543.6.6.1.3.10002"
"""Private SOP class of the Cartesian volumes that Philips QLAB exports."""
_PHILIPS_SOP_ROOT = "1.3.46.670589."
_PHILIPS_3D_CREATORS = ("PHILIPS US PRIVATE 3D", "PHILIPS US IMAGING DD 036", "PHILIPS US IMAGING DD 045")
_KRETZ_CREATOR = b"KRETZ_US"
_TRAILING_BYTES = 64

_GE_EXPORT = (
    "on the scanner or in 4D View export the volume as Cartesian rectilinear (uncompressed), convert it "
    "with the KretzFileReader of 3D Slicer (SlicerHeart), and save it as NRRD or NIfTI"
)
_PHILIPS_EXPORT = (
    "in QLAB export the 3D volume as Cartesian DICOM and save it as NRRD with 3D Slicer (SlicerHeart), "
    "or send an Enhanced US Volume"
)


def sniff(path: Path, head: bytes) -> bool:  # noqa: ARG001  every format has this signature
    """Tell a GE Kretz volume (.vol, .v00) by its magic bytes."""
    return head.startswith(KRETZ_MAGIC)


def probe(path: Path) -> Header:
    """Refuse the file, naming the export to make."""
    refuse_kretz(path)


def read(path: Path, selection: Selection | None = None) -> Scan:  # noqa: ARG001  as above
    """Refuse the file, naming the export to make."""
    refuse_kretz(path)


def refuse_private_volume(path: Path, dataset: Dataset) -> None:
    """Refuse a DICOM file whose volume lies in private elements of its vendor.

    Philips: a private SOP class, or 3D elements of group 200D.
    A standard 2D image that only carries a vendor's display settings passes.

    Raises:
        UnsupportedFormatError: names the vendor and what to export.
    """
    sop_class = str(dataset.get("SOPClassUID") or "")
    if sop_class == QLAB_CARTESIAN or sop_class.startswith(_PHILIPS_SOP_ROOT):
        raise UnsupportedFormatError(path, f"it is a Philips private object ({sop_class})", _PHILIPS_EXPORT)
    if any(name.startswith(_PHILIPS_3D_CREATORS) for name in _creators(dataset, 0x200D)):
        cause = "its 3D data are private elements of Philips (group 200D)"
        raise UnsupportedFormatError(path, cause, _PHILIPS_EXPORT)


def refuse_trailing_volume(path: Path, file: BinaryIO) -> None:
    """Refuse a DICOM file with a GE Kretz volume in group 7FE1, which follows the samples.

    ``file`` stands behind the samples, where a header read never gets to.

    Raises:
        UnsupportedFormatError: what it holds and how to export it.
    """
    if _KRETZ_CREATOR in file.read(_TRAILING_BYTES):
        cause = "it wraps a GE Kretz volume in private elements; its image is a mere preview"
        raise UnsupportedFormatError(path, cause, _GE_EXPORT)


def _creators(dataset: Dataset, group: int) -> list[str]:
    return [
        str(dataset[tag].value).strip().upper()
        for tag in list(dataset.keys())  # not the values: they would be read
        if tag.group == group and 0x10 <= tag.element <= 0xFF
    ]


def refuse_kretz(path: Path) -> NoReturn:
    """Raise ``UnsupportedFormatError`` for a GE Kretz volume, saying how to export it."""
    raise UnsupportedFormatError(path, "it is a GE Kretz volume, a closed format", _GE_EXPORT)
