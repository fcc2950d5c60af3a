"""Benchmarks are scripts beside the packages: tests import them from where they lie."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="package")
def benchmark_module(repository: Path) -> Iterator[Callable[[str], ModuleType]]:
    """Give the function that imports a script of ``benchmarks/`` by name."""
    sys.path.insert(0, str(repository / "benchmarks"))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(repository / "benchmarks"))
