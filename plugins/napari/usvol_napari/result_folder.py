"""Show what usvol has written: one result, or all of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from usvol.batch.item import Stated
from usvol.errors import EmptyFileError, ReadError
from usvol.frame_access import Frames, open_frames
from usvol.loading import load
from usvol.pipeline import input_sha256
from usvol.result import Heatmap, Labels, Result, Severity
from usvol.result_reading import read_result
from usvol.scan import Grid, Header, Scan, Trust
from usvol.writing import RESULT_FILE
from usvol_napari.frame_layers import lazy_layers
from usvol_napari.layers import Key, result_layers, scan_layers
from usvol_napari.placement import Placement, at_spacing, oriented_grid
from usvol_napari.widgets.shown import STATED

LayerTuples = list[tuple]
_ITEMS = "items"
_Cine = TypeVar("_Cine", Scan, Header)


def items_of(folder: Path) -> list[Path]:
    """Return the folders of the items of a batch that were finished, in order of their names."""
    return sorted(path.parent for path in (folder / _ITEMS).glob(f"*/{RESULT_FILE}"))


def batch_layers(folder: Path) -> tuple[LayerTuples, list[str]]:
    """Return the layers of the first item of a batch, and where the others are.

    Raises:
        EmptyFileError: no item was finished. ReadError: the first result is damaged.
    """
    items = items_of(folder)
    if not items:
        raise EmptyFileError(folder, "none of its items was finished", "look into its report.html")
    layers, said = item_layers(items[0])
    if len(items) > 1:
        said.insert(0, f"{folder.name} holds {len(items)} results; {items[0].name} is shown. "
                       "Open the others from the batch tab, or their folders below 'items'.")  # fmt: skip
    return layers, said


def item_layers(folder: Path) -> tuple[LayerTuples, list[str]]:
    """Return the layers of a result's scan and findings, and what the user must know.

    The scan is read from where it was when the result was made; without it the findings alone are shown. The
    result, with its measurements, stands in the metadata of every layer.

    Raises:
        ReadError: the result is damaged.
    """
    result = read_result(folder)
    said: list[str] = []
    layers: LayerTuples = []
    shown: Scan | Placement = _alone(result)
    try:
        layers, shown, said = _scan_layers(result, folder)
    except ReadError as error:
        said = [f"{error} Only the findings are shown."]
    layers = [*layers, *result_layers(result, shown)]
    for _, options, _ in layers:
        options["metadata"][Key.RESULT] = result
    return layers, said


def _scan_layers(result: Result, folder: Path) -> tuple[LayerTuples, Scan | Placement, list[str]]:
    path = result.source.path
    if path is None:
        raise EmptyFileError(folder, "its result does not say where the scan lies", "open the scan as well")
    said = [str(flag.message) for flag in result.flags if flag.severity is Severity.SEVERE]
    if result.provenance.get("input_sha256") not in {None, input_sha256(path)}:
        said.append(f"{path.name} has changed since the result was made: they may not fit.")
    frames = open_frames(path)
    if frames is not None:
        facts = stated_for(result, frames.header.grid)
        layers = lazy_layers(Frames(_as_stated(frames.header, facts), frames.read))
        shown: Scan | Placement = layers[0][1]["metadata"][Key.PLACEMENT]
    else:
        scan = load(path)
        facts = stated_for(result, scan.grid)
        shown = _as_stated(scan, facts)
        layers = scan_layers(shown)
    for _, options, _ in layers:
        options["metadata"][STATED] = facts  # whoever reads the file again needs it
    return layers, shown, said


def stated_for(result: Result, grid: Grid) -> Stated:
    """Return what the user had stated of a scan for a result; its spacing for the samples of ``grid``."""
    spacing_mm = result.grid.spacing_mm
    if result.source.calibration.trust is not Trust.STATED or spacing_mm is None:
        return Stated(fps=result.source.stated_fps)
    ratio = [seen / read for seen, read in zip(result.grid.shape, grid.shape, strict=True)]
    z, y, x = (step * factor for step, factor in zip(spacing_mm, ratio, strict=True))
    return Stated((y if grid.is_planar else z, y, x), result.source.stated_fps)


def _as_stated(cine: _Cine, facts: Stated) -> _Cine:
    """Return a scan or header with what was stated of it."""
    if facts.spacing_mm is not None:
        cine = at_spacing(cine, facts.spacing_mm)
    return cine if facts.fps is None else cine.with_fps(facts.fps)


def _alone(result: Result) -> Placement:
    """Return how a result is shown without its scan: on its own grid, with the frames that it names."""
    named = [len(f.data) for f in result.findings if isinstance(f, Labels | Heatmap)]
    frames = max([1, *named, *(index + 1 for index in result.source.frame_indices or ())])
    return Placement(oriented_grid(result.grid), result.grid, frames)
