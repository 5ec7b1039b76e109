"""Which files of a lake are images to list: by suffix, by the user's globs, and members of TAR files one by one.

What is not listed is counted by reason, with an example of each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from fsspec.utils import glob_translate

from sbdzsl.errors import ConfigError
from sbdzsl.lake import packed
from sbdzsl.lake.folders import StoredFile

#: Suffixes of image files, compared without regard to case.
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})

NOT_UTF8 = "name that is not UTF-8 and cannot be stored (rename it)"


@dataclass(slots=True)
class LeftOut:
    """How many files were not listed, by reason, and the first of each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Count files that were not listed."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        # Names that are not UTF-8 are among them, and have to be printed and stored.
        self.examples.setdefault(reason, example.encode(errors="replace").decode())

    def describe(self) -> str:
        """All of it in one line."""
        return "; ".join(
            f"{count:,} {reason}, such as {self.examples[reason]}" for reason, count in sorted(self.counts.items())
        )


class Globs:
    """Globs over paths relative to the lake, with `/` between folders and case regarded.

    `*` and `?` stand for characters of one name, `[...]` for one of a set, `**` as a whole name for any number of
    folders. A glob without a slash is compared with the file's name alone, in whatever folder it lies. A file is
    listed if a glob of `include` matches, or there is none, and none of `exclude` does. A member of a TAR file has the
    path `<archive>/<name>`; an archive whose own path is excluded is not opened.
    """

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        self._include = [_compiled(glob) for glob in include]
        self._exclude = [_compiled(glob) for glob in exclude]
        self._pruned = [re.compile(glob_translate(glob[:-3])) for glob in exclude if glob.endswith("/**")]

    def excludes(self, path: str) -> bool:
        """Whether a glob of `exclude` matches."""
        return any(glob.match(path) for glob in self._exclude)

    def lists(self, path: str) -> bool:
        """Whether a file of this path is listed."""
        return not self.excludes(path) and (not self._include or any(glob.match(path) for glob in self._include))

    def prunes(self, folder: str) -> bool:
        """Whether all of a folder is excluded, by a glob that ends in `/**`, so that it need not be looked into."""
        return any(glob.match(folder) for glob in self._pruned)


def _compiled(glob: str) -> re.Pattern[str]:
    try:
        return re.compile(glob_translate(glob if "/" in glob else f"**/{glob}"))
    except (ValueError, re.error) as error:
        raise ConfigError("bad-config", f"glob {glob!r}: {error}; see `sbdzsl list --help`") from None


class Picker:
    """Takes files of one lake and gives its images. `left_out` counts the others, `num_requests` reads of archives."""

    def __init__(self, root: str, globs: Globs | None = None) -> None:
        self.left_out = LeftOut()
        self.num_requests = 0
        self._root, self._globs = root.rstrip("/"), globs or Globs()

    def images(self, files: Iterable[StoredFile]) -> Iterator[StoredFile]:
        """The images among the files and in the TAR files among them, in order. Raises `LakeError`."""
        for file in files:
            path = self.path(file.uri)
            if packed.is_compressed_archive(path):
                reason = "excluded" if self._globs.excludes(path) else "compressed TAR (pack it without compression)"
                self.left_out.add(reason, file.uri)
            elif not packed.is_archive(path):
                if self._is_listed(file.uri, path):
                    yield file
            elif self._globs.excludes(path):
                self.left_out.add("excluded", file.uri)
            else:
                yield from self._members(file, path)

    def path(self, uri: str) -> str:
        """The path relative to the lake; the file's name where the lake is that one file."""
        return uri[len(self._root) :].lstrip("/") or uri.rsplit("/", 1)[-1]

    def is_pruned(self, folder: str) -> bool:
        """Whether nothing below this folder is listed."""
        return self._globs.prunes(self.path(folder))

    def _members(self, archive: StoredFile, path: str) -> Iterator[StoredFile]:
        # Where the archive is the lake, paths in it begin with its members.
        base = "" if archive.uri == self._root else f"{path}/"
        try:
            for file in packed.members(archive, self.left_out.add, self.count_request):
                found = packed.member(file.uri)
                if found is None or found.archive != archive.uri:
                    self.left_out.add("name that reads as a member of a TAR file", file.uri)
                elif self._is_listed(file.uri, base + found.name, is_member=True):
                    yield file
        except packed.DamagedArchive as error:
            self.left_out.add("damaged TAR (what could be read of it is listed)", f"{archive.uri}: {error}")

    def _is_listed(self, uri: str, path: str, is_member: bool = False) -> bool:
        if os.path.splitext(path)[1].lower() not in IMAGE_SUFFIXES:  # noqa: PTH122
            reason = "without an image's suffix"
        elif not self._globs.lists(path):
            reason = "excluded"
        elif not _is_utf8(uri):
            reason = NOT_UTF8
        elif not is_member and packed.member(uri) is not None:
            reason = "name that reads as a member of a TAR file"
        else:
            return True
        self.left_out.add(reason, uri)
        return False

    def count_request(self) -> None:
        """Count one read of an archive or a list."""
        self.num_requests += 1


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
