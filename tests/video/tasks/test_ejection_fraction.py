from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

import usvol
from usvol import pipeline, quality, weights
from usvol.errors import ConfigError, KindError, ReadError
from usvol.formats.video_writing import write_video
from usvol.result import Curve, Event, Labels, Scores
from usvol.runtime import Network
from usvol.scan import Grid, Scan, Sector, Source
from usvol.training.members import join_members
from video.recipes.ejection_fraction import EF_NAMES, Settings, ef_by_discs, new_network
from video.tasks._echo_beats import systoles
from video.tasks._echo_biplane import View, biplane_measurements, view_of
from video.tasks._echo_flags import Seen, ventricle_flags
from video.tasks._echo_fraction import CLASSES, ef_scores
from video.tasks._echo_ventricle import as_labels, discs_of, tidied
from video.tasks.ejection_fraction import (
    Config,
    EjectionFraction,
    _with_second,
    biplane,
    build,
)

SMALL = Settings(width=4, hidden=8, length=8)
LONG, WIDE = 76.0, 40.0  # of the ventricle in diastole, pixels of the square of 112
FPS = 50


def outlined(clips, *, along=0.25):
    """Outline an upright ellipse whose size the brightness codes: white is full, black ejected all.

    Its length shortens by ``along`` of what is ejected, its width by what that leaves.
    """
    ejected = 1 - clips.mean((2, 3, 4)) / 255
    shorter = 1 - along * ejected
    narrower = ((1 - ejected) / shorter).clamp(min=1e-4).sqrt()
    y, x = torch.meshgrid(torch.arange(56.0), torch.arange(56.0), indexing="ij")
    half_y, half_x = LONG / 4 * shorter, WIDE / 4 * narrower
    # The base stays where it is; the axis ends there.
    down = (y - (46 - half_y[..., None, None])) / half_y[..., None, None]
    across = (x - 27.5) / half_x[..., None, None]
    logits = 12 * (1 - (down**2 + across**2).sqrt())
    return logits, ejected[..., None].expand(*clips.shape[:2], 9).clone()


def judged(features, steps):
    """Answer an EF of 58 % by the LSTM and of 52 % by the frames, for every beat that holds a systole."""
    del steps
    systole = features[..., 0].amax(1) - features[..., 0].amin(1) > 0.1
    return torch.stack([58.0 * systole, 52.0 * systole], 1)


def network(run):
    return Network(run, "torch", "cpu", "f32", 0.0)


def task_of(config=None, *, along=0.25, **parts) -> EjectionFraction:
    see = network(lambda clips: outlined(clips, along=along))
    return EjectionFraction(see, network(judged), config or Config(), length=20, **parts)


def volume_at(times, efs, *, rr):
    """Size 0-1 at each time: full at ED (0.1 s into each beat), least 0.33 s later."""
    size = np.ones(len(times))
    for beat, ef in enumerate(efs):
        start = 0.1 + beat * rr
        inside = (times >= start - 1e-9) & (times < start + rr - 1e-9)
        place = [start, start + 0.05, start + 0.33, start + 0.4, start + 0.8 * rr, start + rr]
        size[inside] = 1 - ef / 100 * np.interp(times[inside], place, [0, 0, 1, 1, 0, 0])
    return size


def cine(efs=(60, 60), *, rr=0.9, seconds=None, start=0.0, spacing=1.0) -> Scan:
    """Frames as bright as the ventricle is full."""
    count = round((seconds or 0.1 + rr * len(efs)) * FPS)
    times = np.arange(count) / FPS
    frames = torch.from_numpy((255 * volume_at(times + start, efs, rr=rr)).round().astype(np.uint8))
    data = frames[:, None, None, None, None].expand(-1, 1, 1, 112, 112).contiguous()
    grid = Grid((1, 112, 112), None if spacing is None else (spacing,) * 3)
    return Scan(data, grid, times_s=tuple(times.tolist()))


@pytest.fixture(scope="module")
def result():
    return usvol.run(task_of(), cine())


def curve_of(result, name="left_ventricle_volume") -> Curve:
    return next(f for f in result.findings if isinstance(f, Curve) and f.name == name)


def labels_of(result) -> Labels:
    return next(f for f in result.findings if isinstance(f, Labels))


def values(result):
    return {m.name: m.value for m in result.measurements}


