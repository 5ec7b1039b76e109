"""Images kept beside the journal: of every alarm, of a share of good ones, never more than their room."""

import asyncio
import hashlib
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sbdzsl.errors import LakeError, ServiceError
from sbdzsl.serving.evidence import MAX_WAITING, Evidence, Shelf
from sbdzsl.serving.recorder import Recorder
from sbdzsl.serving.settings import KeepSettings


def named(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def answer(content: bytes, verdict: str = "defect", **more: Any) -> dict[str, Any]:
    return {"image_id": named(content), "verdict": verdict, "surface": "steel", "camera": None} | more


def keep_alarms(evidence: Evidence, *contents: bytes) -> list[bool]:
    async def keep() -> list[bool]:
        return [await evidence.keep_alarm(named(content), content) for content in contents]

    return asyncio.run(keep())


def read(evidence: Evidence, content: bytes) -> bytes | None:
    return asyncio.run(evidence.read(named(content)))


def test_the_image_of_an_alarm_is_on_disk_before_its_event(tmp_path: Path) -> None:
    async def record() -> None:
        with closing(Recorder(str(tmp_path), KeepSettings(good_share=0))) as recorder:
            for verdict in ("defect", "unseen", "error"):
                content = verdict.encode()
                number = await recorder.record(answer(content, verdict), content)
                assert list((tmp_path / "images").glob(f"alarm/*/{named(content)}"))
                assert await recorder.image(number) == content
                assert (await recorder.event(number)).document["image_kept"] is True

    asyncio.run(record())


def test_a_good_image_out_of_the_sample_is_not_kept_and_said_not_to_be(tmp_path: Path) -> None:
    async def record() -> None:
        with closing(Recorder(str(tmp_path), KeepSettings(good_share=0, recent_mb=0))) as recorder:
            number = await recorder.record(answer(b"x", "good"), b"x")
            await recorder.record(answer(b"y"), b"y")  # on disk, and so is what came before
            assert (await recorder.event(number)).document["image_kept"] is False
            with pytest.raises(ServiceError, match="a share of the good ones") as caught:
                await recorder.image(number)
            assert caught.value.code == "unknown-event"

    asyncio.run(record())


def test_the_sample_of_good_images_has_its_share_and_is_the_same_each_time(tmp_path: Path) -> None:
    async def keep(folder: str) -> list[bool]:
        with closing(Evidence(folder, 0.2, 2**20)) as evidence:
            found = []
            for number in range(1000):
                found.append(evidence.keep_good(named(b"%d" % number), b"%d" % number))
                if found[-1]:
                    await evidence.read("none")  # lets what waits be written
                    await asyncio.sleep(0)
            return found

    first, second = (asyncio.run(keep(str(tmp_path / name))) for name in "ab")
    assert first == second
    assert 150 < sum(first) < 250
    with closing(Evidence(str(tmp_path / "a"), 0.2, 2**20)) as evidence:
        assert evidence.shelf("good").images == sum(first)


def test_good_images_do_not_pile_up_in_memory(tmp_path: Path) -> None:
    async def keep() -> list[bool]:
        with closing(Evidence(str(tmp_path), 1.0, 2**20)) as evidence:
            return [evidence.keep_good(named(b"%d" % number), b"%d" % number) for number in range(MAX_WAITING + 5)]

    assert asyncio.run(keep()) == [True] * MAX_WAITING + [False] * 5


def test_the_oldest_good_ones_go_first_then_the_oldest_alarms(tmp_path: Path) -> None:
    async def fill(evidence: Evidence) -> None:
        evidence.keep_good(named(b"g" * 40), b"g" * 40)
        for letter in (b"a", b"b"):
            assert await evidence.keep_alarm(named(letter * 30), letter * 30)
        assert await evidence.read(named(b"g" * 40)) == b"g" * 40
        assert await evidence.keep_alarm(named(b"c" * 30), b"c" * 30)
        assert await evidence.read(named(b"g" * 40)) is None
        assert await evidence.keep_alarm(named(b"a" * 30), b"a" * 30)  # seen again: b is the oldest now
        assert await evidence.keep_alarm(named(b"d" * 30), b"d" * 30)

    with closing(Evidence(str(tmp_path), 1.0, 100)) as evidence:
        asyncio.run(fill(evidence))
        assert [read(evidence, letter * 30) is not None for letter in (b"a", b"b", b"c", b"d")] == [1, 0, 1, 1]
        assert evidence.shelf("alarm") == Shelf(3, 90)
        assert evidence.shelf("good") == Shelf(0, 0)


def test_the_room_holds_over_a_restart_and_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    with closing(Evidence(str(tmp_path), 0, 100)) as evidence:
        keep_alarms(evidence, b"a" * 30, b"b" * 30, b"c" * 30)
    for age, letter in enumerate((b"c", b"a", b"b")):
        (path,) = tmp_path.glob(f"alarm/*/{named(letter * 30)}")
        os.utime(path, (age + 1, age + 1))
    (path.parent / ".0.tmp").write_bytes(b"half")
    with closing(Evidence(str(tmp_path), 0, 100)) as evidence:
        assert not (path.parent / ".0.tmp").exists()
        assert evidence.shelf("alarm") == Shelf(3, 90)
        keep_alarms(evidence, b"d" * 30)
        assert [read(evidence, letter * 30) is not None for letter in (b"a", b"b", b"c", b"d")] == [1, 1, 0, 1]


def test_an_image_that_turns_from_good_to_alarm_is_kept_once(tmp_path: Path) -> None:
    async def keep() -> None:
        with closing(Evidence(str(tmp_path), 1.0, 100)) as evidence:
            evidence.keep_good(named(b"x"), b"x")
            assert await evidence.keep_alarm(named(b"x"), b"x")
            assert evidence.shelf("good") == Shelf(0, 0)
            assert evidence.shelf("alarm") == Shelf(1, 1)

    asyncio.run(keep())
    assert [path.read_bytes() for path in tmp_path.glob("*/*/*")] == [b"x"]


def test_what_has_no_room_at_all_is_not_kept(tmp_path: Path) -> None:
    with closing(Evidence(str(tmp_path), 0, 10)) as evidence:
        assert keep_alarms(evidence, b"x" * 5, b"y" * 11) == [True, False]
        assert evidence.shelf("alarm") == Shelf(1, 5)


def test_an_answer_is_kept_though_its_image_cannot_be_and_the_check_says_so(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "alarm").write_text("in the way")

    async def record() -> None:
        with closing(Recorder(str(tmp_path))) as recorder:
            await recorder.check()
            number = await recorder.record(answer(b"x"), b"x")
            assert (await recorder.event(number)).document["image_kept"] is False
            with pytest.raises(LakeError, match="alarm"):
                await recorder.check()
            (tmp_path / "images" / "alarm").unlink()
            await recorder.check()  # though no image has come since
            assert await recorder.image(await recorder.record(answer(b"y"), b"y")) == b"y"
        assert [path.name for path in (tmp_path / "images").glob("*/*/*")] == [named(b"y")]


def test_a_journal_that_can_be_written_again_is_well_though_nothing_came_since(tmp_path: Path) -> None:
    async def record() -> None:
        with closing(Recorder(str(tmp_path))) as recorder:
            journal = recorder._journal
            journal._writer.execute("PRAGMA query_only = ON")
            with pytest.raises(LakeError) as caught:
                await recorder.record(answer(b"x"), b"x")
            assert caught.value.code == "disk-full"
            assert journal.failure is not None
            await recorder.check()
            assert journal.failure is None
            journal._writer.execute("PRAGMA query_only = OFF")
            assert await recorder.record(answer(b"x"), b"x") == 2

    asyncio.run(record())
