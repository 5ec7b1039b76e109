"""The OpenAPI document against the service: whatever it allows is answered as it says, and never with 5xx."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from sbdzsl.serving.settings import ServeSettings
from tests.conftest import UNSEEN, Trained
from tests.serving.running import running

#: Would change the bundle for all others; never ends.
LEFT_OUT = {
    "POST /v1/bundle",
    "POST /v1/bundle/rollback",
    "PUT /v1/candidate",
    "DELETE /v1/candidate",
    "POST /v1/candidate/promote",
    "GET /v1/events",
}


def test_whatever_the_document_allows_is_answered_as_it_says(
    trained: Trained, picture_of: Callable[..., bytes], tmp_path: Path
) -> None:
    with running(trained.bundle_url, ServeSettings(threads=1, data=str(tmp_path))) as service:
        service.post(picture_of(UNSEEN))
        document = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
        tried = set()
        for found in document.get_all_operations():
            operation = found.ok()
            if operation.label in LEFT_OUT:
                continue
            tried.add(operation.label)

            @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy())
            def call(case: Any) -> None:
                # No schema says which bytes are an image or which event there is: valid data may be refused.
                case.call_and_validate(excluded_checks=[positive_data_acceptance])

            call()
    assert {"POST /v1/inspect", "GET /v1/verdicts", "POST /v2/models/sbdzsl/infer", "GET /v1/counters"} <= tried
