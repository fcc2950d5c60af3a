"""The manifest names what exists, and has a sample for every task that can simulate one."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import yaml

import usvol_napari
from usvol import registry

MANIFEST = yaml.safe_load((Path(usvol_napari.__file__).parent / "napari.yaml").read_text(encoding="utf-8"))
CONTRIBUTIONS = MANIFEST["contributions"]


def test_npe2_takes_the_manifest_as_installed():
    from npe2 import PluginManager, PluginManifest

    manifest = PluginManifest.from_distribution("usvol-napari")
    assert manifest.display_name == "usvol"
    manager = PluginManager()
    manager.register(manifest)
    writer, path = manager.get_writer("mask.nii.gz", ["labels"], "usvol-napari")
    assert writer is not None
    assert (writer.command, path) == ("usvol-napari.write_labels", "mask.nii.gz")
    everything = ["image", "labels", "surface", "shapes", "points", "points"]
    for name, command in (("t.csv", "write_table"), ("p.gif", "write_picture"), ("session", "write_session")):
        writer, _ = manager.get_writer(name, everything, "usvol-napari")
        assert writer is not None, name
        assert writer.command == f"usvol-napari.{command}"
    writer, path = manager.get_writer("session", ["image"], "usvol-napari")
    assert writer is not None
    assert (writer.command, path) == ("usvol-napari.write_session", "session.usvol")


@pytest.mark.parametrize("command", CONTRIBUTIONS["commands"], ids=lambda command: command["id"])
def test_every_command_can_be_imported(command):
    module, _, name = command["python_name"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_every_task_has_a_sample():
    tasks = {entry.name for entry in registry.tasks().values() if entry.package in {"models3d", "video"}}
    samples = {sample["key"]: sample["command"] for sample in CONTRIBUTIONS["sample_data"]}
    commands = {command["id"]: command["python_name"] for command in CONTRIBUTIONS["commands"]}
    assert tasks == set(samples), "a command and an entry under sample_data of napari.yaml for each task"
    for task, command in samples.items():
        assert commands[command] == f"usvol_napari.sample:open_{task}"
