"""The HTTP application: FastAPI over a `Service` that judges and a `Recorder` that remembers. Knows nothing of Ray.

    bytes -> limits, key -> Service.inspect -> answer document -> Recorder.record -> answer

Whatever is not good is on disk before it is answered; a good verdict follows within milliseconds (see `journal`).
"""

# No postponed annotations here: FastAPI reads those of the routes, which name what is around them.
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from sbdzsl import __version__
from sbdzsl.config import POLICY_FORMS, ThresholdRule
from sbdzsl.errors import ConfigError, ImageError, SbdzslError, ServiceError
from sbdzsl.serving.answers import Answer, Shot, answer_document, files, problem, problem_response, problems
from sbdzsl.serving.assets import page_routes
from sbdzsl.serving.bodies import RAW_TYPES, Upload, read_uploads
from sbdzsl.serving.candidate import CandidateService
from sbdzsl.serving.history import history_routes, picture_routes
from sbdzsl.serving.keys import Door, Key, KeyFile
from sbdzsl.serving.monitor import Monitor
from sbdzsl.serving.observe import Meter, Observed, log
from sbdzsl.serving.open_inference import open_inference_routes
from sbdzsl.serving.recorder import OWN_FIELDS, Recorder
from sbdzsl.serving.replays import Replays
from sbdzsl.serving.rollout import rollout_routes
from sbdzsl.serving.service import Job, Judged, Service
from sbdzsl.serving.settings import ServeSettings
from sbdzsl.serving.stream import session_routes, stream_routes
from sbdzsl.serving.unseen import unseen_routes

#: Seconds after which a caller who was refused for want of room may come again.
RETRY_AFTER_S = 1


@dataclass(frozen=True, slots=True)
class Asked:
    """The query of an inspection, checked."""

    shot: Shot
    rule: ThresholdRule | None
    name: str
    bit_depth: int | None
    with_regions: bool


def asked(
    camera: Annotated[str | None, Query(max_length=200, description="Which camera took it.")] = None,
    trigger_id: Annotated[str | None, Query(max_length=200, description="The line's own number; echoed.")] = None,
    part_id: Annotated[str | None, Query(max_length=200, description="The part in view; echoed.")] = None,
    sequence: Annotated[
        int | None, Query(ge=0, lt=2**63, description="Number of the image among those of its camera; echoed.")
    ] = None,
    captured_at: Annotated[datetime | None, Query(description="When it was taken; echoed.")] = None,
    surface: Annotated[
        str | None, Query(max_length=200, description="Surface that should be in view: compared, never trusted.")
    ] = None,
    policy: Annotated[str | None, Query(max_length=100, description=f"Threshold policy: {POLICY_FORMS}.")] = None,
    name: Annotated[str, Query(max_length=1000, description="Name of the file, for `uri` in the answer.")] = "",
    bit_depth: Annotated[int | None, Query(ge=8, le=16, description="Significant bits of a 16-bit file.")] = None,
    regions: Annotated[bool, Query(description="Whether the answer lists the places of defects.")] = True,
) -> Asked:
    """Read the query of an inspection. Raises `ConfigError`."""
    shot = Shot(camera, trigger_id, part_id, sequence, captured_at, surface)
    return Asked(shot, ThresholdRule.parse(policy) if policy else None, name, bit_depth, regions)


_REQUEST_BODY = {
    "required": True,
    "description": "The bytes of one image file, or several files as a form.",
    "content": {
        **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in RAW_TYPES},
        "multipart/form-data": {
            "schema": {"type": "object", "additionalProperties": {"type": "string", "format": "binary"}}
        },
    },
}

_INSPECTED = files(
    "The verdict; the picture that explains it where `Accept` is image/png; `verdicts`, a list of answers, for a form.",
    "image/png",
)


