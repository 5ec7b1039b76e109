"""Which unseen images are looked at: few, always the same, and none twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest

from sbdzsl.datasets.sample import Sample
from sbdzsl.grouping import Grouping
from sbdzsl.inspector import Inspector
from sbdzsl.report import strangers
from sbdzsl.report.gallery import make_viewer
from sbdzsl.report.overlay import GalleryImage
from sbdzsl.verdict import verdict_table
from tests.conftest import UNSEEN, Trained
from tests.verdicts import draw_facts, draw_verdicts, draw_viewer

TABLE = draw_verdicts(4000, seed=4, shares=(0.8, 0, 0.2, 0))
PICTURE = GalleryImage(b"not looked into", "image/png")


def _asked(rows: pl.LazyFrame) -> list[Sample]:
    """The samples that are given to be grouped."""
    given: list[Sample] = []

    def group(samples: Sequence[Sample]) -> Grouping:
        given.extend(samples)
        return Grouping((), (), len(samples), len(samples), 0, 0)

    strangers.find_strangers(rows, draw_facts(TABLE), 1, group, lambda _: None)
    return given


def test_a_bounded_choice_that_does_not_depend_on_the_order() -> None:
    rows = pl.from_arrow(TABLE).lazy()
    chosen = _asked(rows)
    unseen = {row["image_id"] for row in TABLE.to_pylist() if row["verdict"] == "unseen"}
    assert len(chosen) == strangers.MAX_IMAGES < len(unseen)
    assert {sample.image_id for sample in chosen} <= unseen
    assert _asked(rows.reverse()) == chosen
    doubled = _asked(pl.concat([rows, rows]))
    assert len({sample.image_id for sample in doubled}) == len(doubled)


@pytest.mark.parametrize(("side", "number"), [(1000, 100), (4000, 6), (20_000, 1)])
def test_large_images_are_fewer(side: int, number: int) -> None:
    size = pl.lit(side, pl.Int32)
    assert len(_asked(pl.from_arrow(TABLE).lazy().with_columns(image_width=size, image_height=size))) == number


def test_groups_are_described_and_the_command_can_be_run() -> None:
    viewer = draw_viewer(lambda _: PICTURE)
    facts: Any = draw_facts(TABLE, bundle_name="s3://my bundles/one", out="/data/a'b")
    found = strangers.find_strangers(pl.from_arrow(TABLE).lazy(), facts, 700, viewer.group, viewer.thumbnail)
    assert len(found.groups) == strangers.MAX_GROUPS
    assert (found.num_unseen, found.num_read, found.num_hidden) == (700, 200, 20 - strangers.MAX_GROUPS)
    assert all(group.num_images == 10 and group.source for group in found.groups)
    assert found.command.startswith("sbdzsl groups --bundle 's3://my bundles/one' --audit ")


def test_an_unseen_surface_of_a_real_audit_is_a_group(trained: Trained) -> None:
    inspector = Inspector(trained.bundle)
    rows = [row for row in trained.manifest.to_pylist() if row["surface"] == UNSEEN][:20]
    table = verdict_table([inspector.judge(row["image_id"], row["uri"]) for row in rows])
    viewer = make_viewer(inspector)
    found = strangers.find_strangers(pl.from_arrow(table).lazy(), draw_facts(table), 20, viewer.group, viewer.thumbnail)
    assert sum(group.num_images for group in found.groups) + found.num_single == found.num_read > 10
    assert found.groups[0].num_images > found.num_read / 2
    assert all(group.source and group.source.startswith("data:image/jpeg;base64,") for group in found.groups)
