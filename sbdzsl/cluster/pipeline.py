"""The pipeline with its sweep and its training on a cluster; all other steps run in the driver."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from sbdzsl.bundle import Bundle
from sbdzsl.cluster.train import train_on_cluster
from sbdzsl.cluster.tune import tune_on_cluster
from sbdzsl.config import TrainSettings
from sbdzsl.pipeline import PipelineSettings
from sbdzsl.pipeline.steps import Outcome, run

Report = Callable[[str], None]


def run_on_cluster(
    settings: PipelineSettings, by: str, reason: str = "", address: str | None = None, report: Report = print
) -> Outcome:
    """As `pipeline.steps.run`, the surfaces side by side; a run that has trained already starts no Ray.

    Raises as that, and as `train_on_cluster` and `tune_on_cluster`.
    """

    def train(manifest: pa.Table, out: str, recipe: TrainSettings) -> Bundle:
        return train_on_cluster(
            manifest,
            out,
            recipe,
            settings.cluster,
            seed=settings.seed,
            unseen=settings.unseen,
            allow_missing=settings.allow_missing,
            address=address,
            report=report,
        )

    def tune(manifest: pa.Table, out: str, base: TrainSettings) -> TrainSettings:
        assert settings.tune is not None
        found = tune_on_cluster(
            manifest, out, base, settings.tune, settings.seed, settings.unseen, address=address, report=report
        )
        return found.recipe

    return run(settings, train, by, reason, report=report, tune=tune)
