"""A plain folder of volumes and label maps, in any format that is read (nnU-Net layout accepted).

Layouts, tried in this order (a label map may have another format than its volume):

1. nnU-Net v2 (Isensee et al., Nature Methods 18:203, 2021): ``imagesTr/NAME_0000.EXT``,
   ``labelsTr/NAME.EXT``, ``dataset.json`` with ``labels``; also ``imagesTr/NAME.EXT``, without a channel;
2. ``images/NAME.EXT`` and ``labels/NAME.EXT`` (or ``NAME_labels.EXT``, as below);
3. side by side: ``NAME.EXT`` and ``NAME_labels.EXT`` (or ``_label``, ``_seg``, ``_segmentation``, ``_mask``).

``dataset.json`` or ``labels.json`` names the label values: ``{"labels": {"background": 0, "fetus": 3}}``.
Without it the values are taken as the task's own.

Who is one patient stands in ``patients.csv`` (columns ``case,patient``) or ``patients.json``: either
``{"NAME": "patient"}`` or ``{"pattern": "^(?P<patient>P[0-9]+)_"}``, a regular expression over NAME. Without
either, every volume counts as its own patient.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from usvol.errors import DatasetError, ReadError
from usvol.loading import LABEL_ENDING, FileClass, classify, load, name_of, probe
from usvol.result import Labels
from usvol.scan import Grid
from usvol.training.cases import Case

logger = logging.getLogger(__name__)

_CHANNEL = re.compile(r"_(\d{4})$")
_FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"))
_CORNER_MAX = 0.1  # of the smallest spacing: how far the corners of volume and label map may lie apart


def cases(root: Path) -> list[Case]:
    """List the pairs below ``root``, checked to lie on one grid, sorted by name.

    Reference fields: ``label`` (path of the label map), ``label_names`` (value to name, None without a
    ``dataset.json``). Read it with ``read_labels``. A volume without a label map is left out with a warning.

    Raises:
        DatasetError: no pairs, a label map without a volume, two grids, or a table that does not fit.
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"{root}: there is no such folder. Give the folder that holds volumes and labels.")
    pairs = _pairs(root)
    if not pairs:
        raise DatasetError(
            f"{root}: no volume with a label map. Lay them out as imagesTr/ + labelsTr/ (nnU-Net), images/ + "
            "labels/ with the same names, or NAME.nii.gz beside NAME_labels.nii.gz."
        )
    names = _label_names(root)
    patients = _patients(root, [pair.name for pair in pairs])
    return [_case(pair, names, patients.get(pair.name)) for pair in pairs]


def read_labels(case: Case, *, names: Mapping[int, str]) -> Labels:
    """Read the label map of a case in the values of a task, whose ``names`` map value to structure name.

    Names are matched whatever their case, spaces and hyphens.
    The result names only the structures that the data set labels, so that a structure it leaves out is not
    taken for absent.

    Raises:
        DatasetError: the map is no label map, or holds a value or name that the task does not have.

    Example:
        >>> read_labels(cases(Path("mine"))[0], names={1: "placenta"}).names  # doctest: +SKIP
        {1: 'placenta'}
    """
    path = Path(case.reference["label"])
    scan = load(path)
    if scan.data.shape[:2] != (1, 1):
        raise DatasetError(
            f"{path.name}: a label map is one volume of one channel, this has {scan.data.shape[0]} frames, "
            f"{scan.data.shape[1]} channels."
        )
    mapped = {0: 0} | _mapping(path, case.reference["label_names"], names)
    found = scan.data[0, 0].unique().tolist()
    strange = [value for value in found if value not in mapped]
    if strange:
        shown = ", ".join(f"{value:g}" for value in strange[:5])
        raise DatasetError(
            f"{path.name}: holds the values {shown}, and the labels are {sorted(mapped)}. If it is a label "
            "map, name its values in dataset.json; it must not have been interpolated or rescaled."
        )
    data = torch.zeros(scan.data.shape[2:], dtype=torch.uint8)
    for value in found:
        data[scan.data[0, 0] == value] = mapped[value]
    kept = {value: names[value] for value in sorted(set(mapped.values()) - {0})}
    # One grid, as `cases` has checked; two formats may call its frame differently.
    return Labels("reference", data[None], probe(case.path).grid, kept)


@dataclass(frozen=True, slots=True)
class _Pair:
    """A volume and its label map."""

    name: str
    image: Path
    label: Path


