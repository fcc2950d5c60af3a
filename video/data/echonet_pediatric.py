"""EchoNet-Pediatric: apical and short-axis cines of children with EF and outlines (registration)."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Literal

from usvol.errors import DatasetError
from usvol.result import Labels
from usvol.training.cases import Case
from video.data._tracings import Outline, diastole_and_systole, number, outline_labels, rows, video_file

_COLUMNS = ("FileName", "EF", "Sex", "Age", "Weight", "Height", "Split")
_NOT_TRACED = ("No Systolic", "No Diastolic")
_FOLDS = range(10)


def cases(root: Path, *, view: Literal["A4C", "PSAX"] = "A4C") -> list[Case]:
    """List the cines of one view below ``root`` (``A4C/`` with ``FileList.csv``, ``Videos/``, …; or in it).

    Each case keeps its official fold (0-9). Reference fields: ``ef_percent``, ``sex``, ``age_years``,
    ``weight_kg``, ``height_cm`` (None where the table has none), ``outlines`` (frame to corners x, y in
    pixels), ``ed_frames`` and ``es_frames`` (that of the larger and that of the smaller outline; none where
    one of them was not traced), ``view``.

    The file name stands for the patient: the tables name no patients.

    Source: Reddy et al., J Am Soc Echocardiogr 36(5):482, 2023.

    Raises:
        DatasetError: a table, column or folder is missing, or a value is not one of those published.
    """
    folder = next((f for f in (root / view, root) if (f / "FileList.csv").is_file()), None)
    if folder is None:
        raise DatasetError(
            f"{root} is not EchoNet-Pediatric: it needs {view}/FileList.csv and {view}/Videos/."
        )
    table, outlines = folder / "FileList.csv", _outlines(folder / "VolumeTracings.csv")
    found: list[Case] = []
    for row in rows(table, needed=_COLUMNS):
        path = video_file(folder / "Videos", row["FileName"])
        if path.is_file():
            reference = {**_reference(row, table), "view": view, "outlines": outlines.get(path.name, {})}
            ed_frames, es_frames = diastole_and_systole(reference["outlines"])
            reference |= {"ed_frames": ed_frames, "es_frames": es_frames}
            fold = _fold(row, table)
            found.append(Case(path.stem, path.stem, path, reference, dataset="echonet_pediatric", fold=fold))
    if not found:
        raise DatasetError(f"{folder / 'Videos'} holds none of the cines that {table.name} names.")
    return sorted(found, key=lambda case: case.id)


def read_labels(case: Case) -> Labels:
    """Return the traced frames of a case as masks of the left ventricle, on the grid of its file."""
    return outline_labels(case)


def _reference(row: dict[str, str], table: Path) -> dict[str, object]:
    named = {"Age": "age_years", "Weight": "weight_kg", "Height": "height_cm"}
    return {
        "ef_percent": number(row, "EF", table=table),
        "sex": row["Sex"].strip() or None,
        **{
            name: number(row, column, table=table) if row[column].strip() else None
            for column, name in named.items()
        },
    }


def _fold(row: dict[str, str], table: Path) -> int:
    fold = number(row, "Split", table=table)
    if fold not in _FOLDS:
        raise DatasetError(f"{table.name}: {row['FileName']} has split {row['Split']!r}, not one of 0 to 9.")
    return int(fold)


def _outlines(table: Path) -> dict[str, dict[int, Outline]]:
    """Read file name to frame to outline; a row is one corner, or says that a phase was not traced."""
    corners: dict[str, dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows(table, needed=("FileName", "X", "Y", "Frame")):
        if row["Frame"].strip() in _NOT_TRACED:
            continue
        corner = (number(row, "X", table=table), number(row, "Y", table=table))
        name = video_file(Path(), row["FileName"]).name
        corners[name][int(number(row, "Frame", table=table))].append(corner)
    return {
        name: {frame: tuple(points) for frame, points in frames.items() if len(points) > 2}
        for name, frames in corners.items()
    }
