"""Takes alerts from the outbox to the sinks: one thread a sink, so that a dead one holds up neither the others nor us.

An alert is delivered at least once: a process that dies between the receiver's yes and the note of it sends it again,
under the same id. What failed is tried again after waits that double; `RetrySettings` says when an alert is given up
and goes to the sink's dead-letter file.
"""

from __future__ import annotations

import logging
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import pydantic_core

from sbdzsl.errors import AlertError
from sbdzsl.serving.alerts.alert import Alert
from sbdzsl.serving.alerts.files import append_line
from sbdzsl.serving.alerts.outbox import Delivery, Outbox
from sbdzsl.serving.alerts.settings import AlertSettings, AnySink, RetrySettings
from sbdzsl.serving.alerts.sinks import Sink, make_sink

log = logging.getLogger(__name__)

#: `standby`: another process delivers from this folder. `unknown`: alerts wait for a sink that the settings lack.
SinkState = Literal["standby", "delivering", "failing", "disabled", "unknown"]

#: Another process may put into the same folder, of which this one hears nothing.
_LOOK_S = 0.5
_PRUNE_S, _DISABLED_LOOK_S, _CLAIM_S = 3600.0, 60.0, 1.0

#: A refusal is this alert's own affair, so that to wait long harms no other.
_LONGEST_AFTER_REFUSAL_S = 3600.0
_MOST_OF_AN_ERROR = 500


@dataclass(frozen=True, slots=True)
class SinkStatistics:
    """One sink, for metrics and the operator page.

    `pending`, `oldest_pending_s` (seconds; None where none waits) and `dead` (given up and still kept, so that they can
    be sent again) are read from the outbox. `delivered`, `failed` (attempts) and `given_up` count since the dispatcher
    started, and only rise.
    """

    name: str
    kind: str
    state: SinkState
    pending: int
    oldest_pending_s: float | None
    dead: int
    delivered: int
    failed: int
    given_up: int
    last_error: str | None
    last_error_at: datetime | None


class Dispatcher:
    """Delivers what is in the outbox until it is closed. Raises `ConfigError` for a sink that cannot work at all."""

    def __init__(self, outbox: Outbox, settings: AlertSettings) -> None:
        self._outbox, self._stopping = outbox, threading.Event()
        self._couriers = [Courier(outbox, sink, self._stopping) for sink in settings.sinks]
        self._leader = threading.Thread(target=self._lead, name="alerts-dispatcher", daemon=True)

    def start(self) -> Dispatcher:
        """Begin to deliver; where another process does for this folder, stand by until it ends. Returns itself."""
        self._leader.start()
        return self

    def statistics(self) -> tuple[SinkStatistics, ...]:
        """Each sink as it stands now, in the order of the settings; then those that only the outbox knows."""
        pending, dead, now = self._outbox.pending(), self._outbox.dead(), time.time()
        found = []
        for courier in self._couriers:
            waiting, oldest = pending.pop(courier.label, (0, now))
            found.append(
                courier.statistics(waiting, max(0.0, now - oldest) if waiting else None, dead.get(courier.label, 0))
            )
        for name, (waiting, oldest) in pending.items():
            age = max(0.0, now - oldest)
            found.append(SinkStatistics(name, "none", "unknown", waiting, age, dead.get(name, 0), 0, 0, 0, None, None))
        return tuple(found)

    def close(self, timeout_s: float = 15.0) -> bool:
        """Finish the attempts under way and stop; the rest stays in the outbox for the next start.

        False if an attempt was still under way after `timeout_s`; its thread ends by itself, or with the process.
        """
        self._stopping.set()
        for courier in self._couriers:
            courier.wake()
        until = time.monotonic() + timeout_s
        threads = [thread for thread in (self._leader, *(courier.thread for courier in self._couriers)) if thread.ident]
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _lead(self) -> None:
        claim = self._claim()
        if claim is None:
            return
        for name in self._outbox.pending().keys() - {courier.label for courier in self._couriers}:
            log.warning("alerts wait in %s for a sink %r that the settings lack", self._outbox.folder, name)
        for courier in self._couriers:
            courier.thread.start()
        while not self._stopping.is_set():
            try:
                self._outbox.prune()
            except AlertError as error:
                log.error("old alerts stay in the outbox: %s", error)
            self._stopping.wait(_PRUNE_S)
        for courier in self._couriers:
            courier.thread.join()
        claim.close()

    def _claim(self) -> sqlite3.Connection | None:
        while not self._stopping.is_set():
            try:
                claim = self._outbox.claim()
            except AlertError as error:
                log.error("no alerts are delivered: %s", error)
                claim = None
            if claim is not None:
                return claim
            self._stopping.wait(_CLAIM_S)
        return None


