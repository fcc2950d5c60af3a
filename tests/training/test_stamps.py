from __future__ import annotations

import dataclasses
import os

import pytest

from usvol.training.cases import Case
from usvol.training.stamps import stamp_of

HEADER = "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = a b.raw\n"


def _touch(path):
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def _write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("scan", "parts"),
    [
        ("a.nii.gz", {"a.nii.gz": "x"}),
        ("beat", {"beat/1.png": "x", "beat/2.png": "x"}),
        ("a.mhd", {"a.mhd": HEADER, "a b.raw": "12345678"}),
        ("a.hdr", {"a.hdr": "x", "a.img": "x"}),
    ],
)
def test_every_part_of_a_scan_counts_and_nothing_beside_it(tmp_path, scan, parts):
    files = [_write(tmp_path / name, text) for name, text in parts.items()]
    other = _write(tmp_path / "other.raw")
    case = Case("a", "p", tmp_path / scan)
    seen = [stamp_of(case, labelled=False)]
    for path in files:
        _touch(path)
        seen.append(stamp_of(case, labelled=False))
    assert len(set(seen)) == len(files) + 1
    _touch(other)
    assert stamp_of(case, labelled=False) == seen[-1]


def test_labels_count_with_their_file_and_their_names(tmp_path):
    scan, label = _write(tmp_path / "a.nii.gz"), _write(tmp_path / "a_labels.nii.gz")
    case = Case("a", "p", scan, {"label": str(label), "label_names": {1: "fetus"}})
    plain, stamp = stamp_of(case, labelled=False), stamp_of(case, labelled=True)
    renamed = dataclasses.replace(case, reference={**case.reference, "label_names": {1: "placenta"}})
    assert stamp_of(renamed, labelled=True) != stamp
    _touch(label)
    assert stamp_of(case, labelled=True) != stamp
    assert stamp_of(renamed, labelled=False) == plain


def test_a_data_set_with_a_reader_of_its_own_counts_with_the_folder(tmp_path):
    scan, outlines = _write(tmp_path / "p1" / "p1_4CH.nii.gz"), _write(tmp_path / "p1" / "p1_4CH_gt.nii.gz")
    case = Case("a", "p1", scan, {"view": "4CH"}, read=lambda case: None)  # type: ignore[arg-type, return-value]
    stamp = stamp_of(case, labelled=True)
    _touch(outlines)
    assert stamp_of(case, labelled=True) != stamp
