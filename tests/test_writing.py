from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from types import MappingProxyType

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from usvol import writing
from usvol.encoding import jsonable, slug
from usvol.errors import ConfigError
from usvol.formats import nifti
from usvol.result import (
    Box,
    Curve,
    Event,
    Flag,
    Heatmap,
    Labels,
    Line,
    Measurement,
    Plane,
    Result,
    Scores,
    Surface,
)
from usvol.scan import IDENTITY, Frame, Grid, Scan, Source

GRID = Grid((6, 8, 10), (0.5, 0.4, 0.3), (1.0, 2.0, 3.0), frame=Frame.PATIENT_LPS)


def result(*findings, grid: Grid = GRID, measurements=(), provenance=None) -> Result:
    return Result("toy", grid, Source(), findings, measurements, (), provenance or {})


def content(folder):
    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    return json.loads((folder / "result.json").read_text(encoding="utf-8"), parse_constant=refuse)


def test_masks_and_maps_lie_on_the_grid_of_the_input(tmp_path):
    mask = torch.zeros(1, *GRID.shape, dtype=torch.uint8)
    mask[0, 2, 3, 4] = 3
    heat = torch.rand(1, *GRID.shape)
    folder = writing.write(
        result(Labels("the mask", mask, GRID, {3: "cyst"}), Heatmap("heat", heat, GRID)), tmp_path / "x"
    )
    facts = content(folder)
    assert [f["type"] for f in facts["findings"]] == ["labels", "heatmap"]
    assert facts["findings"][0]["labels"] == {"3": "cyst"}
    back = nifti.read(folder / facts["findings"][0]["file"])
    assert back.grid.shape == GRID.shape
    np.testing.assert_allclose(back.grid.affine, GRID.affine, atol=1e-5)
    assert back.grid.frame is Frame.PATIENT_LPS
    assert torch.equal(back.data[:, 0].to(torch.uint8), mask)
    assert nib.load(folder / "the-mask.nii.gz").shape == GRID.shape[::-1], "as the volume it is of"
    back = nifti.read(folder / facts["findings"][1]["file"])
    assert torch.allclose(back.data[:, 0].float(), heat)


def test_masks_of_a_cine_keep_frame_times_and_the_missing_scale(tmp_path):
    grid = Grid((1, 16, 16))
    data = torch.zeros(5, 1, 1, 16, 16, dtype=torch.uint8)
    scan = Scan(data, grid, tuple(i / 20 for i in range(5)))
    labels = Labels("m", data[[1, 3], 0], grid, {1: "a"}, frame_indices=(1, 3))
    folder = writing.write(result(labels, grid=grid), tmp_path / "x", scan=scan)
    back = nifti.read(folder / "m.nii.gz")
    assert back.data.shape[0] == 2
    assert back.times_s == pytest.approx((0.05, 0.15))
    assert not back.grid.is_calibrated
    assert content(folder)["findings"][0]["frame_indices"] == [1, 3]


def test_curves_become_tables_with_unit_times_and_events(tmp_path):
    curve = Curve(
        "area",
        (1.0, math.nan, 3.0),
        "mm²",
        (0.0, 0.1, 0.2),
        (4, 5, 6),
        low=(0.5, 1.5, 2.5),
        high=(1.5, 2.5, 3.5),
        events=(Event("ED", 2, 0.2),),
    )
    folder = writing.write(result(curve), tmp_path / "x")
    with (folder / "area.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["frame", "time_s", "area [mm²]", "low", "high", "event"]
    assert [row["area [mm²]"] for row in rows] == ["1.0", "", "3.0"]
    assert [row["event"] for row in rows] == ["", "", "ED"]
    assert [row["frame"] for row in rows] == ["4", "5", "6"]
    stored = content(folder)["findings"][0]
    assert stored["values"] == [1.0, None, 3.0]
    assert stored["events"][0]["name"] == "ED"


def test_a_curve_without_times_has_no_time_column(tmp_path):
    folder = writing.write(result(Curve("c", (1.0, 2.0), "1", None, (0, 1))), tmp_path / "x")
    assert (folder / "c.csv").read_text().splitlines()[0] == "frame,c [1],event"


def test_meshes_keep_points_faces_and_labels(tmp_path):
    import pyvista

    vertices = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 9.0], [1.0, 0.0, 0.0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    labels = torch.tensor([1, 1, 2, 2])
    folder = writing.write(result(Surface("valve", vertices, faces, labels)), tmp_path / "x")
    assert content(folder)["findings"][0]["formats"] == ["valve.stl", "valve.ply", "valve.vtp"]
    for name in ("valve.stl", "valve.ply", "valve.vtp"):
        mesh = pyvista.read(folder / name)
        np.testing.assert_allclose(mesh.points, vertices.numpy()[:, ::-1])
        np.testing.assert_array_equal(mesh.faces.reshape(-1, 4)[:, 1:], faces.numpy())
    np.testing.assert_array_equal(pyvista.read(folder / "valve.vtp").point_data["label"], labels.numpy())


def test_small_findings_live_in_the_json(tmp_path):
    found = (
        Plane("standard", (1.0, 2.0, 3.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), 0.9),
        Line("needle", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), None, 3),
        Box("head", (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), IDENTITY),
        Scores("score", ("a", "b"), (0.25, math.inf), "a"),
    )
    facts = content(writing.write(result(*found), tmp_path / "x"))["findings"]
    assert [f["type"] for f in facts] == ["plane", "line", "box", "scores"]
    assert facts[0]["normal"] == [1.0, 0.0, 0.0]
    assert facts[1]["frame_index"] == 3
    assert facts[1]["confidence"] is None
    assert facts[3]["probabilities"] == [0.25, None]


