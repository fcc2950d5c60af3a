from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from usvol import measurement
from usvol.errors import KindError, UncalibratedError, UnknownTimeError
from usvol.measurement import surface_area_cm2
from usvol.result import Curve, Event, Labels, Surface
from usvol.scan import Frame, Grid, Header, Scan, Source, Trust

SPACING_MM = (0.9, 0.6, 0.4)


def ellipsoid(grid: Grid, radii_mm: tuple[float, float, float]) -> Labels:
    index = torch.stack(
        torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid.shape), indexing="ij")
    )
    centre = torch.tensor([(n - 1) / 2 for n in grid.shape])[:, None, None, None]
    offset_mm = (index - centre) * torch.tensor(SPACING_MM)[:, None, None, None]
    inside = (offset_mm / torch.tensor(radii_mm)[:, None, None, None]).square().sum(0) <= 1
    return Labels("organ", inside.to(torch.uint8)[None] * 3, grid, {3: "organ"})


@pytest.fixture(scope="module")
def organ() -> Labels:
    return ellipsoid(Grid((60, 80, 110), spacing_mm=SPACING_MM), (20.0, 15.0, 18.0))


def test_volume_of_an_ellipsoid_of_known_ml(organ):
    true_ml = 4 / 3 * math.pi * 20 * 15 * 18 / 1000
    assert measurement.volume_ml(organ, 3) == pytest.approx(true_ml, rel=2e-3)
    assert measurement.volume_ml(organ, 1) == 0.0


def test_doubling_the_spacing_makes_eight_times_the_volume(organ):
    doubled = dataclasses.replace(organ, grid=organ.grid.with_spacing(tuple(2 * s for s in SPACING_MM)))
    assert measurement.volume_ml(doubled, 3) == pytest.approx(8 * measurement.volume_ml(organ, 3))


