"""The bulk audit on Ray: every image of a lake judged once, resumable, with the proof that none is missing.

    manifest -> shards still missing -> Ray Data over fused actors -> one part a shard -> reconcile -> report

An actor reads and decodes ahead on its own threads while the nets judge; only shard numbers and counts travel through
Ray. A bad image is a row. What makes the result right is in `ledger`, not in Ray.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from numpy.typing import NDArray
from ray.data.exceptions import ExecutionTimeoutError

from sbdzsl import bundle as bundles
from sbdzsl import lake
from sbdzsl.bundle import Bundle
from sbdzsl.cluster import ledger
from sbdzsl.cluster.ledger import ImageRef, Plan, Reconciliation
from sbdzsl.cluster.session import require_placeable, session, total_cpus
from sbdzsl.config import AuditSettings, Promise, ThresholdRule
from sbdzsl.errors import AuditError, ConfigError
from sbdzsl.inspector import Inspector, Loaded, load_image
from sbdzsl.report.gallery import make_viewer
from sbdzsl.report.html import write_report
from sbdzsl.report.summary import AuditFacts, Summary
from sbdzsl.runtime import Runtime

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What an audit came to. `num_judged` counts this run alone: 0 where the audit was finished before."""

    plan: Plan
    reconciliation: Reconciliation
    summary: Summary
    num_judged: int
    report_uri: str


def run_audit(
    bundle_url: str,
    out: str,
    lake_url: str | None = None,
    manifest_uri: str | None = None,
    settings: AuditSettings | None = None,
    policy: ThresholdRule | None = None,
    address: str | None = None,
    report: Report = print,
    runtime: Runtime = "torch",
    promise: Promise | None = None,
) -> AuditResult:
    """Judge every image of a lake (or of a manifest) and write parts, manifest and report below `out`.

    Run again with the same arguments it resumes; once finished it does nothing. Raises `AuditError`: "other-audit" if
    `out` holds another audit, "no-resources" if no node can hold an actor, "incomplete" if rows do not reconcile.
    """
    settings = settings or AuditSettings()
    started = datetime.now(timezone.utc)
    bundle_url, out = lake.absolute_url(bundle_url), lake.absolute_url(out)
    bundle = bundles.load(bundle_url, promise=promise)
    if runtime != "torch" and settings.gpus_per_actor:
        raise ConfigError("bad-config", f"runtime {runtime} runs on the CPU; set gpus_per_actor to 0")
    # Made first: what cannot be run here is said before any work, and the gallery needs it in the end.
    inspector = Inspector(bundle, policy, max_memory_mb=settings.max_memory_mb, runtime=runtime)
    plan = _plan(bundle, out, lake_url, manifest_uri, settings, policy, runtime, started, report)
    resumed = ledger.done_shards(plan)
    missing = [shard for shard in range(plan.num_shards) if shard not in resumed]
    if resumed and missing:
        report(f"resuming: {len(resumed)} of {plan.num_shards} shards are done already")
    clock = time.perf_counter()
    num_judged, actors = (
        _judge(plan, bundle_url, missing, settings, policy, runtime, address, report) if missing else (0, 0)
    )
    seconds = time.perf_counter() - clock
    proof = ledger.reconcile(plan)
    if not proof.is_complete:
        raise AuditError(
            "incomplete",
            f"{out} does not reconcile: {proof.num_missing} images of {proof.num_manifest} have no row "
            f"{list(proof.missing)}, {proof.num_duplicates} rows are doubled, {proof.num_unexpected} are of no image "
            f"of the manifest {list(proof.unexpected)}. Run the same command again; what is done is kept",
        )
    facts = AuditFacts(
        lake=plan.source,
        out=out,
        bundle=bundle.digest,
        bundle_name=bundle_url,
        started_at=started,
        finished_at=datetime.now(timezone.utc),
        num_manifest=proof.num_manifest,
        num_rows=proof.num_rows,
        missing=proof.missing,
        num_missing=proof.num_missing,
        num_duplicates=proof.num_duplicates,
        num_shards=plan.num_shards,
        num_shards_resumed=len(resumed),
        images_per_second=num_judged / seconds if num_judged else None,
        actors=actors,
        run=1,
        num_judged=num_judged,
        num_unexpected=proof.num_unexpected,
        unseen_budget=bundle.settings.router.false_alarm_rate,
        promise=plan.promise,
        defect_budget=_defect_budget(bundle, policy),
    )
    summary = write_report(ledger.verdict_rows(plan), facts, out, make_viewer(inspector), settings.gallery_size)
    return AuditResult(plan, proof, summary, num_judged, lake.join(out, "report.html"))


def _defect_budget(bundle: Bundle, policy: ThresholdRule | None) -> float | None:
    """The false-alarm rate that the rule in force promises; None for a policy that promises none."""
    rule = policy or bundle.settings.detector.threshold_policy
    if rule.policy != "false-alarm-rate":
        return None
    return rule.false_alarm_rate or bundle.settings.detector.false_alarm_rate


