"""What happened: answers found again, exported, shown as pictures, and reviewed."""

# No postponed annotations here: FastAPI reads those of the routes, which name what is around them.
import asyncio
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import polars as pl
from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import Response
from pydantic import Field

from sbdzsl.config import ImageSettings, Settings, ThresholdRule
from sbdzsl.errors import ConfigError, ServiceError
from sbdzsl.inspector import load_image
from sbdzsl.report.overlay import encode_thumbnail
from sbdzsl.serving.journal import Event, Wanted
from sbdzsl.serving.keys import Door, Key
from sbdzsl.serving.answers import problems
from sbdzsl.serving.recorder import Recorder
from sbdzsl.serving.service import Job, Service
from sbdzsl.serving.stream import author, summary

#: Rows of one export at most; longer ones are for `sbdzsl log query`.
MAX_EXPORT = 50_000
_PAGE = 2000

#: Pictures are of one judged image for good: the number is never given twice.
_FOREVER = "private, max-age=31536000, immutable"

Decision = Literal["good", "defect", "unsure"]
Verdicts = Literal["good", "defect", "unseen", "error"]


class Review(Settings):
    """What a person says of a verdict; it stands beside it and changes nothing."""

    decision: Decision = Field(description="good, defect, or unsure")
    reason: str = Field(description="one word of the list of reasons")
    comment: str = Field("", max_length=500, description="anything else")
    name: str | None = Field(None, max_length=80, description="who, where the service asks for no key")


def wanted(
    verdict: Annotated[list[Verdicts] | None, Query(description="Only these; may be given again.")] = None,
    surface: Annotated[list[str] | None, Query(description="Only of these surfaces; may be given again.")] = None,
    camera: Annotated[list[str] | None, Query(description="Only of these cameras; may be given again.")] = None,
    since: Annotated[datetime | None, Query(description="Only from this time on.")] = None,
) -> Wanted:
    """The filter of a list of answers."""
    if since is not None and since.tzinfo is None:
        since = since.replace(tzinfo=timezone.utc)
    return Wanted(
        ("verdict",),
        tuple(verdict or ()),
        tuple(surface or ()),
        tuple(camera or ()),
        since.timestamp() if since is not None else None,
    )


