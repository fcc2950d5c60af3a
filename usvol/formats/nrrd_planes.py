"""Give SimpleITK an NRRD of planes in 3D space, which it refuses, in a form that it reads.

A singleton axis along the planes' normal changes no sample, and makes the header one of a volume.

Source: https://teem.sourceforge.net/nrrd/format.html ("space directions", "line skip", "data file").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

_VECTOR = re.compile(r"none|\([^)]*\)", re.IGNORECASE)
_KEPT = ("type", "endian", "encoding", "space", "space dimension", "space origin", "byte skip", "byteskip")


@contextmanager
def readable(path: Path, fields: Mapping[str, str]) -> Iterator[Path]:
    """Give the path of a header that SimpleITK reads: for planes in 3D space a temporary one, else ``path``.

    ``fields`` are those of the header, keys in lower case.
    """
    cells = _VECTOR.findall(fields.get("space directions", ""))
    axes = [place for place, cell in enumerate(cells) if cell.startswith("(")]
    vectors = [[float(part) for part in cells[place].strip("()").split(",")] for place in axes]
    place = fields.get("data file", fields.get("datafile"))
    is_one_file = place is None or (place.split()[:1] != ["LIST"] and "%" not in place)
    if [len(vector) for vector in vectors] != [3, 3] or not is_one_file:
        yield path
        return
    normal = np.cross(vectors[0], vectors[1])
    length = float(np.linalg.norm(normal)) or 1.0
    added = {
        "sizes": "1",
        "kinds": "domain",
        "space directions": f"({','.join(repr(float(value)) for value in normal / length)})",
    }
    kinds = fields.get("kinds") or " ".join("domain" if cell.startswith("(") else "list" for cell in cells)
    stated = {"sizes": fields["sizes"].split(), "kinds": kinds.split(), "space directions": cells}
    for name, values in stated.items():
        stated[name] = [*values[: axes[-1] + 1], added[name], *values[axes[-1] + 1 :]]
    skipped = _lines(path) if place is None else fields.get("line skip", fields.get("lineskip", "0"))
    lines = [
        f"dimension: {len(stated['sizes'])}",
        *(f"{name}: {fields[name]}" for name in _KEPT if name in fields),
        *(f"{name}: {' '.join(values)}" for name, values in stated.items()),
        f"line skip: {skipped}",
        f"data file: {(path.parent / (place or path.name)).absolute()}",
    ]
    with TemporaryDirectory(prefix="usvol-") as folder:
        header = Path(folder, "planes.nhdr")
        header.write_text("\n".join(["NRRD0004", *lines, ""]), encoding="utf-8")
        yield header


def _lines(path: Path) -> int:
    """Count the lines before the samples of an attached header, the empty one included."""
    with path.open("rb") as file:
        return next((count for count, line in enumerate(file, 1) if not line.strip()), 0)
