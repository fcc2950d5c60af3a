"""Turn scans and findings into napari layer tuples: data, how to show them, type of layer.

No Qt, no viewer and no window here. What a layer was made from stands in its metadata under the keys of
``Key``, so that widgets and writers find scan, finding and result again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import singledispatch
from typing import Any

import numpy as np

from usvol.report.meshes import faces_seen
from usvol.report.panels import PALETTE
from usvol.resampling import cross_section, reslice
from usvol.result import Box, Curve, Finding, Heatmap, Labels, Line, Plane, Result, Scores, Surface
from usvol.scan import Grid, Kind, Scan, Source
from usvol_napari.placement import (
    Placement,
    oriented_grid,
    placement_of,
    space_scale,
    space_translate,
    to_shown,
    to_viewer,
)

LayerTuple = tuple[Any, dict[str, Any], str]

_WHITE, _LINE, _TIP = "white", "#56b4e9", "#d55e00"
_GLASS = 0.4  # opacity of a wall around open sheets, such as the cusps of a valve
_BORDER = 0.0  # planes end at the outermost samples: beyond them they would shift napari's slider steps
_KINDS = {Surface: "mesh", Box: "box", Plane: "plane", Line: "line", Labels: "labels", Heatmap: "map"}
LOOK: dict[str, Any] = {"interpolation2d": "linear", "blending": "translucent_no_depth"}
"""Of scans: smooth between samples, and in 3D behind what was found in them, which else would be hidden."""
_BOX_EDGES = ((0, 1, 3, 2, 0), (4, 5, 7, 6, 4), (0, 4), (1, 5), (2, 6), (3, 7))


class Key(StrEnum):
    """Keys of a layer's metadata.

    ``SOURCE``: Source, ``PLACEMENT``: Placement, on every layer of ours. ``SCAN``: the Scan where it lies in
    memory, else absent (load ``source.path``). ``HEADER``: of a scan shown lazily. ``FINDING``: what the
    layer shows. ``RESULT``: the whole result, on the layers made from one and on the scan that was analysed
    last. ``CORRECTED``: a result and its findings as corrected by hand, until they are measured. ``ROLE``:
    which of several layers of one finding this is (``ends``, ``course``, ``reslice``, ``outline``).
    """

    SOURCE = "usvol_source"
    PLACEMENT = "usvol_placement"
    SCAN = "usvol_scan"
    HEADER = "usvol_header"
    FINDING = "usvol_finding"
    RESULT = "usvol_result"
    CORRECTED = "usvol_corrected"
    ROLE = "usvol_role"


def scan_layers(scan: Scan, *, name: str | None = None) -> list[LayerTuple]:
    """Return the image layer of a scan in memory; one for each channel where they are not grey or RGB."""
    placement = placement_of(scan)
    samples = to_shown(scan.data.flatten(0, 1), scan.grid).reshape(
        *scan.data.shape[:2], *placement.grid.shape
    )
    extra = {Key.SCAN: scan}
    return image_layers(samples, scan.source, placement=placement, name=name, metadata=extra)


def image_layers(
    samples: np.ndarray,
    source: Source,
    *,
    placement: Placement,
    name: str | None = None,
    metadata: Mapping[Key, Any] | None = None,
) -> list[LayerTuple]:
    """Return image layers of samples ``t c z y x`` ordered as shown."""
    title = name or title_of(source)
    if samples.shape[1] == 3 and _is_grey(samples):
        samples = samples[:, :1]
    shape = [n for n, shown in ((samples.shape[0], placement.has_time),) if shown]
    shape += placement.grid.shape[3 - len(placement.space_axes) :]
    notes = {Key.SOURCE: source, Key.PLACEMENT: placement, **(metadata or {})}
    options = {
        **placed(placement),
        "metadata": notes,
        "contrast_limits": window(samples),
        **LOOK,
    }
    if samples.shape[1] == 3:
        coloured = np.moveaxis(samples, 1, -1).reshape(*shape, 3)
        return [(coloured, {**options, "name": title, "rgb": True}, "image")]
    options |= {"colormap": "gray", "rgb": False}
    if not placement.grid.is_planar:
        options["rendering"] = "attenuated_mip"
    names = [title] if samples.shape[1] == 1 else [f"{title} [{c}]" for c in range(samples.shape[1])]
    return [
        (samples[:, channel].reshape(shape), {**options, "name": named}, "image")
        for channel, named in enumerate(names)
    ]


def result_layers(result: Result, scan: Scan | Placement) -> list[LayerTuple]:
    """Return the layers of all findings of a result, in the order of the findings.

    ``scan`` is what the image layer shows: the scan, or the placement in the metadata of its layer. Planes
    show the tissue they cut where the scan is given.
    """
    placement = placement_of(scan) if isinstance(scan, Scan) else scan
    layers = [
        layer
        for finding in result.findings
        for layer in finding_layers(
            finding,
            placement,
            frames=result.source.frame_indices,
            scan=scan if isinstance(scan, Scan) else None,
            beside=result.findings,
        )
    ]
    taken: set[str] = set()
    mapped = any(isinstance(finding, Labels) for finding in result.findings)
    for _, options, _ in layers:
        finding = options["metadata"][Key.FINDING]
        if options["name"] in taken:
            options["name"] += f" {_KINDS.get(type(finding), '')}".rstrip()
        taken.add(options["name"])
        if isinstance(finding, Surface):
            options["visible"] = not mapped  # in slices, napari shows but scraps of a mesh
        options["metadata"] |= {Key.RESULT: result, Key.SOURCE: result.source}
    return layers


def finding_layers(
    finding: Finding,
    placement: Placement,
    *,
    frames: tuple[int, ...] | None = None,
    scan: Scan | None = None,
    beside: Iterable[Finding] = (),
    frame: int = 0,
) -> list[LayerTuple]:
    """Return the layers of one finding: none for curves and scores, which are no part of the picture.

    ``frames`` are the file frames that the task saw (``result.source.frame_indices``), None for all as shown.
    With ``scan`` a plane shows the tissue it cuts, of its ``frame``. A mesh has the colour of the structure
    of its name in the label maps ``beside`` it.
    """
    values = {name: value for f in beside if isinstance(f, Labels) for value, name in f.names.items()}
    layers = list(_layers(finding, _Scene(placement, frames, scan, values, frame)))
    for _, options, _ in layers:
        notes = {Key.FINDING: finding, Key.PLACEMENT: placement}
        options["metadata"] = notes | options.get("metadata", {})
    return layers


def place_of(finding: Finding, *results: Result) -> int | None:
    """Return the position of a finding in the first of some results that it has in the last, else None.

    It is found as itself, or as another of its type and name: what it was before, or became.
    """
    for result in results:
        places = [i for i, one in enumerate(result.findings) if one is finding]
        places += [i for i, one in enumerate(result.findings) if _alike(one, finding)]
        for place in places:
            if place < len(results[-1].findings) and _alike(results[-1].findings[place], finding):
                return place
    return None


def title_of(source: Source) -> str:
    """Return the name of a scan's layer: its file's name, or ``scan``."""
    return source.path.name if source.path else "scan"


def colour_of(value: int) -> tuple[float, float, float, float]:
    """Return the RGBA colour of a label value, the same as in usvol's previews."""
    red, green, blue = PALETTE[(value - 1) % len(PALETTE)]
    return (red / 255, green / 255, blue / 255, 1.0)


