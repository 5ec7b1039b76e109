"""Unseen images grouped by similarity, so that a person sees which new surfaces emerge and can enrol one.

What is alike is measured where the router measures it: in the projected features of its gate, in which the spread
within a known surface is 1 in every direction. Groups grow by average linkage until they would be farther apart than
two images of one known surface nearly ever are. No new surface has to be known for that, nor their number; a surface
that varies more than the known ones comes as several groups, which may be enrolled together.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform

from sbdzsl.bundle import Bundle
from sbdzsl.datasets.sample import Sample
from sbdzsl.enrolment import MIN_IMAGES
from sbdzsl.inspector import load_image
from sbdzsl.sbad.decision import words
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbad.gate import SurfaceGate

#: All distances between so many images take 16 MB, and to read and embed them takes a minute.
MAX_IMAGES = 2000

#: Two images of a known surface lie this far apart or nearer in this share of pairs; groups may not lie farther.
PAIR_QUANTILE = 0.9
_MAX_IMAGES_A_SURFACE = 200

#: Known surfaces that are named beside a group.
_NUM_NEAREST = 3

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Member:
    """One unseen image: its unseen score (raw, larger is stranger) and the known surface that is nearest to it."""

    sample: Sample
    unseen_score: float
    nearest: str


@dataclass(frozen=True, slots=True)
class Group:
    """Unseen images that look alike, the most typical first.

    `nearest` are the known surfaces that are most often nearest; `attributes` the words that stand out of the mean
    class embedding, an extrapolation for a surface never learnt. `most_alike` is the name of the group that is nearest
    by its mean, which may show the same surface; None for the only one.
    """

    name: str
    members: tuple[Member, ...]
    nearest: tuple[str, ...]
    attributes: tuple[str, ...]
    most_alike: str | None


@dataclass(frozen=True, slots=True)
class Grouping:
    """`groups`, the largest first, and `single` images, of fewer than `MIN_IMAGES` alike.

    Of `num_given` images `num_read` were looked at; `num_known` of those the bundle takes for a surface that it knows,
    `num_unreadable` could not be read.
    """

    groups: tuple[Group, ...]
    single: tuple[Member, ...]
    num_given: int
    num_read: int
    num_known: int
    num_unreadable: int


def group_unseen(
    bundle: Bundle,
    samples: Sequence[Sample],
    max_images: int = MAX_IMAGES,
    device: str = "cpu",
    report: Callable[[str], None] = print,
) -> Grouping:
    """Group those of `samples` that the bundle calls unseen, of at most `max_images`, drawn by their ids.

    Images that the bundle knows by now, such as those of a surface enrolled since the audit, are left out and counted.
    The same samples give the same groups, in any order.
    """
    chosen = sorted(samples, key=lambda sample: hashlib.sha256(sample.image_id.encode()).digest())[:max_images]
    if len(chosen) < len(samples):
        report(f"{len(samples):,} images: {len(chosen):,} of them, drawn at random, are grouped")
    members, features, num_known, num_unreadable = _read_unseen(bundle, chosen, device)
    gate = bundle.router.gate
    projected = np.array([gate.project(row) for row in features])
    numbers, centrality = link_alike(projected, usual_distance(gate))
    by_size: list[NDArray[np.intp]] = []
    single: list[Member] = []
    for number in np.unique(numbers):
        own = np.flatnonzero(numbers == number)
        if len(own) < MIN_IMAGES:
            single += [members[i] for i in own]
        else:
            by_size.append(own[np.argsort(centrality[own], kind="stable")])
    by_size.sort(key=lambda own: (-len(own), members[own[0]].sample.image_id))
    alike = _nearest_by_mean([projected[own].mean(axis=0) for own in by_size])
    groups = []
    for number, own in enumerate(by_size):
        read = np.mean([bundle.router.reader.read(features[i]) for i in own], axis=0)
        nearest = Counter(members[i].nearest for i in own).most_common(_NUM_NEAREST)
        groups.append(
            Group(
                name=_name(number),
                members=tuple(members[i] for i in own),
                nearest=tuple(name for name, _ in nearest),
                attributes=words(read, bundle.router.attribute_names),
                most_alike=_name(alike[number]) if alike else None,
            )
        )
    return Grouping(tuple(groups), tuple(single), len(samples), len(chosen), num_known, num_unreadable)


def _read_unseen(
    bundle: Bundle, samples: Sequence[Sample], device: str
) -> tuple[list[Member], list[NDArray[np.float32]], int, int]:
    """The unseen ones of `samples` with their features [D], and how many were known or unreadable."""
    embedder = Embedder(bundle.backbone, bundle.settings.router, device)
    members: list[Member] = []
    features: list[NDArray[np.float32]] = []
    num_known = num_unreadable = 0
    for sample in samples:
        loaded = load_image(sample.image_id, sample.uri, bundle.settings.image, sample.bit_depth)
        if loaded.image is None:
            num_unreadable += 1
            continue
        embedded = embedder.embed(loaded.image.grey())
        route = bundle.router.route(embedded)
        if route.is_unseen:
            members.append(Member(sample, route.unseen_score, route.surface))
            features.append(embedded)
        else:
            num_known += 1
    return members, features, num_known, num_unreadable


def link_alike(projected: Array, cut: float) -> tuple[NDArray[np.int64], Array]:
    """Number of the group of each of `projected` [n, P], and its mean distance to the group's images, both [n].

    Average linkage: single linkage chains surfaces together, complete linkage tears them apart.
    """
    if len(projected) < 2:
        return np.zeros(len(projected), dtype=np.int64), np.zeros(len(projected))
    distances = pdist(projected)
    numbers = fcluster(linkage(distances, "average"), cut, "distance").astype(np.int64)
    same = numbers[:, None] == numbers[None, :]
    return numbers, np.where(same, squareform(distances), 0).sum(axis=1) / same.sum(axis=1)


def usual_distance(gate: SurfaceGate) -> float:
    """How far apart two images of one known surface lie, or nearer, in 90 % of pairs: the mean over the surfaces."""
    quantiles = []
    for surface in range(len(gate.scales)):
        bank = gate.images_of(surface)
        kept = np.linspace(0, len(bank) - 1, min(len(bank), _MAX_IMAGES_A_SURFACE)).round().astype(int)
        quantiles.append(np.quantile(pdist(bank[kept]), PAIR_QUANTILE))
    return float(np.mean(quantiles))


def manifest_samples(group: Group) -> list[Sample]:
    """The group's samples as `sbdzsl enrol --manifest` takes them: of no surface yet, and without splits."""
    return [replace(member.sample, surface=None, split=None) for member in group.members]


def _nearest_by_mean(means: Sequence[Array]) -> list[int]:
    """For each of the means [P] the number of the nearest other; empty where there is no other."""
    if len(means) < 2:
        return []
    apart = squareform(pdist(np.stack(means)))
    np.fill_diagonal(apart, np.inf)
    return [int(number) for number in apart.argmin(axis=1)]


def _name(number: int) -> str:
    return f"group-{number + 1:02d}"
