"""COVID-BLUES: lung ultrasound at the six BLUE points with expert severity (CC BY-NC-ND 4.0)."""

from __future__ import annotations

import re
from pathlib import Path

from usvol.errors import DatasetError
from usvol.training.cases import Case
from video.data._tracings import rows

_COLUMNS = ("video_file", "Severity Score", "A-lines", "B-lines")
_NAME = re.compile(r"patient_(\d+)_([LR]\d)(?:_\d+)?$")


def cases(root: Path) -> list[Case]:
    """List the labelled clips below ``root`` (``severity.csv`` and ``lus_videos/``).

    Reference fields: ``severity`` 0-3 (Soldati et al. 2020, scored by experts), ``a_lines`` and
    ``b_lines`` (bool), ``point`` (BLUE point L1 … R3).

    Source: Wiedemann et al. 2025, arXiv 2509.10556.

    Raises:
        DatasetError: a table, column or folder is missing, or a label is not one of those published.
    """
    table, videos = root / "severity.csv", root / "lus_videos"
    if not table.is_file() or not videos.is_dir():
        raise DatasetError(f"{root} is not COVID-BLUES: it needs severity.csv and lus_videos/.")
    found: list[Case] = []
    for row in rows(table, needed=_COLUMNS):
        path = videos / f"{row['video_file']}.mp4"
        if path.is_file():
            found.append(_case(row, path))
    if not found:
        raise DatasetError(f"{videos} holds none of the clips that {table.name} names.")
    return sorted(found, key=lambda case: case.id)


def _case(row: dict[str, str], path: Path) -> Case:
    match = _NAME.match(row["video_file"])
    if match is None:
        raise DatasetError(
            f"severity.csv: {row['video_file']!r} is not named patient_<number>_<point>[_<repeat>]."
        )
    reference = {
        "severity": _severity(row),
        "a_lines": _yes(row, "A-lines"),
        "b_lines": _yes(row, "B-lines"),
        "point": match[2],
    }
    return Case(row["video_file"], match[1], path, reference, dataset="blues")


def _severity(row: dict[str, str]) -> int:
    try:
        value = float(row["Severity Score"])
    except ValueError:
        value = -1.0
    if value not in (0, 1, 2, 3):
        raise DatasetError(
            f"severity.csv: {row['video_file']} has severity {row['Severity Score']!r}, not 0-3."
        )
    return int(value)


def _yes(row: dict[str, str], column: str) -> bool:
    answer = row[column].strip().lower()
    if answer not in ("yes", "no"):
        raise DatasetError(f"severity.csv: {row['video_file']} has {column} {row[column]!r}, not yes or no.")
    return answer == "yes"
