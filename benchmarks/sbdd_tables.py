"""The detector's tables and plots, made from `benchmarks/results/sbdd_*.json` and the like; nothing is typed by hand.

    python benchmarks/sbdd_tables.py    draw the label-budget curve and AP against milliseconds into docs/images/

The tables are written into `sbdzsl/sbdd/README.md` by `write_figures.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
IMAGES = HERE.parent / "docs" / "images"

#: AP in percent as published by the mixed-supervision paper (Bozic et al. 2021), by level of labels; trapezoid rule.
PUBLISHED = {
    "kolektorsdd": {"N = 0": 93.4, "N = 5": 99.1, "all masks": 100.0},
    "dagm_class1": {"all masks": 100.0},
}

GOALS = {"good images alone": 0.80, "N = 0": 0.95, "N = 5": 0.99, "N = 15": 1.0, "all masks": 1.0}


def result(study: str) -> dict[str, Any] | None:
    """A recorded study; None where it was not recorded."""
    file = HERE / "results" / f"{study}.json"
    return json.loads(file.read_text()) if file.exists() else None


def command_of(found: dict[str, Any]) -> str:
    """What makes the result anew: without a time limit, by which a study may have been recorded in several goes."""
    return re.sub(r" --minutes \S+| --go-on", "", found["command"])


def sections() -> str:
    """All tables in Markdown, one section a recorded study, each with the command that made it."""
    parts = []
    for study, title, lines_of in (
        ("sbdd_kolektorsdd", "KolektorSDD, all masks: three folds by item, three seeds", kolektorsdd),
        ("sbdd_labels", "KolektorSDD, fewer labels, native size, three folds", labels),
        ("sbdd_labels_half", "The same at half size, the default, three seeds", labels),
        ("sbdd_dagm", "DAGM class 1 (shared part), three seeds", by_level),
        ("sbdd_drawn", "Ten drawn surfaces, three seeds each", by_level),
        ("sbdd_tile", "Magnetic tile, all kinds as one class, five splits by group", tile),
        ("neu_boxes", "NEU boxes, three seeds", neu),
        ("sbdd_sizes", "Widths of `lite`, random start, half size", hardest),
        ("pretrained_start", "What the learnt start knows before any training", learnt),
        ("sbdd_ablation", "One part of the recipe changed at a time, half size", hardest),
        ("sbdd_robustness", "Other light, blur, noise and shift, at the stored threshold", robustness),
        ("runtimes", "Milliseconds an image, two threads", runtimes),
        ("int8_ap", "What int8 costs: KolektorSDD at half size, three folds", int8),
        ("lite_forms", "What folding, layout and dense convolutions buy", forms),
    ):
        found = result(study)
        if found is not None:
            parts += [f"### {title}", "", f"`{command_of(found)}`", "", *lines_of(found["figures"]), ""]
    return "\n".join(parts).strip()


def kolektorsdd(figures: dict[str, Any]) -> list[str]:
    """Pooled and by fold."""
    lines = row(
        "seed", "AP pooled, step", "trapezoid", "AP of folds", "FP / FN, validation", "FP / FN, best F1 on test"
    )
    for pooled in figures["pooled"]:
        folds = [run["ap"] for run in figures["runs"] if run["seed"] == pooled["seed"]]
        lines += row(
            str(pooled["seed"]),
            f"{pooled['ap']:.3f}",
            f"{pooled['ap_trapezoid']:.3f}",
            ", ".join(f"{ap:.3f}" for ap in folds),
            errors(pooled),
            errors(pooled["best_f1_on_test"]),
            head=False,
        )
    whole = figures["by_source"]["kolektorsdd"]
    minutes = max(run["train_minutes"] for run in figures["runs"])
    return [
        *lines,
        "",
        f"Pooled AP {plus_minus(figures['pooled_ap'])}; mean of folds {plus_minus(whole['ap'])}, AUROC "
        f"{plus_minus(whole['auroc'])}, pixel AP {plus_minus(whole['pixel_ap'])}. Training took at most {minutes:.1f} "
        "minutes on one thread, another training beside it.",
    ]


def labels(figures: dict[str, Any]) -> list[str]:
    """AP by level of labels beside goal and publication."""
    heads = ("training sees", "trainings", "AP, mean (min to max)", "goal", "published")
    lines = row(*heads, "AUROC", "pixel AP", "FP / FN, validation")
    for level, found in levels_of(figures).items():
        source, means = next(iter(found["by_source"].items()))
        published = PUBLISHED.get(source, {}).get(level)
        total = {name: sum(run[name] for run in found["runs"]) for name in ("fp", "fn")}
        lines += row(
            level,
            str(len(found["runs"])),
            with_range(means["ap"]),
            f"{GOALS[level]:.2f}" if level in GOALS else "",
            f"{published:.1f} %" if published else "",
            f"{means['auroc']['mean']:.3f}",
            f"{means['pixel_ap']['mean']:.2f}",
            errors(total),
            head=False,
        )
    return lines


def by_level(figures: dict[str, Any]) -> list[str]:
    """AP by level of labels over surfaces and seeds."""
    lines = row("training sees", "trainings", "AP, mean (min to max)", "worst surface", "AUROC", "FP / FN, validation")
    for level, found in levels_of(figures).items():
        worst = min(found["by_source"], key=lambda source: found["by_source"][source]["ap"]["mean"])
        total = {name: sum(run[name] for run in found["runs"]) for name in ("fp", "fn")}
        aurocs = [means["auroc"]["mean"] for means in found["by_source"].values()]
        of = f"{sum(run['good'] for run in found['runs'])} + {sum(run['defective'] for run in found['runs'])}"
        lines += row(
            level,
            str(len(found["runs"])),
            with_range(found["all"]),
            f"{worst.removeprefix('drawn/')} {found['by_source'][worst]['ap']['mean']:.3f}",
            f"{sum(aurocs) / len(aurocs):.3f}",
            f"{errors(total)} of {of}",
            head=False,
        )
    return lines


def tile(figures: dict[str, Any]) -> list[str]:
    """The hard one."""
    means = figures["by_source"]["magnetic_tile"]
    lines = row("AP", "AP of chance", "AUROC", "pixel AP", *(f"AUROC {kind[3:]}" for kind in figures["auroc_by_kind"]))
    lines += row(
        with_range(means["ap"]),
        f"{figures['chance_ap']['mean']:.2f}",
        with_range(means["auroc"]),
        with_range(means["pixel_ap"]),
        *(f"{kind['mean']:.3f}" for kind in figures["auroc_by_kind"].values()),
        head=False,
    )
    each = ", ".join(f"{run['ap']:.3f} ({run['fp']} / {run['fn']})" for run in figures["runs"])
    return [*lines, "", f"AP of each split and its FP / FN at the validation threshold: {each}."]


def neu(figures: dict[str, Any]) -> list[str]:
    """Boxes found."""
    names = ("pixel_ap", "chance_pixel_ap", "aupro", "box_recall", "pixels_outside_called")
    lines = row(
        "pixel AP", "pixel AP of chance", "AUPRO", "boxes half covered", "pixels outside boxes called defective"
    )
    return lines + row(*(with_range(figures[name]) for name in names), head=False)


def hardest(figures: dict[str, Any]) -> list[str]:
    """AP over widths, or with a part of the recipe changed."""
    lines = row("", "trainings", "AP, KolektorSDD's hardest fold, mean (min to max)")
    for name, found in levels_of(figures).items():
        number = len(found["runs"])
        shown = with_range(found["all"]) if number > 1 else f"{found['all']['mean']:.3f}"
        lines += row(name, str(number), shown, head=False)
    return lines


def learnt(figures: dict[str, Any]) -> list[str]:
    """Zero-shot AP of the start."""
    lines = row("images", "AP", "AP of chance")
    lines += row("surfaces drawn afresh", f"{figures['ap_on_fresh_surfaces']:.3f}", "0.50", head=False)
    for source, found in figures["real"].items():
        lines += row(f"{source}, all {found['images']}", f"{found['ap']:.3f}", f"{found['chance']:.2f}", head=False)
    return lines


def robustness(figures: dict[str, Any]) -> list[str]:
    """Errors under each change."""
    surfaces = figures["surfaces"]
    lines = row("change", *(f"{surface}: AP, FP / FN" for surface in surfaces))
    for rows in zip(*surfaces.values(), strict=True):
        change = f"{rows[0]['change']} {rows[0]['amount']:g} {rows[0]['unit']}".strip()
        lines += row(change, *(f"{one['ap']:.3f}, {errors(one)}" for one in rows), head=False)
    return lines


def runtimes(figures: dict[str, Any]) -> list[str]:
    """Every network by every runtime, images of 512 x 512 network pixels and the whole of `detect`."""
    columns = sorted({(run["runtime"], run["precision"]) for run in figures["runs"]}, key=lambda one: (one[1], one[0]))
    lines = row("network", "parameters", "GMAC", "what", *(f"{runtime} {precision}" for runtime, precision in columns))
    for name, size in figures["sizes"].items():
        for task, batch in (("network", 1), ("network", 8), ("detect", 1)):
            own = {
                (run["runtime"], run["precision"]): run
                for run in figures["runs"]
                if f"{run['network']} {run['width']:g}" == name and (run["task"], run["batch"]) == (task, batch)
            }
            if own:
                cells = (
                    f"{own[key]['ms_per_image']:.2f} ({own[key]['times_faster_than_reference']:.0f}x)"
                    if key in own
                    else "–"
                    for key in columns
                )
                what = f"{task}, batch {batch}"
                lines += row(name, f"{size['parameters']:,}", f"{size['gmac']}", what, *cells, head=False)
    return [*lines, "", "In brackets: times faster than `reference` by the same runtime in the same batch."]


def int8(figures: dict[str, Any]) -> list[str]:
    """AP before and after, by fold."""
    lines = row("fold", "AP", "AP in int8", "verdicts changed")
    for one in figures["folds"]:
        changed = f"{one['verdicts_changed']} of {one['images']}"
        lines += row(str(one["fold"]), f"{one['ap']:.4f}", f"{one['ap_int8']:.4f}", changed, head=False)
    return lines


def forms(figures: dict[str, Any]) -> list[str]:
    """Speed of one network in several forms."""
    lines = row("`lite`, 512 x 512, PyTorch", "ms", "parameters")
    for name, found in figures["forms"].items():
        lines += row(name, f"{found['ms']:.1f}", f"{found['parameters']:,}", head=False)
    return lines


def timed(run: dict[str, Any]) -> str:
    """Milliseconds, and how many times faster than the published network."""
    return f"{run['ms_per_image']:.2f} ({run['times_faster_than_reference']:.0f}x)"


def levels_of(figures: dict[str, Any]) -> dict[str, Any]:
    """The named groups of a study, without its minutes."""
    return {name: found for name, found in figures.items() if isinstance(found, dict) and "runs" in found}


def row(*cells: str, head: bool = True) -> list[str]:
    """One line of a Markdown table, with the rule below it if it is the head."""
    line = f"| {' | '.join(cells)} |"
    return [line, f"|{' --- |' * len(cells)}"] if head else [line]


def errors(counts: dict[str, Any]) -> str:
    """False alarms and misses."""
    return f"{counts['fp']} / {counts['fn']}"


def plus_minus(spread: dict[str, float]) -> str:
    """Mean and standard deviation."""
    return f"{spread['mean']:.3f} ± {spread['std']:.3f}"


def with_range(spread: dict[str, float] | None) -> str:
    """Mean with the smallest and the largest."""
    return "–" if spread is None else f"{spread['mean']:.3f} ({spread['min']:.3f} to {spread['max']:.3f})"


def draw_labels(target: Path) -> None:
    """AP on KolektorSDD over how many labels training sees."""
    fewer, every = result("sbdd_labels"), result("sbdd_kolektorsdd")
    assert fewer is not None
    assert every is not None
    groups = levels_of(fewer["figures"]) | {"all masks": every["figures"]}
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for place, found in enumerate(groups.values()):
        aps = [run["ap"] for run in found["runs"]]
        axes.scatter([place] * len(aps), aps, color="tab:blue", alpha=0.4, label="a fold" if place == 0 else "")
    means = [found["by_source"]["kolektorsdd"]["ap"]["mean"] for found in groups.values()]
    axes.plot(range(len(means)), means, color="tab:blue", marker="o", label="mean")
    known = [(place, PUBLISHED["kolektorsdd"].get(name)) for place, name in enumerate(groups)]
    pairs = [(place, percent / 100) for place, percent in known if percent is not None]
    axes.plot(*zip(*pairs, strict=True), "kx", label="published (whole set, trapezoid rule)")
    axes.set_xticks(range(len(groups)), [f"{name}\nmasks" if name.startswith("N") else name for name in groups])
    axes.set_ylabel("AP (step rule)")
    axes.set_title("KolektorSDD: what fewer labels cost")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(target, dpi=110)


def draw_sizes(target: Path) -> None:
    """AP on KolektorSDD against milliseconds of the best runtime, over widths."""
    widths, speed = result("sbdd_sizes"), result("runtimes")
    assert widths is not None
    assert speed is not None
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, found in levels_of(widths["figures"]).items():
        width = float(name.removeprefix("width "))
        own = [
            run["ms_per_image"]
            for run in speed["figures"]["runs"]
            if (run["network"], run["width"], run["task"], run["batch"]) == ("lite", width, "network", 1)
            and run["precision"] == "float32"
        ]
        mean, lowest, highest = (found["all"][name] for name in ("mean", "min", "max"))
        axes.errorbar(min(own), mean, [[mean - lowest], [highest - mean]], fmt="o", color="tab:blue", capsize=3)
        axes.annotate(name, (min(own), found["all"]["mean"]), xytext=(6, 6), textcoords="offset points")
    axes.set_xlabel("ms for 512 x 512 network pixels, best runtime, float32, two threads")
    axes.set_ylabel("AP on KolektorSDD's hardest fold, mean and range")
    axes.set_title("Sizes of lite")
    axes.margins(x=0.12)  # room for the last name
    axes.grid(alpha=0.3)
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    draw_labels(IMAGES / "sbdd_labels.png")
    draw_sizes(IMAGES / "sbdd_sizes.png")
