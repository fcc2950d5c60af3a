"""Verbs ``info`` and ``tasks``; they import no torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from usvol.cli_output import ExitCode, console, print_json, set_logging
from usvol.errors import EmptyFileError, UnknownFormatError

if TYPE_CHECKING:
    from usvol.scan import Header

_NAMED = 3  # files of no known format


def info(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files, folders (searched), globs.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Show kind, axes, scale and frame times of files."""
    from usvol.batch.discovery import Ignored, discover

    set_logging()
    found = discover(paths)
    unknown = [path for path, why in found.ignored if why is Ignored.UNKNOWN]
    told = {item.path: _facts(item.path) for item in found.items}
    strays = [path for path, fact in told.items() if _is_stray(path, fact)]
    # A table caught by the shell's own * is no failure, but one named alone is.
    ignored = set(strays) if len(strays) < len(told) else set()
    facts = [fact for path, fact in told.items() if path not in ignored]
    if as_json:
        print_json(facts)
    else:
        for fact in facts:
            _print_facts(fact)
    others = len(found.ignored) - len(unknown) + len(ignored)
    if summary := _summary(facts, others, unknown):
        console(stderr=True).print(summary, soft_wrap=True, markup=False)
    failed = sum("error" in fact for fact in facts)
    if failed == len(facts):
        raise typer.Exit(ExitCode.NOTHING_USABLE)
    if failed:
        raise typer.Exit(ExitCode.SOME_FAILED)


def tasks(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the tasks that can be run."""
    from rich.table import Table
    from rich.text import Text

    from usvol import registry

    set_logging()
    entries = registry.tasks().values()
    if as_json:
        keys = ("name", "module", "summary")
        print_json(
            [{k: getattr(e, k) for k in keys} | {"accepts": sorted(map(str, e.accepts))} for e in entries]
        )
        return
    table = Table("task", "takes", "what it does", box=None, header_style="bold", pad_edge=False)
    for entry in entries:
        table.add_row(entry.name, ", ".join(sorted(entry.accepts)) or "see its page", Text(entry.summary))
    console().print(table if entries else "no task is installed")


def _facts(path: Path) -> dict[str, Any]:
    from usvol.batch.discovery import looked_at
    from usvol.loading import printable

    found = looked_at(path)
    if not isinstance(found, Exception):
        return describe_header(path, found)
    return {
        "path": printable(path),
        "error": {"type": type(found).__name__, "message": printable(str(found))},
    }


def _is_stray(path: Path, fact: dict[str, Any]) -> bool:
    from usvol.loading import FileClass, classify

    is_unread = fact.get("error", {}).get("type") in (UnknownFormatError.__name__, EmptyFileError.__name__)
    return is_unread and classify(path) is FileClass.SIDECAR


def _summary(facts: list[dict[str, Any]], ignored: int, unknown: list[Path]) -> str:
    """Count kinds, failures and ignored files, and name some of no known format; empty for one scan alone."""
    from usvol.loading import printable

    kinds = Counter(fact["kind"] for fact in facts if "kind" in fact)
    failed = len(facts) - kinds.total()
    parts = [f"{_count(kinds.total(), 'scan')} ({_listed(kinds)})"] if kinds else ["no scan found"]
    parts += [f"{_count(failed, 'file')} cannot be read"] if failed else []
    parts += (
        [f"{_count(ignored, 'other file')} ignored (tables, texts, label maps, hidden)"] if ignored else []
    )
    names = ", ".join(printable(path.name) for path in unknown[:_NAMED])
    more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
    parts += [f"{_count(len(unknown), 'file')} of no format that is read: {names}{more}"] if unknown else []
    return ", ".join(parts) if len(facts) != 1 or ignored or unknown else ""


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _listed(kinds: Counter[str]) -> str:
    return ", ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items()))


def describe_header(path: Path, header: Header) -> dict[str, Any]:
    """Return the facts of a header as JSON-able values."""
    from usvol.loading import printable

    z, y, x = header.grid.shape
    source, times = header.source, header.times_s
    span = times[-1] - times[0] if times is not None and len(times) > 1 else None
    return {
        "path": printable(path),
        "format": source.format,
        "kind": str(header.kind),
        "shape": {"t": header.frames, "c": header.channels, "z": z, "y": y, "x": x},
        "dtype": header.dtype,
        "spacing_mm": header.grid.spacing_mm,
        "calibration": {"trust": str(source.calibration.trust), "reason": source.calibration.reason},
        "coordinates": str(header.grid.frame),
        "frame_times": {"first_s": times[0], "last_s": times[-1]} if times else None,
        "frames_per_second": (header.frames - 1) / span if span else None,
        "modality": source.modality,
        "vendor": source.vendor,
        "probe": source.probe,
        "warnings": list(source.warnings),
    }


def _print_facts(fact: dict[str, Any]) -> None:
    from rich.text import Text

    screen = console()
    screen.print(Text(fact["path"], "bold"), soft_wrap=True)
    if "error" in fact:
        screen.print(Text(f"  {fact['error']['type']}: {fact['error']['message']}", "red"), soft_wrap=True)
        return
    axes = " ".join(f"{axis}={count}" for axis, count in fact["shape"].items())
    lines = [("kind", f"{fact['kind']} ({fact['format']}), {axes}, {fact['dtype']}"), ("scale", _scale(fact))]
    if fact["shape"]["t"] > 1:
        lines.append(("time", _time(fact)))
    device = ", ".join(str(fact[key]) for key in ("modality", "vendor", "probe") if fact[key])
    lines += [("device", device)] if device else []
    lines += [("warning", warning) for warning in fact["warnings"]]
    for name, value in lines:
        style = "yellow" if name == "warning" else ""
        screen.print(Text.assemble((f"  {name:8}", "dim"), (value, style)), soft_wrap=True)


def _scale(fact: dict[str, Any]) -> str:
    reason = fact["calibration"]["reason"]
    if fact["spacing_mm"] is None:
        return f"none: {reason}"
    spacing = fact["spacing_mm"]
    shown = spacing if fact["shape"]["z"] > 1 else spacing[1:]
    axes = "z, y, x" if len(shown) == 3 else "y, x"
    return f"{' × '.join(f'{s:.4g}' for s in shown)} mm ({axes}), from {reason}"


def _time(fact: dict[str, Any]) -> str:
    if fact["frame_times"] is None:
        return "frame times unknown"
    span = fact["frame_times"]["last_s"] - fact["frame_times"]["first_s"]
    rate = fact["frames_per_second"]
    return f"{span:.3f} s" + (f", {rate:.4g} frames per second on average" if rate else "")
