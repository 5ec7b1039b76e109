"""What happens now: the live stream of events, counters, alarms, and who is at the page."""

# No postponed annotations here: FastAPI reads those of the routes, which name what is around them.
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import JSONResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import Field

from sbdzsl import __version__
from sbdzsl.config import Settings
from sbdzsl.errors import ServiceError
from sbdzsl.serving.alarms import MAX_SHELVED_S
from sbdzsl.serving.answers import problems
from sbdzsl.serving.journal import Event, Wanted
from sbdzsl.serving.keys import COOKIE, LOCAL, Door, Key
from sbdzsl.serving.monitor import Monitor
from sbdzsl.serving.recorder import Recorder
from sbdzsl.serving.rules import total_ms
from sbdzsl.serving.service import Service

#: Seconds between two signs of life. A page that saw none for two of them knows that it is stale.
HEARTBEAT_S = 10.0
#: How soon a reader that lost the stream comes back, in ms.
RETRY_MS = 2000
#: Events that a reader who comes back is told one by one; of more, he is told how many were left out.
MAX_REPLAY = 500

#: Kinds that readers are told of; snapshots of counters are the journal's own.
SHOWN = Wanted(kinds=("verdict", "alarm", "review"))

#: Longest wait for news before the stream looks whether the service is being stopped, in seconds.
_WAIT_S = 1.0
_NAMES = (
    "event_id", "image_id", "verdict", "surface", "camera", "part_id", "trigger_id", "sequence", "captured_at",
    "inspected_at", "defect_score", "defect_threshold", "defect_probability", "unseen_score", "unseen_threshold",
    "unseen_p_value", "threshold_policy", "error_code", "image_width", "image_height", "surface_as_expected",
    "surface_expected", "extrapolated",
)  # fmt: skip


class Acknowledgement(Settings):
    """A person has seen an alarm."""

    comment: str = Field("", max_length=500, description="what he found or did")
    name: str | None = Field(None, max_length=80, description="who, where the service asks for no key")


class Shelving(Settings):
    """An alarm is put aside for a time."""

    minutes: float = Field(gt=0, le=MAX_SHELVED_S / 60, description="for how long")
    reason: str = Field(min_length=1, max_length=500, description="why")
    name: str | None = Field(None, max_length=80, description="who, where the service asks for no key")


class Reset(Settings):
    """Counters begin at zero again."""

    reason: str = Field(min_length=1, max_length=500, description="why, such as 'shift change'")
    name: str | None = Field(None, max_length=80, description="who, where the service asks for no key")


class SignIn(Settings):
    """An API key, to be kept by the browser."""

    key: str = Field(max_length=200, pattern=r"^[!-~]+$", description="the API key")


def author(who: Key, name: str | None) -> str:
    """Under which name something is done: the key's own; what the person says only where no key is asked for."""
    return who.name if who is not LOCAL else (name or "").strip() or LOCAL.name


def stream_routes(service: Service, recorder: Recorder, monitor: Monitor, door: Door) -> APIRouter:
    """Stream, counters and alarms."""
    router = APIRouter(prefix="/v1", responses=problems(401, 403, 503))

    @router.get("/events", summary="What happens, as server-sent events", response_class=EventSourceResponse)
    async def events(
        request: Request,
        _: Annotated[Key, Depends(door.with_scope("infer"))],
        after: Annotated[int | None, Query(ge=0, lt=2**63, description="Number of the last event seen.")] = None,
        last_event_id: Annotated[str | None, Header(description="The same, as a browser sends it by itself.")] = None,
    ) -> AsyncIterator[ServerSentEvent]:
        seen = int(last_event_id) if last_event_id and last_event_id.isdecimal() else after
        async for one in _stream(service, recorder, monitor, seen, request.app.state.is_stopping):
            yield one

    @router.get("/counters", summary="Counters of the shift")
    async def counters(_: Annotated[Key, Depends(door.with_scope("infer"))]) -> dict[str, Any]:
        return await monitor.counters()

    @router.get("/trend", summary="Verdicts and latencies of the last hour, minute by minute")
    async def trend(_: Annotated[Key, Depends(door.with_scope("infer"))]) -> dict[str, Any]:
        return {"minutes": await monitor.trend()}

    @router.post("/counters/reset", summary="Begin to count anew", responses=problems(400, 507))
    async def reset(body: Reset, who: Annotated[Key, Depends(door.with_scope("review"))]) -> dict[str, Any]:
        return await monitor.reset(author(who, body.name), body.reason)

    @router.get("/alarms", summary="Alarms that are not over")
    async def alarms(_: Annotated[Key, Depends(door.with_scope("infer"))]) -> dict[str, Any]:
        return await monitor.alarms()

    @router.post(
        "/alarms/{number}/acknowledge", summary="Say that an alarm was seen", responses=problems(400, 404, 507)
    )
    async def acknowledge(
        number: str, body: Acknowledgement, who: Annotated[Key, Depends(door.with_scope("review"))]
    ) -> dict[str, Any]:
        return await monitor.acknowledge(number, author(who, body.name), body.comment)

    @router.post("/alarms/{number}/shelve", summary="Put an alarm aside for a time", responses=problems(400, 404, 507))
    async def shelve(
        number: str, body: Shelving, who: Annotated[Key, Depends(door.with_scope("review"))]
    ) -> dict[str, Any]:
        return await monitor.shelve(number, author(who, body.name), body.minutes * 60, body.reason)

    return router


