"""Open a DICOM header safely: typed errors, bounded memory, no identity.

Sources: DICOM PS3.3 (modules), PS3.5 (encoding), PS3.10 (files).
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from usvol.errors import (
    CorruptFileError,
    EmptyFileError,
    EncryptedFileError,
    ReadError,
    TooLargeError,
    TruncatedFileError,
    UnknownFormatError,
    UnsupportedFormatError,
)
from usvol.formats import vendor
from usvol.formats.quiet import unwarned
from usvol.formats.samples import MAX_DECODED_BYTES, check_size
from usvol.scan import Calibration, Source

# A damaged header makes pydicom fail wherever it happens to stand.
PARSE_ERRORS = (
    InvalidDicomError, BytesLengthException, OSError, EOFError, ValueError, TypeError, KeyError,
    IndexError, AttributeError, NotImplementedError, OverflowError, RecursionError, MemoryError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip

_TAG = re.compile(r"\(([0-9A-Fa-f]{4}), ?([0-9A-Fa-f]{4})\)")
_PYDICOM_LOG = logging.getLogger("pydicom")
_CMS_ENVELOPED = bytes.fromhex("06092a864886f70d010703")
_DEFERRED_BYTES = 4096
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_UNDEFINED = 0xFFFFFFFF
_ITEM, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
_NO_IDENTITY = frozenset(
    {"", "-", "--", "0", "na", "n/a", "none", "unknown", "anon", "anonymous", "anonymized", "anonymised"}
)
# Files without a preamble start with one of these elements, in little endian.
_FIRST_ELEMENTS = tuple(map(bytes.fromhex, ("02000000", "08000000", "08000500", "08000800", "08001600")))


@dataclass(frozen=True, slots=True)
class Layout:
    """The stored samples: sizes, bits and how many frames the file really has room for."""

    rows: int
    columns: int
    frames: int
    samples_per_pixel: int
    bits_allocated: int
    photometric: str
    warnings: tuple[str, ...] = ()

    @property
    def is_palette(self) -> bool:
        """Whether the samples are indices of a colour table."""
        return self.photometric == "PALETTE COLOR"

    @property
    def channels(self) -> int:
        """Channels after decoding."""
        return 3 if self.is_palette else self.samples_per_pixel


class ContradictionError(ValueError):
    """What a header says cannot be; its text is shown, so it quotes no text of the file."""


@contextmanager
def typed_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn what pydicom raises on damaged input into ``CorruptFileError`` naming the file.

    What pydicom raises, logs and warns of quotes values, the patient's name among them: it is neither
    shown nor chained.
    """
    silence = _Silence()
    _PYDICOM_LOG.addFilter(silence)
    try:
        with unwarned():
            yield
    except ReadError:
        raise
    except FileNotFoundError as error:
        raise ReadError(path, "there is no such file", "check the path") from error
    except PARSE_ERRORS as error:
        raise CorruptFileError(path, f"{doing} failed ({_reason(error)})", "export the study again") from None
    finally:
        _PYDICOM_LOG.removeFilter(silence)


def _reason(error: BaseException) -> str:
    """Name the kind of error and the attributes it speaks of, but none of their values."""
    if isinstance(error, ContradictionError):
        return str(error)
    tags = dict.fromkeys(f"({group},{element})".upper() for group, element in _TAG.findall(str(error)))
    return " ".join([type(error).__name__, *(["at", *tags] if tags else [])])


