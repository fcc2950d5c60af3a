from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from usvol.canonical import canonicalise
from usvol.resampling import to_beam_space
from usvol.scan import Fan, Scan, Sector
from video.phantoms.lung import Config, simulate


def beams(scan, truth, samples=256, lines=96):
    fan = Fan(**truth["fan"]) if truth["fan"] else None
    mask = torch.ones(scan.grid.shape[1:], dtype=torch.bool)
    shown = Scan(scan.data, scan.grid, sector=Sector(mask, fan, "fan" if fan else "linear"))
    return to_beam_space(shown, depth_samples=samples, lines=lines)[:, 0].float().numpy()


def test_same_seed_same_clip_other_seed_another():
    config = Config(frames=3, size=96)
    first, truth = simulate(7, config)
    again, truth_again = simulate(7, config)
    other, _ = simulate(8, config)
    assert torch.equal(first.data, again.data)
    assert truth == truth_again
    assert not torch.equal(first.data, other.data)


def test_scan_is_calibrated_timed_and_truth_is_json():
    scan, truth = simulate(1, Config(frames=5, fps=20, size=80, probe="linear", depth_mm=50))
    assert scan.data.shape == (5, 1, 1, 80, 80)
    assert scan.data.dtype == torch.uint8
    assert scan.times_s == pytest.approx((0, 0.05, 0.1, 0.15, 0.2))
    assert scan.grid.require_spacing_mm("depth")[1] * 80 == pytest.approx(50)
    assert len(truth["slide_mm"]) == 5
    assert json.loads(json.dumps(truth))["probe"] == "linear"


@pytest.mark.parametrize("severity", range(4))
def test_truth_agrees_with_severity(severity):
    for seed in range(12):
        truth = simulate(seed, Config(severity=severity, frames=4, size=32))[1]
        assert truth["severity"] == severity
        assert truth["b_lines"] == (truth["b_line_count"] > 0 or truth["white_lung"])
        if severity == 0:
            assert truth["a_lines"]
            assert truth["b_line_count"] <= 2
        if severity < 2:
            assert not truth["consolidations"]
        if severity == 2:
            assert 1 <= len(truth["consolidations"]) <= 3
            assert max(c["width_mm"] for c in truth["consolidations"]) <= 12
        if severity == 3:
            assert truth["white_lung"] or truth["consolidations"][0]["width_mm"] > 10
        assert truth["white_lung"] <= (severity == 3)


def test_bright_pleura_lies_where_truth_says():
    config = Config(
        probe="linear", severity=0, ribs=0, pleura_mm=15, depth_mm=50, gain_db=0, frames=4, size=256
    )
    close = 0
    for seed in range(8):
        scan, truth = simulate(seed, config)
        profile = scan.data[0, 0, 0, :, 120:136].float().median(1).values.numpy()
        depth_mm = (np.arange(256) + 0.5) * 50 / 256
        window = (depth_mm > 10) & (depth_mm < 20)
        close += abs(depth_mm[window][profile[window].argmax()] - truth["pleura_depth_mm"][0]) < 0.8
    assert close >= 6  # a fascia outshines the pleura now and then, as in patients


def test_lung_slides_and_chest_wall_stays():
    config = Config(
        probe="linear", severity=3, ribs=0, slide_mm=6, frames=24, size=128, pleura_mm=20, depth_mm=60
    )
    scan, truth = simulate(3, config)
    frames = scan.data[:, 0, 0].float().numpy()
    slide = np.array(truth["slide_mm"])
    a, b = int(slide.argmin()), int(slide.argmax())
    assert slide[b] - slide[a] > 2
    wall = np.corrcoef(frames[a, 5:30].ravel(), frames[b, 5:30].ravel())[0, 1]
    lung = np.corrcoef(frames[a, 60:120].ravel(), frames[b, 60:120].ravel())[0, 1]
    assert wall > lung


def test_severe_lung_is_brighter_below_the_pleura():
    def brightness(severity):
        values = []
        for seed in range(8):
            scan, truth = simulate(seed, Config(severity=severity, probe="convex", frames=2, size=96, ribs=0))
            picture = beams(scan, truth)
            values.append(picture[:, 160:].mean() / (picture[:, :40].mean() + 1))
        return float(np.median(values))

    assert brightness(3) > brightness(0)


def test_canonicalise_finds_the_fan_of_the_phantom():
    found = 0
    for seed in range(6):
        scan, truth = simulate(seed, Config(probe="convex", frames=12, size=192, gain_db=0))
        sector = canonicalise(scan).sector
        if sector is None or sector.fan is None:
            continue
        apex = np.array(sector.fan.apex) - truth["fan"]["apex"]
        found += np.hypot(*apex) < 0.06 * truth["fan"]["radius_max"]
    assert found >= 5


def test_settings_are_checked():
    with pytest.raises(ValidationError):
        Config(severity=4)
    with pytest.raises(ValidationError):
        Config.model_validate({"severty": 1})
