"""Find tasks, data sets and phantoms by entry point, and build tasks.

An entry point of group ``usvol.tasks``, ``usvol.datasets`` or ``usvol.phantoms`` names a *package*;
each public module in it is one item and the file's name is the item's name. Listing reads files
with ``ast`` and imports none of them, so it needs no torch and a new file appears with no reinstall.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from usvol.errors import ConfigError, TaskError
from usvol.scan import Kind

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

    from usvol.task import Task


class Group(StrEnum):
    """Entry-point groups."""

    TASKS = "usvol.tasks"
    DATASETS = "usvol.datasets"
    PHANTOMS = "usvol.phantoms"

    @property
    def noun(self) -> str:
        """Singular for messages."""
        return {"usvol.tasks": "task", "usvol.datasets": "data set", "usvol.phantoms": "phantom"}[self.value]


@dataclass(frozen=True, slots=True)
class Entry:
    """One task, data set or phantom that is installed.

    Attributes:
        name: the file's name; module: its dotted name; package: top-level package, such as ``video``.
        summary: first line of the module's docstring.
        accepts: kinds of scan a task's source declares; empty when it declares none literally.
    """

    name: str
    group: Group
    module: str
    package: str
    path: Path
    summary: str
    accepts: frozenset[Kind] = field(default_factory=frozenset)


def tasks() -> dict[str, Entry]:
    """List installed tasks by name, importing none."""
    return _entries(Group.TASKS)


def datasets() -> dict[str, Entry]:
    """List installed data set adapters by name, importing none."""
    return _entries(Group.DATASETS)


def phantoms() -> dict[str, Entry]:
    """List installed phantoms by name, importing none."""
    return _entries(Group.PHANTOMS)


def packages() -> tuple[str, ...]:
    """List the top-level packages that offer tasks, data sets or phantoms, sorted."""
    return tuple(sorted({name.partition(".")[0] for group in Group for _, name in _named(group)}))


def find(group: Group, name: str) -> Entry:
    """Return the entry of that name; raise ``TaskError`` with the nearest names otherwise."""
    known = _entries(group)
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        hint = f"Did you mean {' or '.join(repr(c) for c in close)}?"
    elif known:
        hint = f"There are: {', '.join(sorted(known))}."
    else:
        hint = f"No installed package offers any through the entry point group {group.value!r}."
    raise TaskError(f"No {group.noun} {name!r}. {hint}")


def module(group: Group, name: str) -> ModuleType:
    """Import the module of an entry; raise ``TaskError`` naming it when the import fails."""
    entry = find(group, name)
    try:
        return importlib.import_module(entry.module)
    except ImportError as error:
        raise TaskError(
            f"{group.noun} {name!r} cannot be imported from {entry.module}: {error}. "
            f"Install what package {entry.package!r} needs, or remove it."
        ) from error


def build_task(
    name: str,
    *,
    device: str = "auto",
    overrides: Mapping[str, Any] | None = None,
    config_file: Path | None = None,
) -> Task:
    """Build a task, ready to run on ``device`` (``auto``, ``cpu``, ``cuda`` or ``cuda:N``).

    Settings come from the task's defaults, then ``config_file`` (YAML), then ``overrides``
    (dotted keys reach nested settings).

    Raises:
        TaskError: no such task, or its module is none. ConfigError: a setting is unknown or out of range.
        WeightsError: its weights are missing or wrong.

    Example:
        >>> task = build_task("covid_severity", device="cpu")  # doctest: +SKIP
    """
    from usvol.runtime import resolve_device

    task_module = module(Group.TASKS, name)
    if lacking := [part for part in ("Config", "build") if not hasattr(task_module, part)]:
        raise TaskError(f"Task {name!r}: {task_module.__name__} has no {' and no '.join(lacking)}.")
    config = configure(task_module, overrides=overrides, config_file=config_file, owner=f"task {name!r}")
    place = str(resolve_device(device))
    task = task_module.build(config, place)
    task.provenance.setdefault("task", name)
    task.provenance.setdefault("device", place)
    task.provenance.setdefault("config", config.model_dump(mode="json"))
    return task


def configure(
    source: ModuleType,
    *,
    overrides: Mapping[str, Any] | None = None,
    config_file: Path | None = None,
    owner: str = "",
) -> BaseModel:
    """Make the ``Config`` of a task or phantom module from a YAML file and overrides.

    Raises:
        ConfigError: naming the wrong settings and listing the valid ones.
    """
    from pydantic import ValidationError

    model: type[BaseModel] = source.Config
    settings = _merge(read_settings(config_file) if config_file else {}, overrides or {})
    owner = owner or source.__name__
    unknown = [key for key in settings if key not in model.model_fields]
    if unknown:
        raise ConfigError(f"{owner} has no setting {_unknown(unknown, model)}. {_fields(model)}")
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"{owner}: {_problems(error)}. {_fields(model)}") from error


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a YAML file, by name.

    Raises:
        ConfigError: it cannot be read, or is no YAML of settings by name.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}). Give the path of a YAML file."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold 'key: value' lines, and holds a {type(content).__name__}.")
    for key in content or {}:
        if not isinstance(key, str):
            what = f"YAML reads it as a {type(key).__name__}"
            raise ConfigError(f"{path}: {key!r} is no name of a setting ({what}). Write 'name: value' lines.")
    return content or {}


def _entries(group: Group) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for label, package in _named(group):
        for entry in _scan_package(group, label, package):
            other = found.get(entry.name)
            if other is not None and other.path != entry.path:
                raise TaskError(
                    f"Two {group.noun}s are named {entry.name!r}: {other.path} and {entry.path}. "
                    "Rename one, or uninstall one of the packages."
                )
            found[entry.name] = entry
    return dict(sorted(found.items()))


def _named(group: Group) -> list[tuple[str, str]]:
    # An editable install beside a wheel lists an entry point twice.
    return sorted({(point.name, point.value) for point in metadata.entry_points(group=group.value)})


def _scan_package(group: Group, label: str, package: str) -> Iterator[Entry]:
    try:
        spec = importlib.util.find_spec(package)
        # find_spec runs the __init__ of third-party parents: whatever that raises is theirs.
    except Exception as error:  # noqa: BLE001
        _warn(group, label, package, f"{type(error).__name__}: {error}")
        return
    if spec is None or spec.submodule_search_locations is None:
        _warn(group, label, package, "there is no such package")
        return
    for folder in spec.submodule_search_locations:
        for path in sorted(Path(folder).glob("[!_]*.py")):
            try:
                tree = ast.parse(path.read_text(encoding="utf-8"))
            except (SyntaxError, ValueError, OSError) as error:
                _warn(group, label, f"{package}.{path.stem}", f"{type(error).__name__}: {error}")
                continue
            summary = (ast.get_docstring(tree) or "").strip().partition("\n")[0]
            yield Entry(
                name=path.stem,
                group=group,
                module=f"{package}.{path.stem}",
                package=package.partition(".")[0],
                path=path,
                summary=summary,
                accepts=_declared_kinds(tree),
            )


def _declared_kinds(tree: ast.Module) -> frozenset[Kind]:
    """Read ``accepts = frozenset({Kind.CINE})`` off a task's source."""
    kinds: set[Kind] = set()
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = {getattr(target, "id", getattr(target, "attr", None)) for target in targets}
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if "accepts" not in names or value is None:
            continue
        for leaf in ast.walk(value):
            if isinstance(leaf, ast.Attribute) and leaf.attr in Kind.__members__:
                kinds.add(Kind[leaf.attr])
    return frozenset(kinds)


def _warn(group: Group, label: str, package: str, cause: str) -> None:
    message = f"skipping {group.noun} package {label!r} ({package}): {cause}"
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def _merge(settings: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(settings)
    for key, value in overrides.items():
        head, _, rest = key.partition(".")
        if rest:
            inner = merged.get(head)
            merged[head] = _merge(inner if isinstance(inner, dict) else {}, {rest: value})
        else:
            merged[head] = value
    return merged


def _unknown(names: list[str], model: type[BaseModel]) -> str:
    close = [difflib.get_close_matches(name, model.model_fields, n=1) for name in names]
    hints = [f"{n!r} (did you mean {c[0]!r}?)" if c else repr(n) for n, c in zip(names, close, strict=True)]
    return ", ".join(hints)


def _fields(model: type[BaseModel]) -> str:
    if not model.model_fields:
        return "It has no settings."
    shown = [
        f"{name}={info.get_default(call_default_factory=True)!r}" for name, info in model.model_fields.items()
    ]
    return f"Settings and defaults: {', '.join(shown)}."


def _problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or 'settings'} = {item.get('input')!r}: {item['msg']}"
        for item in error.errors()
    )
