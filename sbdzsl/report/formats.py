"""Figures and names as a reader of the page sees them; the filters of its template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timezone

from markupsafe import Markup, escape

NONE = "–"


def num(value: int | None) -> str:
    """A count with its thousands apart."""
    return NONE if value is None else f"{value:,}"


def share(value: float | None) -> str:
    """A share in percent with two digits that count, so that 0.0012 does not become 0 %."""
    if value is None:
        return NONE
    percent = 100 * value
    if percent in (0.0, 100.0):
        return f"{percent:.0f}\u00a0%"
    if percent >= 99.95:
        return "> 99.9\u00a0%"
    return f"{percent:.1f}\u00a0%" if percent >= 1 else f"{percent:.2g}\u00a0%"


def score(value: float | None) -> str:
    """A score with two digits."""
    return NONE if value is None else f"{value:.2f}".replace("-", "−")


def ms(value: float | None) -> str:
    """Milliseconds."""
    return NONE if value is None else f"{value:.1f}"


def utc(moment: datetime) -> str:
    """A moment in UTC."""
    return f"{moment.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def span(seconds: float) -> str:
    """A time taken."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def plain(text: object) -> str:
    """Text of the lake with its invisible and direction-turning characters written out, so that it reads as it is."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in str(text))


def short(value: float | None) -> str:
    """A number with three digits that count."""
    return NONE if value is None else f"{value:.3g}".replace("-", "−")


def worded(text: str) -> Markup:
    """A sentence of ours, in which commands stand between backticks; what it quotes of the lake stays text."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(plain(text)))))


def figure(value: float | None) -> str:
    """A count, or a figure with three digits."""
    if value is None:
        return NONE
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}".replace("-", "−")


def interval(bounds: Sequence[float] | None) -> str:
    """Both ends of an interval; nothing where there is none."""
    return "" if bounds is None else " to ".join(figure(bound) for bound in bounds)
