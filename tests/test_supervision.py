from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import nn

from usvol import inference, runtime
from usvol.errors import CancelledError, UsvolError
from usvol.resampling import sample_on
from usvol.scan import Grid
from usvol.supervision import Progress, check, stage, supervised, track


def test_nothing_happens_to_a_run_that_nobody_supervises():
    check()
    with stage("infer"):
        assert list(track([1, 2])) == [1, 2]


def test_progress_names_stages_and_rises_within_them():
    heard: list[Progress] = []
    with supervised(progress=heard.append):
        with stage("first"):
            for _ in track([0, 1]):
                list(track(range(5)))  # inner steps do not reset the outer
        with stage("second"):
            pass
    assert [(one.stage, one.share) for one in heard] == [
        ("first", 0.0), ("first", 0.0), ("first", 0.5), ("first", 1.0), ("second", 0.0),
    ]  # fmt: skip


def test_cancelling_leaves_by_a_typed_error_and_ends_with_the_block():
    done: list[int] = []
    with pytest.raises(CancelledError), supervised(cancelled=lambda: len(done) == 3), stage("infer"):
        list(map(done.append, track(range(10))))
    assert done == [0, 1, 2]
    with pytest.raises(CancelledError), supervised(cancelled=lambda: True), stage("infer"):
        done.append(9)
    assert 9 not in done
    assert issubclass(CancelledError, UsvolError)
    check()


def test_a_run_in_another_thread_goes_on():
    seen = []
    with supervised(cancelled=lambda: True):
        thread = threading.Thread(target=lambda: (check(), seen.append("free")))
        thread.start()
        thread.join()
    assert seen == ["free"]


@pytest.mark.parametrize(
    "work",
    [
        lambda net: inference.with_flips(net, torch.zeros(1, 1, 2, 2, 2), dims=(2, 3, 4), spatial=False),
        lambda net: inference.temporal_windows(net, torch.zeros(12, 3), length=4),
        lambda net: inference.sliding_window(net, torch.zeros(1, 1, 8, 8, 8), window=(4, 4, 4)),
    ],
    ids=["with_flips", "temporal_windows", "sliding_window"],
)
def test_inference_stops_between_calls_of_the_network(work):
    calls = []

    def network(sample):
        calls.append(1)
        return sample

    with pytest.raises(CancelledError), supervised(cancelled=lambda: len(calls) == 2):
        work(network)
    assert len(calls) == 2


def test_resampling_stops_between_slabs():
    grid = Grid((4, 8, 8))
    with pytest.raises(CancelledError), supervised(cancelled=lambda: True):
        sample_on(torch.zeros(1, 1, 4, 8, 8), grid, target=grid.resized((8, 8, 8)))


def test_a_network_call_of_seconds_is_stopped_midway_and_works_afterwards():
    layers = [nn.Conv3d(16, 16, 3, padding=1) for _ in range(40)]
    network = runtime.compile_network(
        nn.Sequential(nn.Conv3d(1, 16, 3, padding=1), *layers).eval(),
        torch.zeros(1, 1, 8, 8, 8),
        device="cpu",
        dynamic_dims=(2, 3, 4),
        threads=1,
    )
    if network.engine != "openvino":
        pytest.skip("torch cannot be stopped inside a call")
    stop = threading.Event()
    large = torch.zeros(1, 1, 96, 96, 96)
    threading.Timer(0.2, stop.set).start()
    begun = time.perf_counter()
    with pytest.raises(CancelledError), supervised(cancelled=stop.is_set):
        network(large)
    assert time.perf_counter() - begun < 1.2
    assert network(torch.zeros(1, 1, 8, 8, 8)).shape == (1, 16, 8, 8, 8)
