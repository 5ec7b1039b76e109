"""The images that somebody will want to see again, beside the journal: of every alarm, and of a sample of good ones.

    images/alarm/<first two letters>/<image id>     defect, unseen, error
    images/good/<first two letters>/<image id>      a random share, so that reviewers also meet what was let through

The bytes are those that came, one file an image however often it comes. All of them together stay below a size: the
oldest good ones go first, then the oldest alarms. One thread does all the work, so whoever reads after he kept finds.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sbdzsl import lake
from sbdzsl.errors import LakeError
from sbdzsl.serving.observe import log

Kind = Literal["alarm", "good"]

#: Where they lie below the data folder of a service.
IMAGES = "images"

#: What goes first when room is needed.
_ORDER: tuple[Kind, ...] = ("good", "alarm")

#: Good images that wait for the disk, at most; beyond, they are not kept, for the line must not fill the memory.
MAX_WAITING = 32


#: Name of the empty file that is written in place of an image, to see whether one can be.
_PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Shelf:
    """How much of one kind is kept."""

    images: int
    size_bytes: int


class Evidence:
    """Images of one service below `folder`, of at most `max_bytes` together. Use it from one event loop; close it.

    `good_share` (0 to 1) of the good images are kept; which, follows from the image alone. Raises `LakeError` where the
    folder cannot be read.
    """

    def __init__(self, folder: str, good_share: float, max_bytes: int) -> None:
        self._folder = Path(folder)
        self._good_share = good_share
        self._max_bytes = max_bytes
        self._waiting = 0
        #: Why the last image could not be kept; None while all is well.
        self.failure: LakeError | None = None
        # Sizes by image, the oldest first, and their sums.
        self._kept: dict[Kind, OrderedDict[str, int]] = {kind: OrderedDict(_files(self._path(kind))) for kind in _ORDER}
        self._bytes: dict[Kind, int] = {kind: sum(sizes.values()) for kind, sizes in self._kept.items()}
        self._thread = ThreadPoolExecutor(1, "evidence")

    async def keep_alarm(self, image_id: str, content: bytes) -> bool:
        """Keep the image of an alarm; it is on disk on return. False where it could not be: see `failure`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._keep, "alarm", image_id, content)

    def keep_good(self, image_id: str, content: bytes) -> bool:
        """Whether a good image is one of the sample; then it will be on disk soon."""
        number = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big")
        if number >= self._good_share * 2**64 or self._waiting >= MAX_WAITING:
            return False
        self._waiting += 1
        keeping = asyncio.get_running_loop().run_in_executor(self._thread, self._keep, "good", image_id, content)
        keeping.add_done_callback(self._arrived)
        return True

    async def read(self, image_id: str) -> bytes | None:
        """The bytes of an image; None where it is not kept, or no longer. Raises `LakeError` if it cannot be read."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, image_id)

    def shelf(self, kind: Kind) -> Shelf:
        """How much of a kind is kept now."""
        return Shelf(len(self._kept[kind]), self._bytes[kind])

    @property
    def size_bytes(self) -> int:
        """Of all images that are kept now."""
        return sum(self._bytes.values())

    async def check(self) -> None:
        """Where the last image could not be kept: raise the `LakeError` that keeps one from being written still."""
        if self.failure is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._try)

    def close(self) -> None:
        """Write what waits."""
        self._thread.shutdown()

    def _arrived(self, _: object) -> None:
        self._waiting -= 1

    def _keep(self, kind: Kind, image_id: str, content: bytes) -> bool:
        try:
            return self._store(kind, image_id, content)
        except (LakeError, OSError) as error:
            # The answer counts more than its picture, so it is given all the same.
            self.failure = error if isinstance(error, LakeError) else LakeError("unreachable", str(error))
            log.error("image not kept", extra={"fields": {"image_id": image_id, "error": self.failure.message}})
            return False

    def _try(self) -> None:
        probe = self._path("alarm", _PROBE)
        lake.write_bytes(str(probe), b"")
        probe.unlink()
        self.failure = None

    def _store(self, kind: Kind, image_id: str, content: bytes) -> bool:
        if len(content) > self._max_bytes:
            return False
        if kind == "good" and image_id in self._kept["alarm"]:
            return True
        if image_id in self._kept[kind]:  # seen again, so it is young again
            with contextlib.suppress(FileNotFoundError):
                os.utime(self._path(kind, image_id))
                self._kept[kind].move_to_end(image_id)
                return True
        self._drop("good", image_id)  # from there an image becomes an alarm
        self._drop(kind, image_id)
        lake.write_bytes(str(self._path(kind, image_id)), content)
        self._kept[kind][image_id] = len(content)
        self._bytes[kind] += len(content)
        self.failure = None
        self._make_room()
        return image_id in self._kept[kind]

    def _make_room(self) -> None:
        for kind in _ORDER:
            while self.size_bytes > self._max_bytes and self._kept[kind]:
                self._drop(kind, next(iter(self._kept[kind])))

    def _drop(self, kind: Kind, image_id: str) -> None:
        if image_id in self._kept[kind]:
            self._path(kind, image_id).unlink(missing_ok=True)
            self._bytes[kind] -= self._kept[kind].pop(image_id)

    def _read(self, image_id: str) -> bytes | None:
        return read_kept(self._folder, image_id)

    def _path(self, kind: Kind, image_id: str = "") -> Path:
        return _path(self._folder, kind, image_id)


def read_kept(folder: Path, image_id: str) -> bytes | None:
    """The bytes of an image that a service keeps in `folder`, from any process; None where it is not there.

    Raises `LakeError` where it cannot be read.
    """
    for kind in _ORDER:
        try:
            return lake.read_bytes(str(_path(folder, kind, image_id)))
        except LakeError as error:
            if error.code != "not-found":
                raise
    return None


def _path(folder: Path, kind: Kind, image_id: str) -> Path:
    return folder / kind / image_id[:2] / image_id if image_id else folder / kind


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """Names and sizes of the files below a folder, the oldest first; what a crash left half written is removed."""
    found = []
    for path in folder.glob("*/*"):
        if path.name.endswith(".tmp"):
            path.unlink()
            continue
        stat = path.stat()
        found.append((stat.st_mtime_ns, path.name, stat.st_size))
    return ((name, size) for _, name, size in sorted(found))
