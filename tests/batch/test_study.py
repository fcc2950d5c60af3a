from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from usvol import pipeline
from usvol.batch.item import Stated
from usvol.batch.ledger import open_ledger
from usvol.batch.outcome import Status
from usvol.batch.run_file import read_run
from usvol.batch.study import Existing, Plan, rebuild, run_study
from usvol.errors import ConfigError, ReadError
from usvol.formats.metaimage import write_image
from usvol.formats.nifti import write_nifti
from usvol.formats.video_writing import write_gif, write_video
from usvol.scan import Grid, Selection
from usvol.supervision import supervised


def clip(path: Path, level: int = 200) -> Path:
    frames = np.random.default_rng(level).integers(20, 60, (6, 40, 48)).astype(np.uint8)
    frames[:, 10:20, 10:30] = level
    return write_gif(path, frames, fps=20)


@pytest.fixture
def inputs(tmp_path) -> Path:
    """Three clips, a volume without scale, a still, a torn clip and a table."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in (1, 2, 10):
        clip(folder / f"clip_{number}.gif", 100 + 10 * number)
    volume = np.random.default_rng(0).integers(20, 60, (12, 16, 20)).astype(np.uint8)
    volume[2:4, 5:7, 5:7] = 255
    write_nifti(folder / "liver.nii.gz", volume, grid=Grid((12, 16, 20), (2.0, 1.0, 1.0)))
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (16, 16), np.uint8)).save(folder / "still.png")
    whole = write_video(folder / "torn.mp4", np.zeros((5, 32, 32), np.uint8), fps=20)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (folder / "labels.csv").write_text("a,b\n")
    return folder


def study(inputs: Path, **changes):
    facts = {
        "task": "bright",
        "inputs": (str(inputs),),
        "out": inputs.parent / "out",
        "device": "cpu",
    } | changes
    seen = []
    summary = run_study(Plan(**facts), on_start=seen.append, on_outcome=seen.append)
    return summary, seen[1:]


def table(out: Path) -> list[dict[str, str]]:
    with (out / "measurements.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def result_files(out: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in sorted(out.glob("items/*/result.json"))}


def test_every_file_is_accounted_for_in_the_order_of_the_input(inputs):
    before = {p: p.read_bytes() for p in inputs.iterdir()}
    summary, outcomes = study(inputs, workers=3)
    out = inputs.parent / "out"
    assert [Path(o.path).name for o in outcomes] == [
        "clip_1.gif",
        "clip_2.gif",
        "clip_10.gif",
        "liver.nii.gz",
        "still.png",
        "torn.mp4",
    ]
    statuses = ["done", "done", "done", "done", "skipped", "failed"]
    assert [o.status for o in outcomes] == statuses
    assert summary.counts[Status.DONE] == 4
    assert summary.ignored == 1
    assert summary.state == "finished"
    rows = table(out)
    assert [row["status"] for row in rows] == statuses
    assert [row["path"] for row in rows] == [o.path for o in outcomes]
    assert "not still images" in rows[4]["message"]
    assert rows[4]["reason"] == "KindError"
    assert float(rows[3]["volume [mL]"]) == pytest.approx(2 * 2 * 2 * 2 / 1000)
    assert float(rows[0]["bright_samples"]) == 6 * 10 * 20
    assert rows[0]["volume [mL]"] == ""
    columns = parquet.read_table(out / "measurements.parquet").to_pydict()
    assert list(columns) == list(rows[0])
    assert columns["volume [mL]"][:4] == [None, None, None, pytest.approx(0.016)]
    assert {p: p.read_bytes() for p in inputs.iterdir()} == before


def test_the_output_holds_what_the_design_names(inputs):
    study(inputs)
    out = inputs.parent / "out"
    names = {"items", "ledger.sqlite", "measurements.csv", "measurements.parquet", "quarantine"}
    assert {p.name for p in out.iterdir()} == names | {"report.html", "run.json"}
    (folder,) = out.glob("items/clip_1-*")
    wanted = {"bright-spots.nii.gz", "log.txt", "preview.gif", "preview.png", "result.json", "share.csv"}
    assert {p.name for p in folder.iterdir()} == wanted
    log = (folder / "log.txt").read_text()
    assert "clip_1.gif" in log
    assert "stage infer" in log
    assert "clip_2.gif" not in log
    (record,) = out.glob("quarantine/*.json")
    facts = json.loads(record.read_text())
    assert facts["path"].endswith("torn.mp4")
    assert facts["error"].endswith("Error")
    assert facts["traceback"] is None
    run = read_run(out)
    assert run is not None
    assert run["state"] == "finished"
    assert run["summary"]["done"] == 4
    assert run["identity"]["config"]["threshold"] == 100.0


def test_a_bug_in_one_item_fails_only_it_and_leaves_its_traceback(inputs):
    _, outcomes = study(inputs, settings={"fail_on": "clip_2"})
    assert [o.status for o in outcomes] == ["done", "failed", "done", "done", "skipped", "failed"]
    assert outcomes[1].reason == "RuntimeError"
    (record,) = (inputs.parent / "out").glob("quarantine/clip_2-*.json")
    assert "a bug in the task" in json.loads(record.read_text())["traceback"]
    assert not list((inputs.parent / "out").glob("items/clip_2-*"))
    assert not list((inputs.parent / "out").glob("items/.*"))


def test_resume_keeps_what_is_complete_and_redoes_the_rest(inputs):
    study(inputs)
    out = inputs.parent / "out"
    first = result_files(out)
    (torn,) = out.glob("items/clip_2-*")
    mask = torn / "bright-spots.nii.gz"
    mask.write_bytes(mask.read_bytes()[:-5])
    summary, outcomes = study(inputs, existing=Existing.RESUME)
    assert summary.resumed == 3
    assert summary.computed == 1
    assert [o.status for o in sorted(outcomes, key=lambda o: o.order)].count("done") == 4
    after = result_files(out)
    assert {Path(p).parent.name[:6] for p in first if first[p] != after[p]} == {"clip_2"}
    assert [row["status"] for row in table(out)] == ["done"] * 4 + ["skipped", "failed"]
    assert [Path(row["path"]).name for row in table(out)][:3] == ["clip_1.gif", "clip_2.gif", "clip_10.gif"]


def test_resume_notices_a_changed_input_and_a_repaired_one(inputs):
    study(inputs)
    clip(inputs / "clip_1.gif", 20)
    write_video(inputs / "torn.mp4", np.full((5, 32, 32), 210, np.uint8), fps=20)
    summary, _ = study(inputs, existing=Existing.RESUME)
    rows = table(inputs.parent / "out")
    assert summary.computed == 2
    assert float(rows[0]["bright_samples"]) == 0
    assert rows[5]["status"] == "done"
    assert not list((inputs.parent / "out" / "quarantine").iterdir())


def test_resume_notices_a_changed_part_of_an_input(tmp_path):
    root = tmp_path / "in"
    (root / "beat").mkdir(parents=True)
    for number in range(4):
        Image.new("L", (32, 24), 40).save(root / "beat" / f"{number}.png")
    volume = np.full((8, 9, 10), 40, np.uint8)
    write_image(root / "v.mhd", volume, grid=Grid((8, 9, 10)))
    study(root)
    assert study(root, existing=Existing.RESUME)[0].resumed == 2
    before = {o.path: o.row["input_sha256"] for o in study(root, existing=Existing.RESUME)[1]}
    Image.new("L", (32, 24), 220).save(root / "beat" / "2.png")
    write_image(root / "other.mhd", np.full((8, 9, 10), 220, np.uint8), grid=Grid((8, 9, 10)))
    (root / "other.zraw").replace(root / "v.zraw")
    (root / "other.mhd").unlink()
    summary, outcomes = study(root, existing=Existing.RESUME)
    assert summary.computed == 2
    assert all(o.row["input_sha256"] != before[o.path] for o in outcomes)


def test_resume_keeps_one_series_of_a_folder_and_redoes_the_other(tmp_path, slices):
    root = tmp_path / "in"
    slices(root, count=5, level=200)
    slices(root, count=6, level=200, series="1.2.4", prefix="b")
    summary, outcomes = study(root)
    assert summary.counts[Status.DONE] == 2
    volumes_ml = sorted(float(row["volume [mL]"]) for row in table(tmp_path / "out"))
    assert volumes_ml == pytest.approx([5 * 80 / 4000, 6 * 80 / 4000])
    assert len({o.row["input_sha256"] for o in outcomes} - {None}) == 2
    assert study(root, existing=Existing.RESUME)[0].resumed == 2
    slices(root, count=7, level=200, series="1.2.4", prefix="b")
    summary, again = study(root, existing=Existing.RESUME)
    assert (summary.resumed, summary.computed) == (1, 1)
    assert {o.id for o in again} == {o.id for o in outcomes}
    results = sorted(path.name for path in (tmp_path / "out" / "items").iterdir())
    assert results == sorted(o.id for o in outcomes)


def test_resume_does_not_give_one_file_the_numbers_of_another(tmp_path):
    """Volumes of one shape unpacked together have one size and one time, and often one name."""
    volume = np.random.default_rng(0).integers(20, 60, (12, 16, 20)).astype(np.uint8)
    folders = [tmp_path / name / "scan" for name in "AB"]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        volume[2:4, 5:7, 5 : 7 + 4 * number] = 255
        write_nifti(folder / "vol.nii", volume, grid=Grid((12, 16, 20), (2.0, 1.0, 1.0)))
        os.utime(folder / "vol.nii", (1_700_000_000, 1_700_000_000))
    one, other = folders
    out = tmp_path / "out"
    study(one, out=out)
    before = table(out)
    summary, _ = study(other, out=out, existing=Existing.RESUME)
    assert (summary.resumed, summary.computed) == (0, 1)
    assert table(out)[0] != before[0]
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    other.rename(moved / "scan")
    summary, _ = study(moved / "scan", out=out, existing=Existing.RESUME)
    assert (summary.resumed, summary.computed) == (1, 0), "an archive that was moved has the same bytes"


def test_two_runs_do_not_work_in_one_folder(inputs):
    study(inputs)
    seen = []

    def second(_outcome) -> None:
        for existing in (Existing.RESUME, Existing.OVERWRITE, Existing.REFUSE):
            with pytest.raises(ConfigError, match="Another run is at work"):
                study(inputs, existing=existing)
        seen.append(True)

    plan = Plan(
        task="bright",
        inputs=(str(inputs),),
        out=inputs.parent / "out",
        device="cpu",
        existing=Existing.OVERWRITE,
    )
    summary = run_study(plan, on_start=lambda _count: None, on_outcome=second)
    assert seen and summary.counts[Status.DONE] == 4
    study(inputs, existing=Existing.RESUME)


def test_records_of_failures_go_with_their_reason(inputs):
    study(inputs)
    (record,) = (inputs.parent / "out" / "quarantine").iterdir()
    (inputs / "torn.mp4").unlink()
    study(inputs, existing=Existing.RESUME)
    assert not record.exists(), "it is no input any more"


def test_a_failure_that_became_a_skip_leaves_no_record(inputs):
    study(inputs)
    (record,) = (inputs.parent / "out" / "quarantine").iterdir()
    (inputs / "torn.mp4").write_bytes((inputs / "still.png").read_bytes())
    _, outcomes = study(inputs, existing=Existing.RESUME)
    assert [o.status for o in outcomes].count(Status.SKIPPED) == 2
    assert not record.exists()


def test_overwrite_follows_no_link(inputs):
    out = inputs.parent / "out"
    study(inputs)
    (out / "items").rename(inputs.parent / "big")
    (out / "items").symlink_to(inputs.parent / "big")
    study(inputs, existing=Existing.OVERWRITE)
    assert not (out / "items").is_symlink()
    assert any((inputs.parent / "big").iterdir()), "what it led to is not ours to delete"


def test_a_stated_rate_rules_which_frames_are_seen(tmp_path):
    frames = np.random.default_rng(0).integers(20, 60, (60, 40, 48)).astype(np.uint8)
    frames[:, 10:20, 10:30] = 200
    paths = [write_video(tmp_path / f"{fps}.avi", frames, fps=fps) for fps in (20, 200)]
    chosen = []
    for path, stated in zip(paths, (Stated(), Stated(fps=20)), strict=True):
        scan = stated.load(path, Selection(fps=5))
        chosen.append((scan.source.frame_indices, scan.times_s))
    assert len(chosen[0][0]) == 15
    assert chosen[0][0] == chosen[1][0]
    assert chosen[0][1] == pytest.approx(chosen[1][1])
    assert len(Stated().load(paths[1], Selection(fps=5)).source.frame_indices) == 2


def test_an_input_that_breaks_later_does_not_keep_its_old_result(inputs):
    study(inputs)
    (inputs / "clip_1.gif").write_bytes(b"GIF89a torn")
    _, outcomes = study(inputs, existing=Existing.RESUME)
    assert {Path(o.path).name: o.status for o in outcomes}["clip_1.gif"] == "failed"
    assert not list((inputs.parent / "out").glob("items/clip_1-*"))


def test_ctrl_c_leaves_a_table_and_what_is_needed_to_go_on(inputs):
    seen = []

    def interrupt(outcome):
        seen.append(outcome)
        if len(seen) == 2:
            raise KeyboardInterrupt

    out = inputs.parent / "out"
    plan = Plan("bright", (str(inputs),), out, device="cpu", workers=1)
    summary = run_study(plan, on_start=lambda _: None, on_outcome=interrupt)
    assert summary.state == "interrupted"
    assert [row["status"] for row in table(out)][:2] == ["done", "done"]
    assert summary.counts[Status.PENDING] >= 1
    assert summary.counts[Status.RUNNING] == 0
    summary, _ = study(inputs, existing=Existing.RESUME)
    assert summary.state == "finished"
    assert summary.resumed >= 2
    assert summary.counts[Status.DONE] == 4


def test_cancelling_stops_the_items_in_work_and_leaves_them_to_be_resumed(inputs):
    clips, asked = str(inputs / "clip_*.gif"), itertools.count()
    plan = Plan("bright", (clips,), inputs.parent / "out", device="cpu", workers=1)
    # A stage asks twice, so this is in the second item.
    with supervised(cancelled=lambda: next(asked) > 3 * len(pipeline.STAGES)):
        summary = run_study(plan, on_start=lambda _: None, on_outcome=lambda _: None)
    assert summary.state == "interrupted"
    assert (summary.counts[Status.DONE], summary.counts[Status.PENDING]) == (1, 2)
    assert not list(plan.out.glob("quarantine/*"))
    plan = dataclasses.replace(plan, existing=Existing.RESUME)
    again = run_study(plan, on_start=lambda _: None, on_outcome=lambda _: None)
    assert (again.resumed, again.counts[Status.DONE]) == (1, 3)


def test_an_item_that_kills_the_process_again_and_again_is_set_aside(inputs):
    study(inputs)
    out = inputs.parent / "out"
    (folder,) = out.glob("items/clip_2-*")
    (folder / "result.json").unlink()
    with open_ledger(out) as ledger:
        for _ in range(3):
            ledger.start(folder.name)
    _, outcomes = study(inputs, existing=Existing.RESUME)
    (killer,) = [o for o in outcomes if "clip_2" in o.path]
    assert killer.status is Status.FAILED
    assert "died" in killer.message


def test_fail_fast_stops_at_the_first_failure(inputs):
    summary, outcomes = study(inputs, settings={"fail_on": "clip_1"}, fail_fast=True, workers=1)
    assert [o.status for o in outcomes] == ["failed"]
    assert summary.state == "stopped"
    assert summary.counts[Status.FAILED] == 1


def test_results_of_different_runs_do_not_mix(inputs):
    study(inputs)
    with pytest.raises(ConfigError, match="holds results already"):
        study(inputs)
    with pytest.raises(ConfigError, match="another config"):
        study(inputs, existing=Existing.RESUME, settings={"threshold": 50})
    with pytest.raises(ConfigError, match="another spacing"):
        study(inputs, existing=Existing.RESUME, stated=Stated(spacing_mm=(1.0, 1.0, 1.0)))
    summary, _ = study(inputs, existing=Existing.OVERWRITE, settings={"threshold": 50})
    assert summary.resumed == 0
    assert summary.counts[Status.DONE] == 4


def test_folders_that_are_not_ours_are_left_alone(inputs):
    out = inputs.parent / "theirs"
    (out / "items").mkdir(parents=True)
    (out / "items" / "precious.txt").write_text("mine")
    for existing in Existing:
        with pytest.raises(ConfigError, match="not written by 'usvol run'"):
            study(inputs, out=out, existing=existing)
    assert (out / "items" / "precious.txt").read_text() == "mine"


def test_inputs_inside_the_results_are_refused(inputs):
    study(inputs)
    out = inputs.parent / "out"
    (folder,) = out.glob("items/clip_1-*")
    with pytest.raises(ConfigError, match="lies in the output folder"):
        study(folder / "preview.gif", out=out, existing=Existing.OVERWRITE)
    assert folder.is_dir()


def test_an_output_folder_that_is_an_input_says_so(inputs):
    with pytest.raises(ConfigError, match="is the output folder too"):
        study(inputs, out=inputs)
    assert not (inputs / "run.json").exists()
    study(inputs)
    out = inputs.parent / "out"
    plan = Plan("bright", (str(inputs), str(out)), out, device="cpu", existing=Existing.RESUME)
    assert run_study(plan, on_start=lambda _: None, on_outcome=lambda _: None).resumed == 4
    with pytest.raises(ReadError, match="nothing but the results of an earlier run"):
        study(out, out=out, existing=Existing.RESUME)


def test_nothing_usable_is_an_error(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.csv").write_text("a\n")
    with pytest.raises(ReadError, match="none of its 1 files"):
        study(folder)
    assert not (tmp_path / "out").exists()


def test_stated_spacing_and_rate_are_used(inputs):
    out = inputs.parent / "out"
    study(inputs / "liver.nii.gz", out=out, stated=Stated(spacing_mm=(4.0, 2.0, 2.0)))
    assert float(table(out)[0]["volume [mL]"]) == pytest.approx(8 * 16 / 1000)
    study(inputs / "clip_1.gif", out=out, stated=Stated(fps=10.0), existing=Existing.OVERWRITE)
    (curve,) = out.glob("items/*/share.csv")
    times = [float(line.split(",")[1]) for line in curve.read_text().splitlines()[1:]]
    assert times == pytest.approx([i / 10 for i in range(6)])


def test_stated_spacing_is_that_of_the_file_that_is_given(tmp_path):
    """Also where its own header says that it steps over two samples of another."""
    coarse = Grid((6, 8, 10), step_px=(2.0, 2.0, 2.0))
    path = write_nifti(tmp_path / "a.nii.gz", np.ones(coarse.shape, np.uint8), grid=coarse)
    assert Stated((0.5, 0.5, 0.5)).load(tmp_path / "a.nii.gz").grid.spacing_mm == (0.5, 0.5, 0.5), path


def test_stated_spacing_follows_frames_shrunk_in_decoding(tmp_path):
    from usvol import loading
    from usvol.scan import Selection

    path = clip(tmp_path / "a.gif")
    header = loading.probe(path)
    small = loading.load(path, selection=Selection(max_side_px=24))
    assert small.grid.shape == (1, 20, 24)
    stated = Stated(spacing_mm=(0.1, 0.1, 0.1)).apply(small, header)
    assert stated.grid.spacing_mm == pytest.approx((0.2, 0.2, 0.2))


def test_tables_and_report_can_be_written_again(inputs):
    study(inputs)
    out = inputs.parent / "out"
    before = (out / "measurements.csv").read_text()
    for name in ("measurements.csv", "measurements.parquet", "report.html"):
        (out / name).unlink()
    assert rebuild(out) == out / "report.html"
    assert (out / "measurements.csv").read_text() == before
    with pytest.raises(ConfigError, match="not the output of 'usvol run'"):
        rebuild(inputs)


def test_the_network_is_built_once_and_never_runs_twice_at_a_time(inputs, monkeypatch):
    import threading

    built, inside, most = [], [], []
    lock = threading.Lock()
    original = pipeline.run

    def watched(task, scan, **options):
        built.append(id(task))
        infer = type(task).infer

        def counted(self, prepared):
            with lock:
                inside.append(1)
                most.append(len(inside))
            try:
                return infer(self, prepared)
            finally:
                with lock:
                    inside.pop()

        watched_task = type("Watched", (), {"infer": lambda self, prepared: counted(task, prepared)})()
        for name in ("accepts", "selection", "provenance", "preprocess", "postprocess", "measure", "flags"):
            setattr(watched_task, name, getattr(task, name))
        return original(watched_task, scan, **options)

    monkeypatch.setattr("usvol.batch.item.pipeline.run", watched)
    study(inputs, workers=4)
    assert len(built) == 4
    assert len(set(built)) == 1
    assert set(most) == {1}
