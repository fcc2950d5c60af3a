"""Options of a verb as one dataclass: every field is an argument or an option of the command line."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

Options = TypeVar("Options")


def taking(options: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Turn a function of one ``options`` dataclass into a verb that typer reads field by field.

    Fields are annotated as typer's parameters are; their order is that of the arguments and of the help.
    """

    def decorate(verb: Callable[[Options], None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            verb(options(**{name: _at_home(value) for name, value in values.items()}))

        hints = get_type_hints(options, include_extras=True)
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=_default(field),
                    annotation=hints[field.name],
                )
                for field in dataclasses.fields(options)  # type: ignore[arg-type]
            ]
        )
        command.__doc__, command.__name__ = verb.__doc__, verb.__name__
        return command

    return decorate


def _at_home(value: Any) -> Any:
    """Replace the ``~`` that a shell leaves alone in ``-o~/out`` or quotes."""
    if not isinstance(value, Path):
        return value
    from usvol.batch.discovery import expanded

    return expanded(value)


def _default(field: dataclasses.Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