def notices(source: Source, *, grid: Grid, kind: Kind, timed: bool) -> tuple[str, ...]:
    """Say what the user must know before measuring: a missing scale, missing frame times, warnings."""
    title, said = title_of(source), []
    if not grid.is_calibrated:
        said.append(
            f"{title} has no scale: {source.calibration.reason}. It is shown in pixels and nothing can be "
            "measured in mm until you state its spacing."
        )
    if kind in {Kind.CINE, Kind.VOLUME_SEQUENCE} and not timed:
        said.append(f"{title} does not say when its frames were taken: time is shown in frames.")
    return (*said, *(f"{title}: {warning}" for warning in source.warnings))


def window(samples: np.ndarray) -> tuple[float, float]:
    """Return contrast limits: all of 8 bits, else the 0.5 and 99.5 percentile of the middle frame."""
    if samples.dtype == np.uint8:
        return 0.0, 255.0
    some = np.asarray(samples[samples.shape[0] // 2], np.float32).ravel()
    some = some[np.isfinite(some)][:: max(1, some.size // 200_000)]
    if not some.size:
        return 0.0, 1.0
    low, high = np.percentile(some, (0.5, 99.5))
    return float(low), float(high if high > low else low + 1)


@dataclass(frozen=True, slots=True)
class _Scene:
    """What findings are shown in.

    Placement, file frames that the task saw, the scan where it is at hand, label values by structure, and
    the frame of the scan whose tissue planes show.
    """

    placement: Placement
    frames: tuple[int, ...] | None
    scan: Scan | None
    values: Mapping[str, int]
    frame: int = 0

    def file_frame(self, position: int) -> int:
        """Return the frame shown for a position in the scan that the task saw."""
        return position if self.frames is None else self.frames[position]


@singledispatch
def _layers(finding: Any, scene: _Scene) -> Iterator[LayerTuple]:  # noqa: ARG001
    raise TypeError(f"no layer for findings of type {type(finding).__name__}")


@_layers.register
def _(finding: Curve | Scores, scene: _Scene) -> Iterator[LayerTuple]:  # noqa: ARG001
    return iter(())


@_layers.register
def _(finding: Labels, scene: _Scene) -> Iterator[LayerTuple]:
    from napari.utils.colormaps import DirectLabelColormap

    values = sorted({*finding.names, *np.unique(np.asarray(finding.data)).tolist()} - {0})
    colours: dict[int | None, Any] = {value: colour_of(value) for value in values}
    most = max(values, default=0)
    names = ["background", *(finding.names.get(value, "") for value in range(1, most + 1))]
    yield (
        _over_time(finding, scene),
        {
            **placed(scene.placement, finding.grid),
            "name": finding.name,
            "opacity": 0.45,
            "colormap": DirectLabelColormap(color_dict=colours | {None: (0, 0, 0, 0), 0: (0, 0, 0, 0)}),
            "features": {"index": list(range(most + 1)), "name": names},
        },
        "labels",
    )


@_layers.register
def _(finding: Heatmap, scene: _Scene) -> Iterator[LayerTuple]:
    yield (
        _over_time(finding, scene),
        {
            **placed(scene.placement, finding.grid),
            "name": finding.name,
            "colormap": "inferno",
            "blending": "additive",
            "opacity": 0.6,
            "contrast_limits": (0.0, 1.0),
            "rendering": "mip",
        },
        "image",
    )


@_layers.register
def _(finding: Surface, scene: _Scene) -> Iterator[LayerTuple]:
    vertices, drawn = _on_frame(np.asarray(finding.vertices), scene, finding.frame_index)
    options: dict[str, Any] = {**drawn, "name": finding.name, "shading": "smooth"}
    if finding.vertex_labels is None:
        colours = np.tile(colour_of(scene.values.get(finding.name, 1)), (len(vertices), 1))
    else:
        labels = np.asarray(finding.vertex_labels)
        colours = np.array([colour_of(int(v)) if v > 0 else (0.8, 0.8, 0.8, 1.0) for v in labels])
    faces, glass = faces_seen(finding)
    colours[np.unique(faces[glass]), 3] = _GLASS
    # What is behind the glass is drawn before it.
    faces = np.concatenate([faces[~glass], faces[glass]])
    yield (vertices, faces), {**options, "vertex_colors": colours}, "surface"


@_layers.register
def _(finding: Line, scene: _Scene) -> Iterator[LayerTuple]:
    placement = scene.placement
    ends, drawn = _on_frame([finding.entry, finding.tip], scene, finding.frame_index)
    width = mark_size(placement)
    yield ends[None], {**drawn, "name": finding.name, "shape_type": "line", "edge_width": width / 2,
                       "edge_color": _LINE}, "shapes"  # fmt: skip
    if not placement.grid.is_planar:
        # A line is seen in a slice only as the point where it pierces it: beads show it there.
        beads = np.linspace(ends[0], ends[1], _beads(ends, placement))
        yield beads, {**drawn, "name": f"{finding.name} course", "size": width / 2, "face_color": _LINE,
                      "border_width": 0, "metadata": {Key.ROLE: "course"}}, "points"  # fmt: skip
    yield ends, {**drawn, "name": f"{finding.name} ends", "size": width, "face_color": [_LINE, _TIP],
                 "border_color": _WHITE, "border_width": 0.1, "features": {"end": ["entry", "tip"]},
                 "text": {"string": "{end}", "color": _WHITE, "size": 10, "translation": _above(ends, width)},
                 "metadata": {Key.ROLE: "ends"}}, "points"  # fmt: skip


@_layers.register
def _(finding: Box, scene: _Scene) -> Iterator[LayerTuple]:
    placement = scene.placement
    half = np.asarray(finding.size) / 2
    signs = np.array([(z, y, x) for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)])
    corners = np.asarray(finding.centre) + (signs * half) @ np.asarray(finding.rotation).T
    points, drawn = _on_frame(corners, scene, finding.frame_index)
    planar = placement.grid.is_planar
    paths = [points[[0, 1, 3, 2, 0]]] if planar else [points[list(edge)] for edge in _BOX_EDGES]
    options = {**drawn, "name": finding.name, "shape_type": "path"}
    yield paths, {**options, "edge_width": mark_size(placement) / 3, "edge_color": _TIP,
                  "face_color": "transparent"}, "shapes"  # fmt: skip


@_layers.register
def _(finding: Plane, scene: _Scene) -> Iterator[LayerTuple]:
    placement, scan = scene.placement, scene.scan
    corners = cross_section(finding, placement.grid, border=_BORDER)
    if placement.grid.is_planar or not len(corners):
        return
    points, drawn = to_viewer(corners, placement), _drawn(placement)
    if scan is not None:
        # A textured surface: in 2D, napari would show an oblique image on slices where it does not lie.
        painted = reslice_options(finding, scan, frame=scene.frame)
        yield (points, _fan(len(points))), {**drawn, **painted, "name": finding.name,
               "shading": "none", "metadata": {Key.ROLE: "reslice"}}, "surface"  # fmt: skip
    yield [points], {**drawn, "name": f"{finding.name} outline", "shape_type": "polygon", "edge_color": _LINE,
                     "edge_width": mark_size(placement) / 4, "face_color": "transparent",
                     "metadata": {Key.ROLE: "outline"}}, "shapes"  # fmt: skip


def reslice_options(plane: Plane, scan: Scan, *, frame: int = 0) -> dict[str, Any]:
    """Return texture and texture coordinates that paint the tissue a plane cuts onto its cross-section."""
    cut = reslice(at_frame(scan, frame), plane)
    low, high = window(np.asarray(scan.data))
    samples = np.clip((np.asarray(cut.data[0, :, 0], np.float32) - low) / (high - low), 0, 1)
    texture = np.moveaxis(samples if len(samples) == 3 else np.repeat(samples[:1], 3, 0), 0, -1)
    # On the grid as shown, so that the corners come in the order of the surface's.
    places = cut.grid.to_index(cross_section(plane, oriented_grid(scan.grid), border=_BORDER))[:, 1:]
    rows, columns = ((places + 0.5) / cut.grid.shape[1:]).T
    # Napari counts the rows of a texture from its lower edge.
    return {"texture": texture, "texcoords": np.stack([columns, 1 - rows], 1)}


def at_frame(scan: Scan, position: int) -> Scan:
    """Return one frame of a scan as a scan of its own."""
    return dataclasses.replace(scan, data=scan.data[position : position + 1], times_s=None)


def mark_size(placement: Placement) -> float:
    """Return the diameter of a mark in world units: 1.5 % of the diagonal of the scan."""
    extent = np.asarray(placement.grid.shape) * np.asarray(placement.grid.step)
    return float(0.015 * np.linalg.norm(extent[3 - len(placement.space_axes) :]))


def placed(placement: Placement, grid: Grid | None = None) -> dict[str, Any]:
    """Return scale, translate, units and axis names of samples on ``grid`` (of a file) or the scan's."""
    shown = placement.grid if grid is None else oriented_grid(grid)
    time = placement.has_time
    return {
        "scale": (*((placement.time_step,) if time else ()), *space_scale(placement, shown)),
        "translate": (*((0.0,) if time else ()), *space_translate(placement, shown)),
        "axis_labels": placement.axes,
        "units": placement.units,
    }


def _drawn(placement: Placement) -> dict[str, Any]:
    """Return units and axis names of points in viewer coordinates of space."""
    return {"axis_labels": placement.space_axes, "units": placement.space_units}


def _on_frame(world: Any, scene: _Scene, position: int | None) -> tuple[np.ndarray, dict[str, Any]]:
    """Return world points as a layer holds them, and its options: led by the frame, of findings of one frame.

    Napari draws points, shapes and meshes within half a unit of their data: of frames, not of seconds.
    """
    placement = scene.placement
    points = to_viewer(world, placement)
    if position is None or not placement.has_time:
        return points, _drawn(placement)
    led = np.column_stack([np.full(len(points), float(scene.file_frame(position))), points])
    scale = (placement.time_step, *np.ones(points.shape[1]))
    return led, {"axis_labels": placement.axes, "units": placement.units, "scale": scale}


def _over_time(finding: Labels | Heatmap, scene: _Scene) -> np.ndarray:
    """Return samples as shown, on every frame shown: 0 on the frames that were not looked at."""
    placement = scene.placement
    samples = to_shown(finding.data, finding.grid)
    space = samples.shape[4 - len(placement.space_axes) :]
    if not placement.has_time:
        return samples[0].reshape(space)
    looked_at = [scene.file_frame(p) for p in finding.frame_indices or range(samples.shape[0])]
    if looked_at == list(range(placement.frames)):
        return samples.reshape(placement.frames, *space)
    everything = np.zeros((placement.frames, *space), samples.dtype)
    everything[looked_at] = samples.reshape(-1, *space)
    return everything


def _alike(one: Finding, other: Finding) -> bool:
    return type(one) is type(other) and one.name == other.name


def _is_grey(samples: np.ndarray) -> bool:
    return bool((samples[:, 0] == samples[:, 1]).all() and (samples[:, 0] == samples[:, 2]).all())


def _fan(corners: int) -> np.ndarray:
    """Return the triangles of a convex polygon, all from its first corner."""
    return np.array([(0, corner, corner + 1) for corner in range(1, corners - 1)])


def _beads(ends: np.ndarray, placement: Placement) -> int:
    finest = min(space_scale(placement))
    return int(np.clip(2 * np.linalg.norm(ends[1] - ends[0]) / finest, 2, 1000))


def _above(ends: np.ndarray, width: float) -> np.ndarray:
    moved = np.zeros(ends.shape[1])
    moved[-2] = -width
    return moved
