"""The report: `summary.json`, `alerts.csv` and one self-contained `report.html`.

The page needs nothing beside itself: no script, no font, no other host. What it shows of the lake (names, details of
errors, words of a manifest) is hostile input: the template escapes everything, and a content security policy in the
page forbids scripts and all loading.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
from markupsafe import Markup

from sbdzsl import __version__, lake
from sbdzsl.report.alerts import alerts, alerts_csv, worst
from sbdzsl.report.overlay import GalleryImage
from sbdzsl.report.plots import histogram_svg
from sbdzsl.report.summary import AuditFacts, Summary, summarise
from sbdzsl.verdict import nearness

NONE = "–"

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

_MEDIA_TYPES = ("image/png", "image/jpeg")


@dataclass(frozen=True, slots=True)
class _Card:
    """One picture of the gallery with its words; `source` is a data URL, None if the image can no longer be read."""

    source: str | None
    verdict: str
    folder: str
    name: str
    lines: tuple[tuple[str, str], ...]
    attributes: tuple[str, ...]
    extrapolated: bool


def write_report(
    rows: pl.LazyFrame,
    facts: AuditFacts,
    out: str,
    gallery: Callable[[Mapping[str, Any]], GalleryImage | None],
    gallery_size: int,
) -> Summary:
    """Write `summary.json`, `alerts.csv` and `report.html` into the folder or URL `out`; those of before are replaced.

    `rows` has the columns of `VERDICT_SCHEMA`. `gallery` gives the picture of one row (a mapping of its plain values),
    None if the image can no longer be read; it is called for at most `gallery_size` defects and as many unseen.
    Figures and list are written before any picture is asked for. Raises `LakeError` where `out` cannot be written.
    """
    summary = summarise(rows, facts)
    table = alerts(rows)
    listed = alerts_csv(table)
    figures = json.dumps(summary.to_json(), indent=1, ensure_ascii=False)
    lake.write_bytes(lake.join(out, "summary.json"), figures.encode())
    lake.write_bytes(lake.join(out, "alerts.csv"), listed)
    cards = {
        verdict: [_card(row, gallery(row)) for row in worst(rows, verdict, gallery_size)]
        for verdict in ("defect", "unseen")
    }
    page = _render(summary, cards, table.height, hashlib.sha256(listed).hexdigest())
    lake.write_bytes(lake.join(out, "report.html"), page.encode())
    return summary


def _render(summary: Summary, cards: dict[str, list[_Card]], num_alerts: int, alerts_digest: str) -> str:
    plots = {
        surface.surface: Markup(
            histogram_svg(
                surface.defect_histogram,
                surface.defect_thresholds,
                "defect score (logit)",
                "defect",
                f"surface-{number}",
            )
        )
        for number, surface in enumerate(summary.surfaces)
        if surface.defect_histogram is not None
    }
    unseen = summary.unseen
    unseen_plot = unseen.histogram and Markup(
        histogram_svg(unseen.histogram, unseen.thresholds, "unseen score", "unseen", "router")
    )
    rates = [surface.defect_rate.value or 0.0 for surface in summary.surfaces]
    return (
        _environment()
        .get_template("template.html.j2")
        .render(
            s=summary,
            facts=summary.facts,
            plots=plots,
            unseen_plot=unseen_plot,
            full_bar=max(rates, default=0.0) or 1.0,
            cards=cards,
            advice=ADVICE,
            no_advice=_NO_ADVICE,
            num_alerts=num_alerts,
            alerts_digest=alerts_digest,
            code_version=__version__,
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(num=_num, share=_share, score=_score, ms=_ms, utc=_utc, span=_span, plain=_plain)
    return environment


def _card(row: Mapping[str, Any], image: GalleryImage | None) -> _Card:
    source = None
    if image is not None:
        if image.media_type not in _MEDIA_TYPES:
            raise ValueError(f"a gallery image is {image.media_type!r}, expected one of {_MEDIA_TYPES}")
        source = f"data:{image.media_type};base64,{base64.b64encode(image.data).decode('ascii')}"
    folder, _, name = row["uri"].rpartition("/")
    lines = _defect_lines(row) if row["verdict"] == "defect" else _unseen_lines(row)
    if image is not None and image.caption:
        lines.append(("Image", _plain(", ".join(image.caption))))
    attributes = tuple(row["attributes"] or ())
    return _Card(
        source, row["verdict"], folder and f"{folder}/", name, tuple(lines), attributes, bool(row["extrapolated"])
    )


def _defect_lines(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = [
        ("Surface", _plain(row["surface"] or NONE)),
        ("Score", _against(row["defect_score"], row["defect_threshold"])),
    ]
    if row["defect_probability"] is not None:
        lines.append(("Probability", _share(row["defect_probability"])))
    regions = sorted(row["regions"] or (), key=lambda region: -region["score"])
    if regions:
        hottest = regions[0]
        more = f", the hottest of {len(regions)}" if len(regions) > 1 else ""
        box = f"{hottest['width']} × {hottest['height']}\u00a0px at x\u00a0{hottest['x']}, y\u00a0{hottest['y']}"
        lines.append(("Place", box + more))
    return lines


def _unseen_lines(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    p_value = row["unseen_p_value"]
    return [
        ("Score", _against(row["unseen_score"], row["unseen_threshold"])),
        ("p-value", NONE if p_value is None else f"{p_value:.2g}"),
        ("Nearest", _plain(_nearest(row))),
    ]


def _nearest(row: Mapping[str, Any]) -> str:
    near, scores = row["nearest_surfaces"] or (), row["nearest_scores"] or ()
    return nearness(near, scores, row["unseen_threshold"]) or row["surface"] or NONE


def _against(score: float | None, threshold: float | None) -> str:
    if score is None or threshold is None:
        return _score(score)
    return f"{_score(score)}, threshold {_score(threshold)} (+{_score(score - threshold)})"


def _num(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def _share(value: float | None) -> str:
    """A share in percent with two digits that count, so that 0.0012 does not become 0 %."""
    if value is None:
        return NONE
    percent = 100 * value
    if percent in (0.0, 100.0):
        return f"{percent:.0f}\u00a0%"
    if percent >= 99.95:
        return "> 99.9\u00a0%"
    return f"{percent:.1f}\u00a0%" if percent >= 1 else f"{percent:.2g}\u00a0%"


def _score(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}".replace("-", "−")


def _ms(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def _utc(moment: datetime) -> str:
    return f"{moment.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _plain(text: object) -> str:
    """Text of the lake with its invisible and direction-turning characters written out, so that it reads as it is."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in str(text))
