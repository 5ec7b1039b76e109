"""The paper's tables on the data at hand: 3 to 5, the router (`routers.py`), and 6, the detector (`detectors.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sbdzsl.config import TrainSettings
from sbdzsl.errors import ConfigError
from sbdzsl.reproduce import detectors, routers

TABLES = (*routers.TABLES, "table6")


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A table: `figures` is all of it as plain JSON values; `rows` under `headings` and `remarks` are for reading."""

    figures: dict[str, Any]
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    remarks: list[str]


def reproduce(
    table: str,
    data: str | None,
    settings: TrainSettings,
    seeds: Sequence[int] = (0,),
    device: str = "cpu",
    report: Callable[[str], None] = print,
) -> Reproduction:
    """Train and test what `table` (one of `TABLES`) compares, on the data sets found below the folder `data`.

    Tables 3 to 5 can do without `data`: ten surfaces are drawn. Raises `ConfigError` for another table, no seed, or
    table 6 without `data`, and what reading and training raise.
    """
    if table in routers.TABLES:
        figures = routers.compute(table, data, settings, seeds, device, report)
        return Reproduction(figures, routers.HEADINGS, routers.rows(figures), routers.remarks(figures))
    if table != "table6":
        raise ConfigError("bad-config", f"found table {table!r}, expected one of {', '.join(TABLES)}")
    if data is None:
        raise ConfigError("bad-config", "table6 needs --data: a folder that holds one or more of its data sets")
    figures = detectors.table6(data, settings, seeds, device, report)
    return Reproduction(figures, detectors.HEADINGS, detectors.rows(figures), detectors.remarks(figures))
