"""Find damaged frames of a GIF with Pillow, since libavcodec decodes them without a word."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

from usvol.formats.quiet import unwarned

# What Pillow's GIF parser raises on damaged bytes.
DAMAGE = (OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, struct.error)


def first_damaged_frame(path: Path) -> int | None:
    """Return the number of the first frame whose compressed samples are invalid or cut, or None."""
    from PIL import Image

    number = 0
    with unwarned():
        try:
            with Image.open(path, formats=("GIF",)) as image:
                for number in itertools.count():
                    image.seek(number)
                    image.load()
        except EOFError:
            return None
        except DAMAGE:
            return number
    return None
