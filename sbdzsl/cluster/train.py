"""Training spread over a cluster: one group of workers on Ray Train goes down a queue, a surface a worker at a time.

    plan -> a worker group over the surfaces not trained yet -> what each brought, by way of the lake -> one bundle

A worker calls what the single process calls (`training.train_surface`), and the driver ends as that ends
(`training.conclude`): the bundle is the same. Only names and progress travel through Ray; features and nets go through
`out`/training, which is also what a killed training goes on from. The start of a group is paid once.
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.train
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sbdzsl import lake
from sbdzsl.bundle import Bundle
from sbdzsl.cluster.board import Board, News, Standing
from sbdzsl.cluster.session import Crew, has_room, session, training_crew
from sbdzsl.config import ClusterSettings, TrainSettings
from sbdzsl.errors import SbdzslError, StoppedError, TrainingError
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbdd.fit import Progress
from sbdzsl.surface_training import TrainedSurface
from sbdzsl.training import TrainingPlan, conclude, plan_training, train_surface

Report = Callable[[str], None]

#: Failed starts of the group, such as for lack of room: by default Ray goes on for ever.
MAX_FAILED_STARTS = 3

#: Once the time is up, workers stop after their epoch; so much later they are not waited for any more.
GRACE_S = 120.0

#: A group of which all nodes are lost would wait for ever for others.
MAX_WITHOUT_ROOM_S = 120.0

#: Deaths of processes, in all: where there are more, it is not the surfaces' fault.
MAX_RESTARTS = 30

_POLL_S = 0.5
_SECONDS_BETWEEN_LOOKS = 5.0


def train_on_cluster(
    manifest: pa.Table,
    out: str,
    settings: TrainSettings,
    cluster: ClusterSettings,
    seed: int = 0,
    unseen: Sequence[str] = (),
    allow_missing: bool = False,
    address: str | None = None,
    report: Report = print,
) -> Bundle:
    """As `training.train`, the surfaces side by side; `out` and all images must be readable on every node.

    The same call goes on where a killed one was: finished surfaces are not trained again, others from their last
    checkpoint. A surface that fails does not stop the others. Raises `TrainingError`: "surfaces-failed" where some
    failed (with `allow_missing` only where all did: else the bundle does without them), "workers-failed" where the
    group of workers could not be kept up; `StoppedError` "out-of-time"; `AuditError` "no-resources" where no node can
    hold one worker; and what `training.plan_training` raises, before any work.
    """
    stop_at = time.time() + 60 * cluster.max_minutes
    plan = plan_training(manifest, lake.absolute_url(out), settings, seed, unseen)
    trained = {surface: found for surface in plan.surfaces if (found := _kept(plan, surface, report)) is not None}
    # The large ones first: a large one begun last would keep the others waiting at the end.
    missing = sorted(set(plan.surfaces) - set(trained), key=lambda name: (-len(plan.samples[name]), name))
    failed: Mapping[str, str] = {}
    if trained:
        report(f"resuming: {len(trained)} of {len(plan.surfaces)} surfaces are trained already")
    if missing:
        with session(address):
            news = _train_missing(plan, missing, cluster, stop_at, report)
        failed = news.failed
        trained |= {surface: _require(plan, surface, report) for surface in news.trained}
    if failed and not (allow_missing and trained):
        raise _surfaces_failed(failed, len(trained))
    for surface, reason in failed.items():
        report(f"the bundle does without {surface}: {reason}")
    return conclude(plan, [trained[surface] for surface in plan.surfaces if surface in trained], report, failed)


def _kept(plan: TrainingPlan, surface: str, report: Report) -> TrainedSurface | None:
    return plan.trained_file(surface, report).load()


def _require(plan: TrainingPlan, surface: str, report: Report) -> TrainedSurface:
    """What a worker says it has kept. Raises `TrainingError` "workers-failed" where the driver does not find it."""
    found = _kept(plan, surface, report)
    if found is None:
        raise TrainingError(
            "workers-failed",
            f"a worker has trained {surface}, but nothing of it is below {plan.out}: give a --bundle that every node "
            "reads and writes, such as s3://bucket/bundle or a network folder",
        )
    return found


def _surfaces_failed(failed: Mapping[str, str], num_trained: int) -> TrainingError:
    reasons = "\n".join(f"  {surface}: {reason}" for surface, reason in failed.items())
    return TrainingError(
        "surfaces-failed",
        f"{len(failed)} of {len(failed) + num_trained} surfaces could not be trained, so there is no bundle:\n{reasons}"
        "\nWhat is trained is kept: mend them and run the same command again, leave them out by --unseen, or let the "
        "bundle do without them by --allow-missing",
    )


def _train_missing(
    plan: TrainingPlan, surfaces: Sequence[str], cluster: ClusterSettings, stop_at: float, report: Report
) -> News:
    """Train surfaces on one group of workers; how each ended. Raises where the group or the time did."""
    crew = training_crew(cluster, len(surfaces))
    if crew.waits:
        report("waiting: other work has all CPUs or GPUs of the cluster at the moment")
    report(f"training {len(surfaces)} surfaces by {crew.num_actors} workers of {crew.cpus:g} CPU, on {crew.device}")
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote(surfaces, stop_at)
    try:
        with _storage(plan) as run:
            group = _Group(plan, board, crew, run)
            group.start()
            _follow(group, board, crew, stop_at + GRACE_S, report)
        news: News = ray.get(board.news.remote())
        for line in news.lines:
            report(line)
    finally:
        ray.kill(board)
    if news.unfinished and time.time() >= stop_at:
        raise StoppedError(
            "out-of-time",
            f"max_minutes ({cluster.max_minutes:g}) are over: {len(news.trained)} of {len(surfaces)} surfaces were "
            f"trained by this start, and are kept; not finished: {', '.join(news.unfinished)}. Run the same command "
            "again to go on",
        )
    if news.unfinished:
        raise TrainingError(
            "workers-failed",
            f"the workers could not be kept up: {group.error or 'they ended early'}. Not finished: "
            f"{', '.join(news.unfinished)}. What is trained is kept: run the same command again to go on",
        )
    return news


def _follow(group: _Group, board: Any, crew: Crew, until: float, report: Report) -> None:
    """Report lines as they come and the table as it changes, until the group has ended or is not waited for any more.

    That is where the time is well over, or no node has been there for long that could hold a worker.
    """
    shown, last_look, last_room = 0, 0.0, time.monotonic()
    while group.is_alive() and time.time() < until:
        group.join(_POLL_S)
        news: News = ray.get(board.news.remote())
        for line in news.lines:
            report(line)
        now = time.monotonic()
        if now - last_look < _SECONDS_BETWEEN_LOOKS:
            continue
        for line in news.table if news.changed != shown else ():
            report(line)
        shown, last_look = news.changed, now
        if has_room(crew):
            last_room = now
        elif now - last_room > MAX_WITHOUT_ROOM_S:
            group.error = RuntimeError(f"for {MAX_WITHOUT_ROOM_S:.0f} s no node could hold a worker of {crew.each}")
            return


@contextlib.contextmanager
def _storage(plan: TrainingPlan) -> Iterator[RunConfig]:
    """The run's name and place. What Ray Train keeps there is of no use to us, and would be taken for a later run's."""
    url = lake.join(plan.out, "training", "ray")
    store, path = lake.filesystem(url)
    run = RunConfig(
        name=f"sbdzsl-{plan.name}",
        storage_path=path,
        storage_filesystem=PyFileSystem(FSSpecHandler(store)),
    )
    try:
        yield run
    finally:
        with contextlib.suppress(FileNotFoundError):
            store.rm(path, recursive=True)


class _Group(threading.Thread):
    """Ray Train's run in a thread of its own, so that the main one can report, count the time and be interrupted."""

    def __init__(self, plan: TrainingPlan, board: Any, crew: Crew, run: RunConfig) -> None:
        super().__init__(daemon=True)
        self.error: Exception | None = None
        run.failure_config = FailureConfig(
            max_failures=MAX_RESTARTS,
            max_preemption_failures=MAX_RESTARTS,
            controller_failure_limit=MAX_FAILED_STARTS,
        )
        run.callbacks = [_Deaths(board)]
        resources = {"CPU": crew.cpus} | ({"GPU": crew.gpus} if crew.gpus else {})
        self._trainer = DataParallelTrainer(
            _work,
            # By reference: the plan names every image, and each worker would get a copy of its own.
            train_loop_config={"plan": ray.put(plan), "board": board, "crew": crew},
            scaling_config=ScalingConfig(
                # Where a node is lost, the group goes on with the workers that the others hold.
                num_workers=(1, crew.num_actors),
                use_gpu=bool(crew.gpus),
                resources_per_worker=resources,
            ),
            run_config=run,
        )

    def run(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # noqa: BLE001  an error of a thread has nobody else to tell
            self.error = error


class _Deaths(UserCallback):  # type: ignore[misc]
    """Tells the board which workers died by themselves, in the controller's process."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        reasons = {str(error).strip().splitlines()[0] for error in worker_exceptions.values() if str(error).strip()}
        self._board.died.remote(sorted(worker_exceptions), "; ".join(sorted(reasons))[:300])


def _work(config: Mapping[str, Any]) -> None:
    """What each worker does: take a surface, train it, say how it ended, until none is left."""
    board, crew = config["board"], config["crew"]
    plan: TrainingPlan = ray.get(config["plan"])
    torch.set_num_threads(crew.threads)  # which holds for this thread alone
    rank, group = ray.train.get_context().get_world_rank(), broadcast_from_rank_zero(uuid.uuid4().hex)
    embedder: Embedder | None = None
    while (surface := ray.get(board.take.remote(rank, group))) is not None:
        try:
            embedder = embedder or plan.embedder(crew.device)
            train_surface(plan, surface, embedder, board.say.remote, _Noting(board, surface))
        except StoppedError:
            ray.get(board.stop.remote(surface))
            return
        except SbdzslError as error:
            ray.get(board.fail.remote(surface, f"{error.code}: {error.message}"))
        except Exception as error:  # noqa: BLE001  one surface's fault, even one of ours, does not stop the others
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
            ray.get(board.fail.remote(surface, reason))
        else:
            ray.get(board.finish.remote(surface))


class _Noting:
    """Writes each epoch of a surface on the board. Raises `StoppedError` where the board says that the time is up."""

    def __init__(self, board: Any, surface: str) -> None:
        self._board = board
        self._surface = surface

    def __call__(self, progress: Progress) -> None:
        loss = progress.segmentation_loss + progress.decision_loss
        standing = Standing(progress.epoch, progress.epochs, loss, progress.val_ap, progress.seconds)
        if not ray.get(self._board.note.remote(self._surface, standing)):
            raise StoppedError("out-of-time", f"{self._surface}: the time is up")
