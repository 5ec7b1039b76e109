"""A service that really listens, on loopback: streams and browsers need one."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import uvicorn

from sbdzsl.serving.keys import KeyFile
from sbdzsl.serving.run import local_app
from sbdzsl.serving.settings import ServeSettings


@dataclass(frozen=True)
class Running:
    """Where it listens, a client of it, and the server itself: `should_exit` stops it."""

    url: str
    client: httpx2.Client
    server: uvicorn.Server

    def post(self, image: bytes, **query: str | int) -> dict[str, object]:
        """Have an image judged; the answer, or the verdict in a problem document."""
        answer = self.client.post("/v1/inspect", content=image, params=query, headers={"content-type": "image/png"})
        document: dict[str, object] = answer.json()
        return document.get("verdict", document) if answer.status_code != 200 else document  # type: ignore[return-value]


@contextmanager
def running(bundle_url: str, settings: ServeSettings, keys: KeyFile | None = None) -> Iterator[Running]:
    """Serve for the length of a block."""
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    started = threading.Event()
    servers: list[uvicorn.Server] = []

    async def serve() -> None:
        async with local_app(bundle_url, settings, keys) as app:
            server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5))
            app.state.is_stopping = lambda: server.should_exit
            servers.append(server)
            started.set()
            await server.serve([listening])

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="service")
    thread.start()
    assert started.wait(60), "the service did not start"
    with httpx2.Client(base_url=url, timeout=30) as client:
        try:
            yield Running(url, client, servers[0])
        finally:
            servers[0].should_exit = True
            thread.join(30)
            assert not thread.is_alive(), "the service did not stop"
