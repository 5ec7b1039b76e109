"""A watch on a real folder, against a real HTTP service that is made to fail as services do."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Response

from sbdzsl.client import InspectionClient
from sbdzsl.config import parse
from sbdzsl.errors import ConfigError, LakeError, ServiceError
from sbdzsl.watch import Inbox, VerdictFile, Watch, WatchSettings
from sbdzsl.watch import loop as loops
from tests.inspection_service import BAD, DEFECT, GOOD, UNSEEN, Service, problem, running


@pytest.fixture
def service() -> Iterator[Service]:
    with running() as service:
        yield service


def drop(folder: Path, **contents: bytes) -> None:
    for name, content in contents.items():
        (folder / f"{name}.png").write_bytes(content)
        time.sleep(0.01)  # a clock tick of the file system apart


def watch(
    folder: Path, service: Service, stop: threading.Event | None = None, timeout_s: float = 5, **settings: Any
) -> tuple[Counter[str], list[str]]:
    said: list[str] = []
    quick = WatchSettings.model_validate({"settle_s": 0, "interval_s": 0.05, "parallel": 1} | settings)
    with InspectionClient(service.endpoint, timeout_s=timeout_s) as client:
        return Watch(folder, client, settings=quick, say=said.append).run(
            stop or threading.Event(), once=stop is None
        ), said


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]


def files(folder: Path) -> set[str]:
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    return {name for name in found if not name.rsplit("/", 1)[-1].startswith(".")} - {"verdicts.jsonl"}


def test_each_image_gets_its_line_and_goes_where_it_belongs(tmp_path: Path, service: Service) -> None:
    drop(tmp_path, a=GOOD, b=DEFECT, c=UNSEEN, d=BAD)
    verdicts, said = watch(tmp_path, service, camera="left", surface="steel", policy="max-f1", bit_depth=12)
    assert verdicts == {"good": 1, "defect": 1, "unseen": 1, "error": 1}
    rows = lines(tmp_path)
    assert [(row["file"], row["verdict"], row["result_evaluation"]) for row in rows] == [
        ("a.png", "good", 1),
        ("b.png", "defect", 2),
        ("c.png", "unseen", 3),
        ("d.png", "error", 0),
    ]
    assert files(tmp_path) == {"done/a.png", "done/b.png", "done/c.png", "failed/d.png"}
    assert [line.split()[:2] for line in said] == [
        ["a.png:", "GOOD"],
        ["b.png:", "DEFECT"],
        ["c.png:", "UNSEEN"],
        ["d.png:", "ERROR"],
    ]
    params = service.seen[1].params
    assert params.pop("captured_at") == rows[1]["captured_at"]
    assert params == {"camera": "left", "surface": "steel", "policy": "max-f1", "bit_depth": "12", "name": "b.png"}


def test_ids_are_read_from_names(tmp_path: Path, service: Service) -> None:
    drop(tmp_path, A7_0012=GOOD, other=GOOD)
    _, said = watch(tmp_path, service, names=r"(?P<part_id>[^_]+)_(?P<sequence>\d+)", camera="c")
    assert [(row["part_id"], row["sequence"], row["camera"]) for row in lines(tmp_path)] == [
        ("A7", 12, "c"),
        (None, None, "c"),
    ]
    assert [line for line in said if "no ids" in line] == [
        r"other.png: its name does not match (?P<part_id>[^_]+)_(?P<sequence>\d+), so it has no ids"
    ]


@pytest.mark.parametrize("names", ["(", "(?P<lot>.)"])
def test_patterns_of_names_that_cannot_be_used(names: str) -> None:
    with pytest.raises(ConfigError, match="names"):
        parse(WatchSettings, {"names": names}, "watch")


def test_an_outage_is_waited_for_and_said_once(tmp_path: Path, service: Service) -> None:
    drop(tmp_path, a=GOOD, b=GOOD)
    service.script += [problem(503, "not-ready") for _ in range(12)]
    verdicts, said = watch(tmp_path, service, timeout_s=0.4)
    assert verdicts == {"good": 2}
    assert sum(line.startswith("waiting for the service (not-ready)") for line in said) == 1
    assert said.count("the service answers again") == 1
    assert len(set(service.keys)) == 2


def test_a_file_that_always_kills_the_service_lets_others_pass(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "_PAUSE_S", 0.01)
    drop(tmp_path, a=b"killer", b=GOOD)
    inspect = InspectionClient.inspect

    def killed(self: InspectionClient, content: bytes, **given: Any) -> Any:
        if content == b"killer" and not (tmp_path / "done" / "b.png").exists():
            raise ServiceError("unreachable", "it went away")
        return inspect(self, content, **given)

    monkeypatch.setattr(InspectionClient, "inspect", killed)
    assert watch(tmp_path, service)[0] == {"good": 2}
    assert [row["file"] for row in lines(tmp_path)] == ["b.png", "a.png"]


@pytest.mark.parametrize(
    "answer", [Response("oops", 500), problem(408, "deadline-exceeded"), problem(409, "idempotency-in-flight")]
)
def test_a_request_that_fails_is_sent_again_later(tmp_path: Path, service: Service, answer: Response) -> None:
    drop(tmp_path, a=GOOD, b=GOOD)
    service.script.append(answer)
    verdicts, _ = watch(tmp_path, service, timeout_s=0.05)
    assert verdicts == {"good": 2}
    assert len(set(service.keys)) == 2


@pytest.mark.parametrize(("status", "code"), [(401, "unauthorised"), (403, "missing-scope"), (400, "bad-request")])
def test_what_is_wrong_with_all_files_ends_the_watch(tmp_path: Path, service: Service, status: int, code: str) -> None:
    drop(tmp_path, a=GOOD, b=GOOD)
    service.script.append(problem(status, code))
    with pytest.raises(ServiceError) as caught:
        watch(tmp_path, service)
    assert caught.value.code == code
    assert files(tmp_path) == {"a.png", "b.png"}
    assert lines(tmp_path) == []
    assert watch(tmp_path, service)[0] == {"good": 2}


class Killed(BaseException):
    """What a SIGKILL is to the code that runs."""


def test_a_kill_before_the_line_sends_again_under_the_same_key(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(tmp_path, a=GOOD)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(VerdictFile, "append", killed)
        with pytest.raises(Killed):
            watch(tmp_path, service)
    assert lines(tmp_path) == []
    assert watch(tmp_path, service)[0] == {"good": 1}
    assert len(lines(tmp_path)) == 1
    assert len(service.keys) == 2
    assert len(set(service.keys)) == 1


def test_a_kill_after_the_line_sends_nothing_again(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(tmp_path, a=GOOD, b=BAD)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Inbox, "put_away", killed)
        for _ in range(2):
            with pytest.raises(Killed):
                watch(tmp_path, service)
    assert files(tmp_path) == {"a.png", "b.png"}
    verdicts, said = watch(tmp_path, service)
    assert verdicts == {"error": 1}
    assert said[0] == "1 files have their verdict already and are not sent again"
    assert files(tmp_path) == {"done/a.png", "failed/b.png"}
    assert [row["file"] for row in lines(tmp_path)] == ["a.png", "b.png"]
    assert len(service.keys) == 2


def test_kept_files_are_sent_once_over_restarts(tmp_path: Path, service: Service) -> None:
    drop(tmp_path, a=GOOD, b=GOOD)
    assert watch(tmp_path, service, done="keep")[0] == {"good": 2}
    assert watch(tmp_path, service, done="keep")[0] == {}
    drop(tmp_path, a=DEFECT)
    assert watch(tmp_path, service, done="keep")[0] == {"defect": 1}
    assert [row["file"] for row in lines(tmp_path)] == ["a.png", "b.png", "a.png"]
    assert files(tmp_path) == {"a.png", "b.png"}


def test_a_file_that_cannot_be_put_away_is_not_sent_again(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(tmp_path, a=GOOD)
    put_away, tries = Inbox.put_away, []

    def refused(self: Inbox, *given: Any) -> None:
        tries.append(given)
        if len(tries) < 4:
            raise PermissionError(13, "Permission denied")
        put_away(self, *given)

    monkeypatch.setattr(Inbox, "put_away", refused)
    stop, said = threading.Event(), list[str]()
    threading.Timer(1.0, stop.set).start()
    _, said = watch(tmp_path, service, stop)
    assert said.count("a.png: answered, but cannot be put away: Permission denied") == 1
    assert files(tmp_path) == {"done/a.png"}
    assert len(service.keys) == len(lines(tmp_path)) == 1


def test_the_same_name_written_anew_while_it_is_judged_is_another_image(tmp_path: Path, service: Service) -> None:
    service.delay_s = 0.5
    drop(tmp_path, a=GOOD)
    threading.Timer(0.3, lambda: drop(tmp_path, a=DEFECT)).start()
    assert watch(tmp_path, service)[0] == {"good": 1, "defect": 1}
    assert [row["verdict"] for row in lines(tmp_path)] == ["good", "defect"]


def test_a_file_is_read_in_order_and_several_are_under_way(tmp_path: Path, service: Service) -> None:
    service.delay_s = 0.3
    drop(tmp_path, **{f"f{number}": GOOD for number in range(8)})
    began = time.monotonic()
    assert watch(tmp_path, service, parallel=4)[0] == {"good": 8}
    assert time.monotonic() - began < 8 * 0.3
    assert sorted(row["file"] for row in lines(tmp_path)) == [f"f{number}.png" for number in range(8)]


def test_the_end_waits_for_what_is_under_way(tmp_path: Path, service: Service) -> None:
    service.delay_s = 0.6
    drop(tmp_path, a=GOOD, b=GOOD)
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    assert watch(tmp_path, service, stop)[0] == {"good": 1}
    assert files(tmp_path) == {"done/a.png", "b.png"}


def test_the_end_does_not_wait_for_a_service_that_is_away(tmp_path: Path, service: Service) -> None:
    service.script += [problem(503, "not-ready") for _ in range(1000)]
    drop(tmp_path, a=GOOD)
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    began = time.monotonic()
    watch(tmp_path, service, stop, timeout_s=30)
    assert time.monotonic() - began < 3
    assert files(tmp_path) == {"a.png"}


def test_one_watch_a_folder(tmp_path: Path, service: Service) -> None:
    stop = threading.Event()
    first = threading.Thread(target=watch, args=(tmp_path, service, stop))
    first.start()
    try:
        while not (tmp_path / "verdicts.jsonl").exists():
            time.sleep(0.01)
        with pytest.raises(ConfigError, match="another watch"):
            watch(tmp_path, service)
    finally:
        stop.set()
        first.join()
    assert watch(tmp_path, service)[0] == {}


def test_other_files_are_named_once(tmp_path: Path, service: Service) -> None:
    for name in ("a.raw", "b.raw", "c.tmp"):
        (tmp_path / name).write_bytes(b"x")
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    assert watch(tmp_path, service, stop)[1] == ["left alone, since these are no images: files that end in .raw"]


def test_a_folder_that_is_none(tmp_path: Path, service: Service) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        watch(tmp_path / "none", service)


def test_a_folder_that_goes_away_ends_the_watch(tmp_path: Path, service: Service) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    threading.Timer(0.3, lambda: folder.rename(tmp_path / "gone")).start()
    with pytest.raises(LakeError) as caught:
        watch(folder, service, threading.Event())
    assert re.match("not-found|unreachable", caught.value.code)
