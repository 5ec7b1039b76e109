"""Which settings a sweep may vary, and how: dotted names of `TrainSettings`, each with a range or a list of choices.

What is promised to the user (false-alarm rates, policies) is no knob, and neither is what the features depend on, which
are computed once. A setting that decides nothing under the others is refused: its importance would be noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import Field, ValidationInfo, field_validator, model_validator

from sbdzsl import config
from sbdzsl.config import DetectorSettings, RouterSettings, Settings, TrainSettings
from sbdzsl.errors import ConfigError

Stage = Literal["sbad", "sbdd"]
Value = bool | int | float | str | None

_GROUPS: Mapping[str, type[Settings]] = {"router": RouterSettings, "detector": DetectorSettings}

#: What decides under each score; the score itself may vary, too.
_DECIDING: Mapping[str, frozenset[str]] = {
    "whitened-nn": frozenset({"pca_dims", "shrinkage", "own_prior"}),
    "paper": frozenset(
        {
            "class_embedding",
            "generator",
            "reading_loss",
            "ce_vae_steps",
            "vaegan_steps",
            "critic_steps",
            "hidden",
        }
    ),
}
_PROMISES = frozenset({"false_alarm_rate", "threshold_policy", "max_memory_mb", "max_minutes", "precision"})

#: Dotted names that a sweep of each stage may vary.
TUNABLE: Mapping[Stage, frozenset[str]] = {
    "sbad": frozenset(f"router.{name}" for name in {"score"}.union(*_DECIDING.values())),
    "sbdd": frozenset(f"detector.{name}" for name in DetectorSettings.model_fields.keys() - _PROMISES),
}


def _is_whole(number: float) -> bool:
    return math.isclose(number, round(number), abs_tol=1e-9)


class Parameter(Settings):
    """How one setting varies: from `low` to `high`, both included, or among `choices`."""

    low: int | float | None = Field(None, description="smallest value")
    high: int | float | None = Field(None, description="largest value")
    step: int | float | None = Field(None, gt=0, description="between two values; none: 1 for whole numbers, else any")
    log: bool = Field(False, description="drawn evenly by orders of magnitude")
    choices: tuple[Value, ...] | None = Field(None, min_length=1, description="in place of a range")

    @model_validator(mode="after")
    def _one_form(self) -> Parameter:
        ranged = self.low is not None and self.high is not None
        if ranged == (self.choices is not None):
            raise ValueError("expected low and high, or choices")
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.step is not None or self.log:
                raise ValueError("low, high, step and log do not go with choices")
            return self
        assert self.low is not None
        assert self.high is not None
        if not self.low < self.high:
            raise ValueError(f"low {self.low} has to be below high {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low above 0, and no step")
        if self.step is not None and not _is_whole((self.high - self.low) / self.step):
            raise ValueError(f"high {self.high} is not low {self.low} and a whole number of steps of {self.step}")
        return self

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values that all others lie between: the ends of the range, or all choices."""
        return self.choices if self.choices is not None else (self.low, self.high)

    def holds(self, value: Any) -> bool:
        """Whether a value may be drawn."""
        if self.choices is not None:
            return value in self.choices
        assert self.low is not None
        assert self.high is not None
        if isinstance(value, bool | str | None) or not self.low <= value <= self.high:
            return False
        return self.step is None or _is_whole((value - self.low) / self.step)


#: What is searched where the settings name no space.
DEFAULT_SPACES: Mapping[Stage, Mapping[str, Parameter]] = {
    "sbad": {
        "router.pca_dims": Parameter(low=24, high=192, log=True),
        "router.shrinkage": Parameter(low=0.01, high=0.6, log=True),
        "router.own_prior": Parameter(low=0.5, high=50.0, log=True),
    },
    "sbdd": {
        "detector.learning_rate": Parameter(low=5e-4, high=1e-2, log=True),
        "detector.epochs": Parameter(low=20, high=80, step=10),
        "detector.drawn_defects": Parameter(low=0.0, high=1.0),
        "detector.positive_weight": Parameter(low=3.0, high=30.0, log=True),
    },
}


