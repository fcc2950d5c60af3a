from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest

# What only an extra brings, and which; the modules say so with MissingExtraError.
OPTIONAL = {"train": {"lightning", "torchmetrics", "tensorboard"}, "itk": {"itk"}}
# These come with a package that promises them.
IMPLIED = {"markupsafe": "jinja2", "click": "typer"}


@pytest.fixture(scope="module")
def project(repository) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def distribution(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name.group()).lower()


def imported(repository) -> set[str]:
    """Return the top-level third-party modules that the shipped packages import anywhere."""
    found: set[str] = set()
    for folder in ("usvol", "video", "models3d"):
        for path in (repository / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    found.add((node.module or "").partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"usvol", "video", "models3d"}


def test_every_import_is_a_declared_dependency(repository, project):
    declared = {distribution(requirement) for requirement in project["dependencies"]}
    optional = set().union(*OPTIONAL.values())
    providers = metadata.packages_distributions()
    modules = imported(repository)
    assert {"torch", "numpy", "pydicom"} <= modules
    missing = []
    for module in sorted(modules - optional):
        names = {distribution(name) for name in providers.get(module, [module])} | {distribution(module)}
        names |= {IMPLIED[module]} if module in IMPLIED else set()
        if not names & declared:
            missing.append(module)
    assert not missing, f"add to [project] dependencies: {missing}"


def test_extras_bring_what_is_optional(project):
    for extra, modules in OPTIONAL.items():
        declared = {distribution(requirement) for requirement in project["optional-dependencies"][extra]}
        assert modules <= declared


def test_every_dependency_is_pinned_for_the_tests(repository, project):
    lines = (repository / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {distribution(line) for line in lines if "==" in line}
    asked = [*project["dependencies"], *(r for e in project["optional-dependencies"].values() for r in e)]
    assert not {distribution(requirement) for requirement in asked} - pins
    assert "torch==2.13.0" in lines


def test_entry_points_name_packages_that_are_there(project):
    groups = project["entry-points"]
    assert set(groups) == {"usvol.tasks", "usvol.datasets", "usvol.phantoms"}
    for packages in groups.values():
        for package in packages.values():
            assert importlib.import_module(package).__path__


@pytest.mark.parametrize("arguments", [["--help"], ["tasks"], ["--version"]])
def test_the_command_line_starts_without_torch(arguments):
    code = (
        "import sys\n"
        "from usvol.cli import main\n"
        f"sys.argv = ['usvol', *{arguments!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'monai', 'openvino', 'pandas', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
