"""Tables of one's own, CSV or Parquet: one row an image, no code.

    uri,surface,label,group,split,mask_kind,mask,mask_uri
    a/0001.png,steel,good,lot7,train,,,
    a/0002.png,steel,nok,lot8,train,polygon,"10 10 40 12 38 30; 70 70 80 70 80 82",
    a/0003.png,steel,bad,lot9,test,pixels,,masks/0003.png

Columns are those of the manifest and `mask`, which holds a code of the kind `mask_kind` (rle, box or polygon, written
as in `masks`) where `mask_uri` names no file. Only `uri` is needed. Relative paths count from the folder of the table;
labels are benign, good, ok or defect, defective, bad, nok, in any case, or empty. Size, time and ETag of an image are
the store's, whatever the table says. A surface has a split in all of its rows or in none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from sbdzsl import lake
from sbdzsl.datasets import annotation_files
from sbdzsl.datasets.folder import LABEL_FOLDERS
from sbdzsl.datasets.layout import choose_surface, folder_name
from sbdzsl.datasets.masks import DRAWERS
from sbdzsl.datasets.sample import Sample, group_of, stored_sample
from sbdzsl.errors import DataError, LakeError

COLUMNS = (*lake.MANIFEST_SCHEMA.names, "mask")

_READERS = 16


def scan(source: str, surface: str | None = None) -> list[Sample]:
    """Read the table `source`, or its rows of the surface `surface`; rows without a surface are of the table's name.

    Raises `DataError` bad-layout for a source that is no table, bad-manifest for a column that is not known, a value
    that cannot be, an image that is not there or stands in two rows, a group in two splits.
    """
    if not source.lower().endswith((".csv", ".parquet")):
        raise DataError("bad-layout", f"{source}: expected a table, a file whose name ends in .csv or .parquet")
    table = lake.absolute_url(source)
    rows = annotation_files.read_rows(table)
    unknown = sorted({name for row in rows[:1] for name in row} - set(COLUMNS))
    if unknown or not rows or "uri" not in rows[0]:
        found = f"unknown columns {', '.join(unknown)}" if unknown else "no rows" if not rows else "no column uri"
        raise _bad(table, f"{found}; the columns are {', '.join(COLUMNS)}, of which uri is needed")
    own_name = folder_name(table).rpartition(".")[0]
    names = {name: name for name in (_text(row, "surface") or own_name for row in rows)}
    chosen = choose_surface(source, names, surface)
    kept = [(number, row) for number, row in enumerate(rows, 1) if (_text(row, "surface") or own_name) in chosen]
    files = _stored(table, [_resolved(table, number, row, "uri") for number, row in kept])
    samples = [
        _sample(table, number, row, file, chosen[_text(row, "surface") or own_name])
        for (number, row), file in zip(kept, files, strict=True)
    ]
    _check_splits(table, samples)
    return samples


def _bad(table: str, reason: str) -> DataError:
    return DataError("bad-manifest", f"{table}: {reason}")


def _text(row: dict[str, Any], column: str) -> str | None:
    value = row.get(column)
    return None if value is None or not str(value).strip() else str(value).strip()


def _resolved(table: str, number: int, row: dict[str, Any], column: str) -> str:
    """The path of a row as an absolute one."""
    path = _text(row, column)
    if path is None:
        raise _bad(table, f"row {number} has no {column}")
    if "://" in path or path.startswith(("/", "~")) or path[1:3] in (":\\", ":/"):
        return lake.absolute_url(path)
    return lake.absolute_url(lake.join(table.rpartition("/")[0] or "/", path))


def _stored(table: str, uris: Sequence[str]) -> list[lake.StoredFile]:
    """Each image as its store lists it. Those below the table's folder cost one listing together."""
    doubled = [uri for uri, count in Counter(uris).items() if count > 1]
    if doubled:
        raise _bad(
            table,
            f"{len(doubled)} images stand in several rows, such as {doubled[0]}; give an image one row and join its "
            "codes: runs by a space, boxes and polygons by `;`",
        )
    folder = table.rpartition("/")[0] or "/"
    listed = {file.uri: file for file in lake.list_files(folder)}
    with ThreadPoolExecutor(_READERS) as pool:
        elsewhere = [uri for uri in uris if not uri.startswith(f"{folder.rstrip('/')}/")]
        listed |= {file.uri: file for files in pool.map(_list_one, elsewhere) for file in files}
    absent = [uri for uri in uris if uri not in listed]
    if absent:
        raise _bad(table, f"{len(absent)} of {len(uris)} images are not there, such as {absent[0]}")
    return [listed[uri] for uri in uris]


