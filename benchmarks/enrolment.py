"""How well a surface enrolled from 5, 20 or 50 images is recognised, and what that moves. results/enrolment.json.

    SBDZSL_SHARED=../shared python benchmarks/enrolment.py --seeds 2

Ten real surfaces in turn (DAGM class 1, KolektorSDD, magnetic tile, four KTH materials, three leathers), each enrolled
into a router that was fitted on four fifths of the other 24, at the 2 % budget; the rest stays unseen. Items of
KolektorSDD and tiles are never on both sides: a quarter of a surface's groups is test, enrolment images are drawn from
the others, in turn over the groups. Leathers have 40 images: none is enrolled from 50. Two plain means beside it: the
router before the enrolment, and images of known surfaces offered under a new name, which should be refused. The
images that stay unseen are also grouped, to see how many groups a surface comes in and how pure they are.

Encoder-2, which explains and does not decide, is hardly trained here. Features are cached in the temporary folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from record import record, shared_data

from sbdzsl import datasets, grouping
from sbdzsl.config import ImageSettings, RouterSettings
from sbdzsl.datasets.sample import group_of
from sbdzsl.enrolment import MIN_IMAGES
from sbdzsl.inspector import load_image
from sbdzsl.sbad import enrolment
from sbdzsl.sbad.attributes import standard_attributes
from sbdzsl.sbad.backbone import load_backbone
from sbdzsl.sbad.decision import SurfaceRouter
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbad.fit import EmbeddedImages, fit_router
from sbdzsl.verdict import Route

COUNTS = (5, 20, 50)
ENROLLED = (
    *("dagm_class1", "kolektorsdd", "magnetic_tile"),
    *("aluminium_foil", "brown_bread", "corduroy", "cotton"),
    *("leather27_class_01", "leather27_class_11", "leather27_class_21"),
)
SOURCES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("dagm", "DAGM2007", {"surface": "dagm_class1"}),
    ("kolektorsdd", "KolektorSDD", {}),
    ("magnetic_tile", "MagneticTile", {}),
    ("neu", "NEU-DET", {}),
    ("folder", "KTH-TIPS", {}),
    ("folder", "Leather27", {}),
)
SEEN_SHARE, TEST_SHARE = 0.8, 0.25
#: Images of a surface that a split holds at most, so that the two large sets do not outweigh the others in time.
MAX_IMAGES = 100

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Surface:
    """Features [n, D] of one surface's images, and the group of each."""

    features: Features
    groups: NDArray[np.str_]

    def split(self, rng: np.random.Generator, *shares: float) -> list[NDArray[np.intp]]:
        """Image numbers by group: a list for each share and one for the rest, in turn over their groups."""
        groups = rng.permutation(np.unique(self.groups))
        ends = np.round(np.cumsum(shares) * len(groups)).astype(int)
        return [self.in_turn(part, rng) for part in np.split(groups, ends)]

    def in_turn(self, groups: Iterable[str], rng: np.random.Generator) -> NDArray[np.intp]:
        """The images of some groups, first one of each, then a second one of each, and so on."""
        turns = [
            (turn, i) for name in groups for turn, i in enumerate(rng.permutation(np.flatnonzero(self.groups == name)))
        ]
        return np.array([i for _, i in sorted(turns, key=lambda pair: pair[0])], dtype=np.intp)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = RouterSettings(ce_vae_steps=20, vaegan_steps=2)
    surfaces = load_surfaces(settings)
    rows, groupings = [], []
    for seed in range(arguments.seeds):
        for name in ENROLLED:
            enrolled, grouped = measure(surfaces, name, settings, seed)
            rows += enrolled
            groupings.append(grouped)
            print(f"seed {seed}: {name}", flush=True)
    figures = {str(count): summary([row for row in rows if row["count"] == count]) for count in COUNTS}
    figures["grouping of the unseen"] = summary(groupings)
    for title, row in figures.items():
        print(title)
        for key, value in row.items():
            print(f"  {key}: {value}")
    record("enrolment", {"seeds": arguments.seeds, "settings": settings.model_dump(), "counts": figures, "rows": rows})
    return 0


def load_surfaces(settings: RouterSettings) -> dict[str, Surface]:
    """All surfaces of the shared data, embedded."""
    embedder, cache = Embedder(load_backbone(), settings), Path(tempfile.gettempdir()) / "sbdzsl-features"
    features: dict[str, list[Features]] = {}
    groups: dict[str, list[str]] = {}
    for adapter, folder, choices in SOURCES:
        for sample in datasets.ingest(adapter, str(shared_data() / folder), **choices).samples:
            image = load_image(sample.image_id, sample.uri, ImageSettings(), sample.bit_depth).image
            assert image is not None
            name = f"leather27_{sample.surface}" if folder == "Leather27" else str(sample.surface)
            features.setdefault(name, []).append(embedder.embed_cached(image.grey(), image.digest, cache))
            groups.setdefault(name, []).append(group_of(sample)[1])
    return {name: Surface(np.array(own), np.array(groups[name])) for name, own in sorted(features.items())}