def codes(result):
    return {flag.code for flag in result.flags}


def corrected(task, result, scan, new):
    """Measure again with findings replaced by those of ``new``, of the same type and name."""
    by_key = {(type(f), f.name): f for f in new}
    findings = [by_key.get((type(f), f.name), f) for f in result.findings]
    return pipeline.remeasure(task, result, findings=findings, scan=scan)


def test_a_known_ejection_fraction_is_measured_by_every_method(result):
    found = values(result)
    assert found[EF_NAMES["segmentation"]] == pytest.approx(60, abs=1.5)
    assert found["ejection_fraction_area_length"] == pytest.approx(60, abs=2)
    assert found[EF_NAMES["clip"]] == pytest.approx(58)
    assert found[EF_NAMES["frames"]] == pytest.approx(52)
    both = 0.6 * found[EF_NAMES["segmentation"]] + 0.2 * (found[EF_NAMES["clip"]] + found[EF_NAMES["frames"]])
    assert found[EF_NAMES["fused"]] == pytest.approx(both, abs=0.6)
    assert found["beats"] == 2
    assert found["long_axis_shortening"] == pytest.approx(0.25 * 60, abs=1.5)
    assert not codes(result) & {"foreshortened", "methods_disagree", "less_than_one_beat", "implausible_size"}


def test_events_lie_where_the_ventricle_turns(result):
    curve = curve_of(result)
    # The clip ends as the third beat begins: that ED may be one or not.
    assert [event.name for event in curve.events][:4] == ["ED", "ES", "ED", "ES"]
    times = [event.time_s for event in curve.events][:4]
    # Anywhere in the stretch in which the size stands still.
    stretches = ((0.0, 0.16), (0.81, 1.16))
    assert all(low <= t <= high for t, (low, high) in zip(times[::2], stretches, strict=True))
    assert times[1::2] == pytest.approx((0.465, 1.365), abs=0.05)
    assert all(event.time_s == curve.times_s[event.index] for event in curve.events)


def test_volumes_are_those_of_the_solid(result):
    found = values(result)
    full = np.pi / 6 * LONG * WIDE**2 / 1000
    assert found["end_diastolic_volume"] == pytest.approx(full, rel=0.04)
    assert found["end_systolic_volume"] == pytest.approx(0.4 * full, rel=0.06)
    assert found["stroke_volume"] == pytest.approx(
        found["end_diastolic_volume"] - found["end_systolic_volume"]
    )
    assert curve_of(result).unit == "mL"
    assert max(curve_of(result).values) == pytest.approx(found["end_diastolic_volume"], rel=0.02)


def test_twice_the_spacing_is_eight_times_the_volume_and_the_same_fraction(result):
    wide = usvol.run(task_of(), cine(spacing=2.0))
    ratio = values(wide)["end_diastolic_volume"] / values(result)["end_diastolic_volume"]
    assert ratio == pytest.approx(8, rel=1e-4)
    assert values(wide)[EF_NAMES["fused"]] == pytest.approx(values(result)[EF_NAMES["fused"]], abs=1e-3)


def test_without_a_scale_there_is_a_fraction_but_no_millilitre(result):
    scan = cine(spacing=None)
    bare = usvol.run(task_of(), scan)
    for name in EF_NAMES.values():
        assert values(bare)[name] == pytest.approx(values(result)[name], abs=1e-3)
    missing = [m for m in bare.measurements if m.unit == "mL"]
    assert len(missing) == 3
    assert all(m.value is None and scan.calibration.reason in m.note for m in missing)
    assert curve_of(bare).unit == "%"
    assert max(curve_of(bare).values) == pytest.approx(100)


def test_beats_that_differ_are_measured_one_by_one():
    found = usvol.run(task_of(Config(fusion=0.5)), cine((60, 45, 55)))
    curve = curve_of(found, EF_NAMES["fused"])
    assert curve.values == pytest.approx([(ef + 55) / 2 for ef in (60, 45, 55)], abs=1.5)
    assert curve.times_s is not None and len(curve.times_s) == 3
    by_masks = next(m for m in found.measurements if m.name == EF_NAMES["segmentation"])
    assert (by_masks.low, by_masks.value, by_masks.high) == pytest.approx((45, 53.3, 60), abs=1.5)


