"""Acquire an anatomy with a probe: the whole chain from tissue to a scan-converted ``Scan``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from usvol.resampling import sample_at
from usvol.scan import Calibration, Fan, Grid, Scan, Sector, Shape3, Source, Trust
from usvol.simulation.beam_geometry import beam_index, image_grid
from usvol.simulation.display import grey_levels, jpeg_compressed
from usvol.simulation.echoes import form_echoes
from usvol.simulation.probe import Imaging, Probe
from usvol.simulation.propagation import insonify
from usvol.simulation.tissue import Anatomy

_SLAB_SAMPLES = 1 << 22


@dataclass(frozen=True, slots=True, eq=False)
class Acquisition:
    """One simulated image or volume.

    Attributes:
        scan: uint8 ``1 1 z y x`` on its own calibrated grid, with the sector's mask; 0 outside it.
        beams: uint8 ``r az el``, before scan conversion.
        envelope: float32 ``r az el``, before compression; 1 for bright tissue.
    """

    scan: Scan
    beams: Tensor
    envelope: Tensor
    probe: Probe
    imaging: Imaging


def acquire(
    anatomy: Anatomy,
    probe: Probe,
    *,
    imaging: Imaging,
    seed: int,
    grid: Grid | Shape3 | None = None,
    device: torch.device | str = "cpu",
) -> Acquisition:
    """Simulate one image (``probe.planes`` 1) or volume; the same seed and device give the same samples.

    ``grid`` is where to scan-convert; a shape (z, y, x) spans all beams, None is about 128³ (a plane: 256²).

    Example:
        >>> from usvol.simulation.tissue import TISSUES
        >>> cube = torch.zeros(8, 8, 8, dtype=torch.uint8)
        >>> body = Anatomy(cube, Grid(cube.shape, (9.0, 9.0, 9.0)), (TISSUES["liver"],))
        >>> probe = Probe("matrix_3d", 3, depth_mm=60, focus_mm=40, lines=16, planes=12, samples=64)
        >>> made = acquire(body, probe, imaging=Imaging(), seed=1, grid=(20, 24, 28))
        >>> made.scan.data.shape, made.beams.shape
        (torch.Size([1, 1, 20, 24, 28]), torch.Size([64, 16, 12]))
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    medium = insonify(anatomy, probe, generator=generator)
    envelope = form_echoes(medium, probe, imaging=imaging, generator=generator)
    return develop(envelope, probe, imaging=imaging, grid=grid)


def develop(
    envelope: Tensor, probe: Probe, *, imaging: Imaging, grid: Grid | Shape3 | None = None
) -> Acquisition:
    """Turn an envelope ``r az el`` into grey beams and a scan: display, compression, scan conversion."""
    target = grid if isinstance(grid, Grid) else image_grid(probe, grid)
    grey = _thinned(grey_levels(envelope, imaging), probe, target)
    beams = (255 * grey).round().to(torch.uint8)
    if imaging.jpeg_quality is not None:
        beams = jpeg_compressed(beams, imaging.jpeg_quality)
    data, mask = _converted(beams, probe, target)
    sector = _sector(probe, mask[0] if target.is_planar else mask)
    scan = Scan(data[None, None], target, None, _source(probe), ("simulated",), sector)
    return Acquisition(scan, beams, envelope, probe, imaging)


def develop_cine(
    envelope: Tensor, probe: Probe, *, imaging: Imaging, grid: Grid, times_s: tuple[float, ...]
) -> Scan:
    """Turn the envelope ``r az t`` of a planar probe's frames into a cine ``t 1 1 y x`` (uint8) on ``grid``.

    Raises:
        ValueError: the probe is not planar.
    """
    if not probe.is_planar:
        raise ValueError(f"a cine of planes needs a planar probe, got {probe.planes} planes")
    frames = [_thinned(grey_levels(frame, imaging), probe, grid) for frame in envelope.split(1, dim=2)]
    beams = (255 * torch.cat(frames, 2)).round().to(torch.uint8)
    if imaging.jpeg_quality is not None:
        beams = jpeg_compressed(beams, imaging.jpeg_quality)
    index = beam_index(probe, _grid_points(grid, beams.device))
    sizes = torch.tensor((probe.samples, probe.lines, 1), dtype=torch.float32, device=beams.device)
    inside = ((index >= -0.5) & (index <= sizes - 0.5)).all(-1)
    # Frames are sampled as the channels of one slice, which is quicker than as a volume.
    layers, place = beams.permute(2, 0, 1)[:, None].contiguous(), index[..., [2, 0, 1]]
    data = (sample_at(layers, place) * inside)[:, None].cpu()
    return Scan(data, grid, times_s, _source(probe), ("simulated",), _sector(probe, inside[0].cpu()))


def _source(probe: Probe) -> Source:
    calibration = Calibration(Trust.MEASURED, "known: the scan was simulated on this grid")
    return Source(format="simulated", calibration=calibration, modality="US", probe=probe.kind)


def _sector(probe: Probe, mask: Tensor) -> Sector:
    return Sector(mask, _fan(probe), _shape(probe))


def _thinned(grey: Tensor, probe: Probe, target: Grid) -> Tensor:
    """Average along the beam where the image samples it more coarsely than the beam, so nothing aliases."""
    coarser = min(target.step[1:]) / probe.step_mm
    width = 2 * round((coarser - 1) / 2) + 1
    if width < 3:
        return grey
    flat = grey.reshape(1, 1, probe.samples, -1)
    mean = F.avg_pool2d(flat, (width, 1), 1, (width // 2, 0), count_include_pad=False)
    return mean.reshape(grey.shape)


def _converted(beams: Tensor, probe: Probe, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scan-convert beams ``r az el`` to ``z y x``, with the mask of what they reach; both on the CPU."""
    sizes = torch.tensor(beams.shape, dtype=torch.float32, device=beams.device)
    data, mask = [], []
    step = max(1, _SLAB_SAMPLES // (grid.shape[1] * grid.shape[2]))
    for start in range(0, grid.shape[0], step):
        slab = grid.crop((start, 0, 0), (min(step, grid.shape[0] - start), *grid.shape[1:]))
        index = beam_index(probe, _grid_points(slab, beams.device))
        inside = ((index >= -0.5) & (index <= sizes - 0.5)).all(-1)
        data.append((sample_at(beams[None], index)[0] * inside).cpu())
        mask.append(inside.cpu())
    return torch.cat(data), torch.cat(mask)


def _grid_points(grid: Grid, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """World z, y, x of the samples of a grid, each (Z, Y, X) float32 or broadcastable to it."""
    indices = [
        torch.arange(n, device=device, dtype=torch.float32).reshape(
            [-1 if k == axis else 1 for k in range(3)]
        )
        for axis, n in enumerate(grid.shape)
    ]
    world = []
    for row in grid.affine[:3]:
        terms = [i * float(c) for i, c in zip(indices, row[:3], strict=True) if abs(c) > 1e-12]
        world.append(sum(terms, torch.zeros((), device=device)) + float(row[3]))
    z, y, x = (w.expand(grid.shape) for w in world)
    return z, y, x


def _fan(probe: Probe) -> Fan | None:
    if not probe.is_planar or probe.width_mm is not None:
        return None
    near = probe.radius_mm
    return Fan((-near, 0.0), near, near + probe.depth_mm, -probe.azimuth_deg, probe.azimuth_deg)


def _shape(probe: Probe) -> str:
    return "linear" if probe.width_mm is not None else "fan"
