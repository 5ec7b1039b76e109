"""Bundle: everything both stages need, in one folder. The only reader and writer of weights.

    bundle.json                     settings, thresholds with their held-out scores, data, sha256 of each file
    backbone.safetensors            the frozen backbone, so that a node needs the bundle and nothing else
    router.safetensors              SBAD
    detectors/<surface>.safetensors SBDD, one a surface

`bundle.json` is written last: a folder without it is no bundle. Its digest names the bundle in every verdict. A bundle
never holds a pickle: only safetensors are read, and only files whose sha256 it lists.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from sbdzsl import __version__, lake
from sbdzsl.calibration import Platt, Threshold, choose_threshold
from sbdzsl.config import DetectorSettings, Promise, ThresholdRule, TrainSettings, parse
from sbdzsl.errors import BundleError, LakeError
from sbdzsl.metrics import average_precision
from sbdzsl.robustness import Robustness
from sbdzsl.sbad.backbone import Backbone, restore_backbone
from sbdzsl.sbad.decision import SurfaceRouter
from sbdzsl.sbdd.predict import Detector

SCHEMA_VERSION = 4
CARD = "bundle.json"

#: Held-out images that a reference is made from, at most: with more, a shift too small to matter would show.
MAX_REFERENCE = 500

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SurfaceDetector:
    """One surface's SBDD with what decides on its scores.

    `good_scores` and `defect_scores` are the raw scores (`float64 [n]`) of the held-out images, from which each
    threshold policy is drawn without training again. `platt` is None where no defect was held out. `robustness` says
    what becomes of the held-out images under other light, blur, noise and shift.
    """

    detector: Detector
    settings: DetectorSettings
    good_scores: NDArray[np.float64]
    defect_scores: NDArray[np.float64]
    platt: Platt | None
    robustness: tuple[Robustness, ...] = ()

    def threshold(self, rule: ThresholdRule | None = None) -> Threshold:
        """Threshold by `rule`, by the settings' own if None. Raises `DataError` where the policy lacks its data."""
        rule = rule or self.settings.threshold_policy
        if rule.policy == "false-alarm-rate" and rule.false_alarm_rate is None:
            rule = replace(rule, false_alarm_rate=self.settings.false_alarm_rate)
        return choose_threshold(rule, self.good_scores, self.defect_scores)

    @property
    def validation_ap(self) -> float | None:
        """Average precision on the held-out images; None without defects among them."""
        labels = np.repeat([False, True], [len(self.good_scores), len(self.defect_scores)])
        return average_precision(labels, np.concatenate([self.good_scores, self.defect_scores]))


