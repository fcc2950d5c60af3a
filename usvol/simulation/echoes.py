"""From tissue on the beams to the envelope of the echo: scatterers, interfaces, artefacts, noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from usvol.simulation.beam_geometry import ranges_mm
from usvol.simulation.point_spread import blur, coherent_gain
from usvol.simulation.probe import Imaging, Probe
from usvol.simulation.propagation import Medium, transmission

_CELL_SAMPLES = 12.0  # beam samples in one resolution cell, roughly
_FACE_DB = 12.0  # ringing of the probe's own face, relative to bright tissue


def draw_scatterers(density: Tensor, *, generator: torch.Generator) -> Tensor:
    """Draw circular complex scatterers of mean square 1, ``r az el``; few per cell where ``density`` is low.

    Many per cell make Rayleigh speckle (Wagner et al., IEEE Trans. Sonics Ultrason. 30(3), 1983); thinned,
    their sum is closer to a K distribution (Jakeman & Tough 1987; Dutt & Greenleaf 1994).
    """
    field = _circular(tuple(density.shape), generator)
    kept = (density / _CELL_SAMPLES).clamp(max=1)
    if bool((kept < 1).any()):
        chosen = torch.rand(kept.shape, generator=generator, device=kept.device) < kept
        field = field * chosen / kept.sqrt()
    return field


@dataclass(frozen=True, slots=True, eq=False)
class Still:
    """What stays from frame to frame of a cine.

    Attributes:
        contact: factor per line, (1, az, el).
        haze: complex scatterers ``r az el`` of the diffuse echoes.
    """

    contact: Tensor
    haze: Tensor


def draw_still(probe: Probe, imaging: Imaging, *, generator: torch.Generator) -> Still:
    """Draw what all frames of a cine share."""
    shape = (probe.samples, probe.lines, probe.planes)
    return Still(_contact(probe, imaging, generator), _circular(shape, generator))


def form_echoes(
    medium: Medium,
    probe: Probe,
    *,
    imaging: Imaging,
    generator: torch.Generator,
    scatterers: Tensor | None = None,
    still: Still | None = None,
) -> Tensor:
    """Return the envelope ``r az el`` (float32, 1 for bright tissue) that the scanner detects.

    Linear: (scatterers + interfaces + diffuse echoes) * point spread function + noise, then its magnitude.

    ``scatterers``: complex ``r az el`` of mean square 1, such as tissue motion carries from frame to frame;
    None draws them. Given ones make one look only, whatever ``imaging.compounding`` says.

    On the beams of a planar probe the last axis may hold frames; ``still`` is then what they share.
    """
    contact = still.contact if still is not None else _contact(probe, imaging, generator)
    reach = transmission(medium, probe, imaging=imaging) * contact
    coherent = _specular(medium, reach, probe=probe, imaging=imaging)
    tissue = medium.echo * reach
    diffuse = _diffuse(tissue.square() + coherent.square(), probe, imaging).sqrt()
    coherent = coherent / coherent_gain(probe, imaging)[:, None, None].to(coherent.device)
    looks = imaging.compounding if scatterers is None else 1
    total = torch.zeros_like(tissue)
    for _ in range(looks):
        drawn = draw_scatterers(medium.density, generator=generator) if scatterers is None else scatterers
        field = drawn * tissue + _haze(tuple(tissue.shape), still, generator=generator) * diffuse + coherent
        noise = _circular(tuple(tissue.shape), generator) * _noise_amplitude(probe, imaging).to(tissue.device)
        total += (blur(field, probe, imaging=imaging) + noise).abs()
    return total / looks * _gain_error(probe, imaging).to(total.device)


def _haze(shape: tuple[int, ...], still: Still | None, *, generator: torch.Generator) -> Tensor:
    """Draw the scatterers of diffuse echoes; in a cine most of them stay, as do the layers that make them."""
    fresh = _circular(shape, generator)
    return fresh if still is None else 0.9**0.5 * still.haze + 0.1**0.5 * fresh


def _circular(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.complex64)


def _specular(medium: Medium, reach: Tensor, *, probe: Probe, imaging: Imaging) -> Tensor:
    """Amplitude of interfaces: a power of the cosine, a rough remainder, a repetition at twice the depth.

    The repetition is sound that the probe's face reflected once (Feldman et al., Radiographics 29(4), 2009).
    """
    facing = 0.97 * medium.cosine.pow(imaging.specular_power) + 0.03
    direct = medium.reflection * facing * reach * 10 ** (imaging.specular_db / 20)
    halfway = (torch.arange(probe.samples, device=reach.device) / 2).long()
    return direct + direct[halfway] * 10 ** (imaging.reverberation_db / 20)


def _diffuse(power: Tensor, probe: Probe, imaging: Imaging) -> Tensor:
    """Power of echoes from no tissue at their place: reverberant haze behind layers, clutter from the side.

    Haze decays exponentially behind what made it, the probe's face included; clutter is echo power spread
    over the neighbourhood (Lediju et al., Ultrasound Med. Biol. 34, 2008; Fatemi et al., IEEE TUFFC 66,
    2019).
    """
    power = power.clamp(max=10.0)
    depth = ranges_mm(probe).to(power.device)
    behind = depth[:, None] - depth
    tail = torch.exp(-behind / imaging.haze_mm) * (behind > 0) * probe.step_mm / imaging.haze_mm
    haze = (tail @ power.reshape(probe.samples, -1)).reshape(power.shape)
    haze = haze + 10 ** (_FACE_DB / 10) * torch.exp(-depth / imaging.haze_mm)[:, None, None]
    size = [min(n, k) | 1 for n, k in zip(power.shape, (17, 13, 1 if probe.is_planar else 13), strict=True)]
    size = [k if k <= n else k - 2 for n, k in zip(power.shape, size, strict=True)]
    coarse = F.avg_pool3d(
        power[None, None],
        kernel_size=size,
        stride=[4 if k > 4 else 1 for k in size],
        padding=[k // 2 for k in size],
        count_include_pad=False,
    )
    spread = F.interpolate(coarse, power.shape, mode="trilinear", align_corners=False)[0, 0]
    return 10 ** (imaging.haze_db / 10) * haze + 10 ** (imaging.clutter_db / 10) * spread


def _noise_amplitude(probe: Probe, imaging: Imaging) -> Tensor:
    """Amplitude of electronic noise: raised with depth by the time gain compensation, (samples, 1, 1)."""
    depth_cm = (ranges_mm(probe) - imaging.penetration_mm) / 10
    level_db = 2 * imaging.tgc_db_cm_mhz * probe.frequency_mhz * depth_cm
    return torch.pow(10.0, level_db / 20)[:, None, None]


def _gain_error(probe: Probe, imaging: Imaging) -> Tensor:
    """Factor per range of wrongly set sliders, linear between them: (samples, 1, 1)."""
    sliders = torch.tensor(imaging.tgc_error_db, dtype=torch.float32)[None, None]
    error_db = F.interpolate(sliders, probe.samples, mode="linear", align_corners=False)[0, 0]
    return torch.pow(10.0, error_db / 20)[:, None, None]


def _contact(probe: Probe, imaging: Imaging, generator: torch.Generator) -> Tensor:
    """Factor per line where part of the face has no contact: (1, az, el), and lines that dropped out."""
    device = generator.device
    factor = torch.ones(1, probe.lines, probe.planes, device=device)
    if imaging.dropout <= 0:
        return factor
    az, el, edge = torch.rand(3, generator=generator, device=device).tolist()
    lines = torch.linspace(0, 1, probe.lines, device=device)[:, None]
    planes = torch.linspace(0, 1, probe.planes, device=device)[None]
    centre = 1.0 if edge > 0.5 else 0.0
    away = (lines - centre).abs() if az > el or probe.is_planar else (planes - centre).abs()
    lost = torch.sigmoid((2 * imaging.dropout - away.expand(probe.lines, probe.planes)) / 0.02)
    single = torch.rand(probe.lines, 1, generator=generator, device=device) < 0.3 * imaging.dropout
    lost = torch.maximum(lost, 0.5 * single)
    return torch.pow(10.0, -imaging.dropout_db * lost / 20)[None]
