"""Turn values into what strict JSON and file names can hold."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any


def jsonable(value: Any) -> Any:
    """Turn configs, paths, arrays and scalars into what JSON can hold."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy and torch
        return jsonable(value.tolist())
    if hasattr(value, "model_dump"):
        return jsonable(value.model_dump(mode="json"))
    if isinstance(value, Iterable):
        return [jsonable(item) for item in value]
    return str(value)


def slug(text: str, *, limit: int = 60) -> str:
    """Return a file name for ``text``: ASCII letters, digits, ``-`` and ``_``, never empty."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "-", plain).strip("-")[:limit].strip("-") or "item"
