"""Bytes in and out of any place: a local path, or a URL that fsspec knows (`s3://`, `gs://`, `abfs://`, `memory://`).

Local files are handled by the operating system, where every character of a name is allowed. Credentials and endpoints
come from the stores' own conventions (for S3 `AWS_PROFILE`, `AWS_ENDPOINT_URL`, roles), never from an argument or a
URL. Errors that pass are retried with jitter; all others become a `LakeError` whose message names the place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import botocore.config
import botocore.exceptions
import fsspec
import fsspec.exceptions
import stamina
from fsspec.implementations.local import LocalFileSystem

from sbdzsl.errors import ImageError, LakeError, SbdzslError

_S3 = frozenset({"s3", "s3a"})
# Stores where fsspec's mode="create" is one conditional request; for others it is a check and then a write.
_EXCLUSIVE = frozenset({"gs", "gcs", "az", "abfs", "abfss"})
_NO_LINK = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
_LOST = (botocore.exceptions.HTTPClientError, fsspec.exceptions.FSTimeoutError, ConnectionError, TimeoutError)
_memory_lock = threading.Lock()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file as its store lists it. `etag` is None where the store has none; `modified_at` is UTC."""

    uri: str
    size_bytes: int
    etag: str | None
    modified_at: datetime | None

    @property
    def version(self) -> str:
        """What changes when the content does: the ETag, else size and time of change."""
        if self.etag is not None:
            return self.etag
        return f"{self.size_bytes}-{'' if self.modified_at is None else self.modified_at.isoformat()}"


def absolute_url(url: str) -> str:
    """A local path (or `file://` URL, or `~`) as an absolute plain path; any other URL as it is."""
    path = _local_path(url)
    return url if path is None else os.path.abspath(path)  # noqa: PTH100  Path.resolve would follow links


def join(url: str, *parts: str) -> str:
    """Names below `url`, joined with single slashes."""
    return "/".join([url.rstrip("/") if url.strip("/") else "", *(part.strip("/") for part in parts)])


def _local_path(url: str) -> str | None:
    """The path if `url` is local, else None. Nothing is decoded: `%20` in a path is these three characters."""
    for prefix in ("file://", "local://"):
        if url.startswith(prefix):
            return url[len(prefix) :]
    return None if "://" in url else os.path.expanduser(url)  # noqa: PTH111  Path raises for an unknown ~user


def _scheme(url: str) -> str:
    return url.split("://", 1)[0]


