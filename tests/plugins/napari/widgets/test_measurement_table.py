from __future__ import annotations

import csv

import pytest
from qtpy.QtGui import QGuiApplication

pytest.importorskip("napari")

from usvol.result import Flag, Measurement, Severity
from usvol_napari.widgets.measurement_table import MeasurementTable
from usvol_napari.widgets.quality_flags import QualityFlags

THIRD = 1 / 3
ROWS = (
    Measurement("fetus_volume", 10 * THIRD, "mL", low=3.0, high=4.0, note="range over copies, of 8"),
    Measurement("sac_volume", None, "mL", note="not detected"),
    Measurement("severity", 2, "1"),
)


@pytest.fixture
def table(viewer_application, qtbot):
    table = MeasurementTable()
    qtbot.addWidget(table)
    table.show_measurements(ROWS)
    return table


def test_the_table_is_legible(table):
    cells = [[table.table.item(r, c).text() for c in range(5)] for r in range(3)]
    assert cells[0] == ["fetus volume", "3.333", "mL", "3 – 4", "range over copies, of 8"]
    assert cells[1] == ["sac volume", "–", "mL", "", "not detected"]
    assert cells[2][:3] == ["severity", "2", ""]


def test_copy_and_export_keep_every_digit(table, tmp_path):
    table.copy()
    copied = [line.split("\t") for line in QGuiApplication.clipboard().text().splitlines()]
    table.export(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        written = list(csv.reader(stream))
    assert copied == written
    assert written[0] == ["name", "value", "unit", "low", "high", "note"]
    assert float(written[1][1]) == 10 * THIRD
    assert written[2] == ["sac_volume", "", "mL", "", "", "not detected"]


def test_nothing_measured_nothing_to_copy(table):
    table.show_measurements(())
    assert table.table.rowCount() == 0
    assert not table.copy_button.isEnabled()


def test_the_worst_flag_comes_first_and_none_leaves_no_gap(viewer_application, qtbot):
    flags = QualityFlags()
    qtbot.addWidget(flags)
    flags.show_flags((Flag("a", "calm", Severity.INFO), Flag("b", "grave", Severity.SEVERE)))
    assert [line.text()[2:] for line in flags.lines] == ["grave", "calm"]
    flags.show_flags(())
    assert flags.isHidden()
