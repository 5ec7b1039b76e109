"""The verdict log: each answer is one row, whatever goes away in between."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from sbdzsl import lake
from sbdzsl.cli import main
from sbdzsl.errors import LakeError
from sbdzsl.serving import log as logs
from sbdzsl.serving.answers import Shot, answer_document
from sbdzsl.serving.journal import Journal
from sbdzsl.serving.log import LOG_SCHEMA, VerdictLog, read_log
from sbdzsl.serving.settings import KeepSettings
from sbdzsl.verdict import VERDICT_SCHEMA, Region, Verdict
from tests.stores import Doorkeeper, doorkeeper, memory, s3, s3_endpoint  # noqa: F401

WHEN = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL_S", 0.02)
    monkeypatch.setattr(logs, "RETRY_S", 0.02)


def document(
    number: int, verdict: Any = "defect", surface: str = "steel", camera: str = "c1", when: datetime = WHEN
) -> dict[str, Any]:
    judged = Verdict(
        image_id=f"{number:064x}",
        uri=f"image{number}",
        verdict=verdict,
        bundle="b",
        surface=surface,
        defect_score=float(number),
        defect_threshold=0.5,
        regions=(Region(1, 2, 3, 4, 5, 6.5),),
        attributes=("grainy",),
        inspected_at=when + timedelta(seconds=number),
    )
    shot = Shot(camera=camera, part_id=f"p{number}", sequence=2**62 + number, captured_at=WHEN, surface="steel")
    return answer_document(judged, shot, f"r{number}", 1.5)


def fill(journal: Journal, numbers: range, **fields: Any) -> None:
    async def record() -> None:
        for number in numbers:
            await journal.record("verdict", document(number, **fields), durable=number == numbers[-1])

    asyncio.run(record())


@contextmanager
def kept(folder: Path, url: str | None = None, **settings: Any) -> Iterator[tuple[Journal, VerdictLog]]:
    """A journal and its log, as a recorder has them."""
    with (
        closing(Journal(str(folder))) as journal,
        closing(VerdictLog(journal, url or str(folder / "log"), KeepSettings(**settings))) as log,
    ):
        yield journal, log


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ids(url: str) -> list[int]:
    return sorted(read_log(url).select("event_id").collect()["event_id"].to_list())


def test_a_row_says_what_was_answered(tmp_path: Path) -> None:
    with kept(tmp_path, log_seconds=0) as (journal, log):
        fill(journal, range(1))
        until(lambda: (tmp_path / "log").exists() and log.backlog().rows == 0)
        identity = journal.identity
    (part,) = (tmp_path / "log").glob("day=*/*.parquet")
    table = pq.read_table(part, partitioning=None)
    assert table.schema.names == LOG_SCHEMA.names
    assert table.schema.metadata == LOG_SCHEMA.metadata
    (row,) = table.to_pylist()
    said = document(0)
    for name in VERDICT_SCHEMA.names:
        expected = said[name]
        if name == "inspected_at":
            expected = WHEN
        assert row[name] == (list(expected) if isinstance(expected, tuple) else expected), name
    own = {name: row[name] for name in LOG_SCHEMA.names if name not in VERDICT_SCHEMA.names}
    assert own == {
        "journal": identity,
        "event_id": 1,
        "request_id": "r0",
        "camera": "c1",
        "trigger_id": None,
        "part_id": "p0",
        "sequence": 2**62,
        "captured_at": WHEN,
        "surface_expected": "steel",
        "surface_as_expected": True,
        "queue_ms": 1.5,
    }


@pytest.mark.parametrize("store", ["local", "memory", "s3"])
def test_each_event_is_one_row_on_any_store(tmp_path: Path, store: str, request: pytest.FixtureRequest) -> None:
    url = str(tmp_path / "log") if store == "local" else f"{request.getfixturevalue(store)}/log"
    with kept(tmp_path, url, log_rows=7, log_seconds=600) as (journal, log):
        fill(journal, range(10))
        until(lambda: 0 < log.backlog().rows <= 3)
        assert ids(url) == list(range(1, 8))
    assert ids(url) == list(range(1, 11))  # closing wrote the rest
    with kept(tmp_path, url, log_rows=7, log_seconds=0) as (journal, log):
        fill(journal, range(10, 12))
        until(lambda: ids(url) == list(range(1, 13)))
    names = sorted(file.uri.rsplit("/", 1)[1][17:] for file in lake.list_files(url))
    ends = [(1, 7), (8, 10)]
    assert names[:2] == [f"{first:015d}-{last:015d}.parquet" for first, last in ends]


def test_rows_wait_until_there_are_enough_or_one_has_waited_enough(tmp_path: Path) -> None:
    with kept(tmp_path, log_rows=100, log_seconds=0.6) as (journal, log):
        fill(journal, range(3))
        until(lambda: log.backlog().rows == 3)
        assert not (tmp_path / "log").exists()
        until((tmp_path / "log").exists)
        until(lambda: log.backlog().rows == 0)
        assert log.backlog().seconds == 0
    assert ids(str(tmp_path / "log")) == [1, 2, 3]


def test_a_part_never_spans_two_days(tmp_path: Path) -> None:
    with closing(Journal(str(tmp_path))) as journal:
        for hours, numbers in ((0, range(2)), (13, range(2, 5))):
            fill(journal, numbers, when=WHEN + timedelta(hours=hours))
        with closing(VerdictLog(journal, str(tmp_path / "log"), KeepSettings())):
            pass
    found = {path.parent.name: pq.read_metadata(path).num_rows for path in (tmp_path / "log").glob("*/*")}
    assert found == {"day=2026-03-01": 2, "day=2026-03-02": 3}


@pytest.mark.parametrize("moment", ["before the part", "after the part"])
def test_a_part_that_was_begun_comes_out_the_same_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    class Killed(BaseException):
        """As if the process ended here."""

    url = str(tmp_path / "log")
    with closing(Journal(str(tmp_path))) as journal:
        fill(journal, range(5))
        log = VerdictLog.__new__(VerdictLog)
        monkeypatch.setattr(logs.threading.Thread, "start", lambda self: None)
        log.__init__(journal, url, KeepSettings())  # type: ignore[misc]
        monkeypatch.undo()

        def killed_write(uri: str, data: bytes) -> bool:
            if moment == "after the part":
                lake.write_once(uri, data)
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(logs.lake, "write_once", _once(killed_write, lake.write_once))
            with pytest.raises(Killed):
                log._commit(True)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("log/*/*")}
    assert len(before) == (moment == "after the part")
    with kept(tmp_path, url, log_seconds=0, log_rows=3) as (journal, _):  # other sizes: the begun part stays as it was
        fill(journal, range(5, 7))
    assert ids(url) == [1, 2, 3, 4, 5, 6, 7]
    after = {path.name: path.read_bytes() for path in tmp_path.glob("log/*/*")}
    assert any(name.endswith(f"{1:015d}-{5:015d}.parquet") for name in after)
    assert before.items() <= after.items()


def _once(first: Callable[..., Any], then: Callable[..., Any]) -> Callable[..., Any]:
    calls = iter([first])
    return lambda *given: next(calls, then)(*given)


def test_while_the_store_is_away_the_journal_holds_the_rows(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("in the way")
    with kept(tmp_path, log_seconds=0, journal_events=0) as (journal, log):
        fill(journal, range(4))
        until(lambda: log.backlog().failure is not None and log.backlog().rows == 4)
        assert log.backlog().seconds > 0
        (tmp_path / "log").unlink()
        until(lambda: log.backlog().rows == 0 and log.backlog().failure is None)
    assert ids(str(tmp_path / "log")) == [1, 2, 3, 4]


def test_a_store_that_refuses_every_second_request_gets_each_row_once(
    tmp_path: Path,
    s3: str,  # noqa: F811
    doorkeeper: Doorkeeper,  # noqa: F811
) -> None:
    doorkeeper.fail_one_in = 2
    with kept(tmp_path, f"{s3}/log", log_seconds=0, log_rows=3) as (journal, _):
        for first in range(0, 12, 4):
            fill(journal, range(first, first + 4))
        until(lambda: journal.mark(logs.DONE) == 12)
    doorkeeper.fail_one_in = 0
    assert ids(f"{s3}/log") == list(range(1, 13))
    assert len(doorkeeper.requests) > 2 * len(lake.list_files(f"{s3}/log"))


def test_a_new_journal_at_an_old_log_loses_nothing(tmp_path: Path) -> None:
    url = str(tmp_path / "log")
    for name in ("first", "second"):
        with kept(tmp_path / name, url, log_seconds=0) as (journal, _):
            fill(journal, range(3))
    rows = read_log(url).select("journal", "event_id").collect()
    assert rows.n_unique() == len(rows) == 6


def test_the_journal_forgets_what_the_log_has_but_no_reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "CLEAR_EVENTS", 1)
    with kept(tmp_path, log_seconds=0, journal_events=4) as (journal, _):
        asyncio.run(journal.record("review", {"of": 1}))
        fill(journal, range(9))
        until(lambda: [event.id for event in journal.read(0, 100)] == [1, 7, 8, 9, 10])
        asyncio.run(journal.record("review", {"of": 2}))  # takes a number, and no place of a verdict
    with kept(tmp_path, log_seconds=0, journal_events=4) as (journal, _):
        time.sleep(0.1)
        assert [event.id for event in journal.read(0, 100)] == [1, 7, 8, 9, 10, 11]
    with kept(tmp_path, log_seconds=0, journal_events=0) as (journal, _):
        until(lambda: [event.id for event in journal.read(0, 100)] == [1, 11])
        assert asyncio.run(journal.record("verdict", document(0))) == 12
    assert ids(str(tmp_path / "log")) == [*range(2, 11), 12]


def test_numbers_that_a_kill_lost_are_not_given_again(tmp_path: Path) -> None:
    with closing(Journal(str(tmp_path))) as journal:
        fill(journal, range(3))
    with closing(Journal(str(tmp_path))) as journal:
        fill(journal, range(3, 4))
        assert journal.last_id() == 4
        journal.note("is_open", 2)  # what a killed one leaves behind
        lost = journal.last_id() + 5
        journal.note = lambda *_: None  # type: ignore[method-assign]
    with closing(Journal(str(tmp_path))) as journal:
        fill(journal, range(4, 5))
        assert journal.last_id() > lost


def test_days_beyond_retention_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "TIDY_S", 0)
    now = datetime.now(timezone.utc)
    url = str(tmp_path / "log")
    with closing(Journal(str(tmp_path))) as journal:
        for days, numbers in ((5, range(1)), (2, range(1, 2)), (0, range(2, 3))):
            fill(journal, numbers, when=now - timedelta(days=days))
        with closing(VerdictLog(journal, url, KeepSettings(log_days=3))):
            pass
    assert ids(url) == [2, 3]


def test_a_url_without_a_store_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(LakeError) as caught, kept(tmp_path, "nosuch://place"):
        pass
    assert caught.value.code == "unsupported-store"


def test_a_query_filters_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = str(tmp_path / "log")
    with kept(tmp_path) as (journal, _):
        fill(journal, range(4))
        fill(journal, range(4, 6), verdict="good", surface="iron", camera="c2")
    log = ["log", "query", "--log", url]

    def found(*words: str) -> list[int]:
        assert main([*log, "--json", *words]) == 0
        return [json.loads(line)["event_id"] for line in capsys.readouterr().out.splitlines()]

    assert found() == [6, 5, 4, 3, 2, 1]
    assert found("--limit", "2") == [6, 5]
    assert found("--verdict", "good", "--verdict", "error") == [6, 5]
    assert found("--surface", "steel", "--since", "2026-03-01T12:00:02") == [4, 3]
    assert found("--camera", "c2", "--until", "2026-03-01T13:00:05+01:00") == [5]
    assert main([*log, "--out", str(tmp_path / "rows.parquet")]) == 0
    assert pl.read_parquet(tmp_path / "rows.parquet")["event_id"].to_list() == [6, 5, 4, 3, 2, 1]
    assert main([*log, "--out", str(tmp_path / "rows.csv"), "--limit", "3"]) == 0
    table = pl.read_csv(tmp_path / "rows.csv")
    assert json.loads(table["regions"][0]) == [{"x": 1, "y": 2, "width": 3, "height": 4, "area_px": 5, "score": 6.5}]
    assert main(log) == 0
    assert "iron" in capsys.readouterr().out


def test_a_query_that_cannot_be_answered_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "query", "--log", str(tmp_path / "none")]) == 1
    assert "no verdict log at" in capsys.readouterr().err
    for words in (["--verdict", "bad"], ["--since", "noon"], ["--out", "rows.txt"]):
        assert main(["log", "query", "--log", str(tmp_path), *words]) == 2
        assert words[1] in capsys.readouterr().err
