"""The figures of detector and router, and of both stages together, as rows: what was measured beside its goal.

The longer tables of the two are in `sbdd_tables.py` and `sbad_tables.py`.
"""

from __future__ import annotations

from typing import Any

import sbdd_tables

Row = tuple[str, str, str]


def kolektorsdd(figures: dict[str, Any]) -> list[Row]:
    """The detector with all masks."""
    pooled = figures["pooled"]
    folds = figures["by_source"]["kolektorsdd"]["ap"]
    counts = "; ".join(f"{one['fp']} / {one['fn']}" for one in pooled)
    of = [run for run in figures["runs"] if run["seed"] == pooled[0]["seed"]]
    images = f"{sum(run['good'] for run in of)} + {sum(run['defective'] for run in of)}"
    minutes = max(run["train_minutes"] for run in figures["runs"])
    return [
        (
            "KolektorSDD (shared part), AP pooled over three folds by item, three seeds",
            "≥ 0.995",
            f"{figures['pooled_ap']['mean']:.3f} ± {figures['pooled_ap']['std']:.3f}; single folds "
            f"{folds['min']:.3f} to {folds['max']:.3f}",
        ),
        (f"– FP / FN at the validation threshold, of {images} good + defective, by seed", "0 / 0", counts),
        ("– training of a fold, slowest", "≤ 5 min", f"{minutes:.1f} min on one core"),
    ]


def fewer_labels(figures: dict[str, Any]) -> list[Row]:
    """KolektorSDD by level of labels."""
    goals = {"good images alone": "≥ 0.80", "N = 0": "≥ 0.95", "N = 5": "≥ 0.99", "N = 15": "1.0"}
    words = {"N = 0": "defective images, no mask", "N = 5": "5 masks", "N = 15": "15 masks"}
    return [
        (f"KolektorSDD, {words.get(level, level)}: mean AP of three folds", goal, spread_of(figures[level]["all"]))
        for level, goal in goals.items()
    ]


def half_size(figures: dict[str, Any]) -> list[Row]:
    """The levels without masks at half size."""
    words = {"good images alone": "≥ 0.80", "N = 0": "≥ 0.95"}
    return [(f"– at half size: {level}", goal, spread_of(figures[level]["all"])) for level, goal in words.items()]


def dagm(figures: dict[str, Any]) -> list[Row]:
    """DAGM class 1 by level of labels."""
    return [
        (
            f"DAGM class 1 (shared part), {level}: AP, three seeds",
            "1.000",
            f"{spread_of(found['all'])}; FP / FN " + ", ".join(f"{run['fp']} / {run['fn']}" for run in found["runs"]),
        )
        for level, found in sbdd_tables.levels_of(figures).items()
    ]


def drawn(figures: dict[str, Any]) -> list[Row]:
    """The ten drawn surfaces; with all masks, to show what can be found at all."""
    return [
        (
            f"Ten drawn surfaces, {level}: AP, three seeds",
            "" if level == "all masks" else "≥ 0.99",
            spread_of(found["all"]),
        )
        for level, found in sbdd_tables.levels_of(figures).items()
    ]


def tile(figures: dict[str, Any]) -> list[Row]:
    """The hard surface."""
    means = figures["by_source"]["magnetic_tile"]
    chance = figures["chance_ap"]["mean"]
    return [
        (f"Magnetic tile, five splits by tile: AP (chance {chance:.2f})", "≥ 0.90", spread_of(means["ap"])),
        ("– AUROC", "≥ 0.95", spread_of(means["auroc"])),
        ("– pixel AP", "≥ 0.45", spread_of(means["pixel_ap"])),
    ]


def speed(figures: dict[str, Any]) -> list[Row]:
    """`lite` against the published network."""
    own = [
        run
        for run in figures["runs"]
        if (run["network"], run["width"], run["task"], run["batch"]) == ("lite", 1.0, "network", 1)
    ]
    best = min(own, key=lambda run: run["ms_per_image"])
    slow = min(
        run["ms_per_image"]
        for run in figures["runs"]
        if run["network"] == "reference" and (run["task"], run["batch"]) == ("network", 1)
    )
    return [
        (
            "`lite`, 512x512 network pixels, two cores, best runtime",
            "≤ 6 ms",
            f"{best['ms_per_image']:.1f} ms ({best['runtime']} {best['precision']})",
        ),
        (
            "– times faster than the published network, each in its best runtime",
            "≥ 200",
            f"{slow / best['ms_per_image']:.0f}",
        ),
    ]


