"""Draw previews: a PNG of every result, and a GIF of cines, each under 300 kB."""

from __future__ import annotations

import io
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from usvol.report import panels
from usvol.report.geometry import draw_box, draw_line, draw_plane
from usvol.resampling import cross_section, reslice
from usvol.result import Box, Curve, Heatmap, Labels, Line, Plane, Result, Scores
from usvol.scan import Scan

LIMIT_BYTES = 300_000
FILES = ("preview.png", "preview.gif")
_STRIPS = 5  # panels under the picture
_FRAMES = 24
_MISSING_STEP_MS = 100  # display only: the speed of a GIF whose file has no frame times


def write(result: Result, scan: Scan, *, folder: Path) -> tuple[str, ...]:
    """Write ``preview.png`` and, for a cine, ``preview.gif`` into ``folder``; return their names."""
    if scan.grid.is_planar:
        middle = _telling_frame(result, scan)
        still = _planar(result, scan, middle, side=320)
    else:
        still = _orthogonal(result, scan, side=256)
    _indexed([still], 192)[0].save(folder / FILES[0], optimize=True)
    if scan.data.shape[0] < 2:
        return FILES[:1]
    (folder / FILES[1]).write_bytes(_gif(result, scan))
    return FILES


def write_picture(scan: Scan, path: Path) -> None:
    """Write the first frame of a planar scan as a grey PNG, one pixel per sample of square size."""
    grey = Image.fromarray(_grey(scan, 0, _window(scan))[0])
    _fit(grey, max(grey.size), aspect=scan.grid.step[1] / scan.grid.step[2]).save(path, optimize=True)


def thumbnail(path: Path, *, side: int = 160) -> bytes:
    """Return a JPEG of a preview, at most ``side`` pixels wide, for the report."""
    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((side, side * 2), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=72, optimize=True)
    return stream.getvalue()


def _gif(result: Result, scan: Scan) -> bytes:
    count = scan.data.shape[0]
    picked = np.unique(np.linspace(0, count - 1, min(_FRAMES, count)).round().astype(int))
    times = [scan.times_s[index] for index in picked] if scan.times_s else []
    steps = [round((b - a) * 1000) for a, b in pairwise(times)]
    durations = [max(step, 20) for step in [*steps, steps[-1]]] if steps else _MISSING_STEP_MS
    encoded = b""
    for side, colours in ((224, 64), (176, 48), (144, 32), (112, 24), (80, 16)):
        frames = [_frame(result, scan, int(index), side=side) for index in picked]
        indexed = _indexed(frames, colours)
        stream = io.BytesIO()
        indexed[0].save(
            stream,
            "GIF",
            save_all=True,
            append_images=indexed[1:],
            duration=durations,
            loop=0,
            optimize=False,
        )
        encoded = stream.getvalue()
        if len(encoded) <= LIMIT_BYTES:
            break
    return encoded


