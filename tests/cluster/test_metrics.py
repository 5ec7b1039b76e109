"""The metrics of replicas among those of their node, on a real Ray."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from sbdzsl.cluster import metrics
from sbdzsl.cluster.metrics import Mirror
from sbdzsl.serving.observe import Meter

pytestmark = [pytest.mark.ray, pytest.mark.slow]

#: Seconds between two reports of a process to its node, ten unless told; for two of them Ray keeps a value.
REPORT_S = 3


class Counting:
    """A replica that has answered some requests."""

    def __init__(self, requests: int) -> None:
        self._meter = Meter()
        for _ in range(requests):
            self._meter.count_request("/v1/inspect", 200, 0.03)
        metrics.PERIOD_S = 0.5
        self._mirror = Mirror(self._meter.registry).start()

    def ping(self) -> None:
        """Say that it is there."""


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where the metrics of a Ray of its own are."""
    monkeypatch.setenv("RAY_metrics_report_interval_ms", str(1000 * REPORT_S))
    # Here, for Ray's workers import this module and do not know where that one lies.
    from serving_process import free_port

    found = free_port()
    ray.init(
        address="local", num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False,
        logging_level="warning", _metrics_export_port=found,
    )  # fmt: skip
    yield found
    ray.shutdown()


def scraped(port: int) -> dict[str, dict[str, float]]:
    """Values of our metrics, by name and by the labels that are ours."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("ray_sbdzsl_"):
                label = " ".join(sample.labels[name] for name in ("replica_id", "le") if name in sample.labels)
                found.setdefault(sample.name, {})[label] = sample.value
    return found


def test_two_replicas_are_told_apart_and_stay(port: int) -> None:
    actor: Any = ray.remote(num_cpus=0)(Counting)
    replicas = [actor.remote(3), actor.remote(5)]
    ray.get([replica.ping.remote() for replica in replicas])
    deadline = time.monotonic() + 60
    while len(scraped(port).get("ray_sbdzsl_requests_total", {})) < 2 and time.monotonic() < deadline:
        time.sleep(1)
    found = scraped(port)
    assert sorted(found["ray_sbdzsl_requests_total"].values()) == [3, 5]
    buckets = found["ray_sbdzsl_request_seconds_bucket"]
    assert sorted(value for label, value in buckets.items() if label.endswith(" 0.02")) == [0, 0]
    assert sorted(value for label, value in buckets.items() if label.endswith(" 0.03")) == [3, 5]
    time.sleep(4 * REPORT_S)  # after half of which Ray forgets what is not set again
    assert sorted(scraped(port)["ray_sbdzsl_requests_total"].values()) == [3, 5]
    assert not [name for name in scraped(port) if name.endswith("_created")]
