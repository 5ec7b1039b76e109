"""Alerts on an OPC UA server of our own, in the words of Machinery Result Transfer (`machinery_result.py`)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import hmac
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sbdzsl.errors import AlertError, ConfigError
from sbdzsl.runtime import require
from sbdzsl.serving.alerts.alert import Alert
from sbdzsl.serving.alerts.settings import OpcUaSettings
from sbdzsl.serving.alerts.sinks.machinery_result import ResultManagement

if TYPE_CHECKING:
    from sbdzsl.serving.alerts.sinks import History, Receipt

#: The standard address space is built at the start: a second of computing, more where others want the processor too.
_START_S, _CALL_S = 120.0, 10.0


class OpcUaSink:
    """Runs the server on an event loop in a thread of its own. See `Sink`.

    Without `acknowledged` an alert is delivered when the server shows it; the last `keep_results` come back after a
    restart. With it, an alert is delivered when a client has called AcknowledgeResults, and is offered until then;
    where `keep_results` of them wait, the others stay in the outbox.
    """

    def __init__(self, settings: OpcUaSettings, history: History, receipt: Receipt) -> None:
        self._asyncua = require("asyncua")
        self._settings, self._history, self._receipt = settings, history, receipt
        self._passwords = {name: source.read() for name, source in settings.users.items()}
        for path in filter(None, (settings.certificate, settings.private_key)):
            if not Path(path).is_file():
                raise ConfigError("bad-config", f"OPC UA: no file at {path}, expected the certificate or its key")
        self._loop: _LoopThread | None = None
        self._place = f"opc.tcp://{settings.host}:{settings.port}"

    def open(self) -> None:
        """Start the server. Raises `AlertError` sink-unreachable, such as where the port is taken."""
        if self._loop is not None:
            return
        loop = _LoopThread()
        try:
            loop.run(self._start(), _START_S)
        except (OSError, ValueError, self._asyncua.ua.UaError, TimeoutError, concurrent.futures.TimeoutError) as error:
            loop.close()
            raise AlertError("sink-unreachable", f"OPC UA server {self._place} cannot start: {error}") from error
        self._loop = loop

    def deliver(self, alert: Alert) -> bool:
        """See `Sink.deliver`."""
        self.open()
        assert self._loop is not None
        try:
            return bool(self._loop.run(self._show(alert), _CALL_S))
        except (self._asyncua.ua.UaError, concurrent.futures.TimeoutError) as error:
            raise AlertError(
                "sink-unreachable", f"OPC UA server {self._place}: {type(error).__name__}: {error}"
            ) from error

    def close(self) -> None:
        """Stop the server; clients lose their sessions."""
        loop, self._loop = self._loop, None
        if loop is not None:
            try:
                loop.run(self._server.stop(), _CALL_S)
            finally:
                loop.close()

    async def _start(self) -> None:
        settings, server = self._settings, self._asyncua.Server(user_manager=_Users(self._asyncua, self))
        await server.init()
        server.set_server_name("sbdzsl")
        await server.set_application_uri("urn:sbdzsl:alerts")
        server.set_endpoint(f"{self._place}/sbdzsl")
        await self._secure(server)
        self._results = ResultManagement(server, settings.keep_results)
        await self._results.build(self._acknowledge if settings.acknowledged else None)
        if not settings.acknowledged:
            for alert in await asyncio.to_thread(self._history, settings.keep_results):
                await self._results.add(alert, announce=False)
        await server.start()
        self._server = server

    async def _secure(self, server: Any) -> None:
        ua, settings = self._asyncua.ua, self._settings
        tokens = [ua.UserNameIdentityToken] if settings.users else []
        server.set_identity_tokens(tokens + ([ua.AnonymousIdentityToken] if settings.allow_anonymous else []))
        policies = ua.SecurityPolicyType
        if settings.certificate is None:
            server.set_security_policy([policies.NoSecurity])
            return
        await server.load_certificate(settings.certificate)
        await server.load_private_key(settings.private_key)
        names = ("Basic256Sha256", "Aes128Sha256RsaOaep", "Aes256Sha256RsaPss")
        server.set_security_policy([getattr(policies, f"{name}_SignAndEncrypt") for name in names])

    async def _show(self, alert: Alert) -> bool:
        waits = self._settings.acknowledged
        if alert.id not in self._results:
            if waits and len(self._results) >= self._results.capacity:
                raise AlertError(
                    "sink-unreachable",
                    f"OPC UA server {self._place}: {len(self._results)} results wait for AcknowledgeResults, as many "
                    "as keep_results allows",
                )
            await self._results.add(alert)
        return not waits

    async def _acknowledge(self, result_id: str) -> bool:
        # The receipt is written to disk, which must not hold up the loop.
        return await asyncio.to_thread(self._receipt, result_id)

    def admits(self, username: str | None, password: str | None) -> bool:
        """Whether a client may come in by this name and password, or without any."""
        if username is None:
            return self._settings.allow_anonymous
        expected = self._passwords.get(username)
        return hmac.compare_digest((password or "").encode(), (expected or "").encode()) and expected is not None


class _Users:
    """What asyncua asks whether a client may come in."""

    def __init__(self, asyncua: Any, sink: OpcUaSink) -> None:
        rules = require("asyncua.crypto.permission_rules")
        self._sink, self._user, self._role = sink, rules.User, rules.UserRole.User

    def get_user(
        self, _server: Any, username: str | None = None, password: str | None = None, certificate: Any = None
    ) -> Any:
        """A user who may read and call, or None."""
        return self._user(role=self._role, name=username) if self._sink.admits(username, password) else None


class _LoopThread:
    """An event loop in a thread, for code that is not asynchronous."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="alerts-opcua-loop", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any], timeout_s: float) -> Any:
        """What `work` returns. Raises what it raises, and `TimeoutError` after so long."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel what still runs, then end the thread."""
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(_CALL_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
