"""How the last hour went, minute by minute: verdicts and how long they took. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sbdzsl.serving.counters import VERDICTS

MINUTES = 60
#: Times that are kept of one minute; of more, the percentiles are those of the first.
_MAX_TIMES = 10_000


@dataclass(slots=True)
class _Minute:
    verdicts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VERDICTS, 0))
    times_ms: list[float] = field(default_factory=list)


class Trend:
    """The last `MINUTES` minutes."""

    def __init__(self) -> None:
        self._minutes: OrderedDict[int, _Minute] = OrderedDict()

    def take(self, at: float, verdict: str, total_ms: float) -> None:
        """One more answer, given at `at` (seconds since 1970)."""
        minute = self._minutes.setdefault(int(at // 60), _Minute())
        minute.verdicts[verdict] += 1
        if len(minute.times_ms) < _MAX_TIMES:
            minute.times_ms.append(total_ms)
        while len(self._minutes) > MINUTES:
            self._minutes.popitem(last=False)

    def minutes(self, now: float) -> list[dict[str, Any]]:
        """Each of the last minutes up to `now`, the oldest first, also those in which nothing came."""
        last = int(now // 60)
        return [self._slot(number) for number in range(last - MINUTES + 1, last + 1)]

    def _slot(self, number: int) -> dict[str, Any]:
        minute = self._minutes.get(number) or _Minute()
        p50, p99 = np.percentile(minute.times_ms, (50, 99)).tolist() if minute.times_ms else (None, None)
        return {"at": number * 60} | minute.verdicts | {"p50_ms": p50, "p99_ms": p99}
