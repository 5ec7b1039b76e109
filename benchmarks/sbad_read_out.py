"""How far the attributes that are read off surfaces never seen can be trusted. Prints a table, writes results.

    SBDZSL_SHARED=../shared python benchmarks/sbad_read_out.py

The shared real surfaces in five folds: each fold is unseen once, the others train the router. What is read off an image
is compared with the row that a person wrote for its surface: mean error of the seven attributes of the surface itself
(the other 22 describe defects, which most of these images lack). Beside it two guesses that read nothing, the row of
the nearest seen surface and the mean of all seen rows; and the error on held-out images of the seen surfaces, the best
that can be hoped for. Of the words that are said, how many stand in the row; of those in the row, how many are said.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from record import record, shared_data

from sbdzsl.config import RouterSettings
from sbdzsl.sbad.attributes import SURFACE_ATTRIBUTES, standard_attributes
from sbdzsl.sbad.backbone import load_backbone
from sbdzsl.sbad.decision import STANDS_OUT, SurfaceRouter
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbad.fit import EmbeddedImages, fit_router
from sbdzsl.verdict import Route

FOLDS = 5
TRAIN, CALIBRATION, TEST = 20, 5, 5  # images a surface
TABLE = standard_attributes()
OWN = [TABLE.names.index(name) for name in SURFACE_ATTRIBUTES]

Features = NDArray[np.float32]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = RouterSettings()
    features = embed(settings, np.random.default_rng(arguments.seed))
    order = np.random.default_rng(arguments.seed).permutation(sorted(features)).tolist()
    found: dict[str, list[float]] = defaultdict(list)
    for fold in range(FOLDS):
        unseen = order[fold::FOLDS]
        router = fit({name: rows for name, rows in features.items() if name not in unseen}, settings, arguments.seed)
        for kind, values in measure(router, features).items():
            found[kind] += values
    figures = {kind: round(float(np.mean(values)), 3) for kind, values in found.items()}
    for kind, value in figures.items():
        print(f"{kind:55} {value:.3f}")
    record("sbad_read_out", {"seed": arguments.seed, "surfaces": len(features), "mean": figures})
    return 0


def embed(settings: RouterSettings, rng: np.random.Generator) -> dict[str, Features]:
    embedder = Embedder(load_backbone(), settings)
    cache = Path(tempfile.gettempdir()) / "sbdzsl-features"
    features = {}
    for surface, paths in surfaces():
        rows = []
        for index in rng.permutation(len(paths))[: TRAIN + CALIBRATION + TEST]:
            grey = cv2.imread(str(paths[index]), cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
            rows.append(embedder.embed_cached(grey, f"{surface}/{paths[index].name}", cache))
        features[surface] = np.array(rows)
    return features


def surfaces() -> Iterator[tuple[str, list[Path]]]:
    """Names as in the attribute table, and image files."""
    data = shared_data()
    for folder in sorted(path for path in (data / "KTH-TIPS").iterdir() if path.is_dir()):
        yield folder.name, sorted(folder.glob("*.png"))
    for folder in sorted((data / "Leather27").glob("class_*")):
        yield f"leather27_{folder.name}", sorted(folder.glob("*.jpg"))
    yield "dagm_class1", sorted((data / "DAGM2007" / "Class1").rglob("[0-9][0-9][0-9][0-9].PNG"))
    yield "kolektorsdd", sorted((data / "KolektorSDD").rglob("*.jpg"))
    yield "magnetic_tile", sorted((data / "MagneticTile").rglob("*.jpg"))
    yield "neu", sorted((data / "NEU-DET").rglob("*.jpg"))


def fit(seen: dict[str, Features], settings: RouterSettings, seed: int) -> SurfaceRouter:
    train = np.concatenate([rows[:TRAIN] for rows in seen.values()])
    held_out = np.concatenate([rows[TRAIN : TRAIN + CALIBRATION] for rows in seen.values()])
    names = list(seen)
    return fit_router(
        EmbeddedImages(train, np.repeat(names, TRAIN).tolist()),
        EmbeddedImages(held_out, np.repeat(names, CALIBRATION).tolist()),
        TABLE,
        settings,
        seed,
    ).router


def measure(router: SurfaceRouter, features: dict[str, Features]) -> dict[str, list[float]]:
    """Errors and shares of words, a value an image."""
    found: dict[str, list[float]] = defaultdict(list)
    mean = row_of(*router.surfaces)
    for surface, rows in features.items():
        truth, seen = row_of(surface), surface in router.surfaces
        said_of_it = truth >= STANDS_OUT
        kind = "seen" if seen else "unseen"
        for image in rows[-TEST:]:
            route: Route = router.route(image)
            read = np.array(route.class_embedding)[OWN]
            found[f"{kind}: error of what is read"].append(float(np.abs(read - truth).mean()))
            said = read >= STANDS_OUT
            if said.any():
                found[f"{kind}: words said that stand in the row"].append(float(said_of_it[said].mean()))
            if said_of_it.any():
                found[f"{kind}: words of the row that are said"].append(float(said[said_of_it].mean()))
            if not seen:
                near = row_of(route.surface)
                found["unseen: error of the nearest surface's row"].append(float(np.abs(near - truth).mean()))
                found["unseen: error of the mean row"].append(float(np.abs(mean - truth).mean()))
    return found


def row_of(*names: str) -> NDArray[np.float64]:
    """Mean row of surfaces, [7]."""
    return np.mean([TABLE.rows[name] for name in names], axis=0)[OWN]


if __name__ == "__main__":
    sys.exit(main())
