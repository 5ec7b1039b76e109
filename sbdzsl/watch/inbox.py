"""The watched folder: what is complete in it, and where answered files go."""

from __future__ import annotations

import errno
import itertools
import os
import re
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from sbdzsl.config import Settings
from sbdzsl.errors import LakeError
from sbdzsl.lake import IMAGE_SUFFIXES

Done = Literal["move", "mark", "delete", "keep"]

#: What a pattern of names may find in them.
_GROUPS = ("camera", "trigger_id", "part_id", "sequence")
#: What `mark` puts behind a name, by whether the verdict is `error`.
MARKS = {False: ".done", True: ".failed"}
#: Not images, and nothing to wonder at: files that are not whole yet, marked ones, our own.
_EXPECTED_SUFFIXES = {".partial", ".part", ".tmp", ".jsonl", ".lock", *MARKS.values()}
#: A file without bytes is taken for one that nothing was written to yet, for so long.
EMPTY_SETTLE_S = 30.0


class WatchSettings(Settings):
    """Which files are sent, with what, and what becomes of them."""

    pattern: str = Field("*", description="glob of the names of images")
    done: Done = Field("move", description="of answered files: to done/ or failed/, renamed, deleted, or left there")
    interval_s: float = Field(0.5, gt=0, description="between two looks at the folder")
    settle_s: float = Field(1.0, ge=0, description="a file is complete when it has not changed for so long")
    parallel: int = Field(2, ge=1, le=64, description="images under way at once")
    names: re.Pattern[str] | None = Field(
        None, description="what names say, by groups called camera, trigger_id, part_id, sequence"
    )
    camera: str | None = Field(None, description="sent with each image")
    surface: str | None = Field(None, description="the one expected")
    policy: str | None = Field(None, description="threshold policy")
    bit_depth: int | None = Field(None, ge=8, le=16, description="significant bits of 16-bit files")

    @field_validator("names")
    @classmethod
    def _known_groups(cls, names: re.Pattern[str] | None) -> re.Pattern[str] | None:
        if names is not None and not names.groupindex.keys() <= set(_GROUPS):
            raise ValueError(f"found groups {sorted(names.groupindex)}, expected some of {', '.join(_GROUPS)}")
        return names


@dataclass(frozen=True, slots=True)
class Arrival:
    """A file as it stood: with another size or time of change (ns since 1970) it is another image."""

    name: str
    size: int
    mtime_ns: int

    @property
    def label(self) -> str:
        """The name as it can be printed and sent: on a disk it need not be UTF-8."""
        return self.name.encode(errors="replace").decode()


class Inbox:
    """The watched folder: what is complete in it, and where answered files go."""

    def __init__(self, folder: Path, settings: WatchSettings) -> None:
        self.folder = folder
        self.left_alone: set[str] = set()  # endings of files that are taken for something else than images
        self._settings = settings
        self._since: dict[Arrival, float] = {}

    @property
    def present(self) -> set[Arrival]:
        """What the last look saw, complete or not."""
        return set(self._since)

    def look(self) -> list[Arrival]:
        """The complete files, in order of arrival. Raises `LakeError` where the folder cannot be read."""
        now = time.monotonic()
        try:
            with os.scandir(self.folder) as entries:
                seen = [arrival for entry in entries if (arrival := self._arrival(entry)) is not None]
        except OSError as error:
            raise folder_error(self.folder, error) from None
        self._since = {arrival: self._since.get(arrival, now) for arrival in seen}
        complete = [arrival for arrival, since in self._since.items() if now - since >= self._settle_s(arrival)]
        return sorted(complete, key=lambda arrival: (arrival.mtime_ns, arrival.name))

    def _settle_s(self, arrival: Arrival) -> float:
        return self._settings.settle_s if arrival.size else max(self._settings.settle_s, EMPTY_SETTLE_S)

    def _arrival(self, entry: os.DirEntry[str]) -> Arrival | None:
        if entry.name.startswith(".") or not fnmatchcase(entry.name, self._settings.pattern) or not entry.is_file():
            return None
        suffix = Path(entry.name).suffix.lower()
        if suffix not in IMAGE_SUFFIXES:
            self.left_alone |= {suffix} - _EXPECTED_SUFFIXES
            return None
        try:
            status = entry.stat()
        except FileNotFoundError:
            return None
        return Arrival(entry.name, status.st_size, status.st_mtime_ns)

    def read(self, arrival: Arrival) -> bytes | None:
        """The bytes of a file; None if it is not the one any more that `look` saw. Raises `OSError`."""
        try:
            with (self.folder / arrival.name).open("rb") as file:
                content = file.read()
                mtime_ns = os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None
        return content if (len(content), mtime_ns) == (arrival.size, arrival.mtime_ns) else None

    def put_away(self, arrival: Arrival, is_error: bool) -> None:
        """Take an answered file out of the way. Raises `OSError`; then it is still there.

        A file of the same name that came since is left alone: it is another image.
        """
        done = self._settings.done
        file = self.folder / arrival.name
        if done == "keep" or not _is_still(file, arrival):
            return
        if done == "mark":
            target = _free(file.with_name(file.name + MARKS[is_error]), arrival)
        else:
            target = _free(self.folder / ("failed" if is_error else "done") / arrival.name, arrival)
            target.parent.mkdir(exist_ok=True)
        file.rename(target)
        if not _is_still(target, arrival):
            # Written anew between the two looks: it goes back, under a name that cannot be taken.
            target.rename(file.with_name(f"{file.stem}-{time.time_ns()}{file.suffix}"))
        elif done == "delete" and not is_error:
            target.unlink()


def _is_still(file: Path, arrival: Arrival) -> bool:
    try:
        status = file.stat()
    except FileNotFoundError:
        return False
    return (status.st_size, status.st_mtime_ns) == (arrival.size, arrival.mtime_ns)


def _free(target: Path, arrival: Arrival) -> Path:
    """The target, or a name like it that is free: cameras use names again."""
    names = itertools.chain(
        (target.name,), (f"{target.stem}-{arrival.mtime_ns + more}{target.suffix}" for more in itertools.count())
    )
    return next(path for name in names if not (path := target.with_name(name)).exists())


def folder_error(path: Path, error: OSError) -> LakeError:
    """Nothing is lost by it: what has no line yet is still in the folder."""
    code = {errno.ENOENT: "not-found", errno.EACCES: "forbidden", errno.EPERM: "forbidden", errno.ENOSPC: "disk-full"}
    return LakeError(code.get(error.errno or 0, "unreachable"), f"{path}: {error.strerror}")
