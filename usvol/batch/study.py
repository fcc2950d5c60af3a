"""Run one task over many inputs into one output folder, resumably."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sqlite3
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from usvol import pipeline, registry, writing
from usvol.batch import item as items
from usvol.batch.discovery import Found, Ignored, Item, discover, resolved
from usvol.batch.item import Stated
from usvol.batch.ledger import LEDGER_FILE, Ledger, open_ledger
from usvol.batch.local import execute
from usvol.batch.outcome import Outcome, Status
from usvol.batch.run_file import RUN_FILE, SCHEMA, read_run
from usvol.batch.tables import write_tables
from usvol.encoding import jsonable
from usvol.errors import CancelledError, ConfigError, DiskFullError, ProcessDiedError, ReadError
from usvol.loading import printable
from usvol.task import Task

_MAX_CRASHES = 3
_LOCK_FILE = ".lock"
_OURS = (
    "items",
    "quarantine",
    LEDGER_FILE,
    RUN_FILE,
    "measurements.csv",
    "measurements.parquet",
    "report.html",
)


class Existing(StrEnum):
    """What to do with results that are in the output folder already."""

    REFUSE = "refuse"
    RESUME = "resume"
    OVERWRITE = "overwrite"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run, on what, into where.

    Attributes:
        inputs: files, folders and globs. settings: overrides of the task's configuration.
        workers: items in work at a time. fail_fast: stop at the first failure.
    """

    task: str
    inputs: tuple[str, ...]
    out: Path
    device: str = "auto"
    settings: Mapping[str, Any] = field(default_factory=dict)
    config_file: Path | None = None
    stated: Stated = field(default_factory=Stated)
    workers: int = 2
    existing: Existing = Existing.REFUSE
    fail_fast: bool = False


@dataclass(frozen=True, slots=True)
class Summary:
    """How a batch ended.

    Attributes:
        state: ``finished``, ``stopped`` (fail-fast) or ``interrupted``.
        counts: items by status over the whole folder; ignored: files left aside.
        computed: items done in this run, at ``rate`` per second; resumed: complete before.
    """

    task: str
    state: str
    counts: Mapping[Status, int]
    ignored: int
    computed: int
    resumed: int
    seconds: float
    report: Path

    @property
    def rate(self) -> float:
        """Items computed per second in this run."""
        return self.computed / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {
            "task": self.task,
            "state": self.state,
            **{str(status): self.counts[status] for status in Status},
            "ignored": self.ignored,
            "computed": self.computed,
            "resumed": self.resumed,
            "seconds": round(self.seconds, 2),
            "items_per_second": round(self.rate, 3),
            "report": printable(self.report),
        }


def run_study(
    plan: Plan, *, on_start: Callable[[int], None], on_outcome: Callable[[Outcome], None]
) -> Summary:
    """Run a plan to its end, to the first failure (fail-fast) or to Ctrl-C; always leave table and report.

    The model is loaded once. ``on_start`` gets the number of items, ``on_outcome`` each outcome. Cancelling
    (``supervision.supervised``) interrupts as Ctrl-C does, items in work included.

    Raises:
        ConfigError: the inputs, the settings or the state of the output folder do not fit.
        WeightsError: the task's weights are missing or wrong.
    """
    registry.find(registry.Group.TASKS, plan.task)
    found = discover(plan.inputs, exclude=plan.out)
    if not found.items:
        raise ReadError(plan.inputs[0], _nothing(found), "give ultrasound files; 'usvol info PATH' shows why")
    task = registry.build_task(
        plan.task, device=plan.device, overrides=plan.settings, config_file=plan.config_file
    )
    with _sole_run(plan.out), _room_in(plan.out):
        return _run(plan, task, found, on_start=on_start, on_outcome=on_outcome)


