"""`log`: what a service has answered, read back from its verdict log."""

from __future__ import annotations

import io
import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.table import Table

from sbdzsl import lake
from sbdzsl.cli.options import say, stdout
from sbdzsl.errors import ConfigError
from sbdzsl.verdict import Decision

if TYPE_CHECKING:
    import polars as pl

log_app = typer.Typer(no_args_is_help=True, help="The verdict log of a service.")

#: Columns that fit on a terminal.
_SHOWN = ("inspected_at", "event_id", "camera", "verdict", "surface", "defect_score", "defect_threshold", "part_id")


@log_app.command("query")
def query(
    log: Annotated[str, typer.Option(help="Folder or URL of the verdict log, such as DATA/log.")],
    since: Annotated[
        str | None, typer.Option(help="Inspected at this time or later (ISO; UTC if it says none).")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Inspected before this time.")] = None,
    verdict: Annotated[
        list[str] | None, typer.Option(help="good, defect, unseen or error; may be given again.")
    ] = None,
    surface: Annotated[list[str] | None, typer.Option(help="Of this surface; may be given again.")] = None,
    camera: Annotated[list[str] | None, typer.Option(help="Of this camera; may be given again.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The newest so many; 20 on a terminal, else all.")] = None,
    out: Annotated[str | None, typer.Option(help="Write the rows to a file or URL: .parquet, or .csv.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Rows of a verdict log, the newest first. Rows that a service has just answered follow after a minute."""
    import polars as pl

    from sbdzsl.serving.log import read_log

    if out is not None and not out.endswith((".parquet", ".csv")):
        raise ConfigError("bad-config", f"found --out {out}, expected a name that ends in .parquet or .csv")
    for word in verdict or ():
        if word not in get_args(Decision):
            raise ConfigError("bad-config", f"found verdict {word!r}, expected one of {', '.join(get_args(Decision))}")
    rows = read_log(log, _time(since), _time(until))
    for column, chosen in (("verdict", verdict), ("surface", surface), ("camera", camera)):
        if chosen:
            rows = rows.filter(pl.col(column).is_in(chosen))
    rows = rows.sort("inspected_at", "event_id", descending=True)
    if limit is None and out is None and not as_json:
        limit = 20
    found = (rows if limit is None else rows.head(limit)).collect(engine="streaming")
    if out is not None:
        lake.write_bytes(out, _csv(found) if out.endswith(".csv") else _parquet(found))
        say(f"{len(found):,} rows -> {out}")
    elif as_json:
        typer.echo(found.write_ndjson(), nl=False)
    else:
        table = Table(*_SHOWN)
        for row in found.select(_SHOWN).iter_rows():
            table.add_row(*("–" if value is None else _shown(value) for value in row))
        stdout.print(table)


def _parquet(rows: pl.DataFrame) -> bytes:
    stream = io.BytesIO()
    rows.write_parquet(stream)
    return stream.getvalue()


def _csv(rows: pl.DataFrame) -> bytes:
    """The rows as CSV; lists become JSON, for CSV has none."""
    import polars as pl

    from sbdzsl.spreadsheet import table_csv

    nested = [name for name, kind in rows.schema.items() if kind.is_nested()]
    texts = {name: [None if value is None else json.dumps(value) for value in rows[name].to_list()] for name in nested}
    return table_csv(rows.with_columns(pl.Series(name, text, pl.String) for name, text in texts.items()))


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError("bad-config", f"found time {text!r}, expected one such as 2026-03-01T06:00:00") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _shown(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat(" ", "milliseconds")
    return f"{value:.2f}" if isinstance(value, float) else str(value)
