"""A candidate beside the bundle in force: shadow, canary, promotion, way back."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sbdzsl import bundle as bundles
from sbdzsl.serving.settings import ServeSettings
from tests.conftest import SEEN, Trained
from tests.serving.conftest import Served, served

PNG = {"Content-Type": "image/png"}
Picture = Callable[..., bytes]


@pytest.fixture(scope="module")
def stricter(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same bundle with a threshold that calls everything defective."""
    folder = tmp_path_factory.mktemp("stricter") / "bundle"
    shutil.copytree(trained.bundle_url, folder)
    card = json.loads((folder / bundles.CARD).read_text())
    for detector in card["detectors"].values():
        detector["settings"]["threshold_policy"] = "fixed:-100"
    (folder / bundles.CARD).write_text(json.dumps(card))
    return str(folder)


@pytest.fixture
def running(trained: Trained) -> Iterator[Served]:
    """An application of its own: these tests change what is in force."""
    with served(trained.bundle_url, ServeSettings(threads=1)) as found:
        yield found


def judged(running: Served, content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = running.client.post("/v1/inspect", content=content, headers=PNG).json()
    return found


def test_a_shadow_is_compared_and_never_answers(
    running: Served, trained: Trained, stricter: str, picture_of: Picture
) -> None:
    begun = running.client.put("/v1/candidate", json={"bundle": stricter})
    assert begun.status_code == 200, begun.text
    content = next(
        content
        for content in (picture_of(SEEN[0], number=number) for number in range(8))
        if judged(running, content)["verdict"] == "good"
    )
    for _ in range(3):
        answer = judged(running, content)
        assert (answer["verdict"], answer["bundle"]) == ("good", trained.bundle.digest)
        time.sleep(0.3)
    report = running.client.get("/v1/candidate").json()
    assert report["compared"] + report["skipped"] >= 3
    changed = [pair for pair in report["pairs"] if (pair["current"], pair["candidate"]) == ("good", "defect")]
    assert changed[0]["images"] >= 1
    assert report["examples"][-1]["candidate"]["verdict"] == "defect"
    assert running.client.delete("/v1/candidate").status_code == 204
    assert running.client.get("/v1/candidate").json()["code"] == "no-candidate"


def test_a_canary_answers_its_share_always_for_the_same_images(
    running: Served, trained: Trained, stricter: str, picture_of: Picture
) -> None:
    running.client.put("/v1/candidate", json={"bundle": stricter, "mode": "canary", "share": 0.5})
    contents = [picture_of(surface, number=number) for surface in SEEN for number in range(6)]
    first = [judged(running, content)["bundle"] for content in contents]
    assert first == [judged(running, content)["bundle"] for content in contents]
    assert len(set(first)) == 2
    answers = running.client.get("/v1/candidate").json()["answers"]
    assert sum(one["images"] for one in answers) == 2 * len(contents)


def test_promotion_and_the_way_back(running: Served, trained: Trained, stricter: str) -> None:
    assert running.client.post("/v1/bundle/rollback").status_code == 404
    running.client.put("/v1/candidate", json={"bundle": stricter})
    promoted = running.client.post("/v1/candidate/promote").json()["bundle"]
    assert promoted != trained.bundle.digest
    assert running.client.get("/v1/bundle").json()["bundle"] == promoted
    assert running.client.get("/v1/candidate").status_code == 404
    assert running.client.post("/v1/bundle/rollback").json()["bundle"] == trained.bundle.digest


def test_a_candidate_that_cannot_be_loaded_changes_nothing(running: Served, tmp_path: Path) -> None:
    refused = running.client.put("/v1/candidate", json={"bundle": str(tmp_path)})
    assert (refused.status_code, refused.json()["code"]) == (404, "no-bundle")
    wrong = running.client.put("/v1/candidate", json={"bundle": str(tmp_path), "share": 2})
    assert wrong.status_code == 400
