"""`sbdzsl datasets <verb>`: what there is to train on, and whether it is fit for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from sbdzsl import config, lake
from sbdzsl.cli.options import Manifests, Seed, say, stdout

datasets_app = typer.Typer(
    no_args_is_help=True, help="Check a manifest, list the layouts known, draw the synthetic lake, build DAGM_MIX."
)


@datasets_app.command("list")
def datasets_list() -> None:
    """The layouts that `ingest` reads."""
    from sbdzsl import datasets

    for name, adapter in datasets.ADAPTERS.items():
        first_line = (sys.modules[adapter.__module__].__doc__ or "").strip().splitlines()[0]
        say(f"{name:14} {first_line}")


@datasets_app.command("synthetic")
def datasets_synthetic(
    out: Annotated[str, typer.Option(help="Folder to draw into.")],
    images: Annotated[int, typer.Option(min=10, help="Number of images over all surfaces.")] = 1000,
    size: Annotated[int, typer.Option(min=64, help="Side of an image, in pixels.")] = 256,
    seed: Seed = 0,
) -> None:
    """Draw ten surfaces with a defect type each, in DAGM's layout, as many images as wanted."""
    from sbdzsl.datasets import synthetic

    synthetic.write_lake(out, images, seed, size=size)
    say(f"{images:,} images -> {out}; next: sbdzsl ingest --adapter dagm --source {out} --out M.parquet")


@datasets_app.command("mix")
def datasets_mix(
    manifest: Manifests,
    out: Annotated[str, typer.Option(help="Folder for the augmented images and manifest.parquet.")],
    unseen: Annotated[list[str], typer.Option(help="Surface kept whole as unseen, may be given again.")],
    seed: Seed = 0,
) -> None:
    """Build DAGM_MIX (paper 3.2, 4.1) over any manifests; augmentation comes after the split."""
    from sbdzsl import datasets
    from sbdzsl.datasets import mix

    samples = datasets.samples_from_table(lake.read_manifests(manifest))
    mixed = mix.augment_mix(mix.build_mix(samples, unseen, seed), out, seed)
    target = lake.join(out, "manifest.parquet")
    lake.write_manifest(datasets.samples_to_table(mixed), target)
    say(f"{len(mixed):,} images -> {target}")


@datasets_app.command("validate")
def datasets_validate(
    manifest: Manifests,
    out: Annotated[str | None, typer.Option(help="Write what was found (.csv or .json).")] = None,
    suspects: Annotated[
        int, typer.Option(min=0, help="Also rank so many good images of each surface that look least like the others.")
    ] = 0,
    config_file: Annotated[Path | None, typer.Option("--config", help="Training settings (YAML), for `image`.")] = None,
    seed: Seed = 0,
) -> None:
    """Read every image and mask, say why rows are not fit to train on (exit code 1 if any is not), rank suspects."""
    from sbdzsl import datasets, screening, surface_training
    from sbdzsl.datasets import validation
    from sbdzsl.sbad.backbone import load_backbone

    form = validation.check_form(out) if out else None
    settings = config.load(config.TrainSettings, config_file).image
    samples = datasets.samples_from_table(lake.read_manifests(manifest))
    found = validation.validate(samples, settings, min_train=surface_training.MIN_TRAIN_IMAGES, report=say)
    findings = [*found.rejections]
    if suspects:
        findings += screening.rank_suspects(
            samples, suspects, load_backbone(stages=screening.STAGES), settings, seed, say
        )
    for finding in findings:
        say(f"{finding.code}: {finding.describe()}")
    table = Table("surface", "images", "good", "defect", "no label", "masks", "copies", "rejected")
    for row in found.surfaces:
        counts = (row.images, row.benign, row.defect, row.unlabelled, row.masked, row.alike, row.rejected)
        table.add_row(row.surface, *(f"{count:,}" for count in counts))
    stdout.print(table)
    if out and form:
        lake.write_bytes(out, validation.findings_as(findings, form))
        say(f"{len(findings):,} findings -> {out}")
    if found.rejections:
        raise typer.Exit(1)
