"""Depth-dependent point spread function, separable in range, azimuth and elevation, as banded matrices.

Convolving scatterers with a separable pulse-echo response that varies with depth is the model of COLE (Gao
et al., IEEE TUFFC 56(2), 2009). Each factor is a matrix per depth, so tails (side lobes) cost nothing extra.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from usvol.simulation.beam_geometry import pitches_mm, ranges_mm
from usvol.simulation.probe import SPEED_MM_US, Imaging, Probe

_FWHM = 2 * math.sqrt(2 * math.log(2))  # of a Gaussian, in standard deviations
_DIFFRACTION = 1.21  # full width at half maximum of the sinc that a slit makes, in wavelengths times f-number
_SIGMA_MIN = 0.45  # of a sample: the beams a scanner forms sample its aperture


def axial_sigma_mm(probe: Probe) -> float:
    """Standard deviation of the pulse in mm of range: that of a Gaussian band (-6 dB width, pulse-echo).

    A Gaussian spectrum of amplitude width B has an envelope of width 4 ln 2 / (π B) in time, half of which
    times c is range (Szabo, Diagnostic Ultrasound Imaging, 2nd ed. 2014, §2). Sampling bounds it from below.
    """
    width_us = 4 * math.log(2) / (math.pi * probe.bandwidth * probe.frequency_mhz)
    return max(width_us * SPEED_MM_US / 2 / _FWHM, _SIGMA_MIN * probe.step_mm)


def frequency_mhz(probe: Probe, attenuation_db_cm_mhz: float) -> Tensor:
    """Mean frequency received from each range: attenuation takes more of the high ones.

    A Gaussian spectrum of standard deviation s loses 2 α r dB/MHz and moves down by s² ln(10)/20 of that
    (Flax et al., Ultrason. Imaging 5, 1983); its width stays.
    """
    spread = probe.bandwidth * probe.frequency_mhz / _FWHM
    slope = 2 * attenuation_db_cm_mhz * ranges_mm(probe) / 10 * math.log(10) / 20
    return (probe.frequency_mhz - spread**2 * slope).clamp(min=0.5 * probe.frequency_mhz)


def lateral_sigma_mm(probe: Probe, imaging: Imaging) -> Tensor:
    """Standard deviation of the two-way beam along azimuth at each range, mm.

    Transmit: diffraction and the geometric cone away from the focus, added in squares; receive: focused at
    every range with a growing aperture; the product of two Gaussians (Cobbold, Foundations of Biomedical
    Ultrasound, 2007, §7).
    """
    depth = ranges_mm(probe)
    wavelength = SPEED_MM_US / frequency_mhz(probe, imaging.tgc_db_cm_mhz)
    receive = _DIFFRACTION * wavelength * depth / _grown(depth, probe.aperture_mm, probe.f_number)
    transmit = _one_way(depth, wavelength, aperture_mm=probe.aperture_mm, focus_mm=probe.focus_mm)
    return imaging.aberration / _FWHM / torch.sqrt(1 / transmit**2 + 1 / receive**2)


def elevation_sigma_mm(probe: Probe, imaging: Imaging) -> Tensor:
    """Standard deviation of the two-way beam along elevation, mm: a fixed lens, or as azimuth in a matrix."""
    depth = ranges_mm(probe)
    wavelength = SPEED_MM_US / frequency_mhz(probe, imaging.tgc_db_cm_mhz)
    height, focus = probe.elevation_aperture_mm, probe.elevation_focus_mm
    if focus is None:
        transmit = _one_way(depth, wavelength, aperture_mm=height, focus_mm=probe.focus_mm)
        receive = _DIFFRACTION * wavelength * depth / _grown(depth, height, probe.f_number)
        return imaging.aberration / _FWHM / torch.sqrt(1 / transmit**2 + 1 / receive**2)
    # The same lens both ways: the square of one Gaussian.
    lens = _one_way(depth, wavelength, aperture_mm=height, focus_mm=focus)
    return imaging.aberration / _FWHM * lens / math.sqrt(2)


def _grown(depth: Tensor, aperture_mm: float, f_number: float) -> Tensor:
    return (depth / f_number).clamp(min=0.05 * aperture_mm, max=aperture_mm)


def _one_way(depth: Tensor, wavelength: Tensor, *, aperture_mm: float, focus_mm: float) -> Tensor:
    """Full width at half maximum of a beam focused at ``focus_mm``."""
    cone = (0.6 * aperture_mm * (1 - depth / focus_mm)).abs()
    return torch.sqrt((_DIFFRACTION * wavelength * depth / aperture_mm) ** 2 + cone**2).clamp(max=aperture_mm)


def blur(field: Tensor, probe: Probe, *, imaging: Imaging) -> Tensor:
    """Convolve complex scatterers ``r az el`` with the point spread function; the mean square is kept.

    On the beams of a planar probe the last axis may hold frames, which stay apart.
    """
    samples, lines, planes = field.shape
    parts = torch.view_as_real(field)
    axial, lateral, elevation = (
        None if kernel is None else kernel.to(field.device) for kernel in _spread(probe, imaging)
    )
    if lateral is not None:
        parts = torch.bmm(lateral, parts.reshape(samples, lines, -1)).reshape(samples, lines, planes, 2)
    if elevation is not None:
        turned = parts.transpose(1, 2).reshape(samples, planes, -1)
        parts = torch.bmm(elevation, turned).reshape(samples, planes, lines, 2).transpose(1, 2)
    assert axial is not None
    mixed = (axial @ parts.reshape(samples, -1)).reshape(samples, lines, planes, 2)
    return torch.view_as_complex(mixed.contiguous())


@lru_cache(maxsize=2)
def _spread(probe: Probe, imaging: Imaging) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the matrices of ``blur`` along range, azimuth and elevation; the frames of a cine share them."""
    along, out = pitches_mm(probe)
    lobe = 10 ** (imaging.side_lobe_db / 20)
    lateral = elevation = None
    if probe.lines > 1:
        lateral = _kernels(lateral_sigma_mm(probe, imaging) / along, probe.lines, lobe=lobe)
    if probe.planes > 1:
        elevation = _kernels(elevation_sigma_mm(probe, imaging) / out, probe.planes, lobe=lobe)
    sigma = torch.tensor([axial_sigma_mm(probe) / probe.step_mm])
    return _kernels(sigma, probe.samples, lobe=0.0)[0], lateral, elevation


