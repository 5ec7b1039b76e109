"""A new lot of every known surface: what becomes of it before and after a few of its images are taught.

    SBDZSL_SHARED=../shared python benchmarks/sbad_lots.py      results/sbad_lots.json; minutes on two cores

The splits are those of the track "groups" of `sbad_gzsl.py`: one of four clusters by feature of each seen surface is
the new lot. Half of it is the test, of the other half 10, 5 or 3 images (fewer where it is small) are taught to the
gate as `sbdzsl extend` does it: projection, all other surfaces and threshold stay. A lot that another surface claims is
refused, and not taught. Beside it the same gate as it was, one that is trained anew with these images, and the nearest
neighbour by cosine, trained anew. All in per cent, as in `sbad_gzsl.py`.

Also how many lots are refused, and how many lots and unseen surfaces (ten images each) `extend` has doubts about. Its
constant was chosen on splits of the same surfaces with other seeds.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import real_surfaces
import sbad_gzsl
from real_surfaces import WORKERS
from record import record
from router_scores import Fitted, Training, cross_fitted, score_of
from sbad_gzsl import METHODS, SETTINGS, Figures, Indices, Split

from sbdzsl.calibration import conformal_threshold
from sbdzsl.sbad.enrolment import NewLot
from sbdzsl.sbad.gate import FittedGate, SurfaceGate, fit_gate

SPLITS = 10
COUNTS = (10, 5, 3)
GATES = ("gate", "gate, envelope")
BASELINE = "cosine 1-NN"
#: By the threshold of this budget it is said how far off images lie: the default of a bundle.
BUDGET = 0.02


def main() -> None:
    """Measure all splits, print the tables, record."""
    real_surfaces.load(SETTINGS)  # embeds once, before the workers read the cache
    os.environ["OMP_NUM_THREADS"] = "1"  # of each worker, whose linear algebra reads it as it loads
    with ProcessPoolExecutor(WORKERS, get_context("spawn"), sbad_gzsl.start_worker) as pool:
        rows = list(pool.map(one_split, range(SPLITS)))
    found = {track: sbad_gzsl.summaries([row[track] for row in rows]) for track in rows[0]}
    for track, scores in found.items():
        if track != "looked at":
            sbad_gzsl.print_table(track, scores)
    print(found["looked at"])
    record("sbad_lots", {"splits": SPLITS, "settings": SETTINGS.model_dump(mode="json"), "tracks": found})


def one_split(seed: int) -> dict[str, dict[str, Figures]]:
    """Track -> score -> figures."""
    split, lots = with_lots_kept(sbad_gzsl.groups_split(seed), np.random.default_rng([seed, 6]))
    known = sbad_gzsl.training(split, split.known)
    fitted = {title: fit(known, METHODS[title].envelope) for title in GATES}
    as_they_were = {title: Fitted(score_of(one.gate), one.threshold_scores) for title, one in fitted.items()}
    found = {"looked at": looked_at(as_they_were["gate"], split, lots)}
    for count in COUNTS:
        few = {name: lot[:count] for name, lot in lots.items()}
        anew = sbad_gzsl.training(split, np.concatenate([split.known, *few.values()]))
        rows: dict[str, Fitted] = {}
        for title, one in fitted.items():
            rows[f"{title}, as it was"] = as_they_were[title]
            grown = taught(as_they_were[title], one.gate, few, METHODS[title].envelope)
            rows[title] = Fitted(score_of(grown), one.threshold_scores)
            rows[f"{title}, trained anew"] = cross_fitted(METHODS[title], anew)
        rows[f"{BASELINE}, trained anew"] = cross_fitted(METHODS[BASELINE], anew)
        clean = sbad_gzsl._data.clean
        found[f"lots: {count}"] = {title: sbad_gzsl.figures(split, one, clean) for title, one in rows.items()}
    return found


def fit(t: Training, envelope: bool) -> FittedGate:
    """The router's own gate under one of its promises."""
    return fit_gate(t.features, t.labels, SETTINGS, t.groups, *((t.copies, t.even) if envelope else ()))


def with_lots_kept(split: Split, rng: np.random.Generator) -> tuple[Split, dict[str, Indices]]:
    """Half of each surface's test images, to be taught, and the split with the other half to test."""
    lots, rest = {}, []
    for name in split.seen:
        own = rng.permutation(split.test[split.names[split.test] == name])
        lots[name], test = np.split(own, [len(own) // 2])
        rest.append(test)
    return replace(split, test=np.concatenate(rest)), lots


def taught(of: Fitted, gate: SurfaceGate, few: dict[str, Indices], envelope: bool) -> SurfaceGate:
    """The gate after each surface's lot, but for those that are refused."""
    data, threshold = sbad_gzsl._data, conformal_threshold(np.sort(of.held_out), BUDGET)
    for number, lot in enumerate(few.values()):
        if NewLot.of(of.score(data.clean[lot]), number, threshold).claimed_by is None:
            gate = gate.with_images(number, data.clean[lot], SETTINGS, data.copies[lot] if envelope else None)
    return gate


def looked_at(of: Fitted, split: Split, lots: dict[str, Indices]) -> dict[str, Figures]:
    """What `extend` would say of ten images of each lot, and of ten of each unseen surface as the nearest one's lot."""
    threshold = conformal_threshold(np.sort(of.held_out), BUDGET)
    strangers = [split.unseen[split.names[split.unseen] == name] for name in np.unique(split.names[split.unseen])]
    own, other = (
        [of.score(sbad_gzsl._data.clean[some[:10]]) for some in parts] for parts in (lots.values(), strangers)
    )
    taken = [NewLot.of(apart, number, threshold) for number, apart in enumerate(own)]
    mistaken = [NewLot.of(apart, int(np.bincount(apart.argmin(axis=1)).argmax()), threshold) for apart in other]
    return {
        "lots": {
            "refused": 100 * float(np.mean([lot.claimed_by is not None for lot in taken])),
            "strange": 100 * float(np.mean([lot.is_strange for lot in taken])),
        },
        "unseen surfaces": {"strange": 100 * float(np.mean([lot.is_strange for lot in mistaken]))},
    }


if __name__ == "__main__":
    main()