def spread_of(spread: dict[str, float]) -> str:
    """Mean with the smallest and the largest."""
    return f"{spread['mean']:.3f} ({spread['min']:.3f} to {spread['max']:.3f})"


def routing(figures: dict[str, Any]) -> list[Row]:
    """The router on real surfaces, beside the baseline."""
    rows = [
        (
            f"Audit of {figures['num_images']:,} images, 3 seen and {figures['unseen_surfaces']} unseen real surfaces",
            "one row an image",
            f"{figures['num_rows']:,} rows, {figures['images_per_second']:.0f} images/s",
        )
    ]
    threshold = figures.get("calibration", "held-out")  # the default of when it was not recorded
    for rate, budget in (("0.02", "2 %"), ("0.05", "5 %")):
        ours, base = figures["whitened-nn"][rate], figures["cosine 1-NN"][rate]
        both = [
            f"{name} {one['s']:.3f} / {one['u']:.3f} / {one['h']:.3f}"
            for name, one in (("", ours), ("cosine 1-NN", base))
        ]
        rows.append(
            (
                f"– S / U / H at the {budget} budget, threshold {threshold}",
                "above cosine 1-NN",
                ("; ".join(both)).strip(),
            )
        )
        alarms = f"{ours['false_alarms']:.1%}; cosine 1-NN {base['false_alarms']:.1%}"
        rows.append((f"– seen test images really called unseen at {budget}, mean over surfaces", f"≤ {budget}", alarms))
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


def unknown(figures: dict[str, Any]) -> list[Row]:
    """The router on the tracks that goals were set for."""
    tracks = figures["tracks"]
    splits = figures["splits"]["random"]
    gate, held_out, cosine = (tracks["random"][name] for name in ("gate", "gate, held out", "cosine 1-NN"))
    rows = [
        (
            f"25 real surfaces, a fifth unseen, {splits} splits: H at 5 % / 2 %, mean (worst)",
            "≥ 97.0 / 96.5 (95.0)",
            f"{two_budgets(gate)}; held-out threshold {two_budgets(held_out)}; cosine 1-NN {two_budgets(cosine)}",
        ),
        (
            "– false alarms really seen at 5 % / 2 %",
            "5 / 2",
            f"{gate['false alarms, of images@5%']['mean']:.1f} / {gate['false alarms, of images@2%']['mean']:.1f} "
            f"of images; {gate['false alarms@5%']['mean']:.1f} / {gate['false alarms@2%']['mean']:.1f}, mean of "
            "surfaces",
        ),
        ("– worst single unseen surface flagged, worst split", "≥ 80", f"{gate['worst unseen@5%']['min']:.0f} at 5 %"),
    ]
    kinds = [f"changed: {kind}, edge" for kind in ("gain", "gamma", "offset", "blur", "noise", "scale")]
    envelope = [tracks[name]["gate, envelope"] for name in kinds]
    rows += [
        (
            "– envelope promise, any one change at its edge: lowest H, highest false alarms at 5 %",
            "≥ 90, ≤ 7",
            f"{min(one['H@5%']['mean'] for one in envelope):.1f}, "
            f"{max(one['false alarms@5%']['mean'] for one in envelope):.1f}; plain promise "
            f"{min(tracks[name]['gate']['H@5%']['mean'] for name in kinds):.1f}, "
            f"{max(tracks[name]['gate']['false alarms@5%']['mean'] for name in kinds):.1f}",
        ),
        (
            "– one feature cluster a surface kept for the test: H (false alarms) at 5 %",
            "≥ 88 (≤ 10)",
            "; ".join(
                f"{name} {tracks['groups'][name]['H@5%']['mean']:.1f} "
                f"({tracks['groups'][name]['false alarms@5%']['mean']:.0f})"
                for name in ("gate", "gate, envelope", "linear softmax")
            ),
        ),
        ("– enrolled from 10 images: H at 5 % / 2 %", "≥ 92", two_budgets(tracks["new: 10"]["gate"])),
        *(
            (f"– {what}: H at 5 % / 2 %", "", two_budgets(tracks[track]["gate"]))
            for track, what in (("few: 10", "10 images a surface in all"), ("seen: 1", "one surface seen, 24 unseen"))
        ),
    ]
    return rows


