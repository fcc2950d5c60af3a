"""Store of trained weights: safetensors beside a model card that states their sha256.

``<package>/weights/NAME.safetensors`` holds the tensors, ``NAME.md`` the card: YAML front matter
(``sha256``, ``task``, ``licence``, ``data``, ``metrics``, …) and prose. Listing and verifying
need no torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usvol.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

_FENCE = "---"


class Check(StrEnum):
    """Outcome of comparing a weights file with its card."""

    OK = "ok"
    MISSING = "weights missing"
    NO_CARD = "no model card"
    NO_CHECKSUM = "card states no sha256"
    MISMATCH = "sha256 differs from the card"


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Verified tensors (floating point as float32), on the CPU.

    Attributes:
        metadata: strings stored in the safetensors header.
        sha256: of the file, as the card states it.
        card: path of the model card.
    """

    name: str
    state: dict[str, Tensor]
    metadata: dict[str, str]
    sha256: str
    card: Path


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry of the store, as its card describes it; ``path`` need not exist."""

    package: str
    name: str
    path: Path
    card: Path
    facts: Mapping[str, Any]

    @property
    def size_mb(self) -> float | None:
        """File size in MB, or None when the file is missing."""
        return self.path.stat().st_size / 1e6 if self.path.is_file() else None


def find(package: str, name: str) -> Weights:
    """Load what a task's ``weights`` setting names: shipped by ``package``, or a file of one's own.

    Raises:
        WeightsError: no such weights, or the checksum differs.
    """
    return load_file(Path(name)) if name.endswith(".safetensors") else load(package, name)


def load(package: str, name: str) -> Weights:
    """Load the weights ``name`` shipped by ``package`` after checking their sha256.

    Half precision is widened to float32.

    Raises:
        WeightsError: file or card missing, or the checksum differs.

    Example:
        >>> weights = load("video", "covid_severity")  # doctest: +SKIP
    """
    listed = _listed(package, _folder(package) / f"{name}.safetensors")
    return _read(listed, require(listed))


def load_file(path: Path) -> Weights:
    """Load weights from a file of one's own, such as ``train`` wrote; its card is checked if it has one.

    Raises:
        WeightsError: the file is missing or no safetensors file, or differs from its card.
    """
    path = Path(path)
    listed = _listed(path.parent.name, path)
    outcome = check(listed)
    if outcome in {Check.MISSING, Check.MISMATCH}:
        raise WeightsError(f"{path}: {outcome}. Give the file that 'usvol train' wrote, with its card.")
    return _read(listed, sha256_of(path))


def save(path: Path, state: Mapping[str, Tensor], *, metadata: Mapping[str, str], half: bool = False) -> str:
    """Write ``state`` as safetensors (atomically) and return the sha256 of the file.

    ``half`` stores floating point as float16, at half the size; ``load`` widens it again.
    """
    import torch
    from safetensors.torch import save_file

    def stored(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().cpu()
        if half and tensor.is_floating_point():
            limit = torch.finfo(torch.float16).max
            if tensor.numel() and not bool((tensor.abs() <= limit).all()):
                raise ValueError("a weight is not finite or too large for float16")
            tensor = tensor.half()
        return tensor.contiguous().clone()

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    save_file({key: stored(value) for key, value in state.items()}, partial, metadata=dict(metadata))
    _sort_metadata(partial)
    partial.replace(path)
    return sha256_of(path)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file, written in any order, so that like files have one sha256."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:  # else it was written in another style, and stays as it is
            file.seek(8)
            file.write(text.ljust(size))


def inventory(packages: Iterable[str]) -> list[Listed]:
    """List every model card and weights file of ``packages``, in order of package and name."""
    found: list[Listed] = []
    for package in packages:
        folder = _folder(package)
        names = {p.stem for p in (*folder.glob("*.safetensors"), *folder.glob("*.md")) if p.stem != "README"}
        for name in sorted(names):
            path = folder / f"{name}.safetensors"
            try:
                found.append(_listed(package, path))
            except WeightsError as error:
                if path.is_file():
                    raise
                logger.warning("%s; it is no model card, and left aside", error)
    return found


def check(listed: Listed) -> Check:
    """Compare a weights file with the sha256 its card states."""
    if not listed.path.is_file():
        return Check.MISSING
    if not listed.card.is_file():
        return Check.NO_CARD
    stated = listed.facts.get("sha256")
    if not stated:
        return Check.NO_CHECKSUM
    return Check.OK if sha256_of(listed.path) == str(stated).lower() else Check.MISMATCH


def require(listed: Listed) -> str:
    """Return the sha256 of verified weights, or raise ``WeightsError`` saying what is wrong."""
    outcome = check(listed)
    if outcome is Check.OK:
        return str(listed.facts["sha256"]).lower()
    raise WeightsError(f"{listed.path}: {outcome}. {_REINSTALL}")


def read_card(path: Path) -> tuple[dict[str, Any], str]:
    """Return the front matter and the prose of a model card.

    Raises:
        WeightsError: the front matter is missing or not valid YAML.
    """
    import yaml

    text = path.read_text(encoding="utf-8")
    head, fence, body = text.removeprefix(_FENCE + "\n").partition(f"\n{_FENCE}\n")
    if not text.startswith(_FENCE + "\n") or not fence:
        raise WeightsError(f"{path}: a model card begins with YAML between two lines of '---'.")
    try:
        facts = yaml.safe_load(head)
    except yaml.YAMLError as error:
        raise WeightsError(f"{path}: front matter is not valid YAML: {error}") from error
    if not isinstance(facts, dict):
        raise WeightsError(f"{path}: front matter must hold 'key: value' lines.")
    return facts, body.lstrip("\n")


def write_card(path: Path, facts: Mapping[str, Any], *, body: str) -> None:
    """Write a model card: ``facts`` (with ``sha256``) as front matter, ``body`` as Markdown."""
    import yaml

    if "sha256" not in facts:
        raise WeightsError(f"{path}: a model card must state the sha256 of its weights.")
    head = yaml.safe_dump(dict(facts), sort_keys=False, allow_unicode=True, width=110)
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(f"{_FENCE}\n{head}{_FENCE}\n\n{body.strip()}\n", encoding="utf-8")
    partial.replace(path)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as lower-case hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_REINSTALL = "Reinstall the package, or copy the weights file named on the model card to this path"
_REINSTALL += " ('usvol models verify' checks all)."


def _read(listed: Listed, sha256: str) -> Weights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(listed.path, framework="pt") as handle:
            metadata = dict(handle.metadata() or {})
            state = {key: _widen(handle.get_tensor(key)) for key in handle.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"{listed.path}: not a safetensors file ({error}). {_REINSTALL}") from error
    return Weights(name=listed.name, state=state, metadata=metadata, sha256=sha256, card=listed.card)


def _listed(package: str, path: Path) -> Listed:
    card = path.with_suffix(".md")
    facts = read_card(card)[0] if card.is_file() else {}
    return Listed(package=package, name=path.stem, path=path, card=card, facts=facts)


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(f"Package {package!r} is not installed, so its weights cannot be found.")
    return Path(next(iter(spec.submodule_search_locations))) / "weights"


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
