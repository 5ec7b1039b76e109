"""What an audit is going to do, pinned in its output folder before the first image is judged. No Ray in here.

    audit.json                       whose verdicts the folder holds: source, bundle, policies, runtime, promise
    runs/0001/plan.json              one run over images that no earlier run has judged, written once
    runs/0001/manifest-*/*.parquet   its images, one file a shard

The first start decides: every later one, also one at the same moment, goes on with what it finds.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from sbdzsl import lake
from sbdzsl.cluster.selection import Selection
from sbdzsl.config import Promise
from sbdzsl.errors import AuditError, DataError

AUDIT = "audit.json"
PLAN_VERSION = 2
#: An actor judges about 30 images a second and core: a full shard is half a minute of work, the most a kill can lose.
MAX_SHARD_SIZE = 1024
#: Large images take longer each: a shard ends with the file that brings it to so many bytes.
MAX_SHARD_BYTES = 256 * 2**20
#: Small archives are cut this fine, so that all actors have work and progress is seen.
MIN_SHARDS = 32
MIN_SHARD_SIZE = 8

_WRITERS = 8

Pages = Callable[[], Iterable[pa.Table]]


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose verdicts an output folder holds. Rows under another bundle, policy, runtime or promise go elsewhere.

    `source` is the absolute URL of the lake or the manifest; policies are the words of rules, None: the bundle's own.
    """

    source: str
    bundle_digest: str
    policy: str | None = None
    surface_policies: dict[str, str] = field(default_factory=dict)
    runtime: str = "torch"
    promise: Promise = "plain"


@dataclass(frozen=True, slots=True)
class Plan:
    """One run of an audit. `out` and `identity.source` are absolute; `digest` is of the images, in their order."""

    out: str
    identity: Identity
    run: int
    manifest: str
    digest: str
    num_images: int
    num_shards: int
    selection: Selection
    created_at: str

    @property
    def folder(self) -> str:
        """What belongs to this run alone."""
        return run_folder(self.out, self.run)

    def shard_uri(self, shard: int) -> str:
        """The images of a shard, as a manifest."""
        return lake.join(self.folder, self.manifest, f"shard-{shard:06d}.parquet")

    def part_uri(self, shard: int) -> str:
        """Where the verdicts of a shard go. The name depends on run and shard alone."""
        return lake.join(self.out, "parts", part_name(self.run, shard))


def run_folder(out: str, run: int) -> str:
    """The folder of a run, counted from 1."""
    return lake.join(out, "runs", f"{run:04d}")


def part_name(run: int, shard: int) -> str:
    """File name of the verdicts of one shard."""
    return f"{run:04d}-{shard:06d}.parquet"


def pin_identity(out: str, identity: Identity) -> None:
    """Claim `out` for an audit, or make sure that it is this audit's. Raises `AuditError` "other-audit"."""
    uri = lake.join(out, AUDIT)
    if not lake.exists(uri):
        lake.write_once(uri, json.dumps({"version": PLAN_VERSION} | asdict(identity), indent=2).encode())
    # Read back whoever was first, so that of two starts at once the second is checked as well.
    found = read_identity(out)
    names = [name.name for name in fields(Identity)]
    differs = [
        f"{name}: {getattr(found, name)} there, {getattr(identity, name)} asked for"
        for name in names
        if getattr(found, name) != getattr(identity, name)
    ]
    if differs:
        raise AuditError("other-audit", f"{out} holds another audit ({'; '.join(differs)}); choose another --out")


def read_identity(out: str) -> Identity:
    """Whose verdicts `out` holds. Raises `AuditError` "other-audit" where that cannot be read, `LakeError`."""
    return Identity(**_read_json(lake.join(out, AUDIT)))


def find_plans(out: str) -> tuple[Plan, ...]:
    """The runs of the audit in `out`, in order; none where it has not begun."""
    plans: list[Plan] = []
    identity: Identity | None = None
    while lake.exists(uri := lake.join(run_folder(out, len(plans) + 1), "plan.json")):
        identity = identity or read_identity(out)
        values = _read_json(uri)
        selection = values.pop("selection")
        for name in ("include", "exclude"):
            selection[name] = tuple(selection[name])
        plans.append(Plan(out=out, identity=identity, selection=Selection(**selection), **values))
    return tuple(plans)


def _read_json(uri: str) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(lake.read_bytes(uri))
        version = values.pop("version")
        if version != PLAN_VERSION:
            raise AuditError("other-audit", f"{uri} is of version {version}, this sbdzsl writes {PLAN_VERSION}")
        return values
    except (ValueError, KeyError, AttributeError) as error:
        raise AuditError("other-audit", f"{uri} is no audit plan ({error!r}); choose another --out") from None


