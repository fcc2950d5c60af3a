from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

import usvol
from usvol import pipeline, quality, weights
from usvol.errors import ConfigError, KindError, WeightsError
from usvol.result import Curve, Event, Scores
from usvol.runtime import Network
from usvol.scan import Grid, Scan, Source
from usvol.training.members import join_members
from video.recipes.cardiac_phase import Settings, new_network
from video.tasks._echo_beats import (
    LESS_THAN_ONE_BEAT,
    NO_EVENTS,
    NO_TIMES,
    RR,
    cycle_measurements,
    size_events,
    systoles,
    whole_beats,
)
from video.tasks.cardiac_phase import CardiacPhase, Config, build, thinned

SMALL = Settings(width=4, hidden=8, length=12, layers=2)
REGULAR = [(0.2, 0.55), (1.2, 1.55), (2.2, 2.55)]


def reads_brightness(clips):
    """An encoder whose features are the brightness of the frames, which codes the phase."""
    return (clips.mean((2, 3, 4)) / 255)[..., None].expand(*clips.shape[:2], 32).clone()


def says_brightness(embedded, steps):
    """A reader that says what the brightness codes: phase, and surely ED at its top, ES at its bottom."""
    del steps
    phase = embedded[..., 0]
    events = [4 - 160 * (phase - 1).abs(), 4 - 160 * phase.abs()]
    return torch.stack([torch.logit(phase.clamp(0.01, 0.99)), *events], -1)


def network(run):
    return Network(run, "torch", "cpu", "f32", 0.0)


@pytest.fixture
def perfect() -> CardiacPhase:
    """The task with a network that makes no mistakes on ``cine``."""
    return CardiacPhase(network(reads_brightness), network(says_brightness), Config())


def cine(beats=REGULAR, *, fps=50.0, seconds=3.0, start=0.0, known=True) -> Scan:
    """Frames as bright as the phase: white at each ED (first of a pair, s), black at each ES."""
    times = np.arange(round(seconds * fps)) / fps
    at = [t for pair in beats for t in pair]
    # Before the first and after the last event the curve goes on at the pace of a diastole.
    at = [at[0] - 0.65, *at, at[-1] + 0.65]
    phase = np.interp(times + start, at, [0, *[1, 0] * len(beats), 1])
    frames = torch.from_numpy((255 * phase).round().astype(np.uint8))
    data = frames[:, None, None, None, None].expand(-1, 1, 1, 112, 112).contiguous()
    return Scan(data, Grid((1, 112, 112)), times_s=tuple(times.tolist()) if known else None)


def curve_of(result) -> Curve:
    return next(f for f in result.findings if isinstance(f, Curve) and f.name == "cardiac_phase")


def measured(result):
    return {m.name: m for m in result.measurements}


def codes(result):
    return {flag.code for flag in result.flags}


def events(result):
    return [(e.name, e.index) for e in curve_of(result).events]


def test_every_event_and_duration_of_a_known_cine_is_found(perfect):
    result = usvol.run(perfect, cine())
    assert [name for name, _ in events(result)] == ["ED", "ES"] * 3
    assert [at / 50 for _, at in events(result)] == pytest.approx([t for b in REGULAR for t in b], abs=0.011)
    values = measured(result)
    assert values["beats"].value == 2
    assert values["heart_rate"].value == pytest.approx(60, abs=0.01)
    assert values["rr_interval"].value == pytest.approx(1000, abs=0.1)
    assert values["systolic_duration"].value == pytest.approx(350, abs=10)
    assert values["diastolic_duration"].value == pytest.approx(650, abs=10)
    assert values["confidence"].value > 0.7
    assert "less_than_one_beat" not in codes(result)


def test_frames_too_far_apart_for_a_heart_known_are_read_as_if_nearer():
    """A reader that is sure of events up to 25 ms from frame to frame, and unsure beyond."""

    def knows_fast_frames(embedded, steps):
        said = says_brightness(embedded, steps)
        return torch.where(steps[..., None] > 0.025, said - torch.tensor([0.0, 3.5, 3.5]), said)

    task = CardiacPhase(network(reads_brightness), network(knows_fast_frames), Config())
    usual = usvol.run(task, cine())
    slow = usvol.run(task, dataclasses.replace(cine(), times_s=tuple(2 * t for t in cine().times_s)))
    assert "unusual_pace" not in codes(usual)
    assert "unusual_pace" in codes(slow)
    assert events(slow) == events(usual)
    assert measured(slow)["heart_rate"].value == pytest.approx(measured(usual)["heart_rate"].value / 2)


