"""Tell whether compressed samples are whole, which the libraries that read MetaImage and NRRD do not."""

from __future__ import annotations

import zlib
from pathlib import Path

from usvol.errors import CorruptFileError, TruncatedFileError

_READ_BYTES, _OUT_BYTES = 1 << 18, 1 << 22
_SURPLUS_BYTES = 64 << 20  # beyond what is needed that is unpacked to reach the checksum
_ANY_HEADER = zlib.MAX_WBITS | 32  # of zlib or gzip


def check_packed(path: Path, data: Path, *, start: int, needed: int) -> None:
    """Unpack the samples from byte ``start`` of ``data`` to the end of their stream, keeping nothing.

    Source: RFC 1950 and 1952: a checksum follows the stream.

    Raises:
        CorruptFileError: the stream is broken, or its checksum another.
        TruncatedFileError: it ends early, or holds fewer bytes than ``needed``.
    """
    total = 0
    unpacking = zlib.decompressobj(_ANY_HEADER)
    with data.open("rb") as file:
        file.seek(start)
        while not unpacking.eof and total <= needed + _SURPLUS_BYTES:
            packed = unpacking.unconsumed_tail or file.read(_READ_BYTES)
            if not packed:
                raise TruncatedFileError(path, "its compressed samples end early", "copy it again")
            try:
                total += len(unpacking.decompress(packed, _OUT_BYTES))
            except zlib.error as error:
                cause = f"its compressed samples are damaged ({error})"
                raise CorruptFileError(path, cause, "copy or export it again") from error
            if unpacking.eof and total < needed:
                # Members one after another are one stream.
                rest = unpacking.unused_data or file.read(_READ_BYTES)
                if not rest:
                    break
                file.seek(file.tell() - len(rest))
                unpacking = zlib.decompressobj(_ANY_HEADER)
    if total < needed:
        cause = f"{needed} bytes of samples are expected and unpack to {total}"
        raise TruncatedFileError(path, cause, "copy it again")
