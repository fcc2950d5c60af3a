"""Nothing is tested here where the plugin is not installed.

Without a screen or Xvfb, Qt ends the whole process: tests of a window are skipped there.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("usvol_napari") else ["*"]

HAS_SCREEN = bool(os.environ.get("DISPLAY")) or not sys.platform.startswith("linux") or shutil.which("Xvfb")


@pytest.fixture
def screen():
    """Skip where no window can be drawn."""
    if not HAS_SCREEN:
        pytest.skip("no screen: neither DISPLAY nor Xvfb; on Debian: apt-get install xvfb")


@pytest.fixture
def viewer(screen, request):
    """Return a napari viewer in a window, small, so that a software renderer keeps up."""
    make = request.getfixturevalue("make_napari_viewer")
    return make(show=False)