def session_routes(door: Door) -> APIRouter:
    """Signing in and out: the key goes into a cookie that scripts cannot read and other sites cannot send."""
    router = APIRouter(prefix="/v1/session")

    @router.get("", summary="Who is signed in", responses=problems(401))
    async def whoami(request: Request) -> dict[str, Any]:
        return _session(door.find(request))

    @router.post("", summary="Sign in with an API key", responses=problems(400, 401))
    async def sign_in(request: Request, body: SignIn) -> Response:
        response = JSONResponse(_session(door.owner(body.key)))
        is_secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, body.key, httponly=True, samesite="strict", secure=is_secure, path="/")
        return response

    @router.delete("", summary="Sign out", status_code=204)
    async def sign_out() -> Response:
        response = Response(status_code=204)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict", path="/")
        return response

    return router


def summary(event: Event) -> dict[str, Any]:
    """An answer in less than 2 kB: what the page shows at once. Its pictures are paths beside it."""
    document = event.document
    number = f"v1/verdicts/{event.id}"
    return {name: document[name] for name in _NAMES} | {
        "at": event.at,
        "name": document["uri"][-120:],
        "bundle": document["bundle"][:16],
        "attributes": [word[:60] for word in document["attributes"][:6]],
        "nearest_surfaces": document["nearest_surfaces"][:3],
        "nearest_scores": document["nearest_scores"][:3],
        "error_detail": document["error_detail"] and document["error_detail"][:240],
        "num_regions": len(document["regions"]),
        "total_ms": round(total_ms(document), 2),
        "queue_ms": round(document["queue_ms"] or 0.0, 2),
        "image": f"{number}/image",
        "thumbnail": f"{number}/thumbnail",
        "overlay": f"{number}/overlay",
    }


def _session(who: Key) -> dict[str, Any]:
    return {"name": who.name, "scopes": list(who.scopes), "needs_key": who is not LOCAL, "version": __version__}


def _message(event: Event) -> ServerSentEvent:
    data = summary(event) if event.kind == "verdict" else dict(event.document) | {"event_id": event.id, "at": event.at}
    return ServerSentEvent(event=event.kind, id=str(event.id), data=data)


async def _stream(
    service: Service, recorder: Recorder, monitor: Monitor, after: int | None, is_stopping: Callable[[], bool]
) -> AsyncIterator[ServerSentEvent]:
    last = await recorder.last_id()
    seen = last if after is None else min(after, last)
    if last - seen > MAX_REPLAY:
        yield ServerSentEvent(event="gap", data={"after": seen, "events": last - MAX_REPLAY - seen})
        seen = last - MAX_REPLAY
    yield await _health(service, recorder, RETRY_MS)
    beat_at, told = time.monotonic(), None
    while not is_stopping():
        for event in await recorder.events(seen, 100, SHOWN, _WAIT_S):
            seen = event.id
            yield _message(event)
        counters = await monitor.counters()
        if counters != told:
            told = counters
            yield ServerSentEvent(event="counter", data=counters)
        if time.monotonic() - beat_at >= HEARTBEAT_S:
            beat_at = time.monotonic()
            yield await _health(service, recorder)


async def _health(service: Service, recorder: Recorder, retry: int | None = None) -> ServerSentEvent:
    """A sign of life: the time here, what fails, and which bundle is in force."""
    data: dict[str, Any] = {"at": time.time(), "troubles": await recorder.troubles(), "version": __version__}
    try:
        card = await service.card()
        data |= {"bundle": card.bundle[:16], "bundle_url": card.bundle_url, "surfaces": sorted(card.surfaces)}
    except ServiceError as error:
        data |= {"bundle": None, "detail": error.message}
    return ServerSentEvent(event="health", data=data | {"heartbeat_s": HEARTBEAT_S}, retry=retry)
