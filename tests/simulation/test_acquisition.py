from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from usvol.scan import Grid, Kind
from usvol.simulation.acquisition import acquire, develop
from usvol.simulation.beam_geometry import beam_index, beam_points, bounding_box_mm, image_grid
from usvol.simulation.probe import Imaging, Probe, draw_imaging, draw_probe
from usvol.simulation.tissue import TISSUES, Anatomy, Tissue

PROBES = {
    "mechanical": Probe(
        "mechanical_3d", 4, depth_mm=90, focus_mm=55, radius_mm=40, sweep_radius_mm=22, lines=48, planes=40
    ),
    "matrix": Probe("matrix_3d", 3, depth_mm=100, focus_mm=60, radius_mm=3, sweep_radius_mm=3, planes=40),
    "convex": Probe("convex", 4, depth_mm=120, focus_mm=70, radius_mm=55, planes=1, lines=96),
    "sector": Probe("sector", 2.5, depth_mm=150, focus_mm=90, azimuth_deg=42, planes=1, lines=96),
    "linear": Probe("linear", 8, depth_mm=50, focus_mm=25, width_mm=40, planes=1, lines=128),
}
QUIET = Imaging(clutter_db=-120, haze_db=-120, reverberation_db=-120, side_lobe_db=-120, penetration_mm=1e4)


def body(materials, spacing=2.0, tissues=(TISSUES["liver"], TISSUES["fluid"])):
    z, y, x = materials.shape
    origin = (-(z - 1) * spacing / 2, 0.0, -(x - 1) * spacing / 2)
    grid = Grid((z, y, x), (spacing,) * 3, origin)
    return Anatomy(torch.as_tensor(materials, dtype=torch.uint8), grid, tissues)


@pytest.mark.parametrize("name", PROBES)
def test_points_of_the_beams_find_their_beams(name):
    probe = PROBES[name]
    index = beam_index(probe, beam_points(probe))
    wanted = torch.stack(
        torch.meshgrid(*map(torch.arange, (probe.samples, probe.lines, probe.planes)), indexing="ij"), -1
    )
    assert index.shape == wanted.shape
    assert float((index - wanted).abs().max()) < 0.01
    low, high = map(np.array, bounding_box_mm(probe))
    for axis, world in enumerate(beam_points(probe)):
        assert low[axis] - 1e-3 <= float(world.min())
        assert float(world.max()) <= high[axis] + 1e-3


@pytest.mark.parametrize("name", PROBES)
def test_scan_conversion_puts_a_point_where_it_is(name):
    probe = PROBES[name]
    envelope = torch.full((probe.samples, probe.lines, probe.planes), 1e-6)
    place = (int(0.6 * probe.samples), int(0.7 * probe.lines), int(0.3 * probe.planes))
    envelope[place] = 100.0
    truth = [float(w.expand(envelope.shape)[place]) for w in beam_points(probe)]
    scan = develop(envelope, probe, imaging=Imaging()).scan
    shown = scan.data[0, 0].double().numpy()
    assert shown.max() > 50
    found = scan.grid.to_world(np.argwhere(shown > 0)).T @ shown[shown > 0] / shown.sum()
    # Within the pitch of the beams, whose linear interpolation is a little lopsided in a fan.
    assert np.abs(found - truth).max() < 0.6 * max(scan.grid.spacing_mm) + 0.2


@pytest.mark.parametrize("name", PROBES)
def test_sector_mask_is_where_the_data_are(name):
    probe = PROBES[name]
    shape = (1, 96, 96) if probe.is_planar else (40, 48, 56)
    made = acquire(body(np.zeros((40, 80, 60))), probe, imaging=Imaging(), seed=1, grid=shape)
    scan = made.scan
    assert scan.kind is (Kind.IMAGE if probe.is_planar else Kind.VOLUME)
    assert scan.data.dtype == torch.uint8
    assert tuple(scan.grid.shape) == shape
    assert scan.grid.is_calibrated
    assert scan.sector is not None
    inside = scan.sector.mask.reshape(scan.grid.shape)
    assert int(scan.data[0, 0][~inside].sum()) == 0
    assert float((scan.data[0, 0][inside] > 0).float().mean()) > 0.98
    assert 0.2 < float(inside.float().mean()) <= 1
    assert (probe.kind == "linear") == bool(inside.all())