def test_findings_of_one_name_get_files_of_their_own(tmp_path):
    curves = [Curve("c", (float(i),), "", None, (0,)) for i in range(3)]
    facts = content(writing.write(result(*curves), tmp_path / "x"))
    files = [f["file"] for f in facts["findings"]]
    assert len(set(files)) == 3
    assert [(tmp_path / "x" / f).read_text().splitlines()[1] for f in files] == ["0,0.0,", "0,1.0,", "0,2.0,"]


def test_measurements_flags_and_provenance_are_strict_json(tmp_path):
    whole = Result(
        "toy",
        GRID,
        Source(),
        (),
        (Measurement("volume", math.nan, "mL", note="why"), Measurement("n", 3, "", low=1.0, high=4.0)),
        (Flag("odd", "odd indeed"),),
        MappingProxyType({"array": np.arange(2), "tensor": torch.tensor(1.5), "nan": np.float32("nan")}),
    )
    facts = content(writing.write(whole, tmp_path / "x"))
    assert facts["measurements"][0] == {"name": "volume", "value": None, "unit": "mL", "note": "why"}
    assert facts["measurements"][1] == {"name": "n", "value": 3, "unit": "", "low": 1.0, "high": 4.0}
    assert facts["flags"] == [{"code": "odd", "message": "odd indeed", "severity": "warning"}]
    assert facts["provenance"] == {"array": [0, 1], "tensor": 1.5, "nan": None}
    assert facts["schema"] == "usvol.result/1"


