"""Save layers: label maps, the table of measurements, the session as a result folder, pictures.

Errors are usvol's own and name the way out; napari shows their message.
"""

from __future__ import annotations

import csv
import dataclasses
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import napari
import numpy as np

from usvol import loading, pipeline, writing
from usvol.batch.item import Stated
from usvol.errors import ConfigError
from usvol.label_export import export_labels
from usvol.report import preview
from usvol.result import Curve, Finding, Measurement, Result, Scores
from usvol.scan import Scan, Source
from usvol_napari.edits import labels_shown, line_shown
from usvol_napari.layers import Key, LayerTuple, place_of
from usvol_napari.painting import painted_labels
from usvol_napari.placement import Placement
from usvol_napari.result_folder import stated_for
from usvol_napari.widgets.built_tasks import built_task
from usvol_napari.widgets.shown import STATED, shown_scan


def write_labels(path: str, *layer: Any) -> list[str]:
    """Write a labels layer as .nii.gz, .nii, .nrrd, .mha or .dcm (DICOM SEG), on the grid of its file.

    ``layer`` is its data and its options, as npe2 passes them to the writer of one layer.

    Raises:
        UnsupportedFormatError: the format cannot hold these labels; says which one can. ConfigError: no file
            can hold the layer's values or its place.
    """
    data, meta = layer
    notes = meta.get("metadata", {})
    if Key.FINDING not in notes:
        painted, times = painted_labels(np.asarray(data), meta, over=_painted_over())
        return [str(export_labels(painted, path, times_s=times))]
    labels = labels_shown(np.asarray(data), notes)
    source: Source = notes[Key.SOURCE] if Key.SOURCE in notes else Source()
    placement: Placement = notes[Key.PLACEMENT]
    frames = source.frame_indices or range(placement.frames)
    shown = [frames[position] for position in labels.frame_indices or range(len(labels.data))]
    times = _times(shown, notes) if len(shown) > 1 else None
    result: Result | None = notes.get(Key.RESULT)
    origin = result.task if result is not None else "usvol"
    if placement.has_time:
        labels = dataclasses.replace(labels, frame_indices=tuple(shown))  # frames of the file
    return [str(export_labels(labels, path, source=source.path, times_s=times, algorithm=origin))]


def _times(shown: Sequence[int], notes: dict[str, Any]) -> list[float] | None:
    """Return the times (s) of frames of the file: even ones as shown, uneven ones as the file has them."""
    step_s = notes[Key.PLACEMENT].step_s
    if step_s:
        return [frame * step_s for frame in shown]
    path = notes[Key.SOURCE].path if Key.SOURCE in notes else None
    known = notes.get(Key.SCAN)
    if known is None and path is not None and loading.is_there(path):
        known = loading.probe(path)
    if known is None or known.times_s is None:
        return None
    at = dict(zip(known.source.frame_indices or range(len(known.times_s)), known.times_s, strict=True))
    return [at[frame] for frame in shown] if all(frame in at for frame in shown) else None


def write_table(path: str, layers: Sequence[LayerTuple]) -> list[str]:
    """Write the measurements of the result that the layers show, corrected as they are, as CSV."""
    columns = [field.name for field in dataclasses.fields(Measurement)]
    with Path(path).open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(columns)
        for one in corrected(layers).measurements:
            values = [getattr(one, column) for column in columns]
            table.writerow(["" if value is None else value for value in values])
    return [path]


def write_session(path: str, layers: Sequence[LayerTuple]) -> list[str]:
    """Write scan preview, findings and measurements as ``usvol run`` writes an item; corrections included."""
    result = corrected(layers)
    return [str(writing.write(result, path, scan=_scan_of(result, layers)))]


def write_picture(path: str, layers: Sequence[LayerTuple]) -> list[str]:
    """Write the preview of usvol's reports as .png, or .gif of what moves: findings over the scan."""
    found = _result(layers)
    result = corrected(layers) if found is not None else None
    scan = _scan_of(result, layers)
    if scan is None:
        raise ConfigError("There is no ultrasound scan among these layers. Select the scan's layer as well.")
    shown = result or Result("view", scan.grid, scan.source, (), ())
    name = f"preview{Path(path).suffix.lower()}"
    with tempfile.TemporaryDirectory() as folder:
        if name not in preview.write(shown, scan, folder=Path(folder)):
            raise ConfigError("A GIF shows frames over time, and this scan has one frame. Save it as PNG.")
        shutil.copyfile(Path(folder) / name, path)
    return [path]


