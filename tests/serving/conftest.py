"""The application over a real bundle, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from sbdzsl.inspector import Inspector, load_image
from sbdzsl.serving.app import build_app
from sbdzsl.serving.candidate import CandidateService
from sbdzsl.serving.keys import KeyFile
from sbdzsl.serving.recorder import Recorder
from sbdzsl.serving.service import LocalService
from sbdzsl.serving.settings import ServeSettings
from tests.conftest import UNSEEN, Trained


@dataclass(frozen=True)
class Served:
    """A client of a running application, and what it was made of."""

    client: TestClient
    service: CandidateService


@contextmanager
def served(
    bundle_url: str, settings: ServeSettings, keys: KeyFile | None = None, data: Path | None = None
) -> Iterator[Served]:
    """The application, on a loop of its own, as a server would run it."""
    service = CandidateService(asyncio.run(LocalService(bundle_url, settings).start()), settings)
    with ExitStack() as stack:
        recorder = Recorder(str(data), settings.keep, settings.alerts, settings.public_url) if data else None
        if recorder is not None:
            stack.callback(recorder.close)
        client = stack.enter_context(TestClient(build_app(service, settings, recorder, keys, rollout=service)))
        yield Served(client, service)
    asyncio.run(service.close())


@pytest.fixture(scope="module")
def plain(trained: Trained) -> Iterator[Served]:
    """An application that keeps nothing and asks no key."""
    with served(trained.bundle_url, ServeSettings(threads=1)) as running:
        yield running


@pytest.fixture(scope="session")
def picture_of(trained: Trained) -> Callable[..., bytes]:
    """The bytes of the n-th image of a surface and label; of a seen surface, one that the bundle names."""
    rows = trained.manifest.select(["surface", "label", "uri"]).to_pylist()
    inspector = Inspector(trained.bundle)

    @lru_cache
    def named(surface: str, label: str) -> list[bytes]:
        contents = [Path(row["uri"]).read_bytes() for row in rows if (row["surface"], row["label"]) == (surface, label)]
        if surface == UNSEEN:
            return contents
        loaded = [load_image("", "", trained.bundle.settings.image, content=content) for content in contents]
        return [
            content for content, one in zip(contents, loaded, strict=True) if inspector.name_surface(one)[1] is not None
        ]

    def find(surface: str, label: str = "benign", number: int = 0) -> bytes:
        return named(surface, label)[number]

    return find


def manifest_uris(manifest: pa.Table) -> list[str]:
    """Where the images of a manifest lie."""
    uris: list[str] = manifest["uri"].to_pylist()
    return uris
