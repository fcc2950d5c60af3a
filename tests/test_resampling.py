from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from usvol.canonical import canonicalise
from usvol.errors import UncalibratedError
from usvol.resampling import (
    from_beam_space,
    resample,
    resize,
    restore,
    sample_at,
    sample_labels,
    sample_on,
    scan_convert,
    to_beam_space,
)
from usvol.result import Heatmap, Labels, Line, Plane
from usvol.scan import Fan, Grid, Scan, Sector


def smooth(shape, seed=0, sigma=2.0):
    rng = np.random.default_rng(seed)
    return ndimage.gaussian_filter(rng.random(shape), sigma).astype(np.float32)


def rotation(angles):
    a, b, c = angles
    rz = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, -np.sin(b)], [0, 1, 0], [np.sin(b), 0, np.cos(b)]])
    rx = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return tuple(tuple(float(v) for v in row) for row in rz @ ry @ rx)


def dice(a, b):
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_same_grid_is_the_same_scan():
    scan = Scan(torch.rand(2, 1, 4, 5, 6), Grid((4, 5, 6), (1.0, 2.0, 3.0)))
    assert resample(scan, scan.grid) is scan


def test_agrees_with_scipy_on_an_oblique_grid():
    source = Grid((20, 24, 28), (0.8, 0.5, 0.6), (3.0, -2.0, 5.0), rotation((0.3, -0.2, 0.5)))
    target = Grid((15, 16, 17), (0.9, 0.7, 0.5), (6.0, 2.0, 8.0), rotation((-0.1, 0.4, 0.2)))
    values = smooth(source.shape)
    index = source.to_index(target.to_world(np.stack(np.indices(target.shape), -1)))
    expected = ndimage.map_coordinates(values, index.transpose(3, 0, 1, 2), order=1, mode="nearest")
    inside = ((index > -0.49) & (index < np.array(source.shape) - 0.51)).all(-1)
    assert inside.mean() > 0.3
    got = resample(Scan(torch.from_numpy(values)[None, None], source), target).data[0, 0].numpy()
    assert np.abs(got - expected)[inside].max() < 1e-4
    outside = ((index < -0.52) | (index > np.array(source.shape) - 0.48)).any(-1)
    assert outside.any()
    assert (got[outside] == 0).all()


def test_chunks_make_no_difference(monkeypatch):
    grid = Grid((9, 10, 11), (1.0, 1.0, 1.0))
    target = Grid((7, 8, 9), (1.1, 0.9, 1.2), (0.2, 0.3, 0.4), rotation((0.1, 0.2, 0.3)))
    data = torch.rand(5, 2, 9, 10, 11)
    whole = sample_on(data, grid, target=target)
    monkeypatch.setattr("usvol.resampling._CHUNK_SAMPLES", 100)
    assert torch.equal(sample_on(data, grid, target=target), whole)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_48_orientations_are_exact(order, signs):
    grid = Grid((4, 5, 6), (1.0, 1.0, 1.0))
    data = torch.arange(120, dtype=torch.int16).reshape(1, 1, 4, 5, 6)
    direction = np.zeros((3, 3))
    origin = np.zeros(3)
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        direction[world, axis] = sign
        origin[world] = 0 if sign > 0 else grid.shape[world] - 1
    shape = tuple(grid.shape[world] for world in order)
    target = Grid(shape, (1.0, 1.0, 1.0), tuple(origin), tuple(map(tuple, direction)))
    expected = data.permute(0, 1, *(2 + w for w in order)).flip([2 + a for a in range(3) if signs[a] < 0])
    for mode in ("linear", "nearest"):
        assert torch.equal(resample(Scan(data, grid), target, mode=mode).data, expected)
    back = canonicalise(Scan(expected.contiguous() + 1, target))
    assert torch.equal(back.data, data + 1)
    assert np.allclose(back.grid.affine, grid.affine)


def test_mixing_calibrated_and_uncalibrated_is_refused():
    scan = Scan(torch.zeros(1, 1, 1, 4, 4), Grid((1, 4, 4)))
    with pytest.raises(UncalibratedError, match="only one of them has a scale"):
        resample(scan, Grid((1, 4, 4), (1.0, 1.0, 1.0)))


