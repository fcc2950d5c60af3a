"""How soon the napari plugin shows a volume, and how fast it scrolls a long cine, beside plain ways to do so.

    vblank_mode=0 xvfb-run -a python benchmarks/napari_plugin.py --rounds 3

Everything happens in one napari window, one way after the other, in rounds. Volume: a NIfTI of SIZE^3 uint8,
from its path to its first slice drawn; beside it nibabel's samples given to napari. Cine: an AVI of FRAMES
frames, drawn one after the other for SECONDS, frames per second after the first second; beside it OpenCV
that seeks each frame, and all frames in memory, decoded before the clock runs (an upper limit). Needs the
extra ``bench``. Without a graphics card most of a frame's time is napari's own drawing, and unless
``vblank_mode`` is 0, Mesa waits for a refresh that a virtual screen does not have.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import dask.array as da
import napari
import nibabel
import numpy as np
from napari.layers import Layer
from qtpy.QtWidgets import QApplication

from usvol.formats.nifti import write_nifti
from usvol.formats.video_writing import write_video
from usvol.scan import Grid
from usvol_napari.reader import open_layers

Opener = Callable[[Path], list[Layer]]


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=256, help="samples along each side of the volume")
    parser.add_argument("--frames", type=int, default=2000, help="of the cine")
    parser.add_argument("--height", type=int, default=360, help="of a frame, px; as wide as 4 : 3")
    parser.add_argument("--seconds", type=float, default=6.0, help="of scrolling")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    viewer = napari.Viewer(show=True)
    viewer.window.resize(900, 640)
    with tempfile.TemporaryDirectory() as folder:
        volume, cine = Path(folder) / "volume.nii.gz", Path(folder) / "cine.avi"
        _write_volume(volume, options.size)
        _write_cine(cine, options.frames, height=options.height)
        _first_slice_s(viewer, volume, _with_plugin)  # warms up whatever is made once
        soon = {name: [] for name in _VOLUMES}
        for _ in range(options.rounds):
            for name, opener in _VOLUMES.items():
                soon[name].append(_first_slice_s(viewer, volume, opener))
        fast = {name: [] for name in _CINES}
        for _ in range(options.rounds):
            for name, opener in _CINES.items():
                fast[name].append(_scrolled_fps(viewer, opener(cine), seconds=options.seconds))
    viewer.close()
    print(_table(f"{options.size}^3 volume to first slice, s", soon))
    print(_table(f"{options.frames} frames of {options.height} rows, frames/s after the first second", fast))


def _write_volume(path: Path, size: int) -> None:
    samples = np.random.default_rng(0).integers(0, 120, (size,) * 3, dtype=np.uint8)
    write_nifti(path, samples, grid=Grid((size, size, size), (0.5, 0.5, 0.5)))


def _write_cine(path: Path, count: int, *, height: int) -> None:
    """Write speckle that shifts from frame to frame."""
    width = height * 4 // 3
    speckle = np.random.default_rng(0).integers(0, 160, (height, width), dtype=np.uint8)
    speckle = cv2.GaussianBlur(speckle, (0, 0), 2)
    frames = np.stack([np.roll(speckle, frame, axis=1) for frame in range(count)])
    write_video(path, np.repeat(frames[..., None], 3, -1), fps=30)


def _with_plugin(path: Path) -> list[Layer]:
    return [Layer.create(*layer) for layer in open_layers(path)]


def _with_nibabel(path: Path) -> list[Layer]:
    image: Any = nibabel.load(path)  # pyright: ignore[reportPrivateImportUsage]
    return [Layer.create(np.asarray(image.dataobj), {}, "image")]


def _with_seeks(path: Path) -> list[Layer]:
    clip = cv2.VideoCapture(str(path))
    count, height, width = (
        int(clip.get(what))
        for what in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)
    )

    def frame(block_info: Any = None) -> np.ndarray:
        clip.set(cv2.CAP_PROP_POS_FRAMES, block_info[None]["array-location"][0][0])
        return clip.read()[1][None, ..., ::-1]

    chunks = ((1,) * count, (height,), (width,), (3,))
    return [Layer.create(da.map_blocks(frame, chunks=chunks, dtype=np.uint8), {"rgb": True}, "image")]


def _in_memory(path: Path) -> list[Layer]:
    clip, frames = cv2.VideoCapture(str(path)), []
    while (answer := clip.read())[0]:
        frames.append(answer[1][..., ::-1])
    return [Layer.create(np.stack(frames), {"rgb": True}, "image")]


_VOLUMES: dict[str, Opener] = {"usvol": _with_plugin, "nibabel": _with_nibabel}
_CINES: dict[str, Opener] = {"usvol": _with_plugin, "OpenCV, a seek a frame": _with_seeks,
                             "all in memory": _in_memory}  # fmt: skip


def _first_slice_s(viewer: napari.Viewer, path: Path, opener: Opener) -> float:
    start = time.perf_counter()
    for layer in opener(path):
        viewer.add_layer(layer)
    _draw(viewer)
    seconds = time.perf_counter() - start
    viewer.layers.clear()
    return seconds


def _scrolled_fps(viewer: napari.Viewer, layers: list[Layer], *, seconds: float) -> float:
    """Return frames per second after the first second of scrolling from the first frame on."""
    for layer in layers:
        viewer.add_layer(layer)
    stamps, start = [], time.perf_counter()
    for frame in range(int(layers[0].data.shape[0])):
        viewer.dims.set_current_step(0, frame)
        _draw(viewer)
        stamps.append(time.perf_counter() - start)
        if stamps[-1] > seconds:
            break
    viewer.layers.clear()
    late = [stamp for stamp in stamps if stamp > 1]
    return (len(late) - 1) / (late[-1] - late[0]) if len(late) > 1 else float("nan")


def _draw(viewer: napari.Viewer) -> None:
    """Let Qt go on until it has drawn the canvas once more."""
    drawn: list[Any] = []
    canvas: Any = viewer.window._qt_viewer.canvas._scene_canvas  # napari has no public way
    canvas.events.draw.connect(drawn.append)
    canvas.update()
    while not drawn:
        QApplication.processEvents()
    canvas.events.draw.disconnect(drawn.append)


def _table(title: str, rows: dict[str, list[float]]) -> str:
    ours = float(np.median(rows["usvol"]))
    lines = [f"| {title} | median | all | of usvol's |", "|---" * 4 + "|"]
    for name, values in rows.items():
        middle = float(np.median(values))
        shown = ", ".join(f"{value:.2f}" for value in values)
        lines.append(f"| {name} | {middle:.2f} | {shown} | {middle / ours:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
