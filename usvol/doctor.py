"""Examine an installation: versions, devices, codecs, extras, weights, permissions."""

from __future__ import annotations

import importlib.util
import platform
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from usvol import registry, weights
from usvol.errors import UsvolError


class Verdict(StrEnum):
    """How a check ended; ``absent`` is optional and missing."""

    GOOD = "good"
    ABSENT = "absent"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Checked:
    """One thing examined."""

    area: str
    name: str
    verdict: Verdict
    detail: str


_NEEDED = (
    "numpy",
    "torch",
    "monai",
    "nibabel",
    "SimpleITK",
    "pydicom",
    "av",
    "pillow",
    "pyarrow",
    "openvino",
)
# Windows on ARM and macOS have no decord wheel; PyAV reads all that decord does.
_OPTIONAL = {
    "decord": "faster reading of clips",
    "lightning": "training: pip install 'usvol[train]'",
    "itk": "beam-space volumes: pip install 'usvol[itk]'",
    "dask": "cluster runs",
    "pyvista": "meshes",
    "napari": "the viewer",
}
_DECODERS = ("h264", "mjpeg", "mpeg4", "gif", "wmv2", "vp9")
_DICOM_SYNTAXES = {
    "JPEG baseline": "1.2.840.10008.1.2.4.50",
    "JPEG lossless": "1.2.840.10008.1.2.4.70",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
    "RLE": "1.2.840.10008.1.2.5",
}


def examine() -> list[Checked]:
    """Check everything and return it in order; a check that breaks is itself a bad verdict."""
    parts: tuple[tuple[str, Callable[[], Iterator[Checked]]], ...] = (
        ("package", _packages),
        ("device", _devices),
        ("codec", _codecs),
        ("task", _tasks),
        ("weights", _weights),
        ("disk", _disk),
    )
    found: list[Checked] = []
    for area, part in parts:
        try:
            found += part()
        except (ImportError, OSError, RuntimeError, AttributeError, UsvolError) as error:
            found.append(Checked(area, "check", Verdict.BAD, f"{type(error).__name__}: {error}"))
    return found


def _packages() -> Iterator[Checked]:
    yield Checked("package", "python", Verdict.GOOD, f"{platform.python_version()} on {platform.platform()}")
    for name in ("usvol", *_NEEDED):
        version = _version(name)
        verdict = Verdict.GOOD if version else Verdict.BAD
        yield Checked("package", name, verdict, version or f"missing: pip install {name}")
    for name, purpose in _OPTIONAL.items():
        version = _version(name)
        detail = f"{version} ({purpose})" if version else f"not installed ({purpose})"
        yield Checked("package", name, Verdict.GOOD if version else Verdict.ABSENT, detail)


def _devices() -> Iterator[Checked]:
    import torch

    threads = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    yield Checked("device", "cpu", Verdict.GOOD, threads)
    if not torch.cuda.is_available():
        yield Checked("device", "cuda", Verdict.ABSENT, "torch finds no CUDA device; the CPU is used")
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        detail = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
        yield Checked("device", f"cuda:{index}", Verdict.GOOD, detail)


def _codecs() -> Iterator[Checked]:
    import av
    from pydicom.pixels.decoders.base import get_decoder

    for name in _DECODERS:
        there = name in av.codecs_available
        yield Checked(
            "codec", f"video {name}", Verdict.GOOD if there else Verdict.BAD, "" if there else "missing"
        )
    for name, syntax in _DICOM_SYNTAXES.items():
        decoder = get_decoder(syntax)
        if decoder.is_available:
            detail = ", ".join(decoder.available_plugins)
            yield Checked("codec", f"DICOM {name}", Verdict.GOOD, detail)
        else:
            yield Checked("codec", f"DICOM {name}", Verdict.BAD, "; ".join(decoder.missing_dependencies))


def _tasks() -> Iterator[Checked]:
    entries = registry.tasks()
    if not entries:
        yield Checked("task", "registry", Verdict.BAD, "no task is installed: install the package again")
    for entry in entries.values():
        yield Checked("task", entry.name, Verdict.GOOD, entry.module)


def _weights() -> Iterator[Checked]:
    for listed in weights.inventory(registry.packages()):
        outcome = weights.check(listed)
        verdict = Verdict.GOOD if outcome is weights.Check.OK else Verdict.BAD
        yield Checked("weights", f"{listed.package}/{listed.name}", verdict, outcome)


def _disk() -> Iterator[Checked]:
    for name, folder in (("current folder", Path.cwd()), ("temporary folder", Path(tempfile.gettempdir()))):
        try:
            with tempfile.TemporaryDirectory(dir=folder) as made:
                connection = sqlite3.connect(Path(made) / "ledger.sqlite")
                connection.execute("CREATE TABLE written (yes INTEGER)")
                connection.close()
        except (OSError, sqlite3.Error) as error:
            yield Checked("disk", name, Verdict.BAD, f"cannot write to {folder}: {error}")
        else:
            yield Checked("disk", name, Verdict.GOOD, f"{folder} can be written")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "version unknown" if importlib.util.find_spec(name) else None
