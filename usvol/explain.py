"""Show what a network looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def grad_cam(
    module: nn.Module, sample: Tensor, *, layer: nn.Module, target: Callable[[Any], Tensor]
) -> Tensor:
    """Return the Grad-CAM of ``target`` at ``layer``: 0 where nothing spoke for it, 1 where most did.

    Selvaraju et al., ICCV 2017, eq. 1-2: channels weighted by their mean gradient, summed, negative parts
    cut off. The channel weights of a frame are its own, so in a clip frames compare over time too: the map is
    scaled once, by its largest value over time and space. All 0 if no evidence is positive.

    Args:
        module: the network, called as ``module(sample)``; it is left in evaluation mode.
        sample: network input; its last dimensions are the spatial ones of the layer.
        layer: a part of it whose output is ``n c …`` with at least one spatial dimension, such as the last
            convolution; n may be batch times frames.
        target: the scalar to explain, from the module's output, such as ``lambda y: y[0, 2]``.

    Returns:
        ``n …`` float32 on the spatial size of ``sample``.

    Raises:
        ValueError: the layer was not called, has no spatial dimension, or the target does not depend on it.
    """
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        kept.append(output)

    handle = layer.register_forward_hook(keep)
    try:
        # cuDNN has no backward pass for recurrent layers in evaluation mode.
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            score = target(module.eval()(sample.detach().requires_grad_()))
            activation = _only(kept)
            gradient = torch.autograd.grad(score, activation, allow_unused=True)[0]
    finally:
        handle.remove()
    if gradient is None:
        raise ValueError("the target does not depend on the layer")
    return _heat(activation.detach(), gradient, tuple(sample.shape[-(activation.ndim - 2) :]))


def _only(kept: list[Tensor]) -> Tensor:
    if len(kept) != 1 or not isinstance(kept[0], Tensor) or kept[0].ndim < 3:
        raise ValueError("the layer must be called once and return one tensor n c … with spatial dimensions")
    return kept[0]


def _heat(activation: Tensor, gradient: Tensor, size: tuple[int, ...]) -> Tensor:
    weights = gradient.flatten(2).mean(2).view(*gradient.shape[:2], *(1,) * len(size))
    heat = F.relu((weights * activation).sum(1, keepdim=True))
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    heat = F.interpolate(heat.float(), size=size, mode=mode, align_corners=False)[:, 0]
    peak = heat.max()
    return heat / peak if peak > 0 else heat
