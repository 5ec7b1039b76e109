"""`train`: manifests to one bundle, here or on a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from sbdzsl import config, lake
from sbdzsl.cli.options import Device, Manifests, Seed, percent, say, stdout
from sbdzsl.cli.submission import submit_verb

if TYPE_CHECKING:
    from sbdzsl.bundle import Bundle


def train(
    ctx: typer.Context,
    manifest: Manifests,
    bundle: Annotated[str, typer.Option(help="Folder or URL to write the bundle to; must not hold one.")],
    backbone: Annotated[
        str | None, typer.Option(help="Folder or Hugging Face id of the frozen backbone; else as configured.")
    ] = None,
    unseen: Annotated[
        list[str] | None, typer.Option(help="Surface to leave out as unseen, may be given again.")
    ] = None,
    config_file: Annotated[
        str | None,
        typer.Option("--config", help="Training settings: a YAML file, or the settings themselves in braces."),
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Surfaces side by side, on Ray; run again to go on.")
    ] = False,
    cluster_config: Annotated[
        str | None, typer.Option(help="How it is spread: ray_configs/train.yaml, or the settings themselves in braces.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="With --cluster: a bundle without the surfaces that failed.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="With --cluster: host:6379 of it; else RAY_ADDRESS, else this machine.")
    ] = None,
    submit: Annotated[
        str | None, typer.Option(help="Dashboard of a cluster, http://head:8265: run there as a job, and follow it.")
    ] = None,
) -> None:
    """Train both stages, calibrate them on held-out images, write one bundle."""
    settings = config.load(config.TrainSettings, config_file)
    spread = config.load(config.ClusterSettings, cluster_config)
    _check(cluster=cluster or submit is not None, device=device, given=(cluster_config, address, allow_missing))
    if submit is not None:
        words = ctx.obj if cluster else [*ctx.obj, "--cluster"]
        inline = {"--config": settings, "--cluster-config": spread}
        raise typer.Exit(submit_verb("train", words, submit, inline))
    if backbone is not None:
        router = settings.router.model_copy(update={"backbone": backbone})
        settings = settings.model_copy(update={"router": router})
    manifests = lake.read_manifests(manifest)
    if cluster:
        # Ray is imported where it is asked for, so that all else starts without it.
        from sbdzsl.cluster.train import train_on_cluster

        trained = train_on_cluster(
            manifests,
            bundle,
            settings,
            spread,
            seed=seed,
            unseen=unseen or (),
            allow_missing=allow_missing,
            address=address,
            report=say,
        )
    else:
        from sbdzsl import training

        trained = training.train(manifests, bundle, settings, seed=seed, unseen=unseen or (), device=device, report=say)
    _print_detectors(trained)
    say(f"bundle {trained.digest[:16]} -> {bundle}")


def _check(*, cluster: bool, device: str, given: tuple[object, ...]) -> None:
    """Options that would have no effect are refused: whoever gives one expects it to have one."""
    if cluster and device != "cpu":
        raise typer.BadParameter("on a cluster gpus_per_worker of --cluster-config says where nets run, not --device")
    if not cluster and any(given):
        raise typer.BadParameter("--cluster-config, --address and --allow-missing belong to --cluster or --submit")


def _print_detectors(trained: Bundle) -> None:
    table = Table("surface", "AP (validation)", "threshold", "false-alarm rate promised", "held out: good", "defective")
    for surface in trained.surfaces:
        entry, threshold = trained.detectors[surface], trained.detectors[surface].threshold()
        ap = percent(entry.validation_ap)
        promised = percent(threshold.promised_rate)
        table.add_row(
            surface, ap, f"{threshold.value:.3f}", promised, f"{threshold.num_good}", f"{threshold.num_defect}"
        )
    stdout.print(table)
