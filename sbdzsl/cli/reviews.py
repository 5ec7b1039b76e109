"""`reviews`: what people said about verdicts, for the next training and for thresholds."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from sbdzsl import lake
from sbdzsl.cli.options import BundleUrl, Policy, Seed, say, stdout
from sbdzsl.errors import ConfigError

reviews_app = typer.Typer(no_args_is_help=True, help="Reviews of verdicts: export them, learn thresholds from them.")

Data = Annotated[str, typer.Option("--data", help="Data folder of the service; it may be running.")]


@reviews_app.command("export")
def export(
    data: Data,
    out: Annotated[str, typer.Option(help="Manifest to write (Parquet).")],
    images: Annotated[
        str | None,
        typer.Option(help="Folder or URL that the images are copied to; `images` beside --out if not given."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Write the reviewed images and their labels as a manifest for the next training."""
    from sbdzsl.serving import reviews

    found = reviews.export(data, out, images, seed)
    table = Table("surface", "label", "images")
    for (surface, label), count in sorted(found.images.items()):
        table.add_row(surface, label, f"{count:,}")
    stdout.print(table)
    for reason, count in found.left_out.most_common():
        say(f"left out: {count:,} {reason}")
    say(f"{sum(found.images.values()):,} images -> {out}")


@reviews_app.command("recalibrate")
def recalibrate(
    bundle: BundleUrl,
    data: Data,
    log: Annotated[str | None, typer.Option(help="Verdict log; that of the data folder if not given.")] = None,
    surface: Annotated[
        list[str] | None, typer.Option(help="This surface alone, may be given again; else all with reviews.")
    ] = None,
    policy: Policy = None,
    out: Annotated[str | None, typer.Option(help="Write the proposal to a file or URL: .json or .md.")] = None,
    approve: Annotated[
        str | None, typer.Option(metavar="NAME", help="Approve the proposal by this name: needs --reason and --to.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why; stands in the new bundle.")] = None,
    to: Annotated[str | None, typer.Option(help="Folder or URL for the new bundle; must not hold one.")] = None,
) -> None:
    """Propose thresholds from reviewed images, with what they would change. Only --approve writes a bundle."""
    from sbdzsl import bundle as bundles
    from sbdzsl.serving import recalibration
    from sbdzsl.serving.recorder import LOG

    if out is not None and not out.endswith((".json", ".md")):
        raise ConfigError("bad-config", f"found --out {out}, expected a name that ends in .json or .md")
    if len({approve is None, reason is None, to is None}) > 1:
        raise ConfigError("bad-config", "--approve, --reason and --to belong together: give all of them or none")
    loaded = bundles.load(bundle)
    found = recalibration.propose(loaded, data, log or lake.join(data, LOG), surface or (), policy)
    for one in found.of_surfaces:
        table = Table(one.surface, "before", "after")
        for row in recalibration.compared(one):
            table.add_row(*row)
        stdout.print(table)
        say(recalibration.basis(one))
    for why, count in found.left_out.most_common():
        say(f"left out: {count:,} {why}")
    say(recalibration.CAUTION)
    if out is not None:
        text = recalibration.to_markdown(found, loaded)
        if out.endswith(".json"):
            text = json.dumps(recalibration.to_json(found, loaded), indent=2, allow_nan=False)
        lake.write_bytes(out, text.encode())
        say(f"proposal -> {out}")
    if approve is not None and reason is not None and to is not None:
        saved = recalibration.approve(loaded, found, to, approve, reason)
        say(f"bundle {saved.digest[:16]} -> {to}")