def test_event_times_are_those_of_the_file_and_frames_its_own(perfect):
    scan = dataclasses.replace(cine(), source=Source(frame_indices=tuple(range(0, 450, 3))))
    curve = curve_of(usvol.run(perfect, scan))
    assert curve.frame_indices == scan.source.frame_indices
    assert curve.times_s == scan.times_s
    assert all(event.time_s == scan.times_s[event.index] for event in curve.events)


def test_rr_of_an_irregular_rhythm_is_given_beat_by_beat(perfect):
    beats = [(0.2, 0.5), (1.0, 1.3), (2.2, 2.5), (2.8, 3.1)]
    result = usvol.run(perfect, cine(beats, seconds=3.4))
    (rr,) = (f for f in result.findings if isinstance(f, Curve) and f.name == RR)
    assert rr.values == pytest.approx((800, 1200, 600), abs=21)
    assert rr.frame_indices == pytest.approx((10, 50, 110), abs=1)
    values = measured(result)
    assert (values[RR].low, values[RR].high) == (min(rr.values), max(rr.values))
    assert values[RR].value == pytest.approx(867, abs=14)
    assert values["heart_rate"].value == pytest.approx(75, abs=2)  # of the median
    assert values["rr_deviation"].value == pytest.approx(np.std([800, 1200, 600], ddof=1), rel=0.1)


def test_half_the_frame_times_double_the_rate_and_leave_the_frames(perfect):
    scan = cine()
    fast = dataclasses.replace(scan, times_s=tuple(t / 2 for t in scan.times_s))
    first, second = usvol.run(perfect, scan), usvol.run(perfect, fast)
    assert events(first) == events(second)
    assert measured(second)["heart_rate"].value == pytest.approx(2 * measured(first)["heart_rate"].value)
    assert measured(second)["systolic_duration"].value == pytest.approx(
        measured(first)["systolic_duration"].value / 2
    )


def test_without_frame_times_there_are_frames_and_beats_but_no_seconds(perfect):
    result = usvol.run(perfect, cine(known=False))
    assert events(result) == events(usvol.run(perfect, cine()))
    assert all(e.time_s is None for e in curve_of(result).events)
    assert not [f for f in result.findings if isinstance(f, Curve) and f.name == RR]
    values = measured(result)
    assert values["beats"].value == 2
    for name in ("heart_rate", "rr_interval", "rr_deviation", "systolic_duration", "diastolic_duration"):
        assert values[name].value is None
        assert values[name].note == NO_TIMES


def test_less_than_one_beat_is_said_and_no_rate_invented(perfect):
    result = usvol.run(perfect, cine(seconds=0.8))
    assert [name for name, _ in events(result)] == ["ED", "ES"]
    values = measured(result)
    assert values["beats"].value == 0
    assert values["heart_rate"].value is None
    assert values["heart_rate"].note == LESS_THAN_ONE_BEAT
    assert values["diastolic_duration"].value is None
    assert values["systolic_duration"].value == pytest.approx(350, abs=20)
    (flag,) = (f for f in result.flags if f.code == "less_than_one_beat")
    assert "ED and ES" in flag.message


def test_a_flat_curve_has_no_beat_at_all(perfect):
    flat = cine()
    flat = dataclasses.replace(flat, data=torch.full_like(flat.data, 128))
    raw = perfect.infer(flat)
    found = perfect.postprocess(raw, flat)
    values = {m.name: m for m in perfect.measure(found, flat)}
    assert {m.name for m in values.values() if m.value is not None} == {"beats"}
    assert values["confidence"].note == NO_EVENTS
    assert "less_than_one_beat" in {flag.code for flag in perfect.flags(raw, flat)}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_few_frames_are_answered_without_numbers(perfect, count):
    scan = cine(seconds=count / 50)
    values = measured(usvol.run(perfect, scan))
    assert [v.value for name, v in values.items() if name not in {"beats", "confidence"}] == [None] * 5


def test_a_long_clip_is_read_in_windows_and_loses_no_beat(perfect):
    beats = [(0.3 + 0.8 * k, 0.6 + 0.8 * k) for k in range(12)]
    result = usvol.run(perfect, cine(beats, fps=40, seconds=10))
    found = [(name, at / 40) for name, at in events(result)]
    true = [(name, t) for pair in beats for name, t in zip(("ED", "ES"), pair, strict=True)]
    inside = [event for event in found if event[1] <= beats[-1][1] + 0.1]
    assert [name for name, _ in inside] == [name for name, _ in true]
    assert np.abs(np.subtract([t for _, t in inside], [t for _, t in true])).max() <= 0.025


