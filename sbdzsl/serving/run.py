"""One process that serves: the application on uvicorn, with a `LocalService` in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from sbdzsl.errors import ConfigError
from sbdzsl.serving.app import build_app
from sbdzsl.serving.candidate import CandidateService
from sbdzsl.serving.keys import KeyFile
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
    service = CandidateService(await LocalService(bundle_url, settings).start(), settings)
    kept = (
        contextlib.closing(Recorder(settings.data, settings.keep, settings.alerts, settings.public_url))
        if settings.data
        else contextlib.nullcontext()
    )
    with kept as recorder:
        try:
            yield build_app(service, settings, recorder, keys, rollout=service)
        finally:
            await service.close()


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
        await uvicorn.Server(config).serve()


def _log_as_json() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
