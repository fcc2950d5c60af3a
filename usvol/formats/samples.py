"""What every reader does with samples: bound their memory, scale frames, hand them over as tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from usvol.errors import CorruptFileError, TooLargeError

if TYPE_CHECKING:
    from torch import Tensor

MAX_DECODED_BYTES = 8 * 2**30
"""Samples of one scan may take this much memory; a header that asks for more is refused."""

# torch has these types, but no flip, no max and no arithmetic for them.
_WIDENED = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64, "float128": np.float64}


def check_size(path: Path, shape: Sequence[int], *, dtype: np.dtype | str) -> int:
    """Return the bytes that ``shape`` samples take, or raise before anything is allocated.

    Raises:
        CorruptFileError: a size below one.
        TooLargeError: more than ``MAX_DECODED_BYTES``.
    """
    if min(shape, default=0) < 1:
        raise CorruptFileError(path, f"its header gives the size {tuple(shape)}", "export it again")
    needed = math.prod(int(n) for n in shape) * np.dtype(dtype).itemsize
    if needed > MAX_DECODED_BYTES:
        raise TooLargeError(
            path,
            f"its header asks for {needed / 2**30:.1f} GiB of samples {tuple(int(n) for n in shape)}"
            f" and {MAX_DECODED_BYTES / 2**30:.0f} GiB are allowed",
            "check that the file is whole, or split it or select fewer frames",
        )
    return needed


def to_tensor(samples: np.ndarray, path: Path) -> Tensor:
    """Return the samples as a tensor of the same values.

    The stored dtype is kept, except unsigned integers beyond 8 bits, which torch can hold but not
    compute with: they are widened to the next signed type.

    Raises:
        CorruptFileError: a sample type that holds no plain numbers.
    """
    import torch

    samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
    if samples.dtype.name == "uint64" and samples.size and samples.max() > np.iinfo(np.int64).max:
        raise CorruptFileError(path, "it holds integers beyond 63 bits", "export it with a smaller type")
    samples = samples.astype(_WIDENED.get(samples.dtype.name, samples.dtype), copy=False)
    if samples.dtype.kind not in "biuf":
        raise CorruptFileError(path, f"its samples are {samples.dtype}, not numbers", "export grey values")
    return torch.from_numpy(np.require(samples, requirements=["C", "W"]))


def scale_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale one frame ``y x`` or ``y x c`` down to ``size`` (rows, columns) by area averages.

    The dtype is kept, integers rounded.
    """
    if frame.shape[:2] == size:
        return frame
    weights_y = _area_weights(frame.shape[0], size[0])
    weights_x = _area_weights(frame.shape[1], size[1])
    scaled = np.einsum("ay,y...->a...", weights_y, frame.astype(np.float32), optimize=True)
    scaled = np.moveaxis(np.tensordot(weights_x, scaled, axes=(1, 1)), 0, 1)
    if frame.dtype.kind in "iu":
        limits = np.iinfo(frame.dtype)
        scaled = np.clip(np.rint(scaled), limits.min, limits.max)
    return scaled.astype(frame.dtype)


def _area_weights(source: int, target: int) -> np.ndarray:
    edges = np.linspace(0, source, target + 1)
    index = np.arange(source)
    overlap = np.minimum(edges[1:, None], index + 1) - np.maximum(edges[:-1, None], index)
    weights = np.clip(overlap, 0, None)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
