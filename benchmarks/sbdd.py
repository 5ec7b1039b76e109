"""Studies of the detector on real and drawn surfaces: many trainings each, one `benchmarks/results/sbdd_<study>.json`.

    python benchmarks/sbdd.py kolektorsdd   three folds, three seeds, all masks
    python benchmarks/sbdd.py labels        KolektorSDD from no defect image to all masks, three folds, three seeds
    python benchmarks/sbdd.py labels_half   its two levels without masks at half size
    python benchmarks/sbdd.py dagm          DAGM class 1 from no defect image to all masks, three seeds
    python benchmarks/sbdd.py drawn         ten drawn surfaces from no defect image to all masks, three seeds
    python benchmarks/sbdd.py tile          magnetic tile, five splits by group; per kind of defect
    python benchmarks/sbdd.py sizes         AP over the widths of `lite`, three seeds
    python benchmarks/sbdd.py ablation      each part of the recipe left out in turn, three seeds
    python benchmarks/sbdd.py robustness    other light, blur, noise and shift at the stored threshold

All need the shared images (SBDZSL_SHARED) but for `drawn`. Trainings take one thread each, two side by side; how many
minutes each took is in the result. Without an argument: all studies, hours of them. With `--go-on` a study keeps the
trainings that its result holds, and records each further one as it ends: each says of which commit it is, and where it
was run. (Not `kolektorsdd`, `tile` and `robustness`, which pool their scores.)
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from detector_runs import Run, Tested, errors_of, run_all
from record import RESULTS, origin, record

from sbdzsl.datasets import synthetic
from sbdzsl.metrics import auroc, average_precision, average_precision_trapezoid, best_f1

#: Trainings by the name that their figures stand under.
Plan = dict[str, list[Run]]

SEEDS = (0, 1, 2)
FOLDS = 3

#: Cracks of KolektorSDD are a pixel or two wide: native size, where the default would be half of it, and fewer epochs.
FINE = {"scale": 1.0, "epochs": 25}

#: Trainings that are compared run to their last epoch: a time limit would measure the machine's other work.
UNHURRIED = {"max_minutes": 60.0}

#: What training may see, beside all masks: (name, masks, positives).
LEVELS = (("good images alone", None, 0), ("N = 0", 0, None), ("N = 5", 5, None), ("N = 15", 15, None))
ALL_MASKS = ("all masks", None, None)


def kolektorsdd() -> dict[str, Any]:
    """Three folds by item, three seeds, all masks; pooled over folds as published, by raw score."""
    runs = [Run("kolektorsdd", seed, (k, FOLDS), settings=FINE) for seed in SEEDS for k in range(FOLDS)]
    tested = list(run_all(runs))
    pooled = [pool([one for one in tested if one.run.seed == seed]) | {"seed": seed} for seed in SEEDS]
    return summary(figures_of(tested)) | {"pooled": pooled, "pooled_ap": spread([one["ap"] for one in pooled])}


def labels() -> Plan:
    """KolektorSDD with fewer labels; three folds, three seeds."""
    settings = FINE | UNHURRIED
    return {
        name: [Run("kolektorsdd", seed, (k, FOLDS), masks, positives, settings) for seed in SEEDS for k in range(FOLDS)]
        for name, masks, positives in LEVELS
    }


def labels_half() -> Plan:
    """The levels without masks at half size, the default, at which a crack is as wide as a drawn one; three seeds."""
    return {
        name: [Run("kolektorsdd", seed, (k, FOLDS), masks, positives) for seed in SEEDS for k in range(FOLDS)]
        for name, masks, positives in LEVELS[:2]
    }


def dagm() -> Plan:
    """DAGM class 1 (shared part), split by seed."""
    levels = (*LEVELS[:3], ("5 positives in all", None, 5), ALL_MASKS)
    return {name: [Run("dagm_class1", seed, None, m, p) for seed in SEEDS] for name, m, p in levels}


def drawn() -> Plan:
    """The ten drawn surfaces without any defect image, without masks, and with all, which says what can be found."""
    surfaces = synthetic.SURFACES
    return {
        name: [Run(f"drawn/{surface}", seed, None, m, p) for surface in surfaces for seed in SEEDS]
        for name, m, p in (*LEVELS[:2], ALL_MASKS)
    }


def tile() -> dict[str, Any]:
    """Magnetic tile, all kinds as one class, five splits by group; each kind against the good ones too."""
    settings = {"epochs": 20, "max_minutes": 20.0}
    tested = list(run_all([Run("magnetic_tile", seed, settings=settings) for seed in range(5)]))
    kinds: dict[str, list[float]] = defaultdict(list)
    for one in tested:
        kind_of = np.array([name.split("/")[0] for name in one.names])
        for kind in sorted(set(kind_of[one.labels])):
            chosen = ~one.labels | (kind_of == kind)
            kinds[kind].append(float(auroc(one.labels[chosen], one.scores[chosen]) or 0))
    chance = [float(one.labels.mean()) for one in tested]
    return summary(figures_of(tested)) | {
        "chance_ap": spread(chance),
        "auroc_by_kind": {kind: spread(values) for kind, values in kinds.items()},
    }


def sizes() -> Plan:
    """Widths of `lite` on KolektorSDD's hardest fold at half size, all with random weights to begin with."""
    widths = (0.5, 1.0, 1.5, 2.0)
    return {f"width {width:g}": hardest({"width": width, "start": "random"}) for width in widths}


