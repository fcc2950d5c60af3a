from __future__ import annotations

import pytest

pytest.importorskip("napari")

from usvol_napari.widgets import built_tasks


def test_the_last_three_tasks_are_kept(toybox, monkeypatch):
    monkeypatch.setattr(built_tasks, "_BUILT", {})
    first, *others = (
        built_tasks.built_task("bright", device="cpu", settings={"threshold": float(t)}) for t in (1, 2, 3)
    )
    assert built_tasks.built_task("bright", device="cpu", settings={"threshold": 1.0}) is first
    built_tasks.built_task("bright", device="cpu", settings={"threshold": 4.0})
    assert built_tasks.built_task("bright", device="cpu", settings={"threshold": 1.0}) is first
    assert len(built_tasks._BUILT) == 3
    assert built_tasks.built_task("bright", device="cpu", settings={"threshold": 2.0}) is not others[0]
