from __future__ import annotations

import json
import random

from sbdzsl.serving.counters import MAX_GAP, Counters
from sbdzsl.serving.recent import RecentImages
from sbdzsl.serving.trend import MINUTES, Trend


def counted(sequences: list[int | None], camera: str | None = "a") -> Counters:
    counters = Counters(since=0.0)
    for number, sequence in enumerate(sequences, 1):
        counters.take(number, {"verdict": "good", "camera": camera, "sequence": sequence}, False)
    return counters


def test_verdicts_late_ones_and_the_last_event() -> None:
    counters = Counters(since=5.0)
    for number, verdict in enumerate(["good", "good", "defect", "unseen", "error"], 1):
        counters.take(number, {"verdict": verdict, "camera": None, "sequence": None}, verdict == "defect")
    shown = counters.to_json()
    assert {name: shown[name] for name in ("inspected", "good", "defect", "unseen", "error", "late", "missed")} == {
        "inspected": 5, "good": 2, "defect": 1, "unseen": 1, "error": 1, "late": 1, "missed": 0,
    }  # fmt: skip
    assert (shown["since"], shown["through"]) == (5.0, 5)


def test_a_gap_in_the_numbers_of_a_camera_is_missed() -> None:
    assert counted([5, 6, 9, 10]).missed == 2
    assert counted([5, None, 6]).missed == 0


def test_what_comes_late_is_not_missed_any_more() -> None:
    assert counted([1, 4, 3, 2]).missed == 0
    assert counted([1, 4, 3, 3]).missed == 1  # the same number twice fills one gap once


def test_any_order_of_all_numbers_misses_none() -> None:
    numbers = list(range(2, 200))
    random.Random(0).shuffle(numbers)
    assert counted([1, *numbers]).missed == 0


def test_numbers_sent_again_change_nothing() -> None:
    assert counted([10, 11, 12, 11, 13]).missed == 0


def test_a_camera_that_numbers_afresh_has_no_gap() -> None:
    for sequences in ([500, 0, 1], [5, 6 + MAX_GAP + 1], [900_000, 17]):
        found = counted(sequences)  # type: ignore[arg-type]
        assert (found.missed, found.renumbered) == (0, 1)


def test_cameras_are_numbered_apart() -> None:
    counters = Counters(since=0.0)
    for number in range(1, 21):
        counters.take(number, {"verdict": "good", "camera": "ab"[number % 2], "sequence": (number + 1) // 2}, False)
    assert counters.missed == 0


def test_a_snapshot_goes_on_where_it_was() -> None:
    counters = counted([1, 2, 7])
    again = Counters.restored(json.loads(json.dumps(counters.snapshot() | {"event_id": 99})))
    assert again == counters
    again.take(4, {"verdict": "good", "camera": "a", "sequence": 5}, False)
    assert again.missed == 3


def test_trend_counts_by_the_minute_and_shows_empty_ones() -> None:
    trend = Trend()
    for second, verdict in ((0, "good"), (30, "defect"), (130, "good")):
        trend.take(60 * 1000 + second, verdict, 10.0 + second)
    slots = trend.minutes(now=60 * 1002 + 20)
    assert len(slots) == MINUTES
    assert [(slot["good"], slot["defect"]) for slot in slots[-3:]] == [(1, 1), (0, 0), (1, 0)]
    assert [slot["p50_ms"] for slot in slots[-3:]] == [25.0, None, 140.0]
    assert slots[-1]["at"] == 60 * 1002


def test_trend_forgets_old_minutes() -> None:
    trend = Trend()
    for minute in range(3 * MINUTES):
        trend.take(minute * 60, "good", 1.0)
    assert sum(slot["good"] for slot in trend.minutes(now=(3 * MINUTES - 1) * 60)) == MINUTES


def test_recent_images_stay_below_their_size() -> None:
    recent = RecentImages(max_bytes=10)
    recent.put("a", b"aaaa")
    recent.put("b", b"bbbb")
    recent.put("a", b"aaaa")  # young again
    recent.put("c", b"cccc")
    assert [recent.get(name) for name in "abc"] == [b"aaaa", None, b"cccc"]
    recent.put("d", b"d" * 11)
    assert [recent.get(name) for name in "abcd"] == [None] * 4
