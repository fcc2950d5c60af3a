from __future__ import annotations

import dataclasses

import pytest
import torch

from usvol import quality, weights
from usvol.result import Severity
from usvol.scan import Grid, Scan, Sector


def rows(count: int, *, seed: int, width: int = 24) -> torch.Tensor:
    """Correlated features of very different scales, one of them constant."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(6, width, generator=torch.Generator().manual_seed(99))
    hidden = torch.randn(count, 6, generator=generator)
    features = hidden @ mixing + 0.2 * torch.randn(count, width, generator=generator)
    features = features * torch.logspace(-3, 2, width) + 5
    features[:, 3] = 0.0
    return features


@pytest.fixture(scope="module")
def statistics() -> quality.FeatureStatistics:
    return quality.fit(rows(400, seed=0), rows(199, seed=1), false_alarm_rate=0.05)


def test_the_limit_flags_the_stated_share_of_new_cases(statistics):
    assert statistics.false_alarm_rate == pytest.approx(0.05)
    flagged = [quality.judge(row, statistics) is not None for row in rows(2000, seed=2)]
    assert 0.02 < sum(flagged) / len(flagged) < 0.09
    assert 0.3 < float(quality.distance(rows(400, seed=0), statistics).mean()) < 1.1


def test_what_breaks_the_correlation_is_far_though_each_feature_is_usual(statistics):
    usual = rows(400, seed=3)
    shuffled = torch.stack(
        [column[torch.randperm(400, generator=torch.Generator().manual_seed(i))] for i, column in
         enumerate(usual.T)], 1
    )  # fmt: skip
    flags = [quality.judge(row, statistics) for row in shuffled]
    assert sum(flag is not None for flag in flags) > 390
    flag = next(flag for flag in flags if flag is not None)
    assert flag.code == "out_of_distribution"
    assert "5.0% of scans" in flag.message
    assert "199 held-out" in flag.message
    assert "times the limit" in flag.message


def test_far_and_broken_features_are_severe(statistics):
    usual = rows(1, seed=4)[0]
    assert quality.judge(usual * 50, statistics).severity is Severity.SEVERE
    assert quality.judge(usual * float("nan"), statistics).severity is Severity.SEVERE


def test_statistics_survive_a_half_precision_weights_file(statistics, tmp_path):
    path = tmp_path / "net.safetensors"
    weights.save(path, {"w": torch.ones(2), **quality.to_tensors(statistics)}, metadata={}, half=True)
    read = quality.from_tensors(weights.load_file(path).state)
    assert read.beyond == statistics.beyond
    assert read.false_alarm_rate == statistics.false_alarm_rate
    new = rows(50, seed=5)
    torch.testing.assert_close(quality.distance(new, read), quality.distance(new, statistics))
    assert read.limit == statistics.limit
    assert quality.from_tensors({"w": torch.ones(2)}) is None


def test_few_held_out_cases_give_a_rate_that_is_stated_as_it_is():
    statistics = quality.fit(rows(100, seed=0), rows(9, seed=1), false_alarm_rate=0.01)
    assert statistics.false_alarm_rate == pytest.approx(0.1)


def test_more_features_than_cases_are_shrunk_enough():
    train, held = rows(20, seed=0, width=120), rows(99, seed=1, width=120)
    statistics = quality.fit(train, held, false_alarm_rate=0.05)
    flagged = [quality.judge(row, statistics) is not None for row in rows(500, seed=2, width=120)]
    assert sum(flagged) / 500 < 0.12
    assert quality.judge(rows(1, seed=3, width=120)[0] * 3, statistics)


def test_shrinkage_is_that_of_ledoit_and_wolf():
    # Independent features: the best estimate is the identity; few parameters and many rows: the sample's own.
    noise = torch.randn(40, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shrunk = quality._shrunk(noise - noise.mean(0))
    off = shrunk - torch.diag(shrunk.diagonal())
    sample = torch.cov(noise.T, correction=0)
    assert off.norm() < 0.25 * (sample - torch.diag(sample.diagonal())).norm()
    many = rows(5000, seed=0, width=4)[:, [0, 1, 2]].double()
    many = (many - many.mean(0)) / many.std(0)
    assert quality._shrunk(many).allclose(torch.cov(many.T, correction=0), atol=0.01)


@pytest.mark.parametrize(
    ("train", "held", "said"),
    [
        (torch.zeros(1, 3), torch.zeros(1, 3), "n >= 2"),
        (torch.rand(5, 3), torch.rand(2, 4), "3 features"),
        (torch.rand(5, 3), torch.full((2, 3), float("nan")), "finite"),
    ],
)
def test_features_that_cannot_be_described_are_refused(train, held, said):
    with pytest.raises(ValueError, match=said):
        quality.fit(train, held)


def clip(frames: int = 6, dtype: torch.dtype = torch.uint8) -> Scan:
    values = torch.randint(0, 180, (frames, 1, 1, 40, 48), generator=torch.Generator().manual_seed(0))
    sector = Sector(torch.ones(40, 48, dtype=torch.bool), None, "linear")
    return Scan(values.to(dtype), Grid((1, 40, 48)), sector=sector)


def codes(scan: Scan, **options) -> set[str]:
    return {flag.code for flag in quality.image_checks(scan, **options)}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_a_usual_picture_passes_in_any_sample_type(dtype):
    scan = clip(dtype=dtype)
    assert codes(scan) == set()
    if dtype != torch.uint8:
        assert codes(scan.with_data(scan.data * 30 - 2000, step="")) == set()


def test_dark_saturated_frozen_and_sectorless_pictures_are_told():
    scan = clip()
    assert codes(scan.with_data(scan.data // 60, step="")) == {"too_dark"}
    assert codes(scan.with_data(scan.data.float() / 60, step=""), white=255) == {"too_dark"}
    assert codes(scan.with_data(torch.zeros_like(scan.data), step="")) == {"too_dark", "frozen"}
    bright = torch.where(scan.data > 100, 255, scan.data).to(torch.uint8)
    assert codes(scan.with_data(bright, step="")) == {"saturated"}
    assert codes(scan.with_data(scan.data[:1].repeat(6, 1, 1, 1, 1), step="")) == {"frozen"}
    assert codes(dataclasses.replace(scan, sector=None)) == {"sector_unknown"}
    nothing = torch.full((6, 1, 1, 40, 48), float("nan"))
    assert "too_dark" in codes(scan.with_data(nothing, step=""))


def test_what_lies_outside_the_sector_does_not_make_a_picture_dark():
    scan = clip(frames=1)
    mask = torch.zeros(40, 48, dtype=torch.bool)
    mask[:4, :5] = True
    data = (scan.data // 6) * mask
    assert codes(scan.with_data(data, step="")) == {"too_dark"}
    assert codes(dataclasses.replace(scan, data=data, sector=Sector(mask, None, "fan"))) == set()


def test_a_volume_needs_no_known_sector_and_a_large_one_is_thinned():
    data = torch.randint(0, 200, (1, 1, 160, 150, 140), generator=torch.Generator().manual_seed(0))
    scan = Scan(data.to(torch.int16), Grid((160, 150, 140)))
    assert codes(scan) == set()
    frames, _ = quality._looked_at(scan)
    assert frames[0].numel() < 2 * quality._SAMPLES
