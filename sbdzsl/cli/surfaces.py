"""`enrol` and `retire`: the verbs by which a bundle's surfaces come and go."""

from __future__ import annotations

from typing import Annotated

import typer

from sbdzsl.cli.options import BundleUrl, Device, Seed, percent, stdout

Surface = Annotated[str, typer.Option("--surface", help="Name of the surface.")]
NewBundle = Annotated[str, typer.Option("--out", help="Folder or URL to write the new bundle to; must not hold one.")]


def enrol(
    bundle: BundleUrl,
    surface: Surface,
    out: NewBundle,
    images: Annotated[
        str | None, typer.Option(help="Folder or URL with images of it, with or without folders benign, defect, masks.")
    ] = None,
    manifest: Annotated[
        str | None, typer.Option(help="Manifest (Parquet) in place of --images: rows of it, or without surface.")
    ] = None,
    attributes: Annotated[
        str | None, typer.Option(help="Attribute table (CSV) with a row for it; else read off its images.")
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Teach a bundle one more surface from a few images; a new bundle is written, nothing else is trained again."""
    from sbdzsl import bundle as bundles
    from sbdzsl import enrolment

    found = enrolment.enrol(
        bundles.load(bundle, device),
        surface,
        enrolment.samples_of(surface, images, manifest),
        out,
        attributes=attributes,
        seed=seed,
        device=device,
        report=lambda line: stdout.print(line, markup=False),
    )
    threshold = found.bundle.detectors[surface].threshold()
    stdout.print(
        f"threshold {threshold.value:.3f}, {threshold.policy}, from {threshold.num_good} held-out good images: "
        f"false-alarm rate promised {percent(threshold.promised_rate)}",
        markup=False,
    )
    stdout.print(f"bundle {found.bundle.digest[:16]} -> {out}", markup=False)


def retire(bundle: BundleUrl, surface: Surface, out: NewBundle) -> None:
    """Take a surface out of a bundle; a new bundle is written, in which its images are unseen again."""
    from sbdzsl import bundle as bundles
    from sbdzsl import enrolment

    found = enrolment.retire(bundles.load(bundle), surface, out)
    stdout.print(f"bundle {found.digest[:16]} without {surface} -> {out}", markup=False)
