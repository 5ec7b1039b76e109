"""`pipeline`: manifests to a bundle in force, in steps that are each done once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sbdzsl import config
from sbdzsl.cli.options import Device, say
from sbdzsl.cli.registry import By, Reason, decider, print_gate, print_record
from sbdzsl.cli.submission import submit_verb

if TYPE_CHECKING:
    import pyarrow as pa

    from sbdzsl.bundle import Bundle
    from sbdzsl.config import TrainSettings
    from sbdzsl.pipeline import PipelineSettings
    from sbdzsl.pipeline.steps import Outcome


def pipeline(
    ctx: typer.Context,
    config_file: Annotated[
        str | None,
        typer.Option("--config", help="Settings: ray_configs/pipeline.yaml, or the settings themselves in braces."),
    ] = None,
    manifest: Annotated[
        list[str] | None, typer.Option(help="Manifest (Parquet) to train on, may be given again; else as configured.")
    ] = None,
    evaluate_on: Annotated[
        list[str] | None, typer.Option(help="Manifest whose test rows decide, may be given again; else as configured.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder or URL of the run; else as configured.")] = None,
    unseen: Annotated[
        list[str] | None, typer.Option(help="Surface to leave out as unseen, may be given again; else as configured.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same result; else as configured.")] = None,
    registry: Annotated[
        str | None, typer.Option(help="Folder or URL of the registry to promote in; else as configured.")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Name that is to point to the bundle; else as configured.")] = None,
    margin: Annotated[
        float | None, typer.Option(min=0, max=1, help="How much worse a figure may be; else as configured.")
    ] = None,
    by: By = None,
    reason: Reason = "",
    device: Device = "cpu",
    cluster: Annotated[bool, typer.Option("--cluster", help="Train surfaces side by side, on Ray.")] = False,
    address: Annotated[
        str | None, typer.Option(help="With --cluster: host:6379 of it; else RAY_ADDRESS, else this machine.")
    ] = None,
    submit: Annotated[
        str | None, typer.Option(help="Dashboard of a cluster, http://head:8265: run there as a job, and follow it.")
    ] = None,
) -> None:
    """Train, evaluate, pass the gate, promote, report; run again to go on: what is done is not done twice."""
    from sbdzsl.pipeline import PipelineSettings

    configured = config.load(PipelineSettings, config_file)
    given = {"manifests": manifest, "out": out, "unseen": unseen, "seed": seed}
    settings = _overlaid(
        configured,
        given,
        evaluation={"manifests": evaluate_on},
        promotion={"registry": registry, "alias": alias, "margin": margin},
    )
    on_cluster = cluster or submit is not None
    if on_cluster and device != "cpu":
        raise typer.BadParameter("on a cluster `cluster` of the settings says where nets run, not --device")
    if address is not None and not on_cluster:
        raise typer.BadParameter("--address belongs to --cluster or --submit")
    who = decider(by) if settings.promotion.registry is not None else ""
    if submit is not None:
        words = ctx.obj if cluster else [*ctx.obj, "--cluster"]
        resolved = {"--by": who} if who else {}
        raise typer.Exit(submit_verb("pipeline", words, submit, {"--config": configured}, resolved))
    _conclude(_run(settings, who, reason, device, address, cluster=cluster))


def _run(
    settings: PipelineSettings, by: str, reason: str, device: str, address: str | None, *, cluster: bool
) -> Outcome:
    if cluster:
        # Ray is imported where it is asked for, so that all else starts without it.
        from sbdzsl.cluster.pipeline import run_on_cluster

        return run_on_cluster(settings, by, reason, address, say)
    from sbdzsl import training
    from sbdzsl.pipeline import steps

    def train(manifest: pa.Table, out: str, recipe: TrainSettings) -> Bundle:
        return training.train(manifest, out, recipe, settings.seed, settings.unseen, device, say)

    return steps.run(settings, train, by, reason, device, say)


def _overlaid(settings: PipelineSettings, given: dict[str, Any], **groups: dict[str, Any]) -> PipelineSettings:
    """The settings with what was given on the command line laid over them. Raises `ConfigError`."""
    values = settings.model_dump()
    values |= {name: value for name, value in given.items() if value is not None}
    for group, options in groups.items():
        values[group] |= {name: value for name, value in options.items() if value is not None}
    return config.parse(type(settings), values, "options")


def _conclude(outcome: Outcome) -> None:
    """Say how it ended. Raises `StoppedError` where the gate refused the bundle."""
    if outcome.gate is not None:
        print_gate(outcome.gate)
    if outcome.record is not None:
        print_record(outcome.record)
    say(f"bundle {outcome.digest[:16]} -> {outcome.bundle_url}")
    say(f"report -> {outcome.report_url}")
    outcome.check()
