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
    from types import ModuleType

    from pydantic import BaseModel

    from usvol.result import Labels
    from usvol.scan import Scan

NOTICE = "Simulated by a phantom: no patient, no device."


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A synthetic scan on disk and the truth it was made from; ``labels`` is its label map, if any."""

    path: Path
    truth: Mapping[str, Any]
    labels: Path | None = None


def synthesise(
    phantom: str,
    *,
    out: Path,
    count: int = 1,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> list[Synthetic]:
    """Write ``count`` scans of a phantom, seeds ``seed``, ``seed + 1``, …, each with ``<name>.json``.

    Planar cines become .avi (MJPEG), all else .nii.gz on the phantom's grid. A phantom that offers
    ``simulate_labelled(seed, config) -> (scan, labels, truth)`` gets ``<name>_labels.nii.gz`` as well, on the
    grid of its scan.

    Raises:
        TaskError: no such phantom. ConfigError: a setting does not fit, or ``out`` is no folder to write to.
    """
    source = registry.module(registry.Group.PHANTOMS, phantom)
    config = registry.configure(source, overrides=settings, owner=f"phantom {phantom!r}")
    writing.make_folder(out)
    made: list[Synthetic] = []
    for number in range(seed, seed + count):
        scan, labels, truth = _simulate(source, number, config)
        stem = out / f"simulated_{phantom}_{number:04d}"
        path = _write(scan, stem)
        facts = {
            "schema": "usvol.synthetic/1",
            "phantom": phantom,
            "seed": number,
            "config": config.model_dump(mode="json"),
            "truth": truth,
            "notice": NOTICE,
        }
        label_path = None
        if labels is not None:
            label_path = _write_labels(labels, stem.with_name(f"{stem.name}_labels.nii.gz"))
            facts["labels"] = {
                "file": label_path.name,
                "names": {str(value): name for value, name in labels.names.items()},
            }
        writing.write_json(stem.with_name(f"{stem.name}.json"), facts)
        made.append(Synthetic(path, truth, label_path))
    return made


def _simulate(source: ModuleType, seed: int, config: BaseModel) -> tuple[Scan, Labels | None, dict[str, Any]]:
    if hasattr(source, "simulate_labelled"):
        return source.simulate_labelled(seed, config)
    scan, truth = source.simulate(seed, config)
    return scan, None, truth


def _write_labels(labels: Labels, path: Path) -> Path:
    import numpy as np

    data = np.asarray(labels.data)
    write_nifti(path, data[0] if data.shape[0] == 1 else data, grid=labels.grid)
    return path


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
