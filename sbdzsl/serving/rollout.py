"""Routes that change the bundle in force: swap, candidate, promotion, way back. For a service in one process."""

# No postponed annotations here: FastAPI reads those of the routes, which name what is around them.
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field

from sbdzsl.config import Settings
from sbdzsl.serving.answers import problems
from sbdzsl.serving.candidate import CandidateService, CandidateSettings
from sbdzsl.serving.keys import Door, Key
from sbdzsl.serving.observe import log
from sbdzsl.serving.service import ServiceCard


class NewBundle(Settings):
    """Which bundle to put in force."""

    bundle: str = Field(description="folder or URL of a bundle, as the service can read it")


def rollout_routes(service: CandidateService, door: Door) -> APIRouter:
    """All of them take the scope `admin`, but for the report, which takes `review`."""
    router = APIRouter(prefix="/v1", responses=problems(400, 401, 403, 404, 422, 503))
    admin = Annotated[Key, Depends(door.with_scope("admin"))]

    @router.post("/bundle", summary="Put another bundle in force; requests under way end with the one they began with")
    async def swap(body: NewBundle, who: admin) -> dict[str, Any]:
        return _changed("swap", await service.swap(body.bundle), who)

    @router.post("/bundle/rollback", summary="Put the bundle in force again that was there before")
    async def roll_back(who: admin) -> dict[str, Any]:
        return _changed("rollback", await service.roll_back(), who)

    @router.put("/candidate", summary="Try another bundle beside the one in force")
    async def begin(body: CandidateSettings, who: admin) -> dict[str, Any]:
        _log("candidate", who, bundle=body.bundle, mode=body.mode, share=body.share)
        return await service.begin(body)

    @router.get("/candidate", summary="How the candidate compares so far")
    async def report(_: Annotated[Key, Depends(door.with_scope("review"))]) -> dict[str, Any]:
        return service.report()

    @router.delete("/candidate", summary="Go on with the bundle in force alone", status_code=204)
    async def end(who: admin) -> None:
        _log("candidate ended", who)
        await service.end()

    @router.post("/candidate/promote", summary="Put the candidate in force")
    async def promote(who: admin) -> dict[str, Any]:
        return _changed("promotion", await service.promote(), who)

    return router


def _changed(what: str, card: ServiceCard, who: Key) -> dict[str, Any]:
    _log(what, who, bundle=card.bundle, url=card.bundle_url)
    return {"bundle": card.bundle, "bundle_url": card.bundle_url, "surfaces": sorted(card.surfaces)}


def _log(what: str, who: Key, **fields: Any) -> None:
    log.info(what, extra={"fields": fields | {"by": who.name}})
