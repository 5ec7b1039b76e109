"""The report: `summary.json`, `alerts.csv` and one self-contained `report.html`.

The page needs nothing beside itself: no script, no font, no other host. What it shows of the lake (names, details of
errors, words of a manifest) is hostile input: the template escapes everything, and a content security policy in the
page forbids scripts and all loading.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import jinja2
import polars as pl
from markupsafe import Markup

from sbdzsl import __version__, lake
from sbdzsl.report import formats
from sbdzsl.report.alerts import alerts, worst
from sbdzsl.report.cards import Card, make_card
from sbdzsl.report.counting import summarise
from sbdzsl.report.figures import copy_rows
from sbdzsl.report.gallery import Viewer
from sbdzsl.report.plots import heat_map_svg, histogram_svg, timeline_svg
from sbdzsl.report.strangers import Strangers, find_strangers
from sbdzsl.report.summary import AuditFacts, Summary
from sbdzsl.spreadsheet import table_csv

#: Surfaces that have a histogram of their scores.
MAX_HISTOGRAMS = 48

#: What each error code of a row means, and what to do about it.
ADVICE: dict[str, tuple[str, str]] = {
    "empty": ("The file has no bytes.", "Copy the image again; look for a full disk or a broken transfer."),
    "unreadable": ("The bytes are not an image that can be decoded.", "Open one by hand; copy it again if it fails."),
    "truncated": ("The image ends too early.", "Copy it again; let the camera finish a file before it is moved."),
    "unsupported-format": ("The file is of a format that is not accepted.", "Convert it, or leave such files out."),
    "too-large": (
        "The image is above a limit on bytes or pixels.",
        "Raise the limit if images of this size are meant.",
    ),
    "too-small": (
        "The image is smaller than the smallest that can be judged.",
        "Leave thumbnails out of the manifest.",
    ),
    "depth-mismatch": ("A pixel is above the declared bit depth.", "Correct the bit depth of the camera or manifest."),
    "not-found": ("The image was listed, but is gone.", "Find out who deletes; list the lake again."),
    "forbidden": ("The store refused to give the image.", "Grant read access to the audit's account."),
    "unreachable": ("The store did not answer, also after retries.", "Check the network and the store."),
}
_NO_ADVICE = ("", "Read the detail of the examples.")


def write_report(rows: pl.LazyFrame, facts: AuditFacts, out: str, viewer: Viewer, gallery_size: int) -> Summary:
    """Write `summary.json`, `alerts.csv` and `report.html` into the folder or URL `out`; those of before are replaced.

    `rows` has the columns of `VERDICT_SCHEMA` and is read once, into a temporary file of about 120 bytes a row.
    `viewer` is asked for the pictures of at most `gallery_size` defects and as many unseen images, and to group some of
    the unseen ones unless `gallery_size` is 0. Figures and list are written before any picture is asked for. Raises
    `LakeError` where `out` cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="sbdzsl-report-") as folder:
        return _write(copy_rows(rows, Path(folder)), facts, out, viewer, gallery_size)


def _write(rows: pl.LazyFrame, facts: AuditFacts, out: str, viewer: Viewer, gallery_size: int) -> Summary:
    summary = summarise(rows, facts, viewer.references)
    table = alerts(rows)
    listed = table_csv(table)
    figures = json.dumps(summary.to_json(), indent=1, ensure_ascii=False)
    lake.write_bytes(lake.join(out, "summary.json"), figures.encode())
    lake.write_bytes(lake.join(out, "alerts.csv"), listed)
    cards = {
        verdict: [make_card(row, viewer.picture(row)) for row in worst(rows, verdict, gallery_size)]
        for verdict in ("defect", "unseen")
    }
    num_grouped = summary.counts.unseen if gallery_size else 0
    strangers = find_strangers(rows, facts, num_grouped, viewer.group, viewer.thumbnail)
    page = _render(summary, cards, strangers, table.height, hashlib.sha256(listed).hexdigest())
    lake.write_bytes(lake.join(out, "report.html"), page.encode())
    return summary


def _render(
    summary: Summary, cards: dict[str, list[Card]], strangers: Strangers, num_alerts: int, alerts_digest: str
) -> str:
    rates = [surface.defect_rate.value or 0.0 for surface in summary.surfaces]
    listed = [folder.defect_rate.value or 0.0 for folder in summary.folders.listed]
    periods = summary.timeline.periods if summary.timeline else ()
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            s=summary,
            facts=summary.facts,
            plots=_histograms(summary),
            unseen_plot=_unseen_histogram(summary),
            maps={one.surface: Markup(heat_map_svg(one)) for one in summary.heat_maps},
            time_plot=Markup(timeline_svg(periods)) if len(periods) > 1 else None,
            strangers=strangers,
            full_bar=max(rates, default=0.0) or 1.0,
            full_folder_bar=max(listed, default=0.0) or 1.0,
            cards=cards,
            advice=ADVICE,
            no_advice=_NO_ADVICE,
            num_alerts=num_alerts,
            alerts_digest=alerts_digest,
            code_version=__version__,
        )
    )


def _histograms(summary: Summary) -> dict[str, Markup]:
    """Of the surfaces with the most images; on a page with hundreds nobody would find one."""
    largest = sorted(summary.surfaces, key=lambda surface: (-surface.defect_rate.of, surface.surface))
    return {
        surface.surface: Markup(
            histogram_svg(
                surface.defect_histogram,
                surface.defect_thresholds,
                "defect score (logit)",
                "defect",
                f"surface-{number}",
            )
        )
        for number, surface in enumerate(largest[:MAX_HISTOGRAMS])
        if surface.defect_histogram is not None
    }


def _unseen_histogram(summary: Summary) -> Markup | None:
    unseen = summary.unseen
    if unseen.histogram is None:
        return None
    return Markup(histogram_svg(unseen.histogram, unseen.thresholds, "unseen score", "unseen", "router"))


def environment() -> jinja2.Environment:
    """Templates of `page`, which escape everything and know the filters of `formats`."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (formats.num, formats.share, formats.score, formats.ms, formats.utc, formats.span, formats.plain)
    others = (formats.short, formats.worded, formats.figure, formats.interval)
    found.filters.update({one.__name__: one for one in (*filters, *others)})
    return found