def new_lots(figures: dict[str, Any]) -> list[Row]:
    """The clusters again, after a few images of each."""
    rows = []
    for count in (10, 5):
        scores = figures["tracks"][f"lots: {count}"]
        shown = [
            f"{name} {scores[name]['H@5%']['mean']:.1f} ({scores[name]['false alarms@5%']['mean']:.0f})"
            for name in ("gate", "gate, envelope", "gate, trained anew")
        ]
        if not rows:
            shown.append(f"untaught {scores['gate, as it was']['H@5%']['mean']:.1f}")
        what = "The same clusters as a new lot, `sbdzsl extend` by" if not rows else "– by"
        rows.append((f"{what} {count} images of each: H (false alarms) at 5 %", "≥ 88 (≤ 10)", "; ".join(shown)))
    return rows


def two_budgets(found: dict[str, dict[str, float]]) -> str:
    """H at both budgets, mean (worst)."""
    return " / ".join(f"{found[key]['mean']:.1f} ({found[key]['min']:.1f})" for key in ("H@5%", "H@2%"))


def router_latency(figures: dict[str, Any]) -> list[Row]:
    """Stage one alone."""
    plain = {one["runtime"]: one["total_ms"] for one in figures["runs"] if one["promise"] == "plain"}
    best = min(plain, key=lambda name: plain[name])
    return [("Router, one 512x512 image, best runtime", "≤ 10 ms", f"{plain[best]:.1f} ms ({best})")]


def enrolled(figures: dict[str, Any]) -> list[Row]:
    """A surface from few images."""
    counts = figures["counts"]
    return [
        (
            f"Enrolled from {name} images, 2 % budget: accepted and named; old verdicts changed",
            "",
            f"{counts[name]['accuracy']['mean']:.1%} ({counts[name]['accuracy']['lowest']:.0%} to "
            f"{counts[name]['accuracy']['highest']:.0%}); {counts[name]['old_verdicts_changed']['mean']:.2%}",
        )
        for name in ("5", "20", "50")
    ]


def paper(figures: dict[str, Any]) -> list[Row]:
    """Table 4 beside the paper."""
    published = figures["paper"]
    return [
        (
            f"Drawn surfaces, 45 unseen pairs, {name}: H, mean (worst)",
            f"{published[name]['h']:.1f} (paper)" if name in published else "",
            f"{found['h']['mean']:.1f} ({found['h']['worst']:.1f})",
        )
        for name, found in figures["all pairs"].items()
    ]


def drawn_pairs(figures: dict[str, Any]) -> list[Row]:
    """The gate on surfaces that it was not chosen on."""
    gate, cosine = (figures["all pairs"][name] for name in ("the router's own gate", "nearest neighbour, cosine"))
    both = [f"{one['h']['mean']:.1f} ({one['h']['worst']:.1f})" for one in (gate, cosine)]
    what = "– the gate, on the same pairs at 2 %: H, mean (worst)"
    return [(what, "97.0 (paper)", f"{both[0]}; cosine 1-NN {both[1]}")]


DETECTOR = {
    "sbdd_kolektorsdd": kolektorsdd,
    "sbdd_labels": fewer_labels,
    "sbdd_labels_half": half_size,
    "sbdd_dagm": dagm,
    "sbdd_drawn": drawn,
    "sbdd_tile": tile,
    "runtimes": speed,
}

ROUTER = {
    "sbad_gzsl": unknown,
    "sbad_lots": new_lots,
    "router_latency": router_latency,
    "enrolment": enrolled,
    "sbad_paper": paper,
    "sbad_paper_yardsticks": drawn_pairs,
}

BOTH = {"routing": routing, "latency": latency, "demo": demo, "drawn_lake": drawn_lake}