def test_resize_keeps_means_dtype_and_times():
    data = torch.randint(0, 256, (3, 1, 1, 120, 90), dtype=torch.uint8)
    scan = Scan(data, Grid((1, 120, 90)), (0.0, 0.1, 0.2))
    small = resize(scan, (1, 40, 30))
    assert small.data.dtype == torch.uint8
    assert small.times_s == scan.times_s
    assert small.grid.step_px == (1.0, 3.0, 3.0)
    assert abs(float(small.data.float().mean()) - float(data.float().mean())) < 1.0
    # Without the prefilter the spread of white noise would stay; averaging divides it by about 4.
    assert float(small.data.float().std()) < 0.4 * float(data.float().std())


@pytest.mark.parametrize("shape", [(20, 20, 20), (40, 50, 60), (33, 41, 17)])
def test_ellipsoid_keeps_its_volume(shape):
    grid = Grid((40, 44, 48), (0.5, 0.6, 0.7))
    world = grid.to_world(np.stack(np.indices(grid.shape), -1))
    centre = grid.to_world((np.array(grid.shape) - 1) / 2)
    inside = (((world - centre) / (7.0, 8.0, 9.0)) ** 2).sum(-1) < 1
    scan = Scan(torch.from_numpy(inside.astype(np.float32))[None, None], grid)
    resized = resize(scan, shape)
    before = inside.sum() * np.prod(grid.spacing_mm)
    after = float(resized.data.double().sum()) * np.prod(resized.grid.spacing_mm)
    assert after == pytest.approx(before, rel=0.01)
    assert before == pytest.approx(4 / 3 * np.pi * 7 * 8 * 9, rel=0.01)


@pytest.mark.parametrize("spacing", [None, (0.4, 0.4, 0.4)])
def test_labels_come_back_after_canonicalise_and_resize(spacing):
    size = (160, 200)
    y, x = np.indices(size)
    fan = Fan((-40.0, 100.0), 50.0, 185.0, -30.0, 30.0)
    lit = drawn(fan, size)
    rng = np.random.default_rng(0)
    frames = np.where(lit, rng.integers(40, 200, (6, *size)), 0).astype(np.uint8)
    scan = Scan(torch.from_numpy(frames)[:, None, None], Grid((1, *size), spacing))
    blob = (((y - 90) / 25) ** 2 + ((x - 110) / 32) ** 2) < 1
    canonical = canonicalise(scan)
    assert canonical.grid.shape != scan.grid.shape
    small = resize(canonical, (1, 96, 96))
    on_small = sample_on(
        torch.from_numpy(blob.astype(np.uint8))[None, None, None],
        scan.grid,
        target=small.grid,
        mode="nearest",
    )
    finding = Labels("blob", on_small[:, 0], small.grid, {1: "blob"})
    restored = restore(finding, scan.grid)
    assert isinstance(restored, Labels)
    assert restored.data.dtype == torch.uint8
    assert dice(restored.data[0, 0].numpy() > 0, blob) > 0.97


def test_a_label_map_keeps_its_boundaries_on_another_grid():
    grid = Grid((24, 24, 24), (1.0, 1.0, 1.0))
    fine = grid.resized((60, 50, 44))

    def ball(on):
        places = on.to_world(np.stack(np.indices(on.shape), -1)) - 11.5
        return torch.from_numpy((np.linalg.norm(places, axis=-1) < 7.3).astype(np.uint8))

    found = sample_labels(2 * ball(grid), grid, target=fine, count=3)
    nearest = sample_on(ball(grid)[None, None], grid, target=fine, mode="nearest")[0, 0]
    assert set(found.unique().tolist()) == {0, 2}
    wrong, wrong_of_nearest = (1 - dice(labels > 0, ball(fine) > 0) for labels in (found, nearest))
    assert wrong < 0.7 * wrong_of_nearest < 0.05
    assert not sample_labels(ball(grid), grid, target=grid.crop((-30, 0, 0), (20, 24, 24)), count=2).any()


