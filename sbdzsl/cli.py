"""`sbdzsl <verb>`: each verb parses its arguments and calls one function of the library.

Exit codes: 0 done, 1 the work failed, 2 the call is wrong, 130 interrupted. Errors go to
standard error; standard output carries what was asked for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sbdzsl import __version__, config, lake
from sbdzsl.calibration import Policy
from sbdzsl.errors import SbdzslError
from sbdzsl.verdict import to_parquet

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, help=__doc__)
datasets_app = typer.Typer(
    no_args_is_help=True, help="Check a manifest, list the layouts known, draw the synthetic lake, build DAGM_MIX."
)
app.add_typer(datasets_app, name="datasets")

#: Typer keeps its command parser private; this is the parent of the errors that it makes public.
_UsageError: Any = typer.BadParameter.__base__

_out = Console(highlight=False, soft_wrap=True)
_err = Console(highlight=False, soft_wrap=True, stderr=True)


Adapter = Annotated[str, typer.Option(help="Layout of the source, such as folder; `sbdzsl datasets list` shows all.")]
BundleUrl = Annotated[str, typer.Option("--bundle", help="Folder or URL of a bundle.")]
Manifests = Annotated[list[str], typer.Option("--manifest", help="Manifest (Parquet), may be given again.")]
PolicyName = Annotated[Policy | None, typer.Option("--policy", help="Threshold policy; the bundle's own if not given.")]
Device = Annotated[str, typer.Option(help="Device of the nets: cpu, cuda, cuda:1 ...")]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]


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
        _out.print(note, markup=False)
    table = Table("surface", "split", "groups", "good", "defective", "no label")
    for row in datasets.split_table(found.samples):
        counts = (row.groups, row.benign, row.defect, row.unlabelled)
        table.add_row(row.surface, row.split, *(f"{count:,}" for count in counts))
    _out.print(table)
    _out.print(f"{len(found.samples):,} images -> {out}", markup=False)


@app.command()
def train(
    manifest: Manifests,
    bundle: Annotated[str, typer.Option(help="Folder or URL to write the bundle to; must not hold one.")],
    backbone: Annotated[str | None, typer.Option(help="Id or folder of the frozen backbone.")] = None,
    unseen: Annotated[
        list[str] | None, typer.Option(help="Surface to leave out as unseen, may be given again.")
    ] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="Training settings (YAML).")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Train both stages, calibrate them on held-out images, write one bundle."""
    from sbdzsl import training

    settings = config.load(config.TrainSettings, config_file)
    trained = training.train(
        lake.read_manifests(manifest),
        bundle,
        settings,
        seed=seed,
        unseen=unseen or (),
        backbone=backbone,
        device=device,
        report=lambda line: _out.print(line, markup=False),
    )
    table = Table("surface", "AP (validation)", "threshold", "false-alarm rate promised", "held out: good", "defective")
    for surface in trained.surfaces:
        entry, threshold = trained.detectors[surface], trained.detectors[surface].threshold()
        ap = _percent(entry.validation_ap)
        promised = _percent(threshold.promised_rate)
        table.add_row(
            surface, ap, f"{threshold.value:.3f}", promised, f"{threshold.num_good}", f"{threshold.num_defect}"
        )
    _out.print(table)
    _out.print(f"bundle {trained.digest[:16]} -> {bundle}", markup=False)


@app.command()
def evaluate(
    bundle: BundleUrl,
    manifest: Manifests,
    out: Annotated[str, typer.Option(help="Figures to write (JSON).")],
    verdicts: Annotated[str | None, typer.Option(help="Also write each image's verdict (Parquet).")] = None,
    policy: PolicyName = None,
    device: Device = "cpu",
) -> None:
    """Figures on the test split: per surface AP, AUROC, F1, FP, FN; for the router S, U, H and AUROC."""
    from sbdzsl import bundle as bundles
    from sbdzsl import evaluation

    loaded = bundles.load(bundle, device)
    figures, judged = evaluation.evaluate(loaded, lake.read_manifests(manifest), policy, device)
    lake.write_bytes(out, json.dumps(figures, indent=2, allow_nan=False).encode())
    if verdicts:
        lake.write_bytes(verdicts, to_parquet(judged))
    table = Table("surface", "routed right", "AP", "AUROC", "F1", "FP", "FN")
    for surface, row in figures["surfaces"].items():
        routed = _percent(figures["routed_right"].get(surface))
        if row["seen"]:
            cells = [_percent(row["ap"]), _percent(row["auroc"]), _percent(row["f1"]), f"{row['fp']}", f"{row['fn']}"]
        else:
            cells = ["unseen", "", "", "", ""]
        table.add_row(surface, routed, *cells)
    _out.print(table)
    router = ", ".join(f"{name.upper()} {_percent(figures[name])}" for name in ("s", "u", "h"))
    _out.print(f"router: {router}, AUROC {_percent(figures['unseen_auroc'])}")
    _out.print(f"{figures['num_images']:,} images, {figures['num_errors']} unreadable -> {out}", markup=False)


