from __future__ import annotations

import sys

import numpy as np
import pytest

from models3d.data import pairs


@pytest.fixture(scope="module")
def simulator(benchmark_module):
    return benchmark_module("other_needle")


@pytest.fixture(scope="module")
def needle(simulator):
    # The first seed with a needle.
    return next(v for v in (simulator.simulate(seed, 0, wires=False) for seed in range(9)) if v[1]["present"])


def test_the_label_lies_on_the_axis_and_shines(needle):
    volume, facts = needle
    marked = np.argwhere(volume.labels) * volume.spacing_mm + volume.origin_mm
    away = marked - facts["tip_mm"]
    along = away @ facts["back"]
    bow = 0.5 * facts["bow_per_mm"] * along**2
    distance = np.linalg.norm(away - along[:, None] * np.array(facts["back"]), axis=1)
    assert (distance <= facts["radius_mm"] + volume.spacing_mm.max() + bow).all()
    assert np.ptp(along) == pytest.approx(facts["inside_mm"], abs=1.5)
    seen = volume.grey > 0
    assert volume.grey[volume.labels > 0].mean() > volume.grey[seen & (volume.labels == 0)].mean() + 0.1


def test_wires_run_side_by_side(simulator):
    rng = np.random.default_rng(0)
    wires = simulator.draw_wires(rng, simulator.draw_probe(rng))
    assert len(wires) >= 3
    assert all(np.allclose(wire.back, wires[0].back) for wire in wires)
    starts = [tuple(wire.tip.round(6)) for wire in wires]
    assert len(set(starts)) == len(starts)


def test_the_pairs_adapter_reads_what_is_written(simulator, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["other_needle.py", "--n", "1", "--wires", "-o", str(tmp_path)])
    simulator.main()
    (case,) = pairs.cases(tmp_path)
    assert pairs.read_labels(case, names={1: "needle"}).data.any()
