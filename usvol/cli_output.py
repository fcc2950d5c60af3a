"""Exit codes, consoles and option parsing that the verbs share. Results go to stdout, all else to stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from usvol.errors import ConfigError, MissingExtraError, ReadError, TaskError, UsvolError, WeightsError

if TYPE_CHECKING:
    from rich.console import Console

    from usvol.scan import Vec3


class ExitCode(IntEnum):
    """What the process tells its caller."""

    DONE = 0
    ERROR = 1
    BAD_ARGUMENTS = 2
    SOME_FAILED = 3
    NOTHING_USABLE = 4
    BAD_MODEL = 5
    INTERRUPTED = 130


def exit_code_of(error: UsvolError) -> ExitCode:
    """Return the exit code for an error that ended a verb."""
    if isinstance(error, WeightsError):
        return ExitCode.BAD_MODEL
    if isinstance(error, ConfigError | TaskError | MissingExtraError):
        return ExitCode.BAD_ARGUMENTS
    if isinstance(error, ReadError):
        return ExitCode.NOTHING_USABLE
    return ExitCode.ERROR


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout, or on stderr; wide where no terminal sets the width."""
    from rich.console import Console

    class Messages(Console):
        """Messages nobody reads any more, as after a killed ``tee``, end no run."""

        def on_broken_pipe(self) -> None:
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

    stream = sys.stderr if stderr else sys.stdout
    kind = Messages if stderr else Console
    return kind(stderr=stderr, width=None if stream.isatty() else 160, highlight=False)


def print_json(content: Any) -> None:
    """Print one JSON value on stdout, escaped where its encoding is not UTF-8."""
    from usvol.encoding import jsonable
    from usvol.loading import printable

    is_utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    text = printable(json.dumps(jsonable(content), indent=2, ensure_ascii=False, allow_nan=False))
    sys.stdout.write((text if is_utf8 else json.dumps(json.loads(text), indent=2)) + "\n")


def print_error(error: UsvolError) -> None:
    """Print one clean message on stderr."""
    from rich.text import Text

    message = Text.assemble((f"{type(error).__name__}: ", "bold red"), str(error))
    console(stderr=True).print(message, soft_wrap=True)


def set_logging(*, verbose: int = 0, quiet: bool = False) -> None:
    """Send warnings (default), info (-v), debug (-vv) or errors only (-q) to stderr."""
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # Item logs take what the console does not show.
    logging.getLogger("usvol").setLevel(min(level, logging.INFO))
    logging.captureWarnings(True)


def parse_settings(pairs: list[str] | None) -> dict[str, Any]:
    """Turn ``key=value`` texts into settings; values are read as YAML.

    Raises:
        ConfigError: a text has no ``=`` or its value is not valid YAML.
    """
    import yaml

    settings: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {pair!r}: write it as key=value.")
        try:
            settings[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {pair!r}: the value is not valid YAML: {error}") from error
    return settings


def parse_spacing(text: str | None) -> Vec3 | None:
    """Turn ``s``, ``y,x`` or ``z,y,x`` in mm into a spacing (z, y, x); with ``y,x``, z repeats y.

    Raises:
        ConfigError: not one to three positive numbers.
    """
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not 1 <= len(values) <= 3 or not all(0 < value < float("inf") for value in values):
        raise ConfigError(f"--spacing {text!r}: give mm per sample as z,y,x, as y,x or as one number.")
    full = {1: values * 3, 2: [values[0], *values], 3: values}[len(values)]
    return (full[0], full[1], full[2])
