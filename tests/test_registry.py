from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from usvol import registry
from usvol.errors import ConfigError, TaskError
from usvol.scan import Kind

TOYBOX = Path(__file__).parent / "toybox"


@pytest.fixture
def toybox(monkeypatch):
    monkeypatch.syspath_prepend(str(TOYBOX))
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "toybox"]:
        del sys.modules[name]


def package(folder: Path, name: str, files: dict[str, str]) -> None:
    """Install a package of tasks into ``folder``, as pip would."""
    tasks = folder / name / "tasks"
    tasks.mkdir(parents=True)
    for file, text in files.items():
        (folder / name / file).write_text(text, encoding="utf-8")
    information = folder / f"{name}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[usvol.tasks]\n{name} = {name}.tasks\n")


def test_lists_name_summary_and_kinds_without_importing(toybox):
    entry = registry.tasks()["bright"]
    assert entry.summary.startswith("Mark what is brighter than a threshold")
    assert "\n" not in entry.summary
    assert entry.accepts == {Kind.CINE, Kind.VOLUME}
    assert entry.package == "toybox"
    assert "toybox.tasks.bright" not in sys.modules
    assert registry.phantoms()["blob"].group is registry.Group.PHANTOMS
    assert "toybox" in registry.packages()


def test_shipped_tasks_are_listed():
    assert "covid_severity" in registry.tasks()
    assert {"blues", "pocus"} <= set(registry.datasets())


def test_listing_needs_no_torch(repository):
    code = "import sys; from usvol import registry; registry.tasks(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True)


def test_unknown_name_suggests_the_nearest(toybox):
    with pytest.raises(TaskError, match=r"No task 'brigth'. Did you mean 'bright'\?"):
        registry.build_task("brigth")
    with pytest.raises(TaskError, match=r"There are: .*covid_severity"):
        registry.build_task("zzzzzz")


def test_a_new_file_appears_at_once(tmp_path, monkeypatch):
    package(tmp_path, "growing", {"tasks/first.py": '"""First."""\n'})
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "first" in registry.tasks()
    (tmp_path / "growing/tasks/second.py").write_text('"""Second."""\n')
    (tmp_path / "growing/tasks/_private.py").write_text('"""Not a task."""\n')
    assert registry.tasks()["second"].summary == "Second."
    assert "_private" not in registry.tasks()


def test_two_of_one_name_are_an_error(toybox, tmp_path, monkeypatch):
    package(tmp_path, "rival", {"tasks/bright.py": '"""Another."""\n'})
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TaskError, match=r"Two tasks are named 'bright'.*Rename one"):
        registry.tasks()


@pytest.mark.parametrize(
    "files",
    [
        {"__init__.py": "raise ZeroDivisionError('broken at import')"},
        {"tasks/torn.py": "def ("},
    ],
)
def test_a_broken_package_is_named_and_skipped(toybox, tmp_path, monkeypatch, files):
    package(tmp_path, "brokenbox", files)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.warns(RuntimeWarning, match="skipping task package 'brokenbox'"):
        assert "bright" in registry.tasks()


def test_a_task_whose_import_fails_is_a_typed_error(tmp_path, monkeypatch):
    package(tmp_path, "needy", {"tasks/needy_task.py": '"""Needs more."""\nimport no_such_package_at_all\n'})
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TaskError, match="no_such_package_at_all"):
        registry.build_task("needy_task")


def test_settings_come_from_defaults_then_file_then_overrides(toybox, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("threshold: 50\nfail_on: never\n")
    task = registry.build_task("bright", device="cpu")
    defaults = {"threshold": 100.0, "fail_on": "", "kill_on": "", "full_on": ""}
    assert task.provenance["config"] == defaults
    task = registry.build_task("bright", device="cpu", config_file=recipe, overrides={"threshold": "70"})
    assert task.provenance["config"] == {**defaults, "threshold": 70.0, "fail_on": "never"}
    assert task.provenance["task"] == "bright"
    assert task.provenance["device"] == "cpu"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"treshold": 1}, r"no setting 'treshold' \(did you mean 'threshold'\?\).*threshold=100.0"),
        ({"threshold": 300}, "threshold = 300: .*less than or equal to 255.*Settings and defaults"),
        ({"threshold": "high"}, "threshold = 'high': .*valid number"),
    ],
)
def test_wrong_settings_name_the_valid_ones(toybox, overrides, message):
    with pytest.raises(ConfigError, match=message):
        registry.build_task("bright", device="cpu", overrides=overrides)


def test_dotted_overrides_reach_nested_settings():
    merged = registry._merge({"net": {"width": 8, "depth": 2}}, {"net.width": 16, "lr": 1})
    assert merged == {"net": {"width": 16, "depth": 2}, "lr": 1}


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "a: [1", "\x00", "1: 2", "on: 5", "threshold: 3\n2020-01-01: 4"]
)
def test_a_config_file_that_is_no_mapping_is_refused(toybox, tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        registry.build_task("bright", device="cpu", config_file=path)
    with pytest.raises(ConfigError, match="cannot be read"):
        registry.build_task("bright", device="cpu", config_file=tmp_path / "none.yaml")


def test_devices_that_are_not_there_are_refused(toybox):
    with pytest.raises(ConfigError, match="cuda:99"):
        registry.build_task("bright", device="cuda:99")
    with pytest.raises(ConfigError, match="tpu"):
        registry.build_task("bright", device="tpu")
