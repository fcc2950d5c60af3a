from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from usvol import cli
from usvol.cli_output import ExitCode, exit_code_of, parse_settings, parse_spacing
from usvol.errors import ConfigError, KindError, ReadError, TaskError, WeightsError
from usvol.formats.nifti import write_nifti
from usvol.formats.video_writing import write_gif
from usvol.scan import Grid

TOYBOX = Path(__file__).parent / "toybox"


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def usvol(tmp_path, monkeypatch, capfd):
    """Return the command line as a function, run in this process and in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(TOYBOX))
    monkeypatch.setenv("COLUMNS", "160")
    importlib.invalidate_caches()

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["usvol", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return Ended(int(left.value.code or 0), *capfd.readouterr())

    yield run
    for name in [name for name in sys.modules if name.partition(".")[0] == "toybox"]:
        del sys.modules[name]


def usvol_alone(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line as its own process; the last word on stderr says whether torch was imported."""
    code = "import sys; from usvol import cli\ntry: cli.main()\n"
    code += "finally: print('TORCH' if 'torch' in sys.modules else 'LIGHT', file=sys.stderr)"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)


def environment() -> dict[str, str]:
    repository = Path(__file__).parents[1]
    return os.environ | {
        "PYTHONPATH": f"{repository}{os.pathsep}{TOYBOX}",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
    }


def clip(path: Path, frames: int = 5) -> Path:
    samples = np.random.default_rng(0).integers(20, 60, (frames, 40, 48)).astype(np.uint8)
    samples[:, 10:20, 10:30] = 220
    return write_gif(path, samples, fps=20)


