"""The audit's ledger: what its output folder says has been done. No Ray in here.

    parts/0001-000000.parquet            the verdicts of shard 0 of run 1, written once; all parts are one data set
    runs/0001/started/000000/*.json      who began shard 0, and when: one small file an attempt

A shard is done when its part exists. So every image has exactly one row by construction, whoever died and whoever woke
up late; `reconcile` proves it from the files, a shard at a time.
"""

from __future__ import annotations

import json
import os
import re
import socket
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from sbdzsl import lake
from sbdzsl.cluster.plan import Plan, find_plans, part_name
from sbdzsl.errors import LakeError
from sbdzsl.verdict import VERDICT_SCHEMA, Verdict, to_parquet

#: Of the ids that do not reconcile, so many are named.
MAX_NAMED_IDS = 20
_READERS = 8


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image to judge."""

    image_id: str
    uri: str
    size_bytes: int | None
    modified_at: datetime | None
    bit_depth: int | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start at a shard: for which start of the audit, by which process of which host, and when."""

    shard: int
    session: str
    host: str
    pid: int
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The images of all runs against rows. `missing` and `unexpected` name at most `MAX_NAMED_IDS` ids.

    `strays` are files among the parts that belong to no shard: whoever reads the folder would count their rows.
    """

    num_manifest: int
    num_rows: int
    num_missing: int
    num_duplicates: int
    num_unexpected: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Every image of the manifest has exactly one row, and there is no other row."""
        return self.num_missing == self.num_duplicates == self.num_unexpected == len(self.strays) == 0


def shard_images(plan: Plan, shard: int) -> list[ImageRef]:
    """The images of one shard."""
    columns = ["image_id", "uri", "size_bytes", "modified_at", "bit_depth"]
    table = _read(plan.shard_uri(shard), columns)
    return [ImageRef(**row) for row in table.to_pylist()]


def _read(uri: str, columns: Sequence[str]) -> pa.Table:
    # Arrow's own threads gain nothing on a shard, and one that lets go of these bytes while Python ends aborts it.
    return pq.ParquetFile(pa.BufferReader(lake.read_bytes(uri))).read(list(columns), use_threads=False)


def done_shards(plan: Plan) -> frozenset[int]:
    """Shards of a run whose part exists, by one listing."""
    shards = (re.fullmatch(rf"{plan.run:04d}-(\d+)\.parquet", name) for name in _part_names(plan.out))
    return frozenset(int(match[1]) for match in shards if match)


def missing_shards(plan: Plan) -> list[int]:
    """Shards that are still to be judged, in order."""
    done = done_shards(plan)
    return [shard for shard in range(plan.num_shards) if shard not in done]


def _part_names(out: str) -> list[str]:
    folder = lake.join(out, "parts")
    if not lake.exists(folder):
        return []
    names = (file.uri.rsplit("/", 1)[-1] for file in lake.list_files(folder))
    return [name for name in names if name.endswith(".parquet") and not name.startswith(".")]


def is_done(plan: Plan, shard: int) -> bool:
    """Whether the part of a shard exists."""
    return lake.exists(plan.part_uri(shard))


def note_attempt(plan: Plan, shard: int, session: str) -> None:
    """Write down that this process begins a shard, for the start of the audit that `session` names."""
    now = datetime.now(timezone.utc)
    attempt = Attempt(shard, session, socket.gethostname(), os.getpid(), now)
    text = json.dumps(asdict(attempt) | {"started_at": now.isoformat()})
    lake.write_bytes(lake.join(_attempts_folder(plan, shard), f"{uuid.uuid4().hex[:12]}.json"), text.encode())


def attempts(plan: Plan, shard: int | None = None) -> list[Attempt]:
    """All starts at one shard, or at all of them, the oldest first."""
    folder = _attempts_folder(plan, shard)
    if not lake.exists(folder):
        return []
    values = [json.loads(lake.read_bytes(file.uri)) for file in lake.list_files(folder)]
    found = [Attempt(**one | {"started_at": datetime.fromisoformat(one["started_at"])}) for one in values]
    return sorted(found, key=lambda attempt: attempt.started_at)


def _attempts_folder(plan: Plan, shard: int | None) -> str:
    folder = lake.join(plan.folder, "started")
    return folder if shard is None else lake.join(folder, f"{shard:06d}")


def write_part(plan: Plan, shard: int, verdicts: list[Verdict]) -> bool:
    """Write the verdicts of a shard. False if its part was there already, which then stays as it is."""
    return lake.write_once(plan.part_uri(shard), to_parquet(verdicts))


def parts(plans: Sequence[Plan]) -> pyarrow.dataset.Dataset:
    """The parts of some runs as one Arrow data set."""
    uris = [plan.part_uri(shard) for plan in plans for shard in sorted(done_shards(plan))]
    filesystem, _ = lake.filesystem(plans[0].out)
    paths = [lake.filesystem(uri)[1] for uri in uris]
    return pyarrow.dataset.dataset(paths, VERDICT_SCHEMA, format="parquet", filesystem=filesystem)


