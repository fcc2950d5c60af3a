"""Examples in docstrings are what the code does."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import models3d
import usvol
import video

MODULES = [
    module.name
    for package in (usvol, models3d, video)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")
]


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = [test for name in MODULES for test in finder.find(importlib.import_module(name))]
    assert sum(len(test.examples) for test in examples) > 50


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    assert not doctest.testmod(importlib.import_module(name)).failed
