from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from usvol import demo, synthesis
from usvol.errors import ConfigError, TaskError

TOYBOX = Path(__file__).parent / "toybox"


@pytest.fixture(autouse=True)
def toybox(monkeypatch):
    monkeypatch.syspath_prepend(str(TOYBOX))
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "toybox"]:
        del sys.modules[name]


def show(out: Path) -> demo.Shown:
    return demo.show(out, count=2, seed=3, device="cpu", task="bright", phantom="blob")


def test_the_demo_sets_truth_beside_estimate_and_can_be_repeated(tmp_path):
    out = tmp_path / "demo"
    for _ in range(2):
        shown = show(out)
        assert [row.clip for row in shown.rows] == ["simulated_blob_0003.avi", "simulated_blob_0004.avi"]
        assert {row.truth for row in shown.rows} == {"bright samples 1152"}
        for row in shown.rows:
            # JPEG and the edge of the sector cost a sample or two.
            assert int(row.estimate.removeprefix("bright samples ")) == pytest.approx(1152, rel=0.02)
        assert shown.report.is_file()
    assert shown.to_json()["simulated"] is True


def test_the_demo_leaves_other_folders_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty and no earlier demo"):
        show(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ConfigError, match=r"thesis\.txt: no folder can be made there"):
        show(tmp_path / "thesis.txt")


def test_the_same_seed_gives_the_same_file(tmp_path):
    first, second = (synthesis.synthesise("blob", out=tmp_path / name, seed=7)[0] for name in "ab")
    assert first.path.read_bytes() == second.path.read_bytes()
    with pytest.raises(TaskError, match="No phantom 'blub'"):
        synthesis.synthesise("blub", out=tmp_path)
    with pytest.raises(ConfigError, match="no setting 'colour'"):
        synthesis.synthesise("blob", out=tmp_path, settings={"colour": 1})