def require_same_selection(plan: Plan, selection: Selection) -> None:
    """Raise `AuditError` "other-audit" unless the run took the same images as are asked for now."""
    if plan.selection != selection:
        there, asked = (", ".join(found.words) or "all images" for found in (plan.selection, selection))
        raise AuditError(
            "other-audit",
            f"run {plan.run} in {plan.out} takes {there}; asked for: {asked}. Repeat the first command to go on, "
            "add --only-new to judge what no run has judged, or choose another --out",
        )


def make_plan(
    out: str, identity: Identity, run: int, pages: Pages, selection: Selection, shard_size: int | None, now: str
) -> Plan | None:
    """Pin a run over the images of `pages`, which are read twice; None where a later run finds none.

    If another start was first, its plan is taken. Raises `DataError` bad-manifest where an `image_id` stands twice.
    """
    hashes = [pl.Series(page["image_id"].to_pylist(), dtype=pl.String).hash().to_numpy() for page in pages()]
    num_images = sum(map(len, hashes))
    if run > 1 and num_images == 0:
        return None
    _require_unique(hashes, pages, identity.source)
    manifest = f"manifest-{uuid.uuid4().hex[:12]}"
    folder = lake.join(run_folder(out, run), manifest)
    digests = _write_shards(cut(pages(), shard_size or choose_shard_size(num_images)), folder)
    plan = {
        "run": run,
        "manifest": manifest,
        "digest": hashlib.sha256("".join(digests).encode()).hexdigest(),
        "num_images": num_images,
        "num_shards": len(digests),
        "selection": asdict(selection),
        "created_at": now,
    }
    text = json.dumps({"version": PLAN_VERSION} | plan, indent=2)
    if not lake.write_once(lake.join(run_folder(out, run), "plan.json"), text.encode()):
        for file in lake.list_files(folder) if digests else ():
            lake.remove(file.uri)
    return find_plans(out)[run - 1]


def choose_shard_size(num_images: int) -> int:
    """Images a shard: at least `MIN_SHARDS` shards where the archive is large enough, none above `MAX_SHARD_SIZE`."""
    return max(MIN_SHARD_SIZE, min(MAX_SHARD_SIZE, math.ceil(num_images / MIN_SHARDS)))


def cut(pages: Iterable[pa.Table], shard_size: int) -> Iterator[pa.Table]:
    """The rows of `pages`, in order, in tables of `shard_size` rows, less where they reach `MAX_SHARD_BYTES`."""
    waiting = lake.MANIFEST_SCHEMA.empty_table()
    for page in pages:
        waiting = pa.concat_tables([waiting, page])
        while waiting.num_rows >= shard_size or _num_bytes(waiting) >= MAX_SHARD_BYTES:
            shard, waiting = _first(waiting, shard_size)
            yield shard
    if waiting.num_rows:
        yield waiting


def _num_bytes(table: pa.Table) -> int:
    return int(pa.compute.sum(table["size_bytes"], min_count=0).as_py())


def _first(table: pa.Table, shard_size: int) -> tuple[pa.Table, pa.Table]:
    """The first shard of a table, and the rest of it."""
    head = table.slice(0, shard_size)
    ends = np.cumsum(head["size_bytes"].fill_null(0).to_numpy())
    rows = min(head.num_rows, int(np.searchsorted(ends, MAX_SHARD_BYTES)) + 1)
    return table.slice(0, rows), table.slice(rows)


def _write_shards(shards: Iterable[pa.Table], folder: str) -> list[str]:
    """Write shards by several threads, a few ahead; returns their digests in order."""
    digests: list[str] = []
    with ThreadPoolExecutor(_WRITERS) as pool:
        writing: list[Any] = []
        for number, shard in enumerate(shards):
            digests.append(lake.manifest_digest(shard))
            writing.append(pool.submit(lake.write_manifest, shard, lake.join(folder, f"shard-{number:06d}.parquet")))
            if len(writing) == 4 * _WRITERS:
                writing.pop(0).result()
        for written in writing:
            written.result()
    return digests


def _require_unique(hashes: list[Any], pages: Pages, source: str) -> None:
    """Raise `DataError` bad-manifest if an id stands twice. Only ids whose 64-bit hash is repeated are looked at."""
    found, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]), return_counts=True)
    repeated = found[counts > 1]
    if not len(repeated):
        return
    ids: Counter[str] = Counter()
    for page in pages():
        column = pl.Series(page["image_id"].to_pylist(), dtype=pl.String)
        ids.update(column.filter(pl.Series(np.isin(column.hash().to_numpy(), repeated))).to_list())
    doubled = [identity for identity, count in ids.items() if count > 1]
    if doubled:
        raise DataError(
            "bad-manifest", f"{source}: {len(doubled)} image_id stand in several rows, such as {doubled[0]}"
        )
