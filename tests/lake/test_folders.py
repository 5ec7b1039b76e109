import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from sbdzsl.lake import folders, store
from sbdzsl.lake.folders import Claims, Folder, StoredFile, scan
from tests.stores import Doorkeeper, doorkeeper, s3, s3_endpoint  # noqa: F401  fixtures

#: Names that trip what splits paths, quotes or matches; no "/" and no NUL, and neither "." nor "..".
NAMES = st.text(st.sampled_from("ab .#?%*[]+:&'~é中\n"), min_size=1, max_size=4).filter(
    lambda name: name.strip(".") != "" and name == name.strip()
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


def tree(paths: list[str]) -> list[str]:
    """The paths that can stand in one folder: none is a folder of another."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(other.startswith(path + "/") or path.startswith(other + "/") for other in kept):
            kept.append(path)
    return kept


class TestLocal:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(PATHS, max_size=12))
    def test_any_tree_is_listed_once(self, tmp_path_factory, paths):
        root = tmp_path_factory.mktemp("lake")
        for path in tree(paths):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(path.encode())
        found = folders.list_files(str(root))
        assert [file.uri for file in found] == sorted(f"{root}/{path}" for path in tree(paths))
        assert [file.size_bytes for file in found] == [len(file.uri.encode()) - len(f"{root}/") for file in found]

    def test_a_level_is_one_folder_alone(self, tmp_path):
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "deep.png").touch()
        (tmp_path / "loose.png").touch()
        (tmp_path / "link").symlink_to(tmp_path / "a")
        entries = sorted(scan(str(tmp_path)).level(str(tmp_path)), key=lambda entry: entry.uri)
        assert [(type(e), e.uri.rsplit("/", 1)[1]) for e in entries] == [
            (Folder, "a"),
            (Folder, "link"),
            (StoredFile, "loose.png"),
        ]
        assert [entry.is_link for entry in entries[:2]] == [False, True]

    def test_links_to_one_place_elsewhere_are_followed_once(self, tmp_path):
        (tmp_path / "elsewhere" / "below").mkdir(parents=True)
        for name in ("elsewhere/a.png", "elsewhere/below/b.png"):
            (tmp_path / name).touch()
        root = tmp_path / "root"
        root.mkdir()
        (root / "1").symlink_to(tmp_path / "elsewhere")
        (root / "2").symlink_to(tmp_path / "elsewhere" / "below")
        (tmp_path / "elsewhere" / "home").symlink_to(root)
        found = [os.path.realpath(file.uri) for file in folders.list_files(str(root))]
        assert sorted(found) == [f"{tmp_path}/elsewhere/a.png", f"{tmp_path}/elsewhere/below/b.png"]

    def test_two_scans_with_shared_claims_share_what_links_lead_to(self, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "a.png").touch()
        for name in ("1", "2"):
            (tmp_path / "root" / name).mkdir(parents=True)
            (tmp_path / "root" / name / "link").symlink_to(tmp_path / "elsewhere")
        claims, root = Claims(), str(tmp_path / "root")
        one, two = scan(root, claims), scan(root, claims)
        assert len(list(one.below(f"{root}/1"))) == 1
        assert list(two.below(f"{root}/2")) == []
        assert one.linked == two.refused == {f"{tmp_path}/elsewhere"}

    def test_a_lake_that_is_a_link_is_listed_under_the_name_given(self, tmp_path):
        (tmp_path / "real" / "sub").mkdir(parents=True)
        (tmp_path / "real" / "sub" / "a.png").touch()
        (tmp_path / "lake").symlink_to(tmp_path / "real")
        assert [file.uri for file in folders.list_files(str(tmp_path / "lake"))] == [f"{tmp_path}/lake/sub/a.png"]

    def test_more_names_than_one_thread_asks_for(self, tmp_path, monkeypatch):
        monkeypatch.setattr(folders, "_STAT_NAMES", 3)
        for number in range(100):
            (tmp_path / f"{number:03}.png").touch()
        assert [Path(file.uri).name for file in folders.list_files(str(tmp_path))] == [
            f"{n:03}.png" for n in range(100)
        ]


class TestS3:
    def test_any_keys_are_listed_once_and_levels_by_the_way(self, s3):  # noqa: F811
        keys = ["a.png", "x/a b.png", "x/y/ä#1?.png", "x//empty name.png", "x/y/z/100%20.png", "xy/b.png", "x/folder/"]
        backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        for key in keys:
            backend.put_object(s3.removeprefix("s3://"), key, b"1")
        assert [file.uri for file in folders.list_files(s3)] == sorted(f"{s3}/{key}" for key in keys if key[-1] != "/")
        found, waiting, levels = [], [s3], scan(s3)
        while waiting:
            for entry in levels.level(waiting.pop()):
                (waiting if isinstance(entry, Folder) else found).append(entry.uri)
        assert sorted(found) == sorted(f"{s3}/{key}" for key in keys if key[-1] != "/")
        assert store.read_bytes(f"{s3}/x//empty name.png") == b"1"

    def test_pages_are_requests(self, doorkeeper: Doorkeeper, s3):  # noqa: F811
        backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        for number in range(2001):
            backend.put_object(s3.removeprefix("s3://"), f"lot/{number:04}.png", b"1")
        files = scan(f"{s3}/lot")
        doorkeeper.requests.clear()
        assert len(list(files.below(files.root))) == 2001
        assert files.num_requests == len(doorkeeper.requests) == 3

    def test_a_single_object(self, s3):  # noqa: F811
        store.write_bytes(f"{s3}/a/b.png", b"123")
        assert scan(f"{s3}/a").file() is None
        assert [(file.uri, file.size_bytes) for file in folders.list_files(f"{s3}/a/b.png")] == [(f"{s3}/a/b.png", 3)]
        with pytest.raises(store.LakeError):
            folders.list_files(f"{s3}/a/c.png")
