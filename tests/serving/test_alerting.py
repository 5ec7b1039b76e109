"""Alerts of the service: stored before the answer, sent to the sinks, shown in metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sbdzsl.config import parse
from sbdzsl.errors import ConfigError
from sbdzsl.serving.settings import ServeSettings
from tests.conftest import UNSEEN, Trained
from tests.serving.conftest import served

PNG = {"Content-Type": "image/png"}


def settings(folder: Path) -> ServeSettings:
    """A sink that appends to a file, told of everything but good ones."""
    sink = {"kind": "file", "path": str(folder / "alerts.jsonl"), "verdicts": ["defect", "unseen", "error"]}
    given = {
        "threads": 1,
        "data": str(folder / "data"),
        "public_url": "https://inspect.example",
        "alerts": {"sinks": [sink]},
    }
    return parse(ServeSettings, given, "test")


def delivered(folder: Path, number: int) -> list[dict[str, object]]:
    """What the sink was told, when there is as much of it."""
    file, deadline = folder / "alerts.jsonl", time.monotonic() + 20
    lines: list[str] = []
    while len(lines) < number and time.monotonic() < deadline:
        lines = file.read_text().splitlines() if file.exists() else []
        time.sleep(0.05)
    return [json.loads(line) for line in lines]


def test_an_alarm_is_sent_once_with_what_explains_it(
    trained: Trained, picture_of: Callable[..., bytes], tmp_path: Path
) -> None:
    content, headers = picture_of(UNSEEN), PNG | {"Idempotency-Key": "part-7"}
    with served(trained.bundle_url, settings(tmp_path), data=tmp_path / "data") as running:
        params = {"camera": "line7", "part_id": "A1", "regions": "false"}
        answers = [
            running.client.post("/v1/inspect", params=params, content=content, headers=headers).json() for _ in range(2)
        ]
        assert running.client.post("/v1/inspect", content=b"broken", headers=PNG).status_code == 415
        alerts = delivered(tmp_path, 2)
        metrics = running.client.get("/metrics").text
    assert [alert["verdict"] for alert in alerts] == [answers[0]["verdict"], "error"]
    first = alerts[0]
    assert (first["camera"], first["part_id"]) == ("line7", "A1")
    assert first["class_embedding"] == answers[0]["class_embedding"]
    assert first["overlay_url"] == f"https://inspect.example/v1/verdicts/{answers[0]['event_id']}/overlay"
    assert 'sbdzsl_alerts_delivered_total{sink="file"} 2.0' in metrics
    assert 'sbdzsl_alert_sink_up{sink="file"} 1.0' in metrics


def test_an_alert_that_a_dying_process_left_out_is_stored_when_the_request_comes_again(
    trained: Trained, picture_of: Callable[..., bytes], tmp_path: Path
) -> None:
    content, headers = picture_of(UNSEEN), PNG | {"Idempotency-Key": "part-7"}
    silent = settings(tmp_path).model_copy(update={"alerts": ServeSettings().alerts})
    with served(trained.bundle_url, silent, data=tmp_path / "data") as running:
        running.client.post("/v1/inspect", content=content, headers=headers)
    with served(trained.bundle_url, settings(tmp_path), data=tmp_path / "data") as running:
        running.client.post("/v1/inspect", content=content, headers=headers)
        assert len(delivered(tmp_path, 1)) == 1


def test_alerts_need_a_folder() -> None:
    sink = {"kind": "file", "path": "alerts.jsonl"}
    with pytest.raises(ConfigError, match="data"):
        parse(ServeSettings, {"alerts": {"sinks": [sink]}}, "test")
