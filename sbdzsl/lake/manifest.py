"""The manifest: the table that says which images there are and what is known of them.

`list_images` makes one of a small folder or prefix (`listing` of those of any size); users add surface, label and so
on. A manifest is Parquet of `MANIFEST_SCHEMA`, one file or a folder of them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sbdzsl.errors import DataError, LakeError
from sbdzsl.lake.folders import StoredFile, list_files
from sbdzsl.lake.packed import open_ranges, read_bytes
from sbdzsl.lake.pick import IMAGE_SUFFIXES, NOT_UTF8, Picker
from sbdzsl.lake.store import (
    HOLDS_SECRET,
    absolute_url,
    exists,
    join,
    shown,
    write_bytes,
)

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

#: What a column may say, where that is a closed list.
MANIFEST_VALUES: dict[str, tuple[str, ...]] = {
    "label": ("benign", "defect"),
    "mask_kind": ("pixels", "ellipse", "rle", "box", "polygon"),
    "split": ("train", "val", "test"),
}

#: A folder that `listing` wrote holds this file from the start, and the other once it is complete.
LISTING, LISTED = "_listing.json", "_listed.json"
#: Rows that `manifest_pages` gives at a time, at most.
PAGE_ROWS = 65_536

# A scheme, a POSIX root, or a drive: what does not depend on the folder a process was started in.
_ABSOLUTE = r"^([A-Za-z][A-Za-z0-9+.-]*://|/|[A-Za-z]:[\\/])"


def image_id(uri: str, version: str) -> str:
    """32 hex digits that name one version of one file: of the SHA-256 of uri and `StoredFile.version`."""
    return hashlib.sha256(f"{uri}\n{version}".encode()).hexdigest()[:32]


def list_images(url: str) -> pa.Table:
    """A manifest of all files below `url` with an image suffix, sorted by uri; surface, label and so on are null.

    Members of plain TAR files are images of their own. Nothing is guessed from names: a mask that is stored as an image
    is listed too. All stands in memory: see `listing` for more than some 100 000 images. Raises `LakeError` (no-images,
    not-found, forbidden, unreachable), `DataError` bad-layout for a name that is not UTF-8.
    """
    files, picker = list_files(url), Picker(absolute_url(url))
    images = list(picker.images(files))
    if NOT_UTF8 in picker.left_out.counts:
        raise DataError("bad-layout", f"{picker.left_out.examples[NOT_UTF8]}: {NOT_UTF8}")
    if not images:
        raise LakeError(
            "no-images", f"{len(files)} files at {shown(url)}, none ends in one of {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return image_table(images)


def image_table(images: Sequence[StoredFile]) -> pa.Table:
    """Rows of `MANIFEST_SCHEMA` for files, in the order given; surface, label and so on are null."""
    columns: dict[str, list[Any]] = {
        "image_id": [image_id(file.uri, file.version) for file in images],
        "uri": [file.uri for file in images],
        "size_bytes": [file.size_bytes for file in images],
        "etag": [file.etag for file in images],
        "modified_at": [file.modified_at for file in images],
    }
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(len(images), field.type)
        for field in MANIFEST_SCHEMA
    ]
    return pa.table(arrays, schema=MANIFEST_SCHEMA)


def _bad(source: str, reason: str) -> DataError:
    return DataError("bad-manifest", f"{shown(source)}: {reason}")


def read_manifest(uri: str) -> pa.Table:
    """A manifest with all columns of `MANIFEST_SCHEMA`, in its order; those that the file lacks are null.

    Types that hold the same values (large strings, dictionaries, wider integers, other time units) are converted.
    Raises `DataError` bad-manifest: not Parquet, a column unknown, missing or of a wrong type, a value out of its list,
    a null or repeated `image_id`, a null or relative `uri`. Raises `LakeError` if the file cannot be read.
    """
    try:
        # One of Arrow's threads that lets go of these bytes while Python ends would abort it.
        table = pq.ParquetFile(pa.BufferReader(read_bytes(uri))).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise _bad(uri, f"not a Parquet file: {error}") from None
    table = _conformed(table, uri)
    _check_rows(table, uri)
    return table


def read_manifests(uris: Sequence[str]) -> pa.Table:
    """Several manifests as one table, in the order given. Raises as `read_manifest`, also for ids in two files."""
    if not uris:
        return MANIFEST_SCHEMA.empty_table()
    table = pa.concat_tables([read_manifest(uri) for uri in uris])
    _check_unique(table, ", ".join(uris))
    return table


def manifest_pages(uri: str) -> Iterator[pa.Table]:
    """A manifest, or all `*.parquet` in a folder of them and below, in pages of at most `PAGE_ROWS` rows, in order.

    Each page is converted and checked as by `read_manifest`, but alone: an `image_id` that stands in two pages is not
    found. Memory does not grow with the manifest. Raises as `read_manifest`, and `DataError` bad-manifest for a folder
    without manifests or with a listing that is not finished.
    """
    for file in _manifest_files(uri):
        with open_ranges(file) as stream:
            try:
                for batch in pq.ParquetFile(stream).iter_batches(PAGE_ROWS):
                    page = _conformed(pa.Table.from_batches([batch]), file)
                    _check_rows(page, file)
                    yield page
            except (pa.ArrowException, OSError) as error:
                raise _bad(file, f"not a Parquet file: {error}") from None


def _manifest_files(uri: str) -> list[str]:
    uri = absolute_url(uri)
    if exists(join(uri, LISTING)):
        if not exists(join(uri, LISTED)):
            raise _bad(uri, "this listing is not finished; run the command that began it again")
        return [join(uri, name) for name in json.loads(read_bytes(join(uri, LISTED)))["pages"]]
    files = [file.uri for file in list_files(uri)]
    if files == [uri]:
        return files
    found = [file for file in files if file.endswith(".parquet")]
    if not found:
        raise _bad(uri, f"a folder of {len(files)} files, none of which ends in .parquet")
    return found


def write_manifest(table: pa.Table, uri: str, row_group_size: int | None = None) -> None:
    """Write a manifest, replacing one that exists; relative local paths in it become absolute.

    `row_group_size` is in rows. Raises `DataError` bad-manifest as `read_manifest` does, and `LakeError`.
    """
    table = _conformed(table, uri)
    for name in ("uri", "mask_uri"):
        values = [value if value is None else absolute_url(value) for value in table[name].to_pylist()]
        field = MANIFEST_SCHEMA.field(name)
        table = table.set_column(MANIFEST_SCHEMA.get_field_index(name), field, pa.array(values, field.type))
    _check_rows(table, uri)
    stream = io.BytesIO()
    pq.write_table(table, stream, row_group_size=row_group_size, compression="zstd")
    write_bytes(uri, stream.getvalue())


def manifest_digest(table: pa.Table, columns: Sequence[str] = ("image_id", "uri", "bit_depth")) -> str:
    """SHA-256 in hex over `columns`, row by row in order; without them over what changes a judgement.

    It does not depend on how the table is chunked or stored.
    """
    digest = hashlib.sha256()
    for name in columns:
        column = table[name].cast(pa.string())
        # Lengths first, null as -1: no two different columns give the same bytes.
        digest.update(pc.fill_null(pc.binary_length(column), -1).to_numpy().astype("<i8").tobytes())
        for chunk in column.chunks:
            digest.update("".join(value or "" for value in chunk.to_pylist()).encode())
    return digest.hexdigest()


def _conformed(table: pa.Table, source: str) -> pa.Table:
    """The table in `MANIFEST_SCHEMA`; raises `DataError` that names `source` and the reason."""
    _check_version(table.schema.metadata or {}, source)
    columns = Counter(table.column_names)
    unknown = sorted(name for name in columns if name not in MANIFEST_SCHEMA.names)
    if unknown or max(columns.values(), default=1) > 1:
        raise _bad(source, f"unknown or repeated columns {unknown or columns}; known are {MANIFEST_SCHEMA.names}")
    for name in ("image_id", "uri"):
        if name not in columns:
            raise _bad(source, f"no column {name}; `list_images` makes a complete manifest of a folder")
        if table[name].null_count:
            raise _bad(source, f"{table[name].null_count} rows have no {name}")
    arrays = [
        _converted(table[field.name], field, source) if field.name in columns else pa.nulls(len(table), field.type)
        for field in MANIFEST_SCHEMA
    ]
    return pa.table(arrays, schema=MANIFEST_SCHEMA)


def _check_version(metadata: dict[bytes, bytes], source: str) -> None:
    kind, version = (metadata.get(key, b"").decode() for key in (b"sbdzsl_schema", b"version"))
    if kind and (kind, version) != ("manifest", "1"):
        raise _bad(source, f"found a table {kind!r} of version {version!r}; expected a manifest of version 1")


def _converted(column: pa.ChunkedArray, field: pa.Field, source: str) -> pa.ChunkedArray:
    """The column in the field's type, if it holds the same kind of values."""
    found = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_kind = {
        pa.string(): lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t),
        # Tables with gaps often come with whole numbers stored as floats.
        pa.int64(): lambda t: pa.types.is_integer(t) or pa.types.is_floating(t),
        pa.int16(): lambda t: pa.types.is_integer(t) or pa.types.is_floating(t),
    }.get(field.type, pa.types.is_timestamp)
    try:
        if not (is_kind(found) or pa.types.is_null(found)):
            raise pa.ArrowTypeError("another kind of value")
        return column.cast(field.type, safe=not pa.types.is_timestamp(field.type))
    except (pa.ArrowException, ValueError) as error:
        raise _bad(source, f"column {field.name}: found {column.type}, expected {field.type}: {error}") from None


