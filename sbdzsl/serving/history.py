"""What happened: answers found again, exported, shown as pictures, and reviewed."""

# No postponed annotations here: FastAPI reads those of the routes, which name what is around them.
import asyncio
import io
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
from sbdzsl.errors import ServiceError
from sbdzsl.inspector import load_image
from sbdzsl.report.overlay import encode_thumbnail
from sbdzsl.serving.answers import NOT_MODIFIED, files, problems
from sbdzsl.serving.bodies import RAW_TYPES
from sbdzsl.serving.journal import Event, Wanted
from sbdzsl.serving.keys import Door, Key
from sbdzsl.serving.log import to_parquet
from sbdzsl.serving.recorder import Recorder
from sbdzsl.serving.service import Job, Service
from sbdzsl.serving.stream import author, summary
from sbdzsl.spreadsheet import table_csv

#: Rows of one export at most; longer ones are for `sbdzsl log query`.
MAX_EXPORT = 50_000
_PAGE = 2000

_KINDS = {
    b"\x89PNG": "image/png",
    b"\xff\xd8": "image/jpeg",
    b"BM": "image/bmp",
    b"RIFF": "image/webp",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
}

#: Pictures are of one judged image for good: the number is never given twice.
_FOREVER = "private, max-age=31536000, immutable"

#: The picture that a browser has already.
KnownTag = Annotated[str | None, Header(include_in_schema=False)]
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


def history_routes(recorder: Recorder, door: Door) -> APIRouter:
    """Answers of the journal, as lists, files and documents, and what people say of them."""
    router = APIRouter(prefix="/v1/verdicts", responses=problems(401, 403, 503))

    @router.get("", summary="Answers, the newest first", responses=problems(400))
    async def verdicts(
        _: Annotated[Key, Depends(door.with_scope("infer"))],
        chosen: Annotated[Wanted, Depends(wanted)],
        before: Annotated[int | None, Query(ge=1, lt=2**63, description="Only events numbered below.")] = None,
        limit: Annotated[int, Query(ge=1, le=1000, description="How many at most.")] = 100,
    ) -> dict[str, Any]:
        found = await recorder.latest(before, limit, chosen)
        return {"verdicts": [summary(event) for event in found], "last_id": await recorder.last_id()}

    @router.get(
        "/export",
        summary="The filtered answers as a file, in the columns of the verdict log",
        response_class=Response,
        responses=problems(400) | files("The file.", "text/csv", "application/vnd.apache.parquet"),
    )
    async def export(
        _: Annotated[Key, Depends(door.with_scope("infer"))],
        chosen: Annotated[Wanted, Depends(wanted)],
        form: Annotated[Literal["csv", "parquet"], Query(alias="format", description="Form of the file.")] = "csv",
    ) -> Response:
        events = await _all(recorder, chosen)
        data = await asyncio.to_thread(to_parquet, events, await recorder.identity())
        if form == "csv":
            data = await asyncio.to_thread(_csv, data)
        kind = "text/csv; charset=utf-8" if form == "csv" else "application/vnd.apache.parquet"
        name = f"verdicts-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}.{form}"
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "X-Rows": str(len(events))}
        return Response(data, media_type=kind, headers=headers)

    @router.get("/{number}", summary="One answer, whole, with its reviews", responses=problems(400, 404))
    async def verdict(number: int, _: Annotated[Key, Depends(door.with_scope("infer"))]) -> dict[str, Any]:
        event = await _answer(recorder, number)
        reviews = await recorder.events(number, 100_000, Wanted(kinds=("review",)))
        own = [dict(one.document) | {"at": one.at} for one in reviews if one.document["of"] == number]
        return dict(event.document) | {"at": event.at, "reviews": own}

    @router.post("/{number}/review", summary="Say what it really is", responses=problems(400, 404, 507))
    async def review(
        number: int, body: Review, who: Annotated[Key, Depends(door.with_scope("review"))]
    ) -> dict[str, Any]:
        by = author(who, body.name)
        return {"event_id": await recorder.review(number, by, body.decision, body.reason, body.comment), "who": by}

    return router


