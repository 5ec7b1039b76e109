"""Lines that outlast a power cut: what the file sink and the dead letters are written with."""

from __future__ import annotations

import os
from pathlib import Path

from sbdzsl.errors import AlertError


def append_line(path: Path, line: bytes) -> None:
    """Append one line, with `line` free of line ends, and return when it is on disk. Folders are made.

    A line that a crash left half written is ended first, so that it spoils no other. The file is opened anew for each
    line: it may be moved away at any time. Raises `AlertError` sink-unreachable where the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with path.open("a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            _sync_name(path)
    except OSError as error:
        raise AlertError("sink-unreachable", f"{path}: cannot be appended to: {error.strerror or error}") from error


def _sync_name(path: Path) -> None:
    """Make the name of a new file outlast a power cut, where the system can open folders."""
    if os.name == "posix":
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
