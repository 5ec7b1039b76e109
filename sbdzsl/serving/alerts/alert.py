"""One alert: a key that stays the same when a request is repeated, and the document that every sink sends."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import pydantic_core

from sbdzsl.verdict import phrase

#: Of the document's form. Fields may be added under the same number; none changes its meaning or goes.
DOCUMENT_VERSION = 1

#: Where the service shows the image of an event with its regions drawn in, below the base URL.
OVERLAY_PATH = "/v1/verdicts/{event_id}/overlay"

#: Fields of an answer that tell one request from another. The image is among them, for a camera may send the same
#: request id for ever.
_IDENTITY = ("request_id", "camera", "trigger_id", "sequence", "part_id", "image_id")

#: Fields of an answer that an alert repeats as they are.
_REPEATED = (
    *("verdict", "result_evaluation", "surface", "surface_expected", "surface_as_expected", "surface_margin"),
    *("defect_score", "defect_threshold", "defect_probability", "threshold_policy"),
    *("unseen_score", "unseen_threshold", "unseen_p_value", "nearest_surfaces", "nearest_scores"),
    *("regions", "image_width", "image_height", "class_embedding", "attributes", "extrapolated"),
    *("error_code", "error_detail"),
    *("request_id", "event_id", "camera", "trigger_id", "part_id", "sequence", "image_id", "uri"),
    *("captured_at", "inspected_at", "queue_ms", "decode_ms", "route_ms", "detect_ms", "bundle"),
)


@dataclass(frozen=True, slots=True)
class Alert:
    """What is delivered. `id` is the idempotency key: a receiver that saw it before has seen this alert.

    `created_at` is UTC. `document` holds plain JSON values, `id` and the time among them; see `docs/alerts.md`.
    """

    id: str
    created_at: datetime
    document: Mapping[str, Any]

    def to_json(self) -> bytes:
        """The document as compact JSON."""
        return pydantic_core.to_json(self.document)

    @classmethod
    def from_json(cls, body: bytes | str) -> Alert:
        """The alert of a document that `to_json` wrote."""
        document = json.loads(body)
        return cls(document["id"], datetime.fromisoformat(document["timestamp"]), document)


def make_alert(answer: Mapping[str, Any], base_url: str | None = None, idempotency_key: str | None = None) -> Alert:
    """The alert of one answer of the service (`Verdict.to_json` and what stands beside it).

    Its id follows from the request's idempotency key, or, where it had none, from request id, camera, trigger,
    sequence, part and image together: the same request again gives the same id. `base_url` is where people reach the
    service; the document links the overlay below it, null without one or where the service keeps no events.
    """
    created_at = datetime.now(timezone.utc)
    identity = idempotency_key if idempotency_key is not None else [answer.get(name) for name in _IDENTITY]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    alert_id, event_id = f"alert-{digest[:32]}", answer.get("event_id")
    document = {
        "id": alert_id,
        "type": "inspection.alert",
        "version": DOCUMENT_VERSION,
        "timestamp": created_at.isoformat(),
        **{name: answer.get(name) for name in _REPEATED},
        "looks": _looks(answer),
        "overlay_url": _overlay_url(base_url, event_id),
    }
    # A score that is not finite becomes null here: JSON has no word for it.
    return Alert.from_json(pydantic_core.to_json(document, inf_nan_mode="null"))


def _overlay_url(base_url: str | None, event_id: int | None) -> str | None:
    if base_url is None or event_id is None:
        return None
    return base_url.rstrip("/") + OVERLAY_PATH.format(event_id=event_id)


def _looks(answer: Mapping[str, Any]) -> str | None:
    """The attributes that stand out as one phrase for a person; None where the image could not be judged."""
    if answer["verdict"] == "error":
        return None
    return phrase(answer["attributes"]) + (" (extrapolated)" if answer.get("extrapolated") else "")
