"""Spaces: what they accept, what Optuna makes of them, and what they refuse with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sbdzsl.config import DetectorSettings, RouterSettings, TrainSettings, load, parse
from sbdzsl.errors import ConfigError
from sbdzsl.tuning import Parameter, SweepSettings, applied, distributions
from sbdzsl.tuning.space import DEFAULT_SPACES, TUNABLE, values_of

CONFIGS = Path(__file__).parents[2] / "ray_configs"
PAPER = TrainSettings(router=RouterSettings(score="paper"))


def space(**parameters: Any) -> SweepSettings:
    return parse(SweepSettings, {"space": {name.replace("__", "."): one for name, one in parameters.items()}}, "s")


def test_ranges_and_choices_become_what_optuna_draws_from() -> None:
    found = distributions(
        space(
            router__hidden={"low": 32, "high": 512, "log": True},
            router__critic_steps={"low": 1, "high": 9, "step": 4},
            router__generator={"choices": ["vaegan", "tf-vaegan"]},
        ),
        PAPER,
    )
    assert found == {
        "router.hidden": IntDistribution(32, 512, log=True),
        "router.critic_steps": IntDistribution(1, 9, step=4),
        "router.generator": CategoricalDistribution(("vaegan", "tf-vaegan")),
    }
    gate = distributions(space(router__shrinkage={"low": 0.01, "high": 1, "log": True}), TrainSettings())
    assert gate == {"router.shrinkage": FloatDistribution(0.01, 1.0, log=True)}


def test_settings_that_may_be_none_are_numbers_too() -> None:
    given = {"detector.patience": {"low": 1, "high": 9}, "detector.decision_gradient": {"low": 0, "high": 1}}
    found = distributions(SweepSettings.model_validate({"stage": "sbdd", "space": given}), TrainSettings())
    assert found == {
        "detector.patience": IntDistribution(1, 9),
        "detector.decision_gradient": FloatDistribution(0.0, 1.0),
    }


@pytest.mark.parametrize(
    ("name", "parameter", "reason"),
    [
        ("router.hiden", {"low": 1, "high": 2}, "router.hiden: stage sbad varies .*router.hidden"),
        ("router.false_alarm_rate", {"low": 0.01, "high": 0.1}, "router.false_alarm_rate: stage sbad varies"),
        ("router.crop_px", {"low": 64, "high": 256}, "router.crop_px: stage sbad varies"),
        ("detector.epochs", {"low": 1, "high": 2}, "detector.epochs: stage sbad varies"),
        ("router.pca_dims", {"low": 32}, "expected low and high, or choices"),
        ("router.pca_dims", {}, "expected low and high, or choices"),
        ("router.pca_dims", {"choices": []}, "at least 1 item"),
        ("router.pca_dims", {"choices": [8, 9], "log": True}, "do not go with choices"),
        ("router.pca_dims", {"low": 64, "high": 32}, "low 64 has to be below high 32"),
        ("router.shrinkage", {"low": 0, "high": 1, "log": True}, "log needs low above 0"),
        ("router.pca_dims", {"low": 10, "high": 60, "step": 20}, "not low 10 and a whole number of steps of 20"),
        ("router.pca_dims", {"low": 4, "high": 64}, r"space: router.pca_dims: .*greater than or equal to 8.*found 4"),
        ("router.pca_dims", {"low": 8.5, "high": 64}, "expected whole numbers"),
        ("router.shrinkage", {"low": 0.5, "high": 1.5}, r"router.shrinkage: .*less than or equal to 1"),
        ("router.score", {"choices": ["whitened-nn", "best"]}, r"router.score: .*found 'best'"),
        ("router.score", {"low": 0, "high": 1}, "router.score: is not a number; expected choices"),
        ("router.hidden", {"low": 32, "high": 64}, "router.hidden: decides nothing where router.score is whitened-nn"),
        ("router.pca_dims", {"lowest": 3}, "lowest"),
    ],
)
def test_what_is_wrong_with_a_space_is_said(name: str, parameter: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        distributions(parse(SweepSettings, {"space": {name: parameter}}, "sweep.yaml"), TrainSettings())


def test_a_score_that_varies_lets_vary_what_decides_under_each() -> None:
    varied = space(router__score={"choices": ["whitened-nn", "paper"]}, router__hidden={"low": 32, "high": 64})
    assert set(distributions(varied, TrainSettings())) == {"router.score", "router.hidden"}


def test_two_objectives_are_not_pruned() -> None:
    with pytest.raises(ConfigError, match=r"latency: .*set pruning to false"):
        parse(SweepSettings, {"latency": True}, "sweep.yaml")
    assert parse(SweepSettings, {"latency": True, "pruning": False}, "sweep.yaml").latency


def test_settings_lie_over_the_base_and_are_read_back() -> None:
    base = TrainSettings(detector=DetectorSettings(epochs=7), surfaces={"a": {"epochs": 3}})
    found = applied(base, {"router.hidden": 99, "detector.drawn_defects": 0.25})
    assert (found.router.hidden, found.detector.drawn_defects, found.detector.epochs) == (99, 0.25, 7)
    assert found.surfaces == base.surfaces
    assert values_of(found, {"router.hidden": None, "detector.epochs": None}) == {
        "router.hidden": 99,
        "detector.epochs": 7,
    }
    assert applied(base, {}) == base


def test_a_parameter_holds_what_may_be_drawn() -> None:
    stepped = Parameter(low=10, high=50, step=20)
    assert [value for value in range(60) if stepped.holds(value)] == [10, 30, 50]
    assert not stepped.holds(None)
    assert Parameter(choices=("a", None)).holds(None)
    assert not Parameter(choices=("a", "b")).holds("c")


def test_the_files_are_the_defaults_and_spaces_that_fit() -> None:
    gate = load(SweepSettings, CONFIGS / "tune_sbad.yaml")
    assert gate == SweepSettings(space=dict(DEFAULT_SPACES["sbad"]))
    assert yaml.safe_load((CONFIGS / "tune_sbad.yaml").read_text()).keys() == SweepSettings.model_fields.keys()
    distributions(load(SweepSettings, CONFIGS / "tune_vaegan.yaml"), PAPER)
    detectors = load(SweepSettings, CONFIGS / "tune_sbdd.yaml")
    assert detectors.space == DEFAULT_SPACES["sbdd"]
    distributions(detectors, TrainSettings())


def test_each_stages_own_space_holds_the_defaults() -> None:
    for stage, parameters in DEFAULT_SPACES.items():
        assert parameters.keys() <= TUNABLE[stage]
        given = values_of(TrainSettings(), parameters)
        assert all(parameter.holds(given[name]) for name, parameter in parameters.items()), given