def test_planar_fan_matches_the_mask():
    probe = PROBES["convex"]
    scan = develop(torch.ones(probe.samples, probe.lines, 1), probe, imaging=Imaging()).scan
    assert scan.sector is not None
    fan = scan.sector.fan
    assert fan is not None
    rows, columns = np.nonzero(scan.sector.mask.numpy())
    world = scan.grid.to_world(np.stack([0 * rows, rows, columns], -1))
    radius = np.hypot(world[:, 1] - fan.apex[0], world[:, 2] - fan.apex[1])
    angle = np.degrees(np.arctan2(world[:, 2] - fan.apex[1], world[:, 1] - fan.apex[0]))
    assert fan.radius_min - 1 < radius.min() < fan.radius_min + 1
    assert radius.max() == pytest.approx(fan.radius_max, abs=1)
    assert angle.max() == pytest.approx(fan.angle_max_deg, abs=1)


def test_same_seed_same_volume_other_seed_another():
    anatomy, probe = body(np.zeros((20, 40, 30))), PROBES["matrix"]
    probe = dataclasses.replace(probe, samples=96, lines=32, planes=24)
    imaging = draw_imaging(np.random.default_rng(3))
    first, again, other = (
        acquire(anatomy, probe, imaging=imaging, seed=s, grid=(24, 24, 24)) for s in (5, 5, 6)
    )
    assert torch.equal(first.scan.data, again.scan.data)
    assert torch.equal(first.envelope, again.envelope)
    assert not torch.equal(first.beams, other.beams)


def test_a_user_grid_is_kept_and_an_image_grid_is_isotropic():
    probe = dataclasses.replace(PROBES["matrix"], samples=64, lines=24, planes=16)
    grid = Grid((8, 16, 20), (5.0, 4.0, 3.0), (-17.5, 10.0, -28.5))
    made = acquire(body(np.zeros((20, 40, 30))), probe, imaging=Imaging(), seed=0, grid=grid)
    assert made.scan.grid == grid
    spacing = image_grid(probe).require_spacing_mm("test")
    assert max(spacing) / min(spacing) < 1.02
    assert math.prod(image_grid(probe).shape) == pytest.approx(128**3, rel=0.1)


@pytest.mark.parametrize("jpeg", [None, 60])
def test_jpeg_changes_grey_a_little(jpeg):
    probe = dataclasses.replace(PROBES["convex"], samples=128)
    plain = acquire(body(np.zeros((2, 80, 60))), probe, imaging=Imaging(), seed=0).beams.float()
    stored = acquire(
        body(np.zeros((2, 80, 60))), probe, imaging=Imaging(jpeg_quality=jpeg), seed=0
    ).beams.float()
    difference = float((plain - stored).abs().mean())
    assert difference == 0 if jpeg is None else 0.5 < difference < 12


def test_drawn_probes_and_settings_stay_in_their_ranges():
    rng = np.random.default_rng(0)
    kinds = ("mechanical_3d", "matrix_3d", "convex", "sector", "linear", None)
    for kind in kinds * 20:
        probe = draw_probe(rng, kind=kind, endocavitary=kind is None)
        assert 40 <= probe.depth_mm <= 200
        assert probe.is_planar == (kind in ("convex", "sector", "linear"))
        assert min(image_grid(probe, (16, 16, 16)).require_spacing_mm("test")) > 0
        imaging = draw_imaging(rng)
        assert 35 <= imaging.dynamic_range_db <= 75
    assert draw_probe(np.random.default_rng(1)) == draw_probe(np.random.default_rng(1))


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="width_mm"):
        Probe("linear", 8, depth_mm=50, focus_mm=25)
    with pytest.raises(ValueError, match="above 0"):
        Probe("convex", 0, depth_mm=50, focus_mm=25)
    with pytest.raises(ValueError, match="JPEG"):
        Imaging(jpeg_quality=0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Imaging(smoothing=1.5)
    with pytest.raises(ValueError, match="aberration"):
        Imaging(aberration=0.5)
    with pytest.raises(ValueError, match="attenuation"):
        Tissue("odd", 0, -1, 1.5)
    with pytest.raises(ValueError, match="do not lie on"):
        Anatomy(torch.zeros(2, 2, 2), Grid((3, 3, 3), (1, 1, 1)), (TISSUES["fluid"],))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu_in_distribution():
    probe = dataclasses.replace(PROBES["mechanical"], samples=128)
    anatomy = body(np.zeros((40, 60, 60)))
    cpu, cuda = (
        acquire(anatomy, probe, imaging=QUIET, seed=2, grid=(48, 48, 48), device=d) for d in ("cpu", "cuda")
    )
    again = acquire(anatomy, probe, imaging=QUIET, seed=2, grid=(48, 48, 48), device="cuda")
    assert torch.equal(cuda.scan.data, again.scan.data)
    assert cuda.scan.data.float().mean() == pytest.approx(float(cpu.scan.data.float().mean()), rel=0.03)
    assert torch.equal(cpu.scan.sector.mask, cuda.scan.sector.mask)  # type: ignore[union-attr]
