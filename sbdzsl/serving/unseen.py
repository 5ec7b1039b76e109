"""Unseen images of late, grouped by what they look like; each group may be enrolled, or extend a known surface."""

# No postponed annotations here: FastAPI reads those of the routes, which name what is around them.
import asyncio
import io
import re
import shlex
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response

from sbdzsl import bundle as bundles
from sbdzsl.datasets.sample import Sample
from sbdzsl.errors import ServiceError
from sbdzsl.grouping import Group, group_unseen
from sbdzsl.serving.answers import files, problems
from sbdzsl.serving.journal import Event, Wanted
from sbdzsl.serving.keys import Door, Key
from sbdzsl.serving.recorder import Recorder
from sbdzsl.serving.service import Service, ServiceCard

#: Unseen answers that are looked at, the newest, and their bytes together: to embed them takes seconds.
MAX_IMAGES, MAX_BYTES = 120, 256 * 2**20
#: Images of one archive.
MAX_ARCHIVED = 500

_UNSEEN = Wanted(kinds=("verdict",), verdicts=("unseen",))


def unseen_routes(service: Service, recorder: Recorder, door: Door) -> APIRouter:
    """The gallery of the unseen, on demand."""
    router = APIRouter(prefix="/v1/unseen", responses=problems(401, 403, 503))
    one_at_a_time = asyncio.Lock()

    @router.get("", summary="Unseen images of late, grouped by what they look like", responses=problems(404, 429))
    async def groups(_: Annotated[Key, Depends(door.with_scope("review"))]) -> dict[str, Any]:
        if one_at_a_time.locked():
            raise ServiceError("overloaded", "the unseen images are being grouped for somebody else; ask again soon")
        async with one_at_a_time:
            events = await recorder.latest(None, MAX_IMAGES, _UNSEEN)
            contents = await _contents(recorder, events)
            return await asyncio.to_thread(_grouped, await service.card(), events, contents)

    @router.get(
        "/images.tar",
        summary="Images of some events, to enrol them",
        response_class=Response,
        responses=problems(400, 404) | files("The images.", "application/x-tar"),
    )
    async def images(
        _: Annotated[Key, Depends(door.with_scope("review"))],
        event: Annotated[list[int], Query(min_length=1, max_length=MAX_ARCHIVED, description="Which.")],
    ) -> Response:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for number in sorted(set(event)):
                found = await recorder.event(number)
                if found.kind != "verdict":
                    raise ServiceError("unknown-event", f"event {number} is no answer with an image")
                content = await recorder.image(number)
                member = tarfile.TarInfo(_file_name(found))
                member.size, member.mtime = len(content), int(found.at)
                archive.addfile(member, io.BytesIO(content))
        headers = {"Content-Disposition": 'attachment; filename="unseen.tar"'}
        return Response(buffer.getvalue(), media_type="application/x-tar", headers=headers)

    return router


async def _contents(recorder: Recorder, events: Sequence[Event]) -> dict[int, bytes]:
    """The images of the events that are still there, one for each that is alike byte for byte."""
    found: dict[int, bytes] = {}
    seen: set[str] = set()
    size = 0
    for event in events:
        if event.document["image_id"] in seen or size > MAX_BYTES:
            continue
        seen.add(event.document["image_id"])
        try:
            found[event.id] = await recorder.image(event.id)
        except ServiceError:  # cleared away: counted as missing in the answer
            continue
        size += len(found[event.id])
    return found


def _grouped(card: ServiceCard, events: Sequence[Event], contents: Mapping[int, bytes]) -> dict[str, Any]:
    by_image = {event.document["image_id"]: event for event in events if event.id in contents}
    with tempfile.TemporaryDirectory() as folder:
        samples = []
        for image_id, event in by_image.items():
            path = Path(folder) / image_id
            path.write_bytes(contents[event.id])
            samples.append(Sample(image_id, str(path), bit_depth=event.document["bit_depth"]))
        found = group_unseen(bundles.load(card.bundle_url), samples, report=lambda _: None)
    return {
        "bundle": card.bundle[:16],
        "num_unseen": len(events),
        "num_read": len(samples),
        "num_known": found.num_known,
        "num_unreadable": found.num_unreadable,
        "single": [by_image[one.sample.image_id].id for one in found.single],
        "groups": [_described(group, card.bundle_url, by_image) for group in found.groups],
    }


def _described(group: Group, bundle_url: str, by_image: Mapping[str, Event]) -> dict[str, Any]:
    numbers = [by_image[member.sample.image_id].id for member in group.members]
    query = "&".join(f"event={number}" for number in numbers[:MAX_ARCHIVED])

    def command(verb: str, surface: str) -> str:
        return (
            "mkdir unseen && tar -xf unseen.tar -C unseen && "
            f"sbdzsl {verb} --bundle {shlex.quote(bundle_url)} --images unseen --surface {surface} --out NEW_BUNDLE"
        )

    return {
        "name": group.name,
        "events": numbers,
        "nearest": list(group.nearest),
        "attributes": list(group.attributes),
        "most_alike": group.most_alike,
        "archive": f"v1/unseen/images.tar?{query}",
        "enrol": command("enrol", "NAME"),
        "extend": command("extend", shlex.quote(group.nearest[0])),
    }


def _file_name(event: Event) -> str:
    """A name that is safe on any disk, with the number in front and the suffix of what was sent."""
    name = re.sub(r"[^\w.-]+", "_", event.document["uri"].rpartition("/")[2])[-80:].lstrip(".")
    return f"{event.id:08d}-{name}" if "." in name else f"{event.id:08d}-{name[:16]}.png"
