"""Tell whether compressed samples are whole, which the libraries that read MetaImage and NRRD do not.

Sources: RFC 1950 and 1952 (a checksum follows the stream); NRRD, https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from usvol.errors import CorruptFileError, TruncatedFileError
from usvol.formats.metaimage_header import MAX_HEADER_BYTES, TextHeader, detached, in_many_files
from usvol.formats.samples import check_size

_READ_BYTES, _OUT_BYTES = 1 << 18, 1 << 22
_SURPLUS_BYTES = 64 << 20  # beyond what is needed that is unpacked to reach the checksum
_GZIP, _ZLIB_OR_GZIP = zlib.MAX_WBITS | 16, zlib.MAX_WBITS | 32
_MAX_FILES = 100_000
_LIST_KEY = re.compile(r"\s*(ElementDataFile\s*=|data ?file:)", re.IGNORECASE)


def check_samples(path: Path, header: TextHeader) -> None:
    """Unpack compressed samples to the end, keeping nothing, to see whether they are whole.

    Raises:
        CorruptFileError: a stream is broken, or its checksum another.
        TruncatedFileError: it ends early, or holds fewer bytes than the header needs.
    """
    if header.is_packed:
        needed = check_size(path, (*header.sizes, header.components), dtype=header.dtype)
        (_check_nrrd if header.is_nrrd else _check_meta)(path, header, needed)


def _check_meta(path: Path, header: TextHeader, needed: int) -> None:
    fields, place = header.fields, header.fields["ElementDataFile"]
    is_local = place.upper() == "LOCAL"
    start = header.start if is_local else max(int(fields.get("HeaderSize", 0)), 0)
    stated = int(fields.get("CompressedDataSize", 0))
    if start and not stated:
        cause = "its header states no CompressedDataSize, without which its samples are read wrongly"
        raise CorruptFileError(path, cause, "write it again, with ITK or without compression")
    files, share = ([path], needed) if is_local else _files(path, place, needed)
    for data in files:
        with data.open("rb") as file:
            file.seek(start)
            blocks = _blocks(file, stated or data.stat().st_size)
            _unpack(path, blocks, needed=share, kind=_ZLIB_OR_GZIP)


def _check_nrrd(path: Path, header: TextHeader, needed: int) -> None:
    """Check an NRRD, whose lines are skipped before and whose bytes are skipped after unpacking."""
    fields = header.fields
    place = fields.get("data file", fields.get("datafile"))
    lines = int(fields.get("line skip", fields.get("lineskip", 0)))
    skipped = int(fields.get("byte skip", fields.get("byteskip", 0)))
    files, share = ([path], needed) if place is None else _files(path, place, needed)
    for data in files:
        with data.open("rb") as file:
            file.seek(header.start if place is None else 0)
            _skip_lines(file, lines)
            # -1 stands for the samples at the end, -2 for one byte after them.
            more = skipped if skipped >= 0 else -skipped - 1
            blocks = _blocks(file, data.stat().st_size)
            _unpack(path, blocks, needed=share + more, kind=_GZIP, to_end=skipped < 0)


def _unpack(path: Path, blocks: Iterator[bytes], *, needed: int, kind: int, to_end: bool = False) -> None:
    """Unpack a stream; of gzip alone, as in NRRD, members one after another are one.

    ``to_end`` if samples are counted from the end of the file, so that nothing may follow the stream.
    """
    total, unpacking, packed = 0, zlib.decompressobj(kind), b""
    while True:
        packed = packed or next(blocks, b"")
        if not packed:
            raise TruncatedFileError(path, "its compressed samples end early", "copy it again")
        try:
            total += len(unpacking.decompress(packed, _OUT_BYTES))
        except zlib.error as error:
            cause = f"its compressed samples are damaged ({error})"
            raise CorruptFileError(path, cause, "copy or export it again") from error
        if total > needed + _SURPLUS_BYTES and not to_end:
            cause = f"{needed} bytes of samples are expected and unpack to more than {total - 1}"
            raise CorruptFileError(path, cause, "export it again")
        packed = unpacking.unconsumed_tail
        if unpacking.eof:
            packed = unpacking.unused_data or next(blocks, b"")
            if (total >= needed and not to_end) or not packed or kind != _GZIP:
                break
            unpacking = zlib.decompressobj(kind)
    if total < needed:
        cause = f"{needed} bytes of samples are expected and unpack to {total}"
        raise TruncatedFileError(path, cause, "copy it again")


def _blocks(file: BinaryIO, count: int) -> Iterator[bytes]:
    """Yield the next ``count`` bytes, or as many as there are."""
    while count > 0 and (block := file.read(min(_READ_BYTES, count))):
        count -= len(block)
        yield block


def _skip_lines(file: BinaryIO, lines: int) -> None:
    while lines > 0 and (part := file.readline(_READ_BYTES)):
        lines -= part.endswith(b"\n")


def _files(path: Path, place: str, needed: int) -> tuple[list[Path], int]:
    """Return the files of samples, and how many bytes each must hold; SimpleITK names any that is missing."""
    if not in_many_files(place):
        return [detached(path, place)], needed
    names = _numbered(place) if "%" in place else _listed(path)
    files = [path.parent / name for name in names]
    return [file for file in files if file.is_file()], needed // max(len(files), 1)


def _numbered(place: str) -> list[str]:
    """Return the names that a pattern such as ``plane%03d.gz 1 28 1`` stands for."""
    parts = re.fullmatch(r"(.*)%(0?\d?)[du](\S*)\s+(\d+)\s+(\d+)(\s+-?\d+)?(\s+\d+)?", place)
    if parts is None:
        return []
    first, last, step = int(parts[4]), int(parts[5]), int(parts[6] or 1)
    numbers = range(first, last + (1 if step > 0 else -1), step)[:_MAX_FILES]
    return [f"{parts[1]}{number:{parts[2]}d}{parts[3]}" for number in numbers]


def _listed(path: Path) -> list[str]:
    """Return the names below the last key of a header."""
    with path.open("rb") as file:
        lines = file.read(MAX_HEADER_BYTES).decode("utf-8", "replace").splitlines()
    last = next((place for place, line in enumerate(lines) if _LIST_KEY.match(line)), len(lines))
    return [line.strip() for line in lines[last + 1 :] if line.strip()][:_MAX_FILES]