def _run(
    plan: Plan,
    task: Task,
    found: Found,
    *,
    on_start: Callable[[int], None],
    on_outcome: Callable[[Outcome], None],
) -> Summary:
    identity = _identity(plan, task)
    _prepare_folder(plan, identity, found)
    # The logs of the items take more than the console shows.
    if not items.log.isEnabledFor(logging.INFO):
        items.log.setLevel(logging.INFO)
    begun, clock = datetime.now(UTC), time.perf_counter()
    on_start(len(found.items))
    tally = _Tally()
    with open_ledger(plan.out) as ledger:
        suspects = _suspects(ledger) if plan.existing is Existing.RESUME else _Suspects()
        ledger.plan(found.items, found.ignored)
        _drop_records(plan.out, found)
        try:
            with closing(_outcomes(plan, task, found.items, ledger=ledger, suspects=suspects)) as outcomes:
                for outcome in outcomes:
                    ledger.record(outcome)
                    tally.add(outcome)
                    on_outcome(outcome)
                    if plan.fail_fast and outcome.status is Status.FAILED:
                        tally.state = "stopped"
                        break
        except (KeyboardInterrupt, CancelledError):
            tally.state = "interrupted"
        except DiskFullError:
            with suppress(DiskFullError, sqlite3.DatabaseError):
                ledger.release()  # else these items would seem to have killed the process
            raise
        _collect(plan, found.items, ledger=ledger, tally=tally)
        ledger.release()
        seconds = time.perf_counter() - clock
        summary = _summary(plan, ledger, tally, seconds)
        facts = _run_facts(plan, identity, begun, summary) | {"model": jsonable(task.provenance)}
        writing.write_json(plan.out / RUN_FILE, facts)
        finish(plan.out, ledger, facts=facts)
    return summary


def finish(out: Path, ledger: Ledger, *, facts: Mapping[str, Any]) -> None:
    """Write tables and report from the ledger."""
    from usvol.report.page import write_report

    write_tables(ledger.outcomes(), out)
    write_report(out, list(ledger.outcomes()), facts=facts, ignored=ledger.ignored())


def rebuild(out: Path) -> Path:
    """Write tables and report of an output folder again; return the report's path.

    Raises:
        ConfigError: the folder is not the output of a run.
    """
    facts = read_run(out)
    if facts is None or not (out / LEDGER_FILE).is_file():
        raise ConfigError(f"{out} is not the output of 'usvol run': it has no {RUN_FILE} and {LEDGER_FILE}.")
    writing.make_folder(out)  # as far as it may be written to
    with open_ledger(out) as ledger:
        finish(out, ledger, facts=facts)
    return out / "report.html"


@dataclass(slots=True)
class _Tally:
    computed: int = 0
    resumed: int = 0
    state: str = "finished"

    def add(self, outcome: Outcome) -> None:
        if outcome.status is Status.DONE:
            self.resumed += outcome.resumed
            self.computed += not outcome.resumed


@dataclass(frozen=True, slots=True)
class _Suspects:
    """Items during which the process died: how often so far, and those given up after an earlier death."""

    deaths: Mapping[str, int] = field(default_factory=dict)
    given_up: frozenset[str] = frozenset()


def _suspects(ledger: Ledger) -> _Suspects:
    return _Suspects(ledger.running(), ledger.died())


def _outcomes(
    plan: Plan, task: Task, todo: tuple[Item, ...], *, ledger: Ledger, suspects: _Suspects
) -> Generator[Outcome]:
    """Yield complete results first, then compute the rest.

    What was in work when the process died is computed first and alone: of several, one killed it.
    """
    rest: list[Item] = []
    for item in todo:
        complete = items.resume(item, out=plan.out) if plan.existing is Existing.RESUME else None
        if complete is not None:
            yield complete
        elif suspects.deaths.get(item.id, 0) >= _MAX_CRASHES or _stays_given_up(plan, item, suspects):
            yield items.failed(item, _died(item), out=plan.out)
        else:
            rest.append(item)
    alone = [item for item in rest if item.id in suspects.deaths]
    others = [item for item in rest if item.id not in suspects.deaths]
    for some, workers in ((alone, 1), (others, plan.workers)):
        computed = execute(
            task,
            some,
            out=plan.out,
            stated=plan.stated,
            workers=workers,
            started=lambda item: ledger.start(item.id),
        )
        with closing(computed):
            yield from computed


def _stays_given_up(plan: Plan, item: Item, suspects: _Suspects) -> bool:
    """Tell whether an item was given up before, and nobody took its record away to have it tried again."""
    return item.id in suspects.given_up and items.record_of(item, out=plan.out).is_file()


def _died(item: Item) -> ProcessDiedError:
    return ProcessDiedError(
        item.path,
        f"the process died {_MAX_CRASHES} times while working on it",
        f"run it alone to see the cause; to have it tried again delete quarantine/{item.id}.json",
    )


def _collect(plan: Plan, todo: tuple[Item, ...], *, ledger: Ledger, tally: _Tally) -> None:
    """Enter items that were finished while the run was being stopped."""
    begun = ledger.running()
    for item in todo if begun else ():
        complete = items.resume(item, out=plan.out) if item.id in begun else None
        if complete is not None:
            ledger.record(complete)
            tally.computed += 1


