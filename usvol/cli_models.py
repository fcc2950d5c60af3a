"""Verbs ``models`` and ``doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

from usvol.cli_output import ExitCode, console, print_json, set_logging

models = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@models.command("list")
def list_models(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List trained weights with task, size and licence."""
    from rich.table import Table

    from usvol import registry, weights

    listed = weights.inventory(registry.packages())
    if as_json:
        print_json(
            [
                {"package": w.package, "name": w.name, "size_mb": w.size_mb, "card": dict(w.facts)}
                for w in listed
            ]
        )
        return
    table = Table("package", "name", "task", "size", "licence", "sha256", box=None, pad_edge=False)
    for one in listed:
        size = f"{one.size_mb:.1f} MB" if one.size_mb is not None else "[red]missing[/red]"
        licence = str(one.facts.get("licence") or one.facts.get("license") or "not stated")
        task, sha256 = str(one.facts.get("task", "")), str(one.facts.get("sha256", ""))[:12]
        table.add_row(one.package, one.name, task, size, licence, sha256)
    console().print(table if listed else "no package ships weights")


@models.command("show")
def show_model(name: Annotated[str, typer.Argument(help="Name of the weights.")]) -> None:
    """Show the model card of weights."""
    from rich.markdown import Markdown
    from rich.table import Table

    from usvol import weights

    one = _find(name)
    facts, prose = weights.read_card(one.card)
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in facts.items():
        table.add_row(f"[bold]{key}[/bold]", str(value))
    console().print(table, Markdown(prose), f"file: {one.path}")


@models.command("verify")
def verify_models(
    names: Annotated[list[str] | None, typer.Argument(help="Names; all when none is given.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Compare weights with the sha256 on their cards."""
    from rich.text import Text

    from usvol import registry, weights

    chosen = [_find(name) for name in names] if names else weights.inventory(registry.packages())
    outcomes = {f"{one.package}/{one.name}": weights.check(one) for one in chosen}
    if as_json:
        print_json(outcomes)
    else:
        for name, outcome in outcomes.items():
            colour = "green" if outcome is weights.Check.OK else "red"
            console().print(Text.assemble((str(outcome), colour), f"  {name}"))
    if any(outcome is not weights.Check.OK for outcome in outcomes.values()):
        raise typer.Exit(ExitCode.BAD_MODEL)


def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Check this installation."""
    from rich.table import Table
    from rich.text import Text

    from usvol.doctor import Verdict, examine

    set_logging(quiet=True)
    findings = examine()
    if as_json:
        print_json(
            [{"area": f.area, "name": f.name, "verdict": f.verdict, "detail": f.detail} for f in findings]
        )
    else:
        table = Table("", "what", "state", box=None, pad_edge=False, header_style="bold")
        marks = {Verdict.GOOD: ("ok", "green"), Verdict.ABSENT: ("--", "dim"), Verdict.BAD: ("bad", "red")}
        for finding in findings:
            table.add_row(
                Text(*marks[finding.verdict]), f"{finding.area}: {finding.name}", Text(finding.detail)
            )
        console().print(table)
    bad = [finding for finding in findings if finding.verdict is Verdict.BAD]
    if any(finding.area == "weights" for finding in bad):
        raise typer.Exit(ExitCode.BAD_MODEL)
    if bad:
        raise typer.Exit(ExitCode.ERROR)


def _find(name: str):  # noqa: ANN202 (a lazily imported type)
    import difflib

    from usvol import registry, weights
    from usvol.errors import WeightsError

    listed = {one.name: one for one in weights.inventory(registry.packages())}
    if name not in listed:
        close = difflib.get_close_matches(name, listed, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(listed) or 'none'}."
        raise WeightsError(f"No weights {name!r}. {hint}")
    return listed[name]
