"""A fitted router learns one more surface from a few images, or a new lot of one, or forgets one; all else stays.

Nothing is trained: the new images join the gates under the projections that are there (`SurfaceGate.with_surface`), the
surface's class embedding is the mean of what Encoder-2 reads off them, and the thresholds stay, so that their promise
to the other surfaces does. Hence what enrolment can change for any other image:

- its distances to the surfaces that were there keep their bits, and so do attributes and class embedding;
- its unseen score can only fall, and falls only where the new surface is the nearest one, which then names it.

The same two hold for a surface that is extended by images of a new lot, but that its own distances move.
Forgetting is the inverse: `retire(enrol(router, name, ...), name)` routes as `router` does, to the bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sbdzsl.config import Promise
from sbdzsl.errors import BundleError, ConfigError, DataError
from sbdzsl.sbad.decision import AttributeReader, SurfaceRouter
from sbdzsl.sbad.gate import SurfaceGate

Features = NDArray[np.float32]
Distances = NDArray[np.float64]

#: A surface is refused where an existing one claims this share, or more, of what it would claim of its own images.
#: Chosen on real surfaces: 98 % of attempts to enrol a known surface anew are refused, 1 % of those with a new one.
REFUSED_SHARE = 0.4

#: New lots are rarely stranger than this, in multiples of the threshold, and most unknown surfaces are. Chosen on real
#: surfaces: `benchmarks/sbad_lots.py`.
STRANGE = 1.5

# Held-out images that are copies of training images are at no distance at all, which is no unit.
_MIN_TYPICAL = 0.1

#: Images that are left out one by one, at most, to see whether the others recognise them.
MAX_LEFT_OUT = 20


@dataclass(frozen=True, slots=True)
class Claim:
    """What the existing surface that accepts most of `num_images` images has to say about them.

    `num_accepted` are seen and named `surface`; `num_claimed` of these are nearer to an image of it than to any other
    of the new ones. Were all of them images of `surface`, `num_expected` would be.
    """

    surface: str
    num_accepted: int
    num_claimed: int
    num_expected: float
    num_images: int

    @property
    def is_refused(self) -> bool:
        """Whether the images show `surface`, or one that cannot be told from it."""
        return self.num_claimed >= REFUSED_SHARE * self.num_expected


@dataclass(frozen=True, slots=True)
class NewLot:
    """What a router makes of images of a lot before it learns them.

    Of `num_images` it accepts `num_accepted` as their surface, and `num_nearest` are nearer to it than to any other.
    `strangeness` is the median of their unseen scores, as a multiple of the threshold. `claimed_by` is the number of
    another surface that accepts half of them or more; None if there is none.
    """

    num_images: int
    num_accepted: int
    num_nearest: int
    strangeness: float
    claimed_by: int | None

    @staticmethod
    def of(apart: Distances, number: int, threshold: float) -> NewLot:
        """By the distances [n, K] of the images, said to be of surface `number`, and the gate's threshold."""
        nearest, scores = apart.argmin(axis=1), apart.min(axis=1)
        accepted = np.bincount(nearest[scores <= threshold], minlength=apart.shape[1])
        others = np.where(np.arange(len(accepted)) == number, 0, accepted)
        claimed_by = int(others.argmax()) if others.max() >= len(apart) / 2 else None
        strangeness = float(np.median(scores / threshold))
        return NewLot(len(apart), int(accepted[number]), int((nearest == number).sum()), strangeness, claimed_by)

    @property
    def is_strange(self) -> bool:
        """Whether they may show another surface: most are nearer to one, or they lie farther off than new lots do."""
        return self.num_nearest < self.num_images / 2 or self.strangeness > STRANGE


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What became of images that were left out of the enrolment one by one: `images` are their numbers.

    `num_recognised` of them were accepted and named rightly; `unseen_scores` has the score of each under each promise.
    """

    images: tuple[int, ...]
    num_recognised: int
    unseen_scores: Mapping[Promise, tuple[float, ...]]


def enrol(
    router: SurfaceRouter,
    surface: str,
    features: Features,
    groups: Sequence[str] | None = None,
    class_embedding: Sequence[float] | None = None,
    copies: Features | None = None,
    even: Features | None = None,
) -> SurfaceRouter:
    """The router with one more surface, the last in order, from its images' `features` [n, D], n at least 2.

    `groups` (part or lot) name images that are not independent of each other. `class_embedding` [A] is a row of the
    attribute table; without one it is the mean of a_hat over the images. `copies` [n, C, D], of the images under
    changed conditions, and `even` [n, D], of one more each, are needed where the router has the envelope promise.
    Raises `BundleError` "surface-exists", `DataError` "too-few-images". What `largest_claim` finds is not looked at
    here.
    """
    require_new(router, surface)
    if len(features) < 2:
        raise DataError(
            "too-few-images", f"surface {surface!r}: found {len(features)} images, expected 2 or more (20 are better)"
        )
    if "envelope" in router.gates and (copies is None or even is None):
        raise ValueError("the router has the envelope promise: expected changed copies of the images")
    reader = router.reader
    if class_embedding is None:
        class_embedding = np.mean([reader.read(row) for row in features], axis=0).tolist()
    row = np.asarray(class_embedding, dtype=np.float32)
    embeddings = np.concatenate([reader.class_embeddings, row[None]])
    return _rebuilt(
        router,
        (*router.surfaces, surface),
        {
            promise: gate.with_surface(
                features,
                router.settings,
                groups,
                copies if promise == "envelope" else None,
                even if promise == "envelope" else None,
                _typical_distance(router, promise),
            )
            for promise, gate in router.gates.items()
        },
        replace(reader, class_embeddings=embeddings),
    )


def extend(router: SurfaceRouter, surface: str, features: Features, copies: Features | None = None) -> SurfaceRouter:
    """The router that knows `surface` in a new lot too, from its images' `features` [n, D], n at least 1.

    A lot that looks otherwise (another supplier, another light) is called unseen, since nothing of it was known when
    the surface was learnt. Class embedding and thresholds stay. `copies` as for `enrol`. Raises `ConfigError` for a
    surface that the router does not know, or a router that does not judge by images. What `look_at_lot` finds is not
    asked for here.
    """
    require_extendable(router, surface)
    number = router.surfaces.index(surface)
    if "envelope" in router.gates and copies is None:
        raise ValueError("the router has the envelope promise: expected changed copies of the images")
    gates = {
        promise: gate.with_images(number, features, router.settings, copies if promise == "envelope" else None)
        for promise, gate in router.gates.items()
    }
    return _rebuilt(router, router.surfaces, gates, router.reader)


def retire(router: SurfaceRouter, surface: str) -> SurfaceRouter:
    """The router without `surface`; its images are unseen again, or the next surface's that accepts them.

    The threshold stays: where `surface` was there from the start, its images still are among those that set
    it. Raises `ConfigError` for a surface that the router does not know, or its only one.
    """
    require_known(router, surface)
    number = router.surfaces.index(surface)
    if len(router.surfaces) == 1:
        raise ConfigError("bad-config", f"{surface!r} is the bundle's only surface; a router needs one to stay")
    reader = replace(router.reader, class_embeddings=np.delete(router.reader.class_embeddings, number, axis=0))
    kept = tuple(name for name in router.surfaces if name != surface)
    gates = {promise: gate.without_surface(number) for promise, gate in router.gates.items()}
    return _rebuilt(router, kept, gates, reader)


def require_new(router: SurfaceRouter, surface: str) -> None:
    """Raise `BundleError` "surface-exists" where the router knows `surface`."""
    if surface in router.surfaces:
        raise BundleError(
            "surface-exists",
            f"surface {surface!r} is in the bundle already, which knows {', '.join(router.surfaces)}; "
            "choose another name, or retire the old one first",
        )


def require_known(router: SurfaceRouter, surface: str) -> None:
    """Raise `ConfigError` for a surface that the router does not know."""
    if surface not in router.surfaces:
        known = ", ".join(router.surfaces)
        raise ConfigError("bad-config", f"surface {surface!r} is not in the bundle, which knows {known}")


def require_extendable(router: SurfaceRouter, surface: str) -> None:
    """Raise `ConfigError` for a surface that the router does not know, or a router that does not judge by images."""
    require_known(router, surface)
    if router.settings.score != "whitened-nn":
        raise ConfigError(
            "bad-config",
            f"the bundle judges by router.score {router.settings.score}, which compares with no images of a surface: "
            "a new lot needs score whitened-nn, or the surface trained again with it",
        )


def largest_claim(router: SurfaceRouter, features: Features, groups: Sequence[str]) -> Claim:
    """The claim of the surface of `router` that accepts most of the images `features` [n, D], n at least 1.

    That it accepts them is not enough to refuse them: an unseen surface is sometimes taken for a seen one that looks
    like it, and to enrol it is the cure. Hence also whether its images lie among those of the existing surface, or
    apart from them. Images of one group are no neighbours: they are alike whatever they show.
    """
    routes = [router.route(row) for row in features]
    accepted = Counter(route.surface for route in routes if not route.is_unseen)
    surface = accepted.most_common(1)[0][0] if accepted else routes[0].surface
    gate, names = router.gate, _independent(groups)
    bank = gate.images_of(router.surfaces.index(surface))
    new = np.stack([gate.project(row) for row in features])
    num_claimed = 0
    for route, image, name in zip(routes, new, names, strict=True):
        if route.surface == surface and not route.is_unseen:
            nearest_new = np.linalg.norm(new[names != name] - image, axis=1).min(initial=np.inf)
            num_claimed += bool(np.linalg.norm(bank - image, axis=1).min() < nearest_new)
    expected = len(new) * len(bank) / (len(bank) + len(new) - 1)
    return Claim(surface, accepted[surface], num_claimed, expected, len(new))


def require_unclaimed(claim: Claim, surface: str) -> None:
    """Raise `BundleError` "surface-claimed" where an existing surface claims the images."""
    if claim.is_refused:
        known = repr(claim.surface)
        raise BundleError(
            "surface-claimed",
            f"surface {surface!r}: {claim.num_accepted} of {claim.num_images} images are accepted as {known} already, "
            f"and {claim.num_claimed} ({claim.num_claimed / claim.num_images:.0%}) are nearer to an image of {known} "
            f"than to one another; of images of {known} itself {claim.num_expected:.1f} would be, and from "
            f"{REFUSED_SHARE:.0%} of that a surface is refused. If they do show {known}, nothing has to be enrolled; "
            f"if not, the router cannot tell the two apart: retire {known} first, or train both with `sbdzsl train`",
        )


def look_at_lot(router: SurfaceRouter, surface: str, features: Features) -> NewLot:
    """What the router makes of images [n, D], n at least 1, that are said to be a new lot of `surface`.

    Raises `BundleError` "surface-claimed" where another surface accepts half of them or more; `ConfigError` as
    `extend`.
    """
    require_extendable(router, surface)
    apart = np.stack([router.gate.distances(row) for row in features])
    lot = NewLot.of(apart, router.surfaces.index(surface), router.threshold())
    if lot.claimed_by is not None:
        raise BundleError(
            "surface-claimed",
            f"surface {surface!r}: half or more of {lot.num_images} images are accepted as "
            f"{router.surfaces[lot.claimed_by]!r} already. If they do show {surface!r}, the router cannot tell the two "
            "apart: train both again with `sbdzsl train`",
        )
    return lot


def leave_out(
    router: SurfaceRouter,
    features: Features,
    groups: Sequence[str],
    copies: Features | None = None,
    even: Features | None = None,
    extended: str | None = None,
) -> LeftOut:
    """How a router that enrolled only the other images [n, D] takes each, one by one; or `extended` that surface.

    A whole group is left out with its image. At most `MAX_LEFT_OUT` images are tried, spread over all; those whose
    absence leaves too few are not. It is a cautious estimate: one image more is learnt in the end.
    """
    names = _independent(groups)
    images: list[int] = []
    recognised = 0
    scores: dict[Promise, list[float]] = {promise: [] for promise in router.gates}
    for i in np.unique(np.linspace(0, len(features) - 1, min(len(features), MAX_LEFT_OUT)).round().astype(int)):
        rest = names != names[i]
        if rest.sum() < (2 if extended is None else 1):
            continue
        kept = [None if of is None else of[rest] for of in (copies, even)]
        if extended is None:
            others = enrol(router, "", features[rest], names[rest].tolist(), None, *kept)
        else:
            others = extend(router, extended, features[rest], kept[0])
        route = others.route(features[i])
        images.append(int(i))
        recognised += route.surface == (extended or "") and not route.is_unseen
        for promise in scores:
            scores[promise].append(others.promising(promise).route(features[i]).unseen_score)
    return LeftOut(tuple(images), recognised, {promise: tuple(found) for promise, found in scores.items()})


def _independent(groups: Sequence[str]) -> NDArray[np.str_]:
    """The group of each image; a group for each where all are of one, which then says nothing."""
    return np.array(groups) if len(set(groups)) > 1 else np.array([str(i) for i in range(len(groups))])


def _typical_distance(router: SurfaceRouter, promise: Promise) -> float:
    """Median distance of the images that set the threshold; 1, the unit of a gate, where its score is not in force."""
    if router.settings.score != "whitened-nn":
        return 1.0
    return max(float(np.median(router.calibration_scores[promise])), _MIN_TYPICAL)


def _rebuilt(
    router: SurfaceRouter, surfaces: Sequence[str], gates: Mapping[Promise, SurfaceGate], reader: AttributeReader
) -> SurfaceRouter:
    return SurfaceRouter(
        surfaces,
        router.attribute_names,
        gates,
        reader,
        router.calibration_scores,
        router.settings,
        router.promise,
    )
