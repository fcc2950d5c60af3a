from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from usvol.canonical import canonicalise, find_sector, on_screen, oriented
from usvol.scan import Frame, Grid, Scan


def boxed(channels=3, frames=8):
    rng = np.random.default_rng(0)
    data = np.zeros((frames, channels, 1, 120, 160), np.uint8)
    data[..., 20:100, 30:130] = rng.integers(10, 220, (frames, 1, 1, 80, 100))
    return data


@pytest.mark.parametrize("spacing", [None, (0.2, 0.2, 0.3)])
def test_crops_to_grey_and_keeps_the_world(spacing):
    data = boxed()
    scan = Scan(torch.from_numpy(data), Grid((1, 120, 160), spacing), tuple(np.arange(8) / 20))
    canonical = canonicalise(scan)
    assert canonical.data.shape == (8, 1, 1, 80, 100)
    assert canonical.data.dtype == torch.uint8
    assert canonical.times_s == scan.times_s
    assert canonical.sector is not None
    assert canonical.sector.shape == "linear"
    assert canonical.sector.mask.shape == (80, 100)
    assert np.allclose(canonical.grid.to_world(np.zeros(3)), scan.grid.to_world(np.array([0, 20, 30])))
    assert np.array_equal(canonical.data[:, 0, 0].numpy(), data[:, 0, 0, 20:100, 30:130])
    assert scan.data.shape[1] == 3


def test_grey_weights_colours_and_keeps_grey_exact():
    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 1, 16, 16)
    assert torch.equal(canonicalise(Scan(ramp.repeat(1, 3, 1, 1, 1), Grid((1, 16, 16)))).data, ramp)
    floats = torch.rand(1, 3, 1, 16, 16)  # nothing but colour: a picture, no overlay, so nothing is masked
    grey = canonicalise(Scan(floats, Grid((1, 16, 16)))).data
    assert grey.dtype == torch.float32
    expected = 0.299 * floats[:, :1] + 0.587 * floats[:, 1:2] + 0.114 * floats[:, 2:]
    assert torch.allclose(grey, expected, atol=1e-6)


def test_input_is_untouched_and_outside_is_zero():
    data = boxed(channels=1)
    data[:, 0, 0, 0:6, 0:50] = 255
    before = data.copy()
    canonical = canonicalise(Scan(torch.from_numpy(data), Grid((1, 120, 160))))
    assert np.array_equal(data, before)
    assert canonical.sector is not None
    assert float(canonical.data[:, 0, 0, ~canonical.sector.mask].float().abs().sum()) == 0
    canonical.data.zero_()
    assert np.array_equal(data, before)


def test_twice_changes_nothing_more():
    once = canonicalise(Scan(torch.from_numpy(boxed()), Grid((1, 120, 160))))
    twice = canonicalise(once)
    assert torch.equal(once.data, twice.data)
    assert twice.grid == once.grid


def test_volume_is_oriented_with_its_world_and_masked():
    data = torch.zeros(1, 1, 30, 40, 50, dtype=torch.uint8)
    data[0, 0, 5:25, 10:30, 12:40] = torch.randint(1, 255, (20, 20, 28), dtype=torch.uint8)
    direction = ((0.0, 0.0, 1.0), (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0))
    scan = Scan(data, Grid((30, 40, 50), (0.5, 0.6, 0.7), (1.0, 2.0, 3.0), direction, Frame.PATIENT_LPS))
    turned = oriented(scan)
    assert np.allclose(turned.grid.direction, np.eye(3))
    assert turned.grid.frame == Frame.PATIENT_LPS
    for index in np.random.default_rng(0).integers(0, (30, 40, 50), (20, 3)):
        moved = np.round(turned.grid.to_index(scan.grid.to_world(index))).astype(int)
        assert turned.data[0, 0, *moved] == data[0, 0, *index]
    canonical = canonicalise(scan)
    assert canonical.data.sum() == data.sum()
    assert np.prod(canonical.grid.shape) < 0.5 * np.prod(scan.grid.shape)
    assert canonical.sector is not None
    assert canonical.sector.mask.shape == canonical.grid.shape


def test_oblique_volume_keeps_its_obliquity():
    c, s = np.cos(0.3), np.sin(0.3)
    direction = ((1.0, 0.0, 0.0), (0.0, c, -s), (0.0, s, c))
    scan = Scan(torch.rand(1, 1, 4, 5, 6), Grid((4, 5, 6), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), direction))
    assert canonicalise(scan).grid == scan.grid


