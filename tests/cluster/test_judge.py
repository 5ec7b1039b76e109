"""The actor's class, called here without Ray."""

import time
from pathlib import Path
from typing import Any

import pytest

from sbdzsl import lake
from sbdzsl.cluster import judge as judging
from sbdzsl.cluster import ledger
from sbdzsl.cluster.judge import InspectorLoader, ShardJudge
from sbdzsl.cluster.plan import Identity, Plan, make_plan, pin_identity
from sbdzsl.cluster.request import AuditRequest
from sbdzsl.cluster.selection import Selection
from sbdzsl.errors import AuditError, LakeError
from sbdzsl.inspector import Inspector
from tests.cluster.plans import NOW
from tests.conftest import Trained


@pytest.fixture
def plan(trained: Trained, tmp_path: Path) -> Plan:
    """Twelve images in two shards."""
    out = str(tmp_path / "out")
    identity = Identity("/lake", trained.bundle.digest)
    pin_identity(out, identity)
    pages = [trained.manifest.slice(0, 12)]
    found = make_plan(out, identity, 1, lambda: pages, Selection(), 6, NOW)
    assert found is not None
    return found


def judge_of(trained: Trained, plan: Plan, **options: Any) -> ShardJudge:
    arguments = {"readers": 2, "threads": 1, "read_timeout_s": 20.0} | options
    return ShardJudge(plan, lambda *_: Inspector(trained.bundle), **arguments)


def call(judge: ShardJudge, *shards: int) -> list[dict[str, Any]]:
    batch = judge({"shard": list(shards)})
    return [{name: column[row].item() for name, column in batch.items()} for row in range(len(shards))]


def test_a_shard_becomes_a_part_in_the_order_of_its_images(trained: Trained, plan: Plan) -> None:
    rows = call(judge_of(trained, plan), 0, 1)
    assert [row["num_images"] for row in rows] == [6, 6]
    assert ledger.reconcile([plan]).is_complete
    ids = ledger.verdict_rows([plan]).collect()["image_id"].to_list()
    assert ids == trained.manifest["image_id"].to_pylist()[:12]


def test_images_that_cannot_be_judged_are_counted(trained: Trained, plan: Plan, tmp_path: Path) -> None:
    table = trained.manifest.slice(0, 3).to_pylist()
    table[1]["uri"] = str(tmp_path / "nowhere.png")
    identity = plan.identity
    pages = [type(trained.manifest).from_pylist(table, schema=lake.MANIFEST_SCHEMA)]
    other = make_plan(plan.out, identity, 2, lambda: pages, Selection(), 6, NOW)
    assert other is not None
    assert call(judge_of(trained, other), 0)[0]["num_errors"] == 1


def test_a_shard_that_somebody_else_finished_is_left_alone(trained: Trained, plan: Plan) -> None:
    lake.write_bytes(plan.part_uri(0), b"theirs")
    assert call(judge_of(trained, plan), 0)[0]["num_images"] == 0
    assert lake.read_bytes(plan.part_uri(0)) == b"theirs"
    assert ledger.attempts(plan) == []


def test_no_shard_is_begun_when_the_time_is_up(trained: Trained, plan: Plan) -> None:
    assert call(judge_of(trained, plan, stop_at=time.time() - 1), 0)[0]["num_images"] == -1
    assert ledger.done_shards(plan) == frozenset()
    assert call(judge_of(trained, plan, stop_at=time.time() + 600), 0)[0]["num_images"] == 6


def test_an_error_of_the_whole_audit_is_a_value(trained: Trained, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise LakeError("unreachable", "no space left")

    monkeypatch.setattr(ledger, "write_part", full)
    row = call(judge_of(trained, plan), 0)[0]
    assert (row["error"], row["message"]) == ("LakeError unreachable", "no space left")


def test_a_bundle_that_was_replaced_is_refused(trained: Trained, plan: Plan) -> None:
    loader = InspectorLoader(AuditRequest(trained.bundle_url, plan.out, lake_url="/lake"))
    assert loader(plan, "cpu").bundle.digest == trained.bundle.digest
    other = Plan(**{name: getattr(plan, name) for name in plan.__slots__} | {"identity": Identity("/lake", "other")})
    with pytest.raises(AuditError, match="the audit was begun with other") as caught:
        loader(other, "cpu")
    assert caught.value.code == "other-audit"
    row = call(ShardJudge(other, loader, readers=2, threads=1, read_timeout_s=20.0), 0)[0]
    assert row["error"] == "AuditError other-audit"


def test_a_shard_whose_processes_die_is_not_tried_for_ever(trained: Trained, plan: Plan) -> None:
    for _ in range(judging.MAX_ATTEMPTS):
        ledger.note_attempt(plan, 0, "today")
    row = call(judge_of(trained, plan, session="today"), 0)[0]
    assert row["error"] == "AuditError crashing"
    assert f"begun {judging.MAX_ATTEMPTS} times" in row["message"]
    assert plan.shard_uri(0) in row["message"]
    assert call(judge_of(trained, plan, session="tomorrow"), 0)[0]["num_images"] == 6
