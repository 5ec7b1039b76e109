import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stamina
from botocore.exceptions import ClientError
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from sbdzsl import lake, store
from sbdzsl.errors import DataError, ImageError, LakeError, SbdzslError
from tests.stores import memory, s3, s3_endpoint  # noqa: F401  fixtures

ODD_NAMES = ["a b.png", "ä#1?.png", "100%20.png", "x::y.png", "[1]*.PNG", "it's.jpeg"]


@pytest.fixture(params=["local", "s3", "memory"])
def place(request, tmp_path) -> str:
    """URL of an empty folder in each kind of store."""
    return str(tmp_path / "folder") if request.param == "local" else request.getfixturevalue(request.param)


def error_of(call: Callable[[], object], kind: type[SbdzslError] = LakeError) -> tuple[str, str]:
    with pytest.raises(kind) as caught:
        call()
    return caught.value.code, caught.value.message


class TestEveryStore:
    def test_what_is_written_is_read_under_any_name(self, place):
        # fsspec's store in memory takes "::" for a chain of stores; no other does.
        names = [name for name in ODD_NAMES if "::" not in name or not place.startswith("memory")]
        for name in names:
            uri = lake.join(place, "ünter ordner", name)
            assert not lake.exists(uri)
            lake.write_bytes(uri, name.encode())
            assert lake.exists(uri)
            assert lake.read_bytes(uri) == name.encode()
        listed = [file.uri for file in lake.list_files(place)]
        assert listed == sorted(lake.join(place, "ünter ordner", name) for name in names)
        assert [lake.read_bytes(uri).decode() for uri in listed] == [uri.rsplit("/", 1)[1] for uri in listed]

    def test_write_bytes_replaces_and_the_listing_sees_it(self, place):
        uri = lake.join(place, "a.png")
        lake.write_bytes(uri, b"old")
        (before,) = lake.list_files(place)
        lake.write_bytes(uri, b"newer")
        (after,) = lake.list_files(place)
        assert lake.read_bytes(uri) == b"newer"
        assert (before.size_bytes, after.size_bytes) == (3, 5)
        assert before.version != after.version
        assert abs(after.modified_at - datetime.now(timezone.utc)) < timedelta(minutes=1)

    def test_remove_takes_a_file_away_and_minds_no_missing_one(self, place):
        uri = f"{place}/gone"
        lake.write_bytes(uri, b"here")
        lake.remove(uri)
        assert not lake.exists(uri)
        lake.remove(uri)

    def test_write_once_leaves_the_first_untouched(self, place):
        uri = lake.join(place, "parts", "7.parquet")
        assert lake.write_once(uri, b"first") is True
        assert lake.write_once(uri, b"second") is False
        assert lake.write_once(uri, b"first") is False
        assert lake.read_bytes(uri) == b"first"

    def test_of_racing_writers_exactly_one_wins(self, place):
        barrier = threading.Barrier(4)

        def write(number: int, uri: str) -> bool:
            barrier.wait()
            return lake.write_once(uri, bytes([number]) * 1000)

        with ThreadPoolExecutor(4) as pool:
            for turn in range(2):
                uri = lake.join(place, f"{turn}.bin")
                won = list(pool.map(write, range(4), [uri] * 4))
                assert won.count(True) == 1
                assert lake.read_bytes(uri) == bytes([won.index(True)]) * 1000
        assert len(lake.list_files(place)) == 2

    def test_max_bytes(self, place):
        uri, empty = lake.join(place, "four.png"), lake.join(place, "empty.png")
        lake.write_bytes(uri, b"1234")
        lake.write_bytes(empty, b"")
        assert lake.read_bytes(uri, max_bytes=4) == b"1234"
        assert lake.read_bytes(empty, max_bytes=4) == b""
        code, message = error_of(lambda: lake.read_bytes(uri, max_bytes=3), ImageError)
        assert code == "too-large"
        assert uri in message

    def test_what_is_missing_is_not_found(self, place):
        lake.write_bytes(lake.join(place, "a", "b.txt"), b"x")
        for call in (
            lambda: lake.read_bytes(lake.join(place, "c.txt")),
            lambda: lake.read_bytes(lake.join(place, "c.txt"), max_bytes=10),
            lambda: lake.read_bytes(lake.join(place, "a")),
            lambda: lake.list_files(lake.join(place, "c")),
            lambda: lake.list_images(lake.join(place, "c")),
            lambda: lake.read_manifest(lake.join(place, "c.parquet")),
        ):
            code, message = error_of(call)
            assert code == "not-found"
            assert place in message
        assert not lake.exists(lake.join(place, "c"))
        assert lake.exists(lake.join(place, "a"))

    def test_list_images(self, place):
        for name in ("b.PNG", "a.tiff", "deep/er/c_label.bmp", "d.webp", "notes.txt", "png", "e.jpg.part"):
            lake.write_bytes(lake.join(place, name), name.encode())
        table = lake.list_images(place)
        assert table.schema.equals(lake.MANIFEST_SCHEMA, check_metadata=True)
        names = [uri[len(place) + 1 :] for uri in table["uri"].to_pylist()]
        assert names == ["a.tiff", "b.PNG", "d.webp", "deep/er/c_label.bmp"]
        assert table["size_bytes"].to_pylist() == [len(name) for name in names]
        files = {file.uri: file for file in lake.list_files(place)}
        assert table["image_id"].to_pylist() == [lake.image_id(u, files[u].version) for u in table["uri"].to_pylist()]
        assert table["label"].null_count == 4
        assert lake.list_images(lake.join(place, "d.webp"))["uri"].to_pylist() == [lake.join(place, "d.webp")]
        code, message = error_of(lambda: lake.list_images(lake.join(place, "notes.txt")))
        assert code == "no-images"
        assert "1 files" in message
        assert ".tiff" in message

    def test_a_prefix_is_a_folder_not_the_start_of_a_name(self, place):
        lake.write_bytes(lake.join(place, "run1", "a.png"), b"")
        lake.write_bytes(lake.join(place, "run10", "b.png"), b"")
        assert len(lake.list_files(lake.join(place, "run1") + "/")) == 1