def shown(url: str) -> str:
    """The URL for a message, without a password that someone put into it."""
    return re.sub(r"//[^/@]*@", "//***@", url)


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of any URL, local ones too, and the path in it: for readers that want more than bytes."""
    return _store(url) if _local_path(url) is None else (LocalFileSystem(), absolute_url(url))


def _store(url: str) -> tuple[Any, str]:
    """The fsspec file system and the path in it. Without a cache of listings, for other processes write too.

    `fsspec.url_to_fs` would take a "::" in a name for a chain of stores and quietly use what stands before it.
    """
    try:
        kind = fsspec.get_filesystem_class(_scheme(url))
        return kind(use_listings_cache=False, **kind._get_kwargs_from_urls(url)), kind._strip_protocol(url)
    except (ImportError, ValueError) as error:
        raise LakeError("unsupported-store", f"{shown(url)}: {error}") from None


def _is_transient(error: Exception) -> bool:
    """Whether the same call may succeed in a moment: lost connections, time-outs, an overloaded store."""
    if isinstance(error, botocore.exceptions.ClientError):
        # 409 is a race of two conditional writes, to be settled by asking again.
        return error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 500, 502, 503, 504)
    if isinstance(error, _LOST):
        return True
    # s3fs translates 503 Slow Down and 500 Internal Error to these.
    return isinstance(error, OSError) and error.errno in (errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EBUSY))


def _attempts() -> Any:
    return stamina.retry_context(on=_is_transient, attempts=6, timeout=60, wait_initial=0.2, wait_max=5, wait_jitter=1)


def _retried(call: Callable[[], T]) -> T:
    for attempt in _attempts():
        with attempt:
            return call()
    raise AssertionError("stamina raises the last error")


@contextlib.contextmanager
def _store_errors(url: str) -> Iterator[None]:
    """Turn what local files, fsspec, s3fs and boto3 raise into a `LakeError`."""
    place = shown(url)
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise LakeError("not-found", f"no file at {place}: {error.strerror or error}") from error
    except PermissionError as error:
        raise LakeError("forbidden", f"{place}: access denied: {error.strerror or error}") from error
    except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError) as error:
        raise LakeError("forbidden", f"{place}: {error}; set them as the store's own tools want them") from error
    except botocore.exceptions.ClientError as error:
        status, reason = error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"].get("Message")
        code = {403: "forbidden", 404: "not-found", 501: "unsupported-store"}.get(status, "unreachable")
        raise LakeError(code, f"{place}: the store answered {status}: {reason}") from error
    except SbdzslError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise LakeError(
                "disk-full", f"{place}: {error.strerror}; make room (or raise the quota), then run the same again"
            ) from error
        raise LakeError("unreachable", f"{place}: {type(error).__name__}: {error}") from error
    except Exception as error:  # each fsspec store has kinds of its own
        raise LakeError("unreachable", f"{place}: {type(error).__name__}: {error}") from error


def exists(uri: str) -> bool:
    """Whether there is a file or a folder. Raises `LakeError` (forbidden, unreachable) if that cannot be told."""
    path = _local_path(uri)
    with _store_errors(uri):
        try:
            if path is not None:
                Path(path).stat()
            else:
                fs, name = _store(uri)
                _retried(lambda: fs.info(name))
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def read_bytes(uri: str, max_bytes: int | None = None) -> bytes:
    """All bytes of one file.

    Raises `LakeError` (not-found, forbidden, unreachable, unsupported-store), or `ImageError` too-large if it has more
    than `max_bytes`; of such a file at most `max_bytes` + 1 bytes are read.
    """
    path = _local_path(uri)
    with _store_errors(uri):
        if path is not None:
            data = _read_local(Path(path), max_bytes)
        else:
            fs, name = _store(uri)
            data = _retried(lambda: _read_store(fs, name, max_bytes))
    if max_bytes is not None and len(data) > max_bytes:
        raise ImageError("too-large", f"{shown(uri)} has more than {max_bytes} bytes, the limit max_bytes")
    return data


def _read_local(path: Path, max_bytes: int | None) -> bytes:
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a pipe or a device would never end
            raise FileNotFoundError(errno.ENOENT, "not a regular file")
        return file.read(-1 if max_bytes is None else max_bytes + 1)


def _read_store(fs: Any, name: str, max_bytes: int | None) -> bytes:
    if max_bytes is None:
        return fs.cat_file(name)
    try:
        return fs.cat_file(name, start=0, end=max_bytes + 1)
    except OSError as error:
        if error.errno == errno.EINVAL and fs.info(name)["size"] == 0:
            return b""  # S3 knows no range in an empty object
        raise


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file, replacing one that exists in one step: readers see old or new content. Raises `LakeError`."""
    path = _local_path(uri)
    with _store_errors(uri):
        if path is not None:
            with _temporary(Path(path), data) as temporary:
                temporary.replace(path)
        else:
            fs, name = _store(uri)
            _retried(lambda: fs.pipe_file(name, data))


def remove(uri: str) -> None:
    """Remove a file; one that is not there is no error. Raises `LakeError` for a store that refuses."""
    with _store_errors(uri), contextlib.suppress(FileNotFoundError):
        fs, name = filesystem(uri)
        _retried(lambda: fs.rm_file(name))


def write_once(uri: str, data: bytes) -> bool:
    """Write a file unless there is one: True if written, False if it exists already and was left untouched.

    Of several writers exactly one gets True (on a file system without hard links: all but racing ones), and no reader
    ever sees a part of the content. S3: one PUT with
    `If-None-Match: *`; the store has to honour it, as AWS does. Raises `LakeError`, unsupported-store where a store
    offers no exclusive creation.
    """
    path, scheme = _local_path(uri), _scheme(uri)
    with _store_errors(uri):
        if path is not None:
            return _create_local(Path(path), data)
        fs, name = _store(uri)
        if scheme in _S3:
            return _create_s3(fs, name, data)
        if scheme in _EXCLUSIVE or scheme == "memory":
            with _memory_lock if scheme == "memory" else contextlib.nullcontext():
                return _create(lambda: fs.pipe_file(name, data, mode="create"), lambda: fs.cat_file(name), data)
    raise LakeError(
        "unsupported-store",
        f"{shown(uri)}: {scheme}:// offers no exclusive creation; use a local path, s3://, gs:// or abfs://",
    )


