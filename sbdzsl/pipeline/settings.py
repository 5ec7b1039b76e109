"""What a run of the pipeline is asked for."""

from __future__ import annotations

from pydantic import Field

from sbdzsl.config import POLICY_FORMS, ClusterSettings, RuleSetting, Settings, TrainSettings
from sbdzsl.tuning import SweepSettings


class EvaluationSettings(Settings):
    """What the trained bundle is measured on, and how."""

    manifests: tuple[str, ...] = Field((), description="whose test rows decide; none: those of the training manifests")
    policy: RuleSetting | None = Field(None, description=f"one of {POLICY_FORMS}; none: the bundle's own")
    robustness: bool = Field(False, description="also under changed light, blur, noise and shift: 16 times the work")


class PromotionSettings(Settings):
    """Where the bundle goes if it is good enough: what `sbdzsl registry promote` is told."""

    registry: str | None = Field(None, description="folder or URL of the registry; none: nothing is promoted")
    alias: str = Field("production", description="name that points to the bundle from then on")
    margin: float = Field(0.01, ge=0, lt=1, description="how much worse a figure may be than that of who is in force")


class PipelineSettings(Settings):
    """Everything `sbdzsl pipeline --config` accepts.

    What the bundle and its figures follow from is fixed for a run: all but `out`, `cluster`,
    `promotion`, and how `tune` is run.
    """

    manifests: tuple[str, ...] = Field((), description="Parquet; train on train and val rows")
    out: str | None = Field(None, description="folder or URL of the run, which every node must reach")
    unseen: tuple[str, ...] = Field((), description="surfaces that are left out of training")
    seed: int = Field(0, description="same seed, same result")
    train: TrainSettings = TrainSettings()
    tune: SweepSettings | None = Field(
        None, description="on a cluster: a sweep that starts from `train`; none: no sweep"
    )
    allow_missing: bool = Field(False, description="on a cluster: a bundle without the surfaces that failed")
    evaluation: EvaluationSettings = EvaluationSettings()
    promotion: PromotionSettings = PromotionSettings()
    cluster: ClusterSettings = ClusterSettings()
