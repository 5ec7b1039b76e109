import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbdzsl import lake
from sbdzsl.cluster import ledger
from sbdzsl.cluster import plan as plans
from sbdzsl.cluster.plan import Identity, choose_shard_size, cut, find_plans, make_plan, pin_identity
from sbdzsl.cluster.selection import Selection
from sbdzsl.errors import AuditError, DataError
from tests.cluster.plans import NOW, manifest, plan_of


def ids_of(plan: plans.Plan) -> list[str]:
    return [ref.image_id for shard in range(plan.num_shards) for ref in ledger.shard_images(plan, shard)]


def test_shards_cover_the_manifest_once_in_order(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert ids_of(plan) == manifest(range(25))["image_id"].to_pylist()
    assert [len(ledger.shard_images(plan, shard)) for shard in range(plan.num_shards)] == [10, 10, 5]


@pytest.mark.parametrize(("count", "size"), [(1, 8), (200, 8), (10_000, 313), (1_000_000, 1024)])
def test_shard_size_follows_the_archive(count: int, size: int) -> None:
    assert choose_shard_size(count) == size


def test_a_plan_chooses_its_shard_size(tmp_path: Path) -> None:
    assert plan_of(tmp_path, count=400, shard_size=None).num_shards == 31


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 9), st.integers(0, 3))
def test_any_pages_are_cut_into_the_same_rows(pages: list[int], size: int, large: int) -> None:
    starts = [sum(pages[:page]) for page in range(len(pages))]
    each = large * plans.MAX_SHARD_BYTES // 4
    tables = [manifest(range(start, start + rows), each) for start, rows in zip(starts, pages, strict=True)]
    shards = list(cut(tables, size))
    found = [identity for shard in shards for identity in shard["image_id"].to_pylist()]
    assert found == [f"id{number:04d}" for number in range(sum(pages))]
    assert all(0 < shard.num_rows <= size for shard in shards)
    most = size if not large else min(size, -(-4 // large))
    assert all(shard.num_rows == most for shard in shards[:-1])


def test_large_files_make_small_shards(tmp_path: Path) -> None:
    table = manifest(range(10), size_bytes=plans.MAX_SHARD_BYTES // 2)
    assert [shard.num_rows for shard in cut([table], 1024)] == [2] * 5
    assert [shard.num_rows for shard in cut([manifest(range(3), 10**12)], 1024)] == [1] * 3


def test_another_bundle_source_or_policy_is_refused(tmp_path: Path) -> None:
    out = str(tmp_path)
    pin_identity(out, Identity("/lake", "b"))
    pin_identity(out, Identity("/lake", "b"))
    with pytest.raises(AuditError, match="bundle_digest: b there, c asked for") as caught:
        pin_identity(out, Identity("/lake", "c"))
    assert caught.value.code == "other-audit"
    with pytest.raises(AuditError, match="choose another --out"):
        pin_identity(out, Identity("/other", "b"))
    # Its rows would be of two roundings: the bits of one runtime are not those of another.
    with pytest.raises(AuditError, match="runtime: torch there, openvino asked for"):
        pin_identity(out, Identity("/lake", "b", runtime="openvino"))
    with pytest.raises(AuditError, match="surface_policies"):
        pin_identity(out, Identity("/lake", "b", surface_policies={"leather": "max-f1"}))


def test_what_identity_and_plan_say_is_read_back(tmp_path: Path) -> None:
    identity = Identity("/lake", "b", "fixed:3", {"leather": "max-f1"}, "openvino", "envelope")
    out, selection = str(tmp_path), Selection(("*.png",), ("old/**",), 0.5, 7, True)
    pin_identity(out, identity)
    plan = make_plan(out, identity, 1, lambda: [manifest(range(5))], selection, None, NOW)
    assert plans.read_identity(out) == identity
    assert find_plans(out) == (plan,)
    assert plan is not None
    assert plan.selection == selection


def test_the_first_plan_wins_and_the_other_leaves_nothing(tmp_path: Path) -> None:
    identity = Identity("/lake", "bundle")
    pin_identity(str(tmp_path), identity)
    barrier, found = threading.Barrier(3), []

    def start(count: int) -> None:
        barrier.wait()
        pages = [manifest(range(count))]
        found.append(make_plan(str(tmp_path), identity, 1, lambda: pages, Selection(), 4, NOW))

    threads = [threading.Thread(target=start, args=(count,)) for count in (11, 12, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == found[2] == find_plans(str(tmp_path))[0]
    assert len(ids_of(found[0])) == found[0].num_images
    shards = [file.uri for file in lake.list_files(found[0].folder) if "shard-" in file.uri]
    assert len(shards) == found[0].num_shards, "the shards of a plan that was not taken are left"


def test_a_folder_with_something_else_in_it_is_no_audit(tmp_path: Path) -> None:
    lake.write_bytes(lake.join(str(tmp_path), plans.AUDIT), b"{}")
    with pytest.raises(AuditError, match="no audit plan"):
        pin_identity(str(tmp_path), Identity("/lake", "b"))
    lake.write_bytes(lake.join(str(tmp_path), plans.AUDIT), b'{"version": 1}')
    with pytest.raises(AuditError, match="version 1"):
        pin_identity(str(tmp_path), Identity("/lake", "b"))


def test_an_id_in_two_pages_is_refused(tmp_path: Path) -> None:
    pages = [manifest(range(9)), manifest(range(8, 12))]
    with pytest.raises(DataError, match="1 image_id stand in several rows, such as id0008"):
        make_plan(str(tmp_path), Identity("/lake", "b"), 1, lambda: pages, Selection(), None, NOW)
    assert find_plans(str(tmp_path)) == ()


def test_a_later_run_takes_what_is_new(tmp_path: Path) -> None:
    first = plan_of(tmp_path, count=10)
    second = plan_of(tmp_path, count=25, run=2)
    assert (second.run, second.num_images) == (2, 15)
    assert set(ids_of(first)) | set(ids_of(second)) == set(manifest(range(25))["image_id"].to_pylist())
    assert find_plans(str(tmp_path)) == (first, second)
    third = make_plan(str(tmp_path), first.identity, 3, list, Selection(), None, NOW)
    assert third is None


def test_another_selection_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, sample=0.5)
    plans.require_same_selection(plan, Selection(sample=0.5))
    with pytest.raises(AuditError, match=r"takes a sample of 0\.5 of them; asked for: all images.*--only-new"):
        plans.require_same_selection(plan, Selection())
