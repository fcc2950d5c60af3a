"""What became of one item, and the row it adds to the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """What became of an item."""

    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"
    PENDING = "pending"
    RUNNING = "running"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item.

    Attributes:
        reason: stable code, such as ``KindError``; empty when done.
        message: for the user; empty when done.
        seconds: spent on it in this run.
        row: kind, measurements (``"name [unit]"``), flags and preview, for table and report.
        resumed: the result was complete already and was not computed again.
    """

    id: str
    order: int
    path: str
    status: Status
    reason: str = ""
    message: str = ""
    seconds: float = 0.0
    row: Mapping[str, Any] = field(default_factory=dict)
    resumed: bool = False


def row_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce the content of a ``result.json`` to the facts that table and report need."""
    measurements: dict[str, Any] = {}
    for item in content["measurements"]:
        title = item["name"] if item["unit"] in {"", "1"} else f"{item['name']} [{item['unit']}]"
        measurements[title] = item["value"]
        for bound in ("low", "high"):
            if item.get(bound) is not None:
                measurements[f"{title} {bound}"] = item[bound]
    return {
        "kind": content["kind"],
        "patient_key": content["input"]["patient_key"],
        "calibration": content["input"]["calibration"]["trust"],
        "measurements": measurements,
        "scores": {
            f["name"]: dict(zip(f["classes"], f["probabilities"], strict=True)) | {"": f["decision"]}
            for f in content["findings"]
            if f["type"] == "scores"
        },
        "flags": [[flag["code"], flag["severity"], flag["message"]] for flag in content["flags"]],
        "preview": content["preview"],
        "input_sha256": content["provenance"].get("input_sha256"),
    }