def corrected(layers: Sequence[LayerTuple]) -> Result:
    """Return the result that layers show, with what the user corrected on them, measured anew.

    Raises:
        ConfigError: none of the layers belongs to a result.
    """
    result = _result(layers)
    if result is None:
        raise ConfigError("None of these layers shows a result of usvol. Run a task first, or open a result.")
    result, findings = _unmeasured(result, layers)
    for data, options, kind in layers:
        notes = options.get("metadata", {})
        if Key.FINDING not in notes or notes.get(Key.RESULT) is None:
            continue
        place = place_of(notes[Key.FINDING], notes[Key.RESULT], result)
        if place is not None and (edited := _edited(data, notes, kind)) is not None:
            findings[place] = edited
    if not any(pipeline.differ(a, b) for a, b in zip(findings, result.findings, strict=True)):
        return result
    task = built_task(result.task, settings=result.provenance.get("config") or {})
    scan = _scan_of(result, layers)
    if scan is None:
        raise ConfigError("The scan that was corrected is not here, so nothing can be measured. Open it too.")
    return pipeline.remeasure(task, result, findings=findings, scan=scan)


def _painted_over() -> Placement | None:
    """Return how the scans of the viewer are shown; None if there are none.

    Raises:
        ConfigError: they lie differently in the world, so that a place in the viewer is one in none of them.
    """
    viewer = napari.current_viewer()
    shown = [scan for layer in (viewer.layers if viewer else ()) if (scan := shown_scan(layer)) is not None]
    placements = [scan.placement for scan in shown]
    if not placements:
        return None
    first = placements[0]
    if any(p.grid.frame != first.grid.frame or not np.allclose(p.tilt, first.tilt) for p in placements):
        raise ConfigError(
            "The scans that are open lie at different angles: nobody can tell which of them these labels are "
            "of. Close the others, and save again."
        )
    return first


def _edited(data: Any, notes: dict[str, Any], kind: str) -> Finding | None:
    if kind == "labels":
        return labels_shown(np.asarray(data), notes)
    if kind == "points" and notes.get(Key.ROLE) == "ends":
        return line_shown(np.asarray(data), notes)
    return None


def _result(layers: Sequence[LayerTuple]) -> Result | None:
    """Return the result that layers show: of what is drawn, and of the scan where nothing of its own is.

    Raises:
        ConfigError: there is more than one.
    """
    notes = [n for _, options, _ in layers if (n := options.get("metadata", {})).get(Key.RESULT) is not None]
    drawn = [n[Key.RESULT] for n in notes if Key.FINDING in n]
    found = {id(result): result for result in drawn}
    for result in (n[Key.RESULT] for n in notes):
        # A scan names the result it had last: one with layers of its own, that were not chosen, is not meant.
        if not drawn or all(isinstance(finding, Curve | Scores) for finding in result.findings):
            found[id(result)] = result
    if len(found) > 1:
        tasks = ", ".join(sorted(result.task for result in found.values()))
        raise ConfigError(f"These layers show more than one result ({tasks}). Select the layers of one task.")
    return next(iter(found.values()), None)


def _unmeasured(result: Result, layers: Sequence[LayerTuple]) -> tuple[Result, list[Finding]]:
    """Return a result and its findings as corrected since; as they are where nothing waits to be measured."""
    for _, options, _ in layers:
        notes = options.get("metadata", {})
        if notes.get(Key.RESULT) is result and notes.get(Key.CORRECTED) is not None:
            before, findings = notes[Key.CORRECTED]
            return before, list(findings)
    return result, list(result.findings)


def _scan_of(result: Result | None, layers: Sequence[LayerTuple]) -> Scan | None:
    """Return the scan of a result as its task read it, or the scan that is shown; None if there is none."""
    notes = [options.get("metadata", {}) for _, options, _ in layers]
    source = (
        result.source if result is not None else next((n[Key.SOURCE] for n in notes if Key.SOURCE in n), None)
    )
    if source is not None and source.path is not None and loading.is_there(source.path):
        selection = None
        if result is not None:
            selection = built_task(result.task, settings=result.provenance.get("config") or {}).selection
        facts = next((n[STATED] for n in notes if STATED in n and n[Key.SOURCE].path == source.path), None)
        if facts is None and result is not None:
            facts = stated_for(result, loading.probe(source.path).grid)
        return (facts or Stated()).load(source.path, selection)
    mine = [n for n in notes if result is None or n.get(Key.RESULT) is result or _has_path(n, source)]
    return next((n[Key.SCAN] for n in mine if n.get(Key.SCAN) is not None), None)


def _has_path(notes: dict[str, Any], source: Source | None) -> bool:
    path = source.path if source is not None else None
    return path is not None and Key.SOURCE in notes and notes[Key.SOURCE].path == path