def _list_one(uri: str) -> list[lake.StoredFile]:
    try:
        return lake.list_files(uri)
    except LakeError as error:
        if error.code == "not-found":
            return []  # reported with the others
        raise


def _sample(table: str, number: int, row: dict[str, Any], file: lake.StoredFile, surface: str) -> Sample:
    labels: dict[str, Any] = {"surface": surface, "label": _label(table, number, row), "group": _text(row, "group")}
    labels |= _mask(table, number, row)
    split, depth = _text(row, "split"), _text(row, "bit_depth")
    if split is not None and split not in lake.MANIFEST_VALUES["split"]:
        raise _bad(table, f"row {number}: split is {split!r}; expected train, val, test or nothing")
    if depth is not None and not depth.isdecimal():
        raise _bad(table, f"row {number}: bit_depth is {depth!r}; expected 8 to 16 or nothing")
    labels |= {"split": split, "bit_depth": None if depth is None else int(depth)}
    sample = stored_sample(file, **labels)
    own_id = _text(row, "image_id")
    return sample if own_id is None else replace(sample, image_id=own_id)


def _label(table: str, number: int, row: dict[str, Any]) -> str | None:
    word = _text(row, "label")
    if word is not None and word.lower() not in LABEL_FOLDERS:
        raise _bad(table, f"row {number}: label is {word!r}; expected one of {', '.join(LABEL_FOLDERS)} or nothing")
    return None if word is None else LABEL_FOLDERS[word.lower()]


def _mask(table: str, number: int, row: dict[str, Any]) -> dict[str, str | None]:
    """`mask_uri` and `mask_kind` of a row; a code in the row is named by the table and the row's uri."""
    kind, code, file = _text(row, "mask_kind"), _text(row, "mask"), _text(row, "mask_uri")
    kinds = lake.MANIFEST_VALUES["mask_kind"]
    if kind is not None and kind not in kinds:
        raise _bad(table, f"row {number}: mask_kind is {kind!r}; expected one of {', '.join(kinds)}")
    if code is not None and (file is not None or kind not in DRAWERS):
        raise _bad(
            table,
            f"row {number}: a code in `mask` with mask_kind {kind!r} and mask_uri {file!r}; expected a mask_kind of "
            f"{', '.join(DRAWERS)} and no mask_uri",
        )
    if code is not None:
        return {"mask_uri": annotation_files.reference(table, str(row["uri"])), "mask_kind": kind}
    if file is None:
        return {"mask_uri": None, "mask_kind": None}
    return {"mask_uri": _resolved(table, number, row, "mask_uri"), "mask_kind": kind or "pixels"}


def _check_splits(table: str, samples: Iterable[Sample]) -> None:
    splits: dict[str | None, set[str | None]] = defaultdict(set)
    groups: dict[tuple[str, str], set[str | None]] = defaultdict(set)
    for sample in samples:
        splits[sample.surface].add(sample.split)
        groups[group_of(sample)].add(sample.split)
    for surface, found in splits.items():
        if None in found and len(found) > 1:
            raise _bad(table, f"surface {surface!r} has a split in some of its rows; give it to all of them or to none")
    for (surface, group), found in groups.items():
        if len(found) > 1:
            raise _bad(
                table, f"group {group!r} of surface {surface!r} is in {len(found)} splits; a group is never split"
            )
