"""Alert rules, dashboard and scrape configuration: they ask for metrics that exist, and fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sbdzsl.serving.alerts.dispatcher import SinkStatistics
from sbdzsl.serving.observe import Meter
from sbdzsl.serving.recorder import Recorder
from tests.infra.manifests import INFRA, ROOT

MONITORING = INFRA / "monitoring"
HERE = Path(__file__).parent

#: Of KubeRay's operator (its metrics reference), and one that Ray shows only once it has killed a process.
NOT_SEEN_HERE = {
    "kuberay_job_deployment_status",
    "kuberay_service_condition_ready",
    "ray_memory_manager_worker_eviction_total",
}


def metrics_of(query: str) -> set[str]:
    """The metrics that a query asks for."""
    without_labels = re.sub(r"\b(?:by|without) \([^)]*\)|\{[^}]*\}|\"[^\"]*\"", " ", query)
    return set(re.findall(r"\b(?:ray|sbdzsl|kuberay)_\w+|\bup\b", without_labels))


def rules() -> list[dict[str, Any]]:
    """All alert rules."""
    found = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    return [rule for group in found["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """All panels of the dashboard that ask for something."""
    found = json.loads((MONITORING / "dashboard.json").read_text())
    return [panel for panel in found["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Every query, with who asks it."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


@pytest.fixture
def exported(tmp_path: Path) -> dict[str, set[str]]:
    """Names and labels of what the service exports, once it has judged, refused, and kept something."""
    meter = Meter()
    sink = SinkStatistics("plc", "webhook", "failing", 1, 2.0, 0, 0, 1, 0, None, None)
    recorder = Recorder(str(tmp_path / "data"))
    try:
        recorder.watched_by(meter)
        meter.watch_sinks(lambda: [sink])
        meter.count_request("/v1/inspect", 200, 0.1)
        judged = {f"{stage}_ms": 1.0 for stage in ("queue", "decode", "route", "detect")}
        scores = {"defect_score": 1.0, "defect_threshold": 2.0, "unseen_score": 1.0, "unseen_threshold": 2.0}
        meter.count_answer({"surface": "steel", "verdict": "good", "error_code": "empty", **judged, **scores})
        found: dict[str, set[str]] = {}
        for family in meter.registry.collect():
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
        return found
    finally:
        recorder.close()


def test_every_query_is_of_metrics_that_exist(exported: dict[str, set[str]]) -> None:
    known = exported.keys() | set((HERE / "ray_metrics.txt").read_text().split()) | NOT_SEEN_HERE | {"up"}
    asked = {name for _, query in queries() for name in metrics_of(query)}
    assert len(asked) > 20
    assert asked - known == set()


def test_labels_of_our_metrics_exist(exported: dict[str, set[str]]) -> None:
    given = {"job", "instance"}  # by Prometheus
    for who, query in queries():
        for name, labels in re.findall(r"\b(sbdzsl_\w+)\{([^}]*)\}", query):
            used = set(re.findall(r"(\w+)\s*(?:=~|!=|=)", labels))
            assert used <= exported[name] | given, who
        if "sbdzsl_" in query and "ray_" not in query:
            grouped = {word for group in re.findall(r"by \(([^)]*)\)", query) for word in group.split(", ")}
            labels = set().union(*(exported[name] for name in metrics_of(query) if name in exported))
            assert grouped <= labels | given, who


def test_paths_and_statuses_are_those_of_the_service() -> None:
    text = (MONITORING / "alerts.yaml").read_text()
    assert set(re.findall(r'path="([^"]+)"', text)) == {"/v1/inspect"}
    assert set(re.findall(r'verdict="([^"]+)"', text)) <= {"good", "defect", "unseen", "error"}


def test_thresholds_are_bounds_of_buckets(exported: dict[str, set[str]]) -> None:
    meter = Meter()
    meter.count_answer(
        dict.fromkeys(("queue_ms", "decode_ms", "route_ms", "detect_ms", "error_code", "defect_score"))
        | {"surface": "steel", "verdict": "unseen", "unseen_score": 1.0, "unseen_threshold": 2.0}
    )
    bounds = {
        sample.labels["le"] for family in meter.registry.collect() for sample in family.samples if "le" in sample.labels
    }
    assert exported
    asked = {le for _, query in queries() for le in re.findall(r'le="([^"]+)"', query)}
    assert asked
    assert asked <= bounds


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool on this machine: apt-get install prometheus")
    return found


def run(promtool: str, *words: str, cwd: Path) -> None:
    done = subprocess.run([promtool, *words], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_fire_when_they_should_and_not_before(promtool: str, tmp_path: Path) -> None:
    shutil.copy(MONITORING / "alerts.yaml", tmp_path)
    shutil.copy(HERE / "alerts_test.yaml", tmp_path)
    run(promtool, "check", "rules", "alerts.yaml", cwd=tmp_path)
    run(promtool, "test", "rules", "alerts_test.yaml", cwd=tmp_path)


def test_the_scrape_configuration_is_read(promtool: str) -> None:
    run(promtool, "check", "config", "prometheus.yaml", cwd=MONITORING)


def test_each_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    cases: dict[str, set[bool]] = {}
    for test in yaml.safe_load((HERE / "alerts_test.yaml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            cases.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert cases == {rule["alert"]: {True, False} for rule in rules()}


def test_each_alert_is_explained(explained: dict[str, str]) -> None:
    for rule in rules():
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["alert"] in explained, f"docs/operate.md does not say what to do about {rule['alert']}"
    assert explained.keys() == {rule["alert"] for rule in rules()}


def test_each_metric_is_explained(exported: dict[str, set[str]]) -> None:
    text = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    for name in {*exported, *(name for _, query in queries() for name in metrics_of(query))}:
        plain = re.sub(r"_(?:bucket|sum|count|created)$", "", name)
        known = re.findall(rf"`{plain}(?:_total)?(?:\{{([\w,]+)\}})?`", text)
        assert known, f"docs/operate.md does not say what {plain} means"
        labels = exported.get(name, set()) - {"le"}
        assert not labels or set(known[0].split(",")) == labels, f"{plain} has the labels {labels}"


@pytest.fixture
def explained() -> dict[str, str]:
    """Alert -> what the manual says, from the rows of its table."""
    text = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `((?:Sbdzsl|Ray|Serve|Audit|Inspection)\w+)` \| (.+) \|$", text, re.MULTILINE))


def test_panels_are_placed_and_named_once() -> None:
    found = json.loads((MONITORING / "dashboard.json").read_text())
    titles = [panel["title"] for panel in panels()]
    assert len(set(titles)) == len(titles) > 15
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + i, grid["y"] + j) for i in range(grid["w"]) for j in range(grid["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
