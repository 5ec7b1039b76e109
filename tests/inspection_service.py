"""A small HTTP service that keeps the contract of `/v1/inspect`, for tests of what is sent and what is made of answers.

It judges nothing: its verdict depends on the first bytes alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import fastapi
import uvicorn
from fastapi import Request, Response

from sbdzsl.answer import Answer, read_answer
from sbdzsl.verdict import Region, Verdict

BUNDLE = "ab" * 32
GOOD, DEFECT, UNSEEN, BAD = b"good", b"defect", b"unseen", b"bad"
PNG = b"\x89PNG\r\n\x1a\n and more"


def verdict_of(content: bytes) -> Verdict:
    """The verdict that the first bytes ask for."""
    answer = Verdict(image_id="i", uri="", verdict="good", bundle=BUNDLE, surface="steel", decode_ms=1.0, route_ms=2.0)
    scored = replace(answer, defect_score=1.5, defect_threshold=2.0, detect_ms=3.0, unseen_score=0.5)
    if content.startswith(DEFECT):
        return replace(scored, verdict="defect", defect_score=3.5, regions=(Region(1, 2, 30, 4, 99, 3.5),))
    if content.startswith(UNSEEN):
        return replace(answer, verdict="unseen", unseen_score=9.0, unseen_threshold=1.0, unseen_p_value=0.01)
    if content.startswith(BAD):
        return replace(answer, verdict="error", surface=None, error_code="unreadable", error_detail="no image")
    return scored


def canned(content: bytes, **said: Any) -> Answer:
    """That verdict as an answer, with what was said beside the image."""
    return read_answer(verdict_of(content).to_json() | {"request_id": "r0"} | said)


def problem(status: int, code: str, headers: dict[str, str] | None = None, **more: Any) -> Response:
    """A problem document of RFC 9457."""
    document = {"type": f"urn:sbdzsl:error:{code}", "status": status, "code": code, "detail": f"it is {code}"} | more
    return Response(json.dumps(document), status, headers, "application/problem+json")


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it came."""

    path: str
    params: dict[str, str]
    headers: dict[str, str]
    size: int
    connection: int
    at: float


@dataclass
class Service:
    """`script` is answered first, one response a request, whichever; then what the contract says."""

    script: deque[Response] = field(default_factory=deque)
    seen: list[Seen] = field(default_factory=list)
    delay_s: float = 0.0
    is_ready: bool = True
    endpoint: str = ""
    events: int = 0

    @property
    def keys(self) -> list[str]:
        """The idempotency keys in the order they came."""
        return [seen.headers["idempotency-key"] for seen in self.seen]

    async def inspect(self, request: Request) -> Response:
        content = await request.body()
        await self._note(request, len(content))
        if self.script:
            return self.script.popleft()
        await asyncio.sleep(self.delay_s)
        if request.headers["accept"] == "image/png":
            return Response(PNG, media_type="image/png") if content != BAD else problem(400, "unreadable")
        given = request.query_params
        self.events += 1
        echoed = {name: given.get(name) for name in ("camera", "trigger_id", "part_id", "sequence", "captured_at")}
        more = {"uri": given.get("name", ""), "request_id": f"r{self.events}", "event_id": self.events}
        answer = canned(content, **echoed, **more, surface_expected=given.get("surface")).to_json()
        if answer["verdict"] == "error":
            return problem(400, "unreadable", verdict=answer, request_id=f"r{self.events}")
        return Response(json.dumps(answer), media_type="application/json")

    async def get(self, request: Request) -> Response:
        await self._note(request, 0)
        if self.script:
            return self.script.popleft()
        if request.url.path == "/readyz" and not self.is_ready:
            return problem(503, "not-ready")
        return Response(json.dumps({"path": request.url.path}), media_type="application/json")

    async def _note(self, request: Request, size: int) -> None:
        assert request.client is not None
        row = Seen(request.url.path, dict(request.query_params), dict(request.headers), size, request.client.port, 0)
        self.seen.append(replace(row, at=time.monotonic()))

    def app(self) -> fastapi.FastAPI:
        """The routes."""
        app = fastapi.FastAPI()
        app.add_api_route("/v1/inspect", self.inspect, methods=["POST"])
        for path in ("/readyz", "/v1/surfaces", "/v1/bundle"):
            app.add_api_route(path, self.get)
        return app


@contextlib.contextmanager
def running(service: Service | None = None, **tls: Any) -> Iterator[Service]:
    """The service on a free port of this machine, in a thread; with `tls`, uvicorn's settings of it, over https."""
    service = service or Service()
    server = uvicorn.Server(uvicorn.Config(service.app(), port=0, log_level="error", ws="none", lifespan="off", **tls))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    service.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield service
    finally:
        server.should_exit = True
        thread.join()
