"""The local stack, for real: an audit as a job with a token, its verdicts in an S3 server, metrics in Prometheus."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from tests.conftest import Trained
from tests.infra.manifests import INFRA, ROOT

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def load_stack() -> ModuleType:
    """The script, which is no package's module."""
    spec = importlib.util.spec_from_file_location("stack", INFRA / "local" / "stack.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules["stack"] = found
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def environment(trained: Trained) -> Iterator[dict[str, str]]:
    """What `source env.sh` would set; all that was started is gone afterwards."""
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus on this machine: apt-get install prometheus")
    stack = load_stack()
    folder = Path(tempfile.mkdtemp(prefix="sbdzsl-", dir="/tmp"))  # sockets lie below it: short
    running = stack.Stack(folder)
    env = running.start(workers=1, cpus=1, bundle=trained.bundle_url, with_prometheus=True, scrape_s=1)
    pids = [one.pid for one in running.started()]
    family = [child for pid in pids for child in psutil.Process(pid).children(recursive=True)]
    yield env
    running.stop()
    assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
    shutil.rmtree(folder)


def asked(prometheus: str, query: str) -> list[dict[str, str]]:
    """Labels of the series that Prometheus has for a query now."""
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return [row["metric"] for row in json.load(answer)["data"]["result"]]


def wait_for(prometheus: str, query: str) -> list[dict[str, str]]:
    """The same, once there are some."""
    deadline = time.monotonic() + 60
    while not (found := asked(prometheus, query)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def submit(
    environment: dict[str, str], trained: Trained, out: str, token: str | None
) -> subprocess.CompletedProcess[str]:
    """A small audit by `sbdzsl audit --submit`, by somebody who has the token, or another."""
    env = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
    if token is not None:
        env["RAY_AUTH_TOKEN"] = token
    lake = str(Path(trained.manifest_uri).parent / "lake")
    words = ["--bundle", trained.bundle_url, "--lake", lake, "--limit", "12", "--out", out]
    words += ["--submit", environment["SBDZSL_DASHBOARD"], "--config", "{gallery_size: 0}"]
    command = [sys.executable, "-m", "sbdzsl.cli", "audit", *words]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)


def test_a_stranger_is_refused(environment: dict[str, str], trained: Trained) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{environment['SBDZSL_DASHBOARD']}/api/jobs/", timeout=10)
    assert refused.value.code == 401
    done = submit(environment, trained, "s3://stack/stranger", token="0" * 64)
    assert done.returncode == 1
    assert "asks for its token" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_audit_as_a_job_writes_to_the_store(
    environment: dict[str, str], trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = submit(environment, trained, "s3://stack/audit", token=None)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    words = [sys.executable, "-c", "import sys; from sbdzsl import lake; print(lake.read_bytes(sys.argv[1]).decode())"]
    read = subprocess.run(
        [*words, "s3://stack/audit/summary.json"], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True
    )
    summary = json.loads(read.stdout)
    assert summary["complete"]
    assert summary["facts"]["num_rows"] == 12


def test_prometheus_has_our_metrics_and_rays(environment: dict[str, str], trained: Trained) -> None:
    content = Path(trained.manifest["uri"].to_pylist()[0]).read_bytes()
    service, prometheus = environment["SBDZSL_SERVICE"], environment["SBDZSL_PROMETHEUS"]
    request = urllib.request.Request(f"{service}/v1/inspect", content, {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        verdict = json.load(answer)["verdict"]
    (found,) = wait_for(prometheus, "sbdzsl_verdicts_total")
    assert (found["job"], found["verdict"]) == ("sbdzsl", verdict)
    assert len(wait_for(prometheus, 'up{job="ray"} == 1')) >= 2, "head and worker"
    assert {row["job"] for row in wait_for(prometheus, "ray_node_mem_total")} == {"ray"}
    url = f"{prometheus}/api/v1/rules"
    with urllib.request.urlopen(url, timeout=10) as answer:
        groups = json.load(answer)["data"]["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
    assert sum(len(group["rules"]) for group in groups) > 15
