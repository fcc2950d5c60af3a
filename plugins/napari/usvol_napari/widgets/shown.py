"""The scan that a layer shows: which one is meant, of what kind it is, and how a task gets to read it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from napari.layers import Image, Layer
from napari.utils.transforms import Affine

from usvol import loading, pipeline
from usvol.batch.item import Stated
from usvol.scan import Header, Kind, Scan, Selection, Source, kind_of
from usvol.task import Task
from usvol_napari.layers import Key, placed
from usvol_napari.placement import Placement

STATED = "usvol_stated"  # in a layer's metadata: what the user states of the file (``Stated``)


@dataclass(frozen=True, slots=True)
class ShownScan:
    """A scan in the viewer, apart from its layer, so that threads may have it.

    Attributes:
        layer_name: of the image layer that shows it.
        memory: the scan where it lies in memory, else None.
        stated: scale and frame rate that the user stated for the file's samples.
        moved: whether the layer was moved, turned or scaled in napari, of which results know nothing.
    """

    layer_name: str
    source: Source
    placement: Placement
    memory: Scan | None = None
    stated: Stated = dataclasses.field(default_factory=Stated)
    moved: bool = False

    @property
    def kind(self) -> Kind:
        """What the scan is."""
        return kind_of(self.placement.frames, self.placement.file_grid.shape)

    @property
    def shown_frames(self) -> tuple[int, ...]:
        """File frames in the order of the time axis."""
        return self.source.frame_indices or tuple(range(self.placement.frames))

    def read_for(self, task: Task, *, title: str) -> Scan:
        """Return the scan as ``usvol run`` reads it for ``task``: from its file, else from memory.

        Raises:
            ReadError: the file cannot be read any more. KindError: the task does not take it.
        """
        pipeline.require_kind(task, self.kind, title=title, path=self.source.path)
        return self.read(task.selection)

    def read(self, selection: Selection | None = None) -> Scan:
        """Return the scan with what was stated of it; from its file where there is one."""
        path = self.source.path
        if path is None or not path.exists():
            if self.memory is not None:
                return self.memory
            return loading.load(path or "", selection=selection)  # raises what there is to say
        return self.stated.load(path, selection)


def shown_scan(layer: Layer) -> ShownScan | None:
    """Return the scan that a layer shows, or None for a layer that shows a finding or is not ours."""
    notes: dict[str, Any] = layer.metadata
    if not isinstance(layer, Image) or Key.FINDING in notes or Key.PLACEMENT not in notes:
        return None
    memory = notes.get(Key.SCAN)
    return ShownScan(
        layer.name,
        notes[Key.SOURCE],
        notes[Key.PLACEMENT],
        memory if isinstance(memory, Scan) else None,
        notes.get(STATED, Stated()),
        _moved(layer, notes[Key.PLACEMENT]),
    )


def of_scan(layer: Layer, shown: ShownScan) -> bool:
    """Tell whether a layer shows this scan or what was found in it: by its file, else by its samples."""
    source = layer.metadata.get(Key.SOURCE)
    if source is None or source.path != shown.source.path:
        return False
    return source.path is not None or _same_memory(layer.metadata.get(Key.SCAN), shown.memory)


def same_scan(one: ShownScan, other: ShownScan) -> bool:
    """Tell whether two layers show one scan."""
    if one.source.path is None and other.source.path is None:
        return _same_memory(one.memory, other.memory)
    return one.source.path == other.source.path


def _same_memory(one: Scan | None, other: Scan | None) -> bool:
    return one is not None and one is other


def _moved(layer: Layer, placement: Placement) -> bool:
    there, count = placed(placement), layer.ndim
    own = Affine(scale=there["scale"], translate=there["translate"], ndim=count).affine_matrix
    transforms = {"scale": layer.scale, "translate": layer.translate, "rotate": layer.rotate}
    seen = Affine(**transforms, shear=layer.shear, ndim=count).affine_matrix
    return not np.allclose(layer.affine.affine_matrix @ seen, own)


def chosen_layer(viewer: Any) -> Layer | None:
    """Return the image layer that is meant: the active one, else the topmost that shows a scan."""
    active = viewer.layers.selection.active
    candidates = ([active] if active is not None else []) + list(reversed(viewer.layers))
    return next((layer for layer in candidates if shown_scan(layer) is not None), None)


def header_of(layer: Layer) -> Header | None:
    """Return the header of a scan that is decoded when looked at, or None."""
    return layer.metadata.get(Key.HEADER)


def frame_at(viewer: Any, layer: Layer, *, placement: Placement) -> int:
    """Return which of the frames that a layer of a scan shows the viewer is at; 0 without a time axis."""
    if not placement.has_time:
        return 0
    place = layer.world_to_data(viewer.dims.point[-layer.ndim :])[0]
    return int(np.clip(round(float(place)), 0, placement.frames - 1))