class TestPlaces:
    def test_absolute_url(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", "/home/user")
        assert lake.absolute_url("a/../b c") == f"{tmp_path}/b c"
        assert lake.absolute_url("file:///x/y.png") == "/x/y.png"
        assert lake.absolute_url("~/x") == "/home/user/x"
        assert lake.absolute_url("s3://bucket/../x") == "s3://bucket/../x"

    @pytest.mark.parametrize(
        ("parts", "joined"),
        [
            (("/a/", "b", "c.png"), "/a/b/c.png"),
            (("/", "b"), "/b"),
            (("s3://x", "/b/"), "s3://x/b"),
            (("a",), "a"),
        ],
    )
    def test_join(self, parts, joined):
        assert lake.join(*parts) == joined

    @pytest.mark.parametrize(("url", "missing"), [("gs://bucket/x", "gcsfs"), ("nonsense://x/y", "nonsense")])
    def test_a_store_that_is_not_there(self, url, missing):
        for call in (lake.read_bytes, lake.list_files, lake.exists, lambda u: lake.write_once(u, b"")):
            code, message = error_of(lambda call=call: call(url))
            assert code == "unsupported-store"
            assert missing in message

    def test_write_once_refuses_a_store_that_can_only_check_and_then_write(self):
        code, message = error_of(lambda: lake.write_once("http://host/x", b""))
        assert code == "unsupported-store"
        assert "exclusive" in message

    def test_no_password_stands_in_a_message(self):
        _, message = error_of(lambda: lake.read_bytes("nonsense://user:secret@host/x"))
        assert "secret" not in message
        assert "host/x" in message


class TestLocal:
    def test_file_urls(self, tmp_path):
        url = f"file://{tmp_path}/a b%20.png"
        assert lake.write_once(url, b"1")
        assert (tmp_path / "a b%20.png").read_bytes() == b"1"
        assert lake.read_bytes(url) == b"1"
        assert [file.uri for file in lake.list_files(f"file://{tmp_path}")] == [f"{tmp_path}/a b%20.png"]

    def test_relative_folders_are_listed_with_absolute_paths(self, tmp_path, monkeypatch):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.png").touch()
        monkeypatch.chdir(tmp_path)
        assert lake.list_images("in")["uri"].to_pylist() == [f"{tmp_path}/in/a.png"]

    def test_an_empty_folder_is_found_but_has_no_images(self, tmp_path):
        assert lake.list_files(str(tmp_path)) == []
        assert error_of(lambda: lake.list_images(str(tmp_path)))[0] == "no-images"

    def test_rings_of_links_end_and_links_are_followed(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "a.png").touch()
        (tmp_path / "top").mkdir()
        (tmp_path / "top" / "link").symlink_to(tmp_path / "real")
        (tmp_path / "real" / "back").symlink_to(tmp_path / "top")
        (tmp_path / "top" / "broken.png").symlink_to(tmp_path / "gone")
        assert [file.uri for file in lake.list_files(str(tmp_path / "top"))] == [f"{tmp_path}/top/link/a.png"]

    def test_a_pipe_is_refused_at_once(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.png")
        code, message = error_of(lambda: lake.read_bytes(str(tmp_path / "pipe.png")))
        assert code == "not-found"
        assert "not a regular file" in message

    def test_a_name_that_is_not_utf_8(self, tmp_path):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).touch()
        code, message = error_of(lambda: lake.list_images(str(tmp_path)), DataError)
        assert code == "bad-layout"
        message.encode()

    def test_access_denied(self, tmp_path, monkeypatch):
        def denied(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(store.os, "open", denied)
        monkeypatch.setattr(store.os, "scandir", denied)
        assert error_of(lambda: lake.read_bytes(str(tmp_path / "x")))[0] == "forbidden"
        assert error_of(lambda: lake.list_files(str(tmp_path)))[0] == "forbidden"

    @pytest.mark.parametrize("write", [lake.write_bytes, lake.write_once])
    def test_a_write_that_fails_leaves_no_trace(self, tmp_path, monkeypatch, write):
        (tmp_path / "old").write_bytes(b"old")

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(store.os, "fsync", full)
        for name in ("old", "new") if write is lake.write_bytes else ("new",):
            code, message = error_of(lambda name=name: write(str(tmp_path / name), b"123"))
            assert code == "disk-full"
            assert "No space left" in message
        assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("old", b"old")]

    def test_files_get_ordinary_permissions(self, tmp_path):
        (tmp_path / "plain").touch()
        lake.write_once(str(tmp_path / "once"), b"")
        lake.write_bytes(str(tmp_path / "bytes"), b"")
        assert len({p.stat().st_mode for p in tmp_path.iterdir()}) == 1

    def test_write_once_without_hard_links(self, tmp_path, monkeypatch):
        def no_link(*_: object) -> None:
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr(store.os, "link", no_link)
        uri = str(tmp_path / "x")
        assert lake.write_once(uri, b"first") is True
        assert lake.write_once(uri, b"second") is False
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]


