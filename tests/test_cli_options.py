"""A dataclass of options becomes a verb's arguments and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from usvol.cli_options import taking


@dataclass(frozen=True, kw_only=True)
class Wanted:
    name: Annotated[str, typer.Argument()]
    count: Annotated[int, typer.Option("--n", min=1)] = 2


def verb() -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @taking(Wanted)
    def greet(wanted: Wanted) -> None:
        """Greet so many times."""
        typer.echo(f"{wanted.name} {wanted.count}")

    return app


def test_fields_are_parsed_with_their_defaults_and_limits():
    run = CliRunner().invoke
    assert run(verb(), ["echo"]).output == "echo 2\n"
    assert run(verb(), ["echo", "--n", "5"]).output == "echo 5\n"
    assert run(verb(), ["echo", "--n", "0"]).exit_code == 2
    assert run(verb(), []).exit_code == 2
    assert "Greet so many times." in run(verb(), ["--help"]).output
