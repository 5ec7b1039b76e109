"""Write the tables of figures in documents from `benchmarks/results/`, so that no figure is typed by hand.

python benchmarks/write_figures.py            rewrite the tables between their markers
python benchmarks/write_figures.py --check    exit 1 if a document is not what the results say
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import audit_tables
import cluster_tables
import net_tables
import sbad_tables
import sbdd_tables
import serve_tables

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
DETECTOR_README = HERE.parent / "sbdzsl" / "sbdd" / "README.md"
ROUTER_README = HERE.parent / "sbdzsl" / "sbad" / "README.md"
FIGURES = HERE.parent / "docs" / "figures.md"
SCALE = HERE.parent / "docs" / "scale.md"
START, END = "<!-- figures: start -->", "<!-- figures: end -->"

Studies = dict[str, Callable[[dict[str, Any]], list[net_tables.Row]]]

SECTIONS: dict[str, Studies] = {
    "Detector": net_tables.DETECTOR,
    "Router": net_tables.ROUTER,
    "Both stages": net_tables.BOTH,
    "Audits": audit_tables.STUDIES,
    "Online": serve_tables.STUDIES,
    "On a cluster": cluster_tables.STUDIES,
}

#: What the top README shows, goals that are missed among it: rows of a study, counted from 0.
HEADLINES: dict[str, tuple[int, ...]] = {
    "sbdd_kolektorsdd": (0, 2),
    "sbdd_labels": (0, 1, 2),
    "sbdd_dagm": (0,),
    "sbdd_drawn": (0,),
    "sbdd_tile": (0,),
    "runtimes": (0, 1),
    "sbad_gzsl": (0, 2, 3, 4, 5),
    "sbad_lots": (0,),
    "router_latency": (0,),
    "sbad_paper": (1,),
    "sbad_paper_yardsticks": (0,),
    "latency": (0,),
    "demo": (0,),
    "audit_efficiency": (0, 1, 2),
    "audit_scale": (0,),
    "audit_faults": (0,),
    "serve_same": (0,),
    "serve_latency": (0, 2, 4),
    "serve_faults": (0,),
    "log_crash": (0,),
    "train_cluster": (0, 2),
}


#: Recorded in one call with a study that is gone; this is what runs it today.
COMMANDS = {"routing": "python benchmarks/first_slice.py routing"}


def command_of(study: str, row: dict[str, Any]) -> str:
    """What makes a recorded study anew."""
    if study == "audit_scale":
        return audit_tables.scale_command(row["figures"])
    return COMMANDS.get(study, sbdd_tables.command_of(row))


def table(studies: Studies, chosen: dict[str, tuple[int, ...]] | None = None) -> str:
    """A table in Markdown, one block a study that was recorded; of all its rows, or of those `chosen`."""
    lines = ["| what | goal | measured | command |", "| --- | --- | --- | --- |"]
    for study, rows_of in studies.items():
        row = sbdd_tables.result(study)
        if row is None or (chosen is not None and study not in chosen):
            continue
        rows = rows_of(row["figures"])
        shown = rows if chosen is None else [rows[number] for number in chosen[study]]
        for number, (what, goal, measured) in enumerate(shown):
            command = f"`{command_of(study, row)}`" if number == 0 else ""
            lines.append(f"| {what} | {goal} | {measured} | {command} |")
    return "\n".join(lines)


def headlines() -> str:
    """The table of the top README."""
    return table({name: rows_of for studies in SECTIONS.values() for name, rows_of in studies.items()}, HEADLINES)


def all_figures() -> str:
    """Every row, a table a section."""
    return "\n\n".join(f"## {title}\n\n{table(studies)}" for title, studies in SECTIONS.items())


DOCUMENTS = (
    (README, headlines),
    (FIGURES, all_figures),
    (SCALE, audit_tables.scale_section),
    (DETECTOR_README, sbdd_tables.sections),
    (ROUTER_README, sbad_tables.sections),
)


def main() -> int:
    """Rewrite or check the documents; returns the exit code."""
    stale = 0
    for document, made in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        before, _, rest = text.partition(START)
        _, _, after = rest.partition(END)
        wanted = f"{before}{START}\n{made()}\n{END}{after}"
        stale += text != wanted
        if "--check" not in sys.argv[1:]:
            document.write_text(wanted, encoding="utf-8")
    return int(bool(stale)) if "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
