from __future__ import annotations

import builtins
import logging
import threading

import pytest
import torch
from torch import Tensor, nn

from usvol import runtime
from usvol.errors import ConfigError
from usvol.runtime import ParityError, compile_network, resolve_device


class ClipNet(nn.Module):
    """A frame encoder and an LSTM: per-frame scores and a clip score."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.memory = nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 4)

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.encoder(clip.flatten(0, 1)).unflatten(0, clip.shape[:2])
        codes, _ = self.memory(codes)
        frames = self.head(codes)
        return frames, frames.mean(1)


class VolumeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layers = nn.Sequential(
            nn.Conv3d(1, 6, 3, padding=1), nn.InstanceNorm3d(6), nn.ReLU(), nn.Conv3d(6, 2, 3, padding=1)
        )

    def forward(self, volume: Tensor) -> Tensor:
        return self.layers(volume)


class Frozen(nn.Module):
    """A trace freezes its batch size, so it is right for the example's size alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(int(x.shape[0]) + 1).sum().item() * x.mean()


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise ValueError("not today")
        return x * 2


def test_openvino_answers_as_torch_for_any_batch_and_keeps_the_structure():
    module = ClipNet()
    network = compile_network(module, torch.rand(1, 6, 1, 32, 32), device="cpu")
    assert (network.engine, network.device, network.precision) == ("openvino", "cpu", "f32")
    assert 0 <= network.error < 1e-4
    for batch in (1, 2, 5):
        clip = torch.rand(batch, 6, 1, 32, 32)
        answer, expected = network(clip), module(clip)
        assert isinstance(answer, tuple)
        assert [part.shape for part in answer] == [(batch, 6, 4), (batch, 4)]
        assert runtime.relative_error(answer, expected) < 1e-4


def test_clip_length_may_be_dynamic_too():
    module = ClipNet()
    network = compile_network(module, torch.rand(1, 6, 1, 32, 32), device="cpu", dynamic_dims=(0, 1))
    clip = torch.rand(2, 19, 1, 32, 32)
    assert runtime.relative_error(network(clip), module(clip)) < 1e-4


def test_a_single_tensor_stays_a_single_tensor():
    module = VolumeNet()
    network = compile_network(module, torch.rand(1, 1, 12, 16, 20), device="cpu", threads=1)
    volume = torch.rand(1, 1, 12, 16, 20)
    torch.testing.assert_close(network(volume), module(volume), rtol=1e-3, atol=1e-4)


def test_bf16_is_offered_and_checked():
    network = compile_network(VolumeNet(), torch.rand(1, 1, 12, 16, 20), device="cpu", precision="bf16")
    assert network.precision == "bf16"
    assert network.error <= runtime.TOLERANCE["bf16"]


def test_a_trace_that_froze_the_batch_is_caught():
    with pytest.raises(ParityError, match="Frozen in f32 on openvino differs from torch"):
        compile_network(Frozen(), torch.rand(1, 4), device="cpu")
    assert compile_network(Frozen(), torch.rand(2, 4), device="cpu", dynamic_dims=()).error < 1e-5


def test_what_openvino_cannot_convert_runs_in_torch_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        network = compile_network(Untraceable(), torch.ones(1, 2), device="cpu")
    assert network.engine == "torch"
    assert "cannot convert Untraceable" in caplog.text
    assert network(torch.ones(3, 2)).sum() == 12


def test_without_openvino_torch_runs_with_a_warning(monkeypatch, caplog):
    real = builtins.__import__

    def no_openvino(name, *args, **kwargs):
        if name.partition(".")[0] == "openvino":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_openvino)
    module = VolumeNet()
    example = torch.rand(1, 1, 8, 8, 8)
    with caplog.at_level(logging.WARNING):
        network = compile_network(module, example, device="cpu")
        half = compile_network(module, example, device="cpu", precision="bf16")
    assert "not installed" in caplog.text
    assert (network.engine, network.error) == ("torch", 0.0)
    torch.testing.assert_close(network(example), module(example))
    assert half(example).dtype == torch.float32
    assert 0 < half.error <= runtime.TOLERANCE["bf16"]


def test_compiling_sends_nothing_over_the_network(monkeypatch):
    telemetry = pytest.importorskip("openvino_telemetry")

    def refuse(*args, **kwargs):
        raise AssertionError("telemetry")

    monkeypatch.setattr(telemetry.Telemetry, "__init__", refuse)
    assert compile_network(VolumeNet(), torch.rand(1, 1, 8, 8, 8), device="cpu").engine == "openvino"


def test_one_network_serves_several_threads():
    module = VolumeNet()
    network = compile_network(module, torch.rand(1, 1, 8, 8, 8), device="cpu")
    volumes = [torch.rand(1, 1, 8, 8, 8) for _ in range(8)]
    answers: dict[int, Tensor] = {}
    threads = [
        threading.Thread(target=lambda i=i: answers.__setitem__(i, network(volumes[i]))) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, volume in enumerate(volumes):
        torch.testing.assert_close(answers[i], module(volume), rtol=1e-3, atol=1e-4)


def test_devices(monkeypatch):
    assert resolve_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device().type == "cpu"
    with pytest.raises(ConfigError, match="0 CUDA devices"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    for name in ("cuda:2", "gpu", "cuda:x", ""):
        with pytest.raises(ConfigError):
            resolve_device(name)
    with pytest.raises(ConfigError, match="precision"):
        compile_network(VolumeNet(), torch.rand(1, 1, 8, 8, 8), precision="f16")  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_cuda_answers_as_cpu(precision):
    module = ClipNet()
    clip = torch.rand(2, 6, 1, 32, 32)
    with torch.no_grad():
        expected = module(clip)
    network = compile_network(module, clip, device="cuda", precision=precision)
    answer = tuple(part.cpu() for part in network(clip))
    assert runtime.relative_error(answer, expected) <= runtime.TOLERANCE[precision]


def test_an_answer_that_is_no_number_is_infinitely_wrong():
    good, bad = torch.ones(3), torch.tensor([1.0, float("nan"), 1.0])
    assert runtime.relative_error((good, bad), (good, good)) == float("inf")
    assert runtime.relative_error((good, good * 1.5), (good, good)) == pytest.approx(0.5)
