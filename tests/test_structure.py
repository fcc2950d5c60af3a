"""The house rules that a machine can check, over every source file: sizes, layers, names, exceptions."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("usvol", "video", "models3d", "plugins", "benchmarks")
MODULE_LINES_MAX, FUNCTION_LINES_MAX, PARAMETERS_MAX, POSITIONAL_MAX = 500, 60, 6, 2

# Layers of usvol, from the ground up; a module may import from its own layer and those below.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "scan", "supervision"}),
    frozenset({"result", "task"}),
    # resampling knows grids only, and beam-space volumes cannot be read without it.
    frozenset({"formats", "loading", "frame_access", "weights", "resampling", "planes"}),
    frozenset({
        "canonical", "sector", "fan_fitting", "inference", "runtime", "postprocessing",
        "contract", "measurement", "metrics", "explain", "quality", "seeding", "simulation", "registry",
    }),
    # batch.outcome is a plain record, which the report shows.
    frozenset({
        "encoding", "writing", "result_reading", "label_export", "report", "pipeline", "batch.outcome",
    }),
    frozenset({"batch", "training", "evaluation", "doctor", "synthesis", "demo"}),
)  # fmt: skip
TORCH_FREE = ("usvol/errors.py", "usvol/scan.py", "usvol/result.py", "usvol/task.py")
# A package of someone else may raise anything when its __init__ runs; the registry skips it by name.
BROAD_EXCEPT_ALLOWED = re.compile(r"usvol/batch/.*|usvol/registry\.py")
FORBIDDEN_NAMES = re.compile(r"(.*_)?(utils?|helpers?|common|misc)")
FORBIDDEN_CLASSES = re.compile(r"Base[A-Z].*|.*(Manager|Handler|Processor)")
# Assembled here, so that this file passes its own test.
MACHINE_PATHS = re.compile(
    "|".join((r"/ho" + r"me/\w", r"/wo" + r"rk/", r"/tm" + r"p/\w", r"/Us" + r"ers/\w"))
)


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def imports(path: Path, *, at_start_only: bool = False) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of what a module imports; ``from a import b`` yields ``a.b``."""
    for node in _statements(tree(path).body) if at_start_only else ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run when a module is imported, bar those for type checkers."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from _statements(node.orelse)
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _statements(getattr(node, field, []))


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[list[str], list[str]]:
    """Return positional and keyword-only parameters, without self and cls."""
    arguments = function.args
    positional = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    if positional[:1] in (["self"], ["cls"]):
        positional = positional[1:]
    return positional, [a.arg for a in arguments.kwonlyargs]


def layer(module: str) -> int | None:
    """Return the layer of a dotted module of usvol; the command line is the last, None is unknown."""
    parts = module.split(".")
    if parts[0] != "usvol" or len(parts) == 1:
        return None
    if parts[1].startswith("cli"):
        return len(LAYERS)
    names = {parts[1], ".".join(parts[1:3])}
    return next((i for i, members in enumerate(LAYERS) if names & members), None)


def test_the_tree_is_where_this_test_looks():
    assert {"usvol", "video", "models3d"} <= {path.name for path in ROOT.iterdir()}
    assert len(sources("usvol")) > 10


def test_the_readers_of_this_test_see_what_they_should():
    assert layer("usvol.cli_run") > layer("usvol.batch.study") > layer("usvol.batch.outcome")  # type: ignore[operator]
    assert layer("usvol.pipeline") > layer("usvol.canonical") > layer("usvol.formats.dicom")  # type: ignore[operator]
    assert layer("usvol.nowhere") is None
    source = ast.parse(
        "from __future__ import annotations\n"
        "import torch.nn\n"
        "if TYPE_CHECKING:\n    import monai\n"
        "try:\n    from usvol import batch\nexcept ImportError:\n    pass\n"
        "def f(self, a, b, *, c): import av\n"
    )
    statements = [n for n in _statements(source.body) if isinstance(n, ast.Import | ast.ImportFrom)]
    at_start = {alias.name for statement in statements for alias in statement.names}
    assert at_start == {"annotations", "torch.nn", "batch"}
    function = source.body[-1]
    assert isinstance(function, ast.FunctionDef)
    assert parameters(function) == (["a", "b"], ["c"])


def test_modules_and_functions_are_short():
    long = [
        f"{name(p)}: {n} lines"
        for p in sources(*PACKAGES, "tests")
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > MODULE_LINES_MAX
    ]
    for path in sources(*PACKAGES):
        for function in functions(path):
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                long.append(f"{name(path)}:{function.lineno} {function.name}: {lines} lines")
    assert not long, "\n".join(long)


