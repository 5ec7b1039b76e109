"""`sbdzsl <verb>`: each verb parses its arguments and calls one function of the library.

Exit codes: 0 done, 1 the work failed, 2 the call is wrong, 3 stopped where it was told to, 130 interrupted. Errors go
to standard error; standard output carries what was asked for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from sbdzsl import __version__, config, lake
from sbdzsl.cli.audit import audit_app
from sbdzsl.cli.datasets import datasets_app
from sbdzsl.cli.lakes import list_images
from sbdzsl.cli.log import log_app
from sbdzsl.cli.options import (
    Adapter,
    BundleUrl,
    Device,
    Manifests,
    MaxMemory,
    Policy,
    PromiseName,
    RuntimeName,
    Seed,
    percent,
    say,
    stderr,
    stdout,
)
from sbdzsl.cli.pipeline import pipeline
from sbdzsl.cli.registry import registry_app
from sbdzsl.cli.reviews import reviews_app
from sbdzsl.cli.serving import keys_app, serve
from sbdzsl.cli.surfaces import enrol, extend, groups, retire
from sbdzsl.cli.training import train
from sbdzsl.cli.tuning import tune
from sbdzsl.cli.watch import watch
from sbdzsl.errors import SbdzslError
from sbdzsl.verdict import to_parquet

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, help=__doc__)
app.add_typer(datasets_app, name="datasets")
app.add_typer(audit_app, name="audit")
app.add_typer(keys_app, name="keys")
app.add_typer(registry_app, name="registry")
app.add_typer(log_app, name="log")
app.add_typer(reviews_app, name="reviews")

#: Typer keeps its command parser private; this is the parent of the errors that it makes public.
_UsageError: Any = typer.BadParameter.__base__


@app.command()
def ingest(
    adapter: Adapter,
    source: Annotated[str, typer.Option(help="Folder or URL of the images; the file itself for a table.")],
    out: Annotated[str, typer.Option(help="Manifest to write (Parquet).")],
    surface: Annotated[str | None, typer.Option(help="Name of the surface, or which one of several to take.")] = None,
    fold: Annotated[int | None, typer.Option(help="This fold, counted from 0, is the test split.")] = None,
    folds: Annotated[int | None, typer.Option(help="Number of folds.")] = None,
    seed: Seed = 0,
) -> None:
    """List labelled images into a manifest, with splits that never part a group (part, tile, lot)."""
    from sbdzsl import datasets

    found = datasets.ingest(adapter, source, surface=surface, fold=fold, folds=folds, seed=seed)
    lake.write_manifest(datasets.samples_to_table(found.samples), out)
    for note in found.notes:
        say(note)
    table = Table("surface", "split", "groups", "good", "defective", "no label")
    rows = datasets.split_table(found.samples)
    for row in rows:
        counts = (row.groups, row.benign, row.defect, row.unlabelled)
        table.add_row(row.surface, row.split, *(f"{count:,}" for count in counts))
    stdout.print(table)
    for fault in datasets.missing_good(rows):
        say(fault)
    say(f"{len(found.samples):,} images -> {out}")


@app.command()
def evaluate(
    bundle: BundleUrl,
    manifest: Manifests,
    out: Annotated[str, typer.Option(help="Figures to write (JSON).")],
    verdicts: Annotated[str | None, typer.Option(help="Also write each image's verdict (Parquet).")] = None,
    report: Annotated[str | None, typer.Option(help="Folder or URL for pictures: curves, scores, errors.")] = None,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Also under changed light, blur, noise and shift: 16 times the work.")
    ] = False,
    policy: Policy = None,
    promise: PromiseName = None,
    device: Device = "cpu",
    runtime: RuntimeName = "torch",
    max_memory_mb: MaxMemory = None,
) -> None:
    """Figures on the test split: of each detector, pooled, of the router, with intervals; and their pictures."""
    from sbdzsl import bundle as bundles
    from sbdzsl import evaluation

    loaded = bundles.load(bundle, device, promise)
    manifests = lake.read_manifests(manifest)
    found = evaluation.evaluate(
        loaded,
        manifests,
        policy,
        device,
        with_robustness=robustness,
        max_memory_mb=max_memory_mb,
        runtime=runtime,
    )
    lake.write_bytes(out, json.dumps(found.figures, indent=2, allow_nan=False).encode())
    if verdicts:
        lake.write_bytes(verdicts, to_parquet(found.verdicts))
    _print_figures(found.figures)
    if report:
        from sbdzsl.report import evaluation_page

        say(f"pictures: {evaluation_page.write_evaluation(found, loaded, report)}")
    say(f"{found.figures['num_images']:,} images, {found.figures['num_errors']} unreadable -> {out}")


def _print_figures(figures: Mapping[str, Any]) -> None:
    """Detectors, then their mean, pooled figures and the router."""
    # What fits on a terminal; the file has the rest.
    percents = ("ap", "auroc", "f1", "pixel_ap", "aupro")
    headings = ("AP", "AUROC", "F1", "pixel AP", "AUPRO")
    table = Table("surface", "routed right", *headings, "FP", "FN")
    seen = {surface: row for surface, row in figures["surfaces"].items() if row["seen"]}
    rows = [(surface, percent(figures["routed_right"].get(surface)), row) for surface, row in seen.items()]
    if len(seen) > 1:
        rows += [("mean", "", figures["mean"]), ("pooled", "", figures["pooled"])]
    for name, routed, row in rows:
        counts = ("–" if row.get(key) is None else f"{row[key]}" for key in ("fp", "fn"))
        table.add_row(name, routed, *(percent(row.get(key)) for key in percents), *counts)
    for surface in figures["surfaces"].keys() - seen.keys():
        table.add_row(surface, percent(figures["routed_right"].get(surface)), "unseen")
    stdout.print(table)
    router = ", ".join(f"{name.upper()} {percent(figures[name])}" for name in ("s", "u", "h"))
    stdout.print(f"router: {router}, AUROC {percent(figures['unseen_auroc'])}")


@app.command()
def reproduce(
    table: Annotated[
        str, typer.Argument(help="Table of the paper: table3, table4, table5 (router), table6 (detector).")
    ],
    data: Annotated[
        str | None, typer.Option(help="Folder or URL that holds one or more of its data sets; table6 needs it.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Also write all figures (JSON).")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds: each trains everything anew.")] = 1,
    config_file: Annotated[Path | None, typer.Option("--config", help="Training settings (YAML).")] = None,
    device: Device = "cpu",
) -> None:
    """Train and test what one of the paper's tables compares, and print its figures beside ours."""
    from sbdzsl import reproduce as reproductions

    found = reproductions.reproduce(
        table,
        data,
        config.load(config.TrainSettings, config_file),
        range(seeds),
        device,
        report=say,
    )
    printed = Table(*found.headings)
    for row in found.rows:
        printed.add_row(*row)
    stdout.print(printed)
    for line in found.remarks:
        say(line)
    if out:
        lake.write_bytes(out, json.dumps(found.figures, indent=2, allow_nan=False).encode())