def measure(
    surfaces: dict[str, Surface], name: str, settings: RouterSettings, seed: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row for each number of images that `name` can be enrolled from, into one router; and its groups of unseen."""
    rng = np.random.default_rng([seed, list(surfaces).index(name)])
    others = rng.permutation([other for other in surfaces if other != name])
    seen, unseen = np.split(others, [round(SEEN_SHARE * len(others))])
    parts = {other: surfaces[other].split(rng, 0.5, 0.25) for other in sorted(seen)}
    train, calibration, test = (
        {other: surfaces[other].features[split[number][:MAX_IMAGES]] for other, split in parts.items()}
        for number in range(3)
    )
    lots = [
        [group for other, split in parts.items() for group in surfaces[other].groups[split[number][:MAX_IMAGES]]]
        for number in range(2)
    ]
    images = [EmbeddedImages(*flat(own), groups) for own, groups in zip((train, calibration), lots, strict=True)]
    router = fit_router(*images, standard_attributes(), settings, seed).router
    known, strange = flat(test)[0], {other: surfaces[other].features[:MAX_IMAGES] for other in unseen}
    before = [router.route(row) for row in known]
    own = surfaces[name]
    test_own, pool = own.split(rng, TEST_SHARE)
    rows = []
    for count in COUNTS:
        if len(pool) < count:
            continue
        few = pool[:count]
        features, groups = own.features[few], own.groups[few].tolist()
        claim = enrolment.largest_claim(router, features, groups)
        child = enrolment.enrol(router, name, features, groups)
        left_out = enrolment.leave_out(router, features, groups)
        claims = [accepted(child, features, name) for features in strange.values()]
        rows.append(
            {
                "surface": name,
                "seed": seed,
                "count": count,
                "accuracy": accepted(child, own.features[test_own[:MAX_IMAGES]], name),
                "left_one_out": left_out.num_recognised / len(left_out.images),
                "unseen_before": float(np.mean([router.route(row).is_unseen for row in own.features[test_own]])),
                "accepted_before": claim.num_accepted / count,
                "refused": float(claim.is_refused),
                "known_refused": known_refused(router, surfaces, parts, count),
                "strangers_claimed": float(np.mean(claims)),
                "strangers_claimed_worst": max(claims),
            }
            | movement(before, [child.route(row) for row in known], name, flat(test)[1])
        )
    return rows, group_figures(router, strange | {name: own.features[test_own[:MAX_IMAGES]]})


def known_refused(
    router: SurfaceRouter, surfaces: dict[str, Surface], parts: dict[str, list[NDArray[np.intp]]], count: int
) -> float:
    """Share of the known surfaces that are refused under a new name, each offered by `count` test images at most."""
    claims = []
    for name, (_, _, test) in parts.items():
        few = test[:count]
        own = surfaces[name]
        claims.append(enrolment.largest_claim(router, own.features[few], own.groups[few].tolist()))
    return float(np.mean([claim.is_refused for claim in claims]))


def group_figures(router: SurfaceRouter, strange: dict[str, Features]) -> dict[str, float]:
    """How images of several unseen surfaces fall into groups, as `sbdzsl groups` makes them."""
    features, truth = flat(strange)
    unseen = [i for i, row in enumerate(features) if router.route(row).is_unseen]
    gate = router.gate
    numbers, _ = grouping.link_alike(
        np.array([gate.project(features[i]) for i in unseen]), grouping.usual_distance(gate)
    )
    names = np.array(truth)[unseen]
    groups = [names[numbers == number] for number in np.unique(numbers)]
    enough = [group for group in groups if len(group) >= MIN_IMAGES]
    largest = [max(Counter(group.tolist()).values()) for group in enough]
    return {
        "purity": sum(largest) / sum(map(len, enough)),
        "grouped": sum(map(len, enough)) / len(unseen),
        "groups_a_surface": len(enough) / len(set(names.tolist())),
        "in_its_largest_group": float(
            np.mean([max((group == name).sum() for group in groups) / (names == name).sum() for name in set(names)])
        ),
    }


def movement(before: list[Route], after: list[Route], name: str, truth: list[str]) -> dict[str, float]:
    """What an enrolment does to test images of the surfaces that were there."""
    stayed = [(old, new) for old, new in zip(before, after, strict=True) if new.surface != name]
    changed = [
        (old.surface, old.is_unseen) != (new.surface, new.is_unseen) for old, new in zip(before, after, strict=True)
    ]
    return {
        "old_nearest_to_it": 1 - len(stayed) / len(after),
        "old_verdicts_changed": float(np.mean(changed)),
        "old_score_change_elsewhere": max(abs(new.unseen_score - old.unseen_score) for old, new in stayed),
        "old_score_rises": sum(new.unseen_score > old.unseen_score for old, new in zip(before, after, strict=True)),
        "old_right_before": rightly_named(before, truth),
        "old_right_after": rightly_named(after, truth),
    }


def rightly_named(routes: list[Route], truth: list[str]) -> float:
    return float(np.mean([r.surface == name and not r.is_unseen for r, name in zip(routes, truth, strict=True)]))


def accepted(router: SurfaceRouter, features: Features, name: str) -> float:
    """Share of images that are called seen and `name`."""
    routes = [router.route(row) for row in features]
    return float(np.mean([route.surface == name and not route.is_unseen for route in routes]))


def flat(of_surface: dict[str, Features]) -> tuple[Features, list[str]]:
    features = np.concatenate(list(of_surface.values()))
    return features, [name for name, own in of_surface.items() for _ in own]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation over the runs, and both ends, of each figure."""
    names = [name for name in rows[0] if name not in ("surface", "seed", "count")]
    found: dict[str, Any] = {"runs": len(rows)}
    for name in names:
        values = [row[name] for row in rows]
        ends = {"mean": np.mean(values), "sd": np.std(values), "lowest": min(values), "highest": max(values)}
        found[name] = {end: round(float(value), 4) for end, value in ends.items()}
    return found


if __name__ == "__main__":
    sys.exit(main())
