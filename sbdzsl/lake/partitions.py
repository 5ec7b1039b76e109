"""Cuts a lake into partitions that can be listed side by side, by looking at its upper folders alone.

Folders are found level by level until there are enough for the workers. What lies loose in the folders above them, and
each TAR file there, are partitions, too. One flat folder or prefix of millions of files is one partition: a store lists
it one page after the other. An S3 Inventory is the way out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from sbdzsl.errors import DataError
from sbdzsl.lake import packed
from sbdzsl.lake.folders import Folder, Scan, scan
from sbdzsl.lake.inventory import MANIFEST_NAME, read_inventory
from sbdzsl.lake.pick import Globs, Picker
from sbdzsl.lake.store import shown

#: Folders are opened level by level until there are so many for each worker.
FOLDERS_PER_WORKER = 2
#: A folder with more loose files than this is not opened to find its folders: that alone would list it.
MAX_LOOSE_FILES = 5_000
#: No more partitions of a kind than this: each leaves a small file.
MAX_PARTITIONS = 256


@dataclass(frozen=True, slots=True)
class Partition:
    """What one thread lists in one go.

    `kind` says what `places` are: `folders` with all below them, `loose` for the files directly in folders, `files` for
    single files, `inventory` for data files of an S3 Inventory.
    """

    kind: Literal["folders", "loose", "files", "inventory"]
    places: tuple[str, ...]


def find_partitions(source: str, globs: Globs, workers: int) -> list[Partition]:
    """The partitions of a lake, none of which lists an image of another.

    Raises `LakeError`, `DataError`, and `FileNotFoundError` where there is no such source.
    """
    scanned = scan(source)
    if scanned.file() is None:
        return _split(scanned, Picker(scanned.root, globs), workers)
    if packed.is_compressed_archive(source):
        raise DataError(
            "bad-layout",
            f"{shown(source)} is a compressed TAR file, no image of which can be read without all before it; unpack "
            "it, or pack it again without compression",
        )
    if source.rsplit("/", 1)[-1] == MANIFEST_NAME:
        return list(_grouped("inventory", read_inventory(source).files))
    return [Partition("files", (source,))]


def _split(scanned: Scan, picker: Picker, workers: int) -> list[Partition]:
    """Folders level by level, until there are enough for the workers; then what lies loose above them, and archives."""
    unopened, final, opened, archives = [scanned.root], list[str](), list[str](), list[str]()
    with ThreadPoolExecutor(workers) as pool:
        while unopened and len(unopened) + len(final) < FOLDERS_PER_WORKER * workers:
            levels = pool.map(lambda folder: _opened(scanned, folder), unopened)
            level, unopened = zip(unopened, levels, strict=True), []
            for folder, found in level:
                if found is None:
                    final.append(folder)
                    continue
                archives += found.archives
                opened += [folder] if found.has_loose_files else []
                kept = [below for below in found.folders if not picker.is_pruned(below.uri)]
                final += [below.uri for below in kept if below.is_link]
                unopened += [below.uri for below in kept if not below.is_link]
    groups = (("folders", unopened + final), ("loose", opened), ("files", archives))
    return [partition for kind, places in groups for partition in _grouped(kind, places)]


@dataclass(slots=True)
class _Level:
    folders: list[Folder] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
    has_loose_files: bool = False


def _opened(scanned: Scan, folder: str) -> _Level | None:
    """What is directly in a folder; None where that are so many files that it is better listed as a whole."""
    level, num_loose = _Level(), 0
    for entry in scanned.level(folder):
        if isinstance(entry, Folder):
            level.folders.append(entry)
        elif packed.is_archive(entry.uri):
            level.archives.append(entry.uri)
        else:
            num_loose += 1
            if num_loose > MAX_LOOSE_FILES:
                return None
    level.has_loose_files = num_loose > 0
    return level


def _grouped(kind: Any, places: Sequence[str]) -> Iterator[Partition]:
    size = -(-len(places) // MAX_PARTITIONS) or 1
    return (Partition(kind, tuple(places[start : start + size])) for start in range(0, len(places), size))
