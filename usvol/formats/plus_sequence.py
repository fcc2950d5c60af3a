"""Tracked sweeps of the PLUS toolkit: poses, time stamps and orientation in a MetaImage or NRRD header.

Source: https://plustoolkit.github.io, sequence metafile and UltrasoundImageOrientation.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from usvol.scan import IDENTITY, Matrix3

_FRAME_KEY = re.compile(r"Seq_Frame(\d+)_(\w+)$")
_MAX_XML_BYTES = 1 << 20
# World axes of the probe, (z, y, x): x to the marked side, y away from the probe.
_LETTERS = {"M": (0, 0, 1), "U": (0, 0, -1), "F": (0, 1, 0), "N": (0, -1, 0), "A": (1, 0, 0), "D": (-1, 0, 0)}


@dataclass(frozen=True, slots=True, eq=False)
class Sequence:
    """What a PLUS header says of each frame.

    Attributes:
        poses: transform name, such as ``"ProbeToTracker"``, to float64 (frames, 4, 4) in the file's
            (x, y, z) convention, mm; NaN where a frame has none.
        pose_status: the same names to one word per frame, such as ``"OK"``.
        timestamps_s: as stored, or None if any frame has none.
        image_status: one word per frame.
        orientation: UltrasoundImageOrientation, such as ``"MF"``, or None.
        image_type: UltrasoundImageType, such as ``"BRIGHTNESS"``, or None.
    """

    poses: Mapping[str, np.ndarray]
    pose_status: Mapping[str, tuple[str, ...]]
    timestamps_s: tuple[float, ...] | None
    image_status: tuple[str, ...]
    orientation: str | None
    image_type: str | None


def has_frame_fields(fields: Mapping[str, str]) -> bool:
    """Tell whether a header describes single frames of a sweep."""
    return any(map(_FRAME_KEY.match, fields))


def parse_sequence(fields: Mapping[str, str], frames: int) -> Sequence | None:
    """Return the sequence fields of a header, or None if it has none.

    Raises:
        ValueError: a pose is not 16 numbers, or a time stamp is none.
    """
    stated: dict[str, dict[int, str]] = {}
    for key, value in fields.items():
        if match := _FRAME_KEY.match(key):
            stated.setdefault(match[2], {})[int(match[1])] = value
    if not stated and "UltrasoundImageOrientation" not in fields:
        return None
    poses = {
        name.removesuffix("Transform"): np.array([_matrix(values.get(i)) for i in range(frames)])
        for name, values in stated.items()
        if name.endswith("Transform")
    }
    status = {
        name.removesuffix("TransformStatus"): _words(values, frames)
        for name, values in stated.items()
        if name.endswith("TransformStatus")
    }
    stamps = stated.get("Timestamp", {})
    times = tuple(float(stamps[i]) for i in range(frames)) if set(range(frames)) <= set(stamps) else None
    return Sequence(
        poses, status, times, _words(stated.get("ImageStatus", {}), frames),
        fields.get("UltrasoundImageOrientation"), fields.get("UltrasoundImageType"),
    )  # fmt: skip


def relative_times(sequence: Sequence) -> tuple[tuple[float, ...] | None, tuple[str, ...]]:
    """Return the frame times from the first frame on in s, or None with a warning."""
    stamps = sequence.timestamps_s
    if stamps is None:
        return None, ("frame times unknown: not every frame has a time stamp",)
    if len(stamps) < 2:
        return None, ()
    steps = np.diff(stamps)
    if not (np.isfinite(steps) & (steps > 0)).all():
        return None, ("frame times unknown: the time stamps do not increase",)
    return tuple(float(stamp - stamps[0]) for stamp in stamps), ()


def order_warnings(sequence: Sequence) -> tuple[str, ...]:
    """Warn of rows that are scan lines, and of frames that the device marked as invalid."""
    notes = []
    if (sequence.orientation or "").upper().startswith(("F", "N")):
        notes.append(f"its rows are scan lines ({sequence.orientation}): it is not scan-converted")
    if invalid := sum(status not in ("", "OK") for status in sequence.image_status):
        notes.append(f"{invalid} frame(s) are marked as invalid")
    return tuple(notes)


def probe_axes(orientation: str | None) -> Matrix3 | None:
    """Return the direction (columns: index z, y, x) that an orientation code states, or None.

    The first letter says where x points, the second y, the third z: M marked or U unmarked side,
    F far from or N near to the probe, A ascending or D descending elevation.
    """
    letters = [_LETTERS.get(letter) for letter in (orientation or "").upper()]
    if len(letters) not in (2, 3) or any(letter is None for letter in letters):
        return None
    x, y = np.array(letters[0]), np.array(letters[1])
    z = np.array(letters[2]) if len(letters) == 3 else np.array([1, 0, 0])
    axes = np.stack([z, y, x], axis=1)
    if abs(np.linalg.det(axes)) != 1:
        return None
    first, second, third = (tuple(float(v) for v in row) for row in axes)
    matrix = (first, second, third)
    return IDENTITY if matrix == IDENTITY else matrix  # type: ignore[return-value]


def scale_hint(path: Path) -> str:
    """Say which pixel size the PLUS configuration beside a sequence gives, if there is one.

    It is not applied: nothing ties that file to this one but its name.
    """
    configuration = path.with_name(path.name.split(".")[0] + ".xml")
    if not configuration.is_file():
        return "the true scale is in the PLUS configuration XML of the recording"
    try:
        if configuration.stat().st_size > _MAX_XML_BYTES:
            raise ValueError("too long")
        root = ET.fromstring(configuration.read_bytes())  # noqa: S314  small, and expat expands no bombs
        for transform in root.iter("Transform"):
            if transform.get("From") == "Image" and transform.get("To") == "Probe":
                columns = np.linalg.norm(_matrix(transform.get("Matrix"))[:3, :2], axis=0)
                return f"{configuration.name} beside it states {columns[1]:.4f} × {columns[0]:.4f} mm (y, x)"
    except (ET.ParseError, ValueError, OSError):
        pass
    return f"the true scale may be in {configuration.name} beside it"


def _matrix(text: str | None) -> np.ndarray:
    if text is None:
        return np.full((4, 4), np.nan)
    values = np.array([float(value) for value in text.split()])
    if values.shape != (16,):
        raise ValueError(f"a pose has {len(values)} numbers instead of 16")
    return values.reshape(4, 4)


def _words(values: Mapping[int, str], frames: int) -> tuple[str, ...]:
    return tuple(values.get(i, "") for i in range(frames))