def test_a_thin_volume_of_a_few_slices_is_masked_too():
    data = torch.zeros(1, 1, 4, 512, 128, dtype=torch.uint8)
    data[..., 40:400, 16:112] = 90
    inside = find_sector(Scan(data, Grid((4, 512, 128), (0.1, 0.04, 0.1)))).mask
    assert inside[:, 48:392, 24:104].all()
    assert float(inside.float().mean()) < 0.75


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("where", ["a corner", "all around"])
def test_what_is_no_number_is_as_dark_as_can_be(channels, where):
    plain = torch.full((1, channels, 30, 40, 50), -60.0)
    plain[..., 5:25, 10:30, 12:40] = torch.rand(20, 20, 28) * 59 - 60
    scan = Scan(plain, Grid((30, 40, 50), (0.5, 0.5, 0.5)))
    holed = plain.clone()
    holed[(..., 0, 0, 0) if where == "a corner" else plain == -60.0] = torch.nan
    odd = canonicalise(dataclasses.replace(scan, data=holed))
    wanted = canonicalise(scan)
    assert torch.allclose(odd.data, wanted.data, atol=0.1)
    assert torch.equal(odd.sector.mask, wanted.sector.mask) and not odd.sector.mask.all()
    assert "no numbers" in str(odd.history)
    assert torch.equal(find_sector(dataclasses.replace(scan, data=holed)).mask, find_sector(scan).mask)


def test_infinite_samples_are_the_ends_of_the_scale_and_nothing_but_nan_is_black():
    data = torch.rand(1, 1, 8, 9, 10) + 0.1
    data[..., 3, 3, 3:6] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    filled = canonicalise(Scan(data, Grid((8, 9, 10)))).data
    known = data[data.isfinite()]
    assert filled[..., 3, 3, 3:6].flatten().tolist() == [known.max(), known.min(), known.min()]
    assert not canonicalise(Scan(data * torch.nan, Grid((8, 9, 10)))).data.any()


def test_full_volume_is_kept_whole():
    scan = Scan(torch.rand(2, 1, 8, 9, 10) + 0.1, Grid((8, 9, 10)))
    assert bool(find_sector(scan).mask.all())
    assert canonicalise(scan).data.shape == scan.data.shape


def test_real_files_keep_their_content(shared_data):
    from usvol.loading import load

    names = ["video/sonosite_eye.mp4", "dicom/power_doppler_rgb.dcm", "dicom/aloka_dual_pane.dcm"]
    paths = [shared_data / name for name in names if (shared_data / name).exists()]
    if not paths:
        pytest.skip("no real files there")
    for path in paths:
        scan = load(path)
        canonical = canonicalise(scan)
        assert canonical.data.shape[:2] == (scan.data.shape[0], 1)
        assert min(canonical.grid.shape[1:]) > 80


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [(torch.int32, 257), (torch.uint16, 200), (torch.float32, 1 / 255), (torch.float64, 1), (torch.int16, 1)],
)
def test_a_cine_of_any_depth_has_the_grey_levels_of_a_screen(dtype, factor):
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(1, 256, (4, 1, 1, 60, 70), generator=generator)
    levels[0, 0, 0, 0, :2] = torch.tensor([1, 255])
    plain = canonicalise(Scan(levels.to(torch.uint8), Grid((1, 60, 70))))
    assert on_screen(plain) is plain
    deep = on_screen(canonicalise(Scan((levels.double() * factor).to(dtype), Grid((1, 60, 70)))))
    assert deep.data.dtype == torch.uint8
    assert int((deep.data.int() - plain.data.int()).abs().max()) <= 1
    assert "8 bits" in deep.history[-1] or "0-255" in deep.history[-1]


@pytest.mark.parametrize("dtype", [torch.uint16, torch.bool])
def test_volumes_of_types_torch_hardly_computes_in_are_read(dtype):
    data = torch.zeros(1, 1, 20, 24, 28)
    data[..., 5:15, 6:18, 7:21] = 1
    scan = canonicalise(Scan(data.to(dtype), Grid((20, 24, 28), (1.0, 1.0, 1.0))))
    assert scan.data.dtype not in {torch.uint16, torch.bool}
    assert int(scan.data.sum()) == 10 * 12 * 14