def _pairs(root: Path) -> list[_Pair]:
    for image_folder, label_folder in _FOLDERS:
        if (root / image_folder).is_dir() and (root / label_folder).is_dir():
            labels = _by_name(_scans(root / label_folder), root / label_folder)
            channels = image_folder == _FOLDERS[0][0]
            images = _by_name(
                _scans(root / image_folder), root / image_folder, whole=labels, channels=channels
            )
            return _matched(root, images, labels)
    found = list(_scans(root))
    maps = [path for path in found if LABEL_ENDING.search(name_of(path))]
    volumes = [path for path in found if path not in maps]
    return _matched(root, _by_name(volumes, root), _by_name(maps, root))


def _matched(root: Path, images: Mapping[str, Path], labels: Mapping[str, Path]) -> list[_Pair]:
    alone = sorted(set(labels) - set(images))
    if alone:
        raise DatasetError(
            f"{root}: {len(alone)} label maps have no volume of their name: {_some(alone)}. Add the volumes, "
            "rename them alike, or move these label maps away."
        )
    unlabelled = sorted(set(images) - set(labels))
    if unlabelled and labels:
        logger.warning(
            "%s: %d volumes have no label map, left out: %s", root, len(unlabelled), _some(unlabelled)
        )
    return [_Pair(name, images[name], labels[name]) for name in sorted(labels)]


def _scans(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and classify(path) is FileClass.SCAN:
            yield path


def _by_name(
    paths: Iterable[Path], folder: Path, *, whole: Collection[str] = (), channels: bool = False
) -> dict[str, Path]:
    """Name scans as their label maps are; a number behind a name that is in ``whole`` is no channel."""
    named: dict[str, Path] = {}
    for path in paths:
        stem = name_of(path)
        stem = LABEL_ENDING.sub("", stem)
        if channels and stem not in whole and (match := _CHANNEL.search(stem)):
            if match[1] != "0000":
                raise DatasetError(
                    f"{path.name}: a second channel (_{match[1]}). Give one per volume, the B-mode, as _0000."
                )
            stem = stem.removesuffix(match[0])
        if stem in named:
            raise DatasetError(
                f"{folder}: {named[stem].name} and {path.name} are both named {stem!r}. Keep one of them."
            )
        named[stem] = path
    return named


def _case(pair: _Pair, names: dict[int, str] | None, patient: str | None) -> Case:
    try:
        image, label = probe(pair.image), probe(pair.label)
    except ReadError as error:
        raise DatasetError(f"{pair.name}: {error}") from error
    _check_one_grid(pair, image.grid, label.grid)
    for path, header in ((pair.image, image), (pair.label, label)):
        if header.frames != 1 or header.grid.is_planar:
            raise DatasetError(
                f"{path.name}: a {header.kind} of {header.frames} frames; pairs are single volumes. Export "
                "the frame that is labelled as a volume of its own."
            )
    reference = {"label": str(pair.label), "label_names": names}
    content = _content_key(pair.image)
    return Case(pair.name, patient or content, pair.image, reference, dataset="pairs", content=content)


def _check_one_grid(pair: _Pair, image: Grid, label: Grid) -> None:
    both = f"{pair.image.name} and {pair.label.name}"
    way = "Export the label map on the grid of its volume"
    if image.shape != label.shape:
        raise DatasetError(f"{both}: {image.shape} and {label.shape} samples (z, y, x). {way}.")
    if image.is_calibrated != label.is_calibrated:
        one = pair.label.name if image.is_calibrated else pair.image.name
        raise DatasetError(f"{both}: only one has a scale. {way}, with its header; {one} has none.")
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape], indexing="ij")).reshape(3, -1).T
    apart = float(np.linalg.norm(image.to_world(corners) - label.to_world(corners), axis=1).max())
    if apart > _CORNER_MAX * min(image.step):
        unit = "mm" if image.is_calibrated else "samples"
        raise DatasetError(
            f"{both}: the same shape, but their corners lie up to {apart:.3g} {unit} apart (spacing, origin "
            f"or axes differ). {way}."
        )


def _label_names(root: Path) -> dict[int, str] | None:
    """Read value to name from ``dataset.json`` or ``labels.json``; None without either."""
    for path in (root / "dataset.json", root / "labels.json"):
        if not path.is_file():
            continue
        content = _json(path)
        labels = content.get("labels", content if path.name == "labels.json" else None)
        if not isinstance(labels, dict) or not labels:
            raise DatasetError(
                f'{path}: needs "labels", such as {{"labels": {{"background": 0, "fetus": 1}}}}.'
            )
        return _value_to_name(path, labels)
    return None


