"""Plans over manifests made up for tests, and their shards judged without any net."""

from collections.abc import Sequence
from datetime import datetime, timezone

import polars as pl
import pyarrow as pa

from sbdzsl import lake
from sbdzsl.cluster import ledger
from sbdzsl.cluster.plan import Identity, Plan, make_plan
from sbdzsl.cluster.selection import Selection
from sbdzsl.verdict import Verdict

NOW = "2026-11-23T00:00:00+00:00"
NOTHING = pl.DataFrame(schema={"image_id": pl.String})


def manifest(numbers: Sequence[int], size_bytes: int | None = None) -> pa.Table:
    """Images with the given numbers; the number is the day of the month in which the file was changed, too."""
    rows = [
        {
            "image_id": f"id{number:04d}",
            "uri": f"/lake/{number}.png",
            "size_bytes": size_bytes,
            "modified_at": datetime(2026, 1, 1 + number % 28, tzinfo=timezone.utc),
        }
        for number in numbers
    ]
    return pa.Table.from_pylist(rows, schema=lake.MANIFEST_SCHEMA)


def plan_of(out: object, count: int = 25, shard_size: int | None = 10, run: int = 1, **selected: object) -> Plan:
    """A pinned plan over `count` images in pages of seven; for a later run, over those that no earlier one took."""
    from sbdzsl.cluster.plan import find_plans, pin_identity

    identity = Identity("/lake", "bundle")
    pin_identity(str(out), identity)
    selection = Selection(**selected)  # type: ignore[arg-type]
    judged = ledger.judged_ids(find_plans(str(out))) if run > 1 else NOTHING
    pages = [manifest(range(start, min(start + 7, count))) for start in range(0, count, 7)]
    plan = make_plan(str(out), identity, run, lambda: selection.apply(pages, judged), selection, shard_size, NOW)
    assert plan is not None
    return plan


def judge(plan: Plan, shard: int, verdict: str = "good") -> bool:
    """Write the part of a shard, every image with the same verdict; whether it was the first to do so."""
    rows = [
        Verdict(ref.image_id, ref.uri, verdict, plan.identity.bundle_digest)  # type: ignore[arg-type]
        for ref in ledger.shard_images(plan, shard)
    ]
    return ledger.write_part(plan, shard, rows)
