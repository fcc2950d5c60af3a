"""Write results: files by type of finding, and ``result.json`` last.

A folder appears under its final name by one rename, so what exists there is complete.
World coordinates in JSON are (z, y, x), as everywhere; meshes are written (x, y, z).
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import singledispatch
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from usvol.contract import require_sound
from usvol.encoding import jsonable, slug
from usvol.errors import ConfigError
from usvol.formats.nifti import write_nifti
from usvol.loading import printable
from usvol.report import meshes, preview
from usvol.resampling import cross_section, reslice
from usvol.result import (
    Box,
    Curve,
    Finding,
    Heatmap,
    Labels,
    Line,
    Measurement,
    Plane,
    Result,
    Scores,
    Surface,
)
from usvol.scan import Grid, Matrix3, Scan, Source, kind_of

SCHEMA = "usvol.result/1"
RESULT_FILE = "result.json"
LOG_FILE = "log.txt"
_PICTURES = 4  # meshes of one result that are drawn: a clip has one per frame
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def write(result: Result, folder: str | Path, *, scan: Scan | None = None) -> Path:
    """Write ``result`` as ``folder`` and return it; an earlier result there is replaced.

    With the ``scan`` it came from, a preview is drawn too.

    Raises:
        ConfigError: there is something else under that name; it is left as it is.

    Example:
        >>> write(result, "out/liver", scan=scan)  # doctest: +SKIP
    """
    folder = Path(folder).resolve()
    with staged(folder) as partial:
        write_into(result, partial, scan=scan)
    return folder


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Give an empty temporary sibling that becomes ``folder`` by rename, or vanishes on an error.

    Raises:
        ConfigError: what is there is no result and nothing else: it is not ours to replace.
    """
    _require_replaceable(folder)
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _publish(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_into(
    result: Result, folder: Path, *, scan: Scan | None = None, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write findings, preview and ``result.json`` into an existing folder; return the JSON content.

    ``extra`` adds top-level keys.
    """
    times_s = scan.times_s if scan is not None else None
    findings = [
        {
            "type": type(finding).__name__.lower(),
            "name": finding.name,
            **describe(finding, dataclasses.replace(place, folder=folder, times_s=times_s, scan=scan)),
        }
        for finding, place in zip(result.findings, _places(result), strict=True)
    ]
    pictures = preview.write(result, scan, folder=folder) if scan is not None else ()
    content = {
        "schema": SCHEMA,
        "task": result.task,
        "kind": _kind(result, scan),
        "input": _source(result.source),
        "grid": _grid(result.grid),
        "findings": findings,
        "measurements": [_measurement(m) for m in result.measurements],
        "flags": [asdict(flag) for flag in result.flags],
        "preview": list(pictures),
        "provenance": dict(result.provenance),
        **(extra or {}),
    }
    content["files"] = {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.name != LOG_FILE}
    write_json(folder / RESULT_FILE, content)
    return content


def read_complete(folder: Path) -> dict[str, Any] | None:
    """Return the content of ``result.json`` if the folder holds a complete result, else None.

    Complete: the JSON parses, has our schema, and every file it lists is there in full.
    """
    try:
        content = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        sizes = content["files"].items() if content["schema"] == SCHEMA else None
        whole = sizes is not None and all((folder / name).stat().st_size == size for name, size in sizes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return content if whole else None


def make_folder(path: Path) -> None:
    """Make a folder to write to, with its parents, or leave it as it is.

    Raises:
        ConfigError: it cannot be made, or not be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: no folder can be made there ({error.strerror}). Give another.") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: nothing can be written there. Give another folder, or change its rights.")


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON by rename: what is not finite becomes null, what is not UTF-8 in a name U+FFFD."""
    text = printable(json.dumps(jsonable(content), indent=1, ensure_ascii=False, allow_nan=False))
    partial = path.with_name(f".{path.name}.part")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def discard(folder: Path) -> None:
    """Delete the result in ``folder``, and the folder unless it holds what no result wrote."""
    for name in _result_files(folder):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _require_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder.name}: is a file. Give the name of a new folder for the result.")
    others = sorted({p.name for p in folder.iterdir()} - _result_files(folder))
    if others:
        raise ConfigError(
            f"{folder.name}: holds other files, such as {others[0]}, which would be lost. Give a new folder."
        )


def _result_files(folder: Path) -> set[str]:
    """Return the names of the files of the result in a folder; of a damaged one all of them."""
    try:
        content = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except ValueError:
        return {p.name for p in folder.iterdir()}
    except OSError:
        return set()
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        return set()
    return {RESULT_FILE, LOG_FILE, *content.get("files", ())}


def _publish(partial: Path, folder: Path) -> None:
    if not folder.exists():
        partial.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the files of one finding go: folder, file name without suffix; the scan and its frame times.

    ``view`` is that of a mesh to be pictured, else None.
    """

    folder: Path
    stem: str
    times_s: tuple[float, ...] | None = None
    scan: Scan | None = None
    view: MeshView | None = None


@dataclass(frozen=True, slots=True)
class MeshView:
    """How a mesh is pictured: along which axes (columns; None: the world's), and whether its unit is mm."""

    axes: Matrix3 | None
    in_mm: bool


@singledispatch
def describe(finding: Any, place: Place) -> dict[str, Any]:
    """Write the files of a finding and return its JSON fields."""
    raise TypeError(f"no writer for findings of type {type(finding).__name__} ({place.stem})")


@describe.register
def _(finding: Labels, place: Place) -> dict[str, Any]:
    name = f"{place.stem}.nii.gz"
    write_nifti(
        place.folder / name,
        np.asarray(finding.data),
        grid=finding.grid,
        times_s=_frame_times(finding, place),
    )
    return {
        "file": name,
        "grid": _grid(finding.grid),
        "labels": {str(value): label for value, label in finding.names.items()},
        "frame_indices": finding.frame_indices,
        "size_range": finding.size_range,
    }


@describe.register
def _(finding: Heatmap, place: Place) -> dict[str, Any]:
    name = f"{place.stem}.nii.gz"
    write_nifti(
        place.folder / name,
        np.asarray(finding.data),
        grid=finding.grid,
        times_s=_frame_times(finding, place),
    )
    return {"file": name, "grid": _grid(finding.grid), "frame_indices": finding.frame_indices}


@describe.register
def _(finding: Curve, place: Place) -> dict[str, Any]:
    name = f"{place.stem}.csv"
    events = {event.index: event.name for event in finding.events}
    columns = {
        "frame": finding.frame_indices,
        "time_s": finding.times_s,
        f"{finding.name} [{finding.unit}]": finding.values,
        "low": finding.low,
        "high": finding.high,
    }
    kept = {title: values for title, values in columns.items() if values is not None}
    with (place.folder / name).open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow([*kept, "event"])
        for index, row in enumerate(zip(*kept.values(), strict=True)):
            table.writerow([*(_cell(value) for value in row), events.get(index, "")])
    return {"file": name, **asdict(finding)}


@describe.register
def _(finding: Surface, place: Place) -> dict[str, Any]:
    import pyvista

    require_sound(finding)  # what draws and writes meshes ends the process on faces without vertices
    faces = np.asarray(finding.faces)
    corners = np.full((len(faces), 1), 3)
    mesh = pyvista.PolyData(np.asarray(finding.vertices)[:, ::-1].copy(), np.hstack([corners, faces]).ravel())
    files = [f"{place.stem}.stl", f"{place.stem}.ply"]
    for name in files:
        mesh.save(place.folder / name)
    if finding.vertex_labels is not None:
        mesh.point_data["label"] = np.asarray(finding.vertex_labels)
    files.append(f"{place.stem}.vtp")
    mesh.save(place.folder / files[-1])
    picture = None
    if place.view is not None and len(faces):
        picture = f"{place.stem}.png"
        drawn = meshes.picture(finding, axes=place.view.axes, in_mm=place.view.in_mm)
        drawn.save(place.folder / picture, optimize=True)
    return {
        "file": files[-1],
        "formats": files,
        "vertices": mesh.n_points,
        "faces": len(faces),
        "axes": "xyz",
        "frame_index": finding.frame_index,
        "picture": picture,
    }


@describe.register
def _(finding: Plane, place: Place) -> dict[str, Any]:
    scan = place.scan
    if scan is None or scan.grid.is_planar or not len(cross_section(finding, scan.grid)):
        return asdict(finding)
    cut = reslice(scan, finding)
    names = f"{place.stem}.nii.gz", f"{place.stem}.png"
    data = np.asarray(cut.data)
    # NIfTI has no channels that all readers know, so colour is stored as its luminance.
    grey = data[:, 0] if data.shape[1] != 3 else np.einsum("tczyx,c->tzyx", data, _LUMA).astype(data.dtype)
    frames = grey if len(grey) > 1 else grey[0]
    write_nifti(
        place.folder / names[0], frames, grid=cut.grid, times_s=place.times_s if len(grey) > 1 else None
    )
    preview.write_picture(cut, place.folder / names[1])
    return {**asdict(finding), "file": names[0], "picture": names[1], "grid": _grid(cut.grid)}


@describe.register
def _(finding: Line | Box | Scores, place: Place) -> dict[str, Any]:  # noqa: ARG001
    return asdict(finding)


def _frame_times(finding: Labels | Heatmap, place: Place) -> tuple[float, ...] | None:
    count = finding.data.shape[0]
    if place.times_s is None or count < 2:
        return None
    positions = finding.frame_indices or range(count)
    return tuple(place.times_s[position] for position in positions)


def _places(result: Result) -> list[Place]:
    """Name the files of every finding; the first meshes are pictured, along the axes of their boxes."""
    boxes = {f.name: f.rotation for f in reversed(result.findings) if isinstance(f, Box)}
    surfaces = [f for f in result.findings if isinstance(f, Surface)][:_PICTURES]
    return [
        Place(
            Path(),
            stem,
            view=MeshView(boxes.get(finding.name), result.grid.is_calibrated)
            if any(finding is surface for surface in surfaces)
            else None,
        )
        for finding, stem in zip(result.findings, _stems(result.findings), strict=True)
    ]


def _stems(findings: tuple[Finding, ...]) -> list[str]:
    taken = {Path(name).stem for name in (RESULT_FILE, LOG_FILE, *preview.FILES)}
    stems: list[str] = []
    for finding in findings:
        stem = slug(finding.name)
        free = (f"{stem}-{number}" for number in count(1))
        stems.append(stem if stem not in taken else next(name for name in free if name not in taken))
        taken.add(stems[-1])
    return stems


def _cell(value: float | int) -> float | int | str:
    return value if math.isfinite(value) else ""


def _kind(result: Result, scan: Scan | None) -> str:
    if scan is not None:
        return str(kind_of(scan.data.shape[0], result.grid.shape))
    told = [len(f.data) for f in result.findings if isinstance(f, Labels | Heatmap)]
    told += [len(f.values) for f in result.findings if isinstance(f, Curve)]
    frames = max([len(result.source.frame_indices or (0,)), *told])
    return str(kind_of(frames, result.grid.shape))


def _measurement(measurement: Measurement) -> dict[str, Any]:
    return {key: value for key, value in asdict(measurement).items() if key in _ALWAYS or value is not None}


_ALWAYS = ("name", "value", "unit")


def _source(source: Source) -> dict[str, Any]:
    return {
        "path": str(source.path) if source.path else None,
        "format": source.format,
        "calibration": {"trust": str(source.calibration.trust), "reason": source.calibration.reason},
        "modality": source.modality,
        "vendor": source.vendor,
        "probe": source.probe,
        "patient_key": source.patient_key,
        "frame_indices": source.frame_indices,
        "stated_fps": source.stated_fps,
        "warnings": source.warnings,
    }


def _grid(grid: Grid) -> dict[str, Any]:
    return {
        "shape": grid.shape,
        "spacing_mm": grid.spacing_mm,
        "origin_mm": grid.origin_mm,
        "direction": grid.direction,
        "frame": str(grid.frame),
        **({} if grid.is_calibrated else {"step_px": grid.step_px, "origin_px": grid.origin_px}),
    }
