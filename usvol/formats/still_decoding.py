"""Decode png, jpg, tif and bmp with Pillow, bounded in memory, its many exceptions made typed errors."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from usvol.errors import (
    CorruptFileError,
    EmptyFileError,
    ReadError,
    TooLargeError,
    TruncatedFileError,
    UnsupportedFormatError,
)
from usvol.formats.quiet import unwarned

MAX_PIXELS = 100_000_000
EXIF_ORIENTATION = 0x0112
TIFF_STRIPS, TIFF_TILES = (273, 279), (324, 325)
TIFF_PHOTOMETRIC, TIFF_WHITE_IS_ZERO = 262, 0
TAIL_BYTES = 4096
SIDEWAYS = frozenset({5, 6, 7, 8})
# What Pillow's parsers raise on damaged bytes.
DAMAGE = (
    OSError, SyntaxError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, EOFError,
    NotImplementedError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
# Pillow mode -> (mode to convert to, numpy type); other modes become RGB.
SAMPLE_MODES = {
    "1": ("L", "uint8"),
    "L": ("L", "uint8"),
    "LA": ("LA", "uint8"),
    "I;16": ("I;16", "uint16"),
    "I;16L": ("I;16", "uint16"),
    "I;16B": ("I;16B", "uint16"),
    "I": ("I", "int32"),
    "F": ("F", "float32"),
    "RGBA": ("RGBA", "uint8"),
    "PA": ("RGBA", "uint8"),
    "RGBa": ("RGBA", "uint8"),
    "La": ("LA", "uint8"),
}
GREY_MODES = frozenset({"L", "LA", "I;16", "I;16B", "I", "F"})


@dataclass(frozen=True, slots=True)
class Page:
    """What the first page of an image file says, upright.

    Attributes:
        pages: how many pages the file has.
        print_dpi: the print resolution that the file states, which is no calibration, or None.
    """

    height: int
    width: int
    channels: int
    dtype: str
    pages: int
    print_dpi: float | None
    warnings: tuple[str, ...]


@contextlib.contextmanager
def open_still(path: Path) -> Iterator[Image.Image]:
    """Open an image file, turning what goes wrong inside the block into ``ReadError`` naming the file."""
    if path.stat().st_size == 0:
        raise EmptyFileError(path, "it has no bytes", "copy or export it again")
    try:
        # Sizes are judged here, and damaged metadata does not matter.
        with unwarned(), Image.open(path, formats=FORMATS) as image:
            _check_pixels(path, image)
            yield image
    except ReadError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        cause = f"it asks for too much memory ({error})"
        raise TooLargeError(path, cause, "check that it is whole") from error
    except UnidentifiedImageError as error:
        raise _unidentified(path) from error
    except DAMAGE as error:
        raise _damaged(path, error) from error


def describe(path: Path) -> Page:
    """Read the header of an image file, decoding its samples only where their end seems to be missing."""
    with open_still(path) as image:
        is_in_doubt = _lacks_end(path, image)
    if is_in_doubt:
        with open_still(path) as image:
            image.load()
    with open_still(path) as image:
        height, width = image.height, image.width
        if image.getexif().get(EXIF_ORIENTATION) in SIDEWAYS:
            height, width = width, height
        mode, dtype = _sample_mode(image)
        dpi = image.info.get("dpi") or image.info.get("jfif_density")
        return Page(
            height=height,
            width=width,
            channels=1 if mode in GREY_MODES else 3,
            dtype=dtype,
            pages=getattr(image, "n_frames", 1) if image.format != "MPO" else 1,
            print_dpi=float(dpi[0]) if dpi and float(dpi[0]) > 1 else None,
            warnings=_depth_warnings(image),
        )


def has_pages(path: Path) -> bool:
    """Tell a tif of several pages of one size (a smaller second page is a thumbnail), by its header."""
    if path.suffix.lower() not in {".tif", ".tiff"}:
        return False
    try:
        with open_still(path) as image:
            size = image.size
            image.seek(1)
            return image.size == size
    except (OSError, ReadError):  # it has no other page, or is damaged, which reading it tells
        return False


def _lacks_end(path: Path, image: Image.Image) -> bool:
    """Tell whether the last strip, or the mark that ends the file, is not where it should be."""
    size = path.stat().st_size
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        for offsets, lengths in (TIFF_STRIPS, TIFF_TILES):
            places = zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=False)
            if any(start + length > size for start, length in places):
                return True
        return False
    with path.open("rb") as stream:
        head = stream.read(8)
        stream.seek(max(0, size - TAIL_BYTES))
        tail = stream.read()
    if image.format == "BMP":
        return int.from_bytes(head[2:6], "little") > size
    return (b"IEND" if image.format == "PNG" else b"\xff\xd9") not in tail


def page_samples(image: Image.Image, index: int, *, path: Path) -> np.ndarray:
    """Decode one page to ``y x c``, upright, alpha laid on black."""
    if index or image.tell():
        image.seek(index)
        _check_pixels(path, image)
    image.load()
    mode, dtype = _sample_mode(image)
    is_inverted = _is_inverted(image)
    upright = ImageOps.exif_transpose(image)
    pixels = np.asarray(upright if upright.mode == mode else upright.convert(mode))
    if mode in {"LA", "RGBA"}:
        alpha = pixels[..., -1:].astype(np.uint16)
        pixels = ((pixels[..., :-1] * alpha + 127) // 255).astype(np.uint8)
    if is_inverted:
        pixels = ~pixels
    return np.atleast_3d(pixels).astype(dtype, copy=False)


def _is_inverted(image: Image.Image) -> bool:
    """Tell 16-bit samples of which 0 is white, which Pillow leaves as they are (TIFF 6.0, section 3)."""
    tags: Any = getattr(image, "tag_v2", {})
    return image.mode == "I;16" and tags.get(TIFF_PHOTOMETRIC) == TIFF_WHITE_IS_ZERO


def _sample_mode(image: Image.Image) -> tuple[str, str]:
    if image.mode == "P":
        if "transparency" in image.info:
            return "RGBA", "uint8"
        return ("L" if _is_grey_palette(image) else "RGB"), "uint8"
    if image.mode in {"L", "RGB"} and "transparency" in image.info:
        return ("LA" if image.mode == "L" else "RGBA"), "uint8"
    return SAMPLE_MODES.get(image.mode, ("RGB", "uint8"))


def _is_grey_palette(image: Image.Image) -> bool:
    entries = np.asarray(image.getpalette("RGB"), int).reshape(-1, 3)
    return bool((entries == entries[:, :1]).all())


def _depth_warnings(image: Image.Image) -> tuple[str, ...]:
    tiles = getattr(image, "tile", None)
    raw_mode = str(tiles[0][3]) if tiles else ""
    if image.mode in {"RGB", "RGBA", "LA"} and "16" in raw_mode:
        return ("its 16-bit colour is read as 8 bits",)
    return ()


def _check_pixels(path: Path, image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise TooLargeError(
            path,
            f"its header states {image.width}x{image.height} pixels, more than {MAX_PIXELS:,}",
            "check that it is whole, or export it smaller",
        )
    if image.width < 1 or image.height < 1:
        raise EmptyFileError(path, "it has no pixels", "export it again")


def _unidentified(path: Path) -> ReadError:
    with path.open("rb") as stream:
        head = stream.read(4)
    if head in {b"II*\0", b"MM\0*"}:
        cause = "this kind of tif (bit depth, colour or compression) cannot be read"
        return UnsupportedFormatError(path, cause, "export it as 8 or 16-bit grey or 8-bit RGB")
    return CorruptFileError(path, "its image header cannot be read", "copy or export it again")


def _damaged(path: Path, error: BaseException) -> ReadError:
    text = str(error) or type(error).__name__
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return TruncatedFileError(path, f"it ends early ({text})", "copy it again")
    return CorruptFileError(path, f"its samples cannot be decoded ({text})", "copy or export it again")
