"""When something is wrong with the line or the service: conditions over the answers of late. Pure: time is an argument.

A window of the last answers is kept for each camera and for all together. Nothing here asks whether a part is good.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from sbdzsl.config import Settings
from sbdzsl.serving.alarms import Condition
from sbdzsl.serving.journal import Event

#: A camera counts as one that sends after so many answers.
SENDS_AFTER = 3


class AlarmSettings(Settings):
    """When an alarm is due. Rates are shares from 0 to 1, times seconds unless they say ms."""

    in_a_row: int = Field(5, ge=2, description="answers of one camera in a row that are not good, or unseen")
    window: int = Field(200, ge=20, description="answers that rates and latencies are taken over")
    min_results: int = Field(50, ge=1, description="answers without which no rate is taken")
    min_reject_rate: float = Field(0.0, ge=0, le=1, description="fewer defects than this share are suspicious")
    max_reject_rate: float = Field(0.2, ge=0, le=1, description="more defects than this share are suspicious")
    max_error_rate: float = Field(0.05, ge=0, le=1, description="share of images that cannot be judged")
    budget_ms: float = Field(1000.0, gt=0, description="an answer that took longer is late; p99 beyond it is an alarm")
    silence_s: float = Field(120.0, gt=0, description="a camera that sent is missed after this silence")
    forget_s: float = Field(8 * 3600.0, gt=0, description="and no longer missed after this one")
    delay_on_s: float = Field(1.0, ge=0, description="how long a condition has to stand before it is an alarm")
    delay_off_s: float = Field(10.0, ge=0, description="how long it has to be gone before the alarm returns")
    off: tuple[str, ...] = Field((), description="rules that are out of service")


@dataclass(slots=True)
class _Camera:
    last_at: float = 0.0
    results: int = 0
    rejects_in_a_row: int = 0
    unseen_in_a_row: int = 0
    last_id: int = 0


@dataclass(frozen=True, slots=True)
class _Result:
    verdict: str
    total_ms: float
    id: int


@dataclass(slots=True)
class Window:
    """The answers of late. `take` them in the order of the journal."""

    settings: AlarmSettings
    _cameras: dict[str, _Camera] = field(default_factory=dict)
    _results: deque[_Result] = field(init=False)

    def __post_init__(self) -> None:
        self._results = deque(maxlen=self.settings.window)

    def take(self, event: Event) -> None:
        """One more answer: an event of kind "verdict"."""
        document = event.document
        verdict, name = document["verdict"], document["camera"] or ""
        self._results.append(_Result(verdict, total_ms(document), event.id))
        camera = self._cameras.setdefault(name, _Camera())
        camera.last_at, camera.last_id, camera.results = event.at, event.id, camera.results + 1
        camera.rejects_in_a_row = camera.rejects_in_a_row + 1 if verdict in ("defect", "unseen") else 0
        camera.unseen_in_a_row = camera.unseen_in_a_row + 1 if verdict == "unseen" else 0

    def conditions(self, troubles: Mapping[str, str], now: float) -> list[Condition]:
        """What is wrong at `now`. `troubles` are parts of the service that fail, and how each does."""
        self._forget(now)
        found = [*self._of_cameras(now), *self._of_rates(), *_of_service(troubles)]
        return [one for one in found if one.rule not in self.settings.off]

    def p99_ms(self) -> float | None:
        """The time that all but one in a hundred answers of late took at most."""
        times = sorted(one.total_ms for one in self._results)
        return times[math.ceil(0.99 * len(times)) - 1] if times else None

    def _forget(self, now: float) -> None:
        for name in [name for name, one in self._cameras.items() if now - one.last_at > self.settings.forget_s]:
            del self._cameras[name]

    def _of_cameras(self, now: float) -> list[Condition]:
        found = []
        for name, camera in self._cameras.items():
            seconds, subject = now - camera.last_at, name or "without a name"
            # One without a name is a person who tries an image: nobody misses the next one.
            if name and camera.results >= SENDS_AFTER and seconds > self.settings.silence_s:
                found.append(Condition("no-results", subject, "critical", {"seconds": int(seconds)}, camera.last_id))
            # One broken thing is one alarm: a row that is unseen to its end is not one of rejects too.
            if camera.unseen_in_a_row >= self.settings.in_a_row:
                values = {"count": camera.unseen_in_a_row}
                found.append(Condition("unseen-in-a-row", subject, "high", values, camera.last_id))
            elif camera.rejects_in_a_row >= self.settings.in_a_row:
                values = {"count": camera.rejects_in_a_row}
                found.append(Condition("rejects-in-a-row", subject, "high", values, camera.last_id))
        return found

    def _of_rates(self) -> list[Condition]:
        results, settings = self._results, self.settings
        if len(results) < settings.min_results:
            return []
        found = []
        values: dict[str, Any] = {"results": len(results)}
        rejects, errors = self._share("defect"), self._share("error")
        if not settings.min_reject_rate <= rejects <= settings.max_reject_rate:
            band = {"low": _percent(settings.min_reject_rate), "high": _percent(settings.max_reject_rate)}
            found.append(
                Condition("reject-rate", "", "high", values | band | {"rate": _percent(rejects)}, self._last("defect"))
            )
        if errors > settings.max_error_rate:
            limit = {"rate": _percent(errors), "high": _percent(settings.max_error_rate)}
            found.append(Condition("error-rate", "", "medium", values | limit, self._last("error")))
        p99 = self.p99_ms()
        if p99 is not None and p99 > settings.budget_ms:
            times = {"p99_ms": round(p99), "budget_ms": round(settings.budget_ms)}
            found.append(Condition("latency", "", "medium", values | times))
        return found

    def _share(self, verdict: str) -> float:
        return sum(one.verdict == verdict for one in self._results) / len(self._results)

    def _last(self, verdict: str) -> int | None:
        return next((one.id for one in reversed(self._results) if one.verdict == verdict), None)


def total_ms(document: Mapping[str, Any]) -> float:
    """How long an image took from its arrival to its verdict, in ms."""
    return float(sum(document[f"{stage}_ms"] or 0.0 for stage in ("queue", "decode", "route", "detect")))


def _of_service(troubles: Mapping[str, str]) -> list[Condition]:
    """The journal is what everything is remembered by, so that it fails is critical."""
    return [
        Condition("service-part", part, "critical" if part == "journal" else "high", {"detail": detail})
        for part, detail in troubles.items()
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