class _Silence(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002  the signature is logging's
        return False


def is_dicom(path: Path, head: bytes) -> bool:
    """Tell a DICOM file by its preamble, first element or envelope, and a GE Kretz volume by its magic."""
    if head[128:132] == b"DICM" or head.startswith((*_FIRST_ELEMENTS, vendor.KRETZ_MAGIC)):
        return True
    return is_encrypted(head) and path.suffix.lower() in ("", ".dcm", ".dicom", ".p7m")


def is_encrypted(head: bytes) -> bool:
    """Tell a DICOM Secure File (CMS enveloped data, PS3.15 Annex D)."""
    return head[:1] == b"\x30" and _CMS_ENVELOPED in head[:64]


def open_header(path: Path) -> tuple[pydicom.Dataset, Layout]:
    """Read everything but the samples, and check that the samples can be there.

    Raises:
        EmptyFileError, EncryptedFileError, TruncatedFileError, CorruptFileError, TooLargeError,
        UnsupportedFormatError: as their names say.
    """
    with typed_errors(path, "reading the DICOM header"), path.open("rb") as file:
        head = file.read(4096)
        if not head:
            raise EmptyFileError(path, "the file is empty", "copy or export it again")
        if is_encrypted(head):
            raise EncryptedFileError(path, "it is an encrypted DICOM file", "export it without encryption")
        if head.startswith(vendor.KRETZ_MAGIC):
            vendor.refuse_kretz(path)
        _check_deflated(path, file)
        file.seek(0)
        dataset = pydicom.dcmread(file, stop_before_pixels=True, defer_size=_DEFERRED_BYTES, force=True)
        _complete_meta(path, dataset)
        vendor.refuse_private_volume(path, dataset)
        layout = _layout(path, dataset, file)
        vendor.refuse_trailing_volume(path, file)
        return dataset, layout


def glance(path: Path, keywords: Sequence[str]) -> pydicom.Dataset:
    """Read a few attributes of a file, whatever became of its samples."""
    with typed_errors(path, "reading the DICOM header"), path.open("rb") as file:
        _check_deflated(path, file)
        file.seek(0)
        return pydicom.dcmread(
            file,
            stop_before_pixels=True,
            defer_size=_DEFERRED_BYTES,
            specific_tags=list(keywords),
            force=True,
        )


def patient_key(dataset: pydicom.Dataset) -> str | None:
    """Return a pseudonym made of PatientID (0010,0020), or None for a placeholder: see ``Source``."""
    identity = str(dataset.get("PatientID") or "").strip()
    if identity.lower() in _NO_IDENTITY:
        return None
    return hashlib.sha256(b"usvol patient key 1:" + identity.encode("utf-8", "replace")).hexdigest()


def text(dataset: pydicom.Dataset, keyword: str) -> str | None:
    """Return an attribute as one line of text, the first value of many, or None when empty."""
    value = dataset.get(keyword)
    if value is not None and not isinstance(value, str | bytes) and hasattr(value, "__iter__"):
        value = next(iter(value), None)
    return str(value).strip() or None if value is not None else None


def annotation_warnings(dataset: pydicom.Dataset) -> tuple[str, ...]:
    """Warn of text burned into the samples, which may name the patient."""
    burned = (text(dataset, "BurnedInAnnotation") or "").upper()
    if burned == "YES":
        return ("burned-in annotation: the samples show text that may identify the patient",)
    if burned != "NO" and text(dataset, "Modality") in ("US", "IVUS", None):
        return ("BurnedInAnnotation (0028,0301) is absent: the samples may show identifying text",)
    return ()


def describe(
    path: Path,
    dataset: pydicom.Dataset,
    *,
    calibration: Calibration,
    warnings: tuple[str, ...] = (),
    facts: Mapping[str, Any] | None = None,
) -> Source:
    """Return the source of a scan; no name, date or UID of the patient or study enters it."""
    general = {
        "transfer_syntax": transfer_syntax(dataset),
        "photometric": text(dataset, "PhotometricInterpretation"),
        "model": text(dataset, "ManufacturerModelName"),
        "lossy": text(dataset, "LossyImageCompression") == "01",
    }
    return Source(
        path=path,
        format="dicom",
        calibration=calibration,
        modality=text(dataset, "Modality"),
        vendor=text(dataset, "Manufacturer"),
        probe=text(dataset, "TransducerData") or text(dataset, "TransducerType"),
        patient_key=patient_key(dataset),
        warnings=warnings,
        metadata=MappingProxyType({**general, **(facts or {})}),
    )


def _complete_meta(path: Path, dataset: pydicom.Dataset) -> None:
    if not len(dataset):
        raise CorruptFileError(path, "no DICOM attribute could be read", "export it again")
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_private or not syntax.is_transfer_syntax:
        shown = f" {syntax}" if syntax.is_valid else ""
        raise UnsupportedFormatError(
            path, f"its transfer syntax{shown} is not in the standard", "export it uncompressed or as JPEG"
        )


def _check_deflated(path: Path, file: BinaryIO) -> None:
    file.seek(128)
    if file.read(4) != b"DICM":
        return
    meta = read_file_meta_info(path)
    file.seek(132 + 12 + int(meta.FileMetaInformationGroupLength))
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while block := file.read(1 << 20):
        while block:
            total += len(inflater.decompress(block, 1 << 24))
            block = inflater.unconsumed_tail
            if total > MAX_DECODED_BYTES:
                raise TooLargeError(path, "it inflates beyond all measure", "export it uncompressed")


def _layout(path: Path, dataset: pydicom.Dataset, file: BinaryIO) -> Layout:
    rows, columns = _count(dataset, "Rows"), _count(dataset, "Columns")
    if rows is None or columns is None:
        raise _no_image(path, dataset, is_at_end=not file.read(1))
    frames = _frames(path, dataset)
    samples = _count(dataset, "SamplesPerPixel") or 1
    bits = _count(dataset, "BitsAllocated") or 8
    if bits not in (1, 8, 16, 32, 64) or samples not in (1, 3, 4):
        raise CorruptFileError(path, f"{bits} bits and {samples} samples per pixel", "export it again")
    photometric = (text(dataset, "PhotometricInterpretation") or "MONOCHROME2").upper()
    layout = Layout(rows, columns, frames, samples, bits, photometric)
    check_size(path, (rows, columns, layout.channels), dtype=f"u{max(bits // 8, 1)}")
    return dataclasses.replace(layout, warnings=_check_samples(path, dataset, file, layout))


def _no_image(path: Path, dataset: pydicom.Dataset, *, is_at_end: bool) -> ReadError:
    uid = dataset.get("SOPClassUID")
    if not isinstance(uid, UID) or not uid.is_valid:
        return UnknownFormatError(path, "it is not DICOM, or its header is damaged", "give the scan itself")
    if "Image Storage" in uid.name:
        if is_at_end:
            return TruncatedFileError(path, "it ends within its header", "copy or export it again")
        return CorruptFileError(path, "its header states no image size", "export it again")
    cause = f"it holds no image ({uid.name})"
    return UnsupportedFormatError(path, cause, "open an image object of that study")


def _frames(path: Path, dataset: pydicom.Dataset) -> int:
    value = dataset.get("NumberOfFrames")
    if value is None or value == "":
        return 1
    frames = int(value)
    if frames < 1:
        raise EmptyFileError(path, f"NumberOfFrames is {frames}", "export it again")
    return frames


def _count(dataset: pydicom.Dataset, keyword: str) -> int | None:
    value = dataset.get(keyword)
    return None if value is None or value == "" else int(value)


def _check_samples(path: Path, dataset: pydicom.Dataset, file: BinaryIO, layout: Layout) -> tuple[str, ...]:
    """Compare the claimed samples with the bytes behind the header, and step over them unread."""
    if dataset.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        return ()  # the header was read from the inflated copy, so the file position says nothing
    length = _pixel_length(dataset, file)
    if length is None:
        raise TruncatedFileError(path, "it ends before its samples", "copy or export it again")
    left = path.stat().st_size - file.tell()
    if length == _UNDEFINED:
        return _check_fragments(path, file, layout)
    bits = layout.rows * layout.columns * layout.samples_per_pixel * layout.bits_allocated * layout.frames
    expected = -(-bits // 8)
    if layout.photometric == "YBR_FULL_422":
        expected = expected // 3 * 2
    if expected > MAX_DECODED_BYTES and expected > length:
        raise TooLargeError(
            path, f"its header claims {expected / 2**30:.0f} GiB of samples and the file has {left} bytes",
            "copy or export it again",
        )  # fmt: skip
    if length > left or expected > left:
        raise TruncatedFileError(
            path, f"{expected} bytes of samples are expected and {left} are there", "copy or export it again"
        )
    if expected > length:
        raise CorruptFileError(
            path, f"{layout.frames} frame(s) need {expected} bytes and its pixel data has {length}",
            "export it again",
        )  # fmt: skip
    file.seek(length, 1)
    return ()


def _pixel_length(dataset: pydicom.Dataset, file: BinaryIO) -> int | None:
    """Read the header of the pixel data element that the file stands at; return its length."""
    implicit, little = dataset.original_encoding
    order = "<" if little else ">"
    header = file.read(8)
    if len(header) < 8:
        return None
    group, element, length = struct.unpack(order + "HHL", header)
    if BaseTag(group << 16 | element) not in _PIXEL_TAGS:
        return None
    if implicit:
        return length
    if header[4:6] in (b"OB", b"OW", b"OF", b"OD", b"UN", b"OL", b"OV"):
        longer = file.read(4)
        return struct.unpack(order + "L", longer)[0] if len(longer) == 4 else None
    return struct.unpack(order + "H", header[6:8])[0]


def _check_fragments(path: Path, file: BinaryIO, layout: Layout) -> tuple[str, ...]:
    end, fragments, closed = path.stat().st_size, -1, False
    while header := file.read(8):
        if len(header) < 8:
            break
        group, element, length = struct.unpack("<HHL", header)
        tag = group << 16 | element
        if tag == _SEQUENCE_END:
            closed = True
            break
        if tag != _ITEM:
            raise CorruptFileError(path, "its compressed frames are not delimited", "export it again")
        if file.tell() + length > end:
            raise TruncatedFileError(
                path, f"it ends inside compressed fragment {fragments + 2} for {layout.frames} frame(s)",
                "copy or export it again",
            )  # fmt: skip
        file.seek(length, 1)
        fragments += 1
    if fragments < layout.frames:
        kind = CorruptFileError if closed else TruncatedFileError
        raise kind(
            path,
            f"{layout.frames} frame(s) are announced and {max(fragments, 0)} compressed fragment(s) found",
            "copy or export it again",
        )
    return () if closed else ("the compressed samples are not closed by a delimiter",)


def transfer_syntax(dataset: pydicom.Dataset) -> str:
    """Return the name of the transfer syntax."""
    uid: Any = dataset.file_meta.TransferSyntaxUID
    return str(uid.name)
