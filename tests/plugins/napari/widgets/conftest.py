"""Small scans, and tasks that answer at once, so that a test of a widget takes a second or two."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from usvol import pipeline
from usvol.formats.nifti import write_nifti
from usvol.measurement import ejection_fraction_percent, length_mm, volume_ml
from usvol.result import Curve, Event, Labels, Line, Measurement, Plane, Surface
from usvol.scan import Grid, Kind, Scan, Selection
from usvol.supervision import track

TOYBOX = Path(__file__).parents[3] / "toybox"
SPACING_MM = (2.0, 1.0, 0.5)


@dataclasses.dataclass
class Toy:
    """What every toy task has."""

    accepts: frozenset[Kind] = frozenset({Kind.VOLUME, Kind.CINE, Kind.VOLUME_SEQUENCE})
    selection: Selection = dataclasses.field(default_factory=Selection)
    provenance: dict[str, Any] = dataclasses.field(default_factory=lambda: {"task": "toy"})

    def preprocess(self, scan):
        return scan

    def infer(self, scan):
        return scan.data[:, 0]

    def flags(self, raw, scan):
        return ()


class Heart(Toy):
    """Segments what is bright in a cine, and says EF of its area between ED and ES."""

    def postprocess(self, raw, scan):
        mask = (raw > 127).to(torch.uint8)
        areas = mask.sum((1, 2, 3)).double()
        names = {"ED": int(areas.argmax()), "ES": int(areas.argmin())}
        events = tuple(Event(n, i, scan.times_s[i] if scan.times_s else None) for n, i in names.items())
        frames = scan.source.frame_indices or tuple(range(len(mask)))
        curve = Curve("area", tuple(areas.tolist()), "px", scan.times_s, frames, events=events)
        return (Labels("ventricle", mask, scan.grid, {1: "ventricle"}), curve)

    def measure(self, findings, scan):
        curve = findings[1]
        at = {event.name: curve.values[event.index] for event in curve.events}
        ef = ejection_fraction_percent(at["ED"], at["ES"]) if at["ES"] <= at["ED"] else None
        return (Measurement("ef", ef, "%", note=None if ef else "ES is larger than ED"),)


class Guided(Toy):
    """Finds a blob with its surface, a needle and a plane in a volume."""

    def postprocess(self, raw, scan):
        labels = Labels("organ", (raw > 127).to(torch.uint8), scan.grid, {1: "organ", 2: "cyst"})
        line = Line("needle", (2.0, 2.0, 2.0), (20.0, 10.0, 6.0))
        plane = Plane("cut", (15.0, 10.0, 6.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0))
        return (labels, line, plane, self.surface(labels))

    def surface(self, labels):
        count = float(labels.data.sum())
        corners = torch.tensor([[0.0, 0.0, 0.0], [0.0, count, 0.0], [0.0, 0.0, 5.0]])
        return Surface("organ surface", corners, torch.tensor([[0, 1, 2]]))

    def follow(self, findings, changed):
        return (*findings[:3], self.surface(findings[0])) if 0 in changed else findings

    def measure(self, findings, scan):
        labels, line, plane, _ = findings
        reason = scan.calibration.reason
        away = abs(float(np.dot(np.subtract(line.tip, plane.point), plane.normal)))
        return (
            Measurement("organ_volume", volume_ml(labels, 1, reason=reason), "mL"),
            Measurement("cyst_volume", volume_ml(labels, 2, reason=reason), "mL"),
            Measurement("needle_length", length_mm([line.entry, line.tip], scan.grid, reason=reason), "mm"),
            Measurement("tip_to_plane", away, "mm"),
        )


class Beating(Toy):
    """Outlines what is bright in a 3D+t clip, and measures each of its volumes."""

    def postprocess(self, raw, scan):
        return (Labels("chamber", (raw > 127).to(torch.uint8), scan.grid, {1: "chamber"}),)

    def measure(self, findings, scan):
        frames = range(len(findings[0].data))
        return tuple(Measurement(f"volume_{t}", volume_ml(findings[0], 1, frame=t), "mL") for t in frames)


class Endless(Toy):
    """Runs for a minute unless it is stopped."""

    def infer(self, scan):
        import time

        for _ in track(range(6000)):
            time.sleep(0.01)

    def postprocess(self, raw, scan):
        return ()

    def measure(self, findings, scan):
        return ()


def cine() -> Scan:
    """Ten frames of a beating disc, largest in frame 2 and smallest in frame 6."""
    y, x = np.mgrid[:48, :64]
    radii = (12, 14, 16, 14, 11, 8, 6, 8, 10, 12)
    frames = [np.where((y - 24) ** 2 + (x - 32) ** 2 <= r * r, 200, 40) for r in radii]
    data = torch.from_numpy(np.stack(frames).astype(np.uint8))[:, None, None]
    return Scan(data, Grid((1, 48, 64), (0.5, 0.5, 0.5)), times_s=tuple(i / 20 for i in range(10)))


def volume(spacing_mm=SPACING_MM) -> Scan:
    """A bright block in a dark volume."""
    data = np.random.default_rng(0).integers(20, 60, (16, 20, 24)).astype(np.uint8)
    data[4:12, 5:15, 6:18] = 200
    return Scan(torch.from_numpy(data)[None, None], Grid((16, 20, 24), spacing_mm))


@pytest.fixture
def clip() -> Scan:
    return cine()


@pytest.fixture
def solid() -> Scan:
    return volume()


@pytest.fixture
def show(viewer):
    """Return a function that shows a scan in the viewer."""
    from napari.layers import Layer

    from usvol_napari.layers import scan_layers

    def add(scan: Scan):
        return [viewer.add_layer(Layer.create(*layer)) for layer in scan_layers(scan)][-1]

    return add


@pytest.fixture
def analysed(viewer, show):
    """Return a function that shows a scan and what a toy task finds in it."""
    from usvol_napari.widgets.run_task import show_analysis
    from usvol_napari.widgets.session import Analysis, session_of
    from usvol_napari.widgets.shown import shown_scan

    def add(task: Toy, scan: Scan):
        layer = show(scan)
        result = pipeline.run(task, scan, name="toy")
        session = session_of(viewer)
        show_analysis(viewer, Analysis(result, shown_scan(layer), task=task, scan=scan))
        return session

    return add


@pytest.fixture
def heart() -> Toy:
    return Heart()


@pytest.fixture
def guided() -> Toy:
    return Guided()


@pytest.fixture
def beating() -> Toy:
    return Beating()


@pytest.fixture
def endless() -> Toy:
    return Endless()


@pytest.fixture
def toybox(monkeypatch):
    """Install the task ``bright``."""
    monkeypatch.syspath_prepend(str(TOYBOX))
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "toybox"]:
        del sys.modules[name]


@pytest.fixture
def volume_file(tmp_path) -> Path:
    scan = volume()
    write_nifti(tmp_path / "block.nii.gz", scan.data[0, 0].numpy(), grid=scan.grid)
    return tmp_path / "block.nii.gz"


@pytest.fixture
def number():
    """Return a function that finds a measured value by name."""
    return lambda result, name: next(m.value for m in result.measurements if m.name == name)


@pytest.fixture
def viewer_application(request):
    """Skip where Qt would end the process: widgets without a viewer need a screen as well."""
    import os
    from shutil import which

    if not (os.environ.get("DISPLAY") or which("Xvfb") or not sys.platform.startswith("linux")):
        pytest.skip("no screen: neither DISPLAY nor Xvfb; on Debian: apt-get install xvfb")
    return request.getfixturevalue("qapp")