@pytest.mark.parametrize(
    "other",
    [
        lambda scan: dataclasses.replace(scan, times_s=tuple(2 * t for t in scan.times_s)),
        lambda scan: dataclasses.replace(scan, times_s=None),
        lambda scan: dataclasses.replace(scan, data=scan.data[::2], times_s=scan.times_s[::2]),
    ],
    ids=["slower", "unknown times", "every second frame"],
)
def test_the_fraction_does_not_depend_on_the_time_base(result, other):
    again = usvol.run(task_of(), other(cine()))
    assert values(again)["beats"] == 2
    for key in ("fused", "segmentation"):
        # Nothing but the frames counts, so other times of the same frames change nothing.
        allowed = 0.3 if len(other(cine()).data) == len(cine().data) else 3
        assert values(again)[EF_NAMES[key]] == pytest.approx(values(result)[EF_NAMES[key]], abs=allowed)
    if other(cine()).times_s is None:
        assert all(f.times_s is None for f in again.findings if isinstance(f, Curve))


def test_fusion_weighs_masks_and_the_mean_of_the_readings(result):
    alone = usvol.run(task_of(Config(fusion=0)), cine())
    assert values(alone)[EF_NAMES["fused"]] == pytest.approx(values(alone)[EF_NAMES["segmentation"]], abs=1)
    assert values(usvol.run(task_of(Config(fusion=1)), cine()))[EF_NAMES["fused"]] == pytest.approx(55)
    both = values(usvol.run(task_of(Config(fusion=0.5)), cine()))
    assert both[EF_NAMES["fused"]] == pytest.approx((both[EF_NAMES["segmentation"]] + 55) / 2, abs=0.6)


def test_the_class_is_that_of_the_fraction(result):
    (scores,) = (f for f in result.findings if isinstance(f, Scores))
    assert scores.decision == CLASSES[0]
    for ef, number in ((50.0, 0), (49.9, 1), (40.0, 1), (39.9, 2), (12.0, 2)):
        made = ef_scores(ef)
        assert made.decision == CLASSES[number]
        assert sum(made.probabilities) == pytest.approx(1)
        assert all(p >= 0 for p in made.probabilities)
    assert ef_scores(70).probabilities[0] > 0.99 > ef_scores(52).probabilities[0] > 0.5


def test_a_painted_mask_changes_curve_and_fraction(result):
    task, scan = task_of(), cine()
    es = next(e.index for e in curve_of(result).events if e.name == "ES")
    painted = labels_of(result).data.clone()
    ed = next(e.index for e in curve_of(result).events if e.name == "ED")
    painted[es] = painted[ed]
    again = corrected(task, result, scan, [dataclasses.replace(labels_of(result), data=painted)])
    assert curve_of(again).values[es] == pytest.approx(curve_of(again).values[ed])
    assert curve_of(again).events == curve_of(result).events
    first, second = (curve_of(r, EF_NAMES["fused"]).values for r in (result, again))
    assert second[0] == pytest.approx(0, abs=1e-6)
    assert second[1] == pytest.approx(values(result)[EF_NAMES["segmentation"]], abs=1.5)
    assert values(again)[EF_NAMES["segmentation"]] == pytest.approx(30, abs=1.5)
    assert values(again)[EF_NAMES["fused"]] == pytest.approx(30, abs=1.5)
    assert first[0] == pytest.approx(58, abs=1.5)
    assert values(again)[EF_NAMES["clip"]] == values(result)[EF_NAMES["clip"]]
    (scores,) = (f for f in again.findings if isinstance(f, Scores))
    assert scores.decision == CLASSES[2]
    assert [(type(f), f.name) for f in again.findings] == [(type(f), f.name) for f in result.findings]


def moved(curve, number, index):
    event = dataclasses.replace(curve.events[number], index=index, time_s=curve.times_s[index])
    return dataclasses.replace(curve, events=(*curve.events[:number], event, *curve.events[number + 1 :]))


def test_a_moved_event_changes_the_fraction_of_its_beat_alone(result):
    task, scan = task_of(), cine()
    curve = curve_of(result)
    es = curve.events[1].index
    again = corrected(task, result, scan, [moved(curve, 1, es - 10)])
    before, after = (curve_of(r, EF_NAMES["fused"]).values for r in (result, again))
    expected = 100 * (1 - curve.values[es - 10] / curve.values[curve.events[0].index])
    assert after[0] == pytest.approx(expected, abs=1)
    assert after[0] < before[0] - 15
    assert curve_of(again).values == curve.values
    assert values(again)[EF_NAMES["fused"]] == pytest.approx(np.mean(after))
    assert again.provenance["corrected"] == ["left_ventricle_volume"]


