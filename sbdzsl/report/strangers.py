"""Unseen images of an audit grouped by similarity, a bounded number of them: which new surfaces emerge.

The audit's rows say which images are unseen, not what they look like: some are read again, chosen by a hash of their
ids and few enough that it takes seconds. `sbdzsl groups` does the same with many more, and writes a manifest a group.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl

from sbdzsl import lake
from sbdzsl.datasets.sample import Sample
from sbdzsl.grouping import Group, Grouping
from sbdzsl.report.cards import data_url
from sbdzsl.report.figures import collect
from sbdzsl.report.overlay import GalleryImage
from sbdzsl.report.summary import AuditFacts

#: Unseen images that are looked at, at most, and the pixels of all of them: reading and embedding takes seconds.
MAX_IMAGES, MAX_PIXELS = 200, 100_000_000
#: Groups that are shown.
MAX_GROUPS = 12


@dataclass(frozen=True, slots=True)
class StrangerGroup:
    """One group: its most typical image (`source` is a data URL, None if it can no longer be read)."""

    num_images: int
    uri: str
    source: str | None
    nearest: tuple[str, ...]
    attributes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Strangers:
    """The groups, the largest first, of `num_read` of `num_unseen` unseen images.

    `num_hidden` groups more were found, `num_single` images are like no others, `num_unreadable` are gone. `command`
    goes on with all of them.
    """

    groups: tuple[StrangerGroup, ...]
    num_unseen: int
    num_read: int
    num_hidden: int
    num_single: int
    num_unreadable: int
    command: str


def find_strangers(
    rows: pl.LazyFrame,
    facts: AuditFacts,
    num_unseen: int,
    group: Callable[[Sequence[Sample]], Grouping],
    picture: Callable[[Sample], GalleryImage | None],
) -> Strangers:
    """Group some of the unseen images by `group`; `picture` shows the most typical image of each group."""
    found = group(_choose(rows)) if num_unseen else Grouping((), (), 0, 0, 0, 0)
    return Strangers(
        groups=tuple(_described(one, picture) for one in found.groups[:MAX_GROUPS]),
        num_unseen=num_unseen,
        num_read=found.num_read,
        num_hidden=max(len(found.groups) - MAX_GROUPS, 0),
        num_single=len(found.single),
        num_unreadable=found.num_unreadable,
        command=(
            f"sbdzsl groups --bundle {shlex.quote(facts.bundle_name)} --audit {shlex.quote(facts.out)} "
            f"--out {shlex.quote(lake.join(facts.out, 'groups'))}"
        ),
    )


def _choose(rows: pl.LazyFrame) -> list[Sample]:
    """Unseen images in an order that says nothing about them, as many as the limits allow."""
    size = pl.col("image_width").cast(pl.Int64) * pl.col("image_height")
    first = (
        rows.filter(pl.col("verdict") == "unseen")
        .select("image_id", "uri", "bit_depth", pixels=size.fill_null(0), order=pl.col("image_id").hash(seed=1))
        .bottom_k(MAX_IMAGES, by=["order", "image_id"])
    )
    chosen = collect(first).sort("order", "image_id").unique("image_id", maintain_order=True)
    within = chosen.filter((pl.col("pixels").cum_sum() <= MAX_PIXELS) | (pl.int_range(pl.len()) == 0))
    return [
        Sample(image_id, uri, bit_depth=bit_depth)
        for image_id, uri, bit_depth in within.select("image_id", "uri", "bit_depth").iter_rows()
    ]


def _described(group: Group, picture: Callable[[Sample], GalleryImage | None]) -> StrangerGroup:
    typical = group.members[0].sample
    image = picture(typical)
    source = None if image is None else data_url(image)
    return StrangerGroup(len(group.members), typical.uri, source, group.nearest, group.attributes)
