import sqlite3
import threading
import time
from pathlib import Path

import pytest
from alert_lab import draw_answer

from sbdzsl.errors import AlertError
from sbdzsl.serving.alerts import AlertSettings, Outbox, make_alert
from sbdzsl.serving.alerts.settings import FileSettings


def settings(folder: Path, **more: float) -> AlertSettings:
    sinks = (
        FileSettings(name="all", path="unused", verdicts=("defect", "unseen", "good")),
        FileSettings(name="unseen", path="unused", verdicts=("unseen",)),
    )
    return AlertSettings(folder=str(folder / "alerts"), sinks=sinks, **more)


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(settings(tmp_path))


def test_an_alert_waits_for_each_sink_that_wants_it(outbox: Outbox) -> None:
    assert outbox.put(make_alert(draw_answer(1)))
    assert outbox.put(make_alert(draw_answer(2, "unseen")))
    assert {name: count for name, (count, _) in outbox.pending().items()} == {"all": 2, "unseen": 1}
    due = outbox.due("unseen")
    assert due is not None
    assert due.alert.document["sequence"] == 2


def test_what_no_sink_wants_is_not_stored(outbox: Outbox) -> None:
    assert not outbox.put(make_alert(draw_answer(1, "error", attributes=[])))
    assert outbox.pending() == {}


def test_the_same_id_twice_is_one_alert_also_when_it_is_delivered(outbox: Outbox) -> None:
    alert = make_alert(draw_answer(1))
    assert [outbox.put(alert), outbox.put(alert)] == [True, False]
    due = outbox.due("all")
    assert due is not None
    outbox.finish(due, "delivered")
    assert not outbox.put(make_alert(draw_answer(1)))
    assert outbox.due("all") is None


def test_the_oldest_comes_first_and_a_postponed_one_later(outbox: Outbox) -> None:
    for number in range(3):
        outbox.put(make_alert(draw_answer(number)))
    first = outbox.due("all")
    assert first is not None
    outbox.postpone(first, time.time() + 60, "broken")
    second = outbox.due("all")
    assert second is not None
    assert [first.alert.document["sequence"], second.alert.document["sequence"]] == [0, 1]
    outbox.wake("all")
    again = outbox.due("all")
    assert again is not None
    assert (again.position, again.attempts) == (first.position, 1)


def test_one_that_failed_often_gives_way_to_the_others(outbox: Outbox) -> None:
    for number in range(2):
        outbox.put(make_alert(draw_answer(number)))
    for _ in range(3):
        first = outbox.due("all")
        assert first is not None
        assert first.alert.document["sequence"] == 0
        outbox.postpone(first, 0.0, "indigestible")
    other = outbox.due("all")
    assert other is not None
    assert other.alert.document["sequence"] == 1
    outbox.finish(other, "delivered")
    last = outbox.due("all")
    assert last is not None
    assert last.attempts == 3


def test_what_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    first = Outbox(settings(tmp_path))
    alert = make_alert(draw_answer(1), "http://inspect")
    first.put(alert)
    first.close()
    second = Outbox(settings(tmp_path))
    due = second.due("all")
    assert due is not None
    assert due.alert == alert
    assert not second.put(alert)