def test_events_put_in_another_order_are_measured_where_they_are_marked(result):
    task, scan = task_of(), cine((60,), seconds=0.75)
    one = usvol.run(task, scan)
    curve = curve_of(one)
    assert [e.name for e in curve.events] == ["ED", "ES"]
    late = curve.events[1].index + 3
    again = corrected(task, one, scan, [moved(curve, 0, late)])
    by_hand = ef_by_discs(labels_of(again), ed=late, es=curve.events[1].index)
    assert values(again)[EF_NAMES["fused"]] == pytest.approx(by_hand)
    assert task.follow(result.findings, {5}) is result.findings


def test_a_clip_that_begins_in_systole_is_measured_from_es_to_ed_by_its_masks():
    found = usvol.run(task_of(), cine(start=0.3, seconds=0.9))
    assert [e.name for e in curve_of(found).events] == ["ES", "ED"]
    assert "no_whole_systole" in codes(found)
    assert values(found)[EF_NAMES["fused"]] == pytest.approx(60, abs=1.5)
    assert values(found)[EF_NAMES["clip"]] is None


def test_an_axis_that_shortens_too_much_is_flagged_as_foreshortened():
    assert "foreshortened" in codes(usvol.run(task_of(along=0.6), cine()))
    assert "foreshortened" not in codes(usvol.run(task_of(along=0.3), cine()))


def test_masks_and_lstm_that_disagree_are_flagged():
    assert "methods_disagree" in codes(usvol.run(task_of(), cine((25, 25))))


def test_a_volume_that_no_ventricle_has_is_flagged():
    assert "implausible_size" in codes(usvol.run(task_of(), cine(spacing=5.0)))


@pytest.mark.parametrize(("start", "seconds"), [(0.25, 0.6), (0.6, 0.4), (0.0, 0.25)])
def test_less_than_one_beat_is_said_and_nothing_invented(start, seconds):
    found = usvol.run(task_of(), cine((60,), start=start, seconds=seconds))
    assert "less_than_one_beat" in codes(found)
    assert {n for n, v in values(found).items() if v is not None} == {"beats"}
    assert values(found)["beats"] == 0
    assert all(m.note for m in found.measurements)
    assert not [f for f in found.findings if isinstance(f, Scores)]


def test_a_clip_without_a_ventricle_is_flagged_and_not_scored():
    empty = dataclasses.replace(
        task_of(),
        see=network(lambda clips: tuple(part - 90 * (n == 0) for n, part in enumerate(outlined(clips)))),
    )
    found = usvol.run(empty, cine())
    assert "no_left_ventricle" in codes(found)
    assert {n for n, v in values(found).items() if v is not None} == {"beats"}
    assert max(curve_of(found).values) == 0


def test_a_clip_unlike_those_of_training_is_flagged_and_not_scored():
    rows = torch.randn(60, 12, generator=torch.Generator().manual_seed(0))
    far = quality.fit(0.001 * rows[:50] + 9, 0.001 * rows[50:] + 9)
    found = usvol.run(task_of(statistics=far), cine())
    assert {f.code: f.severity.value for f in found.flags}["out_of_distribution"] == "severe"
    assert {n for n, v in values(found).items() if v is not None} == {"beats"}
    asked = usvol.run(task_of(Config(decline=False), statistics=far), cine())
    assert values(asked)[EF_NAMES["segmentation"]] == pytest.approx(60, abs=1.5)
    near = usvol.run(task_of(statistics=quality.fit(99 * rows[:50], 99 * rows[50:])), cine())
    assert "out_of_distribution" not in codes(near)
    assert values(near)["beats"] == 2


def test_a_ventricle_cut_by_the_sector_is_flagged(result):
    labels = labels_of(result)
    sector = torch.ones(112, 112, dtype=torch.bool)
    seen = Seen(labels, systoles(curve_of(result).events), sector, ())
    assert "cut_by_sector_edge" not in {f.code for f in ventricle_flags(seen)}
    sector[:, :50] = False
    inside = dataclasses.replace(seen, labels=dataclasses.replace(labels, data=labels.data * sector))
    assert "cut_by_sector_edge" in {f.code for f in ventricle_flags(inside)}


