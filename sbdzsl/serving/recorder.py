"""What is kept of each answer before it is given: its event in the journal, the image where it is an alarm, its alert.

The verdict log gets its rows from the journal, and the sinks their alerts from the outbox, some time after.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sbdzsl.errors import LakeError, ServiceError
from sbdzsl.serving.alerts import AlertSettings, Dispatcher, Outbox, make_alert
from sbdzsl.serving.evidence import IMAGES, Evidence
from sbdzsl.serving.journal import ANY, Event, Journal, Wanted
from sbdzsl.serving.log import Backlog, VerdictLog
from sbdzsl.serving.observe import Meter
from sbdzsl.serving.recent import RecentImages
from sbdzsl.serving.reviews import REVIEW, review_document
from sbdzsl.serving.settings import KeepSettings

#: The verdict log below the data folder, unless it has another place.
LOG = "log"

#: Fields of an event's document that were no part of the answer.
OWN_FIELDS = frozenset({"idempotency_key", "image_kept"})


#: An alert that could not be delivered for so long is a trouble, in seconds: one more try may do before that.
LATE_ALERT_S = 10.0


class Recorder:
    """The memory of a service in a folder on a local disk. Use it from one event loop; close it.

    `public_url` is where people reach the service, for links in alerts. Raises `LakeError` where the folder cannot be
    written or another service holds it, `ConfigError` for a sink that cannot work at all.
    """

    def __init__(
        self,
        folder: str,
        keep: KeepSettings | None = None,
        alerts: AlertSettings | None = None,
        public_url: str | None = None,
    ) -> None:
        keep, alerts = keep or KeepSettings(), alerts or AlertSettings()
        self._sinks, self._public_url = alerts.sinks, public_url
        with ExitStack() as stack:
            self._journal = Journal(folder)
            stack.callback(self._journal.close)
            self._evidence = Evidence(str(Path(folder) / IMAGES), keep.good_share, int(keep.max_images_mb * 2**20))
            stack.callback(self._evidence.close)
            self._log = VerdictLog(self._journal, keep.log or str(Path(folder) / LOG), keep)
            stack.callback(self._log.close)
            if alerts.sinks:
                alerts = alerts.model_copy(update={"folder": str(Path(folder) / alerts.folder)})
                self._outbox = Outbox(alerts)
                stack.callback(self._outbox.close)
                self._dispatcher = Dispatcher(self._outbox, alerts).start()
                stack.callback(self._dispatcher.close)
            self._open = stack.pop_all()
        self._recent = RecentImages(int(keep.recent_mb * 2**20))

    async def record(self, document: Mapping[str, Any], content: bytes) -> int:
        """Keep an answer and the image that it is about; the number of its event.

        An alarm (anything but good) is on disk on return, its image before its event, and its alert after it. The
        event's document says by `image_kept` whether there is an image. Raises `LakeError` "disk-full" where the event
        cannot be kept, `AlertError` where the alert cannot.
        """
        is_alarm, image_id = document["verdict"] != "good", document["image_id"]
        self._recent.put(image_id, content)
        if is_alarm:
            kept = await self._evidence.keep_alarm(image_id, content)
        else:
            kept = self._evidence.keep_good(image_id, content)
        number = await self._journal.record("verdict", {**document, "image_kept": kept}, durable=is_alarm)
        await self._alert({**document, "event_id": number})
        return number

    async def _alert(self, document: Mapping[str, Any]) -> None:
        """Store the alert of an answer, where a sink wants one; the same answer again is the same alert."""
        if any(sink.wants(document) for sink in self._sinks):
            alert = make_alert(document, self._public_url, document.get("idempotency_key"))
            await asyncio.to_thread(self._outbox.put, alert)

    async def image(self, number: int) -> bytes:
        """The image that an event is about, kept or of late. Raises `ServiceError` "unknown-event" where it is gone."""
        document = (await self.event(number)).document
        image_id = document.get("image_id", "")
        content = self._recent.get(image_id) or (await self._evidence.read(image_id) if image_id else None)
        if content is None:
            raise ServiceError("unknown-event", f"event {number} has no image: {_why_missing(document)}")
        return content

    async def review(self, number: int, who: str, decision: str, reason: str | None = None, comment: str = "") -> int:
        """Put beside a verdict what `who` says it should have been, on disk on return; the number of the review.

        `decision` is a word of `reviews.Choice`, `reason` of `reviews.Reason`. Raises `ServiceError` "bad-request" for
        other words, "unknown-event"; `LakeError` "disk-full".
        """
        said = review_document(await self.event(number), who, decision, reason, comment)
        return await self._journal.record(REVIEW, said)

    async def answered(self, request_key: str) -> Event | None:
        """The event of a request that was answered under this idempotency key."""
        event = await self._journal.answered(request_key)
        if event is not None:
            # A process may have died between event and alert, before it could answer.
            await self._alert(event.document)
        return event

    async def events(self, after: int, limit: int = 100, wanted: Wanted = ANY, wait_s: float = 0.0) -> list[Event]:
        """See `Journal.events`."""
        return await self._journal.events(after, limit, wanted, wait_s)

    async def latest(self, before: int | None = None, limit: int = 100, wanted: Wanted = ANY) -> list[Event]:
        """See `Journal.latest`."""
        return await self._journal.latest(before, limit, wanted)

    async def event(self, number: int) -> Event:
        """See `Journal.event`."""
        return await self._journal.event(number)

    def watched_by(self, meter: Meter) -> None:
        """Show in metrics how much is kept and how far the verdict log is behind."""
        meter.watch("sbdzsl_log_rows_behind", "Rows not in the verdict log yet", lambda: self._log.backlog().rows)
        meter.watch("sbdzsl_log_seconds_behind", "Age of the oldest of them", lambda: self._log.backlog().seconds)
        meter.watch("sbdzsl_kept_alarm_images", "Images kept", lambda: self._evidence.shelf("alarm").images)
        meter.watch("sbdzsl_kept_good_images", "Images kept", lambda: self._evidence.shelf("good").images)
        meter.watch("sbdzsl_kept_image_bytes", "Of all images kept", lambda: self._evidence.size_bytes)
        if self._sinks:
            meter.watch_sinks(self._dispatcher.statistics)

    def backlog(self) -> Backlog:
        """How far the verdict log is behind the journal; the journal holds what it lacks."""
        return self._log.backlog()

    async def check(self) -> None:
        """Raise the `LakeError` that keeps events or images from being written, if any does.

        A verdict log that is behind does not: the journal holds its rows, and no line should stop for it.
        """
        await asyncio.to_thread(self._journal.check)
        await self._evidence.check()

    async def note(self, kind: str, document: Mapping[str, Any]) -> int:
        """Keep something else that happened, such as a change of an alarm; on disk on return. Raises as `record`."""
        return await self._journal.record(kind, document)

    async def identity(self) -> str:
        """See `Journal.identity`."""
        return self._journal.identity

    async def last_id(self) -> int:
        """See `Journal.last_id`."""
        return self._journal.last_id()

    async def troubles(self) -> dict[str, str]:
        """What fails behind the scenes, by the name of the part, and how; empty while all is well."""
        found = {}
        for name, checked in (("journal", asyncio.to_thread(self._journal.check)), ("images", self._evidence.check())):
            try:
                await checked
            except LakeError as error:
                found[name] = error.message
        behind = self._log.backlog()
        if behind.failure is not None:
            found["verdict log"] = f"{behind.rows} rows wait in the journal: {behind.failure}"
        for sink in await asyncio.to_thread(self._dispatcher.statistics) if self._sinks else ():
            if sink.last_error is not None and (sink.oldest_pending_s or 0.0) > LATE_ALERT_S:
                found[f"alerts to {sink.name}"] = f"{sink.pending} wait in the outbox: {sink.last_error}"
        return found

    def close(self) -> None:
        """Write what waits and give the folder back."""
        self._open.close()


def _why_missing(document: Mapping[str, Any]) -> str:
    if "image_id" not in document:
        return "it is about none"
    if document.get("image_kept"):
        return "it was cleared away to make room for younger ones"
    return "those of alarms are kept and a share of the good ones (keep: good_share)"