def test_labels_with_evidence_get_smooth_boundaries_and_lose_it():
    coarse = Grid((4, 4, 4), (4.0, 4.0, 4.0), (1.5, 1.5, 1.5))
    fine = Grid((20, 20, 20), (1.0, 1.0, 1.0))
    chance = torch.tensor([0.0, 0.25, 1.0, 1.0]).expand(1, 4, 4, 4)
    evidence = torch.stack([1 - chance, chance], 1)
    labels = Labels("blob", evidence.argmax(1).to(torch.uint8), coarse, {1: "blob"}, evidence=evidence)
    found = restore(labels, fine)
    assert isinstance(found, Labels)
    assert found.evidence is None
    assert found.data.dtype == torch.uint8
    # 0.25 at x = 5.5 and 1 at 9.5: one half lies at 6.83; the map ends at 15.5, nothing is beyond.
    assert found.data[0, 8, 8].tolist() == [0] * 7 + [1] * 9 + [0] * 4
    assert not found.data[0, 16:].any()
    same = restore(labels, coarse)
    assert isinstance(same, Labels)
    assert same.evidence is None
    assert torch.equal(same.data, labels.data)


def test_evidence_is_restored_wherever_the_grids_lie():
    coarse = Grid((6, 6, 6), (2.0, 2.0, 2.0), (10.0, -4.0, 3.0))
    evidence = torch.softmax(3 * torch.randn(1, 3, 6, 6, 6, generator=torch.Generator().manual_seed(0)), 1)
    labels = Labels("x", evidence.argmax(1).to(torch.uint8), coarse, {1: "a", 2: "b"}, evidence=evidence)
    turned = Grid(
        (6, 6, 6), (2.0, 2.0, 2.0), (20.0, 6.0, 3.0), ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))
    )
    assert torch.equal(restore(labels, turned).data, labels.data.flip(1, 2))
    away = dataclasses.replace(turned, origin_mm=(200.0, 0.0, 0.0))
    assert not restore(labels, away).data.any()


def test_restore_interpolates_heatmaps_and_leaves_world_findings_alone():
    grid, target = Grid((1, 10, 10)), Grid((1, 10, 10)).resized((1, 20, 20))
    heat = Heatmap("h", torch.ones(2, 1, 10, 10), grid)
    back = restore(heat, target)
    assert isinstance(back, Heatmap)
    assert back.data.shape == (2, 1, 20, 20)
    assert torch.allclose(back.data, torch.ones(()))
    for finding in (
        Plane("p", (0, 0, 0), (1, 0, 0), (0, 1, 0)),
        Line("l", (0.0, 0.0, 0.0), (0.0, 3.0, 4.0)),
    ):
        assert restore(finding, target) is finding


def drawn(fan, size):
    y, x = np.indices(size, dtype=float)
    radius = np.hypot(y - fan.apex[0], x - fan.apex[1])
    angle = np.degrees(np.arctan2(x - fan.apex[1], y - fan.apex[0]))
    inside = (radius >= fan.radius_min) & (radius <= fan.radius_max)
    return inside & (angle >= fan.angle_min_deg) & (angle <= fan.angle_max_deg)


@pytest.mark.parametrize("spacing", [None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.8)])
def test_beam_space_there_and_back(spacing):
    grid = Grid((1, 200, 240), spacing)
    step_y, step_x = grid.step[1:]
    fan = Fan((-30 * step_y, 120 * step_x), 40 * step_y, 220 * step_y, -25.0, 28.0)
    world = grid.to_world(np.stack(np.indices(grid.shape), -1))[0]
    radius = np.hypot(world[..., 1] - fan.apex[0], world[..., 2] - fan.apex[1])
    angle = np.degrees(np.arctan2(world[..., 2] - fan.apex[1], world[..., 1] - fan.apex[0]))
    # A linear ramp in radius and angle survives interpolation, so both directions must be exact.
    picture = (radius / step_y + 2 * angle).astype(np.float32)
    sector = Sector(torch.ones(200, 240, dtype=torch.bool), fan, "fan")
    scan = Scan(torch.from_numpy(picture)[None, None, None], grid, sector=sector)
    beams = to_beam_space(scan, depth_samples=90, lines=64)
    assert beams.shape == (1, 1, 90, 64)
    depth, line = (np.arange(90) + 0.5) / 90 * 180 + 40, (np.arange(64) + 0.5) / 64 * 53 - 25
    beam_y = (fan.apex[0] + depth[:, None] * step_y * np.cos(np.radians(line))) / step_y
    beam_x = (fan.apex[1] + depth[:, None] * step_y * np.sin(np.radians(line))) / step_x
    seen = (beam_y > 1) & (beam_y < 198) & (beam_x > 1) & (beam_x < 238)
    error = np.abs(beams[0, 0].numpy() - (depth[:, None] + 2 * line))
    assert seen.mean() > 0.7
    assert error[seen].max() < 0.5
    back = scan_convert(beams, grid, fan=fan)[0, 0, 0].numpy()
    margin = (radius > fan.radius_min + 6 * step_y) & (radius < fan.radius_max - 6 * step_y)
    margin &= (angle > -23) & (angle < 26)
    margin &= (np.indices((200, 240)) > 6).all(0) & (np.indices((200, 240))[0] < 193)
    margin &= np.indices((200, 240))[1] < 233
    assert margin.sum() > 5000
    assert np.abs(back - picture)[margin].max() < 1.0
    assert (back[radius > fan.radius_max + 3 * step_y] == 0).all()


