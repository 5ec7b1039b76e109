"""The outbox: alerts on disk until each sink has them. One SQLite file, one writing thread, fsync before `put` returns.

Several threads put at once; the writing thread takes all that wait into one transaction, so that they share its fsync.
Several processes may put into one folder; one of them delivers (`claim`).
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sbdzsl.errors import AlertError
from sbdzsl.serving.alerts.alert import Alert
from sbdzsl.serving.alerts.settings import AlertSettings

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS alerts (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    created_at REAL NOT NULL,
    document TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS deliveries (
    sink TEXT NOT NULL,
    position INTEGER NOT NULL REFERENCES alerts,
    state TEXT NOT NULL DEFAULT 'pending',
    attempts INTEGER NOT NULL DEFAULT 0,
    next_at REAL NOT NULL DEFAULT 0,
    changed_at REAL NOT NULL,
    error TEXT,
    PRIMARY KEY (sink, position)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pending ON deliveries (sink, position, next_at, attempts) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS finished ON deliveries (changed_at, position) WHERE state <> 'pending';
CREATE INDEX IF NOT EXISTS dead ON deliveries (sink) WHERE state = 'dead';
CREATE INDEX IF NOT EXISTS of_alert ON deliveries (position);
"""

#: An alert that failed so often gives way to those that did not: one that no sink can digest must not hold up the rest.
_PATIENCE = 3
_GROUP = 256
_PRUNED_AT_ONCE = 1000

