"""Images on their way to the nets: read and decoded by threads ahead of them, within a ceiling of memory. No Ray here.

Decoded images are twenty times their files, and a lake may hold one of 100 megapixels among thumbnails: what is ahead
is bounded in bytes, not in images. Images come as they are ready, in any order. One that never comes, since a store
hangs, becomes an error like others that cannot be read.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence

from sbdzsl import image as pixels
from sbdzsl import lake
from sbdzsl.cluster.ledger import ImageRef
from sbdzsl.config import AuditSettings, ImageSettings
from sbdzsl.errors import LakeError
from sbdzsl.inspector import Loaded, load_image

#: What is ahead of the nets of one actor: files that are being read or decoded, and pixels that wait.
MAX_FILE_BYTES = 128 * 2**20
MAX_PIXEL_BYTES = 128 * 2**20

#: Threads that read ahead of one actor's nets: a remote store answers after a tenth of a second or more.
_READERS, _READERS_OF_REMOTE_LAKE = 4, 16


def num_readers(settings: AuditSettings, uri: str) -> int:
    """How many threads read ahead, from a lake in which `uri` lies."""
    return settings.readers_per_actor or (_READERS_OF_REMOTE_LAKE if "://" in uri else _READERS)


def read_ahead(
    images: Sequence[ImageRef], settings: ImageSettings, readers: int, timeout_s: float
) -> Iterator[tuple[int, Loaded]]:
    """Each image once, with its number in `images`, as soon as it is loaded. The memory of one is free with the next.

    Reading begins at once, before the first is asked for. Where nothing has come for `timeout_s` seconds, the images
    that were begun are errors "unreachable", and the others are read by fresh threads.
    """
    return _in_turn(images, settings, readers, timeout_s, _Ahead(images, range(len(images)), settings, readers))


def _in_turn(
    images: Sequence[ImageRef], settings: ImageSettings, readers: int, timeout_s: float, ahead: _Ahead
) -> Iterator[tuple[int, Loaded]]:
    while True:
        yield from ahead.ready(timeout_s)
        for number in ahead.stuck:
            ref = images[number]
            error = LakeError("unreachable", f"{ref.uri} was not read within {timeout_s:g} s")
            yield number, load_image(ref.image_id, ref.uri, settings, ref.bit_depth, ref.modified_at, content=error)
        if not ahead.not_begun:
            return
        ahead = _Ahead(images, ahead.not_begun, settings, readers)


class _Room:
    """So many bytes may be in here at once. What is larger gets in when nothing else is there."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._is_closed = False
        self._change = threading.Condition()

    def enter(self, size: int) -> None:
        """Wait until there is room. Raises `_RoomClosedError`."""
        with self._change:
            self._change.wait_for(lambda: self._is_closed or not self._taken or self._taken + size <= self._limit)
            if self._is_closed:
                raise _RoomClosedError
            self._taken += size

    def leave(self, size: int) -> None:
        with self._change:
            self._taken -= size
            self._change.notify_all()

    def close(self) -> None:
        with self._change:
            self._is_closed = True
            self._change.notify_all()


class _RoomClosedError(Exception):
    """Nobody waits for these images any longer."""


class _Ahead:
    """One crew of threads over some of the images.

    No thread waits for room for a file while it holds pixels that nobody can take, so they never wait for each other.
    """

    def __init__(
        self, images: Sequence[ImageRef], numbers: Sequence[int], settings: ImageSettings, readers: int
    ) -> None:
        self._images, self._settings = images, settings
        self._waiting = set(numbers)
        self._begun: set[int] = set()
        groups = lake.together([images[number].uri for number in numbers])
        self._groups = deque([numbers[place] for place in group] for group in groups)
        self._files, self._pixels = _Room(MAX_FILE_BYTES), _Room(MAX_PIXEL_BYTES)
        self._ready: queue.SimpleQueue[tuple[int, Loaded, int] | BaseException] = queue.SimpleQueue()
        # Daemons: one that hangs in a system call must not keep the process from ending.
        for _ in range(min(readers, len(self._groups))):
            threading.Thread(target=self._work, daemon=True).start()

    @property
    def stuck(self) -> list[int]:
        """Images that were begun and have not come."""
        return sorted(self._waiting & self._begun)

    @property
    def not_begun(self) -> list[int]:
        """Images that no thread has taken up."""
        return sorted(self._waiting - self._begun)

    def ready(self, timeout_s: float) -> Iterator[tuple[int, Loaded]]:
        """Images as they come, until all are there or none has come for `timeout_s`."""
        try:
            while self._waiting:
                found = self._ready.get(timeout=timeout_s)
                if isinstance(found, BaseException):
                    raise found
                number, loaded, size = found
                self._waiting.remove(number)
                yield number, loaded
                del found, loaded
                self._pixels.leave(size)
        except queue.Empty:
            pass
        finally:
            self._files.close()
            self._pixels.close()

    def _work(self) -> None:
        try:
            with contextlib.suppress(_RoomClosedError):
                while (group := self._next_group()) is not None:
                    self._load(group)
        except BaseException as error:  # noqa: BLE001  for the thread that judges
            self._ready.put(error)

    def _next_group(self) -> list[int] | None:
        try:
            group = self._groups.popleft()
        except IndexError:
            return None
        self._begun.update(group)
        return group

    def _load(self, group: Sequence[int]) -> None:
        refs = [self._images[number] for number in group]
        size = sum(ref.size_bytes or 0 for ref in refs)
        self._files.enter(size)
        contents = lake.read_together([ref.uri for ref in refs], self._settings.max_bytes)
        for number, ref, content in zip(group, refs, contents, strict=True):
            room = pixels.decoded_bytes(content) if isinstance(content, bytes) else 0
            # More than the limits allow is never decoded.
            room = room if room <= 8 * self._settings.max_pixels else 0
            self._pixels.enter(room)
            loaded = load_image(ref.image_id, ref.uri, self._settings, ref.bit_depth, ref.modified_at, content=content)
            self._ready.put((number, loaded, room))
        self._files.leave(size)