def coherent_gain(probe: Probe, imaging: Imaging) -> Tensor:
    """What ``blur``, which keeps energy, makes of a sheet across the beams of amplitude 1: (samples,)."""
    along, out = pitches_mm(probe)
    # Rows of unit energy and width s: peak 1 / sqrt(s sqrt(π)), sum sqrt(2 s sqrt(π)).
    axial = max(axial_sigma_mm(probe) / probe.step_mm, _SIGMA_MIN)
    gain = torch.full((probe.samples,), (axial * math.sqrt(math.pi)) ** -0.5)
    if probe.lines > 1:
        gain *= _row_sum(lateral_sigma_mm(probe, imaging) / along)
    if probe.planes > 1:
        gain *= _row_sum(elevation_sigma_mm(probe, imaging) / out)
    return gain


def _row_sum(sigma: Tensor) -> Tensor:
    return (2 * math.sqrt(math.pi) * sigma.clamp(min=_SIGMA_MIN)).sqrt()


def _kernels(sigma: Tensor, count: int, *, lobe: float) -> Tensor:
    """Matrices (depth, out, in) of Gaussian rows of unit energy, with side lobes that decay and alternate."""
    index = torch.arange(count, dtype=torch.float32)
    width = sigma.clamp(min=_SIGMA_MIN, max=max(count / 4, 1.0))[:, None, None]
    away = (index[:, None] - index)[None] / width
    kernel = torch.exp(-0.5 * away**2)
    if lobe > 0:
        # Lobes of a sinc of the same width: their period is about 3.9 standard deviations of the main lobe.
        phase = torch.sin(2 * math.pi / 3.9 * away.abs())
        kernel = kernel + lobe * phase * (away.abs() > 2.5) * 4 / away.abs().clamp(min=2.5)
    return kernel / kernel.square().sum(-1, keepdim=True).sqrt()