def test_the_sector_goes_with_the_frames():
    scan = Scan(torch.zeros(2, 1, 1, 60, 120, dtype=torch.uint8), Grid((1, 60, 120)))
    mask = torch.zeros(60, 120, dtype=torch.bool)
    mask[:, 60:] = True
    prepared = task_of().preprocess(dataclasses.replace(scan, sector=Sector(mask, None, "linear")))
    assert prepared.sector is not None
    assert prepared.sector.mask.shape == (112, 112)
    assert prepared.sector.mask.nonzero().amin(0).tolist() == pytest.approx([28, 56], abs=1)
    assert task_of().preprocess(scan).sector is None


def test_masks_are_one_part_without_holes_and_tiny_ones_are_none():
    logits = torch.full((3, 56, 56), -6.0)
    logits[0, 10:40, 15:35] = 6
    logits[0, 20:23, 22:25] = -6  # a hole
    logits[0, 45:50, 45:50] = 6  # another part
    logits[1, 20, 20] = 6
    masks = tidied(logits, None)
    assert masks.shape == (3, 224, 224)
    assert masks.amax((1, 2)).tolist() == [1, 0, 0]
    assert int(masks[0].sum()) == pytest.approx(30 * 20 * 16, rel=0.01)
    labels = as_labels(masks, Grid((1, 112, 112), (1.0, 1.0, 1.0)))
    discs = discs_of(labels, 0)
    assert discs is not None
    assert discs.length == pytest.approx(60, rel=0.02)
    assert discs_of(labels, 2) is None


def test_the_protocol_reads_every_clip_of_32_frames():
    seen = []

    def judge(features, steps):
        seen.append(features.shape[:2])
        return judged(features, steps)

    task = dataclasses.replace(task_of(Config(clips="protocol")), judge=network(judge))
    scan = cine()
    found = usvol.run(task, scan)
    starts = len(scan.data) - 62
    assert sum(n for n, _ in seen) == starts
    assert {length for _, length in seen} == {32}
    assert len(curve_of(found, EF_NAMES["clip"]).values) == starts
    assert values(found)[EF_NAMES["clip"]] == pytest.approx(58)
    assert len(curve_of(found, EF_NAMES["fused"]).values) == 2


def ellipsoid(wide_ed, wide_es, *, spacing=1.0, key=None, length=LONG) -> View:
    """A view of one beat: upright ellipses of the given widths (mm), ED and ES."""
    y, x = np.indices((224, 224)) / 2
    masks = [((y - 55) / (length / 2)) ** 2 + ((x - 55) / (w / 2)) ** 2 < 1 for w in (wide_ed, wide_es)]
    grid = Grid((1, 224, 224), None if spacing is None else (0.5, 0.5, 0.5))
    labels = Labels(
        "left_ventricle", torch.from_numpy(np.stack(masks)[:, None].astype(np.uint8)), grid, {1: "v"}
    )
    events = (Event("ED", 0, None), Event("ES", 1, None))
    curve = Curve("left_ventricle_volume", (1.0, 0.5), "%", None, (0, 1), events=events)
    return view_of(labels, curve, patient_key=key)


def test_two_views_give_the_volume_of_an_ellipsoid():
    ef, edv, esv = biplane_measurements(ellipsoid(40, 30), ellipsoid(50, 32))
    assert edv.value == pytest.approx(np.pi / 6 * LONG * 40 * 50 / 1000, rel=0.03)
    assert esv.value == pytest.approx(np.pi / 6 * LONG * 30 * 32 / 1000, rel=0.03)
    assert ef.value == pytest.approx(100 * (1 - 30 * 32 / (40 * 50)), abs=1)
    short = biplane_measurements(ellipsoid(40, 30), ellipsoid(50, 32, length=0.75 * LONG))
    assert short[0].note is not None and "foreshortened" in short[0].note
    assert short[1].value > edv.value * 0.95, "the longer axis counts"


def test_two_views_without_scale_give_a_fraction_alone():
    ef, edv, esv = biplane_measurements(ellipsoid(40, 30, spacing=None), ellipsoid(50, 32))
    assert ef.value == pytest.approx(100 * (1 - 30 * 32 / (40 * 50)), abs=1)
    assert edv.value is esv.value is None


