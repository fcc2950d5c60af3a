"""EchoNet-Dynamic: 10,030 apical four-chamber cines with EF, volumes and two traced frames (registration)."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from usvol.errors import DatasetError
from usvol.result import Labels
from usvol.training.cases import Case, Split
from video.data._tracings import Outline, diastole_and_systole, number, outline_labels, rows, video_file

_COLUMNS = ("FileName", "EF", "ESV", "EDV", "FPS", "NumberOfFrames", "Split")
_SPLITS: dict[str, Split] = {"TRAIN": "train", "VAL": "validation", "TEST": "test"}


def cases(root: Path) -> list[Case]:
    """List the cines below ``root`` (``FileList.csv``, ``VolumeTracings.csv``, ``Videos/``).

    Each case keeps its official split. Reference fields: ``ef_percent``, ``esv_ml``, ``edv_ml``, ``fps``,
    ``outlines`` (frame to corners x, y in pixels; none for the few cines that nobody traced) and
    ``ed_frames``, ``es_frames`` (that of the larger and that of the smaller outline).

    Every cine is of another patient, so the file name stands for the patient.

    Source: Ouyang et al., Nature 580:252, 2020; layout as the authors' code reads it.

    Raises:
        DatasetError: a table, column or folder is missing, or a value is not one of those published.
    """
    videos, table = root / "Videos", root / "FileList.csv"
    if not videos.is_dir():
        raise DatasetError(f"{root} is not EchoNet-Dynamic: it needs FileList.csv and Videos/.")
    outlines = _outlines(root / "VolumeTracings.csv")
    found: list[Case] = []
    for row in rows(table, needed=_COLUMNS):
        path = video_file(videos, row["FileName"])
        if path.is_file():
            found.append(_case(row, path, outlines.get(path.name, {}), table=table))
    if not found:
        raise DatasetError(f"{videos} holds none of the cines that {table.name} names.")
    return sorted(found, key=lambda case: case.id)


def read_labels(case: Case) -> Labels:
    """Return the traced frames of a case as masks of the left ventricle, on the grid of its file."""
    return outline_labels(case)


def _case(row: dict[str, str], path: Path, outlines: dict[int, Outline], *, table: Path) -> Case:
    split = _SPLITS.get(row["Split"].strip().upper())
    if split is None:
        raise DatasetError(
            f"{table.name}: {path.stem} has split {row['Split']!r}, not one of {list(_SPLITS)}."
        )
    ed_frames, es_frames = diastole_and_systole(outlines)
    reference = {
        "ef_percent": number(row, "EF", table=table),
        "esv_ml": number(row, "ESV", table=table),
        "edv_ml": number(row, "EDV", table=table),
        "fps": number(row, "FPS", table=table),
        "outlines": outlines,
        "ed_frames": ed_frames,
        "es_frames": es_frames,
    }
    return Case(path.stem, path.stem, path, reference, dataset="echonet_dynamic", split=split)


def _outlines(table: Path) -> dict[str, dict[int, Outline]]:
    """Read file name to frame to outline.

    A row is a chord (X1, Y1)-(X2, Y2) across the ventricle; the first of each frame is the long axis, which
    is no part of the outline.
    """
    chords: dict[str, dict[int, list[tuple[float, ...]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows(table, needed=("FileName", "X1", "Y1", "X2", "Y2", "Frame")):
        ends = tuple(number(row, column, table=table) for column in ("X1", "Y1", "X2", "Y2"))
        name = video_file(Path(), row["FileName"]).name
        chords[name][int(number(row, "Frame", table=table))].append(ends)
    return {
        name: {frame: _around(ends[1:]) for frame, ends in frames.items() if len(ends) > 2}
        for name, frames in chords.items()
    }


def _around(chords: list[tuple[float, ...]]) -> Outline:
    return (*((x, y) for x, y, _, _ in chords), *((x, y) for _, _, x, y in reversed(chords)))
