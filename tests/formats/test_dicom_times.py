"""Frame times of DICOM cines: precedence of the attributes, and no invented rate."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from usvol.formats.dicom_times import frame_times


def times_of(frames=4, **attributes):
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return frame_times(dataset, frames)


@pytest.mark.parametrize(
    ("attributes", "expected", "origin"),
    [
        ({"FrameTime": 20}, (0, 0.02, 0.04, 0.06), "FrameTime"),
        ({"FrameTimeVector": [0, 10, 20, 30]}, (0, 0.01, 0.03, 0.06), "FrameTimeVector"),
        ({"FrameTimeVector": [0, 10, 20, 30], "FrameTime": 20}, (0, 0.01, 0.03, 0.06), "FrameTimeVector"),
        ({"FrameTimeVector": [0, 10, 20, 30], "FrameTime": 20, "FrameIncrementPointer": 0x00181063},
         (0, 0.02, 0.04, 0.06), "FrameTime"),
        ({"CineRate": 25}, (0, 0.04, 0.08, 0.12), "CineRate"),
        ({"CineRate": 25, "RecommendedDisplayFrameRate": 10}, (0, 0.04, 0.08, 0.12), "CineRate"),
        ({"RecommendedDisplayFrameRate": 10}, (0, 0.1, 0.2, 0.3), "RecommendedDisplayFrameRate"),
        ({"FrameTime": 0, "CineRate": 25}, (0, 0.04, 0.08, 0.12), "CineRate"),
        ({"FrameTimeVector": [0, 10, -5, 30], "FrameTime": 20}, (0, 0.02, 0.04, 0.06), "FrameTime"),
    ],
)  # fmt: skip
def test_frame_times_by_precedence(attributes, expected, origin):
    timing = times_of(**attributes)
    assert timing.times_s == pytest.approx(expected)
    assert timing.origin == origin
    said = any("how to play it" in note for note in timing.warnings)
    assert said == (origin == "RecommendedDisplayFrameRate")


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"FrameTime": 0},
        {"FrameTime": -33},
        {"FrameTime": 0.0333},  # seconds where milliseconds belong
        {"FrameTimeVector": [0, 10, 20]},
        {"FrameTimeVector": [0, 10, 0, 10]},
        {"CineRate": 0},
        {"FrameTime": 33, "FrameIncrementPointer": 0x00540080},
    ],
)
def test_a_frame_rate_is_never_invented(attributes):
    timing = times_of(**attributes)
    assert timing.times_s is None
    assert timing.warnings


def test_rates_that_disagree_are_told():
    assert any("FrameTime is used" in w for w in times_of(FrameTime=20, CineRate=30).warnings)
