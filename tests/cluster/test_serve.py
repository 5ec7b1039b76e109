"""The service on real Ray Serve: both shapes answer as the inspector does, change their bundle and outlive a death."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest
import ray
from ray import serve
from serving_process import free_port

from sbdzsl import bundle as bundles
from sbdzsl.cluster.serve import ServeArgs, build, deployed
from sbdzsl.errors import BundleError
from sbdzsl.inspector import Inspector, load_image
from sbdzsl.serving.settings import ServeSettings
from tests.conftest import PASSING, SEEN, Trained

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def arguments(bundle_url: str, data: Path | None = None) -> ServeArgs:
    """The routed shape, one surface in the deployment for rare ones; it takes no CPU, each net one thread."""
    service = ServeSettings(threads=1, data=str(data) if data else None)
    return ServeArgs(
        bundle=bundle_url,
        shape="routed",
        cpus=0,
        detector_cpus=0,
        shared_surfaces=(SEEN[2],),
        service=service,
        open_to_all=True,
    )


def answer(client: httpx2.Client, content: bytes) -> httpx2.Response:
    return client.post("/v1/inspect", content=content, headers={"Content-Type": "image/png"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the service's memory."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def client(trained: Trained, data: Path) -> Iterator[httpx2.Client]:
    """A client of a running service."""
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "90"
    port = free_port()
    with (
        deployed(arguments(trained.bundle_url, data), "127.0.0.1", port),
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as found,
    ):
        yield found


@pytest.fixture(scope="module")
def contents(trained: Trained) -> list[bytes]:
    """Every fourth image: seen, unseen, good and defective ones."""
    return [Path(uri).read_bytes() for uri in trained.manifest["uri"].to_pylist()[::4]]


def test_verdicts_are_those_of_the_inspector(client: httpx2.Client, trained: Trained, contents: list[bytes]) -> None:
    inspector = Inspector(trained.bundle)
    for content in contents:
        found = answer(client, content).json()
        expected = inspector.decide(load_image("", "", trained.bundle.settings.image, content=content)).to_json()
        for name in expected.keys() - PASSING:
            assert found[name] == json.loads(json.dumps(expected[name])), name


def test_every_seen_surface_was_judged_in_its_own_deployment(client: httpx2.Client) -> None:
    names = set(serve.status().applications["default"].deployments)
    assert names == {"Inspection", f"Detector-{SEEN[0]}", f"Detector-{SEEN[1]}", "Detectors"}


def test_what_was_answered_is_remembered_and_shown(client: httpx2.Client, contents: list[bytes]) -> None:
    answers = [answer(client, content).json() for content in contents]
    alarms = [one for one in answers if one["verdict"] in ("defect", "unseen")]
    assert alarms
    for one in alarms[:3]:
        kept = client.get(f"/v1/verdicts/{one['event_id']}").json()
        assert kept["image_id"] == one["image_id"]
        assert client.get(f"/v1/verdicts/{one['event_id']}/overlay").headers["content-type"].startswith("image/")
    deadline = time.monotonic() + 30
    while client.get("/v1/counters").json()["inspected"] < len(answers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert client.get("/v1/counters").json()["inspected"] >= len(answers)
    assert client.get("/v1/verdicts/999999999").status_code == 404
    assert "text/html" in client.get("/").headers["content-type"]


def test_the_node_shows_the_metrics_of_its_replicas(client: httpx2.Client, contents: list[bytes]) -> None:
    verdict = answer(client, contents[0]).json()["verdict"]
    url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + 60
    found: list[str] = []
    while not found and time.monotonic() < deadline:
        time.sleep(1)
        lines = httpx2.get(url, timeout=10, trust_env=False).text.splitlines()
        found = [line for line in lines if line.startswith("ray_sbdzsl_verdicts_total{") and f'"{verdict}"' in line]
    assert found


def test_bad_images_and_pictures_come_through(client: httpx2.Client, contents: list[bytes]) -> None:
    assert answer(client, b"no image").status_code == 415
    picture = client.post("/v1/inspect", content=contents[0], headers={"Accept": "image/png"})
    assert picture.headers["content-type"] == "image/png"
    wrong = client.post("/v1/inspect", params={"policy": "magic"}, content=contents[0])
    assert (wrong.status_code, wrong.json()["code"]) == (400, "bad-config")
    assert client.get("/readyz").json() == {"status": "ready"}
    assert client.post("/v1/bundle", json={"bundle": "x"}).status_code == 405, "a replica is not the service"


def test_a_new_bundle_is_put_in_force_without_a_lost_request(
    client: httpx2.Client, trained: Trained, contents: list[bytes], data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(trained.bundle_url, copy)
    card = json.loads((copy / bundles.CARD).read_text())
    (copy / bundles.CARD).write_text(json.dumps(card | {"code_version": "another"}))
    digests: Counter[str | None] = Counter()
    statuses: Counter[int] = Counter()
    is_over = threading.Event()

    def load() -> None:
        while not is_over.is_set():
            found = answer(client, contents[statuses.total() % len(contents)])
            statuses[found.status_code] += 1
            digests[found.json().get("bundle")] += 1

    thread = threading.Thread(target=load)
    thread.start()
    try:
        serve.run(build(arguments(str(copy), data)), route_prefix="/")
        new = bundles.load(str(copy)).digest
        deadline = time.monotonic() + 60
        while digests[new] < 5 and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        is_over.set()
        thread.join()
    assert set(statuses) == {200}
    assert set(digests) == {trained.bundle.digest, new}


def test_a_dead_detector_costs_a_retry_and_no_verdict(client: httpx2.Client, contents: list[bytes]) -> None:
    expected = [answer(client, content).json().get("verdict") for content in contents[:6]]
    for pid in replica_pids("Detector"):
        os.kill(pid, signal.SIGKILL)
    found: list[str | None] = []
    deadline = time.monotonic() + 120
    for content in contents[:6]:
        while (response := answer(client, content)).status_code != 200 and time.monotonic() < deadline:
            assert response.status_code in (408, 429, 503), response.text  # what a client sends again
            time.sleep(0.5)
        found.append(response.json().get("verdict"))
    assert found == expected


def test_without_a_bundle_nothing_is_deployed() -> None:
    with pytest.raises(BundleError):
        build(arguments("/nowhere"))


def replica_pids(name: str) -> list[int]:
    """Processes of the replicas of the deployments whose name begins so."""
    below = psutil.Process().children(recursive=True)
    found = [process.pid for process in below if f"ServeReplica:default:{name}" in " ".join(process.cmdline())]
    assert found
    return found