def test_functions_take_few_parameters_keyword_only_after_the_second():
    many = []
    for path in sources(*PACKAGES, "tests"):
        for function in functions(path):
            positional, keyword_only = parameters(function)
            where = f"{name(path)}:{function.lineno} {function.name}"
            if (count := len(positional) + len(keyword_only)) > PARAMETERS_MAX:
                many.append(f"{where}: {count} parameters")
    for path in sources(*PACKAGES):
        for function in tree(path).body:
            if not isinstance(function, ast.FunctionDef) or function.name.startswith("_"):
                continue
            if len(positional := parameters(function)[0]) > POSITIONAL_MAX:
                many.append(f"{name(path)}:{function.lineno} {function.name}: {len(positional)} positional")
    assert not many, "\n".join(many)


def test_every_module_of_usvol_has_a_layer():
    top = {
        path.stem if path.is_file() else path.name
        for path in (ROOT / "usvol").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    unknown = sorted(m for m in top - {"__init__"} if layer(f"usvol.{m}") is None)
    assert not unknown, f"give these a layer in LAYERS: {unknown}"


def test_usvol_imports_from_its_own_layer_and_those_below():
    wrong = []
    for path in sources("usvol"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        own = layer(module)
        if own is None:
            continue
        for line, imported in imports(path):
            theirs = layer(imported)
            if theirs is not None and theirs > own:
                wrong.append(f"{name(path)}:{line} imports {imported}, which stands above it")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("usvol", r"(models3d|video|napari|qtpy|PyQt\w*|PySide\w*|usvol_napari)(\..*)?"),
        ("video", r"(models3d|napari|usvol\.(cli\w*|pipeline|registry|batch))(\..*)?"),
        ("models3d", r"(video|napari|usvol\.(cli\w*|pipeline|registry|batch))(\..*)?"),
        ("plugins", r"(models3d|video)(\..*)?"),
    ],
)
def test_packages_keep_apart(folder, forbidden):
    wrong = [
        f"{name(path)}:{line} imports {module}"
        for path in sources(folder)
        for line, module in imports(path)
        if re.fullmatch(forbidden, module)
    ]
    assert not wrong, "\n".join(wrong)


def test_core_types_import_no_torch():
    wrong = [
        f"{f}:{line}"
        for f in TORCH_FREE
        for line, module in imports(ROOT / f, at_start_only=True)
        if module.split(".")[0] in {"torch", "monai"}
    ]
    assert not wrong, "\n".join(wrong)


def test_no_relative_imports_and_annotations_are_strings():
    wrong = []
    for path in sources(*PACKAGES, "tests"):
        if any(isinstance(n, ast.ImportFrom) and n.level for n in ast.walk(tree(path))):
            wrong.append(f"{name(path)}: relative import")
        defines = any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in ast.walk(tree(path)))
        if defines and "__future__.annotations" not in {module for _, module in imports(path)}:
            wrong.append(f"{name(path)}: no 'from __future__ import annotations'")
    assert not wrong, "\n".join(wrong)


def test_exceptions_are_caught_by_name():
    wrong = []
    for path in sources(*PACKAGES):
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = ast.unparse(node.type) if node.type else ""
            # What is raised again at the end was only tidied up after.
            passed_on = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            broad = re.search(r"\b(Base)?Exception\b", caught) and not passed_on
            if not caught or (broad and not BROAD_EXCEPT_ALLOWED.fullmatch(name(path))):
                wrong.append(f"{name(path)}:{node.lineno} except {caught}")
    assert not wrong, "\n".join(wrong)


def test_names_say_what_a_thing_is():
    wrong = [
        name(p)
        for p in sources(*PACKAGES)
        for part in p.relative_to(ROOT).with_suffix("").parts
        if FORBIDDEN_NAMES.fullmatch(part)
    ]
    for path in sources(*PACKAGES):
        wrong += [
            f"{name(path)}: class {n.name}"
            for n in ast.walk(tree(path))
            if isinstance(n, ast.ClassDef) and FORBIDDEN_CLASSES.fullmatch(n.name)
        ]
        # Verbs of the command line have the name of their module's subject.
        wrong += [
            f"{name(path)}: exports {n.name}(), its own name"
            for n in tree(path).body
            if isinstance(n, ast.FunctionDef) and n.name == path.stem
        ]
    assert not wrong, "\n".join(wrong)


def test_every_module_has_a_docstring():
    wrong = [name(path) for path in sources(*PACKAGES) if not ast.get_docstring(tree(path))]
    assert not wrong, "\n".join(wrong)


def test_tests_mirror_the_tree_without_init():
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_no_machine_paths_in_what_is_committed():
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, check=True,
        ).stdout.decode().split("\0")  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git repository here")
    wrong = []
    for path in (ROOT / entry for entry in listed if entry):
        if (
            not path.is_file()
            or path.suffix in {".safetensors", ".png", ".gif"}
            or path.stat().st_size > 2**20
        ):
            continue
        for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if MACHINE_PATHS.search(text):
                wrong.append(f"{name(path)}:{number} {text.strip()[:80]}")
    assert not wrong, "\n".join(wrong)
