"""What the readers of all layouts share: a listing with relative paths, the choice of a surface, errors."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sbdzsl import lake
from sbdzsl.errors import DataError


@dataclass(frozen=True, slots=True)
class Entry:
    """One file below a source: `folders` and `name` relative to it, and the stored file."""

    folders: tuple[str, ...]
    name: str
    file: lake.StoredFile

    @property
    def stem(self) -> str:
        """Name without its suffix."""
        return self.name.rpartition(".")[0] or self.name

    @property
    def is_image(self) -> bool:
        """Whether the suffix, in any case, is that of an image format."""
        return f".{self.name.rpartition('.')[2].lower()}" in lake.IMAGE_SUFFIXES

    @property
    def path(self) -> str:
        """Path relative to the source."""
        return "/".join((*self.folders, self.name))


def list_entries(source: str) -> list[Entry]:
    """All files below `source` (any URL of a lake), sorted by path, hidden ones left out.

    Raises `LakeError`, `DataError` bad-layout where the source is a file.
    """
    root = lake.absolute_url(source).rstrip("/") + "/"
    entries = []
    for stored in lake.list_files(source):
        if not stored.uri.startswith(root):
            raise DataError(
                "bad-layout", f"{source} is a file; expected a folder with images: name the folder it is in"
            )
        *folders, name = stored.uri[len(root) :].split("/")
        if not any(part.startswith(".") for part in (*folders, name)):
            entries.append(Entry(tuple(folders), name, stored))
    return entries


def folder_name(source: str) -> str:
    """Last component of a URL: the name of a source that is one surface."""
    return lake.absolute_url(source).rstrip("/").rpartition("/")[2]


def bad_layout(source: str, entries: Iterable[Entry], reason: str, expected: str) -> DataError:
    """A `DataError` bad-layout with the reason, some of what was found, and the tree that was expected."""
    found = [entry.path for entry in itertools.islice(entries, 6)]
    listing = "\n".join(f"  {path}" for path in found[:5]) + ("\n  ..." if len(found) > 5 else "")
    return DataError("bad-layout", f"{source}: {reason}\nfound:\n{listing or '  nothing'}\nexpected:\n{expected}")


def masks_beside(
    source: str, entries: Iterable[Entry], images: Iterable[Entry], mark: str, suffix: str, expected: str
) -> list[Entry]:
    """The mask of each image, in their order: in the image's folder, its stem and `mark`, in any case.

    Raises `DataError` bad-layout for an image without one; `suffix` is what such masks usually have.
    """
    entries = list(entries)
    by_stem = {(entry.folders, entry.stem.lower()): entry for entry in entries if entry.is_image}
    masks = []
    for image in images:
        mask = by_stem.get((image.folders, f"{image.stem}{mark}".lower()))
        if mask is None:
            raise bad_layout(source, entries, f"{image.path} has no {image.stem}{mark}{suffix} beside it", expected)
        masks.append(mask)
    return masks


def choose_surface(source: str, names: Mapping[str, str], surface: str | None) -> dict[str, str]:
    """Which of the surfaces found to read: key (such as a folder) to the name of the surface.

    `names` maps each key found to its own name. Without `surface` all are taken; a single one found takes the name
    `surface`; of several, the one whose key's last folder or name is `surface`, in any case. Raises `DataError`
    bad-layout where none or several match.
    """
    if surface is None:
        return dict(names)
    if len(names) == 1:
        return dict.fromkeys(names, surface)
    wanted = surface.lower()
    matching = [key for key, name in names.items() if wanted in (name.lower(), key.rpartition("/")[2].lower())]
    if len(matching) != 1:
        found = ", ".join(sorted(names.values()))
        raise DataError(
            "bad-layout",
            f"{source}: {len(matching)} surfaces match {surface!r}; found {found}; name one of them, or none",
        )
    return {matching[0]: surface}


def read_index(entries: Iterable[Entry]) -> list[dict[str, str]] | None:
    """Rows of the `index.csv` directly in the source; None where there is none."""
    for entry in entries:
        if not entry.folders and entry.name == "index.csv":
            return list(csv.DictReader(io.StringIO(lake.read_bytes(entry.file.uri).decode("utf-8"))))
    return None