class _Inspection:
    """One image or several: judged, recorded, answered."""

    def __init__(
        self,
        service: Service,
        settings: ServeSettings,
        recorder: Recorder | None,
        meter: Meter,
        monitor: Monitor | None,
    ) -> None:
        self._service = service
        self._settings = settings
        self._recorder = recorder
        self._meter = meter
        self._monitor = monitor
        self._replays = Replays()

    async def one(
        self, request: Request, upload: Upload, query: Asked, deadline: float, key: str | None, as_png: bool
    ) -> Response:
        """Judge one image, once for each idempotency key."""
        request_id = request.state.request_id
        if key is None or as_png:
            document, judged = await self._judge(upload, query, deadline, request_id, as_png)
            request.state.log_fields = _log_fields(document)
            return _response(document, request_id, judged.overlay)
        with self._replays.begin(key, upload.content) as replay:
            if replay.document is None:
                replay.document = await self._earlier(key, replay.image_id)
            if replay.document is None:
                replay.document, _ = await self._judge(upload, query, deadline, request_id, False, key)
                request.state.log_fields = _log_fields(replay.document)
        return _response(replay.document, request_id)

    async def document(self, content: bytes, deadline: float, request_id: str) -> dict[str, Any]:
        """Judge one image of which nothing else is known."""
        query = Asked(Shot(), None, "", None, True)
        found, _ = await self._judge(Upload(content), query, deadline, request_id, False)
        return found

    async def several(self, request: Request, uploads: list[Upload], query: Asked, deadline: float) -> Response:
        """Judge the images of a form, in order; a bad one is a verdict "error" among the others."""
        documents = []
        for upload in uploads:
            document, _ = await self._judge(upload, query, deadline, request.state.request_id, False)
            documents.append(document)
        request.state.log_fields = {"images": len(documents)}
        return JSONResponse({"verdicts": documents})

    async def _judge(
        self, upload: Upload, query: Asked, deadline: float, request_id: str, as_png: bool, key: str | None = None
    ) -> tuple[dict[str, Any], Judged]:
        await self._check_expected(query.shot.surface)
        job = Job(upload.content, upload.name or query.name, query.bit_depth, query.rule, as_png, deadline)
        try:
            with self._meter.in_flight.track_inprogress():
                judged = await self._service.inspect(job)
        except ServiceError:
            if self._monitor is not None:
                await self._monitor.refused()
            raise
        document = answer_document(judged.verdict, query.shot, request_id, judged.queue_ms)
        self._meter.count_answer(document)
        if self._recorder is not None:
            kept = document if key is None else document | {"idempotency_key": key}
            document["event_id"] = await self._recorder.record(kept, upload.content)
        return (document if query.with_regions else document | {"regions": []}), judged

    async def _check_expected(self, surface: str | None) -> None:
        if surface is None:
            return
        known = (await self._service.card()).surfaces
        if surface not in known:
            raise ConfigError("bad-config", f"surface {surface!r} is not in the bundle, which knows {', '.join(known)}")

    async def _earlier(self, key: str, image_id: str) -> dict[str, Any] | None:
        """The answer that an earlier process gave under this key."""
        event = await self._recorder.answered(key) if self._recorder is not None else None
        if event is None:
            return None
        document = {name: value for name, value in event.document.items() if name not in OWN_FIELDS}
        Replays.require_same(key, document["image_id"], image_id)
        return document


def build_app(
    service: Service,
    settings: ServeSettings,
    recorder: Recorder | None = None,
    keys: KeyFile | None = None,
    monitor: Monitor | None = None,
    rollout: CandidateService | None = None,
) -> FastAPI:
    """The application. Without a `recorder` nothing is kept, and without a `monitor` of it there is no operator page;
    without `keys` anyone who can connect may do anything.

    `rollout` is the service itself where this process answers all requests, so that one of them can change its bundle.
    Who runs the application sets `app.state.is_stopping`, so that live streams end when it is told to stop; its metrics
    are `app.state.meter`.
    """
    meter = Meter()
    if recorder is not None:
        recorder.watched_by(meter)
    app = FastAPI(
        title="sbdzsl",
        version=__version__,
        description="Names the surface in an image or says unseen, then finds its defects.",
        docs_url=None,  # both load scripts from other hosts, which a plant does not reach
        redoc_url=None,
        middleware=[Middleware(Observed, meter=meter)],
    )
    door = Door(keys)
    inspection = _Inspection(service, settings, recorder, meter, monitor)
    app.include_router(_inspection_routes(inspection, settings, door))
    app.include_router(open_inference_routes(service, inspection.document, settings, door))
    app.include_router(_bundle_routes(service, door))
    if rollout is not None:
        app.include_router(rollout_routes(rollout, door))
    app.include_router(_health_routes(service, recorder, meter))
    app.state.is_stopping = lambda: False
    app.state.meter = meter
    if recorder is not None and monitor is not None:
        app.include_router(stream_routes(service, recorder, monitor, door))
        app.include_router(history_routes(recorder, door))
        app.include_router(picture_routes(service, recorder, door))
        app.include_router(unseen_routes(service, recorder, door))
        app.include_router(session_routes(door))
        app.include_router(page_routes())
    _handle_errors(app)
    return app


