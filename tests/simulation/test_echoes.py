from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from usvol.scan import Grid
from usvol.simulation.beam_geometry import pitches_mm, ranges_mm
from usvol.simulation.echoes import draw_scatterers, form_echoes
from usvol.simulation.point_spread import (
    axial_sigma_mm,
    blur,
    elevation_sigma_mm,
    frequency_mhz,
    lateral_sigma_mm,
)
from usvol.simulation.probe import SPEED_MM_US, Imaging, Probe
from usvol.simulation.propagation import insonify, transmission
from usvol.simulation.tissue import TISSUES, Anatomy, Tissue

PLAIN = Tissue("plain", 0, 0.4, 1.6)
QUIET = Imaging(clutter_db=-120, haze_db=-120, reverberation_db=-120, side_lobe_db=-120, penetration_mm=1e4)
PROBE = Probe(
    "matrix_3d",
    5,
    depth_mm=60,
    focus_mm=35,
    radius_mm=20,
    sweep_radius_mm=20,
    samples=320,
    lines=48,
    planes=16,
)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def layers(*parts, probe=PROBE, seed=0, imaging=QUIET):
    """Envelope ``r az el`` of layers (tissue, down to mm); the last one goes on."""
    depth = np.arange(0, 140, 0.5)
    borders = [down for _, down in parts[:-1]]
    column = torch.from_numpy(np.searchsorted(borders, depth, side="right").astype(np.uint8))
    grid = Grid((2, len(depth), 2), (60.0, 0.5, 60.0), (-30.0, 0.0, -30.0))
    anatomy = Anatomy(column[None, :, None].expand(2, -1, 2), grid, tuple(t for t, _ in parts))
    medium = insonify(anatomy, probe, generator=random(seed))
    return medium, form_echoes(medium, probe, imaging=imaging, generator=random(seed + 1))


def decibel(values):
    return 20 * math.log10(float(values.square().mean().sqrt()))


def correlation_sigma(envelope, axis):
    """Width of the autocorrelation of intensity, in samples: that of the point spread function."""
    intensity = envelope.square()
    intensity = intensity - intensity.mean(axis, keepdim=True)
    n = intensity.shape[axis]
    pairs = [(intensity.narrow(axis, 0, n - k) * intensity.narrow(axis, k, n - k)).mean() for k in range(5)]
    decay = -torch.log((torch.stack(pairs[1:]) / pairs[0]).clamp(min=1e-4, max=1 - 1e-4))
    lags = torch.arange(1.0, 5.0)
    # exp(-k² / 2s²) near its top, where noise matters least.
    usable = decay < 2
    return float((lags[usable] / (2 * decay[usable]).sqrt()).mean())


def test_fully_developed_speckle_is_rayleigh():
    _, envelope = layers((PLAIN, 200))
    inner = envelope[50:270, 4:-4, 3:-3]
    # Per range, since compensation and attenuation may differ by a fraction of a decibel.
    ratio = (inner.mean((1, 2)) / inner.std((1, 2))).mean()
    assert float(ratio) == pytest.approx(1.91, abs=0.05)
    assert decibel(inner) == pytest.approx(0, abs=0.4)
    third = (inner / inner.square().mean().sqrt()).pow(4).mean()
    assert float(third) == pytest.approx(2, abs=0.15)  # the fourth moment of Rayleigh


def test_few_scatterers_make_heavier_tails():
    _, sparse = layers((dataclasses.replace(PLAIN, scatterers_per_cell=0.5), 200))
    inner = sparse[50:270, 4:-4, 3:-3]
    assert float(inner.mean() / inner.std()) < 1.6
    assert decibel(inner) == pytest.approx(0, abs=0.8)


@pytest.mark.parametrize(("frequency", "bandwidth"), [(3, 0.5), (3, 0.8), (5, 0.5)])
def test_axial_speckle_follows_frequency_and_bandwidth(frequency, bandwidth):
    probe = dataclasses.replace(PROBE, frequency_mhz=frequency, bandwidth=bandwidth, samples=480)
    _, envelope = layers((PLAIN, 200), probe=probe)
    found = correlation_sigma(envelope[80:400], 0) * probe.step_mm
    assert found == pytest.approx(axial_sigma_mm(probe), rel=0.1)
    # Szabo: the width at half maximum of the pulse is 0.44 c / B.
    width_mm = 2 * math.log(2) / math.pi * SPEED_MM_US / (frequency * bandwidth)
    assert 2.355 * found == pytest.approx(width_mm, rel=0.12)