def _frame(result: Result, scan: Scan, index: int, *, side: int) -> Image.Image:
    if scan.grid.is_planar:
        return _planar(result, scan, index, side=side)
    return _orthogonal(result, scan, side=side * 3 // 4, frame=index)


def _indexed(frames: list[Image.Image], colours: int) -> list[Image.Image]:
    """Reduce frames to one palette, chosen on the middle frame beside swatches of the panels' colours.

    Without the swatches, thousands of greys would crowd out a thin line or a small bar.
    """
    middle = frames[len(frames) // 2]
    swatches = [panels.PAPER, panels.INK, panels.FAINT, panels.ACCENT, *panels.RAMP]
    chart = Image.new("RGB", (middle.width, middle.height + 40))
    chart.paste(middle, (0, 0))
    step = middle.width / len(swatches)
    draw = ImageDraw.Draw(chart)
    for index, colour in enumerate(swatches):
        draw.rectangle((index * step, middle.height, (index + 1) * step, chart.height), fill=colour)
    palette = chart.quantize(colours, dither=Image.Dither.NONE)
    return [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]


def _telling_frame(result: Result, scan: Scan) -> int:
    """Pick the frame where the first curve peaks, else the middle one."""
    curve = next(
        (f for f in result.findings if isinstance(f, Curve) and any(map(np.isfinite, f.values))), None
    )
    if curve is None:
        return scan.data.shape[0] // 2
    file_frame = curve.frame_indices[int(np.nanargmax(np.asarray(curve.values, float)))]
    return int(np.abs(_file_frames(scan) - file_frame).argmin())


def _planar(result: Result, scan: Scan, index: int, *, side: int) -> Image.Image:
    window = _window(scan)
    grey = _grey(scan, index, window)[0]
    image = _coloured(grey, _overlay(result, scan, index, axis=0, at=0))
    image = _fit(image, side, aspect=scan.grid.step[1] / scan.grid.step[2])
    draw = ImageDraw.Draw(image)
    for line in (f for f in result.findings if isinstance(f, Line)):
        draw_line(draw, line, grid=scan.grid, axis=0, size=image.size)
    return _stack(image, result, int(_file_frames(scan)[index]))


def _orthogonal(result: Result, scan: Scan, *, side: int, frame: int = 0) -> Image.Image:
    grey = _grey(scan, frame, _window(scan))
    centre = _centre(result, scan, frame)
    tiles = []
    for axis, (rows, columns, caption) in enumerate(((1, 2, "y-x"), (0, 2, "z-x"), (0, 1, "z-y"))):
        tile = _coloured(
            np.take(grey, centre[axis], axis=axis), _overlay(result, scan, frame, axis=axis, at=centre[axis])
        )
        tile = _fit(tile, side, aspect=scan.grid.step[rows] / scan.grid.step[columns])
        draw = ImageDraw.Draw(tile)
        for finding in result.findings:
            if isinstance(finding, Plane):
                draw_plane(draw, finding, grid=scan.grid, cut=(axis, centre[axis]), size=tile.size)
            elif isinstance(finding, Line) and finding.frame_index in (None, frame):
                draw_line(draw, finding, grid=scan.grid, axis=axis, size=tile.size)
            elif isinstance(finding, Box) and finding.frame_index in (None, frame):
                draw_box(draw, finding, grid=scan.grid, axis=axis, size=tile.size)
        draw.text((4, 2), caption, fill=panels.FAINT, font=panels.font(10))
        tiles.append(tile)
    tiles += _resliced(result, scan, frame, side=side)
    height = max(tile.height for tile in tiles)
    sheet = Image.new("RGB", (sum(t.width for t in tiles) + 4 * (len(tiles) - 1), height), panels.PAPER)
    left = 0
    for tile in tiles:
        sheet.paste(tile, (left, (height - tile.height) // 2))
        left += tile.width + 4
    return _stack(sheet, result, int(_file_frames(scan)[frame]))


def _resliced(result: Result, scan: Scan, frame: int, *, side: int) -> list[Image.Image]:
    """Return the picture of the first plane's reslice, with the lines that lie in it; none without planes."""
    plane = next((f for f in result.findings if isinstance(f, Plane)), None)
    if plane is None or not len(cross_section(plane, scan.grid)):
        return []
    cut = reslice(scan, plane)
    tile = _fit(Image.fromarray(_grey(cut, frame, _window(scan))[0]).convert("RGB"), side, aspect=1.0)
    draw = ImageDraw.Draw(tile)
    for line in (f for f in result.findings if isinstance(f, Line) and f.frame_index in (None, frame)):
        draw_line(draw, line, grid=cut.grid, axis=0, size=tile.size)
    draw.text((4, 2), plane.name.replace("_", " "), fill=panels.FAINT, font=panels.font(10))
    return [tile]


def _stack(image: Image.Image, result: Result, file_frame: int) -> Image.Image:
    """Put panels of scores and curves under the picture, with a marker at the frame shown."""
    strips: list[Image.Image] = []
    for finding in result.findings:
        if isinstance(finding, Scores) and len(strips) < _STRIPS:
            strips.append(_scores_panel(finding, image.width))
        elif isinstance(finding, Curve) and finding.values and len(strips) < _STRIPS:
            strip = _curve_panel(finding, image.width).copy()
            at = panels.marker_x(finding, file_frame, width=image.width)
            ImageDraw.Draw(strip).line((at, 18, at, strip.height), fill=panels.INK, width=1)
            strips.append(strip)
    sheet = Image.new("RGB", (image.width, image.height + sum(s.height for s in strips)), panels.PAPER)
    top = 0
    for part in (image, *strips):
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


@lru_cache(maxsize=16)
def _scores_panel(scores: Scores, width: int) -> Image.Image:
    return panels.scores_panel(scores, width)


@lru_cache(maxsize=16)
def _curve_panel(curve: Curve, width: int) -> Image.Image:
    return panels.curve_panel(curve, width)


def _coloured(grey: np.ndarray, overlay: np.ndarray | None) -> Image.Image:
    """Blend ``overlay`` (y x 4 uint8 RGBA) over ``grey`` (y x uint8)."""
    image = Image.fromarray(grey).convert("RGB")
    if overlay is not None:
        image.paste(Image.fromarray(overlay[..., :3]), (0, 0), Image.fromarray(overlay[..., 3]))
    return image


def _overlay(result: Result, scan: Scan, frame: int, *, axis: int, at: int) -> np.ndarray | None:
    layer: np.ndarray | None = None
    for finding in result.findings:
        if not isinstance(finding, Labels | Heatmap) or tuple(finding.data.shape[1:]) != scan.grid.shape:
            continue
        position = _position(finding, frame)
        if position is None:
            continue
        plane = np.take(np.asarray(finding.data[position]), at, axis=axis)
        layer = np.zeros((*plane.shape, 4), np.uint8) if layer is None else layer
        (_paint_labels if isinstance(finding, Labels) else _paint_heat)(layer, plane)
    return layer


def _paint_labels(layer: np.ndarray, plane: np.ndarray) -> None:
    padded = np.pad(plane, 1, mode="edge")
    around = (padded[2:, 1:-1], padded[:-2, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2])
    edge = np.any([plane != other for other in around], axis=0)
    for value in np.unique(plane[plane > 0]):
        inside = plane == value
        layer[inside, :3] = panels.PALETTE[(int(value) - 1) % len(panels.PALETTE)]
        layer[inside, 3] = 70
        layer[inside & edge, 3] = 235


def _paint_heat(layer: np.ndarray, plane: np.ndarray) -> None:
    share = np.clip(np.nan_to_num(plane), 0, 1)
    layer[..., :3] = np.stack([255 * np.ones_like(share), 200 * (1 - share), 60 * (1 - share)], -1).astype(
        np.uint8
    )
    layer[..., 3] = (170 * share).astype(np.uint8)


def _position(finding: Labels | Heatmap, frame: int) -> int | None:
    if finding.frame_indices is None:
        return frame if frame < finding.data.shape[0] else None
    return finding.frame_indices.index(frame) if frame in finding.frame_indices else None


def _centre(result: Result, scan: Scan, frame: int) -> tuple[int, int, int]:
    for finding in result.findings:
        if isinstance(finding, Labels) and tuple(finding.data.shape[1:]) == scan.grid.shape:
            position = _position(finding, frame)
            if position is None:
                continue
            inside = np.argwhere(np.asarray(finding.data[position]) > 0)
            if inside.size:
                z, y, x = inside.mean(axis=0).round().astype(int)
                return int(z), int(y), int(x)
    marked = [
        f.point if isinstance(f, Plane) else f.tip if isinstance(f, Line) else f.centre
        for f in result.findings
        if isinstance(f, Plane | Line | Box)
    ]
    if marked:
        index = scan.grid.to_index(np.asarray(marked[0])).round().astype(int)
        z, y, x = np.clip(index, 0, np.asarray(scan.grid.shape) - 1)
        return int(z), int(y), int(x)
    z, y, x = scan.grid.shape
    return z // 2, y // 2, x // 2


def _grey(scan: Scan, frame: int, window: tuple[float, float]) -> np.ndarray:
    """Return one frame as uint8 ``z y x``."""
    samples = np.asarray(scan.data[frame], np.float32)
    flat = samples[0] if len(samples) != 3 else np.tensordot((0.299, 0.587, 0.114), samples, 1)
    low, high = window
    return np.clip(np.nan_to_num((flat - low) * (255 / (high - low))), 0, 255).astype(np.uint8)


def _window(scan: Scan) -> tuple[float, float]:
    if str(scan.data.dtype) == "torch.uint8":
        return 0.0, 255.0
    some = np.asarray(scan.data[scan.data.shape[0] // 2], np.float32).ravel()
    some = some[np.isfinite(some)]
    some = some[:: max(1, some.size // 200_000)]
    low, high = np.percentile(some, (0.5, 99.5)) if some.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def _fit(image: Image.Image, side: int, *, aspect: float) -> Image.Image:
    """Scale so that the longer side is ``side`` pixels, with square pixels (aspect = row / column step)."""
    width, height = float(image.width), image.height * aspect
    ratio = side / max(width, height)
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    return image.resize(size, Image.Resampling.LANCZOS if ratio < 1 else Image.Resampling.BICUBIC)


def _file_frames(scan: Scan) -> np.ndarray:
    return np.asarray(scan.source.frame_indices or range(scan.data.shape[0]))
