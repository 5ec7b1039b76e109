"""Which images of a lake an audit takes: pages of a manifest go in, the pages of those that are chosen come out.

Everything but `newest_first` looks at one page at a time, so that the archive may be of any size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from sbdzsl import lake
from sbdzsl.config import AuditSettings

#: `sample` looks at the first 8 of the 32 hex digits of an image id, which are as good as random.
_SAMPLE_DIGITS = 8
_PAGE_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Selection:
    """The images that a run takes of those that are listed; part of its plan."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    sample: float | None = None
    limit: int | None = None
    newest_first: bool = False

    @classmethod
    def of(cls, settings: AuditSettings) -> Selection:
        """What the settings ask for."""
        return cls(settings.include, settings.exclude, settings.sample, settings.limit, settings.newest_first)

    @property
    def words(self) -> tuple[str, ...]:
        """The selection for a person; nothing where all images are taken."""
        found = [f"only {glob}" for glob in self.include] + [f"without {glob}" for glob in self.exclude]
        if self.sample is not None:
            found.append(f"a sample of {self.sample:.4g} of them")
        if self.limit is not None:
            found.append(f"{self.limit:,} at most")
        return (*found, "newest first") if self.newest_first else tuple(found)

    def apply(self, pages: Iterable[pa.Table], judged: pl.DataFrame) -> Iterator[pa.Table]:
        """The chosen rows of `pages`, in their order or the newest first; none whose id is in `judged`.

        `judged` has one column, `image_id`. `include` and `exclude` have been applied by the listing.
        """
        chosen: Iterable[pa.Table] = (_unjudged(self._sampled(page), judged) for page in pages)
        if self.newest_first:
            chosen = _newest_first(chosen)
        left = self.limit
        for page in chosen:
            if left is not None:
                page = page.slice(0, left)
                left -= page.num_rows
            if page.num_rows:
                yield page
            if left == 0:
                return

    def _sampled(self, page: pa.Table) -> pa.Table:
        if self.sample is None:
            return page
        below = self.sample * 16**_SAMPLE_DIGITS
        return page.filter(pa.array(_place(identity) < below for identity in page["image_id"].to_pylist()))


def _place(image_id: str) -> int:
    """Where an image stands in the random order by which samples are drawn: a larger sample holds the smaller one."""
    return int(lake.image_id(image_id, "sample")[:_SAMPLE_DIGITS], 16)


def _unjudged(page: pa.Table, judged: pl.DataFrame) -> pa.Table:
    if judged.is_empty():
        return page
    ids = pl.Series(page["image_id"].to_pylist(), dtype=pl.String)
    return page.filter(pa.array((~ids.is_in(judged["image_id"].implode())).to_numpy()))


def _newest_first(pages: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows of all pages by time of change, the newest first; those without a time last."""
    table = pa.concat_tables([lake.MANIFEST_SCHEMA.empty_table(), *pages])
    order = np.asarray(pa.compute.sort_indices(table, [("modified_at", "descending"), ("image_id", "ascending")]))
    for start in range(0, len(order), _PAGE_ROWS):
        yield table.take(order[start : start + _PAGE_ROWS])
