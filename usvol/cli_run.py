"""Verbs ``run`` and ``report``."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from usvol.cli_options import taking
from usvol.cli_output import ExitCode, console, parse_settings, parse_spacing, print_json, set_logging
from usvol.errors import ConfigError, KindError

if TYPE_CHECKING:
    from usvol.batch.outcome import Outcome
    from usvol.batch.study import Plan, Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Arguments and options of ``usvol run``."""

    task: Annotated[str, typer.Argument(help="Name of the task; see 'usvol tasks'.")]
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files, folders (searched), globs.")]
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for results.")]
    device: Annotated[str, typer.Option("-d", "--device", help="auto, cpu, cuda or cuda:N.")] = "auto"
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set one of the task's settings.")
    ] = None
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")] = None
    spacing: Annotated[
        str | None,
        typer.Option("--spacing", help="State the scale of all inputs in mm: z,y,x or y,x or one."),
    ] = None
    fps: Annotated[
        float | None, typer.Option("--fps", min=1e-3, max=1e6, help="State the frame rate of all cines.")
    ] = None
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, max=64, help="Items in work at a time.")
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Keep complete results, do the rest.")] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete earlier results in OUT.")] = False
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failure.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; run nothing.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Errors only.")] = False
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="More; twice for most.")] = 0


@taking(RunOptions)
def run(options: RunOptions) -> None:
    """Run a task over files, folders and globs."""
    set_logging(verbose=options.verbose, quiet=options.quiet)
    if options.dry_run:
        _dry_run(options.task, options.inputs, out=options.out, as_json=options.as_json)
        return
    summary = _run_plan(_plan(options), quiet=options.quiet)
    _print_summary(summary, as_json=options.as_json)
    _leave(summary)


def report(
    out: Annotated[Path, typer.Argument(help="Output folder of a run.")],
) -> None:
    """Write table and report of an output folder again."""
    from usvol.batch.discovery import expanded
    from usvol.batch.study import rebuild
    from usvol.loading import printable

    typer.echo(printable(rebuild(expanded(out))))


def _plan(options: RunOptions) -> Plan:
    from usvol.batch.item import Stated
    from usvol.batch.study import Existing, Plan

    if options.resume and options.overwrite:
        raise ConfigError("--resume and --overwrite exclude each other.")
    if options.fps is not None and math.isnan(options.fps):
        raise ConfigError("--fps takes frames per second, such as 25.")
    replaced = Existing.OVERWRITE if options.overwrite else Existing.REFUSE
    return Plan(
        task=options.task,
        inputs=tuple(options.inputs),
        out=options.out,
        device=options.device,
        settings=parse_settings(options.settings),
        config_file=options.config,
        stated=Stated(parse_spacing(options.spacing), options.fps),
        workers=options.workers or min(4, os.cpu_count() or 1),
        existing=Existing.RESUME if options.resume else replaced,
        fail_fast=options.fail_fast,
    )


def _run_plan(plan: Plan, *, quiet: bool) -> Summary:
    from usvol.batch.study import run_study

    before = signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        with _progress(plan.task, quiet=quiet) as (on_start, on_outcome):
            return run_study(plan, on_start=on_start, on_outcome=on_outcome)
    finally:
        signal.signal(signal.SIGTERM, before)


def _as_interrupt(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def _progress(
    title: str, *, quiet: bool
) -> Iterator[tuple[Callable[[int], None], Callable[[Outcome], None]]]:
    """Show a bar with the rate on a terminal, and failures as they come."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    from usvol.batch.outcome import Status

    screen = console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    hidden = quiet or not screen.is_terminal
    with Progress(*columns, console=screen, disable=hidden, transient=True) as bar:
        row = bar.add_task(title, total=None, rate="")

        def on_start(total: int) -> None:
            bar.update(row, total=total)

        def on_outcome(outcome: Outcome) -> None:
            speed = bar.tasks[0].speed
            bar.update(row, advance=1, rate=f"{speed:.2f}/s" if speed else "")
            if outcome.status is Status.FAILED and not quiet:
                said = Text.assemble(("failed", "red"), f" {outcome.path}: {outcome.message}")
                screen.print(said, soft_wrap=True)

        yield on_start, on_outcome


def _print_summary(summary: Summary, *, as_json: bool) -> None:
    if as_json:
        print_json(summary.to_json())
        return
    from usvol.batch.outcome import Status
    from usvol.loading import printable

    counts = {status: summary.counts[status] for status in Status}
    parts = [f"{counts[status]} {status}" for status in (Status.DONE, Status.SKIPPED, Status.FAILED)]
    if counts[Status.PENDING]:
        parts.append(f"{counts[Status.PENDING]} not begun")
    typer.echo(f"{summary.task}: {', '.join(parts)}; {summary.ignored} other files ignored")
    if summary.resumed:
        typer.echo(f"{summary.resumed} were complete already")
    if summary.computed:
        typer.echo(f"{summary.computed} in {summary.seconds:.1f} s: {summary.rate:.2f} per second")
    if summary.state == "interrupted":
        typer.echo("interrupted: the same command with --resume goes on")
    typer.echo(f"report: {printable(summary.report)}")


def _leave(summary: Summary) -> None:
    from usvol.batch.outcome import Status

    if summary.state == "interrupted":
        # Threads still in a decoder cannot be stopped, and would hold the process at exit.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ExitCode.INTERRUPTED)
    if not summary.counts[Status.DONE]:
        raise typer.Exit(ExitCode.NOTHING_USABLE)
    if summary.counts[Status.FAILED]:
        raise typer.Exit(ExitCode.SOME_FAILED)


def _dry_run(task: str, inputs: list[str], *, out: Path, as_json: bool) -> None:
    from usvol import registry
    from usvol.batch.discovery import discover, looked_at
    from usvol.loading import printable

    entry = registry.find(registry.Group.TASKS, task)
    found = discover(inputs, exclude=out)
    rows: list[dict[str, Any]] = []
    for item in found.items:
        row: dict[str, Any] = {"id": item.id, "path": printable(item.path), "would": "run", "reason": ""}
        header = looked_at(item.path)
        if isinstance(header, Exception):
            row.update(would="fail", reason=printable(str(header)))
        elif entry.accepts and header.kind not in entry.accepts:
            row.update(would="skip", reason=f"{KindError.__name__}: it is a {header.kind}")
        rows.append(row)
    if as_json:
        ignored = [{"path": printable(path), "reason": str(why)} for path, why in found.ignored]
        print_json({"task": task, "items": rows, "ignored": ignored})
        return
    for row in rows:
        typer.echo(f"{row['would']}\t{row['id']}\t{row['path']}\t{row['reason']}".rstrip())
    counts = ", ".join(f"{sum(r['would'] == w for r in rows)} would {w}" for w in ("run", "skip", "fail"))
    typer.echo(f"{task}: {counts}; {len(found.ignored)} other files ignored; nothing written")
