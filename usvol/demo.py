"""Show the main job without any data set: simulated lung clips through ``covid_severity``."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from usvol import synthesis, writing
from usvol.batch.ledger import open_ledger
from usvol.batch.outcome import Outcome
from usvol.batch.study import Existing, Plan, run_study
from usvol.errors import ConfigError

TASK = "covid_severity"
PHANTOM = "lung"
_MARK = ".usvol-demo"


@dataclass(frozen=True, slots=True)
class Compared:
    """Truth and estimate of one simulated clip."""

    clip: str
    truth: str
    estimate: str


@dataclass(frozen=True, slots=True)
class Shown:
    """What the demo made."""

    task: str
    rows: tuple[Compared, ...]
    report: Path

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        rows = [asdict(row) for row in self.rows]
        return {"task": self.task, "simulated": True, "rows": rows, "report": str(self.report)}


def show(
    out: Path,
    *,
    count: int = 6,
    seed: int = 0,
    device: str = "auto",
    task: str = TASK,
    phantom: str = PHANTOM,
) -> Shown:
    """Simulate ``count`` clips below ``out``, run the task on them and write its report.

    Raises:
        ConfigError: ``out`` holds something else than an earlier demo, or cannot be written to.
    """
    _make_room(out)
    made = synthesis.synthesise(phantom, out=out / "clips", count=count, seed=seed)
    plan = Plan(
        task=task,
        inputs=(str(out / "clips"),),
        out=out / "results",
        device=device,
        existing=Existing.OVERWRITE,
    )
    summary = run_study(plan, on_start=lambda _total: None, on_outcome=lambda _outcome: None)
    with open_ledger(plan.out) as ledger:
        outcomes = {Path(outcome.path).name: outcome for outcome in ledger.outcomes()}
    pairs = [(one, outcomes[one.path.name]) for one in made]
    rows = tuple(Compared(one.path.name, _truth(one, had), _estimate(had)) for one, had in pairs)
    return Shown(task, rows, summary.report)


def _make_room(out: Path) -> None:
    writing.make_folder(out)
    if any(out.iterdir()) and not (out / _MARK).exists():
        raise ConfigError(f"{out} is not empty and no earlier demo. Give another folder with -o.")
    (out / _MARK).touch()
    shutil.rmtree(out / "clips", ignore_errors=True)


def _truth(one: synthesis.Synthetic, outcome: Outcome) -> str:
    """Tell what the phantom knows about the things that were measured."""
    measured = outcome.row.get("measurements", {})
    asked = {key: value for key, value in one.truth.items() if any(name.startswith(key) for name in measured)}
    plain = {key: value for key, value in asked.items() if isinstance(value, bool | int | float | str)}
    return ", ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in plain.items())


def _estimate(outcome: Outcome) -> str:
    if outcome.message:
        return f"{outcome.status}: {outcome.message}"
    measured = {k: v for k, v in outcome.row["measurements"].items() if not k.endswith((" low", " high"))}
    return ", ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in measured.items())


def _number(value: float | str | None) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
