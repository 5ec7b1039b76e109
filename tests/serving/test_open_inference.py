"""Open Inference Protocol v2: as JSON and with the binary extension."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import SEEN, UNSEEN, Trained
from tests.serving.conftest import Served

Picture = Callable[..., bytes]
INFER = "/v2/models/sbdzsl/infer"


def outputs(answer: dict[str, Any]) -> dict[str, list[Any]]:
    return {one["name"]: one["data"] for one in answer["outputs"]}


def asking(**tensor: Any) -> dict[str, Any]:
    return {"id": "42", "inputs": [{"name": "image", "datatype": "BYTES"} | tensor]}


def test_json_and_binary_get_the_same_answers(plain: Served, trained: Trained, picture_of: Picture) -> None:
    images = [picture_of(SEEN[0]), b"broken", picture_of(UNSEEN)]
    as_json = plain.client.post(
        INFER, json=asking(shape=[3], data=[base64.b64encode(image).decode() for image in images])
    ).json()
    raw = b"".join(struct.pack("<I", len(image)) + image for image in images)
    head = json.dumps(asking(shape=[3], parameters={"binary_data_size": len(raw)})).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    as_binary = plain.client.post(INFER, content=head + raw, headers=headers).json()
    assert as_json["id"] == "42"
    assert as_json["model_version"] == trained.bundle.digest
    for name in ("verdict", "surface", "defect_score", "unseen_score", "result_evaluation"):
        assert outputs(as_json)[name] == outputs(as_binary)[name]
    assert outputs(as_json)["verdict"][1] == "error"
    assert outputs(as_json)["result_evaluation"][1] == 0
    assert json.loads(outputs(as_json)["answer"][0])["surface"] == SEEN[0]


@pytest.mark.parametrize(
    ("content", "headers", "says"),
    [
        (b"{", {}, "JSON"),
        (json.dumps(asking(shape=[1], data=["***"])).encode(), {}, "base64"),
        (json.dumps(asking(shape=[0], data=[])).encode(), {}, "0 images"),
        (b"{}", {"Inference-Header-Content-Length": "99"}, "99"),
        (json.dumps(asking(shape=[1])).encode() + b"\xff\xff\xff\xff", {}, ""),
    ],
)
def test_a_bad_request_says_what_is_wrong(plain: Served, content: bytes, headers: dict[str, str], says: str) -> None:
    answer = plain.client.post(INFER, content=content, headers=headers)
    assert answer.status_code == 400
    assert says in answer.json()["detail"]


def test_the_model_describes_itself(plain: Served, trained: Trained) -> None:
    assert plain.client.get("/v2/health/live").json() == {"live": True}
    assert plain.client.get("/v2/health/ready").json() == {"ready": True}
    assert plain.client.get("/v2/models/sbdzsl/ready").json() == {"ready": True}
    assert plain.client.get("/v2").json()["name"] == "sbdzsl"
    model = plain.client.get("/v2/models/sbdzsl").json()
    assert model["versions"] == [trained.bundle.digest]
    assert model["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
