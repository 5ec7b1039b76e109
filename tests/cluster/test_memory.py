"""The memory of a service on a cluster, without a cluster: what it is told, and who tells it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sbdzsl import bundle as bundles
from sbdzsl.cluster.memory import Memory, RemotePart
from sbdzsl.errors import ServiceError
from sbdzsl.serving.settings import ServeSettings
from tests.conftest import Trained


def test_it_loads_a_bundle_once_however_often_it_is_told(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = bundles.load
    monkeypatch.setattr(bundles, "load", lambda url, *more: loads.append(url) or load(url, *more))

    async def tell() -> str:
        memory = object.__new__(Memory)
        await Memory.__init__(memory, ServeSettings(data=str(tmp_path)))
        try:
            with pytest.raises(ServiceError, match="being loaded"):
                await memory._in_force()
            for _ in range(3):
                await memory.follow(trained.bundle_url)
            return (await memory._in_force())[0]
        finally:
            await memory.__del__()

    assert asyncio.run(tell()) == trained.bundle.digest
    assert loads == [trained.bundle_url]


def test_errors_of_the_memory_are_errors_of_whoever_asks(tmp_path: Path) -> None:
    class Handle:
        """Calls as a handle does, but here."""

        def __init__(self, memory: Memory) -> None:
            self.call = self
            self.remote = memory.call

    async def ask() -> None:
        memory = object.__new__(Memory)
        await Memory.__init__(memory, ServeSettings(data=str(tmp_path)))
        try:
            recorder = RemotePart(Handle(memory), "recorder")
            assert await recorder.last_id() == 0
            await recorder.event(7)
        finally:
            await memory.__del__()

    with pytest.raises(ServiceError) as caught:
        asyncio.run(ask())
    assert caught.value.code == "unknown-event"
