"""`tune`: a sweep over training settings, and the best of them as a recipe for `train --config`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from sbdzsl import config, lake
from sbdzsl.cli.options import Manifests, Seed, say, stdout
from sbdzsl.cli.submission import submit_verb

if TYPE_CHECKING:
    from sbdzsl.tuning import SweepResult

#: Rows that are printed; the file has all.
NUM_SHOWN = 10


def tune(
    ctx: typer.Context,
    manifest: Manifests,
    out: Annotated[str, typer.Option(help="Folder or URL for the recipe, the table, the plots and the study.")],
    config_file: Annotated[
        str | None,
        typer.Option("--config", help="Training settings to start from: a YAML file, or themselves in braces."),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(help="What is searched: ray_configs/tune_sbad.yaml, or the settings themselves in braces."),
    ] = None,
    stage: Annotated[str | None, typer.Option(help="sbad (the router) or sbdd (the detectors); else as in it.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials the study has in the end; else as in it.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="Optuna's: a journal file, or a database URL; else as in it, or below --out.")
    ] = None,
    study: Annotated[str | None, typer.Option(help="Name of the study; else one for each data and settings.")] = None,
    seed: Seed = 0,
    unseen: Annotated[list[str] | None, typer.Option(help="Surface that takes no part, may be given again.")] = None,
    address: Annotated[str | None, typer.Option(help="host:6379 of a cluster; else RAY_ADDRESS, else here.")] = None,
    submit: Annotated[
        str | None, typer.Option(help="Dashboard of a cluster, http://head:8265: run there as a job, and follow it.")
    ] = None,
) -> None:
    """Search training settings on the seen surfaces, on Ray; run again to go on where a killed sweep was."""
    from sbdzsl.tuning import SweepSettings

    base = config.load(config.TrainSettings, config_file)
    given = {"stage": stage, "trials": trials, "storage": storage, "study": study}
    values = config.load(SweepSettings, search).model_dump(exclude_unset=True)
    values |= {name: value for name, value in given.items() if value is not None}
    sweep = config.parse(SweepSettings, values, search or "options")
    if submit is not None:
        raise typer.Exit(submit_verb("tune", ctx.obj, submit, {"--config": base, "--search": sweep}))
    # Ray is imported where it is asked for, so that all else starts without it.
    from sbdzsl.cluster.tune import tune_on_cluster

    found = tune_on_cluster(lake.read_manifests(manifest), out, base, sweep, seed, unseen or (), address, say)
    _print_trials(found)
    say(f"recipe of trial {found.best.number} -> {lake.join(out, 'recipe.yaml')}")


def _print_trials(found: SweepResult) -> None:
    """The best complete trials, and the settings given if they are not among them."""
    complete = [row for row in found.rows if row.state == "complete"]
    shown = sorted(complete, key=lambda row: (-(row.value or 0), row.latency_ms or 0))[:NUM_SHOWN]
    shown += [row for row in complete if row.remark and row not in shown]
    names = sorted({name for row in shown for name in row.settings})
    headings = (name.partition(".")[2] for name in names)
    table = Table("trial", str(found.summary["objective"]), "ms", "s", *headings, "")
    for row in shown:
        settings = (_short(row.settings.get(name)) for name in names)
        table.add_row(
            f"{row.number}", f"{row.value:.4f}", f"{row.latency_ms:.2f}", f"{row.seconds:.1f}", *settings, row.remark
        )
    stdout.print(table)
    counts = ", ".join(f"{number} {state}" for state, number in found.summary["trials"].items() if number)
    say(f"trials of study {found.summary['study']}: {counts}")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"
