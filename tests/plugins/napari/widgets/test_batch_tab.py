from __future__ import annotations

import shutil

import pytest

pytest.importorskip("napari")

from napari.layers import Image, Labels

from usvol.batch.outcome import Status
from usvol_napari.widgets.batch_tab import BatchTab

WAIT_MS = 60_000


@pytest.fixture
def tab(viewer, toybox, volume_file, tmp_path, qtbot):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.nii.gz", "b.nii.gz"):
        shutil.copy(volume_file, folder / name)
    (folder / "torn.nii.gz").write_bytes(volume_file.read_bytes()[:50])
    tab = BatchTab(viewer)
    qtbot.addWidget(tab)
    assert not tab.run_button.isEnabled()
    tab.task_menu.setCurrentIndex(tab.task_menu.findData("bright"))
    tab.input.setText(str(folder))
    tab.output.setText(str(tmp_path / "out"))
    return tab


def test_every_file_gets_a_row_and_a_double_click_opens_it(tab, viewer, qtbot):
    tab.start()
    assert tab.cancel_button.isEnabled()
    qtbot.waitUntil(lambda: not tab.job.running, timeout=WAIT_MS)
    rows = [[tab.table.item(r, c).text() for c in range(3)] for r in range(tab.table.rowCount())]
    assert [row[:2] for row in rows] == [
        ["a.nii.gz", "done"],
        ["b.nii.gz", "done"],
        ["torn.nii.gz", "failed"],
    ]
    assert rows[0][2].startswith("volume [mL] ")
    assert "To fix" in rows[2][2]
    assert tab.status.text().startswith("finished: 2 done, 1 failed")
    tab.table.cellDoubleClicked.emit(1, 0)
    assert any(isinstance(layer, Image) for layer in viewer.layers)
    assert any(isinstance(layer, Labels) for layer in viewer.layers)
    assert tab.open_row(2) == []
    assert "To fix" in tab.status.text()


def test_stopping_keeps_what_is_complete(tab, qtbot):
    tab.arrived.connect(lambda _outcome: tab.stop())
    tab.start()
    qtbot.waitUntil(lambda: not tab.job.running, timeout=WAIT_MS)
    assert tab.outcomes[0].status is Status.DONE
    assert tab.status.text().startswith(("interrupted", "finished"))


def test_a_folder_of_results_is_not_overwritten(tab, tmp_path, qtbot):
    (tmp_path / "out" / "items").mkdir(parents=True)
    tab.start()
    qtbot.waitUntil(lambda: tab.message_box is not None, timeout=WAIT_MS)
    assert "not written by 'usvol run'" in tab.message_box.text()
    tab.message_box.close()