def test_turning_the_volume_leaves_its_size(organ):
    turned = dataclasses.replace(organ.grid, direction=((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))
    assert measurement.volume_ml(dataclasses.replace(organ, grid=turned), 3) == measurement.volume_ml(
        organ, 3
    )


def test_area_is_that_of_the_pixels_whatever_the_placeholder_z():
    data = torch.zeros(2, 1, 10, 10, dtype=torch.uint8)
    data[1, 0, 2:6, 3:8] = 1
    labels = Labels("head", data, Grid((1, 10, 10), spacing_mm=(7.0, 0.5, 0.2)), {1: "head"})
    assert measurement.area_mm2(labels, 1, frame=1) == pytest.approx(20 * 0.1)
    assert measurement.area_mm2(labels, 1, frame=0) == 0.0
    with pytest.raises(KindError, match="single slice"):
        measurement.volume_ml(labels, 1)
    with pytest.raises(ValueError, match="frame 2 of 2"):
        measurement.area_mm2(labels, 1, frame=2)


def test_length_and_angle_in_world_coordinates():
    grid = Grid((5, 5, 5), spacing_mm=(1.0, 1.0, 1.0))
    assert measurement.length_mm([(0, 0, 0), (0, 3, 4), (12, 3, 4)], grid) == pytest.approx(17.0)
    assert measurement.angle_deg((0, 1, 0), (0, 1, 1), grid=grid) == pytest.approx(45.0)
    assert measurement.angle_deg((1, 0, 0), (-2, 0, 0), grid=grid) == pytest.approx(180.0)
    tiny = math.radians(1e-5)
    assert measurement.angle_deg((0, 1, 0), (0, math.cos(tiny), math.sin(tiny)), grid=grid) == pytest.approx(
        1e-5
    )
    with pytest.raises(ValueError, match="length 0"):
        measurement.angle_deg((0, 0, 0), (0, 0, 1), grid=grid)
    with pytest.raises(ValueError, match="two points"):
        measurement.length_mm([(0, 0, 0)], grid)


@pytest.mark.parametrize("shape", [(1, 4, 4), (4, 4, 4)])
def test_no_scale_no_millimetres(shape):
    grid = Grid(shape)
    labels = Labels("x", torch.ones(1, *shape, dtype=torch.uint8), grid, {1: "x"})
    calls = [
        lambda: measurement.volume_ml(labels, 1, reason="region outside the image"),
        lambda: measurement.area_mm2(labels, 1, reason="region outside the image"),
        lambda: measurement.length_mm([(0, 0, 0), (0, 1, 0)], grid, reason="region outside the image"),
        lambda: measurement.angle_deg((0, 1, 0), (0, 0, 1), grid=grid, reason="region outside the image"),
    ]
    for call in calls:
        with pytest.raises(UncalibratedError, match="region outside the image"):
            call()


def test_an_area_of_a_volume_is_refused(organ):
    with pytest.raises(KindError, match="volume"):
        measurement.area_mm2(organ, 3)


def test_ejection_fraction():
    assert measurement.ejection_fraction_percent(120.0, 48.0) == pytest.approx(60.0)
    assert measurement.ejection_fraction_percent(120.0, 120.0) == 0.0
    for edv_ml, esv_ml in ((0.0, 0.0), (50.0, 60.0), (math.nan, 1.0), (50.0, -1.0)):
        with pytest.raises(ValueError, match=r"EDV"):
            measurement.ejection_fraction_percent(edv_ml, esv_ml)


def beating(period_s: float | None) -> Curve:
    """A curve of three beats of 25 frames each."""
    times_s = None if period_s is None else tuple(i * period_s / 25 for i in range(75))
    events = tuple(Event("ED", i, None if times_s is None else times_s[i]) for i in (0, 25, 50))
    values = tuple(100 + 20 * math.cos(2 * math.pi * i / 25) for i in range(75))
    return Curve("volume", values, "mL", times_s, tuple(range(75)), events=events)


def test_halving_the_frame_times_doubles_the_heart_rate_and_leaves_the_ejection_fraction():
    slow, fast = beating(1.0), beating(0.5)
    assert measurement.heart_rate_bpm(slow) == pytest.approx(60.0)
    assert measurement.heart_rate_bpm(fast) == pytest.approx(2 * measurement.heart_rate_bpm(slow))
    twice = dataclasses.replace(slow, events=(*slow.events, slow.events[-1], slow.events[-1]))
    assert measurement.heart_rate_bpm(twice) == measurement.heart_rate_bpm(slow)
    of = [measurement.ejection_fraction_percent(max(c.values), min(c.values)) for c in (slow, fast)]
    assert of[0] == of[1]


def test_no_frame_times_no_heart_rate():
    with pytest.raises(UnknownTimeError):
        measurement.heart_rate_bpm(beating(None))
    with pytest.raises(ValueError, match="two ES events"):
        measurement.heart_rate_bpm(beating(1.0), event="ES")


def test_the_area_of_a_cube_is_that_of_its_faces():
    corners = np.array([(z, y, x) for z in (0, 1) for y in (0, 1) for x in (0, 1)], float)
    faces = [(0, 1, 3), (0, 3, 2), (4, 5, 7), (4, 7, 6), (0, 1, 5), (0, 5, 4), (2, 3, 7), (2, 7, 6)]
    faces += [(0, 2, 6), (0, 6, 4), (1, 3, 7), (1, 7, 5)]
    cube = Surface("cube", torch.from_numpy(20 * corners), torch.tensor(faces))
    assert surface_area_cm2(cube, Grid((4, 4, 4), (1.0, 1.0, 1.0))) == pytest.approx(6 * 4)
    with pytest.raises(UncalibratedError, match="surface area"):
        surface_area_cm2(cube, Grid((4, 4, 4)))


def test_a_ruler_of_known_length_gives_the_spacing():
    assert measurement.ruler_spacing_mm((0, 0, 0), (0, 30, 40), length_mm=10.0) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="coincide"):
        measurement.ruler_spacing_mm((0, 3, 4), (0, 3, 4), length_mm=10.0)
    with pytest.raises(ValueError, match="above 0"):
        measurement.ruler_spacing_mm((0, 0, 0), (0, 3, 4), length_mm=0.0)


def test_a_header_takes_what_the_user_states_as_its_scan_does():
    grid, source = Grid((1, 4, 5)), Source()
    scan = Scan(torch.zeros(3, 1, 1, 4, 5), grid, source=source).with_spacing((0.5, 0.5, 0.25)).with_fps(10.0)
    header = Header(grid, 3, 1, "uint8", None, source).with_spacing((0.5, 0.5, 0.25)).with_fps(10.0)
    assert (header.grid, header.times_s, header.source) == (scan.grid, scan.times_s, scan.source)
    assert header.source.calibration.trust is Trust.STATED
    with pytest.raises(ValueError, match="positive"):
        header.with_fps(0.0)