@pytest.fixture
def volume(tmp_path) -> Path:
    path = tmp_path / "liver.nii.gz"
    write_nifti(path, np.zeros((4, 5, 6), np.uint8), grid=Grid((4, 5, 6), (2.0, 1.0, 0.5)))
    return path


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["tasks"], ["models", "list"], ["run", "--help"]]
)
def test_light_verbs_import_no_torch(tmp_path, arguments):
    outcome = usvol_alone(*arguments, cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout
    assert outcome.stderr.strip().endswith("LIGHT")


def test_info_imports_no_torch_and_is_valid_json(tmp_path, volume):
    outcome = usvol_alone("info", volume, "--json", cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr.strip().endswith("LIGHT")
    (facts,) = json.loads(outcome.stdout)
    assert facts["kind"] == "volume"
    assert facts["shape"] == {"t": 1, "c": 1, "z": 4, "y": 5, "x": 6}
    assert facts["spacing_mm"] == pytest.approx([2.0, 1.0, 0.5])


def cpu_seconds(arguments: list[str], cwd: Path) -> float:
    code = "import sys,time; sys.argv=['usvol',*sys.argv[1:]]; from usvol import cli\ntry: cli.main()\n"
    code += "finally: print(time.process_time(), file=sys.stderr)"
    command = [sys.executable, "-c", code, *arguments]
    runs = [
        subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=True)
        for _ in "ab"
    ]
    return min(float(run.stderr.strip().splitlines()[-1]) for run in runs)


def test_start_up_is_quick(tmp_path, volume):
    # Processor time: a busy machine must not fail the test.
    assert cpu_seconds(["--help"], tmp_path) < 0.5
    assert cpu_seconds(["info", str(volume)], tmp_path) < 1.5


def test_info_tells_scale_times_and_failures(usvol, tmp_path, volume):
    clip(tmp_path / "beat.gif")
    (tmp_path / "notes.txt").write_text("x")
    outcome = usvol("info", tmp_path)
    assert outcome.returncode == ExitCode.DONE, outcome.stderr
    assert "2 × 1 × 0.5 mm (z, y, x)" in outcome.stdout
    assert "t=5 c=" in outcome.stdout
    assert "frames per second" in outcome.stdout
    assert "scale   none: " in outcome.stdout
    assert "1 other file ignored" in outcome.stderr
    (tmp_path / "torn.nii").write_bytes(b"\0" * 10)
    outcome = usvol("info", tmp_path)
    assert outcome.returncode == ExitCode.SOME_FAILED
    assert "torn.nii" in outcome.stdout
    assert "To fix:" in outcome.stdout
    assert usvol("info", tmp_path / "torn.nii").returncode == ExitCode.NOTHING_USABLE


def test_run_prints_json_on_stdout_and_nothing_else(usvol, tmp_path):
    clip(tmp_path / "in.gif")
    outcome = usvol("run", "bright", "in.gif", "-o", "out", "--json", "--set", "threshold=90")
    assert outcome.returncode == ExitCode.DONE, outcome.stderr
    facts = json.loads(outcome.stdout)
    assert (facts["done"], facts["failed"], facts["skipped"]) == (1, 0, 0)
    assert facts["items_per_second"] > 0
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["identity"]["config"]["threshold"] == 90
    again = usvol("run", "bright", "in.gif", "-o", "out")
    assert again.returncode == ExitCode.BAD_ARGUMENTS
    assert "--resume or --overwrite" in again.stderr
    resumed = usvol("run", "bright", "in.gif", "-o", "out", "--resume", "--set", "threshold=90")
    assert resumed.returncode == ExitCode.DONE
    assert "1 were complete already" in resumed.stdout


def test_a_failure_is_exit_3_and_named_on_stderr(usvol, tmp_path):
    (tmp_path / "in").mkdir()
    clip(tmp_path / "in" / "good.gif")
    (tmp_path / "in" / "bad.mp4").write_bytes(b"\0" * 64)
    outcome = usvol("run", "bright", "in", "-o", "out")
    assert outcome.returncode == ExitCode.SOME_FAILED
    assert "1 done, 0 skipped, 1 failed" in outcome.stdout
    assert "bad.mp4" in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("name", ["patient[left].mp4", "sub[/late].mp4", os.fsdecode(b"\xe9cho.mp4")])
def test_no_name_of_a_file_stops_a_run(usvol, tmp_path, name):
    torn = Path("in", name)
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"\0" * 64)
    whole = clip(Path("in", f"{name}.gif"))
    place = str(torn).replace("\udce9", "\ufffd")
    outcome = usvol("run", "bright", "in", "-o", "out")
    assert outcome.returncode == ExitCode.SOME_FAILED, outcome.stderr
    assert f"failed {place}: {Path(place).name}: " in outcome.stderr
    assert "1 done, 0 skipped, 1 failed" in outcome.stdout
    for written in ("measurements.csv", "report.html"):
        assert f"{place}.gif" in (tmp_path / "out" / written).read_text(encoding="utf-8")
    told = usvol("run", "bright", whole, "-o", "out2", "--json")
    assert told.returncode == ExitCode.DONE, told.stderr
    dry = usvol("run", "bright", "in", "-o", "out3", "--dry-run", "--json")
    assert {item["path"] for item in json.loads(dry.stdout)["items"]} == {place, f"{place}.gif"}
    assert f"{place}.gif" in usvol("info", "in").stdout
    assert {fact["path"] for fact in json.loads(usvol("info", "in", "--json").stdout)} == {
        place,
        f"{place}.gif",
    }


