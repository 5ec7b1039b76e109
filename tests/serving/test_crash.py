"""What a crash can lose: a real serving process, killed under load, and what the log has afterwards."""

import time
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from serving_process import Load, serving

from sbdzsl.serving.log import read_log
from tests.conftest import UNSEEN, Trained

KEEP = {"log_seconds": 0.3, "good_share": 0.2}


@pytest.mark.slow
def test_every_alarm_that_was_answered_is_in_the_log_once_however_often_the_service_is_killed(
    trained: Trained, tmp_path: Path
) -> None:
    rows = trained.manifest.filter(pc.equal(trained.manifest["split"], "test")).to_pylist()
    images = [Path(row["uri"]).read_bytes() for row in rows[:30]]
    images += [Path(row["uri"]).read_bytes() for row in rows if row["surface"] == UNSEEN][:5]
    images.append(b"\x89PNG\r\n\x1a\n no image")
    data = tmp_path / "data"
    lives: list[list[dict[str, Any]]] = []
    for answers_before_the_kill in (40, 55):
        with serving(trained.bundle_url, data, KEEP) as server:
            load = Load(server, images)
            while len(load.answers) < answers_before_the_kill:
                time.sleep(0.002)
            server.kill()
            load.join()
            lives.append(load.answers)
    with serving(trained.bundle_url, data, KEEP) as server:
        server.stop()
    logged = read_log(str(data / "log")).collect()
    assert logged.select("journal", "event_id").n_unique() == logged["request_id"].n_unique() == len(logged)
    requests = set(logged["request_id"])
    alarms = [answer for answers in lives for answer in answers if answer["verdict"] != "good"]
    assert {answer["verdict"] for answer in alarms} == {"defect", "unseen", "error"}
    assert {answer["request_id"] for answer in alarms} <= requests
    assert {answer["image_id"] for answer in alarms} <= {path.name for path in data.glob("images/alarm/*/*")}
    for answers in lives:
        found = [answer["event_id"] for answer in answers if answer["request_id"] in requests]
        lost = [answer["event_id"] for answer in answers if answer["request_id"] not in requests]
        assert all(number > max(found) for number in lost), "more is lost than the last commit"