def history_routes(service: Service, recorder: Recorder, door: Door) -> APIRouter:
    """Answers of the journal."""
    router = APIRouter(prefix="/v1/verdicts", responses=problems(401, 403, 503))
    pictures = _Pictures(service, recorder)
    Reader = Annotated[Key, Depends(door.with_scope("infer"))]
    Number = Annotated[int, Query(ge=1, lt=2**63)]
    tag = Annotated[str | None, Header(alias="if-none-match", include_in_schema=False)]

    @router.get("", summary="Answers, the newest first", responses=problems(400))
    async def verdicts(
        _: Reader,
        chosen: Annotated[Wanted, Depends(wanted)],
        before: Annotated[int | None, Query(ge=1, lt=2**63, description="Only events numbered below.")] = None,
        limit: Annotated[int, Query(ge=1, le=1000, description="How many at most.")] = 100,
    ) -> dict[str, Any]:
        found = await recorder.latest(before, limit, chosen)
        return {"verdicts": [summary(event) for event in found], "last_id": await recorder.last_id()}

    @router.get("/export", summary="The filtered answers as a file", responses=problems(400))
    async def export(
        _: Reader,
        chosen: Annotated[Wanted, Depends(wanted)],
        form: Annotated[Literal["csv", "parquet"], Query(alias="format", description="Form of the file.")] = "csv",
    ) -> Response:
        table = await asyncio.to_thread(_table, await _all(recorder, chosen))
        data, kind = await asyncio.to_thread(_file, table, form)
        name = f"verdicts-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}.{form}"
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "X-Rows": str(len(table))}
        return Response(data, media_type=kind, headers=headers)

    @router.get("/{number}", summary="One answer, whole, with its reviews", responses=problems(400, 404))
    async def verdict(number: int, _: Reader) -> dict[str, Any]:
        event = await _answer(recorder, number)
        reviews = await recorder.events(number, 100_000, Wanted(kinds=("review",)))
        own = [dict(one.document) | {"at": one.at} for one in reviews if one.document["of"] == number]
        return dict(event.document) | {"at": event.at, "reviews": own}

    @router.get("/{number}/image", summary="The image, byte for byte", responses=problems(400, 404))
    async def image(number: int, _: Reader, known: tag = None) -> Response:
        event = await _answer(recorder, number)
        digest = event.document["image_id"]
        if known == f'"{digest}"':
            return Response(status_code=304)
        return _picture(await recorder.image(number), _media_type, digest)

    @router.get("/{number}/thumbnail", summary="The image as a small JPEG", responses=problems(400, 404))
    async def thumbnail(
        number: int,
        _: Reader,
        size: Annotated[int, Query(ge=32, le=2048, description="Longer side at most, in pixels.")] = 240,
        known: tag = None,
    ) -> Response:
        event = await _answer(recorder, number)
        mark = f"{event.document['image_id']}-{size}"
        if known == f'"{mark}"':
            return Response(status_code=304)
        return _picture(await pictures.thumbnail(event, size), lambda _: "image/jpeg", mark)

    @router.get("/{number}/overlay", summary="The image with what was found, judged again now",
                responses=problems(400, 404, 408, 422, 429))  # fmt: skip
    async def overlay(number: int, _: Reader) -> Response:
        return await pictures.overlay(await _answer(recorder, number))

    @router.post("/{number}/review", summary="Say what it really is", responses=problems(400, 404, 507))
    async def review(
        number: int, body: Review, who: Annotated[Key, Depends(door.with_scope("review"))]
    ) -> dict[str, Any]:
        by = author(who, body.name)
        return {"event_id": await recorder.review(number, by, body.decision, body.reason, body.comment), "who": by}

    return router


@dataclass(frozen=True, slots=True)
class _Pictures:
    """Judged images as pictures that a browser can show."""

    service: Service
    recorder: Recorder

    async def thumbnail(self, event: Event, size: int) -> bytes:
        """The image as it was judged, as a JPEG of at most `size` pixels a side."""
        content = await self.recorder.image(event.id)
        settings = (await self.service.card()).image
        return await asyncio.to_thread(_small, content, settings, event.document["bit_depth"], size)

    async def overlay(self, event: Event) -> Response:
        """The image judged again, by the bundle that is in force now; headers say whether anything changed by that."""
        document = event.document
        content = await self.recorder.image(event.id)
        rule = document["threshold_policy"]
        job = Job(content, document["uri"], document["bit_depth"], rule and ThresholdRule.parse(rule), with_overlay=True)
        judged = await self.service.inspect(job)
        if judged.overlay is None:
            raise ServiceError("bad-request", f"the image of event {event.id} has no overlay: {document['error_detail']}")
        picture = await asyncio.to_thread(_without_strip, judged.overlay, judged.verdict.image_height, judged.verdict.image_width)
        headers = {
            "X-Verdict": judged.verdict.verdict,
            "X-Bundle": judged.verdict.bundle,
            "X-Same-Bundle": str(judged.verdict.bundle == document["bundle"]).lower(),
            "X-Same-Verdict": str(judged.verdict.verdict == document["verdict"]).lower(),
            "Cache-Control": "private, no-cache",
        }
        return Response(picture, media_type="image/png", headers=headers)


async def _answer(recorder: Recorder, number: int) -> Event:
    event = await recorder.event(number) if 0 < number < 2**63 else None
    if event is None or event.kind != "verdict":
        raise ServiceError("unknown-event", f"event {number} is no answer; `GET /v1/verdicts` lists them")
    return event
