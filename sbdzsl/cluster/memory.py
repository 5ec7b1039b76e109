"""The memory of a service on a cluster: one replica holds journal, alerts and alarms for all that answer HTTP.

The application asks its recorder and its monitor the same questions as in one process; here they go through a handle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, closing
from typing import Any, Literal

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from sbdzsl import bundle as bundles
from sbdzsl.errors import SbdzslError, ServiceError
from sbdzsl.report.gallery import references_of
from sbdzsl.serving.live_drift import LiveDrift, Reference
from sbdzsl.serving.monitor import Monitor
from sbdzsl.serving.observe import Meter, log
from sbdzsl.serving.recorder import Recorder
from sbdzsl.serving.settings import ServeSettings

Part = Literal["recorder", "monitor"]

#: Good verdicts on their way to the memory, at most; beyond, whoever answers waits for one.
MAX_ON_THEIR_WAY = 200


class Memory:
    """The deployment: one replica, for the folder belongs to one process.

    It is an application of its own: to deploy the service again, with another bundle, leaves it alone. A bundle is
    loaded for what drift is measured against; nothing is judged here.
    """

    async def __init__(self, settings: ServeSettings) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        assert settings.data is not None
        self._promise = settings.promise
        self._reference: Reference | None = None
        self._followed = ""
        self._open = AsyncExitStack()
        recorder = self._open.enter_context(
            closing(Recorder(settings.data, settings.keep, settings.alerts, settings.public_url))
        )
        drift = LiveDrift(self._in_force)
        monitor = await self._open.enter_async_context(Monitor(recorder, settings.alarms, drift).run())
        self._parts: dict[Part, Any] = {"recorder": recorder, "monitor": monitor}

    async def follow(self, bundle_url: str) -> None:
        """Measure drift against this bundle from now on. Told again and again, it loads it once."""
        if bundle_url == self._followed:
            return
        bundle = await asyncio.to_thread(bundles.load, bundle_url, "cpu", self._promise)
        self._reference, self._followed = (bundle.digest, references_of(bundle)), bundle_url

    async def _in_force(self) -> Reference:
        if self._reference is None:
            raise ServiceError("not-ready", "the bundle is being loaded")
        return self._reference

    async def call(self, part: Part, method: str, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """What a method of the recorder or the monitor returns; its errors are values."""
        try:
            return await getattr(self._parts[part], method)(*args, **named)
        except SbdzslError as error:
            return error

    async def check_health(self) -> None:
        """Whether events can be written."""
        await self._parts["recorder"].check()

    async def __del__(self) -> None:
        await self._open.aclose()


class RemotePart:
    """A recorder or a monitor elsewhere: any of its methods, called through the handle.

    Beside what the method itself raises: `ServiceError` "not-ready" where the memory is gone for the moment.
    """

    def __init__(self, memory: DeploymentHandle, part: Part) -> None:
        self._memory = memory
        self._part = part

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **named: Any) -> Any:
            try:
                found = await self._memory.call.remote(self._part, method, args, named)
            except (RayError, RayServeException) as error:
                raise ServiceError(
                    "not-ready", f"the journal is away ({type(error).__name__}); send it again"
                ) from None
            if isinstance(found, SbdzslError):
                raise found
            return found

        return call


class RemoteRecorder(RemotePart):
    """The recorder elsewhere. An alarm is answered when it is stored there; a good verdict goes there meanwhile."""

    def __init__(self, memory: DeploymentHandle) -> None:
        super().__init__(memory, "recorder")
        self._on_their_way: set[asyncio.Task[None]] = set()

    async def record(self, document: Mapping[str, Any], content: bytes) -> int | None:
        """See `Recorder.record`; of a good verdict no number is known yet."""
        keep = self.__getattr__("record")
        if document["verdict"] != "good" or len(self._on_their_way) >= MAX_ON_THEIR_WAY:
            number: int = await keep(document, content)
            return number
        task = asyncio.create_task(self._bring(keep(document, content)))
        self._on_their_way.add(task)
        task.add_done_callback(self._on_their_way.discard)
        return None

    def watched_by(self, meter: Meter) -> None:
        """Nothing here: what is kept shows in the page's counters, not in the metrics of each replica."""

    async def _bring(self, keeping: Awaitable[Any]) -> None:
        try:
            await keeping
        except SbdzslError as error:
            log.error("a good verdict was not recorded: %s: %s", error.code, error.message)
