"""Headers of MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr) files, as far as SimpleITK does not tell.

It tells neither whether a spacing was stated or is ITK's default, nor whether the samples are all there.

Sources: MetaIO, https://itk.org/Wiki/MetaIO/Documentation; NRRD, https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from usvol.errors import CorruptFileError, TruncatedFileError
from usvol.formats.samples import check_size

MAX_HEADER_BYTES = 64 * 2**20
"""A tracked sweep has some 1 kB of header per frame."""

_DEFLATE_LIMIT = 1100
_META_TYPES = {
    "MET_CHAR": "int8", "MET_UCHAR": "uint8", "MET_SHORT": "int16", "MET_USHORT": "uint16",
    "MET_INT": "int32", "MET_UINT": "uint32", "MET_LONG": "int32", "MET_ULONG": "uint32",
    "MET_LONG_LONG": "int64",    "MET_ULONG_LONG": "uint64", "MET_FLOAT": "float32", "MET_DOUBLE": "float64",
}  # fmt: skip
_NRRD_TYPES = {
    "signed char": "int8", "int8": "int8", "int8_t": "int8", "uchar": "uint8", "unsigned char": "uint8",
    "uint8": "uint8", "uint8_t": "uint8", "short": "int16", "short int": "int16", "signed short": "int16",
    "int16": "int16", "int16_t": "int16", "ushort": "uint16", "unsigned short": "uint16",
    "unsigned short int": "uint16", "uint16": "uint16", "uint16_t": "uint16", "int": "int32",
    "signed int": "int32", "int32": "int32", "int32_t": "int32", "uint": "uint32", "unsigned int": "uint32",
    "uint32": "uint32", "uint32_t": "uint32", "longlong": "int64", "long long": "int64", "int64": "int64",
    "int64_t": "int64", "ulonglong": "uint64", "unsigned long long": "uint64", "uint64": "uint64",
    "uint64_t": "uint64", "float": "float32", "double": "float64",
}  # fmt: skip
SECONDS = {
    "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3, "millisecond": 1e-3,
    "milliseconds": 1e-3, "us": 1e-6, "usec": 1e-6, "microsecond": 1e-6, "microseconds": 1e-6,
}  # fmt: skip
"""Seconds per unit of time, by its names."""

_LENGTHS_MM = {
    "mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "millimetre": 1.0, "cm": 10.0, "centimeter": 10.0,
    "centimeters": 10.0, "m": 1e3, "meter": 1e3, "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "microns": 1e-3,
    "micrometer": 1e-3,
    "?": 1.0,  # as MetaIO writes where it was told none
}  # fmt: skip
_PATIENT = re.compile(r"(left|right)-(anterior|posterior)-(superior|inferior)(-time)?|[lr][ap][si]t?")
# Kinds of NRRD axes that hold the components of a sample rather than space, time or a list.
_COMPONENTS = re.compile(r"vector|color|normal|gradient|complex|quaternion|matrix|point|stub|^\d")
_NO_SPACE = re.compile(rf"{_COMPONENTS.pattern}|^(list|time)$")


@dataclass(frozen=True, slots=True)
class TextHeader:
    """What the text of a header says.

    Attributes:
        sizes: samples along every axis, fastest first, components left out.
        kinds: of the same axes, such as ``"domain"`` or ``"list"``; empty if not stated.
        unspaced: the axes of space, of ``"xyz"``, whose sample spacing is not stated.
        is_patient: whether the axes are declared to be the patient's.
        unit_mm: millimetres per unit of the stated space, None if its unit is no length.
        fields: every key and value, keys as written.
        start: byte where samples in the same file begin.
    """

    sizes: tuple[int, ...]
    components: int
    dtype: str
    kinds: tuple[str, ...]
    unspaced: str
    is_patient: bool
    unit_mm: float | None = 1.0
    fields: Mapping[str, str] = field(default_factory=dict)
    start: int = 0

    @property
    def is_nrrd(self) -> bool:
        """Whether it is the header of an NRRD, else of a MetaImage."""
        return "dimension" in self.fields

    @property
    def is_packed(self) -> bool:
        """Whether the samples are compressed, as zlib or gzip does."""
        if self.is_nrrd:
            return self.fields.get("encoding", "raw").lower() in ("gz", "gzip")
        return self.fields.get("CompressedData", "False")[:1].lower() in ("t", "1")  # as MetaIO reads it


def read_header(path: Path) -> TextHeader:
    """Read and check the text header: sizes allowed, samples there; no sample is read.

    Raises:
        CorruptFileError: a key is missing or no number, or a file of samples is missing.
        TruncatedFileError: there are fewer bytes than samples.
        TooLargeError: more samples than memory allows.
    """
    try:
        with path.open("rb") as file:
            is_nrrd = file.read(4) == b"NRRD"
            file.seek(0)
            fields = _nrrd_fields(file) if is_nrrd else _meta_fields(file)
            start = file.tell()
        header = _nrrd_header(fields) if is_nrrd else _meta_header(fields)
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        cause = f"its header cannot be read ({' '.join(str(error).split())[:120]})"
        raise CorruptFileError(path, cause, "export it again") from error
    needed = check_size(path, (*header.sizes, header.components), dtype=header.dtype)
    header = dataclasses.replace(header, start=start)
    (_check_nrrd_samples if is_nrrd else _check_meta_samples)(path, header, needed)
    return header


def _meta_fields(file: BinaryIO) -> dict[str, str]:
    fields: dict[str, str] = {}
    while file.tell() < MAX_HEADER_BYTES:
        line = file.readline(1 << 16)
        if not line:
            raise ValueError("it ends before ElementDataFile")
        key, equals, value = line.decode("utf-8", "replace").partition("=")
        if equals:
            fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            return fields
    raise ValueError("it is longer than any header")


def _nrrd_fields(file: BinaryIO) -> dict[str, str]:
    fields: dict[str, str] = {}
    file.readline(1 << 16)
    while file.tell() < MAX_HEADER_BYTES:
        line = file.readline(1 << 16)
        text = line.decode("utf-8", "replace").strip()
        if not text:
            if not line and "data file" not in fields and "datafile" not in fields:
                raise ValueError("it ends before the samples")
            return fields
        if text.startswith("#"):
            continue
        own, free = re.match(r"([^:]+): (.*)", text), re.match(r"([^:]+):=(.*)", text)
        if own:
            fields[own[1].strip().lower()] = own[2].strip()
        elif free:
            fields[free[1].strip()] = free[2].strip()
    raise ValueError("it is longer than any header")


def _meta_header(fields: Mapping[str, str]) -> TextHeader:
    if fields.get("ObjectType", "Image") != "Image":
        raise ValueError(f"it holds a {fields['ObjectType']}, not an image")
    sizes = tuple(int(value) for value in fields["DimSize"].split())
    if len(sizes) != int(fields.get("NDims", len(sizes))):
        raise ValueError(f"{len(sizes)} sizes for {fields['NDims']} axes")
    spacing = fields.get("ElementSpacing", fields.get("ElementSize"))
    return TextHeader(
        sizes=sizes,
        components=int(fields.get("ElementNumberOfChannels", 1)),
        dtype=_META_TYPES[fields["ElementType"].removesuffix("_ARRAY")],
        kinds=tuple(fields.get("Kinds", "").split()),
        unspaced="" if spacing is not None else "xyz"[: len(sizes)],
        # ITK writes AnatomicalOrientation always, so it declares nothing.
        is_patient=False,
        unit_mm=_LENGTHS_MM.get(fields.get("DistanceUnits", "mm").lower()),
        fields=fields,
    )


def _nrrd_header(fields: Mapping[str, str]) -> TextHeader:
    sizes = [int(value) for value in fields["sizes"].split()]
    kinds = fields.get("kinds", "").lower().split() or ["domain"] * len(sizes)
    if not len(sizes) == int(fields["dimension"]) == len(kinds):
        raise ValueError(f"{len(sizes)} sizes and {len(kinds)} kinds for {fields['dimension']} axes")
    components = math.prod(n for n, kind in zip(sizes, kinds, strict=True) if _COMPONENTS.search(kind))
    space = fields.get("space", "").lower()
    space_axes = [n for n, kind in enumerate(kinds) if not _NO_SPACE.search(kind)]
    return TextHeader(
        sizes=tuple(n for n, kind in zip(sizes, kinds, strict=True) if not _COMPONENTS.search(kind)),
        components=components,
        dtype=_NRRD_TYPES[fields["type"].lower()],
        kinds=tuple(kind for kind in kinds if not _COMPONENTS.search(kind)),
        unspaced=_unspaced(fields, space_axes),
        is_patient=_PATIENT.fullmatch(space) is not None,
        unit_mm=_unit_mm(fields, space_axes),
        fields=fields,
    )


def _unspaced(fields: Mapping[str, str], axes: Sequence[int]) -> str:
    """Return which of the axes of space, of ``"xyz"``, have no spacing in an NRRD's header."""
    stated = re.findall(r"none|\([^)]*\)", fields.get("space directions", "").lower())
    stated = stated or fields.get("spacings", "").split()
    spaced = {
        place
        for place, value in enumerate(stated)
        if value != "none" and all(math.isfinite(float(part)) for part in value.strip("()").split(","))
    }
    return "".join(name for name, place in zip("xyz", axes or (-1,), strict=False) if place not in spaced)


