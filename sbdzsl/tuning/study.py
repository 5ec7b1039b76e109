"""The Optuna study as the only memory of a sweep: whoever drives it asks for settings and tells how they went.

A trial that was stopped early ends PRUNED with what it had, one that could not be judged FAIL with the reason, one
whose driver died FAIL as well, and its settings are tried again, once. So a sweep that is started again knows all that
the last one had finished, and draws what comes next from another seed: with the same one it would begin to draw what
was drawn before. Which trials lag behind (ASHA) is read from the study, too, so that it survives a kill.

One driver a study at a time: what another one is at looks like what a dead one left.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from sbdzsl import lake
from sbdzsl.errors import ConfigError, LakeError
from sbdzsl.lake.store import local_path
from sbdzsl.tuning.bench import Outcome
from sbdzsl.tuning.prepare import Report
from sbdzsl.tuning.space import SweepSettings

#: User attributes of a trial. `GIVEN`: the settings that the sweep started from; `AGAIN`: number of the trial whose
#: driver died over the same settings; `REASON`: why it failed.
GIVEN, AGAIN, REASON = "given", "again", "reason"
#: User attribute of the study: what its values are comparable within.
PURPOSE = "sbdzsl"

#: Databases that a study can be in; other URLs with a scheme are stores, which cannot be appended to.
_DATABASES = ("postgresql", "mysql", "mariadb", "sqlite", "oracle", "mssql")

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(slots=True)
class _Live:
    """A trial that somebody is at."""

    trial: Trial
    outcome: Outcome | None = None
    pruned: bool = False


class SweepStudy:
    """A study while one driver works on it. All calls from one thread.

    `num_failed` counts failures since the start. Each call may raise `LakeError` "unreachable" where the storage does
    not answer: what was told before is kept.
    """

    def __init__(self, study: Study, sweep: SweepSettings, space: Mapping[str, BaseDistribution], url: str) -> None:
        self.study = study
        self.sweep = sweep
        self.num_failed = 0
        self._space = dict(space)
        self._url = url
        self._live: dict[str, _Live] = {}

    @property
    def num_live(self) -> int:
        """Trials asked for and not ended."""
        return len(self._live)

    @property
    def num_finished(self) -> int:
        """Complete and pruned trials in the study, whoever made them."""
        with _storage_errors(self._url):
            return len(self.study.get_trials(deepcopy=False, states=FINISHED))

    @property
    def num_missing(self) -> int:
        """How many more trials are to be asked for now, those under way taken as good."""
        return max(0, self.sweep.trials - self.num_finished - self.num_live)

    def ask(self, key: str) -> tuple[int, dict[str, Any]]:
        """Begin a trial under a key of the driver's: its number, and the settings to try by dotted name."""
        with _storage_errors(self._url):
            trial = self.study.ask(fixed_distributions=self._space)
        self._live[key] = _Live(trial)
        return trial.number, dict(trial.params)

    def note(self, key: str, outcome: Outcome) -> bool:
        """Tell what a trial is worth so far; False where it lags behind and is to be stopped.

        The settings that were given are never stopped: whatever else is found is held against them.
        """
        live = self._live[key]
        live.outcome = outcome
        if self.sweep.latency:
            return True  # of two objectives Optuna takes only what comes in the end
        with _storage_errors(self._url):
            live.trial.report(outcome.value, outcome.step)
            spared = outcome.is_last or GIVEN in live.trial.user_attrs
            live.pruned = not spared and live.trial.should_prune()
        return not live.pruned

    def end(self, key: str, failure: str | None = None) -> str:
        """End a trial as it stands, or as failed with a reason; one that has ended already is left. A line about it."""
        if (live := self._live.pop(key, None)) is None:
            return ""
        outcome, number = live.outcome, live.trial.number
        with _storage_errors(self._url):
            if failure is not None or outcome is None or not (outcome.is_last or live.pruned):
                reason = failure or "ended early"
                self.num_failed += 1
                live.trial.set_user_attr(REASON, reason)
                self.study.tell(live.trial, state=TrialState.FAIL)
                return f"trial {number} failed: {reason}"
            figures = {"seconds": outcome.seconds, "latency_ms": outcome.latency_ms, **outcome.figures}
            for name, value in {"steps": outcome.step, **{key: round(one, 5) for key, one in figures.items()}}.items():
                live.trial.set_user_attr(name, value)
            if live.pruned:
                self.study.tell(live.trial, state=TrialState.PRUNED)
            else:
                self.study.tell(live.trial, [outcome.value, outcome.latency_ms][: len(self.study.directions)])
        how = f"pruned after {outcome.step} of {outcome.num_steps} steps" if live.pruned else "complete"
        return f"trial {number} {how}: {self.quality} {outcome.value:.4f}, {outcome.seconds:.1f} s"

    def release(self) -> None:
        """Give up the trials that are under way, so that a later start tries their settings again."""
        with _storage_errors(self._url):
            for key in list(self._live):
                trial = self._live.pop(key).trial
                trial.set_user_attr(REASON, "stopped with the sweep")
                self.study.tell(trial, state=TrialState.FAIL)
                _try_again(self.study, self.study.trials[trial.number], blameless=True)

    @property
    def quality(self) -> str:
        """Name of the first objective."""
        return "H" if self.sweep.stage == "sbad" else "AP"


