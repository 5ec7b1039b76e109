"""One process that serves: the application on uvicorn, with a `LocalService` in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import uvicorn
from fastapi import FastAPI

from sbdzsl.errors import ConfigError
from sbdzsl.serving.app import build_app
from sbdzsl.serving.candidate import CandidateService
from sbdzsl.serving.keys import KeyFile
from sbdzsl.serving.live_drift import LiveDrift
from sbdzsl.serving.monitor import Monitor
from sbdzsl.serving.observe import JsonLines
from sbdzsl.serving.recorder import Recorder
from sbdzsl.serving.service import LocalService
from sbdzsl.serving.settings import LOOPBACK, ServeSettings

#: Requests under way may take so long to end when the process is told to stop, in seconds.
SHUTDOWN_S = 20


def require_keys(host: str, settings: ServeSettings) -> KeyFile | None:
    """The key file; None where only this machine can connect and none is named.

    Raises `ConfigError` where others could connect and no key is live.
    """
    keys = KeyFile(settings.keys) if settings.keys is not None else None
    if host not in LOOPBACK and (keys is None or not any(key.is_live() for key in keys.read())):
        raise ConfigError(
            "bad-config",
            f"host {host} lets other machines connect, and there is no live API key: make one by `sbdzsl keys create "
            "--file keys.json --name NAME` and serve with `--keys keys.json`, or bind to 127.0.0.1",
        )
    return keys


@asynccontextmanager
async def local_app(bundle_url: str, settings: ServeSettings, keys: KeyFile | None) -> AsyncIterator[FastAPI]:
    """The application with all that it needs in this process, for the length of a `with` block."""
    async with AsyncExitStack() as stack:
        service = CandidateService(await LocalService(bundle_url, settings).start(), settings)
        stack.push_async_callback(service.close)
        recorder = monitor = None
        if settings.data:
            recorder = stack.enter_context(
                contextlib.closing(Recorder(settings.data, settings.keep, settings.alerts, settings.public_url))
            )
            monitor = await stack.enter_async_context(
                Monitor(recorder, settings.alarms, LiveDrift(service.reference)).run()
            )
        yield build_app(service, settings, recorder, keys, monitor, service)


def serve(bundle_url: str, settings: ServeSettings, host: str, port: int, report: Callable[[str], None]) -> None:
    """Serve until told to stop; then no request is taken any more and those under way are answered.

    Raises `ConfigError`, `BundleError`, `LakeError` before the port is opened.
    """
    keys = require_keys(host, settings)
    _log_as_json()
    asyncio.run(_serve(bundle_url, settings, keys, host, port, report))


async def _serve(
    bundle_url: str,
    settings: ServeSettings,
    keys: KeyFile | None,
    host: str,
    port: int,
    report: Callable[[str], None],
) -> None:
    async with local_app(bundle_url, settings, keys) as app:
        config = uvicorn.Config(
            app,
            host,
            port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=SHUTDOWN_S,
            server_header=False,
        )
        report(f"http://{host}:{port} judges by bundle {bundle_url}; Ctrl-C ends it")
        server = uvicorn.Server(config)
        app.state.is_stopping = lambda: server.should_exit
        await server.serve()


def _log_as_json() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
