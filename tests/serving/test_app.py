"""The HTTP application: answers, refusals and what they say."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sbdzsl.errors import ImageError
from sbdzsl.inspector import Inspector, load_image
from sbdzsl.serving.keys import COOKIE, KeyFile
from sbdzsl.serving.settings import ServeSettings
from tests import hostile
from tests.conftest import PASSING, SEEN, UNSEEN, Trained
from tests.serving.conftest import Served, manifest_uris, served

PNG = {"Content-Type": "image/png"}

Picture = Callable[..., bytes]


def test_a_verdict_over_http_is_the_inspectors_field_by_field(plain: Served, trained: Trained) -> None:
    inspector = Inspector(trained.bundle)
    for uri in manifest_uris(trained.manifest)[::4]:
        content = Path(uri).read_bytes()
        answer = plain.client.post("/v1/inspect", content=content, headers=PNG).json()
        expected = inspector.decide(load_image("", "", trained.bundle.settings.image, content=content)).to_json()
        for name in expected.keys() - PASSING:
            assert answer[name] == json.loads(json.dumps(expected[name])), name


def test_what_the_caller_says_is_echoed_and_compared(plain: Served, picture_of: Picture) -> None:
    sent = {"camera": "c1", "trigger_id": "t-7", "part_id": "p", "sequence": 12, "captured_at": "2026-11-26T08:00:00Z"}
    content = picture_of(SEEN[0])
    answer = plain.client.post("/v1/inspect", params=sent | {"surface": SEEN[0]}, content=content, headers=PNG).json()
    assert {name: answer[name] for name in sent} == sent | {"captured_at": "2026-11-26T08:00:00+00:00"}
    assert answer["surface_as_expected"] is True
    other = plain.client.post("/v1/inspect", params={"surface": SEEN[1]}, content=content, headers=PNG).json()
    assert other["surface_as_expected"] is False
    assert other["surface"] == SEEN[0], "what is expected must not decide"
    unknown = plain.client.post("/v1/inspect", params={"surface": "moon"}, content=content, headers=PNG)
    assert unknown.status_code == 400
    assert SEEN[0] in unknown.json()["detail"]


def test_another_policy_moves_the_threshold_of_one_request(plain: Served, picture_of: Picture) -> None:
    content = picture_of(SEEN[0])
    before, fixed, after = (
        plain.client.post("/v1/inspect", params=params, content=content, headers=PNG).json()
        for params in ({}, {"policy": "fixed:-100"}, {})
    )
    assert fixed["verdict"] == "defect"
    assert fixed["defect_threshold"] == -100
    assert before["defect_threshold"] == after["defect_threshold"] != -100
    assert before["defect_score"] == fixed["defect_score"]


def test_the_picture_is_the_overlay(plain: Served, picture_of: Picture) -> None:
    headers = PNG | {"Accept": "image/png"}
    for surface, label in ((SEEN[0], "defect"), (UNSEEN, "benign")):
        content = picture_of(surface, label)
        answer = plain.client.post("/v1/inspect", content=content, headers=headers)
        assert answer.headers["content-type"] == "image/png"
        drawn, source = Image.open(io.BytesIO(answer.content)), Image.open(io.BytesIO(content))
        assert drawn.width >= source.width
        assert drawn.height > source.height
        verdict = plain.client.post("/v1/inspect", content=content, headers=PNG).json()["verdict"]
        assert answer.headers["x-verdict"] == verdict


def test_several_images_in_a_form_are_answered_in_order(plain: Served, picture_of: Picture) -> None:
    files = [
        ("images", ("a.png", picture_of(SEEN[0]))),
        ("images", ("broken.png", b"nothing")),
        ("images", ("b.png", picture_of(UNSEEN))),
    ]
    verdicts = plain.client.post("/v1/inspect", files=files).json()["verdicts"]
    assert [one["uri"] for one in verdicts] == ["a.png", "broken.png", "b.png"]
    assert [one["error_code"] for one in verdicts] == [None, "unsupported-format", None]
    assert verdicts[0]["surface"] == SEEN[0]


def test_a_bad_image_is_a_problem_with_its_verdict(plain: Served) -> None:
    for name, content, expected in hostile.draw():
        answer = plain.client.post("/v1/inspect", content=content, headers=PNG)
        if not isinstance(expected, str):
            assert answer.status_code == 200, name
            continue
        problem = answer.json()
        assert answer.status_code == ImageError.CODES[expected] == problem["status"], name
        assert answer.headers["content-type"] == "application/problem+json"
        assert problem["code"] == expected
        assert problem["type"] == f"urn:sbdzsl:error:{expected}"
        assert problem["verdict"]["verdict"] == "error"
        assert problem["verdict"]["result_evaluation"] == 0, "never OK by default"
    assert plain.client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"policy": "magic"}, "magic"),
        ({"bit_depth": 7}, "bit_depth"),
        ({"sequence": -1}, "sequence"),
        ({"captured_at": "yesterday"}, "captured_at"),
    ],
)
def test_a_bad_parameter_is_named(plain: Served, picture_of: Picture, params: dict[str, str], says: str) -> None:
    answer = plain.client.post("/v1/inspect", params=params, content=picture_of(SEEN[0]), headers=PNG)
    assert answer.status_code == 400
    assert says in answer.json()["detail"]


def test_what_is_no_image_is_refused_before_it_is_read(plain: Served) -> None:
    answer = plain.client.post("/v1/inspect", json={"image_url": "http://10.0.0.1/secret"})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["detail"]


def test_large_bodies_are_refused_with_and_without_a_length(trained: Trained) -> None:
    with served(trained.bundle_url, ServeSettings(threads=1, max_bytes=1000)) as running:
        whole = running.client.post("/v1/inspect", content=b"x" * 1001, headers=PNG)
        parts = running.client.post("/v1/inspect", content=iter([b"x" * 600, b"x" * 600]), headers=PNG)
        for answer in (whole, parts):
            assert (answer.status_code, answer.json()["code"]) == (413, "too-large")


def test_paths_and_methods_that_do_not_exist_are_problems_too(plain: Served) -> None:
    assert plain.client.get("/nowhere").json()["code"] == "no-such-path"
    answer = plain.client.delete("/v1/inspect")
    assert answer.json()["code"] == "no-such-method"
    assert answer.headers["allow"] == "POST"


def test_ids_of_the_caller_are_kept_and_others_are_made(plain: Served) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = plain.client.get("/livez", headers={"X-Request-ID": "line7-42", "traceparent": trace})
    assert answer.headers["x-request-id"] == "line7-42"
    assert answer.headers["traceparent"].split("-")[1] == trace.split("-")[1]
    made = plain.client.get("/livez", headers={"X-Request-ID": "no good\x7f", "traceparent": "nonsense"})
    assert len(made.headers["x-request-id"]) == 36
    assert made.headers["traceparent"].startswith("00-")


def test_metrics_count_requests_and_verdicts(trained: Trained, picture_of: Picture) -> None:
    with served(trained.bundle_url, ServeSettings(threads=1)) as running:
        for content in (picture_of(SEEN[0]), picture_of(UNSEEN), b"bad"):
            running.client.post("/v1/inspect", content=content, headers=PNG)
        text = running.client.get("/metrics").text
        assert 'sbdzsl_requests_total{path="/v1/inspect",status="200"} 2.0' in text
        assert 'sbdzsl_requests_total{path="/v1/inspect",status="415"} 1.0' in text
        assert 'verdict="error"} 1.0' in text
        assert 'sbdzsl_stage_seconds_count{stage="route"} 2.0' in text


def test_bundle_and_surfaces_say_what_is_in_force(plain: Served, trained: Trained) -> None:
    bundle = plain.client.get("/v1/bundle").json()
    assert bundle["bundle"] == trained.bundle.digest
    surfaces = plain.client.get("/v1/surfaces").json()
    assert sorted(surfaces) == sorted(SEEN)
    threshold = trained.bundle.detectors[SEEN[0]].threshold()
    assert surfaces[SEEN[0]]["defect_threshold"] == threshold.value


class TestIdempotency:
    def test_a_key_is_judged_once(self, trained: Trained, picture_of: Picture, tmp_path: Path) -> None:
        content, headers = picture_of(SEEN[0]), PNG | {"Idempotency-Key": "part 7"}
        with served(trained.bundle_url, ServeSettings(threads=1), data=tmp_path) as running:
            first, again = (running.client.post("/v1/inspect", content=content, headers=headers) for _ in range(2))
            assert first.json() == again.json()
            assert first.json()["event_id"] == 1
            other = running.client.post("/v1/inspect", content=picture_of(UNSEEN), headers=headers)
            assert (other.status_code, other.json()["code"]) == (422, "idempotency-mismatch")
        with served(trained.bundle_url, ServeSettings(threads=1), data=tmp_path) as running:
            later = running.client.post("/v1/inspect", content=content, headers=headers)
            assert later.json()["inspected_at"] == first.json()["inspected_at"], "the journal remembers"
            new = running.client.post("/v1/inspect", content=content, headers=PNG)
            assert new.json()["event_id"] == 2

    def test_a_refused_request_may_come_again(self, plain: Served, picture_of: Picture) -> None:
        headers = PNG | {"Idempotency-Key": "again"}
        refused = plain.client.post("/v1/inspect", params={"surface": "moon"}, content=b"", headers=headers)
        assert refused.status_code == 400
        answer = plain.client.post("/v1/inspect", content=picture_of(SEEN[0]), headers=headers)
        assert answer.status_code == 200


class TestKeys:
    def test_without_a_key_nothing_is_answered_but_health(self, trained: Trained, tmp_path: Path) -> None:
        keys = KeyFile(str(tmp_path / "keys.json"))
        infer, review = keys.create("line7", ["infer"]), keys.create("anna", ["review"])
        with served(trained.bundle_url, ServeSettings(threads=1), keys) as running:
            ask = running.client.get
            assert ask("/livez").status_code == ask("/readyz").status_code == 200
            refused = ask("/v1/bundle")
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert ask("/v1/bundle", headers={"Authorization": "Bearer sbdzsl_00_wrong"}).status_code == 401
            assert ask("/v1/bundle", headers={"Authorization": f"Bearer {infer}"}).status_code == 200
            assert ask("/v1/bundle", headers={"Authorization": f"Bearer {review}"}).status_code == 403
            running.client.cookies.set(COOKIE, infer)
            assert ask("/v1/bundle").status_code == 200
            swapped = running.client.post("/v1/bundle", json={"bundle": trained.bundle_url})
            assert (swapped.status_code, swapped.json()["code"]) == (403, "missing-scope")
            keys.revoke(infer.split("_")[1])
            assert ask("/v1/bundle").status_code == 401, "a revoked key stops to work at once"


def test_another_bundle_comes_in_force_and_a_bad_one_does_not(trained: Trained, picture_of: Picture) -> None:
    with served(trained.bundle_url, ServeSettings(threads=1)) as running:
        missing = running.client.post("/v1/bundle", json={"bundle": "/nowhere"})
        assert (missing.status_code, missing.json()["code"]) == (404, "no-bundle")
        answer = running.client.post("/v1/inspect", content=picture_of(SEEN[0]), headers=PNG)
        assert answer.json()["bundle"] == trained.bundle.digest
        swapped = running.client.post("/v1/bundle", json={"bundle": trained.bundle_url})
        assert swapped.json()["bundle"] == trained.bundle.digest
