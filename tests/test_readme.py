from __future__ import annotations

import ast
import csv
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

import usvol
from usvol.result import Curve
from usvol.scan import Grid, Scan


def blocks(repository: Path) -> list[str]:
    return re.findall(
        r"```python\n(.*?)```", (repository / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )


@pytest.fixture
def motion_installed(repository, tmp_path, monkeypatch):
    """Install the task of the README as a package of its own, found by entry point."""
    (code,) = [block for block in blocks(repository) if "class Motion" in block]
    tasks = tmp_path / "my_lab" / "tasks"
    tasks.mkdir(parents=True)
    for folder in (tasks.parent, tasks):
        (folder / "__init__.py").write_text("")
    (tasks / "motion.py").write_text(code, encoding="utf-8")
    information = tmp_path / "my_lab-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-lab\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[usvol.tasks]\nmy_lab = my_lab.tasks\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        del sys.modules[name]


@pytest.fixture
def pulsing() -> Scan:
    """A noisy cine whose brightness jumps by 0.2 between frames 5 and 6."""
    generator = torch.Generator().manual_seed(0)
    speckle = torch.randint(60, 120, (1, 1, 1, 64, 80), generator=generator, dtype=torch.uint8)
    data = speckle.repeat(10, 1, 1, 1, 1)
    data[6:] += 51
    return Scan(data, Grid((1, 64, 80)), times_s=tuple(i / 20 for i in range(10)))


def test_the_task_of_the_readme_runs_through_the_pipeline(motion_installed, pulsing, tmp_path):
    entry = usvol.tasks()["motion"]
    assert entry.summary == "Measure how much the picture changes from frame to frame."
    task = usvol.build_task("motion", device="cpu", overrides={"max_frames": 8})
    assert task.selection.max_frames == 8
    result = usvol.run(task, pulsing)
    (curve,) = result.findings
    assert isinstance(curve, Curve)
    assert max(curve.values) == curve.values[5] == pytest.approx(0.2, abs=0.02)
    assert curve.frame_indices[5] == 6
    assert curve.times_s is not None
    assert curve.times_s[5] == pytest.approx(0.3)
    folder = usvol.write(result, tmp_path / "out", scan=pulsing)
    assert (folder / "result.json").is_file()
    assert list(folder.glob("preview*"))


def test_the_task_of_the_readme_runs_on_the_command_line(motion_installed, pulsing, tmp_path):
    from typer.testing import CliRunner

    from usvol.cli import app
    from usvol.formats.video_writing import write_gif

    clips = tmp_path / "clips"
    clips.mkdir()
    write_gif(clips / "pulsing.gif", pulsing.data[:, 0, 0].numpy(), fps=20)
    out = tmp_path / "out"
    outcome = CliRunner().invoke(app, ["run", "motion", str(clips), "-o", str(out), "--set", "max_frames=50"])
    assert outcome.exit_code == 0, outcome.output
    (row,) = csv.DictReader((out / "measurements.csv").open(encoding="utf-8"))
    assert any("mean motion" in column and value for column, value in row.items())
    assert (out / "report.html").is_file()


def test_every_python_block_of_the_readme_is_valid_and_its_names_exist(repository):
    found = blocks(repository)
    assert len(found) >= 2
    for block in found:
        for node in ast.walk(ast.parse(block)):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "usvol"
            ):
                assert hasattr(usvol, node.attr), node.attr


def test_links_and_pictures_of_the_readme_exist(repository):
    text = (repository / "README.md").read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", text) if not t.startswith("http")]
    assert len(targets) >= 4
    missing = [target for target in targets if not (repository / target).exists()]
    assert not missing


def test_verbs_and_exit_codes_of_the_readme_are_those_of_the_command_line(repository):
    from usvol.cli import app
    from usvol.cli_output import ExitCode

    text = (repository / "README.md").read_text(encoding="utf-8")
    verbs = {command.name for command in app.registered_commands} | {
        group.name for group in app.registered_groups
    }
    shown = set(re.findall(r"(?:^|`|&& )usvol ([a-z]+)", text, re.MULTILINE))
    assert shown
    assert shown <= verbs
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert codes == {int(code) for code in ExitCode}