class ShardJudge:
    """The fused actor stage of Ray Data: one shard a call, from image URIs to a part file.

    `load_inspector` is called once, on the actor; a test passes a fake.
    """

    def __init__(self, plan: Plan, load_inspector: Callable[[], Inspector], readers: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._plan = plan
        self._inspector = load_inspector()
        self._readers = readers

    def __call__(self, batch: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
        """Judge the shards of a batch; returns how many images each had."""
        counts = [self._judge(int(shard)) for shard in batch["shard"]]
        return {"shard": np.asarray(batch["shard"]), "num_images": np.array(counts, dtype=np.int64)}

    def _judge(self, shard: int) -> int:
        images = ledger.shard_images(self._plan, shard)
        settings = self._inspector.bundle.settings.image

        def load(ref: ImageRef) -> Loaded:
            return load_image(ref.image_id, ref.uri, settings, ref.bit_depth)

        with ThreadPoolExecutor(self._readers) as pool:
            verdicts = [self._inspector.decide(loaded) for loaded in _ahead(pool, load, images, 2 * self._readers)]
        ledger.write_part(self._plan, shard, verdicts)
        return len(verdicts)


def _ahead(
    pool: ThreadPoolExecutor, load: Callable[[ImageRef], Loaded], images: Iterable[ImageRef], depth: int
) -> Iterator[Loaded]:
    """Loaded images in order, at most `depth` of them in memory: decoded images are twenty times their files."""
    waiting: deque[Future[Loaded]] = deque()
    for ref in images:
        waiting.append(pool.submit(load, ref))
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _plan(
    bundle: Bundle,
    out: str,
    lake_url: str | None,
    manifest_uri: str | None,
    settings: AuditSettings,
    policy: ThresholdRule | None,
    runtime: Runtime,
    started: datetime,
    report: Report,
) -> Plan:
    """The audit's plan: the one in `out` where there is one, since the lake may have grown since; else a new one."""
    if (lake_url is None) == (manifest_uri is None):
        raise ConfigError("bad-config", "give an audit either --lake or --manifest")
    source = lake.absolute_url(lake_url or manifest_uri or "")
    asked = None if policy is None else str(policy)
    plan = ledger.find_plan(out)
    if plan is not None:
        ledger.require_same(plan, source, bundle.digest, asked, runtime, bundle.router.promise)
        return plan
    manifest = lake.list_images(source) if lake_url else lake.read_manifest(source)
    report(f"{manifest.num_rows:,} images in {source}")
    now = started.isoformat(timespec="seconds")
    return ledger.make_plan(
        out, source, bundle.digest, asked, manifest, settings.shard_size, now, runtime, bundle.router.promise
    )


def _judge(
    plan: Plan,
    bundle_url: str,
    shards: list[int],
    settings: AuditSettings,
    policy: ThresholdRule | None,
    runtime: Runtime,
    address: str | None,
    report: Report,
) -> tuple[int, int]:
    """Judge the given shards on Ray; returns how many images that were, and by how many actors."""

    def load_inspector() -> Inspector:
        device = _device(settings)
        return Inspector(
            bundles.load(bundle_url, device, plan.promise), policy, device, settings.max_memory_mb, runtime
        )

    with session(address):
        resources = {"CPU": settings.cpus_per_actor, "GPU": settings.gpus_per_actor}
        require_placeable({key: amount for key, amount in resources.items() if amount}, "an audit actor")
        actors = settings.actors or max(1, int(total_cpus() // settings.cpus_per_actor))
        actors = min(actors, len(shards))
        report(f"judging {len(shards)} shards of up to {plan.shard_size} images by {actors} actors")
        dataset = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        dataset.context.enable_progress_bars = False
        dataset.context.execution_no_progress_timeout_s = settings.stall_timeout_s
        done = dataset.map_batches(
            ShardJudge,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=settings.cpus_per_actor,
            num_gpus=settings.gpus_per_actor,
            fn_constructor_kwargs={
                "plan": plan,
                "load_inspector": load_inspector,
                "readers": settings.readers_per_actor,
                "threads": max(1, int(settings.cpus_per_actor)),
            },
        )
        try:
            return _watch(done.iter_rows(), len(shards), report), actors
        except ExecutionTimeoutError as error:
            raise AuditError(
                "stalled",
                f"no shard was finished for {settings.stall_timeout_s:.0f} s: {error}. Finished shards are kept; "
                "run the same command again to go on",
            ) from error


def _watch(rows: Iterable[Mapping[str, Any]], num_shards: int, report: Report) -> int:
    """Count finished shards and say how far the audit is, at most every two seconds."""
    started, last, num_images = time.perf_counter(), 0.0, 0
    for finished, row in enumerate(rows, start=1):
        num_images += int(row["num_images"])
        elapsed = time.perf_counter() - started
        if elapsed - last >= 2 or finished == num_shards:
            last = elapsed
            left = elapsed / finished * (num_shards - finished)
            speed = num_images / elapsed
            report(f"{finished}/{num_shards} shards, {num_images:,} images, {speed:.0f}/s, {left:.0f} s left")
    return num_images


def _device(settings: AuditSettings) -> str:
    return "cuda" if settings.gpus_per_actor else "cpu"
