"""The bulk audit on Ray: every image of a lake judged once, resumable, with the proof that none is missing.

    lake -> plan: numbered shards -> Ray Data over those still missing -> one part a shard -> reconcile -> report

Only shard numbers and counts travel through Ray. What makes the result right is in `plan` and `ledger`, not in Ray.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.exceptions import ExecutionTimeoutError

from sbdzsl import lake
from sbdzsl.cluster import ledger
from sbdzsl.cluster.judge import InspectorLoader, ShardJudge
from sbdzsl.cluster.ledger import Reconciliation
from sbdzsl.cluster.plan import (
    Plan,
    find_plans,
    make_plan,
    pin_identity,
    require_same_selection,
    run_folder,
)
from sbdzsl.cluster.progress import Progress
from sbdzsl.cluster.reading import num_readers
from sbdzsl.cluster.request import Audit, AuditRequest, prepare
from sbdzsl.cluster.selection import Selection
from sbdzsl.cluster.session import Crew, crew, session
from sbdzsl.errors import AuditError, SbdzslError
from sbdzsl.lake import listing
from sbdzsl.lake.delta import append_run
from sbdzsl.report.gallery import make_viewer
from sbdzsl.report.html import write_report
from sbdzsl.report.summary import AuditFacts, Summary

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What an audit came to. `num_judged` counts this start alone: 0 where the audit was finished before."""

    plans: tuple[Plan, ...]
    reconciliation: Reconciliation
    summary: Summary
    num_judged: int
    report_uri: str


def run_audit(request: AuditRequest, address: str | None = None, report: Report = print) -> AuditResult:
    """Judge every image of a lake (or of a manifest) and write parts, plan and report below `request.out`.

    Run again with the same request it resumes; once finished it does nothing, or with `only_new` lists again and
    judges the images that no run has judged. An audit that ends early writes its report as well, and then raises
    `StoppedError` ("too-many-errors", "out-of-time"), `AuditError` ("stalled", "crashing", "incomplete") or what its
    store raised. Before any work it raises `AuditError` "other-audit" if `out` holds another audit, "no-resources" if
    no node can hold an actor, and whatever makes bundle, lake or settings unusable.
    """
    started_at = datetime.now(timezone.utc)
    audit = prepare(request)
    lake.probe_write_once(audit.out)
    pin_identity(audit.out, audit.identity)
    progress = Progress(audit.settings, started_at, report)
    with ExitStack() as connection:
        for plan in _runs(audit, started_at, report):
            missing = ledger.missing_shards(plan)
            if missing and progress.stopped is None:
                if progress.num_actors == 0:
                    connection.enter_context(session(address))
                _judge(audit, plan, missing, progress, report)
    result = _conclude(audit, progress)
    if request.delta_url is not None:
        _commit(result.plans, request.delta_url, report)
    return result


def _runs(audit: Audit, started_at: datetime, report: Report) -> Iterator[Plan]:
    """The runs to work on: the last one, finished or not, and with `only_new` one over what came since.

    The lake is listed only where a new run is planned: it may have grown, and a run keeps to its images.
    """
    selection = Selection.of(audit.settings)
    plans = find_plans(audit.out)
    if plans:
        if not audit.request.only_new:
            require_same_selection(plans[-1], selection)
        done = plans[-1].num_shards - len(ledger.missing_shards(plans[-1]))
        if 0 < done < plans[-1].num_shards:
            report(f"resuming: {done} of {plans[-1].num_shards} shards are done already")
        yield plans[-1]
        if not audit.request.only_new:
            return
    run = len(plans) + 1
    folder = _listed(audit, run, report)
    judged = ledger.judged_ids(plans)

    def pages() -> Iterable[pa.Table]:
        return selection.apply(lake.manifest_pages(folder), judged)

    now = started_at.isoformat(timespec="seconds")
    plan = make_plan(audit.out, audit.identity, run, pages, selection, audit.settings.shard_size, now)
    if plan is None:
        report("nothing new: an earlier run has judged every image")
        return
    chosen = "".join(f", {word}" for word in selection.words)
    report(f"run {run}: {plan.num_images:,} images{chosen}, in {plan.num_shards} shards")
    yield plan


def _listed(audit: Audit, run: int, report: Report) -> str:
    """Where the pages of the source's manifest are; a lake is listed first, or the rest of it."""
    if audit.request.lake_url is None:
        return audit.identity.source
    found = listing.list_lake(
        audit.identity.source,
        lake.join(run_folder(audit.out, run), "listing"),
        include=audit.settings.include,
        exclude=audit.settings.exclude,
        report=report,
    )
    return found.folder


def _judge(audit: Audit, plan: Plan, shards: Sequence[int], progress: Progress, report: Report) -> None:
    """Judge shards on Ray. An error that comes up on the way is left in `progress`."""
    found = crew(audit.settings, audit.request.runtime, len(shards))
    if found.waits:
        report("waiting: other work has all CPUs or GPUs of the cluster at the moment")
    report(f"judging {len(shards)} shards by {found.num_actors} actors of {found.cpus:g} CPU, on {found.device}")
    progress.begin(len(shards), found.num_actors)
    name = uuid.uuid4().hex[:12]
    try:
        with closing(_judged(audit, plan, shards, found, name, progress.stop_at)) as rows:
            for row in rows:
                progress.add(row)
        progress.end()
    except ExecutionTimeoutError as error:
        progress.stopped = _stalled(audit, plan, name, error)
    except SbdzslError as error:
        progress.stopped = error


