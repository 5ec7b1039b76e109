from __future__ import annotations

import json

import pytest

from sbdzsl.errors import ServiceError
from sbdzsl.serving.alarms import Alarm, AlarmBook, Condition, alarm_id

SILENT = Condition("no-results", "line7", "critical", {"seconds": 130}, event_id=9)
SLOW = Condition("latency", "", "medium", {"p99_ms": 1200, "budget_ms": 1000})
NUMBER = alarm_id("no-results", "line7")


def raised(book: AlarmBook, now: float = 100.0) -> Alarm:
    (alarm,) = book.update([SILENT], now)
    return alarm


def only(book: AlarmBook) -> Alarm:
    (alarm,) = book.all()
    return alarm


def test_an_alarm_says_what_is_wrong_and_what_to_do() -> None:
    alarm = raised(AlarmBook(0, 0))
    assert (alarm.state, alarm.text) == ("unacknowledged", "No results from camera line7 for 130 s")
    assert alarm.action.startswith("Does the line run?")
    assert (alarm.evidence, alarm.raised_at, alarm.id) == (9, 100.0, NUMBER)


def test_a_condition_has_to_stand_for_the_delay() -> None:
    book = AlarmBook(delay_on_s=5, delay_off_s=10)
    assert book.update([SILENT], 100) == []
    assert book.update([], 103) == []  # gone in between, so the delay begins again
    assert book.update([SILENT], 104) == []
    assert book.update([SILENT], 108.9) == []
    assert [one.change for one in book.update([SILENT], 109)] == ["raised"]


def test_it_returns_only_after_the_delay_and_stays_until_somebody_saw_it() -> None:
    book = AlarmBook(delay_on_s=0, delay_off_s=10)
    raised(book)
    assert book.update([], 110) == []
    assert book.update([SILENT], 115) == []  # came back within the delay: the same alarm
    assert book.update([], 116) == []
    assert [one.change for one in book.update([], 126)] == ["returned"]
    assert only(book).state == "returned"
    gone = book.acknowledge(NUMBER, "ada", "cable was loose", 130)
    assert (gone.state, gone.acknowledged_by, gone.comment) == ("normal", "ada", "cable was loose")
    assert book.all() == []


def test_an_acknowledged_alarm_is_over_when_its_condition_is() -> None:
    book = AlarmBook(0, 0)
    raised(book)
    assert book.acknowledge(NUMBER, "ada", "", 101).state == "acknowledged"
    (gone,) = book.update([], 102)
    assert (gone.state, gone.change) == ("normal", "returned")
    assert book.all() == []


def test_one_that_comes_again_has_to_be_acknowledged_again() -> None:
    book = AlarmBook(0, 0)
    raised(book)
    book.update([], 101)
    (again,) = book.update([SILENT], 102)
    assert (again.times, again.state, again.raised_at) == (2, "unacknowledged", 102)


def test_shelving_takes_it_off_until_its_time() -> None:
    book = AlarmBook(0, 0)
    raised(book)
    shelved = book.shelve(NUMBER, "ada", 60, "line stands for lunch", 110)
    assert (shelved.state, shelved.shelved_until, shelved.shelved_because) == ("shelved", 170, "line stands for lunch")
    assert book.update([SILENT], 169) == []
    (back,) = book.update([SILENT], 170)
    assert (back.state, back.change) == ("unacknowledged", "unshelved")


def test_a_shelved_alarm_that_comes_again_stays_shelved() -> None:
    book = AlarmBook(0, 0)
    raised(book)
    book.shelve(NUMBER, "ada", 600, "lamp is ordered", 110)
    book.update([], 120)
    assert only(book).state == "shelved"
    book.update([SILENT], 130)
    assert (only(book).state, only(book).times) == ("shelved", 2)


@pytest.mark.parametrize(("seconds", "reason"), [(60, " "), (0, "lunch"), (8 * 3600 + 1, "lunch")])
def test_shelving_needs_a_reason_and_an_end(seconds: float, reason: str) -> None:
    book = AlarmBook(0, 0)
    raised(book)
    with pytest.raises(ServiceError, match="shelving takes a reason") as caught:
        book.shelve(NUMBER, "ada", seconds, reason, 110)
    assert caught.value.code == "bad-request"
    assert only(book).state == "unacknowledged"


def test_an_alarm_that_is_not_there_cannot_be_acknowledged() -> None:
    with pytest.raises(ServiceError) as caught:
        AlarmBook(0, 0).acknowledge("latency-0", "ada", "", 1)
    assert (caught.value.code, caught.value.http_status) == ("unknown-alarm", 404)


def test_the_most_urgent_come_first() -> None:
    book = AlarmBook(0, 0)
    book.update([SLOW], 100)
    book.update([SLOW, SILENT], 200)
    assert [alarm.rule for alarm in book.all()] == ["no-results", "latency"]


def test_a_restart_goes_on_from_the_documents_of_the_changes() -> None:
    book, documents = AlarmBook(0, 0), []
    for alarm in [*book.update([SILENT, SLOW], 100), book.acknowledge(NUMBER, "ada", "look", 101)]:
        documents.append(json.loads(json.dumps(alarm.to_json())))
    again = AlarmBook(0, 0)
    again.restore(documents)
    assert again.all() == book.all()
    assert again.load(102) == book.load(102)
    assert again.update([SILENT, SLOW], 103) == []  # what stood before is nothing new


def test_a_restart_forgets_what_was_over() -> None:
    book = AlarmBook(0, 0)
    changes = [*book.update([SILENT], 100), book.acknowledge(NUMBER, "ada", "", 101), *book.update([], 102)]
    again = AlarmBook(0, 0)
    again.restore([alarm.to_json() for alarm in changes])
    assert again.all() == []


@pytest.mark.parametrize(
    ("times", "judged"),
    [(range(0, 3600, 600), "fine"), (range(0, 3600, 300), "manageable"), (range(0, 3600, 200), "too-many"),
     (range(3000, 3600, 60), "flood")],
)  # fmt: skip
def test_alarms_are_counted_against_what_one_operator_can_handle(times: range, judged: str) -> None:
    book = AlarmBook(0, 0)
    for number, at in enumerate(times):
        book.update([Condition("no-results", f"camera {number}", "critical", {"seconds": 1})], at)
        book.update([], at)
    assert book.load(3599)["judged"] == judged


def test_hostile_names_of_cameras_give_safe_ids_and_plain_texts() -> None:
    hostile = "../{seconds}<script>"
    book = AlarmBook(0, 0)
    book.update([Condition("no-results", hostile, "critical", {"seconds": 3})], 1)
    assert only(book).id == alarm_id("no-results", hostile)
    assert only(book).id.replace("-", "").isalnum()
    assert hostile in only(book).text
