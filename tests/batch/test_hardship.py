"""What a run does when the machine, its user or an input makes it hard."""

from __future__ import annotations

import csv
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from usvol.batch.ledger import LEDGER_FILE, open_ledger
from usvol.batch.outcome import Outcome, Status
from usvol.batch.study import Existing, Plan, rebuild, run_study
from usvol.errors import ConfigError, DiskFullError
from usvol.formats.video_writing import write_gif

TOYBOX = Path(__file__).parents[1] / "toybox"


@pytest.fixture
def clips(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        frames = np.random.default_rng(number).integers(20, 200, (3, 24, 32)).astype(np.uint8)
        write_gif(folder / f"clip_{number}.gif", frames, fps=20)
    return folder


def run(clips: Path, *, existing: Existing = Existing.REFUSE, **settings):
    plan = Plan("bright", (str(clips),), clips.parent / "out", settings=settings, existing=existing)
    return run_study(plan, on_start=lambda _: None, on_outcome=lambda _: None)


def command(clips: Path, *options: str, stderr: int | None = None) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "usvol.cli", "run", "bright", str(clips), "-o", str(clips.parent / "out")]
    environment = {**os.environ, "PYTHONPATH": str(TOYBOX)}
    return subprocess.Popen([*line, *options], env=environment, stderr=stderr)


def statuses(out: Path) -> list[str]:
    with (out / "measurements.csv").open(encoding="utf-8") as stream:
        return [row["status"] for row in csv.DictReader(stream)]


def test_an_item_that_kills_the_process_takes_no_other_with_it(clips):
    options = ("--set", "kill_on=clip_2", "--workers", "4")
    codes = [command(clips, *options).wait()]
    while codes[-1] == -signal.SIGKILL and len(codes) < 6:
        codes.append(command(clips, *options, "--resume").wait())
    assert codes == [-signal.SIGKILL] * 3 + [3]
    assert statuses(clips.parent / "out") == ["done", "done", "failed", "done", "done", "done"]
    # It stays set aside until its record is taken away.
    assert command(clips, *options, "--resume").wait() == 3
    (record,) = (clips.parent / "out" / "quarantine").glob("clip_2-*.json")
    assert "died 3 times" in record.read_text()
    record.unlink()
    assert command(clips, *options, "--resume").wait() == -signal.SIGKILL


def test_a_failure_is_no_death_of_the_process(clips):
    for _ in range(4):
        run(clips, existing=Existing.RESUME, fail_on="clip_2")
    assert run(clips, existing=Existing.RESUME, fail_on="clip_2").counts[Status.FAILED] == 1
    (record,) = (clips.parent / "out" / "quarantine").glob("*.json")
    assert "a bug in the task" in record.read_text()


def test_a_full_disk_stops_the_run_and_blames_no_item(clips):
    with pytest.raises(DiskFullError, match="--resume"):
        run(clips, full_on="clip_3")
    out = clips.parent / "out"
    assert not list(out.glob("quarantine/*"))
    with open_ledger(out) as ledger:
        assert ledger.running() == {}
    plan = Plan("bright", (str(clips),), out, existing=Existing.OVERWRITE)
    assert run_study(plan, on_start=lambda _: None, on_outcome=lambda _: None).counts[Status.DONE] == 6


def test_a_ledger_others_hold_is_waited_for_and_then_named(tmp_path, monkeypatch):
    monkeypatch.setattr("usvol.batch.ledger._PATIENCE_S", 0.1)
    with open_ledger(tmp_path):
        pass
    other = sqlite3.connect(tmp_path / LEDGER_FILE)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ConfigError, match="locked.*Close that program"), open_ledger(tmp_path) as ledger:
        ledger.release()
    other.close()


def test_a_reader_of_the_ledger_keeps_nobody_from_writing(clips, monkeypatch):
    monkeypatch.setattr("usvol.batch.ledger._PATIENCE_S", 0.1)
    monkeypatch.setattr("usvol.batch.ledger._PIECE", 2)
    run(clips)
    with open_ledger(clips.parent / "out") as ledger, open_ledger(clips.parent / "out") as other:
        seen = ledger.outcomes()
        names = [next(seen).id]
        other.record(Outcome(names[0], 0, "", Status.FAILED, "X", "x"))
        names += [outcome.id for outcome in seen]
    assert [name.partition("-")[0] for name in names] == [f"clip_{number}" for number in range(6)]


def test_files_of_the_user_among_results_are_never_deleted(clips):
    run(clips)
    out = clips.parent / "out"
    (folder,) = out.glob("items/clip_1-*")
    (folder / "corrected.nii.gz").write_bytes(b"hours of work")
    clips.joinpath("clip_0.gif").replace(clips / "clip_1.gif")
    summary = run(clips, existing=Existing.RESUME)
    assert summary.counts[Status.FAILED] == 1
    assert [path.name for path in folder.iterdir()] == ["corrected.nii.gz"]
    (folder / "corrected.nii.gz").rename(out.parent / "kept.nii.gz")
    assert run(clips, existing=Existing.RESUME).counts[Status.DONE] == 5


def test_what_a_kept_result_took_stays_known(clips):
    run(clips)
    before = (clips.parent / "out" / "measurements.csv").read_text()
    run(clips, existing=Existing.RESUME)
    assert (clips.parent / "out" / "measurements.csv").read_text() == before


def test_messages_nobody_reads_do_not_end_a_run(clips):
    for number in (0, 1):
        (clips / f"clip_{number}.gif").write_bytes(b"GIF89a junk")
    process = command(clips, "--workers", "1", stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait() == 3
    assert statuses(clips.parent / "out") == ["failed", "failed", "done", "done", "done", "done"]


def test_tables_and_report_survive_a_damaged_preview(clips):
    run(clips)
    (preview,) = (clips.parent / "out").glob("items/clip_1-*/preview.png")
    preview.write_bytes(b"no picture")
    assert "clip_1.gif" in rebuild(clips.parent / "out").read_text(encoding="utf-8")


def test_what_begins_as_a_formula_is_text_in_the_table(clips):
    (clips / "=1+1.gif").write_bytes(b"GIF89a junk")
    run(clips)
    text = (clips.parent / "out" / "measurements.csv").read_text(encoding="utf-8")
    assert "'=1+1.gif: " in text
    assert ",=1+1" not in text