class TestS3:
    def test_a_missing_bucket_is_said_to_be_one(self, s3):  # noqa: F811
        for call in (lake.list_images, lake.list_files, lake.read_bytes, lambda u: lake.write_once(u, b"")):
            code, message = error_of(lambda call=call: call(s3 + "-other/x"))
            assert code == "not-found"
            assert "bucket does not exist" in message
        assert not lake.exists(s3 + "-other/x")

    def test_an_empty_bucket_has_no_images(self, s3):  # noqa: F811
        assert lake.list_files(s3) == []
        assert error_of(lambda: lake.list_images(s3))[0] == "no-images"

    def test_many_pages_of_keys_and_folder_markers(self, s3):  # noqa: F811
        backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]  # the server runs in this process; requests would take seconds
        for key in ("x/", *(f"x/{number:04}.png" for number in range(1005))):
            backend.put_object(s3.removeprefix("s3://"), key, b"1")
        table = lake.list_images(s3)
        assert len(table) == 1005
        assert set(table["etag"].to_pylist()) == {"c4ca4238a0b923820dcc509a6f75849b"}

    def test_what_another_process_wrote_is_seen(self, s3):  # noqa: F811
        lake.write_bytes(f"{s3}/a.png", b"")
        assert len(lake.list_files(s3)) == 1
        assert not lake.exists(f"{s3}/b.png")
        store.boto3_client(fsspec.filesystem("s3")).put_object(Bucket=s3[5:], Key="b.png", Body=b"")
        assert len(lake.list_files(s3)) == 2
        assert lake.exists(f"{s3}/b.png")

    def test_access_denied(self, s3, monkeypatch):  # noqa: F811
        monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)  # the server now checks credentials
        for call in (lake.read_bytes, lake.list_files, lake.exists, lambda u: lake.write_once(u, b"")):
            code, message = error_of(lambda call=call: call(f"{s3}/x.png"))
            assert code == "forbidden"
            assert "testing" not in message

    def test_no_credentials(self, s3, monkeypatch):  # noqa: F811
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        for call in (lake.read_bytes, lambda u: lake.write_once(u, b"")):
            code, message = error_of(lambda call=call: call(f"{s3}/x.png"))
            assert code == "forbidden"
            assert "credentials" in message

    def test_settings_of_s3fs_hold_for_conditional_writes_too(self, s3, s3_endpoint, monkeypatch):  # noqa: F811
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": s3_endpoint})
        assert lake.write_once(f"{s3}/x", b"1")
        assert lake.read_bytes(f"{s3}/x") == b"1"

    def test_no_server(self, s3, monkeypatch):  # noqa: F811
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
            for call in (lake.read_bytes, lambda u: lake.write_once(u, b"")):
                assert error_of(lambda call=call: call(f"{s3}/x.png"))[0] == "unreachable"