def _judged(
    audit: Audit, plan: Plan, shards: Sequence[int], found: Crew, name: str, stop_at: float | None
) -> Generator[dict[str, Any], None, None]:
    """What the actors say of each shard, as it is done."""
    settings = audit.settings
    dataset = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    dataset.context.enable_progress_bars = False
    dataset.context.execution_no_progress_timeout_s = settings.stall_timeout_s
    judged = dataset.map_batches(
        ShardJudge,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            size=found.num_actors, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
        ),
        num_cpus=found.cpus,
        num_gpus=found.gpus,
        fn_constructor_kwargs={
            "plan": plan,
            "load_inspector": InspectorLoader(audit.request),
            "readers": num_readers(settings, plan.identity.source),
            "threads": found.threads,
            "read_timeout_s": settings.read_timeout_s,
            "device": found.device,
            "stop_at": stop_at,
            "session": name,
        },
    )
    yield from judged.iter_rows()


def _stalled(audit: Audit, plan: Plan, name: str, error: Exception) -> AuditError:
    """What to tell where no shard is finished any more: which were begun, by whom and when."""
    missing = set(ledger.missing_shards(plan))
    stuck = {one.shard: one for one in ledger.attempts(plan) if one.session == name and one.shard in missing}
    places = "; ".join(
        f"shard {one.shard} by process {one.pid} on {one.host} since {one.started_at:%H:%M:%S} UTC "
        f"(its images: {plan.shard_uri(one.shard)})"
        for one in list(stuck.values())[:5]
    )
    what = f"stuck: {places}" if stuck else f"none was begun: {error}"
    return AuditError(
        "stalled",
        f"no shard was finished for {audit.settings.stall_timeout_s:g} s; {what}. Finished shards are kept; "
        "run the same command again to go on",
    )


def _conclude(audit: Audit, progress: Progress) -> AuditResult:
    """Prove that nothing is missing, report on all runs (and on the last of several), raise what stopped it."""
    plans = find_plans(audit.out)
    proof = ledger.reconcile(plans)
    if progress.stopped is None and not proof.is_complete:
        progress.stopped = _incomplete(audit.out, proof)
    summary = _write_report(audit, plans, proof, progress, audit.out)
    if len(plans) > 1:
        last = plans[-1:]
        _write_report(audit, last, ledger.reconcile(last), progress, last[0].folder)
    if progress.stopped is not None:
        raise progress.stopped
    return AuditResult(plans, proof, summary, progress.num_images, lake.join(audit.out, "report.html"))


def _commit(plans: Sequence[Plan], table_url: str, report: Report) -> None:
    """Append each run to a Delta table that has not got it yet."""
    for plan in plans:
        if append_run(ledger.parts([plan]), table_url, f"sbdzsl-audit-{plans[0].manifest}", plan.run):
            report(f"run {plan.run}: committed to {table_url}")


def _incomplete(out: str, proof: Reconciliation) -> AuditError:
    strays = f", {list(proof.strays)} lie among the parts and are none: move them away" if proof.strays else ""
    return AuditError(
        "incomplete",
        f"{out} does not reconcile: {proof.num_missing} images of {proof.num_manifest} have no row "
        f"{list(proof.missing)}, {proof.num_duplicates} rows are doubled, {proof.num_unexpected} are of no image of "
        f"the manifest {list(proof.unexpected)}{strays}. Run the same command again; what is done is kept",
    )


def _write_report(
    audit: Audit, plans: Sequence[Plan], proof: Reconciliation, progress: Progress, folder: str
) -> Summary:
    stopped, bundle = progress.stopped, audit.inspector.bundle
    facts = AuditFacts(
        lake=audit.identity.source,
        out=folder,
        bundle=bundle.digest,
        bundle_name=lake.absolute_url(audit.request.bundle_url),
        started_at=progress.started_at,
        finished_at=datetime.now(timezone.utc),
        run=plans[-1].run,
        selection=plans[-1].selection.words,
        num_manifest=proof.num_manifest,
        num_rows=proof.num_rows,
        missing=proof.missing,
        num_missing=proof.num_missing,
        num_duplicates=proof.num_duplicates,
        num_unexpected=proof.num_unexpected,
        num_shards=sum(plan.num_shards for plan in plans),
        num_shards_resumed=sum(len(ledger.done_shards(plan)) for plan in plans) - progress.num_shards,
        num_judged=progress.num_images,
        stopped=None if stopped is None else stopped.code,
        stop_detail=None if stopped is None else stopped.message,
        exit_code=0 if stopped is None else stopped.exit_code,
        images_per_second=progress.images_per_second,
        actors=progress.num_actors,
        unseen_budget=bundle.settings.router.false_alarm_rate,
        promise=audit.identity.promise,
        defect_budget=audit.defect_budget,
    )
    viewer = make_viewer(audit.inspector)
    return write_report(ledger.verdict_rows(plans), facts, folder, viewer, audit.settings.gallery_size)
