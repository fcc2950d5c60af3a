from __future__ import annotations

import numpy as np
import pytest
import torch

from usvol.result import Curve, Event, Labels
from usvol.scan import Grid
from video.tasks._echo_beats import cycle_measurements, own_times
from video.tasks._echo_fraction import EF_NAMES, ef_measurements

GRID = Grid((1, 120, 120), (1.0, 1.0, 1.0))
WIDTHS = (22.0, 15.0, 17.0, 20.0)  # of the ventricle at ED, ES, ED, ES: it grows in the second systole


def test_a_beat_without_a_fraction_has_no_part_in_volumes_either():
    y, x = np.indices((120, 120)) - 59.5
    masks = np.stack([((x / width) ** 2 + (y / 40) ** 2 < 1)[None] for width in WIDTHS])
    labels = Labels("left_ventricle", torch.from_numpy(masks.astype(np.uint8)), GRID, {1: "left_ventricle"})
    events = tuple(Event(name, i, i / 10) for i, name in enumerate(("ED", "ES", "ED", "ES")))
    times = tuple(i / 10 for i in range(4))
    curve = Curve("volume", (100.0, 40.0, 60.0, 80.0), "mL", times, tuple(range(4)), events=events)
    found = {m.name: m for m in ef_measurements(labels, curve, others=(), reason="")}
    ef, stroke = found[EF_NAMES["segmentation"]], found["stroke_volume"]
    expected = 100 * (1 - (WIDTHS[1] / WIDTHS[0]) ** 2)
    assert ef.value == pytest.approx(expected, abs=2)
    assert ef.note == stroke.note == found["long_axis_shortening"].note == "one beat"
    assert 100 * stroke.value / found["end_diastolic_volume"].value == pytest.approx(ef.value)
    assert found["beats"].value == 2 and "1 left out" in found["beats"].note


@pytest.mark.parametrize("eds", [(5, 35), (5, 35, 65, 94)])
def test_a_heart_rate_lies_in_its_own_range(eds):
    """At a frame rate whose intervals are no whole microseconds."""
    times = tuple(frame / 46.389 for frame in range(111))
    events = tuple(Event("ED", at, times[at]) for at in eds)
    curve = Curve("cardiac_phase", (0.5,) * 111, "1", times, tuple(range(111)), events=events)
    rate = next(m for m in cycle_measurements(curve) if m.name == "heart_rate")
    assert isinstance(rate.value, float) and rate.low is not None and rate.high is not None
    assert rate.low <= rate.value <= rate.high
    assert rate.value == pytest.approx(60 * 46.389 / 30, rel=1e-6)


def test_the_pace_of_a_heart_needs_no_true_frame_times():
    sizes = (80 + 20 * np.cos(np.arange(111) / 30 * 2 * np.pi)).tolist()
    true = tuple(frame / 46.4 for frame in range(111))
    own = own_times(sizes, true)
    assert own is not None and own[15] == pytest.approx(0.17, rel=0.1)
    for factor in (0.5, 0.2, 0.001, 10.0):
        assert own_times(sizes, tuple(factor * t for t in true)) == pytest.approx(own, rel=0.1)
    # Part of a beat, filling: no frame is taken for a turn, whatever the times.
    part = sizes[16:28]
    assert own_times(part, true[:12]) == true[:12]