class TestRetries:
    def test_a_lost_connection_is_tried_again(self, memory, monkeypatch):  # noqa: F811
        lake.write_bytes(f"{memory}/x", b"1")
        read, tries = MemoryFileSystem.cat_file, []

        def shaky(self: MemoryFileSystem, path: str, **options: int) -> bytes:
            tries.append(path)
            if len(tries) < 3:
                raise ConnectionResetError
            return read(self, path, **options)

        monkeypatch.setattr(MemoryFileSystem, "cat_file", shaky)
        with stamina.set_testing(True, attempts=3):
            assert lake.read_bytes(f"{memory}/x") == b"1"
        assert len(tries) == 3
        tries.clear()
        with stamina.set_testing(True, attempts=2):
            assert error_of(lambda: lake.read_bytes(f"{memory}/x"))[0] == "unreachable"

    @pytest.mark.parametrize("error", [FileNotFoundError(), PermissionError(), OSError(22, "invalid"), KeyError("x")])
    def test_what_will_not_pass_is_tried_once(self, memory, monkeypatch, error):  # noqa: F811
        tries = []

        def fail(*_: object, **__: object) -> None:
            tries.append(1)
            raise error

        monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)
        with stamina.set_testing(True, attempts=3):
            error_of(lambda: lake.read_bytes(f"{memory}/x"))
        assert len(tries) == 1

    @pytest.mark.parametrize(("stored", "written"), [(b"ours", True), (b"theirs", False)])
    def test_a_put_whose_answer_was_lost_finds_its_own_object(self, s3, monkeypatch, stored, written):  # noqa: F811
        connect = store.boto3_client

        def lossy(fs: object) -> object:
            client = connect(fs)
            put, tries = client.put_object, []

            def put_and_lose_the_answer(**request: object) -> object:
                tries.append(1)
                if len(tries) > 1:
                    return put(**request)
                put(**request | {"Body": stored})
                raise ConnectionResetError

            monkeypatch.setattr(client, "put_object", put_and_lose_the_answer)
            return client

        monkeypatch.setattr(store, "boto3_client", lossy)
        with stamina.set_testing(True, attempts=3):
            assert lake.write_once(f"{s3}/x", b"ours") is written
        assert lake.read_bytes(f"{s3}/x") == stored

    @pytest.mark.parametrize(
        ("status", "code"), [(503, "unreachable"), (409, "unreachable"), (403, "forbidden"), (501, "unsupported-store")]
    )
    def test_answers_of_a_store(self, s3, monkeypatch, status, code):  # noqa: F811
        answer = {"Error": {"Code": "X", "Message": "so it is"}, "ResponseMetadata": {"HTTPStatusCode": status}}
        tries = []

        class Client:
            def put_object(self, **_: object) -> None:
                tries.append(1)
                raise ClientError(answer, "PutObject")

        monkeypatch.setattr(store, "boto3_client", lambda _: Client())
        with stamina.set_testing(True, attempts=3):
            found, message = error_of(lambda: lake.write_once(f"{s3}/x", b""))
        assert found == code
        assert "so it is" in message
        assert len(tries) == (3 if status in (409, 503) else 1)


