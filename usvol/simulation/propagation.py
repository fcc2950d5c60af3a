"""What each beam meets on its way: tissue, reflecting interfaces, and what is left of the sound."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from usvol.resampling import sample_at
from usvol.simulation.beam_geometry import beam_points, pitches_mm, ranges_mm
from usvol.simulation.probe import Imaging, Probe
from usvol.simulation.tissue import Anatomy

_ENHANCEMENT_DB = 8.0  # sonographers turn the gain down before what lies behind fluid burns out
_OCTAVES_MM = (2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True, slots=True, eq=False)
class Medium:
    """Tissue on the beams of a probe, each field float32 ``r az el``.

    Attributes:
        echo: amplitude of backscatter, 1 for bright soft tissue.
        density: scatterers per resolution cell.
        attenuation_db_cm_mhz: one way.
        reflection: of interfaces, 0-1 in sum over the samples of one, before their angle is heeded.
        cosine: of the angle between beam and interface normal, 0-1.
    """

    echo: Tensor
    density: Tensor
    attenuation_db_cm_mhz: Tensor
    reflection: Tensor
    cosine: Tensor


def insonify(anatomy: Anatomy, probe: Probe, *, generator: torch.Generator) -> Medium:
    """Put the anatomy on the beams of ``probe``, with the texture and the interfaces of its tissues.

    Interfaces reflect (Z₂ - Z₁) / (Z₂ + Z₁) = tanh(½ Δ ln Z) (Cobbold 2007, §1.8), from the gradient of ln Z.
    The nearest material at a place half a voxel off at random gives boundaries without stairs.
    """
    device = generator.device
    materials = anatomy.materials.to(device)
    values = torch.tensor(
        [
            (
                10 ** (t.echo_db / 20),
                t.scatterers_per_cell,
                t.attenuation_db_cm_mhz,
                math.log(t.impedance_mrayl),
            )
            for t in anatomy.tissues
        ],
        device=device,
    )
    spacing = anatomy.grid.require_spacing_mm("simulated sound")
    index = _voxel_index(anatomy, probe, device)
    smooth = torch.stack([_softened(values[:, 3], materials), _texture_db(anatomy, generator)])
    log_impedance, texture_db = sample_at(smooth, index)
    here = _nearest(materials, index, generator=generator)
    reflection, cosine = interfaces(log_impedance, probe, width_mm=3 * max(spacing))
    return Medium(
        echo=values[:, 0][here] * torch.pow(10.0, texture_db / 20),
        density=values[:, 1][here],
        attenuation_db_cm_mhz=values[:, 2][here],
        # Real interfaces are uneven: the texture of their tissue breaks them up.
        reflection=reflection * torch.pow(10.0, texture_db / 20),
        cosine=cosine,
    )


def _voxel_index(anatomy: Anatomy, probe: Probe, device: torch.device) -> Tensor:
    """Index (z, y, x) into the anatomy of every beam sample, held inside it: float32 (r, az, el, 3)."""
    inverse = np.linalg.inv(anatomy.grid.affine)
    points = beam_points(probe)
    axes = []
    for row, size in zip(inverse[:3], anatomy.grid.shape, strict=True):
        terms = [p * float(c) for p, c in zip(points, row[:3], strict=True) if abs(c) > 1e-12]
        axes.append((sum(terms, torch.zeros(())) + float(row[3])).clamp(0, size - 1))
    return torch.stack(torch.broadcast_tensors(*axes), -1).contiguous().to(device)


def _nearest(materials: Tensor, index: Tensor, *, generator: torch.Generator) -> Tensor:
    """Material at each index, off by up to half a voxel along each axis: int64 ``r az el``."""
    off = torch.rand(index.shape, generator=generator, device=index.device)
    sizes = torch.tensor(materials.shape, device=index.device)
    place = (index + off).floor_().clamp_(min=0).to(torch.int32)
    z, y, x = torch.minimum(place, (sizes - 1).to(torch.int32)).unbind(-1)
    flat = (z * materials.shape[1] + y) * materials.shape[2] + x
    return materials.flatten()[flat.long()].long()


def _softened(values: Tensor, materials: Tensor) -> Tensor:
    """Return ``values`` of the materials blurred by (1, 2, 1) / 4 per axis: interfaces gain a direction."""
    field = values[materials.long()][None, None]
    thick = int(materials.shape[0] > 1)
    field = F.pad(field, (1, 1, 1, 1, thick, thick), mode="replicate")
    kernel = (1 + thick, 2, 2)
    return F.avg_pool3d(F.avg_pool3d(field, kernel, stride=1), kernel, stride=1)[0, 0]


def _texture_db(anatomy: Anatomy, generator: torch.Generator) -> Tensor:
    """Slow random variation of echogenicity in dB on the anatomy's grid: Gaussian, log-normal in amplitude.

    Correlation lengths are rounded to octaves; one field per octave serves all tissues.
    """
    device = generator.device
    materials = anatomy.materials.to(device).long()
    spacing = anatomy.grid.require_spacing_mm("texture")
    total = torch.zeros(anatomy.grid.shape, device=device)
    octaves = [
        _octave(t.texture_mm) if t.texture_db > 0 and t.texture_mm > 0 else None for t in anatomy.tissues
    ]
    for number, length_mm in enumerate(_OCTAVES_MM):
        strength = torch.tensor(
            [t.texture_db if o == number else 0.0 for t, o in zip(anatomy.tissues, octaves, strict=True)],
            device=device,
        )
        if not strength.any():
            continue
        size = [
            max(2, math.ceil(n * s / length_mm) + 1) for n, s in zip(anatomy.grid.shape, spacing, strict=True)
        ]
        lattice = torch.randn((1, 1, *size), generator=generator, device=device)
        field = F.interpolate(lattice, anatomy.grid.shape, mode="trilinear", align_corners=True)[0, 0]
        # Between the points of the lattice, trilinear interpolation keeps (2/3)³ of the variance on average.
        total += strength[materials] * field * 1.5**1.5
    return total


def _octave(length_mm: float) -> int:
    return min(range(len(_OCTAVES_MM)), key=lambda n: abs(math.log(length_mm / _OCTAVES_MM[n])))


def interfaces(log_impedance: Tensor, probe: Probe, *, width_mm: float) -> tuple[Tensor, Tensor]:
    """Return reflection coefficient (0-1), shared by the samples of an interface, and cosine of its angle.

    ``log_impedance`` is ``r az el``; on the beams of a planar probe the last axis may hold frames instead.
    """
    along, out = (p[:, None, None].to(log_impedance.device) for p in pitches_mm(probe))
    steps = (torch.full_like(along, probe.step_mm), along, out)
    gradient = [
        torch.gradient(log_impedance, dim=axis)[0] / step
        if log_impedance.shape[axis] > 2 and not (axis == 2 and probe.is_planar)
        else None
        for axis, step in enumerate(steps)
    ]
    squared = sum((g.square() for g in gradient if g is not None), torch.zeros_like(log_impedance))
    size = squared.sqrt()
    depth = gradient[0]
    cosine = depth.abs() / size.clamp(min=1e-6) if depth is not None else torch.zeros_like(size)
    # Softened interfaces are some voxels thick: their whole jump is put where they are steepest.
    window = min(2 * round(width_mm / probe.step_mm / 2) + 1, probe.samples | 1)
    jump = 0.5 * size * probe.step_mm
    steepest = F.max_pool3d(jump[None, None], (window, 1, 1), 1, (window // 2, 0, 0))[0, 0]
    ridge = (jump / steepest.clamp(min=1e-6)).pow(8)
    total, share = (window * _along_beam(f, window) for f in (jump, ridge))
    return torch.tanh(total) * ridge / share.clamp(min=1e-6), cosine.clamp(max=1)


def _along_beam(field: Tensor, width: int) -> Tensor:
    """Average over ``width`` samples along the beam."""
    flat = field.reshape(1, 1, field.shape[0], -1)
    return F.avg_pool2d(flat, (width, 1), 1, (width // 2, 0)).reshape(field.shape)


def transmission(medium: Medium, probe: Probe, *, imaging: Imaging) -> Tensor:
    """Amplitude of the sound that reaches each sample and returns, time gain compensated: ``r az el``.

    Twice the attenuation up to a sample, in dB, less what the compensation assumes (Szabo 2014, §4): below 1
    behind bone and gas (shadow), above 1 behind fluid (enhancement). The aperture sees past small objects, so
    neighbouring beams are mixed.
    """
    step_cm = probe.step_mm / 10
    attenuation = medium.attenuation_db_cm_mhz
    passed = attenuation.cumsum(0) - 0.5 * attenuation
    assumed = imaging.tgc_db_cm_mhz * ranges_mm(probe)[:, None, None].to(attenuation.device) / 10
    gain_db = 2 * probe.frequency_mhz * (assumed - passed * step_cm)
    raised_db = _ENHANCEMENT_DB * torch.tanh(gain_db.clamp(min=0) / _ENHANCEMENT_DB)
    amplitude = torch.pow(10.0, (raised_db + gain_db.clamp(max=0)) / 20)
    lateral = (min(3, probe.lines), min(3, probe.planes))
    lateral = (1, *(n if n % 2 else 1 for n in lateral))
    padding = tuple(n // 2 for n in lateral)
    return F.avg_pool3d(amplitude[None, None], lateral, 1, padding, count_include_pad=False)[0, 0]
