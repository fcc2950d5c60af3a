"""What the adapters share: tables, video files, traced outlines as masks."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from skimage.draw import polygon

from usvol.errors import DatasetError
from usvol.loading import probe
from usvol.result import Labels
from usvol.training.cases import Case

LEFT_VENTRICLE = {1: "left_ventricle"}

Outline = tuple[tuple[float, float], ...]  # (x, y) in pixels of the frame


def rows(table: Path, *, needed: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV table (UTF-8, commas); a cell that a short row lacks is empty.

    Raises:
        DatasetError: the table or a column is missing, or it is no such text.
    """
    if not table.is_file():
        raise DatasetError(
            f"{table.parent} has no {table.name}. Give the folder that was downloaded, unpacked."
        )
    with table.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(handle, restval="")
        try:
            lacking = sorted(set(needed) - set(reader.fieldnames or ()))
            if lacking:
                raise DatasetError(f"{table}: lacks the columns {lacking}; it has {reader.fieldnames}.")
            yield from reader
        except (UnicodeDecodeError, csv.Error) as error:
            raise DatasetError(
                f"{table}: cannot be read as a table ({error}). Save it as CSV in UTF-8, with commas."
            ) from error


def number(row: Mapping[str, str], column: str, *, table: Path) -> float:
    """Read a finite number, or raise ``DatasetError`` that names table and row."""
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = float("nan")
    if not np.isfinite(value):
        raise DatasetError(f"{table.name}: {column} is {row[column]!r}, not a number, in {dict(row)}.")
    return value


def video_file(folder: Path, name: str) -> Path:
    """Return the path of a video that a table names with or without its suffix."""
    return folder / (name if Path(name).suffix else f"{name}.avi")


def area_px(outline: Sequence[tuple[float, float]]) -> float:
    """Return the area that an outline bounds (shoelace formula), in square pixels."""
    x, y = np.asarray(outline, float).T
    return 0.5 * abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1)))


def outline_labels(case: Case) -> Labels:
    """Fill ``case.reference["outlines"]`` (frame to outline) on the grid of the case's file.

    Corners are rounded to whole pixels, as the EchoNet-Dynamic code does (Ouyang et al. 2020).
    """
    outlines: Mapping[int, Outline] = case.reference["outlines"]
    if not outlines:
        raise DatasetError(f"{case.id}: nobody traced its left ventricle.")
    grid = probe(case.path).grid
    frames = tuple(sorted(outlines))
    data = torch.zeros(len(frames), *grid.shape, dtype=torch.uint8)
    for position, frame in enumerate(frames):
        x, y = np.rint(np.asarray(outlines[frame])).T
        inside = polygon(y, x, grid.shape[1:])
        data[position, 0, torch.from_numpy(inside[0]), torch.from_numpy(inside[1])] = 1
    return Labels("reference", data, grid, LEFT_VENTRICLE, frame_indices=frames)


def diastole_and_systole(outlines: Mapping[int, Outline]) -> tuple[list[int], list[int]]:
    """Return the frame of the largest and that of the smallest outline, each as a list; empty below two."""
    if len(outlines) < 2:
        return [], []
    by_area = sorted(outlines, key=lambda frame: area_px(outlines[frame]))
    return [by_area[-1]], [by_area[0]]
