"""The file of a watch's verdicts: one JSON object a line."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from sbdzsl.errors import ConfigError
from sbdzsl.watch.inbox import Arrival, folder_error


class VerdictFile:
    """One JSON object a line, each synced to the disk before its file is put away."""

    def __init__(self, path: Path) -> None:
        """Open or begin the file, and cut off a line that a kill left unfinished. Raises `LakeError`."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
            self.num_cut = self._cut_torn_line()
        except OSError as error:
            raise folder_error(path, error) from None

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _cut_torn_line(self) -> int:
        """Bytes after the last line's end: that answer was never said to be kept."""
        with self.path.open("rb") as file:
            size = whole = file.seek(0, os.SEEK_END)
            while whole:
                start = max(0, whole - 65536)
                file.seek(start)
                end = file.read(whole - start).rfind(b"\n")
                if end >= 0:
                    whole = start + end + 1
                    break
                whole = start
        os.truncate(self.path, whole)
        return size - whole

    def append(self, line: dict[str, Any]) -> None:
        """Write one line, whole and synced. Raises `LakeError`, such as "disk-full"; then nothing of it is kept."""
        content = json.dumps(line, allow_nan=False).encode() + b"\n"
        before = os.fstat(self._file).st_size
        try:
            if os.write(self._file, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            raise folder_error(self.path, error) from None

    def answered(self, present: set[Arrival]) -> dict[Arrival, bool]:
        """Of the files that are present, those that have a line; and whether its verdict is `error`."""
        found = {}
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    arrival = Arrival(row["file"], row["file_size"], row["file_mtime_ns"])
                    is_error = row["verdict"] == "error"
                except (ValueError, KeyError, TypeError):
                    raise ConfigError(
                        "bad-config", f"{self.path}, line {number} is not a line of a watch; give another --out"
                    ) from None
                if arrival in present:
                    found[arrival] = is_error
        return found
