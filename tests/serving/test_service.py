"""Queue, deadline and swap of the service in one process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from sbdzsl.errors import BundleError, ServiceError
from sbdzsl.serving.service import Job, LocalService
from sbdzsl.serving.settings import ServeSettings
from tests.conftest import SEEN, Trained

T = TypeVar("T")
Picture = Callable[..., bytes]


def run(bundle_url: str, work: Callable[[LocalService], Awaitable[T]], **settings: Any) -> T:
    """Do something with a started service."""

    async def with_service() -> T:
        service = await LocalService(bundle_url, ServeSettings(threads=1, **settings)).start()
        try:
            return await work(service)
        finally:
            await service.close()

    return asyncio.run(with_service())


def test_more_than_fits_is_refused_and_the_others_are_judged(trained: Trained, picture_of: Picture) -> None:
    async def work(service: LocalService) -> list[Any]:
        jobs = [service.inspect(Job(picture_of(SEEN[0]))) for _ in range(12)]
        return await asyncio.gather(*jobs, return_exceptions=True)

    found = run(trained.bundle_url, work, max_queue=3)
    refused = [one for one in found if isinstance(one, ServiceError)]
    judged = [one for one in found if not isinstance(one, ServiceError)]
    assert len(judged) == 4, "one is judged and three wait"
    assert {one.code for one in refused} == {"overloaded"}
    assert len({one.verdict.defect_score for one in judged}) == 1


def test_the_queue_is_free_again_after_a_rush(trained: Trained, picture_of: Picture) -> None:
    async def work(service: LocalService) -> str:
        rush = [service.inspect(Job(picture_of(SEEN[0]))) for _ in range(8)]
        await asyncio.gather(*rush, return_exceptions=True)
        return (await service.inspect(Job(picture_of(SEEN[0])))).verdict.verdict

    assert run(trained.bundle_url, work, max_queue=2) in ("good", "defect", "unseen")


def test_a_deadline_that_has_passed_is_said(trained: Trained, picture_of: Picture) -> None:
    async def work(service: LocalService) -> None:
        await service.inspect(Job(picture_of(SEEN[0]), deadline=time.monotonic() - 1))

    with pytest.raises(ServiceError, match="not judged within") as caught:
        run(trained.bundle_url, work)
    assert caught.value.code == "deadline-exceeded"


def test_before_the_bundle_is_loaded_it_is_not_ready(trained: Trained) -> None:
    service = LocalService(trained.bundle_url, ServeSettings())
    with pytest.raises(ServiceError) as caught:
        asyncio.run(service.check())
    assert caught.value.code == "not-ready"


def test_a_swap_under_load_loses_no_request(trained: Trained, picture_of: Picture) -> None:
    content = picture_of(SEEN[0])

    async def work(service: LocalService) -> list[Any]:
        async def load() -> list[Any]:
            return [await service.inspect(Job(content)) for _ in range(10)]

        running = asyncio.create_task(load())
        await service.swap(trained.bundle_url)
        with pytest.raises(BundleError):
            await service.swap("/nowhere")
        return await running

    judged = run(trained.bundle_url, work)
    assert len({one.verdict.defect_score for one in judged}) == 1
    assert {one.verdict.bundle for one in judged} == {trained.bundle.digest}


def test_a_check_infers(trained: Trained) -> None:
    async def work(service: LocalService) -> float:
        before = time.monotonic()
        await service.check()
        return time.monotonic() - before

    assert run(trained.bundle_url, work) > 0.001
