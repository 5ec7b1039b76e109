"""Idempotency keys: a request that is sent again gets the answer of the first, and the image is judged once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sbdzsl.errors import ServiceError

#: Answers that are kept in memory; older ones are looked up in the journal.
MAX_KEPT = 2000


@dataclass(slots=True)
class Replay:
    """One key: the image that came with it, and the answer once there is one."""

    image_id: str
    document: dict[str, Any] | None = None
    is_open: bool = True


class Replays:
    """The keys of late; one event loop uses it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Replay] = OrderedDict()

    @contextmanager
    def begin(self, key: str, content: bytes) -> Iterator[Replay]:
        """The replay of a key, for as long as its request is being answered; one without an answer is forgotten.

        Raises `ServiceError` "idempotency-in-flight" where a request with this key is being answered now, and
        "idempotency-mismatch" where it came with another image.
        """
        image_id = hashlib.sha256(content).hexdigest()
        replay = self._kept.get(key)
        if replay is not None:
            self.require_same(key, replay.image_id, image_id)
            if replay.is_open:
                raise ServiceError("idempotency-in-flight", f"a request with the key {key!r} is being answered")
            replay.is_open = True
        else:
            replay = self._kept[key] = Replay(image_id)
        try:
            yield replay
        finally:
            replay.is_open = False
            if replay.document is None:
                self._kept.pop(key, None)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)

    @staticmethod
    def require_same(key: str, before: str, now: str) -> None:
        """Raise `ServiceError` "idempotency-mismatch" where the images of two requests with one key differ."""
        if before != now:
            raise ServiceError(
                "idempotency-mismatch", f"the key {key!r} was used for another image; take a new key for each image"
            )
