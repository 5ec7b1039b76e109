"""Training spread over a cluster: a group of workers on Ray Train goes down a queue, a surface a worker at a time.

    plan -> a worker group over the surfaces not trained yet -> what each brought, by way of the lake -> one bundle

A worker calls what the single process calls (`training.train_surface`), and the driver ends as that ends
(`training.conclude`): the bundle is the same. Only names and progress travel through Ray; features and nets go through
`out`/training, which is also what a killed training goes on from. The start of the group is paid once. A surface for
which several workers are asked has a group of its own, which trains it together (`sbdd/team.py`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.train
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sbdzsl import lake
from sbdzsl.bundle import Bundle
from sbdzsl.cluster.board import Board, News
from sbdzsl.cluster.session import Crew, has_room, session, training_crew
from sbdzsl.cluster.training_worker import train_in_turn, train_together
from sbdzsl.config import ClusterSettings, TrainSettings
from sbdzsl.errors import ConfigError, StoppedError, TrainingError
from sbdzsl.surface_training import TrainedSurface
from sbdzsl.training import TrainingPlan, conclude, plan_training

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
    hold one worker; `ConfigError` where `workers_per_surface` names no surface or more workers than a batch has images;
    and what `training.plan_training` raises, before any work.
    """
    stop_at = time.time() + 60 * cluster.max_minutes
    plan = plan_training(manifest, lake.absolute_url(out), settings, seed, unseen)
    _check_teams(plan, cluster)
    trained = {surface: found for surface in plan.surfaces if (found := _kept(plan, surface, report)) is not None}
    # The large ones first: a large one begun last would keep the others waiting at the end.
    missing = sorted(set(plan.surfaces) - set(trained), key=lambda name: (-len(plan.samples[name]), name))
    failed: dict[str, str] = {}
    if trained:
        report(f"resuming: {len(trained)} of {len(plan.surfaces)} surfaces are trained already")
    if missing:
        with session(address):
            done, failed = _train_missing(plan, missing, cluster, stop_at, report)
        trained |= {surface: _require(plan, surface, report) for surface in done}
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


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of Ray Train: workers that go down a queue of surfaces, one each, or train the only one `together`.

    `num_workers`: how many are asked for; None for as many as there is room for.
    """

    surfaces: tuple[str, ...]
    num_workers: int | None
    together: bool = False

    def __str__(self) -> str:
        return f"{self.surfaces[0]} together" if self.together else f"{len(self.surfaces)} surfaces"


def _runs(surfaces: Sequence[str], cluster: ClusterSettings) -> list[_Run]:
    """Surfaces that several workers train come first, one after the other: they are the large ones."""
    teams = {name: number for name, number in cluster.workers_per_surface.items() if number > 1}
    runs = [_Run((surface,), teams[surface], together=True) for surface in surfaces if surface in teams]
    queue = tuple(surface for surface in surfaces if surface not in teams)
    return [*runs, _Run(queue, cluster.workers)] if queue else runs


def _check_teams(plan: TrainingPlan, cluster: ClusterSettings) -> None:
    """Raise `ConfigError` where workers are asked for that no surface is there for, or no image of a batch."""
    for surface, number in cluster.workers_per_surface.items():
        if surface not in plan.samples:
            raise ConfigError(
                "bad-config",
                f"workers_per_surface names {surface!r}, expected surfaces to train: {', '.join(plan.surfaces)}",
            )
        batch_size = plan.settings.detector_for(surface).batch_size
        if number > batch_size:
            raise ConfigError(
                "bad-config",
                f"workers_per_surface asks for {number} workers for {surface}, whose batches have {batch_size} images: "
                f"ask for {batch_size} at most, or raise its batch_size",
            )


def _train_missing(
    plan: TrainingPlan, surfaces: Sequence[str], cluster: ClusterSettings, stop_at: float, report: Report
) -> tuple[list[str], dict[str, str]]:
    """Train surfaces, a run after the other; names of the trained, and of the failed with why.

    Raises where the time was up, or the workers could not be kept up.
    """
    trained, failed, unfinished, errors = list[str](), dict[str, str](), list[str](), list[str]()
    # Before any run, since what one has just given back is not seen as free at once.
    crews = [(run, _crew(run, cluster, report)) for run in _runs(surfaces, cluster)]
    for run, crew in crews:
        if time.time() >= stop_at:
            unfinished += run.surfaces
            continue
        news, error = _train_run(plan, run, crew, stop_at, report)
        trained += news.trained
        failed |= news.failed
        unfinished += news.unfinished
        if news.unfinished:
            errors.append(str(error or "they ended early"))
    if unfinished and time.time() >= stop_at:
        raise StoppedError(
            "out-of-time",
            f"max_minutes ({cluster.max_minutes:g}) are over: {len(trained)} of {len(surfaces)} surfaces were "
            f"trained by this start, and are kept; not finished: {', '.join(unfinished)}. Run the same command "
            "again to go on",
        )
    if unfinished:
        raise TrainingError(
            "workers-failed",
            f"the workers could not be kept up: {'; '.join(errors)}. Not finished: "
            f"{', '.join(unfinished)}. What is trained is kept: run the same command again to go on",
        )
    return trained, failed


def _crew(run: _Run, cluster: ClusterSettings, report: Report) -> Crew:
    """The workers of a run. Raises `AuditError` "no-resources" where no node can hold one."""
    most = run.num_workers if run.together and run.num_workers else len(run.surfaces)
    crew = training_crew(cluster.model_copy(update={"workers": run.num_workers}), most)
    if crew.waits:
        report("waiting: other work has all CPUs or GPUs of the cluster at the moment")
    if run.together and crew.num_actors < most:
        report(f"{run.surfaces[0]}: {most} workers are asked for, the cluster has room for {crew.num_actors}")
    return crew


def _train_run(
    plan: TrainingPlan, run: _Run, crew: Crew, stop_at: float, report: Report
) -> tuple[News, Exception | None]:
    """Train the surfaces of one run; how each ended, and what ended the group if it did not end by itself."""
    report(f"training {run} by {crew.num_actors} workers of {crew.cpus:g} CPU, on {crew.device}")
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote(run.surfaces, stop_at)
    try:
        with _storage(plan) as config:
            group = _Group(plan, board, crew, config, together=run.together)
            group.start()
            _follow(group, board, crew, stop_at + GRACE_S, report)
        news: News = ray.get(board.news.remote())
        for line in news.lines:
            report(line)
    finally:
        ray.kill(board)
    return news, group.error


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

    def __init__(self, plan: TrainingPlan, board: Any, crew: Crew, run: RunConfig, *, together: bool) -> None:
        super().__init__(daemon=True)
        self.error: Exception | None = None
        run.failure_config = FailureConfig(
            max_failures=MAX_RESTARTS,
            max_preemption_failures=MAX_RESTARTS,
            controller_failure_limit=MAX_FAILED_STARTS,
        )
        run.callbacks = [_Deaths(board, together=together)]
        resources = {"CPU": crew.cpus} | ({"GPU": crew.gpus} if crew.gpus else {})
        self._trainer = DataParallelTrainer(
            train_together if together else train_in_turn,
            # By reference: the plan names every image, and each worker would get a copy of its own.
            train_loop_config={"plan": ray.put(plan), "board": board, "crew": crew},
            backend_config=_process_group(crew) if together else None,
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


def _process_group(crew: Crew) -> Any:
    """What `torch.distributed` of a team runs on. NCCL refuses two workers on one GPU; gloo takes them, too."""
    from ray.train.torch import TorchConfig  # takes seconds, and most trainings need none

    return TorchConfig(backend="cpu:gloo,cuda:nccl" if crew.gpus >= 1 else "gloo")


class _Deaths(UserCallback):  # type: ignore[misc]
    """Tells the board which workers died by themselves, in the controller's process.

    Whichever of a team died, its surface is the one that the first has taken.
    """

    def __init__(self, board: Any, *, together: bool) -> None:
        self._board = board
        self._together = together

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        reasons = {str(error).strip().splitlines()[0] for error in worker_exceptions.values() if str(error).strip()}
        ranks = [0] if self._together else sorted(worker_exceptions)
        self._board.died.remote(ranks, "; ".join(sorted(reasons))[:300])
