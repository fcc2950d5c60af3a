"""POCUS lung ultrasound: clips of many devices with class and findings (Born et al. 2021; terms per file)."""

from __future__ import annotations

from pathlib import Path

from usvol.errors import DatasetError
from usvol.training.cases import Case
from video.data._tracings import rows

CLASSES = ("healthy", "pneumonia", "covid", "viral")
FINDINGS = ("effusion", "consolidations", "b_lines", "a_lines", "pleural_irregularities", "air_bronchogram")
_COLUMNS = ("file", "label", "probe", "patient", *FINDINGS, "licence", "source")


def cases(root: Path, *, stills: bool = False) -> list[Case]:
    """List the labelled clips (and, on request, stills) below ``root`` (``labels.csv``, ``videos/``).

    Reference fields: ``label`` (one of ``CLASSES``), every name of ``FINDINGS`` (bool, or None where no
    physician said), ``probe``, ``source``, ``licence``.

    Source: Born et al. 2021, Appl. Sci. 11(2):672.

    Raises:
        DatasetError: the table or a column is missing, or a label is not one of those published.
    """
    table = root / "labels.csv"
    if not table.is_file():
        raise DatasetError(f"{root} is not the POCUS data set: it needs labels.csv.")
    found: list[Case] = []
    for row in rows(table, needed=_COLUMNS):
        path = root / row["file"]
        if path.is_file() and (stills or row["file"].startswith("videos/")):
            found.append(_case(row, path))
    if not found:
        raise DatasetError(f"{root} holds none of the files that {table.name} names.")
    return sorted(found, key=lambda case: case.id)


def _case(row: dict[str, str], path: Path) -> Case:
    if row["label"] not in CLASSES:
        raise DatasetError(f"labels.csv: {row['file']} has label {row['label']!r}, not one of {CLASSES}.")
    reference: dict[str, object] = {name: _flag(row, name) for name in FINDINGS}
    reference |= {name: row[name] for name in ("label", "probe", "source", "licence")}
    return Case(row["file"], row["patient"], path, reference, dataset="pocus")


def _flag(row: dict[str, str], name: str) -> bool | None:
    text = row[name].strip()
    if text not in ("", "0", "1"):
        raise DatasetError(f"labels.csv: {row['file']} has {name} {text!r}, not 0 or 1.")
    return text == "1" if text else None
