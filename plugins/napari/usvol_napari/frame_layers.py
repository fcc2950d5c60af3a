"""Long cines as dask arrays: frames are decoded in chunks when looked at, kept, and fetched ahead."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from dask.array.core import Array

from usvol.errors import ReadError
from usvol.frame_access import Frames, decoded_bytes
from usvol_napari.layers import LOOK, Key, LayerTuple, placed, title_of, window
from usvol_napari.placement import placement_of

_CHUNK_BYTES = 16 << 20
_KEPT_BYTES = 512 << 20


class ChunkCache:
    """The chunks of a cine that were looked at lately; the next one is decoded while one is shown."""

    def __init__(self, frames: Frames) -> None:
        header = frames.header
        frame_bytes = decoded_bytes(header) // header.frames
        self.length = int(np.clip(_CHUNK_BYTES // frame_bytes, 1, 64))
        self._frames = frames
        self._kept = max(3, _KEPT_BYTES // (frame_bytes * self.length))
        self._chunks: OrderedDict[int, Future[np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="usvol-frames")

    def frames(self, chunk: int) -> np.ndarray:
        """Return the frames of a chunk ``t c 1 y x``, and begin to decode the chunk after it."""
        wanted = self._begin(chunk)
        try:
            samples = wanted.result()
        except ReadError:
            self._forget(chunk)
            raise
        if (chunk + 1) * self.length < self._frames.header.frames:
            self._begin(chunk + 1)
        return samples

    def _begin(self, chunk: int) -> Future[np.ndarray]:
        with self._lock:
            found = self._chunks.get(chunk)
            if found is None:
                start = chunk * self.length
                stop = min(start + self.length, self._frames.header.frames)
                found = self._chunks[chunk] = self._ahead.submit(self._frames.read, start, stop)
            self._chunks.move_to_end(chunk)
            while len(self._chunks) > self._kept:
                self._chunks.popitem(last=False)
            return found

    def _forget(self, chunk: int) -> None:
        with self._lock:
            self._chunks.pop(chunk, None)


def lazy_frames(frames: Frames) -> Array:
    """Return all frames as a dask array ``t y x``, or ``t y x c`` of colour; a frame is a chunk of dask's."""
    header, cache = frames.header, ChunkCache(frames)
    shape = (*header.grid.shape[1:], *(() if header.channels == 1 else (header.channels,)))
    name = f"usvol-frames-{uuid.uuid4().hex}"
    rest = (0,) * len(shape)
    graph = {
        (name, frame, *rest): (_frame, cache, *divmod(frame, cache.length)) for frame in range(header.frames)
    }
    chunks = ((1,) * header.frames, *((n,) for n in shape))
    return Array(graph, name, chunks=chunks, dtype=header.dtype)


def lazy_layers(frames: Frames, *, name: str | None = None) -> list[LayerTuple]:
    """Return the image layer of a cine whose frames are decoded when looked at."""
    header = frames.header
    samples = lazy_frames(frames)
    limits = (0.0, 255.0) if header.dtype == "uint8" else window(frames.read(0, 1))
    placement = placement_of(header)
    options = {
        **placed(placement),
        "name": name or title_of(header.source),
        "contrast_limits": limits,
        **LOOK,
        "rgb": header.channels == 3,
        "metadata": {Key.SOURCE: header.source, Key.PLACEMENT: placement, Key.HEADER: header},
    }
    return [(samples, options | ({} if options["rgb"] else {"colormap": "gray"}), "image")]


def _frame(cache: ChunkCache, chunk: int, place: int) -> np.ndarray:
    samples = cache.frames(chunk)[place, :, 0]
    return samples if len(samples) == 1 else np.moveaxis(samples, 0, -1)[None]
