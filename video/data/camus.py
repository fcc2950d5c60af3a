"""CAMUS: apical two- and four-chamber cines of 500 patients with outlines and EF (CC BY-NC-SA 4.0)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import SimpleITK
import torch

from usvol.errors import CorruptFileError, DatasetError
from usvol.result import Labels
from usvol.scan import Calibration, Grid, Scan, Source, Trust
from usvol.training.cases import Case, Split

NAMES = {1: "left_ventricle", 2: "myocardium", 3: "left_atrium"}
VIEWS = ("2CH", "4CH")

_PATIENT = re.compile(r"patient\d+")
_SPLITS: dict[str, Split] = {"training": "train", "validation": "validation", "testing": "test"}
# NIfTI release (2023): half a beat, every frame outlined. MetaImage release (2019): a beat, two frames.
_CINES = ("{stem}_half_sequence.nii.gz", "{stem}_sequence.nii.gz", "{stem}_sequence.mhd")
_VOLUMES = MappingProxyType({"ef_percent": ("EF", "LVef"), "edv_ml": ("LVedv",), "esv_ml": ("LVesv",)})


def cases(root: Path) -> list[Case]:
    """List the cines below ``root``, one case per patient and view, of either published layout.

    - ``database_nifti/patient0001/{Info_4CH.cfg, patient0001_4CH_half_sequence.nii.gz, …_gt.nii.gz}``, with
      the official split in ``database_split/subgroup_{training,validation,testing}.txt``;
    - ``training/patient0001/{Info_4CH.cfg, patient0001_4CH_sequence.mhd, patient0001_4CH_ED_gt.mhd, …}`` and
      ``testing/`` alike (its references may lack).

    Reference fields: ``view``, ``ed_frames``, ``es_frames`` (counted from 0), ``ef_percent``, ``edv_ml``,
    ``esv_ml``, ``fps``, ``quality`` (each None where the release has none).

    Source: Leclerc et al., IEEE TMI 38(9):2198, 2019.

    Raises:
        DatasetError: no such layout, or an ``Info_*.cfg`` that contradicts itself.
    """
    found = [case for folder, split in _patients(root) for case in _of_patient(folder, split)]
    if not found:
        raise DatasetError(
            f"{root} is not CAMUS: it needs database_nifti/patient0001/… or training/patient0001/… with "
            "Info_2CH.cfg, Info_4CH.cfg and the sequences."
        )
    return sorted(found, key=lambda case: case.id)


def read(case: Case) -> Scan:
    """Read the cine of a case, ``t 1 1 y x`` (uint8), calibrated; with times where a frame rate is stated.

    The files hold frames as slices, so that ``usvol.load`` would take them for volumes.
    """
    image = _image(case.path)
    frames = _frames(image, case.path)
    x_mm, y_mm = image.GetSpacing()[:2]
    grid = Grid((1, *frames.shape[1:]), (y_mm, y_mm, x_mm), (0.0, 0.0, 0.0))
    fps = case.reference["fps"]
    times_s = None if fps is None else tuple(i / fps for i in range(len(frames)))
    calibration = Calibration(Trust.MEASURED, "pixel size in the header of the CAMUS release")
    source = Source(case.path, "camus", calibration, modality="US", patient_key=case.patient_key)
    data = torch.from_numpy(frames)[:, None, None]
    return Scan(data, grid, times_s, source, (f"read {len(frames)} frames",))


def read_labels(case: Case) -> Labels:
    """Return the outlined frames of a case: left ventricle (1), its myocardium (2) and left atrium (3).

    Raises:
        DatasetError: there are none, or they do not lie on the cine.
    """
    stem = case.path.with_name(f"{case.path.parent.name}_{case.reference['view']}")
    whole = [path for path in _variants(stem, "half_sequence_gt", "sequence_gt") if path.is_file()]
    if whole:
        data = _frames(_image(whole[0]), whole[0])
        indices = None
    else:
        data, indices = _two_frames(case, stem)
    image = _image(case.path)
    x_mm, y_mm = image.GetSpacing()[:2]
    width, height = image.GetSize()[:2]
    if data.shape[1:] != (height, width):
        raise DatasetError(f"{case.id}: cine of {(height, width)} pixels, reference of {data.shape[1:]}.")
    grid = Grid((1, height, width), (y_mm, y_mm, x_mm), (0.0, 0.0, 0.0))
    return Labels("reference", torch.from_numpy(data)[:, None], grid, NAMES, frame_indices=indices)


def _two_frames(case: Case, stem: Path) -> tuple[np.ndarray, tuple[int, ...]]:
    chosen: dict[int, np.ndarray] = {}
    for event in ("ED", "ES"):
        path = next((p for p in _variants(stem, f"{event}_gt") if p.is_file()), None)
        if path is not None:
            chosen[case.reference[f"{event.lower()}_frames"][0]] = _frames(_image(path), path)[0]
    if not chosen:
        raise DatasetError(f"{case.id}: its references are not there (the test set was published later).")
    frames = tuple(sorted(chosen))
    return np.stack([chosen[frame] for frame in frames]), frames


def _variants(stem: Path, *endings: str) -> Iterator[Path]:
    for ending in endings:
        for suffix in (".nii.gz", ".mhd"):
            yield stem.with_name(f"{stem.name}_{ending}{suffix}")


def _patients(root: Path) -> Iterator[tuple[Path, Split | None]]:
    """Yield the folder and the official split of every patient."""
    nifti = next((f for f in (root / "database_nifti", root) if _folders(f)), None)
    if nifti is not None:
        split_of = _official(root) | _official(root.parent)
        for folder in _folders(nifti):
            yield folder, split_of.get(folder.name)
        return
    for name in ("training", "testing"):
        for folder in _folders(root / name):
            yield folder, _SPLITS[name]


def _folders(root: Path) -> list[Path]:
    inside = root.iterdir() if root.is_dir() else ()
    return sorted(f for f in inside if f.is_dir() and _PATIENT.fullmatch(f.name))


def _official(root: Path) -> dict[str, Split | None]:
    split_of: dict[str, Split | None] = {}
    for name, split in _SPLITS.items():
        path = root / "database_split" / f"subgroup_{name}.txt"
        if path.is_file():
            split_of |= dict.fromkeys(path.read_text(encoding="utf-8").split(), split)
    return split_of


def _of_patient(folder: Path, split: Split | None) -> Iterator[Case]:
    for view in VIEWS:
        stem = f"{folder.name}_{view}"
        info = folder / f"Info_{view}.cfg"
        path = next((p for p in (folder / c.format(stem=stem) for c in _CINES) if p.is_file()), None)
        if path is not None and info.is_file():
            reference = {**_reference(info), "view": view}
            yield Case(stem, folder.name, path, reference, dataset="camus", split=split, read=read)


def _reference(info: Path) -> dict[str, object]:
    stated = dict(_lines(info))
    frames = int(_value(stated, "NbFrame", info=info) or 0)
    reference: dict[str, object] = {"quality": stated.get("ImageQuality")}
    for event in ("ED", "ES"):
        frame = _value(stated, event, info=info)
        if frame is None or not 1 <= frame <= frames:
            raise DatasetError(f"{info}: {event} is frame {stated.get(event)} of {frames}, counted from 1.")
        reference[f"{event.lower()}_frames"] = [int(frame) - 1]
    for name, keys in _VOLUMES.items():
        reference[name] = next((v for key in keys if (v := _value(stated, key, info=info)) is not None), None)
    return {**reference, "fps": _value(stated, "FrameRate", info=info)}


def _lines(info: Path) -> Iterator[tuple[str, str]]:
    for line in info.read_text(encoding="utf-8").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            yield key.strip(), value.strip()


def _value(stated: Mapping[str, str], key: str, *, info: Path) -> float | None:
    if key not in stated:
        return None
    try:
        return float(stated[key])
    except ValueError as error:
        raise DatasetError(f"{info}: {key} is {stated[key]!r}, not a number.") from error


def _image(path: Path) -> SimpleITK.Image:
    try:
        return SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        raise CorruptFileError(path, "its samples cannot be read", "download it again") from error


def _frames(image: SimpleITK.Image, path: Path) -> np.ndarray:
    """Return the samples as ``t y x`` uint8, in which both releases count grey levels and labels."""
    samples = SimpleITK.GetArrayFromImage(image)
    samples = samples[None] if samples.ndim == 2 else samples
    if samples.ndim != 3 or samples.min() < 0 or samples.max() > 255:
        raise CorruptFileError(path, "it holds no frames of grey levels 0 to 255", "download it again")
    return np.ascontiguousarray(np.rint(samples).astype(np.uint8))