def picture_routes(service: Service, recorder: Recorder, door: Door) -> APIRouter:
    """Judged images: as they came, small, and with what was found."""
    router = APIRouter(prefix="/v1/verdicts", responses=problems(401, 403, 503))
    pictures = _Pictures(service, recorder)

    @router.get(
        "/{number}/image",
        summary="The image, byte for byte",
        response_class=Response,
        responses=problems(400, 404) | files("The file as it came.", *RAW_TYPES) | NOT_MODIFIED,
    )
    async def image(
        number: int, _: Annotated[Key, Depends(door.with_scope("infer"))], if_none_match: KnownTag = None
    ) -> Response:
        event = await _answer(recorder, number)
        digest = event.document["image_id"]
        if if_none_match == f'"{digest}"':
            return Response(status_code=304)
        content = await recorder.image(number)
        return _picture(content, _media_type(content), digest)

    @router.get(
        "/{number}/thumbnail",
        summary="The image as a small JPEG",
        response_class=Response,
        responses=problems(400, 404, 413, 415, 422) | files("The picture.", "image/jpeg") | NOT_MODIFIED,
    )
    async def thumbnail(
        number: int,
        _: Annotated[Key, Depends(door.with_scope("infer"))],
        size: Annotated[int, Query(ge=32, le=2048, description="Longer side at most, in pixels.")] = 240,
        if_none_match: KnownTag = None,
    ) -> Response:
        event = await _answer(recorder, number)
        mark = f"{event.document['image_id']}-{size}"
        if if_none_match == f'"{mark}"':
            return Response(status_code=304)
        return _picture(await pictures.thumbnail(event, size), "image/jpeg", mark)

    @router.get(
        "/{number}/overlay",
        summary="The image with what was found, judged again now",
        response_class=Response,
        responses=problems(400, 404, 408, 422, 429) | files("The picture.", "image/png"),
    )
    async def overlay(number: int, _: Annotated[Key, Depends(door.with_scope("infer"))]) -> Response:
        return await pictures.overlay(await _answer(recorder, number))

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
        job = Job(
            content, document["uri"], document["bit_depth"], rule and ThresholdRule.parse(rule), with_overlay=True
        )
        judged = await self.service.inspect(job)
        if judged.overlay is None:
            raise ServiceError(
                "bad-request", f"the image of event {event.id} has no overlay: {document['error_detail']}"
            )
        picture = await asyncio.to_thread(
            _without_strip, judged.overlay, judged.verdict.image_height, judged.verdict.image_width
        )
        headers = {
            "X-Verdict": judged.verdict.verdict,
            "X-Bundle": judged.verdict.bundle,
            "X-Same-Bundle": str(judged.verdict.bundle == document["bundle"]).lower(),
            "X-Same-Verdict": str(judged.verdict.verdict == document["verdict"]).lower(),
            "Cache-Control": "private, no-cache",
        }
        return Response(picture, media_type="image/png", headers=headers)


async def _answer(recorder: Recorder, number: int) -> Event:
    event = await recorder.event(number)
    if event.kind != "verdict":
        raise ServiceError("unknown-event", f"event {number} is no answer; `GET /v1/verdicts` lists them")
    return event


def _picture(content: bytes, kind: str, mark: str) -> Response:
    headers = {"ETag": f'"{mark}"', "Cache-Control": _FOREVER, "X-Content-Type-Options": "nosniff"}
    return Response(content, media_type=kind, headers=headers)


def _media_type(content: bytes) -> str:
    """What the bytes are by their first ones; never a type that a browser would run."""
    for start, kind in _KINDS.items():
        if content.startswith(start):
            return kind
    return "application/octet-stream"


def _small(content: bytes, settings: ImageSettings, bit_depth: int | None, size: int) -> bytes:
    loaded = load_image("", "", settings, bit_depth, content=content)
    if loaded.image is None:
        assert loaded.error is not None
        raise loaded.error
    tone = np.rint(np.clip(loaded.image.grey(), 0, 1) * 255).astype(np.uint8)
    return encode_thumbnail(np.repeat(tone[:, :, None], 3, axis=2), size, size)


def _without_strip(png: bytes, height: int | None, width: int | None) -> bytes:
    """An overlay without the strip of words below it, so that it lies exactly on the image."""
    drawn = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert drawn is not None
    done, data = cv2.imencode(".png", drawn[:height, :width])
    assert done
    return data.tobytes()


async def _all(recorder: Recorder, chosen: Wanted) -> list[Event]:
    """Every event of a filter, the newest first. Raises `ServiceError` "bad-request" where they are too many."""
    found: list[Event] = []
    while page := await recorder.latest(found[-1].id if found else None, _PAGE, chosen):
        found += page
        if len(found) > MAX_EXPORT:
            raise ServiceError(
                "bad-request",
                f"the filter matches more than {MAX_EXPORT} answers: narrow it, or query the verdict log instead",
            )
    return found


def _csv(parquet: bytes) -> bytes:
    """The table flat, for a spreadsheet: lists as words, regions counted, times in UTC."""
    flat = pl.read_parquet(io.BytesIO(parquet)).with_columns(
        pl.col("regions").list.len().alias("num_regions"),
        pl.col("attributes", "nearest_surfaces").list.join("; "),
        pl.col("nearest_scores", "class_embedding").list.eval(pl.element().cast(pl.String)).list.join("; "),
    )
    return table_csv(flat.drop("regions"))
