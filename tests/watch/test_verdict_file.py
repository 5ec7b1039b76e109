import errno
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sbdzsl.errors import ConfigError, LakeError
from sbdzsl.watch import Arrival, VerdictFile

A, B = Arrival("a.png", 3, 10), Arrival("b \udcff.png", 4, 20)


def line(arrival: Arrival, verdict: str = "good") -> dict[str, Any]:
    key = {"file": arrival.name, "file_size": arrival.size, "file_mtime_ns": arrival.mtime_ns}
    return key | {"verdict": verdict, "more": "x" * 100}


def test_lines_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "v.jsonl"
    for arrival, verdict in ((A, "good"), (B, "error")):
        with closing(VerdictFile(path)) as verdicts:
            assert verdicts.num_cut == 0
            verdicts.append(line(arrival, verdict))
    with closing(VerdictFile(path)) as verdicts:
        assert verdicts.answered({A, B}) == {A: False, B: True}
        assert verdicts.answered({B, Arrival("a.png", 3, 11)}) == {B: True}


@pytest.mark.parametrize("torn", [b"{", b'{"file": "a.png"}', b"x" * 200_000])
@pytest.mark.parametrize("before", [0, 1, 1000])
def test_a_torn_line_is_cut_off_and_said(tmp_path: Path, torn: bytes, before: int) -> None:
    path = tmp_path / "v.jsonl"
    with closing(VerdictFile(path)) as verdicts:
        for number in range(before):
            verdicts.append(line(Arrival("a.png", number, 0)))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with closing(VerdictFile(path)) as verdicts:
        assert verdicts.num_cut == len(torn)
        assert path.read_bytes() == whole
        verdicts.append(line(B))
        assert verdicts.answered({B}) == {B: False}


def no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def half(file: int, content: bytes, write: Callable[[int, bytes], int] = os.write) -> int:
    return write(file, content[: len(content) // 2])


@pytest.mark.parametrize(("call", "fails"), [("write", no_space), ("write", half), ("fsync", no_space)])
def test_a_full_disk_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, fails: Callable[..., int]
) -> None:
    path = tmp_path / "v.jsonl"
    with closing(VerdictFile(path)) as verdicts:
        verdicts.append(line(A))
        whole = path.read_bytes()
        monkeypatch.setattr(os, call, fails)
        with pytest.raises(LakeError) as caught:
            verdicts.append(line(B))
        monkeypatch.undo()
        assert caught.value.code == "disk-full"
        assert path.read_bytes() == whole
        verdicts.append(line(B))
        assert verdicts.answered({A, B}) == {A: False, B: False}


def test_another_file_is_not_taken_for_verdicts(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("some text\n")
    with closing(VerdictFile(path)) as verdicts, pytest.raises(ConfigError, match="line 1"):
        verdicts.answered({A})
    assert path.read_text() == "some text\n"
