from __future__ import annotations

import pytest
import torch

from models3d.nets.section_reader import SECTION_ANSWERS, SIZE_ANSWERS, SectionReader


@pytest.fixture(scope="module")
def reader() -> SectionReader:
    torch.manual_seed(0)
    reader = SectionReader(3, across=8, slices=4, maps=4).eval()
    for values in reader.parameters():
        torch.nn.init.normal_(values, std=0.3)
    return reader


def test_untrained_it_leaves_the_axis_where_it_is():
    offsets, _ = SectionReader(3, across=8, slices=4, maps=4).eval()(
        torch.rand(2, 2, 5, 8, 8), torch.zeros(2, 3)
    )
    assert float(offsets[:, :2].abs().max()) < 1e-5


def test_an_answer_per_section_and_one_of_size(reader):
    offsets, sizes = reader(torch.rand(2, 2, 5, 8, 8), torch.zeros(2, 3))
    assert offsets.shape == (2, SECTION_ANSWERS, 5) and sizes.shape == (2, SIZE_ANSWERS)
    assert bool((offsets[:, 2] >= 0).all())


def test_a_section_without_a_shaft_counts_for_little_and_nothing_is_divided_by_it(reader):
    sections = torch.rand(1, 2, 5, 8, 8)
    sections[:, :, 3] = 0
    offsets, _ = reader(sections, torch.zeros(1, 3))
    assert float(offsets[0, 2, 3]) == 0
    assert bool(offsets.isfinite().all())
    nothing, sizes = reader(torch.zeros(1, 2, 5, 8, 8), torch.zeros(1, 3))
    assert bool(nothing.isfinite().all() and sizes.isfinite().all())


def test_half_the_weight_everywhere_changes_no_mean(reader):
    level, facts = torch.rand(1, 1, 5, 8, 8), torch.zeros(1, 3)
    whole, half = (torch.cat([level * w, torch.full_like(level, w)], 1) for w in (4.0, 2.0))
    answer = reader(whole, facts)[0][:, :2]
    assert float(answer.std()) > 0.01
    torch.testing.assert_close(answer, reader(half, facts)[0][:, :2])