def hardest(changed: dict[str, Any]) -> list[Run]:
    """KolektorSDD's hardest fold at half size under changed settings, three seeds."""
    return [Run("kolektorsdd", seed, (0, FOLDS), settings=changed | UNHURRIED) for seed in SEEDS]


#: One part of the recipe left out or put back as published, by name.
PARTS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "random start": {"start": "random"},
    "no drawn defects": {"drawn_defects": 0.0},
    "no distance weights": {"distance_power": 0.0},
    "gradient stopped": {"decision_gradient": 0.0},
    "random sampling": {"sampling": "random"},
    "no augmentation": {"augmentation": False},
}


def ablation() -> Plan:
    """KolektorSDD's hardest fold at half size, with each part changed in turn."""
    return {name: hardest(changed) for name, changed in PARTS.items()}


def robust() -> dict[str, Any]:
    """DAGM class 1 and one fold of KolektorSDD: test images, changed, at the threshold from validation."""
    runs = [Run("dagm_class1", 0, changes=True), Run("kolektorsdd", 0, (1, FOLDS), settings=FINE, changes=True)]
    return {"surfaces": {one.run.source: [asdict(row) for row in one.robustness] for one in run_all(runs)}}


def train_planned(study: str, plan: Plan, go_on: bool) -> None:
    """Train what is planned, but for what the result holds already if it is to `go_on`; record each name's summary."""
    done = {name: recorded(study, name) if go_on else [] for name in plan}
    known = {(name, *which(row)) for name, rows in done.items() for row in rows}
    left = [
        (name, run)
        for name, runs in plan.items()
        for run in runs
        if (name, run.source, run.seed, run.fold[0] if run.fold else None) not in known
    ]
    left.sort(key=lambda one: one[1].seed)  # a whole table of one seed first
    for number, ((name, _), tested) in enumerate(zip(left, run_all([run for _, run in left]), strict=True), 1):
        done[name].append(tested.figures() | origin())
        done[name].sort(key=lambda row: tuple(map(str, which(row))))
        if (go_on and all(done.values())) or number == len(left):
            record(f"sbdd_{study}", {name: summary(rows) for name, rows in done.items()})


def recorded(study: str, name: str) -> list[dict[str, Any]]:
    """The trainings of one name that the study's result holds."""
    file = RESULTS / f"sbdd_{study}.json"
    if not file.exists():
        return []
    found = json.loads(file.read_text())
    rows = found["figures"].get(name, {"runs": []})["runs"]
    # Those of before trainings were recorded one by one are all of the result's own commit and machine.
    own = {"commit": found["commit"], "date": found["date"], "processor": found["machine"]["processor"]}
    return [row if "commit" in row else row | own for row in rows]


def which(row: dict[str, Any]) -> tuple[str, int, int | None]:
    """Which training of its name a recorded row is: source, seed, fold."""
    return row["source"], row["seed"], row["fold"]


def figures_of(tested: Sequence[Tested]) -> list[dict[str, Any]]:
    """Their figures, in order."""
    return [one.figures() for one in tested]


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread of AP by source, and each training's figures."""
    of_source: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        of_source[row["source"]].append(row)
    means = {
        source: {name: spread([row[name] for row in group]) for name in ("ap", "auroc", "pixel_ap")}
        for source, group in of_source.items()
    }
    return {"all": spread([row["ap"] for row in rows]), "by_source": means, "runs": list(rows)}


def pool(tested: Sequence[Tested]) -> dict[str, Any]:
    """Figures over the test images of several folds, by raw score as published; errors at each fold's own threshold."""
    truth = np.concatenate([one.labels for one in tested])
    scores = np.concatenate([one.scores for one in tested])
    best = best_f1(truth, scores)
    own = [one.figures() for one in tested]
    return {
        "ap": average_precision(truth, scores),
        "ap_trapezoid": average_precision_trapezoid(truth, scores),
        "fp": sum(one["fp"] for one in own),
        "fn": sum(one["fn"] for one in own),
        "best_f1_on_test": errors_of(best),
    }


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Mean, standard deviation, smallest and largest; None where a figure is not defined."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {
        "mean": float(np.mean(known)),
        "std": float(np.std(known)),
        "min": float(np.min(known)),
        "max": float(np.max(known)),
    }


POOLED: dict[str, Callable[[], dict[str, Any]]] = {
    "kolektorsdd": kolektorsdd,
    "tile": tile,
    "robustness": robust,
}
PLANNED: dict[str, Callable[[], Plan]] = {
    "labels": labels,
    "labels_half": labels_half,
    "dagm": dagm,
    "drawn": drawn,
    "sizes": sizes,
    "ablation": ablation,
}


def main() -> None:
    """Do the studies that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", metavar="study", help=", ".join(POOLED | PLANNED), default=[])
    parser.add_argument("--go-on", action="store_true", help="keep what the result holds, record each training")
    arguments = parser.parse_args()
    known = list(PLANNED if arguments.go_on else POOLED | PLANNED)
    if unknown := set(arguments.studies) - set(known):
        parser.error(f"found {', '.join(sorted(unknown))}, expected some of {', '.join(known)}")
    for study in arguments.studies or known:
        if study in PLANNED:
            train_planned(study, PLANNED[study](), arguments.go_on)
        else:
            record(f"sbdd_{study}", POOLED[study]())


if __name__ == "__main__":
    main()