def manifest(count: int = 3, **columns: list) -> pa.Table:
    """A valid table with the two required columns and those given."""
    required = {"image_id": [f"id-{n}" for n in range(count)], "uri": [f"/lake/{n}.png" for n in range(count)]}
    return pa.table(required | columns)


class TestManifest:
    def test_round_trip(self, place):
        uri = lake.join(place, "m.parquet")
        lake.write_bytes(lake.join(place, "a.png"), b"")
        table = lake.list_images(place)
        lake.write_manifest(table, uri)
        assert lake.read_manifest(uri).equals(table, check_metadata=True)

    def test_row_groups(self, tmp_path):
        lake.write_manifest(manifest(10), str(tmp_path / "m"), row_group_size=4)
        assert pq.ParquetFile(tmp_path / "m").num_row_groups == 3

    def test_missing_columns_are_null_and_the_order_is_the_schemas(self, tmp_path):
        pq.write_table(manifest(label=["benign", None, "defect"]).select(["label", "uri", "image_id"]), tmp_path / "m")
        table = lake.read_manifest(str(tmp_path / "m"))
        assert table.schema.equals(lake.MANIFEST_SCHEMA, check_metadata=True)
        assert table["label"].to_pylist() == ["benign", None, "defect"]
        assert table["surface"].null_count == 3

    def test_tables_of_other_libraries_are_read(self, tmp_path):
        when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
        frame = pl.DataFrame(manifest().to_pydict()).with_columns(
            surface=pl.Series(["steel", "wood", None], dtype=pl.Categorical),
            bit_depth=pl.Series([12, None, 16]),
            modified_at=pl.lit(when).dt.cast_time_unit("ns"),
        )
        frame.write_parquet(tmp_path / "polars")
        table = lake.read_manifest(str(tmp_path / "polars"))
        assert table["bit_depth"].to_pylist() == [12, None, 16]
        assert table["surface"].to_pylist() == ["steel", "wood", None]
        assert table["modified_at"].to_pylist() == [when] * 3
        pq.write_table(manifest(bit_depth=[12.0, None, 10.0]), tmp_path / "floats")
        assert lake.read_manifest(str(tmp_path / "floats"))["bit_depth"].to_pylist() == [12, None, 10]

    @pytest.mark.parametrize(
        ("table", "reason"),
        [
            (manifest(colour=["red"] * 3), "colour"),
            (manifest().drop(["image_id"]), "no column image_id"),
            (manifest(image_id=["a", "b", None]), "1 rows have no image_id"),
            (manifest(uri=[None, None, "/a"]), "2 rows have no uri"),
            (manifest(image_id=["a", "b", "a"]), "in several rows, such as a of ['/lake/0.png', '/lake/2.png']"),
            (manifest(uri=["/a", "s3://b/c", "d/e.png"]), "'d/e.png' is relative"),
            (manifest(mask_uri=[None, "m.png", None]), "'m.png' is relative"),
            (manifest(label=["good", "defect", None]), "found ['good']"),
            (manifest(split=["training", None, None]), "training"),
            (manifest(mask_kind=["circle", None, None]), "circle"),
            (manifest(bit_depth=[12, 32, None]), "32"),
            (manifest(bit_depth=[12.5, 12, None]), "bit_depth"),
            (manifest(bit_depth=[70_000, 12, None]), "bit_depth"),
            (manifest(image_id=[1, 2, 3]), "image_id: found int64, expected string"),
            (manifest(surface=[["a"], [], []]), "surface: found list"),
            (manifest(modified_at=["yesterday"] * 3), "modified_at"),
            (manifest().replace_schema_metadata({"sbdzsl_schema": "manifest", "version": "2"}), "version '2'"),
            (manifest().replace_schema_metadata({"sbdzsl_schema": "verdict", "version": "1"}), "'verdict'"),
        ],
    )
    def test_a_bad_manifest_names_file_and_reason(self, tmp_path, table, reason):
        path = str(tmp_path / "bad.parquet")
        pq.write_table(table, path)
        code, message = error_of(lambda: lake.read_manifest(path), DataError)
        assert code == "bad-manifest"
        assert path in message
        assert reason in message
        if "relative" not in reason:
            assert error_of(lambda: lake.write_manifest(table, path), DataError)[0] == "bad-manifest"

    def test_columns_that_stand_twice(self, tmp_path):
        table = manifest().append_column("uri", manifest()["uri"])
        code, message = error_of(lambda: lake.write_manifest(table, str(tmp_path / "x")), DataError)
        assert code == "bad-manifest"
        assert "repeated" in message

    @pytest.mark.parametrize("data", [b"", b"image_id,uri\n1,/a.png\n", b"PAR1" + bytes(50) + b"PAR1"])
    def test_what_is_not_parquet(self, tmp_path, data):
        (tmp_path / "m.parquet").write_bytes(data)
        code, message = error_of(lambda: lake.read_manifest(str(tmp_path / "m.parquet")), DataError)
        assert code == "bad-manifest"
        assert "not a Parquet file" in message

    def test_relative_paths_are_written_absolute(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        table = manifest(uri=["a.png", "s3://b/c.png", "/d.png"], mask_uri=[None, "m/e.png", None])
        lake.write_manifest(table, "m.parquet")
        read = lake.read_manifest("m.parquet")
        assert read["uri"].to_pylist() == [f"{tmp_path}/a.png", "s3://b/c.png", "/d.png"]
        assert read["mask_uri"].to_pylist() == [None, f"{tmp_path}/m/e.png", None]

    def test_several_manifests(self, tmp_path):
        one, two = str(tmp_path / "1"), str(tmp_path / "2")
        lake.write_manifest(manifest(2), one)
        lake.write_manifest(manifest(1, image_id=["other"]), two)
        assert lake.read_manifests([two, one])["image_id"].to_pylist() == ["other", "id-0", "id-1"]
        assert lake.read_manifests([]).equals(lake.MANIFEST_SCHEMA.empty_table())
        lake.write_manifest(manifest(1), two)
        code, message = error_of(lambda: lake.read_manifests([one, two]), DataError)
        assert code == "bad-manifest"
        assert one in message
        assert two in message
        assert "id-0" in message


cells = st.tuples(st.text(max_size=3), st.text(max_size=3), st.none() | st.integers(8, 16))


def digest_of(rows: list[tuple]) -> str:
    columns = list(zip(*rows, strict=True)) if rows else [[], [], []]
    schema = pa.schema([lake.MANIFEST_SCHEMA.field(name) for name in ("image_id", "uri", "bit_depth")])
    return lake.manifest_digest(pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema))


