"""Cines of more than 8 bits, or of 0-1, are read as the 8-bit ones they were made from."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import usvol
from usvol.result import Scores
from video.phantoms import heart, lung


def numbers(result) -> list[float]:
    measured = [m.value for m in result.measurements if isinstance(m.value, float)]
    return measured + [chance for f in result.findings if isinstance(f, Scores) for chance in f.probabilities]


@pytest.mark.parametrize(
    ("name", "scan"),
    [
        ("covid_severity", lambda: lung.simulate(3, lung.Config())[0]),
        ("cardiac_phase", lambda: heart.simulate(3, heart.Config(size=96))[0]),
        ("ejection_fraction", lambda: heart.simulate(3, heart.Config(size=96))[0]),
    ],
)
def test_the_depth_of_the_samples_does_not_matter(name, scan):
    plain, task = scan(), usvol.build_task(name, device="cpu")
    plain.data[0, 0, 0, plain.grid.shape[1] // 2, plain.grid.shape[2] // 2] = 255
    expected = numbers(usvol.run(task, plain))
    assert expected
    for data in (plain.data.to(torch.int32) * 257, plain.data.float() / 255):
        deep = numbers(usvol.run(task, dataclasses.replace(plain, data=data)))
        assert deep == pytest.approx(expected, rel=0.01, abs=0.01)
