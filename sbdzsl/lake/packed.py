"""Images inside plain TAR files: a member is a range of its archive, read without the rest of it.

The URI of a member says where it lies: `<archive>#<offset>+<size>/<name>`, such as
`s3://lake/lot7.tar#1536+20480/img/0001.png`. Offset and size are bytes; the name is for people, and nothing is ever
written under it. Nobody may rewrite an archive between its listing and its reading, as with any file.
"""

from __future__ import annotations

import io
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import BinaryIO, cast

from sbdzsl.errors import ImageError, LakeError
from sbdzsl.lake import store
from sbdzsl.lake.folders import StoredFile
from sbdzsl.lake.store import filesystem, local_path, read_range, retried, shown, store_errors

#: Neighbours are read by one request while it stays below this, and while no more than this lies between two of them:
#: a request costs about as much time as a few megabytes.
MAX_TOGETHER_BYTES, MAX_GAP_BYTES = 8_000_000, 1_000_000
#: What one request reads ahead while an archive is listed.
_READ_AHEAD_BYTES = 4_000_000

_MEMBER = re.compile(r"(.+?\.tar)#(\d+)\+(\d+)/(.*)", re.DOTALL | re.IGNORECASE)
_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member lies: `size` bytes from `offset` of `archive`."""

    archive: str
    offset: int
    size: int
    name: str


class DamagedArchive(Exception):  # noqa: N818  what a listing counts, not what it raises
    """What calls itself a TAR file is none, or ends before its end."""


def member(uri: str) -> Member | None:
    """What the URI of a member says; None for the URI of a file."""
    found = _MEMBER.fullmatch(uri)
    return None if found is None else Member(found[1], int(found[2]), int(found[3]), found[4])


def is_archive(uri: str) -> bool:
    """Whether the name is that of a plain TAR file."""
    return uri.lower().endswith(".tar")


def is_compressed_archive(uri: str) -> bool:
    """Whether the name is that of a compressed TAR file, no member of which can be read without the others."""
    return _COMPRESSED.search(uri) is not None


def members(
    archive: StoredFile, left_out: Callable[[str, str], None], on_request: Callable[[], None]
) -> Iterator[StoredFile]:
    """The regular files in a plain TAR file, in its order, as files of their own; memory does not grow with them.

    The etag of each is the archive's version, so that it changes whenever the archive does; `modified_at` is the
    member's own, the archive's where it has none. Names come normalised: no `..`, no leading slash. What is no file of
    its own (a link, a sparse file) goes to `left_out(reason, name)`. `on_request` is called at each request. Raises
    `DamagedArchive`, `LakeError`.
    """
    with open_ranges(archive.uri, on_request) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                while (found := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # or it would remember every one
                    name = posixpath.normpath("/" + found.name).lstrip("/")
                    if found.isdir():
                        continue
                    if found.isreg() and not found.issparse():
                        uri = f"{archive.uri}#{found.offset_data}+{found.size}/{name}"
                        yield StoredFile(uri, found.size, archive.version, _modified_at(found, archive))
                    else:
                        left_out("no file of its own in a TAR file", f"{archive.uri}: {name}")
                _check_end(tar, stream)
        except tarfile.TarError as error:
            raise DamagedArchive(str(error)) from None


def _modified_at(found: tarfile.TarInfo, archive: StoredFile) -> datetime | None:
    # Archives that are made to be the same each time carry 0 everywhere.
    try:
        return datetime.fromtimestamp(found.mtime, tz=timezone.utc) if found.mtime > 0 else archive.modified_at
    except (ValueError, OverflowError, OSError):
        return archive.modified_at


def _check_end(tar: tarfile.TarFile, stream: BinaryIO) -> None:
    """Raise where it was no end but rubbish that `tarfile` stopped at, which it does not tell apart."""
    stream.seek(tar.offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0") or 0 < len(block) < tarfile.BLOCKSIZE:
        raise DamagedArchive(f"no header at byte {tar.offset}")


def open_ranges(uri: str, on_request: Callable[[], None] = lambda: None) -> BinaryIO:
    """A seekable stream over one file that reads a few megabytes a request, each tried again by itself.

    Raises `LakeError`, also while it is read.
    """
    path = local_path(uri)
    with store_errors(uri):
        if path is not None:
            return open(path, "rb")
        fs, name = filesystem(uri)
        size = retried(lambda: int(fs.info(name)["size"]))
    return cast("BinaryIO", io.BufferedReader(_Ranges(uri, size, on_request), _READ_AHEAD_BYTES))


class _Ranges(io.RawIOBase):
    def __init__(self, uri: str, size: int, on_request: Callable[[], None]) -> None:
        self._uri, self._size, self._on_request, self._at = uri, size, on_request, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = max(0, min(len(buffer), self._size - self._at))
        if size:
            self._on_request()
            data = read_range(self._uri, self._at, size)
            size = len(data)
            buffer[:size] = data
        self._at += size
        return size


def read_bytes(uri: str, max_bytes: int | None = None) -> bytes:
    """All bytes of one file, or of one member of a TAR file by a read of its range alone.

    Raises `LakeError` (not-found, forbidden, unreachable, unsupported-store), or `ImageError` too-large if it has more
    than `max_bytes`; of such a file at most `max_bytes` + 1 bytes are read.
    """
    packed = member(uri)
    if packed is None:
        return store.read_bytes(uri, max_bytes)
    _check_size(uri, packed, max_bytes)
    return _whole(uri, packed, read_range(packed.archive, packed.offset, packed.size))


def together(uris: Sequence[str]) -> Iterator[list[int]]:
    """Indices of neighbours that one request should read, in order: members of one archive that lie close.

    Together they span at most `MAX_TOGETHER_BYTES`, unless one alone is larger. A file is a group of its own.
    """
    group: list[int] = []
    start = end = 0
    archive: str | None = None
    for index, uri in enumerate(uris):
        packed = member(uri)
        fits = (
            packed is not None
            and packed.archive == archive
            and end <= packed.offset <= end + MAX_GAP_BYTES
            and packed.offset + packed.size - start <= MAX_TOGETHER_BYTES
        )
        if not fits:
            if group:
                yield group
            group, start, archive = [], packed.offset if packed else 0, packed.archive if packed else None
        group.append(index)
        end = packed.offset + packed.size if packed else 0
    if group:
        yield group


def read_together(uris: Sequence[str], max_bytes: int | None = None) -> list[bytes | ImageError | LakeError]:
    """The bytes of a group of `together`, by one request; what cannot be read is its error, not raised."""
    packed = [found for uri in uris if (found := member(uri))]
    if len(packed) < max(2, len(uris)):
        return [_or_error(partial(read_bytes, uri, max_bytes)) for uri in uris]
    start, end = packed[0].offset, packed[-1].offset + packed[-1].size
    data = _or_error(lambda: read_range(packed[0].archive, start, end - start))
    if not isinstance(data, bytes):
        return [data] * len(uris)

    def cut(uri: str, found: Member) -> bytes:
        _check_size(uri, found, max_bytes)
        return _whole(uri, found, data[found.offset - start : found.offset - start + found.size])

    return [_or_error(partial(cut, uri, found)) for uri, found in zip(uris, packed, strict=True)]


def _or_error(call: Callable[[], bytes]) -> bytes | ImageError | LakeError:
    try:
        return call()
    except (ImageError, LakeError) as error:
        return error


def _check_size(uri: str, packed: Member, max_bytes: int | None) -> None:
    if max_bytes is not None and packed.size > max_bytes:
        raise ImageError("too-large", f"{shown(uri)} has more than {max_bytes} bytes, the limit max_bytes")


def _whole(uri: str, packed: Member, data: bytes) -> bytes:
    if len(data) < packed.size:
        raise LakeError(
            "not-found",
            f"{shown(uri)}: the archive ends before this member; it was changed since it was listed: list it again",
        )
    return data
