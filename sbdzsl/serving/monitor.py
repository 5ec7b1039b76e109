"""Follows the journal: counts the shift and raises alarms. One for each recorder, beside which it lives.

All it knows comes from the journal and goes into it, as events of kind "alarm" and "counter", so that a restart goes
on where the last process was: the counters from their last snapshot and the answers after it, the alarms from their
last changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sbdzsl.errors import SbdzslError, ServiceError
from sbdzsl.serving.alarms import Alarm, AlarmBook, Condition
from sbdzsl.serving.counters import Counters
from sbdzsl.serving.journal import Event, Wanted
from sbdzsl.serving.live_drift import LiveDrift
from sbdzsl.serving.observe import log
from sbdzsl.serving.recorder import Recorder
from sbdzsl.serving.rules import AlarmSettings, Window, total_ms
from sbdzsl.serving.trend import Trend

#: Seconds between two looks at what only time changes, such as a camera that fell silent.
TICK_S = 1.0
#: Seconds between two snapshots of the counters.
SNAPSHOT_S = 30.0
#: Seconds between two looks at whether the images have drifted, which takes hundreds of them.
DRIFT_S = 60.0
#: Changes of alarms that are read back at a start, and the answers that one reading takes.
_MAX_CHANGES, _PAGE = 5000, 500
#: Counted answers that are read again at a start, for the windows of rules and plots.
_MAX_LOOKED_BACK = 3000

_VERDICTS = Wanted(kinds=("verdict",))


class Monitor:
    """Counters and alarms of one recorder. `run` it for as long as it is used, in the event loop of the recorder.

    Without `drift` there are no alarms of images that no longer look like those of the calibration.
    """

    def __init__(self, recorder: Recorder, settings: AlarmSettings, drift: LiveDrift | None = None) -> None:
        self._recorder = recorder
        self._settings = settings
        self._window = Window(settings)
        self._book = AlarmBook(settings.delay_on_s, settings.delay_off_s)
        self._trend = Trend()
        self._counters = Counters(since=time.time())
        self._snapshot_at = time.monotonic()
        self._saved: dict[str, Any] = {}
        self._follower: asyncio.Task[None] | None = None
        self._is_open = True
        self._troubles: dict[str, str] = {}
        self._troubles_at = -float("inf")
        self._drift = drift
        self._drifted: list[Condition] = []
        self._drift_at = time.monotonic()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[Monitor]:
        """Read back what was, then follow the journal until the block ends."""
        await self._restore()
        self._follower = asyncio.create_task(self._follow(), name="monitor")
        try:
            yield self
        finally:
            # Both, for `asyncio.wait_for` of Python 3.11 loses a cancellation that comes together with its result.
            self._is_open = False
            self._follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._follower
            await self._save()

    async def alarms(self) -> dict[str, Any]:
        """All alarms that are not normal, the most urgent first, and how many came of late."""
        self._require_alive()
        return {"alarms": [alarm.to_json() for alarm in self._book.all()], "load": self._book.load(time.time())}

    async def acknowledge(self, number: str, who: str, comment: str) -> dict[str, Any]:
        """See `AlarmBook.acknowledge`; on disk on return."""
        return await self._keep(self._book.acknowledge(number, who, comment, time.time()))

    async def shelve(self, number: str, who: str, seconds: float, reason: str) -> dict[str, Any]:
        """See `AlarmBook.shelve`; on disk on return."""
        return await self._keep(self._book.shelve(number, who, seconds, reason, time.time()))

    async def counters(self) -> dict[str, Any]:
        """The counters of the shift."""
        self._require_alive()
        return self._counters.to_json() | {"p99_ms": self._window.p99_ms(), "budget_ms": self._settings.budget_ms}

    async def trend(self) -> list[dict[str, Any]]:
        """See `Trend.minutes`."""
        self._require_alive()
        return self._trend.minutes(time.time())

    async def reset(self, who: str, reason: str) -> dict[str, Any]:
        """Begin a new shift: all counts to zero. What they were stays in the journal. Raises "bad-request"."""
        if not reason.strip():
            raise ServiceError("bad-request", "counters are reset with a reason, such as 'shift change'; found none")
        await self._save()
        before = self._counters
        self._counters = Counters(
            time.time(), before.through, reset_by=who, reset_because=reason, numbering=before.numbering
        )
        await self._save()
        return await self.counters()

    async def refused(self) -> None:
        """Count a request that got no verdict: the service was full, or too slow."""
        self._counters.refused += 1

    def _require_alive(self) -> None:
        if self._follower is None or self._follower.done():
            raise ServiceError("not-ready", "alarms and counters are not being followed; restart the service")

    async def _restore(self) -> None:
        snapshots = await self._recorder.latest(None, 1, Wanted(kinds=("counter",)))
        if snapshots:
            self._counters = Counters.restored(snapshots[0].document)
        changes = await self._recorder.latest(None, _MAX_CHANGES, Wanted(kinds=("alarm",)))
        self._book.restore([event.document for event in reversed(changes)])
        through = self._counters.through
        for event in reversed(await self._recorder.latest(through + 1, _MAX_LOOKED_BACK, _VERDICTS)):
            self._look_at(event)
        self._saved = self._counters.snapshot()

    async def _follow(self) -> None:
        after = self._counters.through
        while self._is_open:
            try:
                for event in await self._recorder.events(after, _PAGE, _VERDICTS, TICK_S):
                    after = event.id
                    late = self._look_at(event) > self._settings.budget_ms
                    self._counters.take(event.id, event.document, late)
                await self._tick()
            except SbdzslError as error:  # the disk is full: that is one of the alarms, and it may get room again
                log.error("monitor", extra={"fields": {"code": error.code, "detail": error.message}})
                await asyncio.sleep(TICK_S)

    def _look_at(self, event: Event) -> float:
        """What only the answers of late tell; the time that this one took, in ms."""
        took = total_ms(event.document)
        self._window.take(event)
        self._trend.take(event.at, event.document["verdict"], took)
        return took

    async def _tick(self) -> None:
        now = time.time()
        if time.monotonic() - self._troubles_at >= TICK_S:
            self._troubles, self._troubles_at = await self._recorder.troubles(), time.monotonic()
        await self._look_for_drift()
        conditions = [*self._window.conditions(self._troubles, now), *self._drifted]
        changed = self._book.update(conditions, now)
        await self._keep_all(changed)
        if time.monotonic() - self._snapshot_at > SNAPSHOT_S:
            await self._save()

    async def _look_for_drift(self) -> None:
        if self._drift is None or "drift" in self._settings.off:
            return
        if time.monotonic() - self._drift_at >= DRIFT_S:
            self._drift_at = time.monotonic()
            self._drifted = await self._drift.conditions(self._recorder)

    async def _save(self) -> None:
        self._snapshot_at = time.monotonic()
        snapshot = self._counters.snapshot()
        if snapshot != self._saved:
            await self._recorder.note("counter", snapshot)
            self._saved = snapshot

    async def _keep(self, alarm: Alarm) -> dict[str, Any]:
        await self._keep_all([alarm])
        return alarm.to_json()

    async def _keep_all(self, changed: Sequence[Alarm]) -> None:
        for alarm in changed:
            document: Mapping[str, Any] = alarm.to_json()
            log.info("alarm", extra={"fields": {name: document[name] for name in ("id", "text", "state", "change")}})
            await self._recorder.note("alarm", document)
