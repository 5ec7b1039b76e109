"""What the service answers: the verdict with what the caller sent along, and problem documents (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse

from sbdzsl.answer import Answer
from sbdzsl.errors import SbdzslError
from sbdzsl.verdict import Verdict

__all__ = ["PROBLEM_TYPE", "Answer", "Problem", "Shot", "answer_document", "problem", "problem_response"]

PROBLEM_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Shot:
    """What a caller says of an image, echoed in the answer.

    `camera` and `sequence` number the images of one camera, `trigger_id` and `part_id` are the line's own, `surface` is
    the one that should be in view: it is compared with what is seen, and decides nothing.
    """

    camera: str | None = None
    trigger_id: str | None = None
    part_id: str | None = None
    sequence: int | None = None
    captured_at: datetime | None = None
    surface: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem document. `code` is stable; where an image was the problem, its `verdict` stands beside these."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


_PROBLEM: dict[str, Any] = {"model": Problem, "content": {PROBLEM_TYPE: {}}}
_DESCRIPTIONS = {
    400: "A parameter is wrong, or the file is empty, damaged or cut.",
    401: "No live API key.",
    403: "The key does not allow this.",
    404: "There is no such thing.",
    408: "The body came too slowly, or the image could not be judged in time.",
    409: "A request with this Idempotency-Key is being answered.",
    413: "The body or the image is too large.",
    415: "Not an image, or a format that is not read.",
    422: "The image is too small or deeper than declared, or the Idempotency-Key was used for another image.",
    429: "Too many images are waiting; come again after `Retry-After` seconds.",
    503: "Not ready; come again after `Retry-After` seconds.",
    507: "The answer cannot be stored.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Problem documents that an operation may answer with, for the OpenAPI document."""
    return {status: _PROBLEM | {"description": _DESCRIPTIONS[status]} for status in statuses}


NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "It is the one that the caller has."}}


def files(description: str, *kinds: str) -> dict[int | str, dict[str, Any]]:
    """A file of one of these media types that an operation answers with, for the OpenAPI document."""
    schema = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"description": description, "content": dict.fromkeys(kinds, schema)}}


def answer_document(verdict: Verdict, shot: Shot, request_id: str, queue_ms: float) -> dict[str, Any]:
    """The fields of an `Answer` as plain JSON values."""
    as_expected = None
    if shot.surface is not None and verdict.surface is not None:
        as_expected = verdict.verdict != "unseen" and verdict.surface == shot.surface
    return verdict.to_json() | {
        "request_id": request_id,
        "event_id": None,
        "camera": shot.camera,
        "trigger_id": shot.trigger_id,
        "part_id": shot.part_id,
        "sequence": shot.sequence,
        "captured_at": shot.captured_at and shot.captured_at.isoformat(),
        "surface_expected": shot.surface,
        "surface_as_expected": as_expected,
        "queue_ms": queue_ms,
    }


def problem(
    error: SbdzslError, request_id: str, more: Mapping[str, Any] | None = None, retry_after_s: int = 1
) -> JSONResponse:
    """The answer to a request that failed."""
    return problem_response(error.http_status, error.code, error.message, request_id, more, retry_after_s)


def problem_response(
    status: int,
    code: str,
    detail: str,
    request_id: str,
    more: Mapping[str, Any] | None = None,
    retry_after_s: int = 1,
) -> JSONResponse:
    """A problem document with its status; 429 and 503 say when to come again, 401 how to sign in."""
    headers = {"X-Request-ID": request_id}
    if status in (429, 503):
        headers["Retry-After"] = str(retry_after_s)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    found = Problem(f"urn:sbdzsl:error:{code}", HTTPStatus(status).phrase, status, detail, code, request_id)
    return JSONResponse(asdict(found) | dict(more or {}), status, headers, media_type=PROBLEM_TYPE)
