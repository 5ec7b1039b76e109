"""The router's tables, made from `benchmarks/results/`; `write_figures.py` writes them into `sbdzsl/sbad/README.md`."""

from __future__ import annotations

from typing import Any

from sbdd_tables import command_of, result, row

#: Sections of the README: recorded study, title, what makes its lines.
Spread = dict[str, float]

TRACKS = (
    ("random", "random splits, 25 surfaces"),
    ("random, NEU as six", "random splits, 30 surfaces"),
    ("groups", "one feature cluster a surface kept for the test"),
    ("scales, between", "KTH-TIPS, scales 4 and 6 kept for the test"),
    ("scales, beyond", "KTH-TIPS, nearest and farthest scale kept"),
    ("lights", "KTH-TIPS, a third of poses and lights kept"),
    ("seen: 1", "one surface seen, 24 unseen"),
    ("seen: 2", "two seen"),
    ("seen: 3", "three seen"),
    ("few: 20", "20 images a surface in all"),
    ("few: 10", "10 images a surface in all"),
    ("few: 5", "5 images a surface in all"),
)
CHANGES = ("gain", "gamma", "offset", "light", "blur", "noise", "scale", "all")
STRENGTHS = ("mild", "edge", "beyond")


def sections() -> str:
    """All tables in Markdown, one section a recorded study, each with the command that made it."""
    parts = []
    for study, title, lines_of in (
        ("sbad_gzsl", "Knowing the unknown: every score on every track", tracks),
        ("sbad_gzsl", "Changed conditions: H (false alarms) at 5 %", changed),
        ("sbad_gzsl", "Defects do not make strangers", defects),
        ("sbad_lots", "A new lot taught", lots),
        ("sbad_gallery", "Which surfaces are confused", confused),
        ("router_backbones", "Where the backbone is cut", cuts),
        ("router_latency", "Milliseconds and size", latency),
        ("enrolment", "Enrolment from few images, 2 % budget", enrolment),
        ("sbad_paper", "The paper's table 4 on drawn surfaces", cells),
        ("sbad_paper_yardsticks", "The same 45 pairs without any network", yardsticks),
        ("sbad_paper_parts", "Does VAEGAN earn its place? Short training", parts_taken_away),
        ("sbad_paper_length", "The same at the default length of training", parts_taken_away),
        ("sbad_paper_time", "Training for ten surfaces, features cached", training_time),
        ("sbad_read_out", "What words are worth", read_out),
    ):
        found = result(study)
        if found is not None:
            parts += [f"### {title}", "", f"`{command_of(found)}`", "", *lines_of(found["figures"]), ""]
    return "\n".join(parts).strip()


def tracks(figures: dict[str, Any]) -> list[str]:
    """Every score on the tracks without drawn changes, then surfaces enrolled from few images."""
    lines = ["Per cent; mean over splits, the worst split in brackets.", ""]
    for track, title in TRACKS:
        found = figures["tracks"][track]
        lines += [f"**{title}**", ""]
        lines += row(
            "score", "H at 5 %", "H at 2 %", "U at 5 %", "false alarms at 5 %", "at 2 %", "AUROC", "FPR95", "AUSUC",
            "naming", "worst unseen surface at 5 %",
        )  # fmt: skip
        for name, of in found.items():
            cells = [lowest(of[key]) for key in ("H@5%", "H@2%", "U@5%")]
            cells += [highest(of[key]) for key in ("false alarms@5%", "false alarms@2%")]
            cells += [f"{of[key]['mean']:.1f}" for key in ("auroc", "fpr95", "ausuc", "naming")]
            lines += row(name, *cells, lowest(of["worst unseen@5%"]), head=False)
        lines += [""]
    lines += ["**Five surfaces enrolled into a gate that knows the others; S over these alone**", ""]
    lines += row("images", "H at 5 %", "H at 2 %", "S at 5 %", "U at 5 %", "worst unseen surface at 5 %")
    for track, found in figures["tracks"].items():
        if track.startswith("new: "):
            cells = [lowest(found["gate"][key]) for key in ("H@5%", "H@2%", "S@5%", "U@5%", "worst unseen@5%")]
            lines += row(track.removeprefix("new: "), *cells, head=False)
    return lines


def changed(figures: dict[str, Any]) -> list[str]:
    """H and false alarms of the two promises and a baseline under each change."""
    found = figures["tracks"]
    shown = ("gate", "gate, envelope", "cosine 1-NN", "linear softmax")
    lines = [
        "`mild` is half of what the envelope allows, `edge` all of it, `beyond` half as much again; `light` changes "
        "gain, gamma and offset together.",
        "",
        *row("change", *shown),
    ]
    lines += row("none", *(h_and_alarms(found["random"][name]) for name in shown), head=False)
    for kind in CHANGES:
        for strength in STRENGTHS:
            under = found[f"changed: {kind}, {strength}"]
            lines += row(f"{kind}, {strength}", *(h_and_alarms(under[name]) for name in shown), head=False)
    return lines