def _value_to_name(path: Path, labels: Mapping[str, Any]) -> dict[int, str]:
    named: dict[int, str] = {}
    for key, value in labels.items():
        # nnU-Net v1 writes {"1": "fetus"}, v2 {"fetus": 1}.
        name, number = (value, key) if isinstance(value, str) and key.isdigit() else (key, value)
        if isinstance(number, list) or not str(number).isdigit():
            raise DatasetError(
                f"{path}: label {name!r} is {number!r}; one whole number per name is needed (no regions)."
            )
        if int(number) in named:
            raise DatasetError(f"{path}: {named[int(number)]!r} and {name!r} have the same value {number}.")
        if int(number) != 0:
            named[int(number)] = name
    return named


def _mapping(path: Path, own: Mapping[int, str] | None, task: Mapping[int, str]) -> dict[int, int]:
    """Map the data set's values to the task's by name."""
    if own is None:
        return {value: value for value in task}
    of = {_plain(name): value for value, name in task.items()}
    unknown = sorted(name for name in own.values() if _plain(name) not in of)
    if unknown:
        raise DatasetError(
            f"{path.name}: the labels {_some(unknown)} are none of the task's: {', '.join(task.values())}. "
            "Rename them in dataset.json, or set those values to 0 in the label maps and drop the names."
        )
    return {value: of[_plain(name)] for value, name in own.items()}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().lower())


def _patients(root: Path, names: list[str]) -> dict[str, str]:
    table, mapping = root / "patients.csv", root / "patients.json"
    if table.is_file():
        return _named_patients(table, _csv_patients(table), names)
    if not mapping.is_file():
        logger.warning(
            "%s: no patients.csv or patients.json, so each of %d volumes counts as its own patient. If some "
            "are of one patient, results on held-out volumes will look better than they are.",
            root,
            len(names),
        )
        return {}
    content = _json(mapping)
    if set(content) == {"pattern"}:
        return _pattern_patients(mapping, str(content["pattern"]), names)
    strange = [key for key, value in content.items() if not isinstance(value, str | int) or value is True]
    if strange:
        raise DatasetError(f"{mapping}: a patient is a text or a whole number, unlike for {_some(strange)}.")
    return _named_patients(mapping, [(key, str(value)) for key, value in content.items()], names)


def _csv_patients(table: Path) -> list[tuple[str, str]]:
    with table.open(encoding="utf-8-sig", newline="") as handle:
        rows = csv.DictReader(handle)
        if not {"case", "patient"} <= set(rows.fieldnames or ()):
            raise DatasetError(f"{table}: needs the columns 'case' and 'patient', has {rows.fieldnames}.")
        return [(row["case"], row["patient"]) for row in rows]


def _named_patients(path: Path, stated: list[tuple[str, str]], names: list[str]) -> dict[str, str]:
    patients: dict[str, str] = {}
    for written, patient in stated:
        name, patient = LABEL_ENDING.sub("", name_of(Path((written or "").strip()))), (patient or "").strip()
        if patients.setdefault(name, patient) != patient:
            raise DatasetError(f"{path}: names two patients for {name!r}. Keep one row for each volume.")
    missing = [name for name in names if not patients.get(name)]
    if missing:
        raise DatasetError(f"{path}: names no patient for {_some(missing)}. Add a row for each volume.")
    return patients


def _pattern_patients(path: Path, pattern: str, names: list[str]) -> dict[str, str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DatasetError(f"{path}: the pattern is no regular expression ({error}).") from error
    if "patient" not in compiled.groupindex:
        raise DatasetError(f"{path}: the pattern needs a group (?P<patient>…), it is {pattern!r}.")
    matches = {name: compiled.search(name) for name in names}
    missing = [name for name, match in matches.items() if match is None or not match["patient"]]
    if missing:
        raise DatasetError(f"{path}: the pattern {pattern!r} finds no patient in {_some(missing)}.")
    return {name: match["patient"] for name, match in matches.items() if match is not None}


def _content_key(path: Path) -> str:
    """Name a volume by its content, so that a copy elsewhere is known as the same."""
    digest = hashlib.sha256()
    for part in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        with part.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: must hold an object {{…}}, and holds a {type(content).__name__}.")
    return content


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