def verdict_rows(plans: Sequence[Plan]) -> pl.LazyFrame:
    """All verdict rows of some runs, lazily. Memory stays flat where the store is one that polars streams from."""
    uris = [plan.part_uri(shard) for plan in plans for shard in sorted(done_shards(plan))]
    if uris and ("://" not in uris[0] or uris[0].startswith("s3://")):
        return pl.scan_parquet(uris, storage_options=lake.storage_options(uris[0]), glob=False)
    return pl.scan_pyarrow_dataset(parts(plans))


def audit_rows(out: str) -> pl.LazyFrame:
    """All verdict rows of the audit in `out`, lazily. Raises `LakeError` "not-found" where there is no audit."""
    return verdict_rows(_plans_of(out))


def _plans_of(out: str) -> tuple[Plan, ...]:
    plans = find_plans(out)
    if not plans:
        raise LakeError("not-found", f"no audit at {out}: expected a folder that `sbdzsl audit` wrote")
    return plans


def judged_ids(plans: Sequence[Plan]) -> pl.DataFrame:
    """Ids of all images that these runs have taken, in one column `image_id`: some 60 bytes each in memory."""
    uris = [plan.shard_uri(shard) for plan in plans for shard in range(plan.num_shards)]
    with ThreadPoolExecutor(_READERS) as pool:
        ids = pool.map(lambda uri: pl.Series("image_id", _read(uri, ["image_id"])["image_id"]), uris)
        return pl.concat([pl.Series("image_id", dtype=pl.String), *ids]).to_frame()


def unseen_images(out: str) -> pa.Table:
    """Manifest of the images that the audit in `out` has called unseen so far, read one shard at a time.

    Raises `LakeError` "not-found" where there is no audit.
    """
    plans = _plans_of(out)
    unseen = verdict_rows(plans).filter(pl.col("verdict") == "unseen").select("image_id").collect()
    ids = pa.array(unseen["image_id"].to_list(), pa.string())
    shards = (lake.read_manifest(plan.shard_uri(shard)) for plan in plans for shard in range(plan.num_shards))
    found = [shard.filter(pa.compute.is_in(shard["image_id"], value_set=ids)) for shard in shards]
    return pa.concat_tables([lake.MANIFEST_SCHEMA.empty_table(), *found])


def reconcile(plans: Sequence[Plan]) -> Reconciliation:
    """Compare the images of runs with the rows of their parts, shard by shard.

    That is enough for the whole: an id stands in one shard of one run only, which was made sure of when they were
    planned, and a part is read by whoever reads the data set only if it is that of a shard.
    """
    done = {plan.run: done_shards(plan) for plan in plans}
    shards = [(plan, shard) for plan in plans for shard in range(plan.num_shards)]
    names = {part_name(plan.run, shard) for plan, shard in shards}
    with ThreadPoolExecutor(_READERS) as pool:
        compared = pool.map(lambda pair: _compare(pair[0], pair[1], pair[1] in done[pair[0].run]), shards)
        return _sum(compared, sorted(set(_part_names(plans[0].out)) - names) if plans else [])


def _compare(plan: Plan, shard: int, is_there: bool) -> Reconciliation:
    wanted = _read(plan.shard_uri(shard), ["image_id"])["image_id"].to_pylist()
    found = _read(plan.part_uri(shard), ["image_id"])["image_id"].to_pylist() if is_there else []
    if wanted == found:
        return Reconciliation(len(wanted), len(found), 0, 0, 0)
    asked, counts = set(wanted), Counter(found)
    missing = [identity for identity in wanted if identity not in counts]
    unexpected = [identity for identity in counts if identity not in asked]
    duplicates = len(found) - len(counts)
    return Reconciliation(
        len(wanted), len(found), len(missing), duplicates, len(unexpected), tuple(missing), tuple(unexpected)
    )


def _sum(compared: Iterable[Reconciliation], strays: list[str]) -> Reconciliation:
    totals: Counter[str] = Counter()
    missing: list[str] = []
    unexpected: list[str] = []
    for one in compared:
        for name in ("num_manifest", "num_rows", "num_missing", "num_duplicates", "num_unexpected"):
            totals[name] += getattr(one, name)
        missing += one.missing[: MAX_NAMED_IDS - len(missing)]
        unexpected += one.unexpected[: MAX_NAMED_IDS - len(unexpected)]
    counts: dict[str, Any] = {name: totals[name] for name in ("num_manifest", "num_rows", "num_missing")}
    return Reconciliation(
        **counts,
        num_duplicates=totals["num_duplicates"],
        num_unexpected=totals["num_unexpected"],
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        strays=tuple(strays[:MAX_NAMED_IDS]),
    )