def _unit_mm(fields: Mapping[str, str], axes: Sequence[int]) -> float | None:
    """Return the millimetres per unit of an NRRD's axes of space; a unit that is not stated is 1 mm."""
    units = re.findall(r'"([^"]*)"', fields.get("space units", fields.get("units", "")))
    if "space units" not in fields:
        units = [units[place] for place in axes if place < len(units)]
    stated = {unit.strip().lower() for unit in units[:3]} - {""}
    if not stated:
        return 1.0
    return _LENGTHS_MM.get(stated.pop()) if len(stated) == 1 else None


def _check_meta_samples(path: Path, header: TextHeader, needed: int) -> None:
    fields, place = header.fields, header.fields["ElementDataFile"]
    if in_many_files(place):
        return  # SimpleITK names the one that is missing
    if place.upper() == "LOCAL":
        data, skipped = path, header.start
    else:
        data, skipped = detached(path, place), max(int(fields.get("HeaderSize", 0)), 0)
    there = data.stat().st_size - skipped
    stated = int(fields.get("CompressedDataSize", 0)) if header.is_packed else 0
    _compare(path, needed, there=there, packed=header.is_packed, stated=stated)


def _check_nrrd_samples(path: Path, header: TextHeader, needed: int) -> None:
    fields = header.fields
    place = fields.get("data file", fields.get("datafile"))
    if place is not None and in_many_files(place):
        return
    data, skipped = (path, header.start) if place is None else (detached(path, place), 0)
    if header.is_packed or fields.get("encoding", "raw").lower() == "raw":
        _compare(path, needed, there=data.stat().st_size - skipped, packed=header.is_packed, stated=0)


def in_many_files(place: str) -> bool:
    """Tell a list of files (``LIST``, ``LIST 2``, ``LIST 2D``) or a pattern from the name of one file."""
    return "%" in place or re.fullmatch(r"LIST(\s+\d+D?)?", place.strip(), re.IGNORECASE) is not None


def detached(path: Path, place: str) -> Path:
    """Return the file of samples beside a header.

    Raises:
        CorruptFileError: it is not there.
    """
    data = path.parent / place
    if not data.is_file():
        raise CorruptFileError(path, f"its samples' file '{place}' is missing", f"put '{place}' beside it")
    return data


def _compare(path: Path, needed: int, *, there: int, packed: bool, stated: int) -> None:
    if stated > there or needed > there * (_DEFLATE_LIMIT if packed else 1):
        raise TruncatedFileError(
            path, f"{stated or needed} bytes of samples are expected and {there} are there", "copy it again"
        )