def test_views_that_do_not_belong_together_are_declined():
    for first, second, reason in (
        (ellipsoid(40, 30, key="a"), ellipsoid(50, 32, key="b"), "different patients"),
        (ellipsoid(40, 30), View(()), "no whole systole"),
        (ellipsoid(30, 40), ellipsoid(32, 50), "larger"),
    ):
        declined = biplane_measurements(first, second)
        assert [m.value for m in declined] == [None] * 3
        assert all(m.note is not None and reason in m.note for m in declined)
    same = biplane_measurements(ellipsoid(40, 30, key="a"), ellipsoid(50, 32, key="a"))
    assert same[0].value is not None


def test_results_of_two_clips_are_combined(result, tmp_path):
    both = biplane(result, usvol.run(task_of(), cine((50, 50))))
    assert {m.name for m in both} == {
        "ejection_fraction_biplane",
        "end_diastolic_volume_biplane",
        "end_systolic_volume_biplane",
    }
    assert both[0].value == pytest.approx(100 * (1 - np.sqrt(0.4 * 0.5)), abs=2)
    view = view_of(labels_of(result), curve_of(result))
    task = dataclasses.replace(task_of(Config(second=str(tmp_path / "two.mp4"))), second=view)
    alone = values(result)
    found = values(usvol.run(task, cine()))
    assert found["ejection_fraction_biplane"] == pytest.approx(alone[EF_NAMES["segmentation"]], abs=0.2)
    same = dataclasses.replace(cine(), source=Source(path=tmp_path / "two.mp4"))
    assert values(usvol.run(task, same))["ejection_fraction_biplane"] is None


def test_the_second_view_is_read_from_its_file(tmp_path):
    frames = cine((60, 60)).data[:, 0, 0].numpy()
    path = tmp_path / "two.mp4"
    path = write_video(path, frames, fps=FPS) or path
    task = _with_second(task_of(), path)
    assert task.second is not None
    assert len(task.second.beats) == 2
    assert task.provenance["second_sha256"] == weights.sha256_of(path)
    with pytest.raises((ReadError, FileNotFoundError)):
        _with_second(task_of(), tmp_path / "none.mp4")


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory) -> str:
    """Weights as ``usvol train`` writes them, of a network that learnt nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "ejection_fraction.safetensors"
    facts = {
        "task": "ejection_fraction",
        "members": "1",
        "train_patients": json.dumps([["aa"]]),
        "calibration": "[{}]",
        "settings": SMALL.model_dump_json(),
    }
    weights.save(path, join_members([new_network(SMALL).state_dict()]), metadata=facts, half=True)
    return str(path)


def test_stored_weights_answer_as_the_network_they_are_of(weights_file):
    task = build(Config(weights=weights_file), "cpu")
    noise = torch.randint(0, 255, (30, 1, 1, 96, 80), generator=torch.Generator().manual_seed(0))
    scan = Scan(noise.to(torch.uint8), Grid((1, 96, 80)), times_s=tuple(k / 25 for k in range(30)))
    found = usvol.run(task, scan)
    assert labels_of(found).data.shape == (30, 1, 96, 80)
    assert task.train_patients == {"aa"}
    assert task.length == 8
    own = new_network(SMALL).eval()
    stored = weights.load_file(weights_file)
    own.load_state_dict({k.removeprefix("member_0."): v.float() for k, v in stored.state.items()})
    prepared = task.preprocess(scan)
    clip = prepared.data[None, :, 0].float()
    steps = torch.full((1, 30), 0.04)
    with torch.no_grad():
        true = own(clip, steps)
        logits, features = task.see(clip)
        torch.testing.assert_close(logits, true.masks, rtol=1e-3, atol=1e-3)
        answer = task.judge(features, steps)[0]
    assert answer.tolist() == pytest.approx([float(true.ef_clip), float(true.ef_frames)], abs=0.01)
    with pytest.raises(KindError, match="clip"):
        usvol.run(task, dataclasses.replace(scan, data=scan.data[:1], times_s=None))
    with pytest.raises(ConfigError, match="members 0 to 0, not 2"):
        build(Config(weights=weights_file, member=2), "cpu")