def _inspection_routes(inspection: _Inspection, settings: ServeSettings, door: Door) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.post(
        "/inspect",
        summary="Judge an image",
        response_model=Answer,
        responses=problems(400, 401, 403, 408, 409, 413, 415, 422, 429, 503, 507) | _INSPECTED,
        openapi_extra={"requestBody": _REQUEST_BODY},
    )
    async def inspect(
        request: Request,
        query: Annotated[Asked, Depends(asked)],
        who: Annotated[Key, Depends(door.with_scope("infer"))],
        accept: Annotated[str, Header(include_in_schema=False)] = "*/*",
        idempotency_key: Annotated[
            str | None, Header(max_length=200, description="The same key and image get the same answer, once.")
        ] = None,
    ) -> Response:
        deadline = time.monotonic() + settings.deadline_s
        uploads, is_form = await read_uploads(request, settings)
        if is_form:
            return await inspection.several(request, uploads, query, deadline)
        key = idempotency_key and f"{who.name}:{idempotency_key}"
        return await inspection.one(request, uploads[0], query, deadline, key, "image/png" in accept)

    return router


def _bundle_routes(service: Service, door: Door) -> APIRouter:
    router = APIRouter(prefix="/v1", responses=problems(401, 403, 503))

    @router.get("/bundle", summary="The bundle in force")
    async def bundle(_: Annotated[Key, Depends(door.with_scope("infer"))]) -> dict[str, Any]:
        card = await service.card()
        return asdict(card) | {"image": card.image.model_dump(), "surfaces": sorted(card.surfaces)}

    @router.get("/surfaces", summary="The surfaces it knows, with their thresholds")
    async def surfaces(_: Annotated[Key, Depends(door.with_scope("infer"))]) -> dict[str, dict[str, Any]]:
        return {name: dict(values) for name, values in (await service.card()).surfaces.items()}

    return router


def _health_routes(service: Service, recorder: Recorder | None, meter: Meter) -> APIRouter:
    router = APIRouter()

    @router.get("/livez", summary="The process answers")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @router.get("/readyz", summary="An image can be judged and kept; both tried", responses=problems(408, 503, 507))
    async def readyz() -> dict[str, str]:
        await service.check()
        if recorder is not None:
            await recorder.check()
        return {"status": "ready"}

    @router.get("/metrics", summary="Metrics, as Prometheus reads them", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(meter.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _response(document: dict[str, Any], request_id: str, overlay: bytes | None = None) -> Response:
    """An answer as JSON or as its picture; a problem where the image was bad."""
    code = document["error_code"]
    if code is not None:
        status = ImageError.CODES[code]
        return problem_response(status, code, document["error_detail"], request_id, {"verdict": document})
    if overlay is not None:
        headers = {"X-Verdict": document["verdict"], "X-Event-ID": str(document["event_id"] or "")}
        return Response(overlay, media_type="image/png", headers=headers)
    return JSONResponse(document)


def _log_fields(document: dict[str, Any]) -> dict[str, Any]:
    names = ("event_id", "camera", "trigger_id", "sequence", "verdict", "surface", "error_code")
    return {name: document[name] for name in names if document[name] is not None}


def _handle_errors(app: FastAPI) -> None:
    """Every failure is a problem document."""

    @app.exception_handler(SbdzslError)
    async def known(request: Request, error: SbdzslError) -> Response:
        return problem(error, request.state.request_id, retry_after_s=RETRY_AFTER_S)

    @app.exception_handler(RequestValidationError)
    async def bad_parameter(request: Request, error: RequestValidationError) -> Response:
        found = "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
        return problem(ServiceError("bad-request", found), request.state.request_id)

    @app.exception_handler(Exception)
    async def ours(request: Request, error: Exception) -> Response:
        log.exception("a mistake of this program", exc_info=error)
        detail = f"a mistake of this program, {type(error).__name__}; the log has it under this request id"
        return problem_response(500, "internal", detail, request.state.request_id)

    @app.exception_handler(HTTPException)
    async def no_such_path(request: Request, error: HTTPException) -> Response:
        code = {404: "no-such-path", 405: "no-such-method"}.get(error.status_code, "bad-request")
        response = problem_response(error.status_code, code, str(error.detail), request.state.request_id)
        response.headers.update(error.headers or {})
        return response
