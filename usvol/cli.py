"""The command line: verbs, each a thin shell over a function of the library."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from usvol import cli_info, cli_models, cli_run, cli_study
from usvol.cli_output import ExitCode, print_error
from usvol.errors import UsvolError

app = typer.Typer(
    name="usvol",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="One engine for 3D volumes and cine clips in ultrasound. Not a medical device.",
)
app.command("info", help="Show kind, axes, scale and frame times of files.")(cli_info.info)
app.command("tasks", help="List the tasks that can be run.")(cli_info.tasks)
app.command("run", help="Run a task over files, folders and globs.")(cli_run.run)
app.command("report", help="Write table and report of an output folder again.")(cli_run.report)
app.command("evaluate", help="Measure a task against a data set with references.")(cli_study.evaluate)
app.command("train", help="Train a task's network by a recipe.")(cli_study.train)
app.command("simulate", help="Write synthetic scans with known truth.")(cli_study.simulate)
app.command("demo", help="Run the main job on synthetic clips: no data needed.")(cli_study.demo)
app.command("doctor", help="Check this installation: devices, codecs, models.")(cli_models.doctor)
app.add_typer(cli_models.models, name="models", help="List, show and verify trained weights.")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"usvol {metadata.version('usvol')}")
        raise typer.Exit


@app.callback()
def options(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Take the options that precede a verb."""


def main() -> None:
    """Run the command line and leave with one of ``ExitCode``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without × or ° is no reason to fail
    try:
        app()
    except UsvolError as error:
        from usvol.cli_output import exit_code_of

        print_error(error)
        sys.exit(exit_code_of(error))
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
