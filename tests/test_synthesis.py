from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from usvol import registry, synthesis, writing
from usvol.errors import ConfigError
from usvol.loading import load
from usvol.result import Labels
from usvol.scan import Calibration, Grid, Scan, Source, Trust


class Config(BaseModel):
    value: int = 3


def simulate_labelled(seed, config):
    grid = Grid((4, 6, 8), (2.0, 1.0, 0.5), (-3.0, 0.0, -1.75))
    source = Source(format="simulated", calibration=Calibration(Trust.MEASURED, "known"))
    mask = torch.zeros(grid.shape, dtype=torch.uint8)
    mask[1:3, 2:4, 3:6] = config.value
    scan = Scan(mask[None, None] * 20 + seed, grid, None, source)
    labels = Labels("structures", mask[None], grid, {config.value: "blob"})
    return scan, labels, {"voxels": 12}


@pytest.fixture
def labelled(monkeypatch):
    module = SimpleNamespace(simulate_labelled=simulate_labelled, Config=Config)
    monkeypatch.setattr(registry, "module", lambda group, name: module)


def test_a_labelled_phantom_writes_labels_beside_its_scan(labelled, tmp_path):
    first, second = synthesis.synthesise("blobs", out=tmp_path, count=2, seed=4, settings={"value": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"simulated_blobs_000{seed}{suffix}"
        for seed in (4, 5)
        for suffix in (".json", ".nii.gz", "_labels.nii.gz")
    ]
    assert second.labels is not None
    scan, labels = load(second.path), load(second.labels)
    assert np.allclose(scan.grid.affine, labels.grid.affine, atol=1e-4)
    assert sorted(np.unique(np.asarray(labels.data))) == [0, 2]
    assert int((labels.data == 2).sum()) == first.truth["voxels"]
    facts = json.loads((tmp_path / "simulated_blobs_0005.json").read_text())
    assert facts["labels"] == {"file": "simulated_blobs_0005_labels.nii.gz", "names": {"2": "blob"}}
    assert facts["seed"] == 5


@pytest.mark.parametrize("name", ["notes.txt", "notes.txt/deeper", "shut"])
def test_where_nothing_can_be_written_is_told(labelled, tmp_path, monkeypatch, name):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "shut").mkdir()
    monkeypatch.setattr(writing.os, "access", lambda path, mode: path.name != "shut")
    with pytest.raises(ConfigError, match=rf"{name}: (no folder can be made|nothing can be written) there"):
        synthesis.synthesise("blobs", out=tmp_path / name)


def test_a_phantom_without_labels_writes_none(tmp_path, monkeypatch):
    module = SimpleNamespace(
        simulate=lambda seed, config: simulate_labelled(seed, config)[::2], Config=Config
    )
    monkeypatch.setattr(registry, "module", lambda group, name: module)
    (made,) = synthesis.synthesise("blobs", out=tmp_path)
    assert made.labels is None
    assert "labels" not in json.loads((tmp_path / "simulated_blobs_0000.json").read_text())
