"""Sweeps: which settings train the best bundle, by an Optuna study that is their only memory. No Ray here.

    space       which settings may vary, and how; the settings of a sweep
    prepare     the seen surfaces, read and embedded once, kept for the next start
    bench       what settings are worth: H on pseudo-unseen surfaces, or validation AP, a step at a time
    study       the study: asked for settings, told how they went, gone on from after a kill
    results     table, plots, recipe

`cluster.tune` drives it. What is unseen in truth has no way in: its rows are dropped before anything else is done.
"""

from sbdzsl.tuning.bench import Bench, DetectorBench, Outcome, RouterBench, outcomes, pseudo_unseen
from sbdzsl.tuning.results import SweepResult, write_results
from sbdzsl.tuning.space import Parameter, Stage, SweepSettings, applied, distributions
from sbdzsl.tuning.study import SweepStudy

__all__ = [
    "Bench",
    "DetectorBench",
    "Outcome",
    "Parameter",
    "RouterBench",
    "Stage",
    "SweepResult",
    "SweepSettings",
    "SweepStudy",
    "applied",
    "distributions",
    "outcomes",
    "pseudo_unseen",
    "write_results",
]
