"""Bundle in, new bundle out: one surface more from a few images, a new lot of one, or one fewer; nothing else changes.

The router takes the images as they are (`sbad.enrolment`); only a new surface gets a detector, by the training that
every surface gets; all others are written again to the same bytes. A bundle is never changed in place: the card of
the new one says by which steps it came from which parent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sbdzsl import bundle as bundles
from sbdzsl import lake
from sbdzsl.bundle import Bundle, Reference, SurfaceDetector, some_for_reference
from sbdzsl.config import ImageSettings, Promise
from sbdzsl.datasets import ADAPTERS, assign_splits, samples_from_table, samples_to_table
from sbdzsl.datasets.sample import Sample, group_of
from sbdzsl.errors import BundleError, ConfigError, DataError
from sbdzsl.image import Appearance, Image
from sbdzsl.inspector import load_image
from sbdzsl.sbad import enrolment as router_enrolment
from sbdzsl.sbad.attributes import load_attributes
from sbdzsl.sbad.decision import SurfaceRouter
from sbdzsl.sbad.embedding import Embedder
from sbdzsl.sbad.enrolment import Claim, LeftOut, NewLot
from sbdzsl.sbdd.fit import TrainingImage
from sbdzsl.surface_training import (
    Report,
    SurfaceData,
    embed_images,
    load_surface,
    train_detector,
    training_file,
    write_curves,
)
from sbdzsl.training import make_reference

#: Good ones: two to train the detector on and one to set its threshold by.
MIN_IMAGES = 3

#: Of images without splits, so many set the detector's threshold: with few, a rate that means something is out of
#: reach otherwise (n held-out images support 1/(n+1)), and the learnt start needs few to train on. 49 support 2 %.
HELD_OUT_SHARE, MAX_HELD_OUT = 0.4, 50

#: Unreadable images that an error names.
_MAX_NAMED = 10


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The new bundle and what was found on the way.

    `claim`: the existing surface that accepted most of the images. `num_recognised` of `num_left_out` images were
    accepted and named rightly by a router that had enrolled only the others. `num_train` images trained the detector,
    `num_held_out` set its threshold; the router knows them all.
    """

    bundle: Bundle
    claim: Claim
    num_recognised: int
    num_left_out: int
    num_train: int
    num_held_out: int


def enrol(
    bundle: Bundle,
    surface: str,
    samples: Sequence[Sample],
    out: str,
    attributes: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    report: Report = print,
) -> Enrolled:
    """Write to `out` a bundle that knows `surface` as well, from `samples` of it (see `samples_of`).

    Images without label count as good. `attributes` is a table (CSV) with a row for the surface; without one its class
    embedding is what the router reads off the images. Before any work raises `BundleError` "bundle-exists",
    "surface-exists", `DataError` "bad-images" (some cannot be read), "too-few-images", "bad-attributes"; before the
    training `BundleError` "surface-claimed", where the images are those of an existing surface (`Claim`).
    """
    _require_free(bundle, surface, out)
    row = _attribute_row(attributes, surface, bundle.router)
    samples = [sample for sample, _ in _readable(surface, samples, bundle.settings.image, report)]
    _require_enough(surface, samples)
    samples = _with_splits(samples, seed, report)
    embedder = Embedder(bundle.backbone, bundle.settings.router, device)
    data = load_surface(surface, samples, None, bundle.settings.image, report, min_train=MIN_IMAGES - 1)
    groups = [group_of(s)[1] for split in ("train", "val") for s in samples if s.split == split]
    embedded = embed_images(surface, (*data.train, *data.val), groups, embedder)
    features, copies, even = embedded.features, embedded.copies, embedded.even
    claim = router_enrolment.largest_claim(bundle.router, features, groups)
    router_enrolment.require_unclaimed(claim, surface)
    router = router_enrolment.enrol(bundle.router, surface, features, groups, row, copies, even)
    left_out = router_enrolment.leave_out(bundle.router, features, groups, copies, even)
    report(_router_line(claim, left_out))
    step = {
        "step": "enrol",
        "surface": surface,
        "parent": bundle.digest,
        "images": {"router": len(features), "detector": len(data.train), "held_out": len(data.val)},
        "claim": asdict(claim),
        "left_one_out": {"recognised": left_out.num_recognised, "of": len(left_out.images)},
        "class_embedding": "read off the images" if row is None else "attribute table",
        "threshold": f"the parent's: {len(router.calibration_scores['plain'])} images of the other surfaces",
        "data_digest": lake.manifest_digest(samples_to_table(samples), lake.MANIFEST_SCHEMA.names),
        "seed": seed,
    }
    report(f"{surface}: detector from {len(data.train)} images, its threshold from {len(data.val)} others")
    checkpoint = training_file(out, surface, "checkpoint")
    entry, history = train_detector(
        data, bundle.settings.detector_for(surface), seed, device, report, checkpoint_url=checkpoint
    )
    write_curves(out, surface, history)
    defective = [image.defective for image in (*data.train, *data.val)]
    references = {**bundle.references, surface: make_reference(data, _good_scores(defective, left_out))}
    detectors = {**bundle.detectors, surface: entry}
    saved = _save(bundle, out, router, detectors, references, step, _counted(bundle, data))
    lake.remove(checkpoint)
    return Enrolled(saved, claim, left_out.num_recognised, len(left_out.images), len(data.train), len(data.val))


