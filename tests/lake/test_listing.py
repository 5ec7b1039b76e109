import gzip
import json
import os
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stamina
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from sbdzsl import lake
from sbdzsl.errors import ConfigError, DataError, LakeError
from sbdzsl.lake import listing, manifest, partitions, pick
from tests.lake.test_folders import PATHS, tree
from tests.lake.test_packed import tar
from tests.stores import Doorkeeper, doorkeeper, memory, s3, s3_endpoint  # noqa: F401  fixtures


@pytest.fixture(params=["local", "s3", "memory"])
def place(request, tmp_path) -> str:
    return str(tmp_path / "folder") if request.param == "local" else request.getfixturevalue(request.param)


def list_lake(source: str, folder: str, **options) -> listing.Listing:
    return listing.list_lake(source, folder, **{"workers": 3, "report": lambda _: None} | options)


def rows(folder: str) -> list[dict]:
    return [row for page in lake.manifest_pages(folder) for row in page.to_pylist()]


def uris(folder: str) -> list[str]:
    return sorted(row["uri"] for row in rows(folder))


def fill(place: str, names: list[str]) -> None:
    """Write files; requests to a server in this process would take seconds."""
    for name in names:
        if place.startswith("s3://"):
            bucket, _, prefix = place[5:].partition("/")
            s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket, f"{prefix}/{name}".lstrip("/"), name.encode())
        else:
            Path(place, name).parent.mkdir(parents=True, exist_ok=True)
            Path(place, name).write_bytes(name.encode())


def partitions_of(folder: str) -> list[dict]:
    return json.loads(lake.read_bytes(lake.join(folder, "_listing.json")))["partitions"]


NAMES = [f"line{line}/day{day}/{number}.png" for line in range(3) for day in range(4) for number in range(3)]
LOOSE = ["top.png", "line0/loose.jpg", "notes.txt", "line1/deep/er/still/a.bmp"]


