"""Over HTTP: an answer that is given again is the same as the first, and metrics say what is kept."""

import hashlib
import re
import time
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from fastapi.testclient import TestClient

from sbdzsl.serving.app import build_app
from sbdzsl.serving.recorder import Recorder
from sbdzsl.serving.service import Job, Judged, Service
from sbdzsl.serving.settings import KeepSettings, ServeSettings
from sbdzsl.verdict import Verdict


class EveryoneIsDefective:
    """A service for which each image is a defect."""

    async def inspect(self, job: Job) -> Judged:
        name = hashlib.sha256(job.content).hexdigest()
        return Judged(Verdict(name, "uri", "defect", "b", "steel", defect_score=2.0, defect_threshold=1.0), 0.1)


def client(recorder: Recorder) -> TestClient:
    return TestClient(build_app(cast(Service, EveryoneIsDefective()), ServeSettings(), recorder))


def post(door: TestClient, content: bytes, key: str) -> dict[str, Any]:
    answer = door.post("/v1/inspect", content=content, headers={"Idempotency-Key": key})
    assert answer.status_code == 200
    return cast("dict[str, Any]", answer.json())


def test_a_new_process_gives_the_answer_of_the_old_one_again(tmp_path: Path) -> None:
    with closing(Recorder(str(tmp_path))) as recorder:
        first = post(client(recorder), b"image", "k1")
    with closing(Recorder(str(tmp_path))) as recorder:
        assert post(client(recorder), b"image", "k1") == first
        assert post(client(recorder), b"image", "k2")["event_id"] == first["event_id"] + 1


def test_metrics_say_what_is_kept_and_how_far_the_log_is_behind(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("in the way")
    with closing(Recorder(str(tmp_path), KeepSettings(log_seconds=0))) as recorder:
        door = client(recorder)
        for content in (b"one", b"three", b"three"):
            post(door, content, f"key of {content.decode()}")
        while recorder.backlog().rows < 2 or recorder.backlog().failure is None:
            time.sleep(0.01)
        text = door.get("/metrics").text
        found = dict(re.findall(r"^sbdzsl_((?:log|kept)_\w+) (\S+)$", text, re.MULTILINE))
        assert float(found.pop("log_seconds_behind")) > 0
        assert {name: float(value) for name, value in found.items()} == {
            "log_rows_behind": 2,
            "kept_alarm_images": 2,
            "kept_good_images": 0,
            "kept_image_bytes": 8,
        }