def _prepare_folder(plan: Plan, identity: Mapping[str, Any], found: Found) -> None:
    out = plan.out
    inner = [out / "items", out / "quarantine"]
    for item in found.items:
        if any(resolved(item.path).is_relative_to(resolved(folder)) for folder in inner):
            raise ConfigError(f"Input {item.path} lies in the output folder {out}. Give another -o.")
    facts = read_run(out)
    taken = [name for name in _OURS if (out / name).exists()]
    if taken and facts is None:
        raise ConfigError(f"{out} holds {', '.join(taken)}, not written by 'usvol run'. Give another -o.")
    if facts is not None and plan.existing is Existing.REFUSE:
        raise ConfigError(f"{out} holds results already. Add --resume or --overwrite, or give another -o.")
    if facts is not None and plan.existing is Existing.RESUME and facts["identity"] != jsonable(identity):
        changed = [key for key, value in jsonable(identity).items() if facts["identity"].get(key) != value]
        raise ConfigError(
            f"{out} was made with another {', '.join(changed)}: results would mix. "
            "Give the same settings, --overwrite, or another -o."
        )
    if plan.existing is Existing.OVERWRITE:
        _clear(out)
    writing.make_folder(out)
    facts = {"schema": SCHEMA, "state": "running", "task": plan.task, "identity": identity}
    writing.write_json(out / RUN_FILE, facts)


@contextmanager
def _sole_run(out: Path) -> Iterator[None]:
    """Keep other runs out of an output folder.

    Raises:
        ConfigError: another run is at work there.
    """
    writing.make_folder(out)
    try:
        held = FileLock(out / _LOCK_FILE).acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"Another run is at work in {out}. Wait for it, or give another -o.") from error
    except NotImplementedError:
        held = nullcontext()  # a file system without locks
    with held:
        try:
            yield
        finally:
            (out / _LOCK_FILE).unlink(missing_ok=True)


@contextmanager
def _room_in(out: Path) -> Iterator[None]:
    """Say of a full disk what it is, wherever it is met. Raises: DiskFullError."""
    try:
        yield
    except OSError as error:
        if error.errno in items.FULL:
            raise DiskFullError(out) from error
        raise


def _drop_records(out: Path, found: Found) -> None:
    """Delete the records of failures of items that are no input any more."""
    wanted = {f"{item.id}.json" for item in found.items}
    for record in (out / "quarantine").glob("*.json"):
        if record.name not in wanted:
            record.unlink(missing_ok=True)


def _clear(out: Path) -> None:
    # run.json goes last: until then the folder is known as ours.
    for name in sorted(_OURS, key=lambda n: n == RUN_FILE):
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _identity(plan: Plan, task: Task) -> dict[str, Any]:
    """Say what makes two runs give the same answers."""
    facts = {key: value for key, value in task.provenance.items() if key not in {"device", "task"}}
    digest = hashlib.sha256(json.dumps(jsonable(facts), sort_keys=True).encode()).hexdigest()[:16]
    return {
        "task": plan.task,
        "config": task.provenance.get("config"),
        "model": digest,
        "spacing": plan.stated.spacing_mm,
        "fps": plan.stated.fps,
    }


def _run_facts(plan: Plan, identity: Mapping[str, Any], begun: datetime, summary: Summary) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "state": summary.state,
        "task": plan.task,
        "identity": identity,
        "inputs": [printable(given) for given in plan.inputs],
        "device": plan.device,
        "workers": plan.workers,
        "begun": begun.isoformat(timespec="seconds"),
        "summary": summary.to_json(),
        "versions": dict(pipeline.versions()),
        "notice": "Not a medical device.",
    }


def _summary(plan: Plan, ledger: Ledger, tally: _Tally, seconds: float) -> Summary:
    return Summary(
        task=plan.task,
        state=tally.state,
        counts=ledger.counts(),
        ignored=len(ledger.ignored()),
        computed=tally.computed,
        resumed=tally.resumed,
        seconds=seconds,
        report=plan.out / "report.html",
    )


def _nothing(found: Found) -> str:
    if not found.ignored:
        return "it holds no file"
    if {why for _, why in found.ignored} == {Ignored.RESULTS}:
        return "it holds nothing but the results of an earlier run"
    return f"none of its {len(found.ignored)} files is an ultrasound image, volume or video"
