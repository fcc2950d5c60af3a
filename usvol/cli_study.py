"""Verbs ``train``, ``evaluate``, ``simulate`` and ``demo``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from usvol.cli_options import taking
from usvol.cli_output import console, parse_settings, print_json, set_logging

Device = Annotated[str, typer.Option("-d", "--device", help="auto, cpu, cuda or cuda:N.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting.")]
Data = Annotated[Path | None, typer.Option("--data", help="Where the data set lies.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Verbose = Annotated[int, typer.Option("-v", "--verbose", count=True, help="More; twice for most.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """Arguments and options of ``usvol evaluate``."""

    task: Annotated[str, typer.Argument(help="Name of the task.")]
    dataset: Annotated[str, typer.Argument(help="Name of the data set, such as blues, or its folder.")]
    data: Data = None
    folds: Annotated[int | None, typer.Option("--folds", min=2, help="Cross-validate by patient.")] = None
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for evaluation.json and .md.")] = (
        None
    )
    count: Annotated[int, typer.Option("--n", min=2, help="How many simulated cases.")] = 50
    device: Device = "auto"
    settings: Settings = None
    as_json: Json = False
    verbose: Verbose = 0


@taking(EvaluateOptions)
def evaluate(asked: EvaluateOptions) -> None:
    """Measure a task against a data set with references."""
    set_logging(verbose=asked.verbose)
    from usvol import evaluation, writing
    from usvol.writing import make_folder

    if asked.out is not None:
        make_folder(asked.out)
    options = evaluation.Options(asked.device, parse_settings(asked.settings), asked.count)
    outcome = evaluation.evaluate(
        asked.task, asked.dataset, data=asked.data, folds=asked.folds, options=options
    )
    if asked.out is not None:
        writing.write_json(asked.out / "evaluation.json", outcome.to_json())
        (asked.out / "evaluation.md").write_text(outcome.to_markdown(), encoding="utf-8")
    if asked.as_json:
        print_json(outcome.to_json())
    else:
        from rich.markdown import Markdown

        console().print(Markdown(outcome.to_markdown()))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Arguments and options of ``usvol train``."""

    task: Annotated[str, typer.Argument(help="Name of the task.")]
    config: Annotated[Path, typer.Option("--config", help="Recipe, such as configs/train/TASK.yaml.")]
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for checkpoints, logs and weights.")]
    data: Data = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in OUT.")] = False
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Simulate and prepare every case, then stop.")
    ] = False
    device: Device = "auto"
    settings: Settings = None
    verbose: Verbose = 0


@taking(TrainOptions)
def train(asked: TrainOptions) -> None:
    """Train a task's network by a recipe."""
    set_logging(verbose=max(asked.verbose, 1))
    from usvol.training import loop

    weights = loop.train(
        asked.task,
        loop.Fitting(asked.out, resume=asked.resume, device=asked.device),
        config=asked.config,
        data=asked.data,
        settings=parse_settings(asked.settings),
        prepare_only=asked.prepare_only,
    )
    typer.echo(weights)


def simulate(
    phantom: Annotated[str, typer.Argument(help="Name of the phantom, such as lung.")],
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for scans and truths.")],
    count: Annotated[int, typer.Option("--n", min=1, help="How many.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the first; the next count up.")] = 0,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Write synthetic scans with known truth."""
    set_logging()
    from usvol.synthesis import synthesise

    made = synthesise(phantom, out=out, count=count, seed=seed, settings=parse_settings(settings))
    if as_json:
        print_json([{"path": one.path, "truth": dict(one.truth)} for one in made])
    else:
        for one in made:
            typer.echo(one.path)


def demo(
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for clips and results.")] = Path(
        "usvol-demo"
    ),
    count: Annotated[int, typer.Option("--n", min=1, help="How many clips.")] = 6,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Run the main job on synthetic clips: no data needed."""
    set_logging()
    from rich.table import Table

    from usvol import demo as scene

    shown = scene.show(out, count=count, seed=seed, device=device)
    if as_json:
        print_json(shown.to_json())
        return
    table = Table("clip", "true", "estimated", box=None, header_style="bold", pad_edge=False)
    for row in shown.rows:
        table.add_row(row.clip, row.truth, row.estimate)
    screen = console()
    screen.print(f"{shown.task} on {len(shown.rows)} SIMULATED clips (a phantom, no patient):", style="bold")
    screen.print(table)
    screen.print("Simulated input shows that everything works, not how well it works on patients.")
    screen.print(f"report: {shown.report}", soft_wrap=True, markup=False)
