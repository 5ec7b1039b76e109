"""What is kept of each answer before it is given: its event in the journal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sbdzsl.serving.journal import ANY, Event, Journal, Wanted


class Recorder:
    """The memory of a service in a folder on a local disk. Use it from one event loop; close it."""

    def __init__(self, folder: str) -> None:
        self._journal = Journal(folder)

    async def record(self, document: Mapping[str, Any], content: bytes) -> int:
        """Keep an answer and the image that it is about; the number of its event.

        An alarm (anything but good) is on disk on return. Raises `LakeError` "disk-full" where it cannot be kept.
        """
        return await self._journal.record("verdict", document, durable=document["verdict"] != "good")

    async def answered(self, request_key: str) -> Event | None:
        """The event of a request that was answered under this idempotency key."""
        return await self._journal.answered(request_key)

    async def events(self, after: int, limit: int = 100, wanted: Wanted = ANY, wait_s: float = 0.0) -> list[Event]:
        """See `Journal.events`."""
        return await self._journal.events(after, limit, wanted, wait_s)

    async def latest(self, before: int | None = None, limit: int = 100, wanted: Wanted = ANY) -> list[Event]:
        """See `Journal.latest`."""
        return await self._journal.latest(before, limit, wanted)

    async def event(self, number: int) -> Event:
        """See `Journal.event`."""
        return await self._journal.event(number)

    async def check(self) -> None:
        """Raise the `LakeError` that keeps events from being written, if any does."""
        if self._journal.failure is not None:
            raise self._journal.failure

    async def note(self, kind: str, document: Mapping[str, Any]) -> int:
        """Keep something else that happened, such as a change of an alarm; on disk on return. Raises as `record`."""
        return await self._journal.record(kind, document)

    async def last_id(self) -> int:
        """See `Journal.last_id`."""
        return self._journal.last_id()

    async def troubles(self) -> dict[str, str]:
        """What fails behind the scenes, by the name of the part, and how; empty while all is well."""
        failure = self._journal.failure
        return {} if failure is None else {"journal": failure.message}

    def close(self) -> None:
        """Write what waits and give the folder back."""
        self._journal.close()
