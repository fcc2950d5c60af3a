from __future__ import annotations

import json

import pytest

from models3d.data.phantom_files import cases
from usvol.errors import DatasetError


def test_volumes_come_with_the_truth_beside_them(tmp_path):
    for name, schema in (("b", "usvol.synthetic/1"), ("a", "usvol.synthetic/1"), ("other", "usvol.result/1")):
        (tmp_path / f"{name}.nii.gz").write_bytes(b"")
        content = {"schema": schema, "truth": {"present": name == "a"}}
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "lost.json").write_text(json.dumps({"schema": "usvol.synthetic/1", "truth": {}}))
    found = cases(tmp_path)
    assert [(c.id, c.path.name, c.reference) for c in found] == [
        ("a", "a.nii.gz", {"present": True}),
        ("b", "b.nii.gz", {"present": False}),
    ]


def test_a_folder_without_any_says_how_to_make_some(tmp_path):
    with pytest.raises(DatasetError, match="usvol simulate"):
        cases(tmp_path)
