"""Write synthetic scans with known truth: phantoms to files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usvol import registry, writing
from usvol.errors import UnknownTimeError
from usvol.formats.nifti import write_nifti
from usvol.formats.video_writing import write_video

if TYPE_CHECKING:
    from usvol.scan import Scan

NOTICE = "Simulated by a phantom: no patient, no device."


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A synthetic scan on disk and the truth it was made from."""

    path: Path
    truth: Mapping[str, Any]


def synthesise(
    phantom: str,
    *,
    out: Path,
    count: int = 1,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> list[Synthetic]:
    """Write ``count`` scans of a phantom, seeds ``seed``, ``seed + 1``, …, each with ``<name>.json``.

    Planar cines become .avi (MJPEG), all else .nii.gz on the phantom's grid.

    Raises:
        TaskError: no such phantom. ConfigError: a setting is unknown or out of range.
    """
    source = registry.module(registry.Group.PHANTOMS, phantom)
    config = registry.configure(source, overrides=settings, owner=f"phantom {phantom!r}")
    out.mkdir(parents=True, exist_ok=True)
    made: list[Synthetic] = []
    for number in range(seed, seed + count):
        scan, truth = source.simulate(number, config)
        path = _write(scan, out / f"simulated_{phantom}_{number:04d}")
        facts = {
            "schema": "usvol.synthetic/1",
            "phantom": phantom,
            "seed": number,
            "config": config.model_dump(mode="json"),
            "truth": truth,
            "notice": NOTICE,
        }
        writing.write_json(path.parent / f"simulated_{phantom}_{number:04d}.json", facts)
        made.append(Synthetic(path, truth))
    return made


def _write(scan: Scan, stem: Path) -> Path:
    import numpy as np

    frames = np.asarray(scan.data)
    if not scan.grid.is_planar or frames.shape[0] == 1:
        path = stem.with_name(f"{stem.name}.nii.gz")
        times = scan.times_s if frames.shape[0] > 1 else None
        write_nifti(path, frames[:, 0], grid=scan.grid, times_s=times)
        return path
    times = scan.times_s
    if times is None:
        raise UnknownTimeError("writing a phantom's cine as video")
    rate = (len(times) - 1) / (times[-1] - times[0])
    return write_video(stem.with_suffix(".avi"), np.moveaxis(frames[:, :, 0], 1, -1), fps=rate)
