"""Run a network where one call is not enough: large volumes, long cines, flipped copies.

A network here is any callable from a tensor to a tensor, such as ``runtime.compile_network`` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import torch
from torch import Tensor

from usvol.scan import Shape3
from usvol.supervision import check, track

Forward = Callable[[Tensor], Tensor]


def sliding_window(
    network: Forward, volume: Tensor, *, window: Shape3, overlap: float = 0.5, batch: int = 1
) -> Tensor:
    """Run ``network`` on overlapping blocks of a volume and blend its answers (MONAI, Gaussian weights).

    Args:
        network: maps blocks ``b c z y x`` of exactly ``window`` samples to ``b k z y x``.
        volume: ``b c z y x`` float, of any size; padded with 0 where it is smaller than the window.
        window: block size (z, y, x).
        overlap: share of a block, 0 to below 1, that it has in common with the next.
        batch: blocks per call.

    Returns:
        ``b k z y x`` over the whole volume.
    """
    from monai.inferers.utils import sliding_window_inference

    def checked(blocks: Tensor) -> Tensor:
        check()
        return network(blocks)

    with torch.inference_mode():
        output = sliding_window_inference(volume, window, batch, checked, overlap=overlap, mode="gaussian")
    if not isinstance(output, Tensor):
        raise TypeError(
            f"a sliding window blends one tensor, and the network returned {type(output).__name__}"
        )
    return output


def temporal_windows(
    network: Forward, clip: Tensor, *, length: int, stride: int | None = None, batch: int = 1
) -> Tensor:
    """Run ``network`` on overlapping windows of a clip and average its per-frame answers.

    A frame counts more in the windows that hold it near their middle, where it has context on both sides
    (triangular weights). A clip shorter than ``length`` is continued with its last frame.

    Args:
        network: maps windows ``b length …`` to one answer per frame, ``b length …``.
        clip: ``t …``, one clip with time first.
        length: frames per window.
        stride: frames from one window to the next; half a window by default. The last window ends with the
            clip, so every frame is seen.
        batch: windows per call.

    Returns:
        ``t …``, one averaged answer per frame.
    """
    frames = clip.shape[0]
    if frames == 0:
        raise ValueError("a clip without frames has no answer")
    if frames < length:
        clip = torch.cat([clip, clip[-1:].expand(length - frames, *clip.shape[1:])])
    starts = list(window_starts(clip.shape[0], length, stride=stride or max(1, length // 2)))
    ramp = torch.arange(1, length + 1, dtype=torch.float32)
    weights = torch.minimum(ramp, ramp.flip(0))
    total, weight = None, torch.zeros(clip.shape[0])
    with torch.inference_mode():
        for first in track(range(0, len(starts), batch)):
            chosen = starts[first : first + batch]
            answers = network(torch.stack([clip[s : s + length] for s in chosen])).float().cpu()
            if total is None:
                total = torch.zeros(clip.shape[0], *answers.shape[2:])
            for start, answer in zip(chosen, answers, strict=True):
                total[start : start + length] += answer * _along_time(weights, answer)
                weight[start : start + length] += weights
    assert total is not None
    return (total / _along_time(weight, total))[:frames]


def window_starts(frames: int, length: int, *, stride: int) -> Iterator[int]:
    """Yield the first frame of each window, the last window ending with the clip.

    Example:
        >>> list(window_starts(10, 4, stride=4))
        [0, 4, 6]
    """
    if length < 1 or stride < 1 or frames < length:
        raise ValueError(f"no windows of {length} frames every {stride} in {frames} frames")
    if stride > length:
        raise ValueError(f"a stride of {stride} skips frames between windows of {length}")
    yield from range(0, frames - length, stride)
    yield frames - length


def with_flips(
    network: Forward, sample: Tensor, *, dims: tuple[int, ...], spatial: bool
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the answers to a sample and its flipped copies.

    The spread is an uncertainty of the network, not of the measurement (Wang et al., Neurocomputing 2019).

    Args:
        network: any callable from tensor to tensor.
        sample: network input.
        dims: dimensions to flip, in every combination: 2 ** len(dims) calls.
        spatial: whether the answer is a map over the same dimensions, to be flipped back; a score is not.
    """
    answers = []
    subsets = [chosen for count in range(len(dims) + 1) for chosen in combinations(dims, count)]
    with torch.inference_mode():
        for chosen in track(subsets):
            answer = network(sample.flip(chosen) if chosen else sample).float()
            answers.append(answer.flip(chosen) if chosen and spatial else answer)
    stack = torch.stack(answers)
    return stack.mean(0), stack.std(0, correction=0)


def _along_time(weights: Tensor, values: Tensor) -> Tensor:
    return weights.view(-1, *(1,) * (values.ndim - 1))
