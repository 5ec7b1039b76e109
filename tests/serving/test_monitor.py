from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from sbdzsl.errors import LakeError, ServiceError
from sbdzsl.serving.answers import Shot, answer_document
from sbdzsl.serving.journal import Event, Wanted
from sbdzsl.serving.monitor import Monitor
from sbdzsl.serving.recorder import Recorder
from sbdzsl.serving.rules import AlarmSettings
from sbdzsl.serving.stream import summary
from sbdzsl.verdict import Decision, Region, Verdict

QUICK = AlarmSettings(delay_on_s=0, delay_off_s=0, in_a_row=3)


def answer(verdict: Decision, camera: str = "line7", sequence: int | None = None) -> dict[str, Any]:
    found = Verdict("0" * 64, "part.png", verdict, "b" * 64, route_ms=3.0)
    return answer_document(found, Shot(camera=camera, sequence=sequence), "request", 1.0)


async def eventually(check: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not await check():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


async def follow(recorder: Recorder, verdicts: list[Decision], monitor: Monitor) -> None:
    """Record answers and wait until they are counted."""
    for verdict in verdicts:
        last = await recorder.record(answer(verdict), b"image")

    async def is_counted() -> bool:
        return bool((await monitor.counters())["through"] >= last)

    await eventually(is_counted)


async def alarms(monitor: Monitor) -> list[tuple[str, str]]:
    return [(one["rule"], one["state"]) for one in (await monitor.alarms())["alarms"]]


def test_counters_and_alarms_follow_the_journal(tmp_path: Path) -> None:
    async def run() -> None:
        recorder = Recorder(str(tmp_path))
        async with Monitor(recorder, QUICK).run() as monitor:
            await follow(recorder, ["good", "good", "unseen", "unseen", "unseen"], monitor)
            counters = await monitor.counters()
            assert (counters["inspected"], counters["unseen"], counters["p99_ms"]) == (5, 3, 4.0)

            async def is_raised() -> bool:
                return await alarms(monitor) == [("unseen-in-a-row", "unacknowledged")]

            await eventually(is_raised)
            number = (await monitor.alarms())["alarms"][0]["id"]
            assert (await monitor.acknowledge(number, "ada", "new product"))["state"] == "acknowledged"
            await follow(recorder, ["good"], monitor)

            async def is_over() -> bool:
                return await alarms(monitor) == []

            await eventually(is_over)
            changes = [event.document["change"] for event in await recorder.latest(wanted=Wanted(kinds=("alarm",)))]
            assert changes == ["returned", "acknowledged", "raised"]
        recorder.close()

    asyncio.run(run())


@pytest.mark.parametrize("is_crash", [False, True])
def test_a_restart_goes_on(tmp_path: Path, is_crash: bool) -> None:
    async def first() -> None:
        recorder = Recorder(str(tmp_path))
        watching = Monitor(recorder, QUICK)
        async with watching.run() as monitor:
            await follow(recorder, ["defect"] * 3, monitor)

            async def is_raised() -> bool:
                return bool(await alarms(monitor))

            await eventually(is_raised)
            number = (await monitor.alarms())["alarms"][0]["id"]
            await monitor.shelve(number, "ada", 600, "tool change")
            if is_crash:  # no last snapshot: the answers have to be counted again
                watching._saved = watching._counters.snapshot()
        recorder.close()

    async def second() -> None:
        recorder = Recorder(str(tmp_path))
        async with Monitor(recorder, QUICK).run() as monitor:
            assert await alarms(monitor) == [("rejects-in-a-row", "shelved")]
            await follow(recorder, ["defect"], monitor)
            counters = await monitor.counters()
            assert (counters["defect"], counters["inspected"]) == (4, 4)
            assert (await monitor.alarms())["load"]["last_hour"] == 1
            assert sum(minute["defect"] for minute in await monitor.trend()) == 4
        recorder.close()

    asyncio.run(first())
    asyncio.run(second())


def test_a_reset_takes_a_reason_and_keeps_what_was(tmp_path: Path) -> None:
    async def run() -> None:
        recorder = Recorder(str(tmp_path))
        async with Monitor(recorder, QUICK).run() as monitor:
            await follow(recorder, ["good", "good"], monitor)
            with pytest.raises(ServiceError, match="with a reason"):
                await monitor.reset("ada", "  ")
            fresh = await monitor.reset("ada", "shift change")
            assert (fresh["inspected"], fresh["reset_by"], fresh["reset_because"]) == (0, "ada", "shift change")
            await follow(recorder, ["good"], monitor)
            assert (await monitor.counters())["inspected"] == 1
            kept = await recorder.latest(wanted=Wanted(kinds=("counter",)))
            assert [event.document["verdicts"]["good"] for event in reversed(kept)] == [2, 0]
        recorder.close()

    asyncio.run(run())


def test_a_disk_that_fails_is_an_alarm_and_not_the_end(tmp_path: Path) -> None:
    class Failing(Recorder):
        failure: LakeError | None = None

        async def troubles(self) -> dict[str, str]:
            return {} if self.failure is None else {"journal": self.failure.message}

        async def note(self, kind: str, document: Any) -> int:
            if self.failure is not None:
                raise self.failure
            return await super().note(kind, document)

    async def run() -> None:
        recorder = Failing(str(tmp_path))
        async with Monitor(recorder, QUICK).run() as monitor:
            recorder.failure = LakeError("disk-full", "the disk takes no more")

            async def is_raised() -> bool:
                return await alarms(monitor) == [("service-part", "unacknowledged")]

            await eventually(is_raised)
            recorder.failure = None

            async def is_gone() -> bool:
                return await alarms(monitor) == [("service-part", "returned")]

            await eventually(is_gone)
        recorder.close()

    asyncio.run(run())


def test_a_monitor_that_does_not_run_says_so(tmp_path: Path) -> None:
    async def run() -> None:
        recorder = Recorder(str(tmp_path))
        async with Monitor(recorder, QUICK).run() as monitor:
            pass
        with pytest.raises(ServiceError) as caught:
            await monitor.counters()
        assert caught.value.code == "not-ready"
        recorder.close()

    asyncio.run(run())


def test_a_summary_is_small_however_long_the_answer() -> None:
    document = answer("defect", camera="k" * 200, sequence=2**62) | {
        "uri": "x" * 1000, "attributes": ["a" * 300] * 29, "regions": [Region(1, 1, 2, 2, 4, 1.0)] * 500,
        "error_detail": "e" * 5000, "error_code": "unreadable", "surface": "s" * 64, "trigger_id": "t" * 200,
        "part_id": "p" * 200, "surface_expected": "s" * 200, "nearest_surfaces": ["s" * 64] * 3, "event_id": 7,
        "nearest_scores": [1.123456789] * 3,
    }  # fmt: skip
    import json

    assert len(json.dumps(summary(Event(7, 1.5, "verdict", document)))) < 3300
    usual = answer("defect") | {"attributes": ["texture: irregular pattern"] * 6, "surface": "brushed_steel"}
    assert len(json.dumps(summary(Event(7, 1.5, "verdict", usual)))) < 2000
