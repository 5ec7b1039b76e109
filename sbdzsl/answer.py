"""What the service answers about one image: the verdict, and which request it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sbdzsl.errors import ServiceError
from sbdzsl.verdict import OPC_RESULT_EVALUATION, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Verdict):
    """A verdict as the service gives it. `event_id` is its number in the journal, None where the service keeps none.

    `camera`, `trigger_id`, `part_id`, `sequence` and `captured_at` are the request's own. `surface_as_expected` is None
    where no surface was expected, or none could be named. `queue_ms` is how long the image waited for the nets.
    """

    result_evaluation: int = 0
    request_id: str
    event_id: int | None = None
    camera: str | None = None
    trigger_id: str | None = None
    part_id: str | None = None
    sequence: int | None = None
    captured_at: datetime | None = None
    surface_expected: str | None = None
    surface_as_expected: bool | None = None
    queue_ms: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values, as they came."""
        return Verdict.to_json(self) | {"captured_at": self.captured_at and self.captured_at.isoformat()}


_ANSWER = TypeAdapter(Answer)


def read_answer(values: Mapping[str, Any]) -> Answer:
    """The answer in a JSON object of the service; keys that are not known are left out.

    Raises `ServiceError` "bad-answer" for what is no answer, or one whose evaluation is not its verdict's.
    """
    try:
        answer = _ANSWER.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ServiceError(
            "bad-answer", f"the answer's {where}: {first['msg']} (found {first['input']!r}); is this the service?"
        ) from None
    found, expected = answer.result_evaluation, OPC_RESULT_EVALUATION[answer.verdict]
    if found != expected:
        raise ServiceError(
            "bad-answer", f"found result_evaluation {found!r} beside verdict {answer.verdict}, expected {expected}"
        )
    return answer