def test_nothing_usable_is_exit_4(usvol, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.mp4").write_bytes(b"\0" * 64)
    assert usvol("run", "bright", "in", "-o", "out").returncode == ExitCode.NOTHING_USABLE
    (tmp_path / "in" / "bad.mp4").unlink()
    outcome = usvol("run", "bright", "in", "-o", "out2")
    assert outcome.returncode == ExitCode.NOTHING_USABLE
    assert "it holds no file" in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "brigth", "in.gif", "-o", "out"], "Did you mean 'bright'?"),
        (["run", "bright", "none.gif", "-o", "out"], "does not exist"),
        (["run", "bright", "in.gif", "-o", "out", "--set", "treshold=1"], "did you mean 'threshold'?"),
        (["run", "bright", "in.gif", "-o", "out", "--set", "oops"], "key=value"),
        (["run", "bright", "in.gif", "-o", "out", "--spacing", "1,x"], "z,y,x"),
        (["run", "bright", "in.gif", "-o", "out", "--resume", "--overwrite"], "exclude each other"),
        (["run", "bright", "in.gif"], "--out"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_bad_arguments_are_exit_2_with_one_clean_message(usvol, tmp_path, arguments, message):
    clip(tmp_path / "in.gif")
    outcome = usvol(*arguments)
    assert outcome.returncode == ExitCode.BAD_ARGUMENTS
    assert message in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not outcome.stdout
    assert not (tmp_path / "out").exists()


def test_dry_run_writes_nothing_and_imports_no_torch(tmp_path):
    (tmp_path / "in").mkdir()
    clip(tmp_path / "in" / "a.gif")
    (tmp_path / "in" / "bad.mp4").write_bytes(b"\0" * 64)
    outcome = usvol_alone("run", "bright", "in", "-o", "out", "--dry-run", cwd=tmp_path)
    assert outcome.returncode == ExitCode.DONE, outcome.stderr
    assert "1 would run, 0 would skip, 1 would fail" in outcome.stdout
    assert outcome.stderr.strip().endswith("LIGHT")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_exit_130_and_can_be_resumed(tmp_path, number):
    (tmp_path / "in").mkdir()
    for index in range(30):
        clip(tmp_path / "in" / f"clip_{index}.gif", frames=20)
    # A test run in the background of a shell ignores SIGINT, and its children would too.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    start = f"{heed}; from usvol.cli import main; main()"
    command = [sys.executable, "-c", start, "run", "bright", "in", "-o", "out", "--workers", "1"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "out" / "items").glob("clip*/result.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        stdout, _ = process.communicate(timeout=120)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "--resume goes on" in stdout
    facts = json.loads((tmp_path / "out" / "run.json").read_text())["summary"]
    assert facts["state"] == "interrupted"
    assert 1 <= facts["done"] < 30
    assert facts["running"] == 0
    assert facts["done"] + facts["pending"] == 30
    rows = (tmp_path / "out" / "measurements.csv").read_text().splitlines()
    assert len(rows) == 31


def test_simulate_writes_scans_with_their_truth(usvol, tmp_path):
    outcome = usvol("simulate", "blob", "--n", "2", "--seed", "5", "-o", "made")
    assert outcome.returncode == ExitCode.DONE, outcome.stderr
    assert outcome.stdout.split() == ["made/simulated_blob_0005.avi", "made/simulated_blob_0006.avi"]
    truth = json.loads((tmp_path / "made" / "simulated_blob_0006.json").read_text())
    assert truth["truth"] == {"bright_samples": 8 * 144}
    assert truth["seed"] == 6
    assert "no patient" in truth["notice"]


def test_doctor_reports_in_json(usvol, tmp_path):
    outcome = usvol("doctor", "--json")
    checks = json.loads(outcome.stdout)
    areas = {check["area"] for check in checks}
    assert {"package", "device", "codec", "task", "disk"} <= areas
    bad = [check for check in checks if check["verdict"] == "bad"]
    assert outcome.returncode == (0 if not bad else 5 if any(c["area"] == "weights" for c in bad) else 1)


def test_exit_codes_follow_the_error():
    assert exit_code_of(WeightsError("x")) is ExitCode.BAD_MODEL
    assert exit_code_of(ConfigError("x")) is ExitCode.BAD_ARGUMENTS
    assert exit_code_of(TaskError("x")) is ExitCode.BAD_ARGUMENTS
    assert exit_code_of(ReadError("a", "b", "c")) is ExitCode.NOTHING_USABLE
    assert exit_code_of(KindError("x")) is ExitCode.ERROR
    assert sorted(ExitCode) == [0, 1, 2, 3, 4, 5, 130]


def test_settings_are_read_as_yaml():
    pairs = ["a=1", "b=0.5", "c=true", "d=text", "e=[1, 2]", "f=null", "g.h=x=y"]
    wanted = {"a": 1, "b": 0.5, "c": True, "d": "text", "e": [1, 2], "f": None, "g.h": "x=y"}
    assert parse_settings(pairs) == wanted
    assert parse_settings(None) == {}


@pytest.mark.parametrize(
    ("text", "wanted"), [(None, None), ("0.5", (0.5,) * 3), ("2,3", (2, 2, 3)), ("1,2,3", (1, 2, 3))]
)
def test_spacing_is_parsed(text, wanted):
    assert parse_spacing(text) == wanted


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "1,2,3,4", "a", "1;2"])
def test_wrong_spacing_is_refused(text):
    with pytest.raises(ConfigError, match="--spacing"):
        parse_spacing(text)
