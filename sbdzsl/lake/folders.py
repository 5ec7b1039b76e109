"""What lies below a place, streamed: one level of folders, or all files. Nothing here holds all names at once.

S3 is listed by pages of 1000 keys, local folders by `os.scandir` with the sizes and times asked for in threads, other
stores one folder a call.

Links to local folders: one that leads to a folder below the root adds nothing, for that folder is listed where it
stands; one that leads elsewhere is followed, each folder there once, whoever comes first (`Claims`).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from sbdzsl.lake.store import absolute_url, boto3_client, filesystem, join, local_path, retried, store_errors

#: Names a thread asks size and time of in one go, and how many threads do: on a network file system each waits.
_STAT_NAMES, _STAT_THREADS = 256, 8


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file as its store lists it. Size and etag are None where the store has none; `modified_at` is UTC."""

    uri: str
    size_bytes: int | None
    etag: str | None
    modified_at: datetime | None

    @property
    def version(self) -> str:
        """What changes when the content does: the ETag, else size and time of change."""
        if self.etag is not None:
            return self.etag
        return f"{self.size_bytes}-{'' if self.modified_at is None else self.modified_at.isoformat()}"


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder below another. What lies below a local link is found by `Scan.below` alone."""

    uri: str
    is_link: bool = False


class Claims:
    """Folders outside the root that links lead to, each to be listed by the first who comes; safe between threads."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._lock = threading.Lock()

    def take(self, real: str) -> bool:
        """True for the first who asks for this folder."""
        with self._lock:
            is_first = real not in self._taken
            self._taken.add(real)
        return is_first


def _keep_all(_: str) -> bool:
    return False


class Scan(Protocol):
    """Reads the folders of one lake. `num_requests` counts what a store charges for; a local folder charges nothing."""

    #: The lake as the names of its folders and files begin.
    root: str
    num_requests: int
    #: Real paths of the folders outside the root that this scan took from `Claims`, and that others had taken.
    linked: set[str]
    refused: set[str]

    def file(self) -> StoredFile | None:
        """The root, if it is one file; None for a folder. Raises `FileNotFoundError` if it is neither."""

    def level(self, folder: str) -> Iterator[StoredFile | Folder]:
        """Files and folders directly in a folder."""

    def below(self, folder: str, is_pruned: Callable[[str], bool] = _keep_all) -> Iterator[StoredFile]:
        """All files below a folder; folders that `is_pruned` says True for may be left out."""


def scan(root: str, claims: Claims | None = None) -> Scan:
    """A scan of the lake `root`, an absolute URL. Raises `LakeError` unsupported-store."""
    if local_path(root) is not None:
        return _LocalScan(absolute_url(root), claims or Claims())
    fs, path = filesystem(root)
    return _S3Scan(root, fs, path) if "s3" in fs.protocol else _StoreScan(root, fs, path)


def list_files(url: str) -> list[StoredFile]:
    """All files below `url` (or `url` itself, if it is a file), sorted by uri.

    An empty local folder gives []. Raises `LakeError` not-found if there is no such folder, bucket or prefix; an object
    store has no empty folders. Links to folders are followed, each folder once.
    """
    with store_errors(url):
        files = scan(url)
        found = files.file()
        return [found] if found else sorted(files.below(files.root), key=lambda file: file.uri)


class _LocalScan:
    def __init__(self, root: str, claims: Claims) -> None:
        self.num_requests = 0
        self.linked, self.refused = set[str](), set[str]()
        self.root, self._claims = root, claims
        self._real_root = os.path.realpath(root)
        self._pool = ThreadPoolExecutor(_STAT_THREADS)

    def file(self) -> StoredFile | None:
        status = Path(self.root).stat()
        if stat.S_ISDIR(status.st_mode):
            return None
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, "neither a folder nor a regular file")
        return _stored_file(self.root, status)

    def level(self, folder: str) -> Iterator[StoredFile | Folder]:
        if self._is_ours(folder, os.path.realpath(folder), self._comes_by_link(folder)):
            yield from self._entries(folder)

    def below(self, folder: str, is_pruned: Callable[[str], bool] = _keep_all) -> Iterator[StoredFile]:
        waiting = [(folder, os.path.realpath(folder), self._comes_by_link(folder))]
        while waiting:
            path, real, is_elsewhere = waiting.pop()
            if is_pruned(path) or not self._is_ours(path, real, is_elsewhere):
                continue
            for entry in self._entries(path):
                if isinstance(entry, StoredFile):
                    yield entry
                elif entry.is_link:
                    waiting.append((entry.uri, os.path.realpath(entry.uri), True))
                else:
                    waiting.append((entry.uri, f"{real.rstrip('/')}/{entry.uri.rsplit('/', 1)[1]}", is_elsewhere))

    def _comes_by_link(self, folder: str) -> bool:
        below = folder[len(self.root) :].strip("/")
        return os.path.realpath(folder) != (join(self._real_root, below) if below else self._real_root)

    def _is_ours(self, folder: str, real: str, is_elsewhere: bool) -> bool:
        """Whether to list a folder here: it stands below the root, or a link leads to it and nobody took it before."""
        if not is_elsewhere:
            return True
        if real == self._real_root or real.startswith(self._real_root.rstrip("/") + "/"):
            return False
        is_first = self._claims.take(real)
        (self.linked if is_first else self.refused).add(real)
        return is_first

    def _entries(self, folder: str) -> Iterator[StoredFile | Folder]:
        waiting: deque[Future[list[StoredFile]]] = deque()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:  # gone since
            while names := list(itertools.islice(entries, _STAT_NAMES)):
                files = []
                for entry in names:
                    if entry.is_dir():
                        yield Folder(entry.path, entry.is_symlink())
                    else:
                        files.append(entry)
                waiting.append(self._pool.submit(_with_status, files))
                if len(waiting) > 2 * _STAT_THREADS:
                    yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _with_status(entries: list[os.DirEntry[str]]) -> list[StoredFile]:
    files = []
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):  # gone since the scan
            if entry.is_file():
                files.append(_stored_file(entry.path, entry.stat()))
    return files