class SweepSettings(Settings):
    """Everything `sbdzsl tune --search` accepts: what is searched, how long, and where the study is kept."""

    stage: Stage = Field("sbad", description="sbad: the router, by H on pseudo-unseen; sbdd: detectors, by AP")
    space: dict[str, Parameter] = Field(
        default_factory=dict, description="dotted names of training settings; none: a few of the stage's own"
    )
    trials: int = Field(40, ge=1, description="finished or pruned ones that the study has to have in the end")
    folds: int = Field(4, ge=2, description="of sbad: parts of the seen surfaces, held out as unseen in turn")
    pruning: bool = Field(True, description="stop a trial that lags behind after some of its folds or surfaces (ASHA)")
    reduction_factor: int = Field(2, ge=2, description="of ASHA: one in so many goes on at 1, 2, 4 ... times this")
    latency: bool = Field(False, description="the time to judge an image as a second objective; needs pruning: false")
    startup_trials: int = Field(10, ge=1, description="drawn at random before TPE has enough to go by")

    concurrent: int | None = Field(None, ge=1, description="trials at once; none: as many as the cluster holds")
    cpus_per_trial: float = Field(1.0, gt=0, description="also the threads of a training; bits depend on them")
    gpus_per_trial: float = Field(0.0, ge=0, description="0.5 puts two trials on one GPU")
    max_minutes: float = Field(1440.0, gt=0, description="then the sweep stops in good order; run again to go on")
    max_failed: int = Field(5, ge=1, description="failed trials of one start, after which the sweep gives up")

    storage: str | None = Field(
        None, description="Optuna's: a journal file on a local or network folder, or a database URL; none: below --out"
    )
    study: str | None = Field(None, description="its name there; none: made from stage, data, settings and space")

    @field_validator("space")
    @classmethod
    def _tunable(cls, space: dict[str, Parameter], info: ValidationInfo) -> dict[str, Parameter]:
        names = TUNABLE[info.data.get("stage", "sbad")]
        strangers = sorted(set(space) - names)
        if strangers:
            stage = info.data.get("stage")
            raise ValueError(f"{', '.join(strangers)}: stage {stage} varies {', '.join(sorted(names))}")
        return space

    @field_validator("latency")
    @classmethod
    def _one_objective_to_prune_by(cls, latency: bool, info: ValidationInfo) -> bool:
        if latency and info.data.get("pruning"):
            raise ValueError("a trial is pruned by one objective, and this makes two; set pruning to false")
        return latency

    @property
    def searched(self) -> Mapping[str, Parameter]:
        """The space, or the stage's own where none is named."""
        return self.space or DEFAULT_SPACES[self.stage]


def distributions(sweep: SweepSettings, base: TrainSettings) -> dict[str, BaseDistribution]:
    """The space as Optuna draws from it, every value checked against what `TrainSettings` accepts.

    Raises `ConfigError`: a range of what is no number, an end that is out of range, a setting that decides nothing.
    """
    _refuse_idle(sweep, base)
    found: dict[str, BaseDistribution] = {}
    for name, parameter in sweep.searched.items():
        found[name] = _distribution(name, parameter)
        for value in parameter.ends:
            applied(base, {name: value})
    return found


def applied(base: TrainSettings, values: Mapping[str, Any]) -> TrainSettings:
    """`base` with the settings of these dotted names in place of its own. Raises `ConfigError`."""
    merged = base.model_dump()
    for name, value in values.items():
        group, _, key = name.partition(".")
        merged[group][key] = value
    return config.parse(TrainSettings, merged, "space")


def values_of(base: TrainSettings, names: Mapping[str, Any]) -> dict[str, Any]:
    """What `base` says under dotted names."""
    return {name: getattr(getattr(base, name.partition(".")[0]), name.partition(".")[2]) for name in names}


def _distribution(name: str, parameter: Parameter) -> BaseDistribution:
    if parameter.choices is not None:
        return CategoricalDistribution(parameter.choices)
    group, _, key = name.partition(".")
    annotation = _GROUPS[group].model_fields[key].annotation
    kinds = {annotation, *get_args(annotation)}
    assert parameter.low is not None
    assert parameter.high is not None
    if int in kinds:
        numbers = parameter.low, parameter.high, 1 if parameter.step is None else parameter.step
        if not all(_is_whole(number) for number in numbers):
            raise ConfigError("bad-config", f"space: {name}: found {numbers}, expected whole numbers")
        low, high, step = (int(number) for number in numbers)
        return IntDistribution(low, high, log=parameter.log, step=step)
    if float in kinds:
        return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    raise ConfigError("bad-config", f"space: {name}: is not a number; expected choices in place of low and high")


def _refuse_idle(sweep: SweepSettings, base: TrainSettings) -> None:
    """Refuse settings of the router that decide nothing under any score that the sweep looks at."""
    if sweep.stage != "sbad":
        return
    scores = sweep.searched["router.score"].ends if "router.score" in sweep.searched else (base.router.score,)
    deciding = {"router.score"} | {f"router.{name}" for score in scores for name in _DECIDING.get(str(score), ())}
    idle = sorted(set(sweep.searched) - deciding)
    if idle:
        raise ConfigError(
            "bad-config",
            f"space: {', '.join(idle)}: decides nothing where router.score is {', '.join(map(str, scores))}; set "
            "router.score in --config, or let it vary",
        )