def test_lateral_speckle_is_finest_at_the_focus_and_follows_the_beam():
    probe = dataclasses.replace(
        PROBE, lines=160, azimuth_deg=18, planes=8, aperture_mm=20, elevation_aperture_mm=14, samples=240
    )
    _, envelope = layers((PLAIN, 200), probe=probe)
    wanted = lateral_sigma_mm(probe, QUIET) / pitches_mm(probe)[0]
    found = []
    for depth_mm in (20, 35, 55):
        row = round(depth_mm / probe.step_mm)
        band = envelope[row - 15 : row + 15, 8:-8]
        found.append(correlation_sigma(band, 1))
        assert found[-1] == pytest.approx(float(wanted[row - 15 : row + 15].mean()), rel=0.15)
    pitch = pitches_mm(probe)[0]
    in_mm = [f * float(pitch[round(d / probe.step_mm)]) for f, d in zip(found, (20, 35, 55), strict=True)]
    assert in_mm[2] > 1.3 * in_mm[1]


def test_elevation_beam_is_narrowest_at_its_lens():
    probe = dataclasses.replace(PROBE, elevation_focus_mm=30.0, elevation_aperture_mm=14)
    width = elevation_sigma_mm(probe, QUIET)
    assert float(ranges_mm(probe)[20 + int(width[20:].argmin())]) == pytest.approx(30, abs=4)
    assert float(width[-1]) > 2 * float(width.min())


def test_attenuation_lowers_the_received_frequency():
    received = frequency_mhz(PROBE, 0.5)
    assert float(received[0]) == pytest.approx(PROBE.frequency_mhz, rel=0.01)
    assert PROBE.frequency_mhz * 0.5 <= float(received[-1]) < PROBE.frequency_mhz * 0.97


def test_blur_keeps_energy_at_every_depth():
    probe = dataclasses.replace(PROBE, samples=128)
    field = draw_scatterers(torch.full((128, 48, 16), 20.0), generator=random())
    power = blur(field, probe, imaging=Imaging()).abs().square().mean((1, 2))
    assert float(power.mean()) == pytest.approx(1, abs=0.05)
    assert float(power.std()) < 0.25


def test_bone_shadows_and_fluid_enhances():
    deep = slice(round(45 / PROBE.step_mm), None)
    plain = decibel(layers((PLAIN, 200))[1][deep])
    behind_bone = decibel(layers((PLAIN, 20), (TISSUES["bone"], 24), (PLAIN, 200))[1][deep])
    behind_gas = decibel(layers((PLAIN, 20), (TISSUES["gas"], 24), (PLAIN, 200))[1][deep])
    behind_fluid = decibel(layers((PLAIN, 20), (TISSUES["fluid"], 40), (PLAIN, 200))[1][deep])
    assert behind_bone < plain - 20
    assert behind_gas < plain - 40
    assert 4 < behind_fluid - plain < 12


def test_attenuation_is_what_theory_says():
    lossy = dataclasses.replace(PLAIN, attenuation_db_cm_mhz=0.7)
    medium, _ = layers((lossy, 200))
    reach = transmission(medium, PROBE, imaging=QUIET)
    expected_db = -2 * (0.7 - QUIET.tgc_db_cm_mhz) * PROBE.frequency_mhz * PROBE.depth_mm / 10
    found_db = 20 * math.log10(float(reach[-1].mean() / reach[0].mean()))
    assert found_db == pytest.approx(expected_db, rel=0.02)


def test_fluid_is_dark_and_haze_lies_under_the_near_wall():
    parts = (PLAIN, 15), (TISSUES["fluid"], 55), (PLAIN, 200)
    quiet = layers(*parts)[1]
    fluid = slice(round(30 / PROBE.step_mm), round(45 / PROBE.step_mm))
    assert decibel(quiet[fluid, 20:28, 6:10]) < -40
    hazy = layers(*parts, imaging=dataclasses.replace(QUIET, haze_db=-20, haze_mm=6))[1]
    near = decibel(hazy[round(18 / PROBE.step_mm) : round(22 / PROBE.step_mm), 20:28, 6:10])
    far = decibel(hazy[round(42 / PROBE.step_mm) : round(46 / PROBE.step_mm), 20:28, 6:10])
    assert -40 < near < -15
    assert far < near - 12


