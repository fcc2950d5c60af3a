"""Tell whether a video file ends before its own container says it should, from box and chunk sizes alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAX_BOXES = 100_000
TAIL_BYTES = 1 << 18
TS_PACKET_BYTES = 188
# Some programs append a few bytes of their own behind the end of a GIF.
GIF_TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Integrity:
    """What the container's own sizes say.

    Attributes:
        missing_bytes: how far the declared end lies beyond the end of the file, at least; 0 if it does
            not, None if the container does not declare its size.
        broken_at: byte where the chain of blocks breaks before its end, or None.
        index_lost: the table without which nothing can be decoded (``moov``) is absent.
        rate_stated: False where the header carries no frame rate, so that one must not be trusted.
    """

    missing_bytes: int | None = None
    broken_at: int | None = None
    index_lost: bool = False
    rate_stated: bool = True

    @property
    def ending(self) -> str:
        """Say how early a cut file ends, in bytes where more than one is known to be missing."""
        return (
            f"it ends {self.missing_bytes:,} bytes early"
            if (self.missing_bytes or 0) > 1
            else "it ends early"
        )


def check_integrity(path: Path, container: str) -> Integrity:
    """Compare the size that ``container`` (``"mov"``, ``"avi"``, …) declares with that of the file.

    Sources: ISO/IEC 14496-12 §4.2, Microsoft RIFF, RFC 8794 (EBML), ASF §3.2, GIF89a, ISO/IEC 13818-1.
    """
    check = _CHECKS.get(container)
    if check is None:
        return Integrity()
    with path.open("rb") as stream:
        return check(stream, path.stat().st_size)


def _check_mov(stream: BinaryIO, size: int) -> Integrity:
    position, seen = 0, set()
    for _ in range(MAX_BOXES):
        stream.seek(position)
        head = stream.read(16)
        if len(head) < 8:
            break
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        seen.add(kind)
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:
            position = size
            break
        position += length
        if position >= size:
            break
    return Integrity(max(0, position - size), index_lost=b"moov" not in seen)


def _check_avi(stream: BinaryIO, size: int) -> Integrity:
    end = 0
    while end + 12 <= size:
        stream.seek(end)
        head = stream.read(12)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
            break
        end += 8 + length + length % 2
    # Some writers leave out the final pad byte.
    missing = end - size if end > size + 1 else 0
    return Integrity(missing, rate_stated=_avi_rate_stated(stream))


def _avi_rate_stated(stream: BinaryIO) -> bool:
    stream.seek(0)
    head = stream.read(1 << 16)
    main = head.find(b"avih")
    if main >= 0 and int.from_bytes(head[main + 8 : main + 12], "little") > 0:
        return True
    video = head.find(b"strh")
    while video >= 0 and head[video + 8 : video + 12] != b"vids":
        video = head.find(b"strh", video + 4)
    scale, rate = head[video + 28 : video + 32], head[video + 32 : video + 36]
    return video >= 0 and int.from_bytes(scale, "little") > 0 and int.from_bytes(rate, "little") > 0


def _check_matroska(stream: BinaryIO, size: int) -> Integrity:
    position = 0
    for _ in range(2):
        stream.seek(position)
        head = stream.read(12)
        if len(head) < 12 or not head[0]:
            return Integrity()
        id_bytes = 9 - head[0].bit_length()
        first = head[id_bytes]
        if not first:
            return Integrity()
        size_bytes = 9 - first.bit_length()
        raw = head[id_bytes : id_bytes + size_bytes]
        value = int.from_bytes(raw, "big") & ((1 << (7 * size_bytes)) - 1)
        if value == (1 << (7 * size_bytes)) - 1:
            return Integrity()
        position += id_bytes + size_bytes + value
    return Integrity(max(0, position - size))


def _check_asf(stream: BinaryIO, size: int) -> Integrity:
    head = stream.read(1 << 14)
    properties = head.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    if properties < 0:
        return Integrity()
    declared = int.from_bytes(head[properties + 40 : properties + 48], "little")
    return Integrity(max(0, declared - size) if declared else None)


def _check_gif(stream: BinaryIO, size: int) -> Integrity:
    stream.seek(0)
    head = stream.read(13)
    start = 13 + (_colour_table_bytes(head[10]) if len(head) == 13 else 0)
    if start >= size:
        return Integrity(start - size + 1)
    stream.seek(start)
    delays: list[int] = []
    images = 0
    while block := stream.read(1):
        at = stream.tell() - 1
        if block == b"\x3b":
            # A delay of 0 means "unknown"; that of the last frame does not matter.
            timed = all(delays[:-1])
            return Integrity(0, None if size - at < GIF_TAIL_BYTES else at, rate_stated=timed)
        if block == b"\x21":
            control = stream.read(5)
            if control[:2] == b"\xf9\x04":
                delays.append(int.from_bytes(control[3:5], "little"))
            stream.seek(1 - len(control), 1)
        elif block == b"\x2c":
            descriptor = stream.read(9)
            if len(descriptor) < 9:
                return Integrity(1)
            stream.seek(_colour_table_bytes(descriptor[8]) + 1, 1)
            images += 1
        else:
            return Integrity(broken_at=at)
        while length := stream.read(1):
            if length == b"\0":
                break
            stream.seek(length[0], 1)
        if stream.tell() > size or not length:
            return Integrity(max(1, stream.tell() - size))
    # Complete blocks without the trailer: some writers omit it, and no frame is cut.
    return Integrity(0 if images else 1, rate_stated=all(delays[:-1]))


def _colour_table_bytes(packed: int) -> int:
    return 3 << ((packed & 7) + 1) if packed & 0x80 else 0


def _check_program_stream(stream: BinaryIO, size: int) -> Integrity:
    start = max(0, size - TAIL_BYTES)
    stream.seek(start)
    tail = stream.read()
    packet = tail.rfind(b"\0\0\1\xba")
    while packet >= 0 and packet + 6 <= len(tail):
        code = tail[packet + 3]
        if tail[packet : packet + 3] != b"\0\0\1" or code == 0xB9:
            break
        if code == 0xBA:
            mpeg2 = packet + 14 <= len(tail) and tail[packet + 4] & 0xC0 == 0x40
            packet += 14 + (tail[packet + 13] & 7) if mpeg2 else 12
        else:
            packet += 6 + int.from_bytes(tail[packet + 4 : packet + 6], "big")
    return Integrity(max(0, packet - len(tail)) if packet >= 0 else None)


def _check_transport_stream(stream: BinaryIO, size: int) -> Integrity:
    partial = size % TS_PACKET_BYTES
    synced = stream.read(1) == b"\x47"
    return Integrity(TS_PACKET_BYTES - partial if partial and synced else None)


_CHECKS: dict[str, Callable[[BinaryIO, int], Integrity]] = {
    "mov": _check_mov,
    "avi": _check_avi,
    "matroska": _check_matroska,
    "asf": _check_asf,
    "gif": _check_gif,
    "mpeg": _check_program_stream,
    "mpegts": _check_transport_stream,
}
