"""Find the numbered stills of a folder that together are one cine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
# Files that may lie beside the stills without being part of the series.
BYSTANDERS = frozenset({".txt", ".csv", ".json", ".xml", ".yaml", ".yml", ".md", ".log", ".ini"})
BYSTANDER_NAMES = frozenset({"license", "licence", "readme", "changelog", "notice", "thumbs.db"})
LAST_NUMBER = re.compile(r"(\d+)(?=\D*$)")


@dataclass(frozen=True, slots=True)
class Series:
    """Stills in the order of their numbers, and the numbers that are missing in between."""

    paths: tuple[Path, ...]
    gaps: int


def find_series(folder: Path) -> Series | None:
    """Return the stills of ``folder`` in natural order, or None where it holds anything but one series.

    One series: two or more stills whose names differ in their last number only (``beat_9.png``,
    ``beat_10.png``); text files and hidden files beside them do not matter.
    """
    numbered: dict[int, Path] = {}
    template = None
    for path in _candidates(folder):
        number = LAST_NUMBER.search(path.stem)
        if path.suffix.lower() not in SUFFIXES or number is None:
            return None
        name = (path.stem[: number.start()], path.stem[number.end() :], path.suffix.lower())
        template = template or name
        if name != template or int(number[1]) in numbered:
            return None
        numbered[int(number[1])] = path
    if len(numbered) < 2:
        return None
    order = sorted(numbered)
    return Series(tuple(numbered[i] for i in order), order[-1] - order[0] + 1 - len(order))


def _candidates(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        aside = path.name.startswith(".") or path.name.lower() in BYSTANDER_NAMES
        if not aside and path.suffix.lower() not in BYSTANDERS:
            yield path
