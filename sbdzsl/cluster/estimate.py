"""What an audit would take, before it is begun: images, bytes, requests, hours and money. Nothing is written.

Counts and bytes are those of the listing; the time is that of a few of its images, judged here and now; prices are the
user's own.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import torch

from sbdzsl import lake
from sbdzsl.cluster.ledger import ImageRef
from sbdzsl.cluster.plan import choose_shard_size
from sbdzsl.cluster.reading import num_readers, read_ahead
from sbdzsl.cluster.request import AuditRequest, prepare
from sbdzsl.cluster.selection import Selection
from sbdzsl.config import AuditSettings, PriceSettings
from sbdzsl.errors import ConfigError
from sbdzsl.inspector import Inspector
from sbdzsl.lake import listing

#: Images that are judged to measure the time; the first ones warm up and do not count.
NUM_TIMED, NUM_WARM_UP = 32, 4
#: Seconds of start-up and report that an audit takes whatever its size, on the machine it was measured on.
_FIXED_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an audit would take. `seconds_an_image` is by one actor of one thread; `num_bytes` None: not listed."""

    num_images: int
    num_bytes: int | None
    num_reads: int
    num_writes: int
    seconds_an_image: float
    num_timed: int
    num_actors: int
    prices: PriceSettings

    @property
    def hours(self) -> float:
        """Wall time."""
        return (self.num_images * self.seconds_an_image / self.num_actors + _FIXED_SECONDS) / 3600

    @property
    def money(self) -> float:
        """In the currency of the prices."""
        prices = self.prices
        requests = self.num_reads / 1000 * prices.get_per_1000 + self.num_writes / 1000 * prices.put_per_1000
        cpu_hours = self.num_images * self.seconds_an_image / 3600
        return requests + (self.num_bytes or 0) / 1e9 * prices.read_per_gb + cpu_hours * prices.cpu_hour

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, value and source of each figure, for a person."""
        size = "–" if self.num_bytes is None else f"{self.num_bytes / 1e9:,.3f} GB"
        timed = f"{self.num_timed} of the images, judged here by one thread"
        return [
            ("images", f"{self.num_images:,}", "listing"),
            ("bytes", size, "listing"),
            ("reading requests", f"{self.num_reads:,}", "one an image or a stretch of a TAR, and the manifest"),
            ("writing and listing requests", f"{self.num_writes:,}", "listing, manifest, parts"),
            ("time an image", f"{self.seconds_an_image * 1e3:.1f} ms", timed),
            ("time", _span(self.hours), f"{self.num_actors} actors of such a thread, and start-up"),
            ("cost", f"{self.money:,.2f} {self.prices.currency}", "prices in the settings"),
        ]


def _span(hours: float) -> str:
    minutes = max(1, round(hours * 60))
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def estimate_audit(request: AuditRequest, report: Callable[[str], None] = print) -> Estimate:
    """List the source, judge some of its images, and reckon. Raises as `run_audit` does where that could not begin."""
    torch.set_num_threads(1)
    audit, settings = prepare(request), request.settings
    with tempfile.TemporaryDirectory() as folder:
        num_listing, source = 0, request.source
        if request.lake_url is not None:
            found = listing.list_lake(source, folder, settings.include, settings.exclude, report=report)
            num_listing, source = found.num_requests, found.folder
        selection = Selection.of(settings)
        nothing = pl.DataFrame(schema={"image_id": pl.String})
        counts = _count(selection.apply(lake.manifest_pages(source), nothing))
    if not counts.num_images:
        raise ConfigError("bad-config", "no image is left by what was chosen; there is nothing to estimate")
    seconds, num_timed = _time(audit.inspector, counts.images, settings)
    shards = -(-counts.num_images // (settings.shard_size or choose_shard_size(counts.num_images)))
    return Estimate(
        num_images=counts.num_images,
        num_bytes=counts.num_bytes,
        num_reads=counts.num_reads + 3 * shards,
        num_writes=num_listing + 3 * shards,
        seconds_an_image=seconds,
        num_timed=num_timed,
        num_actors=settings.actors or os.cpu_count() or 1,
        prices=settings.prices,
    )


@dataclass(frozen=True, slots=True)
class _Counts:
    num_images: int
    num_bytes: int | None
    num_reads: int
    images: pa.Table


def _count(pages: Iterable[pa.Table]) -> _Counts:
    """Totals, and images to judge that are spread over all pages."""
    num_images = num_reads = num_bytes = 0
    has_sizes = True
    spread = lake.MANIFEST_SCHEMA.empty_table()
    for page in pages:
        num_images += page.num_rows
        num_reads += sum(1 for _ in lake.together(page["uri"].to_pylist()))
        has_sizes = has_sizes and page["size_bytes"].null_count == 0
        num_bytes += pa.compute.sum(page["size_bytes"], min_count=0).as_py()
        spread = _spread(pa.concat_tables([spread, _spread(page)]))
    return _Counts(num_images, num_bytes if has_sizes else None, num_reads, spread)


def _spread(table: pa.Table) -> pa.Table:
    """At most `NUM_TIMED` + `NUM_WARM_UP` rows at equal distances."""
    wanted = NUM_TIMED + NUM_WARM_UP
    step = max(1, table.num_rows // wanted)
    return table.take(list(range(0, table.num_rows, step))[:wanted])


def _time(inspector: Inspector, images: pa.Table, settings: AuditSettings) -> tuple[float, int]:
    """Mean seconds an image by one actor, and of how many; read ahead as an actor reads."""
    columns = images.select(["image_id", "uri", "size_bytes", "modified_at", "bit_depth"])
    refs = [ImageRef(**row) for row in columns.to_pylist()]
    limits, started, done = inspector.bundle.settings.image, time.perf_counter(), 0
    for done, (_, loaded) in enumerate(
        read_ahead(refs, limits, num_readers(settings, refs[0].uri), settings.read_timeout_s), start=1
    ):
        inspector.decide(loaded)
        if done == NUM_WARM_UP and len(refs) > NUM_WARM_UP:
            started = time.perf_counter()
    counted = done - NUM_WARM_UP if done > NUM_WARM_UP else done
    return (time.perf_counter() - started) / counted, counted
