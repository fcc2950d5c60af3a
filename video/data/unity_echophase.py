"""UNITY EchoPhase: 1,000 apical four-chamber cines with ED and ES frames of two experts (on request)."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from usvol.errors import DatasetError
from usvol.training.cases import Case, Split
from video.data._tracings import rows, video_file

logger = logging.getLogger(__name__)

_EVENT = re.compile(
    r"op(?:erator)?_?([12])_?(?:beat_?\d+_?)?(ed|es)_?\d*|(ed|es)_?\d*_?op(?:erator)?_?([12])"
)
_SPLITS: dict[str, Split] = {"training": "train", "train": "train", "testing": "test", "test": "test"}


def cases(root: Path) -> list[Case]:
    """List the cines that the table of labels (the one ``.csv`` of ``root``) names, found anywhere below it.

    The table has one row per cine: ``AVIname``, ``Number of Frames``, ``Training/Testing`` and, for operators
    1 and 2, the ED and ES frame of up to four beats (columns such as ``Op1 ED1``); an empty cell is a frame
    that was not chosen. Its description does not say whether frames are counted from 0 or 1: a table that
    holds a 0 counts from 0, any other from 1 (with a warning unless some cine's last frame proves it).

    Reference fields: ``ed_frames``, ``es_frames`` (operator 1, counted from 0), ``ed_frames_2``,
    ``es_frames_2`` (operator 2), ``frames``. Every cine is of another patient.

    Source: Lane et al., Comput Biol Med 133:104373, 2021.

    Raises:
        DatasetError: no table, or not one of this layout.
    """
    tables = sorted(root.glob("*.csv")) if root.is_dir() else []
    if len(tables) != 1:
        raise DatasetError(
            f"{root} is not UNITY EchoPhase: it needs one .csv table of labels, has {len(tables)}."
        )
    table = tables[0]
    content = [{_plain(k): (v or "").strip() for k, v in row.items() if k} for row in rows(table, needed=())]
    _check(table, content)
    first = _first_frame(table, content)
    files = {path.name.lower(): path for path in sorted(root.rglob("*.avi"))}
    found: list[Case] = []
    for row in content:
        path = files.get(video_file(Path(), row["aviname"]).name.lower())
        if path is not None:
            found.append(_case(row, path, table=table, first=first))
    if not found:
        raise DatasetError(f"{root} holds none of the cines that {table.name} names.")
    return sorted(found, key=lambda case: case.id)


def _case(row: Mapping[str, str], path: Path, *, table: Path, first: int) -> Case:
    split = _SPLITS.get(row["training_testing"].lower())
    if split is None:
        raise DatasetError(
            f"{table.name}: {path.stem} is {row['training_testing']!r}, not Training or Testing."
        )
    frames = int(row["number_of_frames"])
    reference: dict[str, object] = {"frames": frames}
    for operator, ending in ((1, ""), (2, "_2")):
        for event in ("ed", "es"):
            chosen = [n - first for n in _events(row, operator, event=event)]
            if any(not 0 <= n < frames for n in chosen):
                raise DatasetError(
                    f"{table.name}: {path.stem} has {frames} frames, and an {event.upper()} outside."
                )
            reference[f"{event}_frames{ending}"] = chosen
    return Case(path.stem, path.stem, path, reference, dataset="unity_echophase", split=split)


def _events(row: Mapping[str, str], operator: int, *, event: str) -> list[int]:
    """Return the frames, as the table counts them, of one operator's ED or ES, in order."""
    return sorted(
        int(float(value))
        for column, value in row.items()
        if value and (match := _EVENT.fullmatch(column)) and _meaning(match) == (operator, event)
    )


def _meaning(match: re.Match[str]) -> tuple[int, str]:
    return int(match[1] or match[4]), match[2] or match[3]


def _check(table: Path, content: list[dict[str, str]]) -> None:
    columns = set().union(*content) if content else set()
    lacking = {"aviname", "number_of_frames", "training_testing"} - columns
    events = {_meaning(match) for column in columns if (match := _EVENT.fullmatch(column))}
    if lacking or not {(1, "ed"), (1, "es")} <= events:
        raise DatasetError(
            f"{table}: needs AVIname, Number of Frames, Training/Testing and columns such as 'Op1 ED1' and "
            f"'Op1 ES1'; it has {sorted(columns)}."
        )


def _first_frame(table: Path, content: list[dict[str, str]]) -> int:
    numbers = [
        (n, int(row["number_of_frames"]))
        for row in content
        for operator in (1, 2)
        for event in ("ed", "es")
        for n in _events(row, operator, event=event)
    ]
    if any(n == 0 for n, _ in numbers):
        return 0
    if not any(n == frames for n, frames in numbers):
        logger.warning("%s does not show whether frames are counted from 0 or 1; 1 is taken", table.name)
    return 1


def _plain(column: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", column.strip().lower()).strip("_")
