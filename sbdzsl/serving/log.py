"""The verdict log: every answer of a service as a row, in Parquet parts on any store, one folder a day (UTC).

    day=2026-03-01/<journal>-<first event>-<last event>.parquet

The rows come from the journal, so the log is never ahead of it, and a store that is away costs nothing: the journal
holds the rows until it is back. A part is written exactly once, by construction: its range of events is noted in the
journal, then the part is written once under a name that follows from the range alone, then the range is noted as done.
Whoever is killed in between finds the open range at the next start, and the same part comes out of it.

What a crash can lose is what it takes from the journal: no alarm that was answered, and of the good ones those of the
last commit (see `journal`).
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from itertools import takewhile
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from sbdzsl import lake
from sbdzsl.errors import LakeError, SbdzslError
from sbdzsl.serving.journal import Event, Journal, Wanted
from sbdzsl.serving.observe import log
from sbdzsl.serving.settings import KeepSettings
from sbdzsl.verdict import VERDICT_SCHEMA

LOG_SCHEMA = pa.schema(
    [
        *VERDICT_SCHEMA,
        # Which journal numbered the event: several services, or one with a new data folder, may share a log.
        pa.field("journal", pa.string(), nullable=False),
        pa.field("event_id", pa.int64(), nullable=False),
        pa.field("request_id", pa.string()),
        ("camera", pa.string()),
        ("trigger_id", pa.string()),
        ("part_id", pa.string()),
        ("sequence", pa.int64()),
        ("captured_at", pa.timestamp("us", tz="UTC")),
        ("surface_expected", pa.string()),
        ("surface_as_expected", pa.bool_()),
        ("queue_ms", pa.float32()),
    ],
    metadata={"sbdzsl_schema": "verdict-log", "version": "1"},
)

_TIMES = tuple(field.name for field in LOG_SCHEMA if pa.types.is_timestamp(field.type))
_DAY = "day="

#: Marks in the journal: the last event of the part that was begun, and of the last one that is written.
BEGUN, DONE = "log_begun", "log_done"

#: The journal is asked for news so often, in seconds.
POLL_S = 0.5
#: After a failure the store is left alone for so long, in seconds; `write_once` has tried several times by itself.
RETRY_S = 5.0
#: How long `close` waits for a store that does not answer, in seconds.
CLOSE_S = 15.0
#: Days beyond retention are looked for so often, in seconds.
TIDY_S = 3600.0
#: The journal is cleared after every so many events.
CLEAR_EVENTS = 1000

_VERDICTS = Wanted(kinds=("verdict",))


@dataclass(frozen=True, slots=True)
class Backlog:
    """How far a log is behind its journal. `seconds` is the age of the oldest row that waits, 0 where none does;
    `failure` says why, where the last try failed."""

    rows: int
    seconds: float
    failure: str | None


class VerdictLog:
    """Copies the verdicts of a journal to `url`, in a thread of its own. Close it before the journal.

    Raises `LakeError` "unsupported-store" for a URL that no store belongs to.
    """

    def __init__(self, journal: Journal, url: str, keep: KeepSettings) -> None:
        lake.filesystem(url)
        self._journal = journal
        self._url = lake.absolute_url(url)
        self._keep = keep
        self._done = journal.mark(DONE) or 0
        self._begun = journal.mark(BEGUN) or 0
        self._cleared = 0
        self._tidied = -float("inf")
        self._behind = journal.behind(self._done, "verdict")
        self._failure: str | None = None
        self._stopping = threading.Event()
        self._is_left = False
        self._thread = threading.Thread(target=self._run, name="verdict log", daemon=True)
        self._thread.start()

    def backlog(self) -> Backlog:
        """How far the log is behind, as it was found some moments ago; asks neither disk nor store."""
        rows, oldest = self._behind
        return Backlog(rows, 0.0 if oldest is None else max(0.0, time.time() - oldest), self._failure)

    def close(self) -> None:
        """Write what the journal has by now. A store that does not answer is left: the next start goes on."""
        self._stopping.set()
        self._thread.join(CLOSE_S)
        self._is_left = self._thread.is_alive()

    def _run(self) -> None:
        pause = 0.0
        while True:
            is_last = self._stopping.wait(pause)
            pause = POLL_S if self._turn(is_last) else RETRY_S
            if is_last:
                return

    def _turn(self, is_last: bool) -> bool:
        """Write what is due, or with `is_last` all there is; whether that went well."""
        try:
            while self._commit(is_last):
                pass
            self._clear()
            self._remove_old_days()
        except Exception as error:  # noqa: BLE001  whatever it is, the rows are in the journal and the next turn comes
            said = error.message if isinstance(error, SbdzslError) else f"{type(error).__name__}: {error}"
            if said != self._failure:
                log.error("verdict log", extra={"fields": {"rows_behind": self._behind[0], "error": said}})
            self._failure = said
            return False
        self._failure = None
        return True

    def _commit(self, all_of_it: bool) -> bool:
        """Write one part, the one that was begun or the next that is due. False where there is none."""
        self._behind = self._journal.behind(self._done, "verdict")
        if self._begun <= self._done:
            due = self._due(all_of_it)
            if not due:
                return False
            self._journal.note(BEGUN, due[-1].id)
            self._begun = due[-1].id
        events = self._journal.read(self._done, self._begun - self._done, _VERDICTS, up_to=self._begun)
        name = f"{self._journal.identity}-{self._done + 1:015d}-{self._begun:015d}.parquet"
        lake.write_once(lake.join(self._url, _folder(events[0]), name), to_parquet(events, self._journal.identity))
        if self._is_left:  # the journal may be another's by now, who writes this part again to no effect
            return False
        self._journal.note(DONE, self._begun)
        self._done = self._begun
        return True

    def _due(self, all_of_it: bool) -> list[Event]:
        """The events of the next part, all of one day; none where they may wait for more."""
        rows, oldest = self._behind
        # A clock that was set back must not make rows wait.
        is_young = oldest is None or 0 <= time.time() - oldest < self._keep.log_seconds
        if not rows or (is_young and rows < self._keep.log_rows and not all_of_it):
            return []
        events = self._journal.read(self._done, self._keep.log_rows, _VERDICTS)
        return list(takewhile(lambda event: _folder(event) == _folder(events[0]), events))

    def _clear(self) -> None:
        """Let the journal forget verdicts that the log has, beyond those that it is to keep."""
        if self._done >= self._cleared + CLEAR_EVENTS:
            self._journal.clear(self._done, "verdict", self._keep.journal_events)
            self._cleared = self._done

    def _remove_old_days(self) -> None:
        if self._keep.log_days is None or time.monotonic() < self._tidied + TIDY_S:
            return
        self._tidied = time.monotonic()
        first = datetime.now(timezone.utc).date() - timedelta(self._keep.log_days)
        for day, folder in _days(self._url).items():
            if day < first:
                for file in lake.list_files(folder):
                    lake.remove(file.uri)
                log.info("verdict log", extra={"fields": {"removed_day": day.isoformat()}})


def to_parquet(events: Sequence[Event], journal: str) -> bytes:
    """Verdict events as the bytes of one Parquet file of `LOG_SCHEMA`; the same events give the same rows."""
    rows = [_row(event.document) | {"journal": journal, "event_id": event.id} for event in events]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, LOG_SCHEMA), stream, compression="zstd")
    return stream.getvalue()


def read_log(url: str, since: datetime | None = None, until: datetime | None = None) -> pl.LazyFrame:
    """The rows of a log, lazily, in no order; `since` and `until` (exclusive) are times of inspection.

    Raises `LakeError` where there is no log or the store cannot be read.
    """
    days = _days(lake.absolute_url(url), must_exist=True)
    files = [file.uri for day in sorted(days) if _may_hold(day, since, until) for file in lake.list_files(days[day])]
    rows = _scan([file for file in files if file.endswith(".parquet")])
    if since is not None:
        rows = rows.filter(pl.col("inspected_at") >= since)
    return rows if until is None else rows.filter(pl.col("inspected_at") < until)


def _scan(files: list[str]) -> pl.LazyFrame:
    if not files:
        return pl.LazyFrame(pl.from_arrow(LOG_SCHEMA.empty_table()))
    if lake.absolute_url(files[0]).startswith(("/", "s3://")):
        options = lake.storage_options(files[0])
        return pl.scan_parquet(files, storage_options=options, glob=False, hive_partitioning=False)
    filesystem, _ = lake.filesystem(files[0])
    paths = [lake.filesystem(file)[1] for file in files]
    return pl.scan_pyarrow_dataset(pyarrow.dataset.dataset(paths, LOG_SCHEMA, format="parquet", filesystem=filesystem))


def _may_hold(day: date, since: datetime | None, until: datetime | None) -> bool:
    """Whether a day's folder can hold rows of these times."""
    if since is not None and day < since.astimezone(timezone.utc).date():
        return False
    return until is None or day <= until.astimezone(timezone.utc).date()


def _days(url: str, must_exist: bool = False) -> dict[date, str]:
    """The folders of a log by their day. Raises `LakeError` "not-found" if it must exist and does not."""
    filesystem, path = lake.filesystem(url)
    if not lake.exists(url):
        if must_exist:
            raise LakeError("not-found", f"no verdict log at {lake.shown(url)}: a service that keeps one writes it")
        return {}
    names = [str(name).rstrip("/").rsplit("/", 1)[-1] for name in filesystem.ls(path, detail=False)]
    return {date.fromisoformat(name[len(_DAY) :]): lake.join(url, name) for name in names if name.startswith(_DAY)}


def _folder(event: Event) -> str:
    """The folder of the day on which the image was inspected."""
    inspected = datetime.fromisoformat(event.document["inspected_at"])
    return f"{_DAY}{inspected.astimezone(timezone.utc).date().isoformat()}"


def _row(document: Mapping[str, Any]) -> dict[str, Any]:
    times = {name: datetime.fromisoformat(document[name]) for name in _TIMES if document.get(name) is not None}
    return {name: document.get(name) for name in LOG_SCHEMA.names} | times