def test_a_clip_faster_than_any_in_training_is_thinned_but_answered_in_its_own_frames(perfect):
    seen = []
    encoder = network(lambda clips: seen.append(clips.shape[1]) or reads_brightness(clips))
    scan = cine(fps=250)
    result = usvol.run(dataclasses.replace(perfect, encoder=encoder), scan)
    assert sum(seen) == len(scan.data) / 2
    assert len(curve_of(result).values) == len(scan.data)
    assert [at / 250 for _, at in events(result)] == pytest.approx([t for b in REGULAR for t in b], abs=0.008)
    assert thinned(None, count=7).tolist() == list(range(7))
    assert thinned(tuple(np.arange(9) / 30), count=9).tolist() == list(range(9))


def test_slow_clips_and_impossible_rates_are_flagged(perfect):
    scan = cine()
    assert not codes(usvol.run(perfect, scan)) & {"low_frame_rate", "implausible_rate"}
    assert "low_frame_rate" in codes(usvol.run(perfect, cine(fps=12)))
    slow = dataclasses.replace(scan, times_s=tuple(4 * t for t in scan.times_s))
    assert "implausible_rate" in codes(usvol.run(perfect, slow))


def test_a_moved_event_changes_rate_and_rr(perfect):
    scan = cine()
    result = usvol.run(perfect, scan)
    at = next(n for n, f in enumerate(result.findings) if f is curve_of(result))
    curve = curve_of(result)
    last = max(n for n, e in enumerate(curve.events) if e.name == "ED")
    moved = [*curve.events]
    moved[last] = Event("ED", 120, scan.times_s[120])
    findings = [*result.findings]
    findings[at] = dataclasses.replace(curve, events=tuple(moved))
    again = pipeline.remeasure(perfect, result, findings=findings, scan=scan)
    (rr,) = (f for f in again.findings if isinstance(f, Curve) and f.name == RR)
    assert rr.values == pytest.approx((1000, 1200))
    assert measured(again)[RR].value == pytest.approx(1100)
    assert measured(again)["heart_rate"].value < measured(result)["heart_rate"].value
    assert perfect.follow(again.findings, {1}) is again.findings
    moved[last] = moved[max(n for n, e in enumerate(moved[:last]) if e.name == "ED")]
    findings[at] = dataclasses.replace(curve, events=tuple(moved))
    onto = measured(pipeline.remeasure(perfect, result, findings=findings, scan=scan))
    assert onto["heart_rate"].value == pytest.approx(60000 / onto[RR].value)


