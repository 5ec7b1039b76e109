"""The audit as a user runs it on a cluster: by `ray job submit`, and killed in the middle."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from sbdzsl import lake
from sbdzsl.cluster import jobs
from sbdzsl.errors import AuditError
from tests.conftest import Trained

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

# Jobs are taken by the agent: at the usual port another Ray of this machine may be in its place.
HEAD = """
import json, sys
from ray.cluster_utils import Cluster
head = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": True, "dashboard_port": int(sys.argv[1])}
cluster = Cluster(initialize_head=True, head_node_args=head | {"dashboard_agent_listen_port": 0})
print(json.dumps({"dashboard": cluster.webui_url, "gcs": cluster.address}), flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@dataclass(frozen=True)
class Head:
    """A running cluster of this machine: where jobs are submitted, and where drivers connect."""

    dashboard: str
    gcs: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The cluster runs `python` of the job's entry point: it has to be this environment's.
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD, str(port)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    found = json.loads(process.stdout.readline())
    yield Head(f"http://{found['dashboard']}", found["gcs"], environment)
    process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()


def num_rows(out: Path) -> int:
    return pl.read_parquet(out / "parts" / "*.parquet", columns=["image_id"])["image_id"].n_unique()


def submit(head: Head, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Submit and wait; tried again while the new cluster's agent, which takes jobs, is not up yet."""
    command = [str(BIN / "ray"), "job", "submit", "--address", head.dashboard, "--working-dir", str(REPOSITORY), "--"]
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run([*command, *words], env=head.environment, capture_output=True, text=True, timeout=300)
        if "No available agent" not in done.stdout + done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(2)


def test_ray_job_submit(head: Head, trained: Trained, tmp_path: Path) -> None:
    short = str(tmp_path / "short.parquet")
    lake.write_manifest(trained.manifest.slice(0, 24), short)
    out = tmp_path / "out"
    words = ["python", "jobs/audit.py", "--bundle", trained.bundle_url, "--manifest", short, "--out", str(out)]
    done = submit(head, words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert num_rows(out) == 24
    assert "24 images, 24 rows, none missing, none doubled" in done.stdout
    assert (out / "report.html").exists()


def test_a_killed_audit_goes_on_where_it_was(head: Head, trained: Trained, tmp_path: Path) -> None:
    big, out = str(tmp_path / "big.parquet"), tmp_path / "out"
    rows = trained.manifest.to_pylist()
    many = [row | {"image_id": f"{row['image_id']}-{copy}"} for copy in range(8) for row in rows]
    lake.write_manifest(type(trained.manifest).from_pylist(many, schema=trained.manifest.schema), big)
    config = tmp_path / "audit.yaml"
    config.write_text("shard_size: 40\ngallery_size: 0\n")
    words = ["--bundle", trained.bundle_url, "--manifest", big, "--out", str(out), "--config", str(config)]
    command = [sys.executable, str(REPOSITORY / "jobs" / "audit.py"), *words, "--address", head.gcs]
    environment = head.environment | {"PYTHONPATH": str(REPOSITORY)}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(out.glob("parts/*.parquet"))) < 3:
        assert first.poll() is None, "the audit ended before it could be killed"
        assert time.monotonic() < deadline, "no shard was finished in two minutes"
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("parts/*.parquet")}
    assert len(finished) * 40 < len(many), "the kill came too late to show anything"
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "resuming" in second.stdout
    assert num_rows(out) == len(many)
    assert pl.read_parquet(out / "parts" / "*.parquet").height == len(many)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "a finished part was written again"


@pytest.fixture
def dashboard(head: Head, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    return head.dashboard


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_job_gives_its_lines_and_its_own_exit_code(dashboard: str) -> None:
    lines: list[str] = []
    words = script("import sys, time; print('first'); time.sleep(2); print('two words'); sys.exit(3)")
    assert jobs.submit(words, dashboard, "codes", {"lot": "7"}, report=lines.append) == 3
    assert [line for line in lines if line in ("first", "two words")] == ["first", "two words"]
    found = JobSubmissionClient(dashboard).get_job_info("codes")
    assert found.metadata["lot"] == "7"
    assert not found.runtime_env, "a job ships nothing unless it is told to"
    # An id that has ended is not refused: the next one is taken.
    assert jobs.submit(script("print('again')"), dashboard, "codes", report=lines.append) == 0
    assert "job codes-2 submitted" in lines


def test_a_running_job_is_followed_and_not_started_twice(dashboard: str, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    words = script(f"import time; open({str(starts)!r}, 'a').write('x'); print('in', flush=True); time.sleep(6)")
    first: list[str] = []
    with ThreadPoolExecutor() as pool:
        running = pool.submit(jobs.submit, words, dashboard, "once", report=first.append)
        deadline = time.monotonic() + 60
        while "in" not in first:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        second: list[str] = []
        assert jobs.submit(words, dashboard, "once", report=second.append) == 0
        assert running.result() == 0
    assert second[0] == "job once is there already and is followed"
    assert (first.count("in"), second.count("in")) == (1, 1)
    assert starts.read_text() == "x"


def test_a_job_that_fits_nowhere_is_stopped_and_says_so(dashboard: str) -> None:
    started = time.monotonic()
    with pytest.raises(AuditError, match="had not begun after 3 s and was stopped") as caught:
        jobs.submit(script("print(1)"), dashboard, "large", cpus=64, pending_s=3, report=lambda _: None)
    assert caught.value.code == "no-resources"
    assert time.monotonic() - started < 20


def test_an_interrupt_leaves_the_job_running_and_says_how_to_go_on(head: Head, dashboard: str) -> None:
    call = (
        "from sbdzsl.cluster import jobs\n"
        f"jobs.submit([{sys.executable!r}, '-c', 'print(\"in\", flush=True); import time; time.sleep(60)'], "
        f"{dashboard!r}, 'kept', report=lambda line: print(line, flush=True))"
    )
    process = subprocess.Popen(
        script(call), env=head.environment | {"PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    while process.stdout.readline() != "in\n":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=10)
    assert "job kept goes on" in rest
    assert f"ray job stop --address {dashboard} kept" in rest
    assert "KeyboardInterrupt" in errors
    client = JobSubmissionClient(dashboard)
    assert client.get_job_status("kept") == JobStatus.RUNNING
    assert client.stop_job("kept")


def test_no_cluster_at_the_address() -> None:
    with pytest.raises(AuditError, match="no jobs at"):
        jobs.submit(["true"], "http://127.0.0.1:9", "nobody", report=lambda _: None)
