"""The routes of the operator page, over a real service that listens."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx2
import numpy as np
import polars as pl
import pytest

from sbdzsl.serving import stream
from sbdzsl.serving.assets import FOLDER
from sbdzsl.serving.keys import KeyFile
from sbdzsl.serving.rules import AlarmSettings
from sbdzsl.serving.settings import KeepSettings, ServeSettings
from tests.conftest import SEEN, UNSEEN, Trained
from tests.serving.running import Running, running

Picture = Callable[..., bytes]


@pytest.fixture(scope="module")
def live(trained: Trained, tmp_path_factory: pytest.TempPathFactory, picture_of: Picture) -> Iterator[Running]:
    """A service that has judged some images: see `SENT`."""
    settings = ServeSettings(
        threads=1,
        data=str(tmp_path_factory.mktemp("data")),
        alarms=AlarmSettings(in_a_row=3, delay_on_s=0, delay_off_s=0),
        keep=KeepSettings(good_share=1),
    )
    with running(trained.bundle_url, settings) as found:
        for number, (surface, label) in enumerate(SENT):
            # So that one of them is a defect whatever the small bundle has learnt.
            policy = {"policy": "fixed:-100"} if label == "defect" else {}
            content = picture_of(surface, label, number)
            found.post(content, camera="line7", sequence=number, part_id=f"P{number}", **policy)
        found.post(b"no image", name="=cmd()", camera="line8")
        yield found


SENT = [(SEEN[0], "benign"), (SEEN[1], "benign"), (SEEN[0], "defect"), *[(UNSEEN, "benign")] * 4]


def listed(live: Running, **query: Any) -> list[dict[str, Any]]:
    answer = live.client.get("/v1/verdicts", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["verdicts"]
    return found


def read_events(live: Running, seconds: float, **options: Any) -> list[dict[str, Any]]:
    """What the stream tells within a time: kind, id and data of each event."""
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + seconds
    with live.client.stream("GET", "/v1/events", timeout=httpx2.Timeout(5, read=seconds), **options) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        one: dict[str, Any] = {}
        try:
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if not line and one:
                    found.append(one)
                    one = {}
                elif name:
                    one[name] = json.loads(value) if name == "data" else value
                if time.monotonic() > deadline:
                    break
        except httpx2.ReadTimeout:
            pass
    return found


def test_newest_first_and_page_by_page(live: Running) -> None:
    everything = listed(live)
    numbers = [one["event_id"] for one in everything]
    assert len(numbers) == len(SENT) + 1
    assert numbers == sorted(numbers, reverse=True)
    assert [one["event_id"] for one in listed(live, before=numbers[2], limit=2)] == numbers[3:5]


def test_filters(live: Running) -> None:
    assert {one["camera"] for one in listed(live, camera="line8")} == {"line8"}
    both = listed(live, verdict=["unseen", "error"])
    assert {one["verdict"] for one in both} == {"unseen", "error"}
    assert len(both) + len(listed(live, verdict=["good", "defect"])) == len(SENT) + 1
    assert all(one["surface"] == SEEN[1] for one in listed(live, surface=SEEN[1]))
    assert listed(live, since="2100-01-01T00:00:00Z") == []


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "before=0", "verdict=bad", "since=yesterday"])
def test_bad_filters_are_problems(live: Running, query: str) -> None:
    answer = live.client.get(f"/v1/verdicts?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad-request")


def test_exports_hold_exactly_what_is_filtered(live: Running) -> None:
    wanted = [one["event_id"] for one in listed(live, verdict="unseen")]
    answer = live.client.get("/v1/verdicts/export", params={"verdict": "unseen", "format": "parquet"})
    table = pl.read_parquet(io.BytesIO(answer.content))
    assert table["event_id"].to_list() == wanted
    assert answer.headers["x-rows"] == str(len(wanted))
    text = live.client.get("/v1/verdicts/export", params={"verdict": "unseen"}).content
    assert pl.read_csv(io.BytesIO(text))["event_id"].to_list() == wanted


def test_a_csv_holds_no_formula(live: Running) -> None:
    text = live.client.get("/v1/verdicts/export", params={"camera": "line8"}).text
    assert ",'=cmd()," in text


def test_a_document_and_its_pictures(live: Running, picture_of: Picture) -> None:
    found = listed(live, verdict="defect")[0]
    number = found["event_id"]
    whole = live.client.get(f"/v1/verdicts/{number}").json()
    assert (whole["event_id"], whole["reviews"], len(whole["class_embedding"])) == (number, [], 29)

    original = live.client.get(found["image"])
    sent = int(str(found["part_id"]).removeprefix("P"))
    assert original.content == picture_of(*SENT[sent], sent)
    assert original.headers["content-type"] == "image/png"
    again = live.client.get(found["image"], headers={"if-none-match": original.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")

    small = live.client.get(found["thumbnail"], params={"size": 64})
    assert cv2.imdecode(np.frombuffer(small.content, np.uint8), cv2.IMREAD_COLOR).shape == (64, 64, 3)
    overlay = live.client.get(found["overlay"])
    drawn = cv2.imdecode(np.frombuffer(overlay.content, np.uint8), cv2.IMREAD_COLOR)
    assert drawn.shape[:2] == (whole["image_height"], whole["image_width"])
    assert np.ptp(drawn.astype(int), axis=2).max() > 60  # the heat is coloured, the image is grey
    assert (overlay.headers["x-same-bundle"], overlay.headers["x-verdict"]) == ("true", "defect")


def test_pictures_of_what_is_no_image_are_problems(live: Running) -> None:
    number = listed(live, verdict="error")[0]["event_id"]
    assert live.client.get(f"/v1/verdicts/{number}/image").headers["content-type"] == "application/octet-stream"
    for kind, status in (("thumbnail", 415), ("overlay", 400)):
        answer = live.client.get(f"/v1/verdicts/{number}/{kind}")
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    for path in ("/v1/verdicts/999999", "/v1/verdicts/0/image", f"/v1/verdicts/{2**70}"):
        assert live.client.get(path).status_code == 404


def test_a_review_stands_beside_the_verdict(live: Running) -> None:
    number = listed(live, verdict="defect")[0]["event_id"]
    before = live.client.get(f"/v1/verdicts/{number}").json()
    said = {"decision": "good", "reason": "dust", "comment": "wiped off", "name": "ada"}
    kept = live.client.post(f"/v1/verdicts/{number}/review", json=said)
    assert (kept.status_code, kept.json()["who"]) == (200, "ada")
    after = live.client.get(f"/v1/verdicts/{number}").json()
    (review,) = after.pop("reviews")
    assert (review["decision"], review["reason"], review["comment"], review["who"]) == (
        "good",
        "dust",
        "wiped off",
        "ada",
    )
    assert after == {name: value for name, value in before.items() if name != "reviews"}
    for wrong in ({"decision": "maybe"}, {"reason": "moon"}, {"nonsense": 1}):
        answer = live.client.post(f"/v1/verdicts/{number}/review", json=said | wrong)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad-request")


def test_the_stream_replays_from_the_last_event_seen(live: Running) -> None:
    newest = [one["event_id"] for one in listed(live)]
    told = read_events(live, 2.5, headers={"Last-Event-ID": str(newest[3])})
    assert told[0]["event"] == "health"
    assert told[0]["retry"] == "2000"
    verdicts = [one for one in told if one["event"] == "verdict"]
    assert [one["data"]["event_id"] for one in verdicts] == newest[2::-1]
    assert [int(one["id"]) for one in verdicts] == newest[2::-1]
    assert told[-1]["event"] == "counter"
    assert told[-1]["data"]["inspected"] == len(newest)


def test_a_reader_who_was_long_away_is_told_what_was_left_out(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_REPLAY", 2)
    told = read_events(live, 2.5, params={"after": 1})
    assert told[0]["event"] == "gap"
    last = max(int(one["id"]) for one in told if "id" in one)
    assert told[0]["data"] == {"after": 1, "events": last - 3}


def test_signs_of_life(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_S", 1.0)
    beats = [one["data"] for one in read_events(live, 4.0) if one["event"] == "health"]
    assert len(beats) >= 3
    assert beats[0]["surfaces"] == sorted(SEEN)
    assert beats[0]["troubles"] == {}


def test_unseen_in_a_row_is_an_alarm_to_acknowledge(live: Running) -> None:
    found = live.client.get("/v1/alarms").json()
    (alarm,) = [one for one in found["alarms"] if one["rule"] == "unseen-in-a-row"]
    path = f"/v1/alarms/{alarm['id']}"
    assert alarm["evidence"] in [one["event_id"] for one in listed(live, verdict="unseen")]
    shelved = live.client.post(f"{path}/shelve", json={"minutes": 15, "reason": "trial run", "name": "ada"})
    assert shelved.json()["state"] == "shelved"
    assert live.client.post(f"{path}/shelve", json={"minutes": 0, "reason": "x"}).status_code == 400
    seen = live.client.post(f"{path}/acknowledge", json={"comment": "new product", "name": "ada"})
    assert (seen.status_code, seen.json()["acknowledged_by"]) == (200, "ada")
    assert live.client.post("/v1/alarms/none/acknowledge", json={}).json()["code"] == "unknown-alarm"


def test_unseen_images_come_in_groups_with_what_teaches_them(live: Running) -> None:
    found = live.client.get("/v1/unseen", timeout=60).json()
    assert found["num_unseen"] == len(listed(live, verdict="unseen"))
    grouped = [number for group in found["groups"] for number in group["events"]]
    assert sorted(grouped + found["single"]) == sorted(one["event_id"] for one in listed(live, verdict="unseen"))
    for group in found["groups"]:
        assert "sbdzsl enrol --bundle " in group["enrol"]
        assert f"--images unseen --surface {group['nearest'][0]} --out NEW_BUNDLE" in group["extend"]
    numbers = (grouped + found["single"])[:2]
    archive = live.client.get("/v1/unseen/images.tar", params={"event": numbers}).content
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        contents = [opened.extractfile(member).read() for member in opened]  # type: ignore[union-attr]
    assert contents == [live.client.get(f"/v1/verdicts/{number}/image").content for number in sorted(numbers)]


def test_counters_are_reset_with_a_reason(live: Running) -> None:
    assert live.client.post("/v1/counters/reset", json={"name": "ada"}).status_code == 400
    fresh = live.client.post("/v1/counters/reset", json={"reason": "shift change", "name": "ada"}).json()
    assert (fresh["inspected"], fresh["reset_by"]) == (0, "ada")
    assert sum(slot["unseen"] for slot in live.client.get("/v1/trend").json()["minutes"]) >= 3


def test_the_page_asks_no_other_host_and_runs_no_inline_script(live: Running) -> None:
    page = live.client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for path in FOLDER.iterdir():
        answer = live.client.get(f"/page/{path.name}")
        assert (answer.status_code, answer.content) == (200, path.read_bytes())
        known = {"if-none-match": answer.headers["etag"]}
        assert live.client.get(f"/page/{path.name}", headers=known).status_code == 304
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/", "")
        assert "http://" not in text
        assert "https://" not in text
        assert "innerHTML" not in text
    assert live.client.get("/page/..%2Fapp.py").status_code == 404


def test_every_text_that_the_page_asks_for_exists() -> None:
    import re

    words = json.loads((FOLDER / "texts.json").read_text(encoding="utf-8"))["page"]
    asked = {key for path in FOLDER.glob("*.js") for key in re.findall(r"""\bt\(["']([\w -]+)["']""", path.read_text())}
    assert asked - set(words) == set()
    for kind, values in {
        "verdict": ("good", "defect", "unseen", "error"),
        "priority": ("critical", "high", "medium", "low"),
    }.items():
        assert {f"{kind}-{value}" for value in values} <= set(words)


@pytest.fixture(scope="module")
def guarded(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, dict[str, str]]]:
    """A service that asks for keys, and a key of each scope."""
    folder = tmp_path_factory.mktemp("guarded")
    keys = KeyFile(str(folder / "keys.json"))
    secrets = {"infer": keys.create("line7", ["infer"]), "review": keys.create("ada", ["infer", "review"])}
    with running(trained.bundle_url, ServeSettings(threads=1, data=str(folder / "data")), keys) as found:
        yield found, secrets


def test_every_route_of_the_page_asks_for_a_key(guarded: tuple[Running, dict[str, str]]) -> None:
    live, _ = guarded
    of_one = [f"verdicts/1{part}" for part in ("", "/image", "/thumbnail", "/overlay")]
    others = ["events", "counters", "trend", "alarms", "verdicts", "verdicts/export", "unseen", "session"]
    for path in [*of_one, *others, "unseen/images.tar?event=1"]:
        answer = live.client.get(f"/v1/{path}")
        assert (path, answer.status_code, answer.json()["code"]) == (path, 401, "unauthorised")
    assert live.client.get("/").status_code == 200  # the page itself holds nothing


def test_signing_in_puts_the_key_where_scripts_cannot_read_it(guarded: tuple[Running, dict[str, str]]) -> None:
    live, secrets = guarded
    with httpx2.Client(base_url=live.url) as browser:
        assert browser.post("/v1/session", json={"key": "sbdzsl_wrong"}).status_code == 401
        answer = browser.post("/v1/session", json={"key": secrets["infer"]})
        assert answer.json()["scopes"] == ["infer"]
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert browser.get("/v1/session").json()["name"] == "line7"
        assert browser.get("/v1/counters").status_code == 200
        reset = browser.post("/v1/counters/reset", json={"reason": "shift change"})
        assert (reset.status_code, reset.json()["code"]) == (403, "missing-scope")
        assert browser.delete("/v1/session").status_code == 204
        assert browser.get("/v1/counters").status_code == 401


def test_changes_bear_the_name_of_the_key_whatever_the_caller_says(guarded: tuple[Running, dict[str, str]]) -> None:
    live, secrets = guarded
    headers = {"authorization": f"Bearer {secrets['review']}"}
    body = {"reason": "shift change", "name": "mallory"}
    assert live.client.post("/v1/counters/reset", json=body, headers=headers).json()["reset_by"] == "ada"


def test_a_service_that_is_told_to_stop_ends_its_streams(trained: Trained, tmp_path: Path) -> None:
    with running(trained.bundle_url, ServeSettings(threads=1, data=str(tmp_path))) as found:
        with found.client.stream("GET", "/v1/events") as answer:
            lines = answer.iter_lines()
            next(lines)
            found.server.should_exit = True
            started = time.monotonic()
            for _ in lines:
                pass
        assert time.monotonic() - started < 4
