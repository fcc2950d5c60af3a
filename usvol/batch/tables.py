"""Write the table of a batch: one row per item, as CSV and Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from usvol.batch.outcome import Outcome

_FIXED = ("id", "path", "status", "reason", "message", "kind", "calibration", "patient_key")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_LAST = ("flags", "seconds", "input_sha256")


def write_tables(outcomes: Iterable[Outcome], folder: Path) -> tuple[Path, Path]:
    """Write ``measurements.csv`` and ``measurements.parquet`` by rename; return their paths.

    Columns: id, path, status and reason, kind, one column per measurement named ``name [unit]``
    (with ``low`` and ``high`` where known), flag codes, seconds, input sha256. Missing is empty.
    """
    rows = [_flat(outcome) for outcome in outcomes]
    measured = list(dict.fromkeys(name for row in rows for name in row["measurements"]))
    columns = {name: [row.get(name) for row in rows] for name in (*_FIXED, *_LAST)}
    numbers = {_free(name): [row["measurements"].get(name) for row in rows] for name in measured}
    ordered = {name: columns[name] for name in _FIXED} | numbers | {name: columns[name] for name in _LAST}
    paths = folder / "measurements.csv", folder / "measurements.parquet"
    _write_csv(ordered, paths[0])
    _write_parquet(ordered, paths[1])
    return paths


def _flat(outcome: Outcome) -> dict[str, Any]:
    row = outcome.row
    return {
        "id": outcome.id,
        "path": outcome.path,
        "status": str(outcome.status),
        "reason": outcome.reason or None,
        "message": outcome.message or None,
        "kind": row.get("kind"),
        "calibration": row.get("calibration"),
        "patient_key": row.get("patient_key"),
        "measurements": row.get("measurements", {}),
        "flags": ";".join(dict.fromkeys(code for code, _, _ in row.get("flags", ()))) or None,
        "seconds": outcome.seconds,
        "input_sha256": row.get("input_sha256"),
    }


def _free(name: str) -> str:
    """Keep a measurement from shadowing one of our own columns."""
    return f"{name} (measured)" if name in {*_FIXED, *_LAST} else name


def _write_csv(columns: Mapping[str, list[Any]], path: Path) -> None:
    partial = path.with_name(f".{path.name}.part")
    with partial.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(columns)
        table.writerows([_inert(cell) for cell in row] for row in zip(*columns.values(), strict=True))
    partial.replace(path)


def _inert(cell: Any) -> Any:
    """Keep spreadsheets from computing a file name or message that begins as a formula does."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _write_parquet(columns: Mapping[str, list[Any]], path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    arrays = {name: pa.array(values, _type(name, values)) for name, values in columns.items()}
    partial = path.with_name(f".{path.name}.part")
    parquet.write_table(pa.table(arrays), partial)
    partial.replace(path)


def _type(name: str, values: list[Any]) -> Any:
    import pyarrow as pa

    if name in {*_FIXED, *_LAST}:
        return pa.float64() if name == "seconds" else pa.string()
    if any(isinstance(value, str) for value in values):
        values[:] = [None if value is None else str(value) for value in values]
        return pa.string()
    values[:] = [None if value is None else float(value) for value in values]
    return pa.float64()