def defects(figures: dict[str, Any]) -> list[str]:
    """Images called unseen, of surfaces that have good and defective ones."""
    lines = row("score", "good images called unseen at 5 %", "defective ones at 5 %", "good at 2 %", "defective at 2 %")
    for name, of in figures["tracks"]["random"].items():
        if "false alarms, good@5%" in of:
            keys = [f"false alarms, {kind}@{budget}" for budget in ("5%", "2%") for kind in ("good", "defective")]
            lines += row(name, *(f"{of[key]['mean']:.1f}" for key in keys), head=False)
    return lines


def lots(figures: dict[str, Any]) -> list[str]:
    """Before and after a few images of a new lot."""
    lines = [
        "One of four clusters by feature of each seen surface is its new lot: half of it is the test, from the other "
        "half images are taught to each surface. Per cent; mean, worst split in brackets.",
        "",
        *row(
            "images a surface", "score", "H at 5 %", "H at 2 %", "false alarms at 5 %", "at 2 %", "U at 5 %", "naming"
        ),
    ]
    taught = {name: of for name, of in figures["tracks"].items() if name.startswith("lots: ")}
    for place, (track, scores) in enumerate(taught.items()):
        for name, of in scores.items():
            untaught = name.endswith(", as it was")
            if untaught and place > 0:
                continue  # the same for any number of images
            cells = [lowest(of[key]) for key in ("H@5%", "H@2%")]
            cells += [highest(of[key]) for key in ("false alarms@5%", "false alarms@2%")]
            number = "0" if untaught else track.removeprefix("lots: ")
            lines += row(number, name, *cells, lowest(of["U@5%"]), f"{of['naming']['mean']:.1f}", head=False)
    looked = figures["tracks"]["looked at"]
    refused, strange = (looked["lots"][key]["mean"] for key in ("refused", "strange"))
    return [
        *lines,
        "",
        f"Of ten images of a lot, at 2 %: {refused:.1f} % of lots are refused, since another surface claims them; of "
        f"{strange:.0f} % `extend` says that they may show another surface. So it says of "
        f"{looked['unseen surfaces']['strange']['mean']:.0f} % of unseen surfaces, offered as the nearest one's.",
    ]


def confused(figures: dict[str, Any]) -> list[str]:
    """The pairs that let most through, the surfaces that alarm most."""
    lines = [
        f"Of {figures['splits']} random splits, at {figures['budget']:.0%}; the command also draws them, each beside "
        "the nearest training image.",
        "",
        *row("unseen surface", "passes as", "images of all that were judged"),
    ]
    for one in figures["passed"][:8]:
        lines += row(one["unseen"], one["passes as"], f"{one['images']} of {one['of']}", head=False)
    lines += ["", *row("seen surface", "called unseen, of all test images")]
    for one in figures["called unseen"][:8]:
        lines += row(one["surface"], f"{one['called unseen']} of {one['of']}", head=False)
    return lines


def cuts(figures: dict[str, Any]) -> list[str]:
    """H, time and size by stages."""
    edges = ", ".join(figures["edges"])
    lines = row("stages", "numbers", "H at 5 %", "H at 2 %", f"envelope, edges of {edges}: H at 5 %", "time", "MB")
    whole_ms = max(one["crop_ms"] for one in figures["cuts"])
    for one in figures["cuts"]:
        cells = [lowest(one[key]) for key in ("H@5%", "H@2%", "edges, H@5%")]
        first, last = one["stages"][0], one["stages"][-1]
        size = [f"{one['crop_ms'] / whole_ms:.2f}", f"{one['megabytes']:.2f}"]
        lines += row(f"{first} to {last}", str(one["numbers"]), *cells, *size, head=False)
    return [*lines, "", "Time of a crop as a share of the longest."]


def latency(figures: dict[str, Any]) -> list[str]:
    """What one image costs, part by part."""
    lines = row("runtime", "features, ms", "gate, ms", "class embedding, ms", "in all, ms")
    for one in figures["runs"]:
        cells = [f"{one[key]:.2f}" for key in ("features_ms", "gate_ms", "reader_ms", "total_ms")]
        lines += row(f"{one['runtime']}, {one['promise']}", *cells, head=False)
    return [
        *lines,
        "",
        f"One image of 512 x 512, {figures['surfaces']} surfaces, {figures['threads']} threads, median of "
        f"{figures['repeats']}. Backbone {figures['backbone_mb']:.1f} MB, router {figures['router_mb']:.1f} MB.",
    ]


