"""How well SBAD names leathers and flags leathers it has never seen. Prints a table, writes results/sbad_leather.json.

    SBDZSL_SHARED=../shared python benchmarks/sbad_leather.py --splits 10

14 near-neighbour leathers of 40 images (part of leather27; images of one photograph cannot be told apart there, so
read the figures as "same session"). Seeded splits: 80 % of the leathers seen; of each seen one 50 % training, 25 %
calibration, 25 % test. S: seen test images accepted and rightly named; U: unseen images flagged; both are means over
leathers; H = 2SU/(S+U). All in per cent. The threshold comes from calibration images alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from record import record, shared_data

from sbdzsl.calibration import conformal_threshold
from sbdzsl.config import RouterSettings
from sbdzsl.sbad.attributes import standard_attributes
from sbdzsl.sbad.backbone import load_backbone
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbad.fit import fit_neighbours
from sbdzsl.sbad.reading import fit_reading

BUDGETS = (0.05, 0.02)

Features = NDArray[np.float32]
Distances = Callable[[Features], NDArray[np.float64]]  # [D] -> [K], per seen surface


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=10)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = RouterSettings()
    features, surfaces = embed_leathers(shared_data() / "Leather27", settings)
    rows: dict[str, list[dict[str, float]]] = {}
    for split in range(arguments.splits):
        for name, row in measure_split(features, surfaces, settings, split).items():
            rows.setdefault(name, []).append(row)
    figures = {name: summary(splits) for name, splits in rows.items()}
    print_table(figures)
    record("sbad_leather", {"splits": arguments.splits, "settings": settings.model_dump(), "scores": figures})
    return 0


def embed_leathers(folder: Path, settings: RouterSettings) -> tuple[Features, NDArray[np.str_]]:
    embedder = Embedder(load_backbone(), settings)
    cache = Path(tempfile.gettempdir()) / "sbdzsl-features"
    features, surfaces = [], []
    for path in sorted(folder.glob("class_*/*.jpg")):
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
        features.append(embedder.embed_cached(grey, f"leather27/{path.parent.name}/{path.name}", cache))
        surfaces.append(f"leather27_{path.parent.name}")
    return np.array(features), np.array(surfaces)


def measure_split(
    features: Features, surfaces: NDArray[np.str_], settings: RouterSettings, split: int
) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(split)
    everything = sorted(set(surfaces))
    seen = sorted(rng.permutation(everything)[: round(0.8 * len(everything))])
    train, calibration, test = [], [], []
    for surface in seen:
        own = rng.permutation(np.flatnonzero(surfaces == surface))
        half, quarter = len(own) // 2, len(own) // 4
        train += list(own[:half])
        calibration += list(own[half : half + quarter])
        test += list(own[half + quarter :])
    unseen = np.flatnonzero(~np.isin(surfaces, seen))
    labels = np.searchsorted(seen, surfaces[train]).astype(np.int64)
    started = time.perf_counter()
    reader = fit_reading(features[train], labels, standard_attributes().matrix(seen), settings, split).reader()
    reader_s = time.perf_counter() - started
    started = time.perf_counter()
    neighbours = fit_neighbours(features[train], labels, settings)
    neighbours_s = time.perf_counter() - started
    scores: dict[str, tuple[Distances, float]] = {
        "whitened-nn": (neighbours.distances, neighbours_s),
        "paper": (reader.distances, reader_s),
        "cosine 1-NN": (cosine_neighbours(features[train], labels), 0.0),
    }
    parts = (calibration, test, unseen)
    return {
        name: {"fit_s": fit_s}
        | figures_of(
            *(np.array([distances(features[i]) for i in part]) for part in parts),
            np.searchsorted(seen, surfaces[test]),
            surfaces[unseen],
        )
        for name, (distances, fit_s) in scores.items()
    }


def cosine_neighbours(features: Features, labels: NDArray[np.int64]) -> Distances:
    """The plain yardstick: z-score, then one minus the cosine to the nearest training image of each surface."""
    centre, spread = features.mean(axis=0), features.std(axis=0) + 1e-6

    def unit(x: Features) -> Features:
        z = (x - centre) / spread
        return z / np.linalg.norm(z, axis=-1, keepdims=True)

    bank = unit(features)
    num_surfaces = labels.max() + 1

    def distances(x: Features) -> NDArray[np.float64]:
        similar = bank @ unit(x)
        return np.array([1 - similar[labels == surface].max() for surface in range(num_surfaces)], dtype=np.float64)

    return distances


def figures_of(
    calibration: NDArray[np.float64],
    test: NDArray[np.float64],
    unseen: NDArray[np.float64],
    test_labels: NDArray[np.int64],
    unseen_surfaces: NDArray[np.str_],
) -> dict[str, float]:
    right = test.argmin(axis=1) == test_labels
    known, strange = test.min(axis=1), unseen.min(axis=1)
    figures = {"naming": 100 * right.mean(), "auroc": 100 * (strange[:, None] > known[None, :]).mean()}
    for budget in BUDGETS:
        threshold = conformal_threshold(calibration.min(axis=1), budget)
        s = by_class(right & (known <= threshold), test_labels)
        u = by_class(strange > threshold, unseen_surfaces)
        percent = f"{budget:.0%}"
        figures |= {f"S@{percent}": 100 * s.mean(), f"U@{percent}": 100 * u.mean()}
        figures |= {f"H@{percent}": 200 * s.mean() * u.mean() / max(s.mean() + u.mean(), 1e-9)}
        figures |= {f"worst unseen@{percent}": 100 * u.min()}
    return {name: float(value) for name, value in figures.items()}


def by_class(hits: NDArray[np.bool_], classes: NDArray[np.int64] | NDArray[np.str_]) -> NDArray[np.float64]:
    return np.array([hits[classes == one].mean() for one in np.unique(classes)])


def summary(splits: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "mean": round(float(np.mean([row[name] for row in splits])), 3),
            "sd": round(float(np.std([row[name] for row in splits])), 3),
            "worst": round((max if name == "fit_s" else min)(row[name] for row in splits), 3),
        }
        for name in splits[0]
    }


def print_table(figures: dict[str, dict[str, dict[str, float]]]) -> None:
    columns = list(next(iter(figures.values())))
    print("mean (worst split)".ljust(20) + "".join(column.rjust(18) for column in columns))
    for name, row in figures.items():
        cells = (f"{row[column]['mean']:.1f} ({row[column]['worst']:.1f})" for column in columns)
        print(name.ljust(20) + "".join(cell.rjust(18) for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
