"""Frames of a planar probe go through the simulator together, and stay apart."""

from __future__ import annotations

import pytest
import torch

from usvol.scan import Kind
from usvol.simulation.acquisition import develop_cine
from usvol.simulation.beam_geometry import image_grid
from usvol.simulation.echoes import draw_still, form_echoes
from usvol.simulation.point_spread import blur
from usvol.simulation.probe import Imaging, Probe
from usvol.simulation.propagation import Medium, interfaces

PROBE = Probe("sector", 3, depth_mm=80, focus_mm=50, lines=24, planes=1, samples=96)
SHOWN = Imaging(dropout=0.2, haze_db=-20, smoothing=0.5)
FRAMES = 5


def medium(frames=FRAMES):
    """One homogeneous tissue with an interface that is deeper in every frame."""
    shape = (PROBE.samples, PROBE.lines, frames)
    depth = torch.arange(PROBE.samples)[:, None, None].expand(shape)
    deeper = depth > 40 + 5 * torch.arange(frames)
    reflection, cosine = interfaces(0.1 * deeper.float(), PROBE, width_mm=3.0)
    level = torch.where(deeper, 0.1, 1.0)
    return Medium(level, torch.full(shape, 20.0), torch.full(shape, 0.5), reflection, cosine)


def scatterers(frames=FRAMES):
    generator = torch.Generator().manual_seed(1)
    shape = (PROBE.samples, PROBE.lines, 1)
    return torch.randn(shape, generator=generator, dtype=torch.complex64).expand(-1, -1, frames)


def envelope(medium, frames=FRAMES):
    generator = torch.Generator().manual_seed(0)
    still = draw_still(PROBE, SHOWN, generator=generator)
    return form_echoes(
        medium, PROBE, imaging=SHOWN, generator=generator, scatterers=scatterers(frames), still=still
    )


def test_the_point_spread_of_one_frame_does_not_reach_another():
    field = torch.zeros(PROBE.samples, PROBE.lines, 3, dtype=torch.complex64)
    field[50, 12, 1] = 1
    spread = blur(field, PROBE, imaging=SHOWN).abs()
    assert float(spread[..., [0, 2]].max()) == 0
    assert float(spread[..., 1].max()) > 0.1


def test_interfaces_are_those_of_each_frame():
    together = medium()
    for frame in range(FRAMES):
        where = int(together.reflection[:, 5, frame].argmax())
        assert where == pytest.approx(40.5 + 5 * frame, abs=1.5)


def test_what_stands_still_looks_the_same_in_every_frame():
    still = medium(1)
    repeated = Medium(*(getattr(still, name).expand(-1, -1, FRAMES) for name in Medium.__slots__))
    frames = envelope(repeated)
    grain = torch.stack([f.flatten() for f in frames[10:40].unbind(2)])
    alike = torch.corrcoef(grain)
    assert float(alike.min()) > 0.95
    assert float((frames[..., 0] - frames[..., 1]).abs().max()) > 0


def test_frames_become_a_timed_cine_on_its_grid():
    grid = image_grid(PROBE, (1, 40, 52))
    times = tuple(n / 50 for n in range(FRAMES))
    scan = develop_cine(envelope(medium()), PROBE, imaging=SHOWN, grid=grid, times_s=times)
    assert scan.kind is Kind.CINE
    assert scan.data.shape == (FRAMES, 1, 1, 40, 52)
    assert scan.times_s == times
    assert scan.sector is not None and scan.sector.fan is not None
    assert not bool(scan.data[:, 0, 0][:, ~scan.sector.mask].any())
    # the bright layer above the interface grows deeper
    middle = (scan.data[:, 0, 0, :, 26] > 60).sum(1)
    assert bool((middle.diff() >= 0).all())
    assert int(middle[-1] - middle[0]) >= 4


def test_a_volume_probe_makes_no_cine_of_planes():
    probe = Probe("matrix_3d", 3, depth_mm=80, focus_mm=50, lines=8, planes=4, samples=32)
    with pytest.raises(ValueError, match="planar"):
        develop_cine(torch.ones(32, 8, 4), probe, imaging=SHOWN, grid=image_grid(PROBE), times_s=(0.0,) * 4)
