"""Sweeps on a real Ray of this machine: every end of a trial is in the study, and a killed driver's sweep goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pyarrow as pa
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from sbdzsl.cluster.session import Crew
from sbdzsl.cluster.tune import run_trials, tune_on_cluster
from sbdzsl.config import DetectorSettings, TrainSettings, load
from sbdzsl.errors import AuditError, ConfigError, StoppedError
from sbdzsl.tuning import SweepSettings
from tests.conftest import SMALL, UNSEEN, Trained
from tests.tuning.benches import BASE, Formula, opened, sweep
from tests.tuning.test_bench import with_lost_files

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
CREW = Crew(2, 1.0, 0.0)
GATE = SweepSettings.model_validate(
    {
        "space": {"router.pca_dims": {"low": 8, "high": 64}, "router.own_prior": {"low": 0.5, "high": 20, "log": True}},
        "trials": 5,
        "startup_trials": 3,
    }
)


def trials_of(journal: Path) -> list[FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(journal)))
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).trials


def test_a_sweep_ends_in_a_recipe_and_is_not_run_twice(local_ray: None, trained: Trained, tmp_path: Path) -> None:
    """With all that must not be read gone: the files of the unseen surface and of the test images."""
    lines = list[str]()

    def again(manifest: pa.Table) -> TrainSettings:
        return tune_on_cluster(manifest, str(tmp_path), SMALL, GATE, 0, (UNSEEN,), report=lines.append).recipe

    recipe = again(with_lost_files(trained.manifest))
    assert load(TrainSettings, tmp_path / "recipe.yaml") == recipe
    trials = trials_of(tmp_path / "study.journal")
    assert len([one for one in trials if one.state in FINISHED]) == len(trials) == 5
    assert "reading 3 surfaces; 0 are known already" in lines
    assert sum(" complete: H " in line or " pruned after " in line for line in lines) == 5
    best = max((one for one in trials if one.state == TrialState.COMPLETE), key=lambda one: one.values[0])
    assert recipe.router.own_prior == best.params["router.own_prior"]
    assert recipe.router.ce_vae_steps == SMALL.router.ce_vae_steps
    lines.clear()
    # The files are there again: nothing of them was in the study's name, so it is the same study, and complete.
    assert again(trained.manifest) == recipe
    assert lines[0].startswith("going on: 5 of 5 trials of sbad-")
    assert len(lines) == 2


def test_detectors_are_tuned_by_their_validation_ap(local_ray: None, trained: Trained, tmp_path: Path) -> None:
    space = {"detector.learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}}
    settings = SweepSettings.model_validate({"stage": "sbdd", "space": space, "trials": 2})
    base = SMALL.model_copy(update={"detector": DetectorSettings(epochs=1, width=0.5)})
    lines = list[str]()
    found = tune_on_cluster(trained.manifest, str(tmp_path), base, settings, 0, (UNSEEN,), report=lines.append)
    recipe = found.recipe
    assert "2 trials to go, of 3 surfaces each; 2 at once on 1 CPU, cpu" in lines
    assert 1e-3 <= recipe.detector.learning_rate <= 1e-2
    assert recipe.detector.width == 0.5
    first = trials_of(tmp_path / "study.journal")[0]
    assert (first.params, first.state) == ({"detector.learning_rate": 3e-3}, TrialState.COMPLETE)
    assert 0 < first.values[0] <= 1


def test_each_end_of_a_trial_is_in_the_study(local_ray: None, tmp_path: Path) -> None:
    lines, ends = list[str](), {0.2: "not-finite", 0.5: "ZeroDivisionError", 8.0: "its process died", 2.0: None}
    with opened(tmp_path / "j", sweep(trials=2), lines.append) as study:
        for prior in ends:
            study.study.enqueue_trial({"router.shrinkage": 0.2, "router.own_prior": prior})
        run_trials(Formula(fails=True), BASE, study, CREW, time.monotonic() + 300, lines.append)
        assert (study.num_finished, study.num_failed, study.num_live) == (2, 3, 0)
    given, *trials = trials_of(tmp_path / "j")
    assert (given.state, given.values) == (TrialState.COMPLETE, [0.6])
    assert [one.params["router.own_prior"] for one in trials] == list(ends)
    for one, beginning in zip(trials, ends.values(), strict=True):
        reason = one.user_attrs.get("reason")
        assert one.state in (FINISHED if beginning is None else (TrialState.FAIL,))
        if beginning is not None:
            assert reason.startswith(beginning)
            assert f"trial {one.number} failed: {reason}" in lines
    assert trials[0].user_attrs["reason"] == "not-finite: the loss is nan"
    assert "a mistake of ours (" in trials[1].user_attrs["reason"]


def test_too_many_failures_and_too_little_time_end_it(local_ray: None, tmp_path: Path) -> None:
    with opened(tmp_path / "j", sweep(max_failed=1), lambda _: None) as study:
        bench = Formula(fails=True)
        run_trials(bench, BASE.model_copy(), study, Crew(1, 1.0, 0.0), time.monotonic() + 300, lambda _: None)
        assert study.num_failed == 1
    with opened(tmp_path / "k", sweep(), lambda _: None) as study:
        started = time.monotonic()
        run_trials(Formula(seconds=60), BASE, study, CREW, started + 6, lambda _: None)
        assert time.monotonic() - started < 40
        assert study.num_finished == study.num_live == 0
    assert {one.state for one in trials_of(tmp_path / "k")} <= {TrialState.FAIL, TrialState.WAITING}


def test_what_cannot_be_is_said_before_any_work(local_ray: None, trained: Trained, tmp_path: Path) -> None:
    def swept(out: str, **more: object) -> None:
        settings = GATE.model_copy(update=more)
        tune_on_cluster(trained.manifest, out, SMALL, settings, 0, (UNSEEN,), report=lambda _: None)

    with pytest.raises(ConfigError, match="is an object store, which cannot keep the study; give --storage"):
        swept("s3://bucket/sweep")
    with pytest.raises(AuditError, match=r"a trial needs \{'CPU': 64.0\} on one node"):
        swept(str(tmp_path), cpus_per_trial=64.0)
    with pytest.raises(StoppedError, match=r"max_minutes .* are over: 0 of 5 trials are finished") as caught:
        swept(str(tmp_path), max_minutes=1e-6)
    assert caught.value.exit_code == 3


def test_a_killed_sweep_goes_on_by_the_same_command(trained: Trained, tmp_path: Path) -> None:
    """The driver and all below it killed after three trials of eight; what was finished stays as it was."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL.model_dump(mode="json", exclude_defaults=True)))
    (tmp_path / "sweep.yaml").write_text(GATE.model_dump_json(exclude_defaults=True))
    out = tmp_path / "out"
    words = ["--manifest", trained.manifest_uri, "--unseen", UNSEEN, "--out", str(out), "--trials", "8"]
    words += ["--config", str(tmp_path / "small.yaml"), "--search", str(tmp_path / "sweep.yaml"), "--address", "local"]
    command = [sys.executable, str(REPOSITORY / "jobs" / "tune.py"), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(REPOSITORY)}
    environment.pop("RAY_ADDRESS", None)
    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert first.stdout is not None
    ended = 0
    for line in first.stdout:
        ended += " complete: " in line or " pruned after " in line
        if ended == 3:
            break
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    before = [one for one in trials_of(out / "study.journal") if one.state in FINISHED]
    assert 3 <= len(before) < 8, "the kill came too late to show anything"
    assert not (out / "recipe.yaml").exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"going on: {len(before)} of 8 trials" in again.stdout
    assert "reading" not in again.stdout, "the images are not read again"
    after = {one.number: one for one in trials_of(out / "study.journal")}
    for one in before:
        assert (after[one.number].values, after[one.number].params) == (one.values, one.params)
    finished = [one for one in after.values() if one.state in FINISHED]
    assert len(finished) == len({json.dumps(one.params) for one in finished}) == 8
    assert TrialState.RUNNING not in {one.state for one in after.values()}
    assert load(TrainSettings, out / "recipe.yaml").router.hidden == SMALL.router.hidden