@dataclass(frozen=True, slots=True)
class Extended:
    """The new bundle and what was found on the way.

    `lot` is what the parent made of the images, `left_out` how many are accepted by a router that has learnt only the
    others. Of `num_good` good ones the detector, which stays, calls `num_alarms` defective.
    """

    bundle: Bundle
    lot: NewLot
    left_out: LeftOut
    num_good: int
    num_alarms: int


def extend(
    bundle: Bundle,
    surface: str,
    samples: Sequence[Sample],
    out: str,
    device: str = "cpu",
    report: Report = print,
) -> Extended:
    """Write to `out` a bundle whose router knows `surface` in a new lot too, from `samples` of it (see `samples_of`).

    For a lot that looks otherwise and is called unseen. Images without label count as good. The detector stays, and so
    do all thresholds. Before any work raises `BundleError` "bundle-exists", `ConfigError` for a surface that the bundle
    does not know or a router that does not judge by images, `DataError` "bad-images" (some cannot be read); then
    `BundleError` "surface-claimed", where another surface accepts half of the images or more.
    """
    _require_out(out)
    router_enrolment.require_extendable(bundle.router, surface)
    readable = _readable(surface, samples, bundle.settings.image, report)
    samples, groups = [sample for sample, _ in readable], [group_of(sample)[1] for sample, _ in readable]
    images = [TrainingImage(sample.image_id, image.grey(), sample.label == "defect") for sample, image in readable]
    embedded = embed_images(surface, images, groups, Embedder(bundle.backbone, bundle.settings.router, device))
    features, copies = embedded.features, embedded.copies
    lot = router_enrolment.look_at_lot(bundle.router, surface, features)
    router = router_enrolment.extend(bundle.router, surface, features, copies)
    left_out = router_enrolment.leave_out(bundle.router, features, groups, copies, extended=surface)
    report(_lot_line(surface, lot, left_out))
    defective = [image.defective for image in images]
    good = [image for image in images if not image.defective]
    detector, threshold = bundle.detectors[surface].detector, bundle.detectors[surface].threshold()
    num_alarms = sum(detector.detect(image.grey).score > threshold.value for image in good)
    report(f"{surface}: its detector stays, and calls {num_alarms} of {len(good)} good images defective")
    looks = [image.appearance() for sample, image in readable if sample.label != "defect"]
    step = {
        "step": "extend",
        "surface": surface,
        "parent": bundle.digest,
        "images": {"router": len(images)},
        "accepted_before": lot.num_accepted,
        "strangeness": lot.strangeness,
        "left_one_out": {"recognised": left_out.num_recognised, "of": len(left_out.images)},
        "alarms": {"called_defective": num_alarms, "of": len(good)},
        "threshold": "the parent's",
        "data_digest": lake.manifest_digest(samples_to_table(samples), lake.MANIFEST_SCHEMA.names),
    }
    reference = _joined(bundle.references[surface], looks, _good_scores(defective, left_out))
    references = {**bundle.references, surface: reference}
    saved = _save(bundle, out, router, bundle.detectors, references, step, {})
    return Extended(saved, lot, left_out, len(good), num_alarms)


