"""Write the README's table of figures from `benchmarks/results/`, so that no figure is typed by hand.

python benchmarks/readme_table.py            rewrite the table between its markers
python benchmarks/readme_table.py --check    exit 1 if README.md is not what the results say
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
START, END = "<!-- figures: start -->", "<!-- figures: end -->"

Row = tuple[str, str, str]


def detectors(figures: dict[str, Any]) -> list[Row]:
    """AP and errors of the single detectors."""
    rows = []
    for surface, title, goal in (
        ("dagm_class1", "DAGM class 1 (shared part), test AP, seeds", "each ≥ 0.99"),
        ("kolektorsdd", "KolektorSDD (shared part), test AP, folds by item", "mean ≥ 0.98"),
    ):
        runs = [run for run in figures["runs"] if run["surface"] == surface]
        aps = ", ".join(f"{run['ap']:.3f}" for run in runs)
        rows.append((title, goal, f"{aps}; mean {figures['mean_ap'][surface]:.3f}"))
        errors = ", ".join(f"{run['fp']} / {run['fn']}" for run in runs)
        counts = ", ".join(f"{run['num_good']} + {run['num_defect']}" for run in runs)
        rows.append((f"– FP / FN at the validation threshold (of {counts} good + defective)", "", errors))
        slowest = max(run["train_minutes"] for run in runs)
        rows.append(("– training of the whole bundle, slowest, two cores", "≤ 5 min", f"{slowest:.1f} min"))
    return rows


def routing(figures: dict[str, Any]) -> list[Row]:
    """The router on real surfaces, beside the baseline."""
    rows = [
        (
            f"Audit of {figures['num_images']:,} images, 3 seen and {figures['unseen_surfaces']} unseen real surfaces",
            "one row an image",
            f"{figures['num_rows']:,} rows, {figures['images_per_second']:.0f} images/s",
        )
    ]
    for rate, budget in (("0.02", "2 %"), ("0.05", "5 %")):
        ours, base = figures["whitened-nn"][rate], figures["cosine 1-NN"][rate]
        both = [
            f"{name} {one['s']:.3f} / {one['u']:.3f} / {one['h']:.3f}"
            for name, one in (("", ours), ("cosine 1-NN", base))
        ]
        rows.append((f"– S / U / H at the {budget} budget", "above cosine 1-NN", ("; ".join(both)).strip()))
        alarms = f"{ours['false_alarms']:.1%}; cosine 1-NN {base['false_alarms']:.1%}"
        rows.append((f"– seen test images really called unseen at {budget}", f"≤ {budget}", alarms))
    return rows


def latency(figures: dict[str, Any]) -> list[Row]:
    """One image in one process."""
    stages = f"decode {figures['decode_ms']}, route {figures['route_ms']}, detect {figures['detect_ms']}"
    median = f"{figures['median_ms']:.1f} ms (95 %: {figures['p95_ms']:.1f}; {stages})"
    return [("`inspect` of one 512x512 image, median of 50", "≤ 30 ms", median)]


def demo(figures: dict[str, Any]) -> list[Row]:
    """The demo against its own truth."""
    got = {
        name: figures.get(name, 0) for name in ("found", "missed", "passed", "false alarm", "flagged", "let through")
    }
    outcome = (
        f"{figures['minutes']} min; defects {got['found']} found, {got['missed']} missed; good {got['passed']} passed, "
        f"{got['false alarm']} false alarms; unseen {got['flagged']} flagged, {got['let through']} let through"
    )
    return [(f"`make demo`, {figures['archived']:,} drawn images in the archive", "≤ 10 min", outcome)]


def drawn_lake(figures: dict[str, Any]) -> list[Row]:
    """How hard the drawn lake is."""
    means = ", ".join(f"{name} {value:.2f}" for name, value in figures["mean"].items())
    return [("AP of trivial detectors on the drawn lake (chance 0.15)", "fail", means)]


def leather(figures: dict[str, Any]) -> list[Row]:
    """Scores of stage one on near-neighbour leathers."""
    cells = []
    for name, row in figures["scores"].items():
        five, two = row["H@5%"], row["H@2%"]
        cells.append(f"{name} {five['mean']:.1f} ({five['worst']:.1f}) / {two['mean']:.1f} ({two['worst']:.1f})")
    splits = f"mean (worst) of {figures['splits']} splits"
    what = f"H at 5 % / 2 % on 14 leathers, 11 seen with 20 training images each, {splits}"
    return [(what, "", "; ".join(cells))]


STUDIES: dict[str, Callable[[dict[str, Any]], list[Row]]] = {
    "detectors": detectors,
    "routing": routing,
    "latency": latency,
    "demo": demo,
    "drawn_lake": drawn_lake,
    "sbad_leather": leather,
}


def table() -> str:
    """The table in Markdown, one block a study."""
    lines = ["| what | goal | measured | command |", "| --- | --- | --- | --- |"]
    for study, rows_of in STUDIES.items():
        row = json.loads((HERE / "results" / f"{study}.json").read_text())
        for number, (what, goal, measured) in enumerate(rows_of(row["figures"])):
            command = f"`{row['command']}`" if number == 0 else ""
            lines.append(f"| {what} | {goal} | {measured} | {command} |")
    return "\n".join(lines)


def main() -> int:
    """Rewrite or check the README; returns the exit code."""
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    wanted = f"{before}{START}\n{table()}\n{END}{after}"
    if "--check" in sys.argv[1:]:
        return 0 if text == wanted else 1
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
