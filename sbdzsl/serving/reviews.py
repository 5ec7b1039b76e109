"""What people say about verdicts, and the manifest that the next training learns it from.

A review is an event of its own in the journal: it never changes the verdict, it stands beside it, with everything of
it that is needed later, since the journal forgets old verdicts but no reviews. The latest review of an image counts.
"""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import PIL.Image

from sbdzsl import lake
from sbdzsl.datasets import assign_splits, samples_to_table
from sbdzsl.datasets.sample import Label, Sample
from sbdzsl.errors import DataError, ServiceError
from sbdzsl.serving.evidence import IMAGES, read_kept
from sbdzsl.serving.journal import Event, stored_events

#: Kind of these events.
REVIEW = "review"

Choice = Literal["good", "defect", "unsure"]
Reason = Literal["dust", "glare", "edge", "harmless mark", "real defect", "wrong surface", "other"]

#: Longest comment, in characters.
MAX_COMMENT = 2000

#: Of the exported images, so many validate: thresholds need some, the training more.
VAL_SHARE = 0.2

_LABELS: dict[str, Label] = {"good": "benign", "defect": "defect"}

#: What a review takes over from its verdict.
_TAKEN = (
    *("image_id", "uri", "verdict", "surface", "surface_expected", "defect_score", "defect_threshold", "bundle"),
    *("bit_depth", "camera", "part_id", "inspected_at"),
)


def review_document(event: Event, who: str, decision: str, reason: str | None, comment: str) -> dict[str, Any]:
    """The document of a review of a verdict's event. Raises `ServiceError` "bad-request"."""
    if event.kind != "verdict":
        raise ServiceError("bad-request", f"event {event.id} is of kind {event.kind!r}; only verdicts are reviewed")
    if not who.strip():
        raise ServiceError("bad-request", "a review needs the name of who gives it")
    if decision not in get_args(Choice):
        raise ServiceError("bad-request", f"found decision {decision!r}, expected {', '.join(get_args(Choice))}")
    if reason is not None and reason not in get_args(Reason):
        raise ServiceError("bad-request", f"found reason {reason!r}, expected none or {', '.join(get_args(Reason))}")
    if len(comment) > MAX_COMMENT:
        raise ServiceError("bad-request", f"the comment has {len(comment)} characters, the limit is {MAX_COMMENT}")
    said = {"of": event.id, "who": who.strip(), "decision": decision, "reason": reason, "comment": comment}
    return said | {name: event.document.get(name) for name in _TAKEN}


def latest_reviews(folder: str) -> list[Event]:
    """The latest review of each image, in the order given, of the service that keeps its data in `folder`.

    Any process may ask, also while the service runs. Raises `LakeError` where there is no journal.
    """
    latest: dict[str, Event] = {}
    for event in stored_events(folder, REVIEW):
        latest.pop(event.document["image_id"], None)
        latest[event.document["image_id"]] = event
    return list(latest.values())


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote: images by surface and label, and how many reviewed images it left out, by reason."""

    images: Counter[tuple[str, str]]
    left_out: Counter[str]


def export(folder: str, out: str, images: str | None = None, seed: int = 0) -> Exported:
    """Write the reviewed images of a service as a manifest to `out`, and their bytes below `images`.

    Without `images` they go to a folder of that name beside `out`: what the service keeps is cleared away in time. A
    label is what the latest review says, a group is a part; splits are train and val, for images that were chosen
    because a bundle alarmed on them are no test of the next. Raises `DataError` "too-few-images" where no image is
    left, `LakeError`.
    """
    target = images or lake.join(lake.absolute_url(out).rpartition("/")[0], "images")
    left_out: Counter[str] = Counter()
    samples = []
    for review in latest_reviews(folder):
        content = read_kept(Path(folder) / IMAGES, review.document["image_id"])
        why_not = _why_not(review, content)
        if why_not is not None:
            left_out[why_not] += 1
            continue
        assert content is not None
        samples.append(_sample(review, content, target))
        lake.write_bytes(samples[-1].uri, content)
    if not samples:
        raise DataError("too-few-images", f"no reviewed image can be exported: {_listed(left_out) or 'none is there'}")
    lake.write_manifest(samples_to_table(assign_splits(samples, seed, VAL_SHARE, test_share=0)), out)
    return Exported(Counter((sample.surface or "", sample.label or "") for sample in samples), left_out)


def surface_of(review: Event) -> str | None:
    """The surface that a reviewed image shows; None where neither the verdict nor its caller names one."""
    document = review.document
    expected, seen = document["surface_expected"], document["surface"]
    if document["reason"] == "wrong surface":
        return expected if expected != seen else None
    return expected if document["verdict"] == "unseen" else seen


def _why_not(review: Event, content: bytes | None) -> str | None:
    """Why a reviewed image cannot be learnt from; None where it can."""
    if review.document["decision"] == "unsure":
        return "unsure: the latest review does not decide"
    if review.document["verdict"] == "error":
        return "could not be judged: the file is bad"
    if surface_of(review) is None:
        return "surface not known: unseen or wrong, and no other was expected"
    return "image not kept: cleared away, or good and not in the sample" if content is None else None


def _sample(review: Event, content: bytes, folder: str) -> Sample:
    document = review.document
    with PIL.Image.open(io.BytesIO(content)) as header:
        suffix = str(header.format).lower()
    return Sample(
        image_id=document["image_id"],
        uri=lake.absolute_url(lake.join(folder, f"{document['image_id']}.{suffix}")),
        size_bytes=len(content),
        surface=surface_of(review),
        label=_LABELS[document["decision"]],
        group=document["part_id"],
        bit_depth=document["bit_depth"],
    )


def _listed(left_out: Counter[str]) -> str:
    return "; ".join(f"{count} {reason}" for reason, count in left_out.most_common())
