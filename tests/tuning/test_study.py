"""The study as a sweep's only memory: what it keeps of each end of a trial, and how it goes on after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from sbdzsl.config import TrainSettings, load
from sbdzsl.errors import ConfigError, LakeError, TrainingError
from sbdzsl.tuning import Outcome, applied, distributions, write_results
from sbdzsl.tuning.space import values_of
from sbdzsl.tuning.study import AGAIN, GIVEN, REASON
from tests.postgresql import postgresql
from tests.tuning.benches import BASE, PURPOSE, Formula, opened, search, sweep

__all__ = ["postgresql"]

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def trials_of(url: object, states: Sequence[TrialState] | None = None) -> list[FrozenTrial]:
    """As anybody reads them who has Optuna and knows nothing of us."""
    storage = str(url) if "://" in str(url) else JournalStorage(JournalFileBackend(str(url)))
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).get_trials(states=states)


def test_the_settings_given_come_first_and_the_best_are_found(tmp_path: Path) -> None:
    with opened(tmp_path / "j", sweep(trials=30)) as study:
        search(study, Formula())
        assert study.num_finished == 30
    trials = trials_of(tmp_path / "j")
    assert trials[0].params == values_of(BASE, distributions(sweep(), BASE))
    assert trials[0].state == TrialState.COMPLETE
    assert trials[0].user_attrs[GIVEN]
    assert {one.state for one in trials} == set(FINISHED)
    complete = [one for one in trials if one.state == TrialState.COMPLETE]
    assert max(one.values[0] for one in complete) > 0.85 > trials[0].values[0]
    for one in complete:
        assert one.values[0] == pytest.approx(1 - one.params["router.shrinkage"])
        assert one.user_attrs["steps"] == 4
        assert (one.user_attrs["s"], one.user_attrs["u"]) == (0.5, 0.25)


def test_what_lags_behind_is_stopped_early_and_recorded_as_pruned(tmp_path: Path) -> None:
    with opened(tmp_path / "j", sweep(trials=20)) as study:
        search(study, Formula())
    pruned = trials_of(tmp_path / "j", [TrialState.PRUNED])
    assert pruned
    for one in pruned:
        assert one.user_attrs["steps"] < 4
        assert one.values == [one.intermediate_values[one.user_attrs["steps"]]]
    with opened(tmp_path / "k", sweep(trials=20, pruning=False)) as study:
        search(study, Formula())
    assert len(trials_of(tmp_path / "k", [TrialState.COMPLETE])) == 20


def test_a_failed_trial_says_why_and_another_one_takes_its_place(tmp_path: Path) -> None:
    with opened(tmp_path / "j", sweep(trials=3)) as study:
        study.ask("a")
        assert study.end("a", "not-finite: the loss is nan") == "trial 0 failed: not-finite: the loss is nan"
        assert study.end("a") == "", "told once"
        assert (study.num_failed, study.num_missing) == (1, 3)
        search(study, Formula())
    (failed,) = trials_of(tmp_path / "j", [TrialState.FAIL])
    assert failed.user_attrs[REASON] == "not-finite: the loss is nan"
    assert len(trials_of(tmp_path / "j", FINISHED)) == 3


def killed_driver(url: object, num_finished: int) -> None:
    code = f"from tests.tuning.benches import die_within; die_within({str(url)!r}, {num_finished})"
    words = [sys.executable, "-c", code]
    ended = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def goes_on_after_a_kill(url: object) -> None:
    killed_driver(url, 3)
    before = trials_of(url)
    assert [one.state for one in before[:-1]] == [one.state for one in before if one.state in FINISHED]
    assert (len(before), before[-1].state) == (4, TrialState.RUNNING)
    lines = list[str]()
    with opened(url, sweep(), lines.append) as study:
        assert study.num_missing == 5
        search(study, Formula())
    assert lines == ["trial 3 was under way when its driver ended: its settings are tried again"]
    after = trials_of(url)
    assert [(one.number, one.values, one.params) for one in after[:3]] == [
        (one.number, one.values, one.params) for one in before[:3]
    ]
    assert after[3].state == TrialState.FAIL
    again = next(one for one in after if AGAIN in one.user_attrs)
    assert (again.user_attrs[AGAIN], again.params) == (3, before[3].params)
    finished = [one for one in after if one.state in FINISHED]
    assert len(finished) == 8
    assert len({json.dumps(one.params) for one in finished}) == 8, "eight different settings"


def test_a_killed_driver_loses_no_finished_trial(tmp_path: Path) -> None:
    goes_on_after_a_kill(tmp_path / "study.journal")


def test_a_study_in_postgresql_goes_on_as_well(postgresql: str) -> None:
    goes_on_after_a_kill(postgresql)


def test_what_comes_after_a_start_is_drawn_from_another_seed(tmp_path: Path) -> None:
    """With the same seed the second start would draw at random what the first one drew."""
    drawn = []
    for _ in range(2):
        with opened(tmp_path / "j", sweep(startup_trials=100)) as study:
            search(study, Formula(), most=4)
    drawn = [one.params["router.shrinkage"] for one in trials_of(tmp_path / "j")][1:]
    assert len(set(drawn)) == 7
    with opened(tmp_path / "k", sweep(startup_trials=100)) as study:
        search(study, Formula())
    assert [one.params["router.shrinkage"] for one in trials_of(tmp_path / "k")][1:4] == drawn[:3], "the same start"


def test_settings_over_which_drivers_die_are_tried_twice_and_no_more(tmp_path: Path) -> None:
    for _ in range(2):
        killed_driver(tmp_path / "j", 0)
    lines = list[str]()
    with opened(tmp_path / "j", sweep(trials=2), lines.append) as study:
        search(study, Formula())
    assert lines == ["trial 1 was under way when its driver ended"]
    states = [one.state for one in trials_of(tmp_path / "j")]
    assert states[:2] == [TrialState.FAIL, TrialState.FAIL]
    assert len([state for state in states if state in FINISHED]) == 2


def test_a_sweep_that_is_stopped_leaves_nothing_under_way(tmp_path: Path) -> None:
    with opened(tmp_path / "j", sweep()) as study:
        study.ask("a")
    states = [one.state for one in trials_of(tmp_path / "j")]
    assert states == [TrialState.FAIL, TrialState.WAITING]
    with opened(tmp_path / "j", sweep(trials=1)) as study:
        search(study, Formula())
    (finished,) = trials_of(tmp_path / "j", FINISHED)
    assert finished.user_attrs[GIVEN], "the settings given are still known as such"


def test_a_line_that_was_cut_off_is_mended_and_said(tmp_path: Path) -> None:
    journal, lines = tmp_path / "j", list[str]()
    with opened(journal, sweep(trials=2)) as study:
        search(study, Formula())
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"worker')
    with opened(journal, sweep(trials=3), lines.append) as study:
        search(study, Formula())
    assert "the last 20 bytes were a line without its end" in lines[0]
    assert journal.read_bytes().startswith(whole)
    assert len(trials_of(journal, FINISHED)) == 3


def test_other_data_are_not_mixed_into_a_study(tmp_path: Path) -> None:
    with opened(tmp_path / "j", sweep(study="mine", trials=1)) as study:
        search(study, Formula())
    other = {**PURPOSE, "data, settings or seed": "xyz", "digest": "4567"}
    with (
        pytest.raises(ConfigError, match="study 'mine' was made with another data, settings or seed"),
        opened(tmp_path / "j", sweep(study="mine"), purpose=other),
    ):
        pass
    with opened(tmp_path / "j", sweep(trials=1), purpose=other) as study:  # without a name it has one of its own
        search(study, Formula())


def test_two_drivers_are_not_at_one_journal(tmp_path: Path) -> None:
    with (
        opened(tmp_path / "j", sweep()),
        pytest.raises(ConfigError, match="another sweep is at it"),
        opened(tmp_path / "j", sweep()),
    ):
        pass


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://bucket/study.journal", "which an object store cannot do; expected a file"),
        ("postgresql+psycopg://user:secret@host/db", "a password in the URL"),
        ("oracle+nodriver://host/db", "nodriver"),
    ],
)
def test_a_place_that_cannot_keep_a_study_is_refused(url: str, reason: str) -> None:
    with pytest.raises((ConfigError, LakeError), match=reason) as caught, opened(url, sweep()):
        pass
    assert "secret" not in caught.value.message


def test_a_database_that_does_not_answer_is_an_error_of_ours() -> None:
    with pytest.raises(LakeError, match="run the same command again"), opened("sqlite:////proc/none/x.db", sweep()):
        pass


def test_settings_outside_of_the_space_are_not_tried_and_that_is_said(tmp_path: Path) -> None:
    lines = list[str]()
    narrow = sweep(space={"router.shrinkage": {"low": 0.5, "high": 1.0}}, trials=2)
    with opened(tmp_path / "j", narrow, lines.append) as study:
        search(study, Formula())
    assert lines == ["the settings given are not tried: router.shrinkage lie outside of the space"]
    assert not any(GIVEN in one.user_attrs for one in trials_of(tmp_path / "j"))


def test_results_are_a_recipe_a_table_and_plots(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with opened(tmp_path / "j", sweep(trials=12)) as study:
        study.ask("a")
        study.end("a", "it broke")
        search(study, Formula())
        found = write_results(study, BASE, str(out))
    assert load(TrainSettings, out / "recipe.yaml") == found.recipe
    assert found.recipe == applied(BASE, found.best.settings)
    assert found.recipe.router.shrinkage < BASE.router.shrinkage
    summary = json.loads((out / "study.json").read_text())
    assert summary["best"]["value"] == found.best.value == max(one.value or 0 for one in found.rows)
    assert summary["best"]["figures"].keys() >= {"s", "u", "seconds", "latency_ms"}
    assert summary["trials"]["fail"] == 1
    assert summary["trials"]["complete"] + summary["trials"]["pruned"] == 12
    assert sum(summary["importance"].values()) == pytest.approx(1, abs=0.01)
    lines = (out / "trials.csv").read_text().splitlines()
    assert lines[0] == "trial,state,value,latency_ms,steps,seconds,router.own_prior,router.shrinkage,remark"
    assert len(lines) == 14
    assert lines[1].endswith(",it broke; the settings given")
    for plot in ("importance.png", "parallel_coordinates.png"):
        assert (out / plot).read_bytes().startswith(b"\x89PNG")


def test_two_objectives_keep_the_best_and_name_what_is_quicker(tmp_path: Path) -> None:
    with opened(tmp_path / "j", sweep(trials=10, latency=True, pruning=False)) as study:
        search(study, Formula())
        found = write_results(study, BASE, str(tmp_path / "out"))
    pareto = found.summary["pareto"]
    assert found.best.number in {one["trial"] for one in pareto}
    assert found.best.value == max(one["value"] for one in pareto)
    for one in trials_of(tmp_path / "j"):
        assert one.values == [pytest.approx(1 - one.params["router.shrinkage"]), one.params["router.own_prior"]]


def test_without_a_complete_trial_there_is_no_recipe(tmp_path: Path) -> None:
    with opened(tmp_path / "j", sweep()) as study, pytest.raises(TrainingError, match="no trial was completed"):
        write_results(study, BASE, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_outcome_is_the_mean_of_its_steps() -> None:
    found = Outcome(2, 4, (0.5, 1.0), {}, 1.0, 2.0)
    assert (found.value, found.is_last) == (0.75, False)


def test_the_dashboard_reads_the_study(tmp_path: Path) -> None:
    """`optuna-dashboard <journal>` serves this application."""
    from optuna_dashboard import wsgi

    with opened(tmp_path / "j", sweep(trials=3)) as study:
        search(study, Formula())
    app = wsgi(JournalStorage(JournalFileBackend(str(tmp_path / "j"))))
    status = list[str]()
    asked = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies", "SERVER_NAME": "x", "SERVER_PORT": "80"}
    asked |= {"wsgi.url_scheme": "http"}
    body = b"".join(app(asked, lambda given, _headers, _info=None: status.append(given)))  # type: ignore[arg-type]
    assert status == ["200 OK"]
    assert [one["study_name"] for one in json.loads(body)["study_summaries"]] == ["sbad-0123"]
