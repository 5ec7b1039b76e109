"""`sbdzsl list`: the images of a lake of any size, as a folder of manifest pages."""

from __future__ import annotations

import time
from typing import Annotated, Literal

import typer

from sbdzsl.cli.options import Exclude, Include, say
from sbdzsl.errors import ConfigError


def list_images(
    out: Annotated[str, typer.Option(help="Folder or URL for the manifest's pages; run again to resume.")],
    lake_url: Annotated[
        str | None, typer.Option("--lake", help="Folder or URL, or one plain TAR file, whose images are listed.")
    ] = None,
    inventory: Annotated[
        str | None, typer.Option(help="manifest.json of an S3 Inventory (CSV, Parquet), in place of --lake.")
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    partition: Annotated[
        Literal["prefix", "date"], typer.Option(help="Pages by prefix, or below date=YYYY-MM-DD/ by time of change.")
    ] = "prefix",
    workers: Annotated[int, typer.Option(min=1, help="Threads that list at once.")] = 16,
) -> None:
    """List the images of a lake into a folder of manifest pages, in parallel; run again it resumes."""
    from sbdzsl.lake import listing
    from sbdzsl.lake.inventory import MANIFEST_NAME

    if (lake_url is None) == (inventory is None):
        raise ConfigError("bad-config", "give either --lake or --inventory")
    if inventory is not None and inventory.rsplit("/", 1)[-1] != MANIFEST_NAME:
        raise ConfigError("bad-config", f"--inventory: found {inventory}, expected the {MANIFEST_NAME} of a report")

    started = time.perf_counter()
    source = lake_url or inventory or ""
    found = listing.list_lake(source, out, include or (), exclude or (), partition, workers, say)
    seconds = time.perf_counter() - started
    for reason, count in sorted(found.left_out.items()):
        say(f"left out: {count:,} {reason}, such as {found.examples[reason]}")
    if not found.num_new:
        say("nothing to do: this lake was listed before")
    requests = f", {found.num_requests:,} requests" if found.num_requests else ""
    speed = f", {found.num_new / seconds:,.0f} images/s" if found.num_new else ""
    say(f"{found.num_images:,} images, {found.num_bytes:,} bytes{requests}{speed} -> {out}")
