"""The beating heart: its truth is what was asked for, its outlines and its speckle move with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from usvol.measurement import chamber_discs, ejection_fraction_percent, simpson_volume
from usvol.scan import Kind, Trust
from video.phantoms import _heart_cycle as cycle
from video.phantoms.heart import Config, draw, simulate, simulate_labelled

SMALL = {"fps": 25, "size": 80, "max_frames": 40, "rhythm": "sinus", "heart_rate_bpm": 70, "beats": 1.5}


@pytest.fixture(scope="module")
def made():
    config = Config(**SMALL, view="A4C", ef_percent=60, foreshortening=0, scale=1, quality=1)
    return simulate_labelled(3, config)


def test_a_cine_is_calibrated_and_timed_and_its_labels_lie_on_it(made):
    scan, labels, truth = made
    assert scan.kind is Kind.CINE
    assert scan.data.dtype == torch.uint8
    assert scan.calibration.trust is Trust.MEASURED
    assert labels.grid == scan.grid
    assert labels.data.shape == (scan.data.shape[0], *scan.grid.shape)
    assert len(truth["volume_ml"]) == len(scan.times_s) == scan.data.shape[0]
    assert np.diff(scan.times_s) == pytest.approx(1 / 25)
    assert scan.sector.shape == "fan"
    outside = ~scan.sector.mask
    assert not scan.data[:, 0, 0][:, outside].any()
    assert float(scan.data[:, 0, 0][:, scan.sector.mask].float().std()) > 15


def test_the_same_seed_gives_the_same_cine():
    config = Config(size=64, max_frames=3, fps=30)
    (one, first), (two, second) = simulate(8, config), simulate(8, config)
    assert torch.equal(one.data, two.data)
    assert first == second
    assert not torch.equal(one.data, simulate(9, config)[0].data[: len(one.data)])


@pytest.mark.parametrize(("seed", "ef"), [(1, 20), (2, 55), (4, 75)])
def test_ejection_fraction_is_what_was_asked_for(seed, ef):
    heart = draw(seed, Config(**{**SMALL, "fps": 100, "max_frames": 200}, ef_percent=ef))
    assert heart.facts["ef_percent"] == pytest.approx(ef, abs=3)
    low, high = heart.volume_ml.min(), heart.volume_ml.max()
    assert 100 * (1 - low / high) == pytest.approx(ef, abs=5)
    ed, es = heart.facts["ed_frames"], heart.facts["es_frames"]
    assert all(heart.volume_ml[n] > 0.93 * high for n in ed)
    assert all(heart.volume_ml[n] < 1.15 * low for n in es)


def test_outlines_hold_the_ejection_fraction(made):
    """Single-plane discs of the true masks; the plane sees one of two widths, so some points may lack."""
    _, labels, truth = made
    volume = np.array(truth["volume_ml"])
    ends = [
        simpson_volume(chamber_discs(labels, 1, frame=int(n))) for n in (volume.argmax(), volume.argmin())
    ]
    true = 100 * (1 - volume.min() / volume.max())
    assert ejection_fraction_percent(*ends) == pytest.approx(true, abs=12)
    assert ends[0] / 1000 == pytest.approx(volume.max(), rel=0.3)


def test_labels_are_where_the_picture_is_dark(made):
    scan, labels, _ = made
    frame = scan.data[0, 0, 0].float()
    cavity, wall = (labels.data[0, 0] == n for n in (1, 2))
    assert float(frame[cavity].mean()) < 0.7 * float(frame[wall].mean())


def test_a_tilted_plane_misses_the_apex_and_leaves_the_volume():
    straight, tilted = (draw(5, Config(**SMALL, foreshortening=f)) for f in (0.0, 0.25))
    np.testing.assert_allclose(straight.volume_ml, tilted.volume_ml, rtol=1e-6)
    lengths = [
        np.linalg.norm(h.outlines.apex_mm - h.outlines.annulus_mm.mean(1), axis=-1)[h.volume_ml.argmax()]
        for h in (straight, tilted)
    ]
    assert 0.6 * lengths[0] < lengths[1] < 0.9 * lengths[0]


def test_speckle_moves_with_the_tissue():
    """The wall's grain is nearly the same from frame to frame, and another after a while."""
    scan, labels, _ = simulate_labelled(
        6, Config(**{**SMALL, "fps": 80, "max_frames": 20}, quality=1, ef_percent=50)
    )
    frames = scan.data[:, 0, 0].float()
    wall = (labels.data[:, 0] == 2).all(0)
    grain = (frames - frames.mean(0))[:, wall]
    grain = grain / grain.norm(dim=1, keepdim=True).clamp(min=1e-6)
    near = float((grain[1:] * grain[:-1]).sum(1).mean())
    far = float((grain[15:] * grain[:-15]).sum(1).mean())
    assert near > 0.5
    assert far < near - 0.2


def test_rhythms_differ_in_their_intervals():
    spread = {}
    for rhythm in ("sinus", "fibrillation"):
        config = Config(rhythm=rhythm, beats=10, fps=20, heart_rate_bpm=80, max_frames=400, size=64)
        facts = draw(7, config).facts
        spread[rhythm] = np.std(np.diff(facts["ed_times_s"]))
    assert spread["sinus"] < 0.05 < spread["fibrillation"]


def test_volume_stands_still_between_the_valves_and_falls_in_ejection():
    rng = np.random.default_rng(0)
    pump = cycle.draw_pump(rng, bpm=75, ef=0.6, edv_ml=120, rhythm="sinus")
    beats = cycle.draw_beats(rng, pump, duration_s=3.0)
    assert beats[0].ed_s <= 0 and beats[-1].next_s >= 3.0
    beat = beats[1]
    marks = [
        beat.ed_s,
        beat.ejection_s,
        beat.es_s,
        beat.filling_s,
        beat.early_end_s,
        beat.atrial_s,
        beat.next_s,
    ]
    assert marks == sorted(marks)
    for low, high in ((beat.ed_s, beat.ejection_s), (beat.es_s, beat.filling_s)):
        still = cycle.volume_ml(beats, pump, times_s=np.linspace(low, high - 1e-6, 5))
        assert np.ptp(still) < 1e-6
    ejected = cycle.volume_ml(beats, pump, times_s=np.linspace(beat.ejection_s, beat.es_s, 20))
    assert (np.diff(ejected) < 0).all()
    assert ejected[-1] == pytest.approx(beat.esv_ml)
    where = cycle.position_in_beat(beats, times_s=np.array([beat.ed_s, beat.es_s]))
    assert where == pytest.approx([0, 0.5], abs=1e-9)


def test_a_two_chamber_view_has_no_right_ventricle():
    four, two = (draw(2, Config(**SMALL, view=view)) for view in ("A4C", "A2C"))
    assert four.scene.drawing.right_mm.max() > 10
    assert two.scene.drawing.right_mm.max() == 0
    assert len(four.scene.valves) == 2 and len(two.scene.valves) == 1