def _stored_file(path: str, status: os.stat_result) -> StoredFile:
    modified = datetime.fromtimestamp(status.st_mtime_ns // 1000 / 1e6, tz=timezone.utc)
    return StoredFile(path, status.st_size, None, modified)


class _S3Scan:
    def __init__(self, root: str, fs: Any, path: str) -> None:
        self.num_requests = 0
        self.linked, self.refused = set[str](), set[str]()
        self._client = boto3_client(fs)
        self._bucket, key, _ = fs.split_path(path)
        self._base = f"{root.split('://', 1)[0]}://{self._bucket}/"
        self._key = key.rstrip("/")
        self.root = (self._base + self._key).rstrip("/")

    def file(self) -> StoredFile | None:
        page = next(self._pages(self._prefix(self.root), MaxKeys=1))
        if not self._key or page.get("KeyCount"):
            return None
        self.num_requests += 1
        found = retried(lambda: self._client.head_object(Bucket=self._bucket, Key=self._key))
        return self._stored_file(found | {"Key": self._key, "Size": found["ContentLength"]})

    def level(self, folder: str) -> Iterator[StoredFile | Folder]:
        for page in self._pages(self._prefix(folder), Delimiter="/"):
            # One slash alone is taken off: a folder may have an empty name.
            yield from (Folder(self._base + found["Prefix"][:-1]) for found in page.get("CommonPrefixes", ()))
            yield from self._files(page)

    def below(self, folder: str, is_pruned: Callable[[str], bool] = _keep_all) -> Iterator[StoredFile]:
        del is_pruned  # keys come in one row: to leave some out would not save a request
        for page in self._pages(self._prefix(folder)):
            yield from self._files(page)

    def _prefix(self, folder: str) -> str:
        key = folder[len(self._base) :]
        return key + "/" if key else ""

    def _pages(self, prefix: str, **request: Any) -> Iterator[dict[str, Any]]:
        """Pages of up to 1000 keys, each tried again by itself, so that one lost answer does not begin anew."""
        more: dict[str, Any] = {}
        while True:
            self.num_requests += 1
            page = retried(partial(self._client.list_objects_v2, Bucket=self._bucket, Prefix=prefix, **request, **more))
            yield page
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _files(self, page: dict[str, Any]) -> Iterator[StoredFile]:
        # Some tools store a folder as an empty object.
        return (self._stored_file(found) for found in page.get("Contents", ()) if not found["Key"].endswith("/"))

    def _stored_file(self, found: dict[str, Any]) -> StoredFile:
        modified = found["LastModified"].astimezone(timezone.utc)
        return StoredFile(self._base + found["Key"], int(found["Size"]), found["ETag"].strip('"'), modified)


class _StoreScan:
    def __init__(self, root: str, fs: Any, path: str) -> None:
        self.num_requests = 0
        self.linked, self.refused = set[str](), set[str]()
        self.root, self._fs, self._path = root.rstrip("/"), fs, path.rstrip("/")

    def file(self) -> StoredFile | None:
        self.num_requests += 1
        info = retried(lambda: self._fs.info(self._path))
        return _from_info(self.root, info) if info["type"] == "file" else None

    def level(self, folder: str) -> Iterator[StoredFile | Folder]:
        path = self._path + folder.rstrip("/")[len(self.root) :]
        self.num_requests += 1
        for info in retried(lambda: self._fs.ls(path, detail=True)):
            name = info["name"].rstrip("/")
            if name == path.rstrip("/"):
                continue  # some stores list a folder in itself
            uri = self.root + name[len(self._path) :]
            if info["type"] == "directory":
                yield Folder(uri)
            elif not info["name"].endswith("/"):
                yield _from_info(uri, info)

    def below(self, folder: str, is_pruned: Callable[[str], bool] = _keep_all) -> Iterator[StoredFile]:
        waiting = [folder]
        while waiting:
            path = waiting.pop()
            for entry in () if is_pruned(path) else self.level(path):
                if isinstance(entry, StoredFile):
                    yield entry
                else:
                    waiting.append(entry.uri)


def _from_info(uri: str, info: dict[str, Any]) -> StoredFile:
    etag = info.get("ETag") or info.get("etag")
    modified = next(
        (info[k] for k in ("LastModified", "last_modified", "updated", "mtime", "created") if k in info), None
    )
    if isinstance(modified, str):
        modified = datetime.fromisoformat(modified.replace("Z", "+00:00"))
    elif isinstance(modified, int | float):
        modified = datetime.fromtimestamp(modified, tz=timezone.utc)
    if modified is not None:
        modified = modified.astimezone(timezone.utc)
    return StoredFile(uri, int(info["size"]), etag.strip('"') if etag else None, modified)
