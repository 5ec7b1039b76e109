from __future__ import annotations

from typing import Any

import pytest

from sbdzsl.serving.journal import Event
from sbdzsl.serving.rules import AlarmSettings, Window


def event(number: int, verdict: str = "good", camera: str | None = "line7", ms: float = 10.0, at: float = 0.0) -> Event:
    document: dict[str, Any] = {"verdict": verdict, "camera": camera, "queue_ms": ms}
    return Event(
        number, at or float(number), "verdict", document | dict.fromkeys(("decode_ms", "route_ms", "detect_ms"))
    )


def rules_of(verdicts: list[str], now: float | None = None, **settings: Any) -> dict[str, str]:
    """Rule and subject of what is wrong after one answer a second, each with its verdict."""
    window = Window(AlarmSettings(**settings))
    for number, verdict in enumerate(verdicts, 1):
        window.take(event(number, verdict))
    found = window.conditions({}, float(len(verdicts)) if now is None else now)
    return {one.rule: one.subject for one in found}


def test_defects_alone_are_results_and_no_alarm() -> None:
    assert (
        rules_of(["good", "defect", "good", "unseen", "error", "good"] * 5, max_error_rate=0.2, max_reject_rate=0.2)
        == {}
    )


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (["defect"] * 4, {}),
        (["defect"] * 5, {"rejects-in-a-row": "line7"}),
        (["defect", "unseen", "defect", "unseen", "defect"], {"rejects-in-a-row": "line7"}),
        (["unseen"] * 5, {"unseen-in-a-row": "line7"}),  # and not a row of rejects beside it
        (["defect"] * 4 + ["error", "defect"], {}),
        (["defect"] * 5 + ["good"], {}),
    ],
)
def test_rows_of_one_camera(tail: list[str], expected: dict[str, str]) -> None:
    assert rules_of(["good", *tail]) == expected


def test_rows_are_counted_for_each_camera() -> None:
    window = Window(AlarmSettings(in_a_row=3))
    for number in range(1, 13):
        window.take(event(number, "defect" if number % 2 else "good", "a" if number % 2 else "b"))
    assert [(one.rule, one.subject) for one in window.conditions({}, 13)] == [("rejects-in-a-row", "a")]


def test_a_camera_that_sent_is_missed_when_it_falls_silent() -> None:
    sent = ["good"] * 3
    assert rules_of(sent, now=3 + 120) == {}
    assert rules_of(sent, now=3 + 121) == {"no-results": "line7"}
    assert rules_of(sent, now=3 + 8 * 3600 + 1) == {}  # forgotten: the line has been off since yesterday
    assert rules_of(["good"] * 2, now=3 + 121) == {}  # two images are somebody who tries


def test_nobody_misses_images_without_a_camera() -> None:
    window = Window(AlarmSettings())
    for number in range(1, 6):
        window.take(event(number, camera=None))
    assert window.conditions({}, 1000) == []


def test_reject_rate_out_of_band() -> None:
    many = ["good", "good", "defect"] * 20
    assert rules_of(many) == {"reject-rate": ""}
    assert rules_of(many, max_reject_rate=0.4) == {}
    assert rules_of(many[:45]) == {}  # too few to speak of a rate
    assert rules_of(["good"] * 60, min_reject_rate=0.01) == {"reject-rate": ""}
    assert rules_of(many + ["good"] * 300) == {}  # the window has moved on


def test_error_rate() -> None:
    assert rules_of(["good"] * 57 + ["error"] * 3) == {}
    assert rules_of(["good"] * 56 + ["error"] * 4) == {"error-rate": ""}


def test_latency_beyond_the_budget() -> None:
    window = Window(AlarmSettings(budget_ms=50))
    for number in range(1, 101):
        window.take(event(number, ms=60.0 if number == 7 else 10.0))
    assert window.p99_ms() == 10.0
    assert window.conditions({}, 101) == []  # one in a hundred may be slow
    window.take(event(101, ms=60.0))
    window.take(event(102, ms=60.0))
    assert [one.rule for one in window.conditions({}, 103)] == ["latency"]


def test_parts_of_the_service_that_fail() -> None:
    found = Window(AlarmSettings()).conditions({"journal": "disk full", "webhook erp": "refused"}, 1)
    assert {one.subject: one.priority for one in found} == {"journal": "critical", "webhook erp": "high"}


def test_rules_can_be_out_of_service() -> None:
    assert rules_of(["unseen"] * 9, off=("unseen-in-a-row",)) == {}


def test_an_alarm_points_at_the_answer_that_shows_it() -> None:
    window = Window(AlarmSettings())
    for number, verdict in enumerate(["good"] * 56 + ["error"] * 4 + ["good"], 1):
        window.take(event(number, verdict))
    (found,) = window.conditions({}, 62)
    assert found.event_id == 60
