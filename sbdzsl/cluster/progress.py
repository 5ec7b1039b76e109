"""How far an audit is, and whether it has to stop: what one start of it has judged, counted shard by shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from sbdzsl import errors
from sbdzsl.config import AuditSettings
from sbdzsl.errors import SbdzslError, StoppedError

#: With fewer images judged, a share of errors says little.
MIN_IMAGES_FOR_SHARE = 100
_SECONDS_BETWEEN_LINES = 2.0


class Progress:
    """Counts of one start of an audit. `stopped` is why it ended before all was judged, None where it did not."""

    def __init__(self, settings: AuditSettings, started_at: datetime, report: Callable[[str], None]) -> None:
        self.started_at = started_at
        self.num_images = 0
        self.num_errors = 0
        self.num_actors = 0
        self.num_shards = 0
        self.seconds = 0.0
        self.stopped: SbdzslError | None = None
        self._max_errors = settings.max_errors
        self._max_minutes = settings.max_minutes
        self._report = report
        self._to_do = self._finished = 0
        self._before = 0.0
        self._started = self._last_line = time.perf_counter()

    @property
    def stop_at(self) -> float | None:
        """Time of the clock, in seconds, from which on no shard is begun; None where there is no such time."""
        return None if self._max_minutes is None else self.started_at.timestamp() + 60 * self._max_minutes

    @property
    def images_per_second(self) -> float | None:
        """Of the time from the first actor's start to the last part; None where nothing was judged."""
        return self.num_images / self.seconds if self.num_images and self.seconds else None

    def begin(self, num_shards: int, num_actors: int) -> None:
        """So many shards are about to be judged by so many actors."""
        self._to_do, self._finished, self._before = num_shards, 0, self.seconds
        self.num_actors = num_actors
        self._started = self._last_line = time.perf_counter()

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one shard that an actor gave back.

        Raises the error that stopped the actor, or `StoppedError`: "out-of-time" where no shard is begun any more,
        "too-many-errors".
        """
        if row["error"]:
            kind, code = str(row["error"]).split()
            raise getattr(errors, kind)(code, str(row["message"]))
        if row["num_images"] < 0:
            raise StoppedError(
                "out-of-time",
                f"max_minutes ({self._max_minutes:g}) are over: {self._finished} of {self._to_do} shards were "
                "judged by this start, and are kept; run the same command again to go on",
            )
        self._finished += 1
        self.num_shards += 1
        self.num_images += int(row["num_images"])
        self.num_errors += int(row["num_errors"])
        self._say()
        self._check_errors(MIN_IMAGES_FOR_SHARE)

    def end(self) -> None:
        """All shards came back. Raises `StoppedError` "too-many-errors" also where only few images were judged."""
        self._check_errors(1)

    def _check_errors(self, min_images: int) -> None:
        if self._max_errors is None or self.num_images < min_images:
            return
        if self.num_errors > self._max_errors * self.num_images:
            raise StoppedError(
                "too-many-errors",
                f"{self.num_errors:,} of {self.num_images:,} images could not be judged "
                f"({self.num_errors / self.num_images:.1%}), more than --max-errors {self._max_errors:.4g} allows; the "
                "report lists them by cause. What is judged is kept: run the same command again to go on",
            )

    def _say(self) -> None:
        now = time.perf_counter()
        elapsed = now - self._started
        self.seconds = self._before + elapsed
        if now - self._last_line < _SECONDS_BETWEEN_LINES and self._finished < self._to_do:
            return
        self._last_line = now
        left = elapsed / self._finished * (self._to_do - self._finished)
        speed = self.num_images / self.seconds
        bad = f", {self.num_errors:,} of them not judged" if self.num_errors else ""
        self._report(
            f"{self._finished}/{self._to_do} shards, {self.num_images:,} images{bad}, {speed:.0f}/s, {left:.0f} s left"
        )