def test_interfaces_are_bright_when_hit_squarely_only():
    # A pulse as long as the voxels of the anatomy, which spread the interface.
    probe = dataclasses.replace(PROBE, frequency_mhz=2.5, bandwidth=0.4, samples=150)
    faint = dataclasses.replace(PLAIN, echo_db=-40)  # so that speckle does not outshine the interface
    denser = dataclasses.replace(faint, impedance_mrayl=1.9)
    medium, envelope = layers((faint, 30), (denser, 200), probe=probe)
    row = round(30 / probe.step_mm)
    band = slice(row - 4, row + 5)
    # (1.9 - 1.6) / (1.9 + 1.6), shared by the samples of the interface
    assert float(medium.reflection[band, 23, 8].sum()) == pytest.approx(0.0857, rel=0.1)
    assert float(medium.cosine[band, 23, 8].max()) > 0.98
    middle = decibel(envelope[band, 20:28, 6:10].amax(0))
    # The voxels of the anatomy spread the interface over more than a pulse, which costs some decibels.
    assert -5 < middle - 20 * math.log10(0.0857) - QUIET.specular_db < 1
    edge = decibel(envelope[:, :4, 6:10].amax(0))
    assert edge < middle - 3


def test_reverberation_repeats_an_interface_at_twice_its_depth():
    parts = (TISSUES["fluid"], 22), (dataclasses.replace(TISSUES["fluid"], impedance_mrayl=2.5), 200)
    repeated = layers(*parts, imaging=dataclasses.replace(QUIET, reverberation_db=-20))[1]
    absent = layers(*parts)[1]
    band = slice(round(42 / PROBE.step_mm), round(46 / PROBE.step_mm))
    assert decibel(repeated[band, 20:28]) > decibel(absent[band, 20:28]) + 15


def test_noise_rises_with_depth_and_side_lobes_spread_sideways():
    noisy = layers((TISSUES["fluid"], 200), imaging=dataclasses.replace(QUIET, penetration_mm=80))[1]
    assert decibel(noisy[-40:]) > decibel(noisy[:40]) + 10
    field = torch.zeros(PROBE.samples, 48, 16, dtype=torch.complex64)
    field[200, 24, 8] = 1.0
    away = [
        float(
            blur(field, PROBE, imaging=dataclasses.replace(QUIET, side_lobe_db=s)).abs()[200, 4:16, 8].mean()
        )
        for s in (-120, -30)
    ]
    assert away[1] > 100 * away[0]


def test_looks_reduce_speckle_and_dropout_darkens_lines():
    two = layers((PLAIN, 200), imaging=dataclasses.replace(QUIET, compounding=3))[1][50:270, 4:-4, 3:-3]
    assert float(two.mean() / two.std()) == pytest.approx(1.91 * math.sqrt(3), abs=0.2)
    lost = layers((PLAIN, 200), imaging=dataclasses.replace(QUIET, dropout=0.15, dropout_db=30))[1]
    across = torch.stack(
        [lost.mean((0, 2))[0], lost.mean((0, 2))[-1], lost.mean((0, 1))[0], lost.mean((0, 1))[-1]]
    )
    assert float(across.min()) < 0.2


def test_tgc_error_is_a_gain_per_depth():
    raised = layers((PLAIN, 200), imaging=dataclasses.replace(QUIET, tgc_error_db=(0.0, 6.0)))[1]
    assert decibel(raised[-60:]) - decibel(raised[:60]) == pytest.approx(6, abs=0.7)


def test_given_scatterers_are_used_and_carry_the_speckle():
    probe = dataclasses.replace(PROBE, planes=1, kind="sector", samples=200)
    medium, _ = layers((PLAIN, 200), probe=probe)
    given = draw_scatterers(medium.density, generator=random(9))
    frames = [
        form_echoes(medium, probe, imaging=QUIET, generator=random(s), scatterers=given) for s in (1, 2)
    ]
    drawn = form_echoes(medium, probe, imaging=QUIET, generator=random(1))
    same = np.corrcoef(frames[0].flatten(), frames[1].flatten())[0, 1]
    other = np.corrcoef(frames[0].flatten(), drawn.flatten())[0, 1]
    assert same > 0.99
    assert abs(other) < 0.2