def _check_rows(table: pa.Table, source: str) -> None:
    _check_unique(table, source)
    for name, allowed in MANIFEST_VALUES.items():
        others = sorted(set(pc.unique(table[name]).to_pylist()) - {None, *allowed})
        if others:
            raise _bad(source, f"column {name}: found {others[:5]}, expected one of {list(allowed)} or null")
    lowest_highest = pc.min_max(table["bit_depth"]).as_py()
    if lowest_highest["min"] is not None and not 8 <= lowest_highest["min"] <= lowest_highest["max"] <= 16:
        raise _bad(source, f"column bit_depth: found {lowest_highest}, expected 8 to 16 or null")
    for name in ("uri", "mask_uri"):
        relative = table[name].filter(pc.invert(pc.match_substring_regex(table[name], _ABSOLUTE)))
        if len(relative):
            raise _bad(
                source, f"column {name}: {relative[0].as_py()!r} is relative; expected a URL or an absolute path"
            )
        secret = table[name].filter(pc.match_substring_regex(table[name], HOLDS_SECRET))
        if len(secret):
            raise _bad(source, f"column {name}: {shown(secret[0].as_py())!r} holds a password or a signature")


def _check_unique(table: pa.Table, source: str) -> None:
    if pc.count_distinct(table["image_id"]).as_py() == len(table):
        return
    counts = Counter(table["image_id"].to_pylist())
    repeated = [identity for identity, count in counts.items() if count > 1]
    where = table.filter(pc.equal(table["image_id"], repeated[0]))["uri"].to_pylist()
    raise _bad(source, f"{len(repeated)} image_id stand in several rows, such as {repeated[0]} of {where[:3]}")
