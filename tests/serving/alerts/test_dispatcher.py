"""The dispatcher with sinks whose behaviour is scripted; real receivers are in the tests of the sinks."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alert_lab import dispatching, draw_answer, until

from sbdzsl.errors import AlertError
from sbdzsl.serving.alerts import Alert, AlertSettings, Dispatcher, Outbox, make_alert
from sbdzsl.serving.alerts.dispatcher import wait_s
from sbdzsl.serving.alerts.files import append_line
from sbdzsl.serving.alerts.settings import FileSettings, RetrySettings

QUICK = RetrySettings(first_wait_s=0.01, longest_wait_s=0.05, give_up_attempts=4)
GONE = AlertError("sink-gone", "gone")
AWAY = AlertError("sink-unreachable", "away")
REFUSED = AlertError("alert-refused", "no")


class Scripted:
    """A sink whose `answer` to each alert is what a test says: True, False, or an exception to raise."""

    def __init__(self, answer: Callable[[Alert], Any]) -> None:
        self.answer = answer
        self.attempts: list[int] = []
        self.taken: list[int] = []
        self.receipt: Callable[[str], bool] = lambda _: False
        self.closed = False
        #: So many calls of `open` fail.
        self.unopened = 0

    def open(self) -> None:
        if self.unopened > 0:
            self.unopened -= 1
            raise AWAY

    def deliver(self, alert: Alert) -> bool:
        self.attempts.append(alert.document["sequence"])
        answer = self.answer(alert)
        if isinstance(answer, Exception):
            raise answer
        self.taken.append(alert.document["sequence"])
        return bool(answer)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Scripted]]:
    """Replaces the sinks of some names."""

    def replace(**answers: Callable[[Alert], Any]) -> dict[str, Scripted]:
        sinks = {name: Scripted(answer) for name, answer in answers.items()}

        def make(settings: Any, _history: Any, receipt: Callable[[str], bool]) -> Scripted:
            sinks[settings.label].receipt = receipt
            return sinks[settings.label]

        monkeypatch.setattr("sbdzsl.serving.alerts.dispatcher.make_sink", make)
        return sinks

    return replace


def settings(folder: Path, *names: str, retry: RetrySettings = QUICK) -> AlertSettings:
    sinks = tuple(FileSettings(name=name, path="unused", retry=retry) for name in names)
    return AlertSettings(folder=str(folder / "alerts"), sinks=sinks)


def put(outbox: Outbox, *numbers: int) -> None:
    for number in numbers:
        outbox.put(make_alert(draw_answer(number)))


def letters(outbox: Outbox, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (outbox.folder / f"dead-letters-{name}.jsonl").read_text().splitlines()]


def test_alerts_are_delivered_in_order_and_counted(tmp_path: Path, scripted: Any) -> None:
    sink = scripted(a=lambda _: True)["a"]
    with dispatching(settings(tmp_path, "a")) as (outbox, dispatcher):
        put(outbox, *range(20))
        until(lambda: dispatcher.statistics()[0].delivered == 20)
        (found,) = dispatcher.statistics()
    assert sink.taken == list(range(20))
    assert (found.pending, found.oldest_pending_s, found.failed, found.state) == (0, None, 0, "delivering")
    assert sink.closed


def test_a_dead_sink_holds_up_neither_putting_nor_the_other_sinks(tmp_path: Path, scripted: Any) -> None:
    stuck = threading.Event()
    sinks = scripted(dead=lambda _: stuck.wait(30), alive=lambda _: True)
    with dispatching(settings(tmp_path, "dead", "alive")) as (outbox, dispatcher):
        started = time.monotonic()
        put(outbox, *range(50))
        assert time.monotonic() - started < 5
        until(lambda: len(sinks["alive"].taken) == 50)
        dead, alive = dispatcher.statistics()
        assert (dead.pending, alive.delivered) == (50, 50)
        assert dead.oldest_pending_s is not None
        stuck.set()
        until(lambda: len(sinks["dead"].taken) == 50)


def test_a_sink_that_was_away_gets_all_of_it_when_it_is_back(tmp_path: Path, scripted: Any) -> None:
    away = threading.Event()
    sink = scripted(a=lambda _: True if away.is_set() else AWAY)["a"]
    with dispatching(settings(tmp_path, "a")) as (outbox, dispatcher):
        put(outbox, *range(30))
        until(lambda: dispatcher.statistics()[0].failed >= 8)
        found = dispatcher.statistics()[0]
        assert (found.state, found.last_error, found.pending) == ("failing", "away", 30)
        away.set()
        until(lambda: dispatcher.statistics()[0].delivered == 30)
        assert dispatcher.statistics()[0].state == "delivering"
    assert sorted(sink.taken) == list(range(30))
    assert not (tmp_path / "alerts" / "dead-letters-a.jsonl").exists()


def test_an_alert_that_always_fails_does_not_hold_up_the_others(tmp_path: Path, scripted: Any) -> None:
    sink = scripted(a=lambda alert: AWAY if alert.document["sequence"] == 0 else True)["a"]
    with dispatching(settings(tmp_path, "a")) as (outbox, _):
        put(outbox, *range(10))
        until(lambda: len(sink.taken) == 9)
        assert outbox.pending()["a"][0] == 1


def test_what_is_refused_time_and_again_goes_to_the_dead_letters(tmp_path: Path, scripted: Any) -> None:
    sink = scripted(a=lambda alert: REFUSED if alert.document["sequence"] == 1 else True)["a"]
    with dispatching(settings(tmp_path, "a")) as (outbox, dispatcher):
        put(outbox, 0, 1, 2)
        until(lambda: dispatcher.statistics()[0].given_up == 1)
        found = dispatcher.statistics()[0]
        assert (found.delivered, found.failed, found.dead, found.pending) == (2, 4, 1, 0)
        (letter,) = letters(outbox, "a")
        assert letter["alert"] == json.loads(make_alert(draw_answer(1)).to_json()) | {
            name: letter["alert"][name] for name in ("timestamp", "inspected_at")
        }
        assert (letter["sink"], letter["error"], letter["attempts"]) == ("a", "no", 4)
    assert sink.attempts.count(1) == 4


def test_an_outage_longer_than_the_stated_time_ends_in_dead_letters(tmp_path: Path, scripted: Any) -> None:
    scripted(a=lambda _: AWAY)
    retry = QUICK.model_copy(update={"give_up_after_h": 0.2 / 3600})
    with dispatching(settings(tmp_path, "a", retry=retry)) as (outbox, dispatcher):
        put(outbox, *range(5))
        until(lambda: dispatcher.statistics()[0].given_up == 5)
        assert {letter["alert"]["sequence"] for letter in letters(outbox, "a")} == set(range(5))
        assert dispatcher.statistics()[0].pending == 0


def test_a_sink_that_never_opens_is_an_outage_too(tmp_path: Path, scripted: Any) -> None:
    sink = scripted(a=lambda _: True)["a"]
    sink.unopened = 10**6
    retry = QUICK.model_copy(update={"give_up_after_h": 0.2 / 3600})
    with dispatching(settings(tmp_path, "a", retry=retry)) as (outbox, dispatcher):
        put(outbox, *range(3))
        until(lambda: dispatcher.statistics()[0].given_up == 3)
        sink.unopened = 0
        put(outbox, 3)
        until(lambda: dispatcher.statistics()[0].delivered == 1)
    assert sink.taken == [3]


def test_a_sink_opens_before_there_is_anything_to_deliver(tmp_path: Path, scripted: Any) -> None:
    sink = scripted(a=lambda _: True)["a"]
    sink.unopened = 3
    with dispatching(settings(tmp_path, "a")) as (_, dispatcher):
        until(lambda: sink.unopened == 0)
        until(lambda: dispatcher.statistics()[0].failed == 3)
        until(lambda: dispatcher.statistics()[0].state == "delivering")


def test_old_alerts_are_tried_often_enough_before_they_are_given_up(tmp_path: Path, scripted: Any) -> None:
    """After a week without power the receiver may need longer to come up than we do."""
    scripted(a=lambda _: True)
    retry = QUICK.model_copy(update={"give_up_after_h": 1e-9})
    outbox = Outbox(settings(tmp_path, "a", retry=retry))
    put(outbox, 1)
    outbox.close()
    sink = scripted(a=lambda _: AWAY if len(sink.attempts) < 4 else True)["a"]
    with dispatching(settings(tmp_path, "a", retry=retry)) as (_, dispatcher):
        until(lambda: dispatcher.statistics()[0].delivered == 1)


def test_the_dead_are_delivered_after_a_revival(tmp_path: Path, scripted: Any) -> None:
    sink = scripted(a=lambda _: REFUSED)["a"]
    with dispatching(settings(tmp_path, "a")) as (outbox, dispatcher):
        put(outbox, 1)
        until(lambda: dispatcher.statistics()[0].dead == 1)
        sink.answer = lambda _: True
        assert outbox.revive("a") == 1
        until(lambda: dispatcher.statistics()[0].delivered == 1)
        assert dispatcher.statistics()[0].dead == 0


def test_a_receiver_that_is_gone_is_left_alone_and_its_alerts_are_kept(tmp_path: Path, scripted: Any) -> None:
    sink = scripted(a=lambda _: GONE)["a"]
    with dispatching(settings(tmp_path, "a")) as (outbox, dispatcher):
        put(outbox, 0, 1, 2)
        until(lambda: dispatcher.statistics()[0].state == "disabled")
        put(outbox, 3)
        time.sleep(0.2)
        assert dispatcher.statistics()[0].pending == 4
    assert len(sink.attempts) == 1
    sink.answer = lambda _: True
    with dispatching(settings(tmp_path, "a")) as (_, dispatcher):
        until(lambda: dispatcher.statistics()[0].delivered == 4)


def test_a_gone_receivers_old_alerts_become_dead_letters(tmp_path: Path, scripted: Any) -> None:
    scripted(a=lambda _: GONE)
    retry = QUICK.model_copy(update={"give_up_after_h": 1e-9})
    with dispatching(settings(tmp_path, "a", retry=retry)) as (outbox, dispatcher):
        put(outbox, 0, 1)
        until(lambda: dispatcher.statistics()[0].given_up == 2)
        assert len(letters(outbox, "a")) == 2


def test_a_sink_that_asks_for_time_is_given_it(tmp_path: Path, scripted: Any) -> None:
    times: list[float] = []

    def answer(_: Alert) -> Any:
        times.append(time.monotonic())
        return AlertError("sink-unreachable", "busy", retry_after_s=0.6) if len(times) == 1 else True

    scripted(a=answer)
    with dispatching(settings(tmp_path, "a")) as (outbox, dispatcher):
        put(outbox, 1)
        until(lambda: dispatcher.statistics()[0].delivered == 1)
    assert 0.6 <= times[1] - times[0] < 2


def test_a_fault_of_a_sinks_library_is_an_outage_and_no_end(tmp_path: Path, scripted: Any) -> None:
    faults: list[Any] = [ZeroDivisionError("in a library"), KeyError("another"), True]
    scripted(a=lambda _: faults.pop(0))
    with dispatching(settings(tmp_path, "a")) as (outbox, dispatcher):
        put(outbox, 1)
        until(lambda: dispatcher.statistics()[0].delivered == 1)
        assert dispatcher.statistics()[0].failed == 2
        assert dispatcher.statistics()[0].last_error == "KeyError: 'another'"


def test_what_waits_for_a_receipt_is_offered_once_and_delivered_by_it(tmp_path: Path, scripted: Any) -> None:
    sink = scripted(a=lambda _: False)["a"]
    with dispatching(settings(tmp_path, "a")) as (outbox, dispatcher):
        alert = make_alert(draw_answer(1))
        outbox.put(alert)
        until(lambda: sink.taken)
        time.sleep(0.7)
        assert (dispatcher.statistics()[0].pending, len(sink.attempts)) == (1, 1)
        assert sink.receipt(alert.id)
        assert not sink.receipt(alert.id)
        assert (dispatcher.statistics()[0].pending, dispatcher.statistics()[0].delivered) == (0, 1)


def test_what_waits_for_a_receipt_is_offered_again_after_a_restart(tmp_path: Path, scripted: Any) -> None:
    sink = scripted(a=lambda _: False)["a"]
    for turn in range(2):
        with dispatching(settings(tmp_path, "a")) as (outbox, _):
            put(outbox, 1)
            until(lambda turn=turn: len(sink.attempts) > turn)
    assert sink.attempts == [1, 1]


def test_what_is_never_acknowledged_goes_to_the_dead_letters(tmp_path: Path, scripted: Any) -> None:
    scripted(a=lambda _: False)
    retry = QUICK.model_copy(update={"give_up_after_h": 0.5 / 3600})
    with dispatching(settings(tmp_path, "a", retry=retry)) as (outbox, dispatcher):
        put(outbox, 1)
        until(lambda: dispatcher.statistics()[0].given_up == 1)
        assert "never acknowledged" in letters(outbox, "a")[0]["error"]


def test_closing_leaves_the_rest_for_the_next_start(tmp_path: Path, scripted: Any) -> None:
    sink = scripted(a=lambda _: AWAY)["a"]
    slow = RetrySettings(first_wait_s=60)
    with dispatching(settings(tmp_path, "a", retry=slow)) as (outbox, _):
        put(outbox, *range(5))
        until(lambda: sink.attempts)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    sink.answer = lambda _: True
    with dispatching(settings(tmp_path, "a", retry=slow)) as (_, dispatcher):
        until(lambda: dispatcher.statistics()[0].delivered == 5)
    assert sink.taken == list(range(5))


def test_closing_does_not_wait_for_ever_for_a_stuck_sink(tmp_path: Path, scripted: Any) -> None:
    stuck = threading.Event()
    sink = scripted(a=lambda _: stuck.wait(30))["a"]
    outbox = Outbox(settings(tmp_path, "a"))
    dispatcher = Dispatcher(outbox, settings(tmp_path, "a")).start()
    put(outbox, 1)
    until(lambda: sink.attempts)
    assert not dispatcher.close(timeout_s=0.2)
    stuck.set()
    assert dispatcher.close()
    outbox.close()


def test_of_two_dispatchers_one_delivers_and_the_other_takes_over(tmp_path: Path, scripted: Any) -> None:
    sink = scripted(a=lambda _: True)["a"]
    with dispatching(settings(tmp_path, "a")) as (_, second_best):
        until(lambda: second_best.statistics()[0].state == "delivering")
        with dispatching(settings(tmp_path, "a")) as (other, standby):
            put(other, 1)
            until(lambda: second_best.statistics()[0].delivered == 1)
            assert standby.statistics()[0].state == "standby"
            second_best.close()
            put(other, 2)
            until(lambda: standby.statistics()[0].delivered == 1)
    assert sink.taken == [1, 2]


def test_alerts_for_a_sink_that_was_taken_out_are_shown(tmp_path: Path, scripted: Any) -> None:
    scripted(a=lambda _: True, b=lambda _: True)
    outbox = Outbox(settings(tmp_path, "a", "b"))
    put(outbox, 1)
    outbox.close()
    with dispatching(settings(tmp_path, "a")) as (_, dispatcher):
        until(lambda: dispatcher.statistics()[0].delivered == 1)
        orphan = dispatcher.statistics()[1]
        assert (orphan.name, orphan.state, orphan.pending) == ("b", "unknown", 1)


def test_waits_double_up_to_the_longest_and_vary() -> None:
    retry = RetrySettings(first_wait_s=1, longest_wait_s=60)
    for failures, most in [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (1000, 60)]:
        waits = [wait_s(retry, failures) for _ in range(200)]
        assert most / 2 <= min(waits) < max(waits) <= most


def test_a_half_written_line_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lines.jsonl"
    append_line(path, b'{"n": 1}')
    with path.open("ab") as file:
        file.write(b'{"n": 2')
    append_line(path, b'{"n": 3}')
    assert path.read_bytes() == b'{"n": 1}\n{"n": 2\n{"n": 3}\n'


def test_a_file_that_cannot_be_written_is_an_outage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AlertError, match="cannot be appended to") as error:
        append_line(tmp_path / "file" / "lines.jsonl", b"{}")
    assert error.value.code == "sink-unreachable"