def _create(put: Callable[[], object], get: Callable[[], bytes], data: bytes) -> bool:
    """Call `put`, which raises `FileExistsError` if the object exists, with retries.

    A first try may have written the object though its answer was lost; the second then finds its own content.
    """
    for attempt in _attempts():
        with attempt:
            try:
                put()
            except FileExistsError:
                return attempt.num > 1 and get() == data
            return True
    raise AssertionError("stamina raises the last error")


def boto3_client(fs: Any) -> Any:
    """A boto3 S3 client with the settings of an s3fs file system, and with no retries of its own.

    To make one takes 0.1 s, so it is kept on the file system, whose own connections live as long.
    """
    import boto3  # slow to import, and needed only here

    if not hasattr(fs, "boto3_client"):
        # Retries in boto3 would hide that a refusal follows a lost answer to our own write.
        once = botocore.config.Config(retries={"total_max_attempts": 1})
        given = {"endpoint_url": fs.endpoint_url, "aws_access_key_id": fs.key, "aws_secret_access_key": fs.secret}
        given |= {"aws_session_token": fs.token} | fs.client_kwargs
        session = boto3.Session(profile_name=fs.kwargs.get("profile"))
        fs.boto3_client = session.client("s3", config=botocore.config.Config(**fs.config_kwargs).merge(once), **given)
    return fs.boto3_client


def _create_s3(fs: Any, name: str, data: bytes) -> bool:
    bucket, key = name.split("/", 1)
    client = boto3_client(fs)

    def put() -> None:
        try:
            client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except botocore.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 412:
                raise FileExistsError(name) from error
            raise

    return _create(put, lambda: client.get_object(Bucket=bucket, Key=key)["Body"].read(), data)


@contextlib.contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    """A file beside `path` with the data safely on disk, removed at the end if it is still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a new name in the folder outlast a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _create_local(path: Path, data: bytes) -> bool:
    if os.path.lexists(path):
        return False
    with _temporary(path, data) as temporary:
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno in _NO_LINK:
                return _replace_if_absent(temporary, path)
            if error.errno != errno.EEXIST:
                raise
            return False
    return True


def _replace_if_absent(temporary: Path, path: Path) -> bool:
    """For file systems without hard links. Of two at the same moment both may win and the later content stays.

    To claim the name first would be exclusive, but a kill in between would leave an empty file for good.
    """
    if os.path.lexists(path):
        return False
    temporary.replace(path)
    return True


def list_files(url: str) -> list[StoredFile]:
    """All files below `url` (or `url` itself, if it is a file), sorted by uri.

    An empty local folder gives []. Raises `LakeError` not-found if there is no such folder, bucket or prefix; an object
    store has no empty folders. Links to folders are followed, each folder once.
    """
    path = _local_path(url)
    with _store_errors(url):
        files = _list_local(absolute_url(url)) if path is not None else _retried(lambda: _list_store(url))
    return sorted(files, key=lambda file: file.uri)


def _list_local(root: str) -> list[StoredFile]:
    if Path(root).is_file():
        return [_stored_file(root, Path(root).stat())]
    files, folders, seen = [], [root], set[str]()
    while folders:
        folder = folders.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.path)
                elif entry.is_file():
                    with contextlib.suppress(FileNotFoundError):  # gone since the scan
                        files.append(_stored_file(entry.path, entry.stat()))
    return files


def _stored_file(path: str, status: os.stat_result) -> StoredFile:
    modified = datetime.fromtimestamp(status.st_mtime_ns // 1000 / 1e6, tz=timezone.utc)
    return StoredFile(path, status.st_size, None, modified)


def _list_store(url: str) -> list[StoredFile]:
    fs, path = _store(url)
    found = fs.find(path, detail=True)
    if not found:
        fs.info(path)  # raises FileNotFoundError, unless this is an empty bucket or folder
    base = url.rstrip("/")
    return [
        _from_info(base + name[len(path.rstrip("/")) :], info)
        for name, info in found.items()
        if info["type"] == "file" and not name.endswith("/")  # some tools store a folder as an empty object
    ]


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
