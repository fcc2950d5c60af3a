from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from usvol.explain import grad_cam


class Bright(nn.Module):
    """Score 0 rises with bright pixels, score 1 falls with them; frames pass through an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.unused = nn.Conv2d(1, 2, 3)
        nn.init.constant_(self.conv.weight[:1], 1 / 9)
        nn.init.constant_(self.conv.weight[1:], -1 / 9)

    def forward(self, clip: Tensor) -> Tensor:
        codes = self.conv(clip.flatten(0, 1)).relu().mean((2, 3)).unflatten(0, clip.shape[:2])
        total = codes.sum(1)
        return torch.stack([total[:, 0], -total[:, 0]], 1)


@pytest.fixture
def clip() -> Tensor:
    frames = torch.zeros(1, 5, 1, 16, 24)
    frames[0, 3, 0, 10:13, 4:7] = 1.0
    frames[0, 1, 0, 2:5, 18:21] = 0.5
    return frames


def test_the_map_points_at_the_evidence_in_time_and_space(clip):
    module = Bright()
    heat = grad_cam(module, clip, layer=module.conv, target=lambda y: y[0, 0])
    assert heat.shape == (5, 16, 24)
    frame, y, x = (int(i) for i in torch.unravel_index(heat.argmax(), heat.shape))
    assert (frame, y, x) == (3, 11, 5)
    assert float(heat.max()) == 1.0
    assert float(heat[1, 3, 19]) == pytest.approx(0.5)
    assert float(heat[[0, 2, 4]].max()) == 0.0


def test_nothing_speaks_for_a_score_that_falls_with_brightness(clip):
    module = Bright()
    assert float(grad_cam(module, clip, layer=module.conv, target=lambda y: y[0, 1]).max()) == 0.0


def test_the_map_has_the_size_of_the_input_not_of_the_layer():
    module = nn.Sequential(
        nn.Conv3d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()
    )
    heat = grad_cam(module, torch.rand(1, 1, 8, 10, 12), layer=module[0], target=lambda y: y.sum())
    assert heat.shape == (1, 8, 10, 12)
    assert torch.isfinite(heat).all()


def test_module_is_left_without_hooks_or_gradients(clip):
    module = Bright()
    grad_cam(module, clip, layer=module.conv, target=lambda y: y[0, 0])
    assert not module.conv._forward_hooks
    assert module.conv.weight.grad is None
    assert clip.grad is None
    assert not clip.requires_grad


def test_a_layer_that_takes_no_part_is_refused(clip):
    module = Bright()
    with pytest.raises(ValueError, match="called once"):
        grad_cam(module, clip, layer=module.unused, target=lambda y: y[0, 0])
    with pytest.raises(ValueError, match="does not depend"):
        grad_cam(module, clip, layer=module.conv, target=lambda y: torch.ones((), requires_grad=True) * 2)
    assert not module.conv._forward_hooks
