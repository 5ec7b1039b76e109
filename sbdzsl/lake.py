"""Stores of images and results: listing, reading, writing once, and the manifest. The only module that touches them.

A lake is any fsspec URL: a local or mounted path, `s3://`, and what fsspec has a package for. Credentials come by the
stores' own conventions and never stand in a URL. A failure is a `LakeError` that says which object and why.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

import boto3
import botocore.exceptions
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import stamina
from fsspec.implementations.local import LocalFileSystem

from sbdzsl.errors import DataError, ImageError, LakeError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("modified_at", pa.timestamp("us", tz="UTC")),
        ("surface", pa.string()),
        ("label", pa.string()),
        ("mask_uri", pa.string()),
        ("mask_kind", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("bit_depth", pa.int16()),
    ],
    metadata={"sbdzsl_schema": "manifest", "version": "1"},
)

#: What an S3 server answers to a conditional PUT that came second; 409 is a race still undecided, and is tried again.
_TAKEN = {"PreconditionFailed", "412"}
_RACE = {"ConditionalRequestConflict", "409"}


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One object of a store. `etag` is the store's own version mark, None where it has none."""

    uri: str
    size_bytes: int
    etag: str | None
    modified_at: datetime | None

    @property
    def version(self) -> str:
        """What changes when the object does: the etag, else size and time."""
        return self.etag or f"{self.size_bytes}-{self.modified_at.isoformat() if self.modified_at else ''}"


def absolute_url(url: str) -> str:
    """A local path as an absolute plain path, any other URL as it is."""
    if url.startswith("file://"):
        url = LocalFileSystem._strip_protocol(url)
    return url if "://" in url else str(Path(url).absolute())


def join(url: str, *parts: str) -> str:
    """A URL below another."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. Raises `LakeError` "unsupported-store"."""
    if "://" not in url:
        return LocalFileSystem(), str(Path(url).absolute())
    try:
        found, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise LakeError("unsupported-store", f"{url}: {error}; expected a path, s3://, or a store fsspec knows") from None
    return found, path


def exists(uri: str) -> bool:
    """Whether there is an object or folder at `uri`."""
    store, path = filesystem(uri)
    with _failures(uri):
        return bool(store.exists(path))


def read_bytes(uri: str, max_bytes: int | None = None) -> bytes:
    """The whole object. Raises `ImageError` "too-large" before reading one of more than `max_bytes`."""
    store, path = filesystem(uri)
    with _failures(uri), store.open(path, "rb") as stream:
        if max_bytes is None:
            return bytes(stream.read())
        data = bytes(stream.read(max_bytes + 1))
    if len(data) > max_bytes:
        raise ImageError("too-large", f"{uri}: more than {max_bytes} bytes; the limit is max_bytes")
    return data


def write_bytes(uri: str, data: bytes) -> None:
    """Write an object, replacing one that is there. A reader sees the old one or the new one, never a part."""
    store, path = filesystem(uri)
    with _failures(uri):
        if isinstance(store, LocalFileSystem):
            with _temporary_beside(path, data) as temporary:
                temporary.replace(path)
        else:
            store.pipe_file(path, data)


def write_once(uri: str, data: bytes) -> bool:
    """Write an object unless there is one. True if this call wrote it; of any number of callers exactly one does.

    Local: a hard link of a finished temporary file. S3: one conditional PUT. Other stores: exclusive creation where
    they offer it, else `LakeError` "unsupported-store".
    """
    store, path = filesystem(uri)
    with _failures(uri):
        if isinstance(store, LocalFileSystem):
            with _temporary_beside(path, data) as temporary:
                return _link(temporary, path)
        if "s3" in _protocols(store):
            return _put_once(path, data)
        try:
            store.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except (NotImplementedError, TypeError):
            raise LakeError("unsupported-store", f"{uri}: this store cannot create an object exclusively") from None
        return True


def list_files(url: str) -> list[StoredFile]:
    """All objects below `url`, sorted by uri. Raises `LakeError` "not-found" if there is nothing at `url`."""
    store, path = filesystem(url)
    with _failures(url):
        found = store.find(path, detail=True)
        if not found and not store.exists(path):
            raise FileNotFoundError(path)
    is_local = isinstance(store, LocalFileSystem)
    files = [_stored(name if is_local else store.unstrip_protocol(name), info) for name, info in found.items()]
    return sorted(files, key=lambda file: file.uri)