def retire(bundle: Bundle, surface: str, out: str) -> Bundle:
    """Write to `out` a bundle that does not know `surface`: its images are unseen, or another's that accepts them.

    The threshold stays. Raises `BundleError` "bundle-exists", `ConfigError` for a surface that is not in the bundle or
    the only one there.
    """
    _require_out(out)
    router = router_enrolment.retire(bundle.router, surface)
    detectors = {name: entry for name, entry in bundle.detectors.items() if name != surface}
    step = {"step": "retire", "surface": surface, "parent": bundle.digest, "threshold": "the parent's"}
    images = {name: count for name, count in bundle.card["provenance"]["images"].items() if name != surface}
    references = {name: one for name, one in bundle.references.items() if name != surface}
    return _save(bundle, out, router, detectors, references, step, {"images": images})


def samples_of(surface: str, images: str | None = None, manifests: Sequence[str] = ()) -> list[Sample]:
    """The samples to enrol as `surface`: of a folder, in the layouts of the adapter `folder`, or of manifests.

    Of manifests the rows of that surface count, and those without surface; test rows are left alone. Raises
    `ConfigError` unless exactly one source is given, `DataError` "bad-manifest" where no row is left, `LakeError`.
    """
    if (images is None) != bool(manifests):
        raise ConfigError("bad-config", "give either --images or --manifest")
    if images is not None:
        return ADAPTERS["folder"](images, surface)
    rows = samples_from_table(lake.read_manifests(manifests))
    own = [replace(row, surface=surface) for row in rows if row.surface in (surface, None) and row.split != "test"]
    if not own:
        known = ", ".join(sorted({row.surface for row in rows if row.surface})) or "none"
        raise DataError(
            "bad-manifest",
            f"{', '.join(manifests)}: no train or val row is of {surface!r} or without surface; its surfaces: {known}",
        )
    return own


def _require_free(bundle: Bundle, surface: str, out: str) -> None:
    if not surface.strip():
        raise ConfigError("bad-config", "the surface needs a name, found an empty one")
    _require_out(out)
    router_enrolment.require_new(bundle.router, surface)


def _require_out(out: str) -> None:
    if bundles.exists(out):
        raise BundleError("bundle-exists", f"{out} holds a bundle already; choose another --out")


def _attribute_row(uri: str | None, surface: str, router: SurfaceRouter) -> tuple[float, ...] | None:
    if uri is None:
        return None
    table = load_attributes(uri)
    if table.names != router.attribute_names:
        differing = ", ".join(sorted(set(table.names) ^ set(router.attribute_names))) or "their order"
        raise DataError(
            "bad-attributes", f"{uri}: other attributes than those of the bundle; they differ in {differing}"
        )
    table.matrix([surface])
    return table.rows[surface]


def _readable(
    surface: str, samples: Sequence[Sample], settings: ImageSettings, report: Report
) -> list[tuple[Sample, Image]]:
    """The samples and their images, without copies of others. Each counts: one that cannot be read stops it all."""
    kept: dict[str, tuple[Sample, Image]] = {}
    unreadable = []
    for sample in samples:
        loaded = load_image(sample.image_id, sample.uri, settings, sample.bit_depth)
        if loaded.image is None:
            assert loaded.error is not None
            unreadable.append(f"{sample.uri}: {loaded.error.code}: {loaded.error.message}")
        elif loaded.image.digest in kept:
            report(f"{surface}: left out: {sample.uri} has the bytes of {kept[loaded.image.digest][0].uri}")
        else:
            kept[loaded.image.digest] = sample, loaded.image
    if unreadable:
        named = "\n".join(unreadable[:_MAX_NAMED] + ["..."] * (len(unreadable) > _MAX_NAMED))
        raise DataError(
            "bad-images",
            f"surface {surface!r}: {len(unreadable)} of {len(samples)} images cannot be read; replace them or leave "
            f"them out\n{named}",
        )
    return list(kept.values())