def test_names_that_are_not_utf_8_are_strict_json(tmp_path):
    writing.write_json(tmp_path / "a.json", {"path": Path("in/\udce9.png"), "half": "\ud83d", "é": 1})
    text = (tmp_path / "a.json").read_bytes().decode("utf-8")
    assert json.loads(text) == {"path": "in/\ufffd.png", "half": "\ufffd", "é": 1}


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "x"
    writing.write(result(Curve("old", (1.0,), "", None, (0,))), target)
    bad = dataclasses.replace(result(), findings=(object.__new__(Curve),))
    with pytest.raises(AttributeError):
        writing.write(bad, target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]
    assert (target / "old.csv").is_file()
    writing.write(result(Curve("new", (1.0,), "", None, (0,))), target)
    assert sorted(p.name for p in target.iterdir()) == ["new.csv", "result.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]


def test_what_is_no_result_is_never_replaced(tmp_path):
    plan = result(Scores("verdict", ("no", "yes"), (0.2, 0.8), "yes"))
    (tmp_path / "patients").mkdir()
    for name in ("scan.nii.gz", "result.json"):
        (tmp_path / "patients" / name).write_text("{}")
        with pytest.raises(ConfigError, match="new folder"):
            writing.write(plan, tmp_path / "patients")
        assert (tmp_path / "patients" / name).read_text() == "{}"
    (tmp_path / "IM0001").write_text("DICM")
    with pytest.raises(ConfigError, match="IM0001: is a file"):
        writing.write(plan, tmp_path / "IM0001")
    folder = writing.write(plan, tmp_path / "empty")
    assert writing.write(plan, folder) == folder, "a result is replaced by a result"
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        writing.write(plan, folder)
    assert {p.name for p in tmp_path.iterdir()} == {"patients", "IM0001", "empty"}


def test_a_result_may_be_written_where_one_works(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = writing.write(result(), ".")
    assert content(folder)["task"] == "toy"


def test_only_a_complete_result_counts_as_one(tmp_path):
    folder = writing.write(result(Curve("c", (1.0, 2.0), "", None, (0, 1))), tmp_path / "x")
    assert writing.read_complete(folder) is not None
    whole = (folder / "c.csv").read_bytes()
    (folder / "c.csv").write_bytes(whole[:-3])
    assert writing.read_complete(folder) is None
    (folder / "c.csv").write_bytes(whole)
    assert writing.read_complete(folder) is not None
    text = (folder / "result.json").read_text()
    for broken in (text[: len(text) // 2], "[]", "{}", text.replace("usvol.result/1", "other/1"), ""):
        (folder / "result.json").write_text(broken)
        assert writing.read_complete(folder) is None
    (folder / "result.json").unlink()
    assert writing.read_complete(folder) is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("Größe µ/..\\x", "Gro-e-x"), ("../../etc", "etc"), ("", "item"), ("ß?", "item"), ("a" * 99, "a" * 60)],
)
def test_slugs_are_safe_file_names(text, wanted):
    made = slug(text)
    assert made
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    if wanted != "Gro-e-x":
        assert made == wanted


def test_jsonable_keeps_what_json_has():
    value = {"a": (1, 2.5, True, None, "x"), 3: {"b": float("-inf")}}
    assert jsonable(value) == {"a": [1, 2.5, True, None, "x"], "3": {"b": None}}


def test_an_unknown_finding_is_a_bug(tmp_path):
    with pytest.raises(TypeError, match="no writer for findings of type str"):
        writing.describe("text", writing.Place(tmp_path, "x"))


def speckled(frames: int, shape, seed=0, **grid) -> Scan:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(0, 256, (frames, 1, *shape), generator=generator, dtype=torch.uint8)
    times = tuple(i / 25 for i in range(frames)) if frames > 1 else None
    return Scan(data, Grid(shape, **grid), times)


def test_the_preview_of_a_noisy_clip_stays_small_and_moves(tmp_path):
    scan = speckled(60, (1, 600, 800))
    curve = Curve("c", tuple(math.sin(i / 9) for i in range(60)), "1", scan.times_s, tuple(range(60)))
    folder = writing.write(result(curve, grid=scan.grid), tmp_path / "x", scan=scan)
    assert content(folder)["preview"] == ["preview.png", "preview.gif"]
    for name in ("preview.png", "preview.gif"):
        assert (folder / name).stat().st_size < 300_000
    with Image.open(folder / "preview.gif") as image:
        assert image.n_frames == 24
        total = 0
        for index in range(image.n_frames):
            image.seek(index)
            total += image.info["duration"]
    assert total == pytest.approx(60 / 25 * 1000, rel=0.1)


def test_the_preview_of_a_volume_shows_three_planes_in_true_proportion(tmp_path):
    scan = speckled(1, (20, 40, 80), spacing_mm=(2.0, 1.0, 0.5))
    mask = torch.zeros(1, 20, 40, 80, dtype=torch.uint8)
    mask[0, 5:9, 10:20, 30:60] = 1
    plain = writing.write(result(grid=scan.grid), tmp_path / "a", scan=scan)
    marked = writing.write(
        result(Labels("m", mask, scan.grid, {1: "m"}), grid=scan.grid), tmp_path / "b", scan=scan
    )
    sizes = []
    for folder in (plain, marked):
        with Image.open(folder / "preview.png") as image:
            sizes.append(image.size)
            pixels = np.asarray(image.convert("RGB"), int)
            colourful = (pixels.max(-1) - pixels.min(-1) > 60).mean()
        assert (colourful > 0.01) == (folder is marked)
    assert sizes[0] == sizes[1] == (3 * 256 + 2 * 4, 256)


def test_the_preview_shows_tissue_beside_samples_that_are_no_numbers(tmp_path):
    scan = speckled(1, (20, 40, 80), spacing_mm=(2.0, 1.0, 0.5))
    scan = dataclasses.replace(scan, data=scan.data.float())
    data = scan.data.clone()
    data[..., :3, :3, :3] = torch.nan
    brightness = []
    for name, shown in (("plain", scan), ("holed", dataclasses.replace(scan, data=data))):
        folder = writing.write(result(grid=scan.grid), tmp_path / name, scan=shown)
        with Image.open(folder / "preview.png") as image:
            brightness.append(float(np.asarray(image.convert("L"), float).mean()))
    assert brightness[0] > 20
    assert brightness[1] == pytest.approx(brightness[0], rel=0.05)


def test_no_finding_takes_the_file_of_another(tmp_path):
    names = ["c-2", "c", "c", "preview", "result", "log", "c-1"]
    curves = [Curve(name, (float(i),), "", None, (0,)) for i, name in enumerate(names)]
    facts = content(writing.write(result(*curves), tmp_path / "x"))
    files = [f["file"] for f in facts["findings"]]
    assert len({Path(file).stem for file in files} | {"preview", "result", "log"}) == len(names) + 3
    rows = [(tmp_path / "x" / f).read_text().splitlines()[1] for f in files]
    assert rows == [f"0,{float(i)}," for i in range(len(names))]


def test_the_kind_of_a_result_is_told_without_its_scan(tmp_path):
    scan = speckled(5, (1, 40, 48))
    labels = Labels("m", torch.zeros(5, *scan.grid.shape, dtype=torch.uint8), scan.grid, {1: "m"})
    whole = result(labels, grid=scan.grid)
    kinds = {
        content(writing.write(whole, tmp_path / n, scan=s))["kind"] for n, s in (("a", scan), ("b", None))
    }
    assert kinds == {"cine"}
