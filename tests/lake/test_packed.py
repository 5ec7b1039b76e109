import io
import tarfile
from datetime import datetime, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbdzsl import lake
from sbdzsl.errors import ImageError, LakeError
from sbdzsl.lake import packed
from sbdzsl.lake.folders import StoredFile, list_files
from tests.stores import Doorkeeper, doorkeeper, memory, s3, s3_endpoint  # noqa: F401  fixtures


def tar(files: dict[str, bytes], kind: int = tarfile.PAX_FORMAT, mtime: int = 1_700_000_000) -> bytes:
    """A plain TAR file of the given members."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def members(uri: str, left_out: list | None = None, requests: list | None = None) -> list[StoredFile]:
    (archive,) = list_files(uri)
    count = requests.append if requests is not None else lambda _: None
    leave = (lambda *given: left_out.append(given)) if left_out is not None else (lambda *_: None)
    return list(packed.members(archive, leave, lambda: count(1)))


@pytest.fixture(params=["local", "s3", "memory"])
def place(request, tmp_path) -> str:
    return str(tmp_path / "folder") if request.param == "local" else request.getfixturevalue(request.param)


NAMES = ["img/0001.png", "./img/0002.png", "/etc/abs.png", "../../up.png", "a b#1+2/ä?.png", "long/" * 60 + "z.png"]


class TestMembers:
    @pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_each_member_reads_as_it_was_packed(self, place, kind):
        files = {name: name.encode() * (1 + index) for index, name in enumerate(NAMES)}
        if kind == tarfile.USTAR_FORMAT:
            files.pop(NAMES[-1])
        uri = lake.join(place, "lot 7.TAR")
        lake.write_bytes(uri, tar(files, kind))
        found = members(uri)
        assert [lake.read_bytes(file.uri) for file in found] == list(files.values())
        assert [file.size_bytes for file in found] == [len(data) for data in files.values()]
        names = [packed.member(file.uri).name for file in found]
        assert names[:5] == ["img/0001.png", "img/0002.png", "etc/abs.png", "up.png", "a b#1+2/ä?.png"]
        assert {packed.member(file.uri).archive for file in found} == {uri}

    @settings(max_examples=40, deadline=None)
    @given(st.dictionaries(st.text(min_size=1, max_size=150), st.binary(max_size=1200), max_size=8))
    def test_any_names_and_contents(self, tmp_path_factory, files):
        files = {name: data for name, data in files.items() if "\0" not in name and name.strip("/")}
        files = {name: data for name, data in files.items() if is_utf8(name)}
        path = tmp_path_factory.mktemp("tar") / "a.tar"
        path.write_bytes(tar(files))
        found = members(str(path))
        assert [lake.read_bytes(file.uri) for file in found] == list(files.values())

    def test_what_a_member_is_known_by(self, tmp_path):
        path = tmp_path / "a.tar"
        path.write_bytes(tar({"x.png": b"1"}))
        (before,) = members(str(path))
        assert before.modified_at == datetime.fromtimestamp(1_700_000_000, tz=timezone.utc)
        path.write_bytes(tar({"x.png": b"2"}))
        (after,) = members(str(path))
        assert before.uri == after.uri
        assert before.version != after.version
        path.write_bytes(tar({"x.png": b"2"}, mtime=0))
        assert members(str(path))[0].modified_at == list_files(str(path))[0].modified_at

    def test_what_is_no_file_of_its_own_is_counted(self, tmp_path):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, kind in (("d", tarfile.DIRTYPE), ("s.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE)):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "x.png"
                archive.addfile(info)
        (tmp_path / "a.tar").write_bytes(stream.getvalue())
        left_out: list = []
        assert members(str(tmp_path / "a.tar"), left_out) == []
        assert [name.rsplit(" ", 1)[1] for _, name in left_out] == ["s.png", "h.png"]

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: b"",
            lambda data: b"no archive at all" * 100,
            lambda data: data[:1300],  # within the second member
            lambda data: data[:1024] + b"rubbish" + data[1031:],  # over the second header
            lambda data: data[:1200],  # within the second header
        ],
    )
    def test_a_damaged_archive_is_said_to_be_one(self, tmp_path, damage):
        (tmp_path / "a.tar").write_bytes(damage(tar({"1.png": b"1", "2.png": b"2" * 3000}, tarfile.USTAR_FORMAT)))
        with pytest.raises(packed.DamagedArchive):
            members(str(tmp_path / "a.tar"))

    def test_an_archive_without_its_closing_zeros_is_whole(self, tmp_path):
        (tmp_path / "a.tar").write_bytes(tar({"1.png": b"1"}, tarfile.USTAR_FORMAT)[:1024])
        assert len(members(str(tmp_path / "a.tar"))) == 1

    def test_small_members_of_an_object_are_listed_by_few_requests(self, s3):  # noqa: F811
        uri, requests = f"{s3}/a.tar", []
        lake.write_bytes(uri, tar({f"{number}.png": bytes(2000) for number in range(500)}))
        assert len(members(uri, requests=requests)) == 500
        assert len(requests) == 1


class TestTogether:
    def test_a_group_is_read_by_one_request(self, doorkeeper: Doorkeeper, s3):  # noqa: F811
        uri = f"{s3}/a.tar"
        files = {f"{number}.png": str(number).encode() * (number + 1) for number in range(20)}
        lake.write_bytes(uri, tar(files))
        uris = [file.uri for file in members(uri)]
        assert list(packed.together(uris)) == [list(range(20))]
        doorkeeper.requests.clear()
        assert lake.read_together(uris) == list(files.values())
        assert [method for method, _, _ in doorkeeper.requests] == ["GET"]
        assert doorkeeper.requests[0][2].startswith("bytes=")

    def test_what_stands_together(self):
        uris = [
            "s3://b/x.png",
            "s3://b/1.tar#512+100/a",
            "s3://b/1.tar#1024+100/b",
            "s3://b/1.tar#900000+100/c",
            "s3://b/1.tar#2000000+100/too far from c",
            "s3://b/1.tar#1024+100/backwards",
            "s3://b/2.tar#2048+100/another archive",
            "s3://b/2.tar#2560+9000000/large alone",
            "s3://b/2.tar#9003000+5/after it",
            "/local.png",
            "/local.png",
        ]
        assert list(packed.together(uris)) == [[0], [1, 2, 3], [4], [5], [6], [7], [8], [9], [10]]
        assert list(packed.together([])) == []

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9_000_000), st.integers(0, 9_000_000)), max_size=30)
    )
    def test_each_index_stands_once_in_order_and_spans_are_bounded(self, places):
        uris = [f"/{archive}.tar#{offset}+{size}/x" for archive, offset, size in places]
        groups = list(packed.together(uris))
        assert [index for group in groups for index in group] == list(range(len(uris)))
        for group in groups:
            first, last = places[group[0]], places[group[-1]]
            assert len(group) == 1 or last[1] + last[2] - first[1] <= packed.MAX_TOGETHER_BYTES

    def test_errors_are_values_and_stay_with_their_image(self, tmp_path):
        path = tmp_path / "a.tar"
        path.write_bytes(tar({"small.png": b"1" * 10, "large.png": b"2" * 100, "last.png": b"3" * 10}))
        uris = [file.uri for file in members(str(path))]
        small, large, last = lake.read_together(uris, max_bytes=50)
        assert (small, last) == (b"1" * 10, b"3" * 10)
        assert isinstance(large, ImageError)
        assert large.code == "too-large"
        path.write_bytes(path.read_bytes()[: packed.member(uris[2]).offset + 4])
        assert [type(found) for found in lake.read_together(uris)] == [bytes, bytes, LakeError]
        path.unlink()
        assert [found.code for found in lake.read_together(uris)] == ["not-found"] * 3
        assert [found.code for found in lake.read_together([str(path)])] == ["not-found"]

    def test_members_alone(self, tmp_path):
        path = tmp_path / "a.tar"
        path.write_bytes(tar({"a.png": b"123", "empty.png": b""}))
        full, empty = (file.uri for file in members(str(path)))
        assert lake.read_bytes(full, max_bytes=3) == b"123"
        assert lake.read_bytes(empty) == b""
        with pytest.raises(ImageError):
            lake.read_bytes(full, max_bytes=2)
        path.write_bytes(path.read_bytes()[:1500])
        with pytest.raises(LakeError, match="list it again"):
            lake.read_bytes(f"{path}#1400+200/x.png")


def is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
