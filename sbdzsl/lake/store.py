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

_SIGNATURE = r"(?:sig|signature|token|secret|password|x-amz-signature|x-amz-security-token|x-goog-signature)"
#: A URL with a password before the host, or a signed one. In a local path and in a key of S3 all of this is a name.
HOLDS_SECRET = rf"^[A-Za-z][A-Za-z0-9+.-]*://[^/@]*:[^/@]*@|^(?i:https?|az|abfss?)://[^?#]*\?(?:.*&)?(?i:{_SIGNATURE})="

T = TypeVar("T")


def absolute_url(url: str) -> str:
    """A local path (or `file://` URL, or `~`) as an absolute plain path; any other URL as it is."""
    path = local_path(url)
    return url if path is None else os.path.abspath(path)  # noqa: PTH100  Path.resolve would follow links


def join(url: str, *parts: str) -> str:
    """Names below `url`, joined with single slashes."""
    return "/".join([url.rstrip("/") if url.strip("/") else "", *(part.strip("/") for part in parts)])


def local_path(url: str) -> str | None:
    """The path if `url` is local, else None. Nothing is decoded: `%20` in a path is these three characters."""
    for prefix in ("file://", "local://"):
        if url.startswith(prefix):
            return url[len(prefix) :]
    return None if "://" in url else os.path.expanduser(url)  # noqa: PTH111  Path raises for an unknown ~user


def _scheme(url: str) -> str:
    return url.split("://", 1)[0]


def shown(url: str) -> str:
    """The URL for a message, without a password or a signature that someone put into it."""
    return re.sub(rf"([?&]{_SIGNATURE}=)[^&#]*", r"\1***", re.sub(r"//[^/@]*:[^/@]*@", "//***@", url), flags=re.I)


def _refuse_secrets(url: str) -> None:
    """Manifests, verdicts and logs repeat URLs, so that what opens a store must not stand in one."""
    if re.search(HOLDS_SECRET, url):
        raise LakeError(
            "unsupported-store",
            f"{shown(url)}: a password or a signature stands in the URL, which would end up in tables and logs; leave "
            "it out and give credentials as the store's own tools want them (a profile, a role, the environment)",
        )


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of any URL, local ones too, and the path in it: for readers that want more than bytes."""
    return _store(url) if local_path(url) is None else (LocalFileSystem(), absolute_url(url))


def _store(url: str) -> tuple[Any, str]:
    """The fsspec file system and the path in it. Without a cache of listings, for other processes write too.

    `fsspec.url_to_fs` would take a "::" in a name for a chain of stores and quietly use what stands before it.
    """
    _refuse_secrets(url)
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


def retried(call: Callable[[], T]) -> T:
    """What `call` returns; errors that pass are tried again a few times, the last one is raised."""
    for attempt in _attempts():
        with attempt:
            return call()
    raise AssertionError("stamina raises the last error")


@contextlib.contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Turn what local files, fsspec, s3fs and boto3 raise into a `LakeError`."""
    place = shown(url)
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise LakeError("not-found", f"no file at {place}: {error.strerror or error}") from error
    except PermissionError as error:
        where = f" to {error.filename}" if error.filename else ""
        raise LakeError("forbidden", f"{place}: access denied{where}: {error.strerror or error}") from error
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
        said = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # some colour what they say
        raise LakeError("unreachable", f"{place}: {type(error).__name__}: {said}") from error


def exists(uri: str) -> bool:
    """Whether there is a file or a folder. Raises `LakeError` (forbidden, unreachable) if that cannot be told."""
    path = local_path(uri)
    with store_errors(uri):
        try:
            if path is not None:
                Path(path).stat()
            else:
                fs, name = _store(uri)
                retried(lambda: fs.info(name))
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def read_bytes(uri: str, max_bytes: int | None = None) -> bytes:
    """All bytes of one file.

    Raises `LakeError` (not-found, forbidden, unreachable, unsupported-store), or `ImageError` too-large if it has more
    than `max_bytes`; of such a file at most `max_bytes` + 1 bytes are read.
    """
    path = local_path(uri)
    with store_errors(uri):
        if path is not None:
            data = _read_local(Path(path), max_bytes)
        else:
            fs, name = _store(uri)
            data = retried(lambda: _read_store(fs, name, max_bytes))
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


def read_range(uri: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` of one file by one request; fewer where the file ends before.

    Raises `LakeError` as `read_bytes` does.
    """
    path = local_path(uri)
    if not size:
        return b""
    with store_errors(uri):
        if path is not None:
            with open(path, "rb") as file:
                file.seek(offset)
                return file.read(size)
        fs, name = _store(uri)
        return retried(lambda: fs.cat_file(name, start=offset, end=offset + size))


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file, replacing one that exists in one step: readers see old or new content. Raises `LakeError`."""
    path = local_path(uri)
    with store_errors(uri):
        if path is not None:
            with _temporary(Path(path), data) as temporary:
                temporary.replace(path)
        else:
            fs, name = _store(uri)
            retried(lambda: fs.pipe_file(name, data))


def remove(uri: str) -> None:
    """Remove a file; one that is not there is no error. Raises `LakeError` for a store that refuses."""
    with store_errors(uri), contextlib.suppress(FileNotFoundError):
        fs, name = filesystem(uri)
        retried(lambda: fs.rm_file(name))


def write_once(uri: str, data: bytes) -> bool:
    """Write a file unless there is one: True if written, False if it exists already and was left untouched.

    Of several writers exactly one gets True (on a file system without hard links: all but racing ones), and no reader
    ever sees a part of the content. S3: one PUT with
    `If-None-Match: *`; the store has to honour it, as AWS does. Raises `LakeError`, unsupported-store where a store
    offers no exclusive creation.
    """
    path, scheme = local_path(uri), _scheme(uri)
    with store_errors(uri):
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


def probe_write_once(folder: str) -> None:
    """Try whether the store of `folder` keeps `write_once`'s promise, by writing one small file twice.

    Raises `LakeError` unsupported-store where it lets the second write through, and as `write_once` does.
    """
    uri = join(folder, f"_probe-{uuid.uuid4().hex}")
    first, second = write_once(uri, b"first"), write_once(uri, b"second")
    with contextlib.suppress(LakeError):  # where nothing may be removed, a few bytes stay
        remove(uri)
    if not first or second:
        raise LakeError(
            "unsupported-store",
            f"{shown(folder)}: the store ignores conditional writes (If-None-Match: *): of two writers of one file "
            "both would win, so that no row could be promised to stand once. Write to a local or network folder and "
            "copy the result there, or use a store that honours them, such as AWS S3",
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


def storage_options(url: str) -> dict[str, str]:
    """What libraries with a store of their own (Delta, polars) need to reach `url` as this one does; {} if not S3.

    The values hold credentials: pass them on, never print them.
    """
    if _scheme(url) not in _S3:
        return {}
    client = boto3_client(_store(url)[0])
    endpoint, found = client.meta.endpoint_url, client._request_signer._credentials
    options = {"AWS_REGION": client.meta.region_name, "AWS_ENDPOINT_URL": endpoint}
    if endpoint.startswith("http://"):
        options["AWS_ALLOW_HTTP"] = "true"
    if found is not None:
        keys = found.get_frozen_credentials()
        options |= {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key}
        options |= {"AWS_SESSION_TOKEN": keys.token} if keys.token else {}
    return options