def _require_enough(surface: str, samples: Sequence[Sample]) -> None:
    good = sum(sample.label != "defect" for sample in samples)
    if good < MIN_IMAGES:
        raise DataError(
            "too-few-images",
            f"surface {surface!r}: found {good} different good images, expected at least {MIN_IMAGES}: two to train "
            "the detector on and one to set its threshold by (20 or more to be reliable)",
        )


def _with_splits(samples: Sequence[Sample], seed: int, report: Report) -> list[Sample]:
    """Train and val: as the manifest has them, where it has both for all; else by group."""
    splits = {sample.split for sample in samples}
    if splits == {"train", "val"}:
        return list(samples)
    if len({group_of(sample) for sample in samples}) == 1:
        report(f"all images are of group {samples[0].group!r}: other lots may be called unseen, or alarm")
        samples = [replace(sample, group=None) for sample in samples]
    share = min(HELD_OUT_SHARE, MAX_HELD_OUT / len(samples))
    return assign_splits(samples, seed, val_share=share, test_share=0)


def _save(
    parent: Bundle,
    out: str,
    router: SurfaceRouter,
    detectors: Mapping[str, SurfaceDetector],
    references: Mapping[str, Reference],
    step: Mapping[str, Any],
    changed: Mapping[str, Any],
) -> Bundle:
    provenance = {**parent.card["provenance"], **changed}
    provenance["steps"] = [*provenance.get("steps", ()), dict(step)]
    return bundles.save(out, parent.settings, parent.backbone, router, detectors, references, provenance)


def _counted(bundle: Bundle, data: SurfaceData) -> dict[str, Any]:
    before = bundle.card["provenance"]
    changed = {"images": before["images"] | {data.surface: {"train": len(data.train), "val": len(data.val)}}}
    if data.assumed_good:
        changed["assumed_good"] = before["assumed_good"] | {data.surface: data.assumed_good}
    return changed


def _good_scores(defective: Sequence[bool], left_out: LeftOut) -> dict[Promise, list[float]]:
    """Unseen scores of the good ones of the images that were left out: the new router itself knows all of them."""
    return {
        promise: [score for image, score in zip(left_out.images, scores, strict=True) if not defective[image]]
        for promise, scores in left_out.unseen_scores.items()
    }


def _joined(old: Reference, looks: Sequence[Appearance], scores: Mapping[Promise, Sequence[float]]) -> Reference:
    """A reference that holds good images of a new lot as well, spread over all where they are too many."""

    def some(before: Sequence[float], more: Sequence[float]) -> tuple[float, ...]:
        return tuple(some_for_reference([*before, *more]))

    return Reference(
        brightness=some(old.brightness, [look.brightness for look in looks]),
        sharpness=some(old.sharpness, [look.sharpness for look in looks]),
        unseen_scores={promise: some(old.unseen_scores[promise], scores[promise]) for promise in old.unseen_scores},
    )


def _router_line(claim: Claim, left_out: LeftOut) -> str:
    claimed = f"; {claim.num_accepted} were accepted as {claim.surface} before" if claim.num_accepted else ""
    return f"router: {claim.num_images} images; {_tried(left_out)}{claimed}"


def _lot_line(surface: str, lot: NewLot, left_out: LeftOut) -> str:
    line = (
        f"router: {lot.num_images} images; {lot.num_accepted} were accepted as {surface} before, {lot.num_nearest} are "
        f"nearest to it, their unseen score is {lot.strangeness:.2f} times the threshold; {_tried(left_out)}"
    )
    if lot.is_strange:
        line += f"\n{surface}: that is unlike a new lot of it; if they show another surface, use `sbdzsl enrol` instead"
    return line


def _tried(left_out: LeftOut) -> str:
    if not left_out.images:
        return "too few images to leave one out"
    return (
        f"left out one by one, {left_out.num_recognised} of {len(left_out.images)} images are recognised by the others"
    )
