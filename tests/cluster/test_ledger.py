import threading
from pathlib import Path

import polars as pl
import pytest

from sbdzsl import lake
from sbdzsl.cluster import ledger
from sbdzsl.errors import LakeError
from sbdzsl.verdict import Verdict
from tests.cluster.plans import judge, plan_of


def test_a_part_is_written_once_and_done_means_it_exists(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert ledger.done_shards(plan) == frozenset()
    assert judge(plan, 1)
    first = lake.read_bytes(plan.part_uri(1))
    assert not judge(plan, 1, "defect")
    assert lake.read_bytes(plan.part_uri(1)) == first
    assert ledger.done_shards(plan) == {1}
    assert ledger.missing_shards(plan) == [0, 2]
    assert [ledger.is_done(plan, shard) for shard in range(3)] == [False, True, False]


def test_late_writers_leave_one_part(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    wins: list[bool] = []
    threads = [threading.Thread(target=lambda: wins.append(judge(plan, 0))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == [False, False, False, True]
    assert ledger.verdict_rows([plan]).collect().height == 10


def test_reconcile_names_what_is_missing_doubled_and_strange(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    judge(plan, 0)
    judge(plan, 2)
    part = ledger.reconcile([plan])
    assert (part.num_manifest, part.num_rows) == (25, 15)
    assert (part.num_missing, part.num_duplicates, part.num_unexpected) == (10, 0, 0)
    assert set(part.missing) == {f"id{i:04d}" for i in range(10, 20)}
    assert not part.is_complete
    rows = [Verdict(f"id{i:04d}", f"/lake/{i}.png", "good", "b") for i in (10, 10, 11)]
    ledger.write_part(plan, 1, [*rows, Verdict("stranger", "/lake/x.png", "good", "b")])
    whole = ledger.reconcile([plan])
    assert (whole.num_missing, whole.num_duplicates, whole.num_unexpected) == (8, 1, 1)
    assert whole.unexpected == ("stranger",)


def test_a_row_of_another_shard_is_strange(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    for shard in (0, 1):
        judge(plan, shard)
    ledger.write_part(plan, 2, [Verdict("id0000", "/lake/0.png", "good", "b")] * 5)
    found = ledger.reconcile([plan])
    assert (found.num_missing, found.num_duplicates, found.num_unexpected) == (5, 4, 1)


def test_several_runs_reconcile_together_and_strays_are_seen(tmp_path: Path) -> None:
    first = plan_of(tmp_path, count=10)
    second = plan_of(tmp_path, count=25, run=2)
    for plan in (first, second):
        for shard in range(plan.num_shards):
            judge(plan, shard)
    found = ledger.reconcile([first, second])
    assert found.is_complete
    assert found.num_manifest == found.num_rows == 25
    parts = pl.read_parquet(tmp_path / "parts" / "*.parquet")
    assert sorted(parts["image_id"]) == [f"id{i:04d}" for i in range(25)]
    lake.write_bytes(str(tmp_path / "parts" / "copy.parquet"), lake.read_bytes(first.part_uri(0)))
    again = ledger.reconcile([first, second])
    assert again.strays == ("copy.parquet",)
    assert not again.is_complete


def test_nothing_judged_yet_reconciles_to_all_missing(tmp_path: Path) -> None:
    assert ledger.reconcile([plan_of(tmp_path)]).num_missing == 25
    assert ledger.verdict_rows([plan_of(tmp_path)]).collect().is_empty()


def test_attempts_are_told_by_shard_and_session(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert ledger.attempts(plan) == ledger.attempts(plan, 1) == []
    for shard, session in ((0, "a"), (1, "a"), (1, "b")):
        ledger.note_attempt(plan, shard, session)
    assert [(one.shard, one.session) for one in ledger.attempts(plan)] == [(0, "a"), (1, "a"), (1, "b")]
    assert [one.session for one in ledger.attempts(plan, 1)] == ["a", "b"]


def test_unseen_images_are_rows_of_the_manifest(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    unseen = {"id0003", "id0004", "id0021"}
    for shard in range(plan.num_shards):
        rows = [
            Verdict(ref.image_id, ref.uri, "unseen" if ref.image_id in unseen else "good", "b")
            for ref in ledger.shard_images(plan, shard)
        ]
        ledger.write_part(plan, shard, rows)
    found = ledger.unseen_images(str(tmp_path))
    assert found.schema == lake.MANIFEST_SCHEMA
    assert set(found["image_id"].to_pylist()) == unseen
    assert found["uri"].to_pylist() == ["/lake/3.png", "/lake/4.png", "/lake/21.png"]


def test_no_audit_and_one_without_unseen_images(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="no audit") as caught:
        ledger.unseen_images(str(tmp_path))
    assert caught.value.code == "not-found"
    judge(plan_of(tmp_path), 0)
    assert ledger.unseen_images(str(tmp_path)).num_rows == 0
    assert ledger.audit_rows(str(tmp_path)).collect().height == 10