@app.command()
def inspect(
    images: Annotated[list[str], typer.Argument(help="Files or URLs.")],
    bundle: BundleUrl,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    overlay: Annotated[str | None, typer.Option(help="Folder for one overlay PNG an image.")] = None,
    policy: Policy = None,
    promise: PromiseName = None,
    device: Device = "cpu",
    runtime: RuntimeName = "torch",
    max_memory_mb: MaxMemory = None,
) -> None:
    """Judge images here and now, without Ray. A file that cannot be judged gets the verdict `error` and its code."""
    from sbdzsl import bundle as bundles
    from sbdzsl.inspector import Inspector, load_image
    from sbdzsl.report import gallery

    inspector = Inspector(bundles.load(bundle, device, promise), policy, device, max_memory_mb, runtime)
    for given in images:
        uri = lake.absolute_url(given)
        loaded = load_image(lake.image_id(uri, ""), uri, inspector.bundle.settings.image)
        verdict = inspector.decide(loaded)
        if as_json:
            typer.echo(json.dumps(verdict.to_json(), allow_nan=False))
        else:
            say(f"{given}: {verdict.describe()}")
        if overlay and loaded.image is not None:
            target = lake.join(lake.absolute_url(overlay), f"{gallery.overlay_name(uri)}.png")
            lake.write_bytes(target, gallery.overlay_png(inspector, loaded, verdict))


@app.command()
def export(
    bundle: BundleUrl,
    out: Annotated[str, typer.Option(help="Folder or URL to write the graphs to; must not hold an export.")],
    target: Annotated[Literal["onnx", "openvino"], typer.Option("--format", help="Format of the graphs.")] = "onnx",
    images: Annotated[
        list[str] | None, typer.Option(help="Image, or folder of images, to check on; may be given again.")
    ] = None,
    manifest: Annotated[
        list[str] | None, typer.Option(help="Manifest (Parquet) of images to check on, may be given again.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Detectors in 8-bit integers, calibrated on the images.")
    ] = False,
    surface: Annotated[list[str] | None, typer.Option(help="Export this surface alone, may be given again.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Logits that scores and maps may differ by; 0.001, int8 1.")
    ] = None,
) -> None:
    """Write a bundle's nets as graphs for other runtimes; refused where they judge real images otherwise."""
    from sbdzsl import bundle as bundles
    from sbdzsl import export as exports

    card = exports.export(
        bundles.load(bundle),
        out,
        target,
        exports.samples_to_check(images or (), manifest or ()),
        int8=int8,
        surfaces=surface or (),
        tolerance=tolerance,
        report=say,
    )
    say(f"{len(card['detectors'])} detectors and the router's trunk -> {out}")


app.command("list")(list_images)
for verb in (train, tune, pipeline, enrol, extend, retire, groups, serve, watch):
    app.command()(verb)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Two-stage inspection of industrial surfaces: name the surface or say unseen, then find its defects."""
    if show:
        stdout.print(f"sbdzsl {__version__}")
        raise typer.Exit


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code of the contract."""
    try:
        # What a verb leaves by `typer.Exit` is its exit code.
        words = sys.argv[1:] if argv is None else list(argv)
        code = app(args=words, standalone_mode=False, obj=words)
    except SbdzslError as error:
        stderr.print(f"error: {error.code}: {error.message}", markup=False)
        return error.exit_code
    except _UsageError as error:
        error.show()
        return 2
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    if code == 130:  # which is what Typer itself makes of Ctrl-C
        stderr.print("interrupted")
    return int(code or 0)