def enrolment(figures: dict[str, Any]) -> list[str]:
    """By number of images."""
    keys = {
        "accuracy": "new surface accepted and rightly named",
        "left_one_out": "what leaving one out told",
        "strangers_claimed": "unseen images it claims",
        "strangers_claimed_worst": "– of the worst unseen surface",
        "old_verdicts_changed": "old images whose verdict changed",
        "old_score_change_elsewhere": "largest score change where an old surface stays nearest",
        "known_refused": "known surface under a new name refused",
        "refused": "really new surface refused",
    }
    counts = [name for name in figures["counts"] if name.isdigit()]
    lines = row("", *(f"{name} images" for name in counts))
    for key, words in keys.items():
        lines += row(words, *(share(figures["counts"][name][key]) for name in counts), head=False)
    return lines


def cells(figures: dict[str, Any]) -> list[str]:
    """The paper's figures beside ours over all pairs, then all eight cells over five pairs."""
    lines = row("cell", "S", "U", "H", "ZSL", "paper's S / U / H / ZSL")
    for of, title in (("all pairs", "45 pairs"), ("five pairs", "5 pairs")):
        for name, found in figures[of].items():
            published = figures["paper"].get(name)
            theirs = "" if published is None else " / ".join(f"{value:.2f}" for value in published.values())
            ours = [f"{found[key]['mean']:.1f}" for key in ("seen", "unseen", "h", "zsl")]
            lines += row(f"{name}, {title}", *ours, theirs, head=False)
    return lines


def yardsticks(figures: dict[str, Any]) -> list[str]:
    """Gate and plain neighbour."""
    lines = row("score", "S", "U", "H (worst)", "AUROC")
    for name, found in figures["all pairs"].items():
        two = [f"{found[key]['mean']:.1f}" for key in ("seen", "unseen")]
        h = f"{found['h']['mean']:.1f} ({found['h']['worst']:.1f})"
        lines += row(name, *two, h, f"{found['auroc']['mean']:.1f}", head=False)
    return lines


def parts_taken_away(figures: dict[str, Any]) -> list[str]:
    """H and ZSL of each variant."""
    sources = [name for name in ("drawn", "leathers") if name in figures]
    lines = row("variant", *(f"{name}: {what}" for name in sources for what in ("H (worst)", "AUROC", "ZSL")))
    for variant in figures[sources[0]]:
        entries = []
        for name in sources:
            found = figures[name].get(variant)
            if found is None:
                entries += ["", "", ""]
            else:
                zsl = found.get("zsl")
                entries += [f"{found['h']['mean']:.1f} ({found['h']['worst']:.1f})", f"{found['auroc']['mean']:.1f}"]
                entries += ["" if zsl is None else f"{zsl['mean']:.1f}"]
        lines += row(variant, *entries, head=False)
    return lines


def training_time(figures: dict[str, Any]) -> list[str]:
    """Wall and processor seconds."""
    lines = row("network", "seconds", "processor seconds")
    for name, took in figures["training"].items():
        lines += row(name, f"{took['wall_s']:.1f}", f"{took['processor_s']:.1f}", head=False)
    return lines


def read_out(figures: dict[str, Any]) -> list[str]:
    """Errors and shares of words."""
    lines = row("figure", "seen surface", "unseen surface (extrapolated)")
    found = figures["mean"]
    names = dict.fromkeys(name.partition(": ")[2] for name in found)
    for name in names:
        values = (found.get(f"{kind}: {name}") for kind in ("seen", "unseen"))
        lines += row(name, *("" if value is None else f"{value:.3f}" for value in values), head=False)
    return lines


def h_and_alarms(of: dict[str, Spread]) -> str:
    """H with the false alarms that came with it."""
    return f"{of['H@5%']['mean']:.1f} ({of['false alarms@5%']['mean']:.1f})"


def lowest(spread: Spread) -> str:
    """Mean with the worst split of a figure that should be high."""
    return f"{spread['mean']:.1f} ({spread['min']:.1f})"


def highest(spread: Spread) -> str:
    """Mean with the worst split of a figure that should be low."""
    return f"{spread['mean']:.1f} ({spread['max']:.1f})"


def share(spread: Spread) -> str:
    """A share in per cent with its range."""
    mean, lowest, highest = (100 * spread[key] for key in ("mean", "lowest", "highest"))
    return f"{mean:.1f} % ({lowest:.1f} to {highest:.1f})"
