from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usvol.batch.discovery import Item
from usvol.batch.ledger import LEDGER_FILE, open_ledger
from usvol.batch.outcome import Outcome, Status
from usvol.errors import ConfigError

ITEMS = [Item(f"item-{index}", index, Path(f"in/{index}.png")) for index in range(5)]


def outcome(item: Item, status: Status, **row) -> Outcome:
    return Outcome(item.id, item.order, str(item.path), status, "why", "because", 1.5, row)


def test_outcomes_come_back_in_input_order(tmp_path):
    with open_ledger(tmp_path) as ledger:
        ledger.plan(ITEMS, [(Path("x.csv"), "no scan")])
        for item in reversed(ITEMS):
            ledger.record(outcome(item, Status.DONE, kind="cine", value=item.order))
    with open_ledger(tmp_path) as ledger:
        back = list(ledger.outcomes())
        assert back == [outcome(item, Status.DONE, kind="cine", value=item.order) for item in ITEMS]
        assert ledger.counts()[Status.DONE] == 5
        assert ledger.ignored() == [("x.csv", "no scan")]


def test_a_new_plan_keeps_what_is_known_and_drops_what_left(tmp_path):
    with open_ledger(tmp_path) as ledger:
        ledger.plan(ITEMS, [])
        ledger.record(outcome(ITEMS[3], Status.FAILED))
        moved = [Item(item.id, order, item.path) for order, item in enumerate([ITEMS[3], ITEMS[0]])]
        ledger.plan(moved, [])
        back = list(ledger.outcomes())
    assert [(o.id, o.status) for o in back] == [("item-3", Status.FAILED), ("item-0", Status.PENDING)]


def test_attempts_that_ended_with_the_process_are_counted(tmp_path):
    for _ in range(3):
        with open_ledger(tmp_path) as ledger:
            ledger.plan(ITEMS, [])
            ledger.start("item-1")
            ledger.start("item-2")
            ledger.record(outcome(ITEMS[2], Status.DONE))
    with open_ledger(tmp_path) as ledger:
        assert ledger.running() == {"item-1": 3}
        ledger.release()
        assert ledger.running() == {}
        assert ledger.counts()[Status.PENDING] == 4


def test_a_file_that_is_no_ledger_is_named(tmp_path):
    (tmp_path / LEDGER_FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="not a usable ledger"), open_ledger(tmp_path):
        pass


@given(st.lists(st.sampled_from(list(Status)), min_size=1, max_size=20), st.text(max_size=20))
def test_counts_add_up(tmp_path_factory, statuses, message):
    folder = tmp_path_factory.mktemp("ledger")
    items = [Item(f"{index}", index, Path(f"{index}")) for index in range(len(statuses))]
    with open_ledger(folder) as ledger:
        ledger.plan(items, [])
        for item, status in zip(items, statuses, strict=True):
            ledger.record(Outcome(item.id, item.order, str(item.path), status, message=message))
        counts = ledger.counts()
        assert set(counts) == set(Status)
        assert sum(counts.values()) == len(statuses)
        assert [o.message for o in ledger.outcomes()] == [message] * len(statuses)