def list_images(url: str) -> pa.Table:
    """A manifest of every image below `url`, by suffix, whatever its case.

    Raises `LakeError`: "not-found", "forbidden", "no-images" with what was found instead.
    """
    files = list_files(url)
    images = [file for file in files if PurePosixPath(file.uri).suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        others = sorted({PurePosixPath(file.uri).suffix or "(no suffix)" for file in files})
        raise LakeError(
            "no-images",
            f"no image below {url}: found {len(files)} files of kind {', '.join(others) or 'none'}; "
            f"expected {', '.join(sorted(IMAGE_SUFFIXES))}",
        )
    columns = {
        "image_id": [image_id(file.uri, file.version) for file in images],
        "uri": [file.uri for file in images],
        "size_bytes": [file.size_bytes for file in images],
        "etag": [file.etag for file in images],
        "modified_at": [file.modified_at for file in images],
    }
    empty = [None] * len(images)
    return pa.table({name: columns.get(name, empty) for name in MANIFEST_SCHEMA.names}, schema=MANIFEST_SCHEMA)


def image_id(uri: str, version: str) -> str:
    """Stable id of one version of one object: 32 hex digits of a digest of uri and the store's version mark."""
    return hashlib.sha256(f"{uri}\n{version}".encode()).hexdigest()[:32]


def read_manifest(uri: str) -> pa.Table:
    """Read a manifest; optional columns that are missing become nulls.

    Raises `DataError` "bad-manifest" for a file that is no Parquet, for unknown columns or types that do not fit, for
    rows without id or uri, and for an id that stands twice.
    """
    data = read_bytes(uri)
    try:
        table = pq.read_table(pa.BufferReader(data))
    except pa.ArrowInvalid as error:
        raise DataError("bad-manifest", f"{uri}: not a Parquet file ({error})") from None
    return _checked(table, uri)


def read_manifests(uris: Sequence[str]) -> pa.Table:
    """Several manifests as one. Raises `DataError` "bad-manifest" if an id stands in two of them."""
    return _checked(pa.concat_tables([read_manifest(uri) for uri in uris]), ", ".join(uris))


def write_manifest(table: pa.Table, uri: str, row_group_size: int | None = None) -> None:
    """Write a manifest as Parquet, replacing one that is there."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, row_group_size=row_group_size, compression="zstd")
    write_bytes(uri, buffer.getvalue().to_pybytes())


def manifest_digest(table: pa.Table) -> str:
    """SHA-256 over what decides the judgement or the training: ids in order, uris, depths, labels, splits."""
    digest = hashlib.sha256()
    for name in ("image_id", "uri", "bit_depth", "surface", "label", "mask_uri", "group", "split"):
        digest.update(repr(table[name].to_pylist()).encode())
    return digest.hexdigest()


def _checked(table: pa.Table, source: str) -> pa.Table:
    """The table cast to `MANIFEST_SCHEMA`, or `DataError` with all that is wrong with it."""
    unknown = sorted(set(table.column_names) - set(MANIFEST_SCHEMA.names))
    missing = sorted({"image_id", "uri"} - set(table.column_names))
    if unknown or missing:
        raise DataError(
            "bad-manifest",
            f"{source}: unknown columns {unknown}, missing columns {missing}; a manifest has {MANIFEST_SCHEMA.names}",
        )
    try:
        columns = [
            table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
            for field in MANIFEST_SCHEMA
        ]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError("bad-manifest", f"{source}: {error}") from None
    manifest = pa.table(columns, schema=MANIFEST_SCHEMA)
    for name in ("image_id", "uri"):
        if manifest[name].null_count:
            raise DataError("bad-manifest", f"{source}: {manifest[name].null_count} rows have no {name}")
    doubled = len(manifest) - len(manifest["image_id"].unique())
    if doubled:
        raise DataError("bad-manifest", f"{source}: {doubled} rows repeat the image_id of another; each must be unique")
    return manifest


def _stored(uri: str, info: dict[str, Any]) -> StoredFile:
    modified = info.get("LastModified") or info.get("last_modified") or info.get("mtime") or info.get("created")
    if isinstance(modified, (int, float)):
        modified = datetime.fromtimestamp(modified, timezone.utc)
    etag = info.get("ETag") or info.get("etag")
    return StoredFile(uri, int(info.get("size") or 0), etag.strip('"') if etag else None, modified)


@contextmanager
def _temporary_beside(path: str, data: bytes) -> Iterator[Path]:
    """A finished, synced temporary file in the folder of `path`; removed in the end if it is still there."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: str) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:
        # A mount without hard links: a rename never shows a part either, though of two at once the later one stays.
        if Path(path).exists():
            return False
        temporary.replace(path)
    return True


@stamina.retry(on=lambda error: _s3_code(error) in _RACE, attempts=5)
def _put_once(path: str, data: bytes) -> bool:
    """One conditional PUT; endpoint, region and credentials by boto3's own conventions."""
    bucket, key = path.split("/", 1)
    try:
        boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
    except botocore.exceptions.ClientError as error:
        if _s3_code(error) in _TAKEN:
            return False
        raise
    return True


def _s3_code(error: Exception) -> str | None:
    return error.response["Error"]["Code"] if isinstance(error, botocore.exceptions.ClientError) else None


def _protocols(store: Any) -> tuple[str, ...]:
    return (store.protocol,) if isinstance(store.protocol, str) else tuple(store.protocol)


@contextmanager
def _failures(uri: str) -> Iterator[None]:
    """Turn what stores raise into `LakeError`s."""
    try:
        yield
    except FileNotFoundError as error:
        what = "no such bucket" if "bucket" in str(error).lower() else "there is nothing here"
        raise LakeError("not-found", f"{uri}: {what}; check the path and that this machine can see it") from None
    except (PermissionError, botocore.exceptions.NoCredentialsError) as error:
        raise LakeError("forbidden", f"{uri}: no permission ({error}); check the account's rights") from None
    except IsADirectoryError:
        raise LakeError("not-found", f"{uri}: this is a folder, expected a file") from None
    except botocore.exceptions.ClientError as error:
        codes = {"NoSuchBucket": "not-found", "NoSuchKey": "not-found", "AccessDenied": "forbidden", "403": "forbidden"}
        raise LakeError(codes.get(_s3_code(error) or "", "unreachable"), f"{uri}: {error}") from None
    except (OSError, botocore.exceptions.BotoCoreError) as error:
        raise LakeError("unreachable", f"{uri}: {type(error).__name__}: {error}") from None
