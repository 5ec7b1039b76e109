"""Lists a lake of any size into a folder of manifest pages: in parallel, resumable, each image exactly once.

    <folder>/_listing.json              what is listed, and its partitions, written once
    <folder>/_done/00012.json           partition 12 is done: its pages by name, written once
    <folder>/00012-5f0c9d1e-000000.parquet     a page, of an attempt at the partition; below date=YYYY-MM-DD/ by date
    <folder>/_listed.json               all partitions are done: all pages by name, and the totals

A page counts only if `_done` names it, and each partition is done by one attempt. So whoever is killed, and whoever
runs beside, no image is listed twice and none is lost. `lake.manifest_pages(folder)` reads a listing that is complete.
Names with an underscore are passed over by what reads a folder of Parquet files as one table.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from sbdzsl import lake
from sbdzsl.errors import ConfigError, LakeError
from sbdzsl.lake import manifest
from sbdzsl.lake.folders import Claims, Scan, StoredFile, scan
from sbdzsl.lake.inventory import Inventory, inventory_files, read_inventory
from sbdzsl.lake.partitions import Partition, find_partitions
from sbdzsl.lake.pick import Globs, LeftOut, Picker
from sbdzsl.lake.store import shown, store_errors

PartitionBy = Literal["prefix", "date"]
Report = Callable[[str], None]

#: Threads that list at once; of a store each waits most of the time.
WORKERS = 16
#: Rows of a page, and rows that wait for their page in one thread, at most.
PAGE_ROWS, MAX_WAITING_ROWS = 32_768, 65_536
_BATCH_ROWS = 4_096

_DONE = "_done"


@dataclass(frozen=True, slots=True)
class Listing:
    """What a listing came to. `num_new` images are of this run, the others were listed by runs before it.

    `num_requests` counts what the store charges for over all partitions, not what it took to find them. `left_out`
    counts files that are not in it by reason, `examples` names one of each.
    """

    folder: str
    num_images: int
    num_bytes: int
    num_requests: int
    num_new: int
    left_out: Mapping[str, int]
    examples: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Pinned:
    """The content of `_listing.json`."""

    source: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    partition: PartitionBy
    partitions: tuple[Partition, ...]


@dataclass(frozen=True, slots=True)
class _Done:
    """The content of one file in `_done`, and summed over all of them."""

    pages: list[str] = field(default_factory=list)
    num_images: int = 0
    num_bytes: int = 0
    num_requests: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)
    linked: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def list_lake(
    source: str,
    folder: str,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    partition: PartitionBy = "prefix",
    workers: int = WORKERS,
    report: Report = print,
) -> Listing:
    """List the images of `source` into pages of `MANIFEST_SCHEMA` below `folder`; see the module for its files.

    `source` is a folder or prefix, one image, one plain TAR file, or the `manifest.json` of an S3 Inventory. Run again
    with the same arguments it lists only partitions that are not done. Images that came after the first start may be
    missing. `include` and `exclude` are globs (`pick.Globs`).

    Raises `LakeError`: no-images, already-exists if `folder` holds another listing, not-found, forbidden, unreachable;
    `DataError` for an inventory or a source that cannot be read; `ConfigError` for a glob.
    """
    if partition not in get_args(PartitionBy):
        raise ConfigError("bad-config", f"partition: found {partition!r}, expected one of {get_args(PartitionBy)}")
    source, folder, globs = lake.absolute_url(source), lake.absolute_url(folder), Globs(include, exclude)
    asked = _Pinned(source, tuple(include), tuple(exclude), partition, ())
    pinned = _pinned(folder) or _pin(folder, asked, globs, workers)
    _require_same(folder, pinned, asked)
    run = _Run(folder, pinned, globs)
    if not lake.exists(lake.join(folder, manifest.LISTED)):
        run.list_missing(workers, report)
        _finish(folder, run)
    total = run.total()
    left_out = total.left_out
    return Listing(
        folder, total.num_images, total.num_bytes, total.num_requests, run.num_new, left_out.counts, left_out.examples
    )


def _pinned(folder: str) -> _Pinned | None:
    uri = lake.join(folder, manifest.LISTING)
    if not lake.exists(uri):
        return None
    try:
        values = json.loads(lake.read_bytes(uri))
        partitions = tuple(Partition(each["kind"], tuple(each["places"])) for each in values["partitions"])
        include, exclude = (tuple(values[name]) for name in ("include", "exclude"))
        return _Pinned(values["source"], include, exclude, values["partition"], partitions)
    except (ValueError, KeyError, TypeError) as error:
        raise LakeError(
            "already-exists", f"{shown(uri)} is no listing of sbdzsl ({error}); choose another folder"
        ) from None


def _pin(folder: str, asked: _Pinned, globs: Globs, workers: int) -> _Pinned:
    with store_errors(asked.source):
        partitions = find_partitions(asked.source, globs, workers)
    values = asdict(asked) | {"partitions": [asdict(each) for each in partitions]}
    lake.write_once(lake.join(folder, manifest.LISTING), json.dumps(values, indent=1).encode())
    # Read back whoever won, so that two starts at once list the same partitions.
    pinned = _pinned(folder)
    assert pinned is not None
    return pinned


def _require_same(folder: str, pinned: _Pinned, asked: _Pinned) -> None:
    differs = [
        f"{name}: {getattr(pinned, name)} there, {getattr(asked, name)} asked for"
        for name in ("source", "include", "exclude", "partition")
        if getattr(pinned, name) != getattr(asked, name)
    ]
    if differs:
        raise LakeError(
            "already-exists", f"{shown(folder)} holds another listing ({'; '.join(differs)}); choose another folder"
        )


class _Run:
    """One run over the partitions that are not done."""

    def __init__(self, folder: str, pinned: _Pinned, globs: Globs) -> None:
        self.num_new = 0
        self._folder, self._pinned, self._globs = folder, pinned, globs
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._done = {number: _read_done(folder, number) for number in _done_numbers(folder)}
        self._claims = Claims(real for done in self._done.values() for real in done.linked)
        self._own_partition = {each for part in pinned.partitions if part.kind == "files" for each in part.places}
        is_inventory = any(part.kind == "inventory" for part in pinned.partitions)
        self._inventory = read_inventory(pinned.source) if is_inventory else None

    def list_missing(self, workers: int, report: Report) -> None:
        """List what is not done. Raises the first error of a thread, after the others ended."""
        missing = [number for number in range(len(self._pinned.partitions)) if number not in self._done]
        if self._done:
            report(f"resuming: {len(self._done)} of {len(self._pinned.partitions)} partitions are listed already")
        started = last = time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            waiting: set[Future[None]] = {pool.submit(self._list, number) for number in missing}
            try:
                while waiting:
                    finished, waiting = wait(waiting, timeout=2, return_when=FIRST_COMPLETED)
                    for future in finished:
                        future.result()
                    if time.perf_counter() - last >= 2 and waiting:
                        last = time.perf_counter()
                        speed = self.num_new / (last - started)
                        report(f"{len(waiting)} partitions left, {self.num_new:,} images, {speed:,.0f}/s")
            finally:
                self._stop.set()
                for future in waiting:
                    future.cancel()

    def total(self) -> _Done:
        """The sum over all partitions."""
        done = [self._done[number] for number in sorted(self._done)]
        left_out = LeftOut()
        for each in done:
            for reason, count in each.left_out.counts.items():
                left_out.add(reason, each.left_out.examples[reason], count)
        return _Done(
            sorted(page for each in done for page in each.pages),
            sum(each.num_images for each in done),
            sum(each.num_bytes for each in done),
            sum(each.num_requests for each in done),
            left_out,
            sorted({real for each in done for real in each.linked}),
            sorted({real for each in done for real in each.refused}),
        )

    def _list(self, number: int) -> None:
        """List one partition and say that it is done, unless somebody else was faster."""
        scanned = scan(self._pinned.source, self._claims)
        picker = Picker(self._inventory.root if self._inventory else scanned.root, self._globs)
        pages = _Pages(self._folder, number, self._pinned.partition == "date")
        num_images = num_bytes = 0
        with store_errors(self._pinned.source):
            for image in picker.images(self._files(self._pinned.partitions[number], scanned, picker)):
                if self._stop.is_set():
                    return
                num_images += 1
                num_bytes += image.size_bytes or 0
                pages.add(image)
                if num_images % _BATCH_ROWS == 0:
                    self._count(_BATCH_ROWS)
        pages.close()
        self._count(num_images % _BATCH_ROWS)
        requests = scanned.num_requests + picker.num_requests
        linked, refused = sorted(scanned.linked), sorted(scanned.refused)
        done = _Done(pages.names, num_images, num_bytes, requests, picker.left_out, linked, refused)
        text = json.dumps(asdict(done), indent=1)
        if not lake.write_once(_done_uri(self._folder, number), text.encode()):
            pages.remove()
            done = _read_done(self._folder, number)
        with self._lock:
            self._done[number] = done

    def _count(self, num_images: int) -> None:
        with self._lock:
            self.num_new += num_images

    def _files(self, partition: Partition, scanned: Scan, picker: Picker) -> Iterator[StoredFile]:
        for place in partition.places:
            if partition.kind == "folders":
                yield from scanned.below(place, picker.is_pruned)
            elif partition.kind == "loose":
                entries = scanned.level(place)
                yield from (e for e in entries if isinstance(e, StoredFile) and e.uri not in self._own_partition)
            elif partition.kind == "files":
                single = scan(place)
                found = single.file()
                scanned.num_requests += single.num_requests
                yield from [found] if found else []
            else:
                assert isinstance(self._inventory, Inventory)
                yield from inventory_files(self._inventory, place, picker.left_out.add, picker.count_request)


class _Pages:
    """Writes the images of one attempt at a partition, `PAGE_ROWS` a page. Holds at most `MAX_WAITING_ROWS`."""

    def __init__(self, folder: str, number: int, by_date: bool) -> None:
        self.names: list[str] = []
        self._folder, self._by_date = folder, by_date
        self._stem = f"{number:05d}-{uuid.uuid4().hex[:8]}"
        self._batch: list[StoredFile] = []
        self._waiting: dict[str, list[pa.Table]] = {}

    def add(self, image: StoredFile) -> None:
        """Take one image."""
        self._batch.append(image)
        if len(self._batch) == _BATCH_ROWS:
            self._take_batch()

    def close(self) -> None:
        """Write what waits."""
        self._take_batch()
        for key in list(self._waiting):
            self._write(key)

    def remove(self) -> None:
        """Remove all pages again."""
        for name in self.names:
            lake.remove(lake.join(self._folder, name))

    def _take_batch(self) -> None:
        if not self._batch:
            return
        table, self._batch = lake.image_table(self._batch), []
        dates = pc.fill_null(pc.strftime(table["modified_at"], "date=%Y-%m-%d/"), "date=unknown/")
        for date in pc.unique(dates).to_pylist() if self._by_date else [""]:
            rows = table.filter(pc.equal(dates, date)) if self._by_date else table
            self._waiting.setdefault(date, []).append(rows)
            if self._num_rows(date) >= PAGE_ROWS:
                self._write(date)
        while sum(map(self._num_rows, self._waiting)) > MAX_WAITING_ROWS:
            self._write(max(self._waiting, key=self._num_rows))

    def _num_rows(self, date: str) -> int:
        return sum(map(len, self._waiting[date]))

    def _write(self, date: str) -> None:
        name = f"{date}{self._stem}-{len(self.names):06d}.parquet"
        lake.write_manifest(pa.concat_tables(self._waiting.pop(date)), lake.join(self._folder, name))
        self.names.append(name)


def _done_uri(folder: str, number: int) -> str:
    return lake.join(folder, _DONE, f"{number:05d}.json")


def _done_numbers(folder: str) -> list[int]:
    place = lake.join(folder, _DONE)
    files = lake.list_files(place) if lake.exists(place) else []
    return [int(file.uri[-10:-5]) for file in files if file.uri.endswith(".json")]


def _read_done(folder: str, number: int) -> _Done:
    values = json.loads(lake.read_bytes(_done_uri(folder, number)))
    return _Done(**values | {"left_out": LeftOut(**values["left_out"])})


def _finish(folder: str, run: _Run) -> None:
    """Say that the listing is complete and clear away pages of attempts that were cut off."""
    total = run.total()
    lost = sorted(set(total.refused) - set(total.linked))
    if lost:
        raise LakeError(
            "already-exists",
            f"two listings wrote into {shown(folder)} at once, and each left {lost[0]}, where a link leads, to the "
            "other; list again into another folder, one at a time",
        )
    if not total.num_images:
        _forget(folder)
        why = total.left_out.describe() or "it is empty"
        raise LakeError("no-images", f"no image to list: {why}")
    lake.write_once(lake.join(folder, manifest.LISTED), json.dumps(asdict(total), indent=1).encode())
    named = set(total.pages)
    for file in lake.list_files(folder):
        page = re.search(r"(date=[^/]+/)?\d{5}-[0-9a-f]{8}-\d{6}\.parquet$", file.uri)
        if page is not None and page[0] not in named:
            lake.remove(file.uri)


def _forget(folder: str) -> None:
    """Take an empty listing back, so that other globs may be tried in the same folder."""
    lake.remove(lake.join(folder, manifest.LISTING))
    for number in _done_numbers(folder):
        lake.remove(_done_uri(folder, number))
