"""The ledger of a batch: one SQLite row per item, in the order of the input.

The truth about a finished item is its complete ``result.json``; the ledger adds what no result
holds (skipped, failed, attempts) and spares reading a million small files to build the table.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from usvol.batch.discovery import Item
from usvol.batch.outcome import Outcome, Status
from usvol.errors import ConfigError, DiskFullError, ProcessDiedError
from usvol.loading import printable

LEDGER_FILE = "ledger.sqlite"
_PATIENCE_S = 60  # for a backup or a viewer that holds the file
_PIECE = 1000
_COLUMNS = "id, ordinal, path, status, reason, message, seconds, row"
_CREATE = """
CREATE TABLE IF NOT EXISTS items (
    id TEXT PRIMARY KEY, ordinal INTEGER NOT NULL, path TEXT NOT NULL, status TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '', message TEXT NOT NULL DEFAULT '', seconds REAL NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0, row TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX IF NOT EXISTS by_order ON items (ordinal);
CREATE TABLE IF NOT EXISTS ignored (path TEXT PRIMARY KEY, reason TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Ledger:
    """An open ledger; ``start`` may be called from any thread, all else from the one that opened it."""

    connection: sqlite3.Connection
    lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, items: Iterable[Item], ignored: Iterable[tuple[Path, str]]) -> None:
        """Enter the items of this run; what an earlier run wrote about them stays, others leave."""
        with self.connection as db:
            db.execute("UPDATE items SET ordinal = -1")
            db.executemany(
                "INSERT INTO items (id, ordinal, path, status) VALUES (?, ?, ?, 'pending') "
                "ON CONFLICT (id) DO UPDATE SET ordinal = excluded.ordinal, path = excluded.path",
                ((item.id, item.order, printable(item.path)) for item in items),
            )
            db.execute("DELETE FROM items WHERE ordinal < 0")
            db.execute("DELETE FROM ignored")
            db.executemany(
                "INSERT OR REPLACE INTO ignored VALUES (?, ?)", ((printable(p), why) for p, why in ignored)
            )

    def start(self, item_id: str) -> None:
        """Note that an item is being worked on."""
        with self.lock, self.connection as db:
            db.execute(
                "UPDATE items SET status = 'running', attempts = attempts + 1 WHERE id = ?", (item_id,)
            )

    def running(self) -> dict[str, int]:
        """Return the ids of items begun and not finished, with how often they were begun.

        In a ledger just opened these are items whose process died.
        """
        query = "SELECT id, attempts FROM items WHERE status = 'running'"
        return dict(self.connection.execute(query).fetchall())

    def release(self) -> None:
        """Set items begun but not finished back to pending, after an orderly stop."""
        with self.lock, self.connection as db:
            db.execute("UPDATE items SET status = 'pending', attempts = 0 WHERE status = 'running'")

    def died(self) -> frozenset[str]:
        """Return the ids of items given up because the process died while it worked on them."""
        query = "SELECT id FROM items WHERE status = 'failed' AND reason = ?"
        return frozenset(key for (key,) in self.connection.execute(query, (ProcessDiedError.__name__,)))

    def record(self, outcome: Outcome) -> None:
        """Enter what became of an item; how long a resumed one took stays as it was."""
        facts = (
            outcome.status,
            outcome.reason,
            outcome.message,
            outcome.resumed,
            outcome.seconds,
            json.dumps(dict(outcome.row), ensure_ascii=False, allow_nan=False),
            outcome.id,
        )
        with self.lock, self.connection as db:
            db.execute(
                "UPDATE items SET status = ?, reason = ?, message = ?, "
                "seconds = CASE WHEN ? THEN seconds ELSE ? END, row = ?, attempts = 0 WHERE id = ?",
                facts,
            )

    def outcomes(self) -> Iterator[Outcome]:
        """Yield all items in the order of the input.

        Read in pieces: who takes long over one keeps nobody from writing.
        """
        query = f"SELECT {_COLUMNS} FROM items WHERE ordinal > ? ORDER BY ordinal LIMIT {_PIECE}"  # noqa: S608 (constants)
        last = -1
        while piece := self.connection.execute(query, (last,)).fetchall():
            for key, order, path, status, reason, message, seconds, row in piece:
                yield Outcome(key, order, path, Status(status), reason, message, seconds, json.loads(row))
            last = piece[-1][1]

    def counts(self) -> dict[Status, int]:
        """Count items by status; every status has an entry."""
        found = dict(self.connection.execute("SELECT status, COUNT(*) FROM items GROUP BY status").fetchall())
        return {status: found.get(str(status), 0) for status in Status}

    def ignored(self) -> list[tuple[str, str]]:
        """Return paths left aside, each with the reason, sorted by path."""
        return self.connection.execute("SELECT path, reason FROM ignored ORDER BY path").fetchall()


@contextmanager
def open_ledger(folder: Path) -> Iterator[Ledger]:
    """Open the ledger in an output folder, making it when needed.

    Raises:
        ConfigError: the file there is not a usable ledger, or others keep it locked.
        DiskFullError: it cannot grow.
    """
    path = folder / LEDGER_FILE
    connection = sqlite3.connect(path, timeout=_PATIENCE_S, check_same_thread=False)
    try:
        # A lost last second costs a recount from result.json, a sync per item costs minutes.
        connection.execute("PRAGMA synchronous = OFF")
        connection.executescript(_CREATE)
        yield Ledger(connection)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise DiskFullError(folder) from error
        if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            held = f"{path}: another program has kept it locked for {_PATIENCE_S} s. Close that program,"
            raise ConfigError(f"{held} then go on with --resume; results are kept.") from error
        raise ConfigError(f"{path}: not a usable ledger ({error}). Delete it; results are kept.") from error
    finally:
        connection.close()