class TestDigest:
    @settings(max_examples=50, deadline=None)
    @given(st.lists(cells, max_size=5), st.lists(cells, max_size=5))
    def test_it_tells_tables_apart(self, one, two):
        assert (digest_of(one) == digest_of(two)) == (one == two)

    def test_it_depends_on_order_but_not_on_chunks_or_labels(self, tmp_path):
        table = lake.list_images(str(self.folder(tmp_path)))
        again = pa.concat_tables([table.slice(n, 1) for n in range(len(table))])
        labelled = table.set_column(6, "label", pa.array(["defect"] * len(table)))
        assert lake.manifest_digest(table) == lake.manifest_digest(again) == lake.manifest_digest(labelled)
        assert lake.manifest_digest(table) != lake.manifest_digest(table.take([1, 0, 2]))

    def test_it_is_the_same_in_every_release(self):
        assert digest_of([("a", "/x.png", 12), ("b", "/ü.png", None)]) == FROZEN_DIGEST

    @staticmethod
    def folder(path: Path) -> Path:
        for name in "abc":
            (path / f"{name}.png").write_bytes(name.encode())
        return path


FROZEN_DIGEST = "d6cc761f5ef71eb70c15e9a57e6dff9151e310a789d884c6d2da4ab9b2058a4a"


def test_image_id_changes_with_place_and_version():
    assert lake.image_id("/a.png", "1") == "2df2656d902bfe86cbfe40d2bbe31d99"
    assert len({lake.image_id(uri, version) for uri in ("/a", "/b") for version in ("1", "2")}) == 4
