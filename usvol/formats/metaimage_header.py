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
from usvol.formats.packed_samples import check_packed
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


@dataclass(frozen=True, slots=True)
class TextHeader:
    """What the text of a header says.

    Attributes:
        sizes: samples along every axis, fastest first, components left out.
        kinds: of the same axes, such as ``"domain"`` or ``"list"``; empty if not stated.
        has_spacing: whether a sample spacing is stated.
        is_patient: whether the axes are declared to be the patient's.
        unit_mm: millimetres per unit of the stated space, None if its unit is no length.
        fields: every key and value, keys as written.
        start: byte where samples in the same file begin.
    """

    sizes: tuple[int, ...]
    components: int
    dtype: str
    kinds: tuple[str, ...]
    has_spacing: bool
    is_patient: bool
    unit_mm: float | None = 1.0
    fields: Mapping[str, str] = field(default_factory=dict)
    start: int = 0

    @property
    def is_nrrd(self) -> bool:
        """Whether it is the header of an NRRD, else of a MetaImage."""
        return "dimension" in self.fields


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
    (_check_nrrd_samples if is_nrrd else _check_meta_samples)(path, fields, needed, start)
    return dataclasses.replace(header, start=start)


def check_samples(path: Path, header: TextHeader) -> None:
    """Unpack compressed samples that lie in one file, to see whether they are whole.

    Raises:
        CorruptFileError, TruncatedFileError: they are not.
    """
    fields, nrrd = header.fields, header.is_nrrd
    place = fields.get("data file", fields.get("datafile")) if nrrd else fields["ElementDataFile"]
    packed = _is_packed_nrrd(fields) if nrrd else _is_packed_meta(fields)
    if not packed or (place is not None and _in_many_files(place)):
        return
    if place is None or (not nrrd and place.upper() == "LOCAL"):
        data, start = path, header.start
        if not nrrd and not int(fields.get("CompressedDataSize", 0)):
            cause = "its header states no CompressedDataSize, without which its samples are read wrongly"
            raise CorruptFileError(path, cause, "write it again, with ITK or without compression")
    else:
        data, start = _detached(path, place), 0 if nrrd else max(int(fields.get("HeaderSize", 0)), 0)
    needed = check_size(path, (*header.sizes, header.components), dtype=header.dtype)
    check_packed(path, data, start=start, needed=needed)


def _is_packed_meta(fields: Mapping[str, str]) -> bool:
    return fields.get("CompressedData", "False").lower() in ("true", "1")


def _is_packed_nrrd(fields: Mapping[str, str]) -> bool:
    skipped = any(int(fields.get(key, 0) or 0) for key in ("byte skip", "byteskip", "line skip", "lineskip"))
    return fields.get("encoding", "raw").lower() in ("gz", "gzip") and not skipped


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
        has_spacing=spacing is not None,
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
    return TextHeader(
        sizes=tuple(n for n, kind in zip(sizes, kinds, strict=True) if not _COMPONENTS.search(kind)),
        components=components,
        dtype=_NRRD_TYPES[fields["type"].lower()],
        kinds=tuple(kind for kind in kinds if not _COMPONENTS.search(kind)),
        has_spacing=_states_spacing(fields, kinds),
        is_patient=_PATIENT.fullmatch(space) is not None,
        unit_mm=_unit_mm(fields.get("space units", fields.get("units", ""))),
        fields=fields,
    )


def _states_spacing(fields: Mapping[str, str], kinds: Sequence[str]) -> bool:
    """Tell whether an NRRD states a spacing of each of its axes of space: three at most, the fastest."""
    directions = re.findall(r"none|\([^)]*\)", fields.get("space directions", "").lower())
    if directions:
        vectors = [axis.strip("()").split(",") for axis in directions if axis != "none"]
        return bool(vectors) and all(math.isfinite(float(v)) for vector in vectors for v in vector)
    spacings = fields.get("spacings", "").split()
    along = [v for v, kind in zip(spacings, kinds, strict=False) if not _COMPONENTS.search(kind)]
    of_space = [v for v, kind in zip(along, _axes(kinds), strict=False) if kind not in ("list", "time")][:3]
    return bool(of_space) and all(math.isfinite(float(v)) for v in of_space)


def _axes(kinds: Sequence[str]) -> list[str]:
    return [kind for kind in kinds if not _COMPONENTS.search(kind)]


def _unit_mm(units: str) -> float | None:
    stated = {unit.strip().lower() for unit in re.findall(r'"([^"]*)"', units)} - {"", *SECONDS}
    if not stated:
        return 1.0
    return _LENGTHS_MM.get(stated.pop()) if len(stated) == 1 else None


def _check_meta_samples(path: Path, fields: Mapping[str, str], needed: int, start: int) -> None:
    place = fields["ElementDataFile"]
    packed = _is_packed_meta(fields)
    if _in_many_files(place):
        return  # SimpleITK names the one that is missing
    if place.upper() == "LOCAL":
        data, skipped = path, start
    else:
        data, skipped = _detached(path, place), max(int(fields.get("HeaderSize", 0)), 0)
    there = data.stat().st_size - skipped
    stated = int(fields.get("CompressedDataSize", 0)) if packed else 0
    _compare(path, needed, there=there, packed=packed, stated=stated)


def _check_nrrd_samples(path: Path, fields: Mapping[str, str], needed: int, start: int) -> None:
    place = fields.get("data file", fields.get("datafile"))
    if place is not None and _in_many_files(place):
        return
    data, skipped = (path, start) if place is None else (_detached(path, place), 0)
    encoding = fields.get("encoding", "raw").lower()
    if encoding in ("raw", "gz", "gzip"):
        _compare(path, needed, there=data.stat().st_size - skipped, packed=encoding != "raw", stated=0)


def _in_many_files(place: str) -> bool:
    """Tell a list of files (``LIST``, ``LIST 2``, ``LIST 2D``) or a pattern from the name of one file."""
    return "%" in place or re.fullmatch(r"LIST(\s+\d+D?)?", place.strip(), re.IGNORECASE) is not None


def _detached(path: Path, place: str) -> Path:
    data = path.parent / place
    if not data.is_file():
        raise CorruptFileError(path, f"its samples' file '{place}' is missing", f"put '{place}' beside it")
    return data


def _compare(path: Path, needed: int, *, there: int, packed: bool, stated: int) -> None:
    if stated > there or needed > there * (_DEFLATE_LIMIT if packed else 1):
        raise TruncatedFileError(
            path, f"{stated or needed} bytes of samples are expected and {there} are there", "copy it again"
        )
