import os
import time
from pathlib import Path

import pytest

from sbdzsl.errors import LakeError
from sbdzsl.watch import Arrival, Done, Inbox, WatchSettings
from sbdzsl.watch import inbox as inboxes


def drop(folder: Path, name: str, content: bytes = b"x", at: float | None = None) -> Path:
    file = folder / name
    file.write_bytes(content)
    if at is not None:
        os.utime(file, (at, at))
    return file


def names(arrivals: list[Arrival]) -> list[str]:
    return [arrival.name for arrival in arrivals]


def inbox_of(folder: Path, **settings: object) -> Inbox:
    return Inbox(folder, WatchSettings.model_validate({"settle_s": 0} | settings))


def test_images_come_in_order_of_arrival(tmp_path: Path) -> None:
    for name, at in (("c.png", 1.0), ("a.PNG", 3.0), ("b.tiff", 2.0), ("d.jpg", 2.0)):
        drop(tmp_path, name, at=at)
    assert names(inbox_of(tmp_path).look()) == ["c.png", "b.tiff", "d.jpg", "a.PNG"]


def test_what_is_no_finished_image_is_left_alone(tmp_path: Path) -> None:
    for name in ("a.png.tmp", "b.partial", ".c.png", "d.txt", "e.png.done", "f.png.failed", "verdicts.jsonl", "g"):
        drop(tmp_path, name)
    (tmp_path / "folder.png").mkdir()
    inbox = inbox_of(tmp_path)
    assert inbox.look() == []
    assert inbox.left_alone == {".txt", ""}


def test_a_pattern_chooses(tmp_path: Path) -> None:
    drop(tmp_path, "top_1.png")
    drop(tmp_path, "side_1.png")
    assert names(inbox_of(tmp_path, pattern="top_*").look()) == ["top_1.png"]


def test_a_file_that_grows_is_not_complete(tmp_path: Path) -> None:
    inbox = inbox_of(tmp_path, settle_s=0.3)
    began = time.monotonic()
    while time.monotonic() - began < 0.8:
        drop(tmp_path, "a.png", b"x" * int(1 + 1000 * (time.monotonic() - began)))
        assert inbox.look() == []
        time.sleep(0.05)
    assert len(inbox.present) == 1
    time.sleep(0.35)
    inbox.look()
    time.sleep(0.35)
    assert names(inbox.look()) == ["a.png"]


def test_an_empty_file_gets_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(tmp_path, "a.png", b"")
    inbox = inbox_of(tmp_path)
    assert inbox.look() == []
    monkeypatch.setattr(inboxes, "EMPTY_SETTLE_S", 0.01)
    time.sleep(0.02)
    assert names(inbox.look()) == ["a.png"]


def test_only_the_file_that_was_seen_is_read(tmp_path: Path) -> None:
    file = drop(tmp_path, "a.png", b"first")
    inbox = inbox_of(tmp_path)
    (arrival,) = inbox.look()
    assert inbox.read(arrival) == b"first"
    os.utime(file, ns=(0, arrival.mtime_ns + 1))
    assert inbox.read(arrival) is None
    os.utime(file, ns=(0, arrival.mtime_ns))
    assert inbox.read(arrival) == b"first"
    with file.open("ab") as more:
        more.write(b"!")
    os.utime(file, ns=(0, arrival.mtime_ns))
    assert inbox.read(arrival) is None
    file.unlink()
    assert inbox.read(arrival) is None


@pytest.mark.parametrize(
    ("done", "is_error", "where"),
    [
        ("move", False, {"done/a.png"}),
        ("move", True, {"failed/a.png"}),
        ("mark", False, {"a.png.done"}),
        ("mark", True, {"a.png.failed"}),
        ("delete", False, set()),
        ("delete", True, {"failed/a.png"}),
        ("keep", False, {"a.png"}),
        ("keep", True, {"a.png"}),
    ],
)
def test_where_answered_files_go(tmp_path: Path, done: Done, is_error: bool, where: set[str]) -> None:
    drop(tmp_path, "a.png")
    inbox = inbox_of(tmp_path, done=done)
    (arrival,) = inbox.look()
    inbox.put_away(arrival, is_error)
    inbox.put_away(arrival, is_error)  # after a kill it may be asked again
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()} == where


@pytest.mark.parametrize("done", ["move", "mark"])
def test_names_may_be_used_again(tmp_path: Path, done: Done) -> None:
    inbox = inbox_of(tmp_path, done=done)
    for number in range(3):
        drop(tmp_path, "a.png", b"%d" % number)
        (arrival,) = inbox.look()
        inbox.put_away(arrival, False)
    kept = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert sorted(kept) == [b"0", b"1", b"2"]


def test_a_newer_image_of_the_same_name_is_not_put_away(tmp_path: Path) -> None:
    drop(tmp_path, "a.png", b"old")
    inbox = inbox_of(tmp_path)
    (arrival,) = inbox.look()
    drop(tmp_path, "a.png", b"newer")
    inbox.put_away(arrival, False)
    assert (tmp_path / "a.png").read_bytes() == b"newer"


def test_an_image_written_in_the_last_moment_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(tmp_path, "a.png", b"old")
    inbox = inbox_of(tmp_path)
    (arrival,) = inbox.look()
    rename = Path.rename

    def overtaken(self: Path, target: Path) -> Path:
        if self == tmp_path / "a.png":
            drop(tmp_path, "a.png", b"newer")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    inbox.put_away(arrival, False)
    (again,) = inbox.look()
    assert inbox.read(again) == b"newer"
    assert list((tmp_path / "done").iterdir()) == []


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(LakeError) as caught:
        inbox_of(tmp_path / "none").look()
    assert caught.value.code == "not-found"
