"""Whether the images of late still look like those that the bundle was calibrated on: an alarm a surface where not.

The measures, the tests and what it takes to say anything are those of the audit's report (`report.drift`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import polars as pl

from sbdzsl.report.drift import MEASURES, References, measure_drift
from sbdzsl.serving.alarms import Condition
from sbdzsl.serving.journal import Event, Wanted
from sbdzsl.serving.recorder import Recorder

#: Answers that are looked at, the newest: some hundreds a surface say all that there is to say.
MAX_ANSWERS = 3000

#: Digest of the bundle in force, and what its images are measured against.
Reference = tuple[str, References]

_COLUMNS: dict[str, type[pl.DataType]] = {"surface": pl.String, "verdict": pl.String, "defect_threshold": pl.Float64}
_COLUMNS |= dict.fromkeys(MEASURES, pl.Float64)


class LiveDrift:
    """Compares the newest answers of the bundle in force. `reference` is asked each time: bundles change."""

    def __init__(self, reference: Callable[[], Awaitable[Reference]]) -> None:
        self._reference = reference

    async def conditions(self, recorder: Recorder) -> list[Condition]:
        """The surfaces that have drifted, now. Takes tenths of a second, on a thread. Raises `ServiceError`."""
        digest, references = await self._reference()
        events = await recorder.latest(None, MAX_ANSWERS, Wanted(kinds=("verdict",)))
        return await asyncio.to_thread(
            _drifted, [one for one in events if one.document["bundle"] == digest], references
        )


def _drifted(events: Sequence[Event], references: References) -> list[Condition]:
    judged = [one.document for one in events if one.document["verdict"] != "error"]
    rows = pl.DataFrame([[one[name] for name in _COLUMNS] for one in judged], schema=_COLUMNS, orient="row")
    newest: dict[str, int] = {}
    for one in reversed(events):
        newest[one.document["surface"]] = one.id
    return [
        Condition("drift", one.surface, "medium", {"detail": one.warning}, newest.get(one.surface))
        for one in measure_drift(rows, references)
        if one.warning is not None
    ]