class TestListing:
    def test_every_image_is_listed_once_as_list_images_does(self, place, tmp_path):
        for name in NAMES + LOOSE:
            lake.write_bytes(lake.join(place, name), name.encode())
        out = str(tmp_path / "out")
        found = list_lake(place, out)
        expected = lake.list_images(place)
        assert sorted(rows(out), key=lambda row: row["uri"]) == expected.to_pylist()
        assert (found.num_images, found.num_new) == (39, 39)
        assert found.num_bytes == sum(expected["size_bytes"].to_pylist())
        assert found.left_out == {"without an image's suffix": 1}
        assert found.examples == {"without an image's suffix": lake.join(place, "notes.txt")}
        assert (found.num_requests > 0) == (not place.startswith("/"))
        assert len(partitions_of(out)) > 3

    def test_pages_may_lie_in_the_store(self, place):
        for name in ("a/1.png", "b/2.png"):
            lake.write_bytes(lake.join(place, "lake", name), b"1")
        list_lake(lake.join(place, "lake"), lake.join(place, "out"))
        assert uris(lake.join(place, "out")) == [lake.join(place, "lake", name) for name in ("a/1.png", "b/2.png")]

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(PATHS.map(lambda path: path + ".png"), min_size=1, max_size=15), st.integers(1, 5))
    def test_any_tree_whatever_its_partitions(self, tmp_path_factory, paths, workers):
        root, out = tmp_path_factory.mktemp("lake"), tmp_path_factory.mktemp("out")
        fill(str(root), tree(paths))
        list_lake(str(root), str(out), workers=workers)
        assert uris(str(out)) == sorted(f"{root}/{path}" for path in tree(paths))

    def test_memory_holds_a_page_and_not_the_lake(self, tmp_path, monkeypatch):
        monkeypatch.setattr(listing, "PAGE_ROWS", 10)
        monkeypatch.setattr(listing, "MAX_WAITING_ROWS", 20)
        monkeypatch.setattr(listing, "_BATCH_ROWS", 4)
        fill(str(tmp_path / "lake"), [f"{number}.png" for number in range(101)])
        list_lake(str(tmp_path / "lake"), str(tmp_path / "out"))
        assert [len(page) for page in lake.manifest_pages(str(tmp_path / "out"))] == [12] * 8 + [5]

    def test_pages_by_date(self, tmp_path, monkeypatch):
        monkeypatch.setattr(listing, "MAX_WAITING_ROWS", 20)
        monkeypatch.setattr(listing, "_BATCH_ROWS", 4)
        fill(str(tmp_path / "lake"), [f"{number}.png" for number in range(60)])
        for number in range(60):
            when = 1_700_000_000 + 86_400 * (number % 3)
            os.utime(tmp_path / "lake" / f"{number}.png", (when, when))
        out = tmp_path / "out"
        list_lake(str(tmp_path / "lake"), str(out), partition="date")
        dates = {"2023-11-14", "2023-11-15", "2023-11-16"}
        assert {path.name for path in out.iterdir() if path.is_dir()} == {"_done"} | {f"date={date}" for date in dates}
        for row in pq.read_table(out).to_pylist():  # a table of pages for those who know no sbdzsl
            assert str(row["modified_at"].date()) == str(row["date"])
        assert len(uris(str(out))) == len(set(uris(str(out)))) == 60

    def test_globs(self, tmp_path):
        fill(str(tmp_path / "lake"), NAMES)
        found = list_lake(str(tmp_path / "lake"), str(tmp_path / "out"), include=["line[01]/**"], exclude=["*/day3/**"])
        assert len(uris(str(tmp_path / "out"))) == found.num_images == 18
        # Whole folders that are excluded are not looked into, so that their files are not counted.
        assert found.left_out == {"excluded": 9}

    def test_a_single_image(self, place, tmp_path):
        lake.write_bytes(lake.join(place, "a.png"), b"1")
        list_lake(lake.join(place, "a.png"), str(tmp_path / "out"))
        assert uris(str(tmp_path / "out")) == [lake.join(place, "a.png")]

    def test_a_large_flat_folder_is_not_opened_to_look_for_folders(self, s3, tmp_path, monkeypatch):  # noqa: F811
        monkeypatch.setattr(partitions, "MAX_LOOSE_FILES", 20)
        fill(s3, [f"flat/{number:03}.png" for number in range(30)] + ["flat/sub/a.png", "other/b.png", "c.png"])
        list_lake(s3, str(tmp_path / "out"))
        assert {(each["kind"], *each["places"]) for each in partitions_of(str(tmp_path / "out"))} == {
            ("folders", f"{s3}/flat"),
            ("loose", s3),
            ("loose", f"{s3}/other"),
        }
        assert len(set(uris(str(tmp_path / "out")))) == len(uris(str(tmp_path / "out"))) == 33

    def test_links_are_followed_once_whatever_partition_finds_them(self, tmp_path):
        fill(str(tmp_path / "elsewhere"), ["a.png", "deep/b.png"])
        fill(str(tmp_path / "lake"), [f"{number}/x.png" for number in range(8)])
        for number in range(8):
            (tmp_path / "lake" / str(number) / "link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "lake" / "deep").symlink_to(tmp_path / "elsewhere" / "deep")
        for workers in (1, 4, 20):
            list_lake(str(tmp_path / "lake"), str(tmp_path / f"out{workers}"), workers=workers)
            names = Counter(uri.rsplit("/", 1)[1] for uri in uris(str(tmp_path / f"out{workers}")))
            assert names == {"a.png": 1, "b.png": 1, "x.png": 8}


class TestArchives:
    def test_members_are_images_of_their_own(self, place, tmp_path):
        for lot in range(3):
            files = {f"img/{n}.png": f"{lot}-{n}".encode() for n in range(4)} | {"readme.txt": b"x"}
            lake.write_bytes(lake.join(place, f"lots/{lot}.tar"), tar(files))
        lake.write_bytes(lake.join(place, "lots/loose.png"), b"loose")
        lake.write_bytes(lake.join(place, "lots/old.tar.gz"), gzip.compress(tar({"a.png": b"1"})))
        lake.write_bytes(lake.join(place, "lots/bad.tar"), b"nonsense")
        out = str(tmp_path / "out")
        found = list_lake(place, out, exclude=["lots/1.tar"])
        contents = [lake.read_bytes(uri) for uri in uris(out)]
        assert sorted(contents) == [*(f"{lot}-{n}".encode() for lot in (0, 2) for n in range(4)), b"loose"]
        assert found.left_out == {
            "without an image's suffix": 2,
            "excluded": 1,
            "compressed TAR (pack it without compression)": 1,
            "damaged TAR (what could be read of it is listed)": 1,
        }
        assert sum(each["kind"] == "files" for each in partitions_of(out)) == 4  # each archive a partition

    def test_an_archive_as_the_lake(self, place, tmp_path):
        uri = lake.join(place, "lot7.tar")
        lake.write_bytes(uri, tar({"img/a.png": b"a", "img/b.png": b"b", "raw/c.png": b"c"}))
        list_lake(uri, str(tmp_path / "out"), exclude=["raw/**"])
        assert [lake.read_bytes(row["uri"]) for row in rows(str(tmp_path / "out"))] == [b"a", b"b"]
        before = {row["image_id"] for row in rows(str(tmp_path / "out"))}
        lake.write_bytes(uri, tar({"img/a.png": b"A", "img/b.png": b"b"}))
        list_lake(uri, str(tmp_path / "again"))
        assert before.isdisjoint(row["image_id"] for row in rows(str(tmp_path / "again")))

    def test_archives_deep_in_the_lake_are_listed_once(self, tmp_path):
        root = tmp_path / "lake"
        for number in range(30):
            (root / f"{number}" / "deep").mkdir(parents=True)
            (root / f"{number}" / "deep" / "a.tar").write_bytes(tar({"x.png": b"1"}))
        list_lake(str(root), str(tmp_path / "out"), workers=1)
        assert len(uris(str(tmp_path / "out"))) == len(set(uris(str(tmp_path / "out")))) == 30

    def test_a_compressed_archive_as_the_lake_is_refused(self, tmp_path):
        (tmp_path / "a.tar.gz").write_bytes(b"")
        with pytest.raises(DataError, match="without compression") as caught:
            list_lake(str(tmp_path / "a.tar.gz"), str(tmp_path / "out"))
        assert caught.value.code == "bad-layout"


class Killed(BaseException):
    """What a kill looks like from inside."""


class TestResume:
    @pytest.mark.parametrize("seed", range(6))
    def test_killed_anywhere_and_run_again_each_image_stands_once(self, tmp_path, monkeypatch, seed):
        monkeypatch.setattr(listing, "PAGE_ROWS", 2)
        monkeypatch.setattr(listing, "MAX_WAITING_ROWS", 4)
        monkeypatch.setattr(listing, "_BATCH_ROWS", 1)
        fill(str(tmp_path / "lake"), NAMES + LOOSE)
        out, rng = str(tmp_path / "out"), random.Random(seed)
        write_bytes, write_once = lake.write_bytes, lake.write_once
        left = [0]

        def counted(write):
            def call(uri: str, data: bytes):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return write(uri, data)

            return call

        for module in (lake, manifest):
            monkeypatch.setattr(module, "write_bytes", counted(write_bytes))
        monkeypatch.setattr(lake, "write_once", counted(write_once))
        kills, done = 0, set()
        while True:
            left[0] = rng.randrange(1, 12)
            try:
                found = list_lake(str(tmp_path / "lake"), out, workers=rng.randrange(1, 4))
                break
            except Killed:
                kills += 1
            if lake.exists(f"{out}/_listing.json"):
                with pytest.raises(DataError, match="not finished"):
                    list(lake.manifest_pages(out))
                now = (
                    {path.name for path in Path(out, "_done").glob("*.json")} if Path(out, "_done").exists() else set()
                )
                assert now >= done
                done = now
        assert kills > 3
        assert found.num_images == 39
        assert found.num_new < 39
        expected = sorted(f"{tmp_path}/lake/{name}" for name in NAMES + LOOSE if not name.endswith("txt"))
        assert uris(out) == expected
        # Nor do pages of attempts that were cut off stay behind for those who read the folder as one table.
        assert sorted(pq.read_table(out)["uri"].to_pylist()) == expected

    def test_finished_partitions_are_not_listed_again(self, tmp_path, monkeypatch):
        fill(str(tmp_path / "lake"), NAMES)
        out, lines = str(tmp_path / "out"), []
        list_lake(str(tmp_path / "lake"), out)
        Path(out, "_listed.json").unlink()
        Path(out, "_done", "00002.json").unlink()
        found = list_lake(str(tmp_path / "lake"), out, report=lines.append)
        count = len(partitions_of(out))
        assert lines == [f"resuming: {count - 1} of {count} partitions are listed already"]
        assert 0 < found.num_new < found.num_images == len(uris(out)) == 36
        again = list_lake(str(tmp_path / "lake"), out)
        assert (again.num_new, again.num_images, again.num_bytes) == (0, 36, found.num_bytes)

    def test_of_two_runs_at_once_each_page_counts_once(self, tmp_path, monkeypatch):
        fill(str(tmp_path / "lake"), NAMES)
        out, write_once, others = str(tmp_path / "out"), lake.write_once, []

        def after_another_run(uri: str, data: bytes) -> bool:
            if "_done" in uri and not others:
                others.append(1)
                list_lake(str(tmp_path / "lake"), out)
            return write_once(uri, data)

        monkeypatch.setattr(lake, "write_once", after_another_run)
        found = list_lake(str(tmp_path / "lake"), out, workers=1)
        assert others
        assert found.num_images == len(uris(out)) == 36
        assert len(pq.read_table(out)) == 36

    def test_what_a_link_leads_to_stays_with_its_partition(self, tmp_path):
        fill(str(tmp_path / "elsewhere"), ["a.png"])
        fill(str(tmp_path / "lake"), ["0/x.png", "1/x.png"])
        for name in ("0", "1"):
            (tmp_path / "lake" / name / "link").symlink_to(tmp_path / "elsewhere")
        out = str(tmp_path / "out")
        list_lake(str(tmp_path / "lake"), out, workers=1)
        done = {path: json.loads(path.read_text()) for path in Path(out, "_done").glob("*.json")}
        for path, values in done.items():
            if not values["linked"]:
                path.unlink()
        Path(out, "_listed.json").unlink()
        list_lake(str(tmp_path / "lake"), out, workers=1)
        assert [uri.rsplit("/", 1)[1] for uri in uris(out)].count("a.png") == 1

    def test_an_error_of_one_partition_ends_the_run_and_is_resumed(self, tmp_path, monkeypatch):
        fill(str(tmp_path / "lake"), NAMES)
        image_table = lake.image_table

        def failing(images):
            if any("line1/day2" in image.uri for image in images):
                raise LakeError("unreachable", "the store is down")
            return image_table(images)

        monkeypatch.setattr(lake, "image_table", failing)
        with pytest.raises(LakeError, match="the store is down"):
            list_lake(str(tmp_path / "lake"), str(tmp_path / "out"))
        monkeypatch.setattr(lake, "image_table", image_table)
        list_lake(str(tmp_path / "lake"), str(tmp_path / "out"))
        assert len(uris(str(tmp_path / "out"))) == 36

    def test_a_store_that_is_overloaded_now_and_then(self, doorkeeper: Doorkeeper, s3, tmp_path):  # noqa: F811
        fill(s3, [f"lake/{name}" for name in NAMES])
        lake.write_bytes(f"{s3}/lake/a.tar", tar({f"{number}.png": b"1" for number in range(5)}))
        doorkeeper.fail_one_in = 4
        with stamina.set_testing(True, attempts=4):
            list_lake(f"{s3}/lake", f"{s3}/out", workers=2)
            assert len(set(uris(f"{s3}/out"))) == len(uris(f"{s3}/out")) == 41

    def test_a_folder_that_two_runs_left_to_each_other_is_named(self, tmp_path):
        fill(str(tmp_path / "lake"), NAMES)
        out = tmp_path / "out"
        list_lake(str(tmp_path / "lake"), str(out))
        (out / "_listed.json").unlink()
        done = out / "_done" / "00000.json"
        done.write_text(json.dumps(json.loads(done.read_text()) | {"refused": ["/elsewhere"]}))
        with pytest.raises(LakeError, match="each left /elsewhere"):
            list_lake(str(tmp_path / "lake"), str(out))


class TestRefusals:
    def test_another_listing_in_the_folder(self, tmp_path):
        fill(str(tmp_path / "lake"), NAMES)
        out = str(tmp_path / "out")
        list_lake(str(tmp_path / "lake"), out)
        for options in ({"include": ["*.jpg"]}, {"exclude": ["*.jpg"]}, {"partition": "date"}):
            with pytest.raises(LakeError, match=next(iter(options))) as caught:
                list_lake(str(tmp_path / "lake"), out, **options)
            assert caught.value.code == "already-exists"
        Path(out, "_listing.json").write_text("{}")
        with pytest.raises(LakeError, match="no listing of sbdzsl"):
            list_lake(str(tmp_path / "lake"), out)

    def test_no_images_says_what_there_was_and_lets_other_globs_be_tried(self, place, tmp_path):
        lake.write_bytes(lake.join(place, "notes.txt"), b"")
        lake.write_bytes(lake.join(place, "a.png"), b"")
        with pytest.raises(LakeError, match=r"1 excluded, such as .*a\.png; 1 without an image's suffix") as caught:
            list_lake(place, str(tmp_path / "out"), include=["*.jpg"])
        assert caught.value.code == "no-images"
        list_lake(place, str(tmp_path / "out"))
        assert uris(str(tmp_path / "out")) == [lake.join(place, "a.png")]

    def test_what_is_not_there(self, place, tmp_path):
        lake.write_bytes(lake.join(place, "a.png"), b"")
        with pytest.raises(LakeError) as caught:
            list_lake(lake.join(place, "gone"), str(tmp_path / "out"))
        assert caught.value.code == "not-found"
        assert not (tmp_path / "out").exists()

    def test_a_password_in_the_url(self, tmp_path):
        with pytest.raises(LakeError, match="password") as caught:
            list_lake("s3://user:secret@bucket/x", str(tmp_path / "out"))
        assert "secret" not in caught.value.message

    def test_bad_arguments(self, tmp_path):
        with pytest.raises(ConfigError):
            list_lake(str(tmp_path), str(tmp_path / "out"), partition="month")
        with pytest.raises(ConfigError):
            list_lake(str(tmp_path), str(tmp_path / "out"), include=["a**b/c"])

    def test_a_forbidden_folder_is_named(self, tmp_path, monkeypatch):
        fill(str(tmp_path / "lake"), NAMES)
        scandir = os.scandir

        def guarded(path):
            if str(path).endswith("line1/day2"):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", guarded)
        with pytest.raises(LakeError, match="line1/day2") as caught:
            list_lake(str(tmp_path / "lake"), str(tmp_path / "out"))
        assert caught.value.code == "forbidden"

    def test_names_that_are_not_utf_8_are_counted_and_the_others_listed(self, tmp_path):
        fill(str(tmp_path / "lake"), ["a.png"])
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/lake/\xff.png")).touch()
        found = list_lake(str(tmp_path / "lake"), str(tmp_path / "out"))
        assert found.left_out == {pick.NOT_UTF8: 1}
        assert uris(str(tmp_path / "out")) == [f"{tmp_path}/lake/a.png"]


def test_pages_are_manifests_of_the_schema(tmp_path):
    fill(str(tmp_path / "lake"), NAMES)
    list_lake(str(tmp_path / "lake"), str(tmp_path / "out"))
    for page in lake.manifest_pages(str(tmp_path / "out")):
        assert isinstance(page, pa.Table)
        assert page.schema.equals(lake.MANIFEST_SCHEMA, check_metadata=True)
