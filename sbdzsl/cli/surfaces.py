"""`groups`, `enrol`, `extend` and `retire`: the verbs by which a bundle's surfaces come, grow and go."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from sbdzsl import lake
from sbdzsl.cli.options import BundleUrl, Device, Seed, percent, say, stdout
from sbdzsl.errors import ConfigError

Surface = Annotated[str, typer.Option("--surface", help="Name of the surface.")]
Images = Annotated[
    str | None, typer.Option(help="Folder or URL with images of it, with or without folders benign, defect, masks.")
]
Manifests = Annotated[
    list[str] | None,
    typer.Option(help="Manifest (Parquet) in place of --images: rows of it, or without surface; may be given again."),
]
NewBundle = Annotated[str, typer.Option("--out", help="Folder or URL to write the new bundle to; must not hold one.")]


def enrol(
    bundle: BundleUrl,
    surface: Surface,
    out: NewBundle,
    images: Images = None,
    manifest: Manifests = None,
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
        enrolment.samples_of(surface, images, manifest or ()),
        out,
        attributes=attributes,
        seed=seed,
        device=device,
        report=say,
    )
    threshold = found.bundle.detectors[surface].threshold()
    say(
        f"threshold {threshold.value:.3f}, {threshold.policy}, from {threshold.num_good} held-out good images: "
        f"false-alarm rate promised {percent(threshold.promised_rate)}"
    )
    say(f"bundle {found.bundle.digest[:16]} -> {out}")


def extend(
    bundle: BundleUrl,
    surface: Surface,
    out: NewBundle,
    images: Images = None,
    manifest: Manifests = None,
    device: Device = "cpu",
) -> None:
    """Teach a bundle a new lot of a surface it knows, whose images it calls unseen; its detector stays."""
    from sbdzsl import bundle as bundles
    from sbdzsl import enrolment

    samples = enrolment.samples_of(surface, images, manifest or ())
    found = enrolment.extend(bundles.load(bundle, device), surface, samples, out, device=device, report=say)
    if found.num_alarms:
        say("look at those it calls defective: good ones mean another threshold (`sbdzsl reviews recalibrate`)")
    say(f"bundle {found.bundle.digest[:16]} -> {out}")


def retire(bundle: BundleUrl, surface: Surface, out: NewBundle) -> None:
    """Take a surface out of a bundle; a new bundle is written, in which its images are unseen again."""
    from sbdzsl import bundle as bundles
    from sbdzsl import enrolment

    found = enrolment.retire(bundles.load(bundle), surface, out)
    say(f"bundle {found.digest[:16]} without {surface} -> {out}")


def groups(
    bundle: BundleUrl,
    out: Annotated[str, typer.Option(help="Folder or URL for groups.html, groups.csv and a manifest a group.")],
    audit: Annotated[str | None, typer.Option(help="Folder or URL of an audit: its unseen images are grouped.")] = None,
    images: Annotated[str | None, typer.Option(help="Folder or URL of images in place of --audit.")] = None,
    max_images: Annotated[
        int | None, typer.Option(min=2, help="Images that are read, drawn at random if there are more; 2000.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Group unseen images by similarity, so that new surfaces are seen to emerge and a group can be enrolled."""
    from sbdzsl import bundle as bundles
    from sbdzsl import grouping
    from sbdzsl.cluster import ledger
    from sbdzsl.datasets import samples_from_table
    from sbdzsl.report import groups_page

    if (audit is None) == (images is None):
        raise ConfigError("bad-config", "give either --audit or --images")
    loaded = bundles.load(bundle, device)
    table = ledger.unseen_images(lake.absolute_url(audit)) if audit else lake.list_images(images or "")
    found = grouping.group_unseen(
        loaded,
        samples_from_table(table),
        max_images or grouping.MAX_IMAGES,
        device,
        report=say,
    )
    page = groups_page.write_groups(found, bundle, loaded.settings.image, out)
    printed = Table("group", "images", "most like it", "nearest known surfaces", "such as")
    for group in found.groups:
        count, typical = f"{len(group.members):,}", group.members[0].sample.uri
        printed.add_row(group.name, count, group.most_alike or "–", ", ".join(group.nearest), typical)
    stdout.print(printed)
    stdout.print(
        f"{found.num_read:,} images: {len(found.groups)} groups, {len(found.single):,} like no others, "
        f"{found.num_known:,} of known surfaces, {found.num_unreadable:,} unreadable"
    )
    if found.groups:
        say(groups_page.enrol_command(bundle, out, found.groups[0]))
    say(f"pictures: {page}")
