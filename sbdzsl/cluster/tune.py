"""Sweeps on a cluster: Ray Tune places the trials, the Optuna study decides and remembers (`sbdzsl.tuning`).

    plan -> seen surfaces read and embedded, kept -> trials by Tune, asked from and told to the study -> results

Ray's own `OptunaSearch` is not used: it tells the study that a trial which ASHA stopped is complete, leaves those of a
dead driver running, and Tune's ASHA forgets what it knew. Here a searcher of our own asks the study, and a scheduler of
our own has the study's pruner decide, so that the study owns the truth and Tune's folder of a run is thrown away.
Features go through the object store once; a trial trains SBAD's networks alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa
import ray
import torch
from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sbdzsl import lake
from sbdzsl.cluster.session import Crew, session, trial_crew
from sbdzsl.config import TrainSettings
from sbdzsl.errors import ConfigError, DataError, SbdzslError, StoppedError, TrainingError
from sbdzsl.lake.store import local_path
from sbdzsl.training import TrainingPlan, plan_training
from sbdzsl.tuning import (
    Bench,
    DetectorBench,
    Outcome,
    RouterBench,
    SweepResult,
    SweepSettings,
    SweepStudy,
    applied,
    distributions,
    outcomes,
    write_results,
)
from sbdzsl.tuning.prepare import (
    EmbeddedSurface,
    FeatureFile,
    LabelledSurface,
    check_surface,
    embed_surface,
    with_what_is_needed,
)
from sbdzsl.tuning.space import values_of
from sbdzsl.tuning.study import open_study

Report = Callable[[str], None]
Prepared = EmbeddedSurface | LabelledSurface | None
T = TypeVar("T")

#: Ray Tune writes and prints nothing of its own, and Ctrl-C ends it as it ends everything else.
_QUIET_TUNE = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


def tune_on_cluster(
    manifest: pa.Table,
    out: str,
    base: TrainSettings,
    sweep: SweepSettings,
    seed: int = 0,
    unseen: Sequence[str] = (),
    address: str | None = None,
    report: Report = print,
) -> SweepResult:
    """Search `sweep.trials` settings of one stage on the seen surfaces, write results to `out`, a folder or URL.

    Rows of `unseen` surfaces are dropped first, `test` rows are not read. Images must be readable on every node. The
    same call goes on where a killed one was. Raises `ConfigError` and `DataError` before any work; `StoppedError`
    "out-of-time" once `max_minutes` are over; `TrainingError` "trials-failed" where too many trials failed or none was
    completed; `AuditError` "no-resources" where no node can hold a trial; `LakeError` for storage that is gone.
    """
    stop_at = time.monotonic() + 60 * sweep.max_minutes
    space, out = distributions(sweep, base), lake.absolute_url(out)
    url = _storage_url(sweep, out)
    needed = with_what_is_needed(base) if sweep.stage == "sbad" else base
    plan = plan_training(manifest, lake.join(out, "features"), needed, seed, unseen)
    given = values_of(base, space)
    with open_study(url, sweep, space, _purpose(plan, sweep), given, seed, report) as study:
        if num_done := study.num_finished:
            report(f"going on: {num_done} of {sweep.trials} trials of {study.study.study_name} are finished")
        if study.num_missing:
            with session(address):
                _search(plan, base, study, stop_at, report)
        if study.num_missing:
            _say_why(study, stop_at)
        result = write_results(study, base, out)
    report(f"best of {study.num_finished} finished trials: {study.quality} {result.best.value:.4f} -> {out}")
    return result


def _storage_url(sweep: SweepSettings, out: str) -> str:
    if sweep.storage is not None:
        return lake.absolute_url(sweep.storage)
    if local_path(out) is None:
        raise ConfigError(
            "bad-config",
            f"--out {out} is an object store, which cannot keep the study; give --storage, a file on a network folder "
            "or a database URL such as postgresql+psycopg://user@host/database",
        )
    return lake.join(out, "study.journal")


def _purpose(plan: TrainingPlan, sweep: SweepSettings) -> dict[str, Any]:
    """What trials of one study have in common. Only seen surfaces are in the plan, and so in its name."""
    purpose: dict[str, Any] = {
        "data, settings or seed": plan.name,
        "stage": sweep.stage,
        "folds": sweep.folds if sweep.stage == "sbad" else None,
        "number of objectives": 1 + sweep.latency,
        "space": {name: parameter.model_dump(mode="json") for name, parameter in sweep.searched.items()},
    }
    return purpose | {"digest": hashlib.sha256(json.dumps(purpose).encode()).hexdigest()[:16]}


def _say_why(study: SweepStudy, stop_at: float) -> None:
    """Raise for a study that is not complete."""
    counted = f"{study.num_finished} of {study.sweep.trials} trials are finished, and kept"
    if time.monotonic() >= stop_at:
        minutes = study.sweep.max_minutes
        raise StoppedError(
            "out-of-time", f"max_minutes ({minutes:g}) are over: {counted}. Run the same command again to go on"
        )
    raise TrainingError(
        "trials-failed",
        f"{study.num_failed} trials failed, max_failed is {study.sweep.max_failed}; see the lines above. {counted}: "
        "mend the cause or narrow the space, and run the same command again",
    )


def _search(plan: TrainingPlan, base: TrainSettings, study: SweepStudy, stop_at: float, report: Report) -> None:
    sweep = study.sweep
    crew = trial_crew(sweep.concurrent, sweep.cpus_per_trial, sweep.gpus_per_trial, sweep.trials)
    if crew.waits:
        report("waiting: other work has all CPUs or GPUs of the cluster at the moment")
    bench = _build_bench(plan, sweep, crew, report)
    steps = "folds" if sweep.stage == "sbad" else "surfaces"
    report(
        f"{study.num_missing} trials to go, of {len(bench.steps)} {steps} each; {crew.num_actors} at once on "
        f"{crew.cpus:g} CPU, {crew.device}"
    )
    run_trials(bench, base, study, crew, stop_at, report)


def run_trials(
    bench: Bench, base: TrainSettings, study: SweepStudy, crew: Crew, stop_at: float, report: Report = print
) -> None:
    """Run the trials that a study misses, until it has them, too many failed, or `time.monotonic()` is at `stop_at`.

    Raises what the study raises, such as `LakeError`.
    """
    if time.monotonic() >= stop_at:
        return
    driver = _Driver(study, crew.num_actors, stop_at, report)
    trainable = tune.with_parameters(_run_trial, bench=bench, base=base, threads=crew.threads)
    with tempfile.TemporaryDirectory(prefix="sbdzsl-tune-") as folder, _quiet_tune():
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": crew.cpus, "gpu": crew.gpus}),
            tune_config=tune.TuneConfig(
                search_alg=_StudySearcher(driver),
                scheduler=_StudyScheduler(driver),
                num_samples=-1,  # the searcher says when it is enough
                time_budget_s=max(stop_at - time.monotonic(), 0.001),
                reuse_actors=True,  # a process's imports take longer than many a trial
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="sweep", storage_path=folder, verbose=0, failure_config=tune.FailureConfig(max_failures=0)
            ),
        )
        try:
            tuner.fit()
        finally:
            if driver.error is None:
                study.release()
    if driver.error is not None:
        raise driver.error


@contextlib.contextmanager
def _quiet_tune() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _QUIET_TUNE}
    logger = logging.getLogger("ray.tune")
    level = logger.level
    os.environ.update(_QUIET_TUNE)
    logger.setLevel(logging.CRITICAL)  # failures are told by the driver, in one line each
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run_trial(config: Mapping[str, Any], bench: Bench, base: TrainSettings, threads: int) -> None:
    """One trial in a process of Tune's; what goes wrong is told as a result, since an exception loses its cause."""
    torch.set_num_threads(threads)  # which holds for this thread alone
    try:
        for outcome in outcomes(bench, applied(base, config["settings"])):
            tune.report({"outcome": outcome})
    except SbdzslError as error:
        tune.report({"failure": f"{error.code}: {error.message}"})
    except Exception as error:  # noqa: BLE001  one trial's fault, even one of ours, does not stop the others
        where = traceback.extract_tb(error.__traceback__)[-1]
        tune.report({"failure": f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"})


class _Driver:
    """What searcher and scheduler share: the study, and the first error, after which nothing more is begun.

    Tune logs what a callback raises and goes on; here it ends the search, and the sweep raises it.
    """

    def __init__(self, study: SweepStudy, concurrent: int, stop_at: float, report: Report) -> None:
        self.error: Exception | None = None
        self._study = study
        self._concurrent = concurrent
        self._stop_at = stop_at
        self._report = report

    def next(self, key: str) -> dict[str, Any] | str | None:
        """Settings of a trial to begin; None: not now; `Searcher.FINISHED`: none any more."""
        return self._guarded(lambda: self._next(key), Searcher.FINISHED)

    def note(self, key: str, outcome: Outcome) -> bool:
        """Whether the trial is to go on."""
        return self._guarded(lambda: self._study.note(key, outcome), False)

    def end(self, key: str, failure: str | None = None) -> None:
        """The trial has ended, was stopped, or failed; told once, however often it is called."""
        if line := self._guarded(lambda: self._study.end(key, failure), ""):
            self._report(line)

    def _next(self, key: str) -> dict[str, Any] | str | None:
        study = self._study
        enough = study.num_failed >= study.sweep.max_failed or time.monotonic() >= self._stop_at
        if enough or self.error is not None or (not study.num_missing and not study.num_live):
            return Searcher.FINISHED
        if not study.num_missing or study.num_live >= self._concurrent:
            return None  # one under way may fail, and then another one is needed
        number, settings = study.ask(key)
        return {"trial": number, "settings": settings}

    def _guarded(self, call: Callable[[], T], otherwise: T) -> T:
        if self.error is None:
            try:
                return call()
            except Exception as error:  # noqa: BLE001  raised again once Tune has come to its end
                self.error = error
        return otherwise


class _StudySearcher(Searcher):  # type: ignore[misc]
    """Asks the study for settings, and tells it which trials have ended."""

    def __init__(self, driver: _Driver) -> None:
        super().__init__()
        self._driver = driver

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        return self._driver.next(trial_id)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        self._driver.end(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study has it all."""


class _StudyScheduler(FIFOScheduler):  # type: ignore[misc]
    """Tells the study what trials are worth after each step; it says which of them are stopped."""

    def __init__(self, driver: _Driver) -> None:
        super().__init__()
        self._driver = driver

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        if "failure" in result:
            self._driver.end(trial.trial_id, result["failure"])
            return TrialScheduler.STOP
        outcome: Outcome = result["outcome"]
        if self._driver.note(trial.trial_id, outcome) and not outcome.is_last:
            return TrialScheduler.CONTINUE
        # At once: a process that dies on its way out would take a finished trial with it.
        self._driver.end(trial.trial_id)
        return TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        said = (trial.get_error() or "").strip().splitlines()[1:2]
        self._driver.end(trial.trial_id, f"its process died: {' '.join(said)}")


def _build_bench(plan: TrainingPlan, sweep: SweepSettings, crew: Crew, report: Report) -> Bench:
    """Read the surfaces that no earlier start has read. Raises `DataError`, `TrainingError` "workers-failed"."""
    files = {name: FeatureFile(plan, name, report) for name in plan.surfaces} if sweep.stage == "sbad" else {}
    known: dict[str, Prepared] = {name: found for name, file in files.items() if (found := file.load()) is not None}
    missing = [name for name in plan.surfaces if name not in known]
    if missing:
        report(f"reading {len(missing)} surfaces; {len(known)} are known already")
    for name, prepared in _prepare(plan, sweep, missing, crew, report):
        known[name] = prepared
        if isinstance(prepared, EmbeddedSurface):
            files[name].save(prepared)
    if sweep.stage == "sbad":
        embedded = {name: one for name in plan.surfaces if isinstance(one := known[name], EmbeddedSurface)}
        return RouterBench.build(embedded, plan.attributes, sweep.folds, plan.seed)
    labelled = {name: one for name in plan.surfaces if isinstance(one := known[name], LabelledSurface)}
    if not labelled:
        raise DataError(
            "too-few-images", "no surface has good and defective validation images, so there is no AP to search by"
        )
    return DetectorBench(labelled, plan.seed, crew.device)


def _prepare(
    plan: TrainingPlan, sweep: SweepSettings, surfaces: Sequence[str], crew: Crew, report: Report
) -> Iterator[tuple[str, Prepared]]:
    """Surfaces as they are ready, read by tasks of the cluster."""
    task, shared = ray.remote(_prepare_surface).options(num_cpus=crew.cpus, num_gpus=crew.gpus), ray.put(plan)
    waiting = {task.remote(shared, sweep.stage, name, crew.device, crew.threads): name for name in surfaces}
    while waiting:
        (ready,), _ = ray.wait(list(waiting))
        name = waiting.pop(ready)
        try:
            found, lines = ray.get(ready)
        except RayError as error:
            raise TrainingError(
                "workers-failed",
                f"{name}: reading its images failed: {str(error).strip().splitlines()[0]}. What is read is kept: run "
                "the same command again to go on",
            ) from error
        for line in lines:
            report(line)
        if isinstance(found, SbdzslError):
            raise found
        yield name, found


def _prepare_surface(
    plan: TrainingPlan, stage: str, surface: str, device: str, threads: int
) -> tuple[Prepared | SbdzslError, list[str]]:
    """In a task: the surface, or the error as a value, and lines of progress."""
    torch.set_num_threads(threads)
    lines = list[str]()
    try:
        if stage == "sbad":
            return embed_surface(plan, surface, plan.embedder(device), lines.append), lines
        return check_surface(plan, surface, lines.append), lines
    except SbdzslError as error:
        return error, lines