@dataclass(frozen=True, slots=True)
class Reference:
    """What good images of one surface are like that trained nothing, for drift to be measured against.

    A value an image, at most `MAX_REFERENCE`, in any order: `brightness` and `sharpness` as in `image.Appearance`, the
    `unseen_scores` under each promise of the router. Scores of an enrolled surface are those of images left out of the
    enrolment one by one, so they may be fewer. Defect scores are `SurfaceDetector.good_scores`.
    """

    brightness: tuple[float, ...]
    sharpness: tuple[float, ...]
    unseen_scores: Mapping[Promise, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A loaded or freshly trained bundle. `card` is what `bundle.json` says, `digest` its sha256, in hex."""

    settings: TrainSettings
    backbone: Backbone
    router: SurfaceRouter
    detectors: Mapping[str, SurfaceDetector]
    references: Mapping[str, Reference]
    card: Mapping[str, Any]
    digest: str

    @property
    def surfaces(self) -> tuple[str, ...]:
        """Names of the seen surfaces, sorted."""
        return tuple(sorted(self.detectors))


def some_for_reference(values: Sequence[_T]) -> Sequence[_T]:
    """At most `MAX_REFERENCE` of the values of a reference, spread over all."""
    return values[:: -(-len(values) // MAX_REFERENCE)] if values else values


def exists(url: str) -> bool:
    """Whether there is a bundle at `url`."""
    return lake.exists(lake.join(url, CARD))


def save(
    url: str,
    settings: TrainSettings,
    backbone: Backbone,
    router: SurfaceRouter,
    detectors: Mapping[str, SurfaceDetector],
    references: Mapping[str, Reference],
    provenance: Mapping[str, Any],
) -> Bundle:
    """Write a bundle to any lake URL and return it as a reader would see it.

    `provenance` is plain JSON: data digest, counts, seed. Raises `BundleError` "bundle-exists" rather than overwrite.
    """
    if exists(url):
        raise BundleError("bundle-exists", f"{url} holds a bundle already; choose another folder or remove it first")
    files = {"backbone.safetensors": backbone.tensors(), "router.safetensors": router.tensors()}
    files |= {_detector_file(surface): entry.detector.tensors() for surface, entry in detectors.items()}
    blobs = {name: safetensors.torch.save(_contiguous(tensors)) for name, tensors in files.items()}
    card = {
        "schema_version": SCHEMA_VERSION,
        "code_version": __version__,
        "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": settings.model_dump(),
        "backbone": backbone.card(),
        "router": router.meta(),
        "detectors": {surface: detector_card(entry) for surface, entry in sorted(detectors.items())},
        "references": {surface: asdict(one) for surface, one in sorted(references.items())},
        "provenance": dict(provenance),
        "files": {name: hashlib.sha256(blob).hexdigest() for name, blob in sorted(blobs.items())},
    }
    for name, blob in blobs.items():
        lake.write_bytes(lake.join(url, name), blob)
    lake.write_bytes(lake.join(url, CARD), json.dumps(card, indent=2, allow_nan=False).encode())
    return load(url)


def load(url: str, device: str = "cpu", promise: Promise | None = None) -> Bundle:
    """Read and verify a bundle; `promise` puts another one than the settings' in force in its router.

    Raises `BundleError`: "no-bundle", "wrong-version", "damaged-bundle" (a file is missing or not what the card says).
    """
    card = read_card(url)
    tensors = {name: _read_tensors(url, name, digest) for name, digest in card["files"].items()}
    try:
        settings = parse(TrainSettings, card["settings"], lake.join(url, CARD))
        detectors = {
            surface: load_detector(entry, tensors[_detector_file(surface)], device)
            for surface, entry in card["detectors"].items()
        }
        router = SurfaceRouter.from_tensors(settings.router, card["router"], tensors["router.safetensors"])
        return Bundle(
            settings=settings,
            backbone=restore_backbone(card["backbone"], tensors["backbone.safetensors"]),
            router=router.promising(promise),
            detectors=detectors,
            references={surface: _load_reference(entry) for surface, entry in card["references"].items()},
            card=card,
            digest=digest_of(card),
        )
    except KeyError as error:
        raise BundleError("damaged-bundle", f"{url}: {CARD} lacks {error}; train it again") from None


def read_card(url: str) -> dict[str, Any]:
    """What `bundle.json` says, without reading any weights. Raises as `load`."""
    return _parse_card(url, _read_raw_card(url))


def _read_raw_card(url: str) -> bytes:
    try:
        return lake.read_bytes(lake.join(url, CARD))
    except LakeError as error:
        raise BundleError(
            "no-bundle",
            f"no bundle at {lake.absolute_url(url)} ({error.message}); expected a folder that `sbdzsl train` wrote. "
            "A job on a cluster needs a path or URL that every node can read",
        ) from None


def _parse_card(url: str, raw: bytes) -> dict[str, Any]:
    try:
        card = json.loads(raw)
    except ValueError as error:
        raise BundleError("damaged-bundle", f"{lake.join(url, CARD)} is not JSON: {error}") from None
    found = card.get("schema_version") if isinstance(card, dict) else None
    if found != SCHEMA_VERSION:
        raise BundleError(
            "wrong-version", f"{url}: bundle schema {found!r}, this sbdzsl reads {SCHEMA_VERSION}; train it again"
        )
    assert isinstance(card, dict)
    return card


def copy(url: str, target: str) -> None:
    """Copy a bundle, checked file by file, its card last; of one that is there already, what is damaged.

    Whoever dies on the way leaves no card and so no bundle; several may copy the same at once. Raises as `load`, and
    `BundleError` "bundle-exists" where another bundle is there.
    """
    raw = _read_raw_card(url)
    card = _parse_card(url, raw)
    is_there = exists(target)
    if is_there and digest_of(read_card(target)) != digest_of(card):
        raise BundleError("bundle-exists", f"{target} holds another bundle; choose another folder or remove it first")
    for name, digest in card["files"].items():
        if not is_there or _file_damage(target, name, digest):
            lake.write_bytes(lake.join(target, name), _read_file(url, name, digest))
    lake.write_once(lake.join(target, CARD), raw)
    for problem in damage(target):
        raise problem


def damage(url: str) -> Iterator[BundleError]:
    """What is wrong with a bundle, file by file, read one at a time; nothing where it is whole. Raises `LakeError`."""
    try:
        card = read_card(url)
        files = dict(card["files"])
    except BundleError as error:
        yield error
        return
    except KeyError as error:
        yield BundleError("damaged-bundle", f"{url}: {CARD} lacks {error}")
        return
    yield from (found for name, digest in files.items() if (found := _file_damage(url, name, digest)))


def _file_damage(url: str, name: str, digest: str) -> BundleError | None:
    try:
        _read_file(url, name, digest)
    except BundleError as error:
        return error
    return None


def _read_file(url: str, name: str, digest: str) -> bytes:
    if not name.endswith(".safetensors") or ".." in name.split("/"):
        raise BundleError("unsafe-file", f"{url} lists {name!r}; a bundle holds safetensors only, nothing else is read")
    try:
        blob = lake.read_bytes(lake.join(url, name))
    except LakeError as error:
        raise BundleError("damaged-bundle", f"{url}: {error.message}") from None
    if hashlib.sha256(blob).hexdigest() != digest:
        raise BundleError("damaged-bundle", f"{url}: {name} is not the file that {CARD} lists (sha256 differs)")
    return blob


def _read_tensors(url: str, name: str, digest: str) -> dict[str, torch.Tensor]:
    blob = _read_file(url, name, digest)
    try:
        return safetensors.torch.load(blob)
    except SafetensorError as error:
        raise BundleError("damaged-bundle", f"{url}: {name}: {error}") from None


def load_detector(entry: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], device: str) -> SurfaceDetector:
    """The inverse of `detector_card` with the tensors of its net. Raises `ConfigError`, `KeyError`."""
    settings = parse(DetectorSettings, entry["settings"], CARD)
    return SurfaceDetector(
        detector=Detector.from_tensors(settings, tensors, device),
        settings=settings,
        good_scores=np.array(entry["good_scores"], dtype=np.float64),
        defect_scores=np.array(entry["defect_scores"], dtype=np.float64),
        platt=Platt(**entry["platt"]) if entry["platt"] else None,
        robustness=tuple(Robustness(**row) for row in entry["robustness"]),
    )


def _load_reference(entry: Mapping[str, Any]) -> Reference:
    scores = {promise: tuple(values) for promise, values in entry["unseen_scores"].items()}
    return Reference(tuple(entry["brightness"]), tuple(entry["sharpness"]), scores)


def detector_card(entry: SurfaceDetector) -> dict[str, Any]:
    """What a bundle's card says of one detector: plain JSON, all but its tensors."""
    return {
        "settings": entry.settings.model_dump(),
        "threshold": asdict(entry.threshold()),
        "good_scores": entry.good_scores.tolist(),
        "defect_scores": entry.defect_scores.tolist(),
        "platt": asdict(entry.platt) if entry.platt else None,
        "robustness": [asdict(row) for row in entry.robustness],
    }


def _detector_file(surface: str) -> str:
    return f"detectors/{quote(surface, safe='')}.safetensors"


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def digest_of(card: Mapping[str, Any]) -> str:
    """The name of the bundle with this card. The same training gives the same digest: the date is left out."""
    named = {key: value for key, value in card.items() if key != "created_at"}
    return hashlib.sha256(json.dumps(named, sort_keys=True, allow_nan=False).encode()).hexdigest()
