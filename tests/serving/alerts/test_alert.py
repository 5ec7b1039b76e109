import json

import pytest
from alert_lab import draw_answer

from sbdzsl.serving.alerts import Alert, make_alert

ANSWER = draw_answer(7)

FIELDS = {
    *("id", "type", "version", "timestamp", "verdict", "result_evaluation", "surface", "surface_expected"),
    *("surface_as_expected", "surface_margin", "defect_score", "defect_threshold", "defect_probability"),
    *("threshold_policy", "unseen_score", "unseen_threshold", "unseen_p_value", "nearest_surfaces", "nearest_scores"),
    *("regions", "image_width", "image_height", "class_embedding", "attributes", "extrapolated", "looks"),
    *("error_code", "error_detail", "request_id", "event_id", "camera", "trigger_id", "part_id", "sequence"),
    *("image_id", "uri", "captured_at", "inspected_at", "queue_ms", "decode_ms", "route_ms", "detect_ms", "bundle"),
    "overlay_url",
}


def test_the_document_has_the_fields_that_receivers_read() -> None:
    document = make_alert(ANSWER, "https://inspect.example/").document
    assert set(document) == FIELDS
    assert document["version"] == 1
    assert document["regions"] == list(ANSWER["regions"])
    assert document["looks"] == "texture grainy; colour dark"
    assert document["result_evaluation"] == 2
    assert document["overlay_url"] == "https://inspect.example/v1/verdicts/7/overlay"


def test_there_is_no_link_where_nobody_could_follow_it() -> None:
    assert make_alert(ANSWER).document["overlay_url"] is None
    assert make_alert(ANSWER | {"event_id": None}, "http://inspect").document["overlay_url"] is None


def test_the_same_request_again_has_the_same_id() -> None:
    again = ANSWER | {"inspected_at": "2030-01-01T00:00:00+00:00", "event_id": 8, "queue_ms": 3.0}
    assert make_alert(again).id == make_alert(ANSWER).id


@pytest.mark.parametrize("field", ["request_id", "camera", "trigger_id", "sequence", "part_id", "image_id"])
def test_what_tells_requests_apart_tells_alerts_apart(field: str) -> None:
    assert make_alert(ANSWER | {field: "another"}).id != make_alert(ANSWER).id


def test_the_key_of_the_request_alone_makes_the_id_where_there_is_one() -> None:
    assert make_alert(ANSWER, idempotency_key="k").id == make_alert(draw_answer(8), idempotency_key="k").id
    assert make_alert(ANSWER, idempotency_key="k").id != make_alert(ANSWER, idempotency_key="K").id


def test_any_key_makes_an_id_that_fits_a_header_and_a_topic() -> None:
    alert_id = make_alert(ANSWER, idempotency_key="\u20ac/#\r\n. " * 99).id
    assert alert_id.isascii()
    assert len(alert_id) == 38
    assert alert_id.replace("-", "").isalnum()


def test_a_score_that_is_not_finite_is_null_in_json() -> None:
    body = make_alert(ANSWER | {"defect_score": float("nan"), "unseen_score": float("inf")}).to_json()
    document = json.loads(body, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert document["defect_score"] is None
    assert document["unseen_score"] is None


def test_an_alert_comes_back_from_its_json() -> None:
    alert = make_alert(ANSWER, "http://inspect")
    assert Alert.from_json(alert.to_json()) == alert


def test_an_error_looks_like_nothing_and_an_unseen_surface_is_extrapolated() -> None:
    assert make_alert(draw_answer(1, "error", attributes=[])).document["looks"] is None
    assert make_alert(draw_answer(1, "unseen")).document["looks"] == "texture grainy; colour dark (extrapolated)"