class Courier:
    """Delivers one sink's alerts, one after the other, the oldest first."""

    def __init__(self, outbox: Outbox, settings: AnySink, stopping: threading.Event) -> None:
        self.label, self.kind = settings.label, settings.kind
        self.thread = threading.Thread(target=self._run, name=f"alerts-{self.label}", daemon=True)
        self._outbox, self._retry, self._stopping = outbox, settings.retry, stopping
        self._sink: Sink = make_sink(settings, lambda count: outbox.latest_delivered(self.label, count), self._received)
        self._is_open = False
        self._news, self._urgent = threading.Event(), threading.Event()
        self._state: SinkState = "standby"
        self._failures_in_a_row = 0
        self._counting = threading.Lock()
        self._delivered = self._failed = self._given_up = 0
        self._last_error: tuple[str, datetime] | None = None
        outbox.on_put(self._news.set)

    @property
    def dead_letters(self) -> Path:
        """The file of what was given up, one JSON object a line."""
        return self._outbox.folder / f"dead-letters-{self.label}.jsonl"

    def statistics(self, pending: int, oldest_pending_s: float | None, dead: int) -> SinkStatistics:
        """The courier's counts beside those that the outbox has."""
        error, error_at = self._last_error or (None, None)
        counts = (pending, oldest_pending_s, dead, self._delivered, self._failed, self._given_up)
        return SinkStatistics(self.label, self.kind, self._state, *counts, error, error_at)

    def wake(self) -> None:
        """End any wait at once."""
        self._news.set()
        self._urgent.set()

    def _run(self) -> None:
        self._state = "delivering"
        self._guarded(lambda: self._outbox.wake(self.label))
        while not self._stopping.is_set():
            self._guarded(self._turn)
        if self._is_open:
            self._guarded(self._sink.close)

    def _guarded(self, step: Callable[[], object]) -> None:
        try:
            step()
        except AlertError as error:
            self._note(error)
            self._pause(error)
        except Exception as error:
            # A courier has to outlive any fault of a sink's library, or its alerts would wait unseen for ever.
            log.exception("sink %s", self.label)
            fault = AlertError("sink-unreachable", f"{type(error).__name__}: {error}")
            self._note(fault)
            self._pause(fault)

    def _turn(self) -> None:
        if self._state == "disabled":
            self._give_up_the_old()
            return
        delivery = self._outbox.due(self.label)
        try:
            self._open()
            is_received = delivery is not None and self._deliver(delivery.alert)
        except AlertError as error:
            if delivery is None:
                raise
            self._on_failure(delivery, error)
            return
        if delivery is None:
            self._news.wait(_LOOK_S)
            self._news.clear()
        else:
            self._on_success(delivery, is_received)

    def _open(self) -> None:
        if not self._is_open:
            self._sink.open()
            self._is_open = True
            self._works()

    def _deliver(self, alert: Alert) -> bool:
        try:
            return self._sink.deliver(alert)
        except AlertError:
            raise
        except Exception as error:
            log.exception("sink %s", self.label)
            raise AlertError("sink-unreachable", f"{type(error).__name__}: {error}") from error

    def _on_success(self, delivery: Delivery, is_received: bool) -> None:
        self._works()
        if is_received:
            self._outbox.finish(delivery, "delivered")
            self._count_delivered()
            return
        deadline = delivery.created_at + self._retry.give_up_after_h * 3600
        if time.time() < deadline:
            self._outbox.postpone(delivery, deadline, None)
        else:
            self._give_up(delivery, "offered, but never acknowledged")

    def _on_failure(self, delivery: Delivery, error: AlertError) -> None:
        self._note(error)
        attempts = delivery.attempts + 1
        if error.code == "sink-gone":
            self._state = "disabled"
            self._outbox.postpone(delivery, time.time(), str(error))
        elif error.code == "alert-refused":
            if attempts >= self._retry.give_up_attempts:
                self._give_up(delivery, str(error))
            else:
                wait = wait_s(self._retry, attempts, _LONGEST_AFTER_REFUSAL_S)
                self._outbox.postpone(delivery, time.time() + wait, str(error))
        else:
            age_h = (time.time() - delivery.created_at) / 3600
            tries = max(attempts, self._failures_in_a_row)
            if age_h >= self._retry.give_up_after_h and tries >= self._retry.give_up_attempts:
                self._give_up(delivery, str(error))
            else:
                self._outbox.postpone(delivery, time.time() + wait_s(self._retry, attempts), str(error))
            self._pause(error)

    def _give_up_the_old(self) -> None:
        """The receiver wants no more: what waits is given up when its time is over, or sent after a restart."""
        delivery = self._outbox.due(self.label)
        if delivery and time.time() - delivery.created_at >= self._retry.give_up_after_h * 3600:
            self._give_up(delivery, "the receiver wanted no more alerts (410)")
        else:
            self._urgent.wait(_DISABLED_LOOK_S)
            self._urgent.clear()

    def _give_up(self, delivery: Delivery, reason: str) -> None:
        """Write the alert into the dead-letter file, then note it: a crash in between writes it twice, never not."""
        letter = {
            "sink": self.label,
            "given_up_at": datetime.now(timezone.utc).isoformat(),
            "attempts": delivery.attempts + 1,
            "error": reason[:_MOST_OF_AN_ERROR],
            "alert": delivery.alert.document,
        }
        append_line(self.dead_letters, pydantic_core.to_json(letter))
        self._outbox.finish(delivery, "dead", reason)
        self._given_up += 1
        log.error(
            "alert %s to sink %s is given up, see %s: %s", delivery.alert.id, self.label, self.dead_letters, reason
        )

    def _works(self) -> None:
        if self._state == "failing":
            log.warning("sink %s works again", self.label)
        self._state, self._failures_in_a_row = "delivering", 0

    def _note(self, error: AlertError) -> None:
        """Count a failure; the first in a row is logged, for there may be thousands."""
        self._failed += 1
        self._failures_in_a_row += 1
        self._last_error = (str(error)[:_MOST_OF_AN_ERROR], datetime.now(timezone.utc))
        if self._state == "delivering":
            self._state = "failing"
            log.warning("sink %s fails and is tried again: %s", self.label, error)

    def _pause(self, error: AlertError) -> None:
        """Leave the whole sink alone for a while; what it asks for itself counts up to an hour."""
        if self._stopping.is_set():
            return
        asked = min(error.retry_after_s or 0.0, _LONGEST_AFTER_REFUSAL_S)
        self._urgent.wait(max(asked, wait_s(self._retry, self._failures_in_a_row)))
        self._urgent.clear()

    def _received(self, alert_id: str) -> bool:
        was_waiting = self._outbox.acknowledge(self.label, alert_id)
        if was_waiting:
            self._count_delivered()
            self._urgent.set()
        return was_waiting

    def _count_delivered(self) -> None:
        with self._counting:  # receipts come in other threads
            self._delivered += 1


def wait_s(retry: RetrySettings, failures: int, longest_s: float | None = None) -> float:
    """How long to wait after so many failures, in seconds: doubled each time, less up to a half by chance.

    A loop of stamina's would forget where it stood when the process ends; this is reckoned anew from what is stored.
    """
    longest = retry.longest_wait_s if longest_s is None else longest_s
    return min(longest, retry.first_wait_s * 2.0 ** min(failures - 1, 30)) * random.uniform(0.5, 1.0)