@contextlib.contextmanager
def open_study(
    url: str,
    sweep: SweepSettings,
    space: Mapping[str, BaseDistribution],
    purpose: Mapping[str, Any],
    given: Mapping[str, Any],
    seed: int,
    report: Report = print,
) -> Iterator[SweepStudy]:
    """Create the study at `url`, or go on with it; nobody else may while the `with` block lasts (journals only).

    `purpose` says what values are comparable within, as JSON values; it names the study where the settings do not.
    `given` are the settings that the sweep starts from, tried first if they lie in the space. Raises `ConfigError` for
    a study of another purpose, a place that cannot hold one, or a study that another driver is at; `LakeError`.
    """
    with _alone(url), _storage_errors(url):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=open_storage(url, report),
            study_name=study_name(sweep, purpose),
            directions=[StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][: 2 if sweep.latency else 1],
            load_if_exists=True,
        )
        _check_purpose(study, purpose)
        trials = study.get_trials(deepcopy=False)
        _settle_stale(study, report)
        study.sampler = TPESampler(n_startup_trials=sweep.startup_trials, seed=_next_seed(seed, len(trials)))
        study.pruner = _pruner(sweep)
        if not any(GIVEN in trial.user_attrs for trial in trials):
            _enqueue_given(study, sweep, given, report)
        opened = SweepStudy(study, sweep, space, url)
        try:
            yield opened
        finally:
            opened.release()


def study_name(sweep: SweepSettings, purpose: Mapping[str, Any]) -> str:
    """The name of the settings, else one that is another for other data, settings, seed or space."""
    return sweep.study or f"{sweep.stage}-{purpose['digest']}"


def open_storage(url: str, report: Report = print) -> BaseStorage:
    """Optuna's storage: a database by its URL, or a journal file. Raises `ConfigError`, `LakeError`."""
    if lake.shown(url) != url:
        raise ConfigError(
            "bad-config",
            f"storage: {lake.shown(url)}: a password in the URL would stand in lists of processes and jobs; leave it "
            "out and give it as the database's own tools want it (for PostgreSQL ~/.pgpass or PGPASSWORD)",
        )
    if (path := _journal_path(url)) is None:
        with _storage_errors(url):
            try:
                return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
            except ImportError as error:
                raise ConfigError(
                    "missing-extra", f"storage: {url}: {error} For PostgreSQL: pip install 'sbdzsl[sweeps]'"
                ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    _mend(path, report)
    return JournalStorage(JournalFileBackend(str(path)))


def _journal_path(url: str) -> Path | None:
    """The file of a journal, None for a database. Raises `ConfigError` for a store."""
    if (path := local_path(url)) is not None:
        return Path(path)
    if url.split("://", 1)[0].split("+")[0] in _DATABASES:
        return None
    raise ConfigError(
        "bad-config",
        f"storage: {url}: a journal is appended to, which an object store cannot do; expected a file on a local or "
        "network folder, or a database URL such as postgresql+psycopg://user@host/database",
    )


def _mend(path: Path, report: Report) -> None:
    """Cut off a last line without its end, which a crash of the machine or a full disk left: nobody was told of it.

    Optuna would append to it and then read neither.
    """
    if not path.exists() or (content := path.read_bytes()).endswith(b"\n") or not content:
        return
    whole = content.rfind(b"\n") + 1
    os.truncate(path, whole)
    report(f"{path}: the last {len(content) - whole} bytes were a line without its end, and were cut off")


@contextlib.contextmanager
def _alone(url: str) -> Iterator[None]:
    """Hold the lock of a journal. The system lets go of it when a process dies; a database has none."""
    if (path := _journal_path(url)) is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.driver", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            "bad-config", f"storage: {path}: another sweep is at it; wait for it, or give another --storage"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _storage_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise LakeError(
            "unreachable", f"storage: {url}: {reason}; what was told before is kept: run the same command again"
        ) from error


def _check_purpose(study: Study, purpose: Mapping[str, Any]) -> None:
    """Mark a new study, refuse one whose values would not be comparable."""
    ours = json.loads(json.dumps(purpose))
    theirs = study.user_attrs.get(PURPOSE)
    if theirs is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(PURPOSE, ours)
    elif theirs != ours:
        differing = sorted(key for key in ours if key != "digest" and (theirs or {}).get(key) != ours[key])
        raise ConfigError(
            "bad-config",
            f"study {study.study_name!r} was made with another {', '.join(differing) or 'program'}: its values would "
            "not compare. Give another --study, or none to have one for each",
        )


def _settle_stale(study: Study, report: Report) -> None:
    """End what a dead driver left under way, and have its settings tried again."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        again = ": its settings are tried again" if _try_again(study, trial) else ""
        report(f"trial {trial.number} was under way when its driver ended{again}")


def _try_again(study: Study, trial: FrozenTrial, *, blameless: bool = False) -> bool:
    """Enqueue the settings of a trial if it had got them; not of a second try, which may be what drivers die of."""
    if (AGAIN in trial.user_attrs and not blameless) or not trial.params:
        return False
    kept = {GIVEN: True} if GIVEN in trial.user_attrs else {}
    study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number, **kept})
    return True


def _enqueue_given(study: Study, sweep: SweepSettings, given: Mapping[str, Any], report: Report) -> None:
    outside = [name for name, parameter in sweep.searched.items() if not parameter.holds(given[name])]
    if outside:
        report(f"the settings given are not tried: {', '.join(outside)} lie outside of the space")
        return
    study.enqueue_trial(dict(given), user_attrs={GIVEN: True})


def _next_seed(seed: int, num_trials: int) -> int:
    return int(np.random.SeedSequence([seed, num_trials]).generate_state(1)[0])


def _pruner(sweep: SweepSettings) -> BasePruner:
    if not sweep.pruning:
        return NopPruner()
    return SuccessiveHalvingPruner(min_resource=1, reduction_factor=sweep.reduction_factor)
