"""The audit's ledger: what an output folder says about an audit. No Ray in here.

    audit.json              the plan, written once: bundle, manifest, shard size, threshold policy, runtime
    manifest-<digest>.parquet   the images; shard k is its row group k
    parts/part-<k>.parquet  the verdicts of shard k, written once

A shard is done when its part exists. So every image has exactly one row by construction, whoever died and whoever woke
up late; `reconcile` proves it from the files.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq

from sbdzsl import lake
from sbdzsl.config import Promise
from sbdzsl.errors import AuditError, LakeError
from sbdzsl.verdict import VERDICT_SCHEMA, Verdict, to_parquet

PLAN = "audit.json"
PLAN_VERSION = 1
#: An actor judges about 30 images a second and core: a full shard is half a minute of work, the most a kill can lose.
MAX_SHARD_SIZE = 1024
#: Small archives are cut this fine, so that all actors have work and progress is seen.
MIN_SHARDS = 32
MIN_SHARD_SIZE = 8
#: Of the ids that do not reconcile, so many are named.
MAX_NAMED_IDS = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What an audit does, fixed at its first start. All URLs absolute."""

    out: str
    source: str
    bundle_digest: str
    policy: str | None
    manifest_digest: str
    num_images: int
    shard_size: int
    created_at: str
    runtime: str = "torch"
    promise: Promise = "plain"

    @property
    def num_shards(self) -> int:
        """Shards are numbered from 0 to this, exclusive."""
        return math.ceil(self.num_images / self.shard_size)

    @property
    def manifest_uri(self) -> str:
        """The manifest as it was when the audit started."""
        return lake.join(self.out, f"manifest-{self.manifest_digest[:16]}.parquet")

    def part_uri(self, shard: int) -> str:
        """Where the verdicts of a shard go. The name depends on the shard alone."""
        return lake.join(self.out, "parts", f"part-{shard:06d}.parquet")


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image to judge."""

    image_id: str
    uri: str
    bit_depth: int | None


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Manifest against rows. `missing` and `unexpected` name at most `MAX_NAMED_IDS` ids."""

    num_manifest: int
    num_rows: int
    num_missing: int
    num_duplicates: int
    num_unexpected: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Every image of the manifest has exactly one row, and there is no other row."""
        return self.num_missing == self.num_duplicates == self.num_unexpected == 0


def find_plan(out: str) -> Plan | None:
    """The plan of the audit in `out`, None if there is none. Raises `AuditError` "other-audit" if it cannot be read."""
    uri = lake.join(out, PLAN)
    if not lake.exists(uri):
        return None
    try:
        values = json.loads(lake.read_bytes(uri))
        version = values.pop("version")
        if version != PLAN_VERSION:
            raise AuditError("other-audit", f"{uri} is of version {version}, this sbdzsl writes {PLAN_VERSION}")
        return Plan(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise AuditError("other-audit", f"{uri} is no audit plan ({error}); choose another --out") from None


def make_plan(
    out: str,
    source: str,
    bundle_digest: str,
    policy: str | None,
    manifest: pa.Table,
    shard_size: int | None,
    now: str,
    runtime: str = "torch",
    promise: Promise = "plain",
) -> Plan:
    """Pin a new audit: write its manifest, then its plan. If another start was first, its plan is taken and checked."""
    num_images = manifest.num_rows
    size = shard_size or choose_shard_size(num_images)
    plan = Plan(
        out, source, bundle_digest, policy, lake.manifest_digest(manifest), num_images, size, now, runtime, promise
    )
    lake.write_manifest(manifest, plan.manifest_uri, row_group_size=size)
    text = json.dumps(asdict(plan) | {"version": PLAN_VERSION}, indent=2)
    lake.write_once(lake.join(out, PLAN), text.encode())
    # Read back whoever won, so that two starts at once go on with one plan.
    pinned = find_plan(out)
    assert pinned is not None
    require_same(pinned, source, bundle_digest, policy, runtime, promise)
    return pinned


def choose_shard_size(num_images: int) -> int:
    """Images a shard: at least `MIN_SHARDS` shards where the archive is large enough, none above `MAX_SHARD_SIZE`."""
    return max(MIN_SHARD_SIZE, min(MAX_SHARD_SIZE, math.ceil(num_images / MIN_SHARDS)))


def require_same(
    plan: Plan,
    source: str,
    bundle_digest: str,
    policy: str | None,
    runtime: str = "torch",
    promise: Promise = "plain",
) -> None:
    """Raise `AuditError` "other-audit" unless the plan is of the same source, bundle, policy, promise and runtime."""
    asked = {"source": source, "bundle_digest": bundle_digest, "policy": policy, "runtime": runtime, "promise": promise}
    found = {name: getattr(plan, name) for name in asked}
    differs = [f"{name}: {found[name]} there, {asked[name]} asked for" for name in asked if found[name] != asked[name]]
    if differs:
        raise AuditError("other-audit", f"{plan.out} holds another audit ({'; '.join(differs)}); choose another --out")


def shard_images(plan: Plan, shard: int) -> list[ImageRef]:
    """The images of one shard, read from its row group of the manifest alone."""
    filesystem, path = lake.filesystem(plan.manifest_uri)
    with filesystem.open(path, "rb") as stream:
        table = pq.ParquetFile(stream).read_row_group(shard, columns=["image_id", "uri", "bit_depth"])
    return [ImageRef(row["image_id"], row["uri"], row["bit_depth"]) for row in table.to_pylist()]


def done_shards(plan: Plan) -> frozenset[int]:
    """Shards whose part exists, by one listing."""
    names = (file.uri.rsplit("/", 1)[-1] for file in _parts(plan))
    return frozenset(int(match[1]) for name in names if (match := re.fullmatch(r"part-(\d+)\.parquet", name)))


def write_part(plan: Plan, shard: int, verdicts: list[Verdict]) -> bool:
    """Write the verdicts of a shard. False if its part was there already, which then stays as it is."""
    return lake.write_once(plan.part_uri(shard), to_parquet(verdicts))


def verdict_rows(plan: Plan) -> pl.LazyFrame:
    """All verdict rows of the audit, lazily."""
    uris = [plan.part_uri(shard) for shard in sorted(done_shards(plan))]
    if not uris:
        empty = pl.from_arrow(VERDICT_SCHEMA.empty_table())
        assert isinstance(empty, pl.DataFrame)
        return empty.lazy()
    filesystem, _ = lake.filesystem(plan.out)
    paths = [lake.filesystem(uri)[1] for uri in uris]
    return pl.scan_pyarrow_dataset(
        pyarrow.dataset.dataset(paths, VERDICT_SCHEMA, format="parquet", filesystem=filesystem)
    )


def unseen_images(out: str) -> pa.Table:
    """Manifest of the images that the audit in `out` has called unseen so far, read one shard at a time.

    Raises `LakeError` "not-found" where there is no audit.
    """
    plan = find_plan(out)
    if plan is None:
        raise LakeError("not-found", f"no audit at {out}: expected a folder that `sbdzsl audit` wrote")
    unseen = verdict_rows(plan).filter(pl.col("verdict") == "unseen").select("image_id").collect()
    ids = pa.array(unseen["image_id"].to_list(), pa.string())
    filesystem, path = lake.filesystem(plan.manifest_uri)
    with filesystem.open(path, "rb") as stream:
        file = pq.ParquetFile(stream)
        shards = (file.read_row_group(shard) for shard in range(file.num_row_groups))
        found = [shard.filter(pc.is_in(shard["image_id"], value_set=ids)) for shard in shards]
    return pa.concat_tables([lake.MANIFEST_SCHEMA.empty_table(), *found])


def reconcile(plan: Plan) -> Reconciliation:
    """Compare the ids of the manifest with the ids of the rows."""
    filesystem, path = lake.filesystem(plan.manifest_uri)
    with filesystem.open(path, "rb") as stream:
        wanted = pl.from_arrow(pq.read_table(stream, columns=["image_id"]))
    assert isinstance(wanted, pl.DataFrame)
    found = verdict_rows(plan).select("image_id").collect()
    missing = wanted.join(found, on="image_id", how="anti")["image_id"]
    unexpected = found.join(wanted, on="image_id", how="anti")["image_id"]
    return Reconciliation(
        num_manifest=len(wanted),
        num_rows=len(found),
        num_missing=len(missing),
        num_duplicates=len(found) - found["image_id"].n_unique(),
        num_unexpected=len(unexpected),
        missing=tuple(missing.head(MAX_NAMED_IDS)),
        unexpected=tuple(unexpected.head(MAX_NAMED_IDS)),
    )


def _parts(plan: Plan) -> list[Any]:
    folder = lake.join(plan.out, "parts")
    return list(lake.list_files(folder)) if lake.exists(folder) else []
