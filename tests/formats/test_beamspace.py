"""Beam-space volumes: the geometry is ITK's, and so is the scan conversion."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from usvol.errors import CorruptFileError
from usvol.formats import beamspace, metaimage
from usvol.formats.beamspace import Beams
from usvol.scan import Frame, Grid, Kind

GRID = Grid((24, 40, 30), (1.0, 1.0, 1.0), (-11.5, 5.0, -14.5))


@pytest.fixture
def beams() -> Beams:
    samples = torch.rand(60, 20, 24, generator=torch.Generator().manual_seed(0))
    return Beams(samples, first_mm=10.0, step_mm=0.5, azimuth_rad=0.03, elevation_rad=0.04)


def beam_index(beams: Beams, grid: Grid) -> np.ndarray:
    """Return (radius, elevation, azimuth) indices of the grid's samples, from the definition."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    z, y, x = np.moveaxis(grid.to_world(index), -1, 0)
    _, elevations, azimuths = beams.samples.shape
    return np.stack([
        (np.sqrt(x * x + y * y + z * z) - beams.first_mm) / beams.step_mm,
        np.arctan2(z, y) / beams.elevation_rad + (elevations - 1) / 2,
        np.arctan2(x, y) / beams.azimuth_rad + (azimuths - 1) / 2,
    ])  # fmt: skip


def test_a_ramp_is_its_own_coordinate(beams):
    grid = GRID
    index = beam_index(beams, grid)
    size = np.array(beams.samples.shape).reshape(3, 1, 1, 1)
    inside = ((index > 0.01) & (index < size - 1.01)).all(0)
    assert 5000 < inside.sum() < inside.size
    for axis, count in enumerate(beams.samples.shape):
        ramp = torch.arange(count, dtype=torch.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        ramped = Beams(ramp.expand(beams.samples.shape).contiguous(), 10.0, 0.5, 0.03, 0.04)
        converted = beamspace.convert(ramped, grid).data[0, 0].numpy()
        assert np.abs(converted - index[axis])[inside].max() < 1e-3
        beyond = ((index < -0.01) | (index > size - 0.99)).any(0)
        assert not converted[beyond].any()


def test_itk_converts_the_same(beams):
    itk = pytest.importorskip("itk", reason="the extra 'itk' is not installed")
    image = beamspace.to_itk(beams)
    resample = itk.ResampleImageFilter[type(image), itk.Image[itk.F, 3]].New(Input=image)
    # ITK's axes are (lateral, out of plane, depth).
    resample.SetSize([30, 24, 40])
    resample.SetOutputOrigin([-14.5, -11.5, 5.0])
    resample.SetOutputSpacing([1.0, 1.0, 1.0])
    resample.Update()
    theirs = itk.array_from_image(resample.GetOutput()).transpose(1, 0, 2)
    ours = beamspace.convert(beams, GRID).data[0, 0].numpy()
    index = beam_index(beams, GRID)
    size = np.array(beams.samples.shape).reshape(3, 1, 1, 1)
    inside = ((index >= 0) & (index <= size - 1)).all(0)  # ITK goes half a sample further
    assert inside.sum() > 5000
    assert np.abs(ours - theirs)[inside].max() < 1e-4


def test_beams_go_to_itk_and_back(beams):
    pytest.importorskip("itk", reason="the extra 'itk' is not installed")
    back = beamspace.from_itk(beamspace.to_itk(beams))
    assert torch.equal(back.samples, beams.samples)
    for name in ("first_mm", "step_mm", "azimuth_rad", "elevation_rad"):
        assert getattr(back, name) == pytest.approx(getattr(beams, name), rel=1e-9)


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_a_file_of_beams_is_read_as_a_volume(tmp_path, beams, suffix):
    path = tmp_path / f"beams.{suffix}"
    beamspace.write_beams(path, beams)
    assert beamspace.sniff(path, path.read_bytes()[:4096])
    header, scan = metaimage.probe(path), metaimage.read(path)
    assert header.grid == scan.grid
    assert scan.kind is Kind.VOLUME
    assert scan.grid.frame is Frame.PROBE
    assert scan.grid.spacing_mm == (0.5, 0.5, 0.5)
    assert scan.source.metadata["azimuth_rad"] == 0.03
    last_mm = 10 + 59 * 0.5
    y_mm = scan.grid.origin_mm[1] + 0.5 * (scan.grid.shape[1] - 1)
    assert last_mm <= y_mm < last_mm + 0.5
    assert scan.grid.shape[2] * 0.5 == pytest.approx(2 * last_mm * math.sin(0.03 * 23 / 2), abs=1)
    assert scan.data.amax() > 0.5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("RadiusSampleSize", "0"),
        ("AzimuthAngularSeparation", "x"),
        ("ElevationAngularSeparation", "0.5"),
        ("FirstSampleDistance", "-1"),
    ],
)
def test_an_impossible_beam_geometry_is_corrupt(tmp_path, beams, key, value):
    path = tmp_path / "beams.mha"
    beamspace.write_beams(path, beams)
    content = path.read_bytes()
    start = content.index(key.encode())
    end = content.index(b"\n", start)
    path.write_bytes(content[:start] + f"{key} = {value}".encode() + content[end:])
    with pytest.raises(CorruptFileError, match="beam"):
        metaimage.probe(path)
