"""What a sweep found: the table of its trials, what mattered, and the best settings as a recipe to train by."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from optuna import importance, visualization
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from sbdzsl import lake
from sbdzsl.config import TrainSettings
from sbdzsl.errors import TrainingError
from sbdzsl.spreadsheet import rows_csv
from sbdzsl.tuning.space import applied
from sbdzsl.tuning.study import AGAIN, GIVEN, REASON, SweepStudy

#: Fewer complete trials say nothing about what mattered.
MIN_FOR_PLOTS = 4

_DPI = 110


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial as the table shows it. `value` (H or AP) of a pruned one is that of the steps it had.

    `seconds` of training and judging; `remark` says why it failed, or whose settings these are.
    """

    number: int
    state: str
    value: float | None
    latency_ms: float | None
    steps: int | None
    seconds: float | None
    settings: Mapping[str, Any]
    remark: str


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The best settings as a whole, what they differ in, all trials, and the figures of `study.json`."""

    recipe: TrainSettings
    best: TrialRow
    rows: tuple[TrialRow, ...]
    summary: Mapping[str, Any]


def write_results(study: SweepStudy, base: TrainSettings, out: str) -> SweepResult:
    """Write `recipe.yaml`, `study.json`, `trials.csv` and two plots to the folder or URL `out`.

    The best trial is the one with the highest H or AP; of several, the quickest to judge where that is an objective,
    and else the first, which may be the settings given. Raises `TrainingError` "trials-failed" where no trial was
    completed.
    """
    trials = [one for one in study.study.get_trials(deepcopy=False) if one.state != TrialState.WAITING]
    complete = [one for one in trials if one.state == TrialState.COMPLETE]
    if not complete:
        raise TrainingError(
            "trials-failed", "no trial was completed, so there are no best settings; see the lines above"
        )
    best = max(complete, key=lambda one: (one.values[0], *(-value for value in one.values[1:]), -one.number))
    recipe, rows = applied(base, best.params), tuple(_row(one) for one in trials)
    summary = _summary(study, trials, complete, best)
    files: dict[str, bytes] = {
        "recipe.yaml": _recipe_yaml(recipe, study, best).encode(),
        "study.json": json.dumps(summary, indent=2, allow_nan=False).encode(),
        "trials.csv": _table(rows),
    }
    if len(complete) >= MIN_FOR_PLOTS:
        files["importance.png"] = _plot(study, visualization.matplotlib.plot_param_importances)
        files["parallel_coordinates.png"] = _plot(study, visualization.matplotlib.plot_parallel_coordinate)
    for name, content in files.items():
        lake.write_bytes(lake.join(out, name), content)
    return SweepResult(recipe, rows[trials.index(best)], rows, summary)


def _row(trial: FrozenTrial) -> TrialRow:
    attrs = trial.user_attrs
    remarks = [attrs[REASON]] if REASON in attrs else []
    if trial.state == TrialState.FAIL and not remarks:
        remarks.append("its driver ended")
    if GIVEN in attrs:
        remarks.append("the settings given")
    if AGAIN in attrs:
        remarks.append(f"again, for trial {attrs[AGAIN]}")
    return TrialRow(
        number=trial.number,
        state=trial.state.name.lower(),
        value=trial.values[0] if trial.values else None,
        latency_ms=attrs.get("latency_ms"),
        steps=attrs.get("steps"),
        seconds=attrs.get("seconds"),
        settings=trial.params,
        remark="; ".join(remarks),
    )


def _summary(
    study: SweepStudy, trials: Sequence[FrozenTrial], complete: Sequence[FrozenTrial], best: FrozenTrial
) -> dict[str, Any]:
    given = next((one for one in complete if GIVEN in one.user_attrs), None)
    counts = {state.name.lower(): sum(one.state == state for one in trials) for state in TrialState}
    del counts["waiting"]
    return {
        "study": study.study.study_name,
        "stage": study.sweep.stage,
        "objective": study.quality,
        "trials": counts,
        "best": _figures(best),
        "given": given and _figures(given),
        "pareto": [_figures(one) for one in study.study.best_trials] if study.sweep.latency else None,
        "importance": importance_of(study) if len(complete) >= MIN_FOR_PLOTS else None,
        "seconds": round(sum(one.user_attrs.get("seconds", 0.0) for one in trials), 1),
    }


def _figures(trial: FrozenTrial) -> dict[str, Any]:
    figures = {key: value for key, value in trial.user_attrs.items() if isinstance(value, float)}
    return {"trial": trial.number, "value": trial.values[0], "settings": trial.params, "figures": figures}


def importance_of(study: SweepStudy) -> dict[str, float]:
    """Share of each setting in what made trials good, by PED-ANOVA; the shares sum up to 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few trials, which the manual warns of as well
        found = importance.get_param_importances(study.study)
    return {name: round(float(share), 4) for name, share in found.items()}


def _recipe_yaml(recipe: TrainSettings, study: SweepStudy, best: FrozenTrial) -> str:
    """Training settings that differ from the defaults, and where they come from."""
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    head = f"# Trial {best.number} of study {study.study.study_name}: {study.quality} {best.values[0]:.4f}\n"
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _table(rows: Sequence[TrialRow]) -> bytes:
    names = sorted({name for row in rows for name in row.settings})
    return rows_csv(
        ["trial", "state", "value", "latency_ms", "steps", "seconds", *names, "remark"],
        (
            [
                *(row.number, row.state, row.value, row.latency_ms, row.steps, row.seconds),
                *(row.settings.get(name) for name in names),
                row.remark,
            ]
            for row in rows
        ),
    )


def _plot(study: SweepStudy, plot: Callable[..., Any]) -> bytes:
    """One of Optuna's plots as PNG; they are drawn by the global state of pyplot, which is left as it was."""
    # Here, since the processes of the trials load this module and never draw.
    import matplotlib
    from matplotlib import pyplot

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)  # of few trials
        figure = plot(study.study).figure
        figure.set_size_inches(11, 6)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=_DPI, bbox_inches="tight")
        pyplot.close(figure)
    return drawn.getvalue()
