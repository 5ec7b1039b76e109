"""The journal: order, durability and who may write."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sbdzsl.errors import LakeError, ServiceError
from sbdzsl.serving.journal import Journal, Wanted

T = TypeVar("T")


def run(folder: Path, work: Callable[[Journal], Awaitable[T]]) -> T:
    """Do something with an open journal."""

    async def with_journal() -> T:
        journal = Journal(str(folder))
        try:
            return await work(journal)
        finally:
            journal.close()

    return asyncio.run(with_journal())


def verdict(word: str, camera: str = "c1") -> dict[str, Any]:
    return {"verdict": word, "camera": camera, "surface": "steel"}


def test_events_are_numbered_in_order_and_kept(tmp_path: Path) -> None:
    async def write(journal: Journal) -> list[int]:
        return [await journal.record("verdict", verdict("good"), durable=number % 2 == 0) for number in range(20)]

    assert run(tmp_path, write) == list(range(1, 21))

    async def read(journal: Journal) -> list[int]:
        assert await journal.record("verdict", verdict("good")) == 21
        events = await journal.events(after=3, limit=5)
        assert [event.document["event_id"] for event in events] == [event.id for event in events]
        return [event.id for event in events]

    assert run(tmp_path, read) == [4, 5, 6, 7, 8]


def test_a_reader_waits_for_what_comes(tmp_path: Path) -> None:
    async def work(journal: Journal) -> tuple[int, float]:
        started = time.monotonic()
        waiting = asyncio.create_task(journal.events(after=0, wait_s=30))
        await asyncio.sleep(0.05)
        await journal.record("verdict", verdict("defect"))
        return len(await waiting), time.monotonic() - started

    number, seconds = run(tmp_path, work)
    assert number == 1
    assert seconds < 5


def test_only_what_is_wanted(tmp_path: Path) -> None:
    async def work(journal: Journal) -> list[int]:
        for word, camera in (("good", "c1"), ("defect", "c1"), ("defect", "c2"), ("unseen", "c1")):
            await journal.record("verdict", verdict(word, camera))
        await journal.record("alarm", {"text": "lamp"})
        chosen = await journal.latest(wanted=Wanted(kinds=("verdict",), verdicts=("defect", "unseen"), cameras=("c1",)))
        assert await journal.latest(wanted=Wanted(since=time.time() + 60)) == []
        return [event.id for event in chosen]

    assert run(tmp_path, work) == [4, 2]


def test_an_event_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ServiceError) as caught:
        run(tmp_path, lambda journal: journal.event(7))
    assert caught.value.code == "unknown-event"


def test_a_second_service_is_refused(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    try:
        with pytest.raises(LakeError, match="another service"):
            Journal(str(tmp_path))
    finally:
        journal.close()


def test_a_caller_that_is_cancelled_while_it_waits_stops_nobody(tmp_path: Path) -> None:
    """A request may end at any moment; the writer goes on, and what was handed to it is written."""

    async def work(journal: Journal) -> list[str]:
        other = sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)
        for number in range(20):
            other.execute("BEGIN IMMEDIATE")  # so that the writer has to wait
            first = asyncio.create_task(journal.record("verdict", verdict(f"under way {number}")))
            await asyncio.sleep(0.01)
            second = asyncio.create_task(journal.record("verdict", verdict(f"in the queue {number}")))
            await asyncio.sleep(0.01)
            for task in (first, second):
                task.cancel()
            await asyncio.wait([first, second], timeout=10)
            other.execute("COMMIT")
        other.close()
        await asyncio.wait_for(journal.record("verdict", verdict("last")), 10)
        return [event.document["verdict"] for event in await journal.events(limit=100)]

    expected = [f"{where} {number}" for number in range(20) for where in ("under way", "in the queue")]
    assert run(tmp_path, work) == [*expected, "last"]


def test_what_was_recorded_outlives_a_kill(tmp_path: Path) -> None:
    """The process ends itself by SIGKILL in the middle of its work."""
    code = f"""
import asyncio, os, signal
from sbdzsl.serving.journal import Journal
async def main():
    journal = Journal({str(tmp_path)!r})
    for number in range(200):
        print(await journal.record("verdict", {{"verdict": "defect", "number": number}}), flush=True)
        if number == 150:
            os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    told = [int(line) for line in done.stdout.split()]
    assert told == list(range(1, 152))
    kept = run(tmp_path, lambda journal: journal.events(after=0, limit=1000))
    assert [event.id for event in kept] == told