def test_a_clip_unlike_those_of_training_is_flagged_and_not_scored(perfect):
    rows = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)) * 0.01
    strict = dataclasses.replace(perfect, statistics=quality.fit(rows[:30], rows[30:]))
    result = usvol.run(strict, cine())
    assert {f.code: f.severity.value for f in result.flags}["out_of_distribution"] == "severe"
    assert curve_of(result).events == ()
    assert {n for n, m in measured(result).items() if m.value is not None} == {"beats"}
    asked = dataclasses.replace(strict, config=Config(decline=False))
    assert measured(usvol.run(asked, cine()))["heart_rate"].value == pytest.approx(60, abs=0.01)
    near = quality.fit(rows[:30] * 1e4, rows[30:] * 1e4)
    kept = usvol.run(dataclasses.replace(perfect, statistics=near), cine())
    assert "out_of_distribution" not in codes(kept)
    assert len(curve_of(kept).events) == 6


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory) -> str:
    """Weights as ``usvol train`` writes them, of a network that learnt nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "cardiac_phase.safetensors"
    facts = {
        "task": "cardiac_phase",
        "members": "1",
        "train_patients": json.dumps([["aa"]]),
        "calibration": "[{}]",
        "settings": SMALL.model_dump_json(),
    }
    weights.save(path, join_members([new_network(SMALL).state_dict()]), metadata=facts, half=True)
    return str(path)


@pytest.fixture(scope="module")
def untrained(weights_file):
    return build(Config(weights=weights_file), "cpu")


def test_stored_weights_answer_as_the_network_they_are_of(untrained, weights_file):
    noise = torch.randint(0, 255, (30, 1, 1, 96, 80), generator=torch.Generator().manual_seed(0))
    scan = Scan(noise.to(torch.uint8), Grid((1, 96, 80)), times_s=tuple(k / 25 for k in range(30)))
    result = usvol.run(untrained, scan)
    curve = curve_of(result)
    assert len(curve.values) == len(scan.data)
    assert [f.name for f in result.findings if isinstance(f, Scores)] == ["ed_es_detection"]
    assert untrained.train_patients == {"aa"}
    assert result.provenance["weights_sha256"] == untrained.provenance["weights_sha256"]
    stored = weights.load_file(weights_file)
    own = new_network(SMALL).eval()
    own.load_state_dict({k.removeprefix("member_0."): v.float() for k, v in stored.state.items()})
    prepared = untrained.preprocess(scan)
    with torch.no_grad():
        steps = torch.tensor(scan.times_s).diff()
        whole = own(prepared.data[None, :, 0].float(), torch.cat([steps[:1], steps])[None])[0]
        torch.testing.assert_close(untrained.infer(prepared)[0], whole, rtol=1e-3, atol=1e-3)
        unknown = untrained.infer(dataclasses.replace(prepared, times_s=None))[0]
    assert not torch.allclose(unknown, whole, atol=1e-4), "time is an input"


def test_unknown_weights_members_and_kinds_are_refused(untrained, weights_file):
    with pytest.raises(WeightsError, match="no_such_weights"):
        build(Config(weights="no_such_weights"), "cpu")
    with pytest.raises(ConfigError, match="members 0 to 0, not 1"):
        build(Config(weights=weights_file, member=1), "cpu")
    with pytest.raises(KindError, match="clip"):
        usvol.run(untrained, Scan(torch.zeros(1, 1, 1, 64, 64, dtype=torch.uint8), Grid((1, 64, 64))))


def size_of(times, *, rr=1.0, ejection=(0.05, 0.35)):
    """Size of a ventricle that stands still before and after it ejects; ED at every multiple of ``rr``."""
    place = np.asarray(times) % rr
    return 100 - 50 * np.interp(place, [0, *ejection, ejection[1] + 0.08, 0.9 * rr, rr], [0, 0, 1, 1, 0, 0])


def test_sizes_turn_at_ed_and_es():
    times = np.arange(100) / 40
    found = size_events(size_of(times).tolist(), tuple(times))
    assert [name for name, _ in found] == ["ED", "ES"] * 3 or [n for n, _ in found] == ["ED", "ES"] * 2 + [
        "ED"
    ]
    noisy = size_of(times) + np.random.default_rng(0).normal(0, 2, 100)
    assert [name for name, _ in size_events(noisy.tolist(), tuple(times))] == [name for name, _ in found]
    assert [at / 40 for name, at in found if name == "ES"][:2] == pytest.approx([0.39, 1.39], abs=0.06)
    assert size_events([100.0] * 30, None) == []
    assert size_events([0.0] * 30, None) == []


def test_a_clip_that_begins_or_ends_amid_a_systole_has_no_turn_there():
    times = np.arange(0.2, 1.2, 0.02)
    amid = size_events(size_of(times).tolist(), tuple(times - 0.2))
    assert [name for name, _ in amid] == ["ES", "ED"] or [name for name, _ in amid] == ["ES"]
    times = np.arange(0.5, 1.2, 0.02)
    ends = size_events(size_of(times).tolist(), tuple(times - 0.5))
    assert [name for name, _ in ends] == ["ED"]
    whole = np.arange(0, 0.7, 0.02)
    for known in (tuple(whole), None):
        assert [n for n, _ in size_events(size_of(whole).tolist(), known)][:2] == ["ED", "ES"]


def test_beats_are_counted_from_like_to_like_whatever_their_order():
    moved = (Event("ED", 30, 0.6), Event("ES", 10, 0.2), Event("ED", 2, 0.04))
    assert whole_beats(moved) == 1
    assert [(s.ed, s.es) for s in systoles(moved)] == [(2, 10)]
    assert whole_beats(()) == 0
    together = (Event("ED", 5, 0.1), Event("ED", 5, 0.1))
    flat = Curve("cardiac_phase", (0.0,) * 9, "1", tuple(np.arange(9) / 50), tuple(range(9)), events=together)
    assert {m.name: m.value for m in cycle_measurements(flat)}["heart_rate"] is None
