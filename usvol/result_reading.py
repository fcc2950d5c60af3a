"""Read a written result back: ``result.json`` and the files beside it to findings and measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from usvol.errors import CorruptFileError, EmptyFileError, ReadError
from usvol.loading import load
from usvol.result import (
    Box,
    Curve,
    Event,
    Finding,
    Flag,
    Heatmap,
    Labels,
    Line,
    Measurement,
    Plane,
    Result,
    Scores,
    Severity,
    Surface,
)
from usvol.scan import Calibration, Frame, Grid, Source, Trust
from usvol.writing import RESULT_FILE, read_complete

_WAY = "run the task on its input again"


def read_result(folder: str | Path) -> Result:
    """Return the result that ``writing.write`` wrote into ``folder``.

    Samples and world coordinates come back exactly, meshes in single precision. What is not written of the
    source (metadata of its format) is not there.

    Raises:
        EmptyFileError: the folder holds no result. CorruptFileError: a file of it is missing, cut or foreign.

    Example:
        >>> read_result("out/items/clip-1").measurements  # doctest: +SKIP
    """
    folder = Path(folder)
    if not (folder / RESULT_FILE).is_file():
        raise EmptyFileError(folder, f"it holds no {RESULT_FILE}", "give the folder of one item of a run")
    content = read_complete(folder)
    if content is None:
        raise CorruptFileError(folder, f"its {RESULT_FILE} is no whole result of usvol", _WAY)
    try:
        return Result(
            task=content["task"],
            grid=_grid(content["grid"]),
            source=_source(content["input"]),
            findings=tuple(_finding(fields, folder) for fields in content["findings"]),
            measurements=tuple(Measurement(**fields) for fields in content["measurements"]),
            flags=tuple(Flag(f["code"], f["message"], Severity(f["severity"])) for f in content["flags"]),
            provenance=MappingProxyType(content["provenance"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        cause = f"its {RESULT_FILE} lacks or contradicts something ({type(error).__name__}: {error})"
        raise CorruptFileError(folder, cause, _WAY) from error


def is_result(folder: str | Path) -> bool:
    """Tell cheaply whether a folder is one written result."""
    return (Path(folder) / RESULT_FILE).is_file()


def _finding(fields: Mapping[str, Any], folder: Path) -> Finding:
    reader = _READERS.get(fields["type"])
    if reader is None:
        raise ReadError(folder, f"it holds a finding of type {fields['type']!r}", "update usvol")
    return reader(fields, folder)


def _labels(fields: Mapping[str, Any], folder: Path) -> Labels:
    import torch

    ranges = fields.get("size_range")
    return Labels(
        fields["name"],
        _samples(fields, folder).to(torch.uint8),
        _grid(fields["grid"]),
        {int(value): name for value, name in fields["labels"].items()},
        _tuple(fields["frame_indices"]),
        size_range=None if ranges is None else {int(v): (low, high) for v, (low, high) in ranges.items()},
    )


def _heatmap(fields: Mapping[str, Any], folder: Path) -> Heatmap:
    data = _samples(fields, folder).float()
    return Heatmap(fields["name"], data, _grid(fields["grid"]), _tuple(fields["frame_indices"]))


def _samples(fields: Mapping[str, Any], folder: Path) -> Any:
    scan = load(folder / fields["file"])
    if tuple(scan.grid.shape) != tuple(fields["grid"]["shape"]):
        raise ValueError(f"{fields['file']} has the shape {scan.grid.shape}, not {fields['grid']['shape']}")
    return scan.data[:, 0]


def _surface(fields: Mapping[str, Any], folder: Path) -> Surface:
    import pyvista
    import torch

    mesh = pyvista.read(folder / fields["file"])
    if not isinstance(mesh, pyvista.PolyData):
        raise ValueError(f"{fields['file']} is no mesh")
    labels = mesh.point_data.get("label")
    return Surface(
        fields["name"],
        torch.from_numpy(np.asarray(mesh.points)[:, ::-1].copy()),
        torch.from_numpy(np.asarray(mesh.regular_faces).astype(np.int64)),
        None if labels is None else torch.from_numpy(np.array(labels)),
        frame_index=fields.get("frame_index"),  # results of before it was written have none
    )


def _plane(fields: Mapping[str, Any], _folder: Path) -> Plane:
    vectors = {key: _tuple(fields[key]) for key in ("point", "normal", "up")}
    return Plane(fields["name"], **vectors, confidence=fields["confidence"])


def _line(fields: Mapping[str, Any], _folder: Path) -> Line:
    ends = _tuple(fields["entry"]), _tuple(fields["tip"])
    return Line(fields["name"], *ends, fields["confidence"], fields["frame_index"])


def _box(fields: Mapping[str, Any], _folder: Path) -> Box:
    vectors = {key: _tuple(fields[key]) for key in ("centre", "size", "rotation")}
    return Box(fields["name"], **vectors, confidence=fields["confidence"], frame_index=fields["frame_index"])


def _curve(fields: Mapping[str, Any], _folder: Path) -> Curve:
    return Curve(
        fields["name"],
        _numbers(fields["values"]) or (),
        fields["unit"],
        _tuple(fields["times_s"]),
        tuple(fields["frame_indices"]),
        _numbers(fields["low"]),
        _numbers(fields["high"]),
        tuple(Event(e["name"], e["index"], e["time_s"]) for e in fields["events"]),
    )


def _scores(fields: Mapping[str, Any], _folder: Path) -> Scores:
    return Scores(
        fields["name"], tuple(fields["classes"]), tuple(fields["probabilities"]), fields["decision"]
    )


_READERS: Mapping[str, Callable[[Mapping[str, Any], Path], Finding]] = MappingProxyType(
    {
        "labels": _labels,
        "heatmap": _heatmap,
        "surface": _surface,
        "plane": _plane,
        "line": _line,
        "box": _box,
        "curve": _curve,
        "scores": _scores,
    }
)


def _grid(fields: Mapping[str, Any]) -> Grid:
    known = {key: _tuple(value) for key, value in fields.items() if key != "frame"}
    return Grid(frame=Frame(fields["frame"]), **known)


def _source(fields: Mapping[str, Any]) -> Source:
    calibration = Calibration(Trust(fields["calibration"]["trust"]), fields["calibration"]["reason"])
    return Source(
        path=Path(fields["path"]) if fields["path"] else None,
        format=fields["format"],
        calibration=calibration,
        modality=fields["modality"],
        vendor=fields["vendor"],
        probe=fields["probe"],
        patient_key=fields["patient_key"],
        frame_indices=_tuple(fields["frame_indices"]),
        stated_fps=fields.get("stated_fps"),
        warnings=tuple(fields["warnings"]),
    )


def _numbers(values: list[float | None] | None) -> tuple[float, ...] | None:
    """Return numbers; what strict JSON could not hold was not a number."""
    return None if values is None else tuple(math.nan if value is None else value for value in values)


def _tuple(value: Any) -> Any:
    """Turn the lists of JSON into tuples, nested ones too."""
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value