@app.command()
def inspect(
    images: Annotated[list[str], typer.Argument(help="Files or URLs.")],
    bundle: BundleUrl,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    overlay: Annotated[str | None, typer.Option(help="Folder for one overlay PNG an image.")] = None,
    policy: PolicyName = None,
    device: Device = "cpu",
) -> None:
    """Judge images here and now, without Ray. A file that cannot be judged gets the verdict `error` and its code."""
    from sbdzsl import bundle as bundles
    from sbdzsl.inspector import Inspector, load_image
    from sbdzsl.report import gallery

    inspector = Inspector(bundles.load(bundle, device), policy, device)
    for given in images:
        uri = lake.absolute_url(given)
        loaded = load_image(lake.image_id(uri, ""), uri, inspector.bundle.settings.image)
        verdict = inspector.decide(loaded)
        if as_json:
            typer.echo(json.dumps(verdict.to_json(), allow_nan=False))
        else:
            _out.print(f"{given}: {verdict.describe()}", markup=False)
        if overlay and loaded.image is not None:
            target = lake.join(lake.absolute_url(overlay), f"{gallery.overlay_name(uri)}.png")
            lake.write_bytes(target, gallery.overlay_png(inspector, loaded, verdict))


@app.command()
def audit(
    bundle: BundleUrl,
    out: Annotated[str, typer.Option(help="Folder or URL for verdicts and report; run again to resume.")],
    lake_url: Annotated[
        str | None, typer.Option("--lake", help="Folder or URL: every image below it is judged.")
    ] = None,
    manifest: Annotated[str | None, typer.Option(help="Manifest (Parquet) in place of --lake.")] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="Audit settings (YAML).")] = None,
    policy: PolicyName = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster, host:6379; else RAY_ADDRESS, else this machine.")
    ] = None,
) -> None:
    """Judge every image of an archive exactly once, on Ray, and write a report. Unreadable images are rows."""
    # Ray is imported by this verb alone, so that the others start without it.
    from sbdzsl.cluster.audit import run_audit

    result = run_audit(
        bundle,
        out,
        lake_url=lake_url,
        manifest_uri=manifest,
        settings=config.load(config.AuditSettings, config_file),
        policy=policy,
        address=address,
        report=lambda line: _out.print(line, markup=False),
    )
    table = Table("surface", "good", "defective", "unseen, nearest to it")
    for row in result.summary.surfaces:
        table.add_row(row.surface, f"{row.good:,}", f"{row.defect:,}", f"{row.unseen_nearest:,}")
    _out.print(table)
    for error in result.summary.errors:
        _out.print(f"could not be judged: {error.count:,} {error.code}, such as {error.examples[0].uri}", markup=False)
    if not result.num_judged:
        _out.print("nothing to do: this audit was finished before; its report was written again")
    _out.print(result.summary.sentence, markup=False)
    proof = result.reconciliation
    _out.print(f"{proof.num_manifest:,} images, {proof.num_rows:,} rows, none missing, none doubled")
    _out.print(f"report: {result.report_uri}", markup=False)


@datasets_app.command("list")
def datasets_list() -> None:
    """The layouts that `ingest` reads."""
    from sbdzsl import datasets

    for name, adapter in datasets.ADAPTERS.items():
        first_line = (sys.modules[adapter.__module__].__doc__ or "").strip().splitlines()[0]
        _out.print(f"{name:14} {first_line}", markup=False)


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
    _out.print(
        f"{images:,} images -> {out}; next: sbdzsl ingest --adapter dagm --source {out} --out M.parquet", markup=False
    )


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
    _out.print(f"{len(mixed):,} images -> {target}", markup=False)


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
    from sbdzsl import datasets, screening, training
    from sbdzsl.datasets import validation
    from sbdzsl.sbad.backbone import load_backbone

    def show(line: str) -> None:
        _out.print(line, markup=False)

    form = validation.check_form(out) if out else None
    settings = config.load(config.TrainSettings, config_file).image
    samples = datasets.samples_from_table(lake.read_manifests(manifest))
    found = validation.validate(samples, settings, min_train=training.MIN_TRAIN_IMAGES, report=show)
    findings = [*found.rejections]
    if suspects:
        findings += screening.rank_suspects(samples, suspects, load_backbone(), settings, seed, show)
    for finding in findings:
        show(f"{finding.code}: {finding.describe()}")
    table = Table("surface", "images", "good", "defect", "no label", "masks", "copies", "rejected")
    for row in found.surfaces:
        counts = (row.images, row.benign, row.defect, row.unlabelled, row.masked, row.alike, row.rejected)
        table.add_row(row.surface, *(f"{count:,}" for count in counts))
    _out.print(table)
    if out and form:
        lake.write_bytes(out, validation.findings_as(findings, form))
        show(f"{len(findings):,} findings -> {out}")
    if found.rejections:
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Two-stage inspection of industrial surfaces: name the surface or say unseen, then find its defects."""
    if show:
        _out.print(f"sbdzsl {__version__}")
        raise typer.Exit


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code of the contract."""
    try:
        # What a verb leaves by `typer.Exit` is its exit code.
        code = app(args=list(argv) if argv is not None else None, standalone_mode=False)
    except SbdzslError as error:
        _err.print(f"error: {error.code}: {error.message}", markup=False)
        return error.exit_code
    except _UsageError as error:
        error.show()
        return 2
    except (typer.Abort, KeyboardInterrupt):
        _err.print("interrupted")
        return 130
    return int(code or 0)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


if __name__ == "__main__":
    sys.exit(main())
