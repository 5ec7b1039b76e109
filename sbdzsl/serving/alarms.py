"""Alarms after ISA-18.2: what state each is in, and what people did about it. Pure: time is an argument.

A defect is a result, not an alarm: an alarm tells somebody to do something about the line or the service. Conditions
(`sbdzsl.serving.rules`) come and go; an alarm follows them with a delay, stays in the list until the condition has gone
*and* a person acknowledged it, and each change of it is a document for the journal, from which a restart reads it back.

    normal -> unacknowledged -> acknowledged -> normal
                     |-> returned (gone, not acknowledged) -> normal
    shelved: hidden from the banner until a time; it comes back by itself
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from sbdzsl.errors import ServiceError

Priority = Literal["critical", "high", "medium", "low"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
State = Literal["normal", "unacknowledged", "acknowledged", "returned", "shelved"]

#: Alarms that one operator can handle in an hour: up to the first is fine, up to the second manageable (ISA-18.2).
FINE_PER_HOUR, MANAGEABLE_PER_HOUR = 6, 12
#: So many within ten minutes are a flood.
FLOOD_PER_10_MIN = 10

#: Longest time that an alarm may be shelved, in seconds: one shift, then somebody has to look again.
MAX_SHELVED_S = 8 * 3600

_TEXTS = json.loads((Path(__file__).parent / "page" / "texts.json").read_text(encoding="utf-8"))["alarms"]


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is wrong now. `subject` is what it is about, such as a camera; `values` fill the texts;
    `event_id` is the answer that shows it best."""

    rule: str
    subject: str
    priority: Priority
    values: Mapping[str, Any] = field(default_factory=dict)
    event_id: int | None = None


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm and its history in brief. Times are seconds since 1970; `times` is how often it came since it was last
    normal; `change` is what happened last."""

    id: str
    rule: str
    subject: str
    priority: Priority
    text: str
    cause: str
    action: str
    raised_at: float
    is_active: bool = True
    times: int = 1
    returned_at: float | None = None
    acknowledged_at: float | None = None
    acknowledged_by: str | None = None
    comment: str | None = None
    shelved_until: float | None = None
    shelved_by: str | None = None
    shelved_because: str | None = None
    evidence: int | None = None
    change: str = "raised"

    @property
    def state(self) -> State:
        """Its state after ISA-18.2."""
        if self.shelved_until is not None:
            return "shelved"
        if self.acknowledged_at is None:
            return "unacknowledged" if self.is_active else "returned"
        return "acknowledged" if self.is_active else "normal"

    def to_json(self) -> dict[str, Any]:
        """All fields and the state, as plain JSON."""
        return asdict(self) | {"state": self.state}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Alarm:
        """The alarm that a document of the journal describes."""
        return cls(**{one.name: document[one.name] for one in fields(cls)})


def alarm_id(rule: str, subject: str) -> str:
    """A short name that is safe in a URL, whatever the subject is called."""
    return f"{rule}-{hashlib.sha256(subject.encode()).hexdigest()[:8]}"


class AlarmBook:
    """The alarms that are not normal. `delay_on_s`, `delay_off_s`: how long a condition has to stand, or to be gone,
    before it counts."""

    def __init__(self, delay_on_s: float, delay_off_s: float) -> None:
        self._delay_on_s, self._delay_off_s = delay_on_s, delay_off_s
        self._alarms: dict[str, Alarm] = {}
        self._differs_since: dict[str, float] = {}
        self._raised: deque[float] = deque(maxlen=1000)

    def restore(self, documents: Sequence[Mapping[str, Any]]) -> None:
        """Take over what the journal tells, the oldest change first."""
        for document in documents:
            self._keep(Alarm.from_json(document))

    def update(self, conditions: Sequence[Condition], now: float) -> list[Alarm]:
        """Follow the conditions that stand at `now`; the alarms that changed by that."""
        standing = {alarm_id(one.rule, one.subject): one for one in conditions}
        changed = [self._unshelved(alarm) for alarm in self.all() if _is_over(alarm, now)]
        for number in {*standing, *self._alarms}:
            alarm, condition = self._alarms.get(number), standing.get(number)
            if (condition is not None) == (alarm is not None and alarm.is_active):
                self._differs_since.pop(number, None)
                continue
            since = self._differs_since.setdefault(number, now)
            if now - since < (self._delay_off_s if condition is None else self._delay_on_s):
                continue
            del self._differs_since[number]
            changed.append(self._keep(_raised(alarm, condition, now) if condition else _returned(alarm, now)))
        for number in set(self._differs_since) - set(standing) - set(self._alarms):
            del self._differs_since[number]
        return changed

    def acknowledge(self, number: str, who: str, comment: str, now: float) -> Alarm:
        """Say that a person has seen it. Raises `ServiceError` "unknown-alarm"."""
        alarm = self._find(number)
        return self._keep(
            replace(alarm, acknowledged_at=now, acknowledged_by=who, comment=comment, change="acknowledged")
        )

    def shelve(self, number: str, who: str, seconds: float, reason: str, now: float) -> Alarm:
        """Take it off the banner for a time. Raises `ServiceError` "unknown-alarm", "bad-request" without a reason."""
        alarm = self._find(number)
        if not reason.strip() or not 0 < seconds <= MAX_SHELVED_S:
            raise ServiceError(
                "bad-request", f"shelving takes a reason and at most {MAX_SHELVED_S} s; found {reason!r}, {seconds:g} s"
            )
        return self._keep(
            replace(alarm, shelved_until=now + seconds, shelved_by=who, shelved_because=reason, change="shelved")
        )

    def all(self) -> list[Alarm]:
        """All that are not normal: the most urgent first, of those the oldest."""
        return sorted(self._alarms.values(), key=lambda one: (PRIORITIES.index(one.priority), one.raised_at))

    def load(self, now: float) -> dict[str, Any]:
        """How many alarms came of late, against what one operator can handle."""
        hour = sum(at > now - 3600 for at in self._raised)
        ten_minutes = sum(at > now - 600 for at in self._raised)
        judged = "fine" if hour <= FINE_PER_HOUR else "manageable" if hour <= MANAGEABLE_PER_HOUR else "too-many"
        return {
            "last_hour": hour,
            "last_10_min": ten_minutes,
            "judged": "flood" if ten_minutes >= FLOOD_PER_10_MIN else judged,
            "fine_per_hour": FINE_PER_HOUR,
            "manageable_per_hour": MANAGEABLE_PER_HOUR,
            "flood_per_10_min": FLOOD_PER_10_MIN,
        }

    def _find(self, number: str) -> Alarm:
        if number not in self._alarms:
            raise ServiceError("unknown-alarm", f"no alarm {number!r} is in the list; it may be over by now")
        return self._alarms[number]

    def _unshelved(self, alarm: Alarm) -> Alarm:
        return self._keep(replace(alarm, shelved_until=None, shelved_by=None, shelved_because=None, change="unshelved"))

    def _keep(self, alarm: Alarm) -> Alarm:
        if alarm.change == "raised":
            self._raised.append(alarm.raised_at)
        if alarm.state == "normal":
            self._alarms.pop(alarm.id, None)
        else:
            self._alarms[alarm.id] = alarm
        return alarm


def _is_over(alarm: Alarm, now: float) -> bool:
    return alarm.shelved_until is not None and alarm.shelved_until <= now


def _raised(before: Alarm | None, condition: Condition, now: float) -> Alarm:
    words = _TEXTS[condition.rule]
    values = {"subject": condition.subject} | dict(condition.values)
    new = Alarm(
        id=alarm_id(condition.rule, condition.subject),
        rule=condition.rule,
        subject=condition.subject,
        priority=condition.priority,
        text=words["text"].format_map(values),
        cause=words["cause"].format_map(values),
        action=words["action"].format_map(values),
        raised_at=now,
        evidence=condition.event_id,
    )
    if before is None:
        return new
    return replace(
        new,
        times=before.times + 1,
        shelved_until=before.shelved_until,
        shelved_by=before.shelved_by,
        shelved_because=before.shelved_because,
    )


def _returned(alarm: Alarm | None, now: float) -> Alarm:
    assert alarm is not None, "only an alarm that is in the book can return"
    return replace(alarm, is_active=False, returned_at=now, change="returned")
