"""The memory of a service: every answer and what people did about it, in order, in one SQLite file on a local disk.

An event has a number that only grows, so a reader who knows the last one he saw misses nothing. Writing is grouped:
one thread commits whatever has gathered, and a commit is on disk before it counts (WAL, `synchronous=FULL`). Whoever
records an alarm waits for that; a good verdict does not wait, so a crash can lose the good ones of the last commit,
some milliseconds, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from sbdzsl.errors import LakeError, ServiceError

FILE = "journal.sqlite"

#: Version of the tables below, kept in the file.
SCHEMA_VERSION = 1

#: Events that wait for the disk, at most; beyond, whoever records waits with them.
MAX_WAITING = 5000

#: Numbers that are left out after a kill: more than can have waited for the disk.
_SKIPPED = 4 * MAX_WAITING

#: Events that are forgotten in one commit.
_CLEARED = 500

_TABLES = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    camera TEXT,
    verdict TEXT,
    surface TEXT,
    request_key TEXT,
    document TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_of_a_request ON events (request_key) WHERE request_key IS NOT NULL;
CREATE INDEX IF NOT EXISTS events_of_a_kind ON events (kind, id);
CREATE TABLE IF NOT EXISTS marks (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: `at` is seconds since 1970; `document` is plain JSON, an answer where `kind` is
    "verdict"."""

    id: int
    at: float
    kind: str
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events a reader wants: of these kinds, verdicts, surfaces and cameras; an empty tuple means any."""

    kinds: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    surfaces: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    since: float | None = None

    def condition(self) -> tuple[str, list[Any]]:
        """The same as SQL, and its parameters."""
        parts: list[str] = ["1"]
        values: list[Any] = []
        columns = {"kind": self.kinds, "verdict": self.verdicts, "surface": self.surfaces, "camera": self.cameras}
        for column, chosen in columns.items():
            if chosen:
                parts.append(f"{column} IN ({', '.join('?' * len(chosen))})")
                values.extend(chosen)
        if self.since is not None:
            parts.append("at >= ?")
            values.append(self.since)
        return " AND ".join(parts), values


ANY = Wanted()


class Journal:
    """Events of one service, in `folder`. Use it from one event loop; close it.

    Raises `LakeError` where the folder cannot be written or another service holds it.
    """

    def __init__(self, folder: str) -> None:
        self._path = Path(folder) / FILE
        self._path.parent.mkdir(parents=True, exist_ok=True)
        #: Why the last events could not be written; None while all is well.
        self.failure: LakeError | None = None
        self._lock = self._claimed()
        self._writer = self._connect()
        self._writer.executescript(_TABLES)
        self._check_version()
        #: Tells this journal from all others, also from one that stood in this folder before; 16 hex digits.
        self.identity = self._named()
        # The good ones that a kill lost had numbers, which callers were told: these must not become others'.
        self._next_id = 1 + self._last_id() + (_SKIPPED if self.mark("is_open") else 0)
        self.note("is_open", 1)
        self._reader_lock = threading.Lock()
        self._reader = self._connect()
        self._waiting: queue.SimpleQueue[tuple[Event, Future[None]] | None] = queue.SimpleQueue()
        self._news: set[asyncio.Event] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()

    async def record(self, kind: str, document: Mapping[str, Any], *, durable: bool = True) -> int:
        """Add an event and return its number, which the document also gets as `event_id`.

        `durable`: return only when it is on disk. Raises `LakeError` "disk-full" or "forbidden" where it cannot be.
        """
        self._loop = asyncio.get_running_loop()
        event = Event(self._next_id, time.time(), kind, dict(document) | {"event_id": self._next_id})
        self._next_id += 1
        done: Future[None] = Future()
        self._waiting.put((event, done))
        if durable or self._waiting.qsize() > MAX_WAITING:
            await asyncio.wrap_future(done)
        return event.id

    async def events(self, after: int = 0, limit: int = 100, wanted: Wanted = ANY, wait_s: float = 0.0) -> list[Event]:
        """Events numbered above `after`, the oldest first; waits up to `wait_s` seconds for the first of them."""
        deadline = time.monotonic() + wait_s
        news = asyncio.Event()
        self._news.add(news)
        try:
            while True:
                news.clear()
                found = await asyncio.to_thread(self._select, "id > ?", [after], wanted, "id", limit)
                left = deadline - time.monotonic()
                if found or left <= 0:
                    return found
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(news.wait(), left)
        finally:
            self._news.discard(news)

    async def latest(self, before: int | None = None, limit: int = 100, wanted: Wanted = ANY) -> list[Event]:
        """The newest events, numbered below `before` where that is given, the newest first."""
        condition, values = ("1", []) if before is None else ("id < ?", [before])
        return await asyncio.to_thread(self._select, condition, values, wanted, "id DESC", limit)

    async def event(self, number: int) -> Event:
        """One event. Raises `ServiceError` "unknown-event"."""
        is_number = 0 < number < 2**63  # beyond, SQLite refuses to look
        found = await asyncio.to_thread(self._select, "id = ?", [number], ANY, "id", 1) if is_number else []
        if not found:
            raise ServiceError("unknown-event", f"the journal has no event {number}; it may have been cleared away")
        return found[0]

    async def answered(self, request_key: str) -> Event | None:
        """The event of a request that was answered under this idempotency key."""
        found = await asyncio.to_thread(self._select, "request_key = ?", [request_key], ANY, "id", 1)
        return found[0] if found else None

    def last_id(self) -> int:
        """The number of the newest event, 0 before the first."""
        return self._next_id - 1

    def mark(self, name: str) -> int | None:
        """A number that was noted under a name."""
        with contextlib.closing(self._connect()) as connection:
            row = connection.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
        return None if row is None else int(row[0])

    def note(self, name: str, value: int) -> None:
        """Note a number under a name; it is on disk on return."""
        with contextlib.closing(self._connect()) as connection:
            connection.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (name, value))

    def read(self, after: int, limit: int, wanted: Wanted = ANY, up_to: int | None = None) -> list[Event]:
        """As `events`, at once and from any thread, those that are on disk; numbered at most `up_to`."""
        condition, values = ("id > ?", [after]) if up_to is None else ("id > ? AND id <= ?", [after, up_to])
        return self._select(condition, values, wanted, "id", limit)

    def behind(self, after: int, kind: str) -> tuple[int, float | None]:
        """How many events of a kind come after a number, and the time of the oldest of them; from any thread."""
        with self._reader_lock:
            query = "SELECT count(*), min(at) FROM events WHERE kind = ? AND id > ?"
            count, oldest = self._reader.execute(query, (kind, after)).fetchone()
        return int(count), oldest

    def clear(self, up_to: int, kind: str, keep: int) -> None:
        """Forget events of a kind numbered at most `up_to`, but none of the newest `keep`; from any thread.

        Their numbers are never given again.
        """
        newest = "SELECT id FROM events WHERE kind = ? ORDER BY id DESC LIMIT 1 OFFSET ?"
        chunk = "SELECT id FROM events WHERE kind = ? AND id <= ? ORDER BY id LIMIT ?"
        with contextlib.closing(self._connect()) as connection:
            row = connection.execute(newest, (kind, keep)).fetchone()
            if row is None:
                return
            up_to = min(up_to, int(row[0]))
            self.note("cleared_to", max(up_to, self.mark("cleared_to") or 0))
            # In small steps, for an alarm that is being recorded waits for each of them.
            while connection.execute(f"DELETE FROM events WHERE id IN ({chunk})", (kind, up_to, _CLEARED)).rowcount:
                pass

    def check(self) -> None:
        """Raise the `LakeError` that keeps events from being written, unless by now they can be; waits for the disk."""
        failure = self.failure
        if failure is None:
            return
        try:
            self.note("tried", int(time.time()))
        except (sqlite3.Error, LakeError):
            raise failure from None
        self.failure = None

    def close(self) -> None:
        """Write what waits and give the file back."""
        self._waiting.put(None)
        self._thread.join()
        self.note("is_open", 0)
        self._reader.close()
        self._writer.close()
        self._lock.release()

    def _claimed(self) -> filelock.BaseFileLock:
        """One service a folder: two would give the same numbers to different events. A killed one lets go by itself."""
        lock = filelock.FileLock(self._path.with_suffix(".lock"), timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise LakeError(
                "already-exists", f"another service writes into {self._path.parent}; stop it or take another folder"
            ) from None
        except OSError as error:
            raise LakeError("forbidden", f"{self._path.parent} cannot be written: {error.strerror}") from None
        return lock

    def _check_version(self) -> None:
        self._writer.execute("INSERT OR IGNORE INTO marks VALUES ('schema', ?)", (SCHEMA_VERSION,))
        found = self.mark("schema")
        if found != SCHEMA_VERSION:
            raise LakeError(
                "unsupported-store", f"{self._path} has tables of version {found}, expected {SCHEMA_VERSION}"
            )

    def _named(self) -> str:
        self._writer.execute("INSERT OR IGNORE INTO marks VALUES ('identity', ?)", (secrets.randbits(63),))
        return f"{self.mark('identity'):016x}"

    def _connect(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(self._path, timeout=10, check_same_thread=False, isolation_level=None)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error as error:
            raise LakeError("forbidden", f"{self._path} cannot be opened: {error}; is the folder writable?") from None
        return connection

    def _last_id(self) -> int:
        """Of all events ever, also where the newest have been cleared away."""
        row = self._writer.execute("SELECT max(id) FROM events").fetchone()
        return max(int(row[0] or 0), self.mark("cleared_to") or 0)

    def _select(self, condition: str, values: Sequence[Any], wanted: Wanted, order: str, limit: int) -> list[Event]:
        more, more_values = wanted.condition()
        query = f"SELECT id, at, kind, document FROM events WHERE {condition} AND {more} ORDER BY {order} LIMIT ?"
        with self._reader_lock:
            rows = self._reader.execute(query, [*values, *more_values, limit]).fetchall()
        return [Event(number, at, kind, json.loads(text)) for number, at, kind, text in rows]

    def _write(self) -> None:
        """The writer's thread: whatever has gathered goes to disk in one commit."""
        is_open = True
        while is_open:
            batch = [self._waiting.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    batch.append(self._waiting.get_nowait())
            is_open = None not in batch
            self._commit([one for one in batch if one is not None])

    def _commit(self, batch: Sequence[tuple[Event, Future[None]]]) -> None:
        if not batch:
            return
        # Whoever was cancelled while waiting is not told; from here on nobody can be. Events are written all the same.
        waiting = [done for _, done in batch if done.set_running_or_notify_cancel()]
        try:
            with self._writer:
                self._writer.execute("BEGIN")
                self._writer.executemany(
                    "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [_row(e) for e, _ in batch]
                )
        except sqlite3.Error as caught:
            # Those who wait are told, and who looks at `failure` learns it for the others.
            self.failure = LakeError("disk-full", f"{self._path} takes no more events: {caught}; make room on the disk")
            for done in waiting:
                done.set_exception(self.failure)
            return
        self.failure = None
        for done in waiting:
            done.set_result(None)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        for news in self._news:
            news.set()


def stored_events(folder: str, kind: str) -> list[Event]:
    """All events of a kind, the oldest first, read by any process, also while a service writes.

    Raises `LakeError` "not-found" where there is no journal, "unreachable" where it cannot be read.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise LakeError("not-found", f"no {FILE} in {folder}: expected the data folder of `sbdzsl serve`")
    query = "SELECT id, at, kind, document FROM events WHERE kind = ? ORDER BY id"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=10)) as found:
            rows = found.execute(query, (kind,)).fetchall()
    except sqlite3.Error as error:
        raise LakeError("unreachable", f"{path} cannot be read: {error}") from None
    return [Event(number, at, kind, json.loads(text)) for number, at, kind, text in rows]


def _row(event: Event) -> tuple[Any, ...]:
    document = event.document
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    columns = (document.get(name) for name in ("camera", "verdict", "surface", "idempotency_key"))
    return event.id, event.at, event.kind, *columns, text