def test_beam_space_of_a_linear_scan_is_its_columns():
    scan = Scan(torch.rand(2, 1, 1, 64, 32), Grid((1, 64, 32)))
    beams = to_beam_space(scan, depth_samples=64, lines=32)
    assert torch.allclose(beams, scan.data[:, :, 0])
    assert torch.allclose(scan_convert(beams, scan.grid, fan=None), scan.data)


def test_three_dimensional_beam_space_follows_the_documented_angles():
    radius, azimuth, elevation = (20.0, 0.5), (-0.5, 0.02), (-0.4, 0.02)
    r = 20 + 0.5 * torch.arange(120)
    az, el = -0.5 + 0.02 * torch.arange(51), -0.4 + 0.02 * torch.arange(41)
    samples = r[:, None, None] + 10 * az[None, :, None] - 7 * el[None, None]
    grid = Grid((17, 33, 21), (1.5, 1.2, 1.7), (-12.0, 28.0, -17.0))
    got = from_beam_space(samples, radius_mm=radius, azimuth_rad=azimuth, elevation_rad=elevation, grid=grid)
    z, y, x = grid.to_world(np.stack(np.indices(grid.shape), -1)).transpose(3, 0, 1, 2)
    p_r, p_az, p_el = np.sqrt(x**2 + y**2 + z**2), np.arctan2(x, y), np.arctan2(z, y)
    inside = (p_r > 20) & (p_r < 79) & (np.abs(p_az) < 0.49) & (np.abs(p_el) < 0.39)
    assert inside.mean() > 0.4
    assert np.abs(got.numpy() - (p_r + 10 * p_az - 7 * p_el))[inside].max() < 1e-3
    outside = (np.abs(p_az) > 0.52) | (np.abs(p_el) > 0.42) | (p_r > 80)
    assert outside.any()
    assert (got.numpy()[outside] == 0).all()
    with pytest.raises(UncalibratedError):
        from_beam_space(
            samples, radius_mm=radius, azimuth_rad=azimuth, elevation_rad=elevation, grid=Grid((2, 2, 2))
        )


def test_sector_follows_the_scan():
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[10:30, 10:30] = True
    scan = Scan(torch.ones(1, 1, 1, 40, 40), Grid((1, 40, 40)), sector=Sector(mask, None, "linear"))
    half = resize(scan, (1, 20, 20))
    assert half.sector is not None
    assert half.sector.mask.shape == (20, 20)
    assert int(half.sector.mask.sum()) == 100
    assert dataclasses.replace(half, sector=None).sector is None


def test_a_resized_sector_is_the_one_sampled_on_the_new_grid():
    mask = torch.rand(11, 13, 17, generator=torch.Generator().manual_seed(0)) > 0.5
    scan = Scan(torch.ones(1, 1, 11, 13, 17), Grid((11, 13, 17), (1.0, 0.5, 0.7)))
    scan = dataclasses.replace(scan, sector=Sector(mask, None, "unknown"))
    for shape in ((23, 29, 10), (7, 13, 40)):
        resized = resize(scan, shape)
        sampled = sample_on(mask[None, None].float(), scan.grid, target=resized.grid, mode="nearest")
        assert resized.sector is not None
        assert torch.equal(resized.sector.mask, sampled[0, 0] > 0.5)


@pytest.mark.parametrize("shape", [(7, 5, 3), (1, 1, 1), (4, 4, 4)])
def test_samples_are_the_same_with_any_number_of_threads(shape):
    generator = torch.Generator().manual_seed(0)
    data, index = torch.rand(2, 9, 8, 7, generator=generator), torch.rand(*shape, 3, generator=generator) * 9
    threads = torch.get_num_threads()
    answers = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        answers.append(sample_at(data, index))
    torch.set_num_threads(threads)
    assert answers[0].shape == (2, *shape)
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])