_Work = Callable[[sqlite3.Connection], Any]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One alert on its way to one sink: `attempts` failed so far, `created_at` in seconds since 1970."""

    sink: str
    position: int
    attempts: int
    created_at: float
    alert: Alert


class Outbox:
    """Alerts that wait for their sinks, in `settings.folder`. Thread-safe; close it after the dispatcher.

    The folder has to be on a local disk: SQLite's journal does not work over a network file system. Raises `AlertError`
    outbox-unusable where it cannot be opened; so does each method where the disk fails or is full.
    """

    def __init__(self, settings: AlertSettings) -> None:
        self.folder = Path(settings.folder)
        self._sinks = settings.sinks
        self._keep_s = settings.keep_days * 86_400
        self._listeners: list[Callable[[], object]] = []
        self._queue: queue.SimpleQueue[tuple[_Work, Future[Any]] | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        with _disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            connection = self._connect()
            _prepare(connection)
            self._reader = self._connect()
        self._reading = threading.Lock()
        self._writer = threading.Thread(target=self._write, args=(connection,), name="alerts-outbox", daemon=True)
        self._writer.start()

    def put(self, alert: Alert) -> bool:
        """Store the alert for every sink that wants it; it is safely on disk when this returns.

        True if it was stored now; False if no sink wants it, or if its id has been stored before: the same id twice is
        one alert, for as long as the first stays in the outbox (`keep_days` after its delivery).
        """
        sinks = [sink.label for sink in self._sinks if sink.wants(alert.document)]
        if not sinks:
            return False
        row = (alert.id, alert.created_at.timestamp(), alert.to_json().decode())

        def insert(connection: sqlite3.Connection) -> bool:
            stored = connection.execute(
                "INSERT INTO alerts (id, created_at, document) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING", row
            )
            if not stored.rowcount:
                return False
            deliveries = [(sink, stored.lastrowid, row[1]) for sink in sinks]
            connection.executemany("INSERT INTO deliveries (sink, position, changed_at) VALUES (?, ?, ?)", deliveries)
            return True

        is_new = self._commit(insert)
        if is_new:
            for listener in self._listeners:
                listener()
        return bool(is_new)

    def on_put(self, listener: Callable[[], object]) -> None:
        """Call `listener`, which has to return at once, after each new alert of this process."""
        self._listeners.append(listener)

    def due(self, sink: str) -> Delivery | None:
        """The next alert of a sink whose time has come: the oldest of those that seldom failed, then of the others."""
        for failed in (f"attempts < {_PATIENCE}", f"attempts >= {_PATIENCE}"):
            rows = self._read(
                "SELECT position, attempts, created_at, document FROM deliveries JOIN alerts USING (position) "
                f"WHERE sink = ? AND state = 'pending' AND next_at <= ? AND {failed} ORDER BY position LIMIT 1",
                (sink, time.time()),
            )
            if rows:
                position, attempts, created_at, document = rows[0]
                return Delivery(sink, position, attempts, created_at, Alert.from_json(document))
        return None

    def latest_delivered(self, sink: str, count: int) -> list[Alert]:
        """The last so many alerts that the sink has, oldest first, as far as they are still kept."""
        rows = self._read(
            "SELECT document FROM deliveries JOIN alerts USING (position) WHERE sink = ? AND state = 'delivered' "
            "ORDER BY position DESC LIMIT ?",
            (sink, count),
        )
        return [Alert.from_json(document) for (document,) in reversed(rows)]

    def finish(self, delivery: Delivery, state: Literal["delivered", "dead"], error: str | None = None) -> None:
        """The sink has the alert, or it was given up and stands in the dead-letter file."""
        update = "UPDATE deliveries SET state = ?, error = ?, changed_at = ? WHERE sink = ? AND position = ?"
        row = (state, error, time.time(), delivery.sink, delivery.position)
        self._commit(lambda connection: connection.execute(update, row))

    def postpone(self, delivery: Delivery, until: float, error: str | None) -> None:
        """Not before `until` (seconds since 1970) again. With an error it counts as a failed attempt."""
        update = "UPDATE deliveries SET next_at = ?, attempts = attempts + ?, error = ? WHERE sink = ? AND position = ?"
        row = (until, error is not None, error, delivery.sink, delivery.position)
        self._commit(lambda connection: connection.execute(update, row))

    def acknowledge(self, sink: str, alert_id: str) -> bool:
        """The sink's receiver confirmed an alert that was handed over before; False if none of that id was pending."""
        update = (
            "UPDATE deliveries SET state = 'delivered', error = NULL, changed_at = ? "
            "WHERE sink = ? AND state = 'pending' AND position = (SELECT position FROM alerts WHERE id = ?)"
        )
        row = (time.time(), sink, alert_id)
        return bool(self._commit(lambda connection: connection.execute(update, row).rowcount))

    def wake(self, sink: str) -> None:
        """All that waits for the sink is due now."""
        update = "UPDATE deliveries SET next_at = 0 WHERE sink = ? AND state = 'pending' AND next_at > 0"
        self._commit(lambda connection: connection.execute(update, (sink,)))

    def revive(self, sink: str) -> int:
        """Put the dead alerts of a sink that are still kept back among the waiting, as if new; how many there were."""
        update = (
            "UPDATE deliveries SET state = 'pending', attempts = 0, next_at = 0, error = NULL, changed_at = ? "
            "WHERE sink = ? AND state = 'dead'"
        )
        row = (time.time(), sink)
        return int(self._commit(lambda connection: connection.execute(update, row).rowcount))

    def pending(self) -> dict[str, tuple[int, float]]:
        """Per sink, known to the settings or not: how many alerts wait, and when the oldest was made (since 1970)."""
        rows = self._read(
            "SELECT sink, waiting, created_at FROM (SELECT sink, COUNT(*) AS waiting, MIN(position) AS position "
            "FROM deliveries WHERE state = 'pending' GROUP BY sink) JOIN alerts USING (position)",
            (),
        )
        return {sink: (count, oldest) for sink, count, oldest in rows}

    def dead(self) -> dict[str, int]:
        """Per sink how many dead alerts are still kept, so that `revive` could send them again."""
        return dict(self._read("SELECT sink, COUNT(*) FROM deliveries WHERE state = 'dead' GROUP BY sink", ()))

    def prune(self) -> int:
        """Forget what was delivered or given up more than `keep_days` ago; how many alerts went."""
        before, gone = time.time() - self._keep_s, 0
        while True:
            finished, removed = self._commit(lambda connection: _remove(connection, before))
            gone += removed
            if finished < _PRUNED_AT_ONCE:
                return gone

    def claim(self) -> sqlite3.Connection | None:
        """The right to deliver from this folder, until it is closed or this process ends; None if another has it."""
        with _disk(self.folder):
            connection = sqlite3.connect(
                self.folder / "delivering.lock", timeout=0, isolation_level=None, check_same_thread=False
            )
            try:
                connection.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                connection.close()
                if "locked" in str(error):  # Python 3.10 knows no codes
                    return None
                raise
            return connection

    def close(self) -> None:
        """Wait for what is being put, then close the file. What was not delivered stays in it."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._writer.join()
        with self._reading:
            self._reader.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.folder / "outbox.sqlite3", timeout=30, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _read(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        with _disk(self.folder), self._reading:
            return self._reader.execute(query, values).fetchall()

    def _commit(self, work: _Work) -> Any:
        """What `work` returns, once the transaction that it was part of is on disk."""
        future: Future[Any] = Future()
        with self._closing:
            if self._closed:
                raise AlertError("outbox-unusable", f"{self.folder}: the outbox is closed; the service is stopping")
            self._queue.put((work, future))
        return future.result()

    def _write(self, connection: sqlite3.Connection) -> None:
        stopped = False
        while not stopped:
            group = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(group) < _GROUP:
                    group.append(self._queue.get_nowait())
            stopped = group[-1] is None
            self._run([entry for entry in group if entry is not None], connection)
        connection.close()

    def _run(self, group: list[tuple[_Work, Future[Any]]], connection: sqlite3.Connection) -> None:
        try:
            with _disk(self.folder):
                connection.execute("BEGIN IMMEDIATE")
                try:
                    answers = [work(connection) for work, _ in group]
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the callers; the thread has to live on
            for _, future in group:
                future.set_exception(error)
        else:
            for (_, future), answer in zip(group, answers, strict=True):
                future.set_result(answer)


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Turn what SQLite and the system raise into an `AlertError`."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise AlertError(
            "outbox-unusable",
            f"{folder}: the outbox of alerts cannot be used: {error}; it needs room on a local disk and a file that no "
            "other program writes",
        ) from error


def _prepare(connection: sqlite3.Connection) -> None:
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found not in (0, _VERSION):
        raise sqlite3.DatabaseError(f"found version {found}, expected {_VERSION}: another release of sbdzsl made it")
    connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")


def _remove(connection: sqlite3.Connection, before: float) -> tuple[int, int]:
    """Remove some of what was finished before; how many deliveries, and how many alerts that none waits for."""
    rows = connection.execute(
        "DELETE FROM deliveries WHERE (sink, position) IN (SELECT sink, position FROM deliveries "
        "WHERE state <> 'pending' AND changed_at < ? LIMIT ?) RETURNING position",
        (before, _PRUNED_AT_ONCE),
    ).fetchall()
    removed = 0
    for (position,) in set(rows):
        removed += connection.execute(
            "DELETE FROM alerts WHERE position = ? AND NOT EXISTS (SELECT 1 FROM deliveries WHERE position = ?)",
            (position, position),
        ).rowcount
    return len(rows), removed