def test_many_threads_put_and_none_is_lost(outbox: Outbox) -> None:
    def put(start: int) -> None:
        for number in range(start, start + 25):
            assert outbox.put(make_alert(draw_answer(number)))

    threads = [threading.Thread(target=put, args=(100 * thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outbox.pending()["all"][0] == 200


def test_those_that_wait_together_share_one_transaction(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, gate, run = [], threading.Event(), outbox._run

    def slow_run(group: list, connection: sqlite3.Connection) -> None:
        sizes.append(len(group))
        gate.wait(10)
        run(group, connection)

    monkeypatch.setattr(outbox, "_run", slow_run)
    threads = [threading.Thread(target=outbox.put, args=(make_alert(draw_answer(n)),)) for n in range(10)]
    threads[0].start()
    while not sizes:
        time.sleep(0.01)
    for thread in threads[1:]:
        thread.start()
    while outbox._queue.qsize() < 9:
        time.sleep(0.01)
    gate.set()
    for thread in threads:
        thread.join()
    assert sizes == [1, 9]
    assert outbox.pending()["all"][0] == 10


def test_two_processes_may_put_but_one_delivers(tmp_path: Path) -> None:
    one, two = Outbox(settings(tmp_path)), Outbox(settings(tmp_path))
    one.put(make_alert(draw_answer(1)))
    assert two.pending()["all"][0] == 1
    claim = one.claim()
    assert claim is not None
    assert two.claim() is None
    claim.close()
    taken = two.claim()
    assert taken is not None
    taken.close()


def test_finished_alerts_are_forgotten_after_a_while_and_waiting_ones_never(tmp_path: Path) -> None:
    outbox = Outbox(settings(tmp_path, keep_days=1e-9))
    outbox.put(make_alert(draw_answer(1)))
    outbox.put(make_alert(draw_answer(2, "unseen")))
    for _ in range(2):
        due = outbox.due("all")
        assert due is not None
        outbox.finish(due, "delivered")
    time.sleep(0.01)
    assert outbox.prune() == 1
    assert {name: count for name, (count, _) in outbox.pending().items()} == {"unseen": 1}
    due = outbox.due("unseen")
    assert due is not None
    assert due.alert.document["sequence"] == 2


def test_more_than_one_step_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sbdzsl.serving.alerts.outbox._PRUNED_AT_ONCE", 2)
    outbox = Outbox(settings(tmp_path, keep_days=1e-9))
    for number in range(5):
        outbox.put(make_alert(draw_answer(number)))
        due = outbox.due("all")
        assert due is not None
        outbox.finish(due, "delivered")
    time.sleep(0.01)
    assert outbox.prune() == 5


def test_the_dead_can_be_revived(outbox: Outbox) -> None:
    outbox.put(make_alert(draw_answer(1)))
    due = outbox.due("all")
    assert due is not None
    outbox.postpone(due, 0.0, "no")
    outbox.finish(due, "dead", "no")
    assert outbox.dead() == {"all": 1}
    assert outbox.due("all") is None
    assert outbox.revive("all") == 1
    again = outbox.due("all")
    assert again is not None
    assert again.attempts == 0


def test_the_manuals_way_to_revive_them_works(
    tmp_path: Path, outbox: Outbox, capsys: pytest.CaptureFixture[str]
) -> None:
    outbox.put(make_alert(draw_answer(1)))
    due = outbox.due("all")
    assert due is not None
    outbox.finish(due, "dead", "no")
    manual = (Path(__file__).parents[3] / "docs" / "alerts.md").read_text(encoding="utf-8")
    program = manual.split("```python\n")[1].split("```")[0]
    exec(program.replace("/var/lib/sbdzsl/alerts", str(tmp_path / "alerts")).replace('"mes"', '"all"'))
    assert capsys.readouterr().out == "1 alerts wait again\n"
    assert outbox.due("all") is not None


def test_the_last_that_were_delivered_are_remembered_in_order(outbox: Outbox) -> None:
    for number in range(4):
        outbox.put(make_alert(draw_answer(number)))
    for _ in range(3):
        due = outbox.due("all")
        assert due is not None
        outbox.finish(due, "delivered")
    assert [alert.document["sequence"] for alert in outbox.latest_delivered("all", 2)] == [1, 2]


def test_a_disk_that_is_full_is_an_error_to_the_one_who_puts(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox.put(make_alert(draw_answer(0)))
    pages = outbox._commit(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
    outbox._commit(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone())
    with pytest.raises(AlertError, match="full") as error:
        [outbox.put(make_alert(draw_answer(number))) for number in range(1, 100)]
    assert error.value.code == "outbox-unusable"
    outbox._commit(lambda connection: connection.execute("PRAGMA max_page_count = 1000000").fetchone())
    assert outbox.put(make_alert(draw_answer(100)))


def test_an_outbox_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "alerts").mkdir()
    (tmp_path / "alerts" / "outbox.sqlite3").write_bytes(b"no database" * 1000)
    with pytest.raises(AlertError, match="not a database") as error:
        Outbox(settings(tmp_path))
    assert error.value.code == "outbox-unusable"


def test_an_outbox_of_another_release_is_left_alone(tmp_path: Path) -> None:
    Outbox(settings(tmp_path)).close()
    with sqlite3.connect(tmp_path / "alerts" / "outbox.sqlite3") as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(AlertError, match="found version 9, expected 1"):
        Outbox(settings(tmp_path))


def test_a_closed_outbox_takes_nothing(outbox: Outbox) -> None:
    outbox.close()
    outbox.close()
    with pytest.raises(AlertError, match="closed"):
        outbox.put(make_alert(draw_answer(1)))