def ellipse(*, half_long, half_wide, angle_deg=0.0, spacing=(1.0, 0.5, 0.25)):
    """Labels of one frame with an ellipse, its long axis down and turned by an angle; mm, or samples."""
    shape = (1, 200, 400)
    grid = Grid(shape, spacing) if spacing else Grid(shape)
    _, y, x = (n * s for n, s in zip(np.indices(shape), grid.step, strict=True))
    y, x = y[0] - 100 * grid.step[1], x[0] - 200 * grid.step[2]
    turn = math.radians(angle_deg)
    along, across = y * math.cos(turn) + x * math.sin(turn), x * math.cos(turn) - y * math.sin(turn)
    inside = (along / half_long) ** 2 + (across / half_wide) ** 2 < 1
    return Labels("lv", torch.from_numpy(inside[None, None].astype(np.uint8)), grid, {1: "lv"})


@pytest.mark.parametrize("angle_deg", [0, 15, -25])
def test_discs_and_area_length_give_the_volume_of_an_ellipsoid(angle_deg):
    discs = measurement.chamber_discs(ellipse(half_long=40, half_wide=20, angle_deg=angle_deg), 1)
    true = 4 / 3 * math.pi * 40 * 20**2
    assert discs.length == pytest.approx(80, rel=0.02)
    assert discs.base[0] > discs.apex[0]
    assert measurement.simpson_volume(discs) == pytest.approx(true, rel=0.03)
    assert measurement.area_length_volume(discs.area, discs.length) == pytest.approx(true, rel=0.03)
    assert measurement.disc_volume_ml(discs) == pytest.approx(true / 1000, rel=0.03)


def test_two_views_make_an_ellipsoid_of_three_axes():
    one = measurement.chamber_discs(ellipse(half_long=40, half_wide=24), 1)
    other = measurement.chamber_discs(ellipse(half_long=39, half_wide=15), 1)
    assert measurement.simpson_volume(one, other) == pytest.approx(4 / 3 * math.pi * 40 * 24 * 15, rel=0.04)


def test_discs_without_a_scale_give_ratios_and_no_millilitres():
    large, small = (
        measurement.chamber_discs(ellipse(half_long=80 * f, half_wide=40 * f, spacing=None), 1)
        for f in (1, 0.8)
    )
    ratio = measurement.simpson_volume(small) / measurement.simpson_volume(large)
    assert ratio == pytest.approx(0.8**3, rel=0.02)
    with pytest.raises(UncalibratedError, match="volume"):
        measurement.disc_volume_ml(large)
    with pytest.raises(ValueError, match="unit"):
        measurement.simpson_volume(large, measurement.chamber_discs(ellipse(half_long=40, half_wide=20), 1))


def test_a_mask_too_small_for_discs_is_refused():
    with pytest.raises(ValueError, match="too few"):
        measurement.chamber_discs(ellipse(half_long=1, half_wide=0.5), 1)


def test_a_stated_spacing_counts_in_samples_of_the_file():
    whole = Grid((1, 60, 80))
    shrunk = whole.resized((1, 30, 20)).crop((0, 10, 5), (1, 12, 10))
    stated, full = shrunk.with_spacing((0.2, 0.2, 0.2)), whole.with_spacing((0.2, 0.2, 0.2))
    assert stated.spacing_mm == pytest.approx((0.4, 0.4, 0.8))
    corner = np.array([0.0, 11.0, 9.0])
    in_file = whole.to_index(shrunk.to_world(corner))
    np.testing.assert_allclose(stated.to_world(corner)[1:], full.to_world(in_file)[1:])


def test_a_stated_spacing_leaves_a_volume_where_it_lies():
    turn = ((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    known = Grid((4, 5, 6), (0.5, 0.6, 0.7), (11.0, -3.0, 40.0), direction=turn, frame=Frame.PATIENT_LPS)
    np.testing.assert_allclose(known.with_spacing((0.5, 0.6, 0.7)).affine, known.affine)
    bare = Grid((4, 5, 6), direction=turn, origin_px=(4.0, 2.0, 8.0))
    corner = bare.to_index(np.zeros(3))
    np.testing.assert_allclose(bare.with_spacing((0.5, 0.6, 0.7)).to_world(corner), 0.0, atol=1e-9)
