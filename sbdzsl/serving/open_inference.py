"""Open Inference Protocol v2, the second door: for gateways and clients that speak it already.

One model, `sbdzsl`. Input `image`, BYTES, one element an image: as the binary extension's raw bytes (4 bytes of length,
little endian, before each), or in JSON as base64. Outputs, one element an image: `verdict` and `surface` (BYTES),
`result_evaluation` (INT32), `defect_score` and `unseen_score` (FP64, null where there is none), `answer` (BYTES: the
document that `POST /v1/inspect` gives). A bad image has the verdict "error".
"""

# No postponed annotations here: FastAPI reads those of the routes, which name what is around them.
import base64
import binascii
import json
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Request
from pydantic import BaseModel, Field, ValidationError

from sbdzsl import __version__
from sbdzsl.errors import ServiceError
from sbdzsl.serving.answers import problems
from sbdzsl.serving.bodies import read_body
from sbdzsl.serving.keys import Door, Key
from sbdzsl.serving.service import Service
from sbdzsl.serving.settings import ServeSettings

MODEL = "sbdzsl"

#: Judges one image until a time of the clock: content, deadline, request id -> answer document.
Judge = Callable[[bytes, float, str], Awaitable[dict[str, Any]]]


class Tensor(BaseModel):
    """One input of a request. `data` is base64 of each image, or absent where the bytes follow the JSON."""

    name: Literal["image"]
    datatype: Literal["BYTES"]
    shape: list[int] = Field(min_length=1, max_length=2)
    data: list[str] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferRequest(BaseModel):
    """What a client sends."""

    inputs: list[Tensor] = Field(min_length=1, max_length=1)
    id: str | None = Field(None, max_length=200)


def open_inference_routes(service: Service, judge: Judge, settings: ServeSettings, door: Door) -> APIRouter:
    """The routes of the protocol: metadata, health, inference."""
    router = APIRouter(prefix="/v2")
    caller = Annotated[Key, Depends(door.with_scope("infer"))]

    @router.get("", summary="The server")
    async def server() -> dict[str, Any]:
        return {"name": MODEL, "version": __version__, "extensions": ["binary_tensor_data"]}

    @router.get("/health/live", summary="The process answers")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/health/ready", summary="An image can be judged", responses=problems(408, 503))
    @router.get(f"/models/{MODEL}/ready", summary="An image can be judged", responses=problems(408, 503))
    async def ready() -> dict[str, bool]:
        await service.check()
        return {"ready": True}

    @router.get(f"/models/{MODEL}", summary="The model", responses=problems(401, 403, 503))
    async def model(_: caller) -> dict[str, Any]:
        card = await service.card()
        return {
            "name": MODEL,
            "versions": [card.bundle],
            "platform": "sbdzsl",
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": name, "datatype": kind, "shape": [-1]} for name, kind in _OUTPUTS.items()],
        }

    @router.post(
        f"/models/{MODEL}/infer",
        summary="Judge images",
        responses=problems(400, 401, 403, 408, 413, 429, 503, 507),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": InferRequest.model_json_schema()}},
            }
        },
    )
    async def infer(
        request: Request,
        _: caller,
        json_size: Annotated[str | None, Header(alias="Inference-Header-Content-Length", max_length=20)] = None,
    ) -> dict[str, Any]:
        deadline = time.monotonic() + settings.deadline_s
        asked, images = _parse(await read_body(request, settings), json_size, settings.max_images)
        answers = [await judge(image, deadline, request.state.request_id) for image in images]
        outputs = [
            {"name": name, "datatype": kind, "shape": [len(answers)], "data": [_value(one, name) for one in answers]}
            for name, kind in _OUTPUTS.items()
        ]
        version = answers[0]["bundle"]
        return {"model_name": MODEL, "model_version": version, "id": asked.id or "", "outputs": outputs}

    return router


_OUTPUTS = {
    "verdict": "BYTES",
    "surface": "BYTES",
    "result_evaluation": "INT32",
    "defect_score": "FP64",
    "unseen_score": "FP64",
    "answer": "BYTES",
}


def _value(answer: dict[str, Any], name: str) -> Any:
    if name == "answer":
        return json.dumps(answer, allow_nan=False)
    value = answer[name]
    return ("" if _OUTPUTS[name] == "BYTES" else None) if value is None else value


def _parse(body: bytes, json_size: str | None, max_images: int) -> tuple[InferRequest, list[bytes]]:
    """The request and its images. Raises `ServiceError` "bad-request"."""
    size = len(body) if json_size is None else int(json_size) if json_size.isdigit() else -1
    if not 0 <= size <= len(body):
        raise ServiceError("bad-request", f"found Inference-Header-Content-Length {json_size}, body has {len(body)}")
    try:
        asked = InferRequest.model_validate_json(body[:size])
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ServiceError("bad-request", found) from None
    data = asked.inputs[0].data
    images = _elements(body[size:]) if data is None else [_from_base64(text) for text in data]
    if not 1 <= len(images) <= max_images:
        raise ServiceError("bad-request", f"found {len(images)} images, expected 1 to {max_images}")
    return asked, images


def _elements(raw: bytes) -> list[bytes]:
    """Elements of a BYTES tensor: each is preceded by its length."""
    found: list[bytes] = []
    place = 0
    while place < len(raw):
        if place + 4 > len(raw):
            raise ServiceError("bad-request", f"{len(raw) - place} bytes are left where a length of 4 was expected")
        (size,) = struct.unpack_from("<I", raw, place)
        if place + 4 + size > len(raw):
            raise ServiceError("bad-request", f"an element says it has {size} bytes, {len(raw) - place - 4} are left")
        found.append(raw[place + 4 : place + 4 + size])
        place += 4 + size
    return found


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ServiceError("bad-request", f"an element of data is not base64: {error}") from None
