import threading
from pathlib import Path

import pyarrow as pa
import pytest

from sbdzsl import lake
from sbdzsl.cluster import ledger
from sbdzsl.cluster.ledger import Plan
from sbdzsl.errors import AuditError, LakeError
from sbdzsl.verdict import Verdict

NOW = "2026-11-23T00:00:00+00:00"


def manifest(count: int) -> pa.Table:
    rows = [{"image_id": f"id{i:04d}", "uri": f"/lake/{i}.png"} for i in range(count)]
    return pa.Table.from_pylist(rows, schema=lake.MANIFEST_SCHEMA)


def plan_of(out: object, count: int = 25, shard_size: int | None = 10, bundle: str = "b") -> Plan:
    return ledger.make_plan(str(out), "/lake", bundle, None, manifest(count), shard_size, NOW)


def judge(plan: Plan, shard: int) -> bool:
    rows = [Verdict(ref.image_id, ref.uri, "good", plan.bundle_digest) for ref in ledger.shard_images(plan, shard)]
    return ledger.write_part(plan, shard, rows)


def test_shards_cover_the_manifest_once_in_order(tmp_path: object) -> None:
    plan = plan_of(tmp_path)
    ids = [ref.image_id for shard in range(plan.num_shards) for ref in ledger.shard_images(plan, shard)]
    assert ids == manifest(25)["image_id"].to_pylist()
    assert [len(ledger.shard_images(plan, shard)) for shard in range(plan.num_shards)] == [10, 10, 5]


@pytest.mark.parametrize(("count", "size"), [(1, 8), (200, 8), (10_000, 313), (1_000_000, 1024)])
def test_shard_size_follows_the_archive(count: int, size: int) -> None:
    assert ledger.choose_shard_size(count) == size


def test_a_plan_chooses_its_shard_size(tmp_path: object) -> None:
    assert plan_of(tmp_path, count=400, shard_size=None).shard_size == 13


def test_a_part_is_written_once_and_done_means_it_exists(tmp_path: object) -> None:
    plan = plan_of(tmp_path)
    assert ledger.done_shards(plan) == frozenset()
    assert judge(plan, 1)
    first = lake.read_bytes(plan.part_uri(1))
    assert not judge(plan, 1)
    assert lake.read_bytes(plan.part_uri(1)) == first
    assert ledger.done_shards(plan) == {1}


def test_two_late_writers_leave_one_part(tmp_path: object) -> None:
    plan = plan_of(tmp_path)
    wins: list[bool] = []
    threads = [threading.Thread(target=lambda: wins.append(judge(plan, 0))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == [False, False, False, True]
    assert ledger.verdict_rows(plan).collect().height == 10


def test_reconcile_names_what_is_missing_doubled_and_strange(tmp_path: object) -> None:
    plan = plan_of(tmp_path)
    judge(plan, 0)
    judge(plan, 2)
    part = ledger.reconcile(plan)
    assert (part.num_missing, part.num_duplicates, part.num_unexpected) == (10, 0, 0)
    assert set(part.missing) == {f"id{i:04d}" for i in range(10, 20)}
    assert not part.is_complete
    doubled = [Verdict("id0000", "/lake/0.png", "good", "b"), Verdict("stranger", "/lake/x.png", "good", "b")]
    ledger.write_part(plan, 1, doubled)
    whole = ledger.reconcile(plan)
    assert (whole.num_missing, whole.num_duplicates, whole.num_unexpected) == (10, 1, 1)
    assert whole.unexpected == ("stranger",)


def test_nothing_judged_yet_reconciles_to_all_missing(tmp_path: object) -> None:
    assert ledger.reconcile(plan_of(tmp_path)).num_missing == 25


def test_another_bundle_or_source_is_refused(tmp_path: object) -> None:
    plan = plan_of(tmp_path)
    ledger.require_same(plan, "/lake", "b", None)
    with pytest.raises(AuditError, match="bundle_digest: b there, c asked for") as caught:
        ledger.require_same(plan, "/lake", "c", None)
    assert caught.value.code == "other-audit"
    with pytest.raises(AuditError, match="choose another --out"):
        plan_of(tmp_path, bundle="c")
    # Its rows would be of two roundings: the bits of one runtime are not those of another.
    with pytest.raises(AuditError, match="runtime: torch there, openvino asked for"):
        ledger.require_same(plan, "/lake", "b", None, "openvino")


def test_the_first_plan_wins(tmp_path: object) -> None:
    first = plan_of(tmp_path, count=25)
    second = plan_of(tmp_path, count=30)
    assert second == first == ledger.find_plan(str(tmp_path))


def test_a_folder_with_something_else_in_it_is_no_plan(tmp_path: object) -> None:
    lake.write_bytes(lake.join(str(tmp_path), ledger.PLAN), b"{}")
    with pytest.raises(AuditError, match="no audit plan"):
        ledger.find_plan(str(tmp_path))


def test_unseen_images_are_rows_of_the_manifest(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    unseen = {"id0003", "id0004", "id0021"}
    for shard in range(plan.num_shards):
        rows = [
            Verdict(ref.image_id, ref.uri, "unseen" if ref.image_id in unseen else "good", plan.bundle_digest)
            for ref in ledger.shard_images(plan, shard)
        ]
        ledger.write_part(plan, shard, rows)
    found = ledger.unseen_images(str(tmp_path))
    assert found.schema == lake.MANIFEST_SCHEMA
    assert set(found["image_id"].to_pylist()) == unseen
    assert found["uri"].to_pylist() == ["/lake/3.png", "/lake/4.png", "/lake/21.png"]


def test_unseen_images_of_no_audit_and_of_an_audit_without_any(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="no audit") as caught:
        ledger.unseen_images(str(tmp_path))
    assert caught.value.code == "not-found"
    judge(plan_of(tmp_path), 0)
    assert ledger.unseen_images(str(tmp_path)).num_rows == 0
