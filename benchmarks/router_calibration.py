"""What the router's threshold is set by: validation images held out, or all images cross-fitted. Writes results.

    SBDZSL_SHARED=../shared python benchmarks/router_calibration.py     minutes on two cores, once features are cached

The random splits of `sbad_gzsl.py`, 25 surfaces, plain promise: the same training and calibration images to both ways
of `router.calibration`, fitted by the router's own code; test images and unseen surfaces are touched by the test alone.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import real_surfaces
import sbad_gzsl
from record import record

from sbdzsl.sbad.attributes import standard_attributes
from sbdzsl.sbad.fit import EmbeddedImages, fit_router

SPLITS = 20
WAYS = ("held-out", "cross-fitted")


def main() -> None:
    """Fit and judge each split both ways; record mean and worst."""
    real_surfaces.load(sbad_gzsl.SETTINGS)  # embeds once, before the workers read the cache
    with ProcessPoolExecutor(real_surfaces.WORKERS, get_context("spawn"), sbad_gzsl.start_worker) as pool:
        rows = list(pool.map(measure, range(SPLITS)))
    found = sbad_gzsl.summaries(rows)
    sbad_gzsl.print_table("random", found)
    record("router_calibration", {"splits": SPLITS, "ways": found})


def measure(seed: int) -> dict[str, sbad_gzsl.Figures]:
    """Figures of one split by way."""
    data = sbad_gzsl._data
    split = sbad_gzsl.random_split(data.surfaces, seed)
    train, calibration = (
        EmbeddedImages(data.clean[own], split.names[own].tolist(), data.groups[own].tolist())
        for own in (split.train, split.calibration)
    )
    found = {}
    for way in WAYS:
        # What is read decides nothing here: the networks that read are hardly trained.
        changes = {"calibration": way, "class_embedding": "real", "vaegan_steps": 0}
        settings = sbad_gzsl.SETTINGS.model_copy(update=changes)
        router = fit_router(train, calibration, standard_attributes(), settings, seed).router
        scores = router.calibration_scores["plain"][:, None]
        distances = sbad_gzsl.rows_of(router.gate.distances)
        found[way] = sbad_gzsl.figures(split, distances, way, data.clean, scores)
    return found


if __name__ == "__main__":
    main()
