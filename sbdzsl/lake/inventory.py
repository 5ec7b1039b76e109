"""S3 Inventory: the daily or weekly list of a bucket that AWS writes, in place of listing it.

A report is a `manifest.json` that names data files, CSV (gzip) or Parquet. Of a bucket with versions only the latest
are read, and no delete markers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from sbdzsl.errors import DataError
from sbdzsl.lake import packed, store
from sbdzsl.lake.folders import StoredFile

MANIFEST_NAME = "manifest.json"
_BATCH_ROWS = 16_384

#: A column of the CSV's `fileSchema`, and what it is called in Parquet.
_COLUMNS = {
    "Key": "key",
    "IsLatest": "is_latest",
    "IsDeleteMarker": "is_delete_marker",
    "Size": "size",
    "LastModifiedDate": "last_modified_date",
    "ETag": "e_tag",
}


@dataclass(frozen=True, slots=True)
class Inventory:
    """One report: the bucket it is of, its data files, and the CSV's columns (empty for Parquet)."""

    bucket: str
    files: tuple[str, ...]
    columns: tuple[str, ...]

    @property
    def root(self) -> str:
        """The bucket as a lake."""
        return f"s3://{self.bucket}"


def read_inventory(uri: str) -> Inventory:
    """What a `manifest.json` says. Raises `DataError` bad-manifest: another file or a format that is not read."""
    try:
        report = json.loads(store.read_bytes(uri))
        kind, bucket = report["fileFormat"], report["sourceBucket"]
        destination = report["destinationBucket"].rsplit(":", 1)[-1]
        files = tuple(f"s3://{destination}/{file['key']}" for file in report["files"])
        columns = tuple(name.strip() for name in report["fileSchema"].split(","))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "bad-manifest",
            f"{store.shown(uri)} is no manifest.json of an S3 Inventory report ({type(error).__name__}: {error}); "
            "expected fileFormat, fileSchema, sourceBucket, destinationBucket and files",
        ) from None
    if kind.upper() not in ("CSV", "PARQUET"):
        raise DataError(
            "bad-manifest",
            f"{store.shown(uri)}: the report is {kind}; CSV and Parquet are read: choose one of them as the output "
            "format of the inventory configuration",
        )
    if kind.upper() == "PARQUET":
        return Inventory(bucket, files, ())
    if "Key" not in columns:
        raise DataError("bad-manifest", f"{store.shown(uri)}: fileSchema {columns} has no column Key")
    return Inventory(bucket, files, columns)


def inventory_files(
    inventory: Inventory, data_uri: str, left_out: Callable[[str, str], None], on_request: Callable[[], None]
) -> Iterator[StoredFile]:
    """The objects that one data file lists, streamed; what is no latest version goes to `left_out(reason, uri)`.

    Raises `DataError` bad-manifest for a data file of another form, `LakeError`.
    """
    try:
        with packed.open_ranges(data_uri, on_request) as stream:
            for batch in _csv(stream, inventory.columns) if inventory.columns else _parquet(stream):
                for row in batch.to_pylist():
                    yield from _stored_files(row, inventory, left_out)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(
            "bad-manifest", f"{store.shown(data_uri)}: no data file of this inventory: {type(error).__name__}: {error}"
        ) from None


def _csv(stream: Any, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    known = {name: _COLUMNS[name] for name in columns if name in _COLUMNS}
    reader = pyarrow.csv.open_csv(
        pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "gzip"),
        read_options=pyarrow.csv.ReadOptions(column_names=list(columns), block_size=1 << 20),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), include_columns=list(known)
        ),
    )
    for batch in reader:
        rows = batch.rename_columns(list(known.values()))
        # Keys of the CSV are URL-encoded, those of Parquet are not.
        keys = [unquote_plus(key) for key in rows["key"].to_pylist()]
        yield rows.set_column(rows.schema.get_field_index("key"), "key", pa.array(keys, pa.string()))


def _parquet(stream: Any) -> Iterator[pa.RecordBatch]:
    file = pq.ParquetFile(stream)
    columns = [name for name in _COLUMNS.values() if name in file.schema_arrow.names]
    yield from file.iter_batches(_BATCH_ROWS, columns=columns)


def _stored_files(
    row: dict[str, Any], inventory: Inventory, left_out: Callable[[str, str], None]
) -> Iterator[StoredFile]:
    key = row["key"].decode() if isinstance(row["key"], bytes) else row["key"]
    uri = f"{inventory.root}/{key}"
    if _says(row.get("is_delete_marker"), "true"):
        left_out("deleted (a delete marker)", uri)
    elif _says(row.get("is_latest"), "false"):
        left_out("old version", uri)
    elif not key.endswith("/"):  # some tools store a folder as an empty object
        size, etag = row.get("size"), row.get("e_tag")
        etag = etag.decode() if isinstance(etag, bytes) else etag
        yield StoredFile(
            uri,
            int(size) if size not in (None, "") else None,
            etag.strip('"') if etag else None,
            _time(row.get("last_modified_date")),
        )


def _says(value: Any, word: str) -> bool:
    return str(value).lower() == word


def _time(value: Any) -> datetime | None:
    if isinstance(value, str):
        value = datetime.fromisoformat(re.sub("Z$", "+00:00", value)) if value else None
    if not isinstance(value, datetime):
        return None
    return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)
