"""Studies of the detector on real and drawn surfaces: many trainings each, one `benchmarks/results/sbdd_<study>.json`.

    python benchmarks/sbdd.py kolektorsdd   three folds, three seeds, all masks
    python benchmarks/sbdd.py labels        KolektorSDD from no defect image to all masks, three folds, three seeds
    python benchmarks/sbdd.py labels_half   its two levels without masks at half size
    python benchmarks/sbdd.py dagm          DAGM class 1 from no defect image to all masks, three seeds
    python benchmarks/sbdd.py drawn         ten drawn surfaces without masks and without defect images, three seeds
    python benchmarks/sbdd.py tile          magnetic tile, five splits by group; per kind of defect
    python benchmarks/sbdd.py sizes         AP over the widths of `lite`, three seeds
    python benchmarks/sbdd.py ablation      each part of the recipe left out in turn, three seeds
    python benchmarks/sbdd.py robustness    other light, blur, noise and shift at the stored threshold

All need the shared images (SBDZSL_SHARED) but for `drawn`. Runs take one thread each, two side by side; minutes of each
study are in its result. Without an argument: all of them.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from detector_runs import Run, Tested, errors_of, run_all
from record import record

from sbdzsl.datasets import synthetic
from sbdzsl.metrics import auroc, average_precision, average_precision_trapezoid, best_f1

SEEDS = (0, 1, 2)
FOLDS = 3

#: Cracks of KolektorSDD are a pixel or two wide: native size, where the default would be half of it, and fewer epochs.
FINE = {"scale": 1.0, "epochs": 25}

#: Trainings that are compared run to their last epoch: a time limit would measure the machine's other work.
UNHURRIED = {"max_minutes": 60.0}

#: What training may see, beside all masks: (name, masks, positives).
LEVELS = (("good images alone", None, 0), ("N = 0", 0, None), ("N = 5", 5, None), ("N = 15", 15, None))


def kolektorsdd() -> dict[str, Any]:
    """Three folds by item, three seeds, all masks; pooled over folds as published, by raw score."""
    tested = run_all([Run("kolektorsdd", seed, (k, FOLDS), settings=FINE) for seed in SEEDS for k in range(FOLDS)])
    pooled = [pool([one for one in tested if one.run.seed == seed]) | {"seed": seed} for seed in SEEDS]
    return summary(tested) | {"pooled": pooled, "pooled_ap": spread([one["ap"] for one in pooled])}


def labels() -> dict[str, Any]:
    """KolektorSDD with fewer labels; three folds, three seeds."""
    settings = FINE | UNHURRIED
    return by_name(
        {
            name: [
                Run("kolektorsdd", seed, (k, FOLDS), masks, positives, settings) for seed in SEEDS for k in range(FOLDS)
            ]
            for name, masks, positives in LEVELS
        }
    )


def labels_half() -> dict[str, Any]:
    """The levels without masks at half size, the default, at which a crack is as wide as a drawn one; three seeds."""
    return by_name(
        {
            name: [Run("kolektorsdd", seed, (k, FOLDS), masks, positives) for seed in SEEDS for k in range(FOLDS)]
            for name, masks, positives in LEVELS[:2]
        }
    )


def dagm() -> dict[str, Any]:
    """DAGM class 1 (shared part), split by seed."""
    levels = (*LEVELS[:3], ("5 positives in all", None, 5), ("all masks", None, None))
    return by_name({name: [Run("dagm_class1", seed, None, m, p) for seed in SEEDS] for name, m, p in levels})


def drawn() -> dict[str, Any]:
    """The ten drawn surfaces without masks, and without any defect image."""
    surfaces = synthetic.SURFACES
    return by_name(
        {
            name: [Run(f"drawn/{surface}", seed, None, m, p) for surface in surfaces for seed in SEEDS]
            for name, m, p in LEVELS[:2]
        }
    )


def tile() -> dict[str, Any]:
    """Magnetic tile, all kinds as one class, five splits by group; each kind against the good ones too."""
    settings = {"epochs": 20, "max_minutes": 20.0}
    tested = run_all([Run("magnetic_tile", seed, settings=settings) for seed in range(5)])
    kinds: dict[str, list[float]] = defaultdict(list)
    for one in tested:
        kind_of = np.array([name.split("/")[0] for name in one.names])
        for kind in sorted(set(kind_of[one.labels])):
            chosen = ~one.labels | (kind_of == kind)
            kinds[kind].append(float(auroc(one.labels[chosen], one.scores[chosen]) or 0))
    chance = [float(one.labels.mean()) for one in tested]
    return summary(tested) | {
        "chance_ap": spread(chance),
        "auroc_by_kind": {kind: spread(values) for kind, values in kinds.items()},
    }


def sizes() -> dict[str, Any]:
    """Widths of `lite` on KolektorSDD's hardest fold at half size, all with random weights to begin with."""
    widths = (0.5, 1.0, 1.5, 2.0)
    return by_name({f"width {width:g}": hardest({"width": width, "start": "random"}) for width in widths})


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


def ablation() -> dict[str, Any]:
    """KolektorSDD's hardest fold at half size, with each part changed in turn."""
    return by_name({name: hardest(changed) for name, changed in PARTS.items()})


def robust() -> dict[str, Any]:
    """DAGM class 1 and one fold of KolektorSDD: test images, changed, at the threshold from validation."""
    runs = [Run("dagm_class1", 0, changes=True), Run("kolektorsdd", 0, (1, FOLDS), settings=FINE, changes=True)]
    return {"surfaces": {one.run.source: [asdict(row) for row in one.robustness] for one in run_all(runs)}}


def by_name(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Run all, then summarise each name's own."""
    tested = iter(run_all([run for group in runs.values() for run in group]))
    return {name: summary([next(tested) for _ in group]) for name, group in runs.items()}


def summary(tested: Sequence[Tested]) -> dict[str, Any]:
    """Mean and spread of AP by source, and each run's figures."""
    of_source: dict[str, list[Tested]] = defaultdict(list)
    for one in tested:
        of_source[one.run.source].append(one)
    figures = [one.figures() for one in tested]
    means = {
        source: {name: spread([one.figures()[name] for one in group]) for name in ("ap", "auroc", "pixel_ap")}
        for source, group in of_source.items()
    }
    return {"all": spread([one["ap"] for one in figures]), "by_source": means, "runs": figures}


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


STUDIES: dict[str, Callable[[], dict[str, Any]]] = {
    "kolektorsdd": kolektorsdd,
    "labels": labels,
    "labels_half": labels_half,
    "dagm": dagm,
    "drawn": drawn,
    "tile": tile,
    "sizes": sizes,
    "ablation": ablation,
    "robustness": robust,
}

if __name__ == "__main__":
    chosen = sys.argv[1:] or list(STUDIES)
    if set(chosen) - set(STUDIES):
        sys.exit(f"found {chosen}; studies are {', '.join(STUDIES)}")
    for study in chosen:
        started = time.monotonic()
        found = STUDIES[study]()
        record(f"sbdd_{study}", found | {"minutes": round((time.monotonic() - started) / 60, 1)})
