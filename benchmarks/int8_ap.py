"""What int8 costs in AP: a trained detector against its own int8 graph. Writes results/int8_ap.json.

    SBDZSL_SHARED=../shared python benchmarks/int8_ap.py     seven minutes on two cores

KolektorSDD at half size, three folds by item, all masks; the ranges of the activations come from training images, the
figures from test images.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from detector_runs import WORKERS, decoded, samples_of
from record import record

from sbdzsl.bundle import SurfaceDetector
from sbdzsl.config import DetectorSettings
from sbdzsl.export import compare, quantise
from sbdzsl.graphs import detector_graph
from sbdzsl.runtime import open_session
from sbdzsl.sbdd.fit import TrainingImage, fit_detector
from sbdzsl.sbdd.predict import shrink

FOLDS, CALIBRATION = 3, 100


def main() -> int:
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        rows = list(pool.map(one_fold, range(FOLDS)))
    for row in rows:
        print(row)
    record("int8_ap", {"folds": rows})
    return 0


def one_fold(fold: int) -> dict[str, Any]:
    """Train, quantise, and judge the test images by both."""
    images: dict[str, list[TrainingImage]] = {"train": [], "val": [], "test": []}
    for sample in samples_of("kolektorsdd", fold, (fold, FOLDS)):
        assert sample.split is not None
        images[sample.split].append(decoded(sample))
    fitted = fit_detector(images["train"], images["val"], DetectorSettings(), fold)
    good, defect = (fitted.val_scores[fitted.val_labels == kind] for kind in (False, True))
    detector = fitted.detector
    entry = SurfaceDetector(detector, detector.settings, good, defect, None)
    graph = detector_graph(detector.network)
    spread = images["train"][:: max(1, len(images["train"]) // CALIBRATION)]
    quantised = quantise(graph, (shrink(image.grey, detector.scale) for image in spread))
    session = open_session(quantised, "onnxruntime", 1)
    found = compare(entry, session, ((image.grey, image.defective) for image in images["test"]))
    return {
        "fold": fold,
        "images": found.num_images,
        "ap": found.ap,
        "ap_int8": found.ap_exported,
        "verdicts_changed": found.verdicts_changed,
        "score_mean_moved": found.score_mean,
    }


if __name__ == "__main__":
    sys.exit(main())
