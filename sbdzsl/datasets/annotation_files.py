"""Files that hold the masks of many images: Severstal's train.csv, COCO's JSON, tables of one's own.

A mask in such a file is named by the file's URI and a key, `/steel/train.csv#0002cc93b.jpg`, so that it fits in the
`mask_uri` of a manifest. The key is percent-encoded, and only `.csv`, `.json` and `.parquet` files have keys: a `#`
in any other name is part of the name. A file is parsed once in a process, however many masks are asked for, and anew
where a local one has changed; a code is decoded when its mask is.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from sbdzsl import lake
from sbdzsl.errors import DataError

_REFERENCE = re.compile(r"(.+\.(?:csv|json|parquet))#([^#/]+)", re.IGNORECASE)
_MAX_FILES = 8
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Annotation:
    """What a file says of one image.

    `name`: the image as the file names it. `codes`: kind of mask and code, as the file writes it, for each defect.
    `size`: (H, W) of the image where the file states it.
    """

    name: str
    codes: tuple[tuple[str, Any], ...]
    size: tuple[int, int] | None = None


def reference(uri: str, key: str) -> str:
    """The `mask_uri` of one image's masks in a shared file."""
    return f"{uri}#{quote(key, safe='')}"


def find(mask_uri: str) -> Annotation | None:
    """The annotation that `mask_uri` names; None where it is an ordinary file.

    Raises `DataError` bad-mask for a key that is not in the file, bad-manifest for a file of another form, `LakeError`.
    """
    match = _REFERENCE.fullmatch(mask_uri)
    if match is None:
        return None
    uri, key = match[1], unquote(match[2])
    found = load(uri).get(key)
    if found is None:
        raise DataError("bad-mask", f"{uri}: nothing there is called {key!r}; run `sbdzsl ingest` on it again")
    return found


def load(uri: str) -> Mapping[str, Annotation]:
    """All annotations of a file by key. Raises `DataError` bad-manifest, `LakeError`."""
    version = None
    if "://" not in uri and Path(uri).exists():
        status = Path(uri).stat()
        version = (status.st_mtime_ns, status.st_size)
    with _lock:  # of many readers that ask at once, one parses
        return _load(uri, version)


@functools.lru_cache(_MAX_FILES)
def _load(uri: str, version: tuple[int, int] | None) -> Mapping[str, Annotation]:
    del version  # part of the key of the cache
    if uri.lower().endswith(".json"):
        return _coco(uri)
    rows = read_rows(uri)
    if rows and "EncodedPixels" in rows[0]:
        return _severstal(uri, rows)
    return _table(rows)


def read_rows(uri: str) -> list[dict[str, Any]]:
    """Rows of a CSV (comma, semicolon or tab; values as text) or Parquet file; what is empty is None.

    Raises `DataError` bad-manifest, `LakeError`.
    """
    data = lake.read_bytes(uri)
    try:
        if uri.lower().endswith(".parquet"):
            return pq.ParquetFile(pa.BufferReader(data)).read().to_pylist()
        header = data.split(b"\n", 1)[0].decode("utf-8-sig")
        separator = max(",;\t", key=header.count)
        names = next(csv.reader(io.StringIO(header), delimiter=separator), [])
        return pyarrow.csv.read_csv(
            pa.BufferReader(data),
            pyarrow.csv.ReadOptions(block_size=max(len(data), 1), use_threads=False),
            pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
            ),
        ).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _bad(uri, f"not a CSV or Parquet table: {error}") from None


def _bad(uri: str, reason: str) -> DataError:
    return DataError("bad-manifest", f"{uri}: {reason}")


def _severstal(uri: str, rows: Iterable[dict[str, Any]]) -> dict[str, Annotation]:
    """All classes of an image under its name, one class under `<name>_<class>`, the key of the file's older form.

    An image with several classes has a row for each of them. In the older form, images without defect have rows, too.
    """
    codes: dict[str, list[tuple[str, Any]]] = {}
    names: dict[str, str] = {}
    for row in rows:
        try:
            name, number = (
                row["ImageId_ClassId"].rsplit("_", 1) if "ImageId_ClassId" in row else (row["ImageId"], row["ClassId"])
            )
            one_class = f"{name}_{int(number)}"
        except (KeyError, AttributeError, ValueError, TypeError):
            raise _bad(
                uri, f"found {row}; expected the columns ImageId, ClassId, EncodedPixels, or ImageId_ClassId for two"
            ) from None
        for key in (name, one_class):
            names[key] = name
            codes.setdefault(key, [])
            if row["EncodedPixels"] is not None:
                codes[key].append(("rle", row["EncodedPixels"]))
    return {key: Annotation(names[key], tuple(found)) for key, found in codes.items()}


def _coco(uri: str) -> dict[str, Annotation]:
    """By the image's id. A segmentation is a polygon or run lengths; without one the box is the mask."""
    try:
        document = json.loads(lake.read_bytes(uri))
        images = {image["id"]: (str(image["file_name"]), _size(image)) for image in document["images"]}
        codes: dict[Any, list[tuple[str, Any]]] = {identity: [] for identity in images}
        for annotation in document["annotations"]:
            if annotation["image_id"] not in codes:
                raise _bad(uri, f"annotation {annotation.get('id')} is of image {annotation['image_id']}, not listed")
            segmentation = annotation.get("segmentation")
            if segmentation:
                code = ("rle" if isinstance(segmentation, dict) else "polygon", segmentation)
            else:
                code = ("box", annotation["bbox"])
            codes[annotation["image_id"]].append(code)
    except (ValueError, KeyError, TypeError) as error:
        raise _bad(
            uri,
            f"not COCO's JSON with images (id, file_name) and annotations (image_id, bbox or segmentation): {error}",
        ) from None
    return {str(identity): Annotation(name, tuple(codes[identity]), size) for identity, (name, size) in images.items()}


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    return (int(image["height"]), int(image["width"])) if image.get("height") and image.get("width") else None


def _table(rows: Iterable[dict[str, Any]]) -> dict[str, Annotation]:
    """By the uri as the table writes it."""
    return {
        str(row["uri"]): Annotation(str(row["uri"]), ((str(row.get("mask_kind")), row["mask"]),))
        for row in rows
        if row.get("uri") and row.get("mask")
    }
